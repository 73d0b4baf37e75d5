# %% [markdown]
# # Padding, and the direction that starts in it
#
# Sequences of unequal length are padded to a common T. The forward direction meets the padding last, when everything that
# matters is written. The reverse direction **starts in it**: by the time it reaches the row's own last step, its state is full
# of whatever the padding made of it. Nothing warns of it, the shapes are right. How large is the error, and what avoids it?

# %%
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

import birnn_ext
from birnn_ext.layout import last_state, split_output

torch.manual_seed(0)
I, H = 4, 8  # noqa: E741
lengths = [12, 5, 9, 2]
rows = [torch.randn(n, I) for n in lengths]
padded = pad_sequence(rows)  # [T, B, I], zeros behind each row's end
T, B, _ = padded.shape
print("lengths", lengths, "-> padded", tuple(padded.shape))

# %% [markdown]
# ## The truth: each row alone
#
# A row on its own has no padding. Everything below is compared with these, at valid steps only.


# %%
@torch.no_grad()
def alone(layer):
    """Output [T, B, 2H] and last h [B, 2H] of every row computed by itself, NaN where there is no step."""
    output, last = torch.full((T, B, 2 * H), torch.nan), torch.zeros(B, 2 * H)
    for b, row in enumerate(rows):
        result, state = layer(row)
        output[: len(row), b] = result
        last[b] = (state[0] if isinstance(state, tuple) else state).flatten()
    return output, last


def error(found, truth):
    """Largest difference at valid steps: (forward half, reverse half)."""
    return [(a - b).abs().nan_to_num(0).max().item() for a, b in zip(split_output(found), split_output(truth), strict=True)]


# %% [markdown]
# ## Three ways to run the batch
#
# * plain: the padded batch goes into the layer as it is;
# * packed: `pack_padded_sequence` in front, `pad_packed_sequence` behind;
# * lengths: `birnn_ext`'s layers take them beside the padded batch.

# %%
print(f"{'error at valid steps, forward / reverse':42}{'RNN':>20}{'GRU':>20}{'LSTM':>20}")
table = {"torch.nn, plain": [], "torch.nn, packed": [], "birnn_ext, lengths": []}
models = {name: getattr(nn, name)(I, H, bidirectional=True) for name in ("RNN", "GRU", "LSTM")}
for name, theirs in models.items():
    truth, _ = alone(theirs)
    ours = getattr(birnn_ext, name)(I, H, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        packed = pack_padded_sequence(padded, lengths, enforce_sorted=False)
        table["torch.nn, plain"].append(error(theirs(padded)[0], truth))
        table["torch.nn, packed"].append(error(pad_packed_sequence(theirs(packed)[0])[0], truth))
        table["birnn_ext, lengths"].append(error(ours(padded, lengths=lengths)[0], truth))
for name, errors in table.items():
    print(f"{name:42}" + "".join(f"{f'{a:.0e} / {b:.0e}':>20}" for a, b in errors))

# %% [markdown]
# Plain padding is exact forwards and wrong backwards, in every kind of cell, although the padding holds zeros: the biases
# alone drive the state. States lie between -1 and 1, so these errors are no trifles.

# %%
for kind in range(3):
    assert table["torch.nn, plain"][kind][0] < 1e-5 and table["torch.nn, plain"][kind][1] > 0.05
    assert max(table["torch.nn, packed"][kind] + table["birnn_ext, lengths"][kind]) < 1e-5

# %% [markdown]
# ## The error sits at the end of the row
#
# Step by step for the row of five steps: largest where the reverse direction leaves the padding, smaller the longer it has
# been reading data since. A layer with a long memory forgets it later.

# %%
gru = models["GRU"]
truth, _ = alone(gru)
with torch.no_grad():
    plain = gru(padded)[0]
by_step = (plain - truth)[:5, 1, H:].abs().amax(dim=1)
print("reverse half of row 1 (5 of 12 steps), error at t = 0 .. 4:", [round(v, 4) for v in by_step.tolist()])
assert by_step.argmax() == 4 and by_step[0] < by_step[4]

# %% [markdown]
# ## And the final state
#
# `h_n` of the plain run is wrong in the *forward* direction, too: it is the state after the padding. `output[-1]` is no
# better. `last_state` reads both directions at the row's own ends.

# %%
ours = birnn_ext.GRU(I, H, bidirectional=True)
ours.load_state_dict(gru.state_dict())
_, truth = alone(gru)
with torch.no_grad():
    output, h_n = ours(padded, lengths=lengths)
    candidates = {
        "h_n of the plain run": torch.cat(list(gru(padded)[1]), dim=1),
        "output[-1] of the plain run": gru(padded)[0][-1],
        "h_n with lengths": torch.cat(list(h_n), dim=1),
        "last_state(output, lengths=lengths)": last_state(output, lengths=lengths),
    }
errors = {name: error(found, truth) for name, found in candidates.items()}
for name, (forward, reverse) in errors.items():
    print(f"{name:38} forward {forward:.0e}   reverse {reverse:.0e}")
assert min(errors["h_n of the plain run"]) > 0.05
assert max(errors["h_n with lengths"] + errors["last_state(output, lengths=lengths)"]) < 1e-5

# %% [markdown]
# ## What `lengths` also does
#
# Rows in any order, rows without a step, any content of the padding (NaN included, in the gradient as well), zeros behind
# each row's end, and an output that keeps its T.

# %%
poisoned = padded.clone()
for b, n in enumerate(lengths):
    poisoned[n:, b] = torch.nan
poisoned.requires_grad_()
output, h_n = ours(poisoned, lengths=[12, 5, 9, 0])
output.sum().backward()
print("output is finite:", bool(output.isfinite().all()), "  its gradient, too:", bool(poisoned.grad.isfinite().all()))
print("a row of no steps hands its initial state through:", not h_n[:, 3].any(), "  T is kept:", output.shape[0] == T)
assert output.isfinite().all() and poisoned.grad.isfinite().all() and not output[5:, 1].any()
