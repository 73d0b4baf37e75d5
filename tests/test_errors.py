"""Wrong calls, in one table: the message names the argument, what came and what was expected.

The type is torch.nn's where torch.nn raises on purpose; nothing has been changed when the error comes. Errors of
construction and torch.nn's exact texts: test_module_errors.py. Errors of the ops themselves: test_ops.py.
"""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import birnn_ext

X, H = torch.randn(5, 2, 3), torch.zeros(2, 2, 4)
PACKED = pack_sequence([X[:, 0], X[:3, 1]])
LONG = torch.int64


def packed(rows, sizes, *indices):
    return PackedSequence(torch.randn(rows, 3), torch.tensor(sizes), *map(torch.tensor, indices))


def parameter(*shape, **options):
    return nn.Parameter(torch.randn(*shape, **options))


def weight(name, value, **options):
    """(arguments of the call, what is done to the layer before)"""

    def change(layer):
        layer._parameters[name] = value  # setattr refuses some of these by itself

    return (X.to(options.get("dtype", torch.float32)),), change, options


# name: (layer, arguments, exception, parts of the message)
CALLS = {
    # the input
    "rank_0": ("GRU", (torch.tensor(1.0),), ValueError, ["input", "2D or 3D", "0D"]),
    "rank_1": ("LSTM", (X[0, 0],), ValueError, ["input", "2D or 3D", "1D"]),
    "rank_4": ("RNN", (X[None],), ValueError, ["input", "2D or 3D", "4D"]),
    "none": ("GRU", (None,), TypeError, ["input", "Tensor or a PackedSequence", "NoneType"]),
    "list": ("GRU", ([[1.0, 2.0, 3.0]],), TypeError, ["input", "Tensor or a PackedSequence", "list"]),
    "array": ("LSTM", (np.zeros((5, 2, 3)),), TypeError, ["input", "Tensor or a PackedSequence", "ndarray"]),
    "missing": ("GRU", (), TypeError, ["input"]),
    "features": ("GRU", (torch.randn(5, 2, 4),), RuntimeError, ["input_size", "Expected 3", "got 4"]),
    "features_unbatched": ("RNN", (torch.randn(5, 2),), RuntimeError, ["input_size", "Expected 3", "got 2"]),
    "no_features": ("GRU", (torch.randn(5, 2, 0),), RuntimeError, ["input_size", "Expected 3", "got 0"]),
    "double": ("LSTM", (X.double(),), ValueError, ["input dtype", "torch.float64", "torch.float32"]),
    "half": ("RNN", (X.half(),), ValueError, ["input dtype", "torch.float16", "torch.float32"]),
    "integers": ("GRU", (X.long(),), ValueError, ["input dtype", "torch.int64", "torch.float32"]),
    "bools": ("GRU", (X > 0,), ValueError, ["input dtype", "torch.bool", "torch.float32"]),
    "complex": ("GRU", (X.cfloat(),), ValueError, ["input dtype", "torch.complex64", "torch.float32"]),
    "no_steps": ("GRU", (X[:0],), RuntimeError, ["sequence length", "larger than 0"]),
    "device": ("GRU", (X.to("meta"),), RuntimeError, ["Input and parameter", "input tensor at meta", "tensor at cpu"]),
    "sparse": ("LSTM", (X.to_sparse(),), RuntimeError, ["input", "torch.strided", "torch.sparse_coo"]),
    # states
    "h_rank": ("GRU", (X, H[0]), RuntimeError, ["hx", "3-D", "2-D tensor"]),
    "h_rank_unbatched": ("RNN", (X[:, 0], H), RuntimeError, ["hx", "2-D", "3-D tensor"]),
    "h_directions": ("GRU", (X, H[:1]), RuntimeError, ["hidden size", "(2, 2, 4)", "[1, 2, 4]"]),
    "h_rows": ("RNN", (X, torch.zeros(2, 3, 4)), RuntimeError, ["hidden size", "(2, 2, 4)", "[2, 3, 4]"]),
    "h_units": ("GRU", (X, torch.zeros(2, 2, 5)), RuntimeError, ["hidden size", "(2, 2, 4)", "[2, 2, 5]"]),
    "h_units_unbatched": ("GRU", (X[:, 0], torch.zeros(2, 5)), RuntimeError, ["hidden size", "[2, 1, 5]"]),
    "h_and_c_for_gru": ("GRU", (X, (H, H)), TypeError, ["hx", "Tensor or None", "tuple"]),
    "h_dict": ("RNN", (X, {"h": H}), TypeError, ["hx", "Tensor or None", "dict"]),
    "h_number": ("GRU", (X, 0), TypeError, ["hx", "Tensor or None", "int"]),
    "h_alone_for_lstm": ("LSTM", (X, H), TypeError, ["hx", "tuple (h_0, c_0)", "Tensor"]),
    "h_of_three": ("LSTM", (X, (H, H, H)), RuntimeError, ["two hidden states", "got 3"]),
    "h_without_c": ("LSTM", (X, (H, None)), TypeError, ["hx", "two Tensors", "(Tensor, NoneType)"]),
    "c_units": ("LSTM", (X, (H, torch.zeros(2, 2, 5))), RuntimeError, ["hidden[1]", "(2, 2, 4)", "[2, 2, 5]"]),
    "c_rank": ("LSTM", (X, (H, H[0])), RuntimeError, ["hx and cx", "3-D", "(3-D, 2-D)"]),
    "h_dtype": ("GRU", (X, H.double()), RuntimeError, ["hidden", "torch.float32", "torch.float64"]),
    "c_dtype": ("LSTM", (X, (H, H.half())), RuntimeError, ["hidden", "torch.float32", "torch.float16"]),
    "h_integers": ("RNN", (X, H.long()), RuntimeError, ["hidden", "torch.float32", "torch.int64"]),
    "h_device": ("GRU", (X, H.to("meta")), RuntimeError, ["hidden", "input tensor at cpu", "tensor at meta"]),
    # lengths
    "too_long": ("GRU", (X, None, [5, 6]), ValueError, ["lengths", "between 0 and 5", "got 6 for row 1"]),
    "negative": ("LSTM", (X, None, torch.tensor([-1, 5])), ValueError, ["lengths", "between 0 and 5", "got -1 for row 0"]),
    "beyond_int64": ("GRU", (X, None, [2**70, 1]), ValueError, ["lengths", "between 0 and 5", f"got {2**70} for row 0"]),
    "nan": ("GRU", (X, None, torch.tensor([torch.nan, 2])), TypeError, ["lengths", "integers", "torch.float32"]),
    "floats": ("RNN", (X, None, [5.0, 2.0]), TypeError, ["lengths", "integers", "float at position 0"]),
    "bool_lengths": ("GRU", (X, None, [True, False]), TypeError, ["lengths", "integers", "bool at position 0"]),
    "none_inside": ("GRU", (X, None, [5, None]), TypeError, ["lengths", "integers", "NoneType at position 1"]),
    "array_of_floats": ("GRU", (X, None, np.array([5.0, 2.0])), TypeError, ["lengths", "integers", "torch.float64"]),
    "text": ("GRU", (X, None, "52"), TypeError, ["lengths", "list of integers", "str"]),
    "set": ("GRU", (X, None, {5, 2}), TypeError, ["lengths", "list of integers", "set"]),
    "one_number": ("GRU", (X, None, 5), TypeError, ["lengths", "list of integers", "int"]),
    "too_few": ("GRU", (X, None, [5]), ValueError, ["lengths", "(2,)", "(1,)"]),
    "too_many": ("LSTM", (X, None, [5, 5, 5]), ValueError, ["lengths", "(2,)", "(3,)"]),
    "no_lengths": ("GRU", (X, None, []), ValueError, ["lengths", "(2,)", "(0,)"]),
    "two_dimensions": ("GRU", (X, None, torch.ones(1, 2, dtype=LONG)), ValueError, ["lengths", "(2,)", "(1, 2)"]),
    "lengths_without_data": (
        "GRU", (X, None, torch.ones(2, dtype=LONG, device="meta")), RuntimeError, ["lengths", "cpu", "meta"],
    ),
    "unbatched_too_long": ("GRU", (X[:, 0], None, 6), ValueError, ["lengths", "between 0 and 5", "got 6"]),
    "unbatched_two": ("RNN", (X[:, 0], None, [1, 2]), ValueError, ["lengths", "(1,)", "(2,)"]),
    # PackedSequence
    "packed_and_lengths": ("GRU", (PACKED, None, [5, 3]), ValueError, ["lengths", "None", "PackedSequence"]),
    "packed_features": ("LSTM", (pack_sequence([torch.randn(5, 4)]),), RuntimeError, ["input_size", "Expected 3", "got 4"]),
    "packed_rank": ("GRU", (PackedSequence(torch.randn(3), torch.tensor([2, 1])),), RuntimeError, ["input", "2", "got 1"]),
    "packed_dtype": ("GRU", (pack_sequence([X[:, 0].double()]),), ValueError, ["input dtype", "float64", "float32"]),
    "packed_h": ("GRU", (PACKED, torch.zeros(2, 3, 4)), RuntimeError, ["hidden size", "(2, 2, 4)", "[2, 3, 4]"]),
    "packed_growing": ("GRU", (packed(8, [2, 1, 2, 1, 2]),), RuntimeError, ["batch_sizes", "never grow", "[2, 1, 2, 1, 2]"]),
    "packed_sum": ("LSTM", (packed(8, [2, 2, 2]),), RuntimeError, ["batch_sizes", "8 rows", "sum 6"]),
    "packed_floats": ("GRU", (packed(3, [2.0, 1.0]),), TypeError, ["batch_sizes", "integers", "torch.float32"]),
    "packed_empty": ("GRU", (PackedSequence(X[0, :0], torch.ones(0, dtype=LONG)),), RuntimeError, ["batch_sizes", "got []"]),
    "packed_order": ("GRU", (packed(3, [2, 1], [0, 1, 2], [0, 1, 2]),), RuntimeError, ["indices", "2 rows once", "[0, 1, 2]"]),
    "packed_order_beyond": ("RNN", (packed(3, [2, 1], [0, 5], [0, 5]),), RuntimeError, ["indices", "2 rows once", "[0, 5]"]),
}  # fmt: skip

# name: (what is done to the layer, exception, parts of the message)
WEIGHTS = {
    "w_hh_columns": (weight("weight_hh_l0", parameter(12, 5)), RuntimeError, ["weight_hh_l0", "[12, 4]", "[12, 5]"]),
    "w_ih_columns": (
        weight("weight_ih_l1_reverse", parameter(12, 4)), RuntimeError, ["weight_ih_l1_reverse", "[12, 8]", "[12, 4]"],
    ),
    "w_ih_rows": (weight("weight_ih_l0", parameter(13, 3)), RuntimeError, ["weight_ih_l0", "[12, 3]", "[13, 3]"]),
    "w_rank": (weight("weight_hh_l0", parameter(12)), RuntimeError, ["weight_hh_l0", "[12, 4]", "[12]"]),
    "bias": (weight("bias_hh_l1", parameter(13)), RuntimeError, ["bias_hh_l1", "[12]", "[13]"]),
    "w_dtype": (weight("weight_hh_l0", parameter(12, 4).double()), RuntimeError, ["weight_hh_l0", "float32", "float64"]),
    "bias_dtype": (
        weight("bias_ih_l0_reverse", parameter(12).half()), RuntimeError, ["bias_ih_l0_reverse", "float32", "float16"],
    ),
    "w_device": (weight("weight_hh_l1", parameter(12, 4, device="meta")), RuntimeError, ["weight_hh_l1", "cpu", "meta"]),
    "w_none": (weight("weight_hh_l0", None), TypeError, ["weight_hh_l0", "[12, 4]", "NoneType"]),
    "w_shape_bfloat16": (
        weight("weight_hh_l0", parameter(12, 5).bfloat16(), dtype=torch.bfloat16), RuntimeError,
        ["weight_hh_l0", "[12, 4]", "[12, 5]"],
    ),
    "w_dtype_bfloat16": (
        weight("weight_hh_l0", parameter(12, 4), dtype=torch.bfloat16), RuntimeError, ["weight_hh_l0", "bfloat16", "float32"],
    ),
}  # fmt: skip


def frozen(values):
    """The numbers behind tensors and nests of them, to see later whether they changed."""
    found = [v for v in torch.utils._pytree.tree_leaves(values) if isinstance(v, torch.Tensor)]
    return pickle.dumps([v.tolist() for v in found if not v.is_meta and v.layout is torch.strided])


def test_there_are_more_than_fifty():
    assert len(CALLS) + len(WEIGHTS) >= 50


@pytest.mark.parametrize("name", CALLS)
def test_wrong_calls(name):
    kind, arguments, exception, parts = CALLS[name]
    layer = getattr(birnn_ext, kind)(3, 4, bidirectional=True)
    before = frozen([layer.state_dict(), arguments])
    with pytest.raises(exception) as caught:
        layer(*arguments)
    assert type(caught.value) is exception
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert frozen([layer.state_dict(), arguments]) == before
    assert layer(X)[0].isfinite().all()


# Where torch.nn fails by accident, from within, ours says what is wrong, as an error of the kind.
ACCIDENTS = (AttributeError, IndexError)


@pytest.mark.parametrize("name", [n for n, (_, arguments, *_) in CALLS.items() if len(arguments) < 3])
def test_torch_raises_the_same_type(name):
    kind, arguments, exception, _ = CALLS[name]
    try:
        getattr(nn, kind)(3, 4, bidirectional=True)(*arguments)
    except ACCIDENTS:
        return
    except Exception as theirs:  # noqa: BLE001
        assert issubclass(exception, type(theirs)) or name == "h_alone_for_lstm", f"torch: {theirs!r}"
    else:
        assert name in ("packed_sum", "packed_features"), "torch takes it"


@pytest.mark.parametrize("name", WEIGHTS)
def test_replaced_weights(name):
    (arguments, change, options), exception, parts = WEIGHTS[name]
    layer = birnn_ext.GRU(3, 4, 2, bidirectional=True).to(options.get("dtype", torch.float32))
    change(layer)
    for given in (arguments[0], pack_sequence([arguments[0][:, 0]])):
        with pytest.raises(exception) as caught:
            layer(given)
        for part in parts:
            assert part in str(caught.value), str(caught.value)
    with torch.no_grad(), pytest.raises(exception, match=parts[0]):
        layer(*arguments)


def test_other_failures_are_left_as_they_are(monkeypatch):
    """An error of the computation itself comes through unchanged."""
    layer = copy.deepcopy(birnn_ext.GRU(3, 4))

    def fails(*arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("birnn_ext.base.birnn", fails)
    for given in (X, PACKED):
        with pytest.raises(RuntimeError, match="^out of memory$"):
            layer(given)
