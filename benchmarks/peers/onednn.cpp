// One bidirectional layer of oneDNN's RNN primitives behind a C interface, for onednn.py. Compiled and loaded by
// onednn_library.py.
// Primitives, memory objects and reorders are made once, in `peer_create`; `peer_forward` and `peer_backward` only run them.
//
// oneDNN 3. All buffers are the caller's and must outlive the layer. float32, row major:
//     x, output, their gradients   [T, B, I], [T, B, 2H]
//     h, c, their gradients        [2, B, H]
//     weight, recurrent, theirs    [2, I, G, H], [2, H, G, H]: "ldigo", oneDNN's plain layout and that of its gradients
//     bias, its gradient           [2, G, H], for lbr_gru [2, 4, H]
// Gates: oneDNN's order (u r o, and i f c o). Initial states are zero.

#include <omp.h>

#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <unordered_map>
#include <vector>

enum Mode : int { kTanh, kRelu, kGru, kLstm };

struct Problem {
  int mode, training, threads;
  long T, B, I, H;
  float *weight, *recurrent, *bias, *output, *h, *c;
  // Only read or written where `training`; c and d_c only for an LSTM.
  float *d_weight, *d_recurrent, *d_bias, *d_output, *d_h, *d_c, *d_x;
};

namespace {

using dnnl::memory;
using Tag = memory::format_tag;
using Pass = std::unordered_map<int, memory>;

memory::desc describe(const memory::dims& sizes, Tag tag) { return {sizes, memory::data_type::f32, tag}; }

// A weight or the gradient of one: the caller's, in its plain layout, and, where that differs, the one in the layout that
// a primitive wants.
struct Weight {
  memory plain, wanted;
  dnnl::reorder reorder;
  bool gradient, differs;

  Weight(const dnnl::engine& engine, const memory::desc& layout, const memory::desc& wants, float* data, bool gradient)
      : plain(layout, engine, data), wanted(plain), gradient(gradient), differs(layout != wants) {
    if (!differs) return;
    wanted = memory(wants, engine);
    reorder = gradient ? dnnl::reorder(wanted, plain) : dnnl::reorder(plain, wanted);
  }
  // From the caller to the primitive, or a gradient back.
  void bring(const dnnl::stream& stream) {
    if (!differs) return;
    gradient ? reorder.execute(stream, wanted, plain) : reorder.execute(stream, plain, wanted);
  }
};

class Layer {
 public:
  explicit Layer(const Problem& problem) : p(problem), engine(dnnl::engine::kind::cpu, 0), stream(engine) {
    omp_set_num_threads(p.threads);  // primitives are made for the number of threads of now
    const long gates = p.mode == kLstm ? 4 : p.mode == kGru ? 3 : 1;
    const long biases = p.mode == kGru ? 4 : gates;
    x = describe({p.T, p.B, p.I}, Tag::tnc);
    y = describe({p.T, p.B, 2 * p.H}, Tag::tnc);
    state = describe({1, 2, p.B, p.H}, Tag::ldnc);
    weight = {1, 2, p.I, gates, p.H};
    recurrent = {1, 2, p.H, gates, p.H};
    bias = describe({1, 2, biases, p.H}, Tag::ldgo);

    dnnl::primitive_desc_base forward_pd = describe_forward();
    forward_primitive = dnnl::primitive(forward_pd.get());
    forward_weights = {held(forward_pd, DNNL_ARG_WEIGHTS_LAYER, weight, p.weight),
                       held(forward_pd, DNNL_ARG_WEIGHTS_ITER, recurrent, p.recurrent)};
    forward = {{DNNL_ARG_SRC_LAYER, memory(x, engine, nullptr)},   {DNNL_ARG_WEIGHTS_LAYER, forward_weights[0].wanted},
               {DNNL_ARG_WEIGHTS_ITER, forward_weights[1].wanted}, {DNNL_ARG_BIAS, memory(bias, engine, p.bias)},
               {DNNL_ARG_DST_LAYER, memory(y, engine, p.output)},  {DNNL_ARG_DST_ITER, memory(state, engine, p.h)}};
    if (p.mode == kLstm) forward.emplace(DNNL_ARG_DST_ITER_C, memory(state, engine, p.c));
    if (p.training) {
      make_backward(forward_pd);
    } else {
      for (Weight& each : forward_weights) each.bring(stream);
      stream.wait();
    }
  }

  void run_forward(float* input) {
    omp_set_num_threads(p.threads);
    forward.at(DNNL_ARG_SRC_LAYER).set_data_handle(input);
    if (p.training)
      for (Weight& each : forward_weights) each.bring(stream);  // an optimizer has changed them
    forward_primitive.execute(stream, forward);
    stream.wait();
  }

  // Of the input of the last run_forward. Gradients of weights replace the old ones.
  void run_backward() {
    omp_set_num_threads(p.threads);
    for (Weight& each : backward_weights) each.bring(stream);
    backward_primitive.execute(stream, backward);
    for (Weight& each : weight_gradients) each.bring(stream);
    stream.wait();
  }

 private:
  Weight held(const dnnl::primitive_desc_base& pd, int argument, const memory::dims& sizes, float* data,
              bool gradient = false) {
    return {engine, describe(sizes, Tag::ldigo), pd.query_md(dnnl::query::exec_arg_md, argument), data, gradient};
  }

  dnnl_alg_kind_t activation() const { return p.mode == kTanh ? dnnl_eltwise_tanh : dnnl_eltwise_relu; }

  // The C functions, because the C++ ones cannot pass the flag that backward needs. nullptr: no such tensor.
  dnnl::primitive_desc_base describe_forward() {
    const auto kind = p.training ? dnnl_forward_training : dnnl_forward_inference;
    const auto both = dnnl_bidirectional_concat;
    const memory::desc w = describe(weight, Tag::any), r = describe(recurrent, Tag::any);
    dnnl_primitive_desc_t made = nullptr;
    dnnl_status_t status;
    if (p.mode == kGru)
      status = dnnl_lbr_gru_forward_primitive_desc_create(&made, engine.get(), kind, both, x.get(), nullptr, w.get(), r.get(),
                                                          bias.get(), y.get(), state.get(), 0, nullptr);
    else if (p.mode == kLstm)
      status =
          dnnl_lstm_forward_primitive_desc_create(&made, engine.get(), kind, both, x.get(), nullptr, nullptr, w.get(), r.get(),
                                                  nullptr, nullptr, bias.get(), y.get(), state.get(), state.get(), 0, nullptr);
    else
      status = dnnl_vanilla_rnn_forward_primitive_desc_create(&made, engine.get(), kind, activation(), both, x.get(), nullptr,
                                                              w.get(), r.get(), bias.get(), y.get(), state.get(), 0, 0.0f, 0.0f,
                                                              nullptr);
    return owned(made, status);
  }

  dnnl::primitive_desc_base describe_backward(const dnnl::primitive_desc_base& forward_pd) {
    const auto both = dnnl_bidirectional_concat;
    const auto flag = dnnl_rnn_flags_diff_weights_overwrite;
    // The same descriptions serve for weights and for their gradients.
    const memory::desc w = describe(weight, Tag::any), r = describe(recurrent, Tag::any);
    dnnl_primitive_desc_t made = nullptr;
    dnnl_status_t status;
    if (p.mode == kGru)
      status = dnnl_lbr_gru_backward_primitive_desc_create(
          &made, engine.get(), dnnl_backward, both, x.get(), nullptr, w.get(), r.get(), bias.get(), y.get(), state.get(),
          x.get(), nullptr, w.get(), r.get(), bias.get(), y.get(), state.get(), flag, forward_pd.get(), nullptr);
    else if (p.mode == kLstm)
      status = dnnl_lstm_backward_primitive_desc_create(
          &made, engine.get(), dnnl_backward, both, x.get(), nullptr, nullptr, w.get(), r.get(), nullptr, nullptr, bias.get(),
          y.get(), state.get(), state.get(), x.get(), nullptr, nullptr, w.get(), r.get(), nullptr, nullptr, bias.get(), y.get(),
          state.get(), state.get(), flag, forward_pd.get(), nullptr);
    else
      status = dnnl_vanilla_rnn_backward_primitive_desc_create(&made, engine.get(), dnnl_backward, activation(), both, x.get(),
                                                               nullptr, w.get(), r.get(), bias.get(), y.get(), state.get(),
                                                               x.get(), nullptr, w.get(), r.get(), bias.get(), y.get(),
                                                               state.get(), flag, 0.0f, 0.0f, forward_pd.get(), nullptr);
    return owned(made, status);
  }

  static dnnl::primitive_desc_base owned(dnnl_primitive_desc_t made, dnnl_status_t status) {
    dnnl::error::wrap_c_api(status, "oneDNN has no such RNN primitive");
    dnnl::primitive_desc_base pd;
    pd.reset(made);
    return pd;
  }

  void make_backward(const dnnl::primitive_desc_base& forward_pd) {
    const memory workspace(forward_pd.query_md(dnnl::query::workspace_md, 0), engine);
    forward.emplace(DNNL_ARG_WORKSPACE, workspace);

    dnnl::primitive_desc_base pd = describe_backward(forward_pd);
    backward_primitive = dnnl::primitive(pd.get());
    backward_weights = {held(pd, DNNL_ARG_WEIGHTS_LAYER, weight, p.weight),
                        held(pd, DNNL_ARG_WEIGHTS_ITER, recurrent, p.recurrent)};
    weight_gradients = {held(pd, DNNL_ARG_DIFF_WEIGHTS_LAYER, weight, p.d_weight, true),
                        held(pd, DNNL_ARG_DIFF_WEIGHTS_ITER, recurrent, p.d_recurrent, true)};
    backward = forward;  // memories are shared, so that the input of the last forward pass is this one's, too
    backward[DNNL_ARG_WEIGHTS_LAYER] = backward_weights[0].wanted;
    backward[DNNL_ARG_WEIGHTS_ITER] = backward_weights[1].wanted;
    backward.insert({{DNNL_ARG_DIFF_SRC_LAYER, memory(x, engine, p.d_x)},
                     {DNNL_ARG_DIFF_WEIGHTS_LAYER, weight_gradients[0].wanted},
                     {DNNL_ARG_DIFF_WEIGHTS_ITER, weight_gradients[1].wanted},
                     {DNNL_ARG_DIFF_BIAS, memory(bias, engine, p.d_bias)},
                     {DNNL_ARG_DIFF_DST_LAYER, memory(y, engine, p.d_output)},
                     {DNNL_ARG_DIFF_DST_ITER, memory(state, engine, p.d_h)}});
    if (p.mode == kLstm) backward.emplace(DNNL_ARG_DIFF_DST_ITER_C, memory(state, engine, p.d_c));
  }

  Problem p;
  dnnl::engine engine;
  dnnl::stream stream;
  memory::desc x, y, state, bias;
  memory::dims weight, recurrent;
  dnnl::primitive forward_primitive, backward_primitive;
  Pass forward, backward;
  std::vector<Weight> forward_weights, backward_weights, weight_gradients;
};

std::string failure;

// 0, or 1 with `failure` set: no exception may cross into C.
template <class Function>
int guarded(Function function) {
  try {
    function();
    return 0;
  } catch (const std::exception& error) {
    failure = error.what();
    return 1;
  }
}

}  // namespace

extern "C" {

const char* peer_failure() { return failure.c_str(); }

int peer_create(const Problem* problem, void** layer) {
  return guarded([&] { *layer = new Layer(*problem); });
}
int peer_forward(void* layer, float* input) {
  return guarded([&] { static_cast<Layer*>(layer)->run_forward(input); });
}
int peer_backward(void* layer) {
  return guarded([&] { static_cast<Layer*>(layer)->run_backward(); });
}
void peer_destroy(void* layer) { delete static_cast<Layer*>(layer); }
}
