# %% [markdown]
# # The loop inside, for every kind of cell
#
# What a bidirectional layer does can be written in a dozen lines of plain tensors: two loops over time, one in each order,
# each writing into its half of the output. Here they are for the plain RNN, for the LSTM and for the GRU, with initial
# states, checked against `torch.nn` and `birnn_ext`. (`birnn_ext/reference.py` is this loop, a little more general.)

# %%
import torch
from torch import nn

import birnn_ext

torch.manual_seed(0)
T, B, I, H, D = 5, 4, 2, 3, 2  # noqa: E741

# %% [markdown]
# ## The cells
#
# Each takes the input's share of the gates `x` = W_ih x_t + b_ih, the state's share `h` = W_hh h_{t-1} + b_hh, both
# [B, gates * H], and the state, and hands back the new state. The first part of a state is the output.


# %%
def rnn(x, h, state):
    return (torch.tanh(x + h),)


def lstm(x, h, state):
    i, f, g, o = (x + h).chunk(4, dim=1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru(x, h, state):
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, dim=1), h.chunk(3, dim=1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)  # "reset after": r scales W_hn h + b_hn
    return ((1 - z) * n + z * state[0],)


# %% [markdown]
# ## The two loops
#
# Forward reads step `idx`, reverse reads step `T - 1 - idx`. Both write at the step that they have read.


# %%
@torch.no_grad()
def manual(layer, cell, sequence, initial):
    """initial: one tensor [D, B, H] for each part of the state -> output [T, B, D*H], final states like `initial`."""
    output = torch.zeros(T, B, D * H)
    final = [part.clone() for part in initial]
    for d, suffix in enumerate(("_l0", "_l0_reverse")):
        w_ih, w_hh, b_ih, b_hh = (getattr(layer, name + suffix) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        state = tuple(part[d] for part in initial)
        for idx in range(T):
            t = T - 1 - idx if d else idx
            state = cell(sequence[t] @ w_ih.T + b_ih, state[0] @ w_hh.T + b_hh, state)
            output[t, :, d * H : (d + 1) * H] = state[0]
        for part, value in zip(final, state, strict=True):
            part[d] = value
    return output, final


sequence = torch.randn(T, B, I)
for name, cell, parts in (("RNN", rnn, 1), ("GRU", gru, 1), ("LSTM", lstm, 2)):
    theirs = getattr(nn, name)(I, H, bidirectional=True)
    ours = getattr(birnn_ext, name)(I, H, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    initial = [torch.randn(D, B, H) for _ in range(parts)]
    hx = tuple(initial) if parts == 2 else initial[0]
    by_hand, final = manual(ours, cell, sequence, initial)
    print(f"{name:5}", end="")
    for library, layer in (("torch.nn", theirs), ("birnn_ext", ours)):
        output, states = layer(sequence, hx)
        states = states if parts == 2 else (states,)
        differences = [(a - b).abs().max().item() for a, b in zip((by_hand, *final), (output, *states), strict=True)]
        print(f"   loop against {library}: at most {max(differences):.1e}", end="")
        assert max(differences) < 1e-6
    print()

# %% [markdown]
# ## Two GRUs
#
# The GRU of 2014 (Cho et al., arXiv 1406.1078, first version) applies the reset gate *before* the product with W_hn:
# `n = tanh(x_n + W_hn (r * h) + b_hn)`. The later version, which cuDNN, PyTorch and Keras (`reset_after=True`) have,
# applies it *after*. They are different functions of the same weights, so weights cannot be carried from one to the other.
# How far apart they are after five steps:


# %%
@torch.no_grad()
def reset_before(layer, sequence, h):
    outputs = []
    for x in sequence:
        gates_x = x @ layer.weight_ih_l0.T + layer.bias_ih_l0
        gates_h = h @ layer.weight_hh_l0.T + layer.bias_hh_l0
        r, z = torch.sigmoid((gates_x + gates_h)[:, : 2 * H]).chunk(2, dim=1)
        n = torch.tanh(gates_x[:, 2 * H :] + (r * h) @ layer.weight_hh_l0[2 * H :].T + layer.bias_hh_l0[2 * H :])
        h = (1 - z) * n + z * h
        outputs.append(h)
    return torch.stack(outputs)


layer = nn.GRU(I, H)
h_0 = torch.randn(1, B, H)
after, before = layer(sequence, h_0)[0], reset_before(layer, sequence, h_0[0])
apart = (after - before).abs().amax(dim=(1, 2))
print("largest difference at t = 0 .. 4:", [round(value, 4) for value in apart.tolist()])
assert apart[-1] > 1e-3

# %% [markdown]
# ## Every state, without writing the loop
#
# `trace` runs these loops for any stack and hands every state of every layer and direction back by name, in the order of
# time, the LSTM's cell states included, which no layer hands out otherwise.

# %%
from birnn_ext.layout import trace  # noqa: E402

lstm_layer = nn.LSTM(I, H, num_layers=2, bidirectional=True)
states = trace(lstm_layer, sequence)
for name, value in states.items():
    print(f"{name:13} {tuple(value.shape)}")
output, (h_n, c_n) = lstm_layer(sequence)
assert torch.allclose(torch.cat([states["h_l1"], states["h_l1_reverse"]], dim=-1), output, atol=1e-6)
assert torch.allclose(states["c_l0_reverse"][0], c_n[1], atol=1e-6)
