"""Layers for inference whose weights are packed once, and not at every call; as bfloat16 if so wished.

A layer packs its weights at every call, because they may have changed and nothing would tell. Here they cannot: they are in
the packed form only. Not here: the packed form itself (csrc/cpu/pack.h).
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import functional, ops
from .base import RNNBase
from .convert import TO_OURS
from .module import BiRNN

Model = TypeVar("Model", bound=nn.Module)
_KINDS = (*TO_OURS.values(), BiRNN)


def prepack(model: Model, dtype: torch.dtype | None = None, inplace: bool = False) -> Model:
    """Packs the weights of every layer of ours in `model` (itself included) once, for inference on the CPU.

    Such a layer is called as before, and has no parameters. Small batches gain: a layer that meets few rows spends most of
    its time on reading weights, of which bfloat16 are half as many bytes. Results are then off by what rounding the weights
    to 8 bits of precision does (each by 2**-8 of itself at most, or 2**-126); all sums stay in float32. The weights of a layer
    that is in bfloat16 itself are packed as they are, and multiplied as such, on a processor that multiplies bfloat16.

    Its `state_dict` has the weights, as they were rounded, under torch.nn's names, and `load_state_dict` takes such ones.
    Pickles and copies fit any machine; what torch.export makes of it fits processors with the same instruction set.

    Args:
        model: any torch.nn.Module on the CPU. Only layers of exactly our types, without a variant (`birnn_ext.variants`),
            parametrized or not; subclasses and torch.nn's layers are left alone (:func:`birnn_ext.convert` swaps these).
        dtype: of the weights: None for that of the layer, or torch.bfloat16. For None the halves become float32, but
            bfloat16 stays what it is on a processor that multiplies it.
        inplace: whether the layers of `model` itself are changed, rather than those of a copy.

    Returns:
        `model`, or the copy.

    Raises:
        TypeError: `model` is no torch.nn.Module.
        ValueError: no layer of ours in it; another dtype; a layer with a variant, with other parameters than its own, not on
            the CPU, complex, in float64 where bfloat16 is asked for, or with weights that are not finite there. Then no
            layer is changed.
        RuntimeError: the compiled library is missing.

    Calls of such a layer raise RuntimeError where a derivative is asked for.

    >>> import torch, birnn_ext
    >>> gru = birnn_ext.GRU(3, 4, bidirectional=True)
    >>> fast = birnn_ext.prepack(gru, torch.bfloat16)
    >>> fast
    GRU(3, 4, bidirectional=True, packed=bfloat16)
    >>> x = torch.randn(5, 2, 3)
    >>> with torch.no_grad():
    ...     torch.allclose(fast(x)[0], gru(x)[0], atol=0.02)
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"prepack: model should be a torch.nn.Module, got {type(model).__name__}")
    if ops._C is None:
        raise RuntimeError("prepack: the compiled library is missing, without which there is nothing to pack for")
    if dtype not in (None, torch.bfloat16):
        raise ValueError(f"prepack: dtype should be None or torch.bfloat16, got {dtype}")
    found = _layers(model)
    if not found and any(isinstance(module, Prepacked) for module in model.modules()):
        raise ValueError("prepack: expected layers that are not prepacked yet, got a model whose layers are")
    if not found:
        raise ValueError(
            "prepack: expected a model with layers of birnn_ext, got one with none (birnn_ext.convert swaps torch.nn's)"
        )
    for name, layer in found:
        _check(layer, dtype, f" {name}" if name else "")
    if not inplace:
        model = copy.deepcopy(model)
    layers = [layer for _, layer in _layers(model)]
    with torch.no_grad():
        given = [_flat(layer._layers())[0].dtype for layer in layers]
        # All of them, before anything is changed.
        packed = [
            _pack(layer._layers(), layer.mode, _computed(kind, kind), dtype) for layer, kind in zip(layers, given, strict=True)
        ]
    for layer, tensors in zip(layers, packed, strict=True):
        _give(layer, dtype, tensors)
    return model


def _layers(model):
    return [found for found in model.named_modules() if parametrize.type_before_parametrizations(found[1]) in _KINDS]


def _check(layer, dtype, name):
    if layer.variant is not None:
        asked = ", ".join(f"{name}={value!r}" for name, value in layer.variant.asked().items())
        raise ValueError(f"prepack: expected layers without a variant, got{name or ' one'} with {asked}")
    if more := set(layer._parameters) - set(layer._flat_weights_names):
        raise ValueError(
            f"prepack: expected layers with parameters of their own alone, got{name or ' one'} with {', '.join(sorted(more))}: "
            "undo what made them, for example by torch.nn.utils.remove_weight_norm"
        )
    for weight in _flat(layer._layers()):
        if weight.device.type != "cpu":
            raise ValueError(f"prepack: expected weights on cpu, got{name or ' some'} on {weight.device}")
        if not weight.is_floating_point() or (weight.dtype == torch.float64 and dtype is not None):
            raise ValueError(f"prepack: expected weights that can be packed as {dtype}, got{name or ' some'} of {weight.dtype}")
        _check_finite(weight, dtype, name)


def _check_finite(weight, dtype, name):
    if dtype == torch.bfloat16 and not torch.isfinite(weight.detach().to(dtype)).all():
        raise ValueError(f"prepack: expected weights that are finite as {dtype}, got{name or ' some'} that are not")


def _flat(layers):
    return [weight for directions in layers for held in directions for weight in held if weight is not None]


def _computed(given, dtype):
    """What a layer of this dtype computes in that was made of one with weights of dtype `given`."""
    if given == dtype == torch.bfloat16 and ops._C.multiplies_bfloat16():
        return torch.bfloat16
    return torch.float64 if given == torch.float64 else torch.float32


def _pack(layers, mode, computed, asked):
    """The weights of all directions of all layers, one after the other, packed for computing in one dtype; as the other one."""
    held = functional.cast([[None if w is None else w.detach().cpu() for w in ws] for ds in layers for ws in ds], computed)
    narrow = asked == torch.bfloat16 != computed
    return [torch.ops.birnn_ext.pack_weights(*weights, mode, narrow) for weights in held]


def _give(layer, asked, packed):
    """Makes a Prepacked of the layer, which stays the object that it is."""
    kind = parametrize.type_before_parametrizations(layer)
    like = _flat(layer._layers())[0].detach().new_empty(0)
    layer._parameters.clear()
    # (torch's remove_parametrizations would take the weight from the class, which copies share.)
    layer._modules.pop("parametrizations", None)
    layer.__class__ = Prepacked
    layer.__dict__.update(_name=kind.__name__, _names=layer._all_weights)
    layer.__dict__.update(_asked=asked, _given=like.dtype, computed_dtype=_computed(like.dtype, like.dtype))
    layer.__dict__.update(_all_weights=[], _flat_weights_names=["_like"])  # what is looked at before a call, or behind it
    layer.register_buffer("_like", like, persistent=False)
    layer._keep(packed)


class Prepacked(RNNBase):
    """A layer whose weights are packed; made by :func:`prepack`."""

    _name: str
    computed_dtype: torch.dtype  # of the arithmetic: decided where weights are packed
    _asked: torch.dtype | None  # what prepack was asked for
    _given: torch.dtype  # of the weights of the layer that it was
    _names: list[list[str]]  # of the weights of each direction
    _like: Tensor  # has the dtype of input and results

    def __init__(self) -> None:
        raise TypeError("a Prepacked is made by birnn_ext.prepack")

    @property
    def packed_dtype(self) -> torch.dtype:
        """What the weights are packed as."""
        return self._asked or self.computed_dtype

    def _keep(self, packed):
        for names, new in zip(self._names, packed, strict=True):
            name = names[0].replace("weight_ih", "packed")
            old = self._buffers.get(name)
            if old is not None and old.shape == new.shape and not old.is_inference():
                old.copy_(new)  # whoever holds it, such as a traced module, sees the new weights
            else:
                self.register_buffer(name, new, persistent=False)

    def _load(self, plain):
        """Takes these weights, by name."""
        for name, weight in plain.items():
            _check_finite(weight, self._asked, f" {name}")
        layers = []
        for names in self._names:
            held = [plain[name] for name in names]
            if not self.bias:
                held[2:2] = (None, None)
            if not self.proj_size:
                held.append(None)
            layers.append((tuple(held),))
        computed = _computed(self._given, self._like.dtype)
        with torch.no_grad():
            self._keep(_pack(layers, self.mode, computed, self._asked))
        self.computed_dtype = computed

    def _packed(self):
        """L tuples of D packed tensors."""
        buffers = self._buffers
        packed = [buffers[names[0].replace("weight_ih", "packed")] for names in self._names]
        return tuple(zip(packed[0::2], packed[1::2], strict=True)) if self.bidirectional else tuple([(p,) for p in packed])

    def _plain(self):
        """{name: weight} of the weights as they were rounded, in the dtype of the arithmetic."""
        plain = {}
        for names, packed in zip(self._names, (p for directions in self._packed() for p in directions), strict=True):
            plain |= zip(names, (t for t in torch.ops.birnn_ext.unpack_weights(packed) if t.numel()), strict=True)
        return plain

    # ------------------------------------------------------------------------------------------- the call

    def _layers(self):
        return tuple(tuple((self._like,) for _ in directions) for directions in self._packed())

    def check_input(self, input, batch_sizes):
        if input.device.type != "cpu":
            raise RuntimeError(f"{self._kind}: a prepacked layer is for the CPU, got input on {input.device}")
        super().check_input(input, batch_sizes)

    def _compute(self, input, hx, lengths, weights, reset, return_states, batch_first):
        if reset is not None or return_states:
            raise ValueError(f"{self._kind}: expected neither reset nor return_states for a prepacked layer, got one")
        layers = iter(self._packed())

        def compute(input, h0, c0, lengths, _, *, mode, batch_first):
            return ops.packed_layer(
                input, h0, c0, lengths, next(layers),
                mode=mode, batch_first=batch_first, hidden_size=self.hidden_size, proj_size=self.proj_size,
            )  # fmt: skip

        output, h_n, c_n = functional.birnn(
            input, hx, lengths, weights,
            mode=self.mode, batch_first=batch_first, dropout=self.dropout, training=self.training,
            layer=compute, computed=self.computed_dtype,
        )  # fmt: skip
        return output, h_n if c_n is None else (h_n, c_n)

    # ------------------------------------------------------------------------------ checkpoints and copies

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: weight.to(self._like.dtype) for name, weight in self._plain().items()})

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs):
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs)
        plain = self._plain()
        ours = {prefix + name: name for name in plain}
        unexpected_keys[:] = [key for key in unexpected_keys if key not in ours]
        errors = []
        for key, name in ours.items():
            given = state_dict.get(key)
            if given is None:
                missing_keys.append(key)
            elif not isinstance(given, Tensor) or given.is_meta:
                errors.append(f'While copying the parameter named "{key}", expected a tensor with data, got {_kind_of(given)}.')
            elif given.shape != plain[name].shape:
                errors.append(
                    f"size mismatch for {key}: copying a param with shape {given.shape} from checkpoint, "
                    f"the shape in current model is {plain[name].shape}."
                )
            else:
                plain[name] = given
        if not errors:
            try:
                self._load(plain)
            except ValueError as error:
                errors.append(str(error))
        error_msgs += errors

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        # What is packed for bfloat16 takes no other input: in another dtype such a layer computes in float32.
        if self._like.device.type == "cpu" and self.computed_dtype != _computed(self._given, self._like.dtype):
            self._load(self._plain())
        return self

    def __getstate__(self):
        # Packed memory fits one instruction set; a pickle may be read elsewhere.
        kept = {name: buffer for name, buffer in self._buffers.items() if not name.startswith("packed_")}
        return self.__dict__ | {"_buffers": kept, "_plain_weights": self._plain()}

    def __setstate__(self, state):
        plain = state.pop("_plain_weights")
        super().__setstate__(state)
        self._load(plain)

    # ------------------------------------------------------------------------------ what a layer has and this has not

    def reset_parameters(self) -> None:
        """Raises RuntimeError: there are none."""
        raise RuntimeError("a prepacked layer has no parameters to draw anew: load_state_dict takes weights")

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Raises RuntimeError: it would not be computed with."""
        raise RuntimeError(f"{name}: a prepacked layer takes no parameters: load_state_dict takes weights")

    def _get_name(self):
        return self._name

    def extra_repr(self) -> str:
        """As that of the layer that it was, and the dtype of the packed weights."""
        return f"{super().extra_repr()}, packed={str(self.packed_dtype).removeprefix('torch.')}"


def _kind_of(value):
    return "a tensor on meta" if isinstance(value, Tensor) else type(value).__name__
