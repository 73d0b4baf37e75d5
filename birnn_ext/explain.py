"""`explain`: the layout of a layer's weights, output and states, drawn with the sizes at hand.

It reads shapes and draws; it runs no layer, and hands nothing back but text. The helpers that cut tensors up by this
layout are in `birnn_ext.layout`.
"""

from __future__ import annotations

import html
import sys
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .base import RNNBase
from .ops import GATES

GATE_NAMES = {"RNN_TANH": "", "RNN_RELU": "", "GRU": "r z n", "LSTM": "i f g o"}
DIRECTIONS = ("forward", "reverse")


@dataclass(frozen=True)
class Sizes:
    """What the drawing needs to know; None for what nobody has said yet, which is then drawn as a letter."""

    layers: int
    directions: int
    features: int  # P: of the output, per direction
    mode: str | None = None
    inputs: int | None = None  # I
    hidden: int | None = None  # H
    bias: bool = True
    steps: int | None = None  # T
    batch: int | None = None  # B
    batch_first: bool = False
    unbatched: bool = False
    packed: bool = False
    cells: int | None = None  # features of c_n, where there is one


def explain(
    subject: nn.Module | tuple, *, steps: int | None = None, batch: int | None = None, batch_first: bool | None = None
) -> None:
    """Prints the layout of a layer or of its results, with the sizes at hand; in a notebook shows it in colour.

    Args:
        subject: a torch.nn.RNN, GRU or LSTM, or one of ours: draws weights, data flow, output and states. Or what such a
            layer has returned, ``(output, h_n)`` or ``(output, (h_n, c_n))``: draws those.
        steps, batch: T and B for the drawing of a layer; letters if None.
        batch_first: of results; by default it is found by the size of the batch in `h_n`.

    Raises:
        TypeError: `subject` is neither.
        ValueError: output and states that cannot be of one layer.

    >>> import torch, birnn_ext
    >>> gru = birnn_ext.GRU(3, 4, bidirectional=True)
    >>> birnn_ext.explain(gru(torch.randn(5, 2, 3)))
    output [T=5, B=2, 2*P=8]
                     0 .. 3         4 .. 7
      t = 0     |   forward    |   reverse *  |
      ...       |     ...      |     ...      |
      t = 4     |   forward *  |   reverse    |
      * what h_n holds: here the direction has read every step
      forward at t has read steps 0..t, reverse at t has read steps 4..t
    <BLANKLINE>
    h_n [L*D=2, B=2, P=4]
      row 0    layer 0, forward, after step t = 4    = output[4, :, :4]
      row 1    layer 0, reverse, after step t = 0    = output[0, :, 4:]
    """
    text = describe(subject, steps=steps, batch=batch, batch_first=batch_first)
    shell = sys.modules.get("IPython")
    session = shell.get_ipython() if shell else None
    if session is not None and hasattr(session, "kernel"):
        from IPython.display import HTML, display

        display(HTML(coloured(text)))
    else:
        print(text)


def describe(
    subject: nn.Module | tuple, *, steps: int | None = None, batch: int | None = None, batch_first: bool | None = None
) -> str:
    """What :func:`explain` prints, as a string; arguments and errors are the same."""
    if isinstance(subject, (nn.RNNBase, RNNBase)):
        if batch_first is not None:
            raise ValueError("batch_first should be None for a module, which knows it")
        s = _sizes_of_module(subject, steps, batch)
        return "\n\n".join([_title(subject), _weights(s), _flow(s), _output(s), _states(s)])
    if isinstance(subject, tuple) and len(subject) == 2:
        if steps is not None or batch is not None:
            raise ValueError("steps and batch should be None for results, which know them")
        s = _sizes_of_results(*subject, batch_first)
        return "\n\n".join([_output(s), _states(s)])
    raise TypeError(
        "subject should be an RNN, GRU or LSTM of torch.nn or birnn_ext, or the pair (output, h_n) that one returned, "
        f"got {type(subject).__name__}"
    )


def coloured(text: str) -> str:
    """The drawing as HTML: forward in one colour, reverse in another."""
    text = html.escape(text)
    for word, colour in zip(DIRECTIONS, ("#00798c", "#d1495b"), strict=True):
        text = text.replace(word, f'<span style="color:{colour};font-weight:600">{word}</span>')
    return f'<pre style="line-height:1.25;overflow-x:auto">{text}</pre>'


# --------------------------------------------------------------------------------------------- sizes


def _sizes_of_module(module, steps, batch):
    for name, value in (("steps", steps), ("batch", batch)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} should be a positive int, got {value!r}")
    return Sizes(
        layers=module.num_layers,
        directions=2 if module.bidirectional else 1,
        features=module.proj_size or module.hidden_size,
        mode=module.mode,
        inputs=module.input_size,
        hidden=module.hidden_size,
        bias=module.bias,
        steps=steps,
        batch=batch,
        batch_first=module.batch_first,
        cells=module.hidden_size if module.mode == "LSTM" else None,
    )


def _sizes_of_results(output, states, batch_first):
    h_n, c_n = states if isinstance(states, (tuple, list)) and len(states) == 2 else (states, None)
    packed = isinstance(output, PackedSequence)
    data = output.data if packed else output
    for name, value in (("output", data), ("h_n", h_n)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} should be a Tensor, got {type(value).__name__}")
    unbatched = not packed and data.dim() == 2
    if data.dim() not in (2, 3) or h_n.dim() != (2 if unbatched else 3) or not h_n.size(-1):
        raise ValueError(f"output and h_n should be of one layer, got shapes {tuple(data.shape)} and {tuple(h_n.shape)}")
    P = h_n.size(-1)
    D, rest = divmod(data.size(-1), P)
    if rest or D not in (1, 2) or h_n.size(0) % D:
        raise ValueError(
            f"output should have one or two times the {P} features of h_n, and h_n as many rows for every layer, "
            f"got shapes {tuple(data.shape)} and {tuple(h_n.shape)}"
        )
    B = None if unbatched else h_n.size(1)
    if packed:
        T, batch_first = output.batch_sizes.size(0), False
    elif unbatched:
        T, batch_first = data.size(0), False
    else:
        if batch_first is None:
            batch_first = data.size(1) != B
        if data.size(0 if batch_first else 1) != B:
            raise ValueError(f"output should have the {B} rows of h_n, got shape {tuple(data.shape)}")
        T = data.size(1 if batch_first else 0)
    cells = None if c_n is None else c_n.size(-1)
    return Sizes(
        layers=h_n.size(0) // D, directions=D, features=P, steps=T, batch=B,
        batch_first=batch_first, unbatched=unbatched, packed=packed, cells=cells,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ drawings


def _named(letter, value):
    return letter if value is None else f"{letter}={value}"


def _title(module):
    library = "birnn_ext" if isinstance(module, RNNBase) else "torch.nn"
    return f"{library}.{module!r}"


def _weights(s):
    """Shapes of the parameters, a line for each name."""
    gates = GATES[s.mode]
    rows = gates * s.hidden
    lines = ["weights" + (" (the reverse direction has its own, named with _reverse)" if s.directions == 2 else "")]
    by_gate = f"  rows: {GATE_NAMES[s.mode]}, {s.hidden} each" if gates > 1 else ""
    for layer in range(s.layers):
        below = s.inputs if layer == 0 else s.directions * s.features
        origin = "input" if layer == 0 else f"[forward | reverse] of layer {layer - 1}" if s.directions == 2 else "layer below"
        lines.append(f"  weight_ih_l{layer}  [{rows}, {below}]  reads {origin}{by_gate}")
        lines.append(f"  weight_hh_l{layer}  [{rows}, {s.features}]  reads the state of its own direction")
        if s.bias:
            lines.append(f"  bias_ih_l{layer}, bias_hh_l{layer}  [{rows}]")
        if s.features != s.hidden:
            lines.append(f"  weight_hr_l{layer}  [{s.features}, {s.hidden}]  projection of h")
    return "\n".join(lines)


def _flow(s):
    """Which layer reads what, from the input upwards."""
    if s.directions == 1:
        lines = ["data flow"]
        for layer in range(s.layers):
            source = f"input [{s.inputs}]" if layer == 0 else f"output of layer {layer - 1} [{s.features}]"
            lines.append(f"  layer {layer}:  {source} --> forward, t = 0 .. T-1")
        return "\n".join(lines)
    lines = ["data flow (every arrow carries all steps, in the order of time)"]
    for layer in range(s.layers):
        source = f"input [{s.inputs}]" if layer == 0 else f"both halves of layer {layer - 1} [{2 * s.features}]"
        pad = " " * len(source)
        lines.append(f"  layer {layer}:  {source} --+--> forward, t = 0 .. T-1 --> [{s.features}] --+--> joined")
        lines.append(f"            {pad}   +--> reverse, t = T-1 .. 0 --> [{s.features}] --+")
    return "\n".join(lines)


def _output(s):
    last = "T-1" if s.steps is None else str(s.steps - 1)
    P, D = s.features, s.directions
    sizes = [_named("T", s.steps)]
    if not s.unbatched:
        sizes.insert(0 if s.batch_first else 1, _named("B", s.batch))
    head = f"output [{', '.join(sizes)}, {f'2*P={2 * P}' if D == 2 else f'P={P}'}]"
    if s.packed:
        head += ", drawn as if padded: it is a PackedSequence, in which each row ends at its own last step"
    columns = [f"{d * P} .. {(d + 1) * P - 1}" if P > 1 else str(d) for d in range(D)]
    lines = [head, (" " * 12 + "".join(f" {column:^14}" for column in columns)).rstrip()]
    cell = "   {:<11}".format
    one_step = last == "0"

    def step(t, marks):
        return f"  {f't = {t}':<10}|" + "|".join(cell(f"{DIRECTIONS[d]}{' *' if marks[d] else ''}") for d in range(D)) + "|"

    lines.append(step("0", (one_step, True)))
    if not one_step:
        if last != "1":
            lines.append(f"  {'...':<10}|" + "|".join(f"{'...':^14}" for _ in range(D)) + "|")
        lines.append(step(last, (True, False)))
    if D == 2:
        lines.append("  * what h_n holds: here the direction has read every step" + (" of its row" if s.packed else ""))
        lines.append(f"  forward at t has read steps 0..t, reverse at t has read steps {last}..t")
    else:
        lines.append("  * what h_n holds; the output at t has read steps 0..t")
    return "\n".join(lines)


def _states(s):
    last = "T-1" if s.steps is None else str(s.steps - 1)
    P, D, L = s.features, s.directions, s.layers
    batch = [] if s.unbatched else [_named("B", s.batch)]
    lines = [f"h_n [{', '.join([f'L*D={L * D}', *batch, f'P={P}'])}]"]
    rows = []
    for layer in range(L):
        for d in range(D):
            step = last if d == 0 else "0"
            if s.packed and d == 0:
                text = f"layer {layer}, forward, after each row's last step"
            else:
                text = f"layer {layer}, {DIRECTIONS[d]}, after step t = {step}"
            same = "" if layer < L - 1 or s.packed else f"= output[{_index(s, step)}{_half(d, P, D)}]"
            rows.append((layer * D + d, text, same))
    width = max(len(text) for _, text, _ in rows)
    lines += [f"  row {row:<4} {text:<{width}}    {same}".rstrip() for row, text, same in rows]
    if s.cells is not None:
        lines.append(f"c_n [{', '.join([f'L*D={L * D}', *batch, f'H={s.cells}'])}]: the same rows")
    if s.mode:
        name = "(h_0, c_0)" if s.cells is not None else "h_0"
        lines.append(f"hx = {name}: the same rows, each what its direction starts from")
        if D == 2:
            lines[-1] += f": forward before t = 0, reverse before t = {last}"
    return "\n".join(lines)


def _index(s, step):
    step = "-1" if step == "T-1" else step
    if s.unbatched:
        return f"{step}, "
    return f":, {step}, " if s.batch_first else f"{step}, :, "


def _half(d, P, D):
    if D == 1:
        return ":"
    return f":{P}" if d == 0 else f"{P}:"
