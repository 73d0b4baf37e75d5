// How the blocks of a kernel hand each other what they have computed, step by step, with no barrier across the grid (G2).
//
// A word has 8 bytes: 4 of payload (a float, or two halves) and 4 of its tag, the number of the step that it belongs to, from 1.
// Its producer writes it once per step, its consumers read it until the tag is the one they wait for. So data and flag arrive
// together, after one way through L2. (NCCL's protocol "LL" has such words.)
//
//   words [2][parts][B][width]    step s goes to slot s % 2; behind them one word more, the flag. All are zero when a call begins:
//                                 no tag of an earlier call, or of an earlier replay of a CUDA graph, is ever there.
//
// No fence is needed. A word is written and read by one access of 8 aligned bytes, which is whole or not there at all, and nobody
// draws a conclusion from it about any other memory.
//
// Two slots are enough. A block publishes step s + 2 over step s only behind a barrier of its own, behind which it has seen every
// word of step s + 1; whoever wrote those had, behind a barrier of its own, every word of step s already. A load that has
// returned, and on whose value the store of another word depended, cannot return once more; if it could, the tag would tell.
//
// Not here: what is handed over (steps.h), and how a wait ends (patience.h). tests/shim/protocol.py goes through all orders of this
// protocol.
#pragma once

#include "chip.h"
#include "patience.h"

namespace birnn {
namespace cuda {

// The exchange as the steps see it (steps.h). A row has `values` values in each part.
template <class T>
class Words {
 public:
  typedef T Value;
  static constexpr int together = 4 / int(sizeof(T));  // values in a word: the units of a gate are padded to that
  static constexpr int vectors = 1;                    // for a block
  static constexpr size_t shared_bytes = 0;            // beside the chip's
  static constexpr int spare = 8;                      // operands (chip.h) that a thread has registers for, beside words
  // Clocks from a value to where it is multiplied: 0.45 us, and 64 bytes through L2 a clock. An estimate.
  static constexpr int64_t latency = 790;
  static int64_t transfer(int64_t values) { return values / together / 8; }

  BIRNN_METHOD Words(const Exchange& x, const Plan& p, const Here& me, const Sizes& n, int values, unsigned char*, T* vector,
                     int stride)
      : x(x), p(p), n(n), me(me), width(values / together), to(vector), stride(stride) {}

  // Whether a block has given up already. Every thread of the block takes part in this and all that follows.
  BIRNN_METHOD bool begin() { return block_any(flag_is_up(x)); }
  BIRNN_METHOD void next(uint32_t number) { tag = number; }

  // This thread's value as the k-th of its row.
  BIRNN_METHOD void publish(int part, int k, T own) {
    const uint32_t payload = payload_with_neighbour(own);
    if (me.mine && k % together == 0) {
      store_word(words(part) + int64_t(me.r) * width + k / together, word_of(tag, payload));
    }
  }

  // Everybody's values of this step, in `vector`; false if this thread has given up.
  BIRNN_METHOD bool receive(int part) {
    const bool received = collect(words(part));
    block_barrier();
    return received;
  }
  BIRNN_METHOD const T* vector() const { return to; }
  BIRNN_METHOD void end(bool) {}

 private:
  static constexpr int at_once = 8;  // loads in flight per thread

  const Exchange& x;
  const Plan& p;
  const Sizes& n;
  const Here& me;
  const int width;  // of a row, in words
  T* const to;
  const int stride;
  uint32_t tag = 0;

  BIRNN_DEVICE uint64_t word_of(uint32_t tag, uint32_t payload) { return uint64_t(tag) << 32 | payload; }
  BIRNN_DEVICE uint32_t tag_of(uint64_t word) { return uint32_t(word >> 32); }
  BIRNN_DEVICE uint32_t payload_of(uint64_t word) { return uint32_t(word); }
  BIRNN_DEVICE int slot_of(uint32_t tag) { return int(tag % 2); }

  // This group's words of the step.
  BIRNN_METHOD uint64_t* words(int part) const { return x.words + ((slot_of(tag) * p.parts + part) * n.B + me.first) * width; }

  // The payload of a thread whose value is `own`; where a word holds two values, those of this lane and the next, and lanes with
  // an even number have it.
  BIRNN_DEVICE uint32_t payload_with_neighbour(T own) {
    if (together == 1) return bits_of(own);
    return bits_of(own) | bits_of(Narrow<T>::of(exchange(wide(own), 1))) << 16;
  }

  // Every thread takes its share of the words, and nobody has all of them before a barrier.
  BIRNN_METHOD bool collect(const uint64_t* from) {
    const int threads = int(blockDim.x), count = me.rows * width;
    // From one word of this thread to its next: so many rows down, so many words across.
    const int down = threads / width, across = threads % width;
    int i = anew(int(threadIdx.x)), column = i % width;
    T* at = to + i / width * stride + column * together;
    while (i < count) {
      uint64_t word[at_once];
      for (int64_t looks = 1;; ++looks) {
        bool all = true;
#pragma unroll
        for (int j = 0; j < at_once; ++j) {
          if (i + j * threads < count) word[j] = load_word(from + i + j * threads);
        }
#pragma unroll
        for (int j = 0; j < at_once; ++j) {
          if (i + j * threads < count) all = all && tag_of(word[j]) == tag;
        }
        if (all) break;
        if (gives_up(x, looks)) return false;
        let_others_run();
      }
#pragma unroll
      for (int j = 0; j < at_once; ++j) {
        if (i >= count) break;
        *reinterpret_cast<uint32_t*>(at) = payload_of(word[j]);
        i += threads, column += across, at += down * stride + across * together;
        if (column >= width) column -= width, at += stride - width * together;
      }
    }
    return true;
  }
};

}  // namespace cuda
}  // namespace birnn
