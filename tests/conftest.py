"""Fixtures of all tests: nothing random or global leaks from one test into the next, and thread counts.

A test runs on one thread unless it asks for more: so it covers the same on every machine, and does not crawl while other
tests keep the other cores busy. (torch.nn forks at every step, and then waits for the thread that has no core.)
"""

import os

import pytest
import torch

# Files whose tests go to one worker, in turn: they share what takes long to make, or a folder that setup.py compiles into.
# (pytest-xdist's own --dist=loadgroup would do, but its version 3.8 does not see the groups under pytest 9.2.)
TOGETHER = {
    "tests/cpu/test_race.py": "race",
    "tests/pytorch/test_export.py": "export",
    "tests/test_build.py": "build",
    "tests/test_cuda_build.py": "cuda_build",
    "tests/test_wheel.py": "build",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `pytest -n 4`: what goes together first, then test by test to the worker that is free."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return TOGETHER.get(nodeid.partition("::")[0], nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    """In a worker of pytest-xdist slow tests come first: begun last, one would keep a single worker busy at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def guard():
    """Every test starts from the same seed, on one thread, and finds torch's other settings as a fresh process has them."""
    state = torch.get_rng_state()
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_rng_state(state)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n}_threads")
def threads(request):
    """Runs the test with one thread (no concurrency), one per direction, and more threads than directions."""
    torch.set_num_threads(request.param)
    return request.param


@pytest.fixture
def two_threads(guard):
    """One per direction, if there is work enough (problems.typical): where threads are not the question, but usual."""
    torch.set_num_threads(2)
