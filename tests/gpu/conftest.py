"""Without a GPU these tests are skipped; with BIRNN_REQUIRE_CUDA=1 they fail instead, so that a GPU check cannot pass by
having checked nothing."""

import os

# Before cuBLAS is used: with this, torch lets products run under use_deterministic_algorithms, which poisons fresh memory.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

from birnn_ext import ops


def missing():
    """Why nothing can be tested here, or None."""
    if not torch.cuda.is_available():
        return "no CUDA device that this torch can use"
    if "cuda" not in ops.KERNEL_DTYPES:
        return "birnn_ext was built without CUDA: BIRNN_CUDA=1 python setup.py build_ext --inplace"
    return None


@pytest.fixture(autouse=True)
def gpu():
    reason = missing()
    if reason and os.environ.get("BIRNN_REQUIRE_CUDA") == "1":
        pytest.fail(f"BIRNN_REQUIRE_CUDA=1, but {reason}")
    if reason:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def settings():
    """TF32 as torch has it in a fresh process, before and after."""
    rnn = torch.backends.cudnn.rnn.fp32_precision if hasattr(torch.backends.cudnn, "rnn") else None
    matmul = torch.backends.cuda.matmul.fp32_precision if rnn is not None else None
    yield
    if rnn is not None:
        torch.backends.cudnn.rnn.fp32_precision = rnn
        torch.backends.cuda.matmul.fp32_precision = matmul


@pytest.fixture
def no_tf32():
    """Products of float32 in float32, ours and cuDNN's."""
    torch.backends.cudnn.rnn.fp32_precision = "ieee"


@pytest.fixture(params=["stepwise", "auto", "persistent"])
def tier(request, monkeypatch):
    """Runs the test with the stepwise kernels, with those that the library chooses, and with those of many blocks where there
    are any: clusters, or else spread."""
    monkeypatch.setenv("BIRNN_CUDA_TIER", "stepwise" if request.param == "stepwise" else "auto")
    monkeypatch.setenv("BIRNN_PERSISTENT", str(int(request.param == "persistent")))
    return request.param
