"""Compiles the CUDA backend with g++ against the shim, into build/shim, where only what has changed is compiled again.

Several processes may ask at the same time: one of them compiles, and the others wait and find what it has made.
"""

import fcntl
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils import cpp_extension

SHIM = Path(__file__).resolve().parent
ROOT = SHIM.parents[1]
CSRC = ROOT / "csrc"
OUT = ROOT / "build/shim"
FLAGS = ["-std=c++20", "-O1", "-g0", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
KERNELS = [CSRC / f"cuda/{name}.cu" for name in ("stepwise", "rows", "block", "spread", "cluster")]
HOST = [CSRC / f"cuda/{name}.cpp" for name in ("host", "forward", "backward")]


@contextmanager
def alone_in(folder):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:  # (what is locked is free again once the file is closed)
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compile_all(sources, folder, flags, csrc=CSRC):
    """Objects of the sources, two compilers at a time; those newer than every header are kept."""
    headers = [*csrc.rglob("*.h"), *SHIM.rglob("*.h"), Path(__file__), Path(torch.__file__)]
    newest = max(path.stat().st_mtime for path in headers)

    def one(source):
        made = folder / f"{source.stem}.o"
        if not made.exists() or made.stat().st_mtime < max(newest, source.stat().st_mtime):
            command = [
                os.environ.get("CXX", "g++"),
                *FLAGS,
                f"-I{SHIM}",
                f"-I{csrc}",
                *flags,
                "-x",
                "c++",
                "-c",
                str(source),
                "-o",
                str(made),
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
        return made

    with alone_in(folder), ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, sources))


def link(objects, target, flags):
    with alone_in(target.parent):
        if not target.exists() or target.stat().st_mtime < max(o.stat().st_mtime for o in objects):
            command = [os.environ.get("CXX", "g++"), *map(str, objects), *flags, "-o", str(target)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
    return target


def library():
    """The library that has torch.ops.birnn_shim."""
    torch_flags = [f"-isystem{path}" for path in cpp_extension.include_paths()] + ["-fvisibility=hidden"]
    # The names of the real library must not be found in this one.
    objects = compile_all([*KERNELS, *HOST, CSRC / "ops.cpp", SHIM / "device.cpp"], OUT, torch_flags)
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-lc10", "-ltorch", "-ltorch_cpu"]
    return link(objects, OUT / "birnn_shim.so", ["-shared", *libraries])


WATCHED = [CSRC / f"cuda/{name}.cu" for name in ("block", "spread", "cluster")]


def race():
    """A program that runs the kernels of WATCHED under ThreadSanitizer."""
    flags = [f"-isystem{path}" for path in cpp_extension.include_paths()] + ["-DBIRNN_SHIM_THREADS", "-fsanitize=thread", "-g"]
    objects = compile_all([*WATCHED, SHIM / "race.cpp"], OUT / "race", flags)
    return link(objects, OUT / "race/race", ["-fsanitize=thread", "-pthread"])


def mutant(name, kernels=None, changes=()):
    """The same program on fibers, in which `kernels` ("spread", "cluster") come from sources where pieces of text are replaced:
    (file, old, new)."""
    folder = OUT / "mutants"
    flags = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    objects = compile_all([*WATCHED, SHIM / "race.cpp"], folder, flags)
    if kernels:
        sources = folder / name / "csrc"
        shutil.copytree(CSRC, sources, dirs_exist_ok=True)
        for file, old, new in changes:
            text = (sources / file).read_text()
            assert text.count(old) == 1, f"{file}: {old!r} stands there {text.count(old)} times"
            (sources / file).write_text(text.replace(old, new))
        objects = [made for made in objects if made.stem != kernels]
        objects += compile_all([sources / f"cuda/{kernels}.cu"], folder / name, flags, csrc=sources)
    return link(objects, folder / name / "race", [])
