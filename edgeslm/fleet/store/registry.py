"""Tables of groups, of what devices ran, and of what they say of themselves; see :mod:`edgeslm.fleet.store.models`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from edgeslm.fleet.store.models import Base


class GroupRow(Base):
    """A group: devices that are named, or a query that finds them whenever the group is used."""

    __tablename__ = "groups"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    query: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(128))


class GroupMemberRow(Base):
    """A device that was put into a group by name."""

    __tablename__ = "group_members"

    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    device_id: Mapped[int] = mapped_column(
        ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class DescriptionRow(Base):
    """What a device says of itself (``info``), as far as it is asked about; the newest."""

    __tablename__ = "device_descriptions"

    device_id: Mapped[int] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True)
    at: Mapped[datetime]
    meter: Mapped[str] = mapped_column(String(16))
    runtime: Mapped[str] = mapped_column(String(128))
    models: Mapped[dict[str, Any]]
    """Versions by name."""


class RunRow(Base):
    """A version that ran under a name on a device; it runs still while there is no `until`."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    device_id: Mapped[int] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(96))
    sha256: Mapped[str | None] = mapped_column(String(64))
    since: Mapped[datetime]
    until: Mapped[datetime | None]
