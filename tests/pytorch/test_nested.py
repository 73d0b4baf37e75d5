"""Nested (jagged) tensors in and out: the same numbers as `lengths`."""

import compare
import pytest
import torch
from torch import nn

import birnn_ext

MODES = ("RNN_TANH", "LSTM", "GRU")
modes = pytest.mark.parametrize("mode", MODES)


def problem(mode, lengths=(4, 0, 2, 4), **options):
    """(layer, rows, the rows padded, lengths)."""
    ours = compare.OURS[mode](3, 4, 2, bidirectional=True, batch_first=True, dtype=torch.float64, **options)
    rows = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in lengths]
    return ours, rows, nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor(lengths)


@modes
@pytest.mark.parametrize("start", [False, True], ids=["zeros", "hx"])
def test_same_as_lengths(mode, start):
    ours, rows, padded, lengths = problem(mode)
    hx = compare.states(ours, 4, requires_grad=True) if start else None
    nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    found, state = ours(nested, hx)
    expected, expected_state = ours(padded, hx, lengths)
    assert found.is_nested and found.layout == torch.jagged and found.shape[1] == nested.shape[1]
    for row, right, n in zip(found.unbind(), expected, lengths.tolist(), strict=True):
        assert torch.equal(row, right[:n])
    assert all(torch.equal(a, b) for a, b in zip(compare.tensors(state), compare.tensors(expected_state), strict=True))
    leaves = [*rows, *compare.tensors(hx), *ours.parameters()]
    tail = sum(s.cos().sum() for s in compare.tensors(state))
    grads = torch.autograd.grad(found.values().sin().sum() + tail, leaves, retain_graph=True)
    tail = sum(s.cos().sum() for s in compare.tensors(expected_state))
    torch.testing.assert_close(grads, torch.autograd.grad(expected.sin().sum() + tail, leaves))


def test_it_composes_with_other_layers_on_nested_tensors():
    ours, rows, *_ = problem("GRU")
    linear = nn.Linear(8, 3, dtype=torch.float64)
    nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    again, _ = ours(linear(ours(nested)[0]) + nested)  # the sum needs the same ragged dimension
    assert [len(row) for row in again.unbind()] == [4, 0, 2, 4]


def test_all_rows_empty_and_gaps():
    ours, _, padded, _ = problem("LSTM")
    empty = torch.nested.nested_tensor_from_jagged(torch.randn(0, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.int64))
    output, (h_n, c_n) = ours(empty)
    assert output.values().shape == (0, 8) and h_n.shape == (4, 2, 4) and not h_n.any() and not c_n.any()
    starts, lengths = torch.tensor([1, 0, 2, 1]), torch.tensor([2, 4, 0, 1])
    gaps = torch.nested.narrow(padded, 1, starts, lengths, layout=torch.jagged)
    output, _ = ours(gaps)
    for row, whole, start, n in zip(output.unbind(), padded, starts, lengths, strict=True):
        expected = ours(whole[start : start + n])[0] if n else torch.zeros(0, 8, dtype=torch.float64)
        torch.testing.assert_close(row, expected)


def test_errors():
    ours, rows, *_ = problem("GRU")
    nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    with pytest.raises(ValueError, match="lengths should be None for a nested tensor"):
        ours(nested, None, [1, 1, 1, 1])
    with pytest.raises(ValueError, match="should have batch_first=True, got False"):
        birnn_ext.GRU(3, 4, dtype=torch.float64)(nested)
    with pytest.raises(ValueError, match=r"\[B, T, I\] with ragged T, got 3-D, ragged in dimension 2"):
        ours(nested.transpose(1, 2))
    with pytest.warns(UserWarning, match="prototype"):
        strided = torch.nested.nested_tensor([r.detach() for r in rows], layout=torch.strided)
    with pytest.raises(ValueError, match="should have the layout torch.jagged, got torch.strided"):
        ours(strided)
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(4, 4, 4\), got \[4, 3, 4\]"):
        ours(nested, torch.zeros(4, 3, 4, dtype=torch.float64))


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_contrast_torch_takes_none(kind):
    """As of torch 2.13."""
    nested = torch.nested.nested_tensor([torch.randn(n, 3) for n in (4, 2)], layout=torch.jagged)
    with pytest.raises((RuntimeError, ValueError, NotImplementedError)):
        kind(3, 4, batch_first=True)(nested)
