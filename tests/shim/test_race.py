"""The block kernels under ThreadSanitizer: no two threads touch the same memory with no barrier between, and if one barrier is
left out it is noticed. (Which memory holds what at the end is test_backend.py's business.)"""

import os
import shutil
import subprocess

import pytest

from shim import build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="no g++ to compile the shim with"),
]


def run(**settings):
    # Without address-space randomisation, which older versions of the sanitizer do not survive everywhere.
    command = ["setarch", "-R", str(build.race())] if shutil.which("setarch") else [str(build.race())]
    environment = {**os.environ, "TSAN_OPTIONS": "exitcode=66 halt_on_error=1", **settings}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


@pytest.fixture(scope="module", autouse=True)
def sanitizer_works():
    try:
        build.race()
    except AssertionError as error:
        if "tsan" in str(error):
            pytest.skip("this compiler has no ThreadSanitizer")
        raise


def test_no_race():
    done = run()
    assert done.returncode == 0 and done.stdout == "ran\n", done.stderr[-3000:]


@pytest.mark.parametrize("barrier", ["0", "1", "2"])
def test_a_missing_barrier_is_a_race(barrier):
    done = run(BIRNN_SHIM_SKIP_BARRIER=barrier)
    assert done.returncode == 66 and "data race" in done.stderr, done.stderr[-3000:]
