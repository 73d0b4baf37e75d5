"""Stacks taken apart: the layers of one direction inside a module, and every state of every layer by name.

What `birnn_ext.layout` offers for modules; that file is the one to import from. They take torch.nn's layers and ours.
Not here: cutting up results (`birnn_ext.layout`), and running layers fast (`birnn_ext.functional`).

Dimensions: T steps, B rows, L layers, D directions, H units per direction, P output features per direction (proj_size,
else H).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from . import module as ours
from . import packed, reference
from .base import RNNBase
from .convert import TO_TORCH
from .prepack import Prepacked

TO_OURS = {"RNN_TANH": ours.RNN, "RNN_RELU": ours.RNN, "GRU": ours.GRU, "LSTM": ours.LSTM}

# -------------------------------------------------------------------------------------------- layers


def unstack(module: nn.Module) -> list[tuple[nn.Module, ...]]:
    """The layers of one direction that a stack is made of, as ``[layer][direction]``; they share its Parameters.

    .. code-block:: text

        input --+--> forward of layer 0 ----------------> [:, :, :P] --+
                |                                                      +--> cat(-1) = input of layer 1, [T, B, 2*P]
                +--> flip --> reverse of layer 0 --> flip --> [P:] ----+            (of both its directions)

    A layer of the second direction reads time from the front like any other: flip its input along time, and flip its
    output back before joining it with the first one's. Its initial state is row ``2*l + 1`` of hx.

    Args:
        module: a torch.nn.RNN, GRU or LSTM, or one of ours.

    Returns:
        A list of L tuples of D layers, each of one direction, of the same library as `module`, with the same
        ``batch_first`` and mode. Training one trains `module`. Dropout between the layers is not theirs.

    Raises:
        TypeError: `module` is no such layer.
        ValueError: a weight is not a plain Parameter (parametrized, weight_norm), so that it cannot be shared.

    >>> import torch, birnn_ext
    >>> stack = torch.nn.RNN(25, 50, num_layers=4, bidirectional=True)
    >>> layers = birnn_ext.layout.unstack(stack)
    >>> len(layers), layers[1]
    (4, (RNN(100, 50), RNN(100, 50)))
    >>> layers[1][0].weight_ih_l0 is stack.weight_ih_l1
    True
    """
    rnn = _checked(module, "module")
    D = 2 if rnn.bidirectional else 1
    names = rnn._all_weights
    layers = []
    for layer in range(rnn.num_layers):
        width = rnn.input_size if layer == 0 else D * (rnn.proj_size or rnn.hidden_size)
        directions = []
        for own in names[layer * D : (layer + 1) * D]:
            single = _like(rnn, input_size=width, num_layers=1, bidirectional=False, dropout=0.0)
            _share(rnn, own, single, single._all_weights[0], "module")
            directions.append(single.train(rnn.training))
        layers.append(tuple(directions))
    return layers


def stack(layers: Sequence[Sequence[nn.Module] | nn.Module], dropout: float = 0.0) -> nn.Module:
    """One module of several layers out of layers of one direction, sharing their Parameters: `unstack` turned back.

    Args:
        layers: ``[layer][direction]`` as from :func:`unstack`; a plain module stands for a layer of one direction.
        dropout: between the layers, as in torch.nn.

    Returns:
        A layer of the library and mode of the given ones, bidirectional where they come in pairs.

    Raises:
        TypeError: an entry is no recurrent layer.
        ValueError: layers that do not fit on each other; the message names the entry and what differs.

    >>> import torch, birnn_ext
    >>> forward, reverse = birnn_ext.GRU(3, 4), birnn_ext.GRU(3, 4)
    >>> both = birnn_ext.layout.stack([(forward, reverse)])
    >>> both
    GRU(3, 4, bidirectional=True)
    >>> both.weight_hh_l0_reverse is reverse.weight_hh_l0
    True
    """
    if isinstance(layers, nn.Module):
        raise TypeError("layers should be a list of (forward, reverse) pairs, got one module")
    rows: list[tuple[Any, ...]] = [(row,) if isinstance(row, nn.Module) else tuple(row) for row in layers]
    if not rows or not rows[0]:
        raise ValueError("layers should hold at least one layer, got none")
    D = len(rows[0])
    for i, row in enumerate(rows):
        if len(row) != D or D > 2:
            raise ValueError(f"layers should all have one direction or all two, got {len(row)} in layers[{i}]")
        for d, single in enumerate(row):
            where = f"layers[{i}][{d}]"
            _check_fits(_checked(single, where), rows[0][0], i, D, where)
    first = rows[0][0]
    whole = _like(first, input_size=first.input_size, num_layers=len(rows), bidirectional=D == 2, dropout=dropout)
    singles = [single for row in rows for single in row]
    for single, names in zip(singles, whole._all_weights, strict=True):
        _share(single, single._all_weights[0], whole, names, "layers")
    return whole.train(first.training)


def _checked(module: Any, name: str) -> Any:
    """`module`, if it is a layer whose insides are known."""
    if not isinstance(module, (nn.RNNBase, RNNBase)) or module.mode not in TO_TORCH:
        raise TypeError(f"{name} should be an RNN, GRU or LSTM of torch.nn or birnn_ext, got {type(module).__name__}")
    if isinstance(module, Prepacked):
        raise TypeError(f"{name} should be a layer with weights of its own, got a prepacked one: take the one it was made of")
    variant: Any = getattr(module, "variant", None)
    if variant is not None:
        asked = ", ".join(f"{name}={value!r}" for name, value in variant.asked().items())
        raise ValueError(f"{name} should be a layer as torch.nn has it, got one with {asked}")
    return module


def _check_fits(single, first, layer, directions, where):
    if single.num_layers != 1 or single.bidirectional:
        raise ValueError(f"{where} should be a single layer of one direction, got {single!r}")
    if isinstance(single, RNNBase) != isinstance(first, RNNBase):
        raise ValueError(f"{where} should be of the same library as layers[0][0]: convert one of them first")
    for name in ("mode", "hidden_size", "proj_size", "bias", "batch_first"):
        if getattr(single, name) != getattr(first, name):
            raise ValueError(f"{where} should have {name} = {getattr(first, name)!r}, got {getattr(single, name)!r}")
    width = first.input_size if layer == 0 else directions * (first.proj_size or first.hidden_size)
    if single.input_size != width:
        raise ValueError(f"{where} should have input_size = {width}, got {single.input_size}")


def _like(module, *, input_size, num_layers, bidirectional, dropout):
    """A layer of the library, mode and sizes of `module`, without memory behind its weights."""
    mode, arguments = module.mode, {}
    kind = (TO_OURS if isinstance(module, RNNBase) else TO_TORCH)[mode]
    if mode.startswith("RNN_"):
        arguments["nonlinearity"] = mode.removeprefix("RNN_").lower()
    if module.proj_size:
        arguments["proj_size"] = module.proj_size
    return kind(
        input_size, module.hidden_size, num_layers, bias=module.bias, batch_first=module.batch_first,
        dropout=dropout, bidirectional=bidirectional, device="meta", **arguments,
    )  # fmt: skip


def _share(source, source_names, target, target_names, argument):
    for name, new in zip(source_names, target_names, strict=True):
        weight = getattr(source, name)
        if not isinstance(weight, nn.Parameter):
            raise ValueError(f"{argument}: {name} should be a plain Parameter to be shared, got {type(weight).__name__}")
        setattr(target, new, weight)


# -------------------------------------------------------------------------------------------- states


def trace(
    module: nn.Module,
    input: Tensor,
    hx: Tensor | tuple[Tensor, Tensor] | None = None,
    lengths: Tensor | Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Every state of every layer and direction at every step, by name, in the order of time.

    .. code-block:: text

        h_l0  h_l0_reverse  h_l1  h_l1_reverse ...      as the weights: weight_hh_l1_reverse
        c_l0  c_l0_reverse  ...                         LSTM

        h_l0[t]           the state after the forward direction has read steps 0..t
        h_l0_reverse[t]   the state after the reverse direction has read steps T-1..t (from the row's last step down)
        cat([h_l0, h_l0_reverse], -1)                   is what layer 1 reads, in both its directions
        cat([h_l{L-1}, h_l{L-1}_reverse], -1)           is the output

    Computed step by step in plain PyTorch (`birnn_ext.reference`), differentiably, and without dropout: for looking,
    not for speed.

    Args:
        module: a torch.nn.RNN, GRU or LSTM, or one of ours.
        input: [T, B, I], [B, T, I] with the module's ``batch_first``, or [T, I].
        hx: as the module takes it; zeros if None.
        lengths: steps of each row, as :meth:`birnn_ext.GRU.forward` takes them.

    Returns:
        A dict of tensors in the layout of `input`: h [T, B, P], c [T, B, H]; zero beyond a row's length.

    Raises:
        TypeError: `module` is no such layer, `input` no Tensor.
        ValueError, RuntimeError: sizes and dtypes that do not fit, with torch.nn's texts.

    >>> import torch, birnn_ext
    >>> lstm = torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    >>> x = torch.randn(5, 2, 3)
    >>> states = birnn_ext.layout.trace(lstm, x)
    >>> list(states)
    ['h_l0', 'c_l0', 'h_l0_reverse', 'c_l0_reverse', 'h_l1', 'c_l1', 'h_l1_reverse', 'c_l1_reverse']
    >>> output, (h_n, c_n) = lstm(x)
    >>> torch.allclose(states["c_l1_reverse"][0], c_n[3], atol=1e-6)
    True
    """
    rnn = _checked(module, "module")
    if not isinstance(input, Tensor):
        raise TypeError(f"input should be a Tensor, got {type(input).__name__}")
    if input.dim() not in (2, 3):
        raise ValueError(f"input should have 2 or 3 dimensions, got {input.dim()} (shape {tuple(input.shape)})")
    unbatched, batch_dim = input.dim() == 2, 0 if rnn.batch_first else 1
    states = _given_states(rnn, hx)
    if unbatched:
        input, lengths = input.unsqueeze(batch_dim), of_one_row(lengths)
        states = [state.unsqueeze(1) for state in states]
    if not states:
        states = [input.new_zeros(rnn.get_expected_hidden_size(input, None))]
        if rnn.mode == "LSTM":
            states.append(input.new_zeros(rnn.get_expected_cell_size(input, None)))
    rnn.check_forward_args(input, tuple(states) if rnn.mode == "LSTM" else states[0], None)
    x = input.transpose(0, 1) if rnn.batch_first else input
    T, B = x.shape[:2]
    if T == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    ends = None if lengths is None else packed.normalise_lengths(lengths, T, B, input.device)

    D, lstm = 2 if rnn.bidirectional else 1, rnn.mode == "LSTM"
    found = {}
    for layer in range(rnn.num_layers):
        rows = slice(layer * D, layer * D + D)
        weights = tuple(_weights(rnn, row) for row in range(rows.start, rows.stop))
        h0, c0 = states[0][rows], states[1][rows] if lstm else None
        x, _, _, *c = reference.layer(x, h0, c0, ends, weights, mode=rnn.mode, every_c=lstm)
        for d in range(D):
            for name, every in zip("hc", (x, *c), strict=False):
                found[f"{name}_l{layer}{'_reverse' if d else ''}"] = every.chunk(D, -1)[d]
    if rnn.batch_first:
        found = {name: t.transpose(0, 1) for name, t in found.items()}
    return {name: t.squeeze(batch_dim) for name, t in found.items()} if unbatched else found


def _given_states(module, hx):
    """The tensors of hx, none where it is None."""
    if hx is None:
        return []
    if module.mode != "LSTM":
        if not isinstance(hx, Tensor):
            raise TypeError(f"hx should be a Tensor or None, got {type(hx).__name__}")
        return [hx]
    if not isinstance(hx, (tuple, list)) or len(hx) != 2 or not all(isinstance(state, Tensor) for state in hx):
        raise TypeError(f"hx should be a pair of Tensors (h_0, c_0) or None, got {type(hx).__name__}")
    return list(hx)


def _weights(module, row):
    """(w_ih, w_hh, b_ih | None, b_hh | None, w_hr | None) of one direction of one layer."""
    held = {name.split("_l")[0]: getattr(module, name) for name in module._all_weights[row]}
    return tuple(held.get(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"))


def of_one_row(lengths):
    """The lengths of a batch of one: an unbatched call may give a bare number."""
    bare = isinstance(lengths, int) or (isinstance(lengths, Tensor) and lengths.dim() == 0)
    return [int(lengths)] if bare else lengths
