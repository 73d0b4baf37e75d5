"""The stack of layers, called without a module: order of states, dropout between layers."""

import compare
import grids
import pytest
import torch
import torch.utils.checkpoint
from torch import nn

import birnn_ext
from birnn_ext import functional, ops

T, B, I, H = 5, 3, 4, 6  # noqa: E741


def stack(mode, layers, bidirectional=True, **kwargs):
    """(torch.nn's stack, a function of input, hx, lengths that runs functional.birnn on its weights)."""
    theirs, ours = compare.pair(mode, I, H, layers, bidirectional=bidirectional, **kwargs)

    def run(x, hx=None, lengths=None, **options):
        output, h_n, c_n = functional.birnn(x, hx, lengths, ours._layers(), mode=mode, **options)
        assert (c_n is None) == (mode != "LSTM")
        return output, h_n if c_n is None else (h_n, c_n)

    return theirs, run


@pytest.mark.parametrize("hx", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_direction", "both"])
@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("mode", grids.MODES)
def test_equals_torch(mode, layers, bidirectional, hx):
    theirs, run = stack(mode, layers, bidirectional)
    x = torch.randn(T, B, I)
    hx = compare.states(theirs, B) if hx else None
    compare.check(run(x, hx), theirs(x, hx), compare.wide(theirs)(compare.wide(x), compare.wide(hx)))


@pytest.mark.parametrize("layer, d", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_row_2l_plus_d_is_direction_d_of_layer_l(layer, d):
    """A change of one row of h_0 moves its own row of h_n, all of the layers above, and no other."""
    theirs, run = stack("GRU", 2)
    x, h_0 = torch.randn(T, B, I), torch.zeros(4, B, H)
    changed = h_0.clone()
    changed[2 * layer + d] += 1
    _, before = run(x, h_0)
    _, after = run(x, changed)
    moved = [compare.differs(before[row], after[row], by=0) for row in range(4)]
    assert moved == ([d == 0, d == 1, True, True] if layer == 0 else [False, False, d == 0, d == 1])
    compare.check(after, theirs(x, changed)[1], compare.wide(theirs)(x.double(), changed.double())[1])


def test_dropout_draws_as_torch_does():
    """The same seed gives the same mask as torch.nn for a time-major stack, hence the same numbers."""
    theirs, run = stack("GRU", 3, dropout=0.4)
    x = torch.randn(T, B, I)
    torch.manual_seed(7)
    expected = theirs(x)
    torch.manual_seed(7)
    found = run(x, dropout=0.4, training=True)
    torch.testing.assert_close(found, expected)
    assert compare.differs(found, run(x))


def test_dropout_is_between_layers_only():
    """With everything dropped the second layer sees zeros; its own output is not touched."""
    theirs, run = stack("GRU", 2)
    last = nn.GRU(2 * H, H, bidirectional=True)
    last.load_state_dict({k.replace("l1", "l0"): v for k, v in theirs.state_dict().items() if "l1" in k})
    expected, end = last(torch.zeros(T, B, 2 * H))
    output, h_n = run(torch.randn(T, B, I), dropout=1.0, training=True)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(h_n[2:], end)


def test_no_dropout_outside_training():
    theirs, run = stack("LSTM", 2)
    x = torch.randn(T, B, I)
    torch.testing.assert_close(run(x, dropout=0.9, training=False), theirs(x))


def test_dropout_scales_what_is_left():
    """Batch-major: the kept outputs are divided by 1 - p, about p of them are zero."""
    theirs, run = stack("RNN_RELU", 2, bidirectional=False, bias=False)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.fill_(0)
            if "weight_ih" in name:
                weight.fill_diagonal_(1)
    _, ours = compare.pair("RNN_RELU", I, H, 2, bias=False)
    ours.load_state_dict(theirs.state_dict())
    x = torch.ones(50, 40, I)
    output, _, _ = functional.birnn(
        x, None, None, ours._layers(), mode="RNN_RELU", batch_first=True, dropout=0.25, training=True
    )
    kept = output[..., :I]
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (kept == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("frozen", [False, True], ids=["all", "first_layer_frozen"])
@pytest.mark.parametrize("mode", grids.MODES)
def test_states_written_in_place_are_those_that_are_joined(monkeypatch, mode, frozen):
    """Values, gradients and second derivatives of both ways; eager mode takes the first, compilers the second."""
    torch_stack, _ = stack(mode, 3, dtype=torch.float64)
    _, ours = compare.pair(mode, I, H, 3, bidirectional=True, dtype=torch.float64)
    ours.load_state_dict(torch_stack.state_dict())
    for name, weight in ours.named_parameters():
        weight.requires_grad_(not (frozen and "_l0" in name))
    leaves = [w for w in ours.parameters() if w.requires_grad]
    x, hx = torch.randn(T, B, I, dtype=torch.float64), compare.states(ours, B)
    used = [torch.randn_like(t) for t in compare.tensors(ours(x, hx))]

    def everything():
        results = compare.tensors(ours(x, hx))
        loss = sum((r * u).sum() for r, u in zip(results, used, strict=True))
        gradients = torch.autograd.grad(loss, leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves)
        only_states = torch.autograd.grad(sum(r.sum() for r in compare.tensors(ours(x, hx))[1:]), leaves, allow_unused=True)
        return [*results, *gradients, *second, *only_states]

    in_place = everything()
    called = []
    monkeypatch.setattr(ops, "in_place", lambda input: called.append(1))
    joined = everything()
    assert called
    for a, b in zip(in_place, joined, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_states_of_several_layers_are_one_tensor_that_no_layer_shares():
    _, run = stack("LSTM", 3)
    x = torch.randn(T, B, I)
    with torch.no_grad():
        _, (h_n, c_n) = run(x)
        _, (again, _) = run(x)
    assert h_n.is_contiguous() and c_n.is_contiguous() and h_n.data_ptr() != again.data_ptr()
    output, (h_n, c_n) = run(x)
    (h_n[0].sum() + c_n[-1].sum() + output.sum()).backward()


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("mode", grids.MODES)
def test_recomputed_gates_give_the_same_bits(mode, layers):
    theirs, run = stack(mode, layers)
    x, hx = torch.randn(T, B, I, requires_grad=True), compare.states(theirs, B)
    kept = []

    def gradients(**options):
        bytes_kept = 0

        def count(t):
            nonlocal bytes_kept
            bytes_kept += t.nbytes
            return t

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            results = compare.tensors(run(x, hx, lengths=torch.tensor([5, 0, 3]), **options))
        kept.append(bytes_kept)
        return results + list(torch.autograd.grad(sum(r.square().sum() for r in results), x))

    for a, b in zip(gradients(), gradients(recompute=True), strict=True):
        assert torch.equal(a, b)
    values = {"GRU": 4, "LSTM": 5}.get(mode, 0)
    assert kept[0] - kept[1] == layers * 2 * T * B * H * values * x.itemsize


def test_recomputed_gates_in_transforms_and_second_derivatives():
    _, run = stack("LSTM", 2)
    xs = torch.randn(4, T, B, I)

    def loss(x, **options):
        output, (h_n, c_n) = run(x, **options)
        return output.square().sum() + c_n.sum()

    for transform in (
        lambda f: torch.func.vmap(torch.func.grad(f))(xs),
        lambda f: torch.func.hessian(f)(xs[0, :2, :1]),
    ):
        expected, found = transform(loss), transform(lambda x: loss(x, recompute=True))
        torch.testing.assert_close(found, expected)


def test_recompute_as_an_option_of_the_layer():
    plain = birnn_ext.GRU(I, H, 2)
    ours = birnn_ext.GRU(I, H, 2, recompute=True)
    ours.load_state_dict(plain.state_dict())
    assert "recompute=True" in repr(ours) and "recompute" not in repr(plain)
    x = torch.randn(T, B, I)
    for layer in (plain, ours):
        layer(x)[0].square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))
    with pytest.raises(TypeError, match="recompute should be of type bool, got: int"):
        birnn_ext.GRU(I, H, recompute=1)


def test_recomputed_gates_compiled_and_checkpointed():
    ours = birnn_ext.LSTM(I, H, 2, bidirectional=True, recompute=True)
    x = torch.randn(T, B, I)

    def gradients(call):
        loss = call(x)[0].square().sum()
        return torch.autograd.grad(loss, list(ours.parameters()))

    expected = gradients(ours)
    torch._dynamo.reset()
    compiled = gradients(torch.compile(ours, fullgraph=True, backend="aot_eager"))
    checkpointed = gradients(lambda x: torch.utils.checkpoint.checkpoint(ours, x, use_reentrant=False))
    for found in (compiled, checkpointed):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
