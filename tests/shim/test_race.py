"""The kernels of one and of many blocks under ThreadSanitizer: no two threads touch the same memory with no barrier between,
and if one barrier is left out it is noticed. And mutants of the exchange between blocks, which have to be found out in some
order of blocks and threads. (Which memory holds what at the end is test_backend.py's business.)"""

import os
import shutil
import subprocess

import pytest

from shim import build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="no g++ to compile the shim with"),
]
ENVIRONMENT = {"BIRNN_SHIM_MULTIPROCESSORS": "3", "TSAN_OPTIONS": "exitcode=66 halt_on_error=1"}


def run(program, **settings):
    # Without address-space randomisation, which older versions of the sanitizer do not survive everywhere.
    command = ["setarch", "-R", str(program)] if shutil.which("setarch") else [str(program)]
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


def test_no_race(watched):
    block, spread = lines(run(watched))
    assert block.startswith("block ") and spread.startswith("spread ") and "gave up" not in spread


@pytest.mark.parametrize("barrier", ["0", "1", "2"])
@pytest.mark.parametrize("kernels", ["block", "spread"])
def test_a_missing_barrier_is_a_race(watched, kernels, barrier):
    only = {"BIRNN_SHIM_SPREAD_ONLY": "1"} if kernels == "spread" else {}
    done = run(watched, BIRNN_SHIM_SKIP_BARRIER=barrier, BIRNN_CUDA_PATIENCE="100000", **only)
    assert done.returncode == 66 and "data race" in done.stderr, done.stderr[-3000:]


# ---- mutants of the exchange ----

EXCHANGE, SPREAD = "cuda/exchange.h", "cuda/spread.cu"
MUTANTS = {
    "no_tag_check": {EXCHANGE: ("all = all && tag_of(word[j]) == tag;", "all = all && tag_of(word[j]) != 0;")},
    "dropped_wait": {EXCHANGE: ("if (all) break;", "if (all || looks > 0) break;")},
    "dropped_wait_for_the_last": {EXCHANGE: ("count = rows * width;", "count = rows * width - 1;")},
    "one_slot": {EXCHANGE: ("return int(tag % 2);", "return int(tag % 1);")},
    "swapped_slot": {EXCHANGE: ("return int(tag % 2);", "return int(tag % 2 ^ (blockIdx.x == 1));")},
    "late_tag": {EXCHANGE: ("return uint64_t(tag) << 32 | payload;", "return uint64_t(tag + 1) << 32 | payload;")},
    "tag_before_datum": {
        SPREAD: (
            "store_word(words + int64_t(me.r) * width + k / per_word<T>, word_of(tag, payload));",
            "{ uint64_t* at = words + int64_t(me.r) * width + k / per_word<T>; store_word(at, word_of(tag, payload_of("
            "load_word(at)))); let_others_run(); store_word(at, word_of(tag, payload)); }",
        )
    },
    "sums_read_too_early": {
        SPREAD: ("chip.multiply(p, me, 0);\n    block_barrier();", "chip.multiply(p, me, 0);"),
    },
    "sums_read_too_early_in_backward": {
        SPREAD: ("chip.multiply(p, me, part);\n      block_barrier();", "chip.multiply(p, me, part);"),
    },
}


def found(program, tries=8):
    """What the program prints for spread kernels, in several orders of threads and blocks."""
    settings = {"BIRNN_SHIM_SPREAD_ONLY": "1", "BIRNN_CUDA_PATIENCE": "300"}
    return {tuple(lines(run(program, BIRNN_SHIM_SEED=str(seed), **settings))) for seed in range(tries)}


@pytest.fixture(scope="module")
def right():
    """The one answer of the kernels as they are, in any order."""
    answers = found(build.mutant("none", {}))
    assert len(answers) == 1
    (answer,) = answers
    assert len(answer) == 1 and "gave up" not in answer[0]
    return answer


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_of_the_exchange_is_noticed(right, name):
    assert found(build.mutant(name, MUTANTS[name])) != {right}


def test_a_block_that_never_comes_ends_in_an_alarm(right):
    program = build.mutant("none", {})
    for absent in "012":
        (line,) = lines(run(program, BIRNN_SHIM_ABSENT_BLOCK=absent, BIRNN_SHIM_SPREAD_ONLY="1", BIRNN_CUDA_PATIENCE="300"))
        assert line.endswith("gave up")
