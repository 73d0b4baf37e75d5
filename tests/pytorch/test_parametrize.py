"""What changes or shares weights: parametrizations, pruning, tying, swaps, clipping, optimizers, averages of weights.

Numbers against torch.nn treated the same way. Not here: weight_norm, plain parametrizations, functional_call and
assignment of weights, which are in test_module.py.
"""

import copy

import compare
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import birnn_ext

MODES = ("RNN_TANH", "LSTM", "GRU")
modes = pytest.mark.parametrize("mode", MODES)


def both(mode, **options):
    return compare.pair(mode, 3, 4, 2, bidirectional=True, dtype=torch.float64, **options)


def agree(theirs, ours):
    """The same results, and the same gradients of all parameters, under the same names."""
    x, found = torch.randn(5, 2, 3, dtype=torch.float64), []
    for module in (theirs, ours):
        results = compare.tensors(module(x))
        total = sum(t.sin().sum() for t in results)
        named = dict(module.named_parameters())
        found.append([results, dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


APPLY = {
    "spectral_norm": lambda m: parametrizations.spectral_norm(m, "weight_hh_l0_reverse"),
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh_l1"),
    "weight_norm": lambda m: [parametrizations.weight_norm(m, n) for n in ("weight_ih_l0", "weight_hh_l0")],
    "two_on_one": lambda m: [parametrize.register_parametrization(m, "weight_ih_l0", f) for f in (nn.Tanh(), nn.Sigmoid())],
}


@pytest.mark.parametrize("name", APPLY)
@modes
def test_parametrizations(mode, name):
    theirs, ours = both(mode)
    for module in (theirs, ours):
        torch.manual_seed(2)  # spectral_norm starts from a random vector
        APPLY[name](module)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    agree(theirs.eval(), ours.eval())
    with parametrize.cached():
        agree(theirs, ours)
    tensor = next(iter(ours.parametrizations))
    for module in (theirs, ours):
        parametrize.remove_parametrizations(module, tensor)
    agree(theirs, ours)
    assert type(ours) is compare.OURS[mode] or name == "weight_norm"  # which has one left


@modes
def test_pruning(mode):
    theirs, ours = both(mode)
    for module in (theirs, ours):
        prune.l1_unstructured(module, "weight_hh_l0", amount=0.5)
        prune.ln_structured(module, "weight_ih_l1_reverse", amount=2, n=2, dim=0)
        prune.global_unstructured([(module, "weight_hh_l1"), (module, "bias_ih_l0")], prune.L1Unstructured, amount=0.3)
    assert (ours.weight_hh_l0 == 0).sum() == ours.weight_hh_l0.numel() // 2
    agree(theirs, ours)
    for module in (theirs, ours):
        prune.remove(module, "weight_hh_l0")
    agree(theirs, ours)


@modes
def test_tying_between_layers_and_directions(mode):
    theirs, ours = (m for m in compare.pair(mode, 8, 4, 2, bidirectional=True, dtype=torch.float64))
    for module in (theirs, ours):
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            module.__setattr__(f"{kind}_l1", getattr(module, f"{kind}_l0"))
            module.__setattr__(f"{kind}_l1_reverse", getattr(module, f"{kind}_l0"))
    assert len(list(ours.parameters())) == 8  # of sixteen
    x = torch.randn(5, 2, 8, dtype=torch.float64)
    for module in (theirs, ours):
        module(x)[0].sin().sum().backward()
    torch.testing.assert_close(ours(x), theirs(x))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    before = ours(x)[0]
    torch.optim.SGD(ours.parameters(), lr=0.1).step()
    assert ours.weight_hh_l1 is ours.weight_hh_l0 and compare.differs(ours(x)[0], before)


@modes
def test_swap_tensors(mode):
    """Weights exchanged under the module's feet, and conversions by swapping instead of assignment."""
    theirs, ours = both(mode)
    held = ours.weight_hh_l0
    torch.utils.swap_tensors(ours.weight_hh_l0, new := nn.Parameter(torch.randn_like(held)))
    assert ours.weight_hh_l0 is held and not torch.equal(held, new)
    theirs.load_state_dict(ours.state_dict())
    agree(theirs, ours)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        for module in (theirs, ours):
            module.float().double()
        ours.load_state_dict(theirs.state_dict())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert ours.weight_hh_l0 is held
    agree(theirs, ours)


@modes
def test_clipping_gradients(mode):
    theirs, ours = both(mode)
    x, norms = torch.randn(5, 2, 3, dtype=torch.float64), []
    for module in (theirs, ours):
        module(x)[0].square().sum().backward()
        norms.append(nn.utils.clip_grad_norm_(module.parameters(), 0.01))
        nn.utils.clip_grad_value_(module.parameters(), 0.001)
    torch.testing.assert_close(norms[1], norms[0])
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


OPTIMISERS = {
    "sgd_foreach": (torch.optim.SGD, {"momentum": 0.9, "foreach": True}),
    "sgd_fused": (torch.optim.SGD, {"momentum": 0.9, "fused": True}),
    "adam_fused": (torch.optim.Adam, {"fused": True}),
    "adamw_foreach": (torch.optim.AdamW, {"foreach": True}),
    "rmsprop": (torch.optim.RMSprop, {}),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers(name):
    kind, options = OPTIMISERS[name]
    modules, losses = both("GRU"), []
    x, target = torch.randn(5, 2, 3, dtype=torch.float64), torch.rand(5, 2, 8, dtype=torch.float64) - 0.5
    for module in modules:
        optimiser, seen = kind(module.parameters(), lr=0.01, **options), []
        for _ in range(10):
            optimiser.zero_grad()
            loss = (module(x)[0] - target).square().mean()
            loss.backward()
            optimiser.step()
            seen.append(loss.item())
        losses.append(seen)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-7, atol=0)
    assert losses[1][-1] < losses[1][0]


def test_averaged_weights():
    """Stochastic weight averaging, exponential and plain."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    for average in ({"multi_avg_fn": get_ema_multi_avg_fn(0.5)}, {}):
        theirs, ours = both("LSTM")
        averages = [AveragedModel(m, **average) for m in (theirs, ours)]
        for _ in range(3):
            with torch.no_grad():
                for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
                    change = torch.randn_like(a)
                    a.add_(change), b.add_(change)
            for averaged, module in zip(averages, (theirs, ours), strict=True):
                averaged.update_parameters(module)
        x = torch.randn(5, 2, 3, dtype=torch.float64)
        torch.testing.assert_close(averages[1](x), averages[0](x))
        assert compare.differs(averages[1](x)[0], ours(x)[0])


def test_deep_copies_of_models_share_nothing():
    model = nn.Sequential(birnn_ext.GRU(3, 4, bidirectional=True))
    parametrizations.weight_norm(model[0], "weight_hh_l0")
    copied, x = copy.deepcopy(model), torch.randn(5, 2, 3)
    torch.testing.assert_close(copied(x), model(x))
    before = copied(x)[0]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert torch.equal(copied(x)[0], before) and compare.differs(model(x)[0], before)
