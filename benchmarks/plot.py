"""Draws the result of benchmarks.run: how many times as fast as torch.nn, per shape, mode, pass and number of
threads.

Usage:  python -m benchmarks.plot RESULT.json PICTURE.png
"""

import json
import sys
from pathlib import Path

MODE_STYLE = {
    "GRU": ("#d1495b", "o"),
    "LSTM": ("#00798c", "s"),
    "RNN_TANH": ("#edae49", "D"),
    "RNN_RELU": ("#6b4fa0", "^"),
}
PEER_STYLE = {"onednn": "1", "onnxruntime": "x", "openvino": "+", "jax": "2"}
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)


def draw(result, path):
    """One panel per pass (across) and number of threads (down); one row per shape, one marker per mode on a
    logarithmic axis, with the 95 % interval of the ratio. Other libraries, where there are any, are
    marked by how many times as fast as torch.nn they are."""
    import matplotlib

    matplotlib.use("Agg")  # draw into a file, also where there is no screen
    from matplotlib import pyplot as plt

    entries = result["cases"]
    passes, threads, shapes, modes = (_seen(entries, name) for name in ("pass", "threads", "shape", "mode"))
    plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
    height = 1.9 + len(threads) * (0.9 + len(shapes) * (0.24 * len(modes) + 0.2))
    figure, panels = plt.subplots(
        len(threads),
        len(passes),
        figsize=(2.5 + 6 * len(passes), height),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for row, count in zip(panels, threads, strict=True):
        for panel, pass_ in zip(row, passes, strict=True):
            chosen = [entry for entry in entries if (entry["pass"], entry["threads"]) == (pass_, count)]
            _panel(panel, chosen, shapes, modes)
            name = "inference" if pass_ == "inference" else "training step (forward + backward)"
            panel.set_title(f"{name}, {count} thread{'s' if count > 1 else ''}", fontsize=13, fontweight="bold")
    _axis(panels[0][0], entries)
    for panel in panels[-1]:
        panel.set_xlabel("times as fast as torch.nn (log scale)")
    figure.suptitle(_title(result), fontsize=14)
    handles, labels = _legend(plt, modes, entries)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(panel, entries, shapes, modes):
    for y, _ in enumerate(shapes):
        if y % 2:
            panel.axhspan(y - 0.5, y + 0.5, color="#f3f4f6", zorder=0)
    panel.axvline(1, color="black", lw=1.2)
    panel.annotate(
        "same speed | faster \N{RIGHTWARDS ARROW}",
        (1, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, -11),
        textcoords="offset points",
        fontsize=9,
    )
    for entry in entries:
        factor, (colour, marker) = entry["ratio"], MODE_STYLE[entry["mode"]]
        # The modes of a shape one below the other, the first on top.
        y = shapes.index(entry["shape"]) + 0.8 * ((modes.index(entry["mode"]) + 0.5) / len(modes) - 0.5)
        panel.plot((1, factor["median"]), (y, y), color=colour, lw=1.5, alpha=0.45, zorder=1)
        panel.plot((factor["low"], factor["high"]), (y, y), color=colour, lw=5, alpha=0.45, solid_capstyle="butt")
        panel.plot(factor["median"], y, marker, color=colour, ms=7)
        panel.annotate(
            f"{factor['median']:.1f}x" if factor["median"] >= 2 else f"{factor['median']:.2f}x",
            (max(factor["high"], 1), y),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            # Only where the mark of another library may lie below.
            bbox={"facecolor": "white", "alpha": 0.7, "lw": 0, "pad": 0.8} if entry["peer_ratio"] else None,
        )
        for name, peer in entry["peer_ratio"].items():
            panel.plot(factor["median"] / peer["median"], y, PEER_STYLE[name], color="black", ms=6, mew=1.3)


def _axis(panel, entries):
    """Log axis with plain numbers, wide enough for the labels; shapes downwards."""
    values = [entry["ratio"][end] for entry in entries for end in ("low", "high")] + [1]
    panel.set_xscale("log")
    panel.set_xlim(min(values) / 1.25, max(values) * 1.6)
    left, right = panel.get_xlim()
    ticks = [tick for tick in TICKS if left <= tick <= right]
    panel.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    panel.minorticks_off()
    shapes = _seen(entries, "shape")
    panel.set_yticks(range(len(shapes)), [_words(shape) for shape in shapes])
    panel.set_ylim(len(shapes) - 0.5, -0.75)


def _legend(plt, modes, entries):
    line = plt.Line2D
    handles = [line([], [], color=MODE_STYLE[mode][0], marker=MODE_STYLE[mode][1], ms=8, lw=1.5) for mode in modes]
    peers = [name for name in PEER_STYLE if any(name in entry["peer_ratio"] for entry in entries)]
    handles += [line([], [], color="black", marker=PEER_STYLE[name], ms=8, lw=0) for name in peers]
    return handles, [mode.replace("_", " ") for mode in modes] + peers


def _title(result):
    about, settings = result["machine"], result["settings"]
    rows = "rows of T/4 to T steps" if settings["ragged"] else "rows of equal length"
    isa = about["isa"] if len(about["isa"]) < 20 else "reference only, not compiled"
    return (
        f"birnn_ext against torch.nn {about['torch']}: bidirectional, {settings['dtype']}, {rows}\n"
        f"{about.get('gpu', about['cpu'])}, {about['cores']} cores, birnn_ext with {isa}, "
        f"{result['date'][:10]}"
    )


def _words(shape):
    sizes = shape.split(",")
    return "  ".join(f"{name}={size}" for name, size in zip("BTIHL", sizes, strict=False))


def _seen(entries, name):
    """The distinct values of a field, in order of appearance."""
    return list(dict.fromkeys(entry[name] for entry in entries))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m benchmarks.plot RESULT.json PICTURE.png")
    draw(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2])
