"""The variants of a layer: which there are, what may be asked for, and the stack of layers that has some.

    in the weights, by the fast kernels          weight_drop
    in the lengths, by the fast kernels          reset
    in the outputs, by the fast kernels          merge_mode, return_states
    inside the step, by varied_layer.py          recurrent_dropout (in training), zoneout, layer_norm; on a GPU also reset,
                                                 and return_states of LSTM
Equations, sources and examples: docs/variants.md. Not here: initialisation (init.py).
"""

import dataclasses
import numbers

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.utils.rnn import PackedSequence

from . import functional, ops, packed, varied_layer

MERGES = ("concat", "sum", "mean", "mul", None)
FIXED = ("merge_mode", "layer_norm")  # by the shapes of the weights
NORMS = ("gain_ih_", "gain_hh_", "gain_c_", "bias_c_")  # how the names of layer_norm's parameters begin


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a layer does differently from torch.nn's; everything at its default is torch.nn's layer.

    Attributes:
        merge_mode: how the two directions become one output: ``"concat"``, ``"sum"``, ``"mean"``, ``"mul"``, or None
            for a pair ``(forward, reverse)``.
        recurrent_dropout: probability of zeroing a unit of h before the recurrent product, throughout a sequence.
        zoneout: probability with which a unit keeps its old value; for LSTM one for h and c, or the pair.
        weight_drop: probability of zeroing an element of weight_hh, for one call.
        layer_norm: whether the gates' shares, and an LSTM's c, are normalised over the units.
        on: the names of those that are not at their default. The call asks this instead of the numbers: torch.compile
            takes a float that it meets for a variable first, and starts again when it turns out to decide something.
    """

    merge_mode: str | None = "concat"
    recurrent_dropout: float = 0.0
    zoneout: float | tuple = 0.0
    weight_drop: float = 0.0
    layer_norm: bool = False
    on: tuple = dataclasses.field(init=False, repr=False, compare=False, default=())

    def __post_init__(self):
        asked = (f.name for f in dataclasses.fields(self) if f.init and getattr(self, f.name) != f.default)
        object.__setattr__(self, "on", tuple(asked))

    def check(self, mode, bidirectional):
        """Raises ValueError or TypeError, naming the argument, unless a layer of this mode can be so."""
        if self.merge_mode not in MERGES:
            raise ValueError(f"merge_mode should be one of {', '.join(map(repr, MERGES))}, got {self.merge_mode!r}")
        if self.merge_mode != "concat" and not bidirectional:
            raise ValueError(f"merge_mode={self.merge_mode!r} needs bidirectional=True: there is one direction only")
        for name in ("recurrent_dropout", "weight_drop"):
            if not _is_probability(getattr(self, name)):
                raise ValueError(f"{name} should be a number in range [0, 1], got {getattr(self, name)!r}")
        pair = isinstance(self.zoneout, (tuple, list)) and len(self.zoneout) == 2 and mode == "LSTM"
        if not all(map(_is_probability, self.zoneout if pair else (self.zoneout,))):
            also = ", or a pair (for h, for c) of such" if mode == "LSTM" else ""
            raise ValueError(f"zoneout should be a number in range [0, 1]{also}, got {self.zoneout!r}")
        if not isinstance(self.layer_norm, bool):
            raise TypeError(f"layer_norm should be of type bool, got: {type(self.layer_norm).__name__}")

    def zones(self, mode):
        """(zoneout of h, zoneout of c); c is an LSTM's alone."""
        if "zoneout" not in self.on:
            return 0, 0
        if isinstance(self.zoneout, (tuple, list)):
            return tuple(self.zoneout)
        return self.zoneout, self.zoneout if mode == "LSTM" else 0.0

    def inside(self, training):
        """Whether a call has to vary the step itself."""
        return self.layer_norm or "zoneout" in self.on or (training and "recurrent_dropout" in self.on)

    def features(self, directions, width):
        """How many features a layer hands to the next one: `width` for each direction, or merged."""
        return width if self.merge_mode in ("sum", "mean", "mul") else directions * width

    def asked(self):
        """The attributes that are not at their default, as a dict."""
        return {name: getattr(self, name) for name in self.on}


PLAIN = Variant()


def _is_probability(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= value <= 1


class Option:
    """An attribute of a layer that stands in its ``variant``; None there means that there is no variant at all."""

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, layer, owner=None):
        return self if layer is None else getattr(layer.variant or PLAIN, self.name)

    def __set__(self, layer, value):
        if self.name in FIXED:
            raise AttributeError(f"{self.name} is fixed when the layer is built")
        variant = dataclasses.replace(layer.variant or PLAIN, **{self.name: value})
        variant.check(layer.mode, layer.bidirectional)
        layer.variant = None if variant == PLAIN else variant


def norm_shapes(mode, hidden_size, bias):
    """Shapes of the parameters that layer_norm adds to a direction: {kind: shape}."""
    rows = ops.GATES[mode] * hidden_size
    shapes = {"gain_ih": (rows,), "gain_hh": (rows,)}
    if mode == "LSTM":
        shapes["gain_c"] = (hidden_size,)
        if bias:
            shapes["bias_c"] = (hidden_size,)
    return shapes


# ---------------------------------------------------------------------------------------------- the call


def normalise_reset(reset, shape, device):
    """Checks `reset` and brings it to `device`: bool of the first two sizes of the input, which are `shape`.

    Raises:
        TypeError: no tensor, or one that is not bool.
        ValueError: another shape.
        RuntimeError: a tensor without data (on meta) beside an input that has some.
    """
    if not isinstance(reset, Tensor):
        raise TypeError(f"reset should be a bool tensor, got {type(reset).__name__}")
    if reset.dtype != torch.bool:
        raise TypeError(f"reset should be a bool tensor, got a tensor of {reset.dtype}")
    if reset.shape != shape:
        raise ValueError(
            f"reset should have one entry for each step of each row of input, expected shape {tuple(shape)}, "
            f"got {tuple(reset.shape)}"
        )
    if reset.device.type == "meta" != device.type:
        raise RuntimeError(f"reset should be on a device with data, as input on {device} is, got a tensor on meta")
    return reset.to(device, non_blocking=device.type != "cpu")


def unpack_reset(reset, lengths):
    """`reset`, a PackedSequence of rows of these `lengths` (int64 [B], those of the input), as a bool tensor [T, B].

    Raises:
        TypeError: no PackedSequence, or one that is not bool.
        ValueError: other lengths.
    """
    if not isinstance(reset, PackedSequence):
        raise TypeError(f"reset should be a PackedSequence where input is one, got {type(reset).__name__}")
    # Rows of equal length may be sorted otherwise than in the input: what counts is the caller's order.
    padded, own = packed.to_padded(reset)
    if own.tolist() != lengths.tolist():
        raise ValueError(f"reset should be packed as input is, expected lengths {lengths.tolist()}, got {own.tolist()}")
    return normalise_reset(padded, padded.shape, lengths.device)


def episodes(reset, lengths, batch_first):
    """`reset` and `lengths` (int64 [B] or None) in one: numbers of episodes, int64 [B, T], as the layer takes them."""
    reset = reset if batch_first else reset.transpose(0, 1)
    numbers = reset.cumsum(1) + 1
    return numbers if lengths is None else numbers * (torch.arange(reset.size(1), device=reset.device) < lengths.unsqueeze(1))


def birnn(
    input, hx, lengths, weights, *, variant, reset, return_states,
    mode, batch_first=False, dropout=0.0, training=False, recompute=False,
):  # fmt: skip
    """A stack of layers with variants.

    Args:
        input, hx, lengths, mode, batch_first, dropout, training, recompute: as in :func:`birnn_ext.functional.birnn`.
        weights: likewise; with layer_norm as in :func:`birnn_ext.varied_layer.layer`.
        variant: a :class:`Variant`, or None for none.
        reset: bool [T, B] ([B, T]) or None.
        return_states: whether the states of every step are returned as well.

    Returns:
        ``output, h_n``, for LSTM ``output, (h_n, c_n)``; with `return_states` a third, h [T, B, L*D, P] ([B, T, L*D,
        P]), for LSTM the pair of that and c [T, B, L*D, H]. output [T, B, D*P]; [T, B, P] where the directions are
        merged, a pair of such for ``merge_mode=None``.

    Raises:
        TypeError: return_states that is no bool.
    """
    if not isinstance(return_states, bool):
        raise TypeError(f"return_states should be of type bool, got: {type(return_states).__name__}")
    variant = variant or PLAIN
    D, every_c = len(weights[0]), return_states and mode == "LSTM"
    if reset is not None:
        lengths = episodes(reset, lengths, batch_first)
    h_every, c_every, done = [], [], []

    def layer(input, h0, c0, lengths, weights, *, mode, batch_first):
        if training and "weight_drop" in variant.on:
            weights = tuple((w_ih, drop(w_hh, variant.weight_drop), *rest) for w_ih, w_hh, *rest in weights)
        if variant.inside(training) or ((every_c or reset is not None) and not ops.has_variants(input)):
            compute, more = varied_layer.layer, {"variant": variant, "training": training}
        else:
            compute, more = ops.layer, {"recompute": recompute}
        more |= {"mode": mode, "batch_first": batch_first, "every_c": every_c}
        output, h_n, c_n, *c = compute(input, h0, c0, lengths, weights, **more)
        c_every.extend(c)
        if return_states:
            h_every.append(output)
        done.append(True)
        return _merge(output, variant.merge_mode, len(done) == layers), h_n, c_n

    layers = len(weights)
    output, h_n, c_n = functional.birnn(
        input, hx, lengths, weights, mode=mode, batch_first=batch_first, dropout=dropout, training=training, layer=layer
    )
    results = output, h_n if c_n is None else (h_n, c_n)
    if not return_states:
        return results
    # Row l*D + d of the third dimension belongs to direction d of layer l, as in h_n.
    h, *c = (torch.cat([o.unflatten(-1, (D, -1)) for o in parts], 2) for parts in (h_every, c_every) if parts)
    states = (h, *c) if c else h
    dtypes = ops.converted(input, mode, computed=torch.float32)
    return (*results, states if dtypes is None else functional.cast(states, dtypes[1]))


def _merge(output, merge_mode, last):
    """[T, B, D*P] as the next layer, or the caller behind the last one, is to have it."""
    if merge_mode == "concat" or (merge_mode is None and not last):
        return output
    forward, reverse = output.chunk(2, -1)
    if merge_mode is None:
        return forward, reverse
    if merge_mode == "mul":
        return forward * reverse
    return forward + reverse if merge_mode == "sum" else (forward + reverse) / 2
