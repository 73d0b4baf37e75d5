"""Where things are: the halves of the output, the rows of the states, the layers inside a stack, every state by name.

Helpers for reading what a recurrent layer returns and for taking a stack apart. All of them take torch.nn's layers and
results as well as ours, which have the same layout. Not here: running layers (`birnn_ext.functional`), and drawings of
the layout in words and boxes (`birnn_ext.explain`).

    output [T, B, D*P]                                 h_n [L*D, B, P]
             <----- P -----> <----- P ----->            row 0       layer 0, forward
      t = 0  |  forward     |   reverse    |            row 1       layer 0, reverse
      t = 1  |  forward     |   reverse    |            row 2       layer 1, forward
       ...   |              |              |            ...
      T - 1  |  forward     |   reverse    |            row 2*l+d   layer l, direction d

Dimensions: T steps, B rows, L layers, D directions, H units per direction, P output features per direction (proj_size,
else H).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import packed
from .stacks import of_one_row, stack, trace, unstack

__all__ = ["last_state", "split_hidden", "split_output", "stack", "trace", "unstack"]


def split_output(output: Tensor | PackedSequence, bidirectional: bool = True) -> tuple[Any, ...]:
    """The halves of a layer's output, one for each direction, as views.

    .. code-block:: text

        output [..., 2*P]   | 0 ....... P-1 | P ....... 2*P-1 |
                              forward         reverse
                              has read        has read
                              steps 0..t      steps T-1..t

    Args:
        output: [T, B, D*P], [B, T, D*P] or [T, D*P], or a PackedSequence of them.
        bidirectional: whether there are two directions; with one, the tuple has one entry.

    Returns:
        ``(forward, reverse)``, each [..., P] and in the order of time: index t of either belongs to step t of the
        input. Two PackedSequences where `output` is one.

    Raises:
        TypeError: `output` is neither a Tensor nor a PackedSequence.
        ValueError: an odd number of features cannot be two directions.

    Source: the output of torch.nn.RNN, GRU and LSTM.

    >>> import torch, birnn_ext
    >>> gru = birnn_ext.GRU(3, 4, bidirectional=True)
    >>> output, h_n = gru(torch.randn(5, 2, 3))
    >>> forward, reverse = birnn_ext.layout.split_output(output)
    >>> forward.shape, reverse.shape
    (torch.Size([5, 2, 4]), torch.Size([5, 2, 4]))
    >>> bool((forward[-1] == h_n[0]).all()), bool((reverse[0] == h_n[1]).all())
    (True, True)
    """
    if isinstance(output, PackedSequence):
        return tuple(output._replace(data=half) for half in split_output(output.data, bidirectional))
    if not isinstance(output, Tensor):
        raise TypeError(f"output should be a Tensor or a PackedSequence, got {type(output).__name__}")
    if output.dim() == 0:
        raise ValueError("output should have its features in the last dimension, got a tensor without dimensions")
    if not bidirectional:
        return (output,)
    if output.size(-1) % 2:
        raise ValueError(
            "output should have an even number of features, as many of each direction, "
            f"got {output.size(-1)} (shape {tuple(output.shape)}); with one direction say bidirectional=False"
        )
    return output.chunk(2, -1)


def split_hidden(h_n: Tensor | tuple[Tensor, Tensor], num_layers: int = 1) -> list | tuple[list, list]:
    """The states of a stack as ``[layer][direction]``, as views.

    .. code-block:: text

        h_n [L*D, B, P], here L = 2 and D = 2
          row 0   layer 0, forward    -> split[0][0]        forward: after step T-1 (a row's own last step)
          row 1   layer 0, reverse    -> split[0][1]        reverse: after step 0
          row 2   layer 1, forward    -> split[1][0]
          row 3   layer 1, reverse    -> split[1][1]

    Args:
        h_n: [L*D, B, P] or [L*D, P]; or an LSTM's ``(h_n, c_n)``. The initial state ``hx`` has the same rows.
        num_layers: L. The number of directions follows from it.

    Returns:
        A list of L tuples of D views [B, P] (or [P]). For ``(h_n, c_n)`` two such lists.

    Raises:
        TypeError: `h_n` is no Tensor and no pair of Tensors, or `num_layers` no int.
        ValueError: the rows of `h_n` are not those of `num_layers` layers of one or two directions.

    Source: h_n and c_n of torch.nn.RNN, GRU and LSTM.

    >>> import torch, birnn_ext
    >>> lstm = birnn_ext.LSTM(3, 4, num_layers=2, bidirectional=True)
    >>> output, (h_n, c_n) = lstm(torch.randn(5, 2, 3))
    >>> h, c = birnn_ext.layout.split_hidden((h_n, c_n), num_layers=2)
    >>> forward, reverse = h[1]  # of the second layer
    >>> forward.shape
    torch.Size([2, 4])
    """
    if isinstance(h_n, (tuple, list)):
        if len(h_n) != 2:
            raise ValueError(f"h_n should be a Tensor or the pair (h_n, c_n), got {len(h_n)} items")
        return tuple(_rows(state, num_layers, name) for state, name in zip(h_n, ("h_n", "c_n"), strict=True))
    return _rows(h_n, num_layers, "h_n")


def _rows(state, num_layers, name):
    if not isinstance(state, Tensor):
        raise TypeError(f"{name} should be a Tensor, got {type(state).__name__}")
    if not isinstance(num_layers, int) or isinstance(num_layers, bool):
        raise TypeError(f"num_layers should be an int, got {type(num_layers).__name__}")
    rows = state.size(0) if state.dim() else 0
    if num_layers < 1 or rows not in (num_layers, 2 * num_layers):
        raise ValueError(
            f"{name} should have num_layers = {num_layers} rows, or twice as many with two directions, "
            f"got {rows} (shape {tuple(state.shape)})"
        )
    views = state.unbind(0)
    D = rows // num_layers
    return [tuple(views[layer * D : (layer + 1) * D]) for layer in range(num_layers)]


def last_state(
    output: Tensor | PackedSequence,
    h_n: Tensor | tuple[Tensor, Tensor] | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    *,
    batch_first: bool = False,
    bidirectional: bool = True,
) -> Tensor:
    """What the last layer knows at the end of each row, both directions side by side: input of a classifier.

    .. code-block:: text

        row b, lengths[b] = 3 of T = 5            t=0      t=1      t=2      t=3      t=4
                                      forward                       [here]   padding  padding
                                      reverse     [here]                     padding  padding
        not output[-1], which is padding for this row, and where the reverse direction has read one step at most

    Args:
        output: of the layer, [T, B, D*P], [B, T, D*P] with `batch_first`, or [T, D*P]; or a PackedSequence, which
            brings its lengths.
        h_n: of the layer, for LSTM also as the pair ``(h_n, c_n)``. Where `lengths` are given it is asked only for
            rows without steps.
        lengths: steps of each row, integers 0..T, as handed to the layer. If None, `h_n` decides, and without `h_n`
            every row has T steps.
        batch_first: whether `output` is [B, T, D*P].
        bidirectional: whether there are two directions.

    Returns:
        [B, D*P] ([D*P] for an unbatched output): forward direction after the row's last step, then the reverse
        direction after step 0. For a row of length 0 its row of `h_n`, which is its initial state, or zeros without
        `h_n`. Differentiable.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: shapes that do not belong together, a length outside 0..T, or lengths beside a PackedSequence.

    >>> import torch, birnn_ext
    >>> gru = birnn_ext.GRU(3, 4, bidirectional=True)
    >>> output, h_n = gru(torch.randn(5, 2, 3), lengths=[3, 5])
    >>> last = birnn_ext.layout.last_state(output, lengths=[3, 5])
    >>> last.shape, torch.equal(last, torch.cat([h_n[0], h_n[1]], 1))
    (torch.Size([2, 8]), True)
    """
    if isinstance(output, PackedSequence):
        if lengths is not None:
            raise ValueError("lengths should be None for a PackedSequence, which carries its own lengths")
        padded, lengths = packed.to_padded(output)
        return last_state(padded, h_n, lengths, bidirectional=bidirectional)
    halves = split_output(output, bidirectional)
    if output.dim() not in (2, 3):
        raise ValueError(f"output should have 2 or 3 dimensions, got {output.dim()} (shape {tuple(output.shape)})")
    unbatched = output.dim() == 2
    if unbatched:
        halves, lengths = tuple(half.unsqueeze(1) for half in halves), of_one_row(lengths)
    elif batch_first:
        halves = tuple(half.transpose(0, 1) for half in halves)
    T, B, P = halves[0].shape
    if T == 0:
        raise ValueError(f"output should have at least one step, got shape {tuple(output.shape)}")
    states = None if h_n is None else _last_rows(h_n, (B, P), len(halves), unbatched)
    if lengths is not None:
        ends = packed.normalise_lengths(lengths, T, B, output.device)
        at = (ends - 1).clamp(min=0).view(1, B, 1).expand(1, B, P)
        found = [halves[0].gather(0, at)[0], *(half[0] for half in halves[1:])]
        empty = (ends == 0).unsqueeze(1)
        instead = states if states is not None else [torch.zeros_like(found[0])] * len(found)
        found = [torch.where(empty, other, here) for here, other in zip(found, instead, strict=True)]
    elif states is not None:
        found = states
    else:
        found = [halves[0][-1], *(half[0] for half in halves[1:])]
    last = torch.cat(found, 1)
    return last[0] if unbatched else last


def _last_rows(h_n, size, directions, unbatched):
    """The last layer's rows of h_n, a [B, P] for each direction."""
    if isinstance(h_n, (tuple, list)) and h_n:
        h_n = h_n[0]
    if not isinstance(h_n, Tensor):
        raise TypeError(f"h_n should be a Tensor or the pair (h_n, c_n), got {type(h_n).__name__}")
    batched = h_n.unsqueeze(1) if unbatched else h_n
    if batched.dim() != 3 or batched.shape[1:] != size or batched.size(0) % directions or not batched.size(0):
        expected = f"(L*{directions}, {size[1]})" if unbatched else f"(L*{directions}, {size[0]}, {size[1]})"
        raise ValueError(f"h_n should have shape {expected} to go with output, got {tuple(h_n.shape)}")
    return batched[-directions:].unbind(0)
