// The kernels of one block (G1): a block holds the recurrent weights of one direction in shared memory and takes four rows of
// the batch through all steps of a chunk, without a word to any other block.
//
//   thread = (unit u, slice s), s = 0..3.   For the product a thread has a quarter of the sum (slice s) of unit u for all four
//   rows; four neighbouring lanes add their quarters by shuffles; then thread (u, s) has unit u of row s for itself, with h (or
//   the carry) and c in registers. One barrier per step: the vector that is multiplied lies in shared memory twice.
//
//   weights in shared memory, 16 bytes = V elements of the summed index k together:   [gate][k / 4V][u][s][V]
//                             so that neighbouring threads read neighbouring 16 bytes
//   vector [4 rows][K], K padded with zeros to a multiple of 4V
//
// The order of every sum depends on the sizes alone. Not here: projections, float64, shapes that do not fit (stepwise.cu).
#include "device.h"

namespace birnn {
namespace cuda {

namespace {

constexpr int rows_per_block = 4, slices = 4, most_threads = 512;

// V elements of T, in one load.
template <class T>
struct alignas(16) Pack {
  static constexpr int V = 16 / int(sizeof(T));
  T v[V];
};

BIRNN_BOTH int padded(int K, int V) { return (K + slices * V - 1) / (slices * V) * (slices * V); }

// Bytes of shared memory: weights [gates, K, H], vector [2, 4, K].
template <class T>
size_t shared_bytes(int gates, int K, int H) {
  const size_t Kp = size_t(padded(K, Pack<T>::V));
  return gates * Kp * H * sizeof(T) + 2 * rows_per_block * Kp * sizeof(float);
}

// This thread's place, and the rows of its block.
struct Here {
  int u, s, H, rows;
  int64_t b, length, longest;
  bool unit, mine;  // has a unit; has a row, too

  BIRNN_METHOD Here(const Sizes& n, const int64_t* lengths) {
    const int64_t first = int64_t(blockIdx.x) * rows_per_block;
    u = int(threadIdx.x) / slices, s = int(threadIdx.x) % slices, H = int(n.H);
    rows = n.B - first < rows_per_block ? int(n.B - first) : rows_per_block;
    b = first + s, unit = u < H, mine = unit && s < rows;
    longest = 0, length = 0;
    for (int r = 0; r < rows; ++r) {
      const int64_t l = length_of(lengths, first + r, n.T);
      if (l > longest) longest = l;
      if (r == s) length = l;
    }
  }
};

// from(gate, u, k) into shared memory, and zeros into the vector.
template <class T, int G, class From>
BIRNN_DEVICE void load_weights(const Here& me, int K, T* weights, float* vector, From from) {
  constexpr int V = Pack<T>::V;
  const int Kp = padded(K, V), Q = Kp / (slices * V);
  for (int i = int(threadIdx.x); i < 2 * rows_per_block * Kp; i += int(blockDim.x)) vector[i] = 0;
  if (!me.unit) return;
  for (int gq = 0; gq < G * Q; ++gq) {
    const int k = (gq % Q * slices + me.s) * V;
    for (int v = 0; v < V; ++v) {
      weights[((gq * me.H + me.u) * slices + me.s) * V + v] = k + v < K ? from(gq / Q, me.u, k + v) : Narrow<T>::of(0);
    }
  }
}

// result[g] = sum over k of weights(g, u, k) vector(row s, k), for thread (u, s). Every thread of the block takes part.
template <class T, int G>
BIRNN_DEVICE void multiply(const Here& me, int K, const T* weights, const float* vector, float* result) {
  constexpr int V = Pack<T>::V;
  const int Kp = padded(K, V), Q = Kp / (slices * V);
  float sum[rows_per_block][G] = {};
  if (me.unit) {
    for (int q = 0; q < Q; ++q) {
      Pack<T> w[G];
      for (int g = 0; g < G; ++g) {
        w[g] = *reinterpret_cast<const Pack<T>*>(weights + (((g * Q + q) * me.H + me.u) * slices + me.s) * V);
      }
#pragma unroll
      for (int r = 0; r < rows_per_block; ++r) {
        if (r >= me.rows) break;
        const float* x = vector + r * Kp + (q * slices + me.s) * V;
        for (int j = 0; j < V; j += 4) {
          const Pack<float> four = *reinterpret_cast<const Pack<float>*>(x + j);
          for (int g = 0; g < G; ++g) {
            for (int v = 0; v < 4; ++v) sum[r][g] += wide(w[g].v[j + v]) * four.v[v];
          }
        }
      }
    }
  }
  for (int g = 0; g < G; ++g) {
#pragma unroll
    for (int r = 0; r < rows_per_block; ++r) {
      float x = sum[r][g];
      x += exchange(x, 1);
      x += exchange(x, 2);
      if (r == me.s) result[g] = x;
    }
  }
}

template <class T, class Cell>
BIRNN_KERNEL(most_threads)
forward_block_kernel(const ForwardChunk a) {
  constexpr int G = Cell::gates, S = Cell::saved;
  BIRNN_SHARED(T, weights);
  const Here me(a.n, a.lengths);
  const int H = me.H, Kp = padded(H, Pack<T>::V);
  const int64_t B = a.n.B, i = me.b * H + me.u;
  float* vector = reinterpret_cast<float*>(weights + G * Kp * H);
  load_weights<T, G>(me, H, weights, vector, [&](int g, int u, int k) { return as<T>(a.w_hh)[(g * H + u) * H + k]; });
  float b_ih[G] = {}, b_hh[G] = {}, old[2] = {}, now[2] = {}, save[S + 1];
  if (me.mine) {
    add_bias<T>(b_ih, a.b_ih, G, H, me.u);
    add_bias<T>(b_hh, a.b_hh, G, H, me.u);
    old[0] = wide(as<T>(a.h)[i]);
    if (Cell::states == 2) old[1] = as<float>(a.c)[i];
  }
  block_barrier();
  if (me.mine) vector[me.s * Kp + me.u] = old[0];
  block_barrier();

  const int64_t steps = a.t_end - a.t_begin;
  for (int64_t n = 0, turn = 0; n < steps; ++n) {
    const int64_t t = a.dir == 0 ? a.t_begin + n : a.t_end - 1 - n, row = t * B + me.b;
    T* y = me.mine ? as<T>(a.y) + t * a.y_t + me.b * a.y_b + me.u : nullptr;
    T* saved = S && me.mine && a.saved ? as<T>(a.saved) + row * S * H + me.u : nullptr;
    const bool works = me.mine && t < me.length;
    if (!works) {
      write_zeros(y, 0, 1);
      write_zeros(saved, H, S);
    }
    if (t >= me.longest) continue;  // nobody in this block is at work
    float x[G], h[G];
    const float* pre = as<float>(a.pre) + (row - a.t_begin * B) * G * H + me.u;
    for (int g = 0; g < G; ++g) x[g] = works ? pre[g * H] + b_ih[g] : 0;  // before the product, which hides the wait
    multiply<T, G>(me, H, weights, vector + turn * rows_per_block * Kp, h);
    turn ^= 1;
    if (works) {
      for (int g = 0; g < G; ++g) h[g] += b_hh[g];
      Cell::forward(x, h, old, now, save);
      const T rounded = Narrow<T>::of(now[0]);
      old[0] = wide(rounded), old[1] = now[1];
      *y = rounded;
      for (int v = 0; saved && v < S; ++v) saved[v * H] = Narrow<T>::of(save[v]);
    }
    if (me.mine) vector[(turn * rows_per_block + me.s) * Kp + me.u] = old[0];
    block_barrier();
  }
  if (!me.mine) return;
  as<T>(a.h)[i] = Narrow<T>::of(old[0]);
  if (Cell::states == 2) as<float>(a.c)[i] = old[1];
}

template <class T, class Cell>
BIRNN_KERNEL(most_threads)
backward_block_kernel(const BackwardChunk a) {
  constexpr int G = Cell::gates, C = Cell::columns, first = first_h_column<Cell>;
  BIRNN_SHARED(T, weights);
  const Here me(a.n, a.lengths);
  const int H = me.H, K = G * H, Kp = padded(K, Pack<T>::V);
  const int64_t B = a.n.B, i = me.b * H + me.u, steps = a.t_end - a.t_begin;
  float* vector = reinterpret_cast<float*>(weights + Kp * H);
  load_weights<T, 1>(me, K, weights, vector, [&](int, int u, int k) { return as<T>(a.w_hh)[k * H + u]; });
  float carry = 0, dc = 0;
  if (me.mine) {
    carry = as<float>(a.carry)[i];
    if (Cell::states == 2) dc = as<float>(a.dc)[i];
  }
  const auto time = [&](int64_t n) { return a.dir == 0 ? a.t_end - 1 - n : a.t_begin + n; };
  BackwardOperands<T, Cell> operands;
  if (me.mine && time(0) < me.length) operands.load(a, time(0), me.b, me.u, me.length);
  block_barrier();

  for (int64_t n = 0, turn = 0; n < steps; ++n, turn ^= 1) {
    const int64_t t = time(n);
    T* dg = me.mine ? as<T>(a.dg) + ((t - a.t_begin) * B + me.b) * C * H + me.u : nullptr;
    const bool works = me.mine && t < me.length;
    float gates[C] = {}, ds[2] = {};
    if (works) {
      operands.compute(carry, dc, gates, ds);
      dc = ds[1];
    }
    float* to = vector + (turn * rows_per_block + me.s) * Kp + me.u;
    for (int k = 0; me.mine && k < C; ++k) {
      const T rounded = Narrow<T>::of(gates[k]);
      dg[k * H] = rounded;
      // Not once the whole block is at rest: without barriers a neighbour may still be reading.
      if (t < me.longest && k >= first && k < first + G) to[(k - first) * H] = wide(rounded);
    }
    // The next step's operands travel while this step's product is made.
    if (n + 1 < steps && me.mine && time(n + 1) < me.length) operands.load(a, time(n + 1), me.b, me.u, me.length);
    if (t >= me.longest) continue;
    block_barrier();
    float product[1];
    multiply<T, 1>(me, K, weights, vector + turn * rows_per_block * Kp, product);
    if (works) carry = ds[0] + product[0];
  }
  if (!me.mine) return;
  as<float>(a.carry)[i] = carry;
  if (Cell::states == 2) as<float>(a.dc)[i] = dc;
}

int threads_for(const Sizes& n) { return int(n.H * slices + 31) / 32 * 32; }
Grid grid(const Sizes& n) { return {(n.B + rows_per_block - 1) / rows_per_block, 1, threads_for(n), 1}; }

template <class T, class Cell>
size_t forward_bytes(const Sizes& n) {
  return shared_bytes<T>(Cell::gates, int(n.H), int(n.H));
}
template <class T, class Cell>
size_t backward_bytes(const Sizes& n) {
  return shared_bytes<T>(1, Cell::gates * int(n.H), int(n.H));
}

}  // namespace

bool block_fits(const Sizes& n, bool backward, const Launch& l) {
  if (n.projected || n.H * slices > most_threads) return false;
  bool fits = false;
  by_short_dtype(l.dtype, [&](auto zero) {
    by_cell(l.mode, [&](auto cell) {
      using T = decltype(zero);
      using Cell = decltype(cell);
      const int threads = threads_for(n);
      const int64_t resident = backward ? resident_blocks(&backward_block_kernel<T, Cell>, threads, backward_bytes<T, Cell>(n))
                                        : resident_blocks(&forward_block_kernel<T, Cell>, threads, forward_bytes<T, Cell>(n));
      fits = n.D * grid(n).blocks_x <= resident;
    });
  });
  return fits;
}

void forward_block(const ForwardChunk& a, const Launch& l) {
  by_short_dtype(l.dtype, [&](auto zero) {
    by_cell(l.mode, [&](auto cell) {
      using T = decltype(zero);
      using Cell = decltype(cell);
      launch(&forward_block_kernel<T, Cell>, grid(a.n), forward_bytes<T, Cell>(a.n), l.stream, a, "layer, forward block");
    });
  });
}

void backward_block(const BackwardChunk& a, const Launch& l) {
  by_short_dtype(l.dtype, [&](auto zero) {
    by_cell(l.mode, [&](auto cell) {
      using T = decltype(zero);
      using Cell = decltype(cell);
      launch(&backward_block_kernel<T, Cell>, grid(a.n), backward_bytes<T, Cell>(a.n), l.stream, a,
             "layer_backward, backward block");
    });
  });
}

}  // namespace cuda
}  // namespace birnn
