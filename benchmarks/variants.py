"""What each variant costs: against the plain layer, and against what one would otherwise write around torch.nn.

Usage:  python -m benchmarks.variants [--shape 100,16,128,128] [--threads 2] [--budget 1.5] [--json PATH]

One bidirectional layer, float32. By hand means: torch.nn's layer with an operation before or behind it where that is
enough (`merge_mode`, `weight_drop`, the states of a GRU, which are its output), else a loop over the steps with
torch.nn.LSTMCell or GRUCell for each direction. Results by hand are checked against ours, outside training, before
anything is timed; the three run in turn (`birnn_ext.clock`).
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import birnn_ext
from birnn_ext.clock import interleave, ratio, spread

from . import machine
from .table import two_digits

EPISODE = 25  # steps, on average


class Variant(NamedTuple):
    mode: str
    options: dict
    call: tuple = ()  # names of arguments of the call
    layer: bool = False  # whether by hand one can use torch.nn's layer


VARIANTS = {
    'merge_mode="sum"': Variant("LSTM", {"merge_mode": "sum"}, layer=True),
    'merge_mode="mul"': Variant("GRU", {"merge_mode": "mul"}, layer=True),
    "weight_drop=0.5": Variant("LSTM", {"weight_drop": 0.5}, layer=True),
    "reset": Variant("LSTM", {}, ("reset",)),
    "reset, GRU": Variant("GRU", {}, ("reset",)),
    "return_states": Variant("LSTM", {}, ("return_states",)),
    "return_states, GRU": Variant("GRU", {}, ("return_states",), layer=True),
    "recurrent_dropout=0.3": Variant("LSTM", {"recurrent_dropout": 0.3}),
    "zoneout=0.1": Variant("LSTM", {"zoneout": 0.1}),
    "layer_norm": Variant("LSTM", {"layer_norm": True}),
}

# ------------------------------------------------------------------------------------------------------- by hand


class NormCell(nn.Module):
    """An LSTM cell with layer normalisation, as birnn_ext has it."""

    def __init__(self, layer, suffix):
        super().__init__()
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "gain_ih", "gain_hh", "gain_c", "bias_c"):
            setattr(self, kind, nn.Parameter(getattr(layer, f"{kind}_l0{suffix}").detach().clone()))

    def forward(self, x, state):
        h, c = state
        shares = F.layer_norm(F.linear(x, self.weight_ih), self.gain_ih.shape, self.gain_ih, self.bias_ih)
        shares = shares + F.layer_norm(F.linear(h, self.weight_hh), self.gain_hh.shape, self.gain_hh, self.bias_hh)
        i, f, g, o = shares.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * F.layer_norm(c, self.gain_c.shape, self.gain_c, self.bias_c).tanh(), c


class ByLoop(nn.Module):
    """A loop over the steps for each direction."""

    def __init__(self, layer, variant):
        super().__init__()
        self.lstm, self.options, self.H = variant.mode == "LSTM", variant.options, layer.hidden_size
        self.cells = nn.ModuleList()
        for suffix in ("", "_reverse"):
            if "layer_norm" in variant.options:
                self.cells.append(NormCell(layer, suffix))
                continue
            cell = (nn.LSTMCell if self.lstm else nn.GRUCell)(layer.input_size, self.H)
            cell.load_state_dict({kind: getattr(layer, f"{kind}_l0{suffix}") for kind in cell.state_dict()})
            self.cells.append(cell)

    def forward(self, x, reset=None, return_states=False):
        zone, drop, B = self.options.get("zoneout", 0), self.options.get("recurrent_dropout", 0), x.size(1)
        outputs, every = [], []
        for d, cell in enumerate(self.cells):
            state = (x.new_zeros(B, self.H),) * (2 if self.lstm else 1)
            steps = list(range(len(x)))[:: -1 if d else 1]
            mask = F.dropout(x.new_ones(B, self.H), drop) if drop and self.training else None
            keep = None
            if reset is not None:
                keep = (~(torch.cat((reset[1:], torch.zeros_like(reset[:1]))) if d else reset)).to(x.dtype).unsqueeze(-1)
            found = [None] * len(x)
            for t in steps:
                if keep is not None:
                    state = tuple(s * keep[t] for s in state)
                h = state[0] if mask is None else state[0] * mask
                new = cell(x[t], (h, state[1])) if self.lstm else (cell(x[t], h),)
                if zone and self.training:
                    new = tuple(torch.where(torch.rand_like(n) < zone, s, n) for n, s in zip(new, state, strict=True))
                elif zone:
                    new = tuple(torch.lerp(n, s, zone) for n, s in zip(new, state, strict=True))
                state = found[t] = new
            outputs.append(torch.stack([s[0] for s in found]))
            every.append(torch.stack([s[-1] for s in found]) if return_states else None)
        output = torch.cat(outputs, -1)
        return (output, torch.cat(every, -1)) if return_states else (output,)


class ByLayer(nn.Module):
    """torch.nn's layer and an operation."""

    def __init__(self, layer, variant):
        super().__init__()
        self.options = variant.options
        self.layer = getattr(nn, variant.mode)(layer.input_size, layer.hidden_size, bidirectional=True)
        self.layer.load_state_dict(layer.state_dict())

    def forward(self, x, return_states=False):
        if "weight_drop" in self.options and self.training:
            weights = dict(self.layer.named_parameters())
            for name in ("weight_hh_l0", "weight_hh_l0_reverse"):
                weights[name] = F.dropout(weights[name], self.options["weight_drop"])
            return (functional_call(self.layer, weights, (x,))[0],)
        output, _ = self.layer(x)
        merge = self.options.get("merge_mode")
        if merge:
            forward, reverse = output.chunk(2, -1)
            output = forward + reverse if merge == "sum" else forward * reverse
        return (output, output) if return_states else (output,)


class Ours(nn.Module):
    """Our layer, with the results that are compared: the output, and the c (GRU: h) of every step where asked for."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, **given):
        output, _, *states = self.layer(x, **given)
        if not states:
            return (output,)
        states = states[0][1] if isinstance(states[0], tuple) else states[0]
        return output, states.flatten(2)


# ------------------------------------------------------------------------------------------------------- timing


def measure(name, shape, budget):
    """{pass: {"ms": {contender: spread}, "of_plain": ratio, "by_hand": ratio}} of one variant.

    Raises:
        AssertionError: what is written by hand gives other numbers than ours.
    """
    variant, (T, B, I, H) = VARIANTS[name], shape  # noqa: E741
    kind = getattr(birnn_ext, variant.mode)
    torch.manual_seed(0)
    plain, ours = kind(I, H, bidirectional=True), kind(I, H, bidirectional=True, **variant.options)
    contenders = {
        "plain": (Ours(plain), {}),
        "ours": (Ours(ours), {}),
        "by_hand": ((ByLayer if variant.layer else ByLoop)(ours, variant), {}),
    }
    x = torch.randn(T, B, I)
    values = {"reset": torch.rand(T, B) < 1 / EPISODE, "return_states": True}
    given = {argument: values[argument] for argument in variant.call}
    contenders = {key: (module, {} if key == "plain" else given) for key, (module, _) in contenders.items()}
    with torch.inference_mode():
        expected = contenders["by_hand"][0].eval()(x, **given)
        torch.testing.assert_close(contenders["ours"][0].eval()(x, **given), expected, atol=1e-4, rtol=1e-4)
    found = {}
    for pass_ in ("inference", "training"):
        runs = {key: step(module.train(pass_ == "training"), x, given) for key, (module, given) in contenders.items()}
        seconds = interleave(runs, budget=budget, sync=lambda: None, consume=lambda *_: None)
        found[pass_] = {
            "ms": {key: spread(times) for key, times in seconds.items()},
            "of_plain": ratio(seconds["ours"], seconds["plain"]),
            "by_hand": ratio(seconds["by_hand"], seconds["ours"]),
        }
    return found


def step(module, x, given):
    """One pass as a function of the round; in training with gradients to x and all weights."""
    if not module.training:

        def infer(_):
            with torch.inference_mode():
                return module(x, **given)

        return infer
    leaf = x.clone().requires_grad_()

    def train(_):
        leaf.grad = None
        module.zero_grad()
        sum(result.square().mean() for result in module(leaf, **given)).backward()

    return train


def markdown(result):
    """The table of docs/variants.md."""
    lines = ["| | of the plain layer's time: inference | training step | by hand, of ours: inference | training step |"]
    lines.append("|---" * 5 + "|")
    for name, passes in result["variants"].items():
        cells = [two_digits(passes[p][of]["median"]) for of in ("of_plain", "by_hand") for p in ("inference", "training")]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="100,16,128,128", help="T,B,I,H (default %(default)s)")
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()))
    parser.add_argument("--budget", type=float, default=1.5, help="seconds for each variant and pass (default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args(argv)
    shape = tuple(map(int, args.shape.split(",")))
    torch.set_num_threads(args.threads)
    result = {"machine": machine.facts(), "shape": dict(zip("TBIH", shape, strict=True)), "threads": args.threads}
    result["variants"] = {name: measure(name, shape, args.budget) for name in args.only}
    print(markdown(result))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
