"""Problems (tests/problems.py) on the GPU, and their results back on the CPU."""

from dataclasses import replace

import compare
import problems
import torch

from birnn_ext import ops, reference

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def to(problem, device="cuda"):
    """The same numbers on the device, as leaves of their own."""

    def move(t):
        return None if t is None else t.detach().to(device).requires_grad_(t.requires_grad)

    lengths = None if problem.lengths is None else problem.lengths.to(device)
    return replace(problem.map(move), lengths=lengths)


def run(problem, layer=ops.layer, device="cuda"):
    """Results and gradients of a problem given on the CPU, computed on the device."""
    return [t.cpu() for t in problems.run(to(problem, device), layer)]


def check(problem, device="cuda"):
    """Holds the CUDA kernels to the tolerance rule; the same dtype on the CPU stands for torch."""
    ours = run(problem, device=device)
    exact = problems.run(problem.double(), reference.layer)
    compare.check(ours, problems.run(problem, reference.layer), exact)
    return ours
