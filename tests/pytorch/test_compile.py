"""torch.compile: no graph break, one graph for all sizes, generated code and none, forward and backward.

Not here: export (test_export.py).
"""

import compare
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch._functorch.aot_autograd import aot_module_simplified, make_boxed_func

import birnn_ext

MODES = ("RNN_TANH", "LSTM", "GRU")
modes = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Tagger(nn.Module):
    """A layer between others: what is around it must be compiled with it."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.out = rnn, nn.Linear(2 * (rnn.proj_size or rnn.hidden_size), 2)

    def forward(self, x, hx=None, lengths=None):
        output, state = self.rnn(torch.tanh(x), hx, lengths)
        return self.out(output).sin(), state


def step(module, x, *rest):
    """Results, and gradients of the input and all weights."""
    leaf = x.clone().requires_grad_()
    results = compare.tensors(module(leaf, *rest))
    gradients = torch.autograd.grad(sum(t.sin().sum() for t in results), [leaf, *module.parameters()])
    return [*results, *gradients]


# The first sizes differ from each other and from I: the compiler takes equal sizes for the same size.
SIZES = [(5, 7), (7, 7), (9, 4), (20, 2), (33, 6)]


CASES = [
    ("aot_eager", "RNN_TANH", "full"),
    ("aot_eager", "LSTM", "ragged"),
    ("inductor", "LSTM", "full"),
    ("inductor", "GRU", "ragged"),
]


@pytest.mark.parametrize("backend, mode, rows", CASES)
def test_one_graph_for_all_sizes(backend, mode, rows):
    ours = Tagger(birnn_ext.BiRNN(3, 4, num_layers=2, mode=mode)).double()
    counter, first = CompileCounterWithBackend(backend), None
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend=counter)
    for T, B in SIZES:
        x = torch.randn(T, B, 3, dtype=torch.float64)
        lengths = torch.randint(0, T + 1, (B,)) if rows == "ragged" else None
        for found, eager in zip(step(compiled, x, None, lengths), step(ours, x, None, lengths), strict=True):
            torch.testing.assert_close(found, eager, rtol=1e-12, atol=1e-12)
        first = first or counter.frame_count
    assert counter.frame_count == first and counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@modes
def test_without_dynamic_it_asks_for_one_more_graph_only(mode):
    """PyTorch's default: static sizes first, dynamic ones from the second size on."""
    ours = birnn_ext.BiRNN(3, 4, mode=mode)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ours, fullgraph=True, backend=counter)
    with torch.no_grad():
        for T, B in SIZES[0], *SIZES[2:]:  # the second size changes both numbers
            x = torch.randn(T, B, 3)
            assert torch.equal(compiled(x)[0], ours(x)[0])
    assert counter.frame_count == 2


@modes
def test_the_graph_does_not_grow_with_time(mode):
    """Why compiling takes as long for any T: one call of the op for each layer, and nothing else of size T."""
    ours, sizes = birnn_ext.BiRNN(3, 4, num_layers=2, mode=mode), []

    def count(graph, _):
        sizes.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    for T in (3, 300):
        torch._dynamo.reset()
        with torch.no_grad():
            torch.compile(ours, fullgraph=True, backend=count)(torch.randn(T, 2, 3))
    assert sizes[0] == sizes[1]
    assert sizes[0].count(torch.ops.birnn_ext.layer) == 2


@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
def test_states_and_options(mode):
    ours = Tagger(birnn_ext.BiRNN(3, 4, num_layers=2, mode=mode, batch_first=True))
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")
    hx = compare.states(ours.rnn, 6, requires_grad=True)
    x = torch.randn(6, 5, 3)
    for found, eager in zip(step(compiled, x, hx), step(ours, x, hx), strict=True):
        torch.testing.assert_close(found, eager)
    projected = torch.compile(birnn_ext.LSTM(3, 4, proj_size=2), fullgraph=True, backend="aot_eager")
    assert projected(torch.randn(5, 3))[0].shape == (5, 2)


def test_dropout_and_autocast():
    ours = birnn_ext.GRU(3, 8, 2, dropout=0.5, bidirectional=True)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 2, 3)
    torch.manual_seed(1)
    expected = ours(x)[0]
    torch.manual_seed(1)
    torch.testing.assert_close(compiled(x)[0], expected)
    with torch.autocast("cpu", torch.bfloat16):
        for module in (ours.eval(), compiled.eval()):
            assert module(x.bfloat16())[0].dtype == torch.bfloat16


def test_a_training_step_is_one_graph_with_its_optimiser_outside():
    torch.manual_seed(3)
    eager = Tagger(birnn_ext.BiRNN(3, 4, mode="LSTM"))
    compiled = torch.compile(Tagger(birnn_ext.BiRNN(3, 4, mode="LSTM")), fullgraph=True, backend="aot_eager")
    compiled.load_state_dict({f"_orig_mod.{name}": value for name, value in eager.state_dict().items()})
    x, losses = torch.randn(6, 3, 3), []
    for module in (eager, compiled):
        optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
        for _ in range(5):
            optimiser.zero_grad()
            loss = module(x)[0].square().sum()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    torch.testing.assert_close(losses[5:], losses[:5])
    assert losses[4] < losses[0]


# ---- what torch.nn does today ----


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_contrast_torch_refuses_a_whole_graph(kind):
    """As of torch 2.13."""
    layer = getattr(nn, kind)(3, 4, bidirectional=True)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(layer, fullgraph=True, backend="eager")(torch.randn(5, 2, 3))


def test_contrast_torch_unrolls_where_it_is_allowed_to():
    """With allow_rnn its graph grows with T, and every T is compiled anew. As of torch 2.13."""
    layer, sizes = nn.GRU(2, 2), []

    def count(graph, examples):
        sizes.append(0)

        def count_ops(graph, _):
            sizes[-1] += len(graph.graph.nodes)
            return make_boxed_func(graph.forward)

        return aot_module_simplified(graph, examples, fw_compiler=count_ops)

    with torch._dynamo.config.patch(allow_rnn=True), torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=count)
        for T in (2, 4):
            compiled(torch.randn(T, 2, 2))
    small, large = [n for n in sizes if n]  # one of them is begun twice
    assert large > 1.5 * small
