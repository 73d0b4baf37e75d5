"""Prepacked layers compiled, exported, traced, under vmap and in inference mode; what ONNX says."""

import warnings

import compare
import pytest
import torch
from torch import nn

import birnn_ext

pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")
DTYPES = [None, torch.bfloat16]


@pytest.fixture(autouse=True)
def no_grad(guard):
    with torch.no_grad():
        yield


def layers(mode="GRU", num_layers=1):
    """(torch.nn's layer, ours) with equal weights, outside training."""
    theirs, ours = compare.pair(mode, 5, 9, num_layers, bidirectional=True)
    return theirs.eval(), ours.eval()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_and_exported(dtype):
    _, ours = layers("LSTM", 2)
    fast, x = birnn_ext.prepack(ours, dtype), torch.randn(4, 3, 5)
    compiled = torch.compile(fast, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), fast(x))
    torch.testing.assert_close(compiled(x[:3, :2]), fast(x[:3, :2]))
    T, B = torch.export.Dim("T", min=1, max=100), torch.export.Dim("B", min=1, max=100)
    program = torch.export.export(fast, (x,), dynamic_shapes=({0: T, 1: B},))
    y = torch.randn(7, 2, 5)
    torch.testing.assert_close(program.module()(y), fast(y))


def test_inference_mode_and_fake_tensors():
    _, ours = layers()
    x = torch.randn(4, 3, 5)
    with torch.inference_mode():
        fast = birnn_ext.prepack(ours)
        inside = fast(x)[0]
    assert torch.equal(fast(x)[0], inside)
    meta = torch.ops.birnn_ext.packed_layer(
        x.to("meta"), None, None, None, torch.empty(64, dtype=torch.uint8, device="meta"), None, "LSTM", False, 9, 4
    )
    assert [t.shape for t in meta] == [(4, 3, 4), (1, 3, 4), (1, 3, 9)]


def test_onnx_wants_the_original():
    model = nn.Sequential(birnn_ext.prepack(layers()[1]))
    with pytest.raises(ValueError, match="onnx_export: layer '0' is prepacked: export the one that it was made of"):
        birnn_ext.onnx_export(model, (torch.randn(4, 3, 5),))


def test_traced():
    _, ours = layers("LSTM")
    fast, x = birnn_ext.prepack(ours), torch.randn(4, 3, 5)
    traced = torch.jit.trace(fast, (x,))
    y = torch.randn(6, 2, 5)
    torch.testing.assert_close(traced(y), fast(y))
    before = fast(y)[0]
    fast.load_state_dict(birnn_ext.LSTM(5, 9, bidirectional=True).state_dict())
    torch.testing.assert_close(traced(y), fast(y))
    assert not torch.equal(fast(y)[0], before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_layer_in_bfloat16(dtype):
    _, ours = layers("LSTM", 2)
    fast, x = birnn_ext.prepack(ours.bfloat16(), dtype), torch.randn(4, 3, 5, dtype=torch.bfloat16)
    y = torch.randn(7, 2, 5, dtype=torch.bfloat16)
    T, B = torch.export.Dim("T", min=1, max=100), torch.export.Dim("B", min=1, max=100)
    compiled = torch.compile(fast, fullgraph=True, dynamic=True, backend="aot_eager")
    exported = torch.export.export(fast, (x,), dynamic_shapes=({0: T, 1: B},)).module()
    traced = torch.jit.trace(fast, (x,))
    for made in (compiled, exported, traced):
        for found, expected in zip(made(y)[1], fast(y)[1], strict=True):
            assert torch.equal(found, expected)
    several = torch.randn(2, 4, 3, 5, dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it is slow
        found = torch.func.vmap(lambda x: fast(x)[0])(several)
    assert torch.equal(found, torch.stack([fast(part)[0] for part in several]))


def test_vmap():
    _, ours = layers()
    fast, x = birnn_ext.prepack(ours), torch.randn(2, 4, 3, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it is slow
        found = torch.func.vmap(lambda x: fast(x)[0])(x)
    torch.testing.assert_close(found, torch.stack([fast(part)[0] for part in x]))
