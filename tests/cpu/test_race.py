"""Teams under ThreadSanitizer: no two threads touch the same memory with no wait between, and every one of the waits is needed.

The mutants are made from the text of the sweeps: each wait that stands there is left out once. One program holds them all
and is told which. What a team computes is test_teams.py's business.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
SWEEPS = ("forward.inl", "backward.inl", "weight_gradients.h")
WAIT = re.compile(r"\b(?:\w+\.)*team\.wait(?:_for_other)?\([\w.]*\);")
CXX = os.environ.get("CXX", "g++")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which(CXX), reason="no compiler"),
]


def waits():
    """(file, line) of every wait, in the order of their numbers."""
    return [
        (name, i)
        for name in SWEEPS
        for i, line in enumerate((CSRC / "cpu" / name).read_text().splitlines(), 1)
        for _ in WAIT.findall(line)
    ]


def with_mutants(folder):
    """A copy of the sources in which wait number k, from 1 on, stands behind `if (left_out != k)`."""
    shutil.copytree(CSRC, folder)
    number = 0
    for name in SWEEPS:
        path = folder / "cpu" / name
        text = path.read_text()
        assert len(WAIT.findall(text)) == text.count(".wait"), f"{name}: a wait that is not written like the others"

        def guarded(match):
            nonlocal number
            number += 1
            return f"if (left_out != {number}) {match[0]}"

        path.write_text(WAIT.sub(guarded, text))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("race")
    with_mutants(folder / "csrc")
    sanitizer = ["-fsanitize=thread", "-pthread"]
    command = [CXX, "-std=c++20", "-O1", "-g", *sanitizer, f"-I{folder / 'csrc'}", HERE / "race.cpp", "-o", folder / "race"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode and "tsan" in done.stderr:
        pytest.skip("this compiler has no ThreadSanitizer")
    assert done.returncode == 0, done.stderr
    return folder / "race"


def run(program, left_out):
    # Without address-space randomisation, which older versions of the sanitizer do not survive everywhere.
    command = ["setarch", "-R", str(program)] if shutil.which("setarch") else [str(program)]
    settings = {"BIRNN_LEFT_OUT": str(left_out), "TSAN_OPTIONS": "exitcode=66 halt_on_error=1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, **settings})


def test_no_race(program):
    done = run(program, 0)
    assert done.stdout == "done\n" and done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("number", range(1, len(waits()) + 1), ids=[f"{name}:{line}" for name, line in waits()])
def test_a_missing_wait_is_a_race(program, number):
    done = run(program, number)
    assert done.returncode == 66 and "data race" in done.stderr, done.stderr[-3000:]
