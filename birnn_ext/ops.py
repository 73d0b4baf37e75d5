"""The layer as one differentiable call: `layer(...)`, the compiled ops below it, and their derivatives.

`torch.ops.birnn_ext.layer` and `.layer_backward` (csrc/ops.cpp) know nothing of autograd. Around them stand two Python
`autograd.Function`s, which is the one wiring that eager mode, torch.compile, torch.export and torch.func all accept:

    layer()  ->  Layer          forward:  ops.layer            backward:  LayerBackward
                 LayerBackward  forward:  ops.layer_backward   backward:  derivative of reference.layer's gradient

Second and higher derivatives therefore run through `reference.py`, as do devices and dtypes that have no kernel.
Not here: several layers, dropout, argument errors of the module (functional.py, module.py).
"""

import warnings

import torch
from torch.autograd import forward_ad

from . import reference

try:
    from . import _C  # noqa: F401  loading it registers the ops
except ImportError as error:
    _C = None
    warnings.warn(
        f"birnn_ext: its compiled library could not be loaded ({error}), so every layer runs on the slow reference path. "
        "Install with `pip install --no-build-isolation .` against the torch that is in use.",
        stacklevel=2,
    )

KERNEL_DEVICES = ("cpu", "meta")
KERNEL_DTYPES = (torch.float32, torch.float64)
_NO_WEIGHTS = (None,) * 5


def has_kernel(input):
    """Whether tensors of this device and dtype have a compiled kernel; if not, `reference.layer` computes them."""
    return _C is not None and input.device.type in KERNEL_DEVICES and input.dtype in KERNEL_DTYPES


def layer(input, h0, c0, lengths, weights, *, mode, batch_first=False):
    """One recurrent layer with all its directions, differentiable any number of times.

    Args:
        input: [T, B, I] ([B, T, I] if batch_first), any strides.
        h0: [D, B, P] or None for zeros; row d is where direction d starts: the forward direction at t = 0, the reverse
            direction at each row's own last step.
        c0: [D, B, H] or None for zeros; LSTM only.
        lengths: int64 [B] on the input's device, each 0..T, or None: all are T.
        weights: one tuple per direction, (w_ih [G*H, I], w_hh [G*H, P], b_ih [G*H] or None, b_hh [G*H] or None,
            w_hr [P, H] or None), in torch.nn's layout.
        mode: "RNN_TANH", "RNN_RELU", "LSTM" or "GRU".
        batch_first: whether input and output have the batch dimension first.

    Returns:
        output [T, B, D*P] ([B, T, D*P]), forward direction first, zero beyond the lengths; h_n [D, B, P]; c_n [D, B, H] for
        LSTM, else None.

    Raises:
        RuntimeError: a rank, shape, dtype or device does not fit; the message names the argument.
        ValueError: an unknown mode, or a length out of range.
    """
    if not has_kernel(input):
        return reference.layer(input, h0, c0, lengths, weights, mode=mode, batch_first=batch_first)
    flat = weights[0] + (weights[1] if len(weights) == 2 else _NO_WEIGHTS)
    if _differentiable(input, h0, c0, *flat):
        output, h_n, c_n, _ = Layer.apply(mode, batch_first, input, h0, c0, lengths, *flat)
    else:
        output, h_n, c_n, _ = torch.ops.birnn_ext.layer(input, h0, c0, lengths, *flat, mode, batch_first, False)
    return output, h_n, c_n if mode == "LSTM" else None


def _differentiable(*tensors):
    """Whether somebody watches: autograd, a torch.func transform, or forward-mode AD."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


class Layer(torch.autograd.Function):
    """The op and its gradient. Inputs: mode, batch_first, input, h0, c0, lengths, five weights of each direction."""

    @staticmethod
    def forward(mode, batch_first, input, h0, c0, lengths, *flat):
        return torch.ops.birnn_ext.layer(input, h0, c0, lengths, *flat, mode, batch_first, True)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.mode, ctx.batch_first, *tensors = inputs
        output, _, _, saved = outputs
        ctx.save_for_backward(*tensors, output, saved)
        ctx.mark_non_differentiable(saved)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_output, grad_h_n, grad_c_n, _):
        if ctx.mode != "LSTM":
            grad_c_n = None  # c_n has no elements then
        need_input, needs = ctx.needs_input_grad[2], ctx.needs_input_grad
        arguments = (grad_output, grad_h_n, grad_c_n, *ctx.saved_tensors[:-2], ctx.mode, ctx.batch_first)
        arguments += (*ctx.saved_tensors[-2:], need_input, any(needs[6:]))
        if torch.is_grad_enabled():
            gradients = LayerBackward.apply(*arguments)
        else:
            gradients = torch.ops.birnn_ext.layer_backward(*arguments)
        grad_input, grad_h0, grad_c0, *grad_weights = gradients
        gradients = (None, None, grad_input, grad_h0, grad_c0, None, *grad_weights)
        return tuple(g if need else None for g, need in zip(gradients, needs, strict=True))


class LayerBackward(torch.autograd.Function):
    """The backward op and its own derivative. Inputs: the arguments of torch.ops.birnn_ext.layer_backward, in its order."""

    @staticmethod
    def forward(*arguments):
        return torch.ops.birnn_ext.layer_backward(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        # The three incoming gradients and the fourteen tensors of the layer; `output` and `saved` are functions of these.
        ctx.save_for_backward(*inputs[:17])
        ctx.mode, ctx.batch_first = inputs[17:19]
        ctx.need_input, ctx.need_weights = inputs[21:23]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grad_gradients):
        tensors = ctx.saved_tensors
        lengths = tensors[6]
        watched = [i for i, t in enumerate(tensors) if t is not None and i != 6]
        # A gradient that the op left out (no such tensor, or not wanted) has no elements, and no derivative.
        wanted = [i for i, g in enumerate(grad_gradients) if g is not None]
        position = [3, 4, 5, *range(7, 17)]  # of the tensor that gradient i belongs to
        wanted = [i for i in wanted if tensors[position[i]] is not None]

        def gradients(*values):
            full = [None] * 17
            for i, value in zip(watched, values, strict=True):
                full[i] = value
            return _reference_gradients(full, lengths, ctx.mode, ctx.batch_first, [position[i] for i in wanted])

        if not wanted:
            return (None,) * 23
        _, pullback = torch.func.vjp(gradients, *(tensors[i] for i in watched))
        result = [None] * 23
        for i, g in zip(watched, pullback(tuple(grad_gradients[i] for i in wanted)), strict=True):
            result[i] = g
        return tuple(result)


def _reference_gradients(tensors, lengths, mode, batch_first, wanted):
    """Gradients of reference.layer for the tensors at the positions `wanted`, as a differentiable function of all tensors."""
    cotangents = tensors[:3]

    def outputs(*values):
        full = list(tensors)
        for i, value in zip(wanted, values, strict=True):
            full[i] = value
        _, _, _, input, h0, c0, _, *flat = full
        weights = (tuple(flat[:5]),) if flat[5] is None else (tuple(flat[:5]), tuple(flat[5:]))
        results = reference.layer(input, h0, c0, lengths, weights, mode=mode, batch_first=batch_first)
        return tuple(r for r, g in zip(results, cotangents, strict=True) if g is not None)

    _, pullback = torch.func.vjp(outputs, *(tensors[i] for i in wanted))
    return pullback(tuple(g for g in cotangents if g is not None))


def _register_fakes():
    """Shapes of the results, for tensors without data: torch.compile, torch.export, the meta device."""

    def layer_fake(input, h0, c0, lengths, w_ih, w_hh, b_ih, b_hh, w_hr, *rest):
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
        weights, mode, batch_first, need_input, need_weights = rest[:10], rest[10], rest[11], rest[-2], rest[-1]
        B = input.shape[0] if batch_first else input.shape[1]
        D = 1 if weights[5] is None else 2
        H = weights[0].shape[0] // GATES[mode]
        P = H if weights[4] is None else weights[4].shape[0]
        grad_input = input.new_empty(input.shape if need_input else (0,))
        grad_h0 = input.new_empty((D, B, P))
        grad_c0 = input.new_empty((D, B, H) if mode == "LSTM" else (0,))
        return grad_input, grad_h0, grad_c0, *(
            input.new_empty(w.shape if need_weights and w is not None else (0,)) for w in weights
        )

    torch.library.register_fake("birnn_ext::layer", layer_fake)
    torch.library.register_fake("birnn_ext::layer_backward", backward_fake)


GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 3}
SAVED = {"RNN_TANH": 0, "RNN_RELU": 0, "LSTM": 5, "GRU": 4}  # values per unit and step; as in csrc/cells
if _C is not None:
    _register_fakes()
