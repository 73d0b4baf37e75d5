"""`benchmark`: what swapping the recurrent layers would bring to a user's own model, on this machine.

It works on copies, checks that both compute the same, and times them in turns (`birnn_ext.clock`). Not here: the grid of
single layers behind the README's table, which is benchmarks/ in the repository.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from . import clock
from .base import RNNBase
from .convert import convert, revert

THEIRS, OURS = "torch.nn", "birnn_ext"
PASSES = ("inference", "training")
# Of the largest value. A model that stacks other layers on ours makes small differences larger.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
TOLERANCE_ELSE = 5e-2


class Disagreement(RuntimeError):
    """The copy with our layers computes something else than the one with torch.nn's."""


@dataclass(frozen=True)
class Measured:
    """One pass: median milliseconds of both, and how many times as long torch.nn took (median, 95 % interval)."""

    theirs_ms: float
    ours_ms: float
    ratio: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True)
class Comparison:
    """What :func:`benchmark` found; printing it gives the table."""

    layers: int  # that were swapped
    threads: int
    device: str
    difference: float  # largest difference of results and gradients, relative to the largest value of each
    passes: dict[str, Measured] = field(default_factory=dict)

    def __str__(self) -> str:
        count = f"{self.layers} layer{'s' * (self.layers > 1)} swapped"
        lines = [
            f"{count}, {self.device}, {self.threads} thread{'s' * (self.threads > 1)} of PyTorch; "
            f"results differ by at most {self.difference:.0e} of the largest value",
            f"{'':10}{'torch.nn ms':>13}{'birnn_ext ms':>14}{'times as fast':>15}{'95 %':>15}{'runs':>7}",
        ]
        for name, m in self.passes.items():
            interval = f"{m.low:.2f} - {m.high:.2f}"
            lines.append(f"{name:10}{m.theirs_ms:>13.2f}{m.ours_ms:>14.2f}{m.ratio:>15.2f}{interval:>15}{m.runs:>7}")
        return "\n".join(lines)


def benchmark(
    model: nn.Module, example_input: Any, *, passes: tuple[str, ...] | None = None, budget: float = 2.0, quiet: bool = False
) -> Comparison:
    """Times a model with torch.nn's recurrent layers against itself with ours, and prints what the swap would bring.

    Works on copies: `model` and its gradients stay as they are. Before anything is timed, both copies run in eval mode and
    must agree in every floating-point result, and for training in every gradient. Then they run in turns, and the
    medians are of neighbouring runs, so that a slow spell of the machine hits both.

    Args:
        model: any module that holds a torch.nn.RNN, GRU or LSTM, or layers of ours (which are then taken back for the
            comparison). It is timed where its parameters are.
        example_input: what the model is called with: a tensor, a tuple or list of arguments, or a dict of keyword
            arguments.
        passes: out of ``"inference"`` (eval mode, no gradients) and ``"training"`` (train mode; forward, and backward from
            random gradients of every floating-point result). By default both, training only where there is something
            to train.
        budget: seconds to spend on each pass; at least six runs of each are made.
        quiet: do not print.

    Returns:
        A :class:`Comparison` with ``passes["inference"].ratio`` and the like.

    Raises:
        TypeError: `model` is no Module.
        ValueError: `model` holds no layer to swap, an unknown pass, or nothing that can be trained.
        Disagreement: the two compute different things (a RuntimeError).

    >>> import torch, birnn_ext
    >>> model = torch.nn.GRU(8, 16, bidirectional=True)
    >>> found = birnn_ext.benchmark(model, torch.randn(10, 2, 8), budget=0.05, quiet=True)
    >>> list(found.passes), found.layers, type(model).__module__.startswith("torch.nn")
    (['inference', 'training'], 1, True)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be a torch.nn.Module, got {type(model).__name__}")
    for name in passes or ():
        if name not in PASSES:
            raise ValueError(f"passes should be out of {', '.join(PASSES)}, got {name!r}")
    theirs, ours = revert(copy.deepcopy(model)), convert(copy.deepcopy(model))
    layers = sum(isinstance(layer, RNNBase) for layer in ours.modules())
    if not layers:
        left = {type(layer).__name__ for layer in model.modules() if isinstance(layer, nn.RNNBase)}
        more = f"; left alone, because subclasses may count on more: {', '.join(sorted(left))}" if left else ""
        raise ValueError(f"model should hold a torch.nn.RNN, GRU or LSTM, and holds none{more}")
    trainable = any(p.requires_grad for p in theirs.parameters())
    if passes is None:
        passes = PASSES if trainable else PASSES[:1]
    elif "training" in passes and not trainable:
        raise ValueError("passes should not name training: no parameter of model requires a gradient")

    weight = next(iter(theirs.parameters()))
    both = {THEIRS: theirs, OURS: ours}
    cotangents, difference = _agree(both, example_input, "training" in passes)
    wait = torch.cuda.synchronize if weight.device.type == "cuda" else _nothing
    found = {}
    for name in passes:
        runs = {who: _runner(one, example_input, cotangents if name == "training" else None) for who, one in both.items()}
        seconds = clock.interleave(runs, budget=budget, sync=wait, consume=_nothing)
        ratio = clock.ratio(seconds[THEIRS], seconds[OURS])
        found[name] = Measured(
            clock.spread(seconds[THEIRS])["median_ms"], clock.spread(seconds[OURS])["median_ms"],
            ratio["median"], ratio["low"], ratio["high"], len(seconds[OURS]),
        )  # fmt: skip
    comparison = Comparison(layers, torch.get_num_threads(), str(weight.device), difference, found)
    if not quiet:
        print(comparison)
    return comparison


def _nothing(*_):
    pass


def _call(model, given):
    if isinstance(given, Mapping):
        return model(**given)
    return model(*given) if isinstance(given, (tuple, list)) and not hasattr(given, "_fields") else model(given)


def _floating(results):
    return [t for t in tree_leaves(results) if isinstance(t, Tensor) and t.is_floating_point()]


def _agree(both, given, training):
    """Random gradients for every floating-point result, and the largest difference between the two copies.

    Disagreement where they differ by more than rounding can.
    """
    found, names, cotangents = {}, [], []
    for who, model in both.items():
        model.eval()
        dropouts = _train_layers(model) if training else []
        with torch.set_grad_enabled(training):
            outputs = _floating(_call(model, given))
        if not outputs:
            raise ValueError("model should return at least one floating-point tensor, or there is nothing to compare")
        if not cotangents:
            # On a generator of their own, so that the user's random numbers go on undisturbed.
            generator = torch.Generator().manual_seed(0)
            cotangents = [torch.randn(t.shape, generator=generator).to(t) for t in outputs]
        values, names = [t.detach() for t in outputs], [f"result {i}" for i in range(len(outputs))]
        if training:
            _backward(outputs, cotangents)
            for name, p in model.named_parameters():
                if p.grad is not None:
                    values.append(p.grad)
                    names.append(f"gradient of {name}")
            model.zero_grad(set_to_none=True)
        for layer, dropout in dropouts:
            layer.dropout = dropout
        found[who] = values
    largest = 0.0
    for name, a, b in zip(names, found[OURS], found[THEIRS], strict=True):
        if a.shape != b.shape:
            raise Disagreement(f"{name} has shape {tuple(a.shape)} with birnn_ext and {tuple(b.shape)} with torch.nn")
        if not a.numel():
            continue
        scale = max(float(b.abs().nan_to_num().max()), torch.finfo(b.dtype).tiny)
        # Against rounding of a value that is zero but for rounding.
        scale = max(scale, 1e-3) if name.startswith("gradient") else scale
        apart = float(torch.where(a.isnan() & b.isnan(), 0, (a - b).abs()).nan_to_num(torch.inf).max()) / scale
        if apart > TOLERANCE.get(b.dtype, TOLERANCE_ELSE):
            raise Disagreement(
                f"{name} differs by {apart:.1e} of its largest value between birnn_ext and torch.nn. Is the model random in "
                "eval mode? If not, please report it, with the output of `python -m birnn_ext`."
            )
        largest = max(largest, apart)
    return cotangents, largest


def _train_layers(model):
    """Training mode for the recurrent layers alone, since cuDNN has no backward pass in eval mode, but without dropout.

    Returns what their dropout was.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.RNNBase, RNNBase))]
    dropouts = [(layer, layer.dropout) for layer in layers]
    for layer in layers:
        layer.train()
        layer.dropout = 0.0
    return dropouts


def _backward(outputs, cotangents):
    pairs = [(t, c) for t, c in zip(outputs, cotangents, strict=True) if t.requires_grad]
    if not pairs:
        raise ValueError("passes should not name training: no result of model requires a gradient")
    torch.autograd.backward(*map(list, zip(*pairs, strict=True)))


def _runner(model, given, cotangents):
    model.train(cotangents is not None)

    def inference(_):
        with torch.no_grad():
            return _call(model, given)

    def training(_):
        model.zero_grad(set_to_none=True)
        _backward(_floating(_call(model, given)), cotangents)

    return inference if cotangents is None else training
