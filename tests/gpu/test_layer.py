"""The kernels on a GPU against the reference: every mode, dtype and size, strides, lengths, derivatives, unwritten memory.

Not here: cuDNN (test_cudnn.py), streams, graphs and devices (test_streams.py).
"""

from dataclasses import replace

import compare
import grids
import problems
import pytest
import torch
from cpu import test_isa
from torch.autograd import gradcheck, gradgradcheck

from birnn_ext import ops, reference

from . import on_gpu

pytestmark = pytest.mark.usefixtures("no_tf32")
kinds = pytest.mark.parametrize("kind", problems.KINDS)
LANES = 32  # of a warp


@pytest.mark.parametrize("i", test_isa.CASES)
def test_equals_the_reference(i):
    """The cases of tests/cpu/test_isa.py, which hold all pairs of kinds, sizes and lengths."""
    on_gpu.check(test_isa.case(i, LANES, torch.float32))


@pytest.mark.parametrize("i", test_isa.CASES[::3])
def test_equals_the_reference_step_by_step(i, monkeypatch):
    monkeypatch.setenv("BIRNN_CUDA_TIER", "stepwise")
    on_gpu.check(test_isa.case(i, LANES, torch.float32))


@pytest.mark.parametrize("dtype", on_gpu.DTYPES[1:], ids=str)
@pytest.mark.parametrize("i", test_isa.CASES[::5])
def test_equals_the_reference_in_other_dtypes(i, dtype):
    on_gpu.check(test_isa.case(i, LANES, dtype))


BIG = {
    "wide": {"mode": "GRU", "T": 6, "B": 5, "I": 300, "H": 520},
    "just_fits": {"mode": "GRU", "T": 9, "B": 9, "I": 40, "H": 96},
    "just_fits_half": {"mode": "LSTM", "T": 9, "B": 9, "I": 40, "H": 128, "dtype": torch.float16},
    "projection": {"mode": "LSTM", "T": 9, "B": 7, "I": 30, "H": 150, "P": 70},
    "many_rows": {"mode": "GRU", "T": 3, "B": 1500, "I": 8, "H": 16},
    "long": {"mode": "LSTM", "T": 2000, "B": 2, "I": 8, "H": 12, "lengths": [2000, 777]},
}


@pytest.mark.parametrize("name", BIG)
def test_large_sizes(tier, name):
    on_gpu.check(problems.make(**BIG[name]))


@pytest.mark.parametrize("name", ["spread", "cluster"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", grids.MODES)
@pytest.mark.parametrize("T, B, H", [(9, 3, 9), (7, 19, 61), (40, 5, 256)])
def test_kernels_of_many_blocks(name, mode, dtype, T, B, H, monkeypatch):
    """Each kind, where `tier` takes the better of the two."""
    if name == "cluster" and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("clusters need sm_90")
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("tensor cores know bfloat16 from sm_80 on")
    monkeypatch.setenv("BIRNN_CUDA_TIER", name)
    on_gpu.check(problems.make(mode, T, B, 5, H, lengths=grids.ragged(T, B), dtype=dtype))


def test_more_features_than_a_grid_has_blocks_along_y(tier):
    """65535 blocks of 32 features. All but a few are zero, so that it is the places that are tested and not long sums."""
    problem = problems.make("RNN_TANH", 2, 2, 2_200_000, 2, lengths=[2, 1])
    with torch.no_grad():
        problem.input[..., 3:-3] = 0
    on_gpu.check(problem)


@kinds
@pytest.mark.parametrize("bytes", [1, 20000])
def test_chunks(tier, kind, bytes, monkeypatch):
    """One step per chunk, and some."""
    monkeypatch.setenv("BIRNN_CUDA_CHUNK_BYTES", str(bytes))
    on_gpu.check(problems.typical(kind, lengths=True))


@kinds
def test_same_bits_on_every_run(tier, kind):
    problem = problems.typical(kind, T=50, B=19, lengths=True)
    first = on_gpu.run(problem)
    assert all(torch.equal(a, b) for _ in range(3) for a, b in zip(on_gpu.run(problem), first, strict=True))


@kinds
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
def test_every_element_is_written(tier, kind, batch_first):
    torch.use_deterministic_algorithms(True)  # torch.empty gives NaN
    try:
        problem = on_gpu.to(problems.typical(kind, lengths=True, batch_first=batch_first))
        *results, saved = torch.ops.birnn_ext.layer(*problem.op_arguments(), True)
        found = (*results, saved, *problems.run(problem))
        assert not any(t.isnan().any() for t in found)
    finally:
        torch.use_deterministic_algorithms(False)


@kinds
def test_no_argument_needs_to_be_contiguous(tier, kind):
    def scattered(t):
        if t is None:
            return None
        memory = torch.full([2 * n for n in reversed(t.shape)], torch.nan, dtype=t.dtype, device=t.device)
        view = memory[(slice(None, None, 2),) * t.dim()].permute(*reversed(range(t.dim())))
        return view.copy_(t.detach()).detach().requires_grad_(t.requires_grad)

    problem = on_gpu.to(problems.small(kind, T=5, B=3, lengths=True))
    apart = replace(problem.map(scattered), lengths=torch.stack([problem.lengths] * 2, 1)[:, 0])
    exact = problems.run(problem.double(), reference.layer)
    compare.check(problems.run(apart), problems.run(problem, reference.layer), exact)


@kinds
def test_padding_is_never_read(tier, kind):
    problem = problems.typical(kind, B=7, lengths=True)
    clean = on_gpu.run(problem)
    with torch.no_grad():
        for b, length in enumerate(problem.lengths.tolist()):
            problem.input[length:, b] = torch.nan
            problem.cotangents[0][length:, b] = torch.nan
    assert all(torch.equal(a, b) for a, b in zip(on_gpu.run(problem), clean, strict=True))


def test_lengths_out_of_range_are_clamped(tier):
    problem = replace(problems.small("LSTM", T=4, B=3, lengths=True), lengths=torch.tensor([9, -2, 3]))
    within = replace(problem, lengths=torch.tensor([4, 0, 3]))
    assert all(torch.equal(a, b) for a, b in zip(on_gpu.run(problem), on_gpu.run(within), strict=True))


@kinds
def test_no_rows(kind):
    problem = problems.typical(kind, B=0)
    expected = problems.run(problem, reference.layer)
    assert [t.shape for t in on_gpu.run(problem)] == [t.shape for t in expected]


@kinds
def test_first_and_second_derivatives(kind):
    """In float64, which has stepwise kernels only."""
    problem = on_gpu.to(problems.typical(kind, T=2, B=2, I=2, H=2, lengths=True, dtype=torch.float64))
    leaves = problem.leaves()

    def call(*values):
        given = dict(zip(map(id, leaves), values, strict=True))
        return tuple(problems.results(problem.map(lambda t: given.get(id(t), t))))

    assert gradcheck(call, leaves, nondet_tol=0)
    assert gradgradcheck(call, leaves)


@kinds
def test_opcheck(kind):
    pytest.importorskip("expecttest", reason="torch's opcheck needs it")
    problem = on_gpu.to(problems.small(kind, lengths=True)).detach()
    torch.library.opcheck(torch.ops.birnn_ext.layer.default, (*problem.op_arguments(), True))
    output, *_, saved = torch.ops.birnn_ext.layer(*problem.op_arguments(), True)
    cotangents = (*problem.cotangents, None)[:3]
    arguments = (*cotangents, *problem.op_arguments(), output, saved, True, True, True)
    torch.library.opcheck(torch.ops.birnn_ext.layer_backward.default, arguments)


def test_compile():
    problem = on_gpu.to(problems.typical("GRU", lengths=True))
    compiled = torch.compile(lambda: problems.results(problem)[0].sin(), fullgraph=True)
    torch.testing.assert_close(compiled(), problems.results(problem)[0].sin(), rtol=0, atol=1e-6)


def test_kernels_are_what_runs():
    """A layer that quietly took the reference path would pass everything else."""
    problem = on_gpu.to(problems.typical("GRU"))
    assert all(ops.has_kernel(problem.input.to(dtype)) for dtype in on_gpu.DTYPES)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        problems.run(problem)
        torch.cuda.synchronize()
    names = " ".join(event.key for event in profile.key_averages())
    for kernel in ("forward_block_kernel", "backward_block_kernel"):
        assert kernel in names or kernel.replace("block", "step") in names, names


@pytest.mark.parametrize("mode", grids.MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(mode, dtype):
    theirs, ours = compare.pair(mode, 5, 7, num_layers=2, bidirectional=True)
    theirs.cuda(), ours.cuda()
    x = torch.randn(6, 3, 5, device="cuda")
    with torch.autocast("cuda", dtype):
        expected, found = theirs(x), ours(x)
    exact = compare.tensors(compare.wide(theirs.cpu())(x.cpu().double()))
    found, expected = ([t.cpu() for t in compare.tensors(results)] for results in (found, expected))
    compare.check(found, expected, exact)
    ours(x)[0].sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())
