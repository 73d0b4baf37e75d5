"""torch.autocast: results have torch.nn's dtypes, and their numbers are those of float32, rounded once at the end; those of
bfloat16 on a processor that multiplies it.

Not here: GradScaler and training under autocast (pytorch/test_autograd_modes.py).
"""

import compare
import grids
import pytest
import torch

import birnn_ext
from birnn_ext import ops

MODES = ("RNN_TANH", "RNN_RELU", "LSTM", "GRU")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def flat(results):
    output, state = results
    return [output, *(state if isinstance(state, tuple) else (state,))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
@dtypes
def test_dtypes_and_numbers(mode, dtype, weights):
    theirs, ours = compare.pair(mode, 5, 7, num_layers=2, bidirectional=True)
    theirs.to(weights), ours.to(weights)
    x = torch.randn(6, 3, 5, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = flat(theirs(x)), flat(ours(x))
    exact = flat(ours.float()(x.float()))
    for e, f, right in zip(expected, found, exact, strict=True):
        assert f.dtype == e.dtype
        # Two layers, and a rounding to 8 bits after each.
        torch.testing.assert_close(f.float(), right, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("mode", ["RNN_TANH", "GRU"])  # torch's LSTM fails there: below
def test_float16(mode):
    theirs, ours = compare.pair(mode, 5, 7, num_layers=2, bidirectional=True)
    x = torch.randn(6, 3, 5)
    with torch.autocast("cpu", torch.float16):
        expected, found = flat(theirs(x)), flat(ours(x))
    for e, f, right in zip(expected, found, flat(ours(x)), strict=True):
        assert f.dtype == e.dtype
        torch.testing.assert_close(f.float(), right, atol=2e-3, rtol=2e-3)


def test_contrast_torchs_lstm_fails_in_float16():
    """As of torch 2.13."""
    theirs, ours = compare.pair("LSTM", 5, 7)
    x = torch.randn(6, 3, 5)
    with torch.autocast("cpu", torch.float16):
        assert {t.dtype for t in flat(ours(x))} == {torch.float16}
        with pytest.raises(RuntimeError):
            theirs(x)


@pytest.mark.parametrize("mode", MODES)
def test_lengths_and_states(mode):
    """A state of another dtype than the input is no error under autocast."""
    _, ours = compare.pair(mode, 5, 7, bidirectional=True)
    x, hx, lengths = torch.randn(6, 3, 5), compare.states(ours, 3), torch.tensor([6, 0, 2])
    exact = flat(ours(x, hx, lengths))
    with torch.autocast("cpu", torch.bfloat16):
        found = flat(ours(x.bfloat16(), hx, lengths))
    for f, right in zip(found, exact, strict=True):
        torch.testing.assert_close(f.float(), right, atol=2e-2, rtol=2e-2)
    assert not found[0][2:, 2].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_on_a_gpu(mode, dtype):
    theirs, ours = compare.pair(mode, 5, 7, bidirectional=True, device="cuda")
    x = torch.randn(6, 3, 5, device="cuda")
    with torch.autocast("cuda", dtype):
        expected, found = flat(theirs(x)), flat(ours(x))
    for e, f in zip(expected, found, strict=True):
        assert f.dtype == e.dtype
        torch.testing.assert_close(f.float(), e.float(), atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_reach_float32_weights(mode):
    theirs, ours = compare.pair(mode, 5, 7, bidirectional=True)
    x = torch.randn(6, 3, 5)
    exact = torch.autograd.grad(ours(x)[0].square().sum(), list(ours.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = ours(x.bfloat16())[0].float().square().sum()
    for found, right in zip(torch.autograd.grad(loss, list(ours.parameters())), exact, strict=True):
        assert found.dtype == torch.float32
        assert (found - right).abs().max() < 0.05 * right.abs().max()


def test_float64_is_left_alone():
    theirs, ours = compare.pair("GRU", 5, 7, dtype=torch.float64)
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    expected = flat(theirs(x))
    with torch.autocast("cpu", torch.bfloat16):
        found = flat(ours(x))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", grids.MODES)
def test_gradients_per_sample_and_second_derivatives_are_those_of_float32(mode):
    """Plain PyTorch computes them: autocast must not round its steps to bfloat16."""
    _, ours = compare.pair(mode, 6, 7, bidirectional=True)
    params, xs = dict(ours.named_parameters()), torch.randn(4, 9, 2, 6)

    def loss(params, x):
        return torch.func.functional_call(ours, params, (x,))[0].float().square().sum()

    def penalty():
        x = xs[0].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(params, x), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), list(params.values()))

    def both():
        each = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, xs)
        return [*each.values(), *penalty()]

    exact = both()
    with torch.autocast("cpu", torch.bfloat16):
        found = both()
    # The results themselves may be rounded to bfloat16 once, and with them the cotangents of the loss; and input, weights and
    # the first gradients, where the kernels compute in it.
    near = 2e-2 if ops.fast_bfloat16() else 2e-3
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=near * b.abs().max().item())


def test_meta_tensors_and_the_autocast_of_another_device():
    layer = birnn_ext.GRU(3, 4, device="meta", dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = layer(torch.empty(5, 2, 3, device="meta", dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16 and output.device.type == "meta"
