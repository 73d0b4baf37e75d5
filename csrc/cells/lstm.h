// Long short-term memory with a forget gate (Gers et al. 2000), as torch.nn.LSTM computes it; gates in the order i f g o:
//   i = sigmoid(x_i + h_i)    f = sigmoid(x_f + h_f)    g = tanh(x_g + h_g)    o = sigmoid(x_o + h_o)
//   c' = f c + i g            h' = o tanh(c')
#pragma once

namespace birnn {
namespace BIRNN_NS {

struct Lstm {
  static constexpr const char* name = "LSTM";
  static constexpr int gates = 4, states = 2, saved = 5, columns = 4;  // saved: i f g o c'
  static constexpr bool reads_h = false;
  static constexpr int x_column(int gate) { return gate; }
  static constexpr int h_column(int gate) { return gate; }

  template <class V>
  BIRNN_CELL void forward(const V* x, const V* h, const V* s, V* s_new, V* save) {
    const V i = Math<V>::sigmoid(x[0] + h[0]);
    const V f = Math<V>::sigmoid(x[1] + h[1]);
    const V g = Math<V>::tanh(x[2] + h[2]);
    const V o = Math<V>::sigmoid(x[3] + h[3]);
    const V c = f * s[1] + i * g;
    s_new[0] = o * Math<V>::tanh(c);
    s_new[1] = c;
    save[0] = i, save[1] = f, save[2] = g, save[3] = o, save[4] = c;
  }

  // h' from what was saved: what a projection was applied to.
  template <class V>
  BIRNN_CELL V hidden(const V* save) {
    return save[3] * Math<V>::tanh(save[4]);
  }

  template <class V>
  BIRNN_CELL void backward(const V* save, const V* s, V, const V* ds_new, V* d, V* ds) {
    const V i = save[0], f = save[1], g = save[2], o = save[3];
    const V tanh_c = Math<V>::tanh(save[4]);
    const V dc = ds_new[1] + ds_new[0] * o * (1 - tanh_c * tanh_c);
    d[0] = dc * g * i * (1 - i);
    d[1] = dc * s[1] * f * (1 - f);
    d[2] = dc * i * (1 - g * g);
    d[3] = ds_new[0] * tanh_c * o * (1 - o);
    ds[0] = Math<V>::zero();  // h_{t-1} acts only through W_hh
    ds[1] = dc * f;
  }
};

}  // namespace BIRNN_NS
}  // namespace birnn
