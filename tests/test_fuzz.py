"""Five hundred layers of sizes, options and threads that nobody chose, against the float64 reference.

Like tests/cpu/test_isa.py, whose sizes stand around the vector width by choice; here they stand anywhere. Each run draws new
ones; a failing one prints its case, which hypothesis then makes smaller.
"""

import problems
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

# Sizes of a few vectors and remainders, and some that reach several panels, chunks and teams of threads.
units = st.integers(1, 80) | st.integers(1, 20) | st.sampled_from([96, 100, 127, 128, 129, 160, 200])
features = st.integers(1, 60) | st.sampled_from([64, 127, 130, 257])
rows = st.integers(1, 20) | st.integers(1, 3) | st.sampled_from([33, 64, 200])


@pytest.mark.slow
@settings(
    max_examples=500,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    mode=st.sampled_from(problems.KINDS),
    T=st.integers(1, 12),
    B=rows,
    I=features,
    H=units,
    D=st.integers(1, 2),
    threads=st.sampled_from([1, 1, 2, 3, 8]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    bias=st.booleans(),
    state=st.booleans(),
    batch_first=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_any_layer(mode, T, B, I, H, D, threads, seed, data, **options):  # noqa: E741
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    if mode == "LSTM_PROJ":
        mode = "LSTM"
        options["P"] = data.draw(st.integers(1, H - 1), label="P") if H > 1 else None
    lengths = data.draw(st.none() | st.just("ragged"), label="lengths")
    if lengths:
        lengths = torch.randint(0, T + 1, (B,)).tolist()
    problems.check(problems.make(mode, T, B, I, H, D=D, lengths=lengths, **options))
