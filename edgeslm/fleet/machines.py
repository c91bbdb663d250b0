"""Finds out from what devices report that a key is on a machine that it was not made on. Pure.

A key never leaves its board by itself; a copy of its card takes it along. What gives copies away:

- A boot's random id never comes back once another was seen. If it does, two machines run at once, and the broker
  gives their one session to each in turn: **cloned**.
- A hardware serial that comes back after another was seen: two boards take turns, **cloned** as well.
- A new hardware serial: the card was **moved** to another board, or this is the first sign of a copy.
- A count of boots that does not go on: an old image of the card was **restored**, or this is a copy of it.

Where a board tells neither serial nor boot id, nothing can be found out, and nothing is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeslm.schema.enrol import Machine
from edgeslm.schema.fleet import Finding

_WORSE: dict[Finding | None, int] = {None: 0, "restored": 1, "moved": 2, "cloned": 3}


@dataclass(frozen=True)
class Judgement:
    """What is odd, and why."""

    finding: Finding
    text: str


def is_same_boot(one: Machine, other: Machine) -> bool:
    """Whether two reports are of one boot of one machine."""
    return (one.serial, one.boot_id) == (other.serial, other.boot_id)


def judge(known: Sequence[Machine], new: Machine) -> Judgement | None:
    """What `new` says about who holds a key; ``None`` if nothing is odd.

    Args:
        known: the boots that used the key before, in the order of each one's latest report.
        new: the one that reports now.
    """
    if not known or is_same_boot(known[-1], new):
        return None
    last, before = known[-1], known[:-1]
    if new.boot_id is not None and any(is_same_boot(new, other) for other in before):
        return Judgement(
            "cloned",
            f"two machines use this key at once: {_called(new)} reports again after {_called(last)} had",
        )
    if new.serial is not None and last.serial is not None and new.serial != last.serial:
        if any(other.serial == new.serial for other in before):
            return Judgement("cloned", f"{_called(new)} and {_called(last)} take turns with this key")
        return Judgement("moved", f"the key was on {_called(last)} and is on {_called(new)} now")
    if 0 < new.boots <= last.boots:
        return Judgement(
            "restored",
            f"{_called(new)} counts {new.boots} boots, and had counted {last.boots}: "
            "an older copy of its card runs",
        )
    return None


def worse(old: Finding | None, new: Finding) -> bool:
    """Whether `new` is worth telling beside `old`, which nobody has accepted yet."""
    return _WORSE[new] > _WORSE[old]


def _called(machine: Machine) -> str:
    if machine.serial is not None:
        return f"the board with serial {machine.serial}"
    return f"the machine of boot {machine.boot_id}"
