"""Starting values of the parameters: torch.nn's, and what may be asked for instead.

Not here: when they are drawn (`RNNBase.reset_parameters`).
"""

import math

import torch
from torch import nn

from .variants import NORMS

INITS = ("torch", "orthogonal")


def check(init, unit_forget_bias, mode, bias):
    """Raises ValueError or TypeError, naming the argument, unless a layer of this mode can start so."""
    if init not in INITS:
        raise ValueError(f"init should be one of {', '.join(map(repr, INITS))}, got {init!r}")
    if not isinstance(unit_forget_bias, bool):
        raise TypeError(f"unit_forget_bias should be of type bool, got: {type(unit_forget_bias).__name__}")
    if unit_forget_bias and mode != "LSTM":
        raise ValueError(f"unit_forget_bias=True needs an LSTM: {mode} has no forget gate")
    if unit_forget_bias and not bias:
        raise ValueError("unit_forget_bias=True needs bias=True")


@torch.no_grad()
def reset(layer):
    """Draws the parameters of `layer` anew, by its ``init`` and ``unit_forget_bias``.

    Every weight from U(-1/sqrt(H), 1/sqrt(H)), in the order of registration, as torch.nn does; the parameters of
    layer_norm are set, not drawn: gains to one, biases of c to zero. Then, where asked for,

    - orthogonal: each gate's [H, P] block of every weight_hh is orthogonal (Saxe et al. 2014, arXiv:1312.6120; where
      P < H its columns are orthonormal);
    - unit_forget_bias: bias_ih + bias_hh is one at the forget gate (Jozefowicz et al. 2015): one in bias_ih, zero
      in bias_hh.
    """
    H = layer.hidden_size
    bound = 1.0 / math.sqrt(H)
    for name, weight in layer.named_parameters():
        if not name.startswith(NORMS):
            nn.init.uniform_(weight, -bound, bound)
    for names in layer._norm_names:
        for name in names:
            getattr(layer, name).fill_(0.0 if name.startswith("bias_") else 1.0)
    for names in layer._all_weights:
        weights = {name.split("_l")[0]: getattr(layer, name) for name in names}
        if layer.init == "orthogonal":
            for block in weights["weight_hh"].split(H):
                # The decomposition behind orthogonal_ knows no half precision.
                wide = torch.empty_like(block, dtype=torch.promote_types(block.dtype, torch.float32))
                block.copy_(nn.init.orthogonal_(wide))
        if layer.unit_forget_bias:
            weights["bias_ih"][H : 2 * H] = 1.0
            weights["bias_hh"][H : 2 * H] = 0.0
