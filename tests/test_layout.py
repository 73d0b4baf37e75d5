"""birnn_ext.layout: views of outputs and states, stacks taken apart and put together, every state by name.

What is computed by hand here runs on torch.nn's layers, and both libraries' layers are handed to the helpers.
"""

import compare
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import birnn_ext
from birnn_ext import layout

T, B, I, H, L = 5, 3, 4, 6, 3  # noqa: E741
MODES = {"GRU": {}, "LSTM": {}, "RNN": {"nonlinearity": "relu"}}
library = pytest.mark.parametrize("library", [nn, birnn_ext], ids=["torch", "ours"])
modes = pytest.mark.parametrize("mode", MODES)
directions = pytest.mark.parametrize("both", [True, False], ids=["both", "one"])
projected = pytest.mark.filterwarnings("ignore:LSTM with projections")


def make(library, mode, layers=L, **more):
    return getattr(library, mode)(I, H, layers, **MODES[mode], **{"bidirectional": True, **more})


def shares_memory(view, whole):
    return view.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


# ---- results ----


@directions
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
def test_halves_are_views_of_what_each_direction_computes(batch_first, both):
    layer = make(nn, "GRU", 1, bidirectional=both, batch_first=batch_first)
    x = torch.randn((B, T, I) if batch_first else (T, B, I))
    output, _ = layer(x)
    halves = layout.split_output(output, bidirectional=both)
    assert len(halves) == 1 + both and all(shares_memory(half, output) for half in halves)
    singles = layout.unstack(layer)[0]
    time = 1 if batch_first else 0
    assert torch.equal(halves[0], singles[0](x)[0])
    if both:
        assert torch.equal(halves[1], singles[1](x.flip(time))[0].flip(time))


def test_halves_of_unbatched_and_packed_outputs():
    layer = make(nn, "LSTM")
    output, _ = layer(torch.randn(T, I))
    assert [half.shape for half in layout.split_output(output)] == [(T, H)] * 2
    packed = pack_padded_sequence(torch.randn(T, B, I), [2, 5, 3], enforce_sorted=False)
    output, _ = layer(packed)
    forward, reverse = layout.split_output(output)
    assert isinstance(reverse, PackedSequence) and shares_memory(reverse.data, output.data)
    padded, _ = pad_packed_sequence(output)
    assert torch.equal(pad_packed_sequence(forward)[0], padded[..., :H])
    assert torch.equal(pad_packed_sequence(reverse)[0], padded[..., H:])


@directions
def test_hidden_rows_by_layer_and_direction(both):
    layer = make(nn, "LSTM", bidirectional=both)
    _, (h_n, c_n) = layer(torch.randn(T, B, I))
    h, c = layout.split_hidden((h_n, c_n), num_layers=L)
    for split, whole in ((h, h_n), (c, c_n), (layout.split_hidden(h_n, L), h_n)):
        assert len(split) == L and all(len(row) == 1 + both for row in split)
        for i, row in enumerate(split):
            for d, view in enumerate(row):
                assert torch.equal(view, whole[i * (1 + both) + d]) and shares_memory(view, whole)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: layout.split_output([1]), TypeError, "output should be a Tensor or a PackedSequence, got list"),
        (lambda: layout.split_output(torch.zeros(2, 3)), ValueError, r"even number of features.*got 3 \(shape \(2, 3\)\)"),
        (lambda: layout.split_output(torch.tensor(1.0)), ValueError, "output should have its features"),
        (lambda: layout.split_hidden(torch.zeros(5, 1, 1), 2), ValueError, r"num_layers = 2 rows.*got 5"),
        (lambda: layout.split_hidden(torch.zeros(4, 1, 1), 0), ValueError, "num_layers = 0"),
        (lambda: layout.split_hidden(torch.zeros(4, 1, 1), 2.0), TypeError, "num_layers should be an int, got float"),
        (lambda: layout.split_hidden(None), TypeError, "h_n should be a Tensor, got NoneType"),
        (lambda: layout.split_hidden((torch.zeros(2, 1),) * 3), ValueError, "h_n should be .* got 3 items"),
        (lambda: layout.split_hidden((torch.zeros(2, 1), 0)), TypeError, "c_n should be a Tensor, got int"),
    ],
)
def test_wrong_results_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


# ---- the last state ----


@directions
@modes
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
def test_last_state_by_every_road(mode, batch_first, both):
    """By h_n, by lengths, and packed: what torch.nn computes for each row alone."""
    lengths = [5, 1, 4]
    theirs = make(nn, mode, batch_first=batch_first, bidirectional=both)
    ours = birnn_ext.convert(make(nn, mode, batch_first=batch_first, bidirectional=both))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn((B, T, I) if batch_first else (T, B, I))
    rows = x if batch_first else x.transpose(0, 1)
    alone = [theirs(row[:n])[1] for row, n in zip(rows, lengths, strict=True)]
    alone = [state[0] if isinstance(state, tuple) else state for state in alone]
    expected = torch.stack([state[-(1 + both) :].flatten() for state in alone])
    output, states = ours(x, lengths=lengths)
    arguments = {"batch_first": batch_first, "bidirectional": both}
    packed, packed_states = theirs(pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False))
    for found in (
        layout.last_state(output, states, **arguments),
        layout.last_state(output, lengths=lengths, **arguments),
        layout.last_state(output, states, torch.tensor(lengths), **arguments),
        layout.last_state(packed, **arguments),
        layout.last_state(packed, packed_states, **arguments),
    ):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    plain, h_n = theirs(x)
    by_hand = torch.cat([plain.transpose(0, 1)[-1, :, :H] if batch_first else plain[-1, :, :H]], 1)
    assert torch.equal(layout.last_state(plain, **arguments)[:, :H], by_hand)
    assert torch.equal(layout.last_state(plain, h_n, **arguments), layout.last_state(plain, **arguments))


def test_lengths_win_over_the_states_of_a_plainly_padded_batch():
    """torch.nn run over the padding: h_n is that behind it, output at the lengths is not."""
    layer = make(nn, "GRU", 1)
    output, h_n = layer(torch.randn(T, B, I))
    found = layout.last_state(output, h_n, [2, 5, 3])
    assert torch.equal(found[0, :H], output[1, 0, :H]) and compare.differs(found[0, :H], h_n[0, 0])


def test_last_state_of_a_row_without_steps():
    layer = make(birnn_ext, "LSTM", 2)
    hx = torch.randn(4, B, H), torch.randn(4, B, H)
    output, states = layer(torch.randn(T, B, I), hx, [5, 0, 2])
    found = layout.last_state(output, states, [5, 0, 2])
    assert torch.equal(found[1], torch.cat([hx[0][2, 1], hx[0][3, 1]]))
    assert torch.equal(found[[0, 2]], layout.last_state(output, states)[[0, 2]])
    assert not layout.last_state(output, lengths=[5, 0, 2])[1].any()


def test_last_state_unbatched_and_differentiable():
    layer = make(birnn_ext, "GRU", 1)
    x = torch.randn(T, I, requires_grad=True)
    output, h_n = layer(x)
    assert torch.equal(layout.last_state(output, h_n), h_n.flatten())
    short = layout.last_state(layer(x, lengths=3)[0], lengths=3)
    torch.testing.assert_close(short, layer(x[:3])[1].flatten())
    short.sum().backward()
    assert x.grad[:3].any(dim=1).all() and not x.grad[3:].any()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"h_n": torch.zeros(2, B, H + 1)}, ValueError, r"h_n should have shape \(L\*2, 3, 6\).*got \(2, 3, 7\)"),
        ({"h_n": torch.zeros(3, B, H)}, ValueError, "h_n should have shape"),
        ({"h_n": "state"}, TypeError, "h_n should be a Tensor or the pair"),
        ({"lengths": [1, 2]}, ValueError, "lengths should have one entry for each of the 3 rows"),
        ({"lengths": [1, 2, 6]}, ValueError, "lengths should be between 0 and 5"),
        ({"output": torch.zeros(2, 2, 2, 4)}, ValueError, "output should have 2 or 3 dimensions, got 4"),
        ({"output": torch.zeros(0, B, 4)}, ValueError, "output should have at least one step"),
    ],
)
def test_wrong_arguments_of_last_state(arguments, error, text):
    with pytest.raises(error, match=text):
        layout.last_state(**{"output": torch.zeros(T, B, 2 * H), **arguments})


def test_lengths_beside_a_packed_output():
    packed = pack_padded_sequence(torch.randn(T, B, 4), [5, 5, 5])
    with pytest.raises(ValueError, match="lengths should be None for a PackedSequence"):
        layout.last_state(packed, lengths=[5, 5, 5])


# ---- stacks ----


@library
@modes
@directions
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
def test_a_stack_is_its_layers(library, mode, both, batch_first):
    """Layer upon layer by hand gives what the stack gives, and its parameters are the stack's own."""
    module = make(library, mode, bidirectional=both, batch_first=batch_first)
    x = torch.randn((B, T, I) if batch_first else (T, B, I))
    time = 1 if batch_first else 0
    output, states = module(x)
    ends = []
    for row in layout.unstack(module):
        outputs = []
        for d, single in enumerate(row):
            assert type(single) is type(module) and single.num_layers == 1 and not single.bidirectional
            out, end = single(x.flip(time) if d else x)
            outputs.append(out.flip(time) if d else out)
            ends.append(end)
        x = torch.cat(outputs, -1)
    torch.testing.assert_close(x, output, atol=1e-6, rtol=1e-5)
    ends = tuple(torch.cat(s) for s in zip(*ends, strict=True)) if mode == "LSTM" else torch.cat(ends)
    torch.testing.assert_close(ends, states, atol=1e-6, rtol=1e-5)


@library
@projected
@pytest.mark.parametrize("more", [{}, {"bias": False}, {"proj_size": 2}, {"bidirectional": False}], ids=str)
def test_unstack_and_stack_share_parameters(library, more):
    module = make(library, "LSTM", **more).eval()
    draws = torch.get_rng_state()
    layers = layout.unstack(module)
    again = layout.stack(layers, dropout=0.25)
    assert torch.equal(torch.get_rng_state(), draws)  # nothing is initialised on the way
    own = dict(module.named_parameters())
    assert {id(p) for row in layers for single in row for p in single.parameters()} == {id(p) for p in own.values()}
    assert all(p is own[name] for name, p in again.named_parameters()) and len(list(again.parameters())) == len(own)
    assert again.dropout == 0.25 and not again.training and not layers[0][0].training
    x = torch.randn(T, B, I)
    assert torch.equal(again(x)[0], module(x)[0])
    # Training one trains the other.
    layers[1][0](torch.randn(T, B, layers[1][0].input_size))[0].sum().backward()
    assert module.weight_hh_l1.grad is not None and module.weight_hh_l0.grad is None


def test_birnn_comes_apart_too():
    module = birnn_ext.BiRNN(I, H, 2, mode="RNN_RELU")
    layers = layout.unstack(module)
    assert type(layers[1][1]) is birnn_ext.RNN and layers[1][1].nonlinearity == "relu"
    assert layers[1][1].weight_hh_l0 is module.weight_hh_l1_reverse


def test_stack_of_one_directional_modules():
    layers = [nn.GRU(I, H), nn.GRU(H, H)]
    both = layout.stack(layers)
    x = torch.randn(T, B, I)
    assert torch.equal(both(x)[0], layers[1](layers[0](x)[0])[0]) and repr(both) == "GRU(4, 6, num_layers=2)"


@pytest.mark.parametrize(
    ("layers", "error", "text"),
    [
        ([], ValueError, "layers should hold at least one layer"),
        (nn.GRU(I, H), TypeError, "layers should be a list"),
        ([(nn.GRU(I, H), nn.GRU(I, H)), (nn.GRU(2 * H, H),)], ValueError, r"got 1 in layers\[1\]"),
        ([(nn.GRU(I, H), nn.Linear(I, H))], TypeError, r"layers\[0\]\[1\] should be an RNN, GRU or LSTM"),
        ([(nn.GRU(I, H), nn.LSTM(I, H))], ValueError, r"layers\[0\]\[1\] should have mode = 'GRU', got 'LSTM'"),
        ([(nn.GRU(I, H), nn.GRU(I, H + 1))], ValueError, r"layers\[0\]\[1\] should have hidden_size = 6, got 7"),
        ([(nn.GRU(I, H),) * 2, (nn.GRU(H, H),) * 2], ValueError, r"layers\[1\]\[0\] should have input_size = 12, got 6"),
        ([nn.GRU(I, H, 2)], ValueError, r"layers\[0\]\[0\] should be a single layer of one direction"),
        ([(nn.GRU(I, H), birnn_ext.GRU(I, H))], ValueError, r"layers\[0\]\[1\] should be of the same library"),
    ],
)
def test_layers_that_do_not_fit(layers, error, text):
    with pytest.raises(error, match=text):
        layout.stack(layers)


def test_what_cannot_be_unstacked():
    with pytest.raises(TypeError, match="module should be an RNN, GRU or LSTM of torch.nn or birnn_ext, got Linear"):
        layout.unstack(nn.Linear(1, 1))
    normed = nn.utils.parametrizations.weight_norm(birnn_ext.GRU(I, H), "weight_hh_l0")
    with pytest.raises(ValueError, match="module: weight_hh_l0 should be a plain Parameter"):
        layout.unstack(normed)


# ---- states by name ----


@library
@modes
@directions
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
def test_trace_is_the_layer_step_by_step(library, mode, both, batch_first):
    module = make(library, mode, bidirectional=both, batch_first=batch_first).double()
    x = torch.randn((B, T, I) if batch_first else (T, B, I), dtype=torch.float64)
    states = module.get_expected_hidden_size(x, None)
    hx = torch.randn(states, dtype=torch.float64)
    hx = (hx, torch.randn(states, dtype=torch.float64)) if mode == "LSTM" else hx
    output, end = module(x, hx)
    h_n = end[0] if mode == "LSTM" else end
    found = layout.trace(module, x, hx)
    kinds = "hc" if mode == "LSTM" else "h"
    suffixes = [f"_l{k}{suffix}" for k in range(L) for suffix in ("", "_reverse")[: 1 + both]]
    assert set(found) == {kind + suffix for kind in kinds for suffix in suffixes}
    if batch_first:
        found, output = {name: t.transpose(0, 1) for name, t in found.items()}, output.transpose(0, 1)
    last = [f"h_l{L - 1}", f"h_l{L - 1}_reverse"][: 1 + both]
    torch.testing.assert_close(torch.cat([found[name] for name in last], -1), output)
    for row, suffix in enumerate(suffixes):
        step = 0 if "reverse" in suffix else -1
        torch.testing.assert_close(found[f"h{suffix}"][step], h_n[row])
        if mode == "LSTM":
            torch.testing.assert_close(found[f"c{suffix}"][step], end[1][row])


def test_every_cell_state_of_an_lstm():
    """Against a layer that is stopped after each step, in both directions."""
    module = make(nn, "LSTM", 1).double()
    x = torch.randn(T, B, I, dtype=torch.float64)
    found = layout.trace(module, x)
    for t in range(T):
        torch.testing.assert_close(found["c_l0"][t], module(x[: t + 1])[1][1][0])
        torch.testing.assert_close(found["c_l0_reverse"][t], module(x[t:])[1][1][1])
        torch.testing.assert_close(found["h_l0_reverse"][t], module(x[t:])[1][0][1])


@projected
def test_trace_with_lengths_projection_and_gradients():
    module = make(birnn_ext, "LSTM", 2, proj_size=2).double()
    x = torch.randn(T, B, I, dtype=torch.float64)
    x[3:, 1] = torch.nan
    x.requires_grad_()
    output, (h_n, c_n) = module(x, lengths=[5, 3, 0])
    found = layout.trace(module, x, lengths=[5, 3, 0])
    torch.testing.assert_close(torch.cat([found["h_l1"], found["h_l1_reverse"]], -1), output)
    assert found["c_l1"].shape == (T, B, H) and found["h_l1"].shape == (T, B, 2)
    torch.testing.assert_close(found["c_l1"][2, 1], c_n[2, 1])
    torch.testing.assert_close(found["c_l0_reverse"][0, :2], c_n[1, :2])
    assert not found["c_l0"][3:, 1].any() and not found["c_l0"][:, 2].any()
    torch.autograd.backward(found["h_l1"].sum())
    assert x.grad.isfinite().all() and not x.grad[3:, 1].any()


def test_trace_of_a_single_row():
    module = make(birnn_ext, "LSTM", 1, batch_first=True)
    x, hx = torch.randn(T, I), (torch.randn(2, H), torch.randn(2, H))
    found = layout.trace(module, x, hx, 4)
    output, _ = module(x, hx, 4)
    torch.testing.assert_close(torch.cat([found["h_l0"], found["h_l0_reverse"]], -1), output)


@pytest.mark.parametrize(
    ("mode", "arguments", "error", "text"),
    [
        ("GRU", {"input": [1]}, TypeError, "input should be a Tensor, got list"),
        ("GRU", {"input": torch.zeros(2)}, ValueError, "input should have 2 or 3 dimensions, got 1"),
        ("GRU", {"input": torch.zeros(T, B, I + 1)}, RuntimeError, "must be equal to input_size"),
        ("GRU", {"input": torch.zeros(0, B, I)}, RuntimeError, "sequence length to be larger than 0"),
        ("GRU", {"hx": (1, 2)}, TypeError, "hx should be a Tensor or None, got tuple"),
        ("LSTM", {"hx": torch.zeros(2, B, H)}, TypeError, "hx should be a pair of Tensors"),
        ("GRU", {"hx": torch.zeros(2, B, H)}, RuntimeError, "Expected hidden size"),
        ("GRU", {"lengths": [1, 2, 9]}, ValueError, "lengths should be between 0 and 5"),
    ],
)
def test_wrong_arguments_of_trace(mode, arguments, error, text):
    with pytest.raises(error, match=text):
        layout.trace(make(nn, mode), **{"input": torch.zeros(T, B, I), **arguments})


@pytest.mark.parametrize("call", [birnn_ext.layout.unstack, lambda m: birnn_ext.layout.trace(m, torch.zeros(4, 2, 3))])
def test_a_variant_is_refused(call):
    """What these functions do is told in torch.nn's terms; a variant would be lost on the way."""
    with pytest.raises(ValueError, match="module should be a layer as torch.nn has it, got one with zoneout=0.1"):
        call(birnn_ext.GRU(3, 4, bidirectional=True, zoneout=0.1))
