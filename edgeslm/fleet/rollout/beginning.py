"""Rollouts begun: written down for whoever carries them out.

What always holds: a device gives its place in an older rollout of the same name up in the transaction that begins the
newer; the same release is not brought to a device by two rollouts.

Functions take a session of the store and commit nothing themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeslm.errors import RolloutError
from edgeslm.fleet.registry import audit, need_device
from edgeslm.fleet.rollout.records import CONTROLLER, subject
from edgeslm.fleet.rollout.state import (
    Enter,
)
from edgeslm.fleet.rollout.writing import enter, update_members
from edgeslm.fleet.store.models import DeviceRow
from edgeslm.fleet.store.rollouts import MemberRow, RolloutRow
from edgeslm.schema.release import ReleaseInfo
from edgeslm.schema.rollout import FINISHED, UNSETTLED, RolloutPlan


@dataclass(frozen=True)
class NewMember:
    """A device that a rollout begins with.

    Attributes:
        wave: counted from 0.
        base_version: what it runs now, as far as that is known.
    """

    device: str
    board: str
    wave: int
    base_version: str | None = None
    base_sha256: str | None = None


def begin(
    session: Session,
    plan: RolloutPlan,
    release: ReleaseInfo,
    members: Sequence[NewMember],
    *,
    actor: str,
    now: datetime,
) -> int:
    """Write a rollout down; whoever holds the lease carries it out.

    Returns:
        Its number.

    Raises:
        RolloutError: there are no devices, or some of them take the same release by another rollout already.
        UnknownDeviceError: there is no such device.
    """
    if not members:
        raise RolloutError("no device is left that could take the release")
    ids = dict(session.execute(select(DeviceRow.name, DeviceRow.id)).all())
    missing = next((member.device for member in members if member.device not in ids), None)
    if missing is not None:
        need_device(session, missing)
    row = RolloutRow(
        name=release.name,
        version=release.version,
        sha256=release.sha256,
        plan=plan.model_dump(mode="json"),
        phase="running",
        created_at=now,
        created_by=actor,
        changed_at=now,
    )
    older = session.scalars(
        select(RolloutRow).where(RolloutRow.name == release.name, RolloutRow.phase.not_in(FINISHED))
    ).all()
    for other in older:
        if other.sha256 == release.sha256 and _shared(session, other, ids, members):
            raise RolloutError(
                f"rollout {other.id} brings {release.name}@{release.version} to some of these devices already",
                rollout=str(other.id), hint=f"See: edgeslm fleet rollout show {other.id}",
            )  # fmt: skip
    session.add(row)
    session.flush()
    session.execute(
        MemberRow.__table__.insert(),  # type: ignore[attr-defined]
        [
            {
                "rollout_id": row.id,
                "device_id": ids[member.device],
                "board": member.board,
                "wave": member.wave,
                "spare": False,
                "force": False,
                "status": "waiting",
                "detail": "",
                "seq": 0,
                "base_version": member.base_version,
                "base_sha256": member.base_sha256,
                "seen_stamp": 0,
            }
            for member in members
        ],
    )
    for other in older:
        _supersede(session, other, row.id, _shared(session, other, ids, members), now)
    audit(
        session, actor, "rollout-begin", subject(row.id), now,
        release=f"{release.name}@{release.version}", devices=len(members),
        waves=", ".join(str(wave) for wave in plan.waves), note=plan.note,
    )  # fmt: skip
    return row.id


def claimed_otherwise(session: Session, name: str, sha256: str) -> set[str]:
    """Devices to which rollouts that go on bring another release of `name` than that of `sha256`."""
    found = session.scalars(
        select(DeviceRow.name)
        .join(MemberRow, MemberRow.device_id == DeviceRow.id)
        .join(RolloutRow, RolloutRow.id == MemberRow.rollout_id)
        .where(
            RolloutRow.name == name,
            RolloutRow.sha256 != sha256,
            RolloutRow.phase.not_in(FINISHED),
            MemberRow.status.in_(UNSETTLED),
        )
    )
    return set(found)


def _shared(
    session: Session, other: RolloutRow, ids: Mapping[str, int], members: Sequence[NewMember]
) -> set[int]:
    mine = {ids[member.device] for member in members}
    theirs = session.scalars(
        select(MemberRow.device_id).where(
            MemberRow.rollout_id == other.id, MemberRow.status.not_in(("skipped", "superseded", "returned"))
        )
    )
    return mine & set(theirs)


def _supersede(session: Session, other: RolloutRow, by: int, devices: set[int], now: datetime) -> None:
    if not devices:
        return
    session.connection().execute(
        update_members("status", "cause", "detail"),
        [
            {
                "b_rollout": other.id,
                "b_device": device_id,
                "b_status": "superseded",
                "b_cause": None,
                "b_detail": f"by rollout {by}",
            }
            for device_id in devices
        ],
    )
    left = session.scalars(
        select(MemberRow.device_id).where(
            MemberRow.rollout_id == other.id, MemberRow.status.not_in(("skipped", "superseded"))
        )
    ).first()
    if left is None:
        enter(session, other, Enter("superseded", f"by rollout {by}"), CONTROLLER, now)
