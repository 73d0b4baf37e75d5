"""The layers a user builds: RNN, GRU, LSTM with torch.nn's signatures, and BiRNN, always bidirectional.

Only signatures and documentation: what the layers do is in `birnn_ext.base`.
"""

from typing import Any

import torch

from .base import RNNBase
from .checks import PROJECTION_ERROR


class RNN(RNNBase):
    """Elman layer, h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu; a drop-in for torch.nn.RNN.

    Args:
        input_size: I, features of the input.
        hidden_size: H, units of each direction.
        num_layers: L, layers stacked on each other.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        bias: whether there are b_ih and b_hh.
        batch_first: input and output are [B, T, features] instead of [T, B, features]; states are not
            concerned.
        dropout: probability of zeroing an output of every layer but the last, in training.
        bidirectional: a second direction from the last step to the first, behind the first in the output.
        device, dtype: of the parameters.

    What torch.nn does not have (equations, sources and examples: docs/variants.md):

    Keyword Args:
        merge_mode: how the directions become one output: ``"concat"``, ``"sum"``, ``"mean"``, ``"mul"``, or None for
            a pair ``(forward, reverse)``. A merged output has P features, and so has the input of the next layer; a
            pair comes from the last layer only.
        recurrent_dropout: probability of zeroing a unit of h before the recurrent product, by one mask for each row,
            layer and direction, in training.
        zoneout: probability with which a unit keeps its old value at a step; for LSTM also a pair, for h and for c.
            Outside training the expectation is taken.
        weight_drop: probability of zeroing an element of ``weight_hh_l{k}``, once for each call, in training.
        layer_norm: normalises the two shares of the gates, and an LSTM's c before its output; adds parameters
            ``gain_ih_l{k}`` and ``gain_hh_l{k}`` [G*H], for LSTM ``gain_c_l{k}`` and, with bias, ``bias_c_l{k}`` [H].
        init: how ``weight_hh_l{k}`` starts, ``"torch"`` or ``"orthogonal"``.
        unit_forget_bias: whether an LSTM's bias of the forget gate starts at one.
        recompute: keep no gates for backward, which computes them once more: GRU keeps a fifth, LSTM a sixth of the memory
            between forward and backward; a training step takes a quarter to a third longer. The numbers are the same.

    Parameters, for layer k and, with the suffix ``_reverse``, its second direction: ``weight_ih_l{k}`` [H, I]
    (behind the first layer [H, D*H]), ``weight_hh_l{k}`` [H, H], ``bias_ih_l{k}``, ``bias_hh_l{k}`` [H].

    Errors: see :class:`RNNBase`. Call: see :meth:`RNNBase.forward`. Source: torch.nn.RNN.

    >>> import torch, birnn_ext
    >>> rnn = birnn_ext.RNN(3, 4, num_layers=2, nonlinearity="relu", bidirectional=True)
    >>> output, h_n = rnn(torch.randn(5, 2, 3))
    >>> output.shape, h_n.shape
    (torch.Size([5, 2, 8]), torch.Size([4, 2, 4]))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError(PROJECTION_ERROR)
        # torch.nn.RNN has the nonlinearity fourth, before bias; the base does not know it.
        if len(args) > 3:
            nonlinearity = args[3]
            args = args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(f"RNN_{nonlinearity.upper()}", *args, **kwargs)
        self.nonlinearity = nonlinearity


class GRU(RNNBase):
    """Gated recurrent unit, the reset gate behind the recurrent product; a drop-in for torch.nn.GRU.

        r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh)    n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    Arguments as in :class:`RNN`, without the nonlinearity. The G*H = 3 H rows of every weight are those of r,
    z, n.

    Errors: see :class:`RNNBase`. Call: see :meth:`RNNBase.forward`. Source: torch.nn.GRU.

    >>> import torch, birnn_ext
    >>> gru = birnn_ext.GRU(3, 4, bidirectional=True, batch_first=True)
    >>> output, h_n = gru(torch.randn(2, 5, 3), lengths=[5, 2])  # the second row has two steps
    >>> bool(output[1, 2:].any()), torch.equal(h_n[0, 1], output[1, 1, :4])
    (False, True)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError(PROJECTION_ERROR)
        super().__init__("GRU", *args, **kwargs)


class LSTM(RNNBase):
    """Long short-term memory; a drop-in for torch.nn.LSTM.

        i, f, o = sigmoid(W_ih x + b_ih + W_hh h + b_hh)    g = tanh(likewise)
        c' = f * c + i * g    h' = o * tanh(c')             with a projection h' = W_hr (o * tanh(c'))

    Arguments as in :class:`RNN`, without the nonlinearity, and behind ``bidirectional``:
        proj_size: P < H, features of h and of the output; 0 for H, without a projection.

    The G*H = 4 H rows of every weight are those of i, f, g, o; a projection adds ``weight_hr_l{k}`` [P, H].

    Errors: see :class:`RNNBase`. Call: see :meth:`RNNBase.forward`. Source: torch.nn.LSTM.

    >>> import torch, birnn_ext
    >>> lstm = birnn_ext.LSTM(3, 4, bidirectional=True, proj_size=2)
    >>> lstm.load_state_dict(torch.nn.LSTM(3, 4, bidirectional=True, proj_size=2).state_dict())
    <All keys matched successfully>
    >>> output, (h_n, c_n) = lstm(torch.randn(5, 2, 3))
    >>> output.shape, h_n.shape, c_n.shape
    (torch.Size([5, 2, 4]), torch.Size([2, 2, 2]), torch.Size([2, 2, 4]))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)


class BiRNN(RNNBase):
    """A layer of any mode with both directions, always.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, proj_size, device, dtype: as in
            :class:`LSTM`.
        mode: ``"GRU"``, ``"LSTM"``, ``"RNN_TANH"`` or ``"RNN_RELU"``.
        merge_mode, recurrent_dropout, zoneout, weight_drop, layer_norm, init, unit_forget_bias, recompute: as in
            :class:`RNN`.

    Parameters, errors and call are those of torch.nn's layer of that mode with ``bidirectional=True``.

    >>> import torch, birnn_ext
    >>> layer = birnn_ext.BiRNN(3, 4, mode="RNN_TANH")
    >>> output, h_n = layer(torch.randn(5, 2, 3))
    >>> output.shape, layer
    (torch.Size([5, 2, 8]), BiRNN(3, 4, mode='RNN_TANH'))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        mode: str = "GRU",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        proj_size: int = 0,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        merge_mode: str | None = "concat",
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        weight_drop: float = 0.0,
        layer_norm: bool = False,
        init: str = "torch",
        unit_forget_bias: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__(
            mode, input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional=True, proj_size=proj_size, device=device, dtype=dtype,
            merge_mode=merge_mode, recurrent_dropout=recurrent_dropout, zoneout=zoneout, weight_drop=weight_drop,
            layer_norm=layer_norm, init=init, unit_forget_bias=unit_forget_bias, recompute=recompute,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """As the other layers', with the mode in place of the direction."""
        return super().extra_repr().replace("bidirectional=True", f"mode={self.mode!r}")
