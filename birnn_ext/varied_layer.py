"""One layer whose variants act inside the step: recurrent dropout, zoneout, layer normalisation.

    step t, state (h, c)     gates from W_hh (mask * h) (recurrent dropout: one mask per row and direction)
                             LN(W_ih x), LN(W_hh h)     (layer_norm; LSTM also LN(c') before the output tanh)
                             h' <- zone h + (1 - zone) h'    c' likewise

It is computed by `reference.layer` with a step of its own (`compute`), in plain differentiable PyTorch. While
torch.compile or torch.export looks on, that would unroll time into the graph; then the same function runs inside an
op, `torch.ops.birnn_ext.varied_layer`, whose gradient is a second op that computes the layer again. The ops draw no
random numbers: masks come in from outside.
Not here: variants that change only weights or outputs, and the checks of arguments (variants.py).
"""

import functools

import torch
from torch.autograd import forward_ad
from torch.nn.functional import dropout, layer_norm, linear

from . import ops, reference

INSIDE = ("recurrent_dropout", "zoneout", "layer_norm")  # the variants of this file
_WEIGHTS = 9  # of a direction: those of a plain layer, then gain_ih, gain_hh, gain_c, bias_c; None where there is none


def layer(input, h0, c0, lengths, weights, *, mode, batch_first, variant, training, every_c=False):
    """One layer with all its directions; differentiable any number of times.

    Args:
        input, h0, c0, lengths, mode, batch_first: as in :func:`birnn_ext.ops.layer`.
        weights: D tuples as in :func:`birnn_ext.ops.layer`, each followed, with layer_norm, by ``gain_ih [G*H],
            gain_hh [G*H]`` and, for LSTM, ``gain_c [H]`` and maybe ``bias_c [H]``.
        variant: a :class:`birnn_ext.variants.Variant`; of interest are recurrent_dropout and zoneout.
        training: whether recurrent dropout and zoneout draw, from torch's generator of the input's device.
        every_c: whether c of every step is wanted; LSTM only.

    Returns:
        output, h_n, c_n as in :func:`birnn_ext.ops.layer`; with ``every_c`` c [T, B, D*H] ([B, T, D*H]) as fourth.

    Raises:
        RuntimeError: torch.jit.trace is at work, which would record the steps of its example.
    """
    if torch.jit.is_tracing():
        asked = ", ".join(name for name in variant.on if name in INSIDE) or "reset or return_states"
        raise RuntimeError(f"birnn_ext: torch.jit.trace cannot record a layer with {asked} for every T: use torch.export")
    weights = tuple((*held, *(None,) * (_WEIGHTS - len(held))) for held in weights)
    masks = _draw(input, weights, mode, batch_first, variant, training)
    tensors = (input, h0, c0, lengths, *weights[0], *(weights[1] if len(weights) == 2 else (None,) * _WEIGHTS))
    tensors += masks
    if not torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return _run(tensors, mode, batch_first, every_c)
    if ops._differentiable(*tensors):
        output, h_n, c_n, c = Varied.apply(mode, batch_first, every_c, *tensors)
    else:
        output, h_n, c_n, c = torch.ops.birnn_ext.varied_layer(tensors, mode, batch_first, every_c)
    results = output, h_n, c_n if mode == "LSTM" else None
    return (*results, c) if every_c else results


def _draw(input, weights, mode, batch_first, variant, training):
    """(drop_h [D, B, P] | None, zone_h [D, T, B, P] | None, zone_c [D, T, B, H] | None): factors, and shares of the old.

    Outside training the shares are the expectation, [D, T, 1, 1].
    """
    B, T = input.shape[:2] if batch_first else (input.size(1), input.size(0))
    D, P = len(weights), weights[0][1].size(1)
    H = weights[0][1].size(0) // ops.GATES[mode]
    # Not input.new_...: under vmap those are mapped too, and then every sample draws for itself, asked or not.
    like = {"dtype": input.dtype, "device": input.device}
    drop_h = None
    if training and "recurrent_dropout" in variant.on:
        drop_h = dropout(torch.ones(D, B, P, **like), variant.recurrent_dropout)
    zones = []
    for zone, width in zip(variant.zones(mode), (P, H), strict=True):
        if zone == 0:
            zones.append(None)
        elif training:
            zones.append(torch.bernoulli(torch.full((D, T, B, width), zone, **like)))
        else:
            zones.append(torch.full((D, T, 1, 1), zone, **like))
    return drop_h, *zones


# ------------------------------------------------------------------------------------------ in plain PyTorch


def compute(input, h0, c0, lengths, weights, drop_h, zone_h, zone_c, *, mode, batch_first, every_c=False):
    """The layer as a function of tensors alone: weights are D tuples of nine, masks as :func:`_draw` makes them."""

    def direction(d, input, held, mode):
        w_ih, w_hh, b_ih, b_hh, w_hr, gain_ih, gain_hh, gain_c, bias_c = held
        cell = reference.CELLS[mode]
        if gain_c is not None:
            cell = functools.partial(cell, shown=lambda c: layer_norm(c, c.shape[-1:], gain_c, bias_c))
        zones = [z if z is None else z[d] for z in (zone_h, zone_c)]

        def step(t, x, state):
            h = state[0] if drop_h is None else state[0] * drop_h[d]
            new = cell(x, _affine(h, w_hh, b_hh, gain_hh), state)
            if w_hr is not None:
                new = (linear(new[0], w_hr), *new[1:])
            # lerp, since it is exact where the share is 0 or 1.
            parts = zip(new, state, zones[: len(new)], strict=True)
            return tuple(now if zone is None else torch.lerp(now, old, zone[t]) for now, old, zone in parts)

        return _affine(input, w_ih, b_ih, gain_ih), step

    return reference.layer(
        input, h0, c0, lengths, weights, mode=mode, batch_first=batch_first, direction=direction, every_c=every_c
    )


def _affine(x, weight, bias, gain):
    if gain is None:
        return linear(x, weight, bias)
    normal = layer_norm(linear(x, weight), gain.shape, gain)
    return normal if bias is None else normal + bias


# ---------------------------------------------------------------------------------------- while compiling


def _run(tensors, mode, batch_first, every_c):
    """`compute` on the 25 tensors in the order that the op takes them."""
    n = _WEIGHTS
    first, second, masks = tensors[4 : 4 + n], tensors[4 + n : 4 + 2 * n], tensors[4 + 2 * n :]
    weights = (first,) if second[0] is None else (first, second)
    return compute(*tensors[:4], weights, *masks, mode=mode, batch_first=batch_first, every_c=every_c)


def _op(tensors, mode, batch_first, every_c):
    output, h_n, c_n, *c = _run(tensors, mode, batch_first, every_c)
    nothing = output.new_empty(0)
    # The strides are promised by the fake below.
    return output.contiguous(), h_n, nothing if c_n is None else c_n, c[0].contiguous() if c else output.new_empty(0)


def _op_fake(tensors, mode, batch_first, every_c):
    input, w_hh, w_hr, reverse = tensors[0], tensors[5], tensors[8], tensors[4 + _WEIGHTS]
    D, lead = 1 if reverse is None else 2, input.shape[:2]
    H, P = w_hh.shape[0] // ops.GATES[mode] if w_hr is None else w_hr.shape[1], w_hh.shape[1]
    B = lead[0] if batch_first else lead[1]
    return (
        input.new_empty((*lead, D * P)),
        input.new_empty((D, B, P)),
        input.new_empty((D, B, H) if mode == "LSTM" else (0,)),
        input.new_empty((*lead, D * H) if every_c else (0,)),
    )


def _op_backward(grads, tensors, wanted, mode, batch_first, every_c):
    # An op runs below autograd, and inside a dispatch mode (FlopCounterMode, selective checkpointing) autograd is
    # switched off for good there: here it is needed again.
    keys = torch._C._dispatch_tls_local_exclude_set().remove(torch._C.DispatchKey.AutogradFunctionality)
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), keys), torch.enable_grad():
        held = [t.detach().requires_grad_() if want else t for t, want in zip(tensors, wanted, strict=True)]
        results = _run(held, mode, batch_first, every_c)
        given = [i for i, g in enumerate(grads) if g is not None]
        leaves = [t for t, want in zip(held, wanted, strict=True) if want]
        outs, cotangents = [results[i] for i in given], [grads[i] for i in given]
        found = iter(torch.autograd.grad(outs, leaves, cotangents, materialize_grads=True))
    return [next(found).contiguous() if want else tensors[0].new_empty(0) for want in wanted]


def _op_backward_fake(grads, tensors, wanted, mode, batch_first, every_c):
    return [tensors[0].new_empty(t.shape if want else (0,)) for t, want in zip(tensors, wanted, strict=True)]


_SETTINGS = "str mode, bool batch_first, bool every_c"
_OPS = torch.library.Library("birnn_ext", "FRAGMENT")
_OPS.define(f"varied_layer(Tensor?[] tensors, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor)")
_OPS.define(f"varied_layer_backward(Tensor?[] grads, Tensor?[] tensors, bool[] wanted, {_SETTINGS}) -> Tensor[]")
for _name, _kernel, _fake in (
    ("varied_layer", _op, _op_fake),
    ("varied_layer_backward", _op_backward, _op_backward_fake),
):
    _OPS.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"birnn_ext::{_name}", _fake, lib=_OPS)


class Varied(torch.autograd.Function):
    """The op and its gradient: (mode, batch_first, every_c, 25 tensors)."""

    @staticmethod
    def forward(mode, batch_first, every_c, *tensors):
        return torch.ops.birnn_ext.varied_layer(tensors, mode, batch_first, every_c)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.settings = inputs[:3]
        ctx.save_for_backward(*inputs[3:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        mode, _, every_c = ctx.settings
        present = (True, True, mode == "LSTM", every_c)  # the others have no elements
        grads = [g if there else None for g, there in zip(grads, present, strict=True)]
        wanted = list(ctx.needs_input_grad[3:])
        found = torch.ops.birnn_ext.varied_layer_backward(grads, ctx.saved_tensors, wanted, *ctx.settings)
        return None, None, None, *(g if want else None for g, want in zip(found, wanted, strict=True))
