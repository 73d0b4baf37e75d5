"""Named shapes, and the pairwise crossing of what a layer can be asked for.

Crossing everything fully gives thousands of cases that find what pairs find: most faults need two
circumstances, hardly any needs three.
"""

import itertools
from typing import NamedTuple


class Shape(NamedTuple):
    T: int
    B: int
    I: int  # noqa: E741
    H: int


SHAPES = {
    "one_step": Shape(1, 3, 5, 8),
    "one_row": Shape(7, 1, 4, 6),
    "one_unit": Shape(5, 2, 1, 1),
    "odd": Shape(7, 3, 5, 9),
    "lane_minus_1": Shape(5, 4, 15, 15),
    "lane_plus_1": Shape(5, 5, 17, 17),
    "tall": Shape(4, 33, 3, 10),
    "speech": Shape(40, 6, 40, 64),
    "long": Shape(250, 2, 6, 16),
}

MODES = ("RNN_TANH", "RNN_RELU", "LSTM", "GRU")


def pairwise(**axes):
    """A short list of cases (dicts) in which every pair of values of any two axes occurs together.

    Greedy and without randomness: the case that covers the most missing pairs comes next.
    """
    names = list(axes)

    def pairs(case):
        return set(itertools.combinations(zip(names, case, strict=True), 2))

    cases = list(itertools.product(*axes.values()))
    covers = [pairs(case) for case in cases]
    missing, chosen = set().union(*covers), []
    while missing:
        best = max(range(len(cases)), key=lambda i: len(covers[i] & missing))
        missing -= covers[best]
        chosen.append(dict(zip(names, cases[best], strict=True)))
    return chosen


def name(case):
    """A readable test id, such as "mode=GRU-shape=odd"."""
    return "-".join(f"{key}={value}" for key, value in case.items())


def ragged(T, B):
    """Lengths of B rows in no order, with 0 and T among them where there is room."""
    return [(T, 0, max(T // 2, 1), 1, T - 1)[b % 5] for b in range(B)]
