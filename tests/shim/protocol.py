"""The exchange of csrc/cuda/exchange.h as a small machine, and a search through every order in which its parts can move.

A block, for steps 1, 2, ...: publishes its word of the step in slot step % 2; reads the word of every block, in any order,
again and again until it carries the step's tag; and only then goes on to the next step. A word reaches memory as one piece,
some time after it was written: in between it is in flight, and words of one block to different places may overtake each other.
So nothing is assumed that a relaxed access of 8 bytes does not give.

What is looked for: a state from which nobody can go on though work is left (deadlock, also of a reader whose word was
overwritten before it was read), and a word taken that is not the one its reader needs (a lost or torn datum).
Not here: barriers within a block, numbers, time; those are for the kernels in the shim (test_backend.py, test_race.py).
"""

from dataclasses import dataclass, replace

EMPTY = (0, None)  # tag, datum: memory when a call begins


@dataclass(frozen=True)
class Rules:
    """The protocol, and what a mutant does instead."""

    slots: int = 2  # 1: no double buffer
    waits: bool = True  # False: a word is taken whatever its tag
    whole: bool = True  # False: tag and datum are two writes, which may overtake each other
    clean: bool = True  # False: memory still holds what an earlier call of two steps left there
    reads_all: bool = True  # False: the wait for the last block is dropped
    swapped: bool = False  # True: words are written to one slot and read from the other
    absent: int = -1  # a block that never comes


@dataclass(frozen=True)
class State:
    """Block b is at step[b] and has read the words of the blocks in read[b]; `published` says whether its own is out."""

    step: tuple
    published: tuple
    read: tuple
    memory: tuple  # [slot][block]: (tag, datum)
    flight: tuple  # writes on their way: (slot, block, field, value), field None for a whole word


class Wrong(Exception):
    """A datum that is not the one its reader needs."""


def datum(block, step):
    return f"{block}.{step}"


def begin(blocks, rules):
    memory = [[EMPTY] * blocks for _ in range(rules.slots)]
    if not rules.clean:
        for s in (1, 2):
            memory[s % rules.slots] = [(s, f"old {b}") for b in range(blocks)]
    return State((1,) * blocks, (False,) * blocks, (frozenset(),) * blocks, tuple(map(tuple, memory)), ())


def put(items, i, value):
    return items[:i] + (value,) + items[i + 1 :]


def moves(s, blocks, steps, rules):
    """Every state that one move leads to; raises Wrong."""
    for i, (slot, b, field, value) in enumerate(s.flight):
        # Two writes of a block to the same place keep their order.
        if any(other[:3] == (slot, b, field) for other in s.flight[:i]):
            continue
        word = s.memory[slot][b]
        word = value if field is None else put(word, field, value)
        yield replace(s, memory=put(s.memory, slot, put(s.memory[slot], b, word)), flight=s.flight[:i] + s.flight[i + 1 :])
    for b in range(blocks):
        step = s.step[b]
        if step > steps or b == rules.absent:
            continue
        slot = step % rules.slots
        if not s.published[b]:
            to = (step + rules.swapped * (b == 0)) % rules.slots
            word = (step, datum(b, step))
            writes = [(to, b, None, word)] if rules.whole else [(to, b, 0, word[0]), (to, b, 1, word[1])]
            yield replace(s, published=put(s.published, b, True), flight=s.flight + tuple(writes))
            continue
        needed = range(blocks) if rules.reads_all else range(blocks - 1)
        for other in needed:
            tag, found = s.memory[slot][other]
            if other in s.read[b] or (rules.waits and tag != step):
                continue  # (looking in vain changes nothing)
            if found != datum(other, step):
                raise Wrong(f"block {b} in step {step} took {found} of block {other}")
            yield replace(s, read=put(s.read, b, s.read[b] | {other}))
        if len(s.read[b]) == len(needed):
            if not rules.reads_all and s.memory[slot][blocks - 1] != (step, datum(blocks - 1, step)):
                raise Wrong(f"block {b} in step {step} went on without block {blocks - 1}")
            yield replace(
                s, step=put(s.step, b, step + 1), published=put(s.published, b, False), read=put(s.read, b, frozenset())
            )


def explore(first, moves, is_left):
    """(number of states that can be reached, None), or (states so far, what is wrong)."""
    seen, left = {first}, [first]
    while left:
        state = left.pop()
        try:
            following = list(moves(state))
        except Wrong as wrong:
            return len(seen), str(wrong)
        if not following and is_left(state):
            return len(seen), f"nobody can go on: blocks at steps {state.step}"
        for n in following:
            if n not in seen:
                seen.add(n)
                left.append(n)
    return len(seen), None


def search(blocks, steps, rules=Rules()):  # noqa: B008  frozen
    """(number of states, None), or (states so far, what is wrong)."""
    return explore(
        begin(blocks, rules), lambda s: moves(s, blocks, steps, rules), lambda s: any(step <= steps for step in s.step)
    )
