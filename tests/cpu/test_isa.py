"""Every instruction set of this machine in turn: forward and backward against the reference, around its vector width.

Also the choice of the instruction set by the environment. Not here: threads (test_pair.py), the equations alone
(test_cells.py).
"""

import os
import random
import subprocess
import sys

import compare
import grids
import problems
import pytest
import torch

from birnn_ext import reference

_C = pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")
pytestmark = pytest.mark.usefixtures("two_threads")

VECTOR_BYTES = {"avx512_bf16": 64, "avx512": 64, "avx2": 32, "base": 16}

# Axes of sizes without a common factor: case i takes element i of each, modulo its size, so that the first p * q cases
# hold all pairs of two axes of sizes p and q (Chinese remainder theorem). No two axes need more than 99.
UNITS = ("1", "L-1", "L", "L+1", "3L+1", "4L", "100")
FEATURES = ("1", "L-1", "L", "L+1", "2L", "3L+1", "9", "100")
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33)
STEPS = [(T, lengths) for T in (1, 2, 7, "chunks") for lengths in ("full", "ragged")] + [(3, "zero")]
CASES = range(99)
# A chunk of steps holds at most 512 rows (csrc/cpu/backward.inl, chunk_target), so this many make more than one.
MORE_THAN_A_CHUNK = 520


def size(name, L):
    return max(1, int(eval(name.replace("3L", "3*L").replace("2L", "2*L").replace("4L", "4*L"), {"L": L})))


def case(i, L, dtype):
    """The i-th problem for vectors of L lanes; choices of two are made by a coin that falls the same way every time."""
    coin = random.Random(i).random
    kind, B = problems.KINDS[i % 5], ROWS[i % 11]
    H, I = size(UNITS[i % 7], L), size(FEATURES[i % 8], L)  # noqa: E741
    T, lengths = STEPS[i % 9]
    T = MORE_THAN_A_CHUNK // B + 1 if T == "chunks" else T
    used = [("output", "h_n", "c_n"), ("output",), ("h_n", "c_n"), ("output", "h_n", "c_n")][int(coin() * 4)]
    return problems.make(
        kind.removesuffix("_PROJ"),
        T,
        B,
        I,
        H,
        P=max(1, H - int(coin() * 3)) if kind == "LSTM_PROJ" else None,
        D=2 if coin() < 0.7 else 1,
        bias=coin() < 0.8,
        state=coin() < 0.7,
        lengths={"full": None, "ragged": grids.ragged(T, B), "zero": [0] * B}[lengths],
        batch_first=coin() < 0.3,
        used=used,
        input_grad=coin() < 0.8,
        weight_grad=coin() < 0.8,
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("i", CASES)
def test_equals_the_reference(isa, i, dtype):
    torch.set_num_threads(1)
    problems.check(case(i, VECTOR_BYTES[isa] // dtype.itemsize, dtype))


def test_the_cases_hold_all_pairs():
    """Kinds, units, features, rows and steps are crossed pairwise."""
    axes = {"kinds": 5, "units": 7, "features": 8, "rows": 11, "steps": 9}
    for p, q in [(p, q) for p in axes.values() for q in axes.values() if p < q]:
        assert len({(i % p, i % q) for i in CASES}) == p * q


BIG = {
    # A chunk of a single step: one step has more rows than a chunk aims at.
    "one_step_chunks": {"mode": "LSTM", "T": 3, "B": 33, "I": 20, "H": 600},
    # One step, whose weights are read in place by two tiles of rows: 5 to 8 with AVX2, 9 to 16 with AVX-512.
    "one_step_of_7_rows": {"mode": "LSTM", "T": 1, "B": 7, "I": 70, "H": 33},
    "shifted_step_of_7_rows": {"mode": "GRU", "T": 1, "B": 7, "I": 100, "H": 40},
    "one_step_of_13_rows": {"mode": "GRU", "T": 1, "B": 13, "I": 100, "H": 40},
    "many_features": {"mode": "RNN_TANH", "T": 4, "B": 3, "I": 1500, "H": 5},
    "two_threads_worth": {"mode": "GRU", "T": 30, "B": 9, "I": 40, "H": 130, "lengths": grids.ragged(30, 9)},
    "wide_projection": {"mode": "LSTM", "T": 9, "B": 7, "I": 30, "H": 150, "P": 70},
}


@pytest.mark.parametrize("name", BIG)
def test_large_sizes(isa, name):
    problems.check(problems.make(**BIG[name]))


@pytest.mark.parametrize("kind", problems.KINDS)
def test_no_rows(isa, kind):
    problem = problems.typical(kind, B=0)
    ours, expected = problems.run(problem), problems.run(problem, reference.layer)
    assert [t.shape for t in ours] == [t.shape for t in expected]
    assert not any(t.any() for t in ours)


@pytest.mark.parametrize("kind", problems.KINDS)
def test_instruction_sets_agree(kind):
    problem, found = problems.typical(kind, lengths=True), {}
    exact = problems.run(problem.double(), reference.layer)
    before = _C.isa()
    for name in _C.isa_list():
        _C.set_isa(name)
        found[name] = problems.run(problem)
    _C.set_isa(before)
    for name in found:
        compare.check(found[name], found["base"], exact)
        compare.check(found["base"], found[name], exact)


@pytest.mark.parametrize("kind", problems.KINDS)
def test_gradients_do_not_depend_on_who_ran_forward(kind):
    """The saved gates have one layout: a graph may be made with one instruction set and run back with another."""
    problem = problems.typical(kind, lengths=True)
    before = _C.isa()
    _C.set_isa(_C.isa_list()[0])
    found, leaves = problems.results(problem), problem.leaves()
    _C.set_isa("base")
    ours = torch.autograd.grad(found, leaves, problem.cotangents)
    _C.set_isa(before)
    exact, expected = (problems.run(p, reference.layer)[len(found) :] for p in (problem.double(), problem))
    compare.check(ours, expected, exact)


@pytest.mark.parametrize("kind", problems.KINDS)
def test_a_row_with_nan_spoils_no_other(isa, kind):
    """Rows share tiles and vectors, and nothing else; padding is not even read."""
    problem = problems.typical(kind, B=7, lengths=True, weight_grad=False)
    lengths = problem.lengths.tolist()
    clean = problems.run(problem)
    with torch.no_grad():
        for b, length in enumerate(lengths):
            problem.input[0 if b == 2 else length :, b] = torch.nan
            problem.cotangents[0][length:, b] = torch.nan
    spoilt = problems.run(problem)
    others = [b for b in range(7) if b != 2]
    for before, after in zip(clean, spoilt, strict=True):
        assert torch.equal(after[:, others], before[:, others])
    assert all(t[:, 2].isnan().all() for t in spoilt[1 : len(problem.cotangents)])


# ---- the choice by the environment, which is made once per process ----

CHOICE = """
import torch, warnings
from birnn_ext import _C, ops
w = torch.ones(3, 1), torch.ones(3, 1), None, None, None
try:
    ops.layer(torch.ones(1, 1, 1), None, None, None, (w,), mode="GRU")
    print(_C.isa())
except Exception as error:
    print(type(error).__name__, error)
"""


def choices(*environments):
    """What a fresh process says for each of these environments; they run side by side."""
    clean = {k: v for k, v in os.environ.items() if k not in ("BIRNN_ISA", "ATEN_CPU_CAPABILITY")}
    clean["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", CHOICE]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen(command, env={**clean, **more}, **pipes) for more in environments]
    return [process.communicate(timeout=120)[0].strip() for process in started]


def test_the_best_is_the_default_and_each_can_be_named():
    names = _C.isa_list()
    assert choices({}, *({"BIRNN_ISA": name} for name in names)) == [names[0], *names]


def test_an_unknown_name_is_an_error_that_lists_the_choices():
    (said,) = choices({"BIRNN_ISA": "mmx"})
    assert said.startswith("ValueError BIRNN_ISA: expected one of ") and said.endswith("got 'mmx'")
    assert all(name in said for name in _C.isa_list())


def test_torchs_own_variable_is_an_upper_limit():
    names = _C.isa_list()
    expected = [next(n for n in names if not n.startswith("avx512")), "base", names[0]]
    env = [{"ATEN_CPU_CAPABILITY": "avx2"}, {"ATEN_CPU_CAPABILITY": "default"}]
    env += [{"ATEN_CPU_CAPABILITY": "default", "BIRNN_ISA": names[0]}]  # our own variable has the last word
    assert choices(*env) == expected
