"""What the four layers share: construction, attributes and argument errors as in torch.nn 2.13, and the call.

The call takes the outside forms of input (unbatched, packed, with lengths) and hands one form on: nothing is
computed here (`birnn_ext.functional`), lengths are brought into form next door (`birnn_ext.packed`), and the
classes that a user builds, with their signatures, are in `birnn_ext.module`. No class inherits from
torch.nn.RNNBase: torch's compiler refuses everything that does.

Weights are looked up by name at every call, and no list of them is kept, so parametrizations, weight_norm,
torch.func.functional_call, tying and plain assignment need no care here.
"""

import numbers
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import diagnose, packed, variants
from . import init as starts
from .checks import Checked
from .functional import birnn
from .ops import GATES

Lengths: TypeAlias = Tensor | Sequence[int] | int | None


class RNNBase(Checked):
    """What the four layers share; not built directly. Its arguments are the mode, then those of LSTM.

    What it refuses, torch.nn refuses in the same words.

    Raises:
        TypeError: bias or batch_first that is no bool, a size that is no int.
        ValueError: a size below one, dropout outside [0, 1], a projection that does not fit or is not of an
            LSTM, an unknown mode, a variant (`birnn_ext.variants`) that the layer cannot have.
    """

    # Only what differs from these is stored in a layer: one pickled by an earlier version, or converted from
    # torch.nn, has none of it.
    variant = None
    init = "torch"
    unit_forget_bias = False
    recompute = False
    _norm_names: Sequence[list[str]] = ()
    merge_mode = variants.Option()
    recurrent_dropout = variants.Option()
    zoneout = variants.Option()
    weight_drop = variants.Option()
    layer_norm = variants.Option()

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        merge_mode: str | None = "concat",
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        weight_drop: float = 0.0,
        layer_norm: bool = False,
        init: str = "torch",
        unit_forget_bias: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self._check_construction(dropout)
        variant = variants.Variant(merge_mode, recurrent_dropout, zoneout, weight_drop, layer_norm)
        variant.check(mode, bidirectional)
        if variant != variants.PLAIN:
            self.variant = variant
        starts.check(init, unit_forget_bias, mode, bias)
        if init != "torch":
            self.init = init
        if unit_forget_bias:
            self.unit_forget_bias = True
        if not isinstance(recompute, bool):
            raise TypeError(f"recompute should be of type bool, got: {type(recompute).__name__}")
        if recompute:
            self.recompute = True

        D = 2 if bidirectional else 1
        norms = variants.norm_shapes(mode, hidden_size, bias) if layer_norm else {}
        self._all_weights: list[list[str]] = []
        norm_names = []
        for layer in range(num_layers):
            shapes = self._weight_shapes(layer)
            for suffix in ("", "_reverse")[:D]:
                names = []
                for kind, shape in (shapes | norms).items():
                    names.append(f"{kind}_l{layer}{suffix}")
                    setattr(self, names[-1], nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
                self._all_weights.append(names[: len(shapes)])
                norm_names.append(names[len(shapes) :])
        if norms:
            self._norm_names = norm_names
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self.reset_parameters()

    def _weight_shapes(self, layer):
        """{first part of the name: shape} of one direction's weights in this layer, in the order of registration."""
        rows, P = GATES[self.mode] * self.hidden_size, self.proj_size or self.hidden_size
        D = 2 if self.bidirectional else 1
        features = self.input_size if layer == 0 else (self.variant or variants.PLAIN).features(D, P)
        shapes = {"weight_ih": (rows, features), "weight_hh": (rows, P)}
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, self.hidden_size)
        return shapes

    def reset_parameters(self) -> None:
        """Draws every weight from U(-1/sqrt(H), 1/sqrt(H)), in the order of registration; see `birnn_ext.init`."""
        starts.reset(self)

    # ------------------------------------------------------------------------------------------- forward

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        lengths: Lengths = None,
        *,
        reset: Tensor | PackedSequence | None = None,
        return_states: bool = False,
    ) -> Any:
        """Runs the layer.

        With T steps, B rows, I = input_size, H = hidden_size, P = proj_size or H, D directions,
        L = num_layers:

        Args:
            input: [T, B, I], or [B, T, I] with ``batch_first``, or [T, I] for a single row, or a
                PackedSequence, or with ``batch_first`` a nested tensor of layout torch.jagged.
            hx: initial state, zeros if None: h_0 [L*D, B, P]; for LSTM the pair ``(h_0, c_0)`` with c_0
                [L*D, B, H]. Without B for a single row. Row ``l*D + d`` is for direction d of layer l; the
                reverse direction starts from it at its last step.
            lengths: steps of each row: an integer tensor or list of B entries in any order, each 0..T; every
                row has T steps if None. Not together with a PackedSequence or a nested tensor, which carry their own.
            reset: bool [T, B] in the layout of the input: True where a step is the first of an episode. The forward
                direction starts such a step from a state of zeros, the reverse direction the step before it: both
                compute what they would on each episode alone.
            return_states: whether the state after every step is returned, third.

        Returns:
            ``output, h_n``, for LSTM ``output, (h_n, c_n)``. output [T, B, D*P] in the layout of the input,
            forward direction first, zero beyond a row's length; a PackedSequence or nested tensor where the input is.
            States have the shapes of hx and are those after the last step of each row: a row of length 0
            returns its initial state. With `return_states` a third: h [T, B, L*D, P], for LSTM ``(h, c)`` with c
            [T, B, L*D, H], in the layout of the input and zero where output is.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: wrong rank or dtype of input; lengths that do not fit.
            RuntimeError: wrong sizes of input or hx, no steps at all, tensors on different devices.

        Source: torch.nn.RNN, GRU and LSTM in PyTorch 2.13, types and texts of the errors included; `lengths` is ours.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, lengths, reset, return_states)
        if not isinstance(input, Tensor):
            raise TypeError(f"{self._kind}: input should be a Tensor or a PackedSequence, got {type(input).__name__}")
        if input.is_nested:
            return self._forward_nested(input, hx, lengths, reset, return_states)
        rank = input.dim()
        if rank != 3 and rank != 2:
            noun = "D tensor" if self._kind == "RNN" else "D"
            raise ValueError(f"{self._kind}: Expected input to be 2D or 3D, got {rank}{noun} instead")
        if hx is not None:
            self._check_hx(hx, rank)
        if rank == 3:
            return self._run(input, hx, lengths, reset, return_states)

        batch_dim = 0 if self.batch_first else 1
        if isinstance(lengths, numbers.Integral) or (isinstance(lengths, Tensor) and lengths.dim() == 0):
            lengths = (lengths if isinstance(lengths, Tensor) else torch.tensor(lengths, device="cpu")).unsqueeze(0)
        if isinstance(hx, Tensor):
            hx = hx.unsqueeze(1)
        elif hx is not None:
            hx = tuple(state.unsqueeze(1) for state in hx)
        if isinstance(reset, Tensor) and reset.dim() == 1:
            reset = reset.unsqueeze(batch_dim)
        output, state, *states = self._run(input.unsqueeze(batch_dim), hx, lengths, reset, return_states)
        output, *states = (_each(part, lambda t: t.squeeze(batch_dim)) for part in (output, *states))
        return output, _each(state, lambda t: t.squeeze(1)), *states

    def _run(self, input, hx, lengths, reset, return_states):
        """Batched input, states and lengths as they came -> output, h_n or (h_n, c_n), and the states if asked for."""
        self.check_forward_args(input, hx, None)
        weights = self._layers()
        self._check_tensors(input, hx, weights)
        batch_first = self.batch_first
        if lengths is not None:
            B, T = input.shape[:2] if batch_first else (input.size(1), input.size(0))
            lengths = packed.normalise_lengths(lengths, T, B, input.device)
        if reset is not None:
            reset = variants.normalise_reset(reset, input.shape[:2], input.device)
        try:
            return self._compute(input, hx, lengths, weights, reset, return_states, batch_first)
        except Exception:
            diagnose.tensors(self, input)
            raise

    def _forward_packed(self, input, hx, lengths, reset, return_states):
        if lengths is not None:
            raise ValueError("lengths should be None for a PackedSequence, which carries its own lengths")
        if hx is not None:
            self._check_hx(hx, None)
        try:
            self.check_forward_args(input.data, hx, input.batch_sizes)
            self._check_tensors(input.data, hx, self._layers())
            if (input.batch_sizes.diff() > 0).any():  # the one fault that would go unnoticed
                diagnose.packed_sequence(input)
            padded, lengths = packed.to_padded(input)
        except (RuntimeError, IndexError):
            diagnose.packed_sequence(input)
            raise
        weights = self._layers()
        if reset is not None:
            reset = variants.unpack_reset(reset, lengths)
        try:
            output, state, *states = self._compute(padded, hx, lengths, weights, reset, return_states, False)
            output, *states = (_each(part, lambda t: packed.to_packed(t, input)) for part in (output, *states))
            return output, state, *states
        except Exception:
            diagnose.packed_sequence(input)
            diagnose.tensors(self, padded)
            raise

    def _forward_nested(self, input, hx, lengths, reset, return_states):
        if lengths is not None:
            raise ValueError("lengths should be None for a nested tensor, which carries its own lengths")
        if reset is not None:
            raise ValueError("reset should be None for a nested tensor: pad the rows and give lengths")
        if not self.batch_first:
            raise ValueError("input: a nested tensor is [B, T, I], and the layer should have batch_first=True, got False")
        padded, lengths = packed.nested_to_padded(input)
        output, state, *states = self.forward(padded, hx, lengths, return_states=return_states)
        output, *states = (_each(part, lambda t: packed.padded_to_nested(t, input)) for part in (output, *states))
        return output, state, *states

    def _compute(self, input, hx, lengths, weights, reset, return_states, batch_first):
        """Arguments that are in form -> what `_run` returns."""
        if self.variant is None and reset is None and not return_states:
            output, h_n, c_n = birnn(
                input, hx, lengths, weights,
                mode=self.mode, batch_first=batch_first, dropout=self.dropout, training=self.training, recompute=self.recompute,
            )  # fmt: skip
            return output, h_n if c_n is None else (h_n, c_n)
        if self._norm_names:
            norms = iter(self._norm_names)
            weights = tuple(
                tuple((*held, *(getattr(self, name) for name in next(norms))) for held in directions) for directions in weights
            )
        return variants.birnn(
            input, hx, lengths, weights, variant=self.variant, reset=reset, return_states=return_states,
            mode=self.mode, batch_first=batch_first, dropout=self.dropout, training=self.training, recompute=self.recompute,
        )  # fmt: skip

    def _layers(self):
        """The weights of now: L tuples of D tuples (w_ih, w_hh, b_ih | None, b_hh | None, w_hr | None)."""
        # Module.__getattr__ costs more than a small step; what is not in _parameters (a parametrization,
        # weight_norm, a replica of DataParallel) takes that road.
        parameters = self._parameters
        bias, projected = self.bias, self.proj_size > 0
        directions = []
        for names in self._all_weights:
            held = [parameters[name] if name in parameters else getattr(self, name) for name in names]
            if not bias:
                held[2:2] = (None, None)
            if not projected:
                held.append(None)
            directions.append(tuple(held))
        if not self.bidirectional:
            return tuple([(weights,) for weights in directions])
        return tuple(zip(directions[0::2], directions[1::2], strict=True))

    def __prepare_scriptable__(self):
        """Called by torch.jit.script, which has no words of its own for what it cannot do here."""
        raise RuntimeError(
            f"torch.jit.script cannot compile birnn_ext.{type(self).__name__}: use torch.export, or "
            "torch.jit.trace under torch.no_grad()"
        )

    # ------------------------------------------------------------- the rest of torch.nn's interface

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters, a list for each direction of each layer."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _flat_weights(self):
        return [getattr(self, name, None) for name in self._flat_weights_names]

    def flatten_parameters(self) -> None:
        """Does nothing: no kernel here asks for weights in one piece."""

    def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
        """The state(s) `hx` with rows of the batch in the order of `permutation` (None: as they are)."""
        if permutation is None:
            return hx
        if isinstance(hx, Tensor):
            return hx.index_select(1, permutation)
        return tuple(state.index_select(1, permutation) for state in hx)

    def extra_repr(self) -> str:
        """Sizes, and every other argument that is not at its default."""
        usual = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0}
        usual["bidirectional"] = False
        unusual = [f"{name}={getattr(self, name)}" for name, value in usual.items() if getattr(self, name) != value]
        asked = {} if self.variant is None else self.variant.asked()
        asked |= {name: getattr(self, name) for name in ("init", "unit_forget_bias", "recompute") if name in vars(self)}
        unusual += [f"{name}={value!r}" for name, value in asked.items()]
        return ", ".join([str(self.input_size), str(self.hidden_size), *unusual])


def _each(value, change):
    """change(value), or that of every part of a tuple."""
    return tuple(map(change, value)) if isinstance(value, tuple) else change(value)
