"""float16 and bfloat16 in the kernels of every instruction set: against float64, around the widths of vectors and of pairs.

Not here: modules in these dtypes (../test_halves.py), teams of threads (test_teams.py).
"""

import pytest
import torch

pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")

import grids
import problems

from birnn_ext import _C, ops
from cpu.test_isa import BIG, CASES, VECTOR_BYTES, case

both = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
FLOAT = 4  # bytes of what is computed in


@pytest.mark.parametrize("i", CASES)
def test_equals_the_reference(isa_of_halves, i):
    torch.set_num_threads(1)
    dtype = (torch.float16, torch.bfloat16)[i % 2]
    problems.check(case(i, VECTOR_BYTES[isa_of_halves] // FLOAT, dtype))


@pytest.mark.parametrize("I", [1, 2, 3, 31, 32, 33, 63, 64, 65])  # noqa: E741
@pytest.mark.parametrize("kind", problems.KINDS)
def test_odd_and_even_features_and_units(isa_of_halves, kind, I):  # noqa: E741
    """The last of an odd number is alone in its pair; few steps, so that weights are not packed, and more, so that they are."""
    for T, B in ((1, 1), (1, 3), (5, 9)):
        problems.check(problems.typical(kind, T=T, B=B, I=I, H=max(1, I - 1), dtype=torch.bfloat16))


@both
@pytest.mark.parametrize("name", BIG)
def test_large_sizes(isa_of_halves, name, dtype):
    problems.check(problems.make(**BIG[name], dtype=dtype))


@both
@pytest.mark.parametrize("kind", problems.KINDS)
def test_what_is_computed_in_float32_is_rounded_once(kind, dtype):
    """Without a processor's own products of bfloat16: the bits of the float32 kernel, rounded."""
    before = _C.isa()
    _C.set_isa("base")
    try:
        problem = problems.typical(kind, lengths=True, dtype=dtype).detach()
        single = problems.results(problem.map(lambda t: None if t is None else t.float()))
        assert all(torch.equal(a, b.to(dtype)) for a, b in zip(problems.results(problem), single, strict=True))
    finally:
        _C.set_isa(before)


@both
def test_infinities_nans_and_numbers_out_of_range(isa_of_halves, dtype):
    """A layer of one unit that passes its input on, x -> relu(x): what is read and rounded is every kind of number."""
    largest, tiny = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    x = torch.tensor(
        [0.0, 1.0, largest, torch.inf, torch.nan, tiny, tiny / 2, 3 * tiny / 4, 1 + torch.finfo(dtype).eps], dtype=dtype
    )
    one, zero = torch.ones(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    for some in (x, x[:3], x[4:]):  # rows of a vector, and the rest
        output, _, _ = ops.layer(some.view(1, -1, 1), None, None, None, ((one, zero, None, None, None),), mode="RNN_RELU")
        # Some processors take a denormal for zero where they multiply bfloat16.
        denormals = tiny if _C.multiplies_bfloat16() and dtype == torch.bfloat16 else 0
        torch.testing.assert_close(output.view(-1), some, rtol=0, atol=denormals, equal_nan=True)
    twice = 2 * one
    output, _, _ = ops.layer(x[2:3].view(1, 1, 1), None, None, None, ((twice, zero, None, None, None),), mode="RNN_RELU")
    assert output.item() == torch.inf


@both
@pytest.mark.parametrize("kind", problems.KINDS)
def test_any_strides(isa_of_halves, kind, dtype):
    problem = problems.typical(kind, dtype=dtype).detach()
    gaps = problem.map(lambda t: None if t is None else torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0])
    for a, b in zip(problems.results(gaps), problems.results(problem), strict=True):
        assert torch.equal(a, b)


def test_gradients_summed_over_shares_of_the_rows(threads):
    """With more threads than directions each share of the rows has weight gradients of its own, in float32."""
    for dtype in (torch.float16, torch.bfloat16):
        problems.check(problems.make("GRU", 20, 64, 40, 130, lengths=grids.ragged(20, 64), dtype=dtype))
