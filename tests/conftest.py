"""Fixtures of all tests: nothing random or global leaks from one test into the next, and thread counts."""

import pytest
import torch


@pytest.fixture(autouse=True)
def guard():
    """Every test starts from the same seed and finds torch's global settings as a fresh process has them."""
    state = torch.get_rng_state()
    threads, dtype, grad = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n}_threads")
def threads(request):
    """Runs the test with one thread (no concurrency), one per direction, and more threads than directions."""
    torch.set_num_threads(request.param)
    return request.param


@pytest.fixture
def one_thread(guard):
    """For tiny layers: on two threads they crawl where something else keeps a core busy, since torch.nn forks at every step."""
    torch.set_num_threads(1)
