"""benchmarks/: the check stage turns wrong contenders away, and the statistics are right on made-up times.
Nothing is timed here."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("tqdm", reason="benchmarks need the packages of the extra `bench`")
# At the end, so that an installed birnn_ext keeps the upper hand over the one in the tree.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import compare, machine, run, table  # noqa: E402
from benchmarks.check import CheckFailed, Judge  # noqa: E402
from benchmarks.contenders import OURS, THEIRS, Ours, Torch  # noqa: E402
from benchmarks.problem import draw  # noqa: E402
from benchmarks.shapes import GRID, MODES, Case, Shape, parse_shape  # noqa: E402
from birnn_ext.clock import geometric_mean, interleave, ratio, spread  # noqa: E402

TINY = Shape("tiny", 3, 6, 5, 4)


def judged(contender, **case):
    """What Judge.check says of a contender in a tiny case."""
    problem = draw(Case(TINY, **case))
    contender.prepare(problem)
    return Judge(problem).check(contender)


# --- the grid ---


def test_grid_is_the_nine_shapes():
    assert [str(shape) for shape in GRID] == [
        "1,100,128,128",
        "1,100,256,256",
        "1,100,512,512",
        "1,1000,128,256",
        "16,100,256,256",
        "32,50,512,512",
        "64,200,128,128",
        "64,100,256,512",
        "128,50,1024,1024",
    ]


def test_parse_shape():
    assert parse_shape("few_medium") == Shape("few_medium", 16, 100, 256, 256)
    assert str(parse_shape("2,3,4,5")) == "2,3,4,5"
    assert parse_shape("2,3,4,5,6").L == 6


@pytest.mark.parametrize("text", ["", "tiny", "1,2,3", "1,2,3,4,5,6", "1,2,3,0", "1,2,3,x"])
def test_parse_shape_names_the_choices(text):
    with pytest.raises(ValueError, match="shape must be one of one_small.*got"):
        parse_shape(text)


def test_keys_tell_cases_apart():
    cases = run.cases_of(run.arguments(["--quick", "--threads", "1,2"]))
    assert len({case.key for case in cases}) == len(cases) == 3 * 2 * 3 * 2
    assert Case(TINY, "GRU").key != Case(TINY, "GRU", ragged=True).key


@pytest.mark.parametrize(
    "argv",
    [
        ["--modes", "GRU,CNN"],
        ["--shapes", "1,2"],
        ["--threads", "0"],
        ["--peers", "keras"],
        ["--packed", "int8"],
        ["--packed", "float32", "--dtype", "float64"],
        ["--packed", "float32", "--passes", "training"],
    ],
)
def test_bad_arguments_are_refused(argv, capsys):
    with pytest.raises(SystemExit):
        run.arguments(argv)
    assert argv[0] in capsys.readouterr().err


# --- the problem ---


def test_problem_is_drawn_by_case_and_seed():
    case = Case(TINY, "LSTM", ragged=True)
    one, same, other = draw(case), draw(replace(case, threads=2)), draw(case, seed=1)
    assert torch.equal(one.inputs[0], same.inputs[0])
    assert not torch.equal(one.inputs[0], other.inputs[0])
    assert not torch.equal(one.inputs[0], one.inputs[1])
    assert one.lengths.max() == TINY.T and one.lengths.min() >= TINY.T // 4


def test_drawing_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    draw(Case(TINY, "GRU"))
    assert torch.equal(state, torch.get_rng_state())


# --- the check ---


@pytest.mark.parametrize("ragged", [False, True], ids=["equal", "ragged"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("contender", [Ours, Torch])
def test_right_contenders_pass(contender, mode, ragged):
    assert judged(contender(), mode=mode, pass_="training", ragged=ragged) < 1e-5


class SwappedGates(Ours):
    """Reads the reset gate's weights as the update gate's, in one of four tensors."""

    def prepare(self, problem):
        super().prepare(problem)
        with torch.no_grad():
            r, z, n = self.module.weight_hh_l0_reverse.chunk(3)
            self.module.weight_hh_l0_reverse.copy_(torch.cat([z, r, n]))


class WrongGradient(Ours):
    """Right forward, and one gradient a little off."""

    def results(self, i):
        found = super().results(i)
        found["gradient of weight_hh_l0"][0, 0] *= 1.01
        return found


class Forgetful(Ours):
    def results(self, i):
        found = super().results(i)
        del found["h_n"]
        return found


class NotANumber(Ours):
    def results(self, i):
        return {name: tensor * float("nan") for name, tensor in super().results(i).items()}


class SameTwice(Ours):
    """Lives on its first result."""

    def results(self, i):
        return super().results(0)


@pytest.mark.parametrize(
    ("contender", "said"),
    [
        (SwappedGates, "differs from float64"),
        (WrongGradient, "gradient of weight_hh_l0 differs"),
        (Forgetful, "did not compute: h_n"),
        (NotANumber, "by nan"),
        (SameTwice, "differs from float64"),
    ],
)
def test_wrong_contenders_are_turned_away(contender, said):
    with pytest.raises(CheckFailed, match=said):
        judged(contender(), mode="GRU", pass_="training")


def test_witness_knows_a_stale_output():
    problem = draw(Case(TINY, "GRU"))
    judge, ours = Judge(problem), Ours()
    ours.prepare(problem)
    judge.witness(OURS, 1, ours.run(1)[0])
    with pytest.raises(CheckFailed, match="something else when timed"):
        judge.witness(OURS, 1, ours.run(0)[0])
    with pytest.raises(CheckFailed, match="something else when timed"):
        judge.witness(OURS, 1, ours.run(1)[0] * float("nan"))


# --- the clock ---


class FakeClock:
    """Time passes only when a contender runs."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self):
        return self.now

    def contender(self, name, seconds):
        def go(i):
            self.order.append(name)
            self.now += seconds
            return name, i

        return go


def timed(budget, **seconds):
    """(what interleave returns, order of the timed runs, what was consumed) for contenders that take so
    long."""
    clock, consumed = FakeClock(), []
    found = interleave(
        {name: clock.contender(name, took) for name, took in seconds.items()},
        budget=budget,
        sync=lambda: None,
        consume=lambda name, i, result: consumed.append((name, i) == result),
        clock=clock,
    )
    return found, "".join(clock.order), consumed


def test_interleave_alternates_who_goes_first():
    found, order, consumed = timed(12.0, a=0.1, b=0.3)
    assert order.startswith("abab" + "abba" * 3)  # two rounds of warm-up
    assert found["a"] == pytest.approx([0.1] * len(found["a"]))
    assert found["b"] == pytest.approx([0.3] * len(found["a"]))
    assert len(consumed) == len(order) and all(consumed)
    assert 12.0 <= 0.4 * (len(found["a"]) + 2) < 13.0


def test_interleave_runs_enough_however_slow_and_ends_on_a_full_turn():
    found, order, _ = timed(0.1, a=5.0, b=1.0, c=1.0)
    assert {name: len(times) for name, times in found.items()} == {"a": 6, "b": 6, "c": 6}
    assert order == "abc" + "abcbcacab" * 2  # one round of warm-up is all that the budget bears


def test_statistics_of_a_slow_spell():
    ours = [0.010] * 5 + [0.050] * 4 + [0.012]
    theirs = [3 * seconds for seconds in ours]
    found = ratio(theirs, ours)
    assert found["median"] == pytest.approx(3) and found["of_minima"] == pytest.approx(3)
    assert found["low"] == pytest.approx(3) and found["high"] == pytest.approx(3)
    stats = spread(ours)
    assert stats["runs"] == 10 and stats["min_ms"] == pytest.approx(10)
    assert stats["median_ms"] == pytest.approx(11) and stats["p90_ms"] == pytest.approx(50)


def test_ratio_is_paired_and_its_interval_shows_noise():
    found = ratio([2, 2, 40, 2, 2, 20], [1, 1, 20, 1, 4, 4])
    assert found["median"] == pytest.approx(2)
    assert found["low"] <= 2 <= found["high"] and found["low"] < found["high"]
    with pytest.raises(ValueError, match="paired"):
        ratio([1, 2], [1])


def test_geometric_mean():
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1)
    assert geometric_mean(iter([1.0, 10.0, 100.0])) == pytest.approx(10)


# --- the floor ---


def test_floor_by_hand(monkeypatch):
    monkeypatch.setattr(machine, "cache_sizes", lambda: {"l2": 10**6, "l3": 10**7})
    speed = {"gflops": 100.0, "l2_gbs": 80.0, "l3_gbs": 20.0, "memory_gbs": 10.0}
    # GRU of 256: 2*256*768 FLOP per row, and 786,432 bytes of W_hh, which lie in L2.
    row, read = 393_216 / 1e11, 786_432 / 8e10
    one = Case(Shape("", 1, 10, 256, 256), "GRU")
    assert machine.floor(one, None, speed) == pytest.approx(2 * 10 * (row + read))
    many = Case(Shape("", 16, 10, 256, 256), "GRU", threads=8)
    assert machine.floor(many, None, speed) == pytest.approx(10 * 16 * 2 * row)
    assert machine.floor(replace(many, pass_="training"), None, speed) == pytest.approx(10 * 16 * 6 * row)
    # Two steps of two rows and one of one; in float64 W_hh has outgrown L2.
    ragged = Case(Shape("", 2, 3, 256, 256), "GRU", dtype="float64")
    steps = 3 * max(2 * row, 2 * 786_432 / 2e10)
    assert machine.floor(ragged, torch.tensor([2, 3]), speed) == pytest.approx(2 * (5 * row + steps))
    assert machine.floor(replace(one, device="cuda"), None, speed) is None


# --- the commands ---


@pytest.fixture
def fast_probe(monkeypatch):
    speed = {"gflops": 100.0, "l2_gbs": 80.0, "l3_gbs": 20.0, "memory_gbs": 10.0}
    monkeypatch.setattr(machine, "probe", lambda dtype, threads: speed)


TINY_RUN = [
    "--shapes",
    "3,6,5,4",
    "2,6,5,4,2",
    "--modes",
    "GRU,RNN_TANH",
    "--threads",
    "1",
    "--budget",
    "0.001",
]


def test_run_end_to_end(fast_probe, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "result.json"
    run.main([*TINY_RUN, "--json", str(path)])
    result = json.loads(path.read_text())
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert len(result["cases"]) == 2 * 2 * 2 and len(result["summary"]) == 2 * 2
    entry = result["cases"][0]
    assert entry["times"].keys() == {OURS, THEIRS} and entry["times"][OURS]["runs"] >= 6
    assert entry["share_of_floor"] == pytest.approx(entry["floor_ms"] / entry["alone_ms"]) and entry["alone_ms"] > 0
    assert entry["relative_error"][OURS] < 1e-5
    printed = capsys.readouterr().out
    assert "worst single ratio" in printed and "geometric mean" in printed
    compare.main([str(path), str(path)])


def test_share_of_the_floor_is_of_ours_alone(fast_probe, monkeypatch):
    calls = []

    def fastest(run, budget):
        calls.append([run()[0] for _ in range(2)])
        return 0.25

    monkeypatch.setattr(machine, "fastest", fastest)
    cases = [Case(parse_shape("2,3,4,5"), "GRU", pass_) for pass_ in ("inference", "training")]
    entries = run.measure(cases, budget=0.001, show=lambda line: None)["cases"]
    assert [entry["alone_ms"] for entry in entries] == [250, 250]
    assert [entry["share_of_floor"] for entry in entries] == [entry["floor_ms"] / 250 for entry in entries]
    assert len(calls) == 2 and not any(torch.equal(*outputs) for outputs in calls)  # with inputs in turns


class Twin(Ours):
    """Ours once more, as a peer."""

    name = "twin"

    def version(self):
        return "1.0"


def test_run_beside_a_peer(fast_probe, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(run, "PEERS", {"twin": Twin})
    monkeypatch.setattr("benchmarks.plot.PEER_STYLE", {"twin": "x"})
    path = tmp_path / "result.json"
    run.main([*TINY_RUN, "--json", str(path), "--peers", "all"])
    result = json.loads(path.read_text())
    assert result["peers"] == {"twin": "1.0"}
    for entry in result["cases"]:
        ratios = {THEIRS: entry["ratio"]["median"]} | {name: found["median"] for name, found in entry["peer_ratio"].items()}
        best = entry["best_of_all"]
        assert ratios.keys() == {THEIRS, "twin"} and best["median"] == min(ratios.values()) == ratios[best["name"]]


def case_beside(shape, best, **ratios):
    entry = {"key": f"GRU {shape}", "mode": "GRU", "pass": "training", "threads": 2, "shape": shape}
    entry["peer_ratio"] = {name: {"median": value} for name, value in ratios.items()}
    entry["best_of_all"] = {"name": best, "median": ratios.get(best, 3.0)}
    entry["times"] = {name: {"median_ms": 1.5} for name in (OURS, THEIRS, *ratios)}
    return entry


def test_table_of_the_best_of_all():
    cases = [case_beside("a", "onednn", onednn=2.0, jax=4.0), case_beside("b", "jax", onednn=5.0, jax=0.5)]
    cases += [case_beside("c", THEIRS)]  # beside no peer: not a comparison with all
    lines = table.best([("file", {"cases": cases})]).splitlines()
    assert lines[2:4] == [
        "| GRU a | 1.50 | onednn | 1.50 | 2.00 | torch.nn, jax |",
        "| GRU b | 1.50 | jax | 1.50 | 0.50 | torch.nn, onednn |",
    ]
    assert lines[-2:] == ["| GRU | training step | 2 | 2 | 1.00 | 0.50 |", "| all |  |  | 2 | 1.00 | 0.50 |"]
    assert table.best([("file", {"cases": cases[2:]})]) == ""


def test_run_fails_loudly(fast_probe, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "Ours", SwappedGates)
    path = tmp_path / "result.json"
    with pytest.raises(SystemExit, match="CHECK FAILED: birnn_ext is wrong in GRU 3,6,5,4"):
        run.main([*TINY_RUN, "--json", str(path)])
    assert not path.exists()


def result_with(**ratios):
    cases = [{"key": key, "ratio": {"median": value}} for key, value in ratios.items()]
    return {"cases": cases, "machine": {"cpu": "c", "isa": "i", "torch": "t"}}


def test_compare_flags_what_fell_by_more_than_a_tenth(tmp_path, capsys):
    old, new = result_with(a=2.0, b=2.0, c=2.0, d=1.0), result_with(a=1.79, b=1.81, c=4.0, e=1.0)
    assert [(key, flag) for key, _, _, flag in compare.compare(old, new)] == [
        ("a", True),
        ("b", False),
        ("c", False),
    ]
    with pytest.raises(ValueError, match="no case in common"):
        compare.compare(old, result_with(e=1.0))
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    for path, result in zip(paths, (old, new), strict=True):
        path.write_text(json.dumps(result))
    with pytest.raises(SystemExit, match="1"):
        compare.main([str(path) for path in paths])
    assert capsys.readouterr().out.count("REGRESSION") == 1
