"""Draws the pictures of the documentation as SVG: data flow, layout, states over a recording, benchmarks.

    python docs/pictures.py FOLDER        from the root of the repository
    python docs/pictures.py README        draws docs/_static/speed.svg, which is committed, because the README shows it

conf.py calls it when the site is built, and nothing it makes then is committed. tests/test_readme.py holds speed.svg to the
result files.
"""

import hashlib
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import torch  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import birnn_ext  # noqa: E402
from benchmarks import growth, plot, table  # noqa: E402
from birnn_ext.layout import trace  # noqa: E402
from examples import japanese_vowels as vowels  # noqa: E402

SPEED = ROOT / "docs/_static/speed.svg"
FORWARD, REVERSE, PLAIN = "#00798c", "#d1495b", "#6b7280"
plt.rcParams.update({"font.size": 12, "svg.fonttype": "path"})


def main(folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    flow(folder / "flow.svg")
    layout(folder / "layout.svg")
    states(folder / "states.svg")
    for name, result in table.load():
        plot.draw(result, folder / f"{Path(name).stem}.svg")
    growth.draw(json.loads((table.RESULTS / "growth/cpu_epyc_zen4_gru.json").read_text()), folder / "growth.svg")


def speed_result():
    """What was measured of the grid in float32, two threads, rows of equal length, as one result, and a digest of it."""
    plain = {"ragged": False, "wide": False, "dtype": "float32"}
    grids = [r for _, r in table.load() if {k: r["settings"].get(k, False) for k in plain} == plain]
    (result,) = [r for r in grids if any(entry["threads"] == 2 for entry in r["cases"])]
    result = result | {"cases": [entry for entry in result["cases"] if entry["threads"] == 2]}
    shown = [result["machine"], result["date"], [(entry["key"], entry["ratio"]) for entry in result["cases"]]]
    return result, hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def speed(path):
    """The README's plot. Its digest stands in a comment at its end."""
    result, digest = speed_result()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "birnn_ext", "font.family": "sans-serif"}):
        plot.draw(result, path)
    text = path.read_text()
    # Clean to git: no spaces at the ends of lines, no date.
    lines = [line.rstrip() for line in text.splitlines() if "<dc:date>" not in line]
    path.write_text("\n".join(lines) + f"\n<!-- results {digest} -->\n")


def save(figure, path):
    figure.savefig(path, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def box(axis, x, y, text, colour, width=0.62, height=0.42):
    axis.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.02,rounding_size=0.08",
            facecolor=colour + "22", edgecolor=colour, lw=1.5,
        )
    )  # fmt: skip
    axis.text(x, y, text, ha="center", va="center", fontsize=11)


def arrow(axis, start, end, colour=PLAIN, **more):
    axis.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=colour, lw=1.2, shrinkA=0, shrinkB=0, **more)
    )


def flow(path):
    """Two layers over four steps: who reads what."""
    figure, axis = plt.subplots(figsize=(8.6, 6.4))
    steps, rise = 4, 3.1
    for t in range(steps):
        x = 2.0 * t
        box(axis, x, 0, f"$x_{t}$", PLAIN)
        for layer in (0, 1):
            base = rise * layer
            forward, reverse, joined = base + 1.0, base + 1.8, base + rise - 0.3
            box(axis, x - 0.45, forward, rf"$\overrightarrow{{h}}_{t}$", FORWARD)
            box(axis, x + 0.45, reverse, rf"$\overleftarrow{{h}}_{t}$", REVERSE)
            below = base + (0.23 if layer == 0 else -0.06)
            arrow(axis, (x - 0.1, below), (x - 0.4, forward - 0.24))
            arrow(axis, (x + 0.1, below), (x + 0.45, reverse - 0.24))
            arrow(axis, (x - 0.45, forward + 0.24), (x - 0.25, joined - 0.2), FORWARD)
            arrow(axis, (x + 0.45, reverse + 0.24), (x + 0.25, joined - 0.2), REVERSE)
            for left, colour in ((x - 0.42, FORWARD), (x, REVERSE)):
                axis.add_patch(Rectangle((left, joined - 0.17), 0.42, 0.34, facecolor=colour + "55", edgecolor=colour))
            if t:
                arrow(axis, (x - 2.45 + 0.34, forward), (x - 0.45 - 0.35, forward), FORWARD)
                arrow(axis, (x + 0.45 - 0.35, reverse), (x - 2 + 0.45 + 0.35, reverse), REVERSE)
            else:
                arrow(axis, (x - 1.25, forward), (x - 0.8, forward), FORWARD)
                axis.text(x - 1.3, forward, f"hx[{2 * layer}]", ha="right", va="center", color=FORWARD)
                name = "input of layer 1" if layer == 0 else "output"
                axis.text(x - 1.3, joined, f"{name}\n[forward | reverse]", ha="right", va="center", fontsize=10)
                axis.text(x - 1.3, reverse, f"layer {layer}", ha="right", va="center", fontweight="bold")
            if t == steps - 1:
                arrow(axis, (x + 1.25, reverse), (x + 0.8, reverse), REVERSE)
                axis.text(x + 1.3, reverse, f"hx[{2 * layer + 1}]", ha="left", va="center", color=REVERSE)
    axis.text(-1.3, 0, "input", ha="right", va="center")
    axis.set(xlim=(-3.6, 8.3), ylim=(-0.5, 2 * rise + 0.2), aspect="equal")
    axis.axis("off")
    save(figure, path)


def layout(path):
    """The memory of output and h_n of a stack of two layers, and which parts of them are equal."""
    figure, axis = plt.subplots(figsize=(8.6, 4.2))
    T, L = 5, 2
    axis.text(2.0, T + 0.75, "output  [T, B, 2*P]", ha="center", fontweight="bold")
    for d, (name, colour) in enumerate((("forward", FORWARD), ("reverse", REVERSE))):
        axis.text(1.0 + 2 * d, T + 0.2, ("0 .. P-1", "P .. 2P-1")[d], ha="center", fontsize=10, color=colour)
        for t in range(T):
            y, held = T - 1 - t, t == (T - 1, 0)[d]
            axis.add_patch(Rectangle((2 * d, y), 2, 0.9, facecolor=colour + ("66" if held else "1a"), edgecolor=colour))
            axis.text(2 * d + 1, y + 0.45, name, ha="center", va="center", fontsize=10)
    for t in range(T):
        axis.text(-0.2, T - 1 - t + 0.45, f"t = {t}" if t < T - 1 else "t = T-1", ha="right", va="center", fontsize=10)
    axis.text(7.85, T + 0.75, "h_n  [L*2, B, P]", ha="center", fontweight="bold")
    for row in range(2 * L):
        y, d, last = T - 1 - row, row % 2, row // 2 == L - 1
        colour = (FORWARD, REVERSE)[d]
        axis.add_patch(Rectangle((6.4, y), 2.9, 0.9, facecolor=colour + ("66" if last else "1a"), edgecolor=colour))
        axis.text(7.85, y + 0.45, f"layer {row // 2}, {('forward', 'reverse')[d]}", ha="center", va="center", fontsize=10)
        axis.text(9.5, y + 0.45, f"row {row}", ha="left", va="center", fontsize=10)
        if last:
            # Round the cells, to the one with the same numbers.
            turn, end = (5.0, (1.0, -0.32)) if d == 0 else (5.6, (4.3, T - 1 + 0.45))
            axis.plot((6.4, turn, turn, end[0]), (y + 0.45, y + 0.45, end[1], end[1]), color=colour, lw=1.2)
            arrow(axis, end, (1.0, 0.0) if d == 0 else (4.0, end[1]), colour)
    axis.text(6.4, -0.1, "strong colour: the same numbers", ha="left", fontsize=10, color=PLAIN)
    axis.set(xlim=(-1.4, 10.7), ylim=(-0.8, T + 1.2), aspect="equal")
    axis.axis("off")
    save(figure, path)


def states(path):
    """Both directions' states over one recording, after a little training."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny layers
    torch.manual_seed(0)
    train, test = vowels.load()
    learner = vowels.Learner(vowels.Classifier(birnn_ext, "GRU", 12), lr=1e-2)
    for _ in range(4):
        learner.epoch(train, torch.randperm(len(train)).split(30))
    with torch.no_grad():
        row = int(test.lengths.argmax())
        x = test.x[row : row + 1, : int(test.lengths[row])]
        found = trace(learner.model.rnn, x)
    torch.set_num_threads(threads)
    figure, axes = plt.subplots(3, 1, figsize=(8.6, 6.6), sharex=True, layout="constrained")
    panels = (
        (x, "recording: 12 coefficients", PLAIN),
        (found["h_l1"], "forward \N{RIGHTWARDS ARROW}  has heard the past", FORWARD),
        (found["h_l1_reverse"], "reverse \N{LEFTWARDS ARROW}  has heard the future", REVERSE),
    )
    for axis, (values, title, colour) in zip(axes, panels, strict=True):
        limit = 3 if values is x else 1
        image = axis.imshow(values[0].T, aspect="auto", cmap="PuOr", vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set_title(title, loc="left", color=colour, fontsize=12)
        axis.set_ylabel("unit" if values is not x else "coefficient")
        axis.set_yticks((0, 5, 10))
        figure.colorbar(image, ax=axis, pad=0.01)
    axes[-1].set_xlabel("frame t")
    save(figure, path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/pictures.py FOLDER, or README")
    speed(SPEED) if sys.argv[1] == "README" else main(sys.argv[1])
