"""The `lengths` argument: its meaning against torch.nn row by row, its forms, its errors."""

import compare
import grids
import numpy as np
import pytest
import torch

import birnn_ext

T, B, I, H = 6, 7, 3, 5  # noqa: E741
LENGTHS = grids.ragged(T, B)

CASES = grids.pairwise(
    mode=grids.MODES,
    layers=(1, 2),
    bidirectional=(True, False),
    batch_first=(False, True),
    hx=(False, True),
    shape=("one_step", "one_row", "odd", "lane_plus_1", "tall"),
    dtype=(torch.float32, torch.float64),
)


@pytest.mark.parametrize("case", CASES, ids=grids.name)
def test_every_row_by_itself(case):
    """Output, states and all gradients are those of running each row alone on its own steps."""
    shape, dtype = grids.SHAPES[case["shape"]], case["dtype"]
    theirs, ours = compare.pair(
        case["mode"], shape.I, shape.H, case["layers"], bidirectional=case["bidirectional"], dtype=dtype
    )
    ours.batch_first = case["batch_first"]
    lengths = grids.ragged(shape.T, shape.B)
    x = torch.randn(shape.T, shape.B, shape.I, dtype=dtype, requires_grad=True)
    hx = compare.states(theirs, shape.B, requires_grad=True) if case["hx"] else None
    expected = compare.by_row(theirs, x, hx, lengths)
    exact_x, exact_hx, exact_module = compare.wide(x), compare.wide(hx), compare.wide(theirs)
    exact = compare.by_row(exact_module, exact_x, exact_hx, lengths)
    output, state = ours(x.transpose(0, 1) if ours.batch_first else x, hx, lengths)
    found = output.transpose(0, 1) if ours.batch_first else output, state
    compare.check(found, expected, exact)

    cotangents = [torch.randn_like(t) for t in compare.tensors(expected)]
    compare.check(
        compare.gradients(found, cotangents, [x, *compare.tensors(hx), *ours.parameters()]),
        compare.gradients(expected, cotangents, [x, *compare.tensors(hx), *theirs.parameters()]),
        compare.gradients(
            exact,
            [c.double() for c in cotangents],
            [exact_x, *compare.tensors(exact_hx), *exact_module.parameters()],
        ),
    )


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projection_and_lengths():
    theirs, ours = compare.pair("LSTM", I, H, 2, bidirectional=True, proj_size=2)
    x, hx = torch.randn(T, B, I), compare.states(theirs, B)
    exact = compare.by_row(compare.wide(theirs), compare.wide(x), compare.wide(hx), LENGTHS)
    compare.check(ours(x, hx, LENGTHS), compare.by_row(theirs, x, hx, LENGTHS), exact)


@pytest.fixture
def layer():
    return birnn_ext.GRU(I, H, bidirectional=True)


def test_a_row_of_length_zero(layer):
    """Gives zeros and hands its initial state through, exactly."""
    x, h_0 = torch.randn(T, B, I), torch.randn(2, B, H)
    output, h_n = layer(x, h_0, lengths=LENGTHS)
    empty = [b for b, n in enumerate(LENGTHS) if n == 0]
    assert empty and torch.equal(h_n[:, empty], h_0[:, empty]) and not output[:, empty].any()
    assert output.size(0) == T


def test_output_beyond_the_length_is_zero(layer):
    output, _ = layer(torch.randn(T, B, I), lengths=LENGTHS)
    for b, n in enumerate(LENGTHS):
        assert not output[n:, b].any() and (n == 0 or output[:n, b].all())


def test_full_lengths_change_nothing():
    theirs, ours = compare.pair("LSTM", I, H, 2, bidirectional=True)
    x = torch.randn(T, B, I)
    compare.check(ours(x, None, [T] * B), theirs(x), compare.wide(theirs)(x.double()))


def test_all_rows_empty():
    for mode in grids.MODES:
        _, ours = compare.pair(mode, I, H, 2, bidirectional=True)
        hx = compare.states(ours, B)
        output, state = ours(torch.randn(T, B, I), hx, [0] * B)
        assert not output.any()
        assert all(torch.equal(a, b) for a, b in zip(compare.tensors(state), compare.tensors(hx), strict=True))


@pytest.mark.parametrize("mode", grids.MODES)
def test_padding_is_never_read(mode):
    theirs, ours = compare.pair(mode, I, H, 2, bidirectional=True)
    x = torch.randn(T, B, I)
    dirty = x.clone()
    for b, n in enumerate(LENGTHS):
        dirty[n:, b] = torch.nan
    dirty.requires_grad_()
    expected = compare.by_row(theirs, x, None, LENGTHS)
    found = ours(dirty, None, LENGTHS)
    compare.check(found, expected, compare.by_row(compare.wide(theirs), x.double(), None, LENGTHS))
    ones = [torch.ones_like(t) for t in compare.tensors(found)]
    gradients = compare.gradients(found, ones, [dirty, *ours.parameters()])
    assert all(g.isfinite().all() for g in gradients)


FORMS = {
    "list": list,
    "tuple": tuple,
    "numpy": np.array,
    "list_of_tensors": lambda n: [torch.tensor(i) for i in n],
    "strided": lambda n: torch.tensor([n, n]).t()[:, 1],
    **{str(d).removeprefix("torch."): lambda n, d=d: torch.tensor(n, dtype=d)
       for d in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16)},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms(form):
    theirs, ours = compare.pair("GRU", I, H, bidirectional=True)
    x = torch.randn(T, B, I)
    exact = compare.by_row(compare.wide(theirs), x.double(), None, LENGTHS)
    compare.check(ours(x, None, FORMS[form](LENGTHS)), compare.by_row(theirs, x, None, LENGTHS), exact)


@pytest.mark.parametrize("lengths", [3, torch.tensor(3), [3], torch.tensor([3])], ids=repr)
def test_unbatched(lengths):
    theirs, ours = compare.pair("LSTM", I, H, bidirectional=True)
    x = torch.randn(T, I)
    output, (h_n, c_n) = ours(x, None, lengths)
    expected, (expected_h, expected_c) = theirs(x[:3])
    torch.testing.assert_close(output[:3], expected)
    torch.testing.assert_close((h_n, c_n), (expected_h, expected_c))
    assert output.shape == (T, 2 * H) and not output[3:].any()


def test_no_rows(layer):
    for lengths in ([], torch.zeros(0, dtype=torch.int64)):
        output, h_n = layer(torch.randn(T, 0, I), None, lengths)
        assert output.shape == (T, 0, 2 * H) and h_n.shape == (2, 0, H)


GOOD = [3] * B
WRONG = {
    "float_tensor": (torch.ones(B), TypeError, "lengths should hold integers, got a tensor of torch.float32"),
    "nan": (torch.full((B,), torch.nan), TypeError, "lengths should hold integers"),
    "bool_tensor": (torch.ones(B, dtype=torch.bool), TypeError, "got a tensor of torch.bool"),
    "float_entry": ([3.0, *GOOD[1:]], TypeError, "lengths should hold integers, got float at position 0"),
    "bool_entry": ([*GOOD[1:], True], TypeError, f"got bool at position {B - 1}"),
    "text": ("3333333", TypeError, "lengths should be an integer tensor or a list of integers, got str"),
    "number": (3, TypeError, "lengths should be an integer tensor or a list of integers, got int"),
    "nested": ([GOOD], TypeError, "got list at position 0"),
    "rank_0": (torch.tensor(3), ValueError, f"expected shape ({B},), got ()"),
    "rank_2": (torch.tensor([GOOD]), ValueError, f"expected shape ({B},), got (1, {B})"),
    "too_few": (GOOD[1:], ValueError, f"one entry for each of the {B} rows of input"),
    "too_many": (torch.tensor(GOOD + [1]), ValueError, f"expected shape ({B},), got ({B + 1},)"),
    "negative": ([*GOOD[1:], -1], ValueError, f"between 0 and {T}, the steps of input, got -1 for row {B-1}"),
    "beyond": ([3, T + 1, *GOOD[2:]], ValueError, f"0 and {T}, the steps of input, got {T + 1} for row 1"),
    "beyond_tensor": (torch.tensor([3, 99, *GOOD[2:]]), ValueError, "got 99 for row 1"),
    "huge_unsigned": (torch.tensor(GOOD, dtype=torch.uint8) + 250, ValueError, "got 253 for row 0"),
}  # fmt: skip


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("case", WRONG)
def test_errors(case, batch_first):
    lengths, kind, text = WRONG[case]
    layer = birnn_ext.GRU(I, H, batch_first=batch_first)
    x = torch.randn(B, T, I) if batch_first else torch.randn(T, B, I)
    with pytest.raises(kind) as caught:
        layer(x, None, lengths)
    assert text in str(caught.value)


def test_lengths_under_vmap():
    """One row at a time with its own length, as torch.func sees it: values that nobody may look at."""
    theirs, ours = compare.pair("GRU", I, H, bidirectional=True)
    x = torch.randn(B, T, I)
    lengths = torch.tensor(LENGTHS)
    with torch.no_grad():
        output, h_n = torch.func.vmap(lambda row, n: ours(row, None, n))(x, lengths)
        expected, expected_h = compare.by_row(theirs, x.transpose(0, 1), None, LENGTHS)
    torch.testing.assert_close(output.transpose(0, 1), expected)
    torch.testing.assert_close(h_n.transpose(0, 1), expected_h)


def test_a_numpy_integer_is_a_length_of_an_unbatched_input():
    ours = compare.pair("GRU", 3, 4)[1]
    x = torch.randn(5, 3)
    assert torch.equal(ours(x, lengths=np.int64(2))[0], ours(x, lengths=2)[0])
