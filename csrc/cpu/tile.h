// The micro-kernel: a tile of MR rows times NV vectors of columns, kept in registers over the whole length K of the product.
//
//   out[r][j] = sum over k of a(r, k) * b[k][j]        r < MR, j < NV (vectors)
//
//   a   by rows (row stride `lda`), or interleaved: [K][MR]
//   b   one panel: [K][NV] vectors, contiguous (row stride `ldb` = NV * L), so that the inner loop streams through it; or in place
//   out [MR][NV] vectors, contiguous: a small buffer in L1 from which the caller's epilogue goes on. (Reading it back costs
//       2 * MR * NV vector moves per K * MR * NV multiplications; in return one micro-kernel serves every cell and product.)
//   ahead   where the data of later tiles begin: K cache lines from here are fetched into L2, one per k, while the processor is
//       busy multiplying (8 % at H = 512, whose panels come from L3; nothing where they lie in L2 already)
//
// Not here: which tiles make up a product (panels.h), and any knowledge of gates.
#pragma once

#include "simd.h"

namespace birnn {
namespace BIRNN_NS {

constexpr int max_tile_vectors = 4;  // NV: gates of an LSTM
constexpr int max_tile_rows = 8;

// Rows of a tile: as many accumulators as the register file holds beside NV vectors of b and one broadcast a.
constexpr int tile_rows(int nv) {
  const int rows = (BIRNN_VECTOR_REGISTERS - nv - 1) / nv;
  return rows < max_tile_rows ? rows : max_tile_rows;
}

// Independent sums along k, so that a tile of few rows still has enough chains to hide the latency of a multiply-add.
constexpr int tile_chains(int mr, int nv) { return mr * nv >= 8 ? 1 : mr * nv >= 4 ? 2 : 4; }

// The sum over k is cut into blocks, whose sums are added up: in one chain of thousands the rounding errors would grow to
// several times those of a BLAS.
constexpr int64_t tile_block = 256;

template <class T, int MR, int NV, bool Interleaved>
__attribute__((noinline)) void tile(int64_t K, const T* __restrict__ a, int64_t lda, const T* __restrict__ b, int64_t ldb,
                                    T* __restrict__ out, const T* ahead) {
  constexpr int L = lanes<T>, KU = tile_chains(MR, NV);
  constexpr int line = 64 / int(sizeof(T));  // elements of a cache line
  int64_t k = 0;
  do {
    const int64_t begin = k, end = smaller(k + tile_block, K);
    Vec<T> sum[KU][MR][NV];
#pragma GCC unroll 32
    for (int i = 0; i < KU * MR * NV; ++i) sum[i / (MR * NV)][i / NV % MR][i % NV] = Vec<T>{};

    const auto step = [&](int64_t k, Vec<T>(&into)[MR][NV]) __attribute__((always_inline)) {
      const T* bk = b + k * ldb;
      if (MR < 4) {  // few rows: the panel itself is what is waited for
#pragma GCC unroll 8
        for (int i = 0; i < NV * L; i += line) __builtin_prefetch(bk + 8 * ldb + i);
      } else {
        __builtin_prefetch(ahead + k * line, 0, 2);
      }
      Vec<T> bv[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) bv[j] = load(bk + j * L);
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const T ark = Interleaved ? a[k * MR + r] : a[r * lda + k];
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) into[r][j] += ark * bv[j];
      }
    };
    for (; k + KU <= end; k += KU) {
#pragma GCC unroll 4
      for (int u = 0; u < KU; ++u) step(k + u, sum[u]);
    }
    if (KU > 1) {
      for (; k < end; ++k) step(k, sum[0]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        Vec<T> total = sum[0][r][j];
        if (KU == 2) total += sum[1 % KU][r][j];
        if (KU == 4) total = (total + sum[1 % KU][r][j]) + (sum[2 % KU][r][j] + sum[3 % KU][r][j]);
        T* to = out + (r * NV + j) * L;
        if (begin > 0) total += load(to);
        store(to, total);
      }
    }
  } while (k < K);
}

template <class T>
using Tile = void (*)(int64_t, const T*, int64_t, const T*, int64_t, T*, const T*);

// tiles<T, Interleaved>[NV - 1][MR - 1]; null where the registers do not suffice.
template <class T, int MR, int NV, bool Interleaved>
constexpr Tile<T> tile_or_null() {
  if constexpr (MR <= tile_rows(NV)) {
    return &tile<T, MR, NV, Interleaved>;
  } else {
    return nullptr;
  }
}

#define BIRNN_TILES_OF(NV)                                                                                                 \
  {                                                                                                                        \
      tile_or_null<T, 1, NV, Interleaved>(), tile_or_null<T, 2, NV, Interleaved>(), tile_or_null<T, 3, NV, Interleaved>(), \
      tile_or_null<T, 4, NV, Interleaved>(), tile_or_null<T, 5, NV, Interleaved>(), tile_or_null<T, 6, NV, Interleaved>(), \
      tile_or_null<T, 7, NV, Interleaved>(), tile_or_null<T, 8, NV, Interleaved>(),                                        \
  }
template <class T, bool Interleaved>
constexpr Tile<T> tiles[max_tile_vectors][max_tile_rows] = {BIRNN_TILES_OF(1), BIRNN_TILES_OF(2), BIRNN_TILES_OF(3),
                                                            BIRNN_TILES_OF(4)};
#undef BIRNN_TILES_OF

}  // namespace BIRNN_NS
}  // namespace birnn
