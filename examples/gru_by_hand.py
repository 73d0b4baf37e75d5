# %% [markdown]
# # A bidirectional GRU by hand
#
# One step of a GRU with real numbers, then both directions, then the ways in which their results are reshaped rightly and
# wrongly. The equations are those of `torch.nn.GRU`:
#
# ```text
# r  = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
# z  = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
# n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))
# h' = (1 - z) * n + z * h
# ```

# %%
import torch

import birnn_ext

torch.manual_seed(1)
torch.set_grad_enabled(False)
torch.set_printoptions(precision=4, sci_mode=False)

T = 5
gru = birnn_ext.GRU(input_size=1, hidden_size=1, bidirectional=True)
sequence = torch.randn(T, 1, 1)
for name, weight in gru.named_parameters():
    print(f"{name:22} {tuple(weight.shape)!s:7} r, z, n = {[round(v, 4) for v in weight.flatten().tolist()]}")

# %% [markdown]
# ## One step
#
# With one unit every weight is a column of three numbers, one for each gate, in the order r, z, n.


# %%
def step(x, h, suffix=""):
    """x, h: numbers -> r, z, n and the next h, with the weights of one direction."""
    w_ih, w_hh, b_ih, b_hh = (
        getattr(gru, f"{name}_l0{suffix}").detach().flatten() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    from_input, from_state = w_ih * x + b_ih, w_hh * h + b_hh
    r = torch.sigmoid(from_input[0] + from_state[0])
    z = torch.sigmoid(from_input[1] + from_state[1])
    n = torch.tanh(from_input[2] + r * from_state[2])  # r is applied after the product with W_hn
    return r, z, n, (1 - z) * n + z * h


r, z, n, h = step(sequence[0, 0, 0], torch.tensor(0.0))
print(f"forward at t=0: x = {sequence[0].item():.4f}, h = 0  ->  r = {r:.4f}, z = {z:.4f}, n = {n:.4f}, h' = {h:.4f}")

# %% [markdown]
# ## Both directions
#
# The same loop twice. The second one uses the `_reverse` weights and goes from the last step to the first; each result is
# written at the step that was read.

# %%
by_hand = torch.zeros(T, 2)
for direction, (suffix, order) in enumerate((("", range(T)), ("_reverse", reversed(range(T))))):
    h = torch.tensor(0.0)
    for t in order:
        *_, h = step(sequence[t, 0, 0], h, suffix)
        by_hand[t, direction] = h

output, h_n = gru(sequence)
print("by hand, [forward, reverse] at each step\n", by_hand)
print("birnn_ext\n", output[:, 0])
assert torch.allclose(by_hand, output[:, 0], atol=1e-6)
assert torch.allclose(torch.stack([by_hand[-1, 0], by_hand[0, 1]]), h_n.flatten(), atol=1e-6)

# %% [markdown]
# ## Reshaping: right and wrong
#
# The features of the output are `[forward 0..H-1 | reverse 0..H-1]`. So a view with the direction *before* the units splits
# them. A view with the direction last has the right shape and mixes them up. To see which is which, count instead of compute:

# %%
H = 5
features = torch.cat([torch.arange(H), -torch.arange(H)]).view(1, 1, 2 * H)  # reverse is negative here
print("view(T, B, 2, H)[..., 0, :] ", features.view(1, 1, 2, H)[0, 0, 0].tolist(), " forward: right")
print("view(T, B, H, 2)[..., 0]    ", features.view(1, 1, H, 2)[0, 0, :, 0].tolist(), " a mixture: wrong")

# %% [markdown]
# The other popular mistake is to flatten `h_n` [2, B, H] with `view(B, -1)` to get one row of features for each row of the
# batch. The shape fits, but the memory is ordered by direction first: with B = 2 row 0 gets the *forward states of both rows*.

# %%
B = 2
wide = birnn_ext.GRU(3, H, bidirectional=True)
_, h_n = wide(torch.randn(T, B, 3))
right = torch.cat([h_n[0], h_n[1]], dim=1)  # [B, 2H]
wrong = h_n.view(B, -1)
print("right, row 0:", right[0])
print("wrong, row 0:", wrong[0])
print("which is the forward states of rows 0 and 1:", torch.equal(wrong[0], h_n[0].flatten()))
assert not torch.equal(right, wrong) and torch.equal(wrong[0], h_n[0].flatten())
assert torch.equal(right, h_n.transpose(0, 1).flatten(1))  # this one is right, too

# %% [markdown]
# `birnn_ext.layout.last_state(output)` is `right`, and `split_hidden(h_n, num_layers)` hands out `h_n` by layer and direction,
# so that nothing has to be counted.

# %%
from birnn_ext.layout import last_state, split_hidden  # noqa: E402

x = torch.randn(T, B, 3)
output, h_n = wide(x)
assert torch.equal(last_state(output), torch.cat(split_hidden(h_n)[0], dim=1))
