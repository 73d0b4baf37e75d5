"""What benchmarks.gpu measures, and how: the grid of cases in the order of their importance, CUDA events, contenders in turn,
names of kernels, peak memory; and the lines of the table. Not here: building, testing, and the command line (gpu.py).
"""

import contextlib
import math
import os
import statistics
import time
from itertools import product

import torch

from .check import Judge
from .contenders import OURS, THEIRS, Ours, Torch
from .problem import draw
from .shapes import Case, Shape

# float32 comes twice: with TF32 as torch has it for cuDNN, and without.
PRECISIONS = {"tf32": "float32", "bfloat16": "bfloat16", "float16": "float16", "ieee": "float32"}
GRAPH = "birnn_ext, graph"
PERSISTENT = "birnn_ext, persistent"  # with BIRNN_PERSISTENT=1, where that changes something
CHECK_STEPS = 12
PROFILING = 20  # seconds at the end
FAILURES = 10  # at most, that are printed
HEADER = (
    f"{'mode':9}{'pass':10}{'numbers':9}{'B,T,I,H,L':22}{'torch.nn':>9}{'ours':>9}{'graph':>9}{'persist.':>9}"
    f"{'ratio':>7}{'graph':>7}{'pers.':>7}  MiB"
)


def cases():
    """[(Case, precision)]: every case once, those that say most first."""
    sizes = [(H, B) for H in (128, 512, 64, 256, 1024) for B in (1, 32, 128)]
    groups = [
        (("GRU",), ("tf32", "bfloat16"), (512,), (1,)),
        (("LSTM",), ("tf32", "bfloat16"), (512,), (1,)),
        (("GRU", "LSTM"), ("ieee", "float16"), (512,), (1,)),
        (("RNN_TANH",), ("tf32", "bfloat16"), (512,), (1,)),
        (("GRU", "LSTM"), ("tf32", "bfloat16"), (50,), (1, 3)),
        (("GRU", "LSTM"), ("tf32", "bfloat16"), (512,), (3,)),
        (("RNN_RELU", "RNN_TANH"), tuple(PRECISIONS), (50,), (1,)),
    ]
    found = []
    for modes, precisions, steps, layers in groups:
        for L, T, precision, (H, B), mode, pass_ in product(layers, steps, precisions, sizes, modes, ("inference", "training")):
            shape = Shape(f"gpu_{B}_{T}_{H}_{L}", B, T, H, H, L)
            found.append((Case(shape, mode, pass_, 1, PRECISIONS[precision], "cuda"), precision))
    return found


def set_precision(precision):
    """torch.nn's setting, and that of products: ours takes TF32 where both allow it."""
    setting = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cudnn.rnn.fp32_precision = torch.backends.cuda.matmul.fp32_precision = setting


@contextlib.contextmanager
def persistent():
    """BIRNN_PERSISTENT=1 while it lasts."""
    before = os.environ.get("BIRNN_PERSISTENT")
    os.environ["BIRNN_PERSISTENT"] = "1"
    try:
        yield
    finally:
        del os.environ["BIRNN_PERSISTENT"]
        if before is not None:
            os.environ["BIRNN_PERSISTENT"] = before


def has_persistent(case):
    """Whether a pass of ours takes kernels of many blocks under BIRNN_PERSISTENT=1."""
    if case.device != "cuda":
        return False
    s, dtype, device = case.shape, getattr(torch, case.dtype), torch.cuda.current_device()
    with persistent():
        return any(
            torch.ops.birnn_ext.cuda_tier(case.mode, dtype, s.B, s.H, 2, False, backward, device)[0] in ("spread", "cluster")
            for backward in (False, True)[: 1 + case.training]
        )


def verify(case, precision):
    """CheckFailed unless ours is right in this case, on its first few steps, persistent or not."""
    shape = case.shape
    short = Case(
        Shape(shape.name, shape.B, min(shape.T, CHECK_STEPS), shape.I, shape.H, shape.L),
        case.mode, case.pass_, 1, case.dtype, case.device,
    )  # fmt: skip
    ours, problem = Ours(), draw(short)
    ours.prepare(problem)
    judge = Judge(problem, tf32=precision == "tf32")
    error = judge.check(ours)
    if has_persistent(case):
        with persistent():
            error = max(error, judge.check(ours))
    return error


def runs(case):
    """{name: callable}: one pass of each contender on numbers of its own, of ours as a CUDA graph (inference only), too, and
    with persistent kernels where there are any."""
    shape, dtype = case.shape, getattr(torch, case.dtype)
    x = torch.randn(shape.T, shape.B, shape.I, device="cuda", dtype=dtype)
    theirs, ours = (maker().make(case, dtype, "cuda") for maker in (Torch, Ours))
    ours.load_state_dict(theirs.state_dict())
    if case.training:
        found = {THEIRS: training_step(theirs, x), OURS: training_step(ours, x)}
        return found | ({PERSISTENT: persistently(training_step(ours, x))} if has_persistent(case) else {})
    for module in (theirs, ours):
        module.eval()

    def inference(module):
        def run():
            with torch.no_grad():
                return module(x)

        return run

    found = {THEIRS: inference(theirs), OURS: inference(ours), GRAPH: graphed(inference(ours))}
    return found | ({PERSISTENT: persistently(inference(ours))} if has_persistent(case) else {})


def persistently(run):
    def inside():
        with persistent():
            return run()

    return inside


def training_step(module, x):
    leaf, loss_weight = x.clone().requires_grad_(), None

    def run():
        nonlocal loss_weight
        leaf.grad = None
        module.zero_grad(set_to_none=True)
        output, _ = module(leaf)
        if loss_weight is None:
            loss_weight = torch.randn_like(output)
        output.backward(loss_weight)
        return output

    return run


def graphed(run):
    """A callable that replays `run` as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def once(run):
    """Milliseconds of one pass, by CUDA events."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def interleave(callables, budget, timer=once, clock=time.perf_counter, least=5, most=60):
    """{name: [milliseconds]}: all in turn, each going first equally often, for `budget` seconds and `least` rounds at least."""
    names, found = list(callables), {name: [] for name in callables}
    for _ in range(2):
        for run in callables.values():
            timer(run)
    begin = clock()
    for i in range(most):
        if i >= least and clock() - begin > budget:
            break
        first = i % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(timer(callables[name]))
    return found


def entry_of(case, precision, milliseconds, error, memory):
    """A case's entry in the result."""
    steps = case.shape.T * case.shape.L
    medians = {name: statistics.median(values) for name, values in milliseconds.items()}
    return {
        "mode": case.mode,
        "pass": case.pass_,
        "precision": precision,
        "shape": dict(zip("BTIHL", (case.shape.B, case.shape.T, case.shape.I, case.shape.H, case.shape.L), strict=True)),
        "us_per_step": {name: 1e3 * ms / steps for name, ms in medians.items()},
        "ratio": {
            name: statistics.median(a / b for a, b in zip(milliseconds[THEIRS], values, strict=True))
            for name, values in milliseconds.items()
            if name != THEIRS
        },
        "rounds": len(milliseconds[THEIRS]),
        "relative_error": error,
        "peak_mib": memory,
        "kernels": {},
    }


def peak_mib(run):
    """Most memory that a pass takes beside what is there already."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = run()
    torch.cuda.synchronize()
    del kept
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def kernel_names(run, most=4):
    """Names of the kernels that took most of a pass, and their share of it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    spent = {event.key: event.self_device_time_total for event in profile.key_averages() if event.self_device_time_total > 0}
    total = sum(spent.values()) or 1
    return {name[:100]: round(spent[name] / total, 3) for name in sorted(spent, key=spent.get, reverse=True)[:most]}


def measure(case, precision):
    """Checks and times one case."""
    set_precision(precision)
    error = verify(case, precision)
    callables = runs(case)
    memory = {name: peak_mib(run) for name, run in callables.items() if name != GRAPH}
    return entry_of(case, precision, interleave(callables, 0.2), error, memory)


def profile(case, precision):
    """{contender: its kernels}"""
    set_precision(precision)
    return {name: kernel_names(run) for name, run in runs(case).items() if name != GRAPH}


def bench(result, deadline, show, save, clock=time.monotonic, work=measure, look=profile, settle=torch.cuda.synchronize):
    """Measures cases into result["cases"] until the time is up; the last of it is for the names of kernels, since what has been
    profiled once in a process may be slower ever after. Returns whether none failed."""
    measured = []
    for case, precision in cases():
        if clock() > deadline - PROFILING:
            show(f"the time is up after {len(measured)} of {len(cases())} cases")
            break
        label = f"{case.mode} {case.pass_} {precision} {case.shape}"
        try:
            entry = work(case, precision)
        except torch.cuda.OutOfMemoryError:
            show(f"{label}: out of memory")
            torch.cuda.empty_cache()
            continue
        except Exception as failure:
            result["failures"].append(f"{label}: {type(failure).__name__}: {failure}")
            if len(result["failures"]) <= FAILURES:
                show(f"FAILED {result['failures'][-1]}")
            save()
            if not usable(result, settle):
                return False
            continue
        measured.append((case, precision, entry))
        result["cases"].append(entry)
        show(line(entry))
        save()
    name_kernels(measured, deadline, look, clock, show)
    save()
    return not result["failures"]


def usable(result, settle):
    """Whether the device still works after a failure: an error in a kernel spoils everything that comes after it."""
    try:
        settle()
    except Exception as error:
        result["failures"].append(f"the device is lost, the rest is left out: {error}")
        return False
    return True


def name_kernels(measured, deadline, look, clock, show):
    """Profiles a case for every mode, pass, precision and size, while there is time."""
    profiled = set()
    for case, precision, entry in measured:
        key = (case.mode, precision, case.shape.H, case.pass_)
        if key in profiled:
            continue
        if clock() > deadline:
            return
        profiled.add(key)
        try:
            entry["kernels"] = look(case, precision)
        except Exception as failure:  # no reason to lose the timings
            show(f"no names of kernels: {type(failure).__name__}: {failure}")
            return


# ---- the table ----


def line(entry):
    """One line of the table: microseconds per step, and ratios to torch.nn."""
    shape, us, ratio = entry["shape"], entry["us_per_step"], entry["ratio"]
    sizes = ",".join(str(shape[name]) for name in "BTIHL")

    def number(value, width, digits):
        return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"

    return (
        f"{entry['mode']:9}{entry['pass']:10}{entry['precision']:9}{sizes:22}{us[THEIRS]:>9.2f}{us[OURS]:>9.2f}"
        f"{number(us.get(GRAPH), 9, 2)}{number(us.get(PERSISTENT), 9, 2)}"
        f"{number(ratio[OURS], 7, 2)}{number(ratio.get(GRAPH), 7, 2)}{number(ratio.get(PERSISTENT), 7, 2)}"
        f"  {entry['peak_mib'][OURS]:.0f} ({entry['peak_mib'][THEIRS]:.0f})"
    )


def summary(entries):
    """[(mode, pass, precision, contender, geometric mean of the ratios, smallest, number of cases)]"""
    groups = {}
    for entry in entries:
        for name, ratio in entry["ratio"].items():
            groups.setdefault((entry["mode"], entry["pass"], entry["precision"], name), []).append(ratio)
    return [
        (*key, math.exp(sum(map(math.log, ratios)) / len(ratios)), min(ratios), len(ratios)) for key, ratios in groups.items()
    ]
