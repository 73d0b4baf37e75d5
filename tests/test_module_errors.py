"""Wrong arguments: the exception of torch.nn 2.13, type and text, found by asking torch.nn itself.

Where torch.nn fails by accident (an AttributeError from inside), ours is a TypeError or RuntimeError that
names the argument; those are at the end.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import birnn_ext

NAMES = ("RNN", "GRU", "LSTM")


def failure(build):
    """The exception that `build` raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception) as caught:
            build()
    return caught.value


def same_failure(ours, theirs):
    found, expected = failure(ours), failure(theirs)
    assert (type(found), str(found)) == (type(expected), str(expected))


CONSTRUCTION = [
    ((), {}),
    ((3,), {}),
    ((0, 4), {}),
    ((-1, 4), {}),
    ((3, 0), {}),
    ((3.0, 4), {}),
    (("3", 4), {}),
    ((3, 4.0), {}),
    ((3, 4, 0), {}),
    ((3, 4, -1), {}),
    ((3, 4, 1.5), {}),
    ((3, 4), {"bias": 1}),
    ((3, 4), {"bias": None}),
    ((3, 4), {"batch_first": "yes"}),
    ((3, 4), {"dropout": True}),
    ((3, 4), {"dropout": -0.1}),
    ((3, 4), {"dropout": 1.1}),
    ((3, 4), {"dropout": float("nan")}),
    ((3, 4), {"dropout": "high"}),
    ((3, 4), {"dropout": None}),
    ((3, 4), {"proj_size": 4}),
    ((3, 4), {"proj_size": -1}),
    ((3, 4), {"nonlinearity": "sine"}),
    ((3, 4), {"hidden": 4}),
    ((3, 4), {"mode": "GRU"}),
    ((3, 4), {"dtype": torch.int64}),
    ((3, 4, 1, 1), {}),
    ((0, 0, 0), {"dropout": 3, "bias": 0}),
    ((0, 0, 0), {"bias": 0}),
]


@pytest.mark.parametrize("args, kwargs", CONSTRUCTION, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_construction(name, args, kwargs):
    same_failure(lambda: getattr(birnn_ext, name)(*args, **kwargs), lambda: getattr(nn, name)(*args, **kwargs))


@pytest.mark.parametrize("name", NAMES)
def test_dropout_of_a_single_layer_warns(name):
    texts = []
    for package in (nn, birnn_ext):
        with pytest.warns(UserWarning) as caught:
            getattr(package, name)(3, 4, dropout=0.5)
        texts.append([str(w.message) for w in caught])
    assert texts[0] == texts[1]
    assert caught[0].filename == __file__


FORWARD = {
    "rank_1": lambda m: (torch.randn(3),),
    "rank_4": lambda m: (torch.randn(2, 5, 2, 3),),
    "features": lambda m: (torch.randn(5, 2, 4),),
    "features_unbatched": lambda m: (torch.randn(5, 4),),
    "dtype": lambda m: (torch.randn(5, 2, 3).double(),),
    "dtype_integer": lambda m: (torch.ones(5, 2, 3, dtype=torch.int64),),
    "no_steps": lambda m: (torch.randn(2, 0, 3) if m.batch_first else torch.randn(0, 2, 3),),
    "no_steps_unbatched": lambda m: (torch.randn(0, 3),),
    "no_steps_no_rows": lambda m: (torch.randn(0, 0, 3),),
    "device": lambda m: (torch.randn(5, 2, 3, device="meta"),),
    "hx_rank_2": lambda m: (torch.randn(5, 2, 3), state(m, 4, 4)),
    "hx_rank_3_unbatched": lambda m: (torch.randn(5, 3), state(m, 4, 1, 4)),
    "hx_rows": lambda m: (torch.randn(4, 4, 3), state(m, 3, 4, 4)),
    "hx_batch": lambda m: (torch.randn(4, 4, 3), state(m, 4, 3, 4)),
    "hx_features": lambda m: (torch.randn(4, 4, 3), state(m, 4, 4, 5)),
    "hx_features_unbatched": lambda m: (torch.randn(4, 3), state(m, 4, 5)),
    "hx_device": lambda m: (torch.randn(4, 4, 3), state(m, 4, 4, 4, device="meta")),
    "hx_and_input": lambda m: (torch.randn(4, 4, 9), state(m, 9, 9, 9)),
    "packed_features": lambda m: (pack_sequence([torch.randn(5, 4), torch.randn(3, 4)]),),
}  # fmt: skip


def state(module, *shape, device=None):
    h = torch.zeros(shape, device=device)
    return (h, h) if module.mode == "LSTM" else h


@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("case", FORWARD)
@pytest.mark.parametrize("name", NAMES)
def test_forward(name, case, batch_first):
    options = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first}
    ours, theirs = getattr(birnn_ext, name)(3, 4, **options), getattr(nn, name)(3, 4, **options)
    if name == "LSTM" and case == "packed_features":
        text = "input.size(-1) must be equal to input_size. Expected 3, got 4"  # torch: a matrix product's text
        assert str(failure(lambda: ours(*FORWARD[case](ours)))) == text
    else:
        same_failure(lambda: ours(*FORWARD[case](ours)), lambda: theirs(*FORWARD[case](theirs)))


def test_second_state_of_an_lstm():
    for layer in (birnn_ext.LSTM(3, 4), nn.LSTM(3, 4)):
        h, c = torch.zeros(1, 2, 4), torch.zeros(1, 2, 5)
        with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(1, 2, 4\), got \[1, 2, 5\]"):
            layer(torch.randn(5, 2, 3), (h, c))
        with pytest.raises(RuntimeError, match="lstm expects two hidden states"):
            layer(torch.randn(5, 2, 3), (h, h, h))


def test_packed_hx():
    packed = pack_sequence([torch.randn(5, 3), torch.randn(3, 3)])
    for layer in (birnn_ext.GRU(3, 4), nn.GRU(3, 4)):
        with pytest.raises(RuntimeError, match=r"Expected hidden size \(1, 2, 4\), got \[1, 2, 5\]"):
            layer(packed, torch.zeros(1, 2, 5))


X = torch.zeros(5, 2, 3)
H = torch.zeros(1, 2, 4)
OWN = {
    "input_list": ("GRU", ([1.0, 2.0],), TypeError, "input should be a Tensor or a PackedSequence, got list"),
    "input_none": ("RNN", (None,), TypeError, "RNN: input should be a Tensor or a PackedSequence, got"),
    "hx_pair": ("GRU", (X, (H, H)), TypeError, "GRU: hx should be a Tensor or None, got tuple"),
    "hx_number": ("RNN", (X, 0), TypeError, "RNN: hx should be a Tensor or None, got int"),
    "hx_tensor": ("LSTM", (X, H), TypeError, "LSTM: hx should be a tuple (h_0, c_0) or None, got Tensor"),
    "hx_single": ("LSTM", (X, (H,)), RuntimeError, "lstm expects two hidden states, got 1"),
    "hx_half": ("LSTM", (X, (H, None)), TypeError, "a tuple of two Tensors, got (Tensor, NoneType)"),
    "hx_dtype": ("GRU", (X, H.double()), RuntimeError, "torch.float32 and hidden tensor with torch.float64"),
    "c_dtype": ("LSTM", (X, (H, H.double())), RuntimeError, "hidden tensors are not the same dtype"),
    "packed_and_lengths": (
        "GRU", (pack_sequence([X[:, 0]]), None, [5]), ValueError, "lengths should be None for a Packed",
    ),
    "packed_hx_pair": ("GRU", (pack_sequence([X[:, 0]]), (H, H)), TypeError, "hx should be a Tensor or None"),
}  # fmt: skip


@pytest.mark.parametrize("case", OWN)
def test_errors_that_torch_has_no_words_for(case):
    name, args, kind, text = OWN[case]
    with pytest.raises(kind) as caught:
        getattr(birnn_ext, name)(3, 4)(*args)
    assert text in str(caught.value)


def test_modes_of_birnn():
    for mode in ("gru", "", None):
        with pytest.raises(ValueError, match=f"Unrecognized RNN mode: {mode}"):
            birnn_ext.BiRNN(3, 4, mode=mode)
    for mode in ("GRU", "RNN_TANH", "RNN_RELU"):
        with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM, not RNN or GRU"):
            birnn_ext.BiRNN(3, 4, mode=mode, proj_size=2)


def test_projection_by_position():
    """torch.nn.GRU takes an eighth argument for a projection and fails when called; ours says so at once."""
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM, not RNN or GRU"):
        birnn_ext.GRU(3, 4, 1, True, False, 0.0, False, 2)
