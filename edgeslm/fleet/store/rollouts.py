"""Tables of rollouts, and of assignments on their way; see :mod:`edgeslm.fleet.store.models`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from edgeslm.fleet.store.models import Base


class LeaseRow(Base):
    """Who may do a job that only one process may do at a time.

    Attributes:
        token: rises whenever the holder changes: what was decided under an older one is not written.
    """

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(String(128))
    token: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[datetime]


class DesiredRow(Base):
    """The assignment that a device should have from the broker.

    Attributes:
        device: name of the device that it was made for,
        key_sha256: and its key; where the device has others by now it has to be made anew.
        seq: its number.
        body: as it is published; empty where it was made before bodies were kept.
        published_seq: number of the one that the broker confirmed; another one than `seq` has to be published.
        renews: it is made anew before it expires.
    """

    __tablename__ = "desired"

    device_id: Mapped[int] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True)
    device: Mapped[str] = mapped_column(String(64))
    key_sha256: Mapped[str] = mapped_column(String(64))
    seq: Mapped[int] = mapped_column(BigInteger)
    body: Mapped[bytes]
    published_seq: Mapped[int] = mapped_column(BigInteger, default=0)
    issued_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    renews: Mapped[bool] = mapped_column(default=True)


class ReportRow(Base):
    """Which report of a device was written down last.

    Attributes:
        stamp: rises with every report that says something new.
        sha256: of its body: the same again is dropped unread.
    """

    __tablename__ = "device_reports"

    device_id: Mapped[int] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True)
    epoch: Mapped[str] = mapped_column(String(32))
    seq: Mapped[int] = mapped_column(BigInteger)
    stamp: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    received_at: Mapped[datetime]


class RolloutRow(Base):
    """A release on its way through devices.

    Attributes:
        wave: the present one, counted from 0.
        approved: the last wave that may begin.
        paused_by: who paused it; ``None`` if it paused by itself.
        accepted_wave: the wave whose state the operator accepted by resuming; -1 if none.
        accepted_failures: how many devices had failed then.
    """

    __tablename__ = "rollouts"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), index=True)
    version: Mapped[str] = mapped_column(String(96))
    sha256: Mapped[str] = mapped_column(String(64))
    plan: Mapped[dict[str, Any]]
    phase: Mapped[str] = mapped_column(String(16), index=True)
    reason: Mapped[str] = mapped_column(Text, default="")
    wave: Mapped[int] = mapped_column(default=0)
    approved: Mapped[int] = mapped_column(default=0)
    paused_by: Mapped[str | None] = mapped_column(String(128))
    accepted_wave: Mapped[int] = mapped_column(default=-1)
    accepted_failures: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(128))
    changed_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class MemberRow(Base):
    """One device of a rollout.

    Attributes:
        board: type of board when it began.
        seq: number of the assignment that the rollout gave it last.
        base_version: what it ran when it was asked,
        base_sha256: and the package of that.
        figures: what its gate measured.
        seen_stamp: stamp of the report that was judged last.
    """

    __tablename__ = "rollout_members"

    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True)
    device_id: Mapped[int] = mapped_column(
        ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    board: Mapped[str] = mapped_column(String(64))
    wave: Mapped[int]
    spare: Mapped[bool] = mapped_column(default=False)
    force: Mapped[bool] = mapped_column(default=False)
    status: Mapped[str] = mapped_column(String(16), index=True)
    cause: Mapped[str | None] = mapped_column(String(32))
    detail: Mapped[str] = mapped_column(Text, default="")
    seq: Mapped[int] = mapped_column(BigInteger, default=0)
    deadline_at: Mapped[datetime | None]
    base_version: Mapped[str | None] = mapped_column(String(96))
    base_sha256: Mapped[str | None] = mapped_column(String(64))
    figures: Mapped[dict[str, Any] | None]
    seen_stamp: Mapped[int] = mapped_column(BigInteger, default=0)


class PinRow(Base):
    """A device that rollouts leave alone."""

    __tablename__ = "pins"

    device_id: Mapped[int] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(String(128))
    at: Mapped[datetime]
