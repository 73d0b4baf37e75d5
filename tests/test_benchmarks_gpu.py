"""benchmarks/gpu.py and gpu_cases.py, what of them needs no GPU: the order of cases, the clock, the table, failing stages.
Nothing is timed here."""

import json
import sys
from pathlib import Path

import pytest
import torch

# At the end, so that an installed birnn_ext keeps the upper hand over the one in the tree.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import gpu, gpu_cases  # noqa: E402
from benchmarks.check import CheckFailed  # noqa: E402
from benchmarks.contenders import OURS, THEIRS  # noqa: E402
from benchmarks.shapes import Case, Shape  # noqa: E402


def test_every_case_is_measured_once_and_the_grid_is_whole():
    cases = gpu_cases.cases()
    assert len(set(cases)) == len(cases)
    shapes = [case.shape for case, _ in cases]
    assert {s.H for s in shapes} == {64, 128, 256, 512, 1024} and {s.B for s in shapes} == {1, 32, 128}
    assert {s.T for s in shapes} == {50, 512} and {s.L for s in shapes} == {1, 3}
    assert {case.mode for case, _ in cases} == {"GRU", "LSTM", "RNN_TANH", "RNN_RELU"}
    assert {precision for _, precision in cases} == set(gpu_cases.PRECISIONS)


def test_a_run_that_is_cut_short_has_both_passes_and_precisions():
    first = gpu_cases.cases()[:60]
    assert {case.pass_ for case, _ in first} == {"inference", "training"}
    assert {precision for _, precision in first} >= {"tf32", "bfloat16"}
    assert {case.shape.H for case, _ in first} == {64, 128, 256, 512, 1024}


@pytest.mark.parametrize("capability, expected", [((7, 5), "7.5"), ((8, 6), "8.6"), ((9, 0), "9.0a"), ((12, 0), "12.0")])
def test_architecture(capability, expected):
    assert gpu.arch(capability) == expected


def entry(case_number=0, graph=True):
    case, precision = gpu_cases.cases()[case_number]
    milliseconds = {THEIRS: [10.0, 20.0, 30.0], OURS: [5.0, 5.0, 5.0]}
    if graph:
        milliseconds[gpu_cases.GRAPH] = [1.0, 1.0, 1.0]
    return gpu_cases.entry_of(case, precision, milliseconds, 1e-6, {THEIRS: 3.0, OURS: 2.0})


def test_entry():
    found = entry()
    assert found["us_per_step"] == {THEIRS: 20e3 / 512, OURS: 5e3 / 512, gpu_cases.GRAPH: 1e3 / 512}
    assert found["ratio"] == {OURS: 4.0, gpu_cases.GRAPH: 20.0} and found["rounds"] == 3
    assert found["shape"] == {"B": 1, "T": 512, "I": 128, "H": 128, "L": 1}
    json.dumps(found)


def test_us_are_per_step_and_layer():
    case, precision = next((c, p) for c, p in gpu_cases.cases() if c.shape.L == 3)
    found = gpu_cases.entry_of(case, precision, {THEIRS: [3.0], OURS: [6.0]}, 0.0, {})
    assert found["us_per_step"][THEIRS] == pytest.approx(1e3 / case.shape.T) and found["ratio"][OURS] == 0.5


def test_table():
    text = gpu_cases.line(entry())
    assert "GRU" in text and "tf32" in text and "1,512,128,128,1" in text and "39.06" in text and "4.00" in text
    assert gpu_cases.line(entry(graph=False)).count(" - ") == 2
    (row, other) = gpu_cases.summary([entry(), entry()])
    assert row[:4] == ("GRU", "inference", "tf32", OURS) and row[4:] == (pytest.approx(4.0), 4.0, 2)
    assert other[3] == gpu_cases.GRAPH


def test_interleaving_lets_each_go_first_and_keeps_to_the_budget():
    order, now = [], iter(range(1000))
    found = gpu_cases.interleave(
        {"a": "a", "b": "b"}, 6, timer=lambda run: order.append(run) or 1.0, clock=lambda: next(now), least=3, most=50
    )
    assert order[:4] == ["a", "b", "a", "b"], "warm-up"
    assert order[4:8] == ["a", "b", "b", "a"]
    assert len(found["a"]) == len(found["b"]) and 3 <= len(found["a"]) <= 10


def empty_result():
    return {"cases": [], "failures": []}


def test_the_benchmark_stops_when_the_time_is_up():
    said, now, result = [], iter(range(100)), empty_result()
    saves = []
    right = gpu_cases.bench(
        result, 4, said.append, lambda: saves.append(1), clock=lambda: next(now), work=lambda *a, **k: entry()
    )
    assert right and len(result["cases"]) == 5 and len(saves) == 5
    assert said[-1] == f"the time is up after 5 of {len(gpu_cases.cases())} cases"


def test_a_case_that_fails_is_told_and_the_rest_is_measured():
    said, now, result = [], iter(range(100)), empty_result()
    turn = iter([CheckFailed("output differs"), torch.cuda.OutOfMemoryError("too large"), entry()])

    def work(*arguments, **options):
        found = next(turn)
        if isinstance(found, Exception):
            raise found
        return found

    assert not gpu_cases.bench(result, 2, said.append, lambda: None, clock=lambda: next(now), work=work)
    assert len(result["cases"]) == 1 and len(result["failures"]) == 1 and "output differs" in result["failures"][0]
    assert any("out of memory" in text for text in said)


def test_command_tells_status_output_and_time_out(tmp_path):
    log = tmp_path / "log"
    python = [sys.executable, "-c"]
    assert gpu.command([*python, "import os; print(os.environ['WHO'])"], 60, log, {"WHO": "we"}) == (0, "we\n")
    assert gpu.command([*python, "raise SystemExit(3)"], 60, log)[0] == 3
    status, text = gpu.command([*python, "import time; print('begun', flush=True); time.sleep(60)"], 3, log)
    assert status == 124 and text in ("begun\n", "")


def test_all_stages_run_whatever_becomes_of_one(tmp_path, monkeypatch):
    said, result_path = [], tmp_path / "gpu_nvidia_h0.json"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H0")
    monkeypatch.setattr(gpu, "build", lambda limit, out: (True, "for 9.0a", ""))
    monkeypatch.setattr(gpu, "tests", lambda limit, out: (False, "2 failed", "FAILED this\nFAILED that"))
    monkeypatch.setattr(gpu, "sanitizer", lambda limit, out: (True, f"within {limit:.0f} s", ""))

    def bench(result, deadline, show, save):
        result["cases"].append(entry())
        return True

    monkeypatch.setattr(gpu, "bench", bench)
    result = gpu.run(gpu.STAGES, 500, tmp_path, said.append)
    assert [stage["passed"] for stage in result["stages"].values()] == [True, False, True, True]
    assert json.loads(result_path.read_text()) == result
    text = "\n".join(said)
    assert "FAILED that" in text and "2 failed" in text and "within 70 s" in text and "geometric mean 4.00" in text
    assert said[-1] == f"\nresults: {result_path}"


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu.main([])
    with pytest.raises(SystemExit):
        gpu.main(["--stages", "build,lunch"])


@pytest.mark.parametrize("pass_", ["inference", "training"])
def test_cases_are_checked_before_they_are_timed(pass_):
    """On the CPU, where the same code runs."""
    case = Case(Shape("tiny", 3, 40, 5, 4, 2), "GRU", pass_, 1, "float32", "cpu")
    assert gpu_cases.verify(case) < 1e-5


def test_a_wrong_layer_is_turned_away(monkeypatch):
    monkeypatch.setattr(gpu_cases.Ours, "call", lambda self, x: self.module(x + 1e-3))
    with pytest.raises(CheckFailed, match="output differs"):
        gpu_cases.verify(Case(Shape("tiny", 3, 40, 5, 4), "GRU", "inference", 1, "float32", "cpu"))


def test_a_training_step_leaves_gradients_and_takes_them_away():
    module = torch.nn.GRU(4, 4, bidirectional=True)
    step = gpu_cases.training_step(module, torch.randn(3, 2, 4))
    step()
    once = module.weight_hh_l0.grad.clone()
    step()
    assert once.any() and torch.equal(module.weight_hh_l0.grad, once)
