"""Where oneDNN is, and onednn.cpp compiled against it and loaded.

Needed: oneDNN 3 built with OpenMP, its headers, and a C++ compiler (CXX, else c++). Looked for in DNNL_ROOT, else where pip
and the system install; `pip install onednn-cpu-gomp onednn-devel-cpu-gomp` is enough. (PyTorch carries a oneDNN, but hides
it.) What is compiled is kept in build/.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("onednn.cpp")
LIBRARY = "libdnnl.so.3"
BUILD = Path(__file__).parents[2] / "build" / "benchmarks"


class Missing(Exception):
    """No usable oneDNN here; the message says what to do about it."""


@functools.cache
def load():
    """onednn.cpp, compiled and loaded. Missing where that cannot be."""
    headers, folder = find()
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        raise Missing("no C++ compiler found (CXX, c++)")
    command = [*compiler.split(), "-O2", "-std=c++17", "-shared", "-fPIC", "-fopenmp", str(SOURCE), f"-I{headers}"]
    command += [str(folder / LIBRARY), f"-Wl,-rpath,{folder}"]
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join([*command, version(headers)]).encode()).hexdigest()
    built = BUILD / f"onednn-{key[:16]}.so"
    if not built.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        draft = built.with_suffix(f".{os.getpid()}")
        done = subprocess.run([*command, "-o", str(draft)], capture_output=True, text=True)
        if done.returncode:
            raise Missing(f"{SOURCE.name} does not compile against {headers}:\n{done.stderr}")
        draft.replace(built)
    # ctypes keeps the symbols local: PyTorch and OpenVINO have other versions of oneDNN in them.
    loaded = ctypes.CDLL(str(built))
    loaded.peer_failure.restype = ctypes.c_char_p
    loaded.peer_destroy.argtypes = [ctypes.c_void_p]
    loaded.peer_destroy.restype = None
    return loaded


def shares_threads():
    """Whether oneDNN runs on PyTorch's OpenMP threads: usual where both are GNU's, as the process then has one libgomp."""
    theirs = ctypes.CDLL(torch._C.__file__)
    found = [getattr(library, "omp_get_max_threads", None) for library in (load(), theirs)]
    return None not in found and len({ctypes.cast(function, ctypes.c_void_p).value for function in found}) == 1


def find():
    """(folder of the headers, folder of the library). Missing where there is none, or none that fits."""
    roots = [os.environ["DNNL_ROOT"]] if "DNNL_ROOT" in os.environ else [sys.prefix, "/usr/local", "/usr"]
    refused = []
    for root in map(Path, roots):
        headers = root / "include"
        found = version(headers)
        if found is None:
            continue
        folders = [root / name for name in ("lib", "lib64", f"lib/{platform.machine()}-linux-gnu")]
        folder = next((folder for folder in folders if (folder / LIBRARY).exists()), None)
        config = (headers / "oneapi/dnnl/dnnl_config.h").read_text()
        if folder is None or not re.search(r"define DNNL_CPU_RUNTIME DNNL_RUNTIME_OMP\b", config):
            refused.append(f", where there is oneDNN {found}")
            continue
        return headers, folder
    raise Missing(
        "needs oneDNN 3 built with OpenMP: pip install onednn-cpu-gomp onednn-devel-cpu-gomp, or DNNL_ROOT=folder "
        f"(searched: {', '.join(roots)}{''.join(refused)})"
    )


def version(headers):
    """The version in a folder of headers, like 3.2.0; None where they are not there."""
    path = headers / "oneapi/dnnl/dnnl_version.h"
    if not path.exists():
        return None
    return ".".join(re.findall(r"define DNNL_VERSION_(?:MAJOR|MINOR|PATCH)\s+(\d+)", path.read_text()))
