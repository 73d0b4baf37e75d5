"""Random arguments of one layer call, and its results and gradients as one list: what the tests of the kernels compare.

The module-level counterpart is in compare.py (`pair`, `states`). Not here: how near is near enough (compare.check).
"""

from dataclasses import dataclass, replace

import compare
import grids
import torch

from birnn_ext import ops, reference

GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 3}


@dataclass(frozen=True)
class Problem:
    """The arguments of ops.layer, and the incoming gradients of its results (None: that result is not used)."""

    mode: str
    input: torch.Tensor
    h0: torch.Tensor | None
    c0: torch.Tensor | None
    lengths: torch.Tensor | None
    weights: tuple
    batch_first: bool
    cotangents: tuple

    def leaves(self):
        """The tensors that gradients are wanted of."""
        flat = [w for direction in self.weights for w in direction]
        return [t for t in (self.input, self.h0, self.c0, *flat) if t is not None and t.requires_grad]

    def map(self, change):
        """The problem with change(t) for every floating-point tensor t, some of which are None."""
        return replace(
            self,
            input=change(self.input),
            h0=change(self.h0),
            c0=change(self.c0),
            weights=tuple(tuple(map(change, direction)) for direction in self.weights),
            cotangents=tuple(map(change, self.cotangents)),
        )

    def detach(self):
        """The same tensors, none of which wants a gradient."""
        return self.map(lambda t: None if t is None else t.detach())

    def double(self):
        """A copy in float64, with leaves of its own."""
        return self.map(compare.wide)

    def op_arguments(self):
        """The arguments of torch.ops.birnn_ext.layer up to `train`, in its order."""
        flat = (*self.weights[0], *(self.weights[1] if len(self.weights) == 2 else (None,) * 5))
        return [self.input, self.h0, self.c0, self.lengths, *flat, self.mode, self.batch_first]


def make(
    mode,
    T,
    B,
    I,  # noqa: E741
    H,
    *,
    P=None,
    D=2,
    bias=True,
    state=True,
    lengths=None,
    batch_first=False,
    dtype=torch.float32,
    used=("output", "h_n", "c_n"),
    input_grad=True,
    weight_grad=True,
):
    """A Problem with random numbers; `P` is the size of the projection or None, `lengths` a list or None."""
    G, F = GATES[mode], P or H

    def uniform(*shape):
        # torch.nn's range, in which no mode explodes over hundreds of steps; less where the features outnumber the
        # units, so that pre-activations, and with them their rounding errors, stay of size one.
        return (torch.rand(shape, dtype=dtype) * 2 - 1).mul_(max(H, shape[-1]) ** -0.5).requires_grad_(weight_grad)

    def direction():
        biases = (uniform(G * H), uniform(G * H)) if bias else (None, None)
        return uniform(G * H, I), uniform(G * H, F), *biases, uniform(F, H) if P else None

    def normal(*shape, wanted=True):
        return torch.randn(shape, dtype=dtype).requires_grad_(wanted)

    shapes = {"output": (B, T, D * F) if batch_first else (T, B, D * F), "h_n": (D, B, F), "c_n": (D, B, H)}
    names = list(shapes)[: 3 if mode == "LSTM" else 2]
    return Problem(
        mode=mode,
        input=normal(*((B, T, I) if batch_first else (T, B, I)), wanted=input_grad),
        h0=normal(D, B, F) if state else None,
        c0=normal(D, B, H) if state and mode == "LSTM" else None,
        lengths=None if lengths is None else torch.tensor(lengths, dtype=torch.int64),
        weights=tuple(direction() for _ in range(D)),
        batch_first=batch_first,
        cotangents=tuple(torch.randn(shapes[n], dtype=dtype) if n in used else None for n in names),
    )


def results(problem, layer=ops.layer):
    """[output, h_n, c_n if there is one]"""
    p = problem
    found = layer(p.input, p.h0, p.c0, p.lengths, p.weights, mode=p.mode, batch_first=p.batch_first)
    return [t for t in found if t is not None]


def run(problem, layer=ops.layer):
    """The results, followed by the gradients of all leaves."""
    found, leaves = results(problem, layer), problem.leaves()
    pairs = [(r, c) for r, c in zip(found, problem.cotangents, strict=True) if c is not None and r.requires_grad]
    if not pairs or not leaves:
        return found
    outs, cotangents = zip(*pairs, strict=True)
    return found + list(torch.autograd.grad(outs, leaves, cotangents, materialize_grads=True))


def check(problem):
    """Holds ops.layer to the tolerance rule, forward and backward; relu in halves forward only, since a rounding may put a unit
    to either side of its kink."""
    if problem.mode == "RNN_RELU" and problem.input.dtype in ops.HALVES:
        problem = problem.detach()
    exact, ours = run(problem.double(), reference.layer), run(problem)
    states = [t for t in (problem.input, problem.h0, problem.c0) if t is not None and t.requires_grad]
    others = len(ours) - len(problem.leaves()) + len(states)  # what comes before the gradients of the weights
    steps = problem.input.size(0) * problem.input.size(1)
    terms = [1 if i < others else max(1, steps) for i in range(len(ours))]
    compare.check(ours, run(problem, reference.layer), exact, terms=terms)


def typical(mode="GRU", T=20, B=5, I=24, H=32, lengths=False, projected=False, **options):  # noqa: E741
    """A problem that is large enough for the kernels to use several threads."""
    mode, projected = ("LSTM", True) if mode == "LSTM_PROJ" else (mode, projected)
    lengths = grids.ragged(T, B) if lengths else None
    return make(mode, T, B, I, H, P=H // 2 + 1 if projected else None, lengths=lengths, **options)


def small(mode="GRU", T=3, B=2, I=4, H=5, **options):  # noqa: E741
    """A problem for what costs time per element, or whose shapes are to be read."""
    return typical(mode, T, B, I, H, **options)


# The four cells, and LSTM with its projection, which is a stage of its own in the kernels.
KINDS = (*grids.MODES, "LSTM_PROJ")
