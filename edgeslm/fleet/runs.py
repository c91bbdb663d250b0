"""What ran on each device, from when until when, as the devices reported it.

What always holds: of one name on one device one version runs at a time; what ended is kept, the newest
:data:`MAX_ENDED` of each device.

Functions take a session of the store and commit nothing themselves.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeslm.fleet.store.models import DeviceRow
from edgeslm.fleet.store.registry import RunRow
from edgeslm.schema.fleet import RunRecord
from edgeslm.schema.update import Reported

MAX_ENDED = 500
"""A device that reports something else each time must not fill the store."""


def note_runs(
    session: Session, row: DeviceRow, before: Reported | None, after: Reported, now: datetime
) -> None:
    """Note what runs since a report that did not run before; reports that bring nothing new cost nothing.

    Args:
        row: the device.
        before: its report before this one.
        after: this one.
        now: the present time.
    """
    wanted = _running(after)
    if before is not None and _running(before) == wanted:
        return
    open_rows = session.scalars(select(RunRow).where(RunRow.device_id == row.id, RunRow.until.is_(None)))
    for run in open_rows.all():
        if wanted.get(run.name) == (run.version, run.sha256):
            del wanted[run.name]
        else:
            run.until = now
    for name, (version, sha256) in wanted.items():
        session.add(RunRow(device_id=row.id, name=name, version=version, sha256=sha256, since=now))
    ended = select(RunRow).where(RunRow.device_id == row.id, RunRow.until.is_not(None))
    for run in session.scalars(ended.order_by(RunRow.id.desc()).offset(MAX_ENDED)).all():
        session.delete(run)


def list_runs(session: Session, row: DeviceRow) -> list[RunRecord]:
    """What ran on a device, newest first."""
    query = select(RunRow).where(RunRow.device_id == row.id).order_by(RunRow.id.desc())
    return [
        RunRecord(name=run.name, version=run.version, sha256=run.sha256, since=run.since, until=run.until)
        for run in session.scalars(query)
    ]


def _running(reported: Reported) -> dict[str, tuple[str, str | None]]:
    return {
        model.name: (model.version, model.sha256) for model in reported.models if model.version is not None
    }
