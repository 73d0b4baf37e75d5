// Streams and events through c10's device-generic interface: no CUDA header, so that this links and loads without CUDA, too.
#include "pair.h"

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <optional>
#include <vector>

namespace birnn {
namespace cuda {

namespace {

// The same two streams of torch's pool for all layers of this thread and device: cuBLAS keeps a workspace of tens of megabytes for
// every stream it has met. Not the same for two threads, one of which may be capturing a graph.
const std::vector<c10::Stream>& side_streams(const at::Device& device) {
  thread_local std::vector<std::vector<c10::Stream>> kept;
  const size_t index = size_t(device.index());
  if (kept.size() <= index) kept.resize(index + 1);
  const c10::impl::VirtualGuardImpl guard(device.type());
  while (kept[index].size() < 2) kept[index].push_back(guard.getStreamFromGlobalPool(device));
  return kept[index];
}

}  // namespace

struct Pair::Streams {
  std::vector<c10::Stream> all;  // dir 0, (dir 1,) caller
  bool joined = false;

  const c10::Stream& of(int who) const { return who == caller ? all.back() : all[size_t(who)]; }
};

Pair::Pair(const at::Device& device, int64_t directions) : streams_(std::make_unique<Streams>()) {
  const std::vector<c10::Stream>& side = side_streams(device);
  streams_->all.assign(side.begin(), side.begin() + directions);
  streams_->all.push_back(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
  const Mark fork = mark(caller);
  for (int d = 0; d < directions; ++d) wait(d, fork);
}

void Pair::join() {
  streams_->joined = true;
  for (int d = 0; d + 1 < int(streams_->all.size()); ++d) wait(caller, mark(d));
}

Pair::~Pair() {
  try {
    if (!streams_->joined) join();
  } catch (...) {
    // Something has been thrown already, and says more than a stream that cannot be joined.
  }
}

void* Pair::handle(int who) const { return streams_->of(who).native_handle(); }

Mark Pair::mark(int who) {
  const c10::Stream& stream = streams_->of(who);
  const auto event = std::make_shared<c10::Event>(stream.device_type());
  event->record(stream);
  return event;
}

void Pair::wait(int who, const Mark& mark) {
  if (mark) static_cast<const c10::Event*>(mark.get())->block(streams_->of(who));
}

Pair::On::On(const Pair& pair, int who) : guard_(std::make_shared<c10::StreamGuard>(pair.streams_->of(who))) {}
Pair::On::~On() = default;

}  // namespace cuda
}  // namespace birnn
