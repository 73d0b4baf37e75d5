// The micro-kernel: a tile of MR rows times NV vectors of columns, kept in registers over the whole length K of the product (with 16
// registers and NV = 4, one half of the columns after the other).
//
//   out[r][j] = sum over k of a(r, k) * b[k][j]        r < MR, j < NV (vectors)
//
//   a   by rows (row stride `lda`), or interleaved: [K][MR]; of pairs (operand.h) [K / 2][MR] words
//   b   one panel: [K][NV] vectors, contiguous (row stride `ldb` = NV * L), so that the inner loop streams through it; or in place
//       or in pairs, [K / 2][NV] vectors of words, each of which holds two weights in half of the memory:
//
//         word of b[k], b[k + 1]   | b[k], upper half of a float | b[k + 1], likewise |
//                                    31 ....................... 16 15 ............. 0
//
//       The word as it stands is the float b[k], whose lower bits are those of b[k + 1]; shifted up by 16 it is b[k + 1]. So
//       reading two weights takes one instruction more than reading one. (Where `a` comes in pairs, b does, as operand.h has it.)
//   out [MR][NV] vectors, contiguous: a small buffer in L1 from which the caller's epilogue goes on. (Reading it back costs
//       2 * MR * NV vector moves per K * MR * NV multiplications; in return one micro-kernel serves every cell and product.)
//   ahead   what is fetched meanwhile. Of interleaved rows, whose panel has just been packed: nothing. Of few rows: as much as the
//       panel has, from here on; null is nothing. Else K cache lines of later tiles, into L2, while the processor is busy multiplying
//       (up to 8 % where panels come from L3, nothing where they lie in L2 already).
//
// Not here: which tiles make up a product (panels.h), and any knowledge of gates.
#pragma once

#include <type_traits>

#include "operand.h"

namespace birnn {
namespace BIRNN_NS {

constexpr int max_tile_vectors = 4;  // NV: gates of an LSTM
constexpr int max_tile_rows = 8;

// Rows of a pass over K: as many accumulators as the register file holds beside nv vectors of b and one broadcast a.
constexpr int pass_rows(int nv) {
  const int rows = (BIRNN_VECTOR_REGISTERS - nv - 1) / nv;
  return rows < max_tile_rows ? rows : max_tile_rows;
}

// A tile of four vectors is computed in two passes, half of the columns each, where that makes for more accumulators, and so for
// fewer loads per multiplication: with 16 registers, 6 rows of 2 vectors in place of 2 of 4. Few rows need one pass all the same.
constexpr int tile_rows(int nv) { return pass_rows(nv == 4 && pass_rows(2) * 2 > pass_rows(4) * 4 ? 2 : nv); }
constexpr int pass_vectors(int mr, int nv) { return mr > pass_rows(nv) ? nv / 2 : nv; }

// Where there are registers for more, a tile of fewer rows than these waits for its panel rather than for multiplications.
constexpr int few_rows = 4;

// Independent sums along k, so that a tile of few rows still has enough chains to hide the latency of a multiply-add.
constexpr int tile_chains(int mr, int nv) { return mr * nv >= 8 ? 1 : mr * nv >= 4 ? 2 : 4; }

// The sum over k is cut into blocks, whose sums are added up: in one chain of thousands the rounding errors would grow to
// several times those of a BLAS.
constexpr int64_t tile_block = 256;

// How the operands lie.
enum Form { PLAIN, INTERLEAVED, PAIRS };

// NV vectors of a tile whose rows in `out` are `ldo` apart.
template <class A, int MR, int NV, Form form, bool fetch, class T = Wide<A>>
BIRNN_INLINE void tile_pass(int64_t K, const A* __restrict__ a, int64_t lda, const T* __restrict__ b, int64_t ldb,
                            T* __restrict__ out, int64_t ldo, const T* ahead) {
  constexpr int L = lanes<T>, KU = tile_chains(MR, NV);
  constexpr int line = 64 / int(sizeof(T));                 // elements of a cache line
  constexpr int deep = form == PAIRS || paired<A> ? 2 : 1;  // indices k of a row of b
  constexpr int passes = form == PAIRS ? 2 : 1;             // multiplications with it
  int64_t k = 0;
  do {
    const int64_t begin = k, end = smaller(k + tile_block, K);
    Vec<T> sum[KU][MR][NV];
#pragma GCC unroll 32
    for (int i = 0; i < KU * MR * NV; ++i) sum[i / (MR * NV)][i / NV % MR][i % NV] = Vec<T>{};

    // The last index of an odd K is alone in its row.
    const auto step = [&](int64_t k, Vec<T>(&into)[MR][NV], bool alone = false) __attribute__((always_inline)) {
      const T* bk = b + k / deep * ldb;
      if (fetch && MR < few_rows) {
#pragma GCC unroll 8
        for (int i = 0; i < NV * L; i += line) __builtin_prefetch(ahead + k / deep * ldb + i);
      } else if (fetch) {
        __builtin_prefetch(ahead + k / deep * line, 0, 2);
      }
      Vec<T> bv[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        bv[j] = load(bk + j * L);
        if (MR > 1) hold(bv[j]);
      }
#pragma GCC unroll 2
      for (int i = 0; i < passes; ++i) {
        if (i == 1) {
          if (alone) break;
#pragma GCC unroll 4
          for (int j = 0; j < NV; ++j) bv[j] = lower_half(bv[j]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) {
          const bool strip = form == INTERLEAVED;  // (whose last word is whole)
          const auto ark = factor(strip ? a + k * MR + r * deep : a + r * lda + k + i, !strip && alone);
#pragma GCC unroll 4
          for (int j = 0; j < NV; ++j) into[r][j] = multiply_add<A>(into[r][j], ark, bv[j]);
        }
      }
    };
    for (; k + KU * deep <= end; k += KU * deep) {
#pragma GCC unroll 4
      for (int u = 0; u < KU; ++u) step(k + u * deep, sum[u]);
    }
    for (; k < end; k += deep) step(k, sum[0], k + deep > end);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        Vec<T> total = sum[0][r][j];
        if (KU == 2) total += sum[1 % KU][r][j];
        if (KU == 4) total = (total + sum[1 % KU][r][j]) + (sum[2 % KU][r][j] + sum[3 % KU][r][j]);
        T* to = out + r * ldo + j * L;
        if (begin > 0) total += load(to);
        store(to, total);
      }
    }
  } while (k < K);
}

template <class A, int MR, int NV, Form form, class T = Wide<A>>
__attribute__((noinline)) void tile(int64_t K, const A* __restrict__ a, int64_t lda, const T* __restrict__ b, int64_t ldb,
                                    T* __restrict__ out, const T* ahead) {
  constexpr int L = lanes<T>, W = pass_vectors(MR, NV);
  constexpr bool fetch = form != INTERLEAVED, again = fetch && MR < few_rows;
  const auto pass = [&](int j, auto fetch) __attribute__((always_inline)) {
    tile_pass<A, MR, W, form, fetch.value>(K, a, lda, b + j, ldb, out + j, NV * L, fetch.value ? ahead + j : ahead);
  };
  // Two copies of the loop: to ask within it whether to fetch would cost what that saves.
  if (fetch && (MR >= few_rows || ahead)) {
    pass(0, std::integral_constant<bool, fetch>{});
    // Cache lines of later tiles have been asked for by now, those of the own panel have not.
    if (W < NV) pass(W * L, std::integral_constant<bool, again>{});
  } else {
    for (int j = 0; j < NV * L; j += W * L) pass(j, std::false_type{});
  }
}

template <class A>
using Tile = void (*)(int64_t, const A*, int64_t, const Wide<A>*, int64_t, Wide<A>*, const Wide<A>*);

// tiles<A, form>[NV - 1][MR - 1]; null where registers do not suffice for so many rows, and for PAIRS of anything but floats.
template <class A, int MR, int NV, Form form>
constexpr Tile<A> tile_or_null() {
  if constexpr (MR <= tile_rows(NV) && (form != PAIRS || sizeof(A) == 4)) {
    return &tile<A, MR, NV, form>;
  } else {
    return nullptr;
  }
}

#define BIRNN_TILES_OF(NV)                                                                            \
  {                                                                                                   \
      tile_or_null<A, 1, NV, form>(), tile_or_null<A, 2, NV, form>(), tile_or_null<A, 3, NV, form>(), \
      tile_or_null<A, 4, NV, form>(), tile_or_null<A, 5, NV, form>(), tile_or_null<A, 6, NV, form>(), \
      tile_or_null<A, 7, NV, form>(), tile_or_null<A, 8, NV, form>(),                                 \
  }
template <class A, Form form>
constexpr Tile<A> tiles[max_tile_vectors][max_tile_rows] = {BIRNN_TILES_OF(1), BIRNN_TILES_OF(2), BIRNN_TILES_OF(3),
                                                            BIRNN_TILES_OF(4)};
#undef BIRNN_TILES_OF

}  // namespace BIRNN_NS
}  // namespace birnn
