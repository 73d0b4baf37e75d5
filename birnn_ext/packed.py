"""Rows of unequal length: the `lengths` argument, and PackedSequence and nested tensors in and out.

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
    shape: tuple[int, ...]
    if isinstance(lengths, (list, tuple)):
        values = [_integer(i, n) for i, n in enumerate(lengths)]
        tensor, shape = None, (len(values),)
    elif isinstance(lengths, Tensor) or hasattr(lengths, "__array__"):
        values, tensor = None, torch.as_tensor(lengths)
        if tensor.dtype not in SIGNED + UNSIGNED:
            raise TypeError(f"lengths should hold integers, got a tensor of {tensor.dtype}")
        shape = tuple(tensor.shape)
    else:
        raise TypeError(f"lengths should be an integer tensor or a list of integers, got {type(lengths).__name__}")
    if len(shape) != 1 or shape[0] != batch:
        raise ValueError(
            f"lengths should have one entry for each of the {batch} rows of input, expected shape ({batch},), got {shape}"
        )
    if tensor is not None and _readable(tensor):
        values = tensor.tolist()
    if values and not (min(values) >= 0 and max(values) <= steps):
        row = next(i for i, n in enumerate(values) if not 0 <= n <= steps)
        raise ValueError(f"lengths should be between 0 and {steps}, the steps of input, got {values[row]} for row {row}")
    if tensor is None:
        tensor = torch.tensor(values, dtype=torch.int64, device="cpu")
    if tensor.device.type == "meta" != device.type:
        raise RuntimeError(f"lengths should be on a device with data, as input on {device} is, got a tensor on meta")
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


def nested_to_padded(nested):
    """Nested tensor [B, T of each row, I] -> (padded [B, T, I], lengths int64 [B]). Differentiable.

    Beyond a row's length the padded tensor repeats some step of the data: nobody reads it there. T is at least one.

    Raises:
        ValueError: a layout other than torch.jagged, or no or another ragged dimension than the second of three.
    """
    if nested.layout != torch.jagged:
        raise ValueError(f"input: a nested tensor should have the layout torch.jagged, got {nested.layout}")
    if nested.dim() != 3 or nested._ragged_idx != 1:
        got = f"{nested.dim()}-D, ragged in dimension {nested._ragged_idx}"
        raise ValueError(f"input: a nested tensor should be [B, T, I] with ragged T, got {got}")
    values, offsets, lengths = nested.values(), nested.offsets(), nested.lengths()
    lengths = offsets.diff() if lengths is None else lengths  # given where a row ends before the next begins
    step = torch.arange(max(int(lengths.max()) if lengths.numel() else 0, 1), device=values.device)
    if not values.size(0):
        values = values.new_zeros(1, values.size(1))
    source = torch.where(step < lengths.unsqueeze(1), offsets[:-1].unsqueeze(1) + step, 0)  # [B, T]
    return values.index_select(0, source.flatten()).unflatten(0, source.shape), lengths.to(torch.int64)


def padded_to_nested(padded, like):
    """padded [B, T, F] -> nested [B, T of each row, F] with the rows of `like`, of the same symbolic T. Differentiable."""
    offsets, lengths = like.offsets(), like.lengths()
    if lengths is not None:  # `like` has gaps between its rows
        offsets = torch.cat([offsets.new_zeros(1), lengths.cumsum(0)])
        N = int(offsets[-1])
    else:
        N, lengths = like.values().size(0), offsets.diff()
    B, T = padded.shape[:2]
    row = torch.repeat_interleave(torch.arange(B, device=padded.device), lengths, output_size=N)  # [N]
    step = torch.arange(N, device=padded.device) - offsets[row]
    return torch.nested.nested_tensor_from_jagged(padded.flatten(0, 1).index_select(0, row * T + step), offsets)
