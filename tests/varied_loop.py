"""The variants by hand: one row, one direction, one step after the other, on vectors; the oracle of test_variants.py.

It shares nothing with the package but torch's random functions, which it calls in the documented order: for each
layer weight drop of each direction, recurrent dropout, zoneout of h, zoneout of c.
"""

import torch
from torch.nn import functional as F

GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 3}


def norm(v):
    """(v - mean) / sqrt(variance + 1e-5)"""
    centred = v - v.mean()
    return centred / torch.sqrt((centred * centred).mean() + 1e-5)


def cell(mode, x, h, h_old, c_old, norm_c):
    """One step from the gates' shares x and h: (h', c' or None)."""
    if mode == "RNN_TANH":
        return torch.tanh(x + h), None
    if mode == "RNN_RELU":
        return torch.relu(x + h), None
    H = x.numel() // GATES[mode]
    x, h = x.split(H), h.split(H)
    if mode == "GRU":
        r, z = torch.sigmoid(x[0] + h[0]), torch.sigmoid(x[1] + h[1])
        return (1 - z) * torch.tanh(x[2] + r * h[2]) + z * h_old, None
    i, f, o = (torch.sigmoid(x[k] + h[k]) for k in (0, 1, 3))
    c = f * c_old + i * torch.tanh(x[2] + h[2])
    return o * torch.tanh(norm_c(c)), c


def draws(layer, l, T, B, P):  # noqa: E741
    """What training draws for layer l: (the w_hh of each direction, factors of h, shares of old h, shares of old c)."""
    D, H, training = 1 + layer.bidirectional, layer.hidden_size, layer.training
    w_hh = [getattr(layer, f"weight_hh_l{l}{suffix}") for suffix in ("", "_reverse")[:D]]
    if training and layer.weight_drop:
        w_hh = [F.dropout(w, layer.weight_drop) for w in w_hh]
    kept = torch.ones(D, B, P, dtype=torch.float64)
    if training and layer.recurrent_dropout:
        kept = F.dropout(kept, layer.recurrent_dropout)
    rates = layer.zoneout if isinstance(layer.zoneout, tuple) else (layer.zoneout, layer.zoneout)
    zones = []
    for p, width in zip(rates, (P, H), strict=True):
        share = torch.full((D, T, B, width), p, dtype=torch.float64)
        drawn = training and p and (layer.mode == "LSTM" or len(zones) == 0)
        zones.append(torch.bernoulli(share) if drawn else share)
    return w_hh, kept, *zones


def run(layer, x, hx=None, lengths=None, reset=None):
    """x [T, B, I] -> (output, or a pair, h_n, c_n or None, h of every step [T, B, L*D, P], c likewise or None)."""
    T, B = x.shape[:2]
    D, H, P = 1 + layer.bidirectional, layer.hidden_size, layer.proj_size or layer.hidden_size
    lengths = [T] * B if lengths is None else lengths
    h_0, c_0 = hx if isinstance(hx, tuple) else (hx, None)
    h_n, c_n, h_every, c_every = [], [], [], []
    for l in range(layer.num_layers):  # noqa: E741
        w_hh, kept, zone_h, zone_c = draws(layer, l, T, B, P)
        outputs = []
        for d in range(D):
            held = {
                kind: getattr(layer, f"{kind}_l{l}{'_reverse' * d}", None)
                for kind in ("weight_ih", "bias_ih", "bias_hh", "weight_hr", "gain_ih", "gain_hh", "gain_c", "bias_c")
            }

            def share(weight, v, which, held=held):
                total = weight @ v
                if layer.layer_norm:
                    total = norm(total) * held[f"gain_{which}"]
                return total + held[f"bias_{which}"] if layer.bias else total

            def norm_c(c, held=held):
                if not layer.layer_norm:
                    return c
                return norm(c) * held["gain_c"] + (held["bias_c"] if layer.bias else 0)

            hs = [[torch.zeros(P, dtype=x.dtype)] * B for _ in range(T)]
            cs = [[torch.zeros(H, dtype=x.dtype)] * B for _ in range(T)]
            ends = []
            for b in range(B):
                h = torch.zeros(P, dtype=x.dtype) if h_0 is None else h_0[l * D + d, b]
                c = torch.zeros(H, dtype=x.dtype) if c_0 is None else c_0[l * D + d, b]
                steps = range(lengths[b])
                for t in reversed(steps) if d else steps:
                    if reset is not None and (t + 1 in steps and reset[t + 1, b] if d else reset[t, b]):
                        h, c = h * 0, c * 0
                    new_h, new_c = cell(
                        layer.mode,
                        share(held["weight_ih"], x[t, b], "ih"),
                        share(w_hh[d], h * kept[d, b], "hh"),
                        h,
                        c,
                        norm_c,
                    )
                    if layer.proj_size:
                        new_h = held["weight_hr"] @ new_h
                    h = zone_h[d, t, b] * h + (1 - zone_h[d, t, b]) * new_h
                    if new_c is not None:
                        c = zone_c[d, t, b] * c + (1 - zone_c[d, t, b]) * new_c
                    hs[t][b], cs[t][b] = h, c
                ends.append((h, c))
            outputs.append(torch.stack([torch.stack(row) for row in hs]))
            h_every.append(outputs[-1])
            c_every.append(torch.stack([torch.stack(row) for row in cs]))
            h_n.append(torch.stack([h for h, _ in ends]))
            c_n.append(torch.stack([c for _, c in ends]))
        last, x = l == layer.num_layers - 1, torch.cat(outputs, -1)
        if layer.merge_mode is None and last:
            x = tuple(outputs)
        elif layer.merge_mode == "sum":
            x = outputs[0] + outputs[1]
        elif layer.merge_mode == "mean":
            x = 0.5 * outputs[0] + 0.5 * outputs[1]
        elif layer.merge_mode == "mul":
            x = outputs[0] * outputs[1]
    lstm = layer.mode == "LSTM"
    return (
        x,
        torch.stack(h_n),
        torch.stack(c_n) if lstm else None,
        torch.stack(h_every, 2),
        torch.stack(c_every, 2) if lstm else None,
    )
