// The kernels around the recurrence: states in and out, and rows of a chunk laid side by side for the matrix products (or back
// into a strided tensor), with zeros where a row is not at work, so that padding is never read and never spoils a sum.
// Not here: cells (but for h before a projection, from saved gates) and products.
#include "device.h"

namespace birnn {
namespace cuda {

namespace {

constexpr int threads = 256;

// A chunk's rows (t, b) and features, eight rows and 32 features a block. All blocks along x: along y a grid has 65535 at most,
// which is two million features.
struct Cut {
  int64_t t, b, i;
};

BIRNN_BOTH unsigned across(int64_t width) { return unsigned((width + 31) / 32); }

BIRNN_DEVICE Cut cut(int64_t B, int64_t t_begin, int64_t width) {
  const unsigned blocks = across(width);
  const int64_t row = int64_t(blockIdx.x / blocks) * blockDim.y + threadIdx.y;
  return {t_begin + row / B, row % B, int64_t(blockIdx.x % blocks) * blockDim.x + threadIdx.x};
}
Grid grid(int64_t rows, int64_t width) { return {(rows + 7) / 8 * across(width), 1, 32, 8}; }

struct Start {
  const void* from;
  void* to;
  int64_t count;
};

template <class T, class To>
BIRNN_KERNEL(threads)
start_kernel(const Start a) {
  const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x;
  if (i < a.count) as<To>(a.to)[i] = Narrow<To>::of(wide(read_or_zero<T>(a.from, i)));
}

template <class T>
BIRNN_KERNEL(threads)
finish_kernel(const Finish a) {
  const Cut c = cut(a.B, 0, a.width);
  if (c.t > 0 || c.i >= a.width) return;
  const int64_t i = c.b * a.width + c.i;
  Wide<T> value = as<Wide<T>>(a.from)[i];
  if (a.rec && a.last < length_of(a.lengths, c.b, a.T)) value += as<Wide<T>>(a.rec)[i];
  as<T>(a.to)[i] = Narrow<T>::of(value);
}

template <class T>
BIRNN_KERNEL(threads)
gather_kernel(const Gather a) {
  const Cut c = cut(a.n.B, a.t_begin, a.width);
  if (c.t >= a.t_end || c.i >= a.width) return;
  const int64_t length = length_of(a.lengths, c.b, a.n.T);
  T value = Narrow<T>::of(Wide<T>(0));
  if (c.t < length) {
    const int64_t before = time_before(a.dir, c.t, length);
    if (a.kind == Rows::before && before < 0) {
      if (a.h0) value = as<T>(a.h0)[c.b * a.width + c.i];
    } else {
      value = as<T>(a.from)[(a.kind == Rows::before ? before : c.t) * a.from_t + c.b * a.from_b + c.i];
    }
  }
  as<T>(a.to)[((c.t - a.t_begin) * a.n.B + c.b) * a.width + c.i] = value;
}

// LSTM alone has a projection.
template <class T>
BIRNN_KERNEL(threads)
hidden_kernel(const Gather a) {
  constexpr int S = Lstm::saved;
  const Cut c = cut(a.n.B, a.t_begin, a.width);
  if (c.t >= a.t_end || c.i >= a.width) return;
  Wide<T> save[S];
  const T* saved = as<T>(a.from) + (c.t * a.n.B + c.b) * S * a.n.H + c.i;
  for (int v = 0; v < S; ++v) save[v] = wide(saved[v * a.n.H]);  // zeros where not at work, and so is h then
  as<T>(a.to)[((c.t - a.t_begin) * a.n.B + c.b) * a.width + c.i] = Narrow<T>::of(Lstm::hidden(save));
}

template <class T>
BIRNN_KERNEL(threads)
scatter_kernel(const Scatter a) {
  const Cut c = cut(a.B, a.t_begin, a.width);
  if (c.t >= a.t_end || c.i >= a.width) return;
  const bool works = c.t < length_of(a.lengths, c.b, a.T);
  const Wide<T> value = works ? as<Wide<T>>(a.from)[((c.t - a.t_begin) * a.B + c.b) * a.width + c.i] : Wide<T>(0);
  as<T>(a.to)[c.t * a.to_t + c.b * a.to_b + c.i] = Narrow<T>::of(value);
}

}  // namespace

void start(const void* from, void* to, bool wide_too, int64_t count, const Launch& l) {
  by_dtype(l.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Grid g = {(count + threads - 1) / threads, 1, threads, 1};
    const Start a = {from, to, count};
    wide_too ? launch(&start_kernel<T, Wide<T>>, g, 0, l.stream, a, "initial state")
             : launch(&start_kernel<T, T>, g, 0, l.stream, a, "initial state");
  });
}

void finish(const Finish& a, const Launch& l) {
  by_dtype(l.dtype,
           [&](auto zero) { launch(&finish_kernel<decltype(zero)>, grid(a.B, a.width), 0, l.stream, a, "final state"); });
}

void gather(const Gather& a, const Launch& l) {
  const Grid g = grid((a.t_end - a.t_begin) * a.n.B, a.width);
  by_dtype(l.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(a.kind == Rows::hidden ? &hidden_kernel<T> : &gather_kernel<T>, g, 0, l.stream, a, "rows of a chunk");
  });
}

void scatter(const Scatter& a, const Launch& l) {
  by_dtype(l.dtype, [&](auto zero) {
    launch(&scatter_kernel<decltype(zero)>, grid((a.t_end - a.t_begin) * a.B, a.width), 0, l.stream, a, "rows of a chunk");
  });
}

void use_device(int index) { set_device(index); }
bool capturing(void* stream) { return is_capturing(stream); }

}  // namespace cuda
}  // namespace birnn
