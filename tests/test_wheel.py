"""The wheel: installed into an empty environment it works without a compiler, and says which torch it is for.

BIRNN_WHEEL names a wheel that is there already (`make wheel` sets it); without it one is built here, of the objects that an
earlier build has left. torch itself is lent from this environment: downloading it again would test nothing.
"""

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
import torch

import birnn_ext

pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
PLAIN = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
MINOR = ".".join(torch.__version__.split(".")[:2])


def run(*command, **more):
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, **more)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if os.environ.get("BIRNN_WHEEL"):
        return ROOT / os.environ["BIRNN_WHEEL"]
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from setuptools import build_meta as b; b.build_wheel({str(folder)!r})"
    run(sys.executable, "-c", code, cwd=ROOT, env=os.environ | {"BIRNN_WHEEL_LABEL": "1"})
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def version(wheel):
    """As its name has it."""
    return wheel.name.split("-")[1]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The Python of an environment that holds the wheel, and torch by a path to this one's packages."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A path in a .pth file is appended: the wheel's birnn_ext comes first, and an editable one there stays unknown.
    (packages / "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def without_compiler(tmp_path):
    """Nothing on the PATH, nothing of this project on the path of Python."""
    hidden = ("PATH", "PYTHONPATH", "CXX", "CC")
    return {"cwd": tmp_path, "env": {k: v for k, v in os.environ.items() if k not in hidden} | {"PATH": str(tmp_path)}}


def test_its_name_says_what_it_is_for(version):
    """Wheels for several versions of torch, or for CPU and GPU, can lie in one folder."""
    device = "cu" + (torch.version.cuda or "").replace(".", "") if birnn_ext._C.cuda_archs else "cpu"
    assert version == f"{PLAIN}+pt{MINOR}{device}"


def test_it_runs_without_a_compiler(installed, version, tmp_path):
    where = run(installed, "-c", "import birnn_ext; print(birnn_ext.__file__)", **without_compiler(tmp_path))
    assert Path(where.strip()).is_relative_to(installed.parents[1])
    text = run(installed, "-m", "birnn_ext", **without_compiler(tmp_path))
    assert text.startswith(f"birnn_ext {version}\n") and ": ok," in text and "NONE" not in text
    text = run(installed.parent / "birnn-ext", "explain", "--layers", "2", **without_compiler(tmp_path))
    assert "output [T, B, 2*P=8]" in text


def test_under_another_torch_it_says_one_sentence(installed, tmp_path):
    """The wheel is told that torch is of another minor version: no crash, no undefined symbol, and right results."""
    code = (
        "import torch, warnings; torch.__version__ = '2.99.0'\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import birnn_ext\n"
        "(warning,) = caught\n"
        "print(warning.message)\n"
        "gru = torch.nn.GRU(3, 4, bidirectional=True); x = torch.randn(5, 2, 3); expected = gru(x)[0]\n"
        "assert torch.allclose(birnn_ext.convert(gru)(x)[0], expected, atol=1e-6)\n"
    )
    text = run(installed, "-c", code, **without_compiler(tmp_path))
    assert text.startswith(f"birnn_ext: this build of birnn_ext is for torch {MINOR}, and torch 2.99.0 is installed: ")
    assert "undefined symbol" not in text and text.count("\n") == 1


def test_what_is_in_it(wheel, version):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        about = HeaderParser().parsestr(archive.read(metadata).decode())
    needed = [text for text in about.get_all("Requires-Dist") if "extra" not in text]
    assert needed == [f"torch=={MINOR}.*"] and about["Version"] == version
    own = {name for name in names if ".dist-info/" not in name}
    sources = {f"birnn_ext/{path.name}" for path in Path(birnn_ext.__file__).parent.glob("*.py")} | {"birnn_ext/_built.py"}
    assert sources <= own
    (library,) = [name for name in own if name.endswith(".so")]
    assert own - sources - {library} == {"birnn_ext/py.typed", "birnn_ext/module.pyi"}
