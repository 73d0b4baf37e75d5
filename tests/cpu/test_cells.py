"""The gate functions and the cell equations, apart from what is done with them: no time, no products to speak of.

Gate functions are held to 200-bit values (mpmath), the equations to formulas written out in numpy. Not here: T > 1,
sizes around the vector width, and derivatives of the equations, which need the whole backward pass (test_isa.py).
"""

import struct

import mpmath
import numpy as np
import problems
import pytest
import torch

_C = pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")

mpmath.mp.prec = 200
EXACT = {"exp": mpmath.exp, "tanh": mpmath.tanh, "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x))}
# As csrc/cpu/simd_math.h states them: absolute errors of what is at most 1.
BOUND = {"float32": 1.2e-7, "float64": 4e-16}
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
# Where exp stays within normal numbers; its callers clamp.
EXP_LIMIT = {"float32": 80.0, "float64": 700.0}

dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
functions = pytest.mark.parametrize("name", ["sigmoid", "tanh"])


def points(dtype, limit):
    """Numbers of this dtype in [-limit, limit]: dense, near zero, near the seams of the formulas, and at the ends."""
    rng = np.random.default_rng(0)
    seams = [0.625, 0.6249999, 0.6250001, np.log(2) / 2, np.log(2), 7.90531, 7.9054, 8, 9, 20, 22, 22.1, limit]
    positive = np.concatenate([rng.uniform(0, 10, 400), rng.uniform(0, limit, 300), 10 ** rng.uniform(-20, 0, 100), seams])
    positive = positive[positive <= limit]
    return np.concatenate([[0.0], positive, -positive]).astype(dtype).astype(float)


def errors(name, dtype, x):
    """(our value - exact value, exact value) at each point."""
    exact = [EXACT[name](mpmath.mpf(float(v))) for v in x]
    found = _C.gate_function(name, dtype, list(x))
    differences = np.array([float(mpmath.mpf(f) - e) for f, e in zip(found, exact, strict=True)])
    return differences, np.array([float(e) for e in exact])


@dtypes
@functions
def test_gate_functions_are_as_near_as_stated(isa, name, dtype):
    difference, _ = errors(name, dtype, points(dtype, 100.0))
    assert np.abs(difference).max() <= BOUND[dtype]


@dtypes
def test_exp_is_within_an_ulp(isa, dtype):
    difference, exact = errors("exp", dtype, points(dtype, EXP_LIMIT[dtype]))
    assert (np.abs(difference) / exact).max() <= EPS[dtype]


@dtypes
def test_tanh_keeps_relative_precision_near_zero(isa, dtype):
    """A small pre-activation is its own tanh: an error that is small only against 1 would wipe it out."""
    x = points(dtype, 100.0)
    x = x[(np.abs(x) < 0.5) & (x != 0)]
    difference, exact = errors("tanh", dtype, x)
    assert (np.abs(difference) / np.abs(exact)).max() <= 8 * EPS[dtype]


@dtypes
@functions
@pytest.mark.parametrize("x", [50.0, 89.0, 710.0, 1e30, "largest", np.inf])
def test_saturates(isa, name, dtype, x):
    x = float(np.finfo(dtype).max) if x == "largest" else x
    high, low = _C.gate_function(name, dtype, [x, -x])
    assert abs(high - 1) <= BOUND[dtype]
    assert abs(low - (0 if name == "sigmoid" else -1)) <= BOUND[dtype]
    assert 0 <= low if name == "sigmoid" else -1 <= low
    assert high <= 1


@dtypes
@functions
def test_never_leaves_its_range(isa, name, dtype):
    """1 - n^2 and 1 - z must not change sign: gradients would."""
    y = np.array(_C.gate_function(name, dtype, list(np.linspace(-100, 100, 20001).astype(dtype).astype(float))))
    assert y.max() <= 1 and y.min() >= (0 if name == "sigmoid" else -1)


@dtypes
@functions
def test_nan_stays_nan(isa, name, dtype):
    values = _C.gate_function(name, dtype, [np.nan, -np.nan, 1.0, np.nan])
    assert [np.isnan(v) for v in values] == [True, True, False, True]


def nan_with_payload(dtype, payload):
    form, quiet = ("<f", 0x7FC00000) if dtype == "float32" else ("<d", 0x7FF8000000000000)
    return struct.unpack(form, (quiet | payload).to_bytes(struct.calcsize(form), "little"))[0]


@dtypes
@functions
@pytest.mark.parametrize("payload", [1, 1954, 0x7FF], ids=["1", "NA_of_R", "all_ones"])
def test_nan_with_payload_stays_nan(isa, name, dtype, payload):
    """exp builds 2^n in the bits of a number, where a NaN has its payload; R writes missing values as such a NaN."""
    assert np.isnan(_C.gate_function(name, dtype, [nan_with_payload(dtype, payload)])).all()


@dtypes
def test_signed_zero_and_denormals(isa, dtype):
    tiny = float(np.finfo(dtype).smallest_subnormal)
    assert _C.gate_function("sigmoid", dtype, [0.0, -0.0, tiny, -tiny]) == [0.5] * 4
    assert [str(v) for v in _C.gate_function("tanh", dtype, [0.0, -0.0])] == ["0.0", "-0.0"]
    assert np.abs(np.array(_C.gate_function("tanh", dtype, [tiny, -tiny]))).max() <= tiny


@dtypes
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 15, 16, 17, 33])
def test_any_count(isa, dtype, count):
    """The hook itself: a partial last vector."""
    x = list(np.linspace(-3, 3, count))
    assert np.allclose(_C.gate_function("tanh", dtype, x), np.tanh(x), atol=1e-6)


def test_hook_names_its_choices():
    with pytest.raises(ValueError, match="name: expected exp, sigmoid or tanh, got 'cosh'"):
        _C.gate_function("cosh", "float32", [0.0])
    with pytest.raises(ValueError, match="dtype: expected float32 or float64, got 'float16'"):
        _C.gate_function("exp", "float16", [0.0])


# ---- the equations, written out: x = W_ih input + b_ih, h = W_hh h0 + b_hh, [B, G*H] each ----


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rnn_tanh(x, h, h0, c0):
    return np.tanh(x + h), None


def rnn_relu(x, h, h0, c0):
    return np.maximum(x + h, 0), None


def gru(x, h, h0, c0):
    (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(x, 3, 1), np.split(h, 3, 1)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    n = np.tanh(x_n + r * h_n)
    return (1 - z) * n + z * h0, None


def lstm(x, h, h0, c0):
    i, f, g, o = np.split(x + h, 4, 1)
    c = sigmoid(f) * c0 + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


EQUATIONS = {"RNN_TANH": rnn_tanh, "RNN_RELU": rnn_relu, "GRU": gru, "LSTM": lstm, "LSTM_PROJ": lstm}


def test_every_cell_is_tested():
    assert set(_C.cells()) == set(EQUATIONS) - {"LSTM_PROJ"}


@dtypes
@pytest.mark.parametrize("kind", EQUATIONS)
def test_equations(isa, kind, dtype):
    problem = problems.typical(kind, T=1, B=4, I=5, H=7, dtype=getattr(torch, dtype))
    output, h_n, *c_n = (t.detach().double().numpy() for t in problems.results(problem))
    x, h0, c0 = (None if t is None else t.detach().double().numpy() for t in (problem.input, problem.h0, problem.c0))
    for d, weights in enumerate(problem.weights):
        w_ih, w_hh, b_ih, b_hh, w_hr = (None if w is None else w.detach().double().numpy() for w in weights)
        h, c = EQUATIONS[kind](x[0] @ w_ih.T + b_ih, h0[d] @ w_hh.T + b_hh, h0[d], None if c0 is None else c0[d])
        h = h if w_hr is None else h @ w_hr.T
        near = {"rtol": 0, "atol": 40 * EPS[dtype]}
        np.testing.assert_allclose(h_n[d], h, **near)
        np.testing.assert_allclose(output[0, :, d * h.shape[1] : (d + 1) * h.shape[1]], h, **near)
        if c is not None:
            np.testing.assert_allclose(c_n[0][d], c, **near)
