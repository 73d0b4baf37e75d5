"""Swaps the recurrent layers of a model between torch.nn's and ours, in place.

A layer is swapped by giving the object its new class, as torch's own parametrizations do: the object, its
Parameter objects, hooks, training mode, names and every reference to it stay what they were. Nothing is
copied, and no weight changes: both families keep the same attributes (`birnn_ext.base`).
"""

from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from . import module as ours

Model = TypeVar("Model", bound=nn.Module)
TO_OURS = {nn.RNN: ours.RNN, nn.GRU: ours.GRU, nn.LSTM: ours.LSTM}
TO_TORCH = {"RNN_TANH": nn.RNN, "RNN_RELU": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
CACHES = ("_flat_weights", "_flat_weight_refs")  # torch.nn stores them, ours looks its weights up


def convert(model: Model) -> Model:
    """Turns every torch.nn.RNN, GRU and LSTM in `model` (itself included) into ours, in place.

    Only layers of exactly these types, parametrized or not: a subclass may count on more of torch.nn than its
    weights, and is left alone. Undo with :func:`revert`.

    Args:
        model: any torch.nn.Module.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is no torch.nn.Module.

    >>> import torch, birnn_ext
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.GRU(3, 4, bidirectional=True))
    >>> weight = model[1].weight_hh_l0
    >>> type(birnn_ext.convert(model)[1]) is birnn_ext.GRU, model[1].weight_hh_l0 is weight
    (True, True)
    """
    for layer, plain in _layers(model, "convert"):
        if plain in TO_OURS:
            _give_class(layer, TO_OURS[plain])
            for name in CACHES:
                layer.__dict__.pop(name, None)
    return model


def revert(model: Model) -> Model:
    """Turns every layer of ours in `model` (itself included) into torch.nn's, in place.

    A BiRNN becomes the bidirectional layer of its mode. Only exact types, as in :func:`convert`.

    Args:
        model: any torch.nn.Module.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is no torch.nn.Module.
        ValueError: a layer has a variant, which torch.nn's does not; then no layer is changed.

    >>> import torch, birnn_ext
    >>> birnn_ext.revert(birnn_ext.BiRNN(3, 4, mode="LSTM"))
    LSTM(3, 4, bidirectional=True)
    >>> type(_) is torch.nn.LSTM
    True
    """
    own = [found for found in _layers(model, "revert") if found[1] in (ours.RNN, ours.GRU, ours.LSTM, ours.BiRNN)]
    for layer, plain in own:
        if layer.variant is not None:
            asked = ", ".join(f"{name}={value!r}" for name, value in layer.variant.asked().items())
            raise ValueError(f"revert: torch.nn has no {plain.__name__} with {asked}")
    for layer, plain in own:
        if plain is ours.BiRNN and layer.mode.startswith("RNN_"):
            layer.nonlinearity = layer.mode.removeprefix("RNN_").lower()
        _give_class(layer, TO_TORCH[layer.mode])
        layer._init_flat_weights()
    return model


def _layers(model, caller):
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: model should be a torch.nn.Module, got {type(model).__name__}")
    return [(layer, parametrize.type_before_parametrizations(layer)) for layer in model.modules()]


def _give_class(layer, plain):
    if parametrize.is_parametrized(layer):
        # A parametrized layer has a class of its own, a child of the plain one that holds a property for each
        # parametrized weight: the same child of the new class.
        held = {k: v for k, v in vars(type(layer)).items() if k not in ("__dict__", "__weakref__", "__doc__")}
        plain = type(f"Parametrized{plain.__name__}", (plain,), held)
    layer.__class__ = plain
