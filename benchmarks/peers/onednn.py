"""oneDNN's RNN primitives, called directly, as a contender: vanilla_rnn, lbr_gru (torch.nn's GRU) and lstm, in inference
and training. float32 on a CPU, rows of equal length, any number of layers. What must be installed: onednn_library.py. The
contract is in ../contenders.py.

What oneDNN is given: primitives and buffers made beforehand; in inference the weights in the layout that it likes best; in
training its plain layout, in which it returns gradients too, so that only the reorders that it asks for belong to the step.
The step has no autograd: out_grad and state_grad are handed to it as the gradients that they are.
"""

import ctypes

import torch

from ..contenders import Contender
from . import onednn_library

# As in onednn.cpp.
KIND = {"RNN_TANH": 0, "RNN_RELU": 1, "GRU": 2, "LSTM": 3}
# Block k of oneDNN's weights is block ORDER[mode][k] of torch's: u r o against r z n, and i f c o, which is torch's.
ORDER = {"GRU": (1, 0, 2), "LSTM": (0, 1, 2, 3), "RNN_TANH": (0,), "RNN_RELU": (0,)}
BUFFERS = "weight recurrent bias output h c d_weight d_recurrent d_bias d_output d_h d_c d_x".split()


class OneDnnProblem(ctypes.Structure):
    """Problem of onednn.cpp."""

    _fields_ = (
        [(name, ctypes.c_int) for name in ("mode", "training", "threads")]
        + [(name, ctypes.c_long) for name in "TBIH"]
        + [(name, ctypes.c_void_p) for name in BUFFERS]
    )


class OneDnn(Contender):
    name = "onednn"

    @property
    def own_threads(self):
        return not onednn_library.shares_threads()

    def why_not(self, case):
        if case.ragged or (case.dtype, case.device) != ("float32", "cpu"):
            return "takes part with equal lengths and float32 on the CPU only"
        try:
            onednn_library.load()
        except onednn_library.Missing as missing:
            return str(missing)
        return None

    def version(self):
        return onednn_library.version(onednn_library.find()[0])

    def prepare(self, problem):
        self.problem = problem
        self.layers = [Layer(problem, k) for k in range(problem.case.shape.L)]
        *below, last = self.layers
        if problem.case.training:
            last.tensors["d_output"].copy_(problem.out_grad)
            for k, layer in enumerate(below):
                layer.tensors["d_output"] = self.layers[k + 1].tensors["d_x"]
        for layer in self.layers:
            layer.create()

    def run(self, i):
        x = self.problem.inputs[i]
        for layer in self.layers:
            x = layer.forward(x)
        if self.problem.case.training:
            for layer in reversed(self.layers):
                layer.backward()
        return x, tuple(layer.tensors[name] for layer in self.layers for name in layer.states)

    def results(self, i):
        found = {"output": self.run(i)[0].clone()}
        for name in self.layers[0].states:
            found[f"{name}_n"] = torch.cat([layer.tensors[name] for layer in self.layers])
        if self.problem.case.training:
            found["gradient of input"] = self.layers[0].tensors["d_x"].clone()
            for layer in self.layers:
                found |= {f"gradient of {name}": gradient for name, gradient in layer.gradients()}
        return found


class Layer:
    """Layer k of a problem: its tensors in oneDNN's layout, by the names in BUFFERS, and the primitives."""

    def __init__(self, problem, k):
        case, shape = problem.case, problem.case.shape
        self.case, self.k, self.order = case, k, list(ORDER[case.mode])
        self.states = ("h", "c") if case.mode == "LSTM" else ("h",)
        self.input_size = I = shape.I if k == 0 else 2 * shape.H  # noqa: E741
        T, B, H = shape.T, shape.B, shape.H
        weight, recurrent, b_ih, b_hh = (self._both(problem, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        if case.mode == "GRU":  # n keeps a bias inside the product with r: a fourth block
            bias = torch.cat([b_ih + b_hh, b_hh[:, 2:]], dim=1)
            bias[:, 2] = b_ih[:, 2]
        else:
            bias = b_ih + b_hh
        self.tensors = {
            "weight": weight.permute(0, 3, 1, 2).contiguous(),
            "recurrent": recurrent.permute(0, 3, 1, 2).contiguous(),
            "bias": bias.contiguous(),
            "output": torch.empty(T, B, 2 * H),
        }
        self.tensors |= {name: torch.empty(2, B, H) for name in self.states}
        if case.training:
            self.tensors |= {f"d_{name}": torch.zeros_like(tensor) for name, tensor in self.tensors.items()}
            self.tensors["d_x"] = torch.empty(T, B, I)
            for name in self.states:
                self.tensors[f"d_{name}"].copy_(problem.state_grad[2 * k : 2 * k + 2])

    def _both(self, problem, name):
        """[2, G, H, ...]: a weight of both directions, gates in oneDNN's order."""
        pair = torch.stack([problem.weights[f"{name}_l{self.k}{suffix}"] for suffix in ("", "_reverse")])
        return pair.unflatten(1, (-1, self.case.shape.H))[:, self.order]

    def create(self):
        """Makes the primitives, which keep the addresses of all tensors."""
        shape = self.case.shape
        sizes = (self.case.threads, shape.T, shape.B, self.input_size, shape.H)
        pointers = (self.tensors[name].data_ptr() if name in self.tensors else None for name in BUFFERS)
        problem = OneDnnProblem(KIND[self.case.mode], self.case.training, *sizes, *pointers)
        self.handle = ctypes.c_void_p()
        self.library = onednn_library.load()
        self._ask(self.library.peer_create(ctypes.byref(problem), ctypes.byref(self.handle)))

    def forward(self, x):
        self.input = x  # backward reads it again
        self._ask(self.library.peer_forward(self.handle, ctypes.c_void_p(x.data_ptr())))
        return self.tensors["output"]

    def backward(self):
        self._ask(self.library.peer_backward(self.handle))

    def _ask(self, status):
        if status:
            raise RuntimeError(f"oneDNN: {self.library.peer_failure().decode()}")

    def __del__(self):
        if getattr(self, "handle", None):
            self.library.peer_destroy(self.handle)

    def gradients(self):
        """(torch's name, gradient in torch's layout) of every weight."""
        back = [self.order.index(gate) for gate in range(len(self.order))]
        weight, recurrent, bias = (self.tensors[f"d_{name}"] for name in ("weight", "recurrent", "bias"))
        b_ih = b_hh = bias[:, back]
        if self.case.mode == "GRU":
            b_hh = torch.cat([b_ih[:, :2], bias[:, 3:]], dim=1)
        in_torch = {
            "weight_ih": weight.permute(0, 2, 3, 1)[:, back],
            "weight_hh": recurrent.permute(0, 2, 3, 1)[:, back],
            "bias_ih": b_ih,
            "bias_hh": b_hh,
        }
        for name, pair in in_torch.items():
            for suffix, gradient in zip(("", "_reverse"), pair, strict=True):
                yield f"{name}_l{self.k}{suffix}", gradient.flatten(0, 1).clone()
