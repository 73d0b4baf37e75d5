"""Memory that runs out in the middle of a call: the usual error, and nothing else is different afterwards.

Each test is a process of its own, whose address space is limited to what it has plus so and so much (RLIMIT_AS): from nearly
nothing upwards, in steps so small that each of the large pieces that a call asks for is once the one that is not to be had.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")
resource = pytest.importorskip("resource", reason="limits of this kind are Unix's")
if not os.path.exists("/proc/self/statm"):
    pytest.skip("how large a process is, is read from /proc", allow_module_level=True)

PATIENCE = 240

# What all programs begin with.
LIMITS = """
import contextlib, gc, os, resource, sys
import birnn_ext, torch
from birnn_ext import _C

MB = 2**20
ERRORS = (MemoryError, RuntimeError)

def size():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

@contextlib.contextmanager
def room(megabytes):
    "No more than so much beyond what the process has now."
    _C.release_memory()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size() + int(megabytes * MB), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

def copies(tensors):
    return [t.detach().clone() for t in tensors]

def same(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))

def is_about_memory(error):
    return isinstance(error, MemoryError) or any(s in str(error) for s in ("memory", "allocate", "bad_alloc"))
"""

CALLS = (
    LIMITS
    + """
kind, threads, episodes = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "episodes"
torch.set_num_threads(threads)
torch.manual_seed(0)
T, B, I, H = 600, 16, 64, 128
layer = getattr(birnn_ext, kind)(I, H, bidirectional=True)
state = torch.randn(2, B, H)
state = (state, torch.randn(2, B, H)) if kind == "LSTM" else state
states = state if kind == "LSTM" else (state,)
x = torch.randn(T, B, I, requires_grad=True)
options = {"reset": torch.rand(T, B) < 0.5} if episodes else {}
weights = list(layer.parameters())

def small():
    "Forward and backward of a few steps."
    part = {name: t[:5] for name, t in options.items()}
    output, _ = layer(x[:5], state, **part)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), weights)]

few = small()  # threads and what torch makes at first use are there now
output, _ = layer(x, state, **options)
right = [output.detach(), *torch.autograd.grad(output.sum(), [x, *weights])]
before = copies([*weights, *states, x])
del output

def check_the_rest():
    assert same(small(), few), "a small call afterwards"
    assert same(copies([*weights, *states, x]), before), "weights, states or input have changed"
    assert all(t.grad is None for t in (x, *weights)), "a gradient was written"

def failures(call):
    "Tries call() with more and more room, until it succeeds; the result, and how often there was too little."
    failed, first = 0, 0
    for megabytes in range(2, 400, 2):
        try:
            with room(megabytes):
                result = call()
            return result, failed
        except ERRORS as error:
            assert is_about_memory(error), error
            error.__traceback__ = None
        gc.collect()
        check_the_rest()
        failed += 1
        _C.release_memory()
        first = first or size()
        assert size() < first + 4 * MB, f"{(size() - first) / MB:.0f} MB lost in {failed} calls"
    raise AssertionError("never enough")

(output, _), failed = failures(lambda: layer(x, state, **options))
assert failed > 3, failed
assert torch.equal(output, right[0])

# The same graph again and again: what a call that failed has read must still be there for the next one.
gradients, failed = failures(lambda: torch.autograd.grad(output.sum(), [x, *weights], retain_graph=True))
assert failed > 3, failed
assert same(list(gradients), right[1:])

with room(8):
    try:
        output.sum().backward(retain_graph=True)
    except ERRORS:
        pass
    else:
        raise AssertionError("8 MB were enough")
check_the_rest()
output.sum().backward()
assert same([t.grad for t in (x, *weights)], right[1:])
print("right")
"""
)

# A child that was forked has no threads but those that it starts itself, and here it can start a few at most: in the stacks of
# those of its parent.
FORKED = (
    LIMITS
    + """
import threading
torch.set_num_threads(2)
torch.manual_seed(0)
layers = [birnn_ext.GRU(37, 215, bidirectional=True), birnn_ext.GRU(16, 24, bidirectional=True)]
inputs = [torch.randn(6, 1, 37), torch.randn(80, 8, 16)]  # (so little that torch adds no threads)
leaves = [[*layer.parameters(), x.requires_grad_()] for layer, x in zip(layers, inputs)]
wanted = int(sys.argv[1])

def run():
    found = []
    for layer, x, wanted_of in zip(layers, inputs, leaves):
        output, _ = layer(x)
        for t in (output, *torch.autograd.grad(output, wanted_of, torch.ones_like(output))):
            found += t.flatten().tolist()
    return found

def threads_to_be_had():
    go, started = threading.Event(), []
    try:
        for _ in range(wanted):
            started.append(threading.Thread(target=go.wait))
            started[-1].start()
    except RuntimeError:
        started.pop()
    go.set()
    for thread in started:
        thread.join()
    return len(started)

expected = run()
child = os.fork()
if child == 0:
    torch.set_num_threads(wanted + 1)
    with room(7):  # a stack of its own takes 8
        few, found = threads_to_be_had() < wanted, run()
    near = len(found) == len(expected) and all(abs(a - b) < 1e-4 * (1 + abs(b)) for a, b in zip(found, expected))
    os._exit(0 if few and near else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("right")
"""
)


def check(program, *arguments):
    # (glibc: large blocks go back to the system at once, so that no room is left over from those of before.)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "right\n" and done.returncode == 0, done.stderr


@pytest.mark.parametrize("rows", ["whole", "episodes"])
@pytest.mark.parametrize("kind, threads", [("GRU", 1), ("LSTM", 5), ("RNN", 2)])
def test_a_call_that_fails_leaves_everything_as_it_was(kind, threads, rows):
    check(CALLS, kind, threads, rows)


@pytest.mark.parametrize("wanted", [7, 15])
def test_no_memory_for_threads(wanted):
    check(FORKED, wanted)


STEPS = (
    LIMITS
    + """
torch.set_num_threads(1)
layer = getattr(birnn_ext, sys.argv[1])(256, 256, bidirectional=True)
x, dy = torch.randn(50, 1, 256, requires_grad=True), torch.randn(50, 1, 512)

def step():
    layer.zero_grad()
    x.grad = None
    layer(x)[0].backward(dy)

def new_pages(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

new_pages(10)
found = new_pages(20)
assert found < 20 * 100, f"{found} in 20 steps"
print("right")
"""
)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])  # weight gradients of 256, 768 and 1024 KiB: 64 pages and more
def test_a_training_step_works_in_the_memory_of_the_last_one(kind):
    check(STEPS, kind)
