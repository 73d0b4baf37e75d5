"""torch.func, torch.compile and torch.export: what the README says of them, against loops, autograd and eager mode.

Not here: autograd itself (test_autograd.py, test_layer.py), and generated code (only the backend that generates none is used).
"""

import compare
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, stack_module_state, vmap

import birnn_ext

MODES = ("RNN_TANH", "LSTM", "GRU")
modes = pytest.mark.parametrize("mode", MODES)
layouts = pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])


def small(mode, batch_first=False):
    return birnn_ext.BiRNN(3, 4, num_layers=2, mode=mode, batch_first=batch_first).double()


@modes
@layouts
def test_vmap_over_inputs(mode, batch_first):
    theirs, ours = compare.pair(mode, 3, 4, num_layers=2, bidirectional=True, batch_first=batch_first, dtype=torch.float64)
    x = torch.randn(6, 5, 2, 3, dtype=torch.float64)
    expected = torch.stack([theirs(sample)[0] for sample in x])
    torch.testing.assert_close(vmap(lambda sample: ours(sample)[0])(x), expected)
    found = vmap(lambda sample: ours(sample)[0], in_dims=2, out_dims=1)(x.movedim(0, 2))
    torch.testing.assert_close(found, expected.movedim(0, 1))


@modes
@layouts
def test_jacobians_and_hessians(mode, batch_first):
    ours = small(mode, batch_first)
    x = torch.randn(3, 2, 3, dtype=torch.float64)

    def output(x):
        return ours(x)[0]

    def loss(x):
        return ours(x)[0].square().sum()

    jacobian = torch.autograd.functional.jacobian(output, x)
    torch.testing.assert_close(jacrev(output)(x), jacobian)
    torch.testing.assert_close(jacfwd(output)(x), jacobian)
    second = torch.autograd.functional.hessian(loss, x)
    for found in (hessian(loss), jacrev(jacrev(loss)), jacfwd(jacfwd(loss)), jacrev(jacfwd(loss))):
        torch.testing.assert_close(found(x), second)


@modes
@layouts
def test_gradients_per_sample(mode, batch_first):
    ours = small(mode, batch_first)
    x = torch.randn(4, 5, 2, 3, dtype=torch.float64)
    weights = dict(ours.named_parameters())

    def loss(weights, sample):
        return functional_call(ours, weights, (sample,))[0].square().sum()

    found = vmap(grad(loss), (None, 0))(weights, x)
    for i, sample in enumerate(x):
        expected = torch.autograd.grad(ours(sample)[0].square().sum(), list(weights.values()))
        for name, right in zip(weights, expected, strict=True):
            torch.testing.assert_close(found[name][i], right)


@modes
def test_ensembles(mode):
    members = [small(mode) for _ in range(3)]
    weights, _ = stack_module_state(members)
    x = torch.randn(3, 5, 2, 3, dtype=torch.float64)

    def call(weights, sample):
        return functional_call(members[0], weights, (sample,))[0]

    expected = [member(sample)[0] for member, sample in zip(members, x, strict=True)]
    torch.testing.assert_close(vmap(call)(weights, x), torch.stack(expected))
    expected = [member(x[0])[0] for member in members]
    torch.testing.assert_close(vmap(call, (0, None))(weights, x[0]), torch.stack(expected))


@modes
def test_forward_mode(mode):
    ours = small(mode)
    x, direction = torch.randn(2, 5, 2, 3, dtype=torch.float64).unbind()
    with torch.autograd.forward_ad.dual_level():
        output = ours(torch.autograd.forward_ad.make_dual(x, direction))[0]
        found = torch.autograd.forward_ad.unpack_dual(output).tangent
    expected = torch.autograd.functional.jvp(lambda x: ours(x)[0], x, direction)[1]
    torch.testing.assert_close(found, expected)


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@modes
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_compiles_whole_and_for_all_sizes(fresh_compiler, mode, ragged):
    ours = small(mode)
    counter, graphs = CompileCounterWithBackend("aot_eager"), None
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend=counter)
    # The first sizes differ from each other and from I: the compiler takes equal sizes for the same size.
    for T, B in [(5, 7), (7, 7), (9, 4), (20, 2), (33, 6)]:
        x = torch.randn(T, B, 3, dtype=torch.float64)
        lengths = torch.randint(0, T + 1, (B,)) if ragged else None
        results = []
        for module in (ours, compiled):
            leaf = x.clone().requires_grad_()
            output = module(leaf, lengths=lengths)[0]
            results.append((output, *torch.autograd.grad(output.sin().sum(), [leaf, *ours.parameters()])))
        for eager, found in zip(*results, strict=True):
            assert torch.equal(found, eager)
        graphs = graphs or counter.frame_count
    assert counter.frame_count == graphs  # those of the first sizes serve all


@modes
@layouts
def test_exports_with_dynamic_time_and_batch(mode, batch_first):
    ours = small(mode, batch_first)
    first, second = torch.export.Dim("first"), torch.export.Dim("second")
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    program = torch.export.export(ours, (x,), dynamic_shapes=({0: first, 1: second},))
    for shape in [(5, 3), (11, 2), (1, 1), (40, 7)]:
        x = torch.randn(*shape, 3, dtype=torch.float64)
        assert torch.equal(program.module()(x)[0], ours(x)[0])
