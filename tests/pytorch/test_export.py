"""torch.export with dynamic time and batch, its files in a fresh process, and ahead-of-time compilation, also from C++.

Not here: ONNX (test_onnx.py).
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import compare
import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

import birnn_ext

_C = pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")
MODES = ("RNN_TANH", "LSTM", "GRU")
modes = pytest.mark.parametrize("mode", MODES)
layouts = pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
ROOT = Path(__file__).parents[2]


class Ragged(nn.Module):
    """(x [T, B, 3], lengths [B]) -> the layer's results, flat."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x, lengths):
        return tuple(compare.tensors(self.rnn(x, lengths=lengths)))


def export(model):
    T, B = Dim("T"), Dim("B")
    example = torch.randn(5, 4, 3), torch.tensor([5, 0, 2, 3])
    return torch.export.export(model, example, dynamic_shapes=({0: T, 1: B}, {0: B}))


def batches():
    for T, B in [(5, 4), (1, 1), (11, 2), (40, 7)]:
        yield torch.randn(T, B, 3), torch.randint(0, T + 1, (B,))


def layers_of(program):
    return [node for node in program.graph.nodes if node.target == torch.ops.birnn_ext.layer.default]


@modes
@layouts
def test_dynamic_time_and_batch(mode, batch_first):
    ours = birnn_ext.BiRNN(3, 4, 2, mode=mode, batch_first=batch_first).double()
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    program = torch.export.export(ours, (x,), dynamic_shapes=({0: Dim("first"), 1: Dim("second")},))
    for shape in [(5, 3), (11, 2), (1, 1), (40, 7)]:
        x = torch.randn(*shape, 3, dtype=torch.float64)
        for found, right in zip(compare.tensors(program.module()(x)), compare.tensors(ours(x)), strict=True):
            assert torch.equal(found, right)


@modes
def test_lengths_states_and_decompositions(mode):
    model = Ragged(birnn_ext.BiRNN(3, 4, 2, mode=mode)).eval()
    program = export(model)
    lowered = program.run_decompositions()
    for p in (program, lowered):
        # One node per layer however long T is, and nothing is saved for a backward pass that will not come.
        assert [node.args[-1] for node in layers_of(p)] == [False, False]
        for x, lengths in batches():
            assert all(torch.equal(a, b) for a, b in zip(p.module()(x, lengths), model(x, lengths), strict=True))


def test_states_are_inputs_too():
    ours, x = birnn_ext.BiRNN(3, 4, mode="LSTM"), torch.randn(5, 4, 3)
    T, B = Dim("T"), Dim("B")
    shapes = ({0: T, 1: B}, ({1: B}, {1: B}))
    program = torch.export.export(ours, (x, compare.states(ours, 4)), dynamic_shapes=shapes)
    x, hx = torch.randn(9, 2, 3), compare.states(ours, 2)
    for found, right in zip(compare.tensors(program.module()(x, hx)), compare.tensors(ours(x, hx)), strict=True):
        assert torch.equal(found, right)


FRESH = """
import sys, torch, birnn_ext
program = torch.export.load(sys.argv[1])
x, lengths, expected = torch.load(sys.argv[2])
assert all(torch.equal(a, b) for a, b in zip(program.module()(x, lengths), expected, strict=True))
print("equal")
"""


def python(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_file_in_a_fresh_process(tmp_path):
    model = Ragged(birnn_ext.GRU(3, 4, 2, bidirectional=True)).eval()
    torch.export.save(export(model), tmp_path / "model.pt2")
    x, lengths = torch.randn(9, 2, 3), torch.tensor([4, 9])
    torch.save((x, lengths, [t.detach() for t in model(x, lengths)]), tmp_path / "io.pt")
    assert python("-c", FRESH, tmp_path / "model.pt2", tmp_path / "io.pt") == "equal\n"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """(model, path of its ahead-of-time compiled package)."""
    torch.manual_seed(0)
    model = Ragged(birnn_ext.LSTM(3, 4, 2, bidirectional=True)).eval()
    path = tmp_path_factory.mktemp("aoti") / "model.pt2"
    return model, torch._inductor.aoti_compile_and_package(export(model), package_path=str(path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_ahead_of_time_from_python(package):
    model, path = package
    compiled = torch._inductor.aoti_load_package(path)
    for x, lengths in batches():
        torch.testing.assert_close(compiled(x, lengths), model(x, lengths), rtol=0, atol=0)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """examples/aoti_main.cpp, built."""
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler")
    name = sysconfig.get_config_var("LDLIBRARY") or ""
    python_library = Path(sysconfig.get_config_var("LIBDIR") or "", name)
    if ".so" not in name or not python_library.exists():
        pytest.skip("this Python has no shared library, which birnn_ext._C needs in a program without Python")
    from torch.utils import cpp_extension

    built, torch_library = tmp_path_factory.mktemp("program") / "aoti_main", Path(torch.__file__).parent / "lib"
    command = ["c++", "-std=c++20", "-O0", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    command += [f"-isystem{path}" for path in cpp_extension.include_paths()]
    command += [str(ROOT / "examples/aoti_main.cpp"), "-o", str(built), "-Wl,--no-as-needed"]
    command += [f"-L{torch_library}", f"-Wl,-rpath,{torch_library}", "-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python"]
    command += [str(python_library), f"-Wl,-rpath,{python_library.parent}", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return built


@pytest.mark.slow
@pytest.mark.parametrize("T, B", [(5, 4), (17, 3)])
def test_ahead_of_time_from_cpp(package, program, tmp_path, T, B):
    model, path = package
    done = subprocess.run(
        [program, path, _C.__file__, str(T), str(B), tmp_path / "out"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    x = torch.arange(T * B * 3, dtype=torch.float32).sin().reshape(T, B, 3)
    expected = model(x, torch.arange(B) % (T + 1))
    found = torch.from_numpy(np.fromfile(tmp_path / "out", dtype=np.float32))
    for part, right in zip(found.split([t.numel() for t in expected]), expected, strict=True):
        torch.testing.assert_close(part, right.flatten(), rtol=0, atol=1e-6)  # sin of another build


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_contrast_torch_exports_no_dynamic_time(kind):
    """As of torch 2.13."""
    theirs = getattr(nn, kind)(3, 4, bidirectional=True)
    with pytest.raises(Exception, match="(?i)specializ|constraint|guard"):
        torch.export.export(theirs, (torch.randn(5, 4, 3),), dynamic_shapes=({0: Dim("T"), 1: Dim("B")},))
