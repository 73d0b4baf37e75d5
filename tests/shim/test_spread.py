"""The kernels of many blocks (csrc/cuda/spread.cu, cluster.cu) through the shim, what is theirs alone: they are off unless
asked for, the ways in which units and rows are spread, and what becomes of a block that is never heard of. Their numbers:
test_backend.py; the exchanges between blocks: test_race.py, test_protocol.py.
"""

import os
import re
import shutil
from itertools import product

import problems
import pytest
import torch

import birnn_ext
from shim import build, test_backend
from shim.test_backend import kinds, layer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="no g++ to compile the shim with"),
]
poison = test_backend.poison  # buffers hold NaN before they are written


@pytest.fixture(scope="module", autouse=True)
def shim():
    torch.ops.load_library(build.library())
    return torch.ops.birnn_shim


@pytest.fixture(params=["spread", "cluster"])
def forced(request, monkeypatch):
    """Each of the two tiers in turn."""
    monkeypatch.setenv("BIRNN_CUDA_TIER", request.param)
    return request.param


def tier(mode="GRU", dtype=torch.float32, B=4, H=300, D=2, projected=False, backward=False):
    return torch.ops.birnn_shim.cuda_tier(mode, dtype, B, H, D, projected, backward, 0)[0]


# ---- the choice ----


def test_off_unless_asked_for(monkeypatch):
    monkeypatch.setenv("BIRNN_SHIM_MULTIPROCESSORS", "132")
    assert tier() == "stepwise" and tier(H=64) == "block"
    monkeypatch.setenv("BIRNN_PERSISTENT", "1")
    assert tier() == tier(H=64) == tier(backward=True) == tier(dtype=torch.bfloat16) == "cluster"
    assert tier(H=1024, B=1) == "spread", "too large for a cluster"
    with monkeypatch.context() as old:
        old.setenv("BIRNN_SHIM_CAPABILITY", "89")  # which has no clusters
        assert tier() == tier(H=64) == tier(backward=True) == tier(dtype=torch.bfloat16) == "spread"
        old.setenv("BIRNN_SHIM_CAPABILITY", "75")  # whose tensor cores know no bfloat16
        assert tier(dtype=torch.bfloat16) == "stepwise" and tier(dtype=torch.float16) == "spread"
        old.setenv("BIRNN_CUDA_TIER", "cluster")
        with pytest.raises(RuntimeError, match=r"BIRNN_CUDA_TIER=cluster: .* or the device has none \(they need sm_90\)"):
            tier()
    assert tier(B=1000) == "stepwise", "too much for a product in each block"
    assert tier(dtype=torch.float64) == tier(projected=True, mode="LSTM") == "stepwise"
    monkeypatch.setenv("BIRNN_CUDA_TIER", "stepwise")
    assert tier() == "stepwise"
    monkeypatch.setenv("BIRNN_PERSISTENT", "yes")
    with pytest.raises(ValueError, match="BIRNN_PERSISTENT: expected 0 or 1, got 'yes'"):
        tier()
    with pytest.raises(ValueError, match="mode: expected the name of a cell, got 'TANH'"):
        tier("TANH")


def test_forced_by_a_call(shim, monkeypatch):
    monkeypatch.setattr(torch.ops.birnn_ext, "force_cuda_tier", shim.force_cuda_tier, raising=False)
    monkeypatch.setenv("BIRNN_CUDA_TIER", "spread")
    with birnn_ext.cuda_kernel("stepwise"):
        assert tier(H=64) == "stepwise"
        with birnn_ext.cuda_kernel("auto"):
            assert tier(H=64) == "block", "not heeded: BIRNN_CUDA_TIER"
        refused = r"birnn_ext.cuda_kernel\('block'\): the recurrent weights of H = 300 do not fit"
        with pytest.raises(RuntimeError, match=refused), birnn_ext.cuda_kernel("block"):
            tier()
        assert tier(H=64) == "stepwise"
    assert tier(H=64) == "spread"
    with pytest.raises(ValueError, match="kind: expected auto, stepwise, block, spread or cluster, got 'fast'"):
        shim.force_cuda_tier("fast")
    assert tier(H=64) == "spread"


def test_two_groups_of_rows_share_a_multiprocessor(monkeypatch):
    """While one waits for its values, the other multiplies; where the weights fit twice."""
    pretend(monkeypatch, "H100")
    monkeypatch.setenv("BIRNN_CUDA_TIER", "cluster")

    def blocks():
        said = torch.ops.birnn_shim.cuda_tier("GRU", torch.float32, 128, 256, 2, False, False, 0)[1]
        groups, each, rows = map(int, re.match(r"(\d+) x (\d+) blocks a direction, each with (\d+) rows", said).groups())
        assert groups * rows == 128
        return 2 * groups * each

    assert 132 < blocks() <= 264
    monkeypatch.setenv("BIRNN_SHIM_SHARED_BYTES", str(80 * 1024))
    assert blocks() <= 132


def test_crowded_blocks_compute_the_same(monkeypatch):
    monkeypatch.setenv("BIRNN_CUDA_TIER", "cluster")
    monkeypatch.setenv("BIRNN_SHIM_MULTIPROCESSORS", "4")
    monkeypatch.setenv("BIRNN_SHIM_CROWD", "2")
    said = torch.ops.birnn_shim.cuda_tier("GRU", torch.float32, 20, 9, 2, False, False, 0)[1]
    assert said.startswith("1 x 4 blocks a direction"), "and so eight on four multiprocessors"
    test_backend.check(problems.make("GRU", 3, 20, 2, 9, lengths=[(5 * b + 3) % 4 for b in range(20)]))


@pytest.mark.parametrize("patience", ["0", "-1", "soon", "1e6", "99999999999999999999"])
def test_patience_is_a_number(forced, patience, monkeypatch):
    monkeypatch.setenv("BIRNN_CUDA_PATIENCE", patience)
    with pytest.raises(ValueError, match=f"BIRNN_CUDA_PATIENCE: expected how often .*, got '{patience}'"):
        layer_of(problems.make("GRU", 2, 1, 2, 5))


def test_what_is_said_of_it(forced, monkeypatch):
    monkeypatch.setenv("BIRNN_SHIM_MULTIPROCESSORS", "132")
    name, more = torch.ops.birnn_shim.cuda_tier("GRU", torch.float32, 8, 256, 2, False, False, 0)
    blocks = r"\d+" if forced == "spread" else r"\d+ x \d+"
    assert name == forced
    assert re.fullmatch(
        blocks + r" blocks a direction, each with \d+ rows, \d+ units and \d+ KiB, \d+% of the weights in registers", more
    )


# (multiprocessors, KiB of shared memory of a block)
DEVICES = {"H100": (132, 227), "A100": (108, 163), "RTX 4090": (128, 99), "T4": (40, 64)}


def pretend(monkeypatch, device):
    multiprocessors, kilobytes = DEVICES[device]
    monkeypatch.setenv("BIRNN_SHIM_MULTIPROCESSORS", str(multiprocessors))
    monkeypatch.setenv("BIRNN_SHIM_BLOCKS", str(multiprocessors))
    monkeypatch.setenv("BIRNN_SHIM_SHARED_BYTES", str(kilobytes * 1024))
    monkeypatch.setenv("BIRNN_SHIM_CROWD", "32")


def documented():
    """The table of docs/how/gpu.md, drawn anew."""
    rows = []
    for mode, dtype, H, B in product(("GRU", "LSTM"), ("float32", "bfloat16"), (256, 512, 1024), (1, 32)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BIRNN_PERSISTENT", "1")
            pretend(patch, "H100")
            answers = [
                torch.ops.birnn_shim.cuda_tier(mode, getattr(torch, dtype), B, H, 2, False, backward, 0)
                for backward in (False, True)
            ]
        said = [
            re.sub(
                r"(.+) blocks .* (\d+) rows, (\d+) units and (\d+) KiB, (\d+%) of the weights in registers",
                r"\1 blocks, \2, \3, \4, \5",
                more,
            )
            if tier in ("spread", "cluster")
            else "-"
            for tier, more in answers
        ]
        rows.append(f"| {mode}, {dtype}, H = {H}, B = {B} | {said[0]} | {said[1]} |")
    return rows


def test_the_documented_plans():
    text = (build.ROOT / "docs/how/gpu.md").read_text()
    assert [row for row in documented() if row not in text] == []


# The largest H, of 128, 256, ..., that has a plan: in forward, in backward.
FITS = {
    ("H100", "spread", "GRU", torch.float32, 1): (1024, 1024),
    ("H100", "spread", "GRU", torch.bfloat16, 32): (1024, 1024),
    ("H100", "spread", "LSTM", torch.float32, 1): (896, 896),
    ("A100", "spread", "LSTM", torch.float16, 8): (1024, 768),
    ("RTX 4090", "spread", "GRU", torch.float32, 1): (768, 768),
    ("T4", "spread", "RNN_TANH", torch.float16, 1): (896, 896),
    ("H100", "cluster", "GRU", torch.float32, 1): (512, 512),
    ("H100", "cluster", "GRU", torch.bfloat16, 32): (768, 768),
    ("H100", "cluster", "LSTM", torch.float32, 1): (512, 512),
    ("H100", "cluster", "RNN_TANH", torch.float16, 1): (1024, 1024),
}


@pytest.mark.parametrize("key", FITS, ids=lambda key: "-".join(map(str, key)).replace("torch.", ""))
def test_how_large_a_layer_may_be(key, monkeypatch):
    device, name, mode, dtype, B = key
    pretend(monkeypatch, device)
    monkeypatch.setenv("BIRNN_CUDA_TIER", name)

    def fits(H, backward):
        try:
            return tier(mode, dtype, B, H, backward=backward) == name
        except RuntimeError as error:
            assert f"BIRNN_CUDA_TIER={name}: the recurrent weights of H = {H} with B = {B} rows do not fit" in str(error)
            return False

    sizes = range(128, 1153, 128)
    assert tuple(max(H for H in sizes if fits(H, backward)) for backward in (False, True)) == FITS[key]


# ---- weights in registers, and what is left of them in shared memory ----


@pytest.mark.parametrize(
    "name, mode, dtype, B, H, multiprocessors",
    [
        ("cluster", "LSTM", torch.float32, 3, 70, 4),
        ("cluster", "LSTM", torch.float16, 1, 270, 16),
        ("spread", "GRU", torch.float32, 9, 70, 4),
        ("spread", "RNN_TANH", torch.float32, 1, 140, 6),
        ("spread", "LSTM", torch.bfloat16, 14, 140, 8),
        ("spread", "GRU", torch.float16, 2, 150, 6),
    ],
)
def test_weights_that_are_partly_in_registers(name, mode, dtype, B, H, multiprocessors, monkeypatch):
    """(In the other tests nearly always all of them.)"""
    monkeypatch.setenv("BIRNN_CUDA_TIER", name)
    monkeypatch.setenv("BIRNN_SHIM_MULTIPROCESSORS", str(multiprocessors))
    said = [torch.ops.birnn_shim.cuda_tier(mode, dtype, B, H, 2, False, backward, 0)[1] for backward in (False, True)]
    parts = [int(re.search(r"(\d+)% of the weights in registers", of_pass)[1]) for of_pass in said]
    assert 0 < min(parts) < 100, said
    lengths = [(5 * b + 3) % 4 for b in range(B)]
    test_backend.check(problems.make(mode, 3, B, 2, H, lengths=lengths, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_more_rows_than_a_pass_of_halves_has_sums_for(dtype, monkeypatch):
    monkeypatch.setenv("BIRNN_CUDA_TIER", "spread")
    monkeypatch.setenv("BIRNN_SHIM_MULTIPROCESSORS", "6")
    assert " 20 rows, " in torch.ops.birnn_shim.cuda_tier("LSTM", dtype, 20, 72, 2, False, False, 0)[1]
    lengths = [(5 * b + 3) % 4 for b in range(20)]
    test_backend.check(problems.make("LSTM", 3, 20, 2, 72, lengths=lengths, dtype=dtype))


# ---- ways to spread ----


WAYS = [*product(["spread"], [2, 3, 7, 26]), *product(["cluster"], [4, 8, 26])]


@pytest.mark.parametrize("name, multiprocessors", WAYS)
@pytest.mark.parametrize("mode, B, H", [("GRU", 1, 13), ("LSTM", 19, 13), ("RNN_RELU", 37, 5), ("GRU", 3, 40)])
def test_any_number_of_blocks(name, mode, B, H, multiprocessors, monkeypatch):
    """Spread: from one block for everything, with several passes of eight rows, to a block for every two units. Clusters: of
    two blocks, one of which may have nothing to do, to eight."""
    monkeypatch.setenv("BIRNN_CUDA_TIER", name)
    monkeypatch.setenv("BIRNN_SHIM_MULTIPROCESSORS", str(multiprocessors))
    dtype = torch.float32 if B != 3 else torch.bfloat16
    lengths = [(5 * b + 3) % 4 for b in range(B)]
    if multiprocessors < (4 if name == "spread" else 8) and B == 37:  # 32 rows a block, and one group a direction
        with pytest.raises(RuntimeError, match="do not fit"):
            layer_of(problems.make(mode, 3, B, 2, H))
        return
    test_backend.check(problems.make(mode, 3, B, 2, H, lengths=lengths, dtype=dtype, state=H != 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_cluster_of_sixteen_blocks(dtype, monkeypatch):
    """(One row: for two, two clusters of eight cost less by the estimate.)"""
    monkeypatch.setenv("BIRNN_CUDA_TIER", "cluster")
    monkeypatch.setenv("BIRNN_SHIM_MULTIPROCESSORS", "16")
    said = torch.ops.birnn_shim.cuda_tier("GRU", dtype, 1, 61, 1, False, False, 0)[1]
    assert said.startswith("1 x 16 blocks")
    test_backend.check(problems.make("GRU", 4, 1, 3, 61, D=1, lengths=[3], dtype=dtype))


@pytest.mark.parametrize(
    "mode, dtype, B, H, multiprocessors, shared, in_registers",
    [
        ("LSTM", torch.float16, 8, 29, 6, 4800, 100),
        ("GRU", torch.bfloat16, 11, 45, 2, 14000, 100),
        ("LSTM", torch.float16, 5, 190, 6, 42000, 66),
        ("GRU", torch.float32, 19, 45, 6, 12000, 100),
        ("GRU", torch.float32, 8, 190, 6, 133000, 16),
    ],
)
def test_gate_by_gate(mode, dtype, B, H, multiprocessors, shared, in_registers, monkeypatch):
    """Where the gate gradients of all rows do not fit beside the weights."""
    monkeypatch.setenv("BIRNN_SHIM_CAPABILITY", "80")
    monkeypatch.setenv("BIRNN_PERSISTENT", "1")
    monkeypatch.setenv("BIRNN_SHIM_MULTIPROCESSORS", str(multiprocessors))
    monkeypatch.setenv("BIRNN_SHIM_SHARED_BYTES", str(shared))
    said = torch.ops.birnn_shim.cuda_tier(mode, dtype, B, H, 2, False, True, 0)[1]
    assert said.endswith(f"{in_registers}% of the weights in registers, gate by gate")
    test_backend.check(problems.make(mode, 4, B, 2, H, lengths=[(5 * b + 3) % 5 for b in range(B)], dtype=dtype))


def layer_of(problem):
    return problems.results(problem.detach(), layer)


@kinds
def test_same_bits_in_any_order(kind, forced, monkeypatch):
    if kind == "LSTM_PROJ":
        monkeypatch.setenv("BIRNN_CUDA_TIER", "stepwise")
    problem = problems.small(kind, T=7, B=5, H=9, lengths=True)
    first = problems.run(problem, layer)
    assert all(torch.equal(a, b) for _ in range(3) for a, b in zip(problems.run(problem, layer), first, strict=True))


# ---- a block that is never heard of ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("mode", ["GRU", "RNN_RELU"])
def test_an_absent_block_is_an_error_at_the_next_call(forced, mode, dtype, monkeypatch):
    """And its results are NaN until then, in forward and in backward, over all chunks. (In a cluster it comes, as the hardware
    sees to it, but nothing that it pushes arrives.)"""
    monkeypatch.setenv("BIRNN_SHIM_MULTIPROCESSORS", "6")
    monkeypatch.setenv("BIRNN_CUDA_CHUNK_BYTES", "300")
    problem = problems.make(mode, 6, 1, 4, 9, lengths=[5], dtype=dtype)  # one row: one group, of two or three blocks
    expected = problems.run(problem, layer)
    with monkeypatch.context() as broken:
        broken.setenv("BIRNN_SHIM_ABSENT_BLOCK", "1")
        broken.setenv("BIRNN_CUDA_PATIENCE", "300")
        output, h_n = layer_of(problem)
        at_work = torch.arange(6)[:, None] < problem.lengths
        # Units of the blocks that came, in the forward direction and in the other.
        here = [0, 1, 2, 3] if forced == "spread" else list(range(9))
        assert output[at_work][:, [*here, *(9 + u for u in here)]].isnan().all()
        assert not output[~at_work][:, here].any() and h_n[..., here].isnan().all()
    gave_up = "a persistent kernel of an earlier call gave up waiting for another of its blocks"
    with pytest.raises(RuntimeError, match=gave_up):
        layer_of(problem)
    found = problems.run(problem, layer)  # once told, it is over
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    results = problems.results(problem, layer)
    with monkeypatch.context() as broken:
        broken.setenv("BIRNN_SHIM_ABSENT_BLOCK", "0")
        broken.setenv("BIRNN_CUDA_PATIENCE", "300")
        (gradient,) = torch.autograd.grad(results, [problem.input], [c for c in problem.cotangents if c is not None])
    assert gradient[at_work].isnan().all()
    with pytest.raises(RuntimeError, match=gave_up):
        layer_of(problem)
