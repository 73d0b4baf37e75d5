// Runs the block kernels with a thread of the operating system for every thread of a block, for ThreadSanitizer to watch: it
// reports what two threads touch with no barrier between. Numbers are test_backend.py's business. No torch library is linked.
#include <cstdio>

#include "cuda/kernels.h"
#include "engine.h"

using namespace birnn;
using namespace birnn::cuda;

int main() {
  const int64_t T = 3, B = 5, H = 9;  // two warps a block, two blocks
  const int64_t lengths[] = {3, 2, 0, 1, 3};
  for (const Mode mode : {GRU, LSTM}) {
    const int64_t G = mode == GRU ? 3 : 4, C = 4, S = mode == GRU ? 4 : 5;
    std::mt19937 random(1);
    const auto numbers = [&](int64_t count) {
      std::vector<float> v(static_cast<size_t>(count));
      for (float& x : v) x = float(random() % 2001) / 1000 - 1;
      return v;
    };
    for (int dir = 0; dir < 2; ++dir) {
      std::vector<float> pre = numbers(T * B * G * H), w = numbers(G * H * H), b = numbers(G * H), h = numbers(B * H);
      std::vector<float> c = numbers(B * H), y = numbers(T * B * H), saved = numbers(T * B * S * H), dy = numbers(T * B * H);
      std::vector<float> carry = numbers(B * H), dc = numbers(B * H), dg = numbers(T * B * C * H);
      std::vector<shim::Queue> queues(1);
      const Launch launch = {Dtype::F32, mode, &queues[0]};
      ForwardChunk f = {};
      f.n = {T, B, 1, H, H, 1, false}, f.dir = dir, f.t_end = T, f.lengths = lengths;
      f.pre = pre.data(), f.w_hh = w.data(), f.b_ih = b.data(), f.b_hh = b.data(), f.h = h.data(), f.c = c.data();
      f.y = y.data(), f.y_t = B * H, f.y_b = H, f.saved = saved.data();
      forward_block(f, launch);
      BackwardChunk q = {};
      q.n = f.n, q.dir = dir, q.t_end = T, q.lengths = lengths, q.saved = saved.data(), q.y = y.data(), q.y_t = B * H,
      q.y_b = H;
      q.dy = dy.data(), q.dy_t = B * H, q.dy_b = H, q.w_hh = w.data();
      q.carry = carry.data(), q.dc = dc.data(), q.dg = dg.data();
      backward_block(q, launch);
      shim::drain(queues);
    }
  }
  std::puts("ran");
}
