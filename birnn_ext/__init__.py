"""birnn_ext: a drop-in for torch.nn.RNN, GRU and LSTM that runs both directions at once.

`RNN`, `GRU`, `LSTM` take torch.nn's arguments; `BiRNN` is always bidirectional and takes the mode as an
argument; `convert` and `revert` swap the layers of an existing model. Importing has no side effects; without
the compiled library it says so and computes with plain PyTorch.

To understand and to judge: `layout` cuts outputs, states and stacks up, `explain` draws them; `benchmark` says what the
swap brings to a model, `which_kernel` and `info` what runs and whether it is right. In a shell: `python -m birnn_ext`.
"""

from importlib import metadata as _metadata

from . import layout
from .bench import benchmark
from .convert import convert, revert
from .explain import explain
from .module import GRU, LSTM, RNN, BiRNN
from .onnx import onnx_export
from .prepack import prepack
from .report import cuda_kernel, info, which_kernel

try:
    __version__ = _metadata.version("birnn-ext")
except _metadata.PackageNotFoundError:  # the source tree on the path, not installed
    __version__ = "0+unknown"
__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "BiRNN",
    "__version__",
    "benchmark",
    "convert",
    "cuda_kernel",
    "explain",
    "info",
    "layout",
    "onnx_export",
    "prepack",
    "revert",
    "which_kernel",
]
