"""Asks the collected figures: sums of devices over a time, steps of it, the newest reports, single points.

A period is read from minutes as long as those are kept and not too many, and from hours beyond; it then begins and ends
on the full minute or hour. What was reported within the last seconds may not be among the sums yet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, func, select

from edgeslm import codec
from edgeslm.errors import CodecError
from edgeslm.fleet.metrics.figures import columns_of
from edgeslm.fleet.metrics.rows import points_of
from edgeslm.fleet.metrics.store import MetricsStore
from edgeslm.fleet.store.metrics import EVENTS, LATEST, SECONDS, SORTS, How, Sort, Width
from edgeslm.schema.fleet_metrics import MetricsSettings
from edgeslm.schema.metrics import InferenceMetrics, Metrics, PowerMetrics, PowerPoint, SystemMetrics

_DAY_S: Final = 86_400
_MOST_MINUTES: Final = 100_000
"""Rows of minutes that are added up for one answer; beyond, hours are."""
_FEW_DEVICES: Final = 5_000
_ALL_SORTS: Final[tuple[Sort, ...]] = ("power", "inference", "model", "system")

ReportT = TypeVar("ReportT", bound=Metrics)


class Key(NamedTuple):
    """Whose sums: of a device, from a time on if there are steps, of a model if that was asked for."""

    device_id: int
    start_s: int | None = None
    model: str | None = None


@dataclass(frozen=True)
class Period:
    """Unix seconds, on full minutes or hours, and which of the two it is read from."""

    since_s: int
    until_s: int
    width: Width


@dataclass(frozen=True)
class Newest:
    """The newest reports of a device; `at_ms` is the time of the newest of them."""

    at_ms: int
    power: PowerMetrics | None = None
    inference: InferenceMetrics | None = None
    system: SystemMetrics | None = None


def period(
    since_s: float,
    until_s: float,
    *,
    devices: int,
    settings: MetricsSettings,
    now_s: float,
    step_s: float | None = None,
) -> Period:
    """How a time is read for a number of devices, in steps of `step_s` if there are any."""
    minutes = (until_s - since_s) / 60 * max(1, devices)
    is_kept = since_s >= now_s - settings.minutes_days * _DAY_S
    is_fine = step_s is not None and step_s < SECONDS["hour"]
    width: Width = "minute" if is_kept and (is_fine or minutes <= _MOST_MINUTES) else "hour"
    size_s = SECONDS[width]
    first_s, last_s = int(since_s // size_s) * size_s, -int(-until_s // size_s) * size_s
    return Period(first_s, max(last_s, first_s + size_s), width)


def sums(
    metrics: MetricsStore,
    devices: Collection[int],
    when: Period,
    *,
    step_s: int | None = None,
    by_model: bool = False,
    models: Sequence[str] = (),
    sorts: Sequence[Sort] = _ALL_SORTS,
) -> dict[Key, dict[str, float]]:
    """What devices reported in a period.

    Args:
        devices: their numbers in the store.
        step_s: seconds of a step; a multiple of what the period is read from.
        by_model: sums of models apart; those have nothing of draw, queue and temperature.
        models: only these, by name with version or, ending in ``@``, whatever the version.
        sorts: reports to read.

    Raises:
        FleetError: the database refuses.
    """
    found: dict[Key, dict[str, float]] = defaultdict(dict)
    for sort in ("model",) if by_model else sorts:
        table = SORTS[sort].tables[when.width]
        keys: list[ColumnElement[Any]] = [table.c.device_id]
        if step_s is not None:
            keys.append(table.c.start_s - table.c.start_s % step_s)
        if by_model:
            keys.append(table.c.model)
        query = (
            select(*keys, *(_put_together(table.c[name], how) for name, how in SORTS[sort].columns.items()))
            .where(table.c.start_s >= when.since_s, table.c.start_s < when.until_s, _among(table, devices))
            .group_by(*keys)
        )
        if models and sort == "model":
            query = query.where(_is_one_of(table.c.model, models))
        names = columns_of(sort)
        for row in metrics.rows(query):
            start_s = int(row[1]) if step_s is not None else None
            key = Key(row[0], start_s, str(row[len(keys) - 1]) if by_model else None)
            values = zip(names, row[len(keys) :], strict=True)
            if key.device_id in devices:
                found[key].update({name: value for name, value in values if value is not None})
    return dict(found)


def newest(metrics: MetricsStore, devices: Collection[int]) -> dict[int, Newest]:
    """The newest reports of each device that has any.

    Raises:
        FleetError: the database refuses.
    """
    query = select(LATEST.c.device_id, LATEST.c.sort, LATEST.c.at_ms, LATEST.c.body)
    found: dict[int, dict[str, tuple[int, str]]] = defaultdict(dict)
    for device_id, sort, at_ms, body in metrics.rows(query.where(_among(LATEST, devices))):
        if device_id in devices:
            found[device_id][sort] = (at_ms, body)
    return {
        device_id: Newest(
            max(at_ms for at_ms, _ in said.values()),
            _read(PowerMetrics, said.get("power")),
            _read(InferenceMetrics, said.get("inference")),
            _read(SystemMetrics, said.get("system")),
        )
        for device_id, said in found.items()
    }


def first_seen(metrics: MetricsStore, devices: Collection[int], model: str, since_s: float) -> dict[int, int]:
    """When each device told of `model` first since a time, in Unix seconds; to the minute, or else the hour.

    Raises:
        FleetError: the database refuses.
    """
    found: dict[int, int] = {}
    for width in ("hour", "minute"):
        table = SORTS["model"].tables[width]
        query = (
            select(table.c.device_id, func.min(table.c.start_s))
            .where(table.c.model == model, table.c.start_s >= since_s, _among(table, devices))
            .group_by(table.c.device_id)
        )
        for device_id, start_s in metrics.rows(query):
            before_s = found.get(device_id)
            # Minutes may have been thrown away: then the hour is all that is known.
            if device_id in devices and (before_s is None or start_s < before_s + SECONDS["hour"]):
                found[device_id] = int(start_s)
    return found


def points(
    metrics: MetricsStore, device: int, since_s: float, until_s: float
) -> list[tuple[float, PowerPoint]]:
    """The single points of a device's draw, with the Unix time at which each ended; as long as reports are kept.

    Raises:
        FleetError: the database refuses.
    """
    table = SORTS["power"].tables["report"]
    query = (
        select(table.c.at_ms, table.c.points)
        .where(table.c.device_id == device, table.c.at_ms >= since_s * 1000, table.c.at_ms < until_s * 1000)
        .order_by(table.c.at_ms)
    )
    return [
        (at_ms / 1000 - point.ago_s, point)
        for at_ms, packed in metrics.rows(query)
        for point in points_of(packed)
    ]


def events(metrics: MetricsStore, devices: Collection[int], since_s: float, kind: str) -> dict[int, int]:
    """How many events of a kind devices sent since a time.

    Raises:
        FleetError: the database refuses.
    """
    query = (
        select(EVENTS.c.device_id, func.count())
        .where(EVENTS.c.type == kind, EVENTS.c.at_ms >= since_s * 1000, _among(EVENTS, devices))
        .group_by(EVENTS.c.device_id)
    )
    return {device_id: int(count) for device_id, count in metrics.rows(query) if device_id in devices}


@dataclass(slots=True)
class Part:
    """What makes up one group, in one step: its devices, and their sums."""

    devices: set[int] = field(default_factory=set)
    sums: list[Mapping[str, float]] = field(default_factory=list)


def grouped(
    found: Mapping[Key, Mapping[str, float]], names: Mapping[int, Sequence[str]]
) -> dict[tuple[str, int | None], Part]:
    """Sums by name of a group and by step; `names` are the groups that each device is in."""
    parts: dict[tuple[str, int | None], Part] = defaultdict(Part)
    for key, values in found.items():
        for name in (key.model,) if key.model is not None else names.get(key.device_id, ()):
            part = parts[name, key.start_s]
            part.devices.add(key.device_id)
            part.sums.append(values)
    return dict(parts)


def _among(table: Any, devices: Collection[int]) -> ColumnElement[bool]:
    """Rows of devices; of very many, all rows are read and the caller chooses."""
    column: ColumnElement[int] = table.c.device_id
    return column.in_(list(devices)) if len(devices) <= _FEW_DEVICES else column >= 0


def _put_together(column: Any, how: How) -> ColumnElement[Any]:
    if how == "sum":
        return func.sum(column)
    return func.min(column) if how == "min" else func.max(column)


def _is_one_of(column: Any, models: Sequence[str]) -> ColumnElement[bool]:
    found: ColumnElement[bool] = column.in_([name for name in models if not name.endswith("@")])
    for name in models:
        if name.endswith("@"):
            found = found | column.startswith(name, autoescape=True)
    return found


def _read(kind: type[ReportT], said: tuple[int, str] | None) -> ReportT | None:
    if said is None:
        return None
    try:
        return codec.decode(kind, said[1].encode())
    except CodecError:
        return None  # written by a release that knew more
