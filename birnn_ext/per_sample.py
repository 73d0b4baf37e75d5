"""Gradients of the weights for every sample of a batch of samples at once: what `vmap(grad(loss))` asks for.

The backward op sums the gradients of the weights over the rows that it is given, so it would have to be called once
per sample, with a batch too small to be fast. Here all samples go through time together, and a sample's share of a
weight's gradient is one product of a batched matrix product:

    dW_ih = sum over t, b of  dx[t, b] (outer) input[t, b]        dx = gradient of W_ih input + b_ih
    dW_hh = sum over t, b of  dg[t, b] (outer) h[t-1, b]          dg = gradient of W_hh h + b_hh
    db_ih = sum over t, b of  dx[t, b]        db_hh = sum of dg[t, b]

On the CPU an op goes back through time and gives dx and dg. Elsewhere that is done here: what stands between the steps is
elementwise, so each step's slopes come from what the forward op saved, for all steps beforehand; the sweep itself is a few
operations per step. Not differentiable (autograd.py takes second derivatives
from the reference), and not for LSTM with a projection, whose W_hr needs gradients behind the gates: the caller calls
the op once per sample there.

Source: the outer-product form is that of Goodfellow, "Efficient per-example gradient computations" (2015).
"""

import torch

from . import reference

# ---------------------------------------------------------------------------------------------------------- CELL
# slopes(saved [T, B, S, H], h [T, B, H], h before the step) -> of the gates' pre-activations, [T, B, C, H], per unit of h',
# and of h before the step, beside what goes through W_hh (None: nothing)
# The equations are those of csrc/cells; so is the content of `saved`.


def _rnn_tanh(saved, h, before):
    return (1 - h * h).unsqueeze(-2), None


def _rnn_relu(saved, h, before):
    return torch.where(h <= 0, 0, torch.ones_like(h)).unsqueeze(-2), None  # NaN passes, as in torch


def _gru(saved, h, before):
    """Columns: n on the input's side, then r, z and n on the state's side."""
    r, z, n, h_n = saved.unbind(-2)
    of_n = (1 - z) * (1 - n * n)
    return torch.stack([of_n, of_n * h_n * r * (1 - r), (before - n) * z * (1 - z), of_n * r], -2), z


SLOPES = {"RNN_TANH": _rnn_tanh, "RNN_RELU": _rnn_relu, "GRU": _gru}
MODES = (*SLOPES, "LSTM")
BY_OP = ("cpu",)  # devices that have the op layer_gates_backward


def _lstm(saved, c_before):
    """Slopes of i, f, g per unit of c', that of o per unit of h', c' per unit of h', and c per unit of c'."""
    i, f, g, o, c = saved.unbind(-2)
    tanh_c = torch.tanh(c)
    of_c = torch.stack([g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g)], -2)
    return of_c, tanh_c * o * (1 - o), o * (1 - tanh_c * tanh_c), f


# --------------------------------------------------------------------------------------------------------- LAYER


def gradients(samples, cotangents, input, h0, c0, lengths, weights, mode, batch_first, output, saved, need_input):
    """The gradients of one layer, those of the weights per sample.

    Args:
        samples: N; tensors hold N*B rows, those of a sample one behind the other.
        cotangents: of output, h_n and c_n; None where a result was not used. That of c_n may be [D, T + 1, N*B, H], of the
            c after every step and then of c_n.
        input, h0, c0, lengths: as :func:`birnn_ext.reference.layer` takes them.
        weights: five weights of direction 0 and five of direction 1, as the op takes them; no projection.
        output, saved: results of the forward op.
        need_input: whether the gradient of the input is wanted.

    Returns:
        The gradients of input (None unless wanted), h0 and c0 (None unless LSTM) with their N*B rows; a list with
        those of the ten weights, each [N, *shape], None for a weight that is not there.
    """
    directions = [weights[:5]] if weights[5] is None else [weights[:5], weights[5:]]
    if input.device.type in BY_OP:
        arguments = *cotangents, input, h0, c0, lengths, *weights, mode, batch_first, output, saved
        gates, grad_h0, grad_c0 = torch.ops.birnn_ext.layer_gates_backward(*arguments)
    else:
        arguments = cotangents, h0, c0, lengths, directions, mode, batch_first, output, saved
        gates, grad_h0, grad_c0 = _through_time(*arguments)
    if batch_first:
        input, output = input.transpose(0, 1), output.transpose(0, 1)
    T, rows = input.shape[:2]
    D, H = len(directions), directions[0][1].size(1)
    valid, begins = reference.within(lengths, T)  # [T, N*B, 1]
    if valid is not None:
        input = torch.where(valid, input, 0)  # padding may hold anything, and 0 * NaN is NaN

    def per_sample(t):
        # Contiguous, since steps that lie a power of two apart share their places in the cache.
        return t.unflatten(1, (samples, rows // samples)).movedim(1, 0).flatten(1, 2).contiguous()  # [N, T*B, features]

    x, result, grad_input = per_sample(input), [], None
    for d, (w_ih, _, b_ih, b_hh, _) in enumerate(directions):
        start = output.new_zeros(rows, H) if h0 is None else h0[d]
        before = _before(output.narrow(-1, d * H, H), start, valid, begins[d], reverse=d == 1)
        to_x = to_h = per_sample(gates[d].flatten(-2))
        if mode == "GRU":
            to_x, to_h = torch.cat([to_h[..., H : 3 * H], to_h[..., :H]], -1), to_h[..., H:]
        if need_input:
            part = to_x @ w_ih
            grad_input = part if grad_input is None else grad_input + part
        result += [to_x.mT @ x, to_h.mT @ per_sample(before)]
        result += [None if b_ih is None else to_x.sum(1), None if b_hh is None else to_h.sum(1), None]
    if need_input:
        grad_input = grad_input.unflatten(1, (T, rows // samples)).movedim(0, 1).flatten(1, 2)
        grad_input = grad_input.transpose(0, 1) if batch_first else grad_input
    return grad_input, grad_h0, grad_c0 if mode == "LSTM" else None, result + [None] * (5 * (2 - D))


def _before(t, start, valid, begins, reverse):
    """The state [T, N*B, H] that each step starts from, where `t` is the one that it ends with.

    Behind the end of a row it holds numbers of no meaning, but those of `t`, which may be anything, are gone.
    """
    t = t if valid is None else torch.where(valid, t, start)
    before = torch.cat([t[1:], start.unsqueeze(0)] if reverse else [start.unsqueeze(0), t[:-1]])
    return before if begins is None else before.masked_fill(begins, 0)


# ----------------------------------------------------------------------------------------- BACK THROUGH TIME, IN PYTORCH


def _through_time(cotangents, h0, c0, lengths, directions, mode, batch_first, output, saved):
    """What the op layer_gates_backward gives: gradients of the pre-activations, one tensor for each direction, of h0 and c0.

    It knows neither episodes nor gradients of every c, as the forward op of a device without that op.
    """
    D, (grad_output, dh, dc) = len(directions), cotangents
    if batch_first:
        output = output.transpose(0, 1)
        grad_output = None if grad_output is None else grad_output.transpose(0, 1)
    (T, rows), h = output.shape[:2], output.chunk(D, -1)
    valid, _ = reference.within(lengths, T)
    dy = (None,) * D if grad_output is None else grad_output.chunk(D, -1)
    zeros = output.new_zeros(D, rows, h[0].size(-1))
    h0, c0, dh, dc = (zeros if t is None else t for t in (h0, c0, dh, dc))
    every_gate, grads_h0, grads_c0 = [], [], []
    for d, (_, w_hh, *_) in enumerate(directions):
        order = range(T) if d == 1 else range(T - 1, -1, -1)
        if mode == "LSTM":
            slopes = _lstm(saved[d], _before(saved[d, ..., 4, :], c0[d], valid, None, reverse=d == 1))
            gates, grad_h, grad_c = _sweep_lstm(slopes, dy[d], dh[d], dc[d], w_hh, valid, order)
            grads_c0.append(grad_c)
        else:
            before = _before(h[d], h0[d], valid, None, reverse=d == 1)
            gates, grad_h = _sweep(*SLOPES[mode](saved[d], h[d], before), dy[d], dh[d], w_hh, valid, order)
        every_gate.append(gates)
        grads_h0.append(grad_h)
    return every_gate, torch.stack(grads_h0), torch.stack(grads_c0) if grads_c0 else None


def _sweep(slopes, direct, dy, dh, w_hh, valid, order):
    """Back through time: gradients of the pre-activations, like `slopes`, and that of the state at the start."""
    gates, columns = torch.empty_like(slopes), w_hh.size(0) // w_hh.size(1)
    for t in order:
        total = dh if dy is None else dh + dy[t]
        torch.mul(slopes[t], total.unsqueeze(-2), out=gates[t])
        side = gates[t][..., -columns:, :].flatten(-2)
        passed = side @ w_hh if direct is None else torch.addmm(total * direct[t], side, w_hh)
        dh = passed if valid is None else torch.where(valid[t], passed, dh)
    return gates if valid is None else torch.where(valid.unsqueeze(-1), gates, 0), dh


def _sweep_lstm(slopes, dy, dh, dc, w_hh, valid, order):
    """As _sweep, with the gradient of c beside that of h."""
    of_c, of_o, c_of_h, forget = slopes
    gates = of_c.new_empty(*of_c.shape[:2], 4, of_c.size(-1))
    for t in order:
        h = dh if dy is None else dh + dy[t]
        c = torch.addcmul(dc, h, c_of_h[t])
        torch.mul(of_c[t], c.unsqueeze(-2), out=gates[t][:, :3])
        torch.mul(of_o[t], h, out=gates[t][:, 3])
        h, c = gates[t].flatten(-2) @ w_hh, c * forget[t]
        dh, dc = (h, c) if valid is None else (torch.where(valid[t], h, dh), torch.where(valid[t], c, dc))
    return gates if valid is None else torch.where(valid.unsqueeze(-1), gates, 0), dh, dc
