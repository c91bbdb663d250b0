"""Figures of devices, groups, boards and models over a time: as tables and charts show them, and before and after.

What always holds: devices in quarantine are in no sum, and are named; a device that is in several groups counts in
each, and once in the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeslm.errors import UsageError
from edgeslm.fleet.groups import list_groups
from edgeslm.fleet.metrics.compare import Basis, Change, Verdict, paired, unpaired
from edgeslm.fleet.metrics.figures import COMPARED, FIGURES, USUAL, USUAL_BY_MODEL, Figure, Sums, combined
from edgeslm.fleet.metrics.query import Period, first_seen, grouped, period, sums
from edgeslm.fleet.metrics.store import MetricsStore
from edgeslm.fleet.quarantine import quarantined
from edgeslm.fleet.selection import facts
from edgeslm.fleet.store.metrics import SECONDS
from edgeslm.fleet.store.models import DeviceRow
from edgeslm.schema.fleet import DeviceRecord, Record
from edgeslm.schema.fleet_metrics import MetricsSettings

By = Literal["fleet", "device", "group", "board", "model"]
WHOLE: Final = "fleet"
LEAST_COVERED_S: Final = 600.0
"""A device with less reported time on either side is left out of a comparison."""
_UNKNOWN_BOARD: Final = "unknown"
_NO_GROUP: Final = "(no group)"


class FiguresRow(Record):
    """Figures of one group, and of one step of time where there are steps.

    Attributes:
        devices: that reported.
        figures: by name; missing where nothing of it was reported.
    """

    group: str
    start: datetime | None = None
    devices: int
    figures: dict[str, float]


class FiguresReport(Record):
    """Figures over a time.

    Attributes:
        left_out: devices in quarantine, with the reason.
        silent: devices that reported nothing.
        whole: of all devices together; missing where rows are steps of time.
    """

    since: datetime
    until: datetime
    by: By
    step_s: int | None
    rows: tuple[FiguresRow, ...]
    whole: FiguresRow | None = None
    left_out: dict[str, str]
    silent: tuple[str, ...]


class ChangeRow(Record):
    """How one figure changed; see :class:`edgeslm.fleet.metrics.compare.Change`."""

    figure: str
    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None
    is_share: bool
    count: int
    basis: Basis
    verdict: Verdict


class ChangeReport(Record):
    """Before and after a moment, which may be each device's own.

    Attributes:
        compared: devices that have enough on both sides.
        left_out: the others, with the reason.
    """

    moment: str
    window_s: float
    compared: tuple[str, ...]
    left_out: dict[str, str]
    rows: tuple[ChangeRow, ...]


def device_ids(session: Session, devices: Sequence[DeviceRecord]) -> dict[int, DeviceRecord]:
    """Devices by their number in the store."""
    numbers = {row[1]: row[0] for row in session.execute(select(DeviceRow.id, DeviceRow.name))}
    return {numbers[one.name]: one for one in devices if one.name in numbers}


def chosen_figures(names: Sequence[str], by: By) -> list[Figure]:
    """The figures that are asked for, or the usual ones.

    Raises:
        UsageError: one of them cannot be told for a model.
    """
    found = [FIGURES[name] for name in names or (USUAL_BY_MODEL if by == "model" else USUAL)]
    whole = [figure.name for figure in found if by == "model" and not figure.by_model]
    if whole:
        told = ", ".join(figure.name for figure in FIGURES.values() if figure.by_model)
        raise UsageError(
            f"{', '.join(whole)} is of a board, not of a model", hint=f"By model there are {told}"
        )
    return found


def make_report(
    session: Session,
    metrics: MetricsStore,
    devices: Sequence[DeviceRecord],
    *,
    by: By,
    figures: Sequence[Figure],
    since_s: float,
    until_s: float,
    step_s: int | None = None,
    settings: MetricsSettings,
    now: datetime,
) -> FiguresReport:
    """The figures of `devices` over a time.

    Args:
        session: of the fleet's store.
        metrics: the collected figures.
        figures: which.
        since_s: Unix time; `until_s` likewise.
        step_s: a row for each step of so many seconds, in place of one for the whole.
        settings: how long what is kept.

    Raises:
        FleetError: a database refuses.
    """
    aside = quarantined(session)
    wanted = device_ids(session, [one for one in devices if one.name not in aside])
    when = period(
        since_s, until_s, devices=len(wanted), settings=settings, now_s=now.timestamp(), step_s=step_s
    )
    if step_s is not None:
        step_s = max(step_s // SECONDS[when.width], 1) * SECONDS[when.width]
    found = sums(
        metrics,
        set(wanted),
        when,
        step_s=step_s,
        by_model=by == "model",
        sorts=tuple(dict.fromkeys(figure.sort for figure in figures)),
    )
    names = _names(session, wanted, by, now)
    told = {wanted[key.device_id].name for key in found}
    rows = [
        FiguresRow(
            group=group,
            start=None if start_s is None else _time(start_s),
            devices=len(part.devices),
            figures=_figures(combined(part.sums), figures),
        )
        for (group, start_s), part in sorted(
            grouped(found, names).items(), key=lambda item: (item[0][1] or 0, item[0][0])
        )
    ]
    return FiguresReport(
        since=_time(when.since_s),
        until=_time(when.until_s),
        by=by,
        step_s=step_s,
        rows=tuple(rows),
        whole=None
        if step_s is not None
        else FiguresRow(group=WHOLE, devices=len(told), figures=_figures(combined(found.values()), figures)),
        left_out={one.name: aside[one.name] for one in devices if one.name in aside},
        silent=tuple(sorted({one.name for one in wanted.values()} - told)),
    )


def _names(
    session: Session, wanted: Mapping[int, DeviceRecord], by: By, now: datetime
) -> dict[int, Sequence[str]]:
    """The groups that each device counts in."""
    if by == "device":
        return {id_: (one.name,) for id_, one in wanted.items()}
    if by == "board":
        return {id_: (one.board or _UNKNOWN_BOARD,) for id_, one in wanted.items()}
    if by == "group":
        groups = list_groups(session, facts(session), now)
        return {
            id_: [group.name for group in groups if one.name in group.devices] or (_NO_GROUP,)
            for id_, one in wanted.items()
        }
    return dict.fromkeys(wanted, (WHOLE,))


def _figures(values: Sums, figures: Sequence[Figure]) -> dict[str, float]:
    told = {figure.name: figure.value(values) for figure in figures}
    return {name: value for name, value in told.items() if value is not None}


def _time(at_s: float) -> datetime:
    return datetime.fromtimestamp(at_s, UTC)


# --- before and after ---------------------------------------------------------------------------------------


def compare_around(
    session: Session,
    metrics: MetricsStore,
    devices: Sequence[DeviceRecord],
    *,
    moment: datetime | str | Mapping[str, datetime],
    figures: Sequence[Figure],
    window_s: float,
    settings: MetricsSettings,
    now: datetime,
) -> ChangeReport:
    """How figures changed at a moment, over `devices`.

    Args:
        moment: for all devices; or the release (``name@version``) whose first answer on each device is its moment,
            when only models of that name are looked at; or a moment for each device, by name.
        figures: which; an empty sequence is the usual ones.
        window_s: how long before and after is looked at; after ends at the present at the latest.

    Raises:
        UsageError: a figure cannot be compared.
        FleetError: a database refuses.
    """
    aside = quarantined(session)
    left_out = {one.name: f"in quarantine: {aside[one.name]}" for one in devices if one.name in aside}
    wanted = device_ids(session, [one for one in devices if one.name not in aside])
    now_s = now.timestamp()
    if isinstance(moment, datetime):
        turns = dict.fromkeys(wanted, moment.timestamp())
    elif isinstance(moment, str):
        since_s = now_s - settings.hours_days * 86_400
        turns = {id_: float(at) for id_, at in first_seen(metrics, set(wanted), moment, since_s).items()}
        left_out |= {one.name: f"never told of {moment}" for id_, one in wanted.items() if id_ not in turns}
    else:
        turns = {id_: moment[one.name].timestamp() for id_, one in wanted.items() if one.name in moment}
        left_out |= {one.name: "has no moment" for id_, one in wanted.items() if id_ not in turns}
    models = (f"{moment.partition('@')[0]}@",) if isinstance(moment, str) else ()
    sides: dict[int, tuple[list[Sums], list[Sums]]] = {}
    for turn_s, members in _together(turns).items():
        before, after = _sides(metrics, members, turn_s, window_s, models, settings, now_s)
        for id_ in members:
            parts = before.get(id_, []), after.get(id_, [])
            if min(_covered_s(part) for part in parts) < LEAST_COVERED_S:
                left_out[wanted[id_].name] = "too little was reported before or after"
            else:
                sides[id_] = parts
    chosen = list(figures) or [FIGURES[name] for name in COMPARED]
    totals = [figure.name for figure in chosen if figure.is_total]
    if totals:
        raise UsageError(
            f"{', '.join(totals)} grows with the time that is looked at",
            hint="Compare figures that do not, such as power in place of energy",
        )
    return ChangeReport(
        moment=moment if isinstance(moment, str) else _told(moment),
        window_s=window_s,
        compared=tuple(sorted(wanted[id_].name for id_ in sides)),
        left_out=left_out,
        rows=tuple(_changed(figure, list(sides.values())) for figure in chosen),
    )


def _told(moment: datetime | Mapping[str, datetime]) -> str:
    return moment.isoformat(timespec="seconds") if isinstance(moment, datetime) else "each device's own"


def _together(turns: Mapping[int, float]) -> dict[float, set[int]]:
    """Devices whose moment is the same minute are read together."""
    found: dict[float, set[int]] = {}
    for id_, at_s in turns.items():
        found.setdefault(at_s // 60 * 60, set()).add(id_)
    return found


def _sides(
    metrics: MetricsStore,
    devices: set[int],
    turn_s: float,
    window_s: float,
    models: Sequence[str],
    settings: MetricsSettings,
    now_s: float,
) -> tuple[dict[int, list[Sums]], dict[int, list[Sums]]]:
    """Sums of each device by steps of time before and after; the step with the moment in it belongs to neither."""
    since_s = turn_s - window_s
    is_fine = since_s >= now_s - settings.minutes_days * 86_400 and window_s < 2 * 86_400
    width: Literal["minute", "hour"] = "minute" if is_fine else "hour"
    size_s = SECONDS[width]
    step_s = 3600 if window_s > 6 * 3600 else max(size_s, 600)
    first_after_s = int(turn_s // size_s + 1) * size_s
    before = Period(int(since_s // size_s) * size_s, int(turn_s // size_s) * size_s, width)
    after = Period(first_after_s, int(min(turn_s + window_s, now_s) // size_s + 1) * size_s, width)
    found: list[dict[int, list[Sums]]] = []
    for when in (before, after):
        side: dict[int, list[Sums]] = {}
        if when.until_s > when.since_s:
            read = sums(
                metrics,
                devices,
                when,
                step_s=step_s,
                models=models,
            )
            for key, values in read.items():
                side.setdefault(key.device_id, []).append(values)
        found.append(side)
    return found[0], found[1]


def _covered_s(parts: Sequence[Sums]) -> float:
    return sum(part.get("power.span_s", part.get("inference.span_s", 0.0)) for part in parts)


def _changed(figure: Figure, sides: Sequence[tuple[Sequence[Sums], Sequence[Sums]]]) -> ChangeRow:
    if len(sides) == 1:
        steps = [[figure.value(part) for part in side] for side in sides[0]]
        known = [[value for value in side if value is not None] for side in steps]
        change = unpaired(known[0], known[1], better=figure.better, is_ratio=figure.is_ratio)
    else:
        change = _over_devices(figure, sides)
    return ChangeRow(
        figure=figure.name,
        before=change.before,
        after=change.after,
        change=change.change,
        low=change.low,
        high=change.high,
        is_share=figure.is_ratio,
        count=change.count,
        basis=change.basis,
        verdict=change.verdict,
    )


def _over_devices(figure: Figure, sides: Sequence[tuple[Sequence[Sums], Sequence[Sums]]]) -> Change:
    pairs = []
    for before, after in sides:
        first, second = figure.value(combined(before)), figure.value(combined(after))
        if first is not None and second is not None:
            pairs.append((first, second))
    return paired(pairs, better=figure.better, is_ratio=figure.is_ratio)
