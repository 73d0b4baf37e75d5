"""Builds birnn_ext with its one C++ extension, birnn_ext._C, against the torch that is installed.

Not here: name and version (pyproject.toml), and the choice of instruction set, which is made at
run time (csrc/cpu/dispatch.cpp): nothing is tuned to the machine that builds.

Environment:
  CXX                   the C++ compiler (default: the first of c++, g++, clang++)
  MAX_JOBS              how many files are compiled at once
  BIRNN_CUDA            1: compile the CUDA sources or fail; 0: leave them out;
                        unset: compile them if torch has CUDA and a toolkit is found
  CUDA_HOME, CUDA_PATH  where the CUDA toolkit is
  BIRNN_CUDA_ARCHS      such as "8.0;9.0a;12.0+PTX" (default: TORCH_CUDA_ARCH_LIST, which is written alike, or else
                        those of CUDA_ARCHS that nvcc knows)
  BIRNN_CXXFLAGS        more flags, to compile and to link (for sanitizers)
  BIRNN_NVCCFLAGS       more flags for nvcc
  BIRNN_WHEEL_LABEL     1: the version ends in the torch and the device that it is for, such as 0.1.0+pt2.13cpu, so that
                        wheels for several can lie in one folder; `make wheel` sets it
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from glob import glob
from pathlib import Path

from setuptools import setup
from setuptools.command.egg_info import egg_info

OLDEST_TORCH = (2, 11)
CUDA_ARCHS = ["7.5", "8.0", "8.6", "8.9", "9.0a", "10.0", "12.0"]
CXX_FLAGS = """-O3 -g0 -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=fast -fvisibility=hidden
               -Wall -Wextra""".split()


def fail(sentence):
    raise SystemExit(f"birnn_ext: {sentence}")


try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    how = "install torch 2.11 or newer first, then run pip with --no-build-isolation."
    fail(f"torch is not installed for {sys.executable}: {how}")
if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < OLDEST_TORCH:
    fail(f"torch 2.11 or newer is needed, and {torch.__version__} is installed.")

from torch.utils import cpp_extension  # noqa: E402  only once torch is known to be new enough


def compiler():
    """The C++ compiler, as a list of words, once it has shown that it can build what is needed here."""
    cxx = shlex.split(os.environ.get("CXX", "")) or [next(filter(shutil.which, ["c++", "g++", "clang++"]), "c++")]
    if not shutil.which(cxx[0]):
        fail(f"no C++ compiler ({cxx[0]}): install one (Debian: apt-get install g++), or set CXX to yours.")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        fail(f"{sys.executable} has no Python.h: install its headers (Debian: apt-get install python3-dev).")
    probe = b"#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n"
    with tempfile.TemporaryDirectory() as folder:
        command = [*cxx, "-fopenmp", "-x", "c++", "-", "-o", f"{folder}/probe"]
        if subprocess.run(command, input=probe, capture_output=True).returncode:
            fail(f"{cxx[0]} cannot build with -fopenmp: install its OpenMP library, or set CXX to another.")
    return cxx


def cuda_home():
    """Folder of a CUDA toolkit, or None."""
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates += [Path(nvcc).resolve().parents[1]] if nvcc else []
    for home in map(Path, filter(None, candidates)):
        # Both, because an nvcc on PATH may be a script that calls the real one elsewhere.
        if (home / "bin/nvcc").exists() and (home / "include/cuda_runtime.h").exists():
            return home
    return None


def cuda_build():
    """(sources, toolkit folder) of a build with CUDA; ([], None) of one without."""
    switch = os.environ.get("BIRNN_CUDA", "")
    sources = glob("csrc/cuda/*.cpp") + glob("csrc/cuda/*.cu")
    if switch not in ("", "0", "1"):
        fail(f"BIRNN_CUDA: expected 0, 1 or nothing, got {switch!r}.")
    if switch == "0" or (not switch and not torch.version.cuda):
        return [], None
    home = cuda_home()
    if switch == "1" and not home:
        fail("BIRNN_CUDA=1, but no folder with bin/nvcc and include/cuda_runtime.h was found: set CUDA_HOME.")
    return (sources, home) if home else ([], None)


def cuda_archs(home):
    """Architectures to compile for, written as in TORCH_CUDA_ARCH_LIST."""
    name = "BIRNN_CUDA_ARCHS" if os.environ.get("BIRNN_CUDA_ARCHS") else "TORCH_CUDA_ARCH_LIST"
    archs = re.split(r"[;,\s]+", os.environ.get(name, "").strip("; "))
    if archs == [""]:
        known = subprocess.run([home / "bin/nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout
        archs = [arch for arch in CUDA_ARCHS if f"compute_{arch.replace('.', '').rstrip('a')}\n" in known]
        archs[-1] += "+PTX"
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            fail(f"{name}: expected numbers like 9.0, 9.0a or 9.0+PTX, got {arch!r}.")
    return archs


def gencode(arch):
    number = re.sub(r"\.|\+PTX", "", arch)
    flags = [f"-gencode=arch=compute_{number},code=sm_{number}"]
    return flags + [f"-gencode=arch=compute_{number},code=compute_{number}"] * arch.endswith("+PTX")


def extension():
    version = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
    more = shlex.split(os.environ.get("BIRNN_CXXFLAGS", ""))
    # As system headers, torch's own give no warnings under -Wall -Wextra.
    cxx = CXX_FLAGS + [f"-isystem{path}" for path in cpp_extension.include_paths()] + more
    cuda_sources, home = cuda_build()
    archs, nvcc, include_dirs, library_dirs, libraries = [], [], [str(Path("csrc").resolve())], [], []
    if home:
        # torch looks for this when it is imported, and not at all if it is a build for the CPU.
        cpp_extension.CUDA_HOME = str(home)
        archs = cuda_archs(home)
        nvcc = ["-O3", "-Xcompiler=-fvisibility=hidden", "--threads=2", *sum(map(gencode, archs), [])]
        nvcc += shlex.split(os.environ.get("BIRNN_NVCCFLAGS", ""))
        include_dirs += [str(home / "include")]
        library_dirs = [str(folder) for folder in (home / "lib64", home / "lib") if folder.is_dir()]
        static = any(Path(folder, "libcudart_static.a").exists() for folder in library_dirs)
        libraries = ["cudart_static", "dl", "rt", "pthread"] if static else ["cudart"]
    # CppExtension with CUDA too: CUDAExtension links libraries that a torch for the CPU does not have.
    return cpp_extension.CppExtension(
        "birnn_ext._C",
        sorted(glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp") + cuda_sources),
        depends=sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.inl", recursive=True)),
        include_dirs=include_dirs,
        define_macros=[
            ("BIRNN_VERSION", f'"{version}"'),
            ("BIRNN_TORCH_VERSION", f'"{torch.__version__}"'),
            ("BIRNN_CUDA_ARCHS", f'"{" ".join(archs)}"'),
        ],
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        extra_link_args=["-fopenmp", *more],
        library_dirs=library_dirs,
        libraries=libraries,
    )


# pip puts ninja beside Python, and that is not on PATH when an environment is used without activating it.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


class Build(cpp_extension.BuildExtension):
    """torch's, with a folder of objects that lasts, and one compiler for all."""

    def finalize_options(self):
        super().finalize_options()
        # An editable install would take a fresh folder each time, and so compile everything again.
        self.build_temp = f"build/temp.{self.plat_name}-{sys.implementation.cache_tag}"

    def run(self):
        # Left alone, torch compiles with c++ and setuptools links with whatever Python was built by.
        os.environ["CXX"] = shlex.join(compiler())
        super().run()
        # Beside the library: which torch it fits must be known before it is loaded (birnn_ext/library.py).
        folder = Path(self.get_ext_fullpath("birnn_ext._C")).parent
        (folder / "_built.py").write_text(f'"""Written by setup.py."""\n\nTORCH = "{torch.__version__}"\n')


# The C++ interface of torch changes from one minor version to the next, so what is compiled here fits this one alone.
MINOR = ".".join(torch.__version__.split(".")[:2])


def label():
    """A local label for the version (PEP 440), such as "+pt2.13cpu", or "+pt2.13cu130" with CUDA kernels; or None."""
    switch = os.environ.get("BIRNN_WHEEL_LABEL", "")
    if switch not in ("", "0", "1"):
        fail(f"BIRNN_WHEEL_LABEL: expected 0, 1 or nothing, got {switch!r}.")
    if switch != "1":
        return None
    device = "cu" + (torch.version.cuda or "").replace(".", "") if cuda_build()[0] else "cpu"
    return f"+pt{MINOR}{device}"


LABEL = label()


class EggInfo(egg_info):
    """setuptools', with the label. Not by setup(options=...): the setup.cfg that an sdist carries overrides that."""

    def finalize_options(self):
        if LABEL:
            self.tag_build = LABEL
            # Not beside the sources, where the labelled version would be taken for that of the source tree.
            self.egg_base = "build"
            Path(self.egg_base).mkdir(exist_ok=True)
        super().finalize_options()


setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": Build, "egg_info": EggInfo},
    install_requires=[f"torch=={MINOR}.*"],
)
