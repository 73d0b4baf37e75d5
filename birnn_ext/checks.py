"""What a layer refuses: argument errors of torch.nn 2.13, with its types and texts where it has them.

At construction, and at every call before anything is computed. Weights that do not fit are found behind a failed call
(`birnn_ext.diagnose`); lengths next to what they mean (`birnn_ext.packed`).
"""

import numbers
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .ops import GATES

BATCHED = {2: "unbatched 2-D", 3: "batched 3-D"}
PROJECTION_ERROR = "proj_size argument is only supported for LSTM, not RNN or GRU"


class Checked(nn.Module):
    """The attributes that a layer has of its arguments, and the checks of these and of a call."""

    mode: str
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    _flat_weights_names: list[str]

    def _check_construction(self, dropout):
        if not isinstance(dropout, numbers.Number) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ValueError(
                "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
            )
        if dropout > 0 and self.num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={dropout} and num_layers={self.num_layers}",
                stacklevel=4,  # the caller of GRU(...)
            )
        for name, kind in (("bias", bool), ("batch_first", bool), ("input_size", int), ("hidden_size", int)):
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise TypeError(f"{name} should be of type {kind.__name__}, got: {type(value).__name__}")
            if kind is int and value <= 0:
                raise ValueError(f"{name} must be greater than zero")
        if self.num_layers <= 0:
            raise ValueError("num_layers must be greater than zero")
        if self.proj_size < 0:
            raise ValueError("proj_size should be a positive integer or zero to disable projections")
        if self.proj_size >= self.hidden_size:
            raise ValueError("proj_size has to be smaller than hidden_size")
        if self.mode not in GATES:
            raise ValueError(f"Unrecognized RNN mode: {self.mode}")
        if self.proj_size and self.mode != "LSTM":
            raise ValueError(PROJECTION_ERROR)

    @property
    def _kind(self):
        return "RNN" if self.mode.startswith("RNN_") else self.mode

    def _check_hx(self, hx, rank):
        """hx is of the form that the mode takes, and fits an input of this rank (None for a packed one)."""
        if self.mode == "LSTM":
            if not isinstance(hx, (tuple, list)):
                raise TypeError(f"LSTM: hx should be a tuple (h_0, c_0) or None, got {type(hx).__name__}")
            if len(hx) != 2:
                raise RuntimeError(f"lstm expects two hidden states, got {len(hx)}")
            if not (isinstance(hx[0], Tensor) and isinstance(hx[1], Tensor)):
                kinds = ", ".join(type(state).__name__ for state in hx)
                raise TypeError(f"LSTM: hx should be a tuple of two Tensors, got ({kinds})")
            if rank is not None and (hx[0].dim() != rank or hx[1].dim() != rank):
                raise RuntimeError(
                    f"For {BATCHED[rank]} input, hx and cx should also be {rank}-D but got "
                    f"({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
                )
        elif not isinstance(hx, Tensor):
            raise TypeError(f"{self._kind}: hx should be a Tensor or None, got {type(hx).__name__}")
        elif rank is not None and hx.dim() != rank:
            raise RuntimeError(f"For {BATCHED[rank]} input, hx should also be {rank}-D but got {hx.dim()}-D tensor")

    def _check_tensors(self, input, hx, weights):
        """Devices, dtypes of the states, and the number of steps, in the order of torch's own checks."""
        weight = weights[0][0][0]
        device = input.device
        if hx is not None:
            for state in hx if self.mode == "LSTM" else (hx,):
                if state.device != device:
                    self._device_error("hidden", device, state)
                if state.dtype != input.dtype and not torch._C._is_any_autocast_enabled():
                    raise RuntimeError(
                        "Input and hidden tensors are not the same dtype, "
                        f"found input tensor with {input.dtype} and hidden tensor with {state.dtype}"
                    )
        if weight.device != device:
            self._device_error("parameter", device, weight)
        if input.dim() == 3 and input.size(1 if self.batch_first else 0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")

    def _device_error(self, name, device, tensor):
        raise RuntimeError(
            f"Input and {name} tensors are not at the same device, found input tensor at {device} "
            f"and {name} tensor at {tensor.device}"
        )

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Dtype, rank and features of the input, the data of a PackedSequence if `batch_sizes` are given."""
        name = self._flat_weights_names[0]
        weight: Any = self._parameters[name] if name in self._parameters else getattr(self, name)
        if input.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
            )
        rank = 3 if batch_sizes is None else 2
        if input.dim() != rank:
            raise RuntimeError(f"input must have {rank} dimensions, got {input.dim()}")
        if input.size(-1) != self.input_size:
            raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.size(-1)}")

    def get_expected_hidden_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """(L*D, B, P), the shape of h_0."""
        return self._state_size(input, batch_sizes, self.proj_size or self.hidden_size)

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """(L*D, B, H), the shape of an LSTM's c_0."""
        return self._state_size(input, batch_sizes, self.hidden_size)

    def _state_size(self, input, batch_sizes, features):
        if batch_sizes is not None:
            batch = int(batch_sizes[0])
        else:
            batch = input.size(0 if self.batch_first else 1)
        return (2 if self.bidirectional else 1) * self.num_layers, batch, features

    def check_hidden_size(
        self, hx: Tensor, expected_hidden_size: tuple[int, int, int], msg: str = "Expected hidden size {}, got {}"
    ) -> None:
        """Raises RuntimeError with `msg` unless the state `hx` has the expected shape."""
        if hx.shape != expected_hidden_size:
            raise RuntimeError(msg.format(expected_hidden_size, list(hx.shape)))

    def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        """Input and state against each other and the layer; `hidden` None stands for zeros."""
        self.check_input(input, batch_sizes)
        if hidden is None:
            return
        expected = self.get_expected_hidden_size(input, batch_sizes)
        if self.mode != "LSTM":
            self.check_hidden_size(hidden, expected)
        else:
            self.check_hidden_size(hidden[0], expected, "Expected hidden[0] size {}, got {}")
            expected = self.get_expected_cell_size(input, batch_sizes)
            self.check_hidden_size(hidden[1], expected, "Expected hidden[1] size {}, got {}")
