"""The two ops and the differentiable call around them: schemas, argument errors, strides, the life of a graph, fake tensors,
second derivatives, and the package without its compiled library.

Not here: numbers by size, instruction set and thread (tests/cpu), and what the module adds (test_module.py).
"""

import os
import subprocess
import sys
import warnings
from dataclasses import replace

import compare
import grids
import problems
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from birnn_ext import ops, reference

pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")
op, op_backward = torch.ops.birnn_ext.layer, torch.ops.birnn_ext.layer_backward
kinds = pytest.mark.parametrize("kind", problems.KINDS)

CONFIGURATIONS = {
    "plain": {},
    "one_direction": {"D": 1},
    "lengths": {"lengths": True},
    "batch_first": {"batch_first": True, "dtype": torch.float64},
    "bare": {"bias": False, "state": False},
}
SMALL = {"T": 3, "B": 2, "I": 4, "H": 5}
configurations = pytest.mark.parametrize("name", CONFIGURATIONS)


def small(kind="GRU", **options):
    return problems.typical(kind, **{**SMALL, **options})


def detached(problem):
    return problem.map(lambda t: None if t is None else t.detach())


def backward_arguments(problem, need_input=True, need_weights=True):
    output, *_, saved = op(*problem.op_arguments(), True)
    cotangents = (*problem.cotangents, None)[:3]
    return [*cotangents, *problem.op_arguments(), output, saved, need_input, need_weights]


# ---- what torch itself checks of an op ----


@configurations
@kinds
def test_opcheck(kind, name):
    problem = detached(small(kind, **CONFIGURATIONS[name]))
    for train in (False, True):
        torch.library.opcheck(op.default, (*problem.op_arguments(), train))


@configurations
@kinds
def test_opcheck_backward(kind, name):
    problem = detached(small(kind, **CONFIGURATIONS[name]))
    torch.library.opcheck(op_backward.default, backward_arguments(problem))
    torch.library.opcheck(op_backward.default, backward_arguments(problem, need_input=False))
    torch.library.opcheck(op_backward.default, backward_arguments(problem, need_weights=False))


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@kinds
def test_meta_tensors_have_the_shapes_of_real_ones(kind, batch_first, D):
    problem = detached(small(kind, batch_first=batch_first, D=D))
    meta = problem.map(lambda t: None if t is None else t.to("meta"))
    for train in (False, True):
        real, fake = op(*problem.op_arguments(), train), op(*meta.op_arguments(), train)
        assert [(t.shape, t.stride()) for t in real] == [(t.shape, t.stride()) for t in fake]
    for needs in ((True, True), (False, True), (True, False)):
        real, fake = (op_backward(*backward_arguments(p, *needs)) for p in (problem, meta))
        assert [t.shape for t in real] == [t.shape for t in fake]


# ---- wrong arguments: (problem, position or name of the argument, what to put there, what the message says) ----

NAMES = ["input", "h0", "c0", "lengths", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr"]
NAMES += [f"{w}_reverse" for w in NAMES[4:]] + ["mode", "batch_first"]
BACKWARD_NAMES = ["grad_output", "grad_h_n", "grad_c_n", *NAMES, "output", "saved", "need_input", "need_weights"]
Z, LONG = torch.zeros, torch.int64
WRONG = [
    ("GRU", "mode", "gru", "mode: expected one of RNN_TANH, RNN_RELU, LSTM, GRU, got 'gru'"),
    ("GRU", "input", Z(3, 4), r"input: expected 3 dimensions, \[T, B, I\], got shape \[3, 4\]"),
    ("GRU", "input", Z(3, 2, 4, 1), "input: expected 3 dimensions"),
    ("GRU", "input", Z(0, 2, 4), "input: expected at least one time step"),
    ("GRU", "input", Z(3, 2, 6), r"w_ih: expected shape \[15, 6\], got \[15, 4\]"),
    ("GRU", "input", Z(3, 7, 4), r"h0: expected shape \[2, 7, 5\], got \[2, 2, 5\]"),
    ("GRU", "input", Z(3, 2, 4).double(), "w_ih: expected dtype Double, that of input, got Float"),
    ("GRU", "h0", Z(1, 2, 5), r"h0: expected shape \[2, 2, 5\], got \[1, 2, 5\]"),
    ("GRU", "h0", Z(2, 5), r"h0: expected shape \[2, 2, 5\], got \[2, 5\]"),
    ("GRU", "h0", Z(2, 2, 5).double(), "h0: expected dtype Float, that of input, got Double"),
    ("GRU", "c0", Z(2, 2, 5), "c0: goes with mode LSTM only, got mode GRU"),
    ("LSTM", "c0", Z(2, 2, 4), r"c0: expected shape \[2, 2, 5\], got \[2, 2, 4\]"),
    ("LSTM", "c0", Z(2, 2, 5).half(), "c0: expected dtype Float, that of input, got Half"),
    ("GRU", "lengths", Z(2), "lengths: expected dtype Long, got Float"),
    ("GRU", "lengths", Z(2, dtype=torch.int32), "lengths: expected dtype Long, got Int"),
    ("GRU", "lengths", Z(3, dtype=LONG), r"lengths: expected shape \[2\], got \[3\]"),
    ("GRU", "lengths", Z(2, 1, dtype=LONG), r"lengths: expected shape \[2\], got \[2, 1\]"),
    ("GRU", "lengths", torch.tensor([1, 4]), "lengths: expected values from 0 to T = 3, got 4 at position 1"),
    ("GRU", "lengths", torch.tensor([-1, 3]), "lengths: expected values from 0 to T = 3, got -1 at position 0"),
    ("GRU", "w_ih", Z(15), "w_ih, w_hh: expected 2 dimensions"),
    ("GRU", "w_ih", Z(14, 4), "w_ih: expected 3 . H rows for mode GRU"),
    ("GRU", "w_ih", Z(0, 4), "w_ih: expected 3 . H rows for mode GRU"),
    ("GRU", "w_hh", Z(15, 4), r"w_hh: expected shape \[15, 5\], got \[15, 4\]"),
    ("GRU", "w_hh", Z(15, 5).double(), "w_hh: expected dtype Float"),
    ("GRU", "b_ih", Z(14), r"b_ih: expected shape \[15\], got \[14\]"),
    ("GRU", "b_hh", Z(1, 15), r"b_hh: expected shape \[15\], got \[1, 15\]"),
    ("GRU", "w_hr", Z(3, 5), "w_hr: a projection goes with mode LSTM only, got mode GRU"),
    ("LSTM_PROJ", "w_hr", Z(3, 4), r"w_hr: expected shape \[3, 5\], got \[3, 4\]|w_hh: expected shape"),
    ("LSTM_PROJ", "w_hr", None, r"w_hh: expected shape \[20, 5\], got \[20, 3\]"),
    ("LSTM_PROJ", "w_hr_reverse", None, "w_hr_reverse: expected in both directions or in none"),
    ("LSTM_PROJ", "h0", Z(2, 2, 5), r"h0: expected shape \[2, 2, 3\], got \[2, 2, 5\]"),
    ("GRU", "w_ih_reverse", Z(15, 3), r"w_ih_reverse: expected shape \[15, 4\], got \[15, 3\]"),
    ("GRU", "w_hh_reverse", Z(12, 5), r"w_hh_reverse: expected shape \[15, 5\], got \[12, 5\]"),
    ("GRU", "w_hh_reverse", None, "w_hh_reverse: expected a tensor, since w_ih_reverse is given, got None"),
    ("GRU", "b_ih_reverse", Z(15).double(), "b_ih_reverse: expected dtype Float"),
    ("GRU", "b_hh_reverse", Z(5), r"b_hh_reverse: expected shape \[15\], got \[5\]"),
]
WRONG_BACKWARD = [
    ("GRU", "grad_output", Z(3, 2, 5), r"grad_output: expected shape \[3, 2, 10\], got \[3, 2, 5\]"),
    ("GRU", "grad_output", Z(3, 2, 10).double(), "grad_output: expected dtype Float"),
    ("GRU", "grad_h_n", Z(2, 2, 4), "grad_h_n: expected shape"),
    ("GRU", "grad_c_n", Z(2, 2, 5), "grad_c_n: goes with mode LSTM only, got mode GRU"),
    ("LSTM", "grad_c_n", Z(2, 5), "grad_c_n: expected shape"),
    ("GRU", "output", Z(3, 2, 9), "output: expected shape"),
    ("GRU", "output", Z(2, 3, 10).transpose(0, 1), "output: expected the contiguous result"),
    ("GRU", "saved", Z(0), "saved: expected shape"),
    ("GRU", "saved", Z(2, 3, 2, 5, 4).transpose(3, 4), "saved: expected the contiguous result of layer with train=True"),
    ("GRU", "input", Z(3, 2, 6), "w_ih: expected shape"),
]


def label(case):
    return f"{case[0]}-{case[1]}" if isinstance(case, tuple) else None


@pytest.mark.parametrize("kind, name, value, message", WRONG)
def test_wrong_arguments_are_named(kind, name, value, message):
    arguments = [*detached(small(kind)).op_arguments(), False]
    arguments[NAMES.index(name)] = value
    with pytest.raises((RuntimeError, ValueError), match=message):
        op(*arguments)


@pytest.mark.parametrize("kind, name, value, message", WRONG_BACKWARD)
def test_wrong_arguments_of_the_backward_op_are_named(kind, name, value, message):
    arguments = backward_arguments(detached(small(kind)))
    arguments[BACKWARD_NAMES.index(name)] = value
    with pytest.raises((RuntimeError, ValueError), match=message):
        op_backward(*arguments)


def test_values_out_of_range_are_value_errors():
    arguments = detached(small())
    for wrong in ({"mode": "gru"}, {"lengths": torch.tensor([9, 0])}):
        with pytest.raises(ValueError):
            op(*replace(arguments, **wrong).op_arguments(), False)


@pytest.mark.parametrize("name", ["h0", "w_ih", "w_hh_reverse"])
def test_another_device_is_an_error(name):
    """The one other device that every machine has; data must never be read from nowhere."""
    arguments = [*detached(small()).op_arguments(), False]
    arguments[NAMES.index(name)] = arguments[NAMES.index(name)].to("meta")
    with pytest.raises(RuntimeError, match="device"):
        op(*arguments)


def test_a_dtype_without_kernel_is_refused_by_the_op_and_computed_by_the_layer():
    problem = detached(small()).map(lambda t: None if t is None else t.bfloat16())
    with pytest.raises(RuntimeError, match="input: the CPU kernels are for dtypes Float and Double, got BFloat16"):
        op(*problem.op_arguments(), False)
    assert problems.results(problem)[0].dtype is torch.bfloat16


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
    problem = small(kind, T=5, B=3, lengths=True, batch_first=batch_first)
    apart = replace(problem.map(scattered), lengths=torch.stack([problem.lengths] * 2, 1)[:, 0])
    assert not any(t.is_contiguous() for t in (apart.input, apart.lengths, apart.weights[0][0], apart.cotangents[0]))
    assert all(torch.equal(a, b) for a, b in zip(problems.run(apart), problems.run(problem), strict=True))


@pytest.mark.parametrize("dim", [0, 1, 2])
@kinds
def test_expanded_tensors(kind, dim):
    """Stride 0 in the input, and in the gradient that comes in, as from output.sum()."""
    problem = small(kind, T=5, B=3)

    def expanded(t):
        first = t.detach().narrow(dim, 0, 1).expand(t.shape)
        return first.requires_grad_(t.requires_grad)

    cotangents = (expanded(problem.cotangents[0]), *problem.cotangents[1:])
    problem = replace(problem, input=expanded(problem.input), cotangents=cotangents)
    problems.check(problem)


@kinds
def test_gradient_of_a_sum(kind):
    problem = small(kind)
    ones = tuple(torch.ones(()).expand(c.shape) for c in problem.cotangents)
    problems.check(replace(problem, cotangents=ones))


@kinds
def test_batch_first_is_a_matter_of_strides(kind):
    problem = small(kind, T=5, B=3, lengths=True)
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
    problem, saved = small(kind), []

    def watch(*arguments):
        results = op(*arguments)
        saved.append(results[-1].numel())
        return results

    monkeypatch.setattr(torch.ops.birnn_ext, "layer", watch)
    with torch.no_grad():
        assert not any(t.requires_grad for t in problems.results(problem))
    with torch.inference_mode():
        assert all(t.is_inference() for t in problems.results(problem))
    frozen = small(kind, input_grad=False, weight_grad=False, state=False)
    assert all(t.grad_fn is None for t in problems.results(frozen))
    assert saved == [0, 0, 0]
    assert all(t.grad_fn is not None for t in problems.results(problem))
    assert len(saved) == 4 and (saved[3] > 0) == (not kind.startswith("RNN"))


@kinds
def test_a_graph_can_be_used_twice(kind):
    problem = small(kind)
    found, leaves = problems.results(problem), problem.leaves()
    once = torch.autograd.grad(found, leaves, problem.cotangents, retain_graph=True)
    again = torch.autograd.grad(found, leaves, problem.cotangents)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(found, leaves, problem.cotangents)


@kinds
def test_gradients_are_for_those_who_asked(kind):
    problem = small(kind, input_grad=False, weight_grad=False, state=False)
    bias = problem.weights[-1][2].requires_grad_()
    output = problems.results(problem)[0]
    output.sum().backward()
    assert bias.grad is not None and problem.input.grad is None
    assert all(w is None or w is bias or w.grad is None for direction in problem.weights for w in direction)


@pytest.mark.parametrize("name", ["input", "h0", "w_hh"])
def test_changing_what_was_saved_is_an_error(name):
    problem = small()
    tensor = problem.weights[0][1] if name == "w_hh" else getattr(problem, name)
    output = problems.results(problem)[0]
    with torch.no_grad():
        tensor.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_results_can_be_changed_in_inference():
    problem = detached(small())
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


@pytest.mark.parametrize("used", [("output",), ("h_n",), ("c_n",)], ids=lambda used: used[0])
@kinds
def test_second_and_third_derivatives_of_one_result(kind, used):
    """Gradients of gradients where the loss sees only one of the results; the third runs through the reference altogether."""
    if used == ("c_n",) and not kind.startswith("LSTM"):
        pytest.skip("no c_n")
    problem = small(kind, used=used, dtype=torch.float64)

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
    problem = detached(small())
    call, leaves = function(problem)
    pull = torch.func.vjp(call, *leaves)[1](problem.cotangents)
    exact = function(problem.double())[1]
    expected = problems.run(small().__class__(**vars(watched(problem))), reference.layer)[2:]
    oracle = problems.run(watched(problem.double()), reference.layer)[2:]
    assert len(exact) == len(pull)
    compare.check(pull, expected, oracle)


def watched(problem):
    return problem.map(lambda t: None if t is None else t.detach().clone().requires_grad_())


def test_forward_mode():
    """torch.nn has it on the CPU."""
    problem = detached(small())
    tangent = torch.randn_like(problem.input)
    with torch.autograd.forward_ad.dual_level():
        dual = replace(problem, input=torch.autograd.forward_ad.make_dual(problem.input, tangent))
        ours, expected = (
            torch.autograd.forward_ad.unpack_dual(problems.results(dual, layer)[0]).tangent
            for layer in (ops.layer, reference.layer)
        )
    compare.check(ours, expected, expected)


# ---- without the compiled library ----

WITHOUT = """
import sys, warnings
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "birnn_ext._C":
            raise ImportError("hidden by a test")
sys.meta_path.insert(0, Hide())
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import birnn_ext
text = [str(w.message) for w in seen if "birnn_ext" in str(w.message)]
assert len(text) == 1 and "hidden by a test" in text[0] and "pip install" in text[0], text
import torch
from birnn_ext import ops, reference
assert ops._C is None and not hasattr(torch.ops.birnn_ext, "layer")
module = birnn_ext.LSTM(3, 4, bidirectional=True)
theirs = torch.nn.LSTM(3, 4, bidirectional=True)
theirs.load_state_dict(module.state_dict())
x = torch.randn(5, 2, 3)
output, (h_n, c_n) = module(x, lengths=torch.tensor([5, 5]))
torch.testing.assert_close((output, (h_n, c_n)), theirs(x))
output.sum().backward()
assert module.weight_hh_l0_reverse.grad is not None
print("computed")
"""


def test_without_the_library_it_warns_and_computes():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "computed\n", done.stderr
