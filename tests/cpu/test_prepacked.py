"""Weights packed beforehand, by the ops: every instruction set, sizes around its vectors, both kinds of weights; and what such
a tensor has to be."""

import struct

import grids
import pytest
import torch

from birnn_ext import ops, reference

_C = pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")
LANES = {"avx512": 16, "avx2": 8, "base": 4}
BF16_HALF_UNIT = 2.0**-8


def draw(mode, I, H, P=None, bias=True, dtype=torch.float32):  # noqa: E741
    rows = ops.GATES[mode] * H
    shapes = [(rows, I), (rows, P or H), (rows,) if bias else None, (rows,) if bias else None, (P, H) if P else None]
    return tuple(None if shape is None else (torch.rand(shape, dtype=dtype) * 2 - 1) / H**0.5 for shape in shapes)


def pack(weights, mode, narrow=False):
    return torch.ops.birnn_ext.pack_weights(*weights, mode, narrow)


def unpack(packed, weights):
    found = torch.ops.birnn_ext.unpack_weights(packed)
    return tuple(None if w is None else f for f, w in zip(found, weights, strict=True))


def run(x, packed, mode, H, P=0, h0=None, c0=None, lengths=None, batch_first=False):
    second = packed[1] if len(packed) > 1 else None
    return torch.ops.birnn_ext.packed_layer(x, h0, c0, lengths, packed[0], second, mode, batch_first, H, P)


SIZES = [(1, 1), ("L-1", "L+1"), ("L", "L"), ("3L+1", "2L-1"), (7, "4L")]


@pytest.mark.parametrize("mode", ["RNN_TANH", "RNN_RELU", "LSTM", "GRU", "LSTM_PROJ"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_results_are_those_of_the_weights_that_come_back(isa, two_threads, mode, kind):
    dtype = torch.float64 if kind == torch.float64 else torch.float32
    for i, (I, H) in enumerate(SIZES):  # noqa: E741
        I, H = (eval(str(size).replace("L", f"*{LANES[isa]}").lstrip("*")) for size in (I, H))  # noqa: E741
        P = max(1, H - 2) if mode == "LSTM_PROJ" else None
        cell, D = mode.removesuffix("_PROJ"), 1 + i % 2
        directions = [draw(cell, I, H, P, bias=i % 3 != 1, dtype=dtype) for _ in range(D)]
        packed = [pack(weights, cell, kind == torch.bfloat16) for weights in directions]
        held = [unpack(p, weights) for p, weights in zip(packed, directions, strict=True)]
        for back, weights in zip(held, directions, strict=True):
            for k, (found, given) in enumerate(zip(back, weights, strict=True)):
                if given is None:
                    continue
                if kind == torch.bfloat16 and k not in (2, 3):
                    assert ((found - given).abs() <= BF16_HALF_UNIT * given.abs()).all()
                    assert not torch.equal(found, given) or given.numel() < 3
                else:
                    assert torch.equal(found, given)
        again = pack(held[0], cell, kind == torch.bfloat16)
        assert torch.equal(again, packed[0])  # rounding what is rounded changes nothing
        for T, B in ((1, 1), (3, 2), (5, 9)):
            x = torch.randn(T, B, I, dtype=dtype)
            lengths = torch.tensor(grids.ragged(T, B)) if B > 1 else None
            h0 = torch.randn(D, B, P or H, dtype=dtype) if T > 1 else None
            c0 = torch.randn(D, B, H, dtype=dtype) if h0 is not None and cell == "LSTM" else None
            found = run(x, packed, cell, H, P or 0, h0, c0, lengths)

            def wide(value):
                return None if value is None else value.double()

            exact = reference.layer(
                wide(x), wide(h0), wide(c0), lengths, tuple(tuple(map(wide, weights)) for weights in held), mode=cell
            )
            for f, e in zip(found, exact, strict=True):
                if e is not None:
                    eps = 2e-6 if dtype == torch.float32 else 1e-13
                    assert f.dtype == dtype and (f.double() - e).abs().max() <= eps * max(1, e.abs().max())


def test_every_pair_of_weights_keeps_to_half_a_unit(isa):
    """The upper half of a word is chosen for what the lower half adds to it: also where they are of unlike size and sign."""
    special = torch.tensor(
        [0.0, -0.0, 1.0, -1.0, 1e-38, -1e-38, 1e-45, 1.17549435e-38, 3e38, -3e38, 1 + 2**-8, 255 / 256, 2**-126]
    )
    values = torch.cat((special, torch.randn(500), torch.randn(500) * 1e-20, torch.randn(500) * 1e20))
    values = values[torch.randperm(len(values))]
    K = 2 * len(special)
    w_hh = values[torch.randint(len(values), (7, K))]
    w_hh[:, ::2] = special
    w_hh[:, 1::2] = special[torch.randperm(len(special))]
    w_ih, w_hh = w_hh, torch.zeros(7, 7)
    found = torch.ops.birnn_ext.unpack_weights(pack((w_ih, w_hh, None, None, None), "RNN_TANH", True))[0]
    tiny = 2.0**-126
    assert ((found - w_ih).abs() <= torch.clamp(BF16_HALF_UNIT * w_ih.abs(), min=tiny * (1 + 2**-7))).all()
    assert (torch.where(found == 0, 1.0, found).abs() >= tiny).all()  # no denormals
    assert torch.isfinite(found).all()


def test_zeros_stay_zeros(isa):
    w_ih = torch.zeros(8, 6)
    packed = pack((w_ih, torch.zeros(8, 8), None, None, None), "RNN_RELU", True)
    assert not torch.ops.birnn_ext.unpack_weights(packed)[0].any()
    output, h_n, _ = run(torch.full((3, 2, 6), 1e30), [packed], "RNN_RELU", 8)
    assert not output.any() and not h_n.any()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("narrow", [False, True])
def test_shares_teams_and_turns(threads, narrow):
    """Few rows on large weights (teams, turns), many rows (shares), each with weights that are packed already: the same
    numbers, whoever computes them."""
    torch.set_num_threads(threads)
    for B, H, T in ((1, 300, 4), (3, 700, 2), (40, 40, 30)):
        directions = [draw("GRU", 20, H) for _ in range(2)]
        packed = [pack(weights, "GRU", narrow) for weights in directions]
        held = tuple(unpack(p, weights) for p, weights in zip(packed, directions, strict=True))
        x = torch.randn(T, B, 20)
        found = run(x, packed, "GRU", H)
        exact = reference.layer(
            x.double(), None, None, None, tuple(tuple(w if w is None else w.double() for w in ws) for ws in held), mode="GRU"
        )
        for f, e in zip(found[:2], exact[:2], strict=True):
            torch.testing.assert_close(f.double(), e, atol=2e-6, rtol=0)
        assert all(torch.equal(a, b) for a, b in zip(found, run(x, packed, "GRU", H), strict=True))


def test_strides_and_batch_first():
    weights = draw("LSTM", 5, 6)
    packed = [pack(weights, "LSTM"), pack(weights, "LSTM")]
    x = torch.randn(4, 7, 10)[..., ::2]
    expected = run(x.contiguous(), packed, "LSTM", 6)
    found = run(x.transpose(0, 1), packed, "LSTM", 6, batch_first=True)
    assert torch.equal(found[0].transpose(0, 1), expected[0]) and torch.equal(found[2], expected[2])
    strided = tuple(torch.stack((w, w), -1)[..., 0] for w in weights[:4]) + (None,)
    assert torch.equal(pack(strided, "LSTM"), packed[0])


def test_what_packed_weights_have_to_be():
    weights = draw("GRU", 5, 6)
    packed = pack(weights, "GRU")
    x = torch.randn(3, 2, 5)
    other = pack(draw("GRU", 5, 7), "GRU")
    bad = packed.clone()
    bad[0] += 1
    for tensor, match in (
        (packed.float(), "packed: expected what pack_weights returned, got a tensor of dtype Float"),
        (packed[:40], "packed: expected what pack_weights returned"),
        (packed.unsqueeze(0), "packed: expected what pack_weights returned"),
        (bad, "packed: expected what pack_weights of this version of birnn_ext returned"),
        (packed[:-64], r"packed: expected \d+ bytes, got \d+"),
        (other, "packed: expected weights for mode GRU, hidden_size 6 and proj_size 0, got mode GRU, 7 and 0"),
        (pack(draw("LSTM", 5, 6), "LSTM"), "got mode LSTM"),
    ):
        with pytest.raises(RuntimeError, match=match):
            run(x, [tensor], "GRU", 6)
    for second in (other, pack(weights, "GRU", True), pack(draw("GRU", 4, 6), "GRU")):
        with pytest.raises(RuntimeError, match="packed_reverse: expected weights of the mode, sizes and dtype of packed"):
            run(x, [packed, second], "GRU", 6)
    run(x, [packed, pack((*weights[:2], None, None, None), "GRU")], "GRU", 6)  # the one thing they need not share
    for input, match in (
        (x.double(), "input: expected dtype Float, that of the packed weights, got Double"),
        (x.int(), "input: expected dtype Float"),
        (x[0], "input: expected 3 dimensions"),
        (x[:0], "input: expected at least one time step"),
        (torch.randn(3, 2, 4), "input: expected 5 features"),
    ):
        with pytest.raises(RuntimeError, match=match):
            run(input, [packed], "GRU", 6)
    with pytest.raises(RuntimeError, match="h0: expected shape"):
        run(x, [packed], "GRU", 6, h0=torch.zeros(2, 2, 6))
    with pytest.raises(RuntimeError, match="c0: goes with mode LSTM only"):
        run(x, [packed], "GRU", 6, c0=torch.zeros(1, 2, 6))
    with pytest.raises(ValueError, match="lengths: expected values from 0 to T"):
        run(x, [packed], "GRU", 6, lengths=torch.tensor([4, 1]))
    with pytest.raises(ValueError, match="mode: expected one of"):
        run(x, [packed], "GRUU", 6)


# The header as csrc/cpu/prepacked.h has it; type: 5 Half, 6 Float, 7 Double, 15 BFloat16.
HEADER = struct.Struct("8s16siiqqqBBB")
FIELDS = ("magic", "isa", "mode", "type", "I", "H", "P", "projected", "narrow", "bias")


@pytest.mark.parametrize(
    "forged",
    [
        {"P": 1, "H": 4000},
        {"P": 0},
        {"P": -6},
        {"projected": 1},
        {"projected": 1, "P": 3},
        {"mode": 2, "projected": 1, "P": 0},
        {"mode": 2, "projected": 2, "P": 3},
        {"mode": 4},
        {"mode": -1},
        {"type": 0},
        {"type": 5},
        {"type": -1},
        {"type": 6 + 256},
        {"type": 7, "narrow": 1},
        {"type": 15, "narrow": 1},
        {"type": 15, "I": 2**58},
        {"narrow": 3},
        {"bias": 7},
        {"H": 0, "P": 0},
        {"H": 2**62, "P": 2**62},
        {"I": 2**58},
        {"I": -5},
        {"I": 0},
        {"I": 2**62, "H": 1, "P": 1},
    ],
    ids=str,
)
def test_bytes_that_nobody_packed(forged):
    """What comes from a file may be anything: it is refused before anything is computed from it."""
    packed = pack(draw("GRU", 5, 6), "GRU")
    fields = dict(zip(FIELDS, HEADER.unpack(bytes(packed[: HEADER.size].tolist())), strict=True)) | forged
    header = torch.tensor(list(HEADER.pack(*fields.values())), dtype=torch.uint8)
    for bytes_behind in (len(packed) - HEADER.size, 64 - HEADER.size, 100_000):
        bad = torch.cat((header, torch.zeros(bytes_behind, dtype=torch.uint8)))
        with pytest.raises(RuntimeError, match="packed: expected"):
            torch.ops.birnn_ext.unpack_weights(bad)
        with pytest.raises(RuntimeError, match="packed: expected"):
            run(torch.randn(3, 2, 5), [bad], "GRU", 6)
        with pytest.raises(RuntimeError, match="packed_reverse: expected"):
            run(torch.randn(3, 2, 5), [packed, bad], "GRU", 6)


def test_fake_tensors_of_two_devices():
    packed = pack(draw("GRU", 5, 6), "GRU")
    with pytest.raises(RuntimeError, match="packed: expected device cpu, that of input, got meta"):
        run(torch.randn(3, 2, 5), [packed.to("meta")], "GRU", 6)


def test_what_can_be_packed():
    weights = draw("GRU", 5, 6)
    kinds = "Float, Double or BFloat16" if _C.multiplies_bfloat16() else "Float or Double"
    with pytest.raises(RuntimeError, match=f"w_ih: expected dtype {kinds}, got Half"):
        pack(tuple(w if w is None else w.half() for w in weights), "GRU")
    with pytest.raises(RuntimeError, match="w_ih: expected dtype Float, got Double"):
        pack(tuple(w if w is None else w.double() for w in weights), "GRU", True)
    with pytest.raises(RuntimeError, match="w_hh: expected shape"):
        pack((weights[0], weights[1][:, 1:], *weights[2:]), "GRU")
    with pytest.raises(RuntimeError, match="w_hr: a projection goes with mode LSTM only"):
        pack((*weights[:4], torch.zeros(3, 6)), "GRU")


@pytest.mark.skipif(_C is None or len(_C.isa_list()) < 2, reason="this processor has one instruction set")
def test_for_another_instruction_set():
    first = _C.isa()
    second = next(name for name in _C.isa_list() if name != first)
    packed = pack(draw("GRU", 5, 6), "GRU")
    _C.set_isa(second)
    try:
        with pytest.raises(RuntimeError, match=f"packed: expected weights packed for {second}.*got some for {first}"):
            run(torch.randn(3, 2, 5), [packed], "GRU", 6)
    finally:
        _C.set_isa(first)
