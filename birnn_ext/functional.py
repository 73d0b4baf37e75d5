"""The stack of layers: layer, dropout, layer, with states in torch.nn's order.

It knows neither modules nor argument errors (`birnn_ext.module`), nor how a layer is computed
(`birnn_ext.ops`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from . import ops
from .autograd import under_autocast, without_autocast


def birnn(
    input: Tensor,
    hx: Any,
    lengths: Tensor | None,
    weights: tuple[tuple[ops.Weights, ...], ...],
    *,
    mode: str,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    recompute: bool = False,
    layer: Callable | None = None,
    computed: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Any]:
    """Runs L stacked recurrent layers of D directions each.

    Args:
        input: [T, B, I], or [B, T, I] with ``batch_first``.
        hx: None for zeros; h_0 [L*D, B, P]; for LSTM the pair ``(h_0, c_0)`` with c_0 [L*D, B, H]. Row ``l*D
            + d`` belongs to direction d of layer l.
        lengths: int64 [B] on the input's device, each 0..T, or None.
        weights: L tuples of D tuples ``(w_ih, w_hh, b_ih | None, b_hh | None, w_hr | None)``; shapes as in
            :func:`birnn_ext.reference.layer`.
        mode: ``"RNN_TANH"``, ``"RNN_RELU"``, ``"LSTM"`` or ``"GRU"``.
        dropout: probability with which an output of every layer but the last is zeroed, while ``training``.
        recompute: keep only inputs and outputs of the layers for backward, which computes the gates once more. GRU keeps
            a fifth then, LSTM a sixth, of what it keeps else; a training step takes a quarter to a third longer.
        layer: what computes one layer, called and answering as :func:`birnn_ext.ops.layer`, which it is by default.
        computed: what a `layer` that is given computes in on the CPU, under autocast or where tensors are halves.

    Returns:
        output [T, B, D*P] ([B, T, D*P]); h_n [L*D, B, P]; c_n [L*D, B, H] for LSTM, else None.

    Source: torch.nn.RNN, GRU and LSTM in PyTorch 2.13.
    """
    dtypes = ops.converted(input, mode, computed=None if layer is None else computed)
    options = mode, batch_first, dropout if training else 0.0, recompute, layer
    if dtypes is None:
        return _stack(input, hx, lengths, weights, *options)
    if not under_autocast(input):
        _check_dtypes((hx, weights), input.dtype)
    with without_autocast(input):
        input, hx, weights = cast((input, hx, weights), dtypes[0])
        return cast(_stack(input, hx, lengths, weights, *options), dtypes[1])


def cast(value: Any, dtype: torch.dtype) -> Any:
    """A tensor, None, or a nest of tuples of such, in this dtype."""
    if isinstance(value, (tuple, list)):
        return tuple([cast(part, dtype) for part in value])
    return None if value is None else value.to(dtype)


def _check_dtypes(value, dtype):
    """What the kernels check by themselves where nothing is converted for them."""
    if isinstance(value, (tuple, list)):
        for part in value:
            _check_dtypes(part, dtype)
    elif value is not None and value.dtype != dtype:
        raise RuntimeError(f"expected all states and weights to have dtype {dtype}, that of input, got {value.dtype}")


def _stack(input, hx, lengths, weights, mode, batch_first, dropout, recompute, compute):
    in_place = compute is None and len(weights) > 1 and ops.in_place(input)
    compute = compute or partial(ops.layer, recompute=recompute)
    h0, c0 = hx if mode == "LSTM" and hx is not None else (hx, None)
    if len(weights) == 1:
        return compute(input, h0, c0, lengths, weights[0], mode=mode, batch_first=batch_first)
    D = len(weights[0])
    none = (None,) * len(weights)
    h0 = none if h0 is None else h0.split(D)
    c0 = none if c0 is None else c0.split(D)
    # In eager mode each layer writes its final states to their place among those of all layers.
    h_n, c_n = _room_for_states(input.size(0 if batch_first else 1), weights, mode, input) if in_place else ([], [])
    for layer, directions in enumerate(weights):
        if layer > 0 and dropout > 0:
            input = drop(input, dropout)
        into = {"states": (layer * D, h_n, c_n)} if in_place else {}
        input, h, c = compute(input, h0[layer], c0[layer], lengths, directions, mode=mode, batch_first=batch_first, **into)
        if in_place:
            h_n, c_n = h, c
        else:
            h_n.append(h)
            c_n.append(c)
    return (input, h_n, c_n) if in_place else (input, torch.cat(h_n), torch.cat(c_n) if mode == "LSTM" else None)


def _room_for_states(B, weights, mode, like):
    """h_n [L*D, B, P] and, for LSTM, c_n [L*D, B, H], uninitialised."""
    _, w_hh, _, _, w_hr = weights[0][0]
    rows = len(weights) * len(weights[0])
    h_n = like.new_empty(rows, B, w_hh.size(1))
    return h_n, like.new_empty(rows, B, (w_hh if w_hr is None else w_hr).size(1)) if mode == "LSTM" else None
