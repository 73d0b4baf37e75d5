"""The exchange of csrc/cuda/push.h as a small machine, and a search through every order in which its parts can move.

A block, for steps 1, 2, ...: pushes its value into slot step % 2 of every block, its own too; announces to the barrier of its
own slot how many pushes the step brings; waits until the phase of that barrier ends; and then reads the values of all blocks,
which takes a while, before it goes on to the next step. A push is in flight for a while; then its value is stored, and counted.
Pushes may overtake each other. A phase ends when the step has been announced and as many pushes have been counted.

What is looked for: a state from which nobody can go on though work is left (deadlock), a value read that is not the one its
reader needs (lost, too late, or overwritten before it was read), and a push into a block that is not there.
Not here: barriers within a block, numbers, time; those are for the kernels in the shim (test_backend.py, test_race.py).
"""

from dataclasses import dataclass, replace

from shim.protocol import Wrong, datum, explore, put


@dataclass(frozen=True)
class Rules:
    """The protocol, and what a mutant does instead."""

    slots: int = 2  # 1: no double buffer
    waits: bool = True  # False: values are read without a look at the barrier
    missing: int = 0  # so many pushes too few are announced
    swapped: bool = False  # True: block 0 pushes into the other slot
    counted_first: bool = False  # True: a push is counted before its value is stored
    met_before: bool = True  # False: no barrier of the cluster before the first step
    met_behind: bool = True  # False: none behind the last
    idle: bool = False  # True: the last block has nothing to push, and yet takes part
    impatient: bool = False  # True: a block may give up whenever it waits
    rests: str = "all"  # who waits for pushes in flight before meeting the others behind the last step: whoever has given up
    # or sees that one has; "lost": only who has given up; "none"


@dataclass(frozen=True)
class State:
    """Block b is at step[b] (0: not yet begun, steps + 1: done, steps + 2: waits for the others, steps + 3: ended) and has done
    so much of it: 0 nothing, 1 pushed, 2 announced, 3 begun to read. A barrier is (announced, pushes missing, phase)."""

    step: tuple
    done: tuple
    memory: tuple  # [block][slot][from]
    barriers: tuple  # [block][slot]
    flight: tuple  # (block, slot, from, value); value None: only to be counted
    lost: tuple  # whether a block has given up


ZERO = (False, 0, 0)


def begin(blocks, rules):
    return State(
        (0,) * blocks,
        (0,) * blocks,
        (((None,) * blocks,) * rules.slots,) * blocks,
        ((ZERO,) * rules.slots,) * blocks,
        (),
        (False,) * blocks,
    )


def change(barrier, announced, pushes):
    announced, missing, phase = barrier[0] or announced, barrier[1] + pushes, barrier[2]
    return (False, 0, 1 - phase) if announced and missing == 0 else (announced, missing, phase)


def moves(s, blocks, steps, rules):
    """Every state that one move leads to; raises Wrong."""
    senders = blocks - rules.idle

    def barrier(state, b, slot, announced, pushes):
        changed = put(state.barriers[b], slot, change(state.barriers[b][slot], announced, pushes))
        return replace(state, barriers=put(state.barriers, b, changed))

    for i, (b, slot, sender, value) in enumerate(s.flight):
        if not 0 < s.step[b] < steps + 3:
            raise Wrong(f"a push into block {b}, which is not there")
        after = replace(s, flight=s.flight[:i] + s.flight[i + 1 :])
        if value is None:
            yield barrier(after, b, slot, False, -1)
            continue
        after = replace(after, memory=put(s.memory, b, put(s.memory[b], slot, put(s.memory[b][slot], sender, value))))
        yield after if rules.counted_first else barrier(after, b, slot, False, -1)
    for b in range(blocks):
        step, slot = s.step[b], s.step[b] % rules.slots
        if step == 0:
            # Begun: shared memory is there. All or, for a mutant, this one alone.
            if not rules.met_before:
                yield replace(s, step=put(s.step, b, 1))
            elif b == 0:
                yield replace(s, step=(1,) * blocks)
            continue
        if step == steps + 1:
            rests = {"all": any(s.lost), "lost": s.lost[b], "none": False}[rules.rests]
            if not (rests and s.flight):
                yield replace(s, step=put(s.step, b, steps + 2))
            continue
        if step > steps + 1:
            if step == steps + 2 and (min(s.step) >= steps + 2 or not rules.met_behind):
                yield replace(s, step=put(s.step, b, steps + 3))
            continue
        further = replace(s, done=put(s.done, b, s.done[b] + 1))
        if s.done[b] == 0:
            to = (slot + (rules.swapped and b == 0)) % rules.slots
            values = [(q, to, b, datum(b, step)) for q in range(blocks)] if b < senders else []
            if rules.counted_first:
                values += [(*push[:3], None) for push in values]
            yield replace(further, flight=tuple(sorted((*s.flight, *values), key=str)))
            continue
        if s.done[b] == 1:
            yield barrier(further, b, slot, True, senders - rules.missing)
            continue
        if s.done[b] == 2 and rules.impatient:
            yield replace(s, step=put(s.step, b, steps + 1), lost=put(s.lost, b, True))
        if s.done[b] == 3 or not rules.waits or s.barriers[b][slot][2] != (step - 1) // rules.slots % 2:
            for sender, found in enumerate(s.memory[b][slot][:senders]):
                if found != datum(sender, step):
                    raise Wrong(f"block {b} in step {step} read {found} of block {sender}")
            yield further if s.done[b] == 2 else replace(s, step=put(s.step, b, step + 1), done=put(s.done, b, 0))


def search(blocks, steps, rules=Rules()):  # noqa: B008  frozen
    """(number of states, None), or (states so far, what is wrong)."""
    return explore(
        begin(blocks, rules), lambda s: moves(s, blocks, steps, rules), lambda s: any(step < steps + 3 for step in s.step)
    )
