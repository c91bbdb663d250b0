"""Table of the configurations of devices; see :mod:`edgeslm.fleet.store.models`."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from edgeslm.fleet.store.models import Base


class ConfigRow(Base):
    """One configuration that was signed for a device; rows are only ever added and settled.

    Attributes:
        command: id of the request that brings it.
        settings: JSON of the overlay.
        confirm_s: seconds in which the device has to be at the broker with it.
        outcome: what became of it; ``None`` while nobody knows.
        detail: why.
    """

    __tablename__ = "configs"
    __table_args__ = (Index("uq_configs_device_id_version", "device_id", "version", unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True)
    device_id: Mapped[int] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"))
    version: Mapped[int] = mapped_column(BigInteger)
    command: Mapped[str] = mapped_column(String(128))
    settings: Mapped[str] = mapped_column(Text)
    confirm_s: Mapped[int]
    issued_at: Mapped[datetime]
    issued_by: Mapped[str] = mapped_column(String(128))
    expires_at: Mapped[datetime]
    outcome: Mapped[str | None] = mapped_column(String(16))
    detail: Mapped[str] = mapped_column(Text, default="")
    settled_at: Mapped[datetime | None]
