"""The layer as one differentiable call: `layer(...)`, the compiled ops below it, and their derivatives.

`torch.ops.birnn_ext.layer` and `.layer_backward` (csrc/ops.cpp) know nothing of autograd. Around them stand the
Python `autograd.Function`s of autograd.py, which is the one wiring that eager mode, torch.compile, torch.export and
torch.func all accept; where no derivative is wanted the op is called directly. Devices and dtypes without a kernel
run through `reference.py`.
Not here: several layers, dropout, argument errors of the module (functional.py, module.py).
"""

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import library, reference
from .autograd import HALVES, Layer, apply, under_autocast

_C = library.load()  # loading it registers the ops; None where it cannot be

_FULL = (torch.float32, torch.float64)
# Dtypes with a compiled kernel, by device; "meta" computes shapes only.
KERNEL_DTYPES: dict[str, tuple[torch.dtype, ...]] = {}
if _C is not None:
    KERNEL_DTYPES = dict.fromkeys(["cpu", "meta", *["cuda"] * bool(_C.cuda_archs)], (*_FULL, *HALVES))
_NO_WEIGHTS = (None,) * 5
# One direction: (w_ih, w_hh, b_ih | None, b_hh | None, w_hr | None).
Weights: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


@torch.compiler.assume_constant_result
def fast_bfloat16() -> bool:
    """Whether the instruction set in use multiplies bfloat16 itself, twice as fast as float32."""
    # (Not asked at import, which would choose the instruction set: an unknown BIRNN_ISA is an error of the first call.)
    return _C is not None and _C.multiplies_bfloat16()


def has_kernel(input: Tensor) -> bool:
    """Whether tensors of this device and dtype have a compiled kernel; if not, the reference computes them."""
    return input.dtype in KERNEL_DTYPES.get(input.device.type, ())


def has_variants(input: Tensor) -> bool:
    """Whether the kernel of this device and dtype knows episodes (`lengths` of two dimensions) and `every_c`."""
    return has_kernel(input) and input.device.type != "cuda"


def in_place(input: Tensor) -> bool:
    """Whether `layer` may be given `states`: eager mode with a kernel. Compilers, tracers and transforms want functions
    without side effects."""
    return (
        has_kernel(input)
        and forward_ad._current_level < 0
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
        and torch._C._len_torch_dispatch_stack() == 0
    )


def layer(
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    weights: tuple[Weights, ...],
    *,
    mode: str,
    batch_first: bool = False,
    states: tuple[int, Tensor, Tensor | None] | None = None,
    recompute: bool = False,
    every_c: bool = False,
) -> tuple[Any, ...]:
    """One recurrent layer with all its directions, differentiable any number of times.

    Args:
        input: [T, B, I] ([B, T, I] if batch_first), any strides.
        h0: [D, B, P] or None for zeros; row d is where direction d starts: the forward direction at t = 0, the
            reverse direction at each row's own last step.
        c0: [D, B, H] or None for zeros; LSTM only.
        lengths: int64 [B] on the input's device, each 0..T, or None: all are T. On a GPU nobody looks at the values, which
            would mean to wait for the device: what is outside 0..T counts as the nearer of the two. Or int64 [B, T], numbers
            of episodes, as in :func:`birnn_ext.reference.layer`.
        weights: one tuple per direction, (w_ih [G*H, I], w_hh [G*H, P], b_ih [G*H] or None, b_hh [G*H] or
            None, w_hr [P, H] or None), in torch.nn's layout.
        mode: "RNN_TANH", "RNN_RELU", "LSTM" or "GRU".
        batch_first: whether input and output have the batch dimension first.
        states: None, or (row, h_n [L*D, B, P], c_n [L*D, B, H] or None), contiguous: the final states are written to rows
            [row, row + D). Only where `in_place` allows it.
        recompute: keep no gates for backward, which computes them once more: less memory, more time. Not with `every_c`.
        every_c: whether the c of every step is returned too, fourth; LSTM only, and not with `states`.

    Returns:
        output [T, B, D*P] ([B, T, D*P]), forward direction first, zero beyond the lengths; h_n [D, B, P];
        c_n [D, B, H] for LSTM, else None. With `states` these two, changed in place. With `every_c` also c [T, B, D*H]
        ([B, T, D*H]), zero where output is.

    Raises:
        RuntimeError: a rank, shape, dtype or device does not fit; the message names the argument.
        ValueError: an unknown mode, or (on the CPU) a length out of range.
    """
    # Forward-mode AD, also inside torch.func.jvp and jacfwd: the reference has derivatives of every kind.
    known = has_variants if every_c or (lengths is not None and lengths.dim() == 2) else has_kernel
    if not known(input) or forward_ad._current_level >= 0:
        return _by_reference(input, h0, c0, lengths, weights, mode=mode, batch_first=batch_first, every_c=every_c)
    flat = weights[0] + (weights[1] if len(weights) == 2 else _NO_WEIGHTS)
    h_n: Any
    row, h_n, c_n = states or (0, None, None)
    if _differentiable(input, h0, c0, *flat):
        if torch.jit.is_tracing():
            raise RuntimeError(
                "birnn_ext: torch.jit.trace cannot record the derivatives of this layer: trace under torch.no_grad(), "
                "or use torch.export"
            )
        keep = not recompute or SAVED[mode] == 0 or every_c
        output, h_n, c_n, _ = apply(Layer, mode, batch_first, keep, every_c, row, h_n, c_n, input, h0, c0, lengths, *flat)
        if every_c:
            c, c_n = c_n[:, :-1], c_n[:, -1]
    elif states:
        output, _ = torch.ops.birnn_ext.layer_into(input, h0, c0, lengths, *flat, mode, batch_first, False, h_n, c_n, row)
    else:
        output, h_n, c_n, saved = torch.ops.birnn_ext.layer(input, h0, c0, lengths, *flat, mode, batch_first, every_c)
        if every_c:
            c = saved[..., -1, :]
    if every_c:
        return output, h_n, c_n, (c.permute(2, 1, 0, 3) if batch_first else c.permute(1, 2, 0, 3)).flatten(2)
    return output, h_n, c_n if mode == "LSTM" else None


def packed_layer(
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    packed: tuple[Tensor, ...],
    *,
    mode: str,
    batch_first: bool,
    hidden_size: int,
    proj_size: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`layer` with weights that torch.ops.birnn_ext.pack_weights has packed, one tensor for each direction; CPU only, and
    without derivatives.

    Raises:
        RuntimeError: a derivative is wanted, or tensors do not fit.
    """
    if forward_ad._current_level >= 0:
        raise RuntimeError("a prepacked layer has no forward-mode derivatives: use the layer that it was made of")
    if torch.is_grad_enabled() and not torch.compiler.is_exporting():
        for name, t in (("input", input), ("h_0", h0), ("c_0", c0)):
            if t is not None and t.requires_grad:
                raise RuntimeError(
                    f"{name} requires grad, and a prepacked layer has no backward: call it under torch.no_grad(), or use the "
                    "layer that it was made of"
                )
    reverse = packed[1] if len(packed) == 2 else None
    output, h_n, c_n = torch.ops.birnn_ext.packed_layer(
        input, h0, c0, lengths, packed[0], reverse, mode, batch_first, hidden_size, proj_size
    )
    return output, h_n, c_n if mode == "LSTM" else None


def converted(input: Tensor, mode: str, *, computed: torch.dtype | None = None) -> tuple[torch.dtype, torch.dtype] | None:
    """(dtype to compute a stack of layers in, dtype of its results) where they are not simply the input's, else None.

    Under torch.autocast that is its dtype where kernels are the faster for it, as torch.nn does on a GPU; on the CPU that is
    bfloat16 on a processor that multiplies it, and else float32. `computed`: None if the layers are as torch.nn has them; what
    variants (float32) and prepacked layers compute in on the CPU, under autocast or where tensors are halves.

    The dtypes of results are those that torch.nn has: autocast on the CPU does not know GRU (as of torch 2.13), whose
    results are then of the dtype of its input.
    """
    device = input.device.type
    kernels = KERNEL_DTYPES.get(device, ())
    if device != "cpu" or _C is None:
        computed = None
    if under_autocast(input) and input.dtype != torch.float64:
        results = input.dtype if mode == "GRU" and device == "cpu" else torch.get_autocast_dtype(device)
        if computed is not None:
            return computed, results
        # (Nor under a torch.func transform, parts of which plain PyTorch computes, step by step.)
        fast = results in kernels and (device != "cpu" or (results == torch.bfloat16 and fast_bfloat16()))
        fast = fast and not (device == "cpu" and torch._C._are_functorch_transforms_active())
        return results if fast else torch.float32, results
    return (computed, input.dtype) if computed not in (None, input.dtype) and input.dtype in HALVES else None


def _by_reference(input, h0, c0, lengths, weights, **options):
    """`reference.layer`; of halves in float32, since it would round every step."""
    dtype = input.dtype
    if dtype not in HALVES:
        return reference.layer(input, h0, c0, lengths, weights, **options)

    def cast(t, to):
        return None if t is None else t.to(to)

    input, h0, c0 = (cast(t, torch.float32) for t in (input, h0, c0))
    weights = tuple(tuple(cast(w, torch.float32) for w in direction) for direction in weights)
    return tuple(cast(t, dtype) for t in reference.layer(input, h0, c0, lengths, weights, **options))


def _differentiable(*tensors):
    """Whether somebody watches: autograd, or a torch.func transform."""
    # An exported program has the op alone, which has no derivative by itself: it need not save anything for one.
    if torch.is_grad_enabled() and not torch.compiler.is_exporting():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return torch._C._are_functorch_transforms_active()


def _register_fakes():
    """Shapes of the results, for tensors without data: torch.compile, torch.export, the meta device."""

    def check_devices(input, names, given):
        # One meta tensor among others is enough to bring a call here; it would get uninitialised memory back.
        for name, t in zip(names, given, strict=True):
            if t is not None and t.device != input.device:
                raise RuntimeError(f"{name}: expected device {input.device}, that of input, got {t.device}")

    def layer_fake(input, h0, c0, lengths, w_ih, w_hh, b_ih, b_hh, w_hr, *rest, into=False):
        check_devices(input, TENSORS, (h0, c0, lengths, w_ih, w_hh, b_ih, b_hh, w_hr, *rest[:5]))
        w_ih_reverse, (mode, batch_first, train) = rest[0], rest[-3:]
        B, T = (input.shape[0], input.shape[1]) if batch_first else (input.shape[1], input.shape[0])
        D = 1 if w_ih_reverse is None else 2
        H = w_ih.shape[0] // GATES[mode]
        P = H if w_hr is None else w_hr.shape[0]
        output = input.new_empty((B, T, D * P) if batch_first else (T, B, D * P))
        saved = input.new_empty((D, T, B, SAVED[mode], H) if train else (0,))
        if into:
            return output, saved
        h_n = input.new_empty((D, B, P))
        c_n = input.new_empty((D, B, H) if mode == "LSTM" else (0,))
        return output, h_n, c_n, saved

    def layer_into_fake(*arguments):
        return layer_fake(*arguments[:-3], into=True)

    def packed_fake(input, h0, c0, lengths, packed, packed_reverse, mode, batch_first, hidden_size, proj_size):
        B, T = (input.shape[0], input.shape[1]) if batch_first else (input.shape[1], input.shape[0])
        check_devices(input, (*TENSORS[:3], "packed", "packed_reverse"), (h0, c0, lengths, packed, packed_reverse))
        D, P = 1 if packed_reverse is None else 2, proj_size or hidden_size
        output = input.new_empty((B, T, D * P) if batch_first else (T, B, D * P))
        c_n = input.new_empty((D, B, hidden_size) if mode == "LSTM" else (0,))
        return output, input.new_empty((D, B, P)), c_n

    def backward_fake(grad_output, grad_h_n, grad_c_n, input, h0, c0, lengths, *rest):
        weights, (mode, batch_first), (need_input, need_state, need_weights) = rest[:10], rest[10:12], rest[-3:]
        B = input.shape[0] if batch_first else input.shape[1]
        D = 1 if weights[5] is None else 2
        H = weights[0].shape[0] // GATES[mode]
        P = H if weights[4] is None else weights[4].shape[0]
        grad_input = input.new_empty(input.shape if need_input else (0,))
        grad_h0 = input.new_empty((D, B, P) if need_state else (0,))
        grad_c0 = input.new_empty((D, B, H) if need_state and mode == "LSTM" else (0,))
        return (
            grad_input,
            grad_h0,
            grad_c0,
            *(input.new_empty(w.shape if need_weights and w is not None else (0,)) for w in weights),
        )

    def gates_backward_fake(grad_output, grad_h_n, grad_c_n, input, h0, c0, lengths, *rest):
        weights, (mode, batch_first) = rest[:10], rest[10:12]
        B, T = (input.shape[0], input.shape[1]) if batch_first else (input.shape[1], input.shape[0])
        D, H = 1 if weights[5] is None else 2, weights[0].shape[0] // GATES[mode]
        P = H if weights[4] is None else weights[4].shape[0]
        grad_c0 = input.new_empty((D, B, H) if mode == "LSTM" else (0,))
        return input.new_empty((D, T, B, COLUMNS[mode], H)), input.new_empty((D, B, P)), grad_c0

    torch.library.register_fake("birnn_ext::layer_gates_backward", gates_backward_fake)
    torch.library.register_fake("birnn_ext::layer", layer_fake)
    torch.library.register_fake("birnn_ext::packed_layer", packed_fake)
    torch.library.register_fake("birnn_ext::layer_into", layer_into_fake)
    torch.library.register_fake("birnn_ext::layer_backward", backward_fake)


# The tensors of the ops behind `input`, as csrc/ops.cpp names them.
_WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")
TENSORS = ("h0", "c0", "lengths", *_WEIGHTS, *(f"{name}_reverse" for name in _WEIGHTS))
GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 3}
SAVED = {"RNN_TANH": 0, "RNN_RELU": 0, "LSTM": 5, "GRU": 4}  # values per unit and step; as in csrc/cells
COLUMNS = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 4}  # gradients of gates per unit and step; likewise
if _C is not None:
    _register_fakes()
