"""Reads back what was decided about a prompt, as :meth:`edgeslm.power.steward.Steward.file` wrote it down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from edgeslm.errors import LedgerError


@dataclass(frozen=True, slots=True)
class FiledReason:
    """Why, for people and for machines; see :class:`edgeslm.power.governor_types.Reason`."""

    code: str
    text: str
    subject: str
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FiledStep:
    """One thing that happened to a prompt.

    Attributes:
        after_s: seconds since it was accepted.
        what: ``waits``, ``runs``, ``refused`` or ``stopped``.
    """

    after_s: float
    what: str
    reasons: tuple[FiledReason, ...]


def read_decision(text: str) -> tuple[FiledStep, ...]:
    """The steps in `text`, in order.

    Raises:
        LedgerError: it is not of that form.
    """
    try:
        return tuple(_step(step) for step in json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise LedgerError("what was decided about the prompt cannot be read") from error


def _step(step: Mapping[str, object]) -> FiledStep:
    reasons = step["reasons"]
    if not isinstance(reasons, list):
        raise TypeError("reasons are a list")
    return FiledStep(
        _number(step["after_s"]), str(step["what"]), tuple(_reason(reason) for reason in reasons)
    )


def _reason(reason: Mapping[str, object]) -> FiledReason:
    words = {"code", "text", "subject"}
    figures = {name: _number(value) for name, value in reason.items() if name not in words}
    return FiledReason(str(reason["code"]), str(reason["text"]), str(reason["subject"]), figures)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"no number: {str(value)[:40]}")
    return float(value)
