"""Every order in which 2 or 3 blocks can go through the exchange: no deadlock, no lost and no overwritten datum; and every part
of the protocol is needed."""

import re

import pytest

from shim import protocol
from shim.protocol import Rules


@pytest.mark.parametrize("blocks, steps", [(1, 4), (2, 4), (2, 7), (3, 4)])
def test_every_order_is_right(blocks, steps):
    states, wrong = protocol.search(blocks, steps)
    assert wrong is None
    assert states > steps * blocks


MUTANTS = {
    "a dropped wait": (Rules(reads_all=False), "went on without"),
    "no look at the tag": (Rules(waits=False), "took None|took .* of block"),
    "one slot": (Rules(slots=1), "nobody can go on|took"),
    "a swapped slot": (Rules(swapped=True), "nobody can go on|took"),
    "tag and datum apart, no fence": (Rules(whole=False), "took"),
    "words of an earlier call": (Rules(clean=False), "took old"),
    "a block that never comes": (Rules(absent=1), "nobody can go on"),
}


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.parametrize("blocks", [2, 3])
def test_every_mutant_is_caught(name, blocks):
    rules, says = MUTANTS[name]
    _, wrong = protocol.search(blocks, 4, rules)
    assert wrong is not None
    assert re.search(says, wrong), wrong


def test_two_slots_are_needed_because_of_blocks_that_are_ahead():
    """With one slot a block publishes its next word over one that another has not read."""
    _, wrong = protocol.search(2, 2, Rules(slots=1))
    assert "nobody can go on" in wrong
