"""When a rollout changed each device: what before and after are told apart by."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgeslm.fleet.store.models import DeviceRow
from edgeslm.fleet.store.registry import RunRow
from edgeslm.fleet.store.rollouts import MemberRow, RolloutRow


def rollout_moments(session: Session, rollout: str) -> dict[str, datetime] | None:
    """When each device of a rollout began to run its release, by name, as far as they did.

    Returns:
        ``None`` if there is no rollout of that number.
    """
    number = int(rollout) if rollout.isascii() and rollout.isdecimal() and len(rollout) < 10 else None
    found = session.get(RolloutRow, number) if number is not None else None
    if found is None:
        return None
    rows = session.execute(
        select(DeviceRow.name, func.max(RunRow.since))
        .join(MemberRow, MemberRow.device_id == DeviceRow.id)
        .join(RunRow, RunRow.device_id == DeviceRow.id)
        .where(MemberRow.rollout_id == found.id, RunRow.name == found.name, RunRow.version == found.version)
        .group_by(DeviceRow.name)
    )
    return {row[0]: row[1] for row in rows}
