"""convert and revert: what changes (the class) and what does not (everything else)."""

import copy

import compare
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import birnn_ext

PAIRS = {nn.RNN: birnn_ext.RNN, nn.GRU: birnn_ext.GRU, nn.LSTM: birnn_ext.LSTM}


class Tagger(nn.Module):
    """A model with the three layers at several depths, one of them twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.GRU(3, 4, 2, batch_first=True, dropout=0.3, bidirectional=True)
        self.inner = nn.ModuleDict({"deep": nn.ModuleList([nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 5)])})
        self.last = nn.RNN(5, 6, nonlinearity="relu", batch_first=True)
        self.again = self.last
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = self.inner["deep"][0](self.first(x)[0])[0]
        x = self.inner["deep"][1](x)
        return self.head(self.again(x)[0] + self.last(x)[0])


def kinds(model):
    return [type(m) for m in (model.first, model.inner["deep"][0], model.last)]


def test_there_and_back():
    model, x = Tagger().eval(), torch.randn(2, 7, 3)
    exact = compare.wide(model)(x.double())
    expected, names = model(x), list(model.state_dict())
    parameters, layers = dict(model.named_parameters()), dict(model.named_modules())

    def nothing_else_changed():
        assert list(model.state_dict()) == names
        assert all(p is parameters[name] for name, p in model.named_parameters())
        assert all(m is layers[name] for name, m in model.named_modules())
        assert model.again is model.last and not model.training and not model.first.training

    assert birnn_ext.convert(model) is model
    assert kinds(model) == [birnn_ext.GRU, birnn_ext.LSTM, birnn_ext.RNN]
    nothing_else_changed()
    compare.check(model(x), expected, exact)
    assert birnn_ext.convert(model) is model and kinds(model)[0] is birnn_ext.GRU

    assert birnn_ext.revert(model) is model
    assert kinds(model) == [nn.GRU, nn.LSTM, nn.RNN]
    nothing_else_changed()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("plain", PAIRS)
def test_the_model_is_the_layer(plain):
    layer, x = plain(3, 4, 2, bidirectional=True), torch.randn(5, 2, 3)
    expected, exact, text = layer(x), compare.wide(layer)(x.double()), repr(layer)
    assert birnn_ext.convert(layer) is layer and type(layer) is PAIRS[plain] and repr(layer) == text
    compare.check(layer(x), expected, exact)
    assert birnn_ext.revert(layer) is layer and type(layer) is plain and repr(layer) == text
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["GRU", "LSTM", "RNN_TANH", "RNN_RELU"])
def test_birnn_becomes_the_layer_of_its_mode(mode):
    layer, x = birnn_ext.BiRNN(3, 4, 2, mode=mode), torch.randn(5, 2, 3)
    expected, names = layer(x), list(layer.state_dict())
    theirs = birnn_ext.revert(layer)
    assert type(theirs) is compare.TORCH[mode] and theirs.bidirectional and list(theirs.state_dict()) == names
    assert getattr(theirs, "nonlinearity", None) == {"RNN_TANH": "tanh", "RNN_RELU": "relu"}.get(mode)
    compare.check(expected, theirs(x), compare.wide(theirs)(x.double()))


def test_layers_built_by_us_work_in_torch():
    """Ours from the start, reverted, then moved, copied and saved as torch.nn's layers are."""
    layer = birnn_ext.revert(birnn_ext.LSTM(3, 4, 2, bidirectional=True))
    fresh = nn.LSTM(3, 4, 2, bidirectional=True)
    fresh.load_state_dict(layer.state_dict())
    x = torch.randn(5, 2, 3)
    for module in (layer, copy.deepcopy(layer), layer.to(torch.float32)):
        torch.testing.assert_close(module(x), fresh(x), rtol=0, atol=0)
    layer.weight_hh_l0 = nn.Parameter(torch.zeros_like(layer.weight_hh_l0))
    fresh.weight_hh_l0 = layer.weight_hh_l0
    torch.testing.assert_close(layer(x), fresh(x), rtol=0, atol=0)


def test_converted_layers_live_on():
    """Copied, moved to another dtype, saved and loaded after the conversion."""
    layer = birnn_ext.convert(nn.GRU(3, 4, 2, bidirectional=True))
    theirs = nn.GRU(3, 4, 2, bidirectional=True)
    theirs.load_state_dict(copy.deepcopy(layer).state_dict())
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(copy.deepcopy(layer).double()(x), theirs.double()(x))
    assert set(vars(layer)) == set(vars(birnn_ext.GRU(3, 4)))  # nothing of torch's is left behind


def test_hooks_stay_and_can_be_removed():
    layer = nn.GRU(3, 4)
    called = []
    handles = [
        layer.register_forward_pre_hook(lambda m, args: called.append("pre")),
        layer.register_forward_hook(lambda m, args, kwargs, out: called.append("post"), with_kwargs=True),
        layer.register_full_backward_hook(lambda m, grad_in, grad_out: called.append("backward")),
        layer.register_state_dict_post_hook(lambda m, state, prefix, meta: called.append(type(m).__name__)),
        layer.register_load_state_dict_pre_hook(lambda m, *args: called.append(m is layer)),
    ]
    birnn_ext.convert(layer)
    layer(torch.randn(5, 2, 3, requires_grad=True))[0].sum().backward()
    layer.load_state_dict(layer.state_dict())
    assert called == ["pre", "post", "backward", "GRU", True]
    for handle in handles:
        handle.remove()
    layer(torch.randn(5, 2, 3))
    layer.load_state_dict(layer.state_dict())
    assert len(called) == 5


def test_parametrized_layers():
    theirs, x = nn.LSTM(3, 4, bidirectional=True), torch.randn(5, 2, 3)
    parametrizations.weight_norm(theirs, "weight_hh_l0")
    parametrize.register_parametrization(theirs, "bias_ih_l0_reverse", nn.Tanh())
    layer = birnn_ext.convert(copy.deepcopy(theirs))
    assert isinstance(layer, birnn_ext.LSTM) and parametrize.is_parametrized(layer, "weight_hh_l0")
    assert list(layer.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(layer(x), theirs(x))
    layer(x)[0].sum().backward()
    theirs(x)[0].sum().backward()
    for (name, a), (_, b) in zip(layer.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    torch.testing.assert_close(copy.deepcopy(layer)(x), theirs(x))

    birnn_ext.revert(layer)
    assert isinstance(layer, nn.LSTM) and not isinstance(layer, birnn_ext.module.RNNBase)
    torch.testing.assert_close(layer(x), theirs(x), rtol=0, atol=0)

    birnn_ext.convert(layer)
    for name in ("weight_hh_l0", "bias_ih_l0_reverse"):
        parametrize.remove_parametrizations(layer, name)
    assert type(layer) is birnn_ext.LSTM
    torch.testing.assert_close(layer(x), theirs(x))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weight_norm_by_hook():
    theirs, x = nn.utils.weight_norm(nn.GRU(3, 4), "weight_ih_l0"), torch.randn(5, 2, 3)
    expected = theirs(x)
    torch.testing.assert_close(birnn_ext.convert(theirs)(x), expected)
    nn.utils.remove_weight_norm(theirs, "weight_ih_l0")
    torch.testing.assert_close(theirs(x), expected)


def test_training_goes_on_with_the_same_optimizer():
    model = nn.ModuleDict({"rnn": nn.GRU(3, 4, bidirectional=True)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    twin = copy.deepcopy(model)
    twin_optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    birnn_ext.convert(model)
    for _ in range(3):
        x = torch.randn(5, 2, 3)
        for m, o in ((model, optimizer), (twin, twin_optimizer)):
            o.zero_grad()
            m["rnn"](x)[0].square().sum().backward()
            o.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


class MyGRU(nn.GRU):
    pass


class OurGRU(birnn_ext.GRU):
    pass


def test_what_is_left_alone():
    """Subclasses, either way; cells; models without such layers."""
    model = nn.ModuleList([MyGRU(3, 4), nn.GRUCell(3, 4), nn.Linear(2, 2), OurGRU(3, 4)])
    before = [type(m) for m in model]
    assert [type(m) for m in birnn_ext.convert(model)] == before
    assert [type(m) for m in birnn_ext.revert(model)] == before


@pytest.mark.parametrize("swap", [birnn_ext.convert, birnn_ext.revert])
def test_wrong_argument(swap):
    with pytest.raises(TypeError, match=f"{swap.__name__}: model should be a torch.nn.Module, got type"):
        swap(nn.GRU)


def test_on_meta_and_frozen():
    layer = nn.GRU(3, 4, device="meta").requires_grad_(False).train(False)
    birnn_ext.convert(layer)
    assert all(p.is_meta and not p.requires_grad for p in layer.parameters()) and not layer.training
