// The gated recurrent unit (Cho et al. 2014) in the reset-after form of torch.nn.GRU and cuDNN; gates in the order r z n:
//   r = sigmoid(x_r + h_r)    z = sigmoid(x_z + h_z)    n = tanh(x_n + r h_n)    h' = (1 - z) n + z h
#pragma once

namespace birnn {
namespace BIRNN_NS {

struct Gru {
  static constexpr const char* name = "GRU";
  static constexpr int gates = 3, states = 1, saved = 4, columns = 4;  // saved: r z n h_n
  static constexpr bool reads_h = true;
  // The reset gate stands between the recurrent side of n and n itself, so n has two gradients. Columns: n_x | r | z | n_h.
  //   input side      = columns 0 1 2 (gates n r z)
  //   recurrent side  = columns 1 2 3 (gates r z n)
  static constexpr int x_column(int gate) { return gate == 2 ? 0 : gate + 1; }
  static constexpr int h_column(int gate) { return gate + 1; }

  template <class V>
  BIRNN_CELL void forward(const V* x, const V* h, const V* s, V* s_new, V* save) {
    const V r = Math<V>::sigmoid(x[0] + h[0]);
    const V z = Math<V>::sigmoid(x[1] + h[1]);
    const V n = Math<V>::tanh(x[2] + r * h[2]);
    s_new[0] = n + z * (s[0] - n);
    save[0] = r, save[1] = z, save[2] = n, save[3] = h[2];
  }

  template <class V>
  BIRNN_CELL void backward(const V* save, const V* s, V, const V* ds_new, V* d, V* ds) {
    const V r = save[0], z = save[1], n = save[2];
    const V dn = ds_new[0] * (1 - z) * (1 - n * n);
    d[0] = dn;
    d[1] = dn * save[3] * r * (1 - r);
    d[2] = ds_new[0] * (s[0] - n) * z * (1 - z);
    d[3] = dn * r;
    ds[0] = ds_new[0] * z;
  }
};

}  // namespace BIRNN_NS
}  // namespace birnn
