"""Every order in which 2 or 3 blocks can go through the exchanges, words through L2 and pushes within a cluster: no deadlock,
no lost and no overwritten datum; and every part of the protocols is needed."""

import re

import pytest

from shim import protocol, pushes
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


# ---- pushes within a cluster ----


@pytest.mark.parametrize("blocks, steps", [(1, 4), (2, 4), (2, 7), (3, 4)])
def test_every_order_of_pushes_is_right(blocks, steps):
    states, wrong = pushes.search(blocks, steps)
    assert wrong is None
    assert states > steps * blocks


MUTANTS_OF_PUSHES = {
    "a dropped wait": (pushes.Rules(waits=False), "read None|read .* of block"),
    "one slot": (pushes.Rules(slots=1), "nobody can go on|read"),
    "a swapped slot": (pushes.Rules(swapped=True), "nobody can go on|read"),
    "too few bytes": (pushes.Rules(missing=1), "read"),
    "too many bytes": (pushes.Rules(missing=-1), "nobody can go on"),
    "counted before it is stored": (pushes.Rules(counted_first=True), "read None"),
    "not met before the first step": (pushes.Rules(met_before=False), "a push into block ., which is not there"),
    "a block that nobody waits for": (pushes.Rules(idle=True), "read|nobody can go on"),
    "not met at the end": (pushes.Rules(impatient=True, met_behind=False), "a push into block ., which is not there"),
    "pushes in flight at the end": (pushes.Rules(impatient=True, rests="none"), "a push into block ., which is not there"),
    "only who gives up rests": (pushes.Rules(impatient=True, rests="lost"), "a push into block ., which is not there"),
}


@pytest.mark.parametrize("name", MUTANTS_OF_PUSHES)
@pytest.mark.parametrize("blocks", [2, 3])
def test_every_mutant_of_pushes_is_caught(name, blocks):
    rules, says = MUTANTS_OF_PUSHES[name]
    _, wrong = pushes.search(blocks, 4 if blocks == 2 else 3, rules)
    assert wrong is not None
    assert re.search(says, wrong), wrong


@pytest.mark.parametrize("blocks, steps", [(2, 4), (3, 1)])
def test_whoever_gives_up_hurts_nobody(blocks, steps):
    """Nobody waits without end, and no push comes too late."""
    _, wrong = pushes.search(blocks, steps, pushes.Rules(impatient=True))
    assert wrong is None


def test_the_meeting_at_the_end_is_for_those_who_give_up():
    _, wrong = pushes.search(2, 7, pushes.Rules(met_behind=False))
    assert wrong is None
