"""Checks, then times birnn_ext against torch.nn (and others) over a grid of shapes, and writes a table, a
JSON file and a plot.

    python -m benchmarks.run                                      the whole grid, all modes and passes
    python -m benchmarks.run --quick --threads 1,2
    python -m benchmarks.run --shapes one_small 16,100,256,256,2 --modes GRU --passes training --lengths
    python -m benchmarks.run --packed bfloat16                    weights packed beforehand by birnn_ext.prepack
    python -m benchmarks.run --peers all                          beside every other library that is installed: peers/

A wrong result ends the run with an error before anything of it is timed.
"""

import argparse
import datetime
import json
import sys
from dataclasses import replace
from itertools import count, product
from pathlib import Path

import torch
from tqdm import tqdm

from birnn_ext.clock import geometric_mean, interleave, ratio, spread

from . import machine
from .check import CheckFailed, Judge
from .contenders import OURS, PACKED, THEIRS, UNPACKED, Ours, Torch
from .peers import PEERS
from .problem import INPUTS, draw
from .shapes import GRID, MODES, PASSES, QUICK, WIDE, Case, parse_shape

HEADER = (
    f"{'mode':9}{'pass':10}{'threads':>8}  {'B,T,I,H':19}{'ours ms':>10}{'torch ms':>10}"
    f"{'ratio':>8}{'95 %':>14}{'of minima':>11}{'of floor':>10}"
)


def measure(cases, *, budget, peers=(), seed=0, wide=False, packed=None, show=print):
    """
    Checks and times every case.

    cases    Case objects; neighbours that differ in threads alone share one check's oracle
    budget   seconds of timing per case; a quarter of that again for ours alone
    peers    names out of PEERS
    wide     whether the cases are those of WIDE; only written down
    packed   None, or what ours packs its weights as beforehand; "bfloat16": all contenders compute with the weights that
             this makes of them, and what that costs in accuracy is written down as rounding_error
    show     called with every line of the table as it comes
    returns  {"machine", "settings", "peers" (their versions), "date", "probes", "cases", "summary"}, ready for JSON
    raises   CheckFailed where ours computes something wrong
    """
    first, most = cases[0], max(case.threads for case in cases)
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine.facts(first.device),
        "settings": {
            "budget_s": budget,
            "seed": seed,
            "dtype": first.dtype,
            "device": first.device,
            "ragged": first.ragged,
            "wide": wide,
            "packed": packed,
        },
        "peers": {},
        "probes": {"before": machine.probe(first.dtype, most)},
        "cases": [],
    }
    if machine.library() is None:
        show("NOTE: birnn_ext's compiled library is missing; what is timed as ours is its slow reference.")
    show(HEADER)
    skipped, versions, judge, more = set(), result["peers"], None, {}
    for case in tqdm(cases, desc="benchmark", unit="case", leave=False, disable=None):
        torch.set_num_threads(case.threads)
        if judge is None or replace(judge.problem.case, threads=case.threads) != case:
            exact = draw(case, seed)
            judge = Judge(rounded(exact) if packed == "bfloat16" else exact)
            more = {"rounding_error": judge.difference(exact)} if packed == "bfloat16" else {}
        contenders = [Torch(), Ours(packed)] + [Ours(name=UNPACKED)] * bool(packed) + [PEERS[name]() for name in peers]
        entry = _one(case, judge, budget, contenders, result["probes"]["before"], skipped, versions, show)
        result["cases"].append(entry | more)
        show(line(entry))
    result["probes"]["after"] = machine.probe(first.dtype, most)
    result["summary"] = summary(result["cases"])
    return result


def rounded(problem):
    """The problem with the weights that packing them as bfloat16 leaves."""
    ours = Ours("bfloat16")
    ours.prepare(problem)
    return replace(problem, weights=dict(ours.module.state_dict()))


def _one(case, judge, budget, candidates, speed, skipped, versions, show):
    """Checks and times one case; returns its entry in the result."""
    contenders, errors = {}, {}
    for contender in candidates:
        name, peer = contender.name, contender.name in PEERS
        try:
            if reason := contender.why_not(case):
                raise CheckFailed(f"{name} left out: {reason}")
            contender.prepare(replace(judge.problem, case=case))  # the judge may have judged fewer threads
            errors[name] = judge.check(contender, peer)
        except CheckFailed as failure:
            if not peer:
                raise
            if str(failure) not in skipped:
                show(str(failure))
            skipped.add(str(failure))
            continue
        contenders[name] = contender
        if peer:
            versions[name] = contender.version()

    def run_of(contender):
        return lambda i: contender.run(i % INPUTS)

    seconds = interleave(
        {name: run_of(contender) for name, contender in contenders.items()},
        budget=budget,
        sync=torch.cuda.synchronize if torch.device(case.device).type == "cuda" else lambda: None,
        consume=lambda name, i, outcome: judge.witness(name, i % INPUTS, outcome[0]),
        # PyTorch's threads are shared by ours and torch.nn; only foreign pools need time to fall asleep.
        rest=0.003 if any(contender.own_threads for contender in contenders.values()) else 0.0,
    )
    floor = machine.floor(case, judge.problem.lengths, speed)
    # As the probes read the same memory over and over; between runs of others, ours finds its weights out of the cache.
    rounds = count()
    alone = floor and machine.fastest(lambda: contenders[OURS].run(next(rounds) % INPUTS), budget / 4)
    ratios = {name: ratio(seconds[name], seconds[OURS]) for name in seconds if name != OURS}
    unpacked = {"unpacked_ratio": ratios.pop(UNPACKED)} if UNPACKED in ratios else {}
    best = min(ratios, key=lambda name: ratios[name]["median"])
    entry = {
        "key": case.key,
        "shape": str(case.shape),
        "mode": case.mode,
        "pass": case.pass_,
        "threads": case.threads,
        "relative_error": errors,
        "times": {name: spread(values) for name, values in seconds.items()},
        "ratio": ratios[THEIRS],
        "peer_ratio": {name: found for name, found in ratios.items() if name in PEERS},
        "best_of_all": {"name": best} | ratios[best],
        **unpacked,
        "floor_ms": None if floor is None else 1e3 * floor,
        "alone_ms": None if floor is None else 1e3 * alone,
        "share_of_floor": None if floor is None else floor / alone,
    }
    return entry


def line(entry):
    """One line of the table."""
    times, factor, share = entry["times"], entry["ratio"], entry["share_of_floor"]
    text = (
        f"{entry['mode']:9}{entry['pass']:10}{entry['threads']:>8}  {entry['shape']:19}"
        f"{times[OURS]['median_ms']:>10.2f}{times[THEIRS]['median_ms']:>10.2f}{factor['median']:>7.2f}x"
        f"{factor['low']:>7.2f}-{factor['high']:<6.2f}{factor['of_minima']:>10.2f}x"
    )
    text += f"{'-':>10}" if share is None else f"{share:>10.0%}"
    if unpacked := entry.get("unpacked_ratio"):
        text += f"   not packed {times[UNPACKED]['median_ms']:.2f} ms ({unpacked['median']:.2f}x)"
    for name, peer in entry["peer_ratio"].items():
        text += f"   {name} {times[name]['median_ms']:.2f} ms ({peer['median']:.2f}x)"
    return text


def summary(entries):
    """[{"mode", "pass", "threads", "geometric_mean", "worst", "worst_shape", "cases"}] of the median ratios,
    in order of appearance."""
    groups = {}
    for entry in entries:
        groups.setdefault((entry["mode"], entry["pass"], entry["threads"]), []).append(entry)
    found = []
    for (mode, pass_, threads), group in groups.items():
        worst = min(group, key=lambda entry: entry["ratio"]["median"])
        found.append(
            {
                "mode": mode,
                "pass": pass_,
                "threads": threads,
                "geometric_mean": geometric_mean(entry["ratio"]["median"] for entry in group),
                "worst": worst["ratio"]["median"],
                "worst_shape": worst["shape"],
                "cases": len(group),
            }
        )
    return found


def closing(result):
    """The lines under the table: the machine, how it fared in between, geometric means, the worst ratio."""
    about, probes = result["machine"], result["probes"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, ISA of birnn_ext: {about['isa']}, torch {about['torch']}",
        "probes before / after: "
        + ", ".join(f"{name} {probes['before'][name]:.0f} / {probes['after'][name]:.0f}" for name in probes["before"]),
        "ratio: torch.nn's time over ours, median of neighbouring runs; of floor: by our fastest run, alone",
        f"{'mode':9}{'pass':10}{'threads':>8}{'geometric mean':>16}{'worst':>9}  of",
    ]
    for group in result["summary"]:
        lines.append(
            f"{group['mode']:9}{group['pass']:10}{group['threads']:>8}{group['geometric_mean']:>15.2f}x"
            f"{group['worst']:>8.2f}x  {group['worst_shape']} (worst of {group['cases']})"
        )
    worst = min(result["cases"], key=lambda entry: entry["ratio"]["median"])
    lines.append(f"worst single ratio: {worst['ratio']['median']:.2f}x, {worst['key']}")
    return "\n".join(lines)


def arguments(argv=None):
    def listed(kind, choices=None):
        def parse(text):
            values = [kind(part) for part in text.split(",")]
            if wrong := [value for value in values if choices and value not in choices]:
                raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(choices)}")
            return values

        return parse

    def shape(text):
        try:
            return parse_shape(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(entry.name for entry in GRID)
    parser.add_argument("--shapes", nargs="+", type=shape, help=f"names ({names}) or B,T,I,H[,layers]")
    parser.add_argument("--wide", action="store_true", help=f"{len(WIDE)} shapes drawn at random (with a fixed seed)")
    parser.add_argument("--modes", type=listed(str, MODES), help=f"out of {','.join(MODES)} (default: all)")
    parser.add_argument("--passes", type=listed(str, PASSES), default=list(PASSES), help="out of inference,training")
    parser.add_argument("--threads", type=listed(int), default=[min(2, torch.get_num_threads())], help="for example 1,2")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lengths", action="store_true", help="rows of T/4 to T steps; torch.nn packs and pads them")
    parser.add_argument("--peers", type=listed(str, (*PEERS, "all")), default=[], help=f"all, or out of {','.join(PEERS)}")
    parser.add_argument("--packed", choices=PACKED, help="pack ours' weights beforehand, in this dtype; inference only")
    parser.add_argument("--budget", type=float, help="seconds of timing per case (default 4, quick 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("demo_out/benchmark.json"), help="default %(default)s")
    parser.add_argument("--plot", type=Path, help="default: beside the JSON file, as .png")
    parser.add_argument("--quick", action="store_true", help="three shapes, no RNN_RELU, a small budget")
    args = parser.parse_args(argv)
    if min(args.threads) < 1:
        parser.error(f"--threads must be at least 1, got {min(args.threads)}")
    if args.packed and (args.dtype, args.device) != ("float32", "cpu"):
        parser.error(f"--packed is for float32 on the cpu, got {args.dtype} on {args.device}")
    if args.packed and args.passes == list(PASSES):
        args.passes = ["inference"]
    if args.packed and args.passes != ["inference"]:
        parser.error("--packed is for inference")
    args.shapes = (
        args.shapes
        or [entry for entry in WIDE if args.wide]
        or [entry for entry in GRID if not args.quick or entry.name in QUICK]
    )
    args.modes = args.modes or [mode for mode in MODES if not args.quick or mode != "RNN_RELU"]
    args.budget = args.budget or (1.0 if args.quick else 4.0)
    if "all" in args.peers:
        args.peers = list(PEERS)
    return args


def cases_of(args):
    """All cases of the command line, the threads of a case next to each other."""
    grid = product(args.modes, args.passes, args.shapes, args.threads)
    return [Case(shape, mode, pass_, threads, args.dtype, args.device, args.lengths) for mode, pass_, shape, threads in grid]


def save(result, json_path, plot_path=None):
    """Writes the JSON file and the plot; returns the path of the plot."""
    from .plot import draw as draw_plot

    plot_path = plot_path or json_path.with_suffix(".png")
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(result, indent=1) + "\n")
    draw_plot(result, plot_path)
    return plot_path


def measure_or_exit(args):
    """`measure` of what the command line asks for; ends the program with an error where a check fails."""
    try:
        return measure(
            cases_of(args),
            budget=args.budget,
            peers=args.peers,
            seed=args.seed,
            wide=args.shapes == list(WIDE),
            packed=args.packed,
            show=tqdm.write,
        )
    except CheckFailed as failure:
        sys.exit(f"CHECK FAILED: {failure}")


def main(argv=None):
    args = arguments(argv)
    result = measure_or_exit(args)
    print("\n" + closing(result))
    print(f"\nresults: {args.json}\nplot:    {save(result, args.json, args.plot)}")


if __name__ == "__main__":
    main()
