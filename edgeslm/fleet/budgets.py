"""Power budgets of a fleet: made from an operator's words, checked against boards, assigned, and looked after.

A budget reaches a device as part of its signed assignment and goes before that of the device's own settings. Which one
a device keeps to, its reports tell: they name each window with its limit.

What always holds: a budget that a board can never keep, since it draws as much with nothing to do, is refused before
anything is signed; what else is assigned to a device stays as it was; every change is in the audit log.

Functions take a session of the store and commit nothing themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal

import yaml
from pydantic import ValidationError
from securesystemslib.signer import Signer
from sqlalchemy.orm import Session
from tuf.api.metadata import Targets

from edgeslm.codec import describe
from edgeslm.errors import BudgetConfigError, UsageError
from edgeslm.files import read_bounded
from edgeslm.fleet.assignments import NewBudget, assign, last_assignment, last_reported
from edgeslm.fleet.metrics.figures import Sums
from edgeslm.fleet.metrics.query import Newest
from edgeslm.fleet.registry import need_device
from edgeslm.power.budget import check_budget
from edgeslm.schema.assignment import MAX_BUDGET_CHARS
from edgeslm.schema.board import Board
from edgeslm.schema.budget import Budget, Window
from edgeslm.schema.fleet import Record
from edgeslm.schema.release import ReleaseTarget

DAY_WINDOW: Final = "day"
SUSTAINED_WINDOW: Final = "sustained"
SUSTAINED_OVER_S: Final = 600.0
SILENT_AFTER_S: Final = 900.0
DAY_S: Final = 86_400.0
_MAX_FILE_BYTES: Final = 65_536
_LIMIT_SHARE: Final = 0.001
"""Limits that differ by less are the same: devices round theirs."""

BudgetVerdict = Literal["kept", "exceeded", "will exceed", "not taken up", "silent", "not believed", "none"]


# --- making -------------------------------------------------------------------------------------------------


def make_budget(*, day: str | None = None, sustained: str | None = None, file: Path | None = None) -> Budget:
    """A budget from a file, from limits given by themselves, or both.

    Args:
        day: limit of any 24 hours, an energy or a mean power, such as ``20Wh``.
        sustained: limit of any ten minutes, such as ``2W``.
        file: YAML, with what stands under ``budget`` in an agent's settings; the limits replace its windows of the
            same name.

    Raises:
        UsageError: nothing is given, or it is no budget.
    """
    values = _read(file) if file is not None else {}
    windows: list[object] = []
    for name, limit, over_s in ((DAY_WINDOW, day, DAY_S), (SUSTAINED_WINDOW, sustained, SUSTAINED_OVER_S)):
        if limit is not None:
            windows.append({"name": name, "limit": limit, "over_s": over_s})
    if not values and not windows:
        raise UsageError("what budget?", hint="Give --day, --sustained or --file; take one back with clear")
    try:
        if windows:
            given = [Window.model_validate(one) for one in windows]
            there = values.get("windows", [])
            kept = [Window.model_validate(one) for one in there] if isinstance(there, list) else []
            names = {one.name for one in given}
            values = {**values, "windows": [*(one for one in kept if one.name not in names), *given]}
        return Budget.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"no budget: {describe(error)}", hint="See docs/power-budget.md") from error


def _read(file: Path) -> dict[str, object]:
    try:
        data = read_bounded(file, _MAX_FILE_BYTES)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise UsageError(f"{file} has more than {_MAX_FILE_BYTES} bytes")
    try:
        values = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{file} is no YAML: {' '.join(str(error).split())[:200]}") from error
    if isinstance(values, dict) and set(values) == {"budget"}:
        values = values["budget"]
    if not isinstance(values, dict):
        raise UsageError(f"{file} holds no budget", hint="See docs/power-budget.md")
    return values


def budget_text(budget: Budget) -> str:
    """JSON of a budget, as an assignment carries it.

    Raises:
        UsageError: it is too long for that.
    """
    values = budget.model_dump(mode="json", exclude_defaults=True)
    text = json.dumps(values, ensure_ascii=True, separators=(",", ":"))
    if len(text) > MAX_BUDGET_CHARS:
        raise UsageError(f"a budget of {len(text)} characters; at most {MAX_BUDGET_CHARS} can be assigned")
    return text


def read_budget(text: str | None) -> Budget | None:
    """The budget in an assignment; ``None`` for one that this release does not understand, too."""
    try:
        return None if text is None else Budget.model_validate_json(text)
    except ValidationError:
        return None


def check_for(
    device: str, budget: Budget, board: Board | None, learned_idle_w: float | None
) -> tuple[str, ...]:
    """Warnings about a budget on one device, whose idle draw it told, or its board's table tells.

    Raises:
        BudgetConfigError: it can never keep it.
    """
    idle_w = learned_idle_w or (board.power.idle_w if board is not None else None)
    if idle_w is None:
        return ("what it draws with nothing to do is not known: it may refuse the budget",)
    most_w = (
        idle_w + board.cores * board.power.core_load_w
        if board is not None and board.cores is not None
        else None
    )
    try:
        return check_budget(budget, idle_w, max_w=most_w)
    except BudgetConfigError as error:
        raise BudgetConfigError(
            f"{device}: {error.message}",
            window=error.window,
            limit_w=error.limit_w,
            idle_w=error.idle_w,
            hint=error.hint or "Allow more",
        ) from error


def current_budget(session: Session, device: str) -> str | None:
    """JSON of the budget that is assigned to a device.

    Raises:
        UnknownDeviceError: there is no such device.
    """
    before = last_assignment(session, need_device(session, device))
    return before.budget if before is not None else None


@dataclass(frozen=True)
class Signing:
    """What assignments are made with; see :func:`edgeslm.fleet.assignments.assign`."""

    signers: Sequence[Signer]
    authority: Targets
    known: Sequence[ReleaseTarget]
    life: timedelta


def assign_budget(
    session: Session,
    fleet: str,
    device: str,
    text: str | None,
    signing: Signing,
    *,
    actor: str,
    now: datetime,
) -> tuple[int, bytes]:
    """Assign a budget, or none; number and body of the assignment, which whoever calls publishes.

    Raises:
        UnknownDeviceError: there is no such device.
        DeviceStateError: it is not in use.
        AssignmentError: the device would not follow what these keys sign.
    """
    row = need_device(session, device)
    before, reported = last_assignment(session, row), last_reported(session, row)
    assignment, body = assign(
        session,
        fleet,
        device,
        [],
        signing.signers,
        signing.authority,
        known=signing.known,
        followed=reported.assignment if reported is not None else 0,
        life=signing.life,
        actor=actor,
        now=now,
        window=before.window if before is not None else None,
        budget=NewBudget(text),
    )
    return assignment.seq, body


# --- who keeps it -------------------------------------------------------------------------------------------


class WindowRow(Record):
    """A window as a device reports it: joules allowed in `over_s`, used, and the share left."""

    name: str
    over_s: float
    limit_j: float
    used_j: float
    left_share: float


class BudgetRow(Record):
    """How one device does with its budget.

    Attributes:
        origin: ``fleet`` where it is assigned, ``device`` where it is that of its own settings.
        why: of the verdict, where it is none that speaks for itself.
        windows: as it reported them last.
        day_j: what a day takes at the mean draw of the period.
        day_limit_j: what its windows leave for a day; the strictest of a day or longer.
        times_exceeded: events ``budget_exceeded`` of the period.
        refused: prompts of the period, for lack of energy; `deferred` had to wait, `shortened` got less of an answer.
    """

    device: str
    verdict: BudgetVerdict
    why: str | None = None
    origin: Literal["fleet", "device"] | None = None
    windows: tuple[WindowRow, ...] = ()
    day_j: float | None = None
    day_limit_j: float | None = None
    times_exceeded: int = 0
    refused: int = 0
    deferred: int = 0
    shortened: int = 0


def budget_row(
    device: str,
    assigned: Budget | None,
    newest: Newest | None,
    sums: Sums,
    times_exceeded: int,
    *,
    distrust: str | None,
    now: datetime,
) -> BudgetRow:
    """How a device does.

    Args:
        assigned: its budget by the fleet.
        newest: its newest reports.
        sums: what it reported in the period.
        times_exceeded: events of the period.
        distrust: why it is in quarantine, if it is.
        now: the present time.
    """
    power = newest.power if newest is not None else None
    if distrust is not None:
        origin: Literal["fleet"] | None = "fleet" if assigned is not None else None
        return BudgetRow(device=device, verdict="not believed", why=distrust, origin=origin)
    windows = tuple(
        WindowRow(
            name=one.name,
            over_s=one.window_s,
            limit_j=one.limit_j,
            used_j=one.used_j,
            left_share=one.left_share,
        )
        for one in (power.windows if power is not None else ())
    )
    span_s, energy_j = sums.get("power.span_s", 0.0), sums.get("power.energy_j", 0.0)
    day_j = energy_j / span_s * DAY_S if span_s > 0 else None
    limits = [one.limit_j / one.over_s * DAY_S for one in windows if one.over_s >= DAY_S]
    day_limit_j = min(limits, default=None)
    silent_s = None if newest is None else now.timestamp() - newest.at_ms / 1000
    verdict, why = _verdict(assigned, windows, sums, times_exceeded, silent_s, (day_j, day_limit_j))
    return BudgetRow(
        device=device,
        verdict=verdict,
        why=why,
        origin="fleet" if assigned is not None else "device" if windows else None,
        windows=windows,
        day_j=day_j,
        day_limit_j=day_limit_j,
        times_exceeded=times_exceeded,
        refused=int(sums.get("model.refused", 0)),
        deferred=int(sums.get("model.deferred", 0)),
        shortened=int(sums.get("model.shortened", 0)),
    )


def _verdict(
    assigned: Budget | None,
    windows: Sequence[WindowRow],
    sums: Sums,
    times_exceeded: int,
    silent_s: float | None,
    day: tuple[float | None, float | None],
) -> tuple[BudgetVerdict, str | None]:
    if assigned is None and not windows:
        return "none", None
    if silent_s is None:
        return "silent", "nothing was ever reported"
    if silent_s > SILENT_AFTER_S:
        return "silent", f"nothing was reported for {silent_s / 60:.0f} min"
    if assigned is not None:
        told = {one.name: one.limit_j for one in windows}
        for window in assigned.windows:
            limit_j = told.get(window.name)
            if limit_j is None or abs(limit_j - window.limit_j) > _LIMIT_SHARE * window.limit_j:
                return "not taken up", f"window '{window.name}' is not what it reports"
    worst = min(windows, key=lambda one: one.left_share, default=None)
    if times_exceeded or sums.get("power.exceeded", 0) > 0:
        beyond = f", '{worst.name}' at {1 - worst.left_share:.0%} now" if worst is not None else ""
        return "exceeded", f"in {sums.get('power.exceeded', 0):.0f} reports{beyond}"
    day_j, limit_j = day
    if day_j is not None and limit_j is not None and day_j > limit_j:
        return "will exceed", f"a day at this draw takes {day_j / limit_j:.0%} of what is allowed"
    return "kept", None


def learned_idle_w(newest: Mapping[int, Newest], device_id: int) -> float | None:
    """What a device says that it draws with nothing to do."""
    found = newest.get(device_id)
    return found.power.idle_w or None if found is not None and found.power is not None else None
