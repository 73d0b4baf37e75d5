"""Whole modules against torch.nn's on the same GPU, by cuDNN: our error is at most twice cuDNN's in the same dtype."""

from itertools import product

import compare
import grids
import pytest
import torch

from . import on_gpu

CASES = [
    {"mode": mode, "layers": layers, "batch_first": batch_first, "B": B, "H": H, "dtype": dtype}
    for mode in grids.MODES
    for dtype in on_gpu.DTYPES
    for layers, batch_first, B, H in ((1, False, 1, 64), (2, True, 9, 33), (1, False, 16, 160))
]


def errors_are_near(case, T=20, I=24, tf32=False):  # noqa: E741
    theirs, ours = compare.pair(
        case["mode"], I, case["H"], case["layers"], bidirectional=True, batch_first=case["batch_first"], dtype=case["dtype"]
    )
    exact_module = compare.wide(theirs)
    theirs.cuda(), ours.cuda()
    shape = (case["B"], T, I) if case["batch_first"] else (T, case["B"], I)
    x = torch.randn(shape, dtype=case["dtype"])
    hx = compare.states(exact_module, case["B"], dtype=case["dtype"])

    def results(module, dtype, device):
        leaf = x.detach().to(device, dtype).requires_grad_()
        states = [t.detach().to(device, dtype).requires_grad_() for t in compare.tensors(hx)]
        found = compare.tensors(module(leaf, tuple(states) if len(states) > 1 else states[0]))
        weights = [c.to(device, dtype) for c in cotangents]
        gradients = compare.gradients(found, weights, [leaf, *states, *module.parameters()])
        return [t.detach().cpu() for t in (*found, *gradients)]

    with torch.no_grad():
        cotangents = [torch.randn_like(t).to(case["dtype"]) for t in compare.tensors(exact_module(x.double()))]
    exact = results(exact_module, torch.float64, "cpu")
    compare.check(results(ours, case["dtype"], "cuda"), results(theirs, case["dtype"], "cuda"), exact, tf32=tf32)


@pytest.mark.parametrize("case", CASES, ids=grids.name)
def test_error_is_at_most_twice_cudnns(tier, case, no_tf32):
    errors_are_near(case)


@pytest.mark.parametrize("mode", grids.MODES)
def test_error_with_tf32(tier, mode):
    torch.backends.cudnn.rnn.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "tf32"
    errors_are_near({"mode": mode, "layers": 1, "batch_first": False, "B": 16, "H": 160, "dtype": torch.float32}, tf32=True)


def test_tf32_where_both_settings_allow_it(monkeypatch):
    """That of products and that of cuDNN's layers; neither is changed."""
    monkeypatch.setenv("BIRNN_CUDA_TIER", "stepwise")
    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("no TF32 before sm_80")
    _, ours = compare.pair("GRU", 256, 256, bidirectional=True)
    x, found, rnn, matmul = torch.randn(20, 32, 256), {}, torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    exact = compare.wide(ours)(x.double())[0]
    ours.cuda()
    for settings in product(("tf32", "ieee"), repeat=2):
        rnn.fp32_precision, matmul.fp32_precision = settings
        found[settings] = compare.error(ours(x.cuda())[0].cpu(), exact)
        assert (rnn.fp32_precision, matmul.fp32_precision) == settings
    in_tf32 = found.pop(("tf32", "tf32"))
    assert in_tf32 > 10 * max(found.values())


def test_packed_sequence_equals_cudnns(tier, no_tf32):
    theirs, ours = compare.pair("LSTM", 5, 40, 2, bidirectional=True)
    exact_module = compare.wide(theirs)
    lengths = torch.tensor([7, 1, 4, 7, 2])
    x = torch.randn(7, 5, 5)

    def packed(t):
        return torch.nn.utils.rnn.pack_padded_sequence(t, lengths, enforce_sorted=False)

    exact = exact_module(packed(x.double()))
    theirs.cuda(), ours.cuda()
    x = x.cuda()
    found, expected = (([t.cpu() for t in compare.tensors(module(packed(x)))]) for module in (ours, theirs))
    compare.check(found, expected, exact)
    by_lengths = ours(x, None, lengths)[1]
    compare.check([t.cpu() for t in compare.tensors(by_lengths)], expected[1:], compare.tensors(exact)[1:])
