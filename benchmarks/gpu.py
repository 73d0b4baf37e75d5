"""The GPU check in one command: build, test, sanitize, measure; within nine minutes, offline, from the working tree.

    python -m benchmarks.gpu                          or `make gpu`; needs torch with CUDA, nvcc, a C++ compiler, ninja, pytest
    python -m benchmarks.gpu --stages bench --seconds 300 --out somewhere

    build       the library in place, for the architecture that is there
    smoke       the smallest cases, once
    tests       tests/gpu, none of which may be skipped; a process for each file, so that one may hang
    sanitizer   compute-sanitizer (memcheck, racecheck) over the smallest cases, where it is installed
    bench       birnn_ext against torch.nn (cuDNN), checked against float64 first, then timed in turn with CUDA events

A stage that fails does not keep the next from running; the exit status is 1 if any failed. What has been found so far is in the
JSON file at any time, and what the stages printed is in gpu_logs beside it; the table comes last. Cases are measured in the
order of their importance until the time is up.
Not here: CPUs (run.py). Needs no package but torch.
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import torch

from .gpu_cases import FAILURES, HEADER, bench, cases, line, summary
from .shapes import MODES

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("build", "smoke", "tests", "sanitizer", "bench")
SECONDS = 525
# At most, of a stage that is not the last; what it leaves goes to the benchmark.
LIMIT = {"build": 150, "smoke": 40, "tests": 210, "sanitizer": 90}
GRACE = 10  # seconds that a command has to print its summary once it is told to stop
VERDICT = {True: "passed", False: "FAILED", None: "unfinished"}


def closing(result):
    """The lines that come last."""
    lines = [f"{result['device']}, driver {result['driver']}, torch {result['torch']}, CUDA {result['cuda']}"]
    for name, stage in result["stages"].items():
        lines.append(f"{name:10}{VERDICT[stage['passed']]:12}{stage['seconds']:>6.0f} s  {stage['says']}")
    failures = result["failures"]
    lines += [f"FAILED {text}" for text in failures[:FAILURES]]
    if len(failures) > FAILURES:
        lines.append(f"and {len(failures) - FAILURES} more, in the JSON file")
    if result["cases"]:
        lines += [
            "",
            "microseconds per step and layer; ratio: torch.nn's time over ours",
            HEADER,
            *map(line, result["cases"]),
            "",
        ]
        for mode, pass_, precision, name, mean, least, count in summary(result["cases"]):
            text = f"geometric mean {mean:.2f}, smallest {least:.2f}, of {count}"
            lines.append(f"{mode:9}{pass_:10}{precision:9}{name:18}{text}")
    return "\n".join(lines)


def arch(capability):
    """(9, 0) -> "9.0a": what there is of instructions is what is there."""
    major, minor = capability
    return f"{major}.{minor}" + "a" * (major == 9)


def command(words, limit, log, environment=()):
    """Runs a command, output into the file `log`. Returns (exit status, the output); 124 if it ran past `limit` seconds. Then
    it is interrupted, with every process that it has started, and killed where that does not help."""
    with log.open("w") as file:
        process = subprocess.Popen(
            list(map(str, words)), cwd=ROOT, env={**os.environ, **dict(environment)},
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(max(1, limit))
        except subprocess.TimeoutExpired:
            status = 124
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return status, log.read_text(errors="replace")


def last_line(text):
    return next((row.strip() for row in reversed(text.splitlines()) if row.strip()), "")[:160]


def build(limit, out):
    environment = {
        "BIRNN_CUDA": "1",
        "BIRNN_CUDA_ARCHS": arch(torch.cuda.get_device_capability()),
        "MAX_JOBS": str(os.cpu_count() or 2),
    }
    status, text = command([sys.executable, "setup.py", "build_ext", "--inplace"], limit, out / "build.log", environment)
    says = f"for {environment['BIRNN_CUDA_ARCHS']}" if status == 0 else last_line(text)
    return status == 0, says, text


SMALLEST = [sys.executable, "-m", "benchmarks.gpu", "--smallest"]
KINDS = ("others", "clusters")


def smoke(limit, out):
    status, text = command([*SMALLEST, "all"], limit, out / "smoke.log")
    return status == 0, "hung" if status == 124 else last_line(text), text


def tests(limit, out, folder=ROOT / "tests/gpu", clock=time.monotonic):
    """A process per file; each may use its share of the time that is left, streams and graphs first."""
    environment = {"BIRNN_REQUIRE_CUDA": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    files = sorted(folder.glob("test_*.py"), key=lambda path: (path.stem != "test_streams", path.stem))
    end, passed, says, texts = clock() + limit, True, [], []
    for i, path in enumerate(files):
        words = [sys.executable, "-m", "pytest", path, "-q", "--tb=line", "-p", "no:cacheprovider"]
        share = (end - clock()) / (len(files) - i)
        status, text = command(words, share, out / f"{path.stem}.log", environment)
        said = f"cut short after {share:.0f} s" if status == 124 else last_line(text).strip("= ")
        says.append(f"{path.stem}: {said}")
        passed = passed and status == 0
        if status != 0:
            texts.append(text)
    return passed, "; ".join(says), "\n".join(texts)


def has_clusters():
    return torch.cuda.get_device_capability()[0] >= 9


def sanitizer(limit, out, clock=time.monotonic):
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if not tool:
        return True, "compute-sanitizer is not installed: left out", ""
    verdicts, says, texts = set(), [], []
    runs = list(product(("memcheck", "racecheck"), KINDS if has_clusters() else KINDS[:1]))
    end = clock() + limit
    # Clusters are watched apart: a tool that does not know their barriers, or stops at them, says nothing of the others then.
    for i, (name, kinds) in enumerate(runs):
        # Kernels of ours alone: all of them are in namespace birnn, and so have it in their mangled names.
        words = [tool, "--tool", name, "--kernel-name", "kns=birnn", "--error-exitcode", "9", *SMALLEST, kinds]
        # Without torch's cache every tensor is an allocation of its own, whose end memcheck knows.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        watched = f"{name}_{kinds}"
        status, text = command(words, (end - clock()) / (len(runs) - i), out / f"{watched}.log", environment)
        errors = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
        says.append(f"{watched}: {'not finished' if status == 124 else errors[-1] if errors else last_line(text)}")
        verdicts.add(None if status == 124 else status == 0)
        texts.append(text)
    passed = False if False in verdicts else None if None in verdicts else True
    return passed, "; ".join(says), "\n".join(texts)


def smallest(kinds):
    """What the sanitizer watches: every mode, all kinds of kernels, forward and backward, unequal rows; halves where they are
    multiplied by tensor cores. `kinds`: "clusters", "others" or "all"."""
    import birnn_ext

    def train(module, **options):
        x = torch.randn(3, 5, 5, device="cuda", dtype=next(module.parameters()).dtype)
        module(x, **options)[0].sum().backward()
        torch.cuda.synchronize()

    tiers = ("stepwise", "block", "spread") * (kinds != "clusters") + ("cluster",) * (kinds != "others" and has_clusters())
    for tier, mode in product(tiers, MODES):
        with birnn_ext.cuda_kernel(tier):
            train(birnn_ext.BiRNN(5, 9, mode=mode).cuda(), lengths=[3, 1, 0, 2, 3])
    for tier in tiers:
        if tier in ("spread", "cluster"):
            with birnn_ext.cuda_kernel(tier):
                train(birnn_ext.LSTM(5, 9, bidirectional=True).half().cuda(), lengths=[3, 1, 0, 2, 3])
    if kinds != "clusters":
        train(birnn_ext.LSTM(5, 9, proj_size=4, bidirectional=True).cuda())
    print(f"the smallest cases ran ({', '.join(tiers) or 'no clusters here'})")


def driver():
    """Version of the driver, as nvidia-smi tells it."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.split("\n")[0].strip() or "unknown"


def say(text):
    print(text, flush=True)  # at once, also into a pipe


def run(stages, seconds, out, show=say, clock=time.monotonic):
    """Runs the stages; returns the result, which is saved in `out` all along."""
    begin = clock()
    device = torch.cuda.get_device_name()
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device,
        "driver": driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "stages": {},
        "cases": [],
        "failures": [],
    }
    path = out / f"gpu_{re.sub(r'[^a-z0-9]+', '_', device.lower()).strip('_')}.json"
    logs = out / "gpu_logs"
    for folder in (out, logs):
        folder.mkdir(parents=True, exist_ok=True)

    def save():
        path.write_text(json.dumps(result, indent=1) + "\n")

    work = {"build": build, "smoke": smoke, "tests": tests, "sanitizer": sanitizer}
    for stage in stages:
        started, left = clock(), seconds - (clock() - begin)
        show(f"---- {stage}, {left:.0f} s left ----")
        if stage == "bench":
            passed = bench(result, begin + seconds - 10, show, save)
            says = f"{len(result['cases'])} of {len(cases())} cases"
        else:
            passed, says, text = work[stage](min(LIMIT[stage], left), logs)
            if passed is False:
                show("\n".join(text.splitlines()[-60:]))
        result["stages"][stage] = {"passed": passed, "seconds": round(clock() - started, 1), "says": says}
        save()
    show("\n" + closing(result))
    show(f"\nresults: {path}")
    return result


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--stages", default=",".join(STAGES), help=f"out of {','.join(STAGES)} (default: all)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything (default %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder for the JSON file and gpu_logs")
    parser.add_argument("--smallest", choices=("all", *KINDS), help="only run the smallest cases, for the sanitizer")
    args = parser.parse_args(argv)
    stages = args.stages.split(",")
    if unknown := [stage for stage in stages if stage not in STAGES]:
        parser.error(f"--stages: {unknown[0]!r} is none of {', '.join(STAGES)}")
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: no CUDA device that this torch can use")
    if args.smallest:
        return smallest(args.smallest)
    result = run(stages, args.seconds, args.out)
    if any(stage["passed"] is False for stage in result["stages"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
