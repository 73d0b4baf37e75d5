"""Compares two results of benchmarks.run: did a ratio to torch.nn get worse? Milliseconds are not compared,
machines differ too much.

Usage:  python -m benchmarks.compare OLD.json NEW.json
Exit status 1 where a ratio fell by more than 10 %.
"""

import json
import sys
from pathlib import Path

from birnn_ext.clock import geometric_mean

ALLOWED = 0.10


def compare(old, new):
    """[(key, old ratio, new ratio, is a regression)] of the cases in both results. ValueError where they have
    none in common."""
    before = {entry["key"]: entry["ratio"]["median"] for entry in old["cases"]}
    after = {entry["key"]: entry["ratio"]["median"] for entry in new["cases"]}
    common = [key for key in before if key in after]
    if not common:
        raise ValueError(f"the results have no case in common: {len(before)} cases against {len(after)} others")
    return [(key, before[key], after[key], after[key] < (1 - ALLOWED) * before[key]) for key in common]


def main(argv=None):
    paths = sys.argv[1:] if argv is None else argv
    if len(paths) != 2:
        sys.exit("usage: python -m benchmarks.compare OLD.json NEW.json")
    old, new = (json.loads(Path(path).read_text()) for path in paths)
    for name in ("cpu", "isa", "torch"):
        if old["machine"][name] != new["machine"][name]:
            print(f"NOTE: {name} differs: {old['machine'][name]} / {new['machine'][name]}")
    rows = compare(old, new)
    width = max(len(key) for key, *_ in rows)
    for key, before, after, regressed in rows:
        flag = "  REGRESSION" if regressed else ""
        print(f"{key:{width}}{before:>8.2f}x ->{after:>7.2f}x{after / before - 1:>+8.0%}{flag}")
    change = geometric_mean(after / before for _, before, after, _ in rows) - 1
    print(f"{len(rows)} cases, geometric mean of the changes {change:+.1%}")
    if any(regressed for *_, regressed in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
