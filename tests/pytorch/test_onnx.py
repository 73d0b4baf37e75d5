"""ONNX: the exporter writes standard nodes, and ONNX Runtime computes on them what we compute."""

import collections
import warnings

import compare
import pytest
import torch
from torch import nn
from torch.export import Dim

import birnn_ext
from birnn_ext import onnx_export
from birnn_ext.onnx import translation_table

runtime = pytest.importorskip("onnxruntime", reason="ONNX tests need onnxruntime")
pytest.importorskip("onnxscript", reason="ONNX tests need onnxscript")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.skipif(birnn_ext.ops._C is None, reason="not built")]

NODES = {"RNN_TANH": "RNN", "RNN_RELU": "RNN", "LSTM": "LSTM", "GRU": "GRU"}
T, B = Dim("T"), Dim("B")
SIZES = [(5, 4), (1, 1), (3, 7), (20, 2)]


class Flat(nn.Module):
    """(x, *rest) -> the layer's results, flat; `takes` says what the rest is."""

    def __init__(self, rnn, takes=()):
        super().__init__()
        self.rnn, self.takes = rnn, takes

    def forward(self, x, *rest):
        given = dict(zip(self.takes, rest, strict=True))
        return tuple(compare.tensors(self.rnn(x, given.get("hx"), given.get("lengths"))))


def session(program, tmp_path):
    path = str(tmp_path / "model.onnx")
    program.save(path)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def check(model, program, tmp_path, make):
    """ONNX Runtime's results on inputs of every size are ours, by the rule against float64 and our own error."""
    run, exact = session(program, tmp_path), compare.wide(model)
    names = [node.name for node in run.get_inputs()]
    for size in SIZES:
        inputs = make(*size)
        flat = torch.utils._pytree.tree_leaves(inputs)
        found = run.run(None, {name: value.numpy() for name, value in zip(names, flat, strict=True)})
        with torch.no_grad():
            ours, right = model(*inputs), exact(*map(compare.wide, inputs))
        for a, b, c in zip(found, ours, right, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, rtol=0, atol=2e-6)
            torch.testing.assert_close(b.double(), c, rtol=0, atol=2e-6)


def nodes(program):
    return [node for node in program.model.graph if node.op_type in ("RNN", "GRU", "LSTM")]


@pytest.mark.parametrize("mode", NODES)
def test_lengths_layers_and_dynamic_sizes(mode, tmp_path):
    model = Flat(birnn_ext.BiRNN(3, 4, 2, mode=mode), ("lengths",)).eval()
    example = (torch.randn(5, 4, 3), torch.tensor([5, 0, 2, 3]))
    program = onnx_export(model, example, dynamic_shapes=({0: T, 1: B}, ({0: B},)), verbose=False)
    found = nodes(program)
    assert [node.op_type for node in found] == [NODES[mode]] * 2
    for node in found:
        attributes = {name: value.value for name, value in node.attributes.items()}
        assert attributes["direction"] == "bidirectional" and attributes["hidden_size"] == 4
        assert mode != "GRU" or attributes["linear_before_reset"] == 1
        assert node.inputs[4] is not None, "sequence_lens"
    # Nothing per step, and the weights brought into ONNX's order once and for all.
    rest = collections.Counter(node.op_type for node in program.model.graph)
    assert set(rest) <= {NODES[mode], "Cast", "Transpose", "Reshape", "Concat"} and sum(rest.values()) <= 10
    check(model, program, tmp_path, lambda t, b: (torch.randn(t, b, 3), torch.arange(b) % (t + 1)))


OPTIONS = {
    "one_direction": {"bidirectional": False},
    "bare": {"bidirectional": True, "bias": False},
    "batch_first": {"bidirectional": True, "batch_first": True, "num_layers": 3},
}


@pytest.mark.parametrize("mode, options", [("GRU", "one_direction"), ("LSTM", "bare"), ("RNN_RELU", "batch_first")])
def test_options(mode, options, tmp_path):
    model = Flat(compare.OURS[mode](3, 4, **OPTIONS[options])).eval()
    program = onnx_export(model, (torch.randn(5, 4, 3),), dynamic_shapes=({0: Dim("a"), 1: Dim("b")},), verbose=False)
    check(model, program, tmp_path, lambda a, b: (torch.randn(a, b, 3),))


@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
def test_initial_states(mode, tmp_path):
    model = Flat(birnn_ext.BiRNN(3, 4, 2, mode=mode), ("hx",)).eval()
    example = (torch.randn(5, 4, 3), compare.states(model.rnn, 4))
    shapes = ({0: T, 1: B}, ((({1: B}, {1: B}) if mode == "LSTM" else {1: B}),))
    program = onnx_export(model, example, dynamic_shapes=shapes, verbose=False)
    check(model, program, tmp_path, lambda t, b: (torch.randn(t, b, 3), compare.states(model.rnn, b)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", NODES)
def test_halves(mode, dtype, tmp_path):
    """In float32 at the file's borders, since NumPy knows no bfloat16. Nor do the nodes, before opset 22."""

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = birnn_ext.BiRNN(3, 4, mode=mode).to(dtype)

        def forward(self, x, *hx):
            hx = tuple(h.to(dtype) for h in hx)
            return tuple(t.float() for t in compare.tensors(self.rnn(x.to(dtype), hx if mode == "LSTM" else hx[0])))

    model = Inside().eval()
    inputs = torch.randn(5, 4, 3), *compare.tensors(compare.states(model.rnn, 4, dtype=torch.float32))
    run = session(onnx_export(model, inputs, verbose=False), tmp_path)
    found = run.run(None, {node.name: t.numpy() for node, t in zip(run.get_inputs(), inputs, strict=True)})
    for a, b in zip(found, model(*inputs), strict=True):
        torch.testing.assert_close(torch.from_numpy(a), b, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_a_file_and_torchs_own_call(tmp_path):
    """The table alone serves those who call torch.onnx.export themselves."""
    model, x = birnn_ext.GRU(3, 4).eval(), torch.randn(5, 2, 3)
    onnx_export(model, (x,), tmp_path / "ours.onnx", verbose=False)
    torch.onnx.export(
        model, (x,), tmp_path / "torchs.onnx", dynamo=True, custom_translation_table=translation_table(), verbose=False
    )
    for name in ("ours", "torchs"):
        run = runtime.InferenceSession(str(tmp_path / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        found = run.run(None, {run.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found[0]), model(x)[0])


def test_what_onnx_cannot_say():
    model = nn.ModuleDict({"tagger": birnn_ext.LSTM(3, 4, proj_size=2)})
    with pytest.raises(ValueError, match="layer 'tagger' has proj_size=2, but ONNX has no LSTM with a projection"):
        onnx_export(model, (torch.randn(5, 2, 3),))
    with pytest.raises(TypeError, match="onnx_export: model should be a torch.nn.Module, got str"):
        onnx_export("model.pt")
    with warnings.catch_warnings(), pytest.raises(torch.onnx.errors.OnnxExporterError, match="no LSTM with a projection"):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model["tagger"], (torch.randn(5, 2, 3),), dynamo=True, custom_translation_table=translation_table(), verbose=False
        )


def test_contrast_torch_unrolls_rnn():
    """As of torch 2.13 nn.RNN becomes nodes for every step of the example (GRU and LSTM become one node)."""
    theirs = nn.RNN(2, 2).eval()
    program = torch.onnx.export(theirs, (torch.randn(3, 1, 2),), dynamo=True, verbose=False)
    kinds = collections.Counter(node.op_type for node in program.model.graph)
    assert "RNN" not in kinds and kinds["Tanh"] == 3


class Packing(nn.Module):
    """The ragged batch as torch.nn takes it."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 2)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        return self.rnn(packed)[1]


def test_contrast_torch_exports_no_packed_sequence():
    with pytest.raises(torch.onnx.errors.OnnxExporterError):
        torch.onnx.export(Packing().eval(), (torch.randn(3, 2, 2), torch.tensor([2, 3])), dynamo=True, verbose=False)


def test_a_variant_inside_the_step_is_refused_by_name():
    model = torch.nn.Sequential(birnn_ext.GRU(3, 4, bidirectional=True, layer_norm=True))
    with pytest.raises(ValueError, match="onnx_export: layer '0' has layer_norm=True, for which ONNX has no node"):
        birnn_ext.onnx_export(model, (torch.randn(5, 2, 3),))
