"""Teams: several threads that share the hidden units of one direction, where the rows are few.

Most of these tests ask for more threads than there are cores, so that members of a team come and go in any order. Processes
that might hang are given a time limit. Not here: threads that share rows (test_pair.py).
"""

import os
import subprocess
import sys

import problems
import pytest
import torch

from birnn_ext import ops

_C = pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")

PATIENCE = 120
UNITS = {"RNN_TANH": 330, "RNN_RELU": 330, "LSTM": 205, "GRU": 215, "LSTM_PROJ": 230}
kinds = pytest.mark.parametrize("kind", problems.KINDS)


def few_rows(kind, T=6, B=1, I=37, **options):  # noqa: E741
    return problems.typical(kind, T, B, I, UNITS[kind], **options)


def members(problem, threads):
    """Threads per direction and share of the rows."""
    T, B = (problem.input.shape[1], problem.input.shape[0]) if problem.batch_first else problem.input.shape[:2]
    w_hh, mode = problem.weights[0][1], problem.mode
    H = w_hh.shape[0] // ops.GATES[mode]
    return _C.plan(mode, T, B, problem.input.shape[2], H, w_hh.shape[1], len(problem.weights), threads)[1]


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("D, threads", [(1, 2), (1, 5), (2, 4), (2, 9)])
@kinds
def test_a_team_computes_the_right_thing_and_the_same_every_time(kind, D, threads, B):
    problem = few_rows(kind, B=B, D=D, lengths=B > 1, batch_first=B > 1)
    assert members(problem, threads) > 1
    torch.set_num_threads(threads)
    problems.check(problem)
    first = problems.run(problem)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(problems.run(problem), first, strict=True))


OPTIONS = [
    {"bias": False, "state": False},
    *({"dtype": t} for t in (torch.float64, torch.float16, torch.bfloat16)),
    {"used": ("h_n",)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@kinds
def test_what_is_left_out(kind, options):
    torch.set_num_threads(6)
    problem = few_rows(kind, B=2, lengths=True, **options)
    assert members(problem, 6) > 1
    problems.check(problem)


def test_many_steps_and_chunks():
    """Long enough for several chunks of steps, forward and backward."""
    problem = few_rows("GRU", T=900, B=2, lengths=True)
    torch.set_num_threads(1)
    alone = problems.run(problem)
    torch.set_num_threads(6)
    assert members(problem, 6) > 1
    torch.testing.assert_close(problems.run(problem), alone, rtol=1e-5, atol=1e-5)


def test_rows_and_units_are_both_shared():
    """Rows first, as long as each share is worth a pass over the weights."""
    problem = few_rows("LSTM", B=17)
    splits, team = _C.plan("LSTM", 6, 17, 37, UNITS["LSTM"], UNITS["LSTM"], 2, 12)[:2]
    assert splits == 2 and team == 3
    torch.set_num_threads(12)
    problems.check(problem)


def test_no_step_at_all():
    torch.set_num_threads(6)
    problem = few_rows("GRU", B=2)
    problem = type(problem)(**{**vars(problem), "lengths": torch.tensor([0, 0])})
    problems.check(problem)


def test_little_work_is_not_shared():
    assert _C.plan("GRU", 100, 1, 32, 32, 32, 2, 8)[1] == 1


RIGHT = """
import problems, torch
from birnn_ext import _C
torch.set_num_threads(8)
for kind, H in (("GRU", 215), ("LSTM_PROJ", 230)):
    problems.check(problems.typical(kind, 6, 2, 37, H, lengths=True))
    problems.check(problems.typical(kind, 300, 2, 37, H))  # in which the directions write one gradient of the input
print("right")
"""


def test_a_system_that_gives_fewer_threads_than_asked_for():
    """A member must not wait for one that has no thread."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_THREAD_LIMIT": "3"}
    done = subprocess.run([sys.executable, "-c", RIGHT], env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "right\n", done.stderr


FORKED = """
import os, sys, problems, torch
torch.set_num_threads(6)
found = [problems.typical("GRU", 6, 2, 37, 215, lengths=True), problems.typical("GRU", 300, 2, 37, 215)]
expected = [t.tolist() for problem in found for t in problems.run(problem)]
child = os.fork()
if child == 0:
    # (torch.equal would use torch's own threads.)
    same = [t.tolist() for problem in found for t in problems.run(problem)] == expected
    os._exit(0 if same else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_in_a_forked_child():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_directions_take_turns_where_the_weights_exceed_the_caches(kind):
    """One row and weights that no L2 holds: the same results as of one thread, and as the reference."""
    T, B = 3, 2
    H = 256
    while not _C.plan(kind, T, B, 5, H, H, 2, 2)[2]:
        H += 64
    assert not _C.plan(kind, T, 64, 5, H, H, 2, 2)[2], "many rows do not wait for the weights"
    assert not _C.plan(kind, T, B, 5, H, H, 1, 2)[2] and not _C.plan(kind, T, B, 5, H, H, 2, 1)[2]
    torch.set_num_threads(2)
    problem = problems.typical(kind, T, B, 5, H, lengths=True)
    problems.check(problem)
    problems.check(problems.typical(kind, 260, B, 5, H))  # one gradient of the input for both
