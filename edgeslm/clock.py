"""The wall clock, on boards that may have none of their own and begin in 1970."""

from __future__ import annotations

from datetime import UTC, datetime

BUILT_AT = datetime(2026, 11, 1, tzinfo=UTC)
"""No clock that is right says less. Raised with every release of edgeslm."""


def utc_now() -> datetime:
    """The wall clock, right or wrong."""
    return datetime.now(UTC)


def clock_is_set(wall_s: float) -> bool:
    """Whether Unix time `wall_s` can be right."""
    return wall_s >= BUILT_AT.timestamp()
