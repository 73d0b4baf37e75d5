"""The numbers of one case: weights, inputs, lengths and the weights of the loss, drawn anew for every case
and shared by all contenders. Knows nothing of who computes with them."""

import zlib
from dataclasses import dataclass, replace

import torch

from .shapes import MODES, Case

# Every contender alternates between this many inputs, so that none can live on the result of its last call.
INPUTS = 2


@dataclass(frozen=True)
class Problem:
    """
    weights     torch.nn's state_dict of the bidirectional layer(s)
    inputs      INPUTS tensors [T, B, I]
    lengths     int64 [B] on the CPU, or None where all rows have T steps
    out_grad    [T, B, 2H]: what a loss would hand back for the output
    state_grad  [2L, B, H]: and for h_n (and c_n)
    """

    case: Case
    weights: dict
    inputs: list
    lengths: torch.Tensor | None
    out_grad: torch.Tensor
    state_grad: torch.Tensor

    def to(self, dtype):
        """The same problem in another dtype: in float64 it is the oracle's."""
        return replace(
            self,
            weights={name: weight.to(dtype) for name, weight in self.weights.items()},
            inputs=[x.to(dtype) for x in self.inputs],
            out_grad=self.out_grad.to(dtype),
            state_grad=self.state_grad.to(dtype),
        )


def torch_layer(case, dtype, device):
    """The torch.nn module of a case, with torch's initialisation."""
    kind, arguments, _ = MODES[case.mode]
    shape = case.shape
    make = getattr(torch.nn, kind)
    return make(shape.I, shape.H, shape.L, bidirectional=True, dtype=dtype, device=device, **arguments)


def draw(case, seed=0):
    """The Problem of a case: the same for the same case and seed on every machine and for any number of
    threads."""
    dtype, shape = getattr(torch, case.dtype), case.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{seed} {replace(case, threads=1).key}".encode()))
        layer = torch_layer(case, torch.float32, "cpu")
        inputs = [torch.randn(shape.T, shape.B, shape.I) for _ in range(INPUTS)]
        lengths = None
        if case.ragged:
            lengths = torch.randint(max(1, shape.T // 4), shape.T + 1, (shape.B,))
            lengths[torch.randint(shape.B, ())] = shape.T
        out_grad = torch.randn(shape.T, shape.B, 2 * shape.H)
        state_grad = torch.randn(2 * shape.L, shape.B, shape.H)

    def placed(tensor):
        return tensor.detach().to(case.device, dtype)

    return Problem(
        case,
        {name: placed(weight) for name, weight in layer.state_dict().items()},
        [placed(x) for x in inputs],
        lengths,
        placed(out_grad),
        placed(state_grad),
    )
