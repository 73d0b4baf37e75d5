"""The derivatives of the ops, as two Python `autograd.Function`s: gradients, second derivatives, vmap.

    Layer           computes ops.layer            its backward is LayerBackward
    LayerBackward   computes ops.layer_backward   its backward is that of the gradient of `reference.layer`

Everything from second derivatives on runs through `reference.py`. (Forward mode never comes here: ops.py sends it
to the reference at once. A `jvp` method would not serve forward over forward, and torch.compile refuses Functions
that have one.) Under vmap the mapped dimension joins the batch where the weights are not mapped; where they are
(ensembles), the op is called once per sample. Gradients of the weights per sample: per_sample.py.
Not here: which tensors take this way at all (ops.py).
"""

from contextlib import nullcontext

import torch
from torch._functorch.utils import unwrap_dead_wrappers

from . import per_sample, reference

# Positions in the arguments of Layer and of LayerBackward.
LAYER_TENSORS = slice(7, 21)  # input, h0, c0, lengths, five weights of direction 0, five of direction 1
BACKWARD_TENSORS = slice(0, 17)  # grad_output, grad_h_n, grad_c_n, and the same fourteen
LENGTHS = 3  # among the fourteen
HALVES = (torch.float16, torch.bfloat16)


def apply(function, *arguments):
    """``function.apply(*arguments)``, 40 microseconds cheaper in eager mode: Function.apply looks up the signature of
    `forward` at every call, for defaults that ours do not have."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    return super(torch.autograd.Function, function).apply(*unwrap_dead_wrappers(arguments))


def under_autocast(tensor):
    """Whether torch.autocast is on for the device of `tensor`. ("meta", for one, has none, and asking for it is an error.)"""
    device = tensor.device.type
    return torch._C._is_any_autocast_enabled() and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(tensor):
    """A context in which plain PyTorch computes in the dtypes that it is given: autocast would round every step."""
    return torch.autocast(tensor.device.type, enabled=False) if under_autocast(tensor) else nullcontext()


def with_every_c(c_n, saved):
    """[D, T + 1, B, H]: c after every step, which is what `saved` [D, T, B, S, H] has last, and c_n [D, B, H]."""
    return torch.cat((saved[..., -1, :], c_n.unsqueeze(1)), 1)


class Layer(torch.autograd.Function):
    """The op and its gradient: (mode, batch_first, keep, every_c, row, h_n, c_n, input, h0, c0, lengths, five weights of
    each direction).

    `keep` says whether the gates of all steps are kept for backward; else backward computes them once more. With `every_c`,
    which needs `keep`, c_n becomes [D, T + 1, B, H]: the c after every step, and then that. With h_n (and c_n, for LSTM)
    the final states are written to rows [row, row + D) of these, which hold the states of several layers, and which come
    back changed in place: the gradient of a later layer's rows passes through unchanged.
    """

    @staticmethod
    def forward(mode, batch_first, keep, every_c, row, h_n, c_n, *tensors):
        if h_n is None:
            output, h_n, c_n, saved = torch.ops.birnn_ext.layer(*tensors, mode, batch_first, keep)
            return output, h_n, with_every_c(c_n, saved) if every_c else c_n, saved
        output, saved = torch.ops.birnn_ext.layer_into(*tensors, mode, batch_first, keep, h_n, c_n, row)
        return output, h_n, c_n, saved

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.mode, ctx.batch_first, ctx.keep, _, ctx.row, h_n, c_n, *tensors = inputs
        output, _, _, saved = outputs
        ctx.save_for_backward(*tensors, output, saved)
        ctx.mark_non_differentiable(saved)
        ctx.set_materialize_grads(False)
        ctx.inside = h_n is not None
        if ctx.inside:
            ctx.mark_dirty(*(states for states in (h_n, c_n) if states is not None))

    @staticmethod
    def backward(ctx, grad_output, grad_h_n, grad_c_n, _):
        if ctx.mode != "LSTM":
            grad_c_n = None  # c_n has no elements then
        if grad_output is None and grad_h_n is None and grad_c_n is None:
            return (None,) * 21  # a double backward passes here, on its way to `output` and `saved`
        needs = ctx.needs_input_grad
        *tensors, output, saved = ctx.saved_tensors
        watched = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        if not ctx.keep and watched:
            saved = apply(Layer, ctx.mode, ctx.batch_first, True, False, 0, None, None, *tensors)[3]
        elif not ctx.keep:
            saved = torch.ops.birnn_ext.layer(*tensors, ctx.mode, ctx.batch_first, True)[3]
        passed_on = (grad_h_n, grad_c_n) if ctx.inside else (None, None)
        if ctx.inside:
            D = 1 if tensors[9] is None else 2
            grad_h_n, grad_c_n = (g if g is None else g[ctx.row : ctx.row + D] for g in passed_on)
        arguments = (grad_output, grad_h_n, grad_c_n, *tensors, ctx.mode, ctx.batch_first, output, saved)
        arguments += (needs[7], needs[8] or needs[9], any(needs[11:]))
        if watched:
            gradients = apply(LayerBackward, *arguments)
        else:
            gradients = torch.ops.birnn_ext.layer_backward(*arguments)
        grad_input, grad_h0, grad_c0, *grad_weights = gradients
        gradients = (None, None, None, None, None, *passed_on, grad_input, grad_h0, grad_c0, None, *grad_weights)
        return tuple([g if need else None for g, need in zip(gradients, needs, strict=True)])

    @staticmethod
    def vmap(info, in_dims, mode, batch_first, keep, every_c, row, h_n, c_n, *tensors):
        dims = in_dims[LAYER_TENSORS]
        if any(d is not None for d in dims[4:]):
            arguments = (mode, batch_first, keep, every_c, 0, None, None, *tensors)
            results = _per_sample(info, in_dims, arguments, Layer.apply)
            return results, (0, 0, 0, 0)
        n = info.batch_size
        at = 0 if batch_first else 1  # where the batch dimension is in input and output
        input, h0, c0, lengths = (_fold(t, d, n, i) for t, d, i in zip(tensors[:4], dims[:4], (at, 1, 1, 0), strict=True))
        arguments = (mode, batch_first, keep, every_c, 0, None, None, input, h0, c0, lengths, *tensors[4:])
        output, h_n, c_n, saved = Layer.apply(*arguments)
        c_dim = None if mode != "LSTM" else 2 if every_c else 1
        c_n = c_n if c_dim is None else _unfold(c_n, n, c_dim)
        saved, saved_dim = (_unfold(saved, n, 2), 2) if keep else (saved, None)
        return (_unfold(output, n, at), _unfold(h_n, n, 1), c_n, saved), (at, 1, c_dim, saved_dim)


class LayerBackward(torch.autograd.Function):
    """The backward op and its own derivative; takes the arguments of torch.ops.birnn_ext.layer_backward."""

    @staticmethod
    def forward(*arguments):
        return torch.ops.birnn_ext.layer_backward(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        # `output` and `saved` are functions of the seventeen tensors, which alone are differentiated.
        ctx.save_for_backward(*inputs[BACKWARD_TENSORS])
        ctx.mode, ctx.batch_first = inputs[17:19]
        ctx.need_input, ctx.need_state, ctx.need_weights = inputs[21:24]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grad_gradients):
        tensors = ctx.saved_tensors
        gradients, wanted = _reference_gradients(ctx, [g is not None for g in grad_gradients])
        if not wanted:
            return (None,) * 24
        watched = _watched(tensors, 3 + LENGTHS)
        with without_autocast(tensors[3]):
            _, pullback = torch.func.vjp(
                lambda *values: gradients(*_put(tensors, watched, values)), *(tensors[i] for i in watched)
            )
            found = pullback(tuple(grad_gradients[i] for i in wanted))
        result = [None] * 24
        for i, g in zip(watched, found, strict=True):
            result[i] = g
        return tuple(result)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        *_, need_input, need_state, need_weights = arguments
        mode, batch_first = arguments[17:19]
        mapped = any(d is not None for d in in_dims[7:17])
        # Samples that share input and states (is_grads_batched, jacrev of the weights) would be copied for each.
        shared = all(in_dims[i] is None for i in (3, 19, 20))
        projected = arguments[11] is not None
        if mapped or (need_weights and (shared or projected or mode not in per_sample.MODES)):
            return _per_sample(info, in_dims, arguments, LayerBackward.apply), (0,) * 13
        n = info.batch_size
        row = 0 if batch_first else 1
        folded = list(arguments)
        every_c = arguments[2] is not None and arguments[2].dim() - (in_dims[2] is not None) == 4
        for i, at in _batch_dims(batch_first, every_c).items():
            folded[i] = _fold(arguments[i], in_dims[i], n, at)
        if need_weights:
            return PerSample.apply(n, *folded), (0,) * 13
        grad_input, grad_h0, grad_c0, *rest = LayerBackward.apply(*folded)
        results = [(grad_input, row if need_input else None), (grad_h0, 1 if need_state else None)]
        results.append((grad_c0, 1 if need_state and mode == "LSTM" else None))
        values = [t if at is None else _unfold(t, n, at) for t, at in results]
        return (*values, *rest), (*(at for _, at in results), *(None,) * len(rest))


class PerSample(torch.autograd.Function):
    """LayerBackward for n samples with the same weights, and the gradients of these weights for each of them.

    Arguments: n, and those of LayerBackward, where the samples are joined to one batch. Results: those of
    LayerBackward for each sample, stacked in a new first dimension.
    """

    @staticmethod
    def forward(n, *arguments):
        tensors, (mode, batch_first, output, saved, need_input, *_) = arguments[BACKWARD_TENSORS], arguments[17:]
        with without_autocast(output):
            grad_input, grad_h0, grad_c0, weights = per_sample.gradients(
                n, tensors[:3], *tensors[3:7], tensors[7:], mode, batch_first, output, saved, need_input
            )
        row = 0 if batch_first else 1
        none = output.new_empty(n, 0)  # as of the op, where there is no gradient to give
        joined = ((grad_input, row), (grad_h0, 1), (grad_c0, 1))
        results = [none if t is None else _unfold(t, n, at).movedim(at, 0) for t, at in joined]
        return (*results, *(output.new_empty(n, 0) if w is None else w for w in weights))

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.samples, *arguments = inputs
        LayerBackward.setup_context(ctx, arguments, outputs)

    @staticmethod
    def backward(ctx, *grad_gradients):
        n, tensors = ctx.samples, ctx.saved_tensors
        gradients, wanted = _reference_gradients(ctx, [g is not None for g in grad_gradients])
        if not wanted:
            return (None,) * 25
        watched = _watched(tensors, 3 + LENGTHS)
        every_c = tensors[2] is not None and tensors[2].dim() == 4
        at = {i: dim for i, dim in _batch_dims(ctx.batch_first, every_c).items() if i < 17 and tensors[i] is not None}
        batched = torch.func.vmap(gradients, tuple(at.get(i) for i in range(17)))

        def outputs(*values):
            full = _put(tensors, watched, values)
            return batched(*(_unfold(t, n, at[i]) if i in at else t for i, t in enumerate(full)))

        with without_autocast(tensors[3]):
            _, pullback = torch.func.vjp(outputs, *(tensors[i] for i in watched))
            found = pullback(tuple(grad_gradients[i] for i in wanted))
        result = [None] * 25
        for i, g in zip(watched, found, strict=True):
            result[1 + i] = g
        return tuple(result)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _per_sample(info, in_dims, arguments, PerSample.apply), (0,) * 13


# ---------------------------------------------------------------------- derivatives by the reference


def _watched(tensors, lengths):
    """Positions of the tensors that have derivatives: all that are there but the lengths."""
    return [i for i, t in enumerate(tensors) if t is not None and i != lengths]


def _put(tensors, positions, values):
    full = list(tensors)
    for i, value in zip(positions, values, strict=True):
        full[i] = value
    return full


def _reference_gradients(ctx, asked):
    """The gradients that LayerBackward computes, as a differentiable function of its seventeen tensors.

    `asked[i]` says whether gradient i is of interest. Returns the function, and which gradients it gives: a
    gradient that the op left out (no such tensor, or not wanted by the caller) has no elements and no derivative.
    """
    tensors = ctx.saved_tensors
    position = [3, 4, 5, *range(7, 17)]  # of the tensor that gradient i belongs to
    needed = [ctx.need_input, ctx.need_state, ctx.need_state, *[ctx.need_weights] * 10]
    wanted = [i for i in range(13) if asked[i] and needed[i] and tensors[position[i]] is not None]
    mode, batch_first = ctx.mode, ctx.batch_first

    def gradients(*values):
        cotangents, layer = values[:3], values[3:]
        lengths = layer[LENGTHS]
        given = [i for i, g in enumerate(cotangents) if g is not None]

        def outputs(*some):
            # Halves in float32: the products and sums of a derivative's many steps would each be rounded.
            full = _put(layer, [position[i] - 3 for i in wanted], some)
            input, h0, c0, _, *flat = (t.float() if t is not None and t.dtype in HALVES else t for t in full)
            weights = (tuple(flat[:5]),) if flat[5] is None else (tuple(flat[:5]), tuple(flat[5:]))
            every_c = cotangents[2] is not None and cotangents[2].dim() == 4
            given_to = {"mode": mode, "batch_first": batch_first, "every_c": every_c}
            output, h_n, c_n, *c = reference.layer(input, h0, c0, lengths, weights, **given_to)
            if every_c:
                c = c[0].unflatten(-1, (len(weights), -1)).movedim(2, 0)  # [D, T, B, H] or [D, B, T, H]
                c_n = torch.cat((c.transpose(1, 2) if batch_first else c, c_n.unsqueeze(1)), 1)
            results = output, h_n, c_n
            return tuple(results[i].to(cotangents[i].dtype) for i in given)

        _, pullback = torch.func.vjp(outputs, *(values[position[i]] for i in wanted))
        return pullback(tuple(cotangents[i] for i in given))

    return gradients, wanted


# ---------------------------------------------------------------------- vmap


def _batch_dims(batch_first, every_c):
    """Where the batch dimension is: {position among the arguments of the backward op: dimension}."""
    row = 0 if batch_first else 1
    return {0: row, 1: 1, 2: 2 if every_c else 1, 3: row, 4: 1, 5: 1, 6: 0, 19: row, 20: 2}


def _fold(t, dim, n, at):
    """Joins the mapped dimension `dim` (None: every sample has the same) with the batch dimension at `at`."""
    if t is None:
        return None
    t = t.unsqueeze(at).expand(*t.shape[:at], n, *t.shape[at:]) if dim is None else t.movedim(dim, at)
    return t.flatten(at, at + 1)


def _unfold(t, n, at):
    return t.unflatten(at, (n, t.shape[at] // n))


def _per_sample(info, in_dims, arguments, function):
    """One call per sample; the results stand one behind the other in a new first dimension."""
    results = []
    for i in range(info.batch_size):
        sample = (a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims, strict=True))
        results.append(function(*sample))
    return tuple(torch.stack(r) for r in zip(*results, strict=True))
