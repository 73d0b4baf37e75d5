"""Models with our layers as ONNX files: each layer becomes the standard RNN, GRU or LSTM node.

`torch.onnx.export(dynamo=True)` does the work; this file tells it what our op is in ONNX. Needs the packages onnx and
onnxscript, when it is called, not before. Not here: how other libraries run the file.

ONNX lays out what torch.nn lays out otherwise:

                torch.nn, birnn_ext                       ONNX
    gates       GRU r z n,  LSTM i f g o                  GRU z r n,  LSTM i o f g
    weights     one tensor per direction                  both directions in one [D, G*H, I], [D, G*H, H], [D, 2*G*H]
    output      [T, B, D*H] or [B, T, D*H]                [T, D, B, H]
    GRU's reset behind the recurrent product, always      linear_before_reset=1
"""

import os
from typing import Any

import torch

from . import ops
from .base import RNNBase
from .prepack import Prepacked

GATE_ORDER = {"RNN_TANH": (0,), "RNN_RELU": (0,), "GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}


def onnx_export(
    model: torch.nn.Module,
    args: tuple = (),
    f: str | os.PathLike | None = None,
    *,
    custom_translation_table: dict | None = None,
    **options: Any,
) -> Any:
    """torch.onnx.export(dynamo=True) for a model with layers of ours.

    Args:
        model: any torch.nn.Module; export it in ``eval()`` mode.
        args, f, options: as torch.onnx.export takes them, `dynamic_shapes` for a dynamic T and B included.
        custom_translation_table: translations of further ops.

    Returns:
        torch.onnx.ONNXProgram, or None where a file name `f` is given and torch returns None.

    Raises:
        ValueError: a layer has what the standard nodes of ONNX cannot say (proj_size, or a variant inside the step), or is
            prepacked; the message names the layer.
        TypeError: `model` is no torch.nn.Module.
        ModuleNotFoundError: onnx or onnxscript is not installed.
        RuntimeError: the compiled library is missing.

    Example, which needs onnx and onnxscript:
        >>> import torch, birnn_ext
        >>> T, B = torch.export.Dim("T"), torch.export.Dim("B")
        >>> layer = birnn_ext.GRU(3, 4, bidirectional=True).eval()
        >>> x = torch.randn(5, 2, 3)
        >>> birnn_ext.onnx_export(layer, (x,), "gru.onnx", dynamic_shapes=({0: T, 1: B},))  # doctest: +SKIP

    Source: the operators RNN, GRU and LSTM of ONNX, opset 14 and later.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"onnx_export: model should be a torch.nn.Module, got {type(model).__name__}")
    for name, layer in model.named_modules():
        where = f"layer {name!r}" if name else "the layer"
        if isinstance(layer, RNNBase) and layer.variant is not None and layer.variant.inside(layer.training):
            asked = ", ".join(f"{key}={value!r}" for key, value in layer.variant.asked().items())
            raise ValueError(f"onnx_export: {where} has {asked}, for which ONNX has no node")
        if isinstance(layer, Prepacked):
            raise ValueError(f"onnx_export: {where} is prepacked: export the one that it was made of")
        if isinstance(layer, RNNBase) and layer.proj_size:
            raise ValueError(f"onnx_export: {where} has proj_size={layer.proj_size}, but ONNX has no LSTM with a projection")
    table = {**translation_table(), **(custom_translation_table or {})}
    return torch.onnx.export(model, args, f, dynamo=True, custom_translation_table=table, **options)


def translation_table():
    """What torch.onnx.export takes as custom_translation_table: {our op: what it is in ONNX}.

    Raises:
        ModuleNotFoundError: onnxscript is not installed.
        RuntimeError: the compiled library, which holds the op, is missing.
    """
    if ops._C is None:
        raise RuntimeError("onnx_export: the compiled library of birnn_ext is not there, and with it the op to be translated")
    from onnxscript import opset18 as op

    FLOAT, INT32, BFLOAT16 = 1, 6, 16  # onnx.TensorProto.*

    def layer(
        input, h0, c0, lengths, w_ih, w_hh, b_ih, b_hh, w_hr,
        w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse,
        mode: str, batch_first: bool, train: bool,
    ):  # fmt: skip
        """torch.ops.birnn_ext.layer -> (output, h_n, c_n, saved); anything stands for what the mode or inference has not."""
        if w_hr is not None:
            raise ValueError("proj_size: ONNX has no LSTM with a projection")
        if lengths is not None and len(lengths.shape) == 2:
            raise ValueError("reset: ONNX has no recurrent node that starts from zeros in the middle of a row")
        if train:
            raise ValueError("return_states: ONNX has no LSTM that hands out the c of every step")
        directions = [(w_ih, w_hh, b_ih, b_hh)]
        if w_ih_reverse is not None:
            directions.append((w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse))
        order = GATE_ORDER[mode]

        def gates(weight):
            if len(order) == 1:
                return weight
            H = weight.shape[0] // len(order)
            # Slice, not Split: torch's exporter then does all this on the weights once and for all.
            return op.Concat(*(op.Slice(weight, [g * H], [(g + 1) * H], [0]) for g in order), axis=0)

        def join(parts):
            """Both directions' parts in a new first dimension."""
            parts = [op.Unsqueeze(part, [0]) for part in parts]
            return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)

        biases = None
        if b_ih is not None and b_hh is not None:
            biases = join([op.Concat(gates(w[2]), gates(w[3]), axis=0) for w in directions])
        elif b_ih is not None or b_hh is not None:
            raise ValueError("b_ih, b_hh: ONNX has both or none")
        x = op.Transpose(input, perm=[1, 0, 2]) if batch_first else input
        steps = None if lengths is None else op.Cast(lengths, to=INT32)
        inputs: tuple[Any, ...]
        inputs = (x, join([gates(w[0]) for w in directions]), join([gates(w[1]) for w in directions]), biases, steps, h0, c0)
        # The nodes know bfloat16 from opset 22 on only.
        if input.dtype == BFLOAT16:
            inputs = tuple(t if t is None or t is steps else op.Cast(t, to=FLOAT) for t in inputs)
        attributes = {"direction": "forward" if len(directions) == 1 else "bidirectional", "hidden_size": w_hh.shape[1]}
        if mode == "LSTM":
            y, h_n, c_n = op.LSTM(*inputs, **attributes)
        elif mode == "GRU":
            y, h_n = op.GRU(*inputs[:-1], linear_before_reset=1, **attributes)
            c_n = op.Identity(h_n)
        else:
            activation = {"RNN_TANH": "Tanh", "RNN_RELU": "Relu"}[mode]
            y, h_n = op.RNN(*inputs[:-1], activations=[activation] * len(directions), **attributes)
            c_n = op.Identity(h_n)
        if input.dtype == BFLOAT16:
            y, h_n, c_n = (op.Cast(t, to=BFLOAT16) for t in (y, h_n, c_n))
        y = op.Transpose(y, perm=[2, 0, 1, 3] if batch_first else [0, 2, 1, 3])
        return op.Reshape(y, [0, 0, -1]), h_n, c_n, op.Identity(h_n)

    return {torch.ops.birnn_ext.layer.default: layer}
