"""The build: facts that the library tells, setup.py's refusals, and what the ISA objects must not share.

Not whether the kernels are right on each ISA: that is tests/cpu. A build from nothing is what `.ci/run` does.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ISA_SOURCES = sorted((ROOT / "csrc/cpu").glob("isa_*.cpp"))


@pytest.fixture
def library():
    """birnn_ext._C, with its choice of ISA put back afterwards."""
    from birnn_ext import _C

    before = _C.isa()
    yield _C
    _C.set_isa(before)


# ---- facts ----


def test_version_is_that_of_pyproject(library):
    assert library.version == PROJECT["version"]


def test_built_against_this_torch(library):
    assert library.torch_version == torch.__version__


def test_facts_about_compiler_and_cuda(library):
    assert re.match(r"(GCC|Clang) \d+\.\d+", library.compiler)
    assert all(re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch) for arch in library.cuda_archs)


def test_every_mode_has_a_cell(library):
    assert sorted(library.cells()) == ["GRU", "LSTM", "RNN_RELU", "RNN_TANH"]


def test_isa_can_be_forced(library):
    names = library.isa_list()
    assert names[-1] == "base" and len(set(names)) == len(names) and library.isa() in names
    for name in names:
        library.set_isa(name)
        assert library.isa() == name


def test_unknown_isa_is_refused_with_the_choices(library):
    before = library.isa()
    with pytest.raises(ValueError) as caught:
        library.set_isa("sse9")
    assert all(word in str(caught.value) for word in ["sse9", *library.isa_list()])
    assert library.isa() == before


def test_formatters_have_one_version():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"[\w-]+==[\d.]+", hooks)) == set(PROJECT["optional-dependencies"]["lint"])


# ---- setup.py, one sentence for what is missing ----


def setup_says(*command, **environment):
    """The sentence with which setup.py refuses. Fails if there was a traceback, or no refusal."""
    ran = subprocess.run(
        [sys.executable, "setup.py", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode != 0 and "Traceback" not in ran.stderr, ran.stderr
    who, _, sentence = ran.stderr.splitlines()[-1].partition(": ")
    assert who == "birnn_ext", ran.stderr
    return sentence


@pytest.mark.parametrize(
    ("fake", "sentence"),
    [
        ("raise ModuleNotFoundError('no torch', name='torch')", "torch is not installed for"),
        (
            "__version__ = '2.10.1+cpu'",
            "torch 2.11 or newer is needed, and 2.10.1+cpu is installed.",
        ),
        ("__version__ = '1.13.0a0'", "torch 2.11 or newer is needed, and 1.13.0a0 is installed."),
    ],
    ids=["missing", "old", "very_old"],
)
def test_torch_missing_or_old(tmp_path, fake, sentence):
    (tmp_path / "torch.py").write_text(fake)
    assert setup_says("--version", PYTHONPATH=str(tmp_path)).startswith(sentence)


def test_compiler_missing(tmp_path):
    assert setup_says("build_ext", PATH=str(tmp_path), CXX="").startswith("no C++ compiler (c++): install")
    assert setup_says("build_ext", CXX="no-such-c++").startswith("no C++ compiler (no-such-c++): install")


def test_compiler_without_openmp(tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    assert "cannot build with -fopenmp" in setup_says("build_ext", CXX=str(broken))


def test_switches():
    assert setup_says("build_ext", BIRNN_CUDA="yes") == "BIRNN_CUDA: expected 0, 1 or nothing, got 'yes'."
    assert setup_says("build_ext", BIRNN_WHEEL_LABEL="yes") == "BIRNN_WHEEL_LABEL: expected 0, 1 or nothing, got 'yes'."


# ---- one source, several ISAs ----
# The linker keeps one copy of a weak function. Were it the AVX-512 one of something that base uses too, base
# would crash on a processor without it: so what an object defines weakly lies in a namespace of its own.


@pytest.fixture(scope="module")
def isa_objects(tmp_path_factory):
    """{ISA: its object file}: as built, or compiled here where sources are newer than the build."""
    newest = max(path.stat().st_mtime for path in (ROOT / "csrc").rglob("*") if path.is_file())
    objects = {}
    for source in ISA_SOURCES:
        isa = source.stem.removeprefix("isa_")
        built = sorted(ROOT.glob(f"build/temp.*/csrc/cpu/{source.stem}.o"), key=lambda path: path.stat().st_mtime)
        if built and built[-1].stat().st_mtime >= newest:
            objects[isa] = built[-1]
            continue
        objects[isa] = tmp_path_factory.mktemp("isa") / f"{isa}.o"
        flags = re.search(r'CXX_FLAGS = """(.*?)"""', (ROOT / "setup.py").read_text(), re.DOTALL)[1].split()
        command = ["c++", "-std=c++17", "-fPIC", "-DNDEBUG", *flags, f"-I{ROOT}/csrc", "-c", str(source)]
        subprocess.run([*command, "-o", str(objects[isa])], check=True, timeout=300)
    return objects


def test_there_is_a_baseline_and_more():
    assert {"isa_base", "isa_avx2", "isa_avx512"} <= {source.stem for source in ISA_SOURCES}


def test_isa_objects_share_no_weak_symbols(isa_objects):
    strangers = {}
    for isa, path in isa_objects.items():
        ran = subprocess.run(["nm", "--defined-only", path], check=True, capture_output=True, text=True)
        weak = [name for _, kind, name in map(str.split, ran.stdout.splitlines()) if kind in "WVu"]
        # birnn::<isa>:: as mangled, alone or in the name of a guard, a type's table or a function's static.
        own = re.compile(rf"_Z(GV|T[VTSI])?Z?NK?5birnn{len(isa)}{isa}")
        strangers[isa] = [name for name in weak if not own.match(name)]
    names = "\n".join(sum(strangers.values(), []))
    readable = subprocess.run(["c++filt"], input=names, check=True, capture_output=True, text=True).stdout
    assert not names, f"weak symbols outside their ISA's namespace:\n{readable}"


@pytest.mark.parametrize("source", ISA_SOURCES, ids=lambda path: path.stem)
def test_isa_sources_include_no_torch(source):
    # With torch's folders left out, including one of its headers is an error of the preprocessor.
    command = ["c++", "-std=c++17", "-M", f"-I{ROOT}/csrc", str(source)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert not re.findall(r"\S*/(?:torch|ATen|c10)/\S*", ran.stdout)


# ---- what stands in more than one place ----


def test_the_citation_names_this_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (\S+)$", text, re.MULTILINE)[1] == PROJECT["version"]


def test_bug_reports_ask_for_the_report():
    text = (ROOT / ".github/ISSUE_TEMPLATE/bug_report.yml").read_text()
    assert "python -m birnn_ext" in text and "required: true" in text
