"""prepack: what it makes of a model, that it computes what its weights say, that nothing changes them unseen; checkpoints."""

import copy
import io

import compare
import grids
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

import birnn_ext
from birnn_ext.prepack import Prepacked

_C = pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")
DTYPES = [None, torch.bfloat16]


@pytest.fixture(autouse=True)
def no_grad(guard):
    with torch.no_grad():
        yield


def layers(mode="GRU", *sizes, **kwargs):
    """(torch.nn's layer, ours) with equal weights, outside training."""
    theirs, ours = compare.pair(mode, *(sizes or (5, 9)), **({"bidirectional": True} | kwargs))
    return theirs.eval(), ours.eval()


def of_same_weights(theirs, fast):
    """A copy of torch.nn's layer with the weights that the packed layer says it has."""
    theirs = copy.deepcopy(theirs)
    theirs.load_state_dict(fast.state_dict(), strict=True)
    return theirs


CASES = grids.pairwise(
    mode=grids.MODES,
    dtype=("layer", "bfloat16"),
    layers=(1, 2),
    bidirectional=(True, False),
    bias=(True, False),
    batch_first=(True, False),
    state=(True, False),
    full=("float32", "float64"),
)


@pytest.mark.parametrize("case", CASES, ids=grids.name)
def test_computes_what_its_weights_say(case, two_threads):
    if case["full"] == "float64" and case["dtype"] == "bfloat16":
        case = case | {"full": "float32"}
    theirs, ours = layers(
        case["mode"],
        5,
        19,
        case["layers"],
        bidirectional=case["bidirectional"],
        bias=case["bias"],
        batch_first=case["batch_first"],
    )
    full = getattr(torch, case["full"])
    theirs, ours = theirs.to(full), ours.to(full)
    fast = birnn_ext.prepack(ours, torch.bfloat16 if case["dtype"] == "bfloat16" else None)
    theirs = of_same_weights(theirs, fast)
    x = torch.randn(4, 7, 5, dtype=full)
    hx = compare.states(theirs, 4 if case["batch_first"] else 7) if case["state"] else None
    compare.check(fast(x, hx), theirs(x, hx), compare.wide(theirs)(compare.wide(x), compare.wide(hx)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_projection_lengths_packed_nested_and_single_rows(dtype):
    theirs, ours = layers("LSTM", 5, 9, 2, proj_size=3, batch_first=True)
    fast = birnn_ext.prepack(ours, dtype)
    plain = birnn_ext.convert(of_same_weights(theirs, fast))
    x, lengths = torch.randn(4, 7, 5), [7, 0, 3, 5]
    close = {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(fast(x, lengths=lengths), plain(x, lengths=lengths), **close)
    ragged = pack_padded_sequence(x, [7, 1, 3, 5], batch_first=True, enforce_sorted=False)
    torch.testing.assert_close(fast(ragged)[0].data, plain(ragged)[0].data, **close)
    nested = torch.nested.nested_tensor([x[0], x[1, :3]], layout=torch.jagged)
    torch.testing.assert_close(fast(nested)[0].values(), plain(nested)[0].values(), **close)
    torch.testing.assert_close(fast(x[0]), plain(x[0]), **close)


def test_float32_weights_give_the_numbers_of_the_layer(two_threads):
    for mode in grids.MODES:
        _, ours = layers(mode, 20, 33, 2)
        x = torch.randn(9, 40, 20)
        for found, expected in zip(compare.tensors(birnn_ext.prepack(ours)(x)), compare.tensors(ours(x)), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_halves(half):
    """A layer in half precision takes and gives it; bfloat16 weights are packed as they are."""
    _, ours = layers("GRU", 5, 9)
    ours = ours.to(half)
    x = torch.randn(4, 3, 5).to(half)
    for dtype in DTYPES:
        fast = birnn_ext.prepack(ours, dtype)
        found, expected = fast(x), ours(x)
        assert found[0].dtype == half and found[1].dtype == half
        torch.testing.assert_close(found, expected, atol=4e-3, rtol=0)
        if half == torch.bfloat16:
            assert all(torch.equal(a, b) for a, b in zip(fast.state_dict().values(), ours.state_dict().values(), strict=True))


def test_autocast():
    _, ours = layers("LSTM", 5, 9)
    x = torch.randn(4, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = birnn_ext.prepack(ours)(x), ours(x)
    assert found[0].dtype == expected[0].dtype
    torch.testing.assert_close(found, expected, atol=4e-3, rtol=1e-2)  # a prepacked layer computes in float32


# ---- what becomes of a model ----


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = birnn_ext.GRU(5, 4, 2, bidirectional=True, dropout=0.5)
        self.inner = nn.ModuleList([birnn_ext.BiRNN(8, 3, mode="LSTM"), nn.Linear(6, 6)])
        self.again = self.first
        self.theirs = nn.RNN(6, 3)

    def forward(self, x):
        return self.theirs(self.inner[1](self.inner[0](self.first(x)[0])[0]))[0]


def test_every_layer_of_a_model_and_only_these():
    model = Model().eval()
    x = torch.randn(6, 2, 5)
    before, names = model(x), list(model.state_dict())
    fast = birnn_ext.prepack(model)
    assert type(model.first) is birnn_ext.GRU and type(fast.first) is Prepacked and fast.again is fast.first
    assert type(fast.inner[0]) is Prepacked and type(fast.theirs) is nn.RNN
    assert list(fast.state_dict()) == names
    torch.testing.assert_close(fast(x), before)
    assert {name for name, _ in fast.named_parameters()} == {n for n in names if n.startswith(("inner.1", "theirs"))}
    assert not fast.first.training


def test_in_place_keeps_the_object_and_its_hooks():
    _, ours = layers()
    seen = []
    ours.register_forward_hook(lambda module, args, output: seen.append(type(module)))
    found = birnn_ext.prepack(ours, inplace=True)
    assert found is ours and repr(ours) == "GRU(5, 9, bidirectional=True, packed=float32)"
    ours(torch.randn(2, 1, 5))
    assert seen == [Prepacked] and not list(ours.parameters())


def test_parametrized_weights_are_packed_as_they_are_now():
    _, ours = layers()
    parametrizations.weight_norm(ours, "weight_hh_l0")
    ours.parametrizations.weight_hh_l0.original0.mul_(3)
    x = torch.randn(4, 3, 5)
    fast = birnn_ext.prepack(ours)
    torch.testing.assert_close(fast(x), ours(x))
    again = birnn_ext.prepack(copy.deepcopy(ours), inplace=True)
    torch.testing.assert_close(again(x), ours(x))
    assert "weight_hh_l0" in fast.state_dict() and "parametrizations.weight_hh_l0.original0" in ours.state_dict()


def test_dropout_acts_in_training_only():
    ours = birnn_ext.GRU(5, 9, 2, bidirectional=True, dropout=0.9)
    fast, x = birnn_ext.prepack(ours), torch.randn(4, 3, 5)
    assert not torch.equal(fast(x)[0], fast(x)[0])
    fast.eval()
    assert torch.equal(fast(x)[0], fast(x)[0])


def test_nothing_done_to_the_original_reaches_the_copy():
    """The ways in which weights change, `.data` among them, which leaves no trace."""
    _, ours = layers()
    fast, x = birnn_ext.prepack(ours), torch.randn(4, 3, 5)
    before = fast(x)[0]
    with torch.enable_grad():
        ours(x)[0].sum().backward()
    torch.optim.SGD(ours.parameters(), 1.0).step()
    ours.weight_hh_l0.data.mul_(2)
    ours.weight_ih_l0.add_(1)
    ours.load_state_dict(birnn_ext.GRU(5, 9, bidirectional=True).state_dict())
    assert torch.equal(fast(x)[0], before)
    for weight in fast.state_dict().values():  # nor what is done to what it hands out
        weight.zero_()
    assert torch.equal(fast(x)[0], before)


# ---- checkpoints and copies ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_state_dict_both_ways(dtype):
    theirs, ours = layers("LSTM", 5, 9, 2)
    fast, x = birnn_ext.prepack(ours, dtype), torch.randn(4, 3, 5)
    assert list(fast.state_dict()) == list(theirs.state_dict())
    for found, given in zip(fast.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert found.shape == given.shape and found.dtype == given.dtype
        assert ((found - given).abs() <= (2**-8 * given.abs() if dtype else 0)).all()
    other = nn.LSTM(5, 9, 2, bidirectional=True)
    assert str(fast.load_state_dict(other.state_dict())) == "<All keys matched successfully>"
    torch.testing.assert_close(fast(x), other(x), atol=0.02 if dtype else 1e-6, rtol=0)
    saved = fast.state_dict()
    fast.load_state_dict(saved)
    assert all(torch.equal(a, b) for a, b in zip(fast.state_dict().values(), saved.values(), strict=True))


def test_what_does_not_load_changes_nothing():
    _, ours = layers()
    fast, x = birnn_ext.prepack(ours), torch.randn(4, 3, 5)
    before, state = fast(x)[0], ours.state_dict()
    state["weight_ih_l0"] = state["weight_ih_l0"] + 1
    with pytest.raises(RuntimeError, match="size mismatch for weight_hh_l0: copying a param with shape"):
        fast.load_state_dict(state | {"weight_hh_l0": torch.zeros(3, 3)})
    assert torch.equal(fast(x)[0], before)
    with pytest.raises(RuntimeError, match='Missing key.*"bias_hh_l0_reverse"'):
        fast.load_state_dict({k: v for k, v in ours.state_dict().items() if k != "bias_hh_l0_reverse"})
    with pytest.raises(RuntimeError, match='Unexpected key.*"more"'):
        fast.load_state_dict(ours.state_dict() | {"more": torch.zeros(1)})
    assert torch.equal(fast(x)[0], before)
    found = fast.load_state_dict({"weight_ih_l0": state["weight_ih_l0"], "more": torch.zeros(1)}, strict=False)
    assert "weight_hh_l0" in found.missing_keys and found.unexpected_keys == ["more"]
    assert torch.equal(fast.state_dict()["weight_ih_l0"], state["weight_ih_l0"]) and not torch.equal(fast(x)[0], before)


def test_more_that_does_not_load():
    _, ours = layers()
    fast, x = birnn_ext.prepack(ours, torch.bfloat16), torch.randn(4, 3, 5)
    before, state = fast(x)[0], ours.state_dict()
    bad = {key: torch.full_like(state["weight_hh_l0"], value) for key, value in (("nan", torch.nan), ("inf", torch.inf))}
    for weight, match in (
        (bad["nan"], "finite as torch.bfloat16, got weight_hh_l0 that are not"),
        (bad["inf"], "finite as torch.bfloat16, got weight_hh_l0 that are not"),
        (state["weight_hh_l0"].to("meta"), 'named "weight_hh_l0", expected a tensor with data, got a tensor on meta'),
        ([1, 2], 'named "weight_hh_l0", expected a tensor with data, got list'),
    ):
        with pytest.raises(RuntimeError, match=match):
            fast.load_state_dict(state | {"weight_hh_l0": weight})
        assert torch.equal(fast(x)[0], before)
    with pytest.raises(RuntimeError, match='Unexpected key.*"foo.bar"'):
        fast.load_state_dict(fast.state_dict() | {"foo.bar": torch.zeros(1)})


def test_buffers_and_hooks_of_ones_own():
    _, ours = layers()
    ours.register_buffer("scale", torch.zeros(1))
    fast, seen = birnn_ext.prepack(ours), []
    fast.register_load_state_dict_pre_hook(lambda *args: seen.append(1))
    fast.load_state_dict(fast.state_dict() | {"scale": torch.ones(1)})
    assert fast.scale.item() == 1 and seen == [1]


def test_other_dtypes_afterwards():
    """The weights stay as they are packed; input and results follow the module."""
    _, ours = layers()
    x = torch.randn(4, 3, 5)
    fast = birnn_ext.prepack(ours, torch.bfloat16)
    expected = fast(x)
    for found in (copy.deepcopy(copy.deepcopy(fast).double()).float(), copy.deepcopy(fast).bfloat16().float()):
        assert found.packed_dtype == torch.bfloat16
        torch.testing.assert_close(found(x), expected)
    half = copy.deepcopy(fast).bfloat16()
    torch.testing.assert_close(half(x.bfloat16())[0], expected[0].bfloat16(), atol=0.01, rtol=0)
    wide = birnn_ext.prepack(ours.double()).float()
    assert wide.packed_dtype == torch.float64
    with pytest.raises(RuntimeError, match="expected dtype Double, that of the packed weights"):
        wide(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_copies_and_pickles_also_for_another_instruction_set(dtype):
    _, ours = layers("GRU", 5, 9, 2)
    fast, x = birnn_ext.prepack(ours, dtype), torch.randn(4, 3, 5)
    expected, names, file = fast(x)[0], list(fast.state_dict()), io.BytesIO()
    assert torch.equal(copy.deepcopy(fast)(x)[0], expected)
    torch.save(fast, file)
    best = _C.isa()
    try:
        for isa in _C.isa_list():
            _C.set_isa(isa)
            file.seek(0)
            read = torch.load(file, weights_only=False)
            torch.testing.assert_close(read(x)[0], expected, atol=1e-6, rtol=1e-5)
            assert repr(read) == repr(fast) and list(read.state_dict()) == names
    finally:
        _C.set_isa(best)


def test_which_kernel_tells():
    _, ours = layers()
    said = birnn_ext.which_kernel(birnn_ext.prepack(ours, torch.bfloat16), torch.randn(4, 3, 5))
    assert said.name.startswith("cpu") and said.reason.endswith("its weights are packed beforehand, as bfloat16")
