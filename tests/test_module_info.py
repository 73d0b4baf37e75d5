"""torch's own ModuleInfo samples for nn.RNN, GRU and LSTM, run on our layers: results, gradients, errors.

The samples live in torch.testing._internal, so this file skips, visibly, where a torch release has moved
them.
"""

import copy
import functools
import pickle

import compare
import pytest
import torch

import birnn_ext

common_modules = pytest.importorskip("torch.testing._internal.common_modules")

OURS = {torch.nn.RNN: birnn_ext.RNN, torch.nn.GRU: birnn_ext.GRU, torch.nn.LSTM: birnn_ext.LSTM}
INFOS = [info for info in common_modules.module_db if info.module_cls in OURS]


def samples():
    """(layer class, sample, dtype, training) with an id; packed sequences where the samples offer them."""
    for info in INFOS:
        for dtype in (torch.float32, torch.float64):
            for training in (False, True):
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    inputs = info.module_inputs_func(
                        info,
                        device="cpu",
                        dtype=dtype,
                        requires_grad=True,
                        training=training,
                        with_packed_sequence=True,
                    )
                for i, sample in enumerate(inputs):
                    label = f"{info.module_cls.__name__}-{dtype}-{'train' if training else 'eval'}-{i}"
                    yield pytest.param(info.module_cls, sample, dtype, training, id=label)


def leaves(value):
    return [t for t in compare.tensors(value) if t.is_leaf and t.requires_grad]


def cast(value):
    """A copy in float64, with leaves of its own where the sample has leaves."""
    if isinstance(value, torch.nn.utils.rnn.PackedSequence):
        data = compare.wide(value.data)
        return value._replace(data=data)
    return compare.wide(value)


def test_the_samples_are_there():
    assert {info.module_cls for info in INFOS} == set(OURS)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("kind, sample, dtype, training", list(samples()))
def test_results_and_gradients(kind, sample, dtype, training):
    args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
    theirs = kind(*args, **kwargs, dtype=dtype).train(training)
    ours = OURS[kind](*args, **kwargs, dtype=dtype).train(training)
    ours.load_state_dict(theirs.state_dict())
    exact = compare.wide(theirs)
    inputs = sample.forward_input.args
    exact_inputs = [cast(value) for value in inputs]
    results = ours(*inputs), theirs(*inputs), exact(*exact_inputs)
    compare.check(*results)
    cotangents = [torch.randn_like(t) for t in compare.tensors(results[1])]
    found = compare.gradients(results[0], cotangents, [*leaves(inputs), *ours.parameters()])
    expected = compare.gradients(results[1], cotangents, [*leaves(inputs), *theirs.parameters()])
    oracle = compare.gradients(results[2], [c.double() for c in cotangents], [*leaves(exact_inputs), *exact.parameters()])
    compare.check(found, expected, oracle, inputs_up_to=9)  # the range from which make_tensor draws


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)
def test_error_inputs(info, dtype):
    """Every error sample, at construction or in forward, with the type and text it asks for."""
    errors = info.module_error_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False)
    assert len(errors) >= 10
    for error in errors:
        made = error.module_error_input.constructor_input
        build = functools.partial(OURS[info.module_cls], *made.args, **made.kwargs)
        if error.error_on is common_modules.ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                build()
        else:
            given, layer = error.module_error_input.forward_input, build()
            with pytest.raises(error.error_type, match=error.error_regex):
                layer(*given.args, **given.kwargs)


# ---- the other loops of torch's test_modules.py, over the samples that are no PackedSequence ----

DENSE = [p for p in samples() if p.values[2] == torch.float64 and not p.values[3]]
DENSE = [p for p in DENSE if isinstance(p.values[1].forward_input.args[0], torch.Tensor)]
dense = pytest.mark.parametrize("kind, sample, dtype, training", DENSE)


def build(kind, sample, dtype, training):
    """(layer of ours, its inputs as leaves of their own)."""
    given = sample.constructor_input
    ours = OURS[kind](*given.args, **given.kwargs, dtype=dtype).train(training)
    return ours, [torch.utils._pytree.tree_map_only(torch.Tensor, fresh, v) for v in sample.forward_input.args]


def fresh(t):
    return t.detach().clone().requires_grad_(t.requires_grad)


def gapped(t):
    """The same numbers with other memory between them, features last to first."""
    wide = torch.empty(*t.shape[:-1], 2 * t.shape[-1], dtype=t.dtype).fill_(torch.nan)
    view = wide[..., ::2]
    return view.copy_(t.detach()).detach().requires_grad_(t.requires_grad)


@dense
def test_forward_repeats_itself(kind, sample, dtype, training):
    ours, inputs = build(kind, sample, dtype, training)
    first, again = ours(*inputs), ours(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(compare.tensors(first), compare.tensors(again), strict=True))
    assert all(t.dtype == dtype and t.isfinite().all() for t in compare.tensors(first))


@dense
def test_non_contiguous(kind, sample, dtype, training):
    ours, inputs = build(kind, sample, dtype, training)
    apart = [torch.utils._pytree.tree_map_only(torch.Tensor, gapped, value) for value in inputs]
    found = []
    for given in (inputs, apart):
        results = compare.tensors(ours(*given))
        cotangents = [torch.linspace(-1, 1, t.numel(), dtype=dtype).reshape(t.shape) for t in results]
        found.append([*results, *compare.gradients(results, cotangents, [*leaves(given), *ours.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("kind, sample, dtype, training", DENSE[::4])  # every fourth: test_autograd.py has all variants
def test_grad_and_gradgrad(kind, sample, dtype, training):
    """By finite differences along random directions, of inputs and parameters."""
    ours, inputs = build(kind, sample, dtype, training)
    names = [name for name, _ in ours.named_parameters()]
    weights = [fresh(p) for p in ours.parameters()]
    flat, spec = torch.utils._pytree.tree_flatten(inputs)
    places = [i for i, t in enumerate(flat) if isinstance(t, torch.Tensor)]

    def run(*values):
        full = list(flat)
        for i, value in zip(places, values, strict=False):
            full[i] = value * 0.1  # samples reach to 9, where relu and tanh are flat or steep
        args = tuple(torch.utils._pytree.tree_unflatten(full, spec))
        own = dict(zip(names, values[len(places) :], strict=True))
        return tuple(compare.tensors(torch.func.functional_call(ours, own, args)))

    values = (*(flat[i] for i in places), *weights)
    assert torch.autograd.gradcheck(run, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, values, fast_mode=True)


@dense
def test_factory_arguments_copies_and_modes(kind, sample, dtype, training):
    given = sample.constructor_input
    ours, inputs = build(kind, sample, dtype, training)
    assert OURS[kind](*given.args, **given.kwargs, device="meta").weight_ih_l0.is_meta
    assert all(p.dtype == dtype and p.device.type == "cpu" for p in ours.parameters())
    expected = compare.tensors(ours(*inputs))
    copied = pickle.loads(pickle.dumps(ours))
    other = OURS[kind](*given.args, **given.kwargs, dtype=dtype)
    other.load_state_dict(ours.state_dict(), strict=True)
    for module in (copied, other, copy.deepcopy(ours)):
        assert all(torch.equal(a, b) for a, b in zip(compare.tensors(module(*inputs)), expected, strict=True))
    if not ours.dropout:
        trained = compare.tensors(ours.train()(*inputs))
        assert all(torch.equal(a, b) for a, b in zip(trained, expected, strict=True))
    assert repr(ours) == repr(copied) == repr(kind(*given.args, **given.kwargs))
