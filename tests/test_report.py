"""birnn_ext.report and the loading of the library: the kernel that is named is the one that runs, a wrong result fails the
self-check, and a library for another torch is refused in one sentence."""

import types
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import birnn_ext
from birnn_ext import library, ops, reference, report

pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")


@pytest.fixture
def isa():
    before = ops._C.isa()
    yield ops._C
    ops._C.set_isa(before)


# ---- which kernel ----


def runs_reference(monkeypatch, call):
    """Whether the reference computes during `call`."""
    seen, original = [], reference.layer
    with monkeypatch.context() as patch:
        patch.setattr(reference, "layer", lambda *a, **k: (seen.append(1), original(*a, **k))[1])
        call()
    return bool(seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_named_kernel_is_the_one_that_runs(monkeypatch, dtype):
    layer = birnn_ext.LSTM(3, 4, 2, bidirectional=True, dtype=dtype)
    x = torch.randn(5, 2, 3, dtype=dtype)
    kernel = birnn_ext.which_kernel(layer, x)
    assert (kernel.name == "reference") == runs_reference(monkeypatch, lambda: layer(x))
    assert kernel.name == f"cpu {ops._C.isa()} {str(dtype)[6:]}"


def test_forward_mode_autocast_and_a_missing_library(monkeypatch):
    layer, x = birnn_ext.GRU(3, 4), torch.randn(5, 2, 3)
    names = []

    def call(x):
        names.append(birnn_ext.which_kernel(layer, x).name)
        return layer(x)[0]

    assert runs_reference(monkeypatch, lambda: torch.func.jvp(call, (x,), (x,)))
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            kernel = birnn_ext.which_kernel(layer, x.to(dtype))
            assert not runs_reference(monkeypatch, lambda dtype=dtype: layer(x.to(dtype)))
        fast = ops.fast_bfloat16() and dtype == torch.bfloat16
        assert ("bfloat16" if fast else "float32") in kernel.name and f"results in {str(dtype)[6:]}" in kernel.reason
    monkeypatch.setattr(ops, "_C", None)
    names.append(birnn_ext.which_kernel(layer, x).name)
    assert names == ["reference", "reference"]


def test_isa_in_use_and_why(isa, monkeypatch):
    layer, x = birnn_ext.GRU(3, 4), torch.randn(5, 2, 3)
    for name in isa.isa_list():
        isa.set_isa(name)
        assert birnn_ext.which_kernel(layer, x).name == f"cpu {name} float32"
    isa.set_isa("base")
    monkeypatch.setenv("BIRNN_ISA", "base")
    assert "BIRNN_ISA=base" in birnn_ext.which_kernel(layer, x).reason


def test_kinds_of_cuda_kernels(monkeypatch):
    """What is said of them; which it is on a device: tests/shim/test_spread.py."""
    for name in ("BIRNN_PERSISTENT", "BIRNN_CUDA_TIER"):
        monkeypatch.delenv(name, raising=False)
    assert str(report._cuda_kernel("stepwise", "", "float32", "")).startswith(
        "cuda stepwise float32: float32 on cuda has a kernel"
    )
    monkeypatch.setenv("BIRNN_PERSISTENT", "1")
    said = report._cuda_kernel("spread", "64 blocks", "float16", "").reason
    assert "run on no GPU yet (64 blocks, BIRNN_PERSISTENT=1)" in said


def test_forcing_a_kind_needs_cuda(monkeypatch):
    """(What it does: tests/shim/test_spread.py.)"""
    if hasattr(torch.ops.birnn_ext, "force_cuda_tier"):
        monkeypatch.setattr(report.torch, "ops", types.SimpleNamespace(birnn_ext=object()))
    with pytest.raises(RuntimeError, match="cuda_kernel: birnn_ext was built without CUDA"), birnn_ext.cuda_kernel("block"):
        pass
    with pytest.raises(ValueError, match="kind should be 'auto', 'stepwise', .* got 1"), birnn_ext.cuda_kernel(1):
        pass


def test_layers_of_torch_and_packed_input():
    packed = pack_padded_sequence(torch.randn(5, 2, 3), [5, 2])
    assert birnn_ext.which_kernel(nn.GRU(3, 4), packed).name == "torch.nn"
    assert birnn_ext.which_kernel(birnn_ext.GRU(3, 4), packed).name.startswith("cpu")
    assert birnn_ext.which_kernel(birnn_ext.GRU(3, 4), torch.empty(5, 2, 3, device="meta")).name.startswith("meta")
    with pytest.raises(TypeError, match="module should be an RNN, GRU or LSTM of birnn_ext or torch.nn, got Linear"):
        birnn_ext.which_kernel(nn.Linear(1, 1), packed)
    with pytest.raises(TypeError, match="input should be a Tensor or a PackedSequence, got list"):
        birnn_ext.which_kernel(nn.GRU(1, 1), [1])


# ---- self-check ----


def test_self_check_passes_and_disturbs_nothing(two_threads):
    state = torch.get_rng_state()
    found = report.self_check()
    assert torch.equal(torch.get_rng_state(), state)
    assert len(found) == 4 * 4 - 2 and all(checked.ok for checked in found)
    assert all(
        0 < checked.ours < (1e-5 if "float32" in checked.case or "float64" in checked.case else 1e-2) for checked in found
    )
    with torch.no_grad():
        assert report.self_check() == found


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_self_check_fails_on_a_wrong_kernel(monkeypatch, capsys, which):
    if which == "forward":
        original = ops.layer

        def broken(*arguments, mode, **more):
            output, h_n, c_n = original(*arguments, mode=mode, **more)
            return (output + 0.05 if mode == "GRU" else output), h_n, c_n

        monkeypatch.setattr(ops, "layer", broken)
    else:
        original = ops.Layer.backward
        monkeypatch.setattr(
            ops.Layer,
            "backward",
            staticmethod(
                lambda ctx, *g: tuple(
                    1.1 * t if t is not None and ctx.mode == "GRU" else t for t in original(ctx, *g)
                )
            ),
        )  # fmt: skip
    wrong = [checked.case for checked in report.self_check() if not checked.ok]
    assert wrong == [f"GRU {dtype} cpu" for dtype in ("float32", "float64", "float16", "bfloat16")]
    assert not birnn_ext.info()
    assert "FAILED" in (printed := capsys.readouterr().out) and "WRONG: GRU float32 cpu" in printed


# ---- info ----


def test_info_says_what_a_bug_report_needs(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert birnn_ext.info()
    text = capsys.readouterr().out
    for fact in (birnn_ext.__version__, torch.__version__, ops._C.isa(), ops._C.compiler, "OMP_NUM_THREADS=7"):
        assert fact in text
    assert "architectures compiled" in text and "float16 on cpu has a kernel" in text and ": ok," in text


def test_info_without_the_library(capsys, monkeypatch):
    monkeypatch.setattr(ops, "_C", None)
    assert not birnn_ext.info()
    assert "NONE" in capsys.readouterr().out


# ---- which torch a build fits ----


def test_the_build_is_marked_with_its_torch():
    assert library.built_for() == torch.__version__ == ops._C.torch_version


@pytest.mark.parametrize("installed", ["2.13.0", "2.13.2+cu130", "2.13.0a0+git1"])
def test_same_minor_version_fits(installed):
    assert library.misfit("2.13.0+cpu", installed) is None and library.misfit(None, installed) is None


@pytest.mark.parametrize("installed", ["2.12.1", "2.14.0+cu130", "3.13.0", "2.1.3"])
def test_another_minor_version_is_refused_in_one_sentence(monkeypatch, installed):
    """Before the library is touched: no undefined symbol is ever seen."""
    monkeypatch.setattr(library, "built_for", lambda: "2.13.0+cpu")
    monkeypatch.setattr(library.torch, "__version__", installed)
    monkeypatch.setattr(library.importlib, "import_module", lambda name: pytest.fail(f"{name} was loaded"))
    with pytest.warns(UserWarning) as caught:
        assert library.load() is None
    (warning,) = caught
    text = str(warning.message)
    assert f"for torch 2.13, and torch {installed} is installed: install the wheel for torch {installed[:3]}" in text
    assert "undefined symbol" not in text and "slow reference path" in text


def test_a_library_that_cannot_be_loaded_is_told(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol: _ZN")

    monkeypatch.setattr(library, "built_for", lambda: None)
    monkeypatch.setattr(library.importlib, "import_module", broken)
    with pytest.warns(UserWarning, match="could not be loaded .*slow reference path"):
        assert library.load() is None


def test_what_to_do_depends_on_where_the_package_is(tmp_path):
    """A copy of the sources hides an installed birnn_ext from a Python that is started in it: installing again is no help."""
    assert library.remedy(tmp_path).startswith("Install with `pip install")
    (tmp_path / "setup.py").touch()
    assert library.remedy(tmp_path).startswith(
        f"This is the copy of the sources in {tmp_path}: if birnn_ext is installed, start"
    )


def test_a_library_that_fits_is_loaded_silently():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert library.load() is ops._C
