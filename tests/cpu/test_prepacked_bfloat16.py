"""bfloat16 weights packed beforehand, by the ops: as they are where the processor multiplies them, and refused elsewhere.

Not here: float32 weights that are packed as bfloat16 (test_prepacked.py), modules (../test_prepack_bfloat16.py).
"""

import struct

import problems
import pytest
import torch

_C = pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")
kinds = pytest.mark.parametrize("kind", problems.KINDS)
TYPE = struct.calcsize("8s16si")  # where the header has the type of the weights (csrc/cpu/prepacked.h)
FLOAT, BFLOAT16 = 6, 15


def pack(problem, narrow=False):
    return [torch.ops.birnn_ext.pack_weights(*weights, problem.mode, narrow) for weights in problem.weights]


def sizes(problem):
    """hidden_size and proj_size."""
    w_hh, w_hr = problem.weights[0][1], problem.weights[0][4]
    return (w_hh.shape[1], 0) if w_hr is None else (w_hr.shape[1], w_hr.shape[0])


def run(problem, packed):
    second = packed[1] if len(packed) > 1 else None
    found = torch.ops.birnn_ext.packed_layer(
        problem.input,
        problem.h0,
        problem.c0,
        problem.lengths,
        packed[0],
        second,
        problem.mode,
        problem.batch_first,
        *sizes(problem),
    )
    return found[: 3 if problem.mode == "LSTM" else 2]


def plain(problem):
    found = torch.ops.birnn_ext.layer(*problem.op_arguments(), False)
    return found[: 3 if problem.mode == "LSTM" else 2]


def typical(kind, *arguments, **options):
    return problems.typical(kind, *arguments, dtype=torch.bfloat16, **options).detach()


def refused(problem):
    """Whether the instruction set in use has no products of bfloat16, and weights of it are refused therefore."""
    if _C.multiplies_bfloat16():
        return False
    with pytest.raises(RuntimeError, match="w_ih: expected dtype Float or Double, got BFloat16"):
        pack(problem)
    return True


@pytest.mark.parametrize("I, H", [(1, 1), (2, 3), (15, 17), (32, 16), (33, 31), (31, 64), (96, 50)])
@kinds
def test_weights_come_back_as_they_were_and_results_are_those_of_the_layer(isa_of_halves, two_threads, kind, I, H):  # noqa: E741
    """Of as many rows as have a layer pack its weights: the same products in the same order, so the same bits."""
    for options in ({"lengths": True}, {"D": 1, "bias": False, "state": False, "batch_first": True}):
        problem = typical(kind, 7, 9, I, H, **options)
        if refused(problem):
            return
        packed = pack(problem)
        for one, weights in zip(packed, problem.weights, strict=True):
            for found, given in zip(torch.ops.birnn_ext.unpack_weights(one), weights, strict=True):
                assert found.dtype == torch.bfloat16 and (found.numel() == 0 if given is None else torch.equal(found, given))
        assert all(torch.equal(a, b) for a, b in zip(run(problem, packed), plain(problem), strict=True))


@kinds
def test_few_rows(isa_of_halves, kind):
    """These a layer computes from weights that are not packed, so sums have another order."""
    for T, B, I, H in ((1, 1, 20, 33), (1, 3, 65, 64), (2, 2, 130, 129)):  # noqa: E741
        problem = typical(kind, T, B, I, H)
        if refused(problem):
            return
        for found, expected in zip(run(problem, pack(problem)), plain(problem), strict=True):
            torch.testing.assert_close(found, expected, atol=2**-7, rtol=2**-7)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_shares_teams_and_turns(threads):
    """Few rows on large weights, many rows: the same numbers as those of the layer, whoever computes them."""
    torch.set_num_threads(threads)
    for T, B, H in ((30, 1, 300), (20, 3, 700), (30, 40, 40)):
        problem = typical("GRU", T, B, 20, H)
        if refused(problem):
            return
        found = run(problem, pack(problem))
        assert all(torch.equal(a, b) for a, b in zip(found, plain(problem), strict=True))


def test_every_number_comes_back(isa_of_halves):
    """Infinities and denormals too; of what is no number, the fact."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    bias = every[torch.randperm(len(every))[:64]]
    weights = (every.view(64, -1), torch.zeros(64, 64, dtype=every.dtype), bias, bias, None)
    if not _C.multiplies_bfloat16():
        return
    packed = torch.ops.birnn_ext.pack_weights(*weights, "RNN_TANH", False)
    for found, given in zip(torch.ops.birnn_ext.unpack_weights(packed), weights[:4], strict=False):
        assert torch.equal(torch.where(found.isnan(), 0, found), torch.where(given.isnan(), 0, given))
        assert torch.equal(found.isnan(), given.isnan()) and torch.equal(found.signbit(), given.signbit())


def test_what_goes_together():
    problem = typical("GRU", 3, 2, 5, 6)
    wide = problem.map(lambda t: None if t is None else t.float())
    if refused(problem):
        return
    packed, others = pack(problem), pack(wide)
    for given, weights, expected in ((wide, packed, "BFloat16"), (problem, others, "Float")):
        with pytest.raises(RuntimeError, match=f"input: expected dtype {expected}, that of the packed weights, got"):
            run(given, weights)
    for second in (others[1], pack(wide, True)[1]):
        with pytest.raises(RuntimeError, match="packed_reverse: expected weights of the mode, sizes and dtype of packed"):
            run(problem, [packed[0], second])
    with pytest.raises(RuntimeError, match="w_ih: expected dtype Float, got BFloat16"):
        pack(problem, True)
    with pytest.raises(RuntimeError, match="w_hh: expected dtype BFloat16, that of input, got Float"):
        torch.ops.birnn_ext.pack_weights(problem.weights[0][0], *wide.weights[0][1:], "GRU", False)
    with pytest.raises(RuntimeError, match="h0: expected dtype BFloat16"):
        run(problem.map(lambda t: None if t is None else t.float() if t is problem.h0 else t), packed)


def test_a_forged_type(isa_of_halves):
    """Float bytes that claim to be bfloat16: of another size where that is multiplied, and elsewhere never packed."""
    problem = typical("GRU", 3, 2, 5, 6)
    bad = pack(problem.map(lambda t: None if t is None else t.float()))[0]
    assert bad[TYPE] == FLOAT
    bad[TYPE] = BFLOAT16
    expected = r"\d+ bytes, got \d+" if _C.multiplies_bfloat16() else "what pack_weights of this version of birnn_ext returned"
    with pytest.raises(RuntimeError, match=f"packed: expected {expected}"):
        torch.ops.birnn_ext.unpack_weights(bad)
    with pytest.raises(RuntimeError, match=f"packed: expected {expected}"):
        run(problem, [bad])


def test_for_another_instruction_set():
    problem, best = typical("GRU", 3, 2, 5, 6), _C.isa()
    if refused(problem):
        return
    packed = pack(problem)
    try:
        for isa in _C.isa_list():
            _C.set_isa(isa)
            if isa == best:
                run(problem, packed)
                continue
            with pytest.raises(RuntimeError, match=f"packed: expected weights packed for {isa}.*got some for {best}"):
                run(problem, packed)
    finally:
        _C.set_isa(best)
