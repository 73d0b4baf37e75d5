"""What the kernels of the CPU know beside whole rows and their ends: rows divided into episodes, and the c of every step.

Against the reference, with every instruction set, one thread and several. What `reset` and `return_states` mean, against
loops written by hand: tests/test_variants.py.
"""

import random
from dataclasses import replace

import compare
import grids
import problems
import pytest
import torch

from birnn_ext import ops, reference

_C = pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")


def numbers(T, lengths, share, seed=0):
    """Numbers of episodes [B, T]: every step but the first of a row begins one with probability `share`."""
    coin, rows = random.Random(seed).random, []
    for b, n in enumerate(lengths):
        episode = 1 + b % 2  # every second row does not go on from h0
        row = [episode]
        for _ in range(1, n):
            episode += coin() < share
            row.append(episode)
        rows.append((row + [0] * T)[:T] if n else [0] * T)
    return torch.tensor(rows)


def with_c(problem, layer):
    """Results, with them c of every step for LSTM, and the gradients of all leaves."""
    p, lstm = problem, problem.mode == "LSTM"
    *found, every = [
        *layer(p.input, p.h0, p.c0, p.lengths, p.weights, mode=p.mode, batch_first=p.batch_first, every_c=lstm),
        *(() if lstm else (None,)),
    ]
    found = [t for t in (*found, every) if t is not None]
    cotangents = [c for c in p.cotangents if c is not None]
    if lstm:
        generator = torch.Generator().manual_seed(0)
        cotangents.append(torch.randn(every.shape, generator=generator, dtype=torch.float64).to(every.dtype))
    return found + list(torch.autograd.grad(found, p.leaves(), cotangents))


def check(problem):
    exact = with_c(problem.double(), reference.layer)
    compare.check(with_c(problem, ops.layer), with_c(problem, reference.layer), exact)


@pytest.mark.parametrize("kind", problems.KINDS)
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0], ids=["whole_rows", "some", "every_step"])
@pytest.mark.parametrize("threads", [1, 4])
def test_equals_the_reference(isa, kind, share, threads):
    T, lengths = 40, [40, 7, 0, 40, 1, 33, 40]
    problem = problems.typical(kind, T, len(lengths), 21, 37, batch_first=share == 0.2, D=1 + (threads == 4 or share > 0))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(replace(problem, lengths=numbers(T, lengths, share)))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("lengths", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("kind", ["LSTM", "LSTM_PROJ"])
def test_every_c_of_whole_rows(isa, two_threads, kind, lengths):
    check(problems.typical(kind, lengths=lengths, dtype=torch.float64))


def test_more_than_one_chunk(two_threads):
    """Episodes of all lengths in rows long enough that the sweeps take them in several pieces."""
    T, lengths = 700, [700, 650, 3]
    problem = problems.typical("LSTM", T, len(lengths), 9, 20, dtype=torch.float64)
    check(replace(problem, lengths=numbers(T, lengths, 0.004)))


@pytest.mark.parametrize("kind", problems.KINDS)
@pytest.mark.parametrize("share", [0.7, 1.0], ids=["short", "every_step"])
@pytest.mark.parametrize("threads", [1, 4])
def test_more_episodes_than_go_through_time_at_once(isa, kind, share, threads):
    """Each thread has its episodes in several batches, whose gradients add up."""
    torch.set_num_threads(threads)
    T, lengths = 340, [340, 339, 0, 330, 1]
    problem = replace(problems.typical(kind, T, len(lengths), 5, 19), lengths=numbers(T, lengths, share))
    check(problem)
    assert all(map(torch.equal, with_c(problem, ops.layer), with_c(problem, ops.layer)))


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", grids.MODES)
@pytest.mark.parametrize("threads", [1, 4])
def test_scratch_memory_does_not_grow_with_the_number_of_episodes(kind, backward, threads):
    def scratch(T, every, H=512):
        episodes = [[1 + t // every for t in range(T)]] * 64
        return _C.scratch(kind, episodes, H, H, H, 2, threads, backward)

    assert scratch(1000, 1) == scratch(16, 1) == scratch(800, 1) > 0
    assert scratch(1000, 5) < 2 * scratch(1000, 1)
    # A row of an LSTM: input, gates, h twice, c, each padded: 17 KB. (Once there were 64000 of these per direction.)
    assert scratch(1000, 1) <= 256 * 2 * threads * 17 * 1024


def test_states_where_no_row_goes_on(two_threads):
    """Whether states come in or not, the same comes out, and nothing flows back into them."""
    problem = problems.typical("LSTM", D=1, dtype=torch.float64)
    T, B = problem.input.shape[:2]
    episodes = torch.full((B, T), 2)
    found = with_c(replace(problem, lengths=episodes), ops.layer)
    bare = replace(problem, h0=None, c0=None, lengths=None)
    expected = with_c(bare, ops.layer)
    torch.testing.assert_close(found[:5], expected[:5], rtol=0, atol=0)
    gradients = found[4:]
    assert not gradients[1].any() and not gradients[2].any()


def test_second_derivatives():
    problem = replace(
        problems.small("LSTM", T=4, B=3, I=2, H=3, dtype=torch.float64), lengths=numbers(4, [4, 2, 0], 0.5), batch_first=False
    )
    leaves = problem.leaves()

    def call(*values):
        given = iter(values)
        p = problem.map(lambda t: t if t is None or not t.requires_grad else next(given))
        return ops.layer(p.input, p.h0, p.c0, p.lengths, p.weights, mode=p.mode, every_c=True)

    # `map` also goes through the cotangents, which want no gradient.
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize("train", [False, True])
def test_opcheck(kind, train):
    problem = replace(problems.small(kind).detach(), lengths=numbers(3, [3, 2], 0.5))
    arguments = problem.op_arguments()
    torch.library.opcheck(torch.ops.birnn_ext.layer.default, (*arguments, train))
    output, h_n, c_n, saved = torch.ops.birnn_ext.layer(*arguments, True)
    D, T, B, _, H = saved.shape
    cotangents = torch.randn_like(output), torch.randn_like(h_n), torch.randn(D, T + 1, B, H) if kind == "LSTM" else None
    backward = (*cotangents, *arguments, output, saved, train, True, True)
    torch.library.opcheck(torch.ops.birnn_ext.layer_backward.default, backward)


def test_gradients_of_c_may_have_any_strides():
    problem = problems.small("LSTM", dtype=torch.float64).detach()
    arguments = problem.op_arguments()
    output, _, _, saved = torch.ops.birnn_ext.layer(*arguments, True)
    D, T, B, _, H = saved.shape
    of_c = torch.randn(D, T + 1, B, H, dtype=torch.float64)
    found = [
        torch.ops.birnn_ext.layer_backward(None, None, c, *arguments, output, saved, True, True, True)
        for c in (of_c, of_c.transpose(0, 3).contiguous().transpose(0, 3))
    ]
    assert all(map(torch.equal, *found))


def test_wrong_arguments_are_named():
    problem = problems.small("LSTM").detach()
    arguments = problem.op_arguments()
    output, _, _, saved = torch.ops.birnn_ext.layer(*arguments, True)
    D, T, B, _, H = saved.shape
    with pytest.raises(RuntimeError, match=r"grad_c_n: expected shape \[2, 4, 2, 5\], got \[2, 3, 2, 5\]"):
        of_c = torch.zeros(D, T, B, H)
        torch.ops.birnn_ext.layer_backward(None, None, of_c, *arguments, output, saved, True, True, True)
    arguments[3] = torch.zeros(T, B, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"lengths: expected shape \[2\], or \[2, 3\] for episodes, got \[3, 2\]"):
        torch.ops.birnn_ext.layer(*arguments, False)
