"""`python -m benchmarks.run --packed`: who computes with which weights, and the guide's table of it. Nothing is timed here."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("tqdm", reason="benchmarks need the packages of the extra `bench`")
# At the end, so that an installed birnn_ext keeps the upper hand over the one in the tree.
sys.path.append(str(Path(__file__).parents[1]))

import torch  # noqa: E402

from benchmarks import machine, run  # noqa: E402
from benchmarks.check import CheckFailed, Judge  # noqa: E402
from benchmarks.contenders import OURS, THEIRS, UNPACKED, Ours  # noqa: E402
from benchmarks.problem import draw  # noqa: E402
from benchmarks.shapes import Case, Shape  # noqa: E402

TINY = Shape("tiny", 3, 6, 5, 4)


@pytest.fixture
def fast_probe(monkeypatch):
    speed = {"gflops": 100.0, "l2_gbs": 80.0, "l3_gbs": 20.0, "memory_gbs": 10.0}
    monkeypatch.setattr(machine, "probe", lambda dtype, threads: speed)


@pytest.mark.parametrize("packed", ["float32", "bfloat16"])
def test_run_with_weights_packed_beforehand(fast_probe, tmp_path, packed):
    """All compute with the same weights, rounded ones where they are packed as bfloat16; ours stands beside itself."""
    argv = ["--shapes", "3,4,5,17", "--modes", "GRU", "--threads", "1", "--packed", packed]
    result = run.measure_or_exit(run.arguments([*argv, "--budget", "0.05", "--json", str(tmp_path / "x.json")]))
    (entry,) = result["cases"]
    assert result["settings"]["packed"] == packed and entry["pass"] == "inference"
    assert set(entry["times"]) == {OURS, THEIRS, UNPACKED} and entry["unpacked_ratio"]["median"] > 0
    assert entry["best_of_all"]["name"] == THEIRS
    if packed == "bfloat16":
        assert 1e-5 < entry["rounding_error"] < 1e-2
    else:
        assert "rounding_error" not in entry


def test_weights_are_rounded_for_all_contenders():
    exact = draw(Case(TINY, "GRU"))
    rounded = run.rounded(exact)
    for name, weight in rounded.weights.items():
        assert ("weight" in name) != torch.equal(weight, exact.weights[name])
        torch.testing.assert_close(weight, exact.weights[name], atol=0, rtol=2**-8)
    judge = Judge(rounded)
    ours = Ours("bfloat16")
    ours.prepare(rounded)
    assert judge.check(ours) < 1e-5  # the very weights, not rounded once more
    ours.prepare(exact)
    assert judge.check(ours) < 1e-5
    unpacked = Ours()
    unpacked.prepare(exact)
    with pytest.raises(CheckFailed, match="differs from float64"):
        judge.check(unpacked)
    assert judge.difference(rounded) == 0 < judge.difference(exact) < 1e-2


def test_table_of_the_guide_is_that_of_the_results():
    root = Path(__file__).parents[1]
    guide = (root / "docs/guide.md").read_text()
    found = {}
    for dtype in ("float32", "bfloat16"):
        for case in json.loads((root / f"benchmarks/results/prepacked/cpu_epyc_zen4_{dtype}.json").read_text())["cases"]:
            found[case["shape"], case["mode"], dtype, case["threads"]] = case
    for shape in {key[0] for key in found}:
        cells = [shape]
        for mode in ("GRU", "LSTM"):
            for dtype in ("float32", "bfloat16"):
                cells.append(" / ".join(f"{found[shape, mode, dtype, n]['unpacked_ratio']['median']:.2f}" for n in (1, 2)))
            cells.append(f"{found[shape, mode, 'bfloat16', 1]['rounding_error']:.4f}")
        assert f"| {' | '.join(cells)} |" in guide
