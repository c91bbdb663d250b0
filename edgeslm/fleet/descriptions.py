"""What devices say of themselves (``info``), as far as operators ask about it.

Functions take a session of the store and commit nothing themselves.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from edgeslm import codec
from edgeslm.errors import CodecError
from edgeslm.fleet.registry import device_row, note_fault
from edgeslm.fleet.store.registry import DescriptionRow
from edgeslm.schema.message import MAX_BODY_BYTES, Info

_MAX_RUNTIME_CHARS = 128
_MAX_MODELS = 64
_MAX_NAME_CHARS = 96


def take_info(session: Session, device: str, payload: bytes, now: datetime) -> Info | None:
    """Write down what a device says of itself.

    Args:
        device: from the topic, which the broker lets nobody else write to.
        payload: as it came.
        now: the present time.

    Returns:
        What it says; ``None`` if it is dropped: not a description, or of another or an unknown device.
    """
    row = device_row(session, device)
    if row is None or row.standing != "active":
        return None
    try:
        info = codec.decode(Info, payload, max_bytes=MAX_BODY_BYTES)
    except CodecError as error:
        note_fault(
            session, device, "bad-info", f"what it says of itself cannot be read: {error.message}", now
        )
        return None
    if info.device != device:
        return None
    models = {
        model.name[:_MAX_NAME_CHARS]: model.version[:_MAX_NAME_CHARS] for model in info.models[:_MAX_MODELS]
    }
    kept = session.get(DescriptionRow, row.id)
    if kept is None:
        kept = DescriptionRow(device_id=row.id)
        session.add(kept)
    kept.at, kept.meter, kept.runtime, kept.models = (
        now,
        info.meter,
        info.runtime[:_MAX_RUNTIME_CHARS],
        models,
    )
    return info
