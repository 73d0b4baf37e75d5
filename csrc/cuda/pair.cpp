// Streams and events through c10's device-generic interface: no CUDA header, so that this links and loads without CUDA, too.
#include "pair.h"

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels.h"

namespace birnn {
namespace cuda {

namespace {

// The side streams of this thread and device, one per direction. The same two of torch's pool for all layers, since cuBLAS
// keeps a workspace of tens of megabytes for every stream it has met; but not the same for two threads, one of which may be
// capturing a graph, and two others for capture: pair.h.
std::vector<c10::Stream> side_streams(const at::Device& device, bool captured) {
  thread_local std::vector<std::vector<c10::Stream>> kept;
  const size_t index = size_t(device.index());
  if (kept.size() <= index) kept.resize(index + 1);
  std::vector<c10::Stream>& own = kept[index];
  const c10::impl::VirtualGuardImpl guard(device.type());
  while (own.size() < 4) {
    const c10::Stream stream = guard.getStreamFromGlobalPool(device);
    if (std::find(own.begin(), own.end(), stream) == own.end()) own.push_back(stream);  // the pool goes round
  }
  return captured ? std::vector<c10::Stream>{own[2], own[3]} : std::vector<c10::Stream>{own[0], own[1]};
}

}  // namespace

struct Pair::Streams {
  std::vector<c10::Stream> all;  // dir 0, (dir 1,) caller
  bool joined = false;

  const c10::Stream& of(int who) const { return who == caller ? all.back() : all[size_t(who)]; }
};

Pair::Pair(const at::Device& device, int64_t directions) : streams_(std::make_unique<Streams>()) {
  const c10::Stream from = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  const std::vector<c10::Stream> side = side_streams(device, capturing(from.native_handle()));
  streams_->all.assign(side.begin(), side.begin() + directions);
  streams_->all.push_back(from);
  const Mark fork = mark(caller);
  for (int d = 0; d < directions; ++d) wait(d, fork);
}

void Pair::join() {
  for (int d = 0; d + 1 < int(streams_->all.size()); ++d) wait(caller, mark(d));
  streams_->joined = true;
}

// Where something has been thrown (an allocation, say), memory that the streams are still at work on is about to be given back.
Pair::~Pair() {
  if (streams_->joined) return;
  try {
    join();
  } catch (...) {
    for (size_t d = 0; d + 1 < streams_->all.size(); ++d) {
      try {
        streams_->all[d].synchronize();
      } catch (...) {
        // What has been thrown already says more.
      }
    }
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
