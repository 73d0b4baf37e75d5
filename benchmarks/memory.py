"""The peak of a training step's memory: torch.nn's, ours, and ours with recompute=True.

Usage:  python -m benchmarks.memory [--mode GRU ...] [--shape B,T,I,H[,layers] ...] [--threads 2] [--json PATH]

Each number comes from a process of its own: how far two training steps (forward, backward, gradients of the input and of all
weights) raise its resident memory above what it was with the module, the input and the gradient of the output in place.
Linux only: the kernel keeps the peak (VmHWM in /proc/self/status) and sets it back (/proc/self/clear_refs).
"""

import argparse
import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

import birnn_ext

from . import machine
from .shapes import GRID, MODES, Shape, parse_shape

WHO = ("torch.nn", "birnn_ext", "birnn_ext, recompute=True")
SHAPES = (*GRID, Shape("three_layers", 32, 100, 128, 128, 3))


def resident(field):
    """MiB of this process: VmRSS is now, VmHWM the peak since it was set back."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def peak(who, mode, shape, threads=2):
    """MiB that training steps add at most; to be called in a fresh process."""
    torch.set_num_threads(threads)
    kind, arguments, _ = MODES[mode]
    library = torch.nn if who == "torch.nn" else birnn_ext
    arguments = arguments | ({"recompute": True} if "recompute" in who else {})
    layer = getattr(library, kind)(shape.I, shape.H, shape.L, bidirectional=True, **arguments)
    x = torch.randn(shape.T, shape.B, shape.I, requires_grad=True)
    weight = torch.randn(shape.T, shape.B, 2 * shape.H)

    def step(x, weight):
        x.grad = None
        layer.zero_grad()
        layer(x)[0].backward(weight)

    step(x.detach()[:1, :1].requires_grad_(), weight[:1, :1])  # libraries, threads: what only the first step adds
    layer.zero_grad()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    for _ in range(2):
        step(x, weight)
    return resident("VmHWM") - before


def measure(mode, shape, threads=2):
    """{who: MiB}, each in a process of its own."""
    found = {}
    for who in WHO:
        arguments = f"{who!r}, {mode!r}, shapes.parse_shape({str(shape)!r}), {threads}"
        call = f"from benchmarks import memory, shapes; print(memory.peak({arguments}))"
        done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{who}, {mode} {shape}: {done.stderr.strip()[-500:]}")
        found[who] = round(float(done.stdout), 1)
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", nargs="+", choices=sorted(MODES), default=["GRU", "LSTM", "RNN_TANH"])
    parser.add_argument("--shape", nargs="+", type=parse_shape, default=SHAPES)
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()))
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args(argv)
    cases = []
    print(f"{'MiB':26}{WHO[0]:>10}{WHO[1]:>11}{'ratio':>7}{'recompute':>11}{'ratio':>7}")
    for mode in args.mode:
        for shape in args.shape:
            found = measure(mode, shape, args.threads)
            theirs, ours, again = (found[who] for who in WHO)
            print(
                f"{mode + ' ' + str(shape):26}{theirs:10.1f}{ours:11.1f}{ours / theirs:7.2f}{again:11.1f}{again / theirs:7.2f}",
                flush=True,
            )
            cases.append({"mode": mode, "shape": str(shape), "peak_mib": found, "ratio": round(ours / theirs, 3)})
    if args.json:
        result = {"date": str(date.today()), "machine": machine.facts(), "threads": args.threads, "cases": cases}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
