"""Every variant of a layer, as the tests of this folder take it through PyTorch."""

from typing import NamedTuple


class Case(NamedTuple):
    """A layer and a call; `inside`: the step itself is varied, which has a loop of its own; `onnx`: what ONNX cannot say."""

    mode: str = "LSTM"
    options: dict = {}
    reset: bool = False
    states: bool = False
    inside: bool = False
    onnx: str = ""


VARIANTS = {
    "sum": Case("GRU", {"merge_mode": "sum"}),
    "mean": Case("LSTM", {"merge_mode": "mean"}),
    "mul": Case("RNN_TANH", {"merge_mode": "mul"}),
    "pair": Case("LSTM", {"merge_mode": None}),
    "recurrent_dropout": Case("LSTM", {"recurrent_dropout": 0.4}),
    "zoneout": Case("LSTM", {"zoneout": (0.3, 0.1)}, inside=True, onnx="zoneout"),
    "weight_drop": Case("GRU", {"weight_drop": 0.4}),
    "layer_norm": Case("LSTM", {"layer_norm": True}, inside=True, onnx="layer_norm"),
    "reset": Case("LSTM", reset=True, onnx="reset"),
    "reset_gru": Case("GRU", reset=True, onnx="reset"),
    "states": Case("LSTM", states=True, onnx="return_states"),
    "states_gru": Case("GRU", states=True),
    "reset_and_states": Case("LSTM", {"merge_mode": "sum"}, True, True, onnx="reset|return_states"),
    "all": Case("LSTM", {"merge_mode": "mul", "zoneout": 0.2, "layer_norm": True}, True, True, True, "layer_norm"),
}
