"""What the machine is, how fast it is right now, and the least time a layer can take on it (its floor). Times
no layers.

The probes run on one thread. Where the compiled library offers no probe of its own (`birnn_ext._C.fma_peak`),
they are PROXIES made of PyTorch calls: a large matrix product for arithmetic, a sum over a buffer of suitable
size for reading. A proxy can fall short of the real limit, and then a share of the floor can exceed 100 %.
"""

import os
import platform
import time
from pathlib import Path

import torch

from .shapes import MODES

KIB = 1024


def library():
    """birnn_ext's compiled module, or None where it is not built (the reference runs then)."""
    try:
        from birnn_ext import _C
    except ImportError:
        return None
    return _C


def facts(device="cpu"):
    """What a reader of a result must know of the machine and the software."""
    compiled = library()
    cpu = next(
        (line.split(":")[1].strip() for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    found = {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "caches_kib": {name: size // KIB for name, size in cache_sizes().items()},
        "isa": compiled.isa() if compiled else "none: the library is not built, birnn_ext runs its reference",
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def cache_sizes():
    """Bytes of the first core's L2 and L3, {"l2": .., "l3": ..}; a guess where the system does not say."""
    sizes = {"l2": 1024 * KIB, "l3": 32 * 1024 * KIB}
    for cache in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, size = _read(cache / "level").strip(), _read(cache / "size").strip()
        if level in "23" and size.endswith("K"):
            sizes[f"l{level}"] = int(size[:-1]) * KIB
    return sizes


def probe(dtype="float32", threads=1):
    """{"gflops", "l2_gbs", "l3_gbs", "memory_gbs"} of one thread, as fast as they get in about half a
    second; and "gflops_each_of_N", the usual rate of each of N threads at once, which is far below "gflops"
    where other programs use the machine: then do not trust what is measured."""
    before = torch.get_num_threads()
    dtype = getattr(torch, dtype)
    torch.set_num_threads(1)
    try:
        caches = cache_sizes()
        sizes = {
            "l2": caches["l2"] // 2,
            "l3": min(4 * caches["l2"], caches["l3"] // 2),
            "memory": 128 * KIB * KIB,
        }
        reads = {f"{name}_gbs": _read_bandwidth(size) / 1e9 for name, size in sizes.items()}
        found = {"gflops": _peak(dtype) / 1e9} | reads
        if threads > 1:
            torch.set_num_threads(threads)
            found[f"gflops_each_of_{threads}"] = _usual(dtype) / threads / 1e9
        return found
    finally:
        torch.set_num_threads(before)


def _peak(dtype):
    """FLOP/s of one thread."""
    compiled = library()
    if dtype == torch.float32 and hasattr(compiled, "fma_peak"):
        return compiled.fma_peak()
    n = 512
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    return 2 * n**3 / fastest(lambda: torch.mm(a, b), 0.15)


def _usual(dtype):
    """FLOP/s of all of PyTorch's threads in a product, the median of 20."""
    n = 1024
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    seconds = sorted(fastest(lambda: torch.mm(a, b), 0.0, calls=1) for _ in range(20))
    return 2 * n**3 / seconds[len(seconds) // 2]


def _read_bandwidth(size):
    """Bytes per second that torch.sum reads from a buffer of this many bytes, over and over."""
    # Views of one buffer, each summed in the same call: a call costs 4 us, as much as reading half a
    # megabyte.
    views = max(1, 16 * KIB * KIB // size)
    buffer = torch.ones(size // 4).expand(views, -1)
    return views * size / fastest(lambda: torch.sum(buffer, 1), 0.1)


def fastest(function, budget, calls=3):
    """Least seconds of a call, over at least so many calls and `budget` seconds."""
    best, begin = float("inf"), time.perf_counter()
    while calls > 0 or time.perf_counter() - begin < budget:
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
        calls -= 1
    return best


def floor(case, lengths, speed):
    """
    The least seconds the case can take with what was probed, or None on a device that was not probed.

    Inference, per direction and layer:  projection FLOP / peak + sum over steps of max(FLOP / peak, bytes of
    W_hh / bandwidth), bandwidth being that of the smallest level that holds one direction's W_hh. Directions
    share min(threads, 2) threads. Training is that once more for the way back through time (W_hh again,
    transposed), plus the products that no step waits for: the gradients of W_ih and of the layer's input
    (each as large as the projection) and of W_hh. Cell equations and memory traffic of activations count
    nothing: it is a floor.
    """
    if torch.device(case.device).type != "cpu":
        return None
    shape, gates = case.shape, MODES[case.mode][2]
    rows = [shape.B] * shape.T if lengths is None else [int((lengths > t).sum()) for t in range(shape.T)]
    peak = speed["gflops"] * 1e9
    w_hh = gates * shape.H * shape.H
    bandwidth = speed[f"{_level(w_hh * getattr(torch, case.dtype).itemsize)}_gbs"] * 1e9
    seconds = 0.0
    for layer in range(shape.L):
        width = shape.I if layer == 0 else 2 * shape.H
        projection = 2 * sum(rows) * width * gates * shape.H / peak
        recurrence = 2 * sum(rows) * w_hh / peak
        read = w_hh * getattr(torch, case.dtype).itemsize / bandwidth
        steps = sum(max(2 * n * w_hh / peak, read) for n in rows if n)
        seconds += 2 * (3 * projection + 2 * steps + recurrence if case.training else projection + steps)
    return seconds / min(case.threads, 2)


def _level(size):
    """Where so many bytes lie when they are read over and over."""
    return next((name for name, holds in cache_sizes().items() if size <= holds), "memory")


def _read(path):
    try:
        return Path(path).read_text()
    except OSError:
        return ""
