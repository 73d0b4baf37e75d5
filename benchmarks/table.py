"""The README's table of speed, made of the results: geometric mean (smallest - largest) of the ratios over the shapes.

Usage:  python -m benchmarks.table [RESULT.json ...]      prints the table as Markdown (default: all of benchmarks/results)

Each figure comes from one file; docs/ shows the same table, and tests/test_readme.py holds the README to it.
"""

import json
import sys
from pathlib import Path

from birnn_ext.clock import geometric_mean

RESULTS = Path(__file__).parent / "results"
ROWS = {"GRU": "GRU", "RNN_TANH": "RNN tanh", "RNN_RELU": "RNN relu", "LSTM": "LSTM"}
WIDE, UNEQUAL = "60 shapes drawn at random, ", "rows of unequal length, "
PASSES = {"inference": "inference", "training": "training step"}


def load(paths=None):
    """The results as [(file name, result)], by default those of benchmarks/results."""
    return [(path.name, json.loads(path.read_text())) for path in map(Path, paths or sorted(RESULTS.glob("*.json")))]


def figures(results):
    """{(row, column): ([ratio of every shape], file name)}, named as in the table.

    Raises:
        ValueError: two files have the same row and column, so that nobody could say which is meant.
    """
    found = {}
    for name, result in results:
        settings = result["settings"]
        group = UNEQUAL if settings["ragged"] else WIDE if settings.get("wide") else ""
        for entry in result["cases"]:
            threads = entry["threads"]
            column = f"{PASSES[entry['pass']]}, {threads} thread{'s' * (threads > 1)}"
            values, origin = found.setdefault((group + ROWS[entry["mode"]], column), ([], name))
            if origin != name:
                raise ValueError(f"{entry['mode']}, {column}, is both in {origin} and in {name}")
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
    order = [group + row for group in ("", WIDE, UNEQUAL) for row in ROWS.values()]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in sorted({row for row, _ in found}, key=order.index):
        cells = [words(found[row, column][0]) if (row, column) in found else "" for column in columns]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(load(sys.argv[1:])))
