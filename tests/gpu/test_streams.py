"""Streams, CUDA graphs, several devices, and what is left behind when memory runs out."""

import threading

import problems
import pytest
import torch

import birnn_ext

from . import on_gpu

pytestmark = pytest.mark.usefixtures("no_tf32")
kinds = pytest.mark.parametrize("kind", problems.KINDS)


@kinds
def test_on_a_stream_that_is_not_the_default(tier, kind):
    """The input is written on the same stream just before, the results are read on it just after."""
    problem = problems.typical(kind, T=30, B=8, lengths=True)
    expected = on_gpu.run(problem)
    stream = torch.cuda.Stream()
    moved = on_gpu.to(problem)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        fresh = moved.map(lambda t: None if t is None else (t * 1).detach().requires_grad_(t.requires_grad))
        found = [t * 1 for t in problems.run(fresh)]
    stream.synchronize()
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))


def test_two_streams_in_flight(tier):
    """Memory of one call is reused by the next while the other stream is still at work."""
    cases = [problems.typical(kind, T=60, B=8) for kind in ("GRU", "LSTM")]
    expected = [on_gpu.run(problem) for problem in cases]
    moved = [on_gpu.to(problem) for problem in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    torch.cuda.synchronize()
    found = [[], []]
    for _ in range(5):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[i].append(problems.run(moved[i]))
    torch.cuda.synchronize()
    for results, right in zip(found, expected, strict=True):
        assert all(torch.equal(a.cpu(), b) for one in results for a, b in zip(one, right, strict=True))


def test_from_several_threads(tier):
    problem = problems.typical("GRU", T=40)
    expected, found = on_gpu.run(problem), {}

    def work(i):
        found[i] = [on_gpu.run(problem) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    assert all(torch.equal(a, b) for runs in found.values() for one in runs for a, b in zip(one, expected, strict=True))


def test_sizes_of_their_own_in_several_threads(tier):
    """How much shared memory a kernel may have is one setting for all threads. Forward only, so that one thread's next call
    follows close on another's."""
    cases = [problems.make("GRU", 5, 3, 8, H) for H in (8, 70, 96, 40)]
    moved = [on_gpu.to(case).detach() for case in cases]
    expected = [problems.results(case)[0] for case in moved]
    found, together = {}, threading.Barrier(len(cases))

    def work(i):
        together.wait(60)
        found[i] = [problems.results(moved[i])[0] for _ in range(200)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == len(cases)
    assert all(torch.equal(a, expected[i]) for i, outputs in found.items() for a in outputs)


@kinds
@pytest.mark.parametrize("lengths", [False, True])
def test_graph_capture(tier, kind, lengths):
    """Forward and backward in one graph, replayed with new numbers."""
    problem = on_gpu.to(problems.typical(kind, T=12, B=4, lengths=lengths))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            problems.run(problem)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = problems.run(problem)
    with torch.no_grad():
        problem.input.copy_(torch.randn_like(problem.input))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, problems.run(problem), strict=True))


def test_a_graph_is_replayed_beside_other_calls(monkeypatch):
    """The products of both must not write into the same workspace."""
    monkeypatch.setenv("BIRNN_CUDA_TIER", "stepwise")
    cases = [problems.make("GRU", 60, 8, 64, 256) for _ in range(2)]
    captured, eager = (on_gpu.to(case).detach() for case in cases)
    expected = [problems.results(problem)[0].clone() for problem in (captured, eager)]
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph):
        output = problems.results(captured)[0]
    torch.cuda.synchronize()
    for _ in range(20):
        with torch.cuda.stream(stream):
            graph.replay()
        found = problems.results(eager)[0]
        torch.cuda.synchronize()
        assert torch.equal(output, expected[0]) and torch.equal(found, expected[1])


def test_graphed_callable(tier):
    module = birnn_ext.GRU(24, 32, 2, bidirectional=True).cuda()
    x = torch.randn(10, 4, 24, device="cuda", requires_grad=True)
    expected = module(x)[0]
    right = torch.autograd.grad(expected.square().sum(), [x, *module.parameters()])
    graphed = torch.cuda.make_graphed_callables(module, (torch.randn_like(x).requires_grad_(),))
    found = graphed(x)[0]
    gradients = torch.autograd.grad(found.square().sum(), [x, *module.parameters()])
    assert torch.equal(found, expected) and all(torch.equal(a, b) for a, b in zip(gradients, right, strict=True))


def test_reduce_overhead():
    module = birnn_ext.LSTM(24, 32, bidirectional=True).cuda()
    compiled = torch.compile(lambda x: module(x)[0], mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        for _ in range(4):
            x = torch.randn(10, 4, 24, device="cuda")
            torch.testing.assert_close(compiled(x).clone(), module(x)[0], rtol=0, atol=1e-6)


@kinds
def test_no_synchronisation(tier, kind):
    problem = on_gpu.to(problems.typical(kind, lengths=True))
    problems.run(problem)
    torch.cuda.set_sync_debug_mode("error")
    try:
        problems.run(problem)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_second_device(tier):
    if torch.cuda.device_count() < 2:
        pytest.skip("one device only")
    problem = problems.typical("LSTM", lengths=True)
    assert torch.cuda.current_device() == 0
    on_gpu.check(problem, device="cuda:1")
    assert torch.cuda.current_device() == 0
    module = birnn_ext.GRU(5, 7).to("cuda:1")
    with pytest.raises(RuntimeError, match="not at the same device"):
        module(torch.randn(3, 2, 5, device="cuda:0"))


def test_out_of_memory_leaves_nothing_broken(tier):
    problem = problems.typical("GRU")
    expected = on_gpu.run(problem)
    free, total = torch.cuda.mem_get_info()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (64 << 20)) / total)
    try:
        module = birnn_ext.GRU(64, 512, bidirectional=True).cuda()
        x = torch.randn(64, 512, 64, device="cuda")
        with pytest.raises(torch.cuda.OutOfMemoryError):
            module(x)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert all(torch.equal(a, b) for a, b in zip(on_gpu.run(problem), expected, strict=True))


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
def test_memory_is_bounded(tier, train):
    """Beside the results: the saved gates in training, and chunks of some 16 MiB (two per direction)."""
    T, B, H = 2048, 16, 128
    module = birnn_ext.GRU(H, H, bidirectional=True).cuda()
    x = torch.randn(T, B, H, device="cuda")
    with torch.set_grad_enabled(train):
        module(x[:8])
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        output, _ = module(x)
    used = torch.cuda.max_memory_allocated() - before
    saved = 2 * T * B * 4 * H * 4 if train else 0
    assert used < output.numel() * 4 + saved + 80 * 2**20


@pytest.mark.parametrize("name", ["spread", "cluster"])
@pytest.mark.parametrize("mode", ["GRU", "LSTM"])
def test_a_block_that_gives_up_is_an_error_at_the_next_call(mode, name, monkeypatch):
    """Nobody waits for the device to find out; until then the results are NaN. Here a block gives up at its first vain look; in
    a cluster, before it has looked."""
    if name == "cluster" and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("clusters need sm_90")
    monkeypatch.setenv("BIRNN_CUDA_TIER", name)
    problem = on_gpu.to(problems.typical(mode, T=100, B=8, H=256)).detach()
    expected = problems.results(problem)
    with monkeypatch.context() as hasty:
        hasty.setenv("BIRNN_CUDA_PATIENCE", "1")
        assert problems.results(problem)[0].isnan().any()
        torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match="a persistent kernel of an earlier call gave up"):
        problems.results(problem)
    assert all(torch.equal(a, b) for a, b in zip(problems.results(problem), expected, strict=True))


def test_random_state_is_left_alone(tier):
    before = torch.cuda.get_rng_state()
    on_gpu.run(problems.small())
    assert torch.equal(torch.cuda.get_rng_state(), before)
