"""The variants, each and in mixtures, against loops written by hand (varied_loop.py), in float64: results and gradients.

Not here: how a layer with a variant behaves as a module (test_variants_module.py), and initialisation
(test_variants_init.py).
"""

import random

import compare
import grids
import pytest
import torch
import varied_loop
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import birnn_ext
from birnn_ext import ops, reference, varied_layer

T, B, I, H = 5, 4, 3, 6  # noqa: E741
KINDS = ("RNN_TANH", "RNN_RELU", "LSTM", "GRU", "LSTM_PROJ")
kinds = pytest.mark.parametrize("kind", KINDS)
directions = pytest.mark.parametrize("bidirectional", [False, True], ids=["one_direction", "both"])


def build(kind, layers=1, bidirectional=True, dtype=torch.float64, **options):
    mode, options = kind.removesuffix("_PROJ"), dict(options)
    if kind == "LSTM_PROJ":
        options["proj_size"] = 4
    layer = compare.OURS[mode](I, H, layers, bidirectional=bidirectional, dtype=dtype, **compare.arguments(mode, options))
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            if name.startswith(("gain", "bias")):  # a gain of one and a bias of zero would show nothing
                weight.uniform_(-1, 1)
    return layer


def resets(lengths=None):
    """bool [T, B]: at a first step, in the middle, twice in a row, at a row's last step, beyond a length, nowhere."""
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[0, 0] = reset[2, 0] = reset[2, 1] = reset[3, 1] = reset[T - 1, 2] = True
    return reset


def check(layer, batch_first=False, hx=False, lengths=None, reset=None, return_states=True):
    """Results and gradients of a call against the loop; both draw from the same seed."""
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    state = compare.states(layer, B, requires_grad=True) if hx else None

    def turn(t):
        return t.transpose(0, 1) if batch_first else t

    torch.manual_seed(5)
    expected = compare.tensors(varied_loop.run(layer, x, state, lengths, reset))
    torch.manual_seed(5)
    output, ends, *states = layer(
        turn(x), state, lengths, reset=None if reset is None else turn(reset), return_states=return_states
    )
    assert len(states) == return_states
    found = [turn(t) for t in compare.tensors(output)] + compare.tensors(ends) + [turn(t) for t in compare.tensors(states)]
    expected = expected[: len(found)]
    torch.testing.assert_close(found, expected)
    leaves = [x, *compare.tensors(state), *layer.parameters()]
    cotangents = [torch.randn_like(t) for t in expected]
    torch.testing.assert_close(*(torch.autograd.grad(results, leaves, cotangents) for results in (found, expected)))


VARIANTS = {
    "sum": {"merge_mode": "sum"},
    "mean": {"merge_mode": "mean"},
    "mul": {"merge_mode": "mul"},
    "pair": {"merge_mode": None},
    "recurrent_dropout": {"recurrent_dropout": 0.4},
    "zoneout": {"zoneout": 0.3},
    "weight_drop": {"weight_drop": 0.5},
    "layer_norm": {"layer_norm": True},
}
# There is nothing to merge in one direction: to ask for it is an error.
CASES = [(v, both) for v, options in VARIANTS.items() for both in (True, False) if both or "merge_mode" not in options]


@kinds
@pytest.mark.parametrize("variant, bidirectional", CASES)
def test_each_by_itself(kind, variant, bidirectional):
    layer = build(kind, bidirectional=bidirectional, **VARIANTS[variant])
    check(layer)
    check(layer.eval(), hx=True, lengths=grids.ragged(T, B))


@kinds
@directions
def test_resets(kind, bidirectional):
    layer = build(kind, 2, bidirectional)
    check(layer, reset=resets())
    check(layer, batch_first=False, hx=True, lengths=[T, 2, 0, 3], reset=resets())


def mixtures():
    """40 layers and calls in which everything varies at once; a fixed choice."""
    choose = random.Random(0).choice
    for _ in range(40):
        kind, both = choose(KINDS), choose((True, True, False))
        zones = (0.0, 0.3, 0.0, (0.4, 0.2)) if kind.startswith("LSTM") else (0.0, 0.3)
        options = {
            "layers": choose((1, 2, 3)),
            "bidirectional": both,
            "batch_first": choose((False, True)),
            "bias": choose((True, True, False)),
            "merge_mode": choose(("concat", "sum", "mean", "mul", None)) if both else "concat",
            "recurrent_dropout": choose((0.0, 0.5)),
            "zoneout": choose(zones),
            "weight_drop": choose((0.0, 0.5)),
            "layer_norm": choose((False, True)),
        }
        call = {name: choose((False, True)) for name in ("training", "hx", "lengths", "reset", "return_states")}
        yield pytest.param(kind, options, call, id=grids.name({"kind": kind} | options | call))


@pytest.mark.parametrize("kind, options, call", list(mixtures()))
def test_mixtures(kind, options, call):
    layer = build(kind, **options).train(call["training"])
    check(
        layer,
        batch_first=options["batch_first"],
        hx=call["hx"],
        lengths=[3, T, 0, 4] if call["lengths"] else None,
        reset=resets() if call["reset"] else None,
        return_states=call["return_states"],
    )


# ------------------------------------------------------------------------------------------------ resets


@kinds
@directions
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_a_reset_divides_a_row_into_episodes(kind, bidirectional, ragged):
    """Each episode by itself, on a layer that knows no resets, gives the same numbers, in both directions."""
    layer = build(kind, bidirectional=bidirectional)
    D, lengths, reset = 1 + bidirectional, [T, 4, 2, 3] if ragged else None, resets()
    x, hx = torch.randn(T, B, I, dtype=torch.float64), compare.states(layer, B)
    output, ends = layer(x, hx, lengths, reset=reset)
    ends, hx = (s if isinstance(s, tuple) else (s,) for s in (ends, hx))
    for b, steps in enumerate(lengths or [T] * B):
        # The states that the row begins with, forwards at its first step and backwards at its last one.
        given = [s[:, b : b + 1] for s in hx]
        cuts = [0, *(t for t in range(1, steps) if reset[t, b]), steps]
        for first, last in zip(cuts[:-1], cuts[1:], strict=True):
            start = [s * 0 for s in given]
            for s, g in zip(start, given, strict=True):
                if first == 0 and not reset[0, b]:
                    s[0] = g[0]
                if last == steps and D == 2:
                    s[1] = g[1]
            piece, end = layer(x[first:last, b : b + 1], tuple(start) if len(start) == 2 else start[0])
            torch.testing.assert_close(output[first:last, b : b + 1], piece)
            for whole, part in zip(ends, end if isinstance(end, tuple) else (end,), strict=True):
                if last == steps:
                    torch.testing.assert_close(whole[0, b], part[0, 0])
                if first == 0 and D == 2:
                    torch.testing.assert_close(whole[1, b], part[1, 0])
        assert not output[steps:, b].any()


def test_resets_stop_gradients_between_episodes():
    layer = build("GRU")
    x = torch.randn(T, 1, I, dtype=torch.float64, requires_grad=True)
    reset = torch.zeros(T, 1, dtype=torch.bool)
    reset[2] = True
    output, _ = layer(x, reset=reset)
    (gradient,) = torch.autograd.grad(output[:2].sum(), x)
    assert gradient[:2].all() and not gradient[2:].any()


# ---------------------------------------------------------------------------------- what randomness does


def test_recurrent_dropout_has_one_mask_for_each_row_and_direction():
    layer = build("GRU", recurrent_dropout=0.25)
    mask, *zones = varied_layer._draw(torch.zeros(7, 500, I), layer._layers()[0], "GRU", False, layer.variant, True)
    assert mask.shape == (2, 500, H) and zones == [None, None]
    assert mask.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (mask == 0).double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert not torch.equal(mask[0], mask[1]) and not torch.equal(mask[:, 0], mask[:, 1])


@pytest.mark.parametrize("zoneout, of_h, of_c", [(0.3, 0.3, 0.3), ((0.1, 0.6), 0.1, 0.6), ((0.0, 0.5), 0.0, 0.5)])
def test_zoneout_keeps_that_share_of_old_values(zoneout, of_h, of_c):
    layer = build("LSTM", zoneout=zoneout)
    _, _, (h, c) = layer(torch.randn(20, 50, I, dtype=torch.float64), return_states=True)
    for states, share in ((h, of_h), (c, of_c)):
        kept = (states[1:] == states[:-1]).double().mean((0, 1, 3))
        assert kept.tolist() == pytest.approx([share, share], abs=0.02)


def test_zoneout_takes_the_expectation_outside_training():
    layer, n = build("LSTM", zoneout=0.3), 20000
    x, hx = torch.randn(1, 1, I, dtype=torch.float64), compare.states(layer, 1)
    drawn, _ = layer(x.expand(1, n, I), tuple(s.expand(-1, n, -1) for s in hx))
    expected, _ = layer.eval()(x, hx)
    torch.testing.assert_close(drawn.mean(1, keepdim=True), expected, atol=0.02, rtol=0)


def test_zoneout_of_everything_keeps_the_initial_state():
    layer = build("LSTM", zoneout=1.0)
    hx = compare.states(layer, B)
    for training in (True, False):
        output, ends = layer.train(training)(torch.randn(T, B, I, dtype=torch.float64), hx)
        assert all(map(torch.equal, ends, hx))
        assert torch.equal(output, hx[0].transpose(0, 1).flatten(1).expand(T, -1, -1))


@kinds
def test_weight_drop_drops_weights_once_for_a_call(kind):
    """The same as torch's dropout on every weight_hh, in a plain layer; and the weights themselves stay."""
    layer = build(kind, 2, weight_drop=0.4)
    plain = build(kind, 2)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    x = torch.randn(T, B, I, dtype=torch.float64)
    torch.manual_seed(2)
    found = layer(x, lengths=[T, 1, 3, 2])
    torch.manual_seed(2)
    dropped = {k: F.dropout(v, 0.4) if k.startswith("weight_hh") else v for k, v in before.items()}
    expected = torch.func.functional_call(plain, dropped, (x,), {"lengths": [T, 1, 3, 2]})
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


@pytest.mark.parametrize("variant", ["recurrent_dropout", "zoneout", "weight_drop"])
def test_seeds_reproduce_and_only_training_draws(variant):
    layer = build("LSTM", 2, **VARIANTS[variant])
    x, runs = torch.randn(T, B, I, dtype=torch.float64), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(layer(x)[0])
    assert torch.equal(runs[0], runs[1]) and compare.differs(runs[0], runs[2])
    layer.eval()
    state = torch.get_rng_state()
    assert torch.equal(layer(x)[0], layer(x)[0])
    assert torch.equal(torch.get_rng_state(), state)


# ----------------------------------------------------------------------------- the rest of what is said


@kinds
def test_nothing_asked_for_is_torch(kind):
    """Every argument given, each at its default: no variant, and the same bits; so too what acts in training alone."""
    off = {"merge_mode": "concat", "recurrent_dropout": 0.0, "zoneout": 0, "weight_drop": 0.0, "layer_norm": False}
    plain, x = build(kind, 2), torch.randn(T, B, I, dtype=torch.float64)
    expected = plain(x, lengths=[T, 0, 2, 3])
    for options in (off, {"recurrent_dropout": 0.9, "weight_drop": 0.9}):
        layer = build(kind, 2, **options).eval()
        layer.load_state_dict(plain.state_dict())
        assert (layer.variant is None) == (options is off)
        torch.testing.assert_close(layer(x, lengths=[T, 0, 2, 3]), expected, rtol=0, atol=0)


@pytest.mark.parametrize("merge_mode", ["sum", "mean", "mul"])
def test_merged_layers_stack_as_bidirectional_wrappers_do(merge_mode):
    """Two layers are a layer, merged, and a second layer on top of it, merged again."""
    merge = {"sum": lambda a, b: a + b, "mean": lambda a, b: (a + b) / 2, "mul": lambda a, b: a * b}[merge_mode]
    ours = build("GRU", 2, merge_mode=merge_mode)
    assert ours.weight_ih_l1.shape == (3 * H, H)
    x = torch.randn(T, B, I, dtype=torch.float64)
    output = x
    for layer in range(2):
        single = nn.GRU(output.size(-1), H, bidirectional=True, dtype=torch.float64)
        state = {k.replace(f"_l{layer}", "_l0"): v for k, v in ours.state_dict().items() if f"_l{layer}" in k}
        single.load_state_dict(state)
        output = merge(*single(output)[0].chunk(2, -1))
    torch.testing.assert_close(ours(x)[0], output)


def test_a_pair_is_the_two_halves():
    pair, plain = build("LSTM", 2, merge_mode=None), build("LSTM", 2)
    plain.load_state_dict(pair.state_dict())
    x = torch.randn(T, B, I, dtype=torch.float64)
    forward, reverse = pair(x)[0]
    assert torch.equal(torch.cat((forward, reverse), -1), plain(x)[0])


@kinds
@directions
def test_states_are_those_of_every_step(kind, bidirectional):
    """The last of them are h_n and c_n, the upper layer's h is the output, and one step of them starts a next call."""
    layer = build(kind, 2, bidirectional)
    D, x = 1 + bidirectional, torch.randn(T, B, I, dtype=torch.float64)
    output, ends, states = layer(x, return_states=True)
    ends, states = (s if isinstance(s, tuple) else (s,) for s in (ends, states))
    assert torch.equal(states[0][:, :, -D:].flatten(2), output)
    for end, every in zip(ends, states, strict=True):
        assert torch.equal(end[::D], every[-1].transpose(0, 1)[::D])
        assert torch.equal(end[D - 1 :: D], every[0 if D == 2 else -1].transpose(0, 1)[D - 1 :: D])
    if not bidirectional:
        hx = tuple(s[2].transpose(0, 1).contiguous() for s in states)
        rest, _ = layer(x[3:], hx if len(hx) == 2 else hx[0])
        torch.testing.assert_close(rest, output[3:])


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "LSTM_PROJ"])
def test_outside_forms(kind):
    """Unbatched, batch_first, and packed in any order of rows, against padded with lengths."""
    lengths, reset = [3, T, 1, 4], resets()
    layer = build(kind, 2, merge_mode=None, zoneout=0.2, layer_norm=True).eval()
    x, hx = torch.randn(T, B, I, dtype=torch.float64), compare.states(layer, B)
    (forward, reverse), ends, states = layer(x, hx, lengths, reset=reset, return_states=True)
    states = states if isinstance(states, tuple) else (states,)

    def pack(t):
        return pack_padded_sequence(t, lengths, enforce_sorted=False)

    packed, packed_ends, packed_states = layer(pack(x), hx, reset=pack(reset), return_states=True)
    packed_states = packed_states if kind != "GRU" else (packed_states,)
    for found, right in zip((*packed, *packed_states), (forward, reverse, *states), strict=True):
        assert torch.equal(found.data, pack(right).data)
    torch.testing.assert_close(packed_ends, ends)

    for b in range(B):
        row = hx[:, b] if kind == "GRU" else tuple(s[:, b] for s in hx)
        n = lengths[b]
        layer.batch_first = b % 2 == 1  # concerns an input with rows only
        alone, _, every = layer(x[:n, b], row, reset=reset[:n, b], return_states=True)
        every = every if kind != "GRU" else (every,)
        for found, right in zip((*alone, *every), (forward, reverse, *states), strict=True):
            torch.testing.assert_close(found, right[:n, b])


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_no_rows(kind):
    layer = build(kind, 2, merge_mode="mul", zoneout=0.2, recurrent_dropout=0.2, layer_norm=True)
    x, reset = torch.randn(T, 0, I, dtype=torch.float64, requires_grad=True), torch.zeros(T, 0, dtype=torch.bool)
    output, _, states = layer(x, reset=reset, return_states=True)
    assert output.shape == (T, 0, H) and all(s.shape == (T, 0, 4, H) for s in compare.tensors(states))
    output.sum().backward()
    assert x.grad.shape == x.shape and not layer.gain_hh_l0.grad.any()


def test_padding_is_never_read():
    layer, x = build("LSTM", 2, layer_norm=True, zoneout=0.2), torch.randn(T, B, I, dtype=torch.float64)
    lengths, dirty = [T, 2, 0, 3], x.clone()
    for b, n in enumerate(lengths):
        dirty[n:, b] = torch.nan
    dirty.requires_grad_()
    results = []
    for value in (x, dirty):
        torch.manual_seed(1)
        results.append(compare.tensors(layer(value, lengths=lengths, reset=resets(), return_states=True)))
    assert all(map(torch.equal, *results))
    gradients = torch.autograd.grad(sum(r.sum() for r in results[1]), [dirty, *layer.parameters()])
    assert not any(g.isnan().any() for g in gradients)


# ------------------------------------------------------------------------------------------ which path


@pytest.mark.skipif(ops._C is None, reason="there are no kernels without birnn_ext._C")
@pytest.mark.parametrize("variant", ["sum", "mean", "mul", "pair", "weight_drop"])
def test_weights_and_outputs_leave_the_kernels_in_place(variant, monkeypatch):
    """And so do resets and the states of every step."""
    monkeypatch.setattr(varied_layer, "layer", None)
    monkeypatch.setattr(reference, "layer", None)
    x = torch.randn(T, B, I, dtype=torch.float64)
    for kind in ("LSTM", "GRU"):
        output, *_ = build(kind, 2, **VARIANTS[variant])(x, reset=resets(), return_states=True)
        sum(half.sum() for half in compare.tensors(output)).backward()
    build("LSTM", 2, recurrent_dropout=0.5).eval()(x)


@kinds
def test_resets_and_states_where_kernels_do_not_know_them(kind, monkeypatch):
    """As on a GPU: the step in PyTorch computes the same."""
    monkeypatch.setattr(ops, "has_variants", lambda input: False)
    calls, compute = [], varied_layer.layer
    monkeypatch.setattr(varied_layer, "layer", lambda *a, **options: (calls.append(1), compute(*a, **options))[1])
    check(build(kind, 2), hx=True, lengths=[T, 2, 0, 3], reset=resets())
    assert len(calls) == 2


def test_they_are_the_same_for_birnn():
    """BiRNN takes the same arguments."""
    options = {"merge_mode": "sum", "zoneout": 0.1, "recurrent_dropout": 0.2, "weight_drop": 0.3, "layer_norm": True}
    layer = birnn_ext.BiRNN(I, H, 2, mode="LSTM", init="orthogonal", unit_forget_bias=True, **options)
    twin = birnn_ext.LSTM(I, H, 2, bidirectional=True, **options)
    twin.load_state_dict(layer.state_dict())
    x, results = torch.randn(T, B, I), []
    for module in (layer, twin):
        torch.manual_seed(1)
        results.append(module(x)[0])
    assert torch.equal(*results)
    assert all(getattr(layer, k) == v for k, v in options.items()) and layer.init == "orthogonal" and layer.unit_forget_bias
