"""birnn_ext: a drop-in for torch.nn.RNN, GRU and LSTM that runs both directions at once.

`RNN`, `GRU`, `LSTM` take torch.nn's arguments; `BiRNN` is always bidirectional and takes the mode as an
argument; `convert` and `revert` swap the layers of an existing model. Importing has no side effects; without
the compiled library it says so and computes with plain PyTorch.
"""

from importlib import metadata as _metadata

from .convert import convert, revert
from .module import GRU, LSTM, RNN, BiRNN

try:
    __version__ = _metadata.version("birnn-ext")
except _metadata.PackageNotFoundError:  # the source tree on the path, not installed
    __version__ = "0+unknown"
__all__ = ["GRU", "LSTM", "RNN", "BiRNN", "__version__", "convert", "revert"]
