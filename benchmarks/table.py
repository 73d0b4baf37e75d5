"""The README's block of speed, made of the results: geometric mean (smallest - largest) of the ratios over the shapes, the
machine and the date, and the cases in which torch.nn is faster. And a table of the best of all libraries, case by case.

Usage:  python -m benchmarks.table [RESULT.json ...]           prints the block as Markdown (default: all of benchmarks/results)
        python -m benchmarks.table --readme                    puts it into the README, between its two markers
        python -m benchmarks.table --best [RESULT.json ...]    instead, case by case, against whichever library was the fastest

Each figure comes from one file; docs/ shows the same block, and tests/test_readme.py holds the README to it.
"""

import json
import re
import sys
from pathlib import Path

from birnn_ext.clock import geometric_mean

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- speed: python -m benchmarks.table --readme -->\n", "<!-- end of speed -->\n"
SLOWEST = 3  # cases in which torch.nn is faster that are named
ROWS = {"GRU": "GRU", "RNN_TANH": "RNN tanh", "RNN_RELU": "RNN relu", "LSTM": "LSTM"}
WIDE, UNEQUAL = "60 shapes drawn at random, ", "rows of unequal length, "
PASSES = {"inference": "inference", "training": "training step"}


def load(paths=None):
    """The results as [(file name, result)], by default those of benchmarks/results. Those of `make gpu`, which have a form of
    their own (benchmarks/gpu.py), are passed over."""
    read = [(path.name, json.loads(path.read_text())) for path in map(Path, paths or sorted(RESULTS.glob("*.json")))]
    return [(name, result) for name, result in read if "settings" in result]


def figures(results):
    """{(row, column): ([ratio of every shape], file name)}, named as in the table.

    Raises:
        ValueError: two files have the same row and column, so that nobody could say which is meant.
    """
    found = {}
    for name, result in results:
        settings = result["settings"]
        group = UNEQUAL if settings["ragged"] else WIDE if settings.get("wide") else ""
        group += "" if settings["dtype"] == "float32" else f"{settings['dtype']}, "
        for entry in result["cases"]:
            threads = entry["threads"]
            column = f"{PASSES[entry['pass']]}, {threads} thread{'s' * (threads > 1)}"
            values, first = found.setdefault((group + ROWS[entry["mode"]], column), ([], name))
            if first != name:
                raise ValueError(f"{entry['mode']}, {column}, is both in {first} and in {name}")
            values.append(entry["ratio"]["median"])
    return found


def words(ratios):
    """[2.57, 1.4, 6.49] -> "2.9 (1.4 - 6.5)"."""
    return f"{two_digits(geometric_mean(ratios))} ({two_digits(min(ratios))} - {two_digits(max(ratios))})"


def two_digits(value):
    """0.987 -> "0.99", 1 -> "1.0", 16.8 -> "17"."""
    return f"{value:.{2 if value < 0.995 else 1 if value < 9.95 else 0}f}"


def markdown(results):
    """The table, a row for each mode, a column for each pass and number of threads; empty where nothing was measured."""
    found = figures(results)
    columns = sorted({column for _, column in found}, key=lambda column: (-int(column.split()[-2]), column))
    order = [group + row for group in ("", "bfloat16, ", "float16, ", "float64, ", WIDE, UNEQUAL) for row in ROWS.values()]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in sorted({row for row, _ in found}, key=lambda row: order.index(row) if row in order else len(order)):
        cells = [words(found[row, column][0]) if (row, column) in found else "" for column in columns]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measured(results):
    """Where and when it was measured: a line for each machine, with the dates that differ from the newest."""
    found = {}
    for _, result in results:
        about = result["machine"]
        isa = about["isa"].removesuffix("_bf16").upper()  # (which differs for bfloat16 alone)
        device = f"{about.get('gpu', about['cpu'])}, {isa}, {about['cores']} cores, torch {about['torch']}"
        threads = {entry["threads"] for entry in result["cases"]}
        found.setdefault(device, {}).setdefault(result["date"][:10], set()).update(threads)
    lines = []
    for device, dates in found.items():
        newest, *older = sorted(dates, reverse=True)
        older = [f"{' and '.join(map(str, sorted(dates[date])))} thread{'s' * (dates[date] != {1})}: {date}" for date in older]
        lines.append(f"{device}, {newest}" + f" ({'; '.join(older)})" * bool(older) + ".")
    return " ".join(lines)


def slower(results):
    """A sentence with the number of cases in which torch.nn is faster, and the worst of them."""
    cases = sorted(
        (entry["ratio"]["median"], entry["mode"], entry["shape"], entry["pass"], entry["threads"], result["settings"]["dtype"])
        for _, result in results
        for entry in result["cases"]
    )
    worst = [case for case in cases if case[0] < 1]
    if not worst:
        return f"torch.nn was ahead in none of the {len(cases)} cases."
    named = []
    for ratio, mode, shape, pass_, threads, dtype in worst[:SLOWEST]:
        sizes = ", ".join(f"{name} = {size}" for name, size in zip("BTIHL", shape.split(","), strict=False))
        kind = ROWS[mode] + ("" if dtype == "float32" else f" in {dtype}")
        named.append(f"{ratio:.3f} ({kind}, {PASSES[pass_]}, {threads} thread{'s' * (threads > 1)}, {sizes})")
    more = "; the lowest: " if len(worst) > SLOWEST else ": "
    return f"torch.nn was ahead in {len(worst)} of the {len(cases)} cases{more}{'; '.join(named)}."


def block(results):
    """What stands between the README's markers."""
    return f"{markdown(results)}\n\n{measured(results)} {slower(results)}\n"


def fill(text, results):
    """`text` with the block of these results between the markers.

    Raises:
        ValueError: there are no markers in it.
    """
    filled, count = re.subn(f"(?<={re.escape(BEGIN)}).*(?={re.escape(END)})", lambda _: block(results), text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"expected one {BEGIN.strip()} ... {END.strip()}, found {count}")
    return filled


def best(results):
    """Markdown: every case that was timed beside other libraries than torch.nn, which of them all was the fastest, and its time
    over ours; then the geometric mean and the smallest of each mode, pass and number of threads. Empty where there is no such
    case."""
    entries = [entry for _, result in results for entry in result["cases"] if entry["peer_ratio"]]
    if not entries:
        return ""
    lines = ["| case | ours, ms | fastest other | ms | ratio | beside it |", "|---" * 6 + "|"]
    groups = {}
    for entry in entries:
        found, times = entry["best_of_all"], entry["times"]
        beside = ", ".join(name for name in ("torch.nn", *entry["peer_ratio"]) if name != found["name"])
        lines.append(
            f"| {entry['key']} | {times['birnn_ext']['median_ms']:.2f} | {found['name']} | "
            f"{times[found['name']]['median_ms']:.2f} | {found['median']:.2f} | {beside} |"
        )
        groups.setdefault((ROWS[entry["mode"]], PASSES[entry["pass"]], entry["threads"]), []).append(found["median"])
    lines += ["", "| mode | pass | threads | cases | geometric mean | smallest |", "|---" * 6 + "|"]
    groups["all", "", ""] = [entry["best_of_all"]["median"] for entry in entries]
    for (mode, pass_, threads), ratios in groups.items():
        mean, smallest = geometric_mean(ratios), min(ratios)
        lines.append(f"| {mode} | {pass_} | {threads} | {len(ratios)} | {mean:.2f} | {smallest:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    paths = [path for path in sys.argv[1:] if path != "--best"]
    if sys.argv[1:] == ["--readme"]:
        README.write_text(fill(README.read_text(), load()))
    elif "--best" in sys.argv:
        print(best(load(paths)))
    else:
        print(block(load(paths)), end="")
