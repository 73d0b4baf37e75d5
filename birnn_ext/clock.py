"""How time is taken, and what is made of it: interleaved runs, medians, ratios. Knows nothing of layers.

For `birnn_ext.benchmark`, and for benchmarks/ in the repository.

All contenders run in turn, again and again, each going first equally often, so that a slow spell of the
machine hits all of them; and what is reported is the median of the ratios of neighbours, which such spells
hardly move, where milliseconds of two programs run one after the other mean little.
"""

import gc
import math
import time

import torch

# Too little for a rare hiccup of 10 % of the runs to reach the median; enough for the interval to say
# something.
MIN_ROUNDS, MAX_ROUNDS = 6, 600


def interleave(runs, *, budget, sync, consume, min_rounds=MIN_ROUNDS, rest=0.0, clock=time.perf_counter):
    """
    Times callables in turn: A B, B A, A B, ...

    runs        {name: callable(i)}, i counts the rounds
    budget      seconds to spend, warm-up included; at least min_rounds rounds are run however long they take
    sync        called before each reading of the clock (waits for a GPU; on a CPU does nothing)
    consume     called as consume(name, i, result) after each run, outside the time
    rest        seconds of sleep before each run, for thread pools of others to fall asleep in
    returns     {name: [seconds]}, lists of equal length: entry r is of round r
    """
    names = list(runs)
    seconds = {name: [] for name in names}

    def once(name, i):
        if rest:
            time.sleep(rest)
        sync()
        start = clock()
        result = runs[name](i)
        sync()
        took = clock() - start
        consume(name, i, result)
        return took

    begin, rounds = clock(), 0
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for i in range(2):  # warm-up: allocator, caches, threads
            for name in names:
                once(name, i)
            if clock() - begin > budget / 4:
                break
        # Stopping at a multiple of the number of contenders lets each go first equally often.
        while rounds % len(names) or rounds < min_rounds or (clock() - begin < budget and rounds < MAX_ROUNDS):
            first = rounds % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(once(name, rounds))
            rounds += 1
    finally:
        if collecting:
            gc.enable()
    return seconds


def spread(seconds):
    """Statistics of one contender's runs, in milliseconds."""
    ms = 1e3 * torch.tensor(seconds, dtype=torch.float64)
    low, middle, high = _percentiles(ms, 10, 50, 90)
    return {"runs": len(ms), "median_ms": middle, "min_ms": float(ms.min()), "p10_ms": low, "p90_ms": high}


def ratio(theirs, ours, resamples=1000):
    """
    How many times as long `theirs` took as `ours`, from the paired seconds of interleave:
    median      of the ratios within each round
    low, high   95 % interval of that median, by bootstrap over the rounds
    of_minima   the fastest of theirs over the fastest of ours
    """
    if len(theirs) != len(ours) or not len(ours):
        raise ValueError(f"theirs and ours must be paired and not empty, got {len(theirs)} and {len(ours)} times")
    pairs = torch.tensor(theirs, dtype=torch.float64) / torch.tensor(ours, dtype=torch.float64)
    draws = torch.randint(len(pairs), (resamples, len(pairs)), generator=torch.Generator().manual_seed(0))
    medians = torch.quantile(pairs[draws], 0.5, dim=1)
    low, high = _percentiles(medians, 2.5, 97.5)
    return {"median": _percentiles(pairs, 50)[0], "low": low, "high": high, "of_minima": min(theirs) / min(ours)}


def _percentiles(values, *percents):
    return torch.quantile(values, torch.tensor(percents, dtype=torch.float64) / 100).tolist()


def geometric_mean(values):
    """The mean for ratios: twice and half as fast make 1. NaN of nothing."""
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan
