"""One recurrent layer in plain differentiable PyTorch: the definition that every kernel is held to.

Two sections. CELL is one step of a mode, from gate pre-activations and state to the next state. LAYER sweeps
a cell through time, once per direction. Everything is out of place and free of data-dependent Python, so it
runs in any dtype, on any device, under torch.func, and can be differentiated as often as one likes; in
float64 it is the oracle of the tests.

It is not fast, it does not check its arguments (`birnn_ext.module` does), and it imports nothing but torch.

Dimensions: T steps, B rows, I input features, H units, P output features (the projection's, else H), D
directions, G gates of the mode, stacked in torch.nn's order (GRU: r z n, LSTM: i f g o).
"""

import torch
from torch.nn.functional import linear

# ------------------------------------------------------------------------------------------------------- CELL
# cell(x [B, G*H], h [B, G*H], state) -> next state
#   x = W_ih input + b_ih        h = W_hh h_{t-1} + b_hh
#   state = (h_{t-1} [B, H],) or, for LSTM, (h_{t-1} [B, P], c_{t-1} [B, H])


def rnn_tanh(x, h, state):
    """h' = tanh(x + h)"""
    return (torch.tanh(x + h),)


def rnn_relu(x, h, state):
    """h' = max(x + h, 0)"""
    return (torch.relu(x + h),)


def gru(x, h, state):
    """h' = (1 - z) n + z h_{t-1}; the reset gate acts after the recurrent product, as in torch.nn."""
    x_r, x_z, x_n = x.chunk(3, -1)
    h_r, h_z, h_n = h.chunk(3, -1)
    r = torch.sigmoid(x_r + h_r)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (n + z * (state[0] - n),)


def lstm(x, h, state):
    """c' = f c_{t-1} + i g, h' = o tanh(c')"""
    i, f, g, o = (x + h).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


CELLS = {"RNN_TANH": rnn_tanh, "RNN_RELU": rnn_relu, "LSTM": lstm, "GRU": gru}

# ------------------------------------------------------------------------------------------------------ LAYER


def sweep(cell, input, state, valid, weights, reverse):
    """One direction through time: input [T, B, I], valid [T, B, 1] | None -> output [T, B, P], state."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    steps = range(input.size(0))
    x = linear(input, w_ih, b_ih).unbind(0)
    output = [None] * len(x)
    for t in reversed(steps) if reverse else steps:
        new = cell(x[t], linear(state[0], w_hh, b_hh), state)
        if w_hr is not None:
            new = (linear(new[0], w_hr), *new[1:])
        if valid is None:
            state, output[t] = new, new[0]
        else:
            # A row outside its length keeps its state: going backwards that holds the initial state until the
            # row begins, going forwards it carries the state of the last step to the end.
            state = tuple(torch.where(valid[t], now, before) for now, before in zip(new, state, strict=True))
            output[t] = torch.where(valid[t], new[0], 0)
    return torch.stack(output), state


def layer(input, h0, c0, lengths, weights, *, mode, batch_first=False):
    """One layer with all its directions; the same call as `birnn_ext.ops.layer`.

    Args:
        input: [T, B, I], or [B, T, I] with ``batch_first``; T at least 1.
        h0: [D, B, P], or None for zeros.
        c0: [D, B, H], or None for zeros; LSTM only.
        lengths: int64 [B], each 0..T, or None when every row has T steps.
        weights: D tuples ``(w_ih [G*H, I], w_hh [G*H, P], b_ih [G*H] | None, b_hh [G*H] | None,
            w_hr [P, H] | None)``.
        mode: ``"RNN_TANH"``, ``"RNN_RELU"``, ``"LSTM"`` or ``"GRU"``.

    Returns:
        output [T, B, D*P] ([B, T, D*P]), zero beyond a row's length; h_n [D, B, P]; c_n [D, B, H] for LSTM,
        else None. The states are those after the last step that a row took; a row of length 0 hands its
        initial state through.
    """
    cell = CELLS[mode]
    if batch_first:
        input = input.transpose(0, 1)
    T, B = input.shape[:2]
    valid = None
    if lengths is not None:
        valid = (torch.arange(T, device=input.device).unsqueeze(1) < lengths).unsqueeze(-1)
        # Padding may hold anything, NaN included; a mask behind the cell would stop its value but not its
        # gradient.
        input = torch.where(valid, input, 0)
    outputs, states = [], []
    for d, direction in enumerate(weights):
        w_hh, w_hr = direction[1], direction[4]
        state = (input.new_zeros(B, w_hh.size(1)) if h0 is None else h0[d],)
        if mode == "LSTM":
            hidden_size = w_hh.size(1) if w_hr is None else w_hr.size(1)
            state += (input.new_zeros(B, hidden_size) if c0 is None else c0[d],)
        output, state = sweep(cell, input, state, valid, direction, reverse=d == 1)
        outputs.append(output)
        states.append(state)
    output = torch.cat(outputs, -1)
    h_n, *c_n = (torch.stack(parts) for parts in zip(*states, strict=True))
    return output.transpose(0, 1) if batch_first else output, h_n, c_n[0] if c_n else None
