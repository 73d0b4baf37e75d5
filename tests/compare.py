"""The one tolerance rule of the tests, and the pairs of layers that it is applied to.

The rule: against the same computation in float64, our error is at most twice that of torch.nn in the same
dtype, plus a few eps of the largest value. No test has a tolerance of its own; a looser one has to be argued
for here.
"""

import copy

import torch
from torch import Tensor, nn

import birnn_ext

FACTOR = 2.0
# Where torch happens to hit the rounding of the oracle exactly, its error says nothing about ours. In float64
# the oracle is torch itself, with an error of its own that nobody knows.
FEW_EPS = {torch.float64: 64.0, torch.complex128: 64.0, torch.float16: 2.0, torch.bfloat16: 2.0}
FEW_EPS_ELSE = 16.0
# A small result is the difference of terms of size one (1 - z, 1 - n^2), and their rounding does not shrink
# with it.
SMALLEST_SCALE = 0.25
# TF32 keeps 10 bits of the fraction of what it multiplies, so that is the precision of a float32 result whose products
# are made in TF32. Twice torch's error does not cover it: cuDNN may keep a product in float32 that we make in TF32, such
# as the recurrent one.
TF32_EPS = 2.0**-10

TORCH = {"RNN_TANH": nn.RNN, "RNN_RELU": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
OURS = {"RNN_TANH": birnn_ext.RNN, "RNN_RELU": birnn_ext.RNN, "GRU": birnn_ext.GRU, "LSTM": birnn_ext.LSTM}


def tensors(value):
    """The tensors in nested tuples, lists and PackedSequences, None left out."""
    if value is None:
        return []
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, nn.utils.rnn.PackedSequence):
        return [value.data]
    return [tensor for item in value for tensor in tensors(item)]


def error(actual, oracle):
    """Largest absolute difference; infinite where one is NaN and the other is not."""
    wide = torch.complex128 if oracle.is_complex() else torch.float64
    difference = (actual.detach().to(wide) - oracle.detach().to(wide)).abs()
    both_nan = actual.isnan() & oracle.isnan()
    difference = difference.masked_fill(both_nan, 0).nan_to_num(torch.inf, torch.inf)
    return difference.max().item() if difference.numel() else 0.0


def check(ours, theirs, oracle, inputs_up_to=1.0, tf32=False, terms=None):
    """Holds our results to the rule; each argument is a tensor or a nest of them, of the same structure.

    Args:
        ours: our results.
        theirs: torch.nn's results in the same dtype.
        oracle: the float64 results.
        inputs_up_to: size of the inputs where it is well above one: a gradient of the weights is a product
            with them, and so is its rounding.
        tf32: whether products of float32 are made in TF32.
        terms: for each result, of how many terms of size one it is the sum (a gradient of weights: of every step of
            every row): such a sum may come out small, by chance, and the rounding of its terms does not.
    """
    ours, theirs, oracle = tensors(ours), tensors(theirs), tensors(oracle)
    terms = terms or [1] * len(ours)
    assert len(ours) == len(theirs) == len(oracle) == len(terms)
    for i, (a, b, exact, count) in enumerate(zip(ours, theirs, oracle, terms, strict=True)):
        assert a.shape == b.shape == exact.shape, f"result {i}: shape {tuple(a.shape)}, torch has {tuple(b.shape)}"
        assert a.dtype == b.dtype, f"result {i}: {a.dtype}, torch has {b.dtype}"
        scale = exact.abs().max().item() if exact.numel() else 0.0
        eps = TF32_EPS if tf32 and a.dtype == torch.float32 else torch.finfo(a.dtype).eps
        few_eps = FEW_EPS.get(a.dtype, FEW_EPS_ELSE) * eps
        if exact.numel() < 16:  # of so few numbers torch's largest error says little: by chance each may be nearly exact
            few_eps *= 2
        allowed = FACTOR * error(b, exact) + few_eps * max(scale, SMALLEST_SCALE * count**0.5) * inputs_up_to
        found = error(a, exact)
        assert found <= allowed, f"result {i}: error {found:.3g}, allowed {allowed:.3g} (torch: {error(b, exact):.3g})"


def differs(a, b, by=1e-3):
    """Whether two results are apart by more than any rounding explains."""
    return any(error(x, y) > by for x, y in zip(tensors(a), tensors(b), strict=True))


def arguments(mode, kwargs):
    """Constructor keywords of the layer of this mode."""
    if mode.startswith("RNN_"):
        kwargs = {**kwargs, "nonlinearity": mode.removeprefix("RNN_").lower()}
    return kwargs


def pair(mode, *args, **kwargs):
    """(torch.nn's layer, ours) with equal weights of their own."""
    kwargs = arguments(mode, kwargs)
    theirs, ours = TORCH[mode](*args, **kwargs), OURS[mode](*args, **kwargs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def wide(value):
    """A copy in float64: modules, tensors (as new leaves that keep requires_grad), and nests of them."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    if isinstance(value, Tensor):
        copied = value.detach().clone()
        copied = copied.double() if value.is_floating_point() else copied
        return copied.requires_grad_(value.requires_grad)
    if isinstance(value, (tuple, list)):
        return type(value)(wide(item) for item in value)
    return value


def states(module, batch, requires_grad=False, dtype=None):
    """Random hx for a layer: a tensor, or a pair for LSTM; without a batch dimension if `batch` is None."""
    rows = module.num_layers * (2 if module.bidirectional else 1)
    dtype = dtype or next(module.parameters()).dtype
    widths = [module.proj_size or module.hidden_size] + [module.hidden_size] * (module.mode == "LSTM")
    shapes = [(rows, width) if batch is None else (rows, batch, width) for width in widths]
    made = [torch.randn(shape, dtype=dtype).requires_grad_(requires_grad) for shape in shapes]
    return tuple(made) if module.mode == "LSTM" else made[0]


def by_row(module, input, hx, lengths):
    """What `lengths` means, by torch.nn alone: every row is run by itself on its own steps.

    input [T, B, I], hx as the layer takes it or None -> output [T, B, F], zero beyond the lengths, and the
    states.
    """
    rows, ends = [], []
    for b, steps in enumerate(lengths):
        h = states(module, 1, dtype=input.dtype)
        if hx is None:
            h = h * 0 if isinstance(h, Tensor) else tuple(s * 0 for s in h)
        else:
            h = hx[:, b : b + 1] if isinstance(hx, Tensor) else tuple(s[:, b : b + 1] for s in hx)
        width = (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
        row = input.new_zeros(input.size(0) - steps, 1, width)
        if steps:
            output, h = module(input[:steps, b : b + 1], h)
            row = torch.cat((output, row))
        rows.append(row)
        ends.append(h)
    if module.mode == "LSTM":
        return torch.cat(rows, 1), tuple(torch.cat(parts, 1) for parts in zip(*ends, strict=True))
    return torch.cat(rows, 1), torch.cat(ends, 1)


def gradients(results, weights, leaves):
    """Gradients of the leaves for a weighted sum of the results; `weights` are shaped like the results."""
    total = sum((result * weight).sum() for result, weight in zip(tensors(results), weights, strict=True))
    return torch.autograd.grad(total, leaves)
