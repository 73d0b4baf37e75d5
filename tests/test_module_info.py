"""torch's own ModuleInfo samples for nn.RNN, GRU and LSTM, run on our layers: results, gradients, errors.

The samples live in torch.testing._internal, so this file skips, visibly, where a torch release has moved
them.
"""

import functools

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
