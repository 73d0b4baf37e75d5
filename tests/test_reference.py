"""The reference layer against torch.nn in float64: the oracle of all else has to be right first."""

import compare
import grids
import pytest
import torch
from torch import nn

from birnn_ext import reference

CASES = grids.pairwise(
    mode=grids.MODES,
    shape=("one_step", "one_row", "one_unit", "odd", "tall"),
    bidirectional=(True, False),
    bias=(True, False),
    batch_first=(False, True),
    hx=(False, True),
    projected=(False, True),
)
CASES = [{**case, "projected": case["projected"] and case["mode"] == "LSTM"} for case in CASES]


def build(mode, shape, projected=False, **kwargs):
    """(torch.nn layer in float64, its weights as the reference takes them)."""
    kwargs |= {"dtype": torch.float64}
    if projected and shape.H > 1:
        kwargs["proj_size"] = (shape.H + 1) // 2
    theirs, ours = compare.pair(mode, shape.I, shape.H, **kwargs)
    return theirs, ours._layers()[0]


def call(weights, x, hx, mode, lengths=None, batch_first=False):
    h0, c0 = hx if isinstance(hx, tuple) else (hx, None)
    output, h_n, c_n = reference.layer(x, h0, c0, lengths, weights, mode=mode, batch_first=batch_first)
    assert (c_n is None) == (mode != "LSTM")
    return output, h_n if c_n is None else (h_n, c_n)


@pytest.mark.parametrize("case", CASES, ids=grids.name)
def test_equals_torch(case):
    shape, mode, batch_first = grids.SHAPES[case["shape"]], case["mode"], case["batch_first"]
    options = {k: case[k] for k in ("bidirectional", "bias", "batch_first")}
    theirs, weights = build(mode, shape, case["projected"], **options)
    x = torch.randn(shape.B, shape.T, shape.I, dtype=torch.float64, requires_grad=True)
    x = x if batch_first else x.transpose(0, 1)
    hx = compare.states(theirs, shape.B, requires_grad=True) if case["hx"] else None
    ours, expected = call(weights, x, hx, mode, batch_first=batch_first), theirs(x, hx)
    compare.check(ours, expected, expected)
    leaves = [x, *compare.tensors(hx), *theirs.parameters()]
    own = [x, *compare.tensors(hx), *(w for direction in weights for w in direction if w is not None)]
    cotangents = [torch.randn_like(t) for t in compare.tensors(expected)]
    exact = compare.gradients(expected, cotangents, leaves)
    compare.check(compare.gradients(ours, cotangents, own), exact, exact)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_direction", "both"])
@pytest.mark.parametrize("mode", grids.MODES)
def test_lengths_mean_every_row_by_itself(mode, bidirectional):
    shape = grids.Shape(6, 7, 3, 5)
    theirs, weights = build(mode, shape, bidirectional=bidirectional)
    x = torch.randn(shape.T, shape.B, shape.I, dtype=torch.float64)
    hx = compare.states(theirs, shape.B)
    lengths = grids.ragged(shape.T, shape.B)
    expected = compare.by_row(theirs, x, hx, lengths)
    compare.check(call(weights, x, hx, mode, torch.tensor(lengths)), expected, expected)


@pytest.mark.parametrize("mode", grids.MODES)
def test_padding_is_never_read(mode):
    """NaN and inf beyond the lengths reach neither a result nor a gradient."""
    shape = grids.Shape(4, 3, 2, 3)
    theirs, weights = build(mode, shape, bidirectional=True)
    lengths = [2, 0, 4]
    x = torch.randn(shape.T, shape.B, shape.I, dtype=torch.float64)
    dirty = x.clone()
    dirty[2, 0], dirty[3, 0], dirty[:, 1] = torch.nan, torch.inf, -torch.inf
    dirty.requires_grad_()
    expected = compare.by_row(theirs, x.requires_grad_(), None, lengths)
    ours = call(weights, dirty, None, mode, torch.tensor(lengths))
    compare.check(ours, expected, expected)
    cotangents = [torch.randn_like(t) for t in compare.tensors(expected)]
    exact = compare.gradients(expected, cotangents, [x, *theirs.parameters()])
    own = [dirty, *(w for direction in weights for w in direction if w is not None)]
    compare.check(compare.gradients(ours, cotangents, own), exact, exact)


@pytest.mark.parametrize("mode", grids.MODES)
def test_runs_under_func_transforms(mode):
    """Per-sample gradients by vmap(grad), against one row after the other with torch.nn."""
    shape = grids.Shape(4, 3, 2, 3)
    theirs, weights = build(mode, shape, bidirectional=True)
    x = torch.randn(shape.B, shape.T, shape.I, dtype=torch.float64)
    lengths = torch.tensor([4, 0, 2])

    def loss(w_hh, row, steps):
        changed = ((weights[0][0], w_hh, *weights[0][2:]), weights[1])
        output, state = call(changed, row.unsqueeze(1), None, mode, steps.unsqueeze(0))
        return output.square().sum() + sum(s.sum() for s in compare.tensors(state))

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights[0][1], x, lengths)
    for b, steps in enumerate(lengths.tolist()):
        output, state = compare.by_row(theirs, x[b].unsqueeze(1), None, [steps])
        total = output.square().sum() + sum(s.sum() for s in compare.tensors(state))
        if steps:
            (expected,) = torch.autograd.grad(total, theirs.weight_hh_l0)
        else:
            expected = torch.zeros_like(theirs.weight_hh_l0)
        compare.check(found[b], expected, expected)


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("mode", ["RNN_TANH", "LSTM", "GRU"])
def test_other_dtypes(mode, dtype):
    theirs = compare.TORCH[mode](3, 4, bidirectional=True, dtype=dtype)
    x = torch.randn(5, 2, 3, dtype=dtype)
    weights = compare.OURS[mode](3, 4, bidirectional=True, dtype=dtype)
    weights.load_state_dict(theirs.state_dict())
    exact_type = torch.complex128 if dtype.is_complex else torch.float64
    with torch.no_grad():
        expected = theirs(x)
        ours = call(weights._layers()[0], x, None, mode)
        exact = theirs.to(exact_type)(x.to(exact_type))
    compare.check(ours, expected, exact)


def test_leaves_its_arguments_alone():
    theirs, weights = build("GRU", grids.SHAPES["odd"], bidirectional=True)
    x, hx = torch.randn(7, 3, 5, dtype=torch.float64), compare.states(theirs, 3)
    before = x.clone(), hx.clone()
    call(weights, x, hx, "GRU", torch.tensor([3, 7, 0]))
    assert torch.equal(x, before[0]) and torch.equal(hx, before[1])


def test_gru_resets_behind_the_product():
    """torch.nn's form; the paper's, with the reset before the product, gives other numbers."""
    cell = nn.GRUCell(9, 3, bias=False)
    with torch.no_grad():
        cell.weight_ih.copy_(torch.eye(9))  # the input is the gates
        x, h = torch.randn(2, 9), torch.randn(2, 3)
        (found,) = reference.gru(x, h @ cell.weight_hh.T, (h,))
        torch.testing.assert_close(found, cell(x, h))
