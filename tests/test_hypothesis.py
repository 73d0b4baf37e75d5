"""Shapes, strides, lengths and options that nobody thought of, against torch.nn row by row."""

import compare
import grids
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def layers(draw):
    """(keywords of a layer, input size, hidden size)"""
    mode = draw(st.sampled_from(grids.MODES))
    H = draw(st.integers(1, 35))
    options = {
        "num_layers": draw(st.integers(1, 2)),
        "bias": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
    }
    if mode == "LSTM" and H > 1 and draw(st.booleans()):
        options["proj_size"] = draw(st.integers(1, H - 1))
    return mode, draw(st.integers(1, 20)), H, options


def laid_out(draw, shape, dtype):
    """A tensor of this shape over memory in some other order, with gaps, offsets or repetition."""
    order = draw(st.permutations(range(len(shape))))
    gaps = [draw(st.integers(1, 3)) for _ in shape]
    expanded = draw(st.integers(-1, len(shape) - 1)) if draw(st.booleans()) else -1
    sizes = [1 if d == expanded else shape[d] * gaps[d] for d in order]
    tensor = torch.randn(sizes, dtype=dtype).permute([order.index(d) for d in range(len(shape))])
    starts = [slice(draw(st.integers(0, gap - 1)), None, gap) for gap in gaps]
    tensor = tensor[tuple(slice(None) if d == expanded else start for d, start in enumerate(starts))]
    tensor = tensor.expand(shape)
    assert tensor.shape == tuple(shape)
    return tensor


@FEW
@given(layers(), st.integers(1, 9), st.integers(0, 7), st.data())
def test_any_layer_on_any_memory(layer, T, B, data):
    mode, I, H, options = layer  # noqa: E741
    theirs, ours = compare.pair(mode, I, H, **options)
    dtype = options["dtype"]
    x = laid_out(data.draw, (T, B, I), dtype).requires_grad_()
    hx = None
    if data.draw(st.booleans()):
        shapes = [tuple(s.shape) for s in compare.tensors(compare.states(theirs, B))]
        hx = tuple(laid_out(data.draw, shape, dtype).requires_grad_() for shape in shapes)
        hx = hx if mode == "LSTM" else hx[0]
    ours.batch_first = data.draw(st.booleans())
    lengths = data.draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B))

    def by_torch(module, x, hx):
        return module(x, hx) if lengths is None or B == 0 else compare.by_row(module, x, hx, lengths)

    exact, exact_x, exact_hx = compare.wide(theirs), compare.wide(x), compare.wide(hx)
    expected, oracle = by_torch(theirs, x, hx), by_torch(exact, exact_x, exact_hx)
    output, state = ours(x.transpose(0, 1) if ours.batch_first else x, hx, lengths)
    found = output.transpose(0, 1) if ours.batch_first else output, state
    compare.check(found, expected, oracle)

    cotangents = [laid_out(data.draw, tuple(t.shape), dtype) for t in compare.tensors(expected)]
    compare.check(
        compare.gradients(found, cotangents, [x, *compare.tensors(hx), *ours.parameters()]),
        zeroed(expected, cotangents, [x, *compare.tensors(hx), *theirs.parameters()]),
        zeroed(
            oracle,
            [c.double() for c in cotangents],
            [exact_x, *compare.tensors(exact_hx), *exact.parameters()],
        ),
    )


def zeroed(results, weights, leaves):
    """Gradients as in compare, zeros for what a row-by-row run never touches because all rows are empty."""
    total = sum((r * w).sum() for r, w in zip(compare.tensors(results), weights, strict=True))
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)


@FEW
@given(st.lists(st.integers(1, 8), min_size=1, max_size=6), st.sampled_from(grids.MODES), st.booleans())
def test_any_packed_sequence(lengths, mode, bidirectional):
    theirs, ours = compare.pair(mode, 3, 5, bidirectional=bidirectional)
    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(n, 3) for n in lengths], enforce_sorted=False)
    compare.check(ours(packed), theirs(packed), compare.wide(theirs)(packed.double()))
