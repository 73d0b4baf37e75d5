"""benchmarks/variants.py, growth.py and memory.py: what is timed is right, and what is kept for backward grows as it should.
Nothing is timed here."""

import json
import statistics
import sys
from pathlib import Path

import pytest

pytest.importorskip("tqdm", reason="benchmarks need the packages of the extra `bench`")
# At the end, so that an installed birnn_ext keeps the upper hand over the one in the tree.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import growth, machine, memory, shapes, variants  # noqa: E402


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_variants_by_hand_compute_the_same(name):
    """`measure` compares before it times."""
    found = variants.measure(name, (4, 2, 3, 4), budget=0.01)
    assert found.keys() == {"inference", "training"}
    assert all(entry["ms"].keys() == {"plain", "ours", "by_hand"} for entry in found.values())


def test_variants_table_of_the_documentation_is_that_of_the_result():
    root = Path(__file__).parent.parent
    result = json.loads((root / "benchmarks/results/variants/cpu_epyc_zen4_2_threads.json").read_text())
    assert variants.markdown(result) in (root / "docs/variants.md").read_text()


def test_growth_measures_every_dimension_and_draws(tmp_path):
    found = growth.grow("GRU", 4, {"T": (2, 4), "B": (1, 2), "L": (1,)}, seconds=0)
    assert [row["size"] for row in found["T"]] == [2, 4] and all(row["ms"] > 0 for rows in found.values() for row in rows)
    growth.draw(
        {"growth": found, "machine": machine.facts(), "mode": "GRU", "hidden": 4, "threads": 1, "date": ""}, tmp_path / "p.svg"
    )
    assert (tmp_path / "p.svg").stat().st_size > 1000


def test_what_is_kept_for_backward_grows_linearly():
    """Bytes, not seconds: twice the steps, rows or layers keep twice as much, and no more than a call's constant beside it."""
    for name in growth.BASE:
        small, large = (growth.measure("LSTM", 16, growth.BASE | {name: size}, seconds=0)["saved_bytes"] for size in (4, 8))
        assert 1.8 * small < large < 2.2 * small, name


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is kept by Linux")
def test_peak_of_a_training_step():
    """More than what is kept for backward, which is known, and less than three times that; RNN keeps nothing but its output."""
    shape = shapes.Shape("some", 32, 100, 128, 256)
    found = memory.measure("GRU", shape)
    assert found.keys() == set(memory.WHO)
    kept = 4 * shape.T * shape.B * 2 * shape.H * (4 + 1) / 2**20
    for who in memory.WHO[1:]:
        assert kept < found[who] < 3 * kept, who
    assert memory.measure("RNN_TANH", shape)["birnn_ext"] < kept


def test_memory_stated_in_the_documentation_is_that_of_the_result():
    root = Path(__file__).parent.parent
    cases = json.loads((root / "benchmarks/results/memory/cpu_epyc_zen4_2_threads.json").read_text())["cases"]
    text = " ".join((root / "docs/benchmarks.md").read_text().split())
    for mode, words in {
        "GRU": "a GRU takes {:.2f} in the geometric mean ({:.2f} - {:.2f})",
        "LSTM": "an LSTM {:.2f} ({:.2f} - {:.2f})",
    }.items():
        ratios = [case["ratio"] for case in cases if case["mode"] == mode]
        assert words.format(statistics.geometric_mean(ratios), min(ratios), max(ratios)) in text
