"""The kernels of one and of many blocks under ThreadSanitizer: no two threads touch the same memory with no barrier between,
and if one barrier is left out it is noticed. And mutants of the exchange between blocks, which have to be found out in some
order of blocks and threads. (Which memory holds what at the end is test_backend.py's business.)"""

import functools
import os
import shutil
import subprocess

import pytest

from shim import build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="no g++ to compile the shim with"),
]
ENVIRONMENT = {"TSAN_OPTIONS": "exitcode=66 halt_on_error=1"}


def run(program, *kernels, **settings):
    # Without address-space randomisation, which older versions of the sanitizer do not survive everywhere.
    command = [*(["setarch", "-R"] if shutil.which("setarch") else []), str(program), *kernels]
    environment = {**os.environ, **ENVIRONMENT, **settings}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


@pytest.fixture(scope="module")
def watched():
    """The program that ThreadSanitizer watches."""
    try:
        return build.race()
    except AssertionError as error:
        if "tsan" in str(error):
            pytest.skip("this compiler has no ThreadSanitizer")
        raise


def lines(done):
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


KERNELS = ("block", "spread", "cluster")


@pytest.mark.parametrize("kernels", KERNELS)
def test_no_race(watched, kernels):
    (line,) = lines(run(watched, kernels))
    assert line.startswith(f"{kernels} ") and "gave up" not in line


@pytest.mark.parametrize("barrier", ["0", "1", "2"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_missing_barrier_is_a_race(watched, kernels, barrier):
    done = run(watched, kernels, BIRNN_SHIM_SKIP_BARRIER=barrier, BIRNN_CUDA_PATIENCE="100000")
    assert done.returncode == 66 and "data race" in done.stderr, done.stderr[-3000:]


# ---- mutants of the exchanges ----

EXCHANGE, PUSH, STEPS, CHIP = "cuda/exchange.h", "cuda/push.h", "cuda/steps.h", "cuda/chip.h"
EARLY_SUMS = (STEPS, "link.vector(), 0);\n      lost = block_any(in_vain);", "link.vector(), 0);")
EARLY_SUMS_IN_BACKWARD = (STEPS, "link.vector(), part);\n      lost = block_any(in_vain);", "link.vector(), part);")
# Weights in registers: those of a neighbour, or in the place of a neighbour. (H = 9 leaves none to shared memory, and has one
# tile of k, so that a neighbour's are zeros: partly held ones are test_spread.py's.)
WRONG_HALVES = (CHIP, "? operand(p, me, from, part, k) :", "? operand(p, me, from, part, k + 1) :")
WRONG_FLOATS = (CHIP, "push_in(held, four(part, g, q));", "push_in(held, four(part, (g + 1) % G, q));")
MISPLACED = (CHIP, "array[i] = i + 1 < N ? array[i + 1] : last;", "array[i] = i + 2 < N ? array[i + 1] : last;")
MUTANTS = {
    "spread": {
        "no_tag_check": [(EXCHANGE, "all = all && tag_of(word[j]) == tag;", "all = all && tag_of(word[j]) != 0;")],
        "dropped_wait": [(EXCHANGE, "if (all) break;", "if (all || looks > 0) break;")],
        "dropped_wait_for_the_last": [(EXCHANGE, "count = me.rows * width;", "count = me.rows * width - 1;")],
        "one_slot": [(EXCHANGE, "return int(tag % 2);", "return int(tag % 1);")],
        "swapped_slot": [(EXCHANGE, "return int(tag % 2);", "return int(tag % 2 ^ (blockIdx.x == 1));")],
        "late_tag": [(EXCHANGE, "return uint64_t(tag) << 32 | payload;", "return uint64_t(tag + 1) << 32 | payload;")],
        "tag_before_datum": [
            (
                EXCHANGE,
                "store_word(words(part) + int64_t(me.r) * width + k / together, word_of(tag, payload));",
                "uint64_t* at = words(part) + int64_t(me.r) * width + k / together; store_word(at, word_of(tag, payload_of("
                "load_word(at)))); let_others_run(); store_word(at, word_of(tag, payload));",
            )
        ],
        "sums_read_too_early": [EARLY_SUMS],
        "sums_read_too_early_in_backward": [EARLY_SUMS_IN_BACKWARD],
        "wrong_floats_held": [WRONG_FLOATS],
    },
    "cluster": {
        "wrong_halves_held": [WRONG_HALVES],
        "weights_held_in_the_wrong_place": [MISPLACED],
        "dropped_wait": [(PUSH, "here = !lost && has_arrived(arrivals + slot(), phase());", "here = true;")],
        "one_slot": [(PUSH, "return turn % 2;", "return 0;"), (PUSH, "uint32_t(turn / 2 % 2)", "uint32_t(turn % 2)")],
        "swapped_slot": [(PUSH, "return turn % 2;", "return turn % 2 ^ (blockIdx.x == 1);")],
        "swapped_slot_of_pushes": [
            (PUSH, "shared_address(to + slot() *", "shared_address(to + (slot() ^ (blockIdx.x == 1)) *")
        ],
        "wrong_phase": [(PUSH, "uint32_t(turn / 2 % 2)", "uint32_t(turn / 2 % 2 ^ 1)")],
        "too_few_bytes": [(PUSH, "values * int(sizeof(T))))", "values * int(sizeof(T)) - 4))")],
        "too_many_bytes": [(PUSH, "values * int(sizeof(T))))", "values * int(sizeof(T)) + 4))")],
        "a_block_left_out": [(PUSH, "i < blocks; i += together", "i < blocks - 1; i += together")],
        "announced_by_every_warp": [(PUSH, "if (threadIdx.x == 0) expect", "if (threadIdx.x % 32 == 0) expect")],
        "no_barrier_before_the_loop": [(PUSH, "cluster_barrier();  // now", "// now")],
        "sums_read_too_early": [EARLY_SUMS],
        "sums_read_too_early_in_backward": [EARLY_SUMS_IN_BACKWARD],
    },
}


def answers(program, kernels, tries=8, **settings):
    """What the program prints of its kernels, or why it broke off, in several orders of threads and blocks."""
    for seed in range(tries):
        done = run(program, kernels, **{"BIRNN_SHIM_SEED": str(seed), "BIRNN_CUDA_PATIENCE": "100", **settings})
        yield done.stdout.strip() if done.returncode == 0 else done.stderr


@functools.cache
def right(kernels):
    """Their one answer as they are, in any order."""
    (answer,) = set(answers(build.mutant("none"), kernels))
    assert answer.startswith(kernels) and "gave up" not in answer
    return answer


@pytest.mark.parametrize("kernels, name", [(k, name) for k in MUTANTS for name in MUTANTS[k]])
def test_a_mutant_of_the_exchange_is_noticed(kernels, name):
    program = build.mutant(f"{kernels}_{name}", kernels, MUTANTS[kernels][name])
    assert any(found != right(kernels) for found in answers(program, kernels))


@pytest.mark.parametrize("kernels", MUTANTS)
def test_a_block_that_is_never_heard_of_ends_in_an_alarm(kernels):
    for absent in "012":
        (answer,) = set(answers(build.mutant("none"), kernels, 2, BIRNN_SHIM_ABSENT_BLOCK=absent))
        assert answer.endswith("gave up"), answer


# Nobody waits for a block of a cluster that has no units, so nothing may be pushed into it.
WITHOUT_UNITS = [
    (PUSH, "blocks((me.H + p.units - 1) / p.units)", "blocks(p.splits)"),
    (CHIP, "first_unit < H && i < rows", "i < rows"),
]


def test_a_block_without_units_may_fall_behind():
    slow = {"BIRNN_SHIM_SLOW_BLOCK": "3", "BIRNN_CUDA_PATIENCE": "1000"}
    assert set(answers(build.mutant("none"), "cluster", 2, **slow)) == {right("cluster")}
    program = build.mutant("cluster_without_units", "cluster", WITHOUT_UNITS)
    assert any(found != right("cluster") for found in answers(program, "cluster", **slow))


# What makes it safe to end when some have given up and others have not, and how seldom pushes arrive: if seldom, blocks wait
# for them and meet at the end all the same; if often, there are none in flight that could have been waited for.
ENDS = {
    "no_barrier_behind_the_loop": ("1", (PUSH, "let_pushes_land();\n    cluster_barrier();", "let_pushes_land();")),
    "pushes_in_flight_at_the_end": ("8", (PUSH, "if (lost || flag_is_up(x)) let_pushes_land();", "")),
}


@pytest.mark.parametrize("name", ENDS)
def test_no_block_of_a_cluster_ends_while_others_push(name):
    """Here blocks give up before they have looked, and what they push may take its time."""
    seldom, change = ENDS[name]
    hasty = {"BIRNN_CUDA_PATIENCE": "1", "BIRNN_SHIM_SELDOM": seldom}
    assert all(found.endswith("gave up") for found in answers(build.mutant("none"), "cluster", **hasty))
    program = build.mutant(f"cluster_{name}", "cluster", [change])
    assert any("a push into a block that has ended" in found for found in answers(program, "cluster", **hasty))
