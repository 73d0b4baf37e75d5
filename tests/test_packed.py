"""PackedSequence in and out, against torch.nn: sorted and unsorted, results, states, gradients."""

import compare
import grids
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from birnn_ext import packed as packing

I, H = 3, 5  # noqa: E741
LENGTHS = {
    "sorted": [6, 4, 4, 1],
    "unsorted": [2, 6, 1, 4, 4],
    "equal": [3, 3, 3],
    "one_row": [5],
    "one_step": [1, 1],
}


def rows(name, dtype=torch.float32):
    return [torch.randn(n, I, dtype=dtype, requires_grad=True) for n in LENGTHS[name]]


def pack(sequences, name):
    return pack_sequence(sequences, enforce_sorted=name == "sorted")


@pytest.mark.parametrize("hx", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_direction", "both"])
@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("mode", grids.MODES)
def test_equals_torch(mode, name, bidirectional, hx):
    theirs, ours = compare.pair(mode, I, H, 2, bidirectional=bidirectional)
    sequences = rows(name)
    hx = compare.states(theirs, len(sequences), requires_grad=True) if hx else None
    exact, exact_sequences, exact_hx = compare.wide(theirs), compare.wide(sequences), compare.wide(hx)
    found, expected = ours(pack(sequences, name), hx), theirs(pack(sequences, name), hx)
    exact_results = exact(pack(exact_sequences, name), exact_hx)
    compare.check(found, expected, exact_results)
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        a, b = getattr(found[0], field), getattr(expected[0], field)
        assert (a is None and b is None) or torch.equal(a, b)
    assert type(found[0]) is PackedSequence

    cotangents = [torch.randn_like(t) for t in compare.tensors(expected)]
    compare.check(
        compare.gradients(found, cotangents, [*sequences, *compare.tensors(hx), *ours.parameters()]),
        compare.gradients(expected, cotangents, [*sequences, *compare.tensors(hx), *theirs.parameters()]),
        compare.gradients(
            exact_results,
            [c.double() for c in cotangents],
            [*exact_sequences, *compare.tensors(exact_hx), *exact.parameters()],
        ),
    )


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projection():
    theirs, ours = compare.pair("LSTM", I, H, 2, bidirectional=True, proj_size=2)
    packed, hx = pack(rows("unsorted"), "unsorted"), compare.states(theirs, 5)
    exact = compare.wide(theirs)(packed.double(), compare.wide(hx))
    compare.check(ours(packed, hx), theirs(packed, hx), exact)


@pytest.mark.parametrize("mode", grids.MODES)
def test_packed_and_lengths_give_the_same_numbers(mode):
    """Held on both sides by torch.nn's packed result."""
    theirs, ours = compare.pair(mode, I, H, 2, bidirectional=True)
    lengths = LENGTHS["unsorted"]
    x = torch.randn(6, 5, I)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    expected, state = theirs(packed)
    expected = pad_packed_sequence(expected)[0], state
    exact, exact_state = compare.wide(theirs)(packed.double())
    exact = pad_packed_sequence(exact)[0], exact_state
    by_packed = ours(packed)
    compare.check((pad_packed_sequence(by_packed[0])[0], by_packed[1]), expected, exact)
    compare.check(ours(x, None, lengths), expected, exact)


def test_batch_first_does_not_concern_packed_input():
    theirs, ours = compare.pair("GRU", I, H, bidirectional=True, batch_first=True)
    packed = pack(rows("unsorted"), "unsorted")
    compare.check(ours(packed), theirs(packed), compare.wide(theirs)(packed.double()))


@pytest.mark.parametrize("name", LENGTHS)
def test_to_padded(name):
    """Against pad_packed_sequence, on the steps that exist."""
    sequences = rows(name)
    packed = pack(sequences, name)
    padded, lengths = packing.to_padded(packed)
    expected, expected_lengths = pad_packed_sequence(packed)
    assert padded.shape == expected.shape and lengths.dtype == torch.int64
    assert lengths.tolist() == expected_lengths.tolist() == LENGTHS[name]
    for b, n in enumerate(LENGTHS[name]):
        assert torch.equal(padded[:n, b], sequences[b])


@pytest.mark.parametrize("name", LENGTHS)
def test_to_packed(name):
    """Against pack_padded_sequence, with its gradient."""
    packed = pack(rows(name), name)
    padded = torch.randn(max(LENGTHS[name]), len(LENGTHS[name]), 2 * H, requires_grad=True)
    found = packing.to_packed(padded, packed)
    expected = pack_padded_sequence(padded, torch.tensor(LENGTHS[name]), enforce_sorted=False)
    assert torch.equal(found.data, expected.data)
    weight = torch.randn_like(found.data)
    (gradient,) = torch.autograd.grad(found.data, padded, weight)
    assert torch.equal(gradient, torch.autograd.grad(expected.data, padded, weight)[0])


def test_dropout_between_packed_layers():
    """Padded and packed data draw differently; with everything dropped there is only one answer."""
    _, ours = compare.pair("RNN_RELU", I, 64, 2, dropout=1.0)
    theirs = compare.TORCH["RNN_RELU"](I, 64, 2, nonlinearity="relu", dropout=1.0)
    theirs.load_state_dict(ours.state_dict())
    packed = pack(rows("unsorted"), "unsorted")
    torch.testing.assert_close(ours(packed)[0].data, theirs(packed)[0].data)
    assert compare.differs(ours(packed)[0].data, ours.eval()(packed)[0].data)
