"""Rows of unequal length: the `lengths` argument, and PackedSequence in and out.

Inside the package there is one form only, a padded [T, B, features] tensor with int64 `lengths` [B] in the
caller's row order. This file brings the outside forms there and back. It does not run layers.
"""

import operator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

SIGNED = (torch.int64, torch.int32, torch.int16, torch.int8)
UNSIGNED = (torch.uint64, torch.uint32, torch.uint16, torch.uint8)


def normalise_lengths(lengths: Any, steps: int, batch: int, device: torch.device) -> Tensor:
    """Checks `lengths` and brings it to int64 [B] on `device`.

    Args:
        lengths: an integer tensor, list, tuple or array of `batch` entries, any order, any device, each
            0..`steps`.
        steps: T of the padded input.
        batch: B of the padded input.
        device: the input's device.

    Raises:
        TypeError: entries that are no integers (floating point and bool are not), or no sequence at all.
        ValueError: a shape other than (B,), or an entry outside 0..T. Entries of a tensor on an accelerator,
            or inside a compiled or transformed function, are not looked at: that would wait for the device,
            or break the graph.
    """
    if isinstance(lengths, (list, tuple)):
        values = [_integer(i, n) for i, n in enumerate(lengths)]
        tensor = torch.tensor(values, dtype=torch.int64)
    elif isinstance(lengths, Tensor) or hasattr(lengths, "__array__"):
        values, tensor = None, torch.as_tensor(lengths)
        if tensor.dtype not in SIGNED + UNSIGNED:
            raise TypeError(f"lengths should hold integers, got a tensor of {tensor.dtype}")
    else:
        raise TypeError(f"lengths should be an integer tensor or a list of integers, got {type(lengths).__name__}")
    if tensor.dim() != 1 or tensor.size(0) != batch:
        raise ValueError(
            f"lengths should have one entry for each of the {batch} rows of input, "
            f"expected shape ({batch},), got {tuple(tensor.shape)}"
        )
    if values is None and _readable(tensor):
        values = tensor.tolist()
    if values and not (min(values) >= 0 and max(values) <= steps):
        row = next(i for i, n in enumerate(values) if not 0 <= n <= steps)
        raise ValueError(f"lengths should be between 0 and {steps}, the steps of input, got {values[row]} for row {row}")
    # Towards the CPU the copy must have landed before the kernel reads it.
    return tensor.to(device=device, dtype=torch.int64, non_blocking=device.type != "cpu")


def _integer(position, value):
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"lengths should hold integers, got {type(value).__name__} at position {position}")


def _readable(tensor):
    # FakeTensor is a subclass; the wrappers of torch.func are not, hence the last question.
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and type(tensor) is Tensor
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def to_padded(packed: PackedSequence) -> tuple[Tensor, Tensor]:
    """PackedSequence with data [N, I] -> (padded [T, B, I], lengths int64 [B]), rows in the caller's order.

    Beyond a row's length the padded tensor repeats some step of the data: nobody reads it there.
    Differentiable.
    """
    data = packed.data
    T, B = packed.batch_sizes.size(0), int(packed.batch_sizes[0])
    batch_sizes = packed.batch_sizes.to(data.device)
    place = packed.unsorted_indices  # of each row in the packed order, where long rows come first
    if place is None:
        place = torch.arange(B, device=data.device)
    valid = place < batch_sizes.unsqueeze(1)  # [T, B]
    first = batch_sizes.cumsum(0) - batch_sizes  # where each step begins in data
    source = torch.where(valid, first.unsqueeze(1) + place, 0)
    return data.index_select(0, source.flatten()).unflatten(0, (T, B)), valid.sum(0)


def to_packed(padded: Tensor, like: PackedSequence) -> PackedSequence:
    """padded [T, B, F], rows in the caller's order -> PackedSequence with data [N, F], laid out as `like`.

    Differentiable, as :func:`to_padded` is.
    """
    T, B = padded.shape[:2]
    N, device = like.data.size(0), padded.device
    batch_sizes = like.batch_sizes.to(device)
    # output_size spares the accelerator a round trip to the host.
    step = torch.repeat_interleave(torch.arange(T, device=device), batch_sizes, output_size=N)  # [N]
    row = torch.arange(N, device=device) - (batch_sizes.cumsum(0) - batch_sizes)[step]
    if like.sorted_indices is not None:
        row = like.sorted_indices[row]
    data = padded.flatten(0, 1).index_select(0, step * B + row)
    return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)
