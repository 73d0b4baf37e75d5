"""The two compiled ops as torch sees them: schemas, fake tensors, argument errors, and life without the library.

Not here: numbers by size, instruction set and thread (tests/cpu), and the differentiable call (test_layer.py).
"""

import os
import subprocess
import sys
from dataclasses import replace

import problems
import pytest
import torch

from birnn_ext import ops

pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")
op, op_backward = torch.ops.birnn_ext.layer, torch.ops.birnn_ext.layer_backward
op_into = torch.ops.birnn_ext.layer_into
kinds = pytest.mark.parametrize("kind", problems.KINDS)

CONFIGURATIONS = {
    "plain": {},
    "one_direction": {"D": 1},
    "lengths": {"lengths": True},
    "batch_first": {"batch_first": True, "dtype": torch.float64},
    "bare": {"bias": False, "state": False},
}
configurations = pytest.mark.parametrize("name", CONFIGURATIONS)


def small(kind="GRU", **options):
    return problems.small(kind, **options).detach()


def backward_arguments(problem, need_input=True, need_weights=True, need_state=True):
    output, *_, saved = op(*problem.op_arguments(), True)
    cotangents = (*problem.cotangents, None)[:3]
    return [*cotangents, *problem.op_arguments(), output, saved, need_input, need_state, need_weights]


# ---- what torch itself checks of an op ----


@configurations
@kinds
def test_opcheck(kind, name):
    problem = small(kind, **CONFIGURATIONS[name])
    torch.library.opcheck(op.default, (*problem.op_arguments(), name != "bare"))


@configurations
@kinds
def test_opcheck_backward(kind, name):
    problem = small(kind, **CONFIGURATIONS[name])
    needs = {"one_direction": (False, True), "bare": (True, False), "lengths": (True, True, False)}.get(name, (True, True))
    torch.library.opcheck(op_backward.default, backward_arguments(problem, *needs))


@configurations
@kinds
def test_opcheck_gates_backward(kind, name):
    problem = small(kind, **CONFIGURATIONS[name])
    torch.library.opcheck(torch.ops.birnn_ext.layer_gates_backward.default, backward_arguments(problem)[:-3])


@pytest.mark.parametrize("name", ["plain", "lengths", "batch_first"])
@kinds
def test_gradients_of_gates_are_what_those_of_biases_are_sums_of(kind, name):
    problem = small(kind, **{"dtype": torch.float64, **CONFIGURATIONS[name]})
    arguments = backward_arguments(problem)
    gates, grad_h0, grad_c0 = torch.ops.birnn_ext.layer_gates_backward(*arguments[:-3])
    _, of_h0, of_c0, *of_weights = op_backward(*arguments)
    assert torch.equal(grad_h0, of_h0) and torch.equal(grad_c0, of_c0)
    G = problems.GATES[problem.mode]
    for d in range(2):
        columns = gates[d].sum((0, 1)).flatten()  # [C * H]; GRU: n_x r z n_h
        H = columns.numel() // gates.size(3)
        of_x = torch.cat((columns[H : 3 * H], columns[:H])) if problem.mode == "GRU" else columns
        torch.testing.assert_close(of_x, of_weights[5 * d + 2])
        torch.testing.assert_close(columns[-G * H :], of_weights[5 * d + 3])


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@kinds
def test_meta_tensors_have_the_shapes_of_real_ones(kind, batch_first, D):
    problem = small(kind, batch_first=batch_first, D=D)
    meta = problem.map(lambda t: None if t is None else t.to("meta"))
    for train in (False, True):
        real, fake = op(*problem.op_arguments(), train), op(*meta.op_arguments(), train)
        assert [(t.shape, t.stride()) for t in real] == [(t.shape, t.stride()) for t in fake]
    for needs in ((True, True), (False, True), (True, False), (True, True, False)):
        real, fake = (op_backward(*backward_arguments(p, *needs)) for p in (problem, meta))
        assert [t.shape for t in real] == [t.shape for t in fake]


def into_arguments(problem, row=0, rows=None):
    """Those of layer_into, with room for `rows` rows of states, filled with NaN."""
    *_, h_n, c_n, _ = op(*problem.op_arguments(), False)
    room = [s.new_full((rows or row + s.size(0), *s.shape[1:]), torch.nan) if s.numel() else None for s in (h_n, c_n)]
    return [*problem.op_arguments(), True, *room, row]


@configurations
@kinds
def test_opcheck_into(kind, name):
    arguments = into_arguments(small(kind, **CONFIGURATIONS[name]), row=1, rows=4)
    for states in arguments[-3:-1]:
        if states is not None:
            states.zero_()  # opcheck takes NaN for unequal to itself
    torch.library.opcheck(op_into.default, arguments)


@pytest.mark.parametrize("row", [0, 3])
@kinds
def test_into_writes_its_rows_and_no_others(kind, row):
    problem = small(kind)
    *_, h_n, c_n, row = arguments = into_arguments(problem, row, rows=7)
    output, saved = op_into(*arguments)
    expected = op(*problem.op_arguments(), True)
    assert torch.equal(output, expected[0]) and torch.equal(saved, expected[3])
    for states, wanted in ((h_n, expected[1]), (c_n, expected[2])):
        if states is not None:
            assert torch.equal(states[row : row + 2], wanted)
            states[row : row + 2] = torch.nan
            assert states.isnan().all()


def test_gradients_that_are_not_needed_are_left_out():
    problem = small("LSTM")
    everything = op_backward(*backward_arguments(problem))
    for needs, left_out in (
        ({"need_input": False}, [0]),
        ({"need_state": False}, [1, 2]),
        ({"need_weights": False}, range(3, 13)),
    ):
        some = op_backward(*backward_arguments(problem, **needs))
        for i, (a, b) in enumerate(zip(some, everything, strict=True)):
            assert a.numel() == 0 if i in left_out else torch.equal(a, b)


# ---- wrong arguments: (problem, position or name of the argument, what to put there, what the message says) ----

NAMES = ["input", "h0", "c0", "lengths", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr"]
NAMES += [f"{w}_reverse" for w in NAMES[4:]] + ["mode", "batch_first"]
BACKWARD_NAMES = ["grad_output", "grad_h_n", "grad_c_n", *NAMES, "output", "saved", "need_input", "need_state", "need_weights"]
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
    ("GRU", "lengths", Z(3, dtype=LONG), r"lengths: expected shape \[2\], or \[2, 3\] for episodes, got \[3\]"),
    ("GRU", "lengths", Z(2, 1, dtype=LONG), r"lengths: expected shape \[2\], or .*, got \[2, 1\]"),
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
    ("GRU", "saved", Z(0), "saved: expected shape"),
    ("GRU", "input", Z(3, 2, 6), "w_ih: expected shape"),
]
WRONG_INTO = [  # (problem, name, what to put there, what the message says)
    ("GRU", "row", 1, r"h_n: expected shape \[rows, 2, 5\] with at least 2 rows from row 1 on, got \[2, 2, 5\]"),
    ("GRU", "row", -1, "h_n: expected shape"),
    ("GRU", "h_n", Z(2, 2, 4), r"h_n: expected shape \[2, 2, 5\], got \[2, 2, 4\]"),
    ("GRU", "h_n", Z(2, 2), "h_n: expected shape"),
    ("GRU", "h_n", Z(2, 2, 5).double(), "h_n: expected dtype Float, that of input, got Double"),
    ("GRU", "h_n", Z(2, 5, 2).transpose(1, 2), "h_n, c_n: expected contiguous tensors"),
    ("GRU", "c_n", Z(2, 2, 5), "c_n: expected a tensor with mode LSTM and None else, got a tensor with mode GRU"),
    ("LSTM", "c_n", None, "c_n: expected a tensor with mode LSTM and None else, got None with mode LSTM"),
    ("LSTM", "c_n", Z(4, 2, 5), r"c_n: expected shape \[2, 2, 5\], got \[4, 2, 5\]"),
]


wrong = "kind, name, value, message"


@pytest.mark.parametrize(wrong, WRONG, ids=[f"{kind}-{name}-{i}" for i, (kind, name, *_) in enumerate(WRONG)])
def test_wrong_arguments_are_named(kind, name, value, message):
    arguments = [*small(kind).op_arguments(), False]
    arguments[NAMES.index(name)] = value
    with pytest.raises((RuntimeError, ValueError), match=message):
        op(*arguments)


@pytest.mark.parametrize(wrong, WRONG_BACKWARD, ids=[f"{case[1]}-{i}" for i, case in enumerate(WRONG_BACKWARD)])
def test_wrong_arguments_of_the_backward_op_are_named(kind, name, value, message):
    arguments = backward_arguments(small(kind))
    arguments[BACKWARD_NAMES.index(name)] = value
    with pytest.raises((RuntimeError, ValueError), match=message):
        op_backward(*arguments)


@pytest.mark.parametrize(wrong, WRONG_INTO, ids=[f"{case[1]}-{i}" for i, case in enumerate(WRONG_INTO)])
def test_wrong_arguments_of_the_op_into_are_named(kind, name, value, message):
    arguments = into_arguments(small(kind))
    arguments[[*NAMES, "train", "h_n", "c_n", "row"].index(name)] = value
    with pytest.raises(RuntimeError, match=message):
        op_into(*arguments)


def test_values_out_of_range_are_value_errors():
    arguments = small()
    for wrong in ({"mode": "gru"}, {"lengths": torch.tensor([9, 0])}):
        with pytest.raises(ValueError):
            op(*replace(arguments, **wrong).op_arguments(), False)


@pytest.mark.parametrize("name", ["h0", "w_ih", "w_hh_reverse"])
def test_another_device_is_an_error(name):
    """The one other device that every machine has; data must never be read from nowhere."""
    arguments = [*small().op_arguments(), False]
    arguments[NAMES.index(name)] = arguments[NAMES.index(name)].to("meta")
    with pytest.raises(RuntimeError, match="device"):
        op(*arguments)


def test_a_dtype_without_kernel_is_refused_by_the_op_and_computed_by_the_reference():
    problem = (small()).map(lambda t: None if t is None else t.to(torch.complex64))
    with pytest.raises(RuntimeError, match="input: .* are for dtypes Float, Double, Half and BFloat16, got Complex"):
        op(*problem.op_arguments(), False)
    assert problems.results(problem)[0].dtype is torch.complex64


def test_the_results_of_layer_may_come_back_in_another_layout():
    """As they do under vmap."""
    arguments = backward_arguments(small("LSTM"))
    expected = op_backward(*arguments)
    for name in ("output", "saved", "grad_output", "grad_h_n"):
        i = BACKWARD_NAMES.index(name)
        arguments[i] = arguments[i].permute(*reversed(range(arguments[i].dim()))).contiguous()
        arguments[i] = arguments[i].permute(*reversed(range(arguments[i].dim())))
        assert not arguments[i].is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(op_backward(*arguments), expected, strict=True))


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
assert len(text) == 1 and "hidden by a test" in text[0] and "build_ext --inplace" in text[0], text
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


@pytest.mark.parametrize("mode", ops.SAVED)
def test_the_facts_that_the_fakes_know_are_those_of_the_cells(mode):
    H, G = 3, ops.GATES[mode]
    weights = (torch.zeros(G * H, 2), torch.zeros(G * H, H), *[None] * 8)
    *_, saved = torch.ops.birnn_ext.layer(torch.zeros(4, 5, 2), None, None, None, *weights, mode, False, True)
    assert saved.shape == (1, 4, 5, ops.SAVED[mode], H)


def test_devices_and_dtypes_with_kernels():
    assert ops.KERNEL_DTYPES["cpu"] == (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    assert ("cuda" in ops.KERNEL_DTYPES) == bool(ops._C.cuda_archs)
    assert ops.has_kernel(torch.zeros(1)) and not ops.has_kernel(torch.zeros(1, dtype=torch.complex64))
