"""The layer as one differentiable call: `layer(...)`, the compiled ops below it, and their derivatives.

`torch.ops.birnn_ext.layer` and `.layer_backward` (csrc/ops.cpp) know nothing of autograd. Around them stand the
Python `autograd.Function`s of autograd.py, which is the one wiring that eager mode, torch.compile, torch.export and
torch.func all accept; where no derivative is wanted the op is called directly. Devices and dtypes without a kernel
run through `reference.py`.
Not here: several layers, dropout, argument errors of the module (functional.py, module.py).
"""

import importlib
import warnings

import torch
from torch.autograd import forward_ad

from . import reference
from .autograd import Layer

try:
    _C = importlib.import_module("birnn_ext._C")  # loading it registers the ops
except ImportError as error:
    _C = None
    warnings.warn(
        f"birnn_ext: its compiled library could not be loaded ({error}), so every layer runs on the slow reference "
        "path. Install with `pip install --no-build-isolation .` against the torch that is in use.",
        stacklevel=2,
    )

KERNEL_DEVICES = ("cpu", "meta")
KERNEL_DTYPES = (torch.float32, torch.float64)
_NO_WEIGHTS = (None,) * 5


def has_kernel(input):
    """Whether tensors of this device and dtype have a compiled kernel; if not, the reference computes them."""
    return _C is not None and input.device.type in KERNEL_DEVICES and input.dtype in KERNEL_DTYPES


def layer(input, h0, c0, lengths, weights, *, mode, batch_first=False):
    """One recurrent layer with all its directions, differentiable any number of times.

    Args:
        input: [T, B, I] ([B, T, I] if batch_first), any strides.
        h0: [D, B, P] or None for zeros; row d is where direction d starts: the forward direction at t = 0, the
            reverse direction at each row's own last step.
        c0: [D, B, H] or None for zeros; LSTM only.
        lengths: int64 [B] on the input's device, each 0..T, or None: all are T.
        weights: one tuple per direction, (w_ih [G*H, I], w_hh [G*H, P], b_ih [G*H] or None, b_hh [G*H] or
            None, w_hr [P, H] or None), in torch.nn's layout.
        mode: "RNN_TANH", "RNN_RELU", "LSTM" or "GRU".
        batch_first: whether input and output have the batch dimension first.

    Returns:
        output [T, B, D*P] ([B, T, D*P]), forward direction first, zero beyond the lengths; h_n [D, B, P];
        c_n [D, B, H] for LSTM, else None.

    Raises:
        RuntimeError: a rank, shape, dtype or device does not fit; the message names the argument.
        ValueError: an unknown mode, or a length out of range.
    """
    if torch._C._is_any_autocast_enabled() and _under_autocast(input):
        return _autocast_layer(input, h0, c0, lengths, weights, mode, batch_first)
    # Forward-mode AD, also inside torch.func.jvp and jacfwd: the reference has derivatives of every kind.
    if not has_kernel(input) or forward_ad._current_level >= 0:
        return reference.layer(input, h0, c0, lengths, weights, mode=mode, batch_first=batch_first)
    flat = weights[0] + (weights[1] if len(weights) == 2 else _NO_WEIGHTS)
    if _differentiable(input, h0, c0, *flat):
        output, h_n, c_n, _ = Layer.apply(mode, batch_first, input, h0, c0, lengths, *flat)
    else:
        tensors = (input, h0, c0, lengths, *flat)
        output, h_n, c_n, _ = torch.ops.birnn_ext.layer(*tensors, mode, batch_first, False)
    return output, h_n, c_n if mode == "LSTM" else None


def _under_autocast(input):
    device = input.device.type  # "meta", for one, has no autocast, and asking for it is an error
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and input.dtype != torch.float64


def _autocast_layer(input, h0, c0, lengths, weights, mode, batch_first):
    """The layer under torch.autocast: computed in float32, with results of the dtype that torch.nn's have there."""
    device = input.device.type
    # As of torch 2.13: autocast on the CPU does not know GRU, whose results are then of the dtype of its input.
    dtype = input.dtype if mode == "GRU" and device == "cpu" else torch.get_autocast_dtype(device)
    input, h0, c0 = (t if t is None else t.float() for t in (input, h0, c0))
    weights = tuple(tuple(w if w is None else w.float() for w in direction) for direction in weights)
    with torch.autocast(device, enabled=False):
        results = layer(input, h0, c0, lengths, weights, mode=mode, batch_first=batch_first)
    return tuple(r if r is None else r.to(dtype) for r in results)


def _differentiable(*tensors):
    """Whether somebody watches: autograd, or a torch.func transform."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return torch._C._are_functorch_transforms_active()


def _register_fakes():
    """Shapes of the results, for tensors without data: torch.compile, torch.export, the meta device."""

    def layer_fake(input, h0, c0, lengths, w_ih, w_hh, b_ih, b_hh, w_hr, *rest):
        # One meta tensor among others is enough to bring a call here; it would get uninitialised memory back.
        given = (h0, c0, lengths, w_ih, w_hh, b_ih, b_hh, w_hr, *rest[:5])
        for name, t in zip(TENSORS, given, strict=True):
            if t is not None and t.device != input.device:
                raise RuntimeError(f"{name}: expected device {input.device}, that of input, got {t.device}")
        w_ih_reverse, mode, batch_first, train = rest[0], *rest[-3:]
        B, T = (input.shape[0], input.shape[1]) if batch_first else (input.shape[1], input.shape[0])
        D = 1 if w_ih_reverse is None else 2
        H = w_ih.shape[0] // GATES[mode]
        P = H if w_hr is None else w_hr.shape[0]
        output = input.new_empty((B, T, D * P) if batch_first else (T, B, D * P))
        h_n = input.new_empty((D, B, P))
        c_n = input.new_empty((D, B, H) if mode == "LSTM" else (0,))
        saved = input.new_empty((D, T, B, SAVED[mode], H) if train else (0,))
        return output, h_n, c_n, saved

    def backward_fake(grad_output, grad_h_n, grad_c_n, input, h0, c0, lengths, *rest):
        weights, (mode, batch_first), (need_input, need_weights) = rest[:10], rest[10:12], rest[-2:]
        B = input.shape[0] if batch_first else input.shape[1]
        D = 1 if weights[5] is None else 2
        H = weights[0].shape[0] // GATES[mode]
        P = H if weights[4] is None else weights[4].shape[0]
        grad_input = input.new_empty(input.shape if need_input else (0,))
        grad_h0 = input.new_empty((D, B, P))
        grad_c0 = input.new_empty((D, B, H) if mode == "LSTM" else (0,))
        return (
            grad_input,
            grad_h0,
            grad_c0,
            *(input.new_empty(w.shape if need_weights and w is not None else (0,)) for w in weights),
        )

    torch.library.register_fake("birnn_ext::layer", layer_fake)
    torch.library.register_fake("birnn_ext::layer_backward", backward_fake)


# The tensors of the ops behind `input`, as csrc/ops.cpp names them.
_WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")
TENSORS = ("h0", "c0", "lengths", *_WEIGHTS, *(f"{name}_reverse" for name in _WEIGHTS))
GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 3}
SAVED = {"RNN_TANH": 0, "RNN_RELU": 0, "LSTM": 5, "GRU": 4}  # values per unit and step; as in csrc/cells
if _C is not None:
    _register_fakes()
