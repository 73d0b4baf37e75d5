"""Modules in float16 and bfloat16 on the CPU.

Not here: the kernels of each instruction set (cpu/test_halves.py).
"""

import compare
import grids
import pytest
import torch
from torch import nn

pytestmark = pytest.mark.usefixtures("two_threads")
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
modes = pytest.mark.parametrize("mode", grids.MODES)
T, B, I, H = 12, 5, 9, 20  # noqa: E741


def halves(mode, dtype, **kwargs):
    """(torch.nn's layer, ours), the same weights in `dtype`, and an input."""
    theirs, ours = compare.pair(mode, I, H, 2, bidirectional=True, **kwargs)
    return theirs.to(dtype), ours.to(dtype), torch.randn(T, B, I).to(dtype)


@dtypes
@modes
def test_results_and_gradients(mode, dtype):
    theirs, ours, x = halves(mode, dtype)
    x.requires_grad_()
    oracle, wide_x, hx = compare.wide(theirs), compare.wide(x), compare.states(ours, B)

    def run(module, input, hx):
        results = compare.tensors(module(input, hx))
        return results + list(compare.gradients(results, [torch.ones_like(r) for r in results], [input, *module.parameters()]))

    # torch.nn.LSTM has no float16 on the CPU; what it would round to is what the rule then compares with.
    try:
        expected = run(theirs, x, hx)
    except RuntimeError:
        assert mode == "LSTM" and dtype == torch.float16
        expected = [t.to(dtype) for t in run(oracle, wide_x, compare.wide(hx))]
    compare.check(run(ours, x, hx), expected, run(oracle, wide_x, compare.wide(hx)))


@dtypes
def test_a_projection_and_lengths(dtype):
    _, ours, x = halves("LSTM", dtype, proj_size=7)
    lengths = [12, 0, 5, 1, 11]
    wide = compare.wide(ours)
    exact = wide(x.double(), lengths=lengths)
    compare.check(ours(x, lengths=lengths), nest(exact, dtype), exact)
    assert not ours(x, lengths=lengths)[0][:, 1].any()


def nest(value, dtype):
    return tuple(nest(v, dtype) for v in value) if isinstance(value, tuple) else value.to(dtype)


@dtypes
def test_it_is_the_kernel_that_computes(monkeypatch, dtype):
    _, ours, x = halves("GRU", dtype)
    exact = compare.wide(ours)(x.double())
    monkeypatch.setattr("birnn_ext.reference.layer", None)
    for found, right in zip(ours(x), exact, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), right.detach(), rtol=0, atol=2 * torch.finfo(dtype).eps)


@dtypes
@modes
def test_what_is_kept_for_backward_is_half_as_much(mode, dtype):
    def kept(module, x):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes), lambda t: t):
            module(x)
        return sum(sizes)

    _, ours, x = halves(mode, dtype)
    assert 2 * kept(ours, x) == kept(ours.float(), x.float())


@dtypes
@modes
def test_training(mode, dtype):
    torch.manual_seed(0)
    _, ours, x = halves(mode, dtype)
    head = nn.Linear(2 * H, 1, dtype=dtype)
    target = x.float().sum(-1, keepdim=True).cumsum(0)
    target = (target / target.abs().max()).to(dtype)
    optimizer = torch.optim.SGD([*ours.parameters(), *head.parameters()], lr=0.2)
    losses = []
    for _ in range(30):
        loss = (head(ours(x)[0]) - target).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(w.grad.dtype == dtype for w in ours.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@dtypes
@pytest.mark.parametrize("mode", ["GRU", "LSTM"])
def test_forward_mode_is_not_rounded_at_every_step(mode, dtype):
    """Many steps, each of which plain PyTorch would round: value and derivative are off by one rounding."""
    _, ours = compare.pair(mode, 3, 4, bidirectional=True)
    ours.to(dtype)
    x, tangent = torch.randn(2, 200, 1, 3).to(dtype)
    oracle = compare.wide(ours)
    exact = torch.func.jvp(lambda x: oracle(x)[0], (x.double(),), (tangent.double(),))
    found = torch.func.jvp(lambda x: ours(x)[0], (x,), (tangent,))
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == dtype
        assert (a - b).abs().max() < torch.finfo(dtype).eps / 2 * b.abs().max().clamp(min=1)
