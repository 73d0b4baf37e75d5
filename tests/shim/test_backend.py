"""The CUDA backend, host side and kernels, run on the CPU through the shim: numbers, order of streams, barriers.

The same source as on a GPU, but for streams, products and the seam (device.cpp, cuda/seam.h). Not here: what only a GPU can
show, which is in tests/gpu, and what nvcc makes of it (tests/test_cuda_build.py).
"""

import os
import random
import shutil
from dataclasses import replace
from itertools import permutations

import compare
import grids
import problems
import pytest
import torch

from birnn_ext import reference
from shim import build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="no g++ to compile the shim with"),
]
kinds = pytest.mark.parametrize("kind", problems.KINDS)
TIERS = ("stepwise", "block", "spread", "cluster")
tiers = pytest.mark.parametrize("tier", TIERS)


@pytest.fixture(scope="module", autouse=True)
def shim():
    torch.ops.load_library(build.library())
    return torch.ops.birnn_shim


class Layer(torch.autograd.Function):
    """The two ops of the shim as one differentiable call."""

    @staticmethod
    def forward(ctx, mode, batch_first, *tensors):
        output, h_n, c_n, saved = torch.ops.birnn_shim.layer(*tensors, mode, batch_first, True)
        ctx.save_for_backward(*tensors, output, saved)
        ctx.mode, ctx.batch_first = mode, batch_first
        ctx.mark_non_differentiable(saved)
        ctx.set_materialize_grads(False)
        return output, h_n, c_n

    @staticmethod
    def backward(ctx, *cotangents):
        *tensors, output, saved = ctx.saved_tensors
        cotangents = cotangents if ctx.mode == "LSTM" else (*cotangents[:2], None)
        needs = ctx.needs_input_grad
        found = torch.ops.birnn_shim.layer_backward(
            *cotangents, *tensors, ctx.mode, ctx.batch_first, output, saved, needs[2], needs[3] or needs[4], any(needs[6:])
        )
        gradients = (None, None, *found[:3], None, *found[3:])
        return tuple(g if need else None for g, need in zip(gradients, needs, strict=True))


def layer(input, h0, c0, lengths, weights, *, mode, batch_first=False):
    """The same call as ops.layer."""
    flat = weights[0] + (weights[1] if len(weights) == 2 else (None,) * 5)
    output, h_n, c_n = Layer.apply(mode, batch_first, input, h0, c0, lengths, *flat)
    return output, h_n, c_n if mode == "LSTM" else None


def check(problem):
    exact = problems.run(problem.double(), reference.layer)
    ours, theirs = problems.run(problem, layer), problems.run(problem, reference.layer)
    compare.check(ours, theirs, exact)
    return ours


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Results and buffers hold NaN before they are written; shared memory does so anyway (cuda/seam.h). And blocks that wait
    for each other in vain give up within seconds."""
    monkeypatch.setenv("BIRNN_CUDA_PATIENCE", "100000")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


# ---- numbers ----

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
AXES = {
    "dtype": DTYPES,
    "T": (1, 2, 3, 4, 5, 6, 7),
    "B": (1, 3, 4, 5, 9),
    "H": (1, 3, 8, 13),
    "I": (1, 4, 7),
    "lengths": ("full", "ragged"),
    "D": (1, 2),
    "batch_first": (False, True),
    "chunk": (1, 3, 100),  # steps
    "bias": (True, False),
    "state": (True, False),
}


def draw(kind, tier, i):
    """The i-th case of a kind and tier: a value of every axis, drawn the same way every time."""
    choose = random.Random(f"{kind} {tier} {i}").choice
    return {"kind": kind, "tier": tier, **{name: choose(values) for name, values in AXES.items()}}


CASES = [draw(kind, tier, i) for kind in problems.KINDS for tier in TIERS for i in range(14)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: grids.name(case).replace("torch.", ""))
def test_equals_the_reference(case, monkeypatch):
    kind, T, B, H = case["kind"], case["T"], case["B"], case["H"]
    on_chip = case["dtype"] != torch.float64 and kind != "LSTM_PROJ"
    G = problems.GATES[kind.removesuffix("_PROJ")]
    monkeypatch.setenv("BIRNN_CUDA_TIER", case["tier"] if on_chip else "stepwise")
    monkeypatch.setenv("BIRNN_CUDA_CHUNK_BYTES", str(case["chunk"] * B * max(G, 4) * H * 8))
    check(
        problems.make(
            kind.removesuffix("_PROJ"),
            T,
            B,
            case["I"],
            H,
            P=H // 2 + 1 if kind == "LSTM_PROJ" else None,
            D=case["D"],
            bias=case["bias"],
            state=case["state"],
            lengths=grids.ragged(T, B) if case["lengths"] == "ragged" else None,
            batch_first=case["batch_first"],
            dtype=case["dtype"],
        )
    )


@tiers
@kinds
def test_parts_of_the_gradient(kind, tier, monkeypatch):
    """Gradients that are not wanted, and results that nobody used."""
    monkeypatch.setenv("BIRNN_CUDA_TIER", "stepwise" if kind == "LSTM_PROJ" else tier)
    for used in (("output",), ("h_n",), ("c_n",) if kind.startswith("LSTM") else ("h_n",)):
        for wanted in ({"input_grad": False}, {"weight_grad": False}):
            check(problems.small(kind, T=3, lengths=True, used=used, **wanted))


@tiers
def test_more_units_than_lanes(tier, monkeypatch):
    """Several warps, and for the stepwise kernels several blocks of units."""
    monkeypatch.setenv("BIRNN_CUDA_TIER", tier)
    check(problems.make("GRU", 3, 6, 5, 37, lengths=[3, 1, 0, 2, 3, 3]))
    check(problems.make("LSTM", 2, 3, 5, 40, dtype=torch.float16))


def test_many_units_stepwise(monkeypatch):
    monkeypatch.setenv("BIRNN_CUDA_TIER", "stepwise")
    check(problems.make("GRU", 2, 2, 5, 300))


@tiers
@kinds
def test_no_argument_needs_to_be_contiguous(kind, tier, monkeypatch):
    monkeypatch.setenv("BIRNN_CUDA_TIER", "stepwise" if kind == "LSTM_PROJ" else tier)

    def scattered(t):
        if t is None:
            return None
        memory = torch.full([2 * n for n in reversed(t.shape)], torch.nan, dtype=t.dtype)
        view = memory[(slice(None, None, 2),) * t.dim()].permute(*reversed(range(t.dim())))
        return view.copy_(t.detach()).detach().requires_grad_(t.requires_grad)

    for batch_first in (False, True):
        problem = problems.small(kind, T=4, B=3, lengths=True, batch_first=batch_first)
        apart = replace(problem.map(scattered), lengths=torch.stack([problem.lengths] * 2, 1)[:, 0])
        assert all(torch.equal(a, b) for a, b in zip(problems.run(apart, layer), problems.run(problem, layer), strict=True))


@tiers
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_expanded_tensors(dim, tier, monkeypatch):
    """Stride 0 in the input and in the gradient that comes in."""
    monkeypatch.setenv("BIRNN_CUDA_TIER", tier)
    problem = problems.small("GRU", T=4, B=3)

    def expanded(t):
        return t.detach().narrow(dim, 0, 1).expand(t.shape).requires_grad_(t.requires_grad)

    check(replace(problem, input=expanded(problem.input), cotangents=(expanded(problem.cotangents[0]), problem.cotangents[1])))


@tiers
@kinds
def test_padding_is_never_read(kind, tier, monkeypatch):
    monkeypatch.setenv("BIRNN_CUDA_TIER", "stepwise" if kind == "LSTM_PROJ" else tier)
    problem = problems.small(kind, T=5, B=5, lengths=True)
    clean = problems.run(problem, layer)
    with torch.no_grad():
        for b, length in enumerate(problem.lengths.tolist()):
            problem.input[length:, b] = torch.nan
            problem.cotangents[0][length:, b] = torch.nan
    assert all(torch.equal(a, b) for a, b in zip(problems.run(problem, layer), clean, strict=True))


@tiers
@kinds
def test_lengths_out_of_range_are_clamped(kind, tier, monkeypatch):
    """Checking them would mean to wait for the device."""
    monkeypatch.setenv("BIRNN_CUDA_TIER", "stepwise" if kind == "LSTM_PROJ" else tier)
    problem = replace(problems.small(kind, T=4, B=3, lengths=True), lengths=torch.tensor([9, -2, 3]))
    within = replace(problem, lengths=torch.tensor([4, 0, 3]))
    assert all(torch.equal(a, b) for a, b in zip(problems.run(problem, layer), problems.run(within, layer), strict=True))


@kinds
def test_no_rows(kind):
    problem = problems.small(kind, B=0)
    ours, expected = problems.run(problem, layer), problems.run(problem, reference.layer)
    assert [t.shape for t in ours] == [t.shape for t in expected]
    assert not any(t.any() for t in ours)


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_tiers_agree(dtype, monkeypatch):
    problem, found = problems.small("LSTM", T=5, B=5, H=9, lengths=True, dtype=dtype), {}
    exact = problems.run(problem.double(), reference.layer)
    for tier in TIERS:
        monkeypatch.setenv("BIRNN_CUDA_TIER", tier)
        found[tier] = problems.run(problem, layer)
    for one, other in permutations(TIERS, 2):
        compare.check(found[one], found[other], exact)


@kinds
def test_inference_saves_nothing(kind, shim):
    problem = problems.small(kind).detach()
    *results, saved = shim.layer(*problem.op_arguments(), False)
    *trained, kept = shim.layer(*problem.op_arguments(), True)
    assert saved.numel() == 0 and (kept.numel() > 0) == (not kind.startswith("RNN"))
    assert all(torch.equal(a, b) for a, b in zip(results, trained, strict=True))


# ---- the choice of the kernels ----


def test_tier_is_chosen_by_what_fits(monkeypatch):
    problem = problems.small("GRU", H=6).detach()
    arguments = (*problem.op_arguments(), False)
    monkeypatch.setenv("BIRNN_CUDA_TIER", "block")
    for name, value in (("BIRNN_SHIM_SHARED_BYTES", "600"), ("BIRNN_SHIM_BLOCKS", "1")):
        torch.ops.birnn_shim.layer(*arguments)
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(RuntimeError, match="BIRNN_CUDA_TIER=block: the recurrent weights of H = 6 do not fit"):
                torch.ops.birnn_shim.layer(*arguments)
            patch.setenv("BIRNN_CUDA_TIER", "auto")
            torch.ops.birnn_shim.layer(*arguments)
    monkeypatch.setenv("BIRNN_CUDA_TIER", "grid")
    with pytest.raises(ValueError, match="BIRNN_CUDA_TIER: expected auto, stepwise, block, spread or cluster, got 'grid'"):
        torch.ops.birnn_shim.layer(*arguments)


def test_other_dtypes_are_refused():
    problem = problems.small().detach().map(lambda t: None if t is None else t.to(torch.complex64))
    with pytest.raises(
        RuntimeError, match="input: the CUDA kernels are for dtypes Float, Double, Half and BFloat16, got Complex"
    ):
        torch.ops.birnn_shim.layer(*problem.op_arguments(), False)


def test_what_only_the_kernels_of_the_cpu_know_is_refused(shim):
    """Episodes, and gradients of every c: `ops.has_variants` keeps them away."""
    arguments = problems.small("LSTM").detach().op_arguments()
    output, *_, saved = shim.layer(*arguments, True)
    D, T, B, _, H = saved.shape
    with pytest.raises(RuntimeError, match=r"grad_c_n: the CUDA kernels take that of c_n only, got shape \[2, 4, 2, 5\]"):
        of_c = torch.zeros(D, T + 1, B, H)
        shim.layer_backward(None, None, of_c, *arguments, output, saved, True, True, True)
    arguments[3] = torch.ones(B, T, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"lengths: the CUDA kernels know no episodes, got shape \[2, 3\]"):
        shim.layer(*arguments, False)


# ---- what must be noticed: mutants that leave out one wait of a stream, or one barrier of every block ----


def wrong(monkeypatch, tries=12, **settings):
    """Whether any of some runs, each in another order of streams and threads, gives a wrong result."""
    problem = problems.make("LSTM", 6, 5, 4, 9, lengths=[6, 3, 0, 5, 6])
    expected = problems.run(problem, reference.layer)
    monkeypatch.setenv("BIRNN_CUDA_CHUNK_BYTES", "1500")  # three chunks of two steps
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    return any(compare.differs(problems.run(problem, layer), expected) for _ in range(tries))


@tiers
def test_nothing_is_wrong_in_any_order(tier, monkeypatch):
    assert not wrong(monkeypatch, tries=4, BIRNN_CUDA_TIER=tier)


@pytest.mark.parametrize("barrier", range(3))
def test_a_missing_barrier_is_noticed(barrier, monkeypatch):
    assert wrong(monkeypatch, BIRNN_CUDA_TIER="block", BIRNN_SHIM_SKIP_BARRIER=barrier)


# The first two are the fork, behind which the shim has nothing left to do.
@pytest.mark.parametrize("wait", range(2, 10))
def test_a_missing_wait_is_noticed(wait, monkeypatch):
    assert wrong(monkeypatch, tries=40, BIRNN_CUDA_TIER="stepwise", BIRNN_SHIM_SKIP_WAIT=wait)


@kinds
def test_states_are_written_into_rows_of_a_larger_tensor(shim, kind):
    problem = problems.small(kind).detach()
    output, h_n, c_n, saved = shim.layer(*problem.op_arguments(), True)
    room = [s.new_full((7, *s.shape[1:]), torch.nan) if s.numel() else None for s in (h_n, c_n)]
    found, kept = shim.layer_into(*problem.op_arguments(), True, *room, 3)
    assert torch.equal(found, output) and torch.equal(kept, saved)
    for states, expected in zip(room, (h_n, c_n), strict=True):
        if states is not None:
            assert torch.equal(states[3:5], expected)
            states[3:5] = torch.nan
            assert states.isnan().all()


# ---- errors between fork and join ----


@pytest.mark.parametrize("kind, tier", [("GRU", "stepwise"), ("LSTM_PROJ", "stepwise"), ("LSTM", "block"), ("GRU", "spread")])
def test_a_product_that_fails_leaves_nothing_behind(kind, tier, monkeypatch):
    """What was enqueued before is run to its end, in memory that is still there, and the next call knows nothing of it."""
    monkeypatch.setenv("BIRNN_CUDA_TIER", tier)
    monkeypatch.setenv("BIRNN_CUDA_CHUNK_BYTES", "1")  # chunks of one step: the streams wait for each other
    problem = problems.small(kind, lengths=True)
    expected = problems.run(problem, layer)
    results, leaves = problems.results(problem, layer), problem.leaves()
    cotangents = problem.cotangents[: len(results)]
    for call in (
        lambda: problems.results(problem, layer),
        lambda: torch.autograd.grad(results, leaves, cotangents, retain_graph=True),
    ):
        for product in range(1000):
            with monkeypatch.context() as short:
                short.setenv("BIRNN_SHIM_FAIL_PRODUCT", str(product))
                try:
                    call()
                    break
                except RuntimeError as error:
                    assert "no memory for a product" in str(error)
            assert all(map(torch.equal, problems.run(problem, layer), expected))
        assert 4 < product < 999
