// Both directions at once on CUDA: each on a stream of its own, forked from the caller's stream and joined to it again.
// Not here: what runs on the streams.
//
//   caller   --fork--+--- projections, weight gradients ---+--join-->
//   dir 0            +------- recurrence ------------------+
//   dir 1            +------- recurrence ------------------+
//
// All memory is allocated on the caller's stream, before the fork or between; since the streams of the directions are joined
// before it can be given back, the caching allocator needs no record_stream: whoever gets the memory next runs behind the join.
// Under CUDA graph capture the same events pull two streams into the capture and out again. They are not those of other calls:
// a graph holds the address of the workspace that cuBLAS has for each stream, and when it is replayed beside such a call, both
// would write there. Two graphs captured by the same thread share a workspace, as with torch's own products: replay them in
// turn.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

namespace birnn {
namespace cuda {

// A point in the work of a stream. Empty: nothing to wait for.
typedef std::shared_ptr<void> Mark;

class Pair {
 public:
  static constexpr int caller = -1;  // beside the directions 0 and 1

  Pair(const at::Device& device, int64_t directions);
  ~Pair();  // joins, if nobody has, also where something has thrown
  void join();

  void* handle(int who) const;  // a cudaStream_t
  Mark mark(int who);           // everything that `who` was given so far
  void wait(int who, const Mark& mark);

  // While it lives, torch's own operators go to the stream of `who`.
  class On {
   public:
    On(const Pair& pair, int who);
    ~On();

   private:
    std::shared_ptr<void> guard_;
  };

 private:
  struct Streams;
  std::unique_ptr<Streams> streams_;
};

}  // namespace cuda
}  // namespace birnn
