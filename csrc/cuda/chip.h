// What a block of the kernels of many blocks holds on its multiprocessor, and its product: the recurrent weights of its units, the
// vectors that they are multiplied with, one for each row of the batch (or two that take turns), and the sums.
//
//   sum(g, row, u) = sum over k of weights(g, u, k) vector(row, k)        u: own units, k: all units (backward: times gates)
//
// Where the vectors are too long to be there at once, k comes in parts of equal length, one after the other.
//
//   float    a thread is (unit u, slice s of the sum) and multiplies eight rows at a time in its registers; the slices are
//            neighbouring lanes, which add up by shuffles.     weights [gate][k / slices V][u][s][V], V elements in one load
//   halves   a warp is (tile of 16 of the gates' units, share of the sum) and multiplies on the tensor cores; the shares are added
//            by whoever reads a sum.     weights [tile][k / 16][lane][8], a lane's operand in one load
//
// Every weight is read by one thread only. So the first of what a thread reads in a part, `held`, stays in its registers through
// all steps, and shared memory has what is `left`: less of it to hold, and less to read in every step. How much is held follows
// from the registers that the exchange leaves to spare (Link::spare, in operands of 4), and is the same for all shapes. It is an
// array whose every index the compiler knows: else it would be in memory of its own.
//
// The order of every sum depends on the sizes and the device alone. Not here: where vectors come from and sums go (steps.h).
#pragma once

#include "device.h"

namespace birnn {
namespace cuda {

constexpr int rows_at_once = 8;  // of a product; also the fewest slices
constexpr int most_rows = 32;

BIRNN_BOTH int rounded_up(int value, int to) { return (value + to - 1) / to * to; }
BIRNN_BOTH int threads_of(const Plan& p) { return rounded_up(p.units * (p.slices > p.rows ? p.slices : p.rows), 32); }

// What a lane holds of a matrix: pairs of halves.
template <int N>
struct alignas(4 * N) Operand {
  uint32_t v[N];
};

// The elements of an array move up by one, and here is its last. A loop of these fills an array in registers, and the text that
// computes an element is there once, not for each of them.
template <class V, size_t N>
BIRNN_DEVICE void push_in(V (&array)[N], const V& last) {
#pragma unroll
  for (size_t i = 0; i < N; ++i) array[i] = i + 1 < N ? array[i + 1] : last;
}

// This block's rows and units, and this thread's place among them.
struct Here {
  int H, first_unit, rows, r, u;
  int first, b, unit, length, longest;  // plans are for T < INT32_MAX only
  bool mine;                            // has a unit of a row

  BIRNN_METHOD Here(const Sizes& n, const Plan& p, const int64_t* lengths) {
    const int group = int(blockIdx.x) / p.splits, tid = int(threadIdx.x);
    H = int(n.H), first_unit = int(blockIdx.x) % p.splits * p.units;
    first = group * p.rows;
    rows = n.B - first < p.rows ? int(n.B - first) : p.rows;
    r = tid / p.units, u = tid % p.units;
    b = first + r, unit = first_unit + u;
    mine = r < rows && unit < H;
    longest = 0, length = 0;
    // A block without units is never at work, and nobody waits for it.
    for (int i = 0; first_unit < H && i < rows; ++i) {
      const int64_t given = length_of(lengths, first + i, n.T);
      const int l = given > 0 ? int(given) : 0;
      if (l > longest) longest = l;
      if (i == r) length = l;
    }
  }
};

// T is a half: on the tensor cores.
template <class T, int G, int spare>
struct Chip {
  static constexpr int tile = 16, eight = 8;  // elements of a lane's operand
  static constexpr int at_once = spare / 4;   // operands that are multiplied with no branch between: a part holds a multiple
  static_assert(at_once % 2 == 0 && G <= 4, "a part holds some, in pairs; a tile has a warp");

  T* vector;
  float* sums;

  static int padded(int k, const Plan&) { return rounded_up(k, tile); }
  static void complete(Plan& p) {
    p.deep = p.length / tile;
    // Never more than warps: a warp has four units or fewer (slices are 8 or more), which are G <= 4 rows each.
    p.tiles = (G * p.units + tile - 1) / tile;
    p.shares = threads_of(p) / 32 / p.tiles;
    p.held = spare / p.parts / at_once * at_once;
    p.left = p.deep > p.shares * p.held ? p.deep - p.shares * p.held : 0;
    // Lanes that read neighbouring rows shall find them in other banks: 4 words on.
    p.stride = rounded_up(p.length - 8, 64) + 8;
    p.sum_stride = p.tiles * tile + 4;
  }
  static int64_t bytes(const Plan& p) {
    return (int64_t(stored(p)) * eight + p.vectors * p.rows * p.stride) * int64_t(sizeof(T)) +
           p.shares * p.rows * p.sum_stride * int64_t(sizeof(float));
  }
  // Clocks of a product: 1024 multiplications, 128 bytes of shared memory. An estimate.
  static int64_t clocks(const Plan& p) {
    const int64_t operands = int64_t(p.parts) * p.tiles * p.deep, eights = rounded_up(p.rows, rows_at_once) / rows_at_once;
    const int64_t of_vectors = operands * eights * tile * rows_at_once;        // each tile reads them anew
    const int64_t of_weights = (eights + 1) / 2 * int64_t(stored(p)) * eight;  // see multiply_rows
    return of_vectors * tile / 1024 + (of_weights + of_vectors) * int64_t(sizeof(T)) / 128;
  }

  BIRNN_METHOD Chip(const Plan& p, T* memory) {
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, at = warp % p.tiles, share = warp / p.tiles;
    const int begin = p.deep * share / p.shares;
    vector = memory + stored(p) * eight;
    sums = reinterpret_cast<float*>(vector + p.vectors * p.rows * p.stride);
    first = begin, count = share < p.shares ? p.deep * (share + 1) / p.shares - begin : -1;
    // Of each share before this one, as many are held as of this one.
    own = reinterpret_cast<Operand<4>*>(memory) + (p.left ? (at * p.left + begin - share * p.held) * 32 + lane : 0);
    reads_at = lane / 4 * p.stride + lane % 4 * 2 + begin * tile;
    writes_at = (share * p.rows + lane % 4 * 2) * p.sum_stride + at * tile + lane / 4;
  }

  // Weights from(part, gate, unit, k), and zeros into the vectors, where k beyond the last unit stays zero.
  template <class From>
  BIRNN_METHOD void load(const Plan& p, const Here& me, From from) {
    for (int i = int(threadIdx.x); i < p.vectors * p.rows * p.stride; i += int(blockDim.x)) vector[i] = Narrow<T>::of(0.f);
#pragma unroll 1
    for (int j = 0; j < spare; ++j) {
      const int part = j / p.held, k = j % p.held;
      push_in(held, part < p.parts && k < count ? operand(p, me, from, part, k) : Operand<4>());
    }
    for (int part = 0; part < p.parts; ++part) {
      for (int k = p.held; k < count; ++k) own[(part * p.tiles * p.left + k - p.held) * 32] = operand(p, me, from, part, k);
    }
  }

  // The first part's sums, or what another adds to them. Every thread of the block takes part.
  BIRNN_METHOD void multiply(const Plan& p, const Here& me, const T* vector, int part) {
    if (count < 0) return;
    if (me.rows <= rows_at_once) {
      multiply_rows<1>(p, me, vector, part, 0);
    } else {
#pragma unroll 1
      for (int row = 0; row < me.rows; row += 2 * rows_at_once) multiply_rows<2>(p, me, vector, part, row);
    }
  }

  BIRNN_METHOD float* end(const Plan& p) const { return sums + p.shares * p.rows * p.sum_stride; }  // of its shared memory

  // For this thread's row and unit, behind a barrier.
  BIRNN_METHOD float sum(const Plan& p, const Here& me, int g) const {
    const float* at = sums + anew(me.r) * p.sum_stride + g * p.units + me.u;
    float total = at[0];
    for (int share = 1; share < p.shares; ++share) total += at[share * p.rows * p.sum_stride];
    return total;
  }

 private:
  int first, count;         // tiles of k of this warp's share; of a warp without one -1
  int reads_at, writes_at;  // this lane, in a vector and in the sums
  Operand<4>* own;          // its weights in shared memory
  Operand<4> held[spare];

  BIRNN_BOTH int stored(const Plan& p) { return p.parts * p.tiles * p.left * 32; }  // operands

  // This lane's operand: the k-th tile of its share.
  template <class From>
  BIRNN_METHOD Operand<4> operand(const Plan& p, const Here& me, const From& from, int part, int k) const {
    const int lane = int(threadIdx.x) % 32, at = int(threadIdx.x) / 32 % p.tiles;
    Operand<4> a = {};
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const int row = at * tile + lane / 4 + (v % 2 ? 8 : 0), column = (first + k) * tile + lane % 4 * 2 + (v / 2 ? 8 : 0);
      if (row >= G * p.units) continue;
      const int g = row / p.units, unit = me.first_unit + row % p.units;
      a.v[v] = bits_of(from(part, g, unit, column)) | bits_of(from(part, g, unit, column + 1)) << 16;
    }
    return a;
  }

  // For up to N times eight rows from `row` on. There are registers for the sums of 16 rows: where there are more, what lies in
  // shared memory is read again.
  template <int N>
  BIRNN_METHOD void multiply_rows(const Plan& p, const Here& me, const T* vector, int part, int row) {
    constexpr int K = N == 1 ? at_once : 2;
    warp_barrier();  // lanes have gone their own ways before, and multiply_tile is one that they make together
    const int lane = anew(int(threadIdx.x)) % 32, rows = me.rows - row;
    const T* x = vector + reads_at + row * p.stride;
    float sum[2][4] = {};
#pragma unroll
    for (int j = 0; j < spare; j += K) {
      const int k = j - part * p.held;
      if (k < 0) continue;
      if (k >= p.held || k >= count) break;
      add<N, K>(p, lane, rows, held + j, x + k * tile, count - k, sum);
    }
#pragma unroll 1
    for (int k = p.held; k < count; ++k) {
      const Operand<4> a[1] = {own[(part * p.tiles * p.left + k - p.held) * 32]};
      add<N, 1>(p, lane, rows, a, x + k * tile, 1, sum);
    }
    for (int i = 0; N == 1 && i < 4; ++i) sum[0][i] += sum[1][i];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      for (int i = 0; i < 4; ++i) {
        if (n * rows_at_once + lane % 4 * 2 + i % 2 >= rows) continue;
        float* at = sums + writes_at + (row + n * rows_at_once + i % 2) * p.sum_stride + (i / 2 ? 8 : 0);
        *at = part ? *at + sum[n][i] : sum[n][i];
      }
    }
  }

  // sum += a x for K tiles of k, of which `count` are there. (Beyond them, what is held is zero, and nothing is read.)
  template <int N, int K>
  BIRNN_METHOD static void add(const Plan& p, int lane, int rows, const Operand<4>* a, const T* x, int count,
                               float (&sum)[2][4]) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      Operand<2> b[K];
#pragma unroll
      for (int k = 0; k < K; ++k) {  // all are on their way before the first is needed
        b[k] = Operand<2>();
        if (n * rows_at_once + lane / 4 >= rows || k >= count) continue;
        const T* from = x + n * rows_at_once * p.stride + k * tile;
        b[k].v[0] = *reinterpret_cast<const uint32_t*>(from), b[k].v[1] = *reinterpret_cast<const uint32_t*>(from + 8);
      }
      // The tensor cores take their time for a sum: where there are eight rows only, two sums take turns. (So equal rows in groups
      // of different size may differ in their last bits.)
#pragma unroll
      for (int k = 0; k < K; ++k) multiply_tile<T>(sum[N == 1 ? k % 2 : n], a[k].v, b[k].v);
    }
  }
};

// float: on the ordinary cores.
template <int G, int spare>
struct Chip<float, G, spare> {
  static constexpr int V = 4;
  struct alignas(16) Four {
    float v[V];
  };
  // Steps of a slice whose weights are held: half of the registers to spare, since eight rows' sums want some too.
  static constexpr int most_held = spare / 2 / G;

  float *vector, *sums;

  static int padded(int k, const Plan& p) { return rounded_up(k, p.slices * V); }
  static void complete(Plan& p) {
    p.deep = p.length / (p.slices * V);
    p.held = most_held / p.parts;  // at least one: parts are those of the gates, in backward, where G is 1
    p.left = p.deep > p.held ? p.deep - p.held : 0;
    p.stride = p.length;
  }
  static int64_t bytes(const Plan& p) {
    return (int64_t(stored(p)) + p.vectors * p.rows * p.stride + G * p.rows * p.units) * int64_t(sizeof(float));
  }
  // Clocks of a product: 128 multiplications, 128 bytes of shared memory. An estimate.
  static int64_t clocks(const Plan& p) {
    const int64_t of_a_row = int64_t(p.parts) * p.deep * p.units * p.slices * V,
                  eights = rounded_up(p.rows, rows_at_once) / rows_at_once;
    const int64_t read = eights * stored(p) + p.rows * of_a_row;  // each unit reads the vectors anew
    return p.rows * G * of_a_row / 128 + read * int64_t(sizeof(float)) / 128;
  }

  BIRNN_METHOD Chip(const Plan& p, float* memory) {
    weights = reinterpret_cast<Four*>(memory) + int(threadIdx.x);
    vector = memory + stored(p), sums = vector + p.vectors * p.rows * p.stride;
  }

  template <class From>
  BIRNN_METHOD void load(const Plan& p, const Here& me, From from) {
    for (int i = int(threadIdx.x); i < p.vectors * p.rows * p.stride; i += int(blockDim.x)) vector[i] = 0;
    const int u = int(threadIdx.x) / p.slices, s = int(threadIdx.x) % p.slices;
    const auto four = [&](int part, int g, int q) {
      Four w = {};
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (u < p.units && part < p.parts && q < p.deep) w.v[v] = from(part, g, me.first_unit + u, (q * p.slices + s) * V + v);
      }
      return w;
    };
#pragma unroll 1
    for (int i = 0; i < most_held; ++i) {
      const int part = i / p.held, q = i % p.held;
#pragma unroll
      for (int g = 0; g < G; ++g) push_in(held, four(part, g, q));
    }
    for (int i = 0; u < p.units && i < p.parts * G * p.left; ++i) {
      weights[i * p.units * p.slices] = four(i / p.left / G, i / p.left % G, p.held + i % p.left);
    }
  }

  BIRNN_METHOD void multiply(const Plan& p, const Here& me, const float* vector, int part) {
    warp_barrier();  // the lanes add up together, and may have come apart while they waited
    const int tid = anew(int(threadIdx.x)), u = tid / p.slices, s = tid % p.slices;
#pragma unroll 1
    for (int first = 0; first < me.rows; first += rows_at_once) {
      float sum[rows_at_once][G] = {};
      const float* x = vector + first * p.stride + s * V;
      const int rows = me.rows - first;
#pragma unroll
      for (int i = 0; i < most_held; ++i) {
        const int q = i - part * p.held;
        if (q < 0) continue;
        if (q >= p.held || q >= p.deep || u >= p.units) break;
        add(p, rows, held + i * G, x + q * p.slices * V, sum);
      }
#pragma unroll 1
      for (int q = 0; q < p.left && u < p.units; ++q) {
        Four w[G];
#pragma unroll
        for (int g = 0; g < G; ++g) w[g] = weights[((part * G + g) * p.left + q) * p.units * p.slices];
        add(p, rows, w, x + (p.held + q) * p.slices * V, sum);
      }
      add_slices(p, s, sum);
      if (u >= p.units || s >= rows_at_once || s >= rows) continue;
#pragma unroll
      for (int g = 0; g < G; ++g) {
        float* to = sums + (g * p.rows + first + s) * p.units + u;
        *to = part ? *to + sum[0][g] : sum[0][g];
      }
    }
  }

  BIRNN_METHOD float sum(const Plan& p, const Here& me, int g) const {
    return sums[(g * p.rows + anew(me.r)) * p.units + me.u];
  }
  BIRNN_METHOD float* end(const Plan& p) const { return sums + G * p.rows * p.units; }

 private:
  Four* weights;  // this thread's
  Four held[most_held * G];

  BIRNN_BOTH int stored(const Plan& p) { return p.parts * G * p.left * p.units * p.slices * V; }

  BIRNN_METHOD static void add(const Plan& p, int rows, const Four* w, const float* vector, float (&sum)[rows_at_once][G]) {
#pragma unroll
    for (int r = 0; r < rows_at_once; ++r) {
      if (r >= rows) break;
      const Four x = *reinterpret_cast<const Four*>(vector + r * p.stride);
#pragma unroll
      for (int g = 0; g < G; ++g) {
#pragma unroll
        for (int v = 0; v < V; ++v) sum[r][g] += w[g].v[v] * x.v[v];
      }
    }
  }
  // sum[0] = the sum over all slices for row s % 8: each exchange hands half of the rows over and keeps the other half.
  BIRNN_METHOD static void add_slices(const Plan& p, int s, float (&sum)[rows_at_once][G]) {
    hand_over<rows_at_once / 2>(s, sum);
    for (int mask = rows_at_once; mask < p.slices; mask *= 2) {
#pragma unroll
      for (int g = 0; g < G; ++g) sum[0][g] += exchange(sum[0][g], mask);
    }
  }
  // (As a loop over `half`, the compiler would not always keep the sums in registers.)
  template <int half>
  BIRNN_METHOD static void hand_over(int s, float (&sum)[rows_at_once][G]) {
    const bool upper = s & half;
#pragma unroll
    for (int r = 0; r < half; ++r) {
#pragma unroll
      for (int g = 0; g < G; ++g) {
        const float kept = upper ? sum[r + half][g] : sum[r][g], given = upper ? sum[r][g] : sum[r + half][g];
        sum[r][g] = kept + exchange(given, half);
      }
    }
    if constexpr (half > 1) hand_over<half / 2>(s, sum);
  }
};

}  // namespace cuda
}  // namespace birnn
