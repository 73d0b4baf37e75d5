// What a block of the kernels of many blocks holds in shared memory, and its product: the recurrent weights of its units, the
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
template <class T, int G>
struct Chip {
  static constexpr int tile = 16, eight = 8;  // elements of a lane's operand

  T *weights, *vector;
  float* sums;

  static int padded(int k, const Plan&) { return rounded_up(k, tile); }
  BIRNN_BOTH int tiles(const Plan& p) { return (G * p.units + tile - 1) / tile; }
  BIRNN_BOTH int elements(const Plan& p) { return tiles(p) * tile * p.length; }  // of a part's weights
  // Of a vector. Lanes that read neighbouring rows shall find them in other banks: 4 words on.
  BIRNN_BOTH int stride(const Plan& p) { return rounded_up(p.length - 8, 64) + 8; }
  BIRNN_BOTH int sum_stride(const Plan& p) { return tiles(p) * tile + 4; }
  // Shares of a sum: as many as there are warps to a tile.
  BIRNN_BOTH int shares(const Plan& p) {
    const int to_a_tile = threads_of(p) / 32 / tiles(p);
    return to_a_tile > 1 ? to_a_tile : 1;
  }
  static size_t bytes(const Plan& p) {
    return (size_t(p.parts) * elements(p) + size_t(p.vectors) * p.rows * stride(p)) * sizeof(T) +
           size_t(shares(p)) * p.rows * sum_stride(p) * sizeof(float);
  }
  // Clocks of a product: 1024 multiplications, 128 bytes of shared memory. An estimate.
  static int64_t clocks(const Plan& p) {
    const int64_t all = int64_t(p.parts) * elements(p);
    return all * rounded_up(p.rows, rows_at_once) / 1024 + all * int64_t(sizeof(T)) / 128;
  }

  BIRNN_METHOD Chip(const Plan& p, T* memory) {
    weights = memory, vector = weights + p.parts * elements(p);
    sums = reinterpret_cast<float*>(vector + p.vectors * p.rows * stride(p));
  }

  // Weights from(part, gate, unit, k), and zeros into the vectors, where k beyond the last unit stays zero.
  template <class From>
  BIRNN_METHOD void load(const Plan& p, const Here& me, From from) {
    for (int i = int(threadIdx.x); i < p.vectors * p.rows * stride(p); i += int(blockDim.x)) vector[i] = Narrow<T>::of(0.f);
    const int deep = p.length / tile, all = p.parts * elements(p) / eight;
    for (int i = int(threadIdx.x); i < all; i += int(blockDim.x)) {
      const int lane = i % 32, first_k = i / 32 % deep * tile, first_row = i / 32 / deep % tiles(p) * tile;
      const int part = i / 32 / deep / tiles(p);
      for (int e = 0; e < eight; ++e) {
        const int row = first_row + lane / 4 + (e / 2 % 2 ? 8 : 0), k = first_k + lane % 4 * 2 + e % 2 + (e / 4 ? 8 : 0);
        weights[i * eight + e] =
            row < G * p.units ? from(part, row / p.units, me.first_unit + row % p.units, k) : Narrow<T>::of(0.f);
      }
    }
  }

  // The first part's sums, or what another adds to them. Every thread of the block takes part.
  BIRNN_METHOD void multiply(const Plan& p, const Here& me, const T* vector, int part) {
    warp_barrier();  // lanes have gone their own ways before, and multiply_tile is one that they make together
    const int warps = int(blockDim.x) / 32, warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    const int count = tiles(p), share = warp / count, deep = p.length / tile;
    const int begin = deep * share / shares(p), end = deep * (share + 1) / shares(p);
    if (share >= shares(p)) return;
    const T* x = vector + lane / 4 * stride(p) + lane % 4 * 2;
    for (int at = warp % count; at < count; at += warps) {
      float sum[most_rows / rows_at_once][4] = {};
      for (int k = begin; k < end; ++k) {
        const Operand<4> a =
            *reinterpret_cast<const Operand<4>*>(weights + part * elements(p) + ((at * deep + k) * 32 + lane) * eight);
#pragma unroll
        for (int n = 0; n < most_rows / rows_at_once; ++n) {
          if (n * rows_at_once >= me.rows) break;
          Operand<2> b = {};
          if (n * rows_at_once + lane / 4 < me.rows) {
            const T* from = x + n * rows_at_once * stride(p) + k * tile;
            b.v[0] = *reinterpret_cast<const uint32_t*>(from), b.v[1] = *reinterpret_cast<const uint32_t*>(from + 8);
          }
          multiply_tile<T>(sum[n], a.v, b.v);
        }
      }
#pragma unroll
      for (int n = 0; n < most_rows / rows_at_once; ++n) {
        for (int i = 0; i < 4; ++i) {
          const int row = n * rows_at_once + lane % 4 * 2 + i % 2, of = at * tile + lane / 4 + (i / 2 ? 8 : 0);
          if (row >= me.rows) continue;
          float* to = sums + (share * p.rows + row) * sum_stride(p) + of;
          *to = part ? *to + sum[n][i] : sum[n][i];
        }
      }
    }
  }

  // For this thread's row and unit, behind a barrier.
  BIRNN_METHOD float sum(const Plan& p, const Here& me, int g) const {
    const float* at = sums + me.r * sum_stride(p) + g * p.units + me.u;
    float total = at[0];
    for (int share = 1; share < shares(p); ++share) total += at[share * p.rows * sum_stride(p)];
    return total;
  }
};

// float: on the ordinary cores.
template <int G>
struct Chip<float, G> {
  static constexpr int V = 4;
  struct alignas(16) Four {
    float v[V];
  };

  float *weights, *vector, *sums;

  static int padded(int k, const Plan& p) { return rounded_up(k, p.slices * V); }
  BIRNN_BOTH int stride(const Plan& p) { return p.length; }
  BIRNN_BOTH int elements(const Plan& p) { return G * p.units * p.length; }
  static size_t bytes(const Plan& p) {
    return (size_t(p.parts) * elements(p) + size_t(p.vectors) * p.rows * p.length + size_t(G) * p.rows * p.units) *
           sizeof(float);
  }
  // Clocks of a product: 128 multiplications, 128 bytes of shared memory. An estimate.
  static int64_t clocks(const Plan& p) {
    const int64_t all = int64_t(p.parts) * elements(p), passes = rounded_up(p.rows, rows_at_once) / rows_at_once;
    return all * p.rows / 128 + passes * all * int64_t(sizeof(float)) / 128;
  }

  BIRNN_METHOD Chip(const Plan& p, float* memory) {
    weights = memory, vector = weights + p.parts * elements(p), sums = vector + p.vectors * p.rows * p.length;
  }

  template <class From>
  BIRNN_METHOD void load(const Plan& p, const Here& me, From from) {
    for (int i = int(threadIdx.x); i < p.vectors * p.rows * p.length; i += int(blockDim.x)) vector[i] = 0;
    const int u = int(threadIdx.x) / p.slices, s = int(threadIdx.x) % p.slices, Q = p.length / (p.slices * V);
    for (int i = 0; u < p.units && i < p.parts * G * Q; ++i) {
      const int k = (i % Q * p.slices + s) * V;
      for (int v = 0; v < V; ++v) {
        weights[((i * p.units + u) * p.slices + s) * V + v] = from(i / Q / G, i / Q % G, me.first_unit + u, k + v);
      }
    }
  }

  BIRNN_METHOD void multiply(const Plan& p, const Here& me, const float* vector, int part) {
    warp_barrier();  // the lanes add up together, and may have come apart while they waited
    const float* of_part = weights + part * elements(p);
    const int u = int(threadIdx.x) / p.slices, s = int(threadIdx.x) % p.slices, Q = p.length / (p.slices * V);
    for (int first = 0; first < me.rows; first += rows_at_once) {
      float sum[rows_at_once][G] = {};
#pragma unroll 1
      for (int q = 0; u < p.units && q < Q; ++q) {
        Four w[G];
#pragma unroll
        for (int g = 0; g < G; ++g) {
          w[g] = *reinterpret_cast<const Four*>(of_part + (((g * Q + q) * p.units + u) * p.slices + s) * V);
        }
#pragma unroll
        for (int r = 0; r < rows_at_once; ++r) {
          if (first + r >= me.rows) break;
          const Four x = *reinterpret_cast<const Four*>(vector + (first + r) * p.length + (q * p.slices + s) * V);
#pragma unroll
          for (int g = 0; g < G; ++g) {
#pragma unroll
            for (int v = 0; v < V; ++v) sum[r][g] += w[g].v[v] * x.v[v];
          }
        }
      }
      add_slices(p, s, sum);
      if (u >= p.units || s >= rows_at_once || first + s >= me.rows) continue;
#pragma unroll
      for (int g = 0; g < G; ++g) {
        float* to = sums + (g * p.rows + first + s) * p.units + u;
        *to = part ? *to + sum[0][g] : sum[0][g];
      }
    }
  }

  BIRNN_METHOD float sum(const Plan& p, const Here& me, int g) const { return sums[(g * p.rows + me.r) * p.units + me.u]; }

 private:
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
