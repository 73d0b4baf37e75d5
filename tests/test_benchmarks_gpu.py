"""benchmarks/gpu.py and gpu_cases.py, what of them needs no GPU: the order of cases, the clock, the table, failing stages.
Nothing is timed here."""

import json
import os
import sys
import time
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
    assert gpu_cases.line(entry()).count(" - ") == 2 and gpu_cases.line(entry(graph=False)).count(" - ") == 4
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
        result, gpu_cases.PROFILING + 4, said.append, lambda: saves.append(1), clock=lambda: next(now),
        work=lambda *a: entry(), look=lambda *a: {},
    )  # fmt: skip
    assert right and len(result["cases"]) == 5 and len(saves) == 6
    assert said[-1] == f"the time is up after 5 of {len(gpu_cases.cases())} cases"


def test_nothing_is_profiled_before_all_is_timed():
    order, now, result = [], iter(range(100)), empty_result()
    gpu_cases.bench(
        result, gpu_cases.PROFILING + 9, lambda text: None, lambda: None, clock=lambda: next(now),
        work=lambda case, precision: order.append("time") or entry(),
        look=lambda case, precision: order.append("profile") or {OURS: {"kernel": 1.0}},
    )  # fmt: skip
    assert order[:10] == ["time"] * 10 and set(order[10:]) == {"profile"}
    assert [bool(case["kernels"]) for case in result["cases"]].count(True) == len(order) - 10
    keys = [(case.mode, precision, case.shape.H, case.pass_) for case, precision in gpu_cases.cases()[:10]]
    assert len(order) - 10 == len(set(keys)), "once for each mode, precision, size and pass"


def test_a_profiler_that_fails_costs_no_timings():
    def look(case, precision):
        raise RuntimeError("no profiler here")

    said, now, result = [], iter(range(100)), empty_result()
    options = {"clock": lambda: next(now), "work": lambda *a: entry(), "look": look}
    assert gpu_cases.bench(result, gpu_cases.PROFILING + 2, said.append, lambda: None, **options)
    assert len(result["cases"]) == 3 and "no profiler here" in said[-1]


def test_a_lost_device_ends_the_benchmark():
    def fail(*arguments):
        raise RuntimeError("an illegal memory access")

    said, result = [], empty_result()
    assert not gpu_cases.bench(result, 1e9, said.append, lambda: None, work=fail, settle=fail)
    assert len(result["failures"]) == 2 and "the device is lost" in result["failures"][1]


def test_of_many_failures_ten_are_printed():
    def fail(*arguments):
        raise ValueError("no such case")

    said, result = [], empty_result()
    assert not gpu_cases.bench(result, 1e12, said.append, lambda: None, work=fail, settle=lambda: None)
    assert len(result["failures"]) == len(gpu_cases.cases()) and sum("no such case" in text for text in said) == 10
    text = gpu.closing({**result, "stages": {}, "device": "", "driver": "", "torch": "", "cuda": ""})
    assert text.count("no such case") == 10 and text.endswith(f"and {len(gpu_cases.cases()) - 10} more, in the JSON file")


def test_a_case_that_fails_is_told_and_the_rest_is_measured():
    said, now, result = [], iter(range(100)), empty_result()
    turn = iter([CheckFailed("output differs"), torch.cuda.OutOfMemoryError("too large"), entry()])

    def work(*arguments):
        found = next(turn)
        if isinstance(found, Exception):
            raise found
        return found

    options = {"clock": lambda: next(now), "work": work, "look": lambda *a: {}, "settle": lambda: None}
    assert not gpu_cases.bench(result, gpu_cases.PROFILING + 2, said.append, lambda: None, **options)
    assert len(result["cases"]) == 1 and len(result["failures"]) == 1 and "output differs" in result["failures"][0]
    assert any("out of memory" in text for text in said)


def test_command_tells_status_output_and_time_out(tmp_path):
    log = tmp_path / "log"
    python = [sys.executable, "-c"]
    assert gpu.command([*python, "import os; print(os.environ['WHO'])"], 60, log, {"WHO": "we"}) == (0, "we\n")
    assert gpu.command([*python, "raise SystemExit(3)"], 60, log)[0] == 3
    status, text = gpu.command([*python, "import time; print('begun', flush=True); time.sleep(60)"], 3, log)
    assert status == 124 and (text == "" or text.startswith("begun\n"))


def test_a_command_out_of_time_is_interrupted_with_its_children_and_then_killed(tmp_path, monkeypatch):
    """As pytest does, it may print what it has found; what ignores the interrupt does not survive."""
    monkeypatch.setattr(gpu, "GRACE", 1)
    log, pid = tmp_path / "log", tmp_path / "pid"
    stubborn = f"""
import os, signal, time
signal.signal(signal.SIGINT, lambda *a: print("interrupted", flush=True))
if os.fork() == 0:
    open({str(pid)!r}, "w").write(str(os.getpid()))
print("begun", flush=True)
while True:
    time.sleep(60)
"""
    status, text = gpu.command([sys.executable, "-c", stubborn], 3, log)
    assert status == 124 and (text == "" or "interrupted" in text)
    if pid.exists():
        state = Path(f"/proc/{pid.read_text()}/stat")
        for _ in range(100):  # killed at once, but reaped by somebody else, some time
            if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return
            time.sleep(0.05)
        raise AssertionError("a child has survived")


def test_every_test_file_has_a_process_and_a_limit_of_its_own(tmp_path, monkeypatch):
    ran, now = [], iter([0, 0, 10, 70])  # the limit's begin, then before each file
    ends = {"test_streams": (124, ""), "test_cudnn": (0, "4 passed"), "test_layer": (1, "== 1 failed ==")}

    def command(words, limit, log, environment=()):
        ran.append((words[3].name, limit))
        return ends[log.stem]

    monkeypatch.setattr(gpu, "command", command)
    for name in ("cudnn", "layer", "streams"):
        (tmp_path / f"test_{name}.py").touch()
    passed, says, text = gpu.tests(100, tmp_path, tmp_path, clock=lambda: next(now))
    assert ran == [("test_streams.py", 100 / 3), ("test_cudnn.py", 45), ("test_layer.py", 30)]
    assert not passed and text == "\n== 1 failed =="
    assert says == "test_streams: cut short after 33 s; test_cudnn: 4 passed; test_layer: 1 failed"


def test_a_sanitizer_out_of_time_has_not_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda *a, **k: "compute-sanitizer")
    fine = (0, "ERROR SUMMARY: 0 errors")
    found = {"memcheck_others": fine, "memcheck_clusters": fine, "racecheck_others": fine, "racecheck_clusters": (124, "")}

    def command(words, limit, log, environment):
        assert words[-2:] == ["--smallest", log.stem.split("_")[1]] and limit == next(limits, limit)
        return found[log.stem]

    monkeypatch.setattr(gpu, "command", command)
    monkeypatch.setattr(gpu, "has_clusters", lambda: True)
    now, limits = iter([0, 0, 1, 4, 6]), iter([2.5, 3, 3, 4])  # what one leaves goes to the next
    passed, says, _ = gpu.sanitizer(10, tmp_path, clock=lambda: next(now))
    assert passed is None and says.startswith("memcheck_others: ERROR SUMMARY: 0 errors; memcheck_clusters: ERROR SUMMARY: 0")
    assert says.endswith("racecheck_clusters: not finished")
    found["memcheck_others"] = (9, "ERROR SUMMARY: 1 error")
    assert gpu.sanitizer(10, tmp_path)[0] is False


def test_all_stages_run_whatever_becomes_of_one(tmp_path, monkeypatch):
    said, result_path = [], tmp_path / "gpu_nvidia_h0.json"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H0")
    monkeypatch.setattr(gpu, "build", lambda limit, out: (True, "for 9.0a", ""))
    monkeypatch.setattr(gpu, "smoke", lambda limit, out: (True, str(out.relative_to(tmp_path)), ""))
    monkeypatch.setattr(gpu, "tests", lambda limit, out: (False, "2 failed", "FAILED this\nFAILED that"))
    monkeypatch.setattr(gpu, "sanitizer", lambda limit, out: (None, f"within {limit:.0f} s", "much"))

    def bench(result, deadline, show, save):
        result["cases"].append(entry())
        return True

    monkeypatch.setattr(gpu, "bench", bench)
    result = gpu.run(gpu.STAGES, 500, tmp_path, said.append)
    assert [stage["passed"] for stage in result["stages"].values()] == [True, True, False, None, True]
    assert json.loads(result_path.read_text()) == result
    text = "\n".join(said)
    assert "gpu_logs" in text and "much" not in text and "unfinished" in text
    assert "FAILED that" in text and "2 failed" in text and "within 90 s" in text and "geometric mean 4.00" in text
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
    assert gpu_cases.verify(case, "ieee") < 1e-5


@pytest.mark.parametrize("precision, by", [("ieee", 1e-3), ("tf32", 0.2)])
def test_a_wrong_layer_is_turned_away(monkeypatch, precision, by):
    monkeypatch.setattr(gpu_cases.Ours, "call", lambda self, x: self.module(x + by))
    with pytest.raises(CheckFailed, match="output differs"):
        gpu_cases.verify(Case(Shape("tiny", 3, 40, 5, 4), "GRU", "inference", 1, "float32", "cpu"), precision)


def test_tf32_has_its_own_last_place(monkeypatch):
    monkeypatch.setattr(gpu_cases.Ours, "call", lambda self, x: self.module(x + 1e-3))
    gpu_cases.verify(Case(Shape("tiny", 3, 40, 5, 4), "GRU", "inference", 1, "float32", "cpu"), "tf32")


def test_persistent_kernels_are_switched_on_and_off_again(monkeypatch):
    monkeypatch.delenv("BIRNN_PERSISTENT", raising=False)
    run = gpu_cases.persistently(lambda: os.environ["BIRNN_PERSISTENT"])
    assert run() == "1" and "BIRNN_PERSISTENT" not in os.environ
    monkeypatch.setenv("BIRNN_PERSISTENT", "0")
    with pytest.raises(ZeroDivisionError):
        gpu_cases.persistently(lambda: 1 / 0)()
    assert os.environ["BIRNN_PERSISTENT"] == "0"
    assert not gpu_cases.has_persistent(Case(Shape("tiny", 3, 40, 5, 4), "GRU", "inference", 1, "float32", "cpu"))


def test_a_training_step_leaves_gradients_and_takes_them_away():
    module = torch.nn.GRU(4, 4, bidirectional=True)
    step = gpu_cases.training_step(module, torch.randn(3, 2, 4))
    step()
    once = module.weight_hh_l0.grad.clone()
    step()
    assert once.any() and torch.equal(module.weight_hh_l0.grad, once)
