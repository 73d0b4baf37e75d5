// How the blocks of a cluster hand each other what they have computed, step by step, with no barrier of the cluster (G3).
//
//   block q           vector, slot 0 | slot 1        an mbarrier for each: how many bytes of the step are still to come
//                        ^   ^   ^
//   block 0, 1, ... q    their values of the step, pushed by st.async: later a store arrives, then its bytes are counted
//
// The n-th step that the group is at work in goes to slot n % 2. A block pushes its values to all blocks, itself among them,
// announces to its mbarrier how many bytes the step brings, and waits on its own shared memory until the phase of the mbarrier
// ends. (Bytes may be counted before they are announced.) Whoever has seen that can read what came: a push counts its bytes with
// release, a wait acquires. (PTX ISA, "st.async", "mbarrier".)
//
// Two slots are enough, and the bytes of two steps never meet in one phase. A push of step n + 2 into block q starts behind the
// barrier of its block that follows the product of step n + 1, and so behind a wait for step n + 1 of everybody, q among them. A
// thread of q pushed that behind the barrier that follows q's product of step n. By then every thread of q had seen the phase of
// step n end, and had read the slot for the last time. So each thread finds every phase that it waits for, too, and none has ended
// twice: one bit tells which it is. (A block that has no units pushes nothing, so nobody would wait for it: nothing is pushed into
// it, and it only meets the others before the loop and behind it.) Sums in shared memory need no barrier either before they are
// written anew: a wait for step n + 1 ends behind the last push of the block's own values, and each of them followed its thread's
// look at the sums of step n.
//
// A chunk is a launch of its own, with shared memory and mbarriers of its own: nothing is left from one to the next but the flag.
//
// A block must not end while others push into it. Where nobody gives up, nobody does: its last wait was for the last pushes.
// Where a block gives up, others do not know of it at once. So all blocks of a cluster always meet behind the loop, and those that
// have given up, or see that one has, first wait until what was pushed must have arrived: their own pushes, and those of a block
// that found the flag down, since who raised it after that look begins to wait after it.
//
// Not here: what is handed over (steps.h), and how a wait ends (patience.h). tests/shim/pushes.py goes through all orders of this
// protocol.
#pragma once

#include "chip.h"
#include "patience.h"

namespace birnn {
namespace cuda {

// The exchange as the steps see it (steps.h). A row has `values` values, all in one part.
template <class T>
class Pushes {
 public:
  typedef T Value;
  // Neighbouring lanes that share their values out: each has all four in one push, and every fourth block to push to. The units
  // of a block, and of a gate, are padded to that.
  static constexpr int together = 4;
  static constexpr int vectors = 2;
  static constexpr size_t shared_bytes = 2 * sizeof(uint64_t);
  static constexpr int spare = 16;  // operands (chip.h) that a thread has registers for
  // Clocks from a value to where it is multiplied: 0.13 us, and 16 bytes into a block a clock. An estimate.
  static constexpr int64_t latency = 230;
  static int64_t transfer(int64_t values) { return values * int64_t(sizeof(T)) / 16; }

  BIRNN_METHOD Pushes(const Exchange& x, const Plan& p, const Here& me, const Sizes&, int values, unsigned char* shared,
                      T* vector, int stride)
      : x(x),
        me(me),
        blocks((me.H + p.units - 1) / p.units),
        first_peer(int(blockIdx.x) % p.splits),
        bytes(uint32_t(me.rows * values * int(sizeof(T)))),
        slot_length(p.rows * stride),
        stride(stride),
        arrivals(reinterpret_cast<uint64_t*>(shared)),
        to(vector) {}

  // Whether a block has given up already. Every thread of the block takes part in this and all that follows.
  BIRNN_METHOD bool begin() {
    if (threadIdx.x < vectors) begin_arrivals(arrivals + threadIdx.x);
    const bool lost = block_any(flag_is_up(x));
    cluster_barrier();  // now everybody's vectors are zeros and their mbarriers count
    return lost;
  }
  BIRNN_METHOD void next(uint32_t) { ++turn; }

  // This thread's value as the k-th of its row.
  BIRNN_METHOD void publish(int, int k, T own) {
    const int lane = anew(int(threadIdx.x)) % together, rank = anew(first_peer);
    uint32_t of[together], words[sizeof(T)] = {};
    for (int j = 0; j < together; ++j) of[j] = of_four(bits_of(own), j);
    for (int j = 0; j < together; ++j) words[j * sizeof(T) / 4] |= of[j] << j * int(sizeof(T)) % 4 * 8;
    if (me.r >= me.rows || me.unit - lane >= me.H) return;
    const uint32_t at = shared_address(to + slot() * slot_length + me.r * stride + k - lane);
    const uint32_t counted_at = shared_address(arrivals + slot());
    for (int i = lane; i < blocks; i += together) {
      const int next = rank + i, peer = next < blocks ? next : next - blocks;  // not all to the same one first
      push(peer_address(at, peer), words, peer_address(counted_at, peer));
    }
  }

  // Everybody's values of this step, in `vector`; false if this thread has given up.
  BIRNN_METHOD bool receive(int) {
    if (threadIdx.x == 0) expect_bytes(arrivals + slot(), bytes);
    bool here = false, lost = false;
    for (int64_t looks = 1; !here && !lost; ++looks) {
      lost = gives_up(x, looks);  // before the first look, if a test allows for one only
      here = !lost && has_arrived(arrivals + slot(), phase());
      if (!here) let_others_run();
    }
    return !lost;
  }
  BIRNN_METHOD const T* vector() const { return to + slot() * slot_length; }

  BIRNN_METHOD void end(bool lost) {
    if (lost || flag_is_up(x)) let_pushes_land();
    cluster_barrier();
  }

 private:
  const Exchange& x;
  const Here& me;
  const int blocks;      // that have units
  const int first_peer;  // to push to: this block itself
  const uint32_t bytes;  // of a step
  const int slot_length, stride;
  uint64_t* const arrivals;
  T* const to;
  int turn = -1;

  BIRNN_METHOD int slot() const { return turn % 2; }
  BIRNN_METHOD uint32_t phase() const { return uint32_t(turn / 2 % 2); }
};

}  // namespace cuda
}  // namespace birnn
