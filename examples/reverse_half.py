# %% [markdown]
# # Where is the reverse direction?
#
# A bidirectional layer hands back one `output` and one `h_n`. Which half of the output belongs to the direction that reads
# from the end? In which order does it stand there? Which row of `h_n` is its state? This page answers with a layer so small
# that every number can be looked at: one input feature, one unit per direction, five steps.

# %%
import torch

import birnn_ext
from birnn_ext.layout import split_hidden, split_output, unstack

torch.manual_seed(0)
torch.set_grad_enabled(False)
torch.set_printoptions(precision=4, sci_mode=False)

T = 5
sequence = torch.randn(T, 1, 1)  # [T, B, features]
gru = birnn_ext.GRU(input_size=1, hidden_size=1, bidirectional=True)
output, h_n = gru(sequence)
print("output [T, B, 2]\n", output[:, 0])
print("h_n [2, B, 1]\n", h_n[:, 0])

# %% [markdown]
# ## The second direction is a layer of its own
#
# Its parameters are those whose names end in `_reverse`. `unstack` puts them into a layer of one direction, without copying
# anything. That layer reads time from the front like any other, so it is handed the sequence turned round.

# %%
forward_gru, reverse_gru = unstack(gru)[0]
assert reverse_gru.weight_hh_l0 is gru.weight_hh_l0_reverse

turned, turned_state = reverse_gru(sequence.flip(0))
print("what the reverse layer computes, in the order in which it reads:", turned.flatten())
print("the second column of the bidirectional output:                  ", output[:, 0, 1])

# %% [markdown]
# The same five numbers, in opposite orders. So the reverse direction is **the second half of the features**, and it has been
# **turned back into the order of time**: index t belongs to step t in both halves. `split_output` cuts the halves apart; they
# are views of `output`, not copies.

# %%
forward, reverse = split_output(output)
assert torch.allclose(reverse, turned.flip(0), atol=1e-6)
assert torch.allclose(forward, forward_gru(sequence)[0], atol=1e-6)
assert forward.data_ptr() == output.data_ptr()

# %% [markdown]
# ## Its state is the odd row of h_n
#
# `h_n` has a row for every layer and direction: first forward, then reverse, then the next layer. The reverse direction ends
# where it has read everything, which is **at step 0**.

# %%
((forward_state, reverse_state),) = split_hidden(h_n, num_layers=1)
print("h_n[0] =", forward_state.item(), "  output at the last step, first half: ", forward[-1].item())
print("h_n[1] =", reverse_state.item(), "  output at the first step, second half:", reverse[0].item())
assert torch.equal(forward_state, forward[-1]) and torch.equal(reverse_state, reverse[0])
assert torch.allclose(reverse_state, turned_state[0], atol=1e-6)

# %% [markdown]
# ## Who has seen what
#
# The derivative of output t with respect to input s says whether the layer had read s when it computed t. Forward has read
# the past, reverse the future, both the step itself. `x` marks what is not zero.

# %%
jacobian = torch.autograd.functional.jacobian(lambda x: gru(x)[0], sequence)  # [T, B, 2, T, B, 1]
for name, column in (("forward", 0), ("reverse", 1)):
    print(f"{name}: row = output at t, column = input at s")
    seen = jacobian[:, 0, column, :, 0, 0] != 0
    for t in range(T):
        print(f"   t={t}  " + " ".join("x" if seen[t, s] else "." for s in range(T)))
    expected = torch.ones(T, T, dtype=torch.bool)
    assert torch.equal(seen, expected.tril() if column == 0 else expected.triu())

# %% [markdown]
# Hence the trap of `output[-1]` as a summary of a sequence: at the last step the reverse direction has read one step. What
# both directions know at their ends is `h_n`, or `last_state`, which also minds rows of unequal length.

# %%
from birnn_ext.layout import last_state  # noqa: E402

print("output[-1]        ", output[-1, 0].tolist())
print("last_state(output)", last_state(output)[0].tolist())
assert torch.equal(last_state(output), torch.cat([h_n[0], h_n[1]], dim=1))

# %% [markdown]
# The whole of it in one drawing, with the sizes at hand:

# %%
birnn_ext.explain((output, h_n))
