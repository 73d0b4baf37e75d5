"""Both directions at once: numbers of threads, callers side by side, other processes, the GIL, unwritten memory.

Processes that might hang are given a time limit. Not here: whether a single thread computes the right thing
(test_isa.py).
"""

import ctypes
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import problems
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")

THREADS = (1, 2, 3, 4, 8)  # also more than this machine has cores
PATIENCE = 120  # seconds after which a child process counts as hung
kinds = pytest.mark.parametrize("kind", problems.KINDS)
with_lengths = pytest.mark.parametrize("lengths", [False, True], ids=["full", "ragged"])


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- numbers of threads ----


@pytest.mark.parametrize("count", THREADS)
@pytest.mark.parametrize("D", [1, 2], ids=["one_direction", "both"])
@with_lengths
@kinds
def test_any_number_of_threads(kind, lengths, D, count):
    torch.set_num_threads(count)
    problem = problems.typical(kind, lengths=lengths, D=D)
    problems.check(problem)
    # The order of every sum is fixed by the number of threads, not by which of them is first.
    first = problems.run(problem)
    assert all(equal(problems.run(problem), first) for _ in range(3))


@pytest.mark.parametrize("T, B", [(2, 300), (3, 200), (4, 150), (24, 40), (37, 40), (600, 1)])
@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["GRU", "LSTM_PROJ"])
def test_gradients_of_the_input_meet_in_the_middle(kind, dtype, count, T, B):
    """Both directions write one array: an odd step in the middle is one's to write and the other's to add to."""
    torch.set_num_threads(count)
    problem = problems.typical(kind, T=T, B=B, dtype=dtype)
    problems.check(problem)
    first = problems.run(problem)
    assert all(equal(problems.run(problem), first) for _ in range(3))


@pytest.mark.parametrize("B", [1, 2, 3])
@pytest.mark.parametrize("D", [1, 2], ids=["one_direction", "both"])
@with_lengths
def test_fewer_rows_than_threads(B, D, lengths):
    torch.set_num_threads(8)
    problems.check(problems.typical("GRU", T=30, B=B, D=D, lengths=lengths))


@pytest.mark.parametrize("bare", [0, 1])
def test_biases_in_one_direction_only(bare):
    """The shares of the two directions then differ in size."""
    torch.set_num_threads(8)
    problem = problems.typical("GRU", T=6, B=17, I=24, H=24)
    weights = list(problem.weights)
    weights[bare] = (*weights[bare][:2], None, None, None)
    problems.check(replace(problem, weights=tuple(weights)))


@kinds
def test_rows_without_steps_are_spread_over_threads(kind):
    """A share of the batch may have no step at all, and still has gradients of the weights to add: zeros."""
    torch.set_num_threads(8)
    problem = problems.typical(kind, T=12, B=9)
    for lengths in ([12] + [0] * 8, [0] * 9, [0] * 8 + [12]):
        problems.check(replace(problem, lengths=torch.tensor(lengths)))


# ---- callers side by side ----


@kinds
def test_python_threads_do_not_disturb_each_other(kind):
    torch.set_num_threads(2)
    mine = [problems.typical(kind, T=40, B=b + 2, lengths=b % 2 == 1) for b in range(4)]
    expected = [problems.run(p) for p in mine]
    together = threading.Barrier(4)

    def caller(i):
        together.wait(PATIENCE)
        return all(equal(problems.run(mine[i]), expected[i]) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(caller, range(4))) == [True] * 4


def test_inside_a_parallel_region():
    """In someone else's OpenMP region (an op that calls back, say) a layer takes one thread and computes the same."""
    torch.set_num_threads(2)
    libraries = list(Path(torch.__file__).parent.glob("lib/libgomp*"))
    if not libraries:
        pytest.skip("torch does not bring GNU's OpenMP along, through which this test opens a region")
    gomp = ctypes.CDLL(str(libraries[0]))
    problem, found = problems.typical(), []
    torch.set_num_threads(1)
    expected = problems.run(problem)
    torch.set_num_threads(2)

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def body(_):
        found.append((gomp.omp_in_parallel(), problems.run(problem)))

    gomp.GOMP_parallel(body, None, 2, 0)
    assert [inside for inside, _ in found] == [1, 1]
    # One thread sums in its own order, so equal bits also show that the layer did not split the work.
    assert all(equal(results, expected) for _, results in found)


def progress_during(call):
    """How often another Python thread came to its turn during call(), with all but voluntary switches ruled out."""
    turns, stop, ready = 0, False, threading.Event()

    def count():
        nonlocal turns
        while not stop:
            turns += 1
            ready.set()
            threading.Event().wait(0.0005)

    interval = sys.getswitchinterval()
    counter = threading.Thread(target=count)
    counter.start()
    ready.wait(PATIENCE)
    sys.setswitchinterval(100)
    try:
        before = turns
        call()
        return turns - before
    finally:
        sys.setswitchinterval(interval)
        stop = True
        counter.join()


def test_the_gil_is_free_while_a_kernel_runs():
    torch.set_num_threads(1)
    # As a control a call that keeps the GIL. (A switch that was asked for before may fall into it, but not always.)
    usleep = ctypes.PyDLL(None).usleep
    assert min(progress_during(lambda: usleep(50_000)) for _ in range(5)) == 0
    problem = problems.typical("LSTM", T=200, B=16, I=64, H=128)
    with torch.no_grad():
        # A loaded machine may not get round to the other thread during one call; it never would if the GIL were held.
        assert any(progress_during(lambda: problems.results(problem)) for _ in range(20))


# ---- processes ----


def answer(problem, connection):
    """In a child: forward and backward, several times; sends plain numbers (tensors would bring in shared memory)."""
    torch.set_num_threads(2)
    found = [problems.run(problem) for _ in range(3)][-1]
    connection.send([t.detach().flatten().tolist() for t in found])


def ask_child(method, problem):
    context = multiprocessing.get_context(method)
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=answer, args=(problem, there))
    child.start()
    try:
        assert here.poll(PATIENCE), "the child hangs"
        return here.recv()
    finally:
        child.kill()
        child.join()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
@kinds
def test_fork_after_use(kind):
    """GNU's OpenMP does not survive a fork: the child must not wait for threads that only its parent has."""
    torch.set_num_threads(2)
    problem = problems.typical(kind)
    expected = problems.run(problem)
    assert ask_child("fork", problem) == [t.flatten().tolist() for t in expected]
    assert equal(problems.run(problem), expected)  # and the parent goes on as before


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_fork_with_large_gradients():
    """No step of the way may use torch's own parallel loops, which begin at 32768 elements: in the child they hang."""
    torch.set_num_threads(2)
    problem = problems.typical(T=40, B=20, I=100, H=16)
    assert problem.input.numel() > 2 * 32768
    expected = problems.run(problem)
    assert ask_child("fork", problem) == [t.flatten().tolist() for t in expected]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_fork_with_features_apart():
    """The copies that strided features need must not open a parallel region of torch's either."""
    torch.set_num_threads(2)
    problem = problems.typical("GRU", T=64, B=32, I=64, H=8)
    strided = problem.input.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_()
    problem = replace(problem, input=strided)
    expected = problems.run(problem)
    assert ask_child("fork", problem) == [t.flatten().tolist() for t in expected]


def test_spawn():
    torch.set_num_threads(2)
    problem = problems.typical()
    assert ask_child("spawn", problem) == [t.flatten().tolist() for t in problems.run(problem)]


class Layers(Dataset):
    """A data set whose items come out of a layer."""

    def __init__(self, problem):
        self.problem = problem

    def __len__(self):
        return 6

    def __getitem__(self, i):
        with torch.no_grad():
            return problems.results(self.problem)[0]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_data_loader_workers():
    problem = problems.typical()
    torch.set_num_threads(1)  # as in a worker
    expected = problems.results(problem)[0]
    torch.set_num_threads(2)
    problems.run(problem)
    loader = DataLoader(Layers(problem), batch_size=3, num_workers=2, timeout=PATIENCE, multiprocessing_context="fork")
    batches = list(loader)
    assert len(batches) == 2 and all(torch.equal(item, expected) for batch in batches for item in batch)


# ---- unwritten memory ----


@pytest.fixture
def poison():
    """torch.empty gives NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@with_lengths
@kinds
def test_every_element_is_written(poison, kind, lengths, batch_first, count):
    torch.set_num_threads(count)
    problem = problems.typical(kind, lengths=lengths, batch_first=batch_first)
    *results, saved = torch.ops.birnn_ext.layer(*problem.op_arguments(), True)
    assert saved.numel() == 0 if kind.startswith("RNN") else saved.numel() > 0
    assert not any(t.isnan().any() for t in (*results, saved, *problems.run(problem)))


@with_lengths
@kinds
def test_no_gradient_comes_in(poison, kind, lengths):
    """Each incoming gradient may be missing; what is missing counts as zeros."""
    torch.set_num_threads(2)
    for used in ((), ("output",), ("h_n",), ("c_n",)):
        problem = problems.typical(kind, lengths=lengths, used=used)
        *results, saved = torch.ops.birnn_ext.layer(*problem.op_arguments(), True)
        cotangents = (*problem.cotangents, None)[:3]
        gradients = torch.ops.birnn_ext.layer_backward(
            *cotangents, *problem.op_arguments(), results[0].detach(), saved, True, True, True
        )
        assert not any(g.isnan().any() for g in gradients)
        assert any(g.any() for g in gradients) == any(c is not None for c in cotangents)


SCRATCH = """
import problems, torch
for threads in (1, 5):
    torch.set_num_threads(threads)
    for kind in problems.KINDS:
        for dtype in (torch.float32, torch.float64):
            problems.check(problems.typical(kind, B=9, I=21, H=37, lengths=True, dtype=dtype))
print("right")
"""


def test_scratch_memory_is_not_read_before_it_is_written():
    """With the allocator of glibc told to fill fresh memory with huge numbers (elsewhere the setting does nothing)."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["GLIBC_TUNABLES"] = "glibc.malloc.perturb=128"
    command = [sys.executable, "-c", SCRATCH]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "right\n", done.stderr
