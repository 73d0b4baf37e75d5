"""Other libraries as contenders, through an ONNX graph written by hand: ONNX Runtime and OpenVINO. Inference
only, one layer, rows of equal length, float32 on a CPU: enough to know how fast others are. The contract is
in ../contenders.py.
"""

import importlib.metadata
import importlib.util

import torch

from ..contenders import Contender
from ..shapes import MODES

# ONNX orders the gates z r h and i o f c; torch.nn has r z n and i f g o. Block k of ONNX's weights is block
# ORDER[mode][k] of torch's.
ORDER = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}


def onnx_model(problem):
    """The bidirectional layer of a problem as an ONNX ModelProto: x [T, B, I] -> y [T, B, 2H], torch.nn's
    layout (ONNX itself gives [T, 2, B, H], so that two nodes rearrange it)."""
    from onnx import TensorProto, helper, numpy_helper

    case, shape = problem.case, problem.case.shape
    operator = MODES[case.mode][0]

    def both(name):
        """[2, G*H, ...]: a weight of both directions with its gates in ONNX's order."""
        directions = (problem.weights[f"{name}_l0{suffix}"].cpu() for suffix in ("", "_reverse"))
        return torch.stack([torch.cat([w.chunk(len(ORDER[case.mode]))[k] for k in ORDER[case.mode]]) for w in directions])

    tensors = {
        "W": both("weight_ih"),
        "R": both("weight_hh"),
        "b": torch.cat([both("bias_ih"), both("bias_hh")], dim=1),
        "flat": torch.tensor([shape.T, shape.B, 2 * shape.H]),
    }
    attributes = {"hidden_size": shape.H, "direction": "bidirectional"}
    if case.mode == "GRU":
        attributes["linear_before_reset"] = 1  # torch's n = tanh(.. + r * (W_hn h + b_hn)); 0 would reset h before the product
    elif case.mode != "LSTM":
        attributes["activations"] = [case.mode.removeprefix("RNN_").capitalize()] * 2
    graph = helper.make_graph(
        [
            helper.make_node(operator, ["x", "W", "R", "b"], ["directions"], **attributes),
            helper.make_node("Transpose", ["directions"], ["rows"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", ["rows", "flat"], ["y"]),
        ],
        case.mode,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [shape.T, shape.B, shape.I])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape.T, shape.B, 2 * shape.H])],
        [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


class Peer(Contender):
    """What both runtimes share: when they can take part, and NumPy in and out."""

    own_threads = True
    package = None

    def why_not(self, case):
        for package in (self.package, "onnx"):
            if importlib.util.find_spec(package) is None:
                return f"Python package {package} is not installed"
        if case.training:
            return "has no training"
        if case.shape.L > 1 or case.ragged or (case.dtype, case.device) != ("float32", "cpu"):
            return "takes part with one layer, equal lengths, float32 on the CPU only"
        return None

    def version(self):
        return importlib.metadata.version(self.package)

    def prepare(self, problem):
        self.arrays = [x.numpy() for x in problem.inputs]
        self.call = self.compile(onnx_model(problem).SerializeToString(), problem.case.threads)

    def compile(self, model, threads):
        """A callable from NumPy [T, B, I] to NumPy [T, B, 2H]."""
        raise NotImplementedError

    def run(self, i):
        return torch.from_numpy(self.call(self.arrays[i])), ()

    def results(self, i):
        return {"output": self.run(i)[0].clone()}


class OnnxRuntime(Peer):
    name = package = "onnxruntime"

    def compile(self, model, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Its threads may spin within a call, but not on into the next contender's turn.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"x": x})[0]


class OpenVino(Peer):
    name = package = "openvino"

    def compile(self, model, threads):
        import openvino

        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # its own choice may be bfloat16
        }
        compiled = core.compile_model(core.read_model(model), "CPU", settings)
        request = compiled.create_infer_request()

        def call(x):
            request.infer({0: x}, share_inputs=True)
            return request.get_output_tensor(0).data

        return call
