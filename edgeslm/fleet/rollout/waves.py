"""Divides devices among waves. Pure.

What always holds: the same devices are divided the same way; the first wave holds `k` devices of each type of board as
far as there are that many; within a wave devices differ in type of board, runtime and version that runs as far as they
can, so that what goes wrong anywhere goes wrong early; which of several alike comes first differs from release to
release, so that it is not always the same that bear the risk. Devices that are in quarantine or off come last.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeslm.schema.rollout import RolloutPlan


@dataclass(frozen=True)
class Candidate:
    """A device that can take the release.

    Attributes:
        board: its type of board.
        runtime: what it computes with, where that is known.
        base: version that runs.
        has_meter: it measures its energy; such devices say most and come first.
        is_late: it is off, or what it says is not believed.
    """

    device: str
    board: str
    runtime: str | None = None
    base: str | None = None
    has_meter: bool = False
    is_late: bool = False


def divide(
    plan: RolloutPlan, sha256: str, candidates: Sequence[Candidate], groups: Mapping[str, frozenset[str]]
) -> list[tuple[Candidate, ...]]:
    """The waves of `plan`; devices that no wave takes are in none of them.

    Args:
        sha256: of the release.
        candidates: all that can take it.
        groups: members of the groups that waves name.
    """
    ordered = _mixed(sha256, candidates)
    taken: set[str] = set()
    waves: list[tuple[Candidate, ...]] = []
    for wave in plan.waves:
        left = [one for one in ordered if one.device not in taken]
        if wave.kind == "group":
            members = groups.get(wave.group or "", frozenset())
            chosen = [one for one in left if one.device in members]
        elif wave.kind == "per_board":
            chosen = _per_board(left, wave.amount)
        elif wave.kind == "count":
            chosen = left[: wave.amount]
        else:
            # Rounded up: ten percent of seven devices are one.
            goal = -(-len(ordered) * wave.amount // 100)
            chosen = left[: max(0, goal - len(taken))]
        if not waves and wave.kind != "group":
            chosen = _with_each_board(left, chosen, plan.k)
        taken.update(one.device for one in chosen)
        waves.append(tuple(chosen))
    return waves


def _per_board(left: Sequence[Candidate], amount: int) -> list[Candidate]:
    by_board: dict[str, list[Candidate]] = defaultdict(list)
    for one in left:
        by_board[one.board].append(one)
    chosen = {one.device for group in by_board.values() for one in group[:amount]}
    return [one for one in left if one.device in chosen]


def _with_each_board(left: Sequence[Candidate], chosen: Sequence[Candidate], k: int) -> list[Candidate]:
    names = {one.device for one in (*chosen, *_per_board(left, k))}
    return [one for one in left if one.device in names]


def _mixed(sha256: str, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates in an order in which each beginning is as varied as it can be."""

    def chance(one: Candidate) -> str:
        return hashlib.sha256(f"{sha256}/{one.device}".encode()).hexdigest()

    kinds: dict[tuple[str, str, str], list[Candidate]] = defaultdict(list)
    for one in sorted(candidates, key=lambda one: (not one.has_meter, chance(one))):
        if not one.is_late:
            kinds[one.board, one.runtime or "", one.base or ""].append(one)
    # Boards take turns, and within a board its kinds; rare kinds come as early as common ones.
    by_board: dict[str, list[list[Candidate]]] = defaultdict(list)
    for (board, _, _), group in sorted(kinds.items(), key=lambda item: (len(item[1]), item[0])):
        by_board[board].append(group)
    queues = [_in_turn(groups) for _, groups in sorted(by_board.items())]
    late = sorted((one for one in candidates if one.is_late), key=chance)
    return [*_in_turn(queues), *late]


def _in_turn(queues: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    longest = max(map(len, queues), default=0)
    return [queue[place] for place in range(longest) for queue in queues if place < len(queue)]
