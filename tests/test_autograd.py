"""First and second derivatives by finite differences, float64: gradcheck, gradgradcheck of every variant.

Sizes are tiny on purpose: finite differences cost a run per element. Values against torch.nn are in
test_module.
"""

import compare
import grids
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

T, B, I, H = 3, 2, 2, 2  # noqa: E741

CASES = grids.pairwise(
    mode=grids.MODES,
    layers=(1, 2),
    bidirectional=(True, False),
    bias=(True, False),
    lengths=(None, (2, 3), (3, 0)),
    hx=(False, True),
    batch_first=(False, True),
)
PROJECTED = grids.pairwise(layers=(1, 2), bidirectional=(True, False), lengths=(None, (2, 0)), hx=(False, True))
PROJECTED = [{"mode": "LSTM", "proj_size": 1, **case} for case in PROJECTED]


def problem(mode, layers, bidirectional, lengths, hx, batch_first=False, **options):
    """(function of all leaves, leaves) of one variant."""
    options |= {"bidirectional": bidirectional, "batch_first": batch_first, "dtype": torch.float64}
    _, ours = compare.pair(mode, I, H, layers, **options)
    # relu has no derivative at its kink: away from it, finite differences agree with what autograd says.
    x = torch.randn((B, T, I) if batch_first else (T, B, I), dtype=torch.float64).requires_grad_()
    start = compare.tensors(compare.states(ours, B, requires_grad=True)) if hx else []
    names = [name for name, _ in ours.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in ours.parameters()]

    def run(x, *rest):
        start, weights = rest[: len(rest) - len(names)], rest[len(rest) - len(names) :]
        state = None if not start else start[0] if mode != "LSTM" else tuple(start)
        kwargs = {"lengths": None if lengths is None else list(lengths)}
        results = torch.func.functional_call(ours, dict(zip(names, weights, strict=True)), (x, state), kwargs)
        return tuple(compare.tensors(results))

    return run, (x, *start, *weights)


@pytest.mark.parametrize("case", CASES + PROJECTED, ids=grids.name)
def test_first_derivatives(case):
    run, leaves = problem(**case)
    assert gradcheck(run, leaves)


@pytest.mark.parametrize("case", CASES + PROJECTED, ids=grids.name)
def test_second_derivatives(case):
    run, leaves = problem(**case)
    assert gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("mode", grids.MODES)
def test_gradient_penalty_equals_torch(mode):
    """A loss on the norm of the input's gradient, a gradient penalty, against torch.nn in float64."""
    theirs, ours = compare.pair(mode, 3, 4, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    found = []
    for module in (ours, theirs):
        (slope,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        penalty = (slope.norm(dim=-1) - 1).square().sum()
        found.append(torch.autograd.grad(penalty, [x, *module.parameters()], allow_unused=True, materialize_grads=True))
    compare.check(found[0], found[1], found[1])


@pytest.mark.parametrize("wanted", ["input", "hx", "weights", "one_weight", "bias"])
@pytest.mark.parametrize("mode", grids.MODES)
def test_only_what_requires_grad(mode, wanted):
    """Frozen inputs, states and weights in any mixture get no gradient and disturb nobody else's."""
    theirs, ours = compare.pair(mode, 3, 4, bidirectional=True, dtype=torch.float64)
    found = []
    for module in (ours, theirs):
        torch.manual_seed(1)
        x = torch.randn(4, 2, 3, dtype=torch.float64).requires_grad_(wanted == "input")
        hx = compare.states(module, 2, requires_grad=wanted == "hx")
        for name, weight in module.named_parameters():
            weight.requires_grad_(
                wanted == "weights"
                or (wanted == "one_weight" and name == "weight_hh_l0_reverse")
                or (wanted == "bias" and name == "bias_hh_l0")
            )
        leaves = [t for t in (x, *compare.tensors(hx), *module.parameters()) if t.requires_grad]
        output, state = module(x, hx)
        found.append(torch.autograd.grad(output.square().sum() + compare.tensors(state)[-1].sum(), leaves))
    compare.check(found[0], found[1], found[1])


@pytest.mark.parametrize("used", ["output", "h_n", "c_n"])
def test_only_one_result_is_used(used):
    theirs, ours = compare.pair("LSTM", 3, 4, bidirectional=True, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    found = []
    for module in (ours, theirs):
        output, (h_n, c_n) = module(x)
        result = {"output": output, "h_n": h_n, "c_n": c_n}[used]
        found.append(torch.autograd.grad(result.square().sum(), [x, *module.parameters()]))
    compare.check(found[0], found[1], found[1])
