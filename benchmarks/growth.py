"""How the cost grows with T, B and the number of layers: each is doubled or more, the others stay.

Usage:  python -m benchmarks.growth [--mode GRU] [--hidden 64] [--threads 2] [--json PATH] [--plot PATH]

One bidirectional layer, float32, training step (forward and backward, gradients to the input and all weights): the median
of a few runs, and the memory that the layer keeps for backward, which are the bytes that autograd's saved tensors hold. Time
per unit (per step, row or layer) falls until the fixed cost of a call no longer shows, and is level from there on where the
cost is linear.
"""

import argparse
import json
import statistics
import time
from datetime import date
from pathlib import Path

import torch

import birnn_ext

from . import machine

BASE = {"T": 200, "B": 4, "L": 1}
GROWTH = {
    "T": (10, 50, 200, 1000, 5000, 20000),
    "B": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "L": (1, 2, 4, 8),
}
NAMES = {"T": "steps", "B": "rows", "L": "layers"}


def saved_bytes(run):
    """What `run` saves for backward, each storage counted once."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(seen.values())


def measure(mode, hidden, sizes, seconds=1.0):
    """{"ms", "runs", "saved_bytes"} of a training step with these sizes, by name; at least three runs."""
    layer = getattr(birnn_ext, mode)(hidden, hidden, sizes["L"], bidirectional=True)
    x = torch.randn(sizes["T"], sizes["B"], hidden, requires_grad=True)
    weight = torch.randn(sizes["T"], sizes["B"], 2 * hidden)

    def step():
        x.grad = None
        layer.zero_grad()
        layer(x)[0].backward(weight)

    step()
    times = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 200):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    weights = sum(p.numel() * p.element_size() for p in layer.parameters())
    return {
        "ms": 1e3 * statistics.median(times),
        "runs": len(times),
        "saved_bytes": saved_bytes(lambda: layer(x)) - weights,
    }


def grow(mode, hidden, growth=GROWTH, seconds=1.0):
    """{dimension: [{"size", "ms", ...}, ...]}."""
    return {
        name: [{"size": size} | measure(mode, hidden, BASE | {name: size}, seconds) for size in sizes]
        for name, sizes in growth.items()
    }


def draw(result, path):
    """A panel per dimension: time per unit over the size; where the line is level the cost is linear."""
    import matplotlib

    matplotlib.use("Agg")  # draw into a file, also where there is no screen
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 11, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(1, len(result["growth"]), figsize=(12, 3.6), layout="constrained")
    for panel, (name, rows) in zip(panels, result["growth"].items(), strict=True):
        sizes = [row["size"] for row in rows]
        panel.plot(sizes, [1e3 * row["ms"] / row["size"] for row in rows], "o-", color="#d1495b")
        panel.set_xscale("log")
        panel.set_xticks(sizes, map(str, sizes))
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.set_xlabel(f"{NAMES[name]} ({name})")
        panel.set_ylabel(f"microseconds per {NAMES[name][:-1]}")
        panel.grid(alpha=0.3)
    about = result["machine"]
    others = ", ".join(f"{name} = {size}" for name, size in BASE.items())
    figure.suptitle(
        f"{result['mode']}, H = I = {result['hidden']}, training step; else {others}; "
        f"{about['cpu']}, {result['threads']} threads, {result['date']}",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("GRU", "LSTM", "RNN"), default="GRU")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()))
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--plot", type=Path, help="where to draw them")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    result = {"date": str(date.today()), "machine": machine.facts(), "mode": args.mode, "hidden": args.hidden}
    result |= {"threads": args.threads, "base": BASE, "growth": grow(args.mode, args.hidden)}
    for name, rows in result["growth"].items():
        for row in rows:
            print(f"{name} = {row['size']:6}  {row['ms']:10.3f} ms  {1e3 * row['ms'] / row['size']:9.2f} us each  "
                  f"{row['saved_bytes'] / row['size'] / 1024:8.1f} KiB each")  # fmt: skip
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.plot:
        draw(result, args.plot)


if __name__ == "__main__":
    main()
