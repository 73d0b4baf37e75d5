"""The layers as a drop-in: numbers against torch.nn over the grid, and all else that its users rely on."""

import copy
import io
import pickle

import compare
import grids
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import birnn_ext

CASES = grids.pairwise(
    mode=grids.MODES,
    shape=tuple(grids.SHAPES),
    layers=(1, 2),
    bidirectional=(True, False),
    bias=(True, False),
    batch_first=(False, True),
    hx=(False, True),
    dtype=(torch.float32, torch.float64),
)


@pytest.mark.parametrize("case", CASES, ids=grids.name)
def test_equals_torch(case, two_threads):
    """Results and all gradients, by the tolerance rule."""
    shape, dtype = grids.SHAPES[case["shape"]], case["dtype"]
    options = {k: case[k] for k in ("bidirectional", "bias", "batch_first", "dtype")}
    theirs, ours = compare.pair(case["mode"], shape.I, shape.H, case["layers"], **options)
    size = (shape.B, shape.T) if case["batch_first"] else (shape.T, shape.B)
    x = torch.randn(*size, shape.I, dtype=dtype, requires_grad=True)
    hx = compare.states(theirs, shape.B, requires_grad=True) if case["hx"] else None
    everything_agrees(theirs, ours, x, hx)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_direction", "both"])
def test_projection_equals_torch(bidirectional, layers):
    theirs, ours = compare.pair("LSTM", 4, 9, layers, bidirectional=bidirectional, proj_size=3)
    x = torch.randn(6, 3, 4, requires_grad=True)
    everything_agrees(theirs, ours, x, compare.states(theirs, 3, requires_grad=True))


def everything_agrees(theirs, ours, x, hx):
    exact, exact_x, exact_hx = compare.wide(theirs), compare.wide(x), compare.wide(hx)
    results = ours(x, hx), theirs(x, hx), exact(exact_x, exact_hx)
    compare.check(*results)
    cotangents = [torch.randn_like(t) for t in compare.tensors(results[1])]
    compare.check(
        compare.gradients(results[0], cotangents, [x, *compare.tensors(hx), *ours.parameters()]),
        compare.gradients(results[1], cotangents, [x, *compare.tensors(hx), *theirs.parameters()]),
        compare.gradients(
            results[2],
            [c.double() for c in cotangents],
            [exact_x, *compare.tensors(exact_hx), *exact.parameters()],
        ),
    )


@pytest.mark.parametrize("mode", grids.MODES)
def test_strides_of_input_states_and_incoming_gradients(mode):
    theirs, ours = compare.pair(mode, 5, 6, 2, bidirectional=True)
    x = torch.randn(5, 14, 6).permute(1, 2, 0)[::2, 1::2]  # [7, 3, 5]
    hx = compare.states(theirs, 6)
    hx = hx[:, ::2] if isinstance(hx, torch.Tensor) else tuple(h.flip(-1)[:, ::2] for h in hx)
    x = x.detach().requires_grad_()
    output, expected = ours(x, hx)[0], theirs(x, hx)[0]
    exact = compare.wide(theirs)
    exact_x = x.detach().double().requires_grad_()
    exact_hx = hx.double() if isinstance(hx, torch.Tensor) else tuple(h.double() for h in hx)
    exact_output = exact(exact_x, exact_hx)[0]
    compare.check(output, expected, exact_output)
    for weight in (
        torch.randn(3, 12, 7).permute(2, 0, 1),
        torch.randn(1, 1, 1).expand(7, 3, 12),
        torch.randn(7, 3, 24)[..., ::2],
    ):
        found = torch.autograd.grad(output, [x, *ours.parameters()], weight, retain_graph=True)
        theirs_g = torch.autograd.grad(expected, [x, *theirs.parameters()], weight, retain_graph=True)
        exact_g = torch.autograd.grad(exact_output, [exact_x, *exact.parameters()], weight.double(), retain_graph=True)
        compare.check(found, theirs_g, exact_g)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("mode", grids.MODES)
def test_unbatched(mode, batch_first):
    theirs, ours = compare.pair(mode, 3, 4, 2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(5, 3)
    for hx in (None, compare.states(theirs, None)):
        compare.check(ours(x, hx), theirs(x, hx), compare.wide(theirs)(compare.wide(x), compare.wide(hx)))


@pytest.mark.parametrize("mode", grids.MODES)
def test_no_rows(mode):
    theirs, ours = compare.pair(mode, 3, 4, 2, bidirectional=True)
    x = torch.randn(5, 0, 3, requires_grad=True)
    found, expected = ours(x), theirs(x)
    compare.check(found, expected, expected)
    found[0].sum().backward()
    assert x.grad.shape == x.shape and not ours.weight_hh_l0.grad.any()


# ------------------------------------------------------------------------------------- construction


ARGUMENTS = [
    ((3, 4), {}),
    ((3, 4, 2), {"bias": False}),
    ((3, 4), {"batch_first": True, "bidirectional": True}),
    ((3, 4, 3), {"dropout": 0.25, "bidirectional": True}),
    ((3, 4, 2), {"dropout": 1}),
]


@pytest.mark.parametrize("args, kwargs", ARGUMENTS)
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_same_seed_same_layer(name, args, kwargs):
    """Names, order, shapes and values of the weights, attributes and repr."""
    torch.manual_seed(3)
    theirs = getattr(nn, name)(*args, **kwargs)
    torch.manual_seed(3)
    ours = getattr(birnn_ext, name)(*args, **kwargs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for (name_a, a), (name_b, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name_a == name_b and torch.equal(a, b) and type(a) is nn.Parameter
    assert repr(ours) == repr(theirs)
    attributes = "mode input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size"
    for attribute in [*attributes.split(), "_all_weights", "_flat_weights_names", "training"]:
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    assert [[p.shape for p in part] for part in ours.all_weights] == [[p.shape for p in part] for part in theirs.all_weights]
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
    torch.manual_seed(4)
    theirs.reset_parameters()
    torch.manual_seed(4)
    ours.reset_parameters()
    assert torch.equal(ours.weight_hh_l0, theirs.weight_hh_l0)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert ours.flatten_parameters() is None


def test_positional_arguments():
    """torch.nn's order, the nonlinearity of RNN in the fourth place included."""
    for ours, theirs, args in (
        (birnn_ext.GRU, nn.GRU, (3, 4, 2, False, True, 0.5, True)),
        (birnn_ext.LSTM, nn.LSTM, (3, 4, 2, False, True, 0.5, True, 2, "cpu", torch.float64)),
        (birnn_ext.RNN, nn.RNN, (3, 4, 2, "relu", False, True, 0.5, True)),
    ):
        assert repr(ours(*args)) == repr(theirs(*args))
        assert ours(*args).weight_ih_l0.dtype == theirs(*args).weight_ih_l0.dtype
    assert birnn_ext.RNN(3, 4, 2, "relu").mode == "RNN_RELU"
    assert birnn_ext.RNN(3, 4, nonlinearity="relu").nonlinearity == "relu"
    assert birnn_ext.RNN(3, 4).nonlinearity == "tanh"


@pytest.mark.parametrize("mode", grids.MODES)
def test_birnn_is_the_bidirectional_layer_of_its_mode(mode):
    theirs = compare.TORCH[mode](3, 4, 2, **compare.arguments(mode, {"bidirectional": True, "batch_first": True}))
    ours = birnn_ext.BiRNN(3, 4, 2, mode=mode, batch_first=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, hx = torch.randn(2, 5, 3), compare.states(theirs, 2)
    compare.check(ours(x, hx), theirs(x, hx), compare.wide(theirs)(compare.wide(x), compare.wide(hx)))
    assert repr(ours) == f"BiRNN(3, 4, num_layers=2, batch_first=True, mode={mode!r})"


def test_birnn_arguments():
    assert birnn_ext.BiRNN(3, 4).mode == "GRU"
    projected = birnn_ext.BiRNN(3, 4, mode="LSTM", proj_size=2, bias=False, dtype=torch.float64, device="cpu")
    assert projected(torch.randn(5, 2, 3, dtype=torch.float64))[0].shape == (5, 2, 4)
    with pytest.raises(TypeError):
        birnn_ext.BiRNN(3, 4, 1, "GRU")
    with pytest.raises(TypeError):
        birnn_ext.BiRNN(3, 4, bidirectional=False)


def test_no_class_is_one_of_torchs():
    """torch.compile refuses whatever isinstance says is torch.nn's."""
    for layer in (birnn_ext.RNN, birnn_ext.GRU, birnn_ext.LSTM, birnn_ext.BiRNN):
        assert not issubclass(layer, nn.RNNBase) and issubclass(layer, nn.Module)


# -------------------------------------------------------------------------------- life of a module


@pytest.fixture(params=grids.MODES)
def layer(request):
    """(torch.nn's layer, ours, an input)."""
    return *compare.pair(request.param, 3, 4, 2, bidirectional=True), torch.randn(5, 2, 3)


def agrees(theirs, ours, x):
    exact = compare.wide(theirs)
    compare.check(ours(x), theirs(x), exact(compare.wide(x)))
    return True


def test_copies(layer):
    theirs, ours, x = layer
    saved = io.BytesIO()
    torch.save(ours, saved)
    saved.seek(0)
    for copied in (
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(saved, weights_only=False),
    ):
        assert type(copied) is type(ours) and copied.weight_hh_l0 is not ours.weight_hh_l0
        assert repr(copied) == repr(ours)
        with torch.no_grad():
            ours.weight_hh_l0.mul_(1.0)
        assert agrees(theirs, copied, x)


def test_dtypes_and_devices(layer):
    theirs, ours, x = layer
    assert agrees(theirs.double(), ours.double(), x.double())
    assert agrees(theirs.to(torch.float32), ours.to("cpu", torch.float32), x)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.no_grad():
            assert agrees(theirs.to(dtype), ours.to(dtype), x.to(dtype))


@pytest.mark.parametrize("mode", ["RNN_TANH", "LSTM", "GRU"])
def test_complex(mode):
    theirs, ours = compare.pair(mode, 3, 4, bidirectional=True, dtype=torch.complex64)
    x = torch.randn(5, 2, 3, dtype=torch.complex64)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("kwargs", [{}, {"proj_size": 2}], ids=["plain", "projected"])
def test_meta(kwargs):
    theirs = nn.LSTM(3, 4, 2, bidirectional=True, device="meta", **kwargs)
    ours = birnn_ext.LSTM(3, 4, 2, bidirectional=True, device="meta", **kwargs)
    x = torch.empty(5, 2, 3, device="meta")
    found, expected = compare.tensors(ours(x)), compare.tensors(theirs(x))
    assert [(t.shape, t.device.type) for t in found] == [(t.shape, "meta") for t in expected]
    assert ours.to_empty(device="cpu").weight_ih_l0.device.type == "cpu"
    with torch.device("meta"):
        assert birnn_ext.GRU(3, 4).weight_ih_l0.is_meta


def test_new_values_are_seen(layer):
    """Weights that are assigned, changed in place, swapped by functional_call or frozen."""
    theirs, ours, x = layer
    replacement = nn.Parameter(torch.randn(ours.weight_hh_l0.shape) / 2)
    theirs.weight_hh_l0, ours.weight_hh_l0 = replacement, replacement
    assert agrees(theirs, ours, x)
    with torch.no_grad():
        ours.bias_ih_l1_reverse.add_(1), theirs.bias_ih_l1_reverse.add_(1)
    assert agrees(theirs, ours, x)
    swapped = {name: torch.randn_like(p) / 2 for name, p in theirs.named_parameters()}
    found = torch.func.functional_call(ours, swapped, (x,))
    theirs.load_state_dict(swapped)
    torch.testing.assert_close(found, theirs(x))
    ours.requires_grad_(False)
    assert not any(t.requires_grad for t in compare.tensors(ours(x)))


def test_tied_weights():
    theirs, ours = compare.pair("GRU", 3, 4, bidirectional=True)
    for module in (theirs, ours):
        module.weight_hh_l0_reverse = module.weight_hh_l0
    x = torch.randn(5, 2, 3)
    assert agrees(theirs, ours, x)
    theirs(x)[0].sum().backward()
    ours(x)[0].sum().backward()
    torch.testing.assert_close(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad)
    assert len(list(ours.parameters())) == 7


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    "apply",
    [
        lambda m: nn.utils.weight_norm(m, "weight_hh_l0"),
        lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
        lambda m: parametrize.register_parametrization(m, "weight_ih_l1_reverse", nn.Tanh()),
    ],
    ids=["weight_norm", "parametrizations.weight_norm", "parametrization"],
)
def test_computed_weights(apply, layer):
    theirs, ours, x = layer
    apply(theirs), apply(ours)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    expected = theirs(x)
    found = ours(x)
    torch.testing.assert_close(found, expected)
    found[0].square().sum().backward()
    expected[0].square().sum().backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    with torch.no_grad():
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.add_(0.1), q.add_(0.1)
    torch.testing.assert_close(ours(x), theirs(x))


def test_dropout_by_training_mode():
    theirs, ours = compare.pair("LSTM", 3, 16, 2, bidirectional=True, dropout=0.5)
    x = torch.randn(5, 4, 3)
    torch.manual_seed(5)
    expected = theirs(x)
    for _ in range(2):  # reproducible
        torch.manual_seed(5)
        torch.testing.assert_close(ours(x), expected)
    assert agrees(theirs.eval(), ours.eval(), x)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_inference(context, layer):
    theirs, ours, x = layer
    with context():
        results = ours(x)
        torch.testing.assert_close(results, theirs(x))
    assert not any(t.requires_grad for t in compare.tensors(results))
    assert all(t.is_inference() == (context is torch.inference_mode) for t in compare.tensors(results))


def test_retain_graph_and_two_uses_of_a_graph(layer):
    theirs, ours, x = layer
    for module in (theirs, ours):
        first = module(x)[0]
        first.sum().backward(retain_graph=True)
        first.square().sum().backward()
        second = module(torch.tanh(module(x)[0][..., :3]))[0]  # the layer twice in one graph
        second.sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_same_bits_every_time(layer, threads):
    _, ours, _ = layer
    x = torch.randn(20, 6, 3)
    first = compare.tensors(ours(x))
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(compare.tensors(ours(x)), first, strict=True))


def test_hooks_and_keywords(layer):
    theirs, ours, x = layer
    seen = []
    ours.register_forward_hook(lambda module, args, out: seen.append(module))
    hx = compare.states(theirs, 2)
    torch.testing.assert_close(ours(input=x, hx=hx, lengths=None), theirs(input=x, hx=hx))
    assert seen == [ours]


def test_replicas_of_data_parallel():
    """DataParallel's copies carry their weights as plain attributes."""
    theirs, ours = compare.pair("GRU", 3, 4, bidirectional=True)
    replica = ours._replicate_for_data_parallel()
    replica._parameters = {}
    for name, weight in ours.named_parameters():
        setattr(replica, name, weight * 1.0)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(replica(x), theirs(x))
