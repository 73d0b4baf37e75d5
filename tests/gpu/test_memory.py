"""Memory of the device that runs out in the middle of a call: the usual error, and nothing else is different afterwards.

The process is allowed a little more than it has, step by step, so that each of the large pieces that a call asks for is once
the one that is not to be had. That memory is bounded at all: test_streams.py.
"""

import pytest
import torch

import birnn_ext

pytestmark = pytest.mark.usefixtures("no_tf32")
MB = 2**20


def failures(call, check):
    """Tries call() with more and more memory until it succeeds: the result, and how often it failed."""
    total = torch.cuda.get_device_properties(0).total_memory
    for failed in range(500):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (4 + 8 * failed) * MB) / total)
        try:
            return call(), failed
        except torch.cuda.OutOfMemoryError as error:
            error.__traceback__ = None
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        check()
    raise AssertionError("never enough")


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_a_call_that_fails_leaves_everything_as_it_was(tier, name):
    torch.manual_seed(0)
    layer = getattr(birnn_ext, name)(64, 256, bidirectional=True).cuda()
    x = torch.randn(300, 64, 64, device="cuda", requires_grad=True)
    leaves = [x, *layer.parameters()]
    before = [t.detach().clone() for t in leaves]

    def small():
        output, _ = layer(x[:5])
        return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves[1:])]

    few = small()
    output, _ = layer(x)
    right = [output.detach(), *torch.autograd.grad(output.sum(), leaves)]
    del output
    stream = torch.cuda.current_stream()

    def check():
        assert torch.cuda.current_stream() == stream
        assert all(map(torch.equal, small(), few)), "a small call afterwards"
        assert all(map(torch.equal, (t.detach() for t in leaves), before)), "weights or input have changed"
        assert all(t.grad is None for t in leaves), "a gradient was written"

    (output, _), failed = failures(lambda: layer(x), check)
    assert failed > 3 and torch.equal(output, right[0])
    gradients, failed = failures(lambda: torch.autograd.grad(output.sum(), leaves, retain_graph=True), check)
    assert failed > 3 and all(map(torch.equal, gradients, right[1:]))
