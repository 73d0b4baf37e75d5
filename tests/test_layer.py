"""ops.layer, the differentiable call around the compiled ops: strides, the life of a graph, higher derivatives.

Not here: the ops themselves (test_ops.py), numbers by size, instruction set and thread (tests/cpu), and what the
module adds (test_module.py, test_autograd.py).
"""

from dataclasses import replace

import compare
import problems
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from birnn_ext import ops, reference

pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")
kinds = pytest.mark.parametrize("kind", problems.KINDS)

# ---- memory in any layout ----


def scattered(t):
    """The same numbers, with gaps between all of them and the dimensions in the opposite order."""
    if t is None or t.dim() == 0:
        return t
    memory = torch.full([2 * n for n in reversed(t.shape)], torch.nan, dtype=t.dtype)
    view = memory[(slice(None, None, 2),) * t.dim()].permute(*reversed(range(t.dim())))
    return view.copy_(t.detach()).detach().requires_grad_(t.requires_grad)


@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@kinds
def test_no_argument_needs_to_be_contiguous(kind, batch_first):
    problem = problems.small(kind, T=5, B=3, lengths=True, batch_first=batch_first)
    apart = replace(problem.map(scattered), lengths=torch.stack([problem.lengths] * 2, 1)[:, 0])
    assert not any(t.is_contiguous() for t in (apart.input, apart.lengths, apart.weights[0][0], apart.cotangents[0]))
    assert all(torch.equal(a, b) for a, b in zip(problems.run(apart), problems.run(problem), strict=True))


@pytest.mark.parametrize("dim", [0, 1, 2])
@kinds
def test_expanded_tensors(kind, dim):
    """Stride 0 in the input, and in the gradient that comes in, as from output.sum()."""
    problem = problems.small(kind, T=5, B=3)

    def expanded(t):
        first = t.detach().narrow(dim, 0, 1).expand(t.shape)
        return first.requires_grad_(t.requires_grad)

    cotangents = (expanded(problem.cotangents[0]), *problem.cotangents[1:])
    problem = replace(problem, input=expanded(problem.input), cotangents=cotangents)
    problems.check(problem)


@kinds
def test_gradient_of_a_sum(kind):
    problem = problems.small(kind)
    ones = tuple(torch.ones(()).expand(c.shape) for c in problem.cotangents)
    problems.check(replace(problem, cotangents=ones))


@kinds
def test_batch_first_is_a_matter_of_strides(kind):
    problem = problems.small(kind, T=5, B=3, lengths=True)
    turned = replace(
        problem,
        batch_first=True,
        input=problem.input.detach().transpose(0, 1).requires_grad_(),
        cotangents=(problem.cotangents[0].transpose(0, 1), *problem.cotangents[1:]),
    )
    assert turned.input.stride(1) > turned.input.stride(0)
    ours, expected = problems.run(turned), problems.run(problem)
    ours[0] = ours[0].transpose(0, 1)
    ours[len(problem.cotangents)] = ours[len(problem.cotangents)].transpose(0, 1)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


# ---- the life of a graph ----


@kinds
def test_inference_keeps_nothing(kind, monkeypatch):
    """Nothing is saved and no graph is made where nobody asks for a gradient."""
    problem, saved, op = problems.small(kind), [], torch.ops.birnn_ext.layer

    def watch(*arguments):
        results = op(*arguments)
        saved.append(results[-1].numel())
        return results

    monkeypatch.setattr(torch.ops.birnn_ext, "layer", watch)
    with torch.no_grad():
        assert not any(t.requires_grad for t in problems.results(problem))
    with torch.inference_mode():
        assert all(t.is_inference() for t in problems.results(problem))
    frozen = problems.small(kind, input_grad=False, weight_grad=False, state=False)
    assert all(t.grad_fn is None for t in problems.results(frozen))
    assert saved == [0, 0, 0]
    assert all(t.grad_fn is not None for t in problems.results(problem))
    assert len(saved) == 4 and (saved[3] > 0) == (not kind.startswith("RNN"))


@kinds
def test_a_graph_can_be_used_twice(kind):
    problem = problems.small(kind)
    found, leaves = problems.results(problem), problem.leaves()
    once = torch.autograd.grad(found, leaves, problem.cotangents, retain_graph=True)
    again = torch.autograd.grad(found, leaves, problem.cotangents)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(found, leaves, problem.cotangents)


@kinds
def test_gradients_are_for_those_who_asked(kind):
    problem = problems.small(kind, input_grad=False, weight_grad=False, state=False)
    bias = problem.weights[-1][2].requires_grad_()
    output = problems.results(problem)[0]
    output.sum().backward()
    assert bias.grad is not None and problem.input.grad is None
    assert all(w is None or w is bias or w.grad is None for direction in problem.weights for w in direction)


@pytest.mark.parametrize("name", ["input", "h0", "w_hh"])
def test_changing_what_was_saved_is_an_error(name):
    problem = problems.small()
    tensor = problem.weights[0][1] if name == "w_hh" else getattr(problem, name)
    output = problems.results(problem)[0]
    with torch.no_grad():
        tensor.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_results_can_be_changed_in_inference():
    problem = problems.small().detach()
    output, h_n = problems.results(problem)
    kept = h_n.clone()
    output.zero_()
    assert torch.equal(h_n, kept), "h_n shares no memory with output"


# ---- higher derivatives ----


def function(problem):
    """ops.layer of its leaves alone, and the leaves."""
    every = [problem.input, problem.h0, problem.c0, *(w for direction in problem.weights for w in direction)]
    places = [i for i, t in enumerate(every) if t is not None]

    def call(*leaves):
        full = list(every)
        for i, leaf in zip(places, leaves, strict=True):
            full[i] = leaf
        weights = tuple(tuple(full[3 + 5 * d : 8 + 5 * d]) for d in range(len(problem.weights)))
        problem_of_leaves = replace(problem, input=full[0], h0=full[1], c0=full[2], weights=weights)
        return tuple(problems.results(problem_of_leaves))

    return call, tuple(every[i] for i in places)


@kinds
def test_first_and_second_derivatives(kind):
    call, leaves = function(problems.typical(kind, T=2, B=2, I=2, H=2, lengths=True, dtype=torch.float64))
    assert gradcheck(call, leaves)
    assert gradgradcheck(call, leaves)


def results_of(kind):
    return ("output", "h_n", "c_n") if kind.startswith("LSTM") else ("output", "h_n")


@pytest.mark.parametrize("kind, used", [(kind, used) for kind in problems.KINDS for used in results_of(kind)])
def test_second_and_third_derivatives_of_one_result(kind, used):
    """Gradients of gradients where the loss sees one result only; the third runs through the reference altogether."""
    problem = problems.small(kind, used=(used,), dtype=torch.float64)

    def derivatives(layer):
        found, leaves = problems.results(problem, layer), problem.leaves()
        value = sum((r * c).sum() for r, c in zip(found, problem.cotangents, strict=True) if c is not None)
        for _ in range(3):
            gradients = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
            yield gradients
            value = sum(g.sin().sum() for g in gradients)

    for ours, expected in zip(derivatives(ops.layer), derivatives(reference.layer), strict=True):
        compare.check(ours, expected, expected)


def test_torch_func():
    problem = problems.small()
    call, leaves = function(problem.detach())
    ours = torch.func.vjp(call, *leaves)[1](problem.cotangents)
    expected, oracle = (problems.run(p, reference.layer)[2:] for p in (problem, problem.double()))
    compare.check(ours, expected, oracle)


def test_forward_mode():
    """torch.nn has it on the CPU."""
    problem = problems.small().detach()
    tangent = torch.randn_like(problem.input)
    with torch.autograd.forward_ad.dual_level():
        dual = replace(problem, input=torch.autograd.forward_ad.make_dual(problem.input, tangent))
        ours, expected = (
            torch.autograd.forward_ad.unpack_dual(problems.results(dual, layer)[0]).tangent
            for layer in (ops.layer, reference.layer)
        )
    compare.check(ours, expected, expected)
