"""What is installed, which kernel a call takes, and whether it computes what torch.nn does: for bug reports.

`info` is what `python -m birnn_ext` prints. Not here: speed (`birnn_ext.bench`).
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from . import library, ops
from .base import RNNBase
from .prepack import Prepacked
from .stacks import TO_OURS, TO_TORCH

# What changes how a build behaves or how fast it is.
VARIABLES = (
    "BIRNN_ISA",
    "ATEN_CPU_CAPABILITY",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "BIRNN_PERSISTENT",
    "BIRNN_CUDA_TIER",
)
# The kinds of CUDA kernels (docs/how/gpu.md).
TIERS = {
    "stepwise": "a product and a kernel for every step",
    "block": "all steps in one launch, weights in one block's shared memory",
    "spread": "all steps in one launch, weights spread over many blocks; it has run on no GPU yet",
    "cluster": "all steps in one launch, weights spread over clusters of blocks; it has run on no GPU yet",
}


@dataclass(frozen=True)
class Kernel:
    """What computes a call, and why. `name` is "cpu avx512 float32" or the like, or "reference", or "torch.nn"."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def which_kernel(module: nn.Module, input: Tensor | PackedSequence) -> Kernel:
    """Which kernel ``module(input)`` would take here and now, and why. Nothing is computed.

    Autocast, forward-mode AD and the instruction set count as they are at the time of the call.

    Args:
        module: one of our layers, or a torch.nn.RNN, GRU or LSTM (the answer is then "torch.nn").
        input: as the module takes it.

    Returns:
        A :class:`Kernel` with a name and a reason.

    Raises:
        TypeError: an argument of another kind.

    >>> import torch, birnn_ext
    >>> gru = birnn_ext.GRU(3, 4, bidirectional=True)
    >>> birnn_ext.which_kernel(gru.to(torch.complex64), torch.randn(5, 2, 3, dtype=torch.complex64))
    Kernel(name='reference', reason='there is no kernel for complex64 on cpu, so plain PyTorch computes it, slowly')
    """
    if not isinstance(module, (nn.RNNBase, RNNBase)):
        raise TypeError(f"module should be an RNN, GRU or LSTM of birnn_ext or torch.nn, got {type(module).__name__}")
    data = input.data if isinstance(input, PackedSequence) else input
    if not isinstance(data, Tensor):
        raise TypeError(f"input should be a Tensor or a PackedSequence, got {type(input).__name__}")
    if not isinstance(module, RNNBase):
        return Kernel("torch.nn", "the module is torch.nn's own: birnn_ext.convert(model) would swap it")
    device, dtype, note = data.device.type, data.dtype, ""
    computed = None if module.variant is None else torch.float32
    if isinstance(module, Prepacked):
        computed = module.computed_dtype
    if (dtypes := ops.converted(data, module.mode, computed=computed)) is not None:
        dtype = dtypes[0]
        inside, results = (str(d).removeprefix("torch.") for d in dtypes)
        note = f"; it computes in {inside} and gives results in {results}"
    if isinstance(module, Prepacked):
        note += f"; its weights are packed beforehand, as {str(module.packed_dtype).removeprefix('torch.')}"
    probe = torch.empty(0, dtype=dtype, device="meta" if device == "meta" else data.device)
    if ops._C is None:
        return Kernel("reference", "the compiled library is missing, so plain PyTorch computes it, slowly")
    if not ops.has_kernel(probe):
        named = str(dtype).removeprefix("torch.")
        return Kernel("reference", f"there is no kernel for {named} on {device}, so plain PyTorch computes it, slowly")
    if module.variant is not None and module.variant.inside(module.training):
        asked = ", ".join(f"{name}={value!r}" for name, value in module.variant.asked().items())
        return Kernel("reference", f"{asked} acts inside the step, which plain PyTorch computes, slowly")
    if forward_ad._current_level >= 0:
        return Kernel("reference", "forward-mode AD (jvp, jacfwd) runs through plain PyTorch, slowly")
    named = str(dtype).removeprefix("torch.")
    if device == "cuda" and hasattr(torch.ops.birnn_ext, "cuda_tier"):
        tier, more = _cuda_tier(module, input, dtype)
        return _cuda_kernel(tier, more, named, note)
    if device != "cpu":
        return Kernel(f"{device} {named}", f"{named} on {device} has a kernel{note}")
    isa, usable = ops._C.isa(), ops._C.isa_list()
    forced = [f"{name}={os.environ[name]}" for name in ("BIRNN_ISA", "ATEN_CPU_CAPABILITY") if os.environ.get(name)]
    why = "the best that this processor can run" if isa == usable[0] else f"of {', '.join(usable)}"
    why += f" ({', '.join(forced)})" if forced else ""
    return Kernel(f"cpu {isa} {named}", f"{named} on cpu has a kernel; {isa} is {why}{note}")


def _cuda_tier(module, input, dtype):
    """(kind of kernels, more in words), of the forward pass, as the compiled library chooses them for this device."""
    if isinstance(input, PackedSequence):
        data, B = input.data, int(input.batch_sizes[0])
    else:
        data, B = input, input.shape[0 if module.batch_first else 1] if input.dim() == 3 else 1
    D, device = 2 if module.bidirectional else 1, data.device.index
    device = torch.cuda.current_device() if device is None else device
    return torch.ops.birnn_ext.cuda_tier(module.mode, dtype, B, module.hidden_size, D, module.proj_size > 0, False, device)


def _cuda_kernel(tier, more, named, note):
    said = [more] * bool(more)
    names = ("BIRNN_PERSISTENT",) if _forced else ("BIRNN_PERSISTENT", "BIRNN_CUDA_TIER")
    said += [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]
    said += [f"birnn_ext.cuda_kernel({_forced!r})"] * bool(_forced)
    why = f" ({', '.join(said)})" if said else ""
    return Kernel(f"cuda {tier} {named}", f"{named} on cuda has a kernel; {tier} is {TIERS[tier]}{why}{note}")


_forced = ""  # by cuda_kernel


@contextlib.contextmanager
def cuda_kernel(kind: str) -> Iterator[None]:
    """Within the ``with`` block, layers on CUDA run through kernels of one kind, in the whole process.

    For tests and measurements, from one thread at a time. A backward pass counts where it runs, not where its forward pass did.
    BIRNN_CUDA_TIER does the same from outside; inside the block it is not heeded.

    Args:
        kind: "stepwise", "block", "spread" or "cluster" (docs/how/gpu.md); "auto" leaves the choice to the layer.

    Returns:
        A context manager.

    Raises:
        ValueError: `kind` is none of these.
        RuntimeError: birnn_ext was built without CUDA; or, from the layer that is called, that it does not fit this kind.

    >>> import birnn_ext
    >>> with birnn_ext.cuda_kernel("fast"):
    ...     pass
    Traceback (most recent call last):
      ...
    ValueError: kind should be 'auto', 'stepwise', 'block', 'spread', 'cluster', got 'fast'
    """
    global _forced
    if not isinstance(kind, str) or kind not in ("auto", *TIERS):
        raise ValueError(f"kind should be 'auto', {', '.join(map(repr, TIERS))}, got {kind!r}")
    if not hasattr(torch.ops.birnn_ext, "force_cuda_tier"):
        raise RuntimeError("cuda_kernel: birnn_ext was built without CUDA, so it has no such kernels (docs/install.md)")
    before, _forced = torch.ops.birnn_ext.force_cuda_tier(kind), kind
    try:
        yield
    finally:
        _forced = before
        torch.ops.birnn_ext.force_cuda_tier(before)


# --------------------------------------------------------------------------------------------- check


@dataclass(frozen=True)
class Checked:
    """One case of the self-check: largest error of a result or gradient against float64, ours and torch.nn's."""

    case: str
    ours: float
    theirs: float
    ok: bool


def self_check(device: str | torch.device = "cpu") -> list[Checked]:
    """Runs every mode forwards and backwards, rows of unequal length, and compares with torch.nn in float64.

    In each dtype that has a kernel, on two layers with odd sizes; relu not in halves, where a rounding may put a unit to either
    side of its kink, and its gradient is any. A case is right where our error is at most twice
    torch.nn's in the same dtype, plus 16 eps of the largest value (2 in halves; 64 in float64, where the oracle has an error
    of its own). Takes a fraction of a second on the CPU; leaves the state of the random generators as it was.

    Args:
        device: where to run.

    Returns:
        A :class:`Checked` for every mode and dtype.

    >>> from birnn_ext.report import self_check
    >>> all(checked.ok for checked in self_check())
    True
    """
    dtypes = ops.KERNEL_DTYPES.get(torch.device(device).type, (torch.float32, torch.float64))
    cuda = [torch.cuda.current_device()] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.enable_grad():
        torch.manual_seed(0)
        cases = [(mode, dtype) for mode in TO_OURS for dtype in dtypes if mode != "RNN_RELU" or dtype not in ops.HALVES]
        return [_checked(*case, device) for case in cases]


def _checked(mode, dtype, device):
    # Odd sizes, none a multiple of a vector's; and enough work that both directions get a thread.
    lengths, sizes = torch.tensor([20, 1, 13, 7]), (17, 33, 2)
    arguments = {"nonlinearity": mode[4:].lower()} if mode.startswith("RNN") else {}
    oracle = TO_TORCH[mode](*sizes, bidirectional=True, dtype=torch.float64, **arguments)
    # The oracle computes with the very numbers that the others get.
    for weight in oracle.parameters():
        weight.data = weight.data.to(dtype).double()
    x = torch.randn(20, 4, 17, dtype=dtype)
    cotangent = torch.randn(20, 4, 66, dtype=dtype)
    made = [kinds[mode](*sizes, bidirectional=True, dtype=dtype, device=device, **arguments) for kinds in (TO_OURS, TO_TORCH)]
    for layer in made:
        layer.load_state_dict(oracle.state_dict())
    # Kernels on all threads; whatever is made of small ops on one, because it forks at every step, and crawls where
    # something else keeps a core busy.
    ours = _results(made[0], x, lengths, cotangent, threads=torch.get_num_threads() if ops.has_kernel(x) else 1)
    exact, theirs = (_results(layer, x, lengths, cotangent, threads=1) for layer in (oracle, made[1]))
    few = {torch.float64: 64, torch.float32: 16}.get(dtype, 2)
    worst = {"ours": 0.0, "theirs": 0.0}
    ok = True
    for e, a, b in zip(exact, ours, theirs, strict=True):
        scale = max(float(e.abs().max()), 1.0)
        error, allowed = (float((t - e).abs().nan_to_num(torch.inf).max()) / scale for t in (a, b))
        ok = ok and error <= 2 * allowed + few * torch.finfo(dtype).eps
        worst = {"ours": max(worst["ours"], error), "theirs": max(worst["theirs"], allowed)}
    return Checked(f"{mode} {str(dtype).removeprefix('torch.')} {device}", **worst, ok=ok)


def _results(layer, x, lengths, cotangent, threads):
    """Output, states and all gradients of one call, in float64 on the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return [t.detach().double().cpu() for t in _computed(layer, x, lengths, cotangent)]
    finally:
        torch.set_num_threads(before)


def _computed(layer, x, lengths, cotangent):
    weight = next(layer.parameters())
    x = x.to(weight.device, weight.dtype).requires_grad_()
    if isinstance(layer, RNNBase):
        output, states = layer(x, lengths=lengths)
    else:
        output, states = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
        output, _ = pad_packed_sequence(output, total_length=x.size(0))
    states = states if isinstance(states, tuple) else (states,)
    loss = (output * cotangent.to(output)).sum() + sum(state.sum() for state in states)
    return output, *states, *torch.autograd.grad(loss, [x, *layer.parameters()])


# ---------------------------------------------------------------------------------------------- info


def info() -> bool:
    """Prints what a bug report needs, as ``python -m birnn_ext`` does: versions, processor, kernels, a self-check.

    Returns:
        Whether the compiled library is there and the self-check passed.

    >>> import birnn_ext
    >>> birnn_ext.info()  # doctest: +ELLIPSIS
    birnn_ext ...
    self-check against torch.nn in float64, ...: ok...
    True
    """
    for line in facts():
        print(line)
    ok = ops._C is not None
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        found = self_check(device)
        wrong = [checked for checked in found if not checked.ok]
        worst = max(found, key=lambda checked: checked.ours if "float32" in checked.case else 0.0)
        print(
            f"self-check against torch.nn in float64, {len(found)} cases on {device}: {'FAILED' if wrong else 'ok'}, "
            f"largest error in float32 {worst.ours:.1e} (torch.nn's {worst.theirs:.1e})"
        )
        for checked in wrong:
            print(f"  WRONG: {checked.case}: error {checked.ours:.1e}, torch.nn's {checked.theirs:.1e}")
        ok = ok and not wrong
    return ok


def facts() -> list[str]:
    """The lines of :func:`info` without the self-check."""
    from . import __version__

    compiled = ops._C
    lines = [f"birnn_ext {__version__}"]
    if compiled is None:
        reason = library.misfit(library.built_for(), torch.__version__) or "it is not built, or cannot be loaded."
        lines.append(f"  compiled library: NONE: {reason} {library.SLOW}")
    else:
        lines.append(f"  compiled library: for torch {compiled.torch_version}, by {compiled.compiler}")
    lines.append(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    lines.append(f"processor: {_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of PyTorch")
    if compiled is not None:
        lines.append(f"  instruction sets usable: {', '.join(compiled.isa_list())}; in use: {compiled.isa()}")
    archs = ", ".join(compiled.cuda_archs) if compiled is not None and compiled.cuda_archs else "none"
    lines.append(f"CUDA: architectures compiled: {archs}; torch's CUDA: {torch.version.cuda or 'none'}; devices: {_devices()}")
    settings = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    lines.append(f"environment: {', '.join(settings) or 'none of ' + ', '.join(VARIABLES)}")
    lines.append("kernels:")
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            layer = TO_OURS["GRU"](1, 1, bidirectional=True, device="meta")
            with torch.autocast(device, enabled=False):
                chosen = which_kernel(layer, torch.empty(1, 1, 1, dtype=dtype, device=device))
            lines.append(f"  {str(dtype).removeprefix('torch.'):9} on {device:5} {chosen}")
    return lines


def _devices():
    if not torch.cuda.is_available():
        return "none"
    names = []
    for i in range(torch.cuda.device_count()):
        major, low = torch.cuda.get_device_capability(i)
        names.append(f"{torch.cuda.get_device_name(i)} ({major}.{low})")
    return ", ".join(names)


def _processor():
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
