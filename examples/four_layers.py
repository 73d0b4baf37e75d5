# %% [markdown]
# # Four layers: what feeds the second one?
#
# Somebody rebuilds a bidirectional stack of four layers from layers of one direction. The first layer agrees with PyTorch,
# the second does not, and three questions follow: what is concatenated, why the weights of the deeper layers are `[H, 2H]`,
# and where the initial state of the reverse direction goes. Here is the stack, the mistake, and the answers, in numbers.

# %%
import torch

import birnn_ext
from birnn_ext.layout import split_hidden, unstack

torch.manual_seed(0)
L, B, T, I, H = 4, 15, 5, 25, 50  # noqa: E741
rnn = birnn_ext.RNN(I, H, num_layers=L, batch_first=True, bidirectional=True)
layers = unstack(rnn)  # [layer][direction], each a layer of one direction that shares the stack's weights
x = torch.randn(B, T, I)
hx = torch.randn(2 * L, B, H)
initial = split_hidden(hx, num_layers=L)  # [layer][direction] again
with torch.no_grad():
    output, h_n = rnn(x, hx)
expected = split_hidden(h_n, num_layers=L)
print(layers[0][0], layers[1][0])

# %% [markdown]
# ## Rebuilding it
#
# Two places invite a mistake, and each is a switch here. The reverse direction is run by turning its input round. Then its
# output runs backwards, and has to be **turned back before the two are joined** (`turn_back`). And the reverse direction of
# **every** layer, not of the first one only, has to be fed backwards (`feed_backwards`).


# %%
@torch.no_grad()
def rebuild(turn_back, feed_backwards):
    """How far each direction's final state of each layer is from the stack's: a list of (forward, reverse)."""
    below, apart = x, []
    for i, (forward, reverse) in enumerate(layers):
        out_forward, end_forward = forward(below, initial[i][0][None])
        turned = below.flip(1) if feed_backwards or i == 0 else below
        out_reverse, end_reverse = reverse(turned, initial[i][1][None])
        below = torch.cat([out_forward, out_reverse.flip(1) if turn_back else out_reverse], dim=-1)
        ends = (end_forward[0], end_reverse[0])
        apart.append([(end - there).abs().max().item() for end, there in zip(ends, expected[i], strict=True)])
    return apart


attempts = {
    "as posted: neither": (False, False),
    "fed backwards, not turned back": (False, True),
    "turned back, second layer fed forwards": (True, False),
    "both": (True, True),
}
print(f"{'largest difference of the final states':42}" + "".join(f"{f'layer {i + 1}':>18}" for i in range(L)))
found = {}
for name, switches in attempts.items():
    found[name] = rebuild(*switches)
    print(f"{name:42}" + "".join(f"{f'{a:.0e} / {b:.0e}':>18}" for a, b in found[name]))

# %% [markdown]
# The first layer is right in every attempt, which is what makes the mistake hard to see. With both in place all four layers
# agree to rounding. Turning the output back alone repairs the forward direction of layer two, which is the direction that
# one usually looks at first, and nothing else.

# %%
assert all(max(apart[0]) < 1e-5 for apart in found.values())
assert all(max(pair) < 1e-5 for pair in found["both"])
assert min(found["as posted: neither"][1]) > 0.1
assert (
    found["turned back, second layer fed forwards"][1][0] < 1e-5 < 0.1 < found["turned back, second layer fed forwards"][1][1]
)

# %% [markdown]
# ## Question 1: what is concatenated?
#
# The outputs of both directions **at the same step of time**: layer two reads at t what forward knows after steps 0..t and
# what reverse knows after steps T-1..t. Joined without turning back, position t would pair forward at t with reverse at
# T-1-t: both from the same side of the sequence.

# %%
with torch.no_grad():
    first_forward = layers[0][0](x, initial[0][0][None])[0]
    first_reverse = layers[0][1](x.flip(1), initial[0][1][None])[0]
    same_step = torch.cat([first_forward, first_reverse.flip(1)], dim=-1)
    second, _ = layers[1][0](same_step, initial[1][0][None])
    states = birnn_ext.layout.trace(rnn, x, hx)
print("layer two on pairs of the same step:", f"{(second - states['h_l1']).abs().max():.0e} from the stack's")
assert torch.allclose(second, states["h_l1"], atol=1e-5)

# %% [markdown]
# ## Question 2: why [H, 2H], for both directions?
#
# Because **both** directions of layer two read **both** outputs of layer one: 2H = 100 features. The left half of the columns
# weighs the forward output, the right half the reverse output. Both halves matter in both directions: without the right
# half, layer two's states move by this much.

# %%
print("shapes:", tuple(rnn.weight_ih_l1.shape), tuple(rnn.weight_ih_l1_reverse.shape))
moved = {}
with torch.no_grad():
    for d, name in enumerate(("forward", "reverse")):
        layer = layers[1][d]
        into = same_step.flip(1) if d else same_step
        whole, _ = layer(into, initial[1][d][None])
        for half, columns in (("left", slice(0, H)), ("right", slice(H, 2 * H))):
            cut = into.clone()
            cut[..., columns] = 0  # the same as zeroing those columns of weight_ih
            moved[name, half] = (layer(cut, initial[1][d][None])[0] - whole).abs().max().item()
            print(f"layer two, {name}, without the {half} half of weight_ih: states move by {moved[name, half]:.2f}")
assert min(moved.values()) > 0.1

# %% [markdown]
# ## Question 3: where does the initial state of the reverse direction go?
#
# Row 2*l + 1 of `hx` is the state **before the reverse direction's first step, which is the last step of the sequence**. Move
# that row a little, and layer one's reverse half moves most at t = T-1, then less and less towards t = 0; its forward half
# does not move at all.

# %%
with torch.no_grad():
    nudged = hx.clone()
    nudged[1] += 0.1
    change = {
        name: (birnn_ext.layout.trace(rnn, x, nudged)[name] - states[name]).abs().mean(dim=(0, 2))
        for name in ("h_l0", "h_l0_reverse")
    }
print("mean change of layer one at t = 0 .. 4")
print("  forward", [round(v, 4) for v in change["h_l0"].tolist()])
print("  reverse", [round(v, 4) for v in change["h_l0_reverse"].tolist()])
assert not change["h_l0"].any() and change["h_l0_reverse"].argmax() == T - 1

# %% [markdown]
# The order of the rows, drawn:

# %%
birnn_ext.explain(rnn, steps=T, batch=B)
