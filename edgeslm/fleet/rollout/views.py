"""Rollouts as they are shown: all of them in short, one with its devices and what their gates say together.

Functions take a session of the store and change nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import cast

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from edgeslm.fleet.rollout.evidence import pool
from edgeslm.fleet.rollout.records import circumstances, load, need_rollout
from edgeslm.fleet.rollout.state import Member
from edgeslm.fleet.store.models import DeviceRow
from edgeslm.fleet.store.rollouts import MemberRow, RolloutRow
from edgeslm.schema.rollout import (
    FAILURES,
    FINISHED,
    UNSETTLED,
    Figure,
    MemberStatus,
    MemberView,
    Phase,
    PooledView,
    RolloutPlan,
    RolloutView,
    WaveView,
)

_NEXT: dict[str, str] = {
    "running": "",
    "waiting": "edgeslm fleet rollout approve {id}",
    "paused": "edgeslm fleet rollout resume {id}, retry {id} or abort {id}",
}


def list_rollouts(session: Session, *, limit: int = 50, only_going: bool = False) -> list[RolloutView]:
    """Rollouts without their devices, newest first."""
    query = select(RolloutRow).order_by(RolloutRow.id.desc()).limit(limit)
    if only_going:
        query = query.where(RolloutRow.phase.not_in(FINISHED))
    return [summarize(session, row.id) for row in session.scalars(query).all()]


def summarize(session: Session, rollout_id: int) -> RolloutView:
    """One rollout without its devices: cheap, however many they are.

    Raises:
        RolloutError: there is none.
    """
    row = need_rollout(session, rollout_id)
    counts: dict[int, Counter[MemberStatus]] = {}
    for wave, status, count in session.execute(
        select(MemberRow.wave, MemberRow.status, func.count())
        .where(MemberRow.rollout_id == row.id)
        .group_by(MemberRow.wave, MemberRow.status)
    ):
        counts.setdefault(wave, Counter())[cast(MemberStatus, status)] = count
    return _view(row, counts)


def show(session: Session, rollout_id: int, quarantined: Mapping[str, str]) -> RolloutView:
    """All about one rollout.

    Raises:
        RolloutError: there is none.
    """
    loaded = load(session, rollout_id)
    around = circumstances(session, loaded, quarantined)
    trials = _trials(session, rollout_id)
    bases = dict(
        session.execute(
            select(DeviceRow.name, MemberRow.base_version)
            .select_from(MemberRow)
            .join(DeviceRow, DeviceRow.id == MemberRow.device_id)
            .where(MemberRow.rollout_id == rollout_id)
        ).all()
    )

    def waits_for(member: Member) -> str | None:
        if member.status != "waiting" or loaded.state.phase in FINISHED:
            return None
        if member.device in around.blocked:
            return f"rollout {around.blocked[member.device]}"
        return f"wave {member.wave + 1}" if member.wave > loaded.state.wave else None

    def detail(member: Member) -> str:
        why = quarantined.get(member.device)
        if why is None or member.status not in {"waiting", "asked"}:
            return member.detail
        return "; ".join(part for part in (member.detail, f"in quarantine: {why}") if part)

    members = tuple(
        MemberView(
            device=member.device,
            board=member.board,
            wave=member.wave + 1,
            status=member.status,
            cause=member.cause,
            detail=detail(member),
            waits_for=waits_for(member),
            base=bases.get(member.device),
            seq=member.seq,
            spare=member.spare,
            quarantined=member.device in quarantined,
            deadline_at=member.deadline_at if member.status in {"asked", "returning"} else None,
        )
        for member in loaded.state.members
    )
    believed = {one.device: one.board for one in members if not one.quarantined}
    summary = summarize(session, rollout_id)
    return summary.model_copy(update={"members": members, "evidence": _evidence(trials, believed)})


def _view(row: RolloutRow, counts: Mapping[int, Counter[MemberStatus]]) -> RolloutView:
    plan = RolloutPlan.model_validate(row.plan)
    total: Counter[MemberStatus] = Counter()
    for one in counts.values():
        total.update(one)
    return RolloutView(
        id=row.id,
        release=f"{row.name}@{row.version}",
        sha256=row.sha256,
        phase=cast(Phase, row.phase),
        reason=row.reason,
        next=_NEXT.get(row.phase, "").format(id=row.id),
        wave=row.wave + 1,
        waves=tuple(
            WaveView(
                number=number + 1,
                text=str(wave),
                devices=sum(counts.get(number, Counter()).values()),
                counts=dict(sorted(counts.get(number, Counter()).items())),
            )
            for number, wave in enumerate(plan.waves)
        ),
        devices=sum(total.values()),
        passed=total["passed"],
        failed=sum(total[status] for status in FAILURES),
        plan=plan,
        created_at=row.created_at,
        created_by=row.created_by,
        changed_at=row.changed_at,
        finished_at=row.finished_at,
    )


def _trials(session: Session, rollout_id: int) -> dict[str, list[tuple[Figure, ...]]]:
    found = session.execute(
        select(DeviceRow.name, MemberRow.figures)
        .select_from(MemberRow)
        .join(DeviceRow, DeviceRow.id == MemberRow.device_id)
        .where(MemberRow.rollout_id == rollout_id, MemberRow.figures.is_not(None))
        .order_by(DeviceRow.name)
    )
    return {
        name: [tuple(Figure(**one) for one in trial) for trial in kept["trials"]]
        for name, kept in found
        if kept
    }


def _evidence(
    trials: Mapping[str, list[tuple[Figure, ...]]], boards: Mapping[str, str]
) -> tuple[PooledView, ...]:
    by_board: dict[str | None, list[tuple[Figure, ...]]] = {None: []}
    for device, board in boards.items():
        for trial in trials.get(device, ()):
            by_board[None].append(trial)
            by_board.setdefault(board, []).append(trial)
    if len(by_board) == 2:
        del by_board[None]  # there is one type of board: all together is the same
    return tuple(
        PooledView(
            board=board,
            criterion=one.criterion,
            devices=one.devices,
            change=round(one.change, 4),
            low=round(one.low, 4),
            high=round(one.high, 4),
            limit=one.limit,
            verdict=one.verdict,
        )
        for board, group in sorted(by_board.items(), key=lambda item: item[0] or "")
        for one in pool(group)
    )


def held_up_by(session: Session, rollout_id: int) -> tuple[int, ...]:
    """Older rollouts that have to be done with devices of the present wave before these are asked."""
    mine, theirs = aliased(MemberRow), aliased(MemberRow)
    row = need_rollout(session, rollout_id)
    found = session.scalars(
        select(theirs.rollout_id)
        .join(mine, mine.device_id == theirs.device_id)
        .join(RolloutRow, RolloutRow.id == theirs.rollout_id)
        .where(
            mine.rollout_id == rollout_id,
            mine.status == "waiting",
            mine.wave <= row.wave,
            theirs.rollout_id < rollout_id,
            theirs.status.in_(UNSETTLED),
            RolloutRow.phase.not_in(FINISHED),
        )
        .distinct()
        .order_by(theirs.rollout_id)
    )
    return tuple(found)


def member_lines(session: Session, rollout_id: int) -> dict[str, tuple[MemberStatus, str]]:
    """State of each device and why it is in it, by name: what changes while a rollout is followed."""
    found = session.execute(
        select(DeviceRow.name, MemberRow.status, MemberRow.cause, MemberRow.detail)
        .select_from(MemberRow)
        .join(DeviceRow, DeviceRow.id == MemberRow.device_id)
        .where(MemberRow.rollout_id == rollout_id)
        .order_by(MemberRow.wave, DeviceRow.name)
    )
    return {
        name: (cast(MemberStatus, status), ", ".join(part for part in (cause, detail) if part))
        for name, status, cause, detail in found
    }
