"""Times as they are typed: spans (``90s``, ``10m`` or ``10min``, ``2h``, ``7d``, ``4w``), and moments."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from edgeslm.clock import utc_now

_SPAN = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*(s|min|m|h|d|w)")
_UNITS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def duration(text: str | timedelta) -> timedelta:
    """A span above zero.

    Raises:
        ValueError: it is none; click makes a usage error of it.
    """
    if isinstance(text, timedelta):
        return text
    match = _SPAN.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"'{text[:40]}' is no span of time such as 90s, 10min, 2h or 7d")
    return timedelta(seconds=float(match[1]) * _UNITS_S[match[2]])


def moment(text: str | datetime) -> datetime:
    """A time: how long ago, or a date, with a time of day if wanted (``2026-01-31T12:00``).

    A date without a zone is one of this machine's.

    Raises:
        ValueError: it is neither; click makes a usage error of it.
    """
    if isinstance(text, datetime):
        return text
    if _SPAN.fullmatch(text.strip()):
        return utc_now() - duration(text)
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:  # the latter in the year 1, or 9999
        raise ValueError(
            f"'{text[:40]}' is no time: write how long ago, such as 10min or 2h, or a date such as 2026-05-01T14:00"
        ) from error
