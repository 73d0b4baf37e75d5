"""What is measured: shapes, modes and passes, and one case of that grid. Holds no numbers of a layer
(problem.py) and times nothing."""

import random
from dataclasses import dataclass

# mode -> (class name in torch.nn and birnn_ext, its extra arguments, gates)
MODES = {
    "GRU": ("GRU", {}, 3),
    "LSTM": ("LSTM", {}, 4),
    "RNN_TANH": ("RNN", {"nonlinearity": "tanh"}, 1),
    "RNN_RELU": ("RNN", {"nonlinearity": "relu"}, 1),
}
PASSES = ("inference", "training")


@dataclass(frozen=True)
class Shape:
    """B rows of T steps with I inputs, H units per direction, L layers. Always bidirectional."""

    name: str
    B: int
    T: int
    I: int  # noqa: E741
    H: int
    L: int = 1

    def __str__(self):
        sizes = (self.B, self.T, self.I, self.H) + ((self.L,) if self.L > 1 else ())
        return ",".join(map(str, sizes))


# From one row on weights that fit a core's L2 cache, where everything is overhead and bandwidth, to a batch
# on weights of 12 MB per direction, where everything is arithmetic.
GRID = (
    Shape("one_small", 1, 100, 128, 128),
    Shape("one_medium", 1, 100, 256, 256),
    Shape("one_large", 1, 100, 512, 512),
    Shape("one_long", 1, 1000, 128, 256),
    Shape("few_medium", 16, 100, 256, 256),
    Shape("few_large", 32, 50, 512, 512),
    Shape("many_small", 64, 200, 128, 128),
    Shape("many_large", 64, 100, 256, 512),
    Shape("many_huge", 128, 50, 1024, 1024),
)
QUICK = ("one_small", "few_medium", "many_small")


def sample(count=60, seed=2026, largest=6e9):
    """`count` different shapes drawn from wide ranges, sizes between the vector widths among them: the grid on which
    nobody tuned anything. Shapes of more than `largest` multiplications in a forward pass of a GRU are left out, since
    a training step would take seconds."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        H = draw.choice((32, 64, 100, 128, 200, 256, 300, 384, 512, 768, 1024))
        I = draw.choice((H // 4, H, 2 * H))  # noqa: E741
        B, T = draw.choice((1, 2, 4, 8, 16, 32, 64, 128)), draw.choice((1, 10, 50, 200, 1000))
        shape = Shape(f"sample_{len(found)}", B, T, I, H, draw.choice((1, 1, 2, 4)))
        if 6 * B * T * H * shape.L * (max(I, 2 * H) + H) <= largest:
            found.setdefault(str(shape), shape)
    return tuple(found.values())


WIDE = sample()


def parse_shape(text):
    """A Shape from its name in GRID or from "B,T,I,H" or "B,T,I,H,layers". ValueError for anything else."""
    named = {shape.name: shape for shape in GRID}
    if text in named:
        return named[text]
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) not in (4, 5) or min(sizes) < 1:
        raise ValueError(
            f"shape must be one of {', '.join(named)}, or B,T,I,H or B,T,I,H,layers with positive sizes; got {text!r}"
        )
    return Shape(text, *sizes)


@dataclass(frozen=True)
class Case:
    """One line of the table: a shape, a mode, a pass ("inference" or "training"), and what it runs on."""

    shape: Shape
    mode: str
    pass_: str = "inference"
    threads: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    ragged: bool = False

    @property
    def key(self):
        """The case in words; compare.py matches cases of two files by it."""
        ragged = "ragged" if self.ragged else "equal"
        return f"{self.mode} {self.shape} {self.pass_} {self.threads}t {self.dtype} {self.device} {ragged}"

    @property
    def training(self):
        return self.pass_ == "training"
