"""What a rollout would do, before anything is sent. Pure.

What always holds: a release that no device can run is refused, with the reason for each type of board; a device that
cannot run it is left out by name and reason, never silently; the plan names the bytes that will move.

Left to others: what devices are (:func:`edgeslm.fleet.assignments.view_device`), writing the rollout down
(:mod:`edgeslm.fleet.rollout.beginning`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from edgeslm.errors import DowngradeError, RolloutError, SecurityFloorError, UpdateError
from edgeslm.fleet.assignments import DeviceView, Step, plan_step
from edgeslm.fleet.rollout.beginning import NewMember
from edgeslm.fleet.rollout.state import UNKNOWN_BOARD
from edgeslm.fleet.rollout.waves import Candidate, divide
from edgeslm.schema.release import ReleaseTarget
from edgeslm.schema.rollout import RolloutPlan


@dataclass(frozen=True)
class Facts:
    """What is known of a device when a rollout is planned.

    Attributes:
        board: its type, also where that is none of those known here.
        has_meter: it measures its energy.
        is_online: it is connected, as far as is known.
    """

    view: DeviceView
    board: str | None = None
    has_meter: bool = False
    is_online: bool = True


@dataclass(frozen=True)
class Planned:
    """One device that takes part.

    Attributes:
        wave: counted from 0.
    """

    device: str
    board: str
    wave: int
    step: Step


@dataclass(frozen=True)
class LeftOut:
    """One device that does not take part."""

    device: str
    board: str
    reason: str


@dataclass(frozen=True)
class Preflight:
    """What a rollout would do.

    Attributes:
        waves: devices by wave.
        left_out: devices that do not take part, by name.
        returnless: devices that could not be taken back to what they run, with why.
    """

    target: ReleaseTarget
    plan: RolloutPlan
    waves: tuple[tuple[Planned, ...], ...]
    left_out: tuple[LeftOut, ...]
    returnless: Mapping[str, str]

    @property
    def devices(self) -> tuple[Planned, ...]:
        """All that take part."""
        return tuple(one for wave in self.waves for one in wave)

    @property
    def moves_bytes(self) -> int:
        """Bytes of files that move if nothing is lost on the way."""
        return sum(one.step.moves_bytes for one in self.devices)

    def members(self) -> list[NewMember]:
        """As a rollout is begun with."""
        return [
            NewMember(
                one.device,
                one.board,
                one.wave,
                one.step.running.version if one.step.running is not None else None,
                one.step.running.sha256 if one.step.running is not None else None,
            )
            for one in self.devices
        ]


def preflight(
    target: ReleaseTarget,
    plan: RolloutPlan,
    facts: Sequence[Facts],
    *,
    published: Collection[str],
    pinned: Mapping[str, str],
    quarantined: Collection[str],
    groups: Mapping[str, frozenset[str]],
    claimed: Collection[str] = (),
) -> Preflight:
    """What bringing `target` to devices would do.

    Args:
        target: a published release.
        plan: how it goes through the devices.
        facts: of each device that is meant.
        published: sha256 of all published releases.
        pinned: why rollouts leave devices alone, by device.
        quarantined: devices that are not believed.
        groups: members of the groups that waves name.
        claimed: devices to which a rollout that goes on brings another release of this name: they take part although
            they run this one still, since they would not for long.

    Raises:
        RolloutError: no device can take it; the message says why, for each type of board.
    """
    steps: dict[str, Step] = {}
    boards = {one.view.name: one.board or UNKNOWN_BOARD for one in facts}
    left_out = []
    candidates = []
    for one in facts:
        name = one.view.name
        reason = f"pinned: {pinned[name]}" if name in pinned else None
        if reason is None:
            try:
                step = plan_step(target, one.view, allow_downgrade=plan.allow_downgrade, force=plan.force)
                runs_it = step.way == "nothing"
                reason = "it runs it already" if runs_it and name not in claimed else None
                steps[name] = step
            except (UpdateError, SecurityFloorError, DowngradeError) as error:
                reason = error.message
        if reason is not None:
            left_out.append(LeftOut(name, boards[name], reason))
            continue
        running = steps[name].running
        candidates.append(
            Candidate(
                name,
                boards[name],
                one.view.runtime,
                running.version if running is not None else None,
                one.has_meter,
                # What runs the release proves nothing about it.
                is_late=not one.is_online or name in quarantined or steps[name].way == "nothing",
            )
        )
    if not candidates:
        raise _refusal(target, left_out)
    waves = divide(plan, target.info.sha256, candidates, groups)
    placed = {one.device for wave in waves for one in wave}
    left_out += [
        LeftOut(one.device, one.board, "no wave takes it") for one in candidates if one.device not in placed
    ]
    if not placed:
        raise RolloutError("no wave takes a device", hint="See the waves; the last one is usually 100%")
    return Preflight(
        target=target,
        plan=plan,
        waves=tuple(
            tuple(Planned(one.device, one.board, number, steps[one.device]) for one in wave)
            for number, wave in enumerate(waves)
        ),
        left_out=tuple(sorted(left_out, key=lambda one: one.device)),
        returnless={
            name: why for name in sorted(placed) if (why := _no_way_back(steps[name], published)) is not None
        },
    )


def _no_way_back(step: Step, published: Collection[str]) -> str | None:
    if step.running is None:
        return "nothing of that name runs there"
    if step.running.sha256 not in published:
        return f"it runs {step.running.version}, which is no published release"
    return None


def _refusal(target: ReleaseTarget, left_out: Sequence[LeftOut]) -> RolloutError:
    label = f"{target.info.name}@{target.info.version}"
    if not left_out:
        return RolloutError(f"no device is meant that could take {label}")
    by_board: dict[str, Counter[str]] = {}
    for one in left_out:
        by_board.setdefault(one.board, Counter())[_without_name(one)] += 1
    reasons = [
        f"{board}: " + "; ".join(f"{reason} ({count})" for reason, count in found.most_common(3))
        for board, found in sorted(by_board.items())
    ]
    return RolloutError(f"none of {len(left_out)} devices can take {label}. {'. '.join(reasons)}")


def _without_name(one: LeftOut) -> str:
    return one.reason.removeprefix(f"{one.device} ").removeprefix("cannot run it: ")
