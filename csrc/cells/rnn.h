// The plain recurrent cell (Elman 1990), as torch.nn.RNN computes it:
//   h' = tanh(x + h)    or    h' = relu(x + h)
#pragma once

namespace birnn {
namespace BIRNN_NS {

struct RnnTanh {
  static constexpr const char* name = "RNN_TANH";
  static constexpr int gates = 1, states = 1, saved = 0, columns = 1;
  static constexpr bool reads_h = true;
  static constexpr int x_column(int) { return 0; }
  static constexpr int h_column(int) { return 0; }

  template <class V>
  BIRNN_CELL void forward(const V* x, const V* h, const V*, V* s_new, V*) {
    s_new[0] = Math<V>::tanh(x[0] + h[0]);
  }

  template <class V>
  BIRNN_CELL void backward(const V*, const V*, V h_new, const V* ds_new, V* d, V* ds) {
    d[0] = ds_new[0] * (1 - h_new * h_new);
    ds[0] = Math<V>::zero();
  }
};

struct RnnRelu {
  static constexpr const char* name = "RNN_RELU";
  static constexpr int gates = 1, states = 1, saved = 0, columns = 1;
  static constexpr bool reads_h = true;
  static constexpr int x_column(int) { return 0; }
  static constexpr int h_column(int) { return 0; }

  template <class V>
  BIRNN_CELL void forward(const V* x, const V* h, const V*, V* s_new, V*) {
    s_new[0] = Math<V>::relu(x[0] + h[0]);
  }

  template <class V>
  BIRNN_CELL void backward(const V*, const V*, V h_new, const V* ds_new, V* d, V* ds) {
    d[0] = Math<V>::relu_backward(h_new, ds_new[0]);
    ds[0] = Math<V>::zero();
  }
};

}  // namespace BIRNN_NS
}  // namespace birnn
