"""Takes reports in: reads them, judges them, writes them down, and puts devices that cannot be believed aside.

What always holds: a batch is in the database when :meth:`Intake.take` returns, and taking it again after a failure
counts nothing twice; what one device sends never keeps another's from being counted; whose report it is says the topic,
which the broker lets nobody else write to.

One report that cannot be read, or cannot be true, may have any cause: it is counted, and passed over. :data:`STRIKES`
impossible ones within :data:`STRIKES_WITHIN_S` are no accident: the device goes into quarantine, with the last reason.
What cannot be read never leads there, since it moves no figure; there is a fault among the device's events instead.

Not thread-safe; whoever calls has one thread for it.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Final, Literal

import pydantic_core
from sqlalchemy import select

from edgeslm import codec, topics
from edgeslm.errors import CodecError, FleetError, TopicError
from edgeslm.fleet.metrics.judge import (
    Counted,
    ImpossibleFigure,
    Last,
    ceiling_w,
    check_inference,
    check_power,
    check_system,
    judge,
    judge_event,
)
from edgeslm.fleet.metrics.rows import inference_row, model_row, power_row, system_row
from edgeslm.fleet.metrics.store import Batch, MetricsStore, oldest_ms
from edgeslm.fleet.quarantine import quarantine
from edgeslm.fleet.registry import note_fault
from edgeslm.fleet.store.database import Store
from edgeslm.fleet.store.metrics import LATEST, MAX_MODEL_CHARS, QuarantineRow
from edgeslm.fleet.store.models import DeviceRow
from edgeslm.schema.board import Board
from edgeslm.schema.fleet_metrics import MetricsSettings
from edgeslm.schema.metrics import Event, InferenceMetrics, Metrics, PowerMetrics, SystemMetrics

_LOG = logging.getLogger(__name__)

STRIKES: Final = 3
STRIKES_WITHIN_S: Final = 3600.0
GARBLED: Final = 20
"""Reports that cannot be read, within :data:`STRIKES_WITHIN_S`, that are an event of the device."""
MOST_OF_ONE: Final = 1000
"""Messages of one device in one batch; a device that was away brings two hundred, and one that floods the rest."""
MAX_REPORT_BYTES: Final = 65_536
_MOST_MODELS: Final = 64
_MOST_PARTS: Final = 1024
_KNOWN_FOR_S: Final = 5.0
_MISSED_FOR_S: Final = 1.0
_NOTED_FOR_S: Final = 3600.0
_DETAIL_CHARS: Final = 300
_GOOD_NEWS: Final = frozenset({"budget_available", "meter_restored"})

Fate = Literal[
    "taken",
    "garbled",
    "impossible",
    "repeated",
    "unknown",
    "quarantined",
    "flooded",
    "undated",
    "lost",
    "events",
]
_KINDS: Final[Mapping[str, type[Metrics]]] = {
    "m/power": PowerMetrics,
    "m/inference": InferenceMetrics,
    "m/system": SystemMetrics,
}


@dataclass(frozen=True, slots=True)
class _Device:
    id: int
    most_w: float
    is_quarantined: bool


@dataclass(slots=True)
class _Turn:
    """What a batch leads to, before it is known that it can be written."""

    now_ms: int
    oldest_ms: int
    batch: Batch = field(default_factory=Batch)
    last: dict[tuple[int, str], Last] = field(default_factory=dict)
    counts: Counter[Fate] = field(default_factory=Counter)
    sent: Counter[int] = field(default_factory=Counter)
    strikes: list[tuple[str, str]] = field(default_factory=list)
    garbled: list[tuple[str, str]] = field(default_factory=list)
    events: list[tuple[str, str, str]] = field(default_factory=list)


class Intake:
    """Of one fleet.

    Attributes:
        counts: reports by what became of them; ``lost`` are those that a gap in the sequence tells of, and
            ``undated`` those among the taken whose time of arrival counts.
    """

    def __init__(
        self,
        store: Store,
        metrics: MetricsStore,
        boards: Mapping[str, Board],
        settings: MetricsSettings,
    ) -> None:
        """Begin where the last one ended.

        Args:
            store: of the fleet.
            metrics: where figures go.
            boards: by name.
            settings: how long what is kept.

        Raises:
            FleetError: a database refuses.
        """
        self._store, self._metrics, self._boards, self._settings = store, metrics, boards, settings
        self.counts: Counter[Fate] = Counter()
        query = select(LATEST.c.device_id, LATEST.c.sort, LATEST.c.seq, LATEST.c.own_ms)
        self._last = {(device, sort): Last(seq, own) for device, sort, seq, own in metrics.rows(query)}
        self._devices: dict[str, _Device] = {}
        self._looked_s = float("-inf")
        self._strikes: dict[str, deque[float]] = {}
        self._garbled: dict[str, deque[float]] = {}
        self._noted_s: dict[tuple[str, str], float] = {}

    def take(self, messages: Iterable[tuple[str, bytes]], now: datetime) -> None:
        """Take messages, each with its topic, in the order in which they came.

        Raises:
            FleetError: a database refuses; nothing was taken, and all of it may be brought again.
        """
        now_ms = round(now.timestamp() * 1000)
        turn = _Turn(now_ms, oldest_ms(self._settings, now_ms))
        for topic, payload in messages:
            self._take(turn, topic, payload)
        self._metrics.write(turn.batch)
        self._last.update(turn.last)
        self.counts.update(turn.counts)
        self._follow(turn, now)

    # --- one message ----------------------------------------------------------------------------------------

    def _take(self, turn: _Turn, topic: str, payload: bytes) -> None:
        found = _whose(topic)
        if found is None:
            return
        name, channel, event_type = found
        device = self._device(name, turn.now_ms / 1000)
        if device is None:
            turn.counts["unknown"] += 1
            return
        if device.is_quarantined:
            turn.counts["quarantined"] += 1
            return
        turn.sent[device.id] += 1
        if turn.sent[device.id] > MOST_OF_ONE:
            turn.counts["flooded"] += 1
            if turn.sent[device.id] == MOST_OF_ONE + 1:
                turn.events.append((name, "metrics-flood", f"more than {MOST_OF_ONE} messages at once"))
            return
        try:
            if event_type is not None:
                self._take_event(turn, name, device, event_type, payload)
            else:
                self._take_report(turn, name, device, channel, payload)
        except CodecError as error:
            turn.counts["garbled"] += 1
            turn.garbled.append((name, _plain(error.message)))
        except ImpossibleFigure as error:
            turn.counts["impossible"] += 1
            turn.strikes.append((name, _plain(str(error))))

    def _take_report(self, turn: _Turn, name: str, device: _Device, channel: str, payload: bytes) -> None:
        report = codec.decode(_KINDS[channel], payload, max_bytes=MAX_REPORT_BYTES)
        sort = channel[2:]
        key = (device.id, sort)
        last = turn.last.get(key) or self._last.get(key)
        if isinstance(report, PowerMetrics):
            _bound("points", report.points)
            _bound("causes", report.causes)
            check_power(report, device.most_w)
        elif isinstance(report, InferenceMetrics):
            if len(report.models) > _MOST_MODELS:
                raise CodecError(f"models: {len(report.models)} of them, at most {_MOST_MODELS} are taken")
            check_inference(report)
        elif isinstance(report, SystemMetrics):
            check_system(report)
        counted = judge(report, name, last, now_ms=turn.now_ms, oldest_ms=turn.oldest_ms)
        if counted is None:
            turn.counts["repeated"] += 1
            return
        self._add(turn, device.id, report, counted)
        turn.counts["taken"] += 1
        turn.counts["lost"] += counted.lost
        turn.counts["undated"] += counted.is_dated_here
        if counted.is_newest:
            turn.last[key] = Last(report.seq, counted.own_ms)
            body = codec.plain(payload, max_bytes=MAX_REPORT_BYTES).decode("utf-8")
            turn.batch.latest[key] = (counted.at_ms, counted.own_ms, report.seq, body)

    def _add(self, turn: _Turn, device_id: int, report: Metrics, counted: Counted) -> None:
        rows, at_ms = turn.batch.rows, counted.at_ms
        if isinstance(report, PowerMetrics):
            rows["power"].append(power_row(device_id, at_ms, report))
        elif isinstance(report, InferenceMetrics):
            for model in report.models:
                if len(model.model) > MAX_MODEL_CHARS or not model.model.isprintable():
                    raise CodecError(f"model: '{model.model[:40]}' is no name of one")
            rows["inference"].append(inference_row(device_id, at_ms, report))
            rows["model"] += [model_row(device_id, at_ms, report, model) for model in report.models]
        elif isinstance(report, SystemMetrics):
            rows["system"].append(system_row(device_id, at_ms, report))
        turn.batch.touch(device_id, at_ms)

    def _take_event(self, turn: _Turn, name: str, device: _Device, kind: str, payload: bytes) -> None:
        if kind == topics.OPERATION_EVENT:
            return
        event = codec.decode(Event, payload, max_bytes=MAX_REPORT_BYTES)
        if event.type != kind:
            raise CodecError(f"type: '{event.type}' was sent as '{kind[:40]}'")
        at_ms = judge_event(event, name, now_ms=turn.now_ms, oldest_ms=turn.oldest_ms)
        if at_ms is None:
            turn.counts["repeated"] += 1
            return
        figures = pydantic_core.to_json(event.figures).decode()
        detail = _plain(event.detail[:_DETAIL_CHARS])
        turn.batch.events.append((device.id, at_ms, kind, detail, figures))
        turn.counts["events"] += 1
        turn.events.append((name, kind, detail))

    # --- devices --------------------------------------------------------------------------------------------

    def _device(self, name: str, now_s: float) -> _Device | None:
        known = self._devices.get(name)
        age_s = abs(now_s - self._looked_s)
        if age_s > _KNOWN_FOR_S or (known is None and age_s > _MISSED_FOR_S):
            self._look(now_s)
            known = self._devices.get(name)
        return known

    def _look(self, now_s: float) -> None:
        """Find out anew who there is; a name that nobody has costs no more than a look a second."""
        self._looked_s = now_s
        with self._store.read() as session:
            aside = set(
                session.scalars(select(QuarantineRow.device_id).where(QuarantineRow.released_at.is_(None)))
            )
            rows = session.execute(
                select(DeviceRow.id, DeviceRow.name, DeviceRow.board).where(DeviceRow.standing == "active")
            ).all()
        ceilings = {name: ceiling_w(board) for name, board in self._boards.items()}
        unknown_w = ceiling_w(None)
        self._devices = {
            name: _Device(id_, ceilings.get(board or "", unknown_w), id_ in aside)
            for id_, name, board in rows
        }

    # --- what follows ---------------------------------------------------------------------------------------

    def _follow(self, turn: _Turn, now: datetime) -> None:
        """Do what a batch calls for in the fleet's store."""
        now_s = now.timestamp()
        aside: dict[str, str] = {}
        for name, reason in turn.strikes:
            _LOG.warning("%s %s: this report is not counted", name, reason)
            if _reaches(self._strikes.setdefault(name, deque()), STRIKES, now_s):
                aside[name] = reason
        notes: list[tuple[str, str, str]] = []
        for name, reason in turn.garbled:
            _LOG.info("a report of %s cannot be read: %s", name, reason)
            if _reaches(self._garbled.setdefault(name, deque()), GARBLED, now_s):
                notes.append(
                    (name, "bad-metrics", f"{GARBLED} reports that cannot be read, the last: {reason}")
                )
        notes += [event for event in turn.events if event[1] not in _GOOD_NEWS]
        notes = [one for one in notes if self._is_due(one[0], one[1], now_s)]
        if not aside and not notes:
            return
        try:
            with self._store.write() as session:
                for name, reason in aside.items():
                    with self._store.part(session):
                        quarantine(session, name, reason, now)
                for name, kind, text in notes:
                    note_fault(session, name, kind, text, now)
        except (
            FleetError
        ) as error:  # the figures are written; the next impossible one brings the device here again
            _LOG.error("metrics: %s", error)
            return
        for name in aside:
            self._strikes.pop(name, None)
            self._devices[name] = _aside(self._devices[name])

    def _is_due(self, name: str, kind: str, now_s: float) -> bool:
        """Whether that was not noted within the last hour, as far as is known here."""
        if now_s - self._noted_s.get((name, kind), float("-inf")) < _NOTED_FOR_S:
            return False
        self._noted_s[name, kind] = now_s
        return True


def _aside(device: _Device) -> _Device:
    return _Device(device.id, device.most_w, is_quarantined=True)


def _plain(text: str) -> str:
    """`text` without characters that a database may refuse: what one device writes must not stop a batch."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _reaches(times_s: deque[float], count: int, now_s: float) -> bool:
    """Note one more; whether there are `count` of them within the time that counts."""
    times_s.append(now_s)
    while len(times_s) > count or now_s - times_s[0] > STRIKES_WITHIN_S:
        times_s.popleft()
    return len(times_s) >= count


def _bound(name: str, parts: Sequence[object]) -> None:
    if len(parts) > _MOST_PARTS:
        raise CodecError(f"{name}: {len(parts)} of them, at most {_MOST_PARTS} are taken")


@lru_cache(maxsize=65_536)
def _whose(topic: str) -> tuple[str, str, str | None] | None:
    """Device, channel and, for an event, its type; ``None`` for a topic of another kind."""
    try:
        parsed = topics.parse(topic)
    except TopicError:
        return None
    if not isinstance(parsed, topics.DeviceTopic):
        return None
    if parsed.channel == "e":
        return parsed.device, "e", parsed.request_id
    return (parsed.device, parsed.channel, None) if parsed.channel in _KINDS else None
