"""One recurrent layer in plain differentiable PyTorch: the definition that every kernel is held to.

Two sections. CELL is one step of a mode, from gate pre-activations and state to the next state. LAYER sweeps
a step through time, once per direction; the step is a cell with its products, or one that varies them
(`birnn_ext.variants`). Everything is out of place and free of data-dependent Python, so it runs in any dtype, on
any device, under torch.func, and can be differentiated as often as one likes; in float64 it is the oracle of the
tests.

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


def lstm(x, h, state, shown=None):
    """c' = f c_{t-1} + i g, h' = o tanh(c'); with `shown` (of layer_norm) h' = o tanh(shown(c'))"""
    i, f, g, o = (x + h).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c if shown is None else shown(c)), c


CELLS = {"RNN_TANH": rnn_tanh, "RNN_RELU": rnn_relu, "LSTM": lstm, "GRU": gru}

# ------------------------------------------------------------------------------------------------------ LAYER


def plain(d, input, weights, mode):
    """Direction d without variants: the input's share x [T, B, G*H] of the gates, and step(t, x_t, state) -> state."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    cell = CELLS[mode]

    def step(t, x, state):
        new = cell(x, linear(state[0], w_hh, b_hh), state)
        return new if w_hr is None else (linear(new[0], w_hr), *new[1:])

    return linear(input, w_ih, b_ih), step


def sweep(step, x, state, valid, begins, reverse):
    """One direction through time: x [T, B, G*H] -> what each step computed, and the last state.

    The first is a list of T states; beyond a row's length it holds whatever the step made of the padding. `valid` and
    `begins` are bool [T, B, 1] or None: whether a step is within its row, and whether it starts from zeros.
    """
    x = x.unbind(0)
    steps = range(len(x))
    every = [None] * len(x)
    for t in reversed(steps) if reverse else steps:
        if begins is not None:
            state = tuple(part.masked_fill(begins[t], 0) for part in state)
        new = every[t] = step(t, x[t], state)
        if valid is not None:
            # A row outside its length keeps its state: going backwards that holds the initial state until the
            # row begins, going forwards it carries the state of the last step to the end.
            new = tuple(torch.where(valid[t], now, before) for now, before in zip(new, state, strict=True))
        state = new
    return every, state


def within(lengths, steps):
    """(valid, begins) of :func:`sweep` for `lengths` as :func:`layer` takes it; begins for each direction.

    The forward direction starts from zeros at the first step of an episode, the reverse direction at the last one, where
    the step behind it, t + 1, is the first of another episode and still within the row.
    """
    if lengths is None:
        return None, (None, None)
    if lengths.dim() == 1:
        return (torch.arange(steps, device=lengths.device).unsqueeze(1) < lengths).unsqueeze(-1), (None, None)
    episode = lengths.t().unsqueeze(-1)
    valid = episode > 0
    new = (episode[1:] != episode[:-1]) & valid[1:]
    # What would go on from the initial state is numbered 1.
    return valid, (torch.cat((episode[:1] > 1, new)), torch.cat((new, torch.zeros_like(valid[:1]))))


def layer(input, h0, c0, lengths, weights, *, mode, batch_first=False, direction=plain, every_c=False):
    """One layer with all its directions; the same call as `birnn_ext.ops.layer`, and two arguments more.

    Args:
        input: [T, B, I], or [B, T, I] with ``batch_first``; T at least 1.
        h0: [D, B, P], or None for zeros.
        c0: [D, B, H], or None for zeros; LSTM only.
        lengths: int64 [B], each 0..T, or None when every row has T steps; or int64 [B, T], the number of the episode that
            each step belongs to, 0 beyond the row's end: an episode starts from zeros, in both directions. They are numbered
            from 1 on, or from 2 on where the first one, too, starts from zeros and not from h0 in the forward direction.
        weights: D tuples ``(w_ih [G*H, I], w_hh [G*H, P], b_ih [G*H] | None, b_hh [G*H] | None,
            w_hr [P, H] | None)``.
        mode: ``"RNN_TANH"``, ``"RNN_RELU"``, ``"LSTM"`` or ``"GRU"``.
        direction: what one direction computes, called and answering as :func:`plain`, which it is by default.
        every_c: whether the c of every step is returned too, fourth; LSTM only.

    Returns:
        output [T, B, D*P] ([B, T, D*P]), zero beyond a row's length; h_n [D, B, P]; c_n [D, B, H] for LSTM,
        else None. The states are those after the last step that a row took; a row of length 0 hands its
        initial state through. With ``every_c`` also c [T, B, D*H] ([B, T, D*H]), zero where output is.
    """
    if batch_first:
        input = input.transpose(0, 1)
    T, B = input.shape[:2]
    valid, begins = within(lengths, T)
    if valid is not None:
        # Padding may hold anything, NaN included; a mask behind the cell would stop its value but not its
        # gradient.
        input = torch.where(valid, input, 0)
    sweeps = []
    for d, held in enumerate(weights):
        w_hh, w_hr = held[1], held[4]
        state = (input.new_zeros(B, w_hh.size(1)) if h0 is None else h0[d],)
        if mode == "LSTM":
            hidden_size = w_hh.size(1) if w_hr is None else w_hr.size(1)
            state += (input.new_zeros(B, hidden_size) if c0 is None else c0[d],)
        x, step = direction(d, input, held, mode)
        sweeps.append(sweep(step, x, state, valid, begins[d], reverse=d == 1))

    def over_time(part):
        joined = torch.cat([torch.stack([state[part] for state in every]) for every, _ in sweeps], -1)
        joined = joined if valid is None else torch.where(valid, joined, 0)
        return joined.transpose(0, 1) if batch_first else joined

    h_n, *c_n = (torch.stack(parts) for parts in zip(*(state for _, state in sweeps), strict=True))
    results = over_time(0), h_n, c_n[0] if c_n else None
    return (*results, over_time(1)) if every_c else results
