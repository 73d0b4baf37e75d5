// Copies without gaps, and what is checked of a layer's tensors on the CPU alone.
#include "dense.h"

#include <ATen/ops/empty.h>

#include "pair.h"

namespace birnn {

namespace {

template <class T>
void copy_strided(const at::Tensor& from, T* to) {
  const T* data = pointer<T>(from);
  if (from.dim() > 3) {
    for (int64_t i = 0; i < from.size(0); ++i) copy_strided(from.select(0, i), to + from.numel() / from.size(0) * i);
    return;
  }
  int64_t size[3] = {1, 1, 1}, stride[3] = {0, 0, 0};
  for (int64_t i = 0; i < from.dim(); ++i) {
    size[3 - from.dim() + i] = from.size(i), stride[3 - from.dim() + i] = from.stride(i);
  }
  const int64_t shares = from.numel() > 32768 ? parallel_tasks() : 1;
  run_tasks(shares, true, [&](int64_t k) {
    for (int64_t row = size[0] * size[1] * k / shares; row < size[0] * size[1] * (k + 1) / shares; ++row) {
      const T* line = data + row / size[1] * stride[0] + row % size[1] * stride[1];
      for (int64_t j = 0; j < size[2]; ++j) to[row * size[2] + j] = line[j * stride[2]];
    }
  });
}

}  // namespace

// Not at::Tensor::contiguous, for the reason given at `add` in layer.cpp.
at::Tensor contiguous(const at::Tensor& t) {
  if (!t.defined() || t.is_contiguous()) return t;
  at::Tensor copy = at::empty(t.sizes(), t.options().requires_grad(false));
  switch (t.element_size()) {
    case 2:
      copy_strided(t, data<uint16_t>(copy));
      break;
    case 4:
      copy_strided(t, data<uint32_t>(copy));
      break;
    default:
      copy_strided(t, data<uint64_t>(copy));
  }
  return copy;
}

at::Tensor feature_contiguous(const at::Tensor& t) {
  return !t.defined() || t.stride(2) == 1 || t.size(2) <= 1 ? t : contiguous(t);
}

void make_dense(LayerTensors& l) {
  with_type(l.input.scalar_type(), [](auto) {});  // or an error
  l.input = feature_contiguous(l.input);
  l.h0 = contiguous(l.h0), l.c0 = contiguous(l.c0), l.lengths = contiguous(l.lengths);
  for (int d = 0; d < l.n.D; ++d) {
    for (at::Tensor* w : {&l.w_ih[d], &l.w_hh[d], &l.b_ih[d], &l.b_hh[d], &l.w_hr[d]}) *w = contiguous(*w);
  }
  if (!l.lengths.defined()) return;
  const int64_t* lengths = l.lengths.const_data_ptr<int64_t>();
  if (l.lengths.dim() == 2) {  // numbers of episodes: any, but once a row has ended it has ended
    for (int64_t i = 0; i < l.n.B * l.n.T; ++i) {
      TORCH_CHECK_VALUE(lengths[i] >= 0 && (i % l.n.T == 0 || lengths[i - 1] > 0 || lengths[i] == 0),
                        "lengths: expected the numbers of episodes, from 1 on, then zeros, got ", lengths[i], " at row ",
                        i / l.n.T, ", step ", i % l.n.T);
    }
    return;
  }
  for (int64_t b = 0; b < l.n.B; ++b) {
    TORCH_CHECK_VALUE(lengths[b] >= 0 && lengths[b] <= l.n.T, "lengths: expected values from 0 to T = ", l.n.T, ", got ",
                      lengths[b], " at position ", b);
  }
}

}  // namespace birnn
