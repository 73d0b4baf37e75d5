"""Other libraries as contenders, by name. What each needs and takes part in stands at the head of its file; one that cannot
take part in a case says why.

    onnx_graph      ONNX Runtime and OpenVINO
    onednn          oneDNN's RNN primitives, called directly; onednn_library finds it, onednn.cpp calls it
    jax_scan        JAX: lax.scan under jit
"""

from .jax_scan import JaxScan
from .onednn import OneDnn
from .onnx_graph import OnnxRuntime, OpenVino

PEERS = {peer.name: peer for peer in (OneDnn, OnnxRuntime, OpenVino, JaxScan)}
