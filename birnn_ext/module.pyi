"""The signatures of the layers, for type checkers and editors; module.py passes most arguments on as they come."""

from typing import TypedDict, Unpack

import torch

from .base import RNNBase

class Options(TypedDict, total=False):
    """What torch.nn does not have; see docs/variants.md."""

    merge_mode: str | None
    recurrent_dropout: float
    zoneout: float | tuple[float, float]
    weight_drop: float
    layer_norm: bool
    init: str
    unit_forget_bias: bool
    recompute: bool

class RNN(RNNBase):
    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[Options],
    ) -> None: ...

class GRU(RNNBase):
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[Options],
    ) -> None: ...

class LSTM(RNNBase):
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[Options],
    ) -> None: ...

class BiRNN(RNNBase):
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        mode: str = "GRU",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        proj_size: int = 0,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[Options],
    ) -> None: ...
