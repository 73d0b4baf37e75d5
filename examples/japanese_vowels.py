"""Who is speaking? Trains one classifier twice, with torch.nn and with birnn_ext, and lays the loss curves
side by side.

    python examples/japanese_vowels.py --mode GRU --hidden 64 --epochs 25

Nine speakers, 270 utterances of 7 to 29 frames to learn from, 370 to be tested on (data/README.md). Both
classifiers start from the same weights and see the same batches; torch.nn gets the ragged batch as a
PackedSequence, ours by `lengths`. It shows that the two learn the same thing and how long each takes. It is
an example, not a benchmark: benchmarks/ measures single layers, and carefully.
"""

import argparse
import copy
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from tqdm import tqdm

import birnn_ext

DATA = Path(__file__).parent / "data" / "japanese_vowels.npz"
CHANNELS, SPEAKERS, LAYERS = 12, 9, 2
MODES = {"GRU": ("GRU", {}), "LSTM": ("LSTM", {})} | {
    f"RNN_{name.upper()}": ("RNN", {"nonlinearity": name}) for name in ("tanh", "relu")
}
THEIRS, OURS = "torch.nn", "birnn_ext"


@dataclass
class Utterances:
    """A padded batch: x [B, T, 12] (zero beyond each row's length), lengths int64 [B], speaker int64 [B]."""

    x: torch.Tensor
    lengths: torch.Tensor
    speaker: torch.Tensor

    def __len__(self):
        return len(self.lengths)

    def rows(self, index):
        """The utterances `index`, padded no further than the longest of them. Lengths stay on the CPU, as
        packing wants them."""
        lengths = self.lengths[index]
        here = index.to(self.x.device)
        return Utterances(self.x[here, : int(lengths.max())], lengths, self.speaker[here])

    def to(self, device):
        return Utterances(self.x.to(device), self.lengths, self.speaker.to(device))


def load(path=DATA):
    """(training set, test set) as Utterances of 270 and 370 rows, every channel scaled to mean 0 and variance
    1 in training."""
    with np.load(path, allow_pickle=False) as file:
        frames = torch.from_numpy(file["cepstra"]).float() / 1e4
        lengths = torch.from_numpy(file["length"]).long()
        speaker = torch.from_numpy(file["speaker"]).long()
        test = torch.from_numpy(file["test"])
    utterances = frames.split(lengths.tolist())
    seen = torch.cat([u for u, held_out in zip(utterances, test, strict=True) if not held_out])
    x = pad_sequence([(u - seen.mean(0)) / seen.std(0) for u in utterances], batch_first=True)
    return tuple(Utterances(x[part], lengths[part], speaker[part]) for part in (~test, test))


class Classifier(nn.Module):
    """Bidirectional layers, of which the last one's two final states (the forward direction's after the row's
    own last step, the reverse direction's after step 0) go through one linear map: [B, T, 12] -> [B, 9]."""

    def __init__(self, library, mode, hidden):
        super().__init__()
        kind, arguments = MODES[mode]
        layer = getattr(library, kind)
        self.rnn = layer(CHANNELS, hidden, LAYERS, batch_first=True, bidirectional=True, **arguments)
        self.linear = nn.Linear(2 * hidden, SPEAKERS)
        self.packs = library is nn

    def forward(self, x, lengths):
        if self.packs:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            _, state = self.rnn(packed)
        else:
            _, state = self.rnn(x, lengths=lengths)
        h_n = state[0] if isinstance(state, tuple) else state  # an LSTM hands back (h_n, c_n)
        forward, reverse = h_n[-2:]  # [2 * layers, B, H]: the last layer's directions are the last two rows
        return self.linear(torch.cat([forward, reverse], dim=1))


@dataclass
class Learner:
    """A model, its optimiser, and what was seen of its training: one loss per batch, seconds and test
    accuracy per epoch."""

    model: Classifier
    lr: float
    losses: list = field(default_factory=list)
    seconds: list = field(default_factory=list)
    accuracy: list = field(default_factory=list)

    def __post_init__(self):
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=self.lr)

    def epoch(self, train, batches):
        start = time.perf_counter()
        for index in batches:
            batch = train.rows(index)
            self.optimiser.zero_grad()
            loss = nn.functional.cross_entropy(self.model(batch.x, batch.lengths), batch.speaker)
            loss.backward()
            self.optimiser.step()
            self.losses.append(loss.item())  # .item() also waits for a GPU, so that the clock reads right
        self.seconds.append(time.perf_counter() - start)

    @torch.no_grad()
    def test(self, test):
        right = self.model(test.x, test.lengths).argmax(1) == test.speaker
        self.accuracy.append(right.double().mean().item())


def train_both(args):
    """Trains both; returns {"torch.nn": Learner, "birnn_ext": Learner}."""
    torch.manual_seed(args.seed)
    train, test = (part.to(args.device) for part in load())
    theirs = Classifier(nn, args.mode, args.hidden).to(args.device)
    ours = Classifier(birnn_ext, args.mode, args.hidden).to(args.device)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()), strict=True)
    learners = {THEIRS: Learner(theirs, args.lr), OURS: Learner(ours, args.lr)}
    shuffle = torch.Generator().manual_seed(args.seed)
    for epoch in tqdm(range(args.epochs), desc=f"training both ({args.mode})", unit="epoch"):
        batches = torch.randperm(len(train), generator=shuffle).split(args.batch)
        # Taking turns, and turns at going first, lets the machine's moods hit both alike.
        for name in (THEIRS, OURS) if epoch % 2 == 0 else (OURS, THEIRS):
            learners[name].epoch(train, batches)
            learners[name].test(test)
    return learners


def summary(learners):
    """What is worth saying in numbers: a dict, also what the demo and the tests read."""
    theirs, ours = learners[THEIRS], learners[OURS]
    pairs = list(zip(theirs.seconds, ours.seconds, strict=True))
    pairs = pairs[1:] or pairs  # the first epoch also pays for warming up
    return {
        "largest_loss_difference": max(abs(a - b) for a, b in zip(theirs.losses, ours.losses, strict=True)),
        "accuracy": {name: learner.accuracy[-1] for name, learner in learners.items()},
        "seconds_per_epoch": {
            THEIRS: statistics.median(a for a, _ in pairs),
            OURS: statistics.median(b for _, b in pairs),
        },
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def draw(learners, facts, args, path):
    """One picture: loss curves, test accuracy, seconds per epoch."""
    import matplotlib

    matplotlib.use("Agg")  # draw into a file, also where there is no screen
    from matplotlib import pyplot as plt

    threads = torch.get_num_threads()
    colour, width = {THEIRS: "#9aa5b1", OURS: "#d1495b"}, {THEIRS: 5, OURS: 1.6}
    plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
    figure, (loss, right, speed) = plt.subplots(1, 3, figsize=(15, 5), width_ratios=(3, 3, 2), layout="constrained")
    figure.suptitle(
        f"Japanese Vowels: {LAYERS} bidirectional {args.mode.replace('_', ' ')} layers, H={args.hidden}, "
        f"batches of {args.batch}, {args.device}, {threads} thread{'s' * (threads > 1)}",
        fontsize=15,
    )
    for name, learner in learners.items():
        loss.plot(learner.losses, color=colour[name], lw=width[name], label=name)
        epochs = range(1, len(learner.accuracy) + 1)
        percent = [100 * value for value in learner.accuracy]
        right.plot(
            epochs,
            percent,
            color=colour[name],
            lw=width[name],
            label=f"{name}: {percent[-1]:.1f} % at the end",
        )
    loss.set(
        yscale="log",
        xlabel="batch",
        ylabel="training loss",
        title=f"Same loss curve\n(largest difference {facts['largest_loss_difference']:.1e})",
    )
    right.set(xlabel="epoch", ylabel="% of 370 utterances", title="Speakers told apart in the test set")
    right.axhline(95, color="black", lw=1, ls=":", label="95 %")
    milliseconds = {name: 1e3 * value for name, value in facts["seconds_per_epoch"].items()}
    bars = speed.bar(milliseconds.keys(), milliseconds.values(), color=[colour[name] for name in milliseconds])
    speed.bar_label(bars, fmt="%.0f ms", padding=3)
    speed.margins(y=0.12)
    speed.set(ylabel="ms per training epoch (median)", title=f"{facts['ratio']:.1f} times as fast\n(270 utterances)")
    for axis in (loss, right):
        axis.legend(frameon=False)
        axis.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--mode", choices=MODES, default="GRU")
    parser.add_argument("--hidden", type=int, default=64, help="units per direction (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=25, help="default %(default)s")
    parser.add_argument("--batch", type=int, default=30, help="utterances per batch (default %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--device", default="cpu", help="default %(default)s")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: its own choice)")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for the picture (default %(default)s)")
    args = parser.parse_args(argv)
    for name in ("hidden", "epochs", "batch"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def main(argv=None):
    """Trains, prints, draws; returns (summary, path of the picture)."""
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    learners = train_both(args)
    facts = summary(learners)
    print(f"\n{'':10}{'test accuracy':>15}{'s per epoch':>14}")
    for name in learners:
        print(f"{name:10}{facts['accuracy'][name]:>14.1%} {facts['seconds_per_epoch'][name]:>13.3f}")
    print(
        f"ours takes 1/{facts['ratio']:.2f} of the time; the losses of {len(learners[OURS].losses)} batches ",
        end="",
    )
    print(f"differ by at most {facts['largest_loss_difference']:.1e}")
    picture = args.out / f"japanese_vowels_{args.mode.lower()}.png"
    draw(learners, facts, args, picture)
    print(f"picture: {picture}")
    return facts, picture


if __name__ == "__main__":
    main()
