"""The time by which expiry is judged, on boards whose clock may say 1970.

A wrong clock must not let expired metadata live again. So the time used is the wall clock's, but never below a
floor: the newest time that is known to have passed. It is the latest of

* the day on which this code was released (:data:`edgeslm.clock.BUILT_AT`);
* when the trusted root was signed, and when the newest accepted timestamp was (our repositories write
  ``x-edgeslm-issued`` into what they sign);
* the wall clock's time at the last successful refresh.

No floor can be driven up for good. The wall clock is remembered only when metadata was accepted by it, so it is
below that metadata's expiry however wrong the clock was. What a timestamp key signed counts only as long as the root
names the same keys, so a thief's far future ends with the rotation of the stolen key. Time signed offline, by the
root, is believed.

Without any right clock, time stands still between refreshes: a frozen repository is then noticed late, but nothing
older than what was once seen is ever accepted (versions see to that).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from edgeslm.clock import BUILT_AT

ISSUED_FIELD = "x-edgeslm-issued"
"""Signed field of our metadata: when it was signed. TUF itself knows only when metadata expires."""

Source = Literal["wall", "built", "signed", "remembered"]


class Clock(Protocol):
    """Gives the wall clock's time, right or wrong."""

    def __call__(self) -> datetime:
        """Aware UTC time."""


@dataclass(frozen=True)
class Remembered:
    """What a device keeps to know what time it is at least.

    Attributes:
        wall: wall clock at the last refresh that succeeded.
        signed: when the newest accepted timestamp was signed.
        signers: key ids of the role that signed it.
    """

    wall: datetime | None = None
    signed: datetime | None = None
    signers: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrustedTime:
    """The time to judge by, and where it came from; anything but ``wall`` means that the clock is behind."""

    at: datetime
    source: Source


def trusted_time(
    wall: datetime, remembered: Remembered, *, root_issued: datetime | None, signers: tuple[str, ...]
) -> TrustedTime:
    """The latest time that is known to have passed.

    Args:
        wall: what the wall clock says.
        remembered: what earlier refreshes left.
        root_issued: when the trusted root was signed, if it says so.
        signers: key ids to which the trusted root gives the timestamp role.
    """
    signed = [root_issued, remembered.signed if remembered.signers == signers else None]
    known: list[tuple[datetime, Source]] = [(wall, "wall"), (BUILT_AT, "built")]
    known += [(at, "signed") for at in signed if at is not None]
    if remembered.wall is not None:
        known.append((remembered.wall, "remembered"))
    # The first of equals is taken: a wall clock that is exactly at a floor is not behind it.
    at, source = max(known, key=lambda item: item[0])
    return TrustedTime(at, source)


def issued_time(fields: dict[str, object]) -> datetime | None:
    """When metadata with these further signed fields was signed, if it says so in the form that ours does."""
    text = fields.get(ISSUED_FIELD)
    if not isinstance(text, str):
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None
