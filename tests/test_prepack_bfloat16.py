"""prepack of layers that are in bfloat16: computed as such on a processor that multiplies it, and in float32 elsewhere.

Not here: float32 layers whose weights are packed as bfloat16 (test_prepack.py), the ops (cpu/test_prepacked_bfloat16.py).
"""

import copy
import io

import compare
import grids
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import birnn_ext
from birnn_ext import ops

_C = pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")
asked = pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)


@pytest.fixture(autouse=True)
def no_grad(guard):
    with torch.no_grad():
        yield


def computed():
    """What such a layer computes in, here and now."""
    return torch.bfloat16 if _C.multiplies_bfloat16() else torch.float32


def layer(mode="GRU", *sizes, **kwargs):
    _, ours = compare.pair(mode, *(sizes or (5, 9)), **({"bidirectional": True} | kwargs))
    return ours.eval().bfloat16()


def same(found, expected):
    """The same bits, where the layer itself computes as the prepacked one does and packs its weights; else nearly."""
    for a, b in zip(compare.tensors(found), compare.tensors(expected), strict=True):
        assert a.dtype == b.dtype == torch.bfloat16
        if computed() == torch.bfloat16:
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b, atol=0.02, rtol=0.02)


def equal_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


CASES = grids.pairwise(
    mode=grids.MODES,
    dtype=(None, torch.bfloat16),
    layers=(1, 2),
    bidirectional=(True, False),
    bias=(True, False),
    batch_first=(True, False),
    state=(True, False),
)


@pytest.mark.parametrize("case", CASES, ids=grids.name)
def test_the_results_of_the_layer(case, two_threads):
    ours = layer(case["mode"], 5, 19, case["layers"], **{key: case[key] for key in ("bidirectional", "bias", "batch_first")})
    fast = birnn_ext.prepack(ours, case["dtype"])
    x = torch.randn(8, 7, 5, dtype=torch.bfloat16)
    hx = compare.states(ours, 8 if case["batch_first"] else 7) if case["state"] else None
    same(fast(x, hx), ours(x, hx))
    assert equal_weights(fast, ours)


@asked
def test_projection_lengths_packed_nested_and_single_rows(dtype):
    ours = layer("LSTM", 5, 9, 2, proj_size=3, batch_first=True)
    fast = birnn_ext.prepack(ours, dtype)
    assert equal_weights(fast, ours)
    x, lengths = torch.randn(4, 7, 5, dtype=torch.bfloat16), [7, 0, 3, 5]
    same(fast(x, lengths=lengths), ours(x, lengths=lengths))
    ragged = pack_padded_sequence(x, [7, 1, 3, 5], batch_first=True, enforce_sorted=False)
    same(fast(ragged)[0], ours(ragged)[0])
    nested = torch.nested.nested_tensor([x[0], x[1, :3]], layout=torch.jagged)
    same(fast(nested)[0].values(), ours(nested)[0].values())
    same(fast(x[0]), ours(x[0]))


@asked
def test_nothing_is_converted_where_bfloat16_is_multiplied(monkeypatch, dtype):
    fast, x = birnn_ext.prepack(layer(), dtype), torch.randn(4, 3, 5, dtype=torch.bfloat16)
    seen, original = [], ops.packed_layer
    monkeypatch.setattr(ops, "packed_layer", lambda input, *a, **k: (seen.append(input), original(input, *a, **k))[1])
    fast(x)
    assert seen[0].dtype == computed() and (seen[0] is x) == (computed() == torch.bfloat16)


@asked
def test_what_is_said_of_it(dtype):
    fast, x = birnn_ext.prepack(layer(), dtype), torch.randn(4, 3, 5, dtype=torch.bfloat16)
    held = str(dtype or computed()).removeprefix("torch.")
    inside = str(computed()).removeprefix("torch.")
    assert repr(fast) == f"GRU(5, 9, bidirectional=True, packed={held})"
    said = birnn_ext.which_kernel(fast, x)
    assert said.name == f"cpu {_C.isa()} {inside}" and said.reason.endswith(f"its weights are packed beforehand, as {held}")
    assert ("computes in float32" in said.reason) == (inside == "float32")


@asked
def test_copies_and_pickles_also_for_another_instruction_set(dtype):
    ours = layer("LSTM", 5, 9, 2)
    fast, x = birnn_ext.prepack(ours, dtype), torch.randn(6, 5, 5, dtype=torch.bfloat16)
    expected = fast(x)[0]
    assert torch.equal(copy.deepcopy(fast)(x)[0], expected)
    best = _C.isa()
    try:
        for written in _C.isa_list():
            _C.set_isa(written)
            file = io.BytesIO()
            torch.save(birnn_ext.prepack(ours, dtype), file)
            for isa in _C.isa_list():
                _C.set_isa(isa)
                file.seek(0)
                read = torch.load(file, weights_only=False)
                assert read.packed_dtype == (dtype or computed())
                assert equal_weights(read, ours)
                same(read(x), ours(x))
                torch.testing.assert_close(read(x)[0], expected, atol=0.02, rtol=0.02)
    finally:
        _C.set_isa(best)


@asked
def test_weights_of_any_dtype_load_and_are_rounded(dtype):
    ours = layer()
    fast, x = birnn_ext.prepack(ours, dtype), torch.randn(4, 3, 5, dtype=torch.bfloat16)
    other = birnn_ext.GRU(5, 9, bidirectional=True)
    fast.load_state_dict(other.state_dict())
    for found, given in zip(fast.state_dict().values(), other.state_dict().values(), strict=True):
        assert found.dtype == torch.bfloat16 and ((found - given).abs() <= 2**-7 * given.abs()).all()
    other.bfloat16()
    # (In pairs of a float32 computation a weight is off by half a unit in the other direction, perhaps.)
    assert equal_weights(fast, other) or (dtype and computed() == torch.float32)
    same(fast(x), other(x))
    with pytest.raises(RuntimeError, match="size mismatch for weight_hh_l0"):
        fast.load_state_dict(other.state_dict() | {"weight_hh_l0": torch.zeros(3, 3)})
    same(fast(x), other(x))


@asked
def test_other_dtypes_afterwards(dtype):
    """Input and results follow the module, and so does what computes them; the weights are those of before."""
    ours = layer()
    fast, x = birnn_ext.prepack(ours, dtype), torch.randn(4, 3, 5, dtype=torch.bfloat16)
    expected = fast(x)
    for other in (torch.float32, torch.float16):
        moved = copy.deepcopy(fast).to(other)
        assert moved.computed_dtype == torch.float32 and moved.packed_dtype == (dtype or torch.float32)
        for found, right in zip(moved(x.to(other)), copy.deepcopy(ours).to(other)(x.to(other)), strict=True):
            torch.testing.assert_close(found, right, atol=4e-3 if dtype or other == torch.float16 else 1e-6, rtol=0)
        back = moved.bfloat16()
        assert back.computed_dtype == computed() and equal_weights(back, ours)
        assert all(torch.equal(a, b) for a, b in zip(back(x), expected, strict=True))
    with pytest.raises(RuntimeError, match="packed weights, got Double"):
        copy.deepcopy(fast).double()(x.double())
    assert copy.deepcopy(fast).to("meta").computed_dtype == computed()


def test_a_layer_that_was_float32_stays_what_it_is():
    _, ours = compare.pair("GRU", 5, 9)
    fast = birnn_ext.prepack(ours, torch.bfloat16)
    weights = [weight.clone() for weight in fast.state_dict().values()]
    fast.bfloat16()
    assert fast.computed_dtype == torch.float32 and fast(torch.randn(4, 3, 5).bfloat16())[0].dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(fast.float().state_dict().values(), weights, strict=True))


@pytest.mark.parametrize("mode", ["GRU", "LSTM"])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(mode, given):
    ours = layer(mode)
    x = torch.randn(4, 3, 5, dtype=given)
    for kind in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", kind):
            fast = birnn_ext.prepack(ours)
            found, expected = compare.tensors(fast(x)), compare.tensors(ours(x))
            said = birnn_ext.which_kernel(fast, x)
        assert said.name.endswith(str(computed()).removeprefix("torch."))
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a.float(), b.float(), atol=0.02, rtol=0.02)


def test_weights_that_are_not_finite():
    ours = layer()
    ours.weight_hh_l0[0, 0] = torch.inf
    assert equal_weights(birnn_ext.prepack(ours), ours)
    with pytest.raises(ValueError, match="expected weights that are finite as torch.bfloat16"):  # a copy may go anywhere
        birnn_ext.prepack(ours, torch.bfloat16)
