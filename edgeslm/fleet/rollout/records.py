"""Rollouts in the store, read for a decision.

Functions take a session of the store and change nothing.

Left to others: beginning one (:mod:`edgeslm.fleet.rollout.beginning`), writing decisions down
(:mod:`edgeslm.fleet.rollout.writing`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TypeVarTuple, cast

from sqlalchemy import Select, Text, select
from sqlalchemy import cast as as_text
from sqlalchemy.orm import Session, aliased

from edgeslm.errors import RolloutError
from edgeslm.fleet.assignments import last_reported, reported_key
from edgeslm.fleet.rollout.state import (
    Circumstances,
    Member,
    RolloutState,
    Seen,
)
from edgeslm.fleet.store.models import DeviceRow, FactRow
from edgeslm.fleet.store.rollouts import MemberRow, PinRow, ReportRow, RolloutRow
from edgeslm.schema.assignment import UpdateWindow
from edgeslm.schema.rollout import FINISHED, UNSETTLED, Figure, MemberStatus, Phase, RolloutPlan

_Columns = TypeVarTuple("_Columns")

CONTROLLER = "controller"
"""Who decides, in the audit log."""
JUDGED = frozenset(("passed", "unproven", "failed"))
"""States in which what a device measured last belongs to its present try."""
_LIVE = ("asked", "silent", "failed", "passed", "unproven", "returning", "stuck")
_BATCH = 500


@dataclass(frozen=True)
class Loaded:
    """A rollout, read for a decision.

    Attributes:
        ids: number of each device by its name.
    """

    row: RolloutRow
    plan: RolloutPlan
    state: RolloutState
    ids: Mapping[str, int]


def subject(rollout_id: int) -> str:
    """How the audit log and events name a rollout."""
    return f"rollout-{rollout_id}"


_COLUMNS = (
    DeviceRow.name, MemberRow.device_id, MemberRow.board, MemberRow.wave, MemberRow.status, MemberRow.seq,
    MemberRow.deadline_at, MemberRow.base_sha256, MemberRow.cause, MemberRow.detail, MemberRow.force,
    MemberRow.spare,
)  # fmt: skip


def need_rollout(session: Session, rollout_id: int) -> RolloutRow:
    """The rollout of that number.

    Raises:
        RolloutError: there is none.
    """
    row = session.get(RolloutRow, rollout_id)
    if row is None:
        raise RolloutError(
            f"no rollout {rollout_id}", rollout=str(rollout_id), hint="See: edgeslm fleet rollouts"
        )
    return row


def load(session: Session, rollout_id: int) -> Loaded:
    """A rollout with its devices, in the order in which they are to be asked.

    Raises:
        RolloutError: there is none.
    """
    row = need_rollout(session, rollout_id)
    found = session.execute(
        select(*_COLUMNS)
        .join(DeviceRow, DeviceRow.id == MemberRow.device_id)
        .where(MemberRow.rollout_id == rollout_id)
        .order_by(MemberRow.wave, DeviceRow.name)
    ).all()
    figures = _figures(session, row) if row.phase not in FINISHED else {}
    members, ids = [], {}
    for name, device_id, board, wave, status, seq, deadline_at, base, cause, detail, force, spare in found:
        ids[name] = device_id
        trials = figures.get(device_id, ())
        measured = status in JUDGED and len(trials) > 0
        members.append(
            Member(
                name, board, wave, cast(MemberStatus, status), seq, deadline_at, base, cause, detail, force, spare,
                trials[-1] if measured else (), trials[:-1] if measured else trials,
            )
        )  # fmt: skip
    state = RolloutState(
        sha256=row.sha256,
        phase=cast(Phase, row.phase),
        wave=row.wave,
        members=tuple(members),
        reason=row.reason,
        approved=row.approved,
        accepted_wave=row.accepted_wave,
        accepted_failures=row.accepted_failures,
    )
    return Loaded(row, RolloutPlan.model_validate(row.plan), state, ids)


def _figures(session: Session, row: RolloutRow) -> dict[int, tuple[tuple[Figure, ...], ...]]:
    """What was measured in the present wave and those before, by number of the device; the newest trial last."""
    found = session.execute(
        select(MemberRow.device_id, as_text(MemberRow.figures, Text)).where(
            MemberRow.rollout_id == row.id, MemberRow.wave <= row.wave, MemberRow.figures.is_not(None)
        )
    )
    return {device_id: trials for device_id, kept in found if (trials := _trials(kept))}


@lru_cache(maxsize=10_000)
def _trials(kept: str) -> tuple[tuple[Figure, ...], ...]:
    """What the store keeps of the trials of a device: read on every turn, and written once."""
    found = json.loads(kept)
    return tuple(tuple(Figure(**one) for one in trial) for trial in found["trials"]) if found else ()


def pending(session: Session, now: datetime) -> list[int]:
    """Numbers of the rollouts about which there may be something to decide, the oldest first.

    Those that go on are; those that are over only where a device said something new, or should have.
    """
    going = set(session.scalars(select(RolloutRow.id).where(RolloutRow.phase.not_in(FINISHED))))
    overdue = select(MemberRow.rollout_id).where(
        MemberRow.status.in_(("asked", "returning")), MemberRow.deadline_at <= now
    )
    going |= set(session.scalars(overdue.distinct()))
    return sorted(going | set(session.scalars(_changed(select(MemberRow.rollout_id)).distinct())))


def _changed(query: Select[*_Columns]) -> Select[*_Columns]:
    return query.join(ReportRow, ReportRow.device_id == MemberRow.device_id).where(
        MemberRow.status.in_(_LIVE), ReportRow.stamp != MemberRow.seen_stamp
    )


def news(session: Session, loaded: Loaded) -> dict[str, tuple[Seen, int]]:
    """What devices of the rollout said since they were judged last, with the stamp of that."""
    query = _changed(select(DeviceRow, ReportRow.stamp).join(MemberRow, MemberRow.device_id == DeviceRow.id))
    changed = session.execute(query.where(MemberRow.rollout_id == loaded.row.id)).all()
    found = {}
    for first in range(0, len(changed), _BATCH):
        part = changed[first : first + _BATCH]
        keys = [reported_key(device.id) for device, _ in part]
        _kept = session.scalars(select(FactRow).where(FactRow.key.in_(keys))).all()
        for device, stamp in part:
            reported = last_reported(session, device)
            if reported is not None:
                found[device.name] = (Seen.of(reported, loaded.row.name), stamp)
    return found


def circumstances(session: Session, loaded: Loaded, quarantined: Mapping[str, str]) -> Circumstances:
    """What else matters for a rollout."""
    pinned = session.execute(
        select(DeviceRow.name, PinRow.reason)
        .select_from(PinRow)
        .join(DeviceRow, DeviceRow.id == PinRow.device_id)
    )
    mine, theirs = aliased(MemberRow), aliased(MemberRow)
    blocked = session.execute(
        select(DeviceRow.name, theirs.rollout_id)
        .select_from(DeviceRow)
        .join(mine, mine.device_id == DeviceRow.id)
        .join(theirs, theirs.device_id == mine.device_id)
        .join(RolloutRow, RolloutRow.id == theirs.rollout_id)
        .where(
            mine.rollout_id == loaded.row.id,
            mine.status == "waiting",
            theirs.rollout_id < loaded.row.id,
            theirs.status.in_(UNSETTLED),
            RolloutRow.phase.not_in(FINISHED),
        )
    )
    return Circumstances(
        pinned=dict(pinned.all()),
        quarantined=quarantined,
        blocked=dict(blocked.all()),
    )


def windows(session: Session, now: datetime) -> dict[str, UpdateWindow]:
    """When devices that were asked may begin, by name; those that may at once are left out."""
    found = session.execute(
        select(DeviceRow.name, RolloutRow.plan)
        .select_from(MemberRow)
        .join(DeviceRow, DeviceRow.id == MemberRow.device_id)
        .join(RolloutRow, RolloutRow.id == MemberRow.rollout_id)
        .where(MemberRow.status == "asked", RolloutRow.phase.not_in(FINISHED))
    )
    plans = ((name, RolloutPlan.model_validate(plan)) for name, plan in found if plan.get("window"))
    return {name: plan.window.next(now) for name, plan in plans if plan.window is not None}
