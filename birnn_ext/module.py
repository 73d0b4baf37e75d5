"""The layers a user builds: RNN, GRU, LSTM with torch.nn's signatures, and BiRNN, always bidirectional.

Only signatures and documentation: what the layers do is in `birnn_ext.base`.
"""

from .base import PROJECTION_ERROR, RNNBase


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

    Parameters, for layer k and, with the suffix ``_reverse``, its second direction: ``weight_ih_l{k}`` [H, I]
    (behind the first layer [H, D*H]), ``weight_hh_l{k}`` [H, H], ``bias_ih_l{k}``, ``bias_hh_l{k}`` [H].

    Errors: see :class:`RNNBase`. Call: see :meth:`RNNBase.forward`. Source: torch.nn.RNN.
    """

    def __init__(self, *args, **kwargs):
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
    """

    def __init__(self, *args, **kwargs):
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
    """

    def __init__(self, *args, **kwargs):
        super().__init__("LSTM", *args, **kwargs)


class BiRNN(RNNBase):
    """A layer of any mode with both directions, always.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, proj_size, device, dtype: as in
            :class:`LSTM`.
        mode: ``"GRU"``, ``"LSTM"``, ``"RNN_TANH"`` or ``"RNN_RELU"``.

    Parameters, errors and call are those of torch.nn's layer of that mode with ``bidirectional=True``.
    """

    def __init__(
        self,
        input_size,
        hidden_size,
        num_layers=1,
        *,
        mode="GRU",
        bias=True,
        batch_first=False,
        dropout=0.0,
        proj_size=0,
        device=None,
        dtype=None,
    ):
        super().__init__(
            mode, input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional=True, proj_size=proj_size, device=device, dtype=dtype,
        )  # fmt: skip

    def extra_repr(self):
        """As the other layers', with the mode in place of the direction."""
        return super().extra_repr().replace("bidirectional=True", f"mode={self.mode!r}")
