"""The commands: `python -m birnn_ext` (installed as `birnn-ext`) with `info`, `explain` and `bench`.

Only arguments and exit codes: what the commands do is in report.py, explain.py and bench.py. 0 is success, 1 a failed
check, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from . import bench, explain, info
from .stacks import TO_OURS, TO_TORCH


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code. Wrong arguments end in SystemExit(2), as argparse does it."""
    parser, chosen = arguments(argv)
    if chosen.command in (None, "info"):
        return 0 if info() else 1
    try:
        if chosen.command == "bench" and torch.device(chosen.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: torch sees no CUDA device")
        if chosen.threads:
            torch.set_num_threads(chosen.threads)
        layer = make(chosen)
        if chosen.command == "explain":
            explain(layer, steps=chosen.steps, batch=chosen.batch)
            return 0
        B, T = chosen.batch, chosen.steps
        x = torch.randn((B, T, chosen.input) if chosen.batch_first else (T, B, chosen.input))
        x = x.to(chosen.device, next(layer.parameters()).dtype)
        print(f"{layer!r}, T={T}, B={B}, {chosen.dtype}")
        bench.benchmark(layer, x, passes=tuple(chosen.passes), budget=chosen.budget)
    except (ValueError, RuntimeError) as error:  # sizes that no layer has, a device that is not there
        sentence = str(error).strip().splitlines()[0]
        parser.exit(1 if isinstance(error, bench.Disagreement) else 2, f"birnn_ext {chosen.command}: {sentence}\n")
    return 0


def make(chosen):
    """The layer that the options describe: ours, or torch.nn's for `bench`, which swaps it itself."""
    more = {"nonlinearity": chosen.mode[4:].lower()} if chosen.mode.startswith("RNN") else {}
    if chosen.proj:
        more["proj_size"] = chosen.proj
    kinds = TO_OURS if chosen.command == "explain" else TO_TORCH
    return kinds[chosen.mode](
        chosen.input, chosen.hidden, chosen.layers, batch_first=chosen.batch_first,
        bidirectional=not chosen.one_direction, device="meta" if chosen.command == "explain" else chosen.device,
        dtype=getattr(torch, chosen.dtype), **more,
    )  # fmt: skip


def arguments(argv):
    """(parser of the chosen command, its arguments)."""
    parser = argparse.ArgumentParser(prog="birnn-ext", description="Bidirectional recurrent layers for PyTorch.")
    commands = parser.add_subparsers(dest="command", metavar="{info,explain,bench}")
    commands.add_parser("info", help="versions, processor, kernels, and a self-check: for bug reports (the default)")
    parsers = {None: parser}
    helps = {
        "explain": "draw the layout of a layer: weights, data flow, output, states",
        "bench": "time a layer of torch.nn against ours on this machine",
    }
    for name, text in helps.items():
        parsers[name] = sub = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        timed = name == "bench"
        sub.add_argument("--mode", type=_mode, default="GRU", metavar="MODE", help="GRU, LSTM, RNN_TANH (or RNN) or RNN_RELU")
        sub.add_argument("--input", type=_positive, default=128 if timed else 3, help="I, input features (%(default)s)")
        sub.add_argument("--hidden", type=_positive, default=128 if timed else 4, help="H, units per direction (%(default)s)")
        sub.add_argument("--layers", type=_positive, default=1, help="L (%(default)s)")
        sub.add_argument("--proj", type=_positive, default=0, help="P, proj_size of an LSTM (none)")
        sub.add_argument("--batch", type=_positive, default=16 if timed else None, help="B, rows (%(default)s)")
        sub.add_argument("--steps", type=_positive, default=100 if timed else None, help="T (%(default)s)")
        sub.add_argument("--batch-first", action="store_true", help="[B, T, features] instead of [T, B, features]")
        sub.add_argument("--one-direction", action="store_true", help="not bidirectional")
        dtypes = ("float32", "float64", "bfloat16", "float16")
        sub.add_argument("--dtype", choices=dtypes, default="float32", help="(%(default)s)")
        sub.add_argument("--threads", type=_positive, default=0, help="threads of PyTorch (its own choice)")
        if timed:
            sub.add_argument("--device", default="cpu", help="(%(default)s)")
            sub.add_argument("--passes", nargs="+", choices=bench.PASSES, default=bench.PASSES, help="(both)")
            sub.add_argument("--budget", type=float, default=2.0, help="seconds per pass (%(default)s)")
    chosen = parser.parse_args(argv)
    return parsers.get(chosen.command, parser), chosen


def _mode(text):
    name = {"RNN": "RNN_TANH"}.get(text.upper(), text.upper())
    if name not in TO_OURS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of RNN, {', '.join(TO_OURS)}")
    return name


def _positive(text):
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return number


if __name__ == "__main__":
    sys.exit(main())
