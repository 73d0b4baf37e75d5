"""Behind a failed call: which tensor is at fault, said in the caller's names.

The ops check every tensor before they compute, but know none of the module's names, and torch's own functions name
nothing at all. So a call that failed is looked at here, and only then: weights are hardly ever replaced by something
that does not fit, and looking at each of them at every call costs as much as a small step. Errors that are found
before the computation are raised by base.py.
"""

import torch
from torch import Tensor


def tensors(layer, input):
    """Raises an error that names the input or the weight of `layer` that could not be computed with, if one is at fault.

    Raises:
        RuntimeError: a layout, shape, device or dtype that does not fit.
        TypeError: a weight that is no tensor.
    """
    if input.layout != torch.strided:
        raise RuntimeError(f"{layer._kind}: input should be a dense Tensor of layout torch.strided, got {input.layout}")
    for position, names in enumerate(layer._all_weights):
        shapes = layer._weight_shapes(position // (2 if layer.bidirectional else 1)).values()
        for name, shape in zip(names, shapes, strict=True):
            weight = getattr(layer, name)
            if not isinstance(weight, Tensor):
                raise TypeError(f"{name} should be a Tensor of shape {list(shape)}, got {type(weight).__name__}")
            if weight.shape != shape:
                raise RuntimeError(f"{name} should have the shape {list(shape)}, got {list(weight.shape)}")
            if weight.device != input.device:
                raise RuntimeError(f"{name} should be on device {input.device}, that of input, got {weight.device}")
            if weight.dtype != input.dtype and not torch._C._is_any_autocast_enabled():
                raise RuntimeError(f"{name} should have dtype {input.dtype}, that of input, got {weight.dtype}")


def packed_sequence(packed):
    """Raises an error that says which part of a PackedSequence is wrong, if one is.

    torch's own functions build none of these, but the constructor checks nothing.

    Raises:
        TypeError: batch_sizes that are no integers.
        RuntimeError: parts that do not fit each other.
    """
    data, sizes = packed.data, packed.batch_sizes
    if sizes.is_floating_point() or sizes.is_complex() or sizes.dtype == torch.bool:
        raise TypeError(f"input.batch_sizes should hold integers, got a tensor of {sizes.dtype}")
    values = sizes.tolist() if sizes.dim() == 1 else []
    if not values or values[-1] < 1 or any(a < b for a, b in zip(values, values[1:], strict=False)):
        raise RuntimeError(f"input.batch_sizes should be positive and never grow, one for each step, got {sizes.tolist()}")
    if sum(values) != data.size(0):
        raise RuntimeError(f"input.batch_sizes should add up to {data.size(0)} rows of input.data, got the sum {sum(values)}")
    rows = list(range(values[0]))
    for name in ("sorted_indices", "unsorted_indices"):
        found = getattr(packed, name)
        if found is not None and sorted(found.tolist()) != rows:
            raise RuntimeError(f"input.{name} should hold each of the {values[0]} rows once, got {found.tolist()}")
