"""What each device should run, and what it says that it runs.

An assignment is planned against what the device told of itself, so that what it cannot run is refused before anything
is sent; then it gets its number, is signed, judged once by the device's own check, written down, and published.

What always holds: a number is used once, as it is on the disk before anything leaves; names that an assignment does not
mention stay as they were assigned; every assignment is in the audit log, in the transaction that gives it its number.

Functions take a session of the store and commit nothing themselves.

Left to others: signatures (:mod:`edgeslm.fleet.signing`), trust (:mod:`edgeslm.trust`), and what the device makes of
it (``docs/updates.md``). The device checks again whatever is checked here.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import TracebackType
from typing import Literal, Self

from pydantic import ValidationError
from securesystemslib.signer import Signer
from sqlalchemy import select
from sqlalchemy.orm import Session
from tuf.api.metadata import Targets

from edgeslm import codec
from edgeslm.errors import CodecError, DeviceStateError, LinkError, UpdateError, UsageError
from edgeslm.fleet.registry import audit, device_row, need_device, note_event, note_fault
from edgeslm.fleet.runs import note_runs
from edgeslm.fleet.signing import next_seq, sign_assignment
from edgeslm.fleet.store.models import DeviceRow, FactRow
from edgeslm.fleet.store.rollouts import DesiredRow, ReportRow
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.schema.assignment import AssignedRelease, Assignment, UpdateWindow
from edgeslm.schema.base import version_key
from edgeslm.schema.board import Board
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.message import MAX_BODY_BYTES, Info
from edgeslm.schema.package import BUNDLE
from edgeslm.schema.release import NO_FLOOR, HeldRelease, ReleaseRequirements, ReleaseTarget
from edgeslm.schema.update import Reported, ReportedFault
from edgeslm.trust.assignment import verify_assignment
from edgeslm.trust.versions import check_version

Way = Literal["nothing", "delta", "full"]

CONNECT_TIMEOUT_S = 10.0
QUIET_S = 0.5
"""A broker sends what it retains right after it took the subscription: after such a pause there is no more."""
_RUNTIMES = {"ai-edge-litert": "litert", "tflite-runtime": "tflite-runtime"}
_ASSIGNED, _REPORTED = "assigned", "reported"
_MAX_SEQ = 2**62


# --- what a device is ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    """What runs under a name; the version may be one that is none."""

    version: str
    sha256: str | None


@dataclass(frozen=True)
class DeviceView:
    """What is known of a device when something is assigned to it.

    Attributes:
        board: its type; ``None`` while it has not told.
        agent: version of edgeslm on it.
        runtime: kind of runtime that it computes with.
        running: by name.
        denied: why packages failed on it that it does not try again by itself, by sha256.
        ram_mb: memory that it told; ``None`` leaves it to the facts of its board.
        cpu_features: of its processor as it told, likewise.
    """

    name: str
    board: Board | None = None
    agent: str | None = None
    runtime: str | None = None
    running: Mapping[str, Running] = field(default_factory=dict)
    denied: Mapping[str, ReportedFault] = field(default_factory=dict)
    ram_mb: int | None = None
    cpu_features: frozenset[str] | None = None

    @property
    def most_ram_mb(self) -> int | None:
        """Memory that it has, or that boards of its type have at most."""
        if self.ram_mb is None and self.board is not None and self.board.ram_mb:
            return max(self.board.ram_mb)
        return self.ram_mb

    @property
    def known_cpu_features(self) -> frozenset[str] | None:
        """What its processor can do: what it told and what its board's processor has, as on the device itself."""
        # Boards that stand for any say nothing of the processor.
        of_board = frozenset(self.board.cpu_features) if self.board and self.board.recognised_by else None
        if self.cpu_features is None:
            return of_board
        return self.cpu_features | (of_board or frozenset())


def view_device(
    row: DeviceRow, info: Info | None, reported: Reported | None, boards: Mapping[str, Board]
) -> DeviceView:
    """What the record, and the device's own latest words, say about it.

    Args:
        row: its record.
        info: its retained self-description.
        reported: its retained report, which is newer than `info` where they differ.
        boards: known types of boards.
    """
    board, agent, runtime = row.board, row.agent, None
    running: dict[str, Running] = {}
    denied: dict[str, ReportedFault] = {}
    if info is not None:
        board, agent = info.board, info.agent
        runtime = _RUNTIMES.get(info.runtime.split(" ")[0])
        running = {model.name: Running(model.version, model.sha256) for model in info.models}
    for model in reported.models if reported is not None else ():
        if model.version is not None:
            running[model.name] = Running(model.version, model.sha256)
        change = model.change
        if change is not None and change.sha256 is not None and change.fault and change.fault.denied:
            denied[change.sha256] = change.fault
    told = info.cpu_features if info is not None else None
    return DeviceView(
        row.name,
        boards.get(board or ""),
        agent,
        runtime,
        running,
        denied,
        ram_mb=info.ram_mb if info is not None else None,
        cpu_features=None if told is None else frozenset(told),
    )


# --- planning: pure -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One release for one device.

    Attributes:
        allow_downgrade: it may be older than what runs.
        force: the device is to try it although it failed there before.
        is_return: it ran there before, and is compared with nothing.
        running: what runs under the name now.
        way: how it comes there: the device has it, or takes a delta, or the whole.
        moves_bytes: bytes of files that move if nothing is lost on the way: package and chunk map, or delta.
        unchecked: what could not be checked, as the device has not told.
    """

    target: ReleaseTarget
    allow_downgrade: bool
    force: bool
    is_return: bool
    running: Running | None
    way: Way
    moves_bytes: int
    unchecked: tuple[str, ...]

    @property
    def label(self) -> str:
        """Name and version."""
        return f"{self.target.info.name}@{self.target.info.version}"


def plan_step(
    target: ReleaseTarget,
    view: DeviceView,
    *,
    allow_downgrade: bool = False,
    force: bool = False,
    is_return: bool = False,
) -> Step:
    """What assigning `target` to the device will do.

    Args:
        target: a published release.
        view: the device.
        allow_downgrade: it may be older than what runs.
        force: the device is to try it although it failed there before.
        is_return: it ran there before; its gate compares it with nothing.

    Raises:
        UpdateError: ``incompatible``: what the device lacks; or why it failed there before.
        SecurityFloorError: it is below the security floor.
        DowngradeError: it is older than what runs, and that is not meant.
    """
    info, running = target.info, view.running.get(target.info.name)
    unchecked = _check_device(info.requires, view)
    fault = view.denied.get(info.sha256)
    if fault is not None and not force:
        raise UpdateError(
            f"{view.name} does not try {info.name} {info.version} again: {fault.detail}",
            cause=fault.cause, hint="Release a newer version, or assign it with --force",
        )  # fmt: skip
    held: HeldRelease | None = None
    if running is not None:
        try:
            held = HeldRelease(version=running.version, security_floor=NO_FLOOR)
        except ValidationError:
            unchecked = (*unchecked, "version that runs")
    check_version(target, held=held, allow_downgrade=allow_downgrade)
    way: Way = "full"
    moves_bytes = info.size_bytes + (info.chunks.size_bytes if info.chunks else 0)
    if running is not None and running.sha256 == info.sha256:
        way, moves_bytes = "nothing", 0
    elif running is not None and running.sha256 is not None:
        delta = info.deltas.get(running.sha256)
        if delta is not None and delta.size_bytes < info.size_bytes:
            way, moves_bytes = "delta", delta.size_bytes
    return Step(target, allow_downgrade, force, is_return, running, way, moves_bytes, unchecked)


def _check_device(requires: ReleaseRequirements, view: DeviceView) -> tuple[str, ...]:
    """Refuse what the device lacks; returns what it has not told."""
    unchecked = []
    agent = _key(view.agent)
    if agent is None:
        unchecked.append("agent")
    elif agent < version_key(requires.agent):
        raise _incompatible(view, f"it needs edgeslm {requires.agent}, not {view.agent}")
    if view.runtime is None:
        unchecked.append("runtime")
    elif requires.runtimes == (BUNDLE,):
        # A device tells what computes its graphs; whether it has that for bundles as well it finds out itself.
        unchecked.append("runtime")
    elif view.runtime not in requires.runtimes:
        raise _incompatible(
            view, f"it needs the runtime {' or '.join(requires.runtimes)}, there is {view.runtime}"
        )
    ram_mb, features = view.most_ram_mb, view.known_cpu_features
    if ram_mb is None:
        unchecked.append("memory")
    elif requires.ram_mb > ram_mb:
        raise _incompatible(view, f"it needs {requires.ram_mb} MB of memory, there are {ram_mb} MB at most")
    if features is None:
        unchecked.extend(["processor"] if requires.cpu_features else [])
    elif missing := sorted(set(requires.cpu_features) - features):
        raise _incompatible(view, f"it needs a processor with {', '.join(missing)}")
    return tuple(unchecked)


def _key(version: str | None) -> tuple[int, int, int, int, str] | None:
    try:
        return version_key(version) if version is not None else None
    except ValueError:
        return None


def _incompatible(view: DeviceView, reason: str) -> UpdateError:
    return UpdateError(f"{view.name} cannot run it: {reason}", cause="incompatible")


@dataclass(frozen=True)
class NewBudget:
    """A power budget to assign: its JSON, or ``None`` for the one in the device's own settings."""

    text: str | None


# --- the record ---------------------------------------------------------------------------------------------


def last_assignment(session: Session, row: DeviceRow) -> Assignment | None:
    """What was assigned to a device last."""
    fact = session.get(FactRow, f"{_ASSIGNED}/{row.id}")
    return Assignment.model_validate_json(json.dumps(fact.value)) if fact is not None else None


def reported_key(device_id: int) -> str:
    """Under which a device's last report is kept."""
    return f"{_REPORTED}/{device_id}"


def assigned_key(device_id: int) -> str:
    """Under which a device's last assignment is kept."""
    return f"{_ASSIGNED}/{device_id}"


def last_reported(session: Session, row: DeviceRow) -> Reported | None:
    """What a device reported last, as far as it was collected."""
    fact = session.get(FactRow, f"{_REPORTED}/{row.id}")
    return Reported.model_validate_json(json.dumps(fact.value)) if fact is not None else None


def running_packages(session: Session) -> list[str]:
    """Sha256 of the packages that devices in use report to run, those that most run first."""
    facts = session.scalars(select(FactRow).where(FactRow.key.startswith(f"{_REPORTED}/")))
    active = set(session.scalars(select(DeviceRow.id).where(DeviceRow.standing == "active")))
    found = Counter(
        model["sha256"]
        for fact in facts
        if int(fact.key.rpartition("/")[2]) in active
        for model in fact.value["models"]
        if "sha256" in model
    )
    return [sha256 for sha256, _ in found.most_common()]


def take_reported(
    session: Session, device: str, payload: bytes, now: datetime, *, row: DeviceRow | None = None
) -> Reported | None:
    """Write down what a device reports, and the end of each change as an event.

    Args:
        device: from the topic, which the broker lets nobody else write to.
        payload: as it came.
        now: the present time.
        row: of the device, where it was read before.

    Returns:
        The report; ``None`` if it is dropped: not one, of an unknown device, or older than the last.
    """
    row = row or device_row(session, device)
    if row is None or row.standing != "active":
        return None
    mark, sha256 = session.get(ReportRow, row.id), hashlib.sha256(payload).hexdigest()
    if mark is not None and mark.sha256 == sha256:
        return last_reported(session, row)
    try:
        reported = codec.decode(Reported, payload, max_bytes=MAX_BODY_BYTES)
    except CodecError as error:
        note_fault(session, device, "bad-report", f"a report that is none: {error.message}", now)
        return None
    before = last_reported(session, row)
    if reported.device != device or (
        before is not None and before.epoch == reported.epoch and before.seq > reported.seq
    ):
        return None
    value = json.loads(codec.encode(reported))
    session.merge(FactRow(key=f"{_REPORTED}/{row.id}", value=value))
    if mark is None:
        mark = ReportRow(device_id=row.id, stamp=0)
        session.add(mark)
    seq = min(max(reported.seq, 0), _MAX_SEQ)  # a number from outside may be larger than a column
    mark.epoch, mark.seq, mark.stamp = reported.epoch, seq, mark.stamp + 1
    mark.sha256, mark.received_at = sha256, now
    note_runs(session, row, before, reported, now)
    told = {(model.name, model.change) for model in before.models} if before is not None else set()
    for model in reported.models:
        change = model.change
        if change is None or not change.settled or (model.name, change) in told:
            continue
        fault = f": {change.fault.cause}, {change.fault.detail}" if change.fault is not None else ""
        note_event(
            session, device, "update", f"{model.name} {change.version} {change.state}{fault}", now,
            severity="info" if change.state == "committed" else "warning", device=row,
        )  # fmt: skip
    return reported


def assign(
    session: Session,
    fleet: str,
    device: str,
    steps: Sequence[Step],
    signers: Sequence[Signer],
    authority: Targets,
    *,
    known: Sequence[ReleaseTarget],
    followed: int,
    life: timedelta,
    actor: str,
    now: datetime,
    window: UpdateWindow | None = None,
    without: Collection[str] = (),
    renews: bool = True,
    budget: NewBudget | None = None,
) -> tuple[Assignment, bytes]:
    """Make, sign and write down the next assignment of a device; it is published by whoever calls, afterwards.

    What was assigned under other names stays, as far as the repository still has it.

    Args:
        fleet: its name.
        device: its name.
        steps: as planned.
        signers: the keys to which assignments of the fleet are delegated.
        authority: the published targets, which delegate.
        known: all published releases.
        followed: number of the assignment that the device says it follows.
        life: how long it is valid.
        actor: for the audit log.
        now: the present time.
        window: when the device may begin to change; at once if there is none.
        without: names that are no longer assigned.
        renews: the fleet makes it anew before it expires.
        budget: the power budget from now on; by default it stays as it was assigned.

    Returns:
        The assignment and its body.

    Raises:
        UnknownDeviceError: there is no such device.
        DeviceStateError: it is not in use.
        UsageError: too many releases, or for too long.
        AssignmentError: the device would not follow it, as the keys are not the right ones.
    """
    row = need_device(session, device)
    if row.standing != "active":
        raise DeviceStateError(f"'{device}' is {row.standing}", name=device, state=row.standing)
    before = last_assignment(session, row)
    vouched = {target.info.sha256 for target in known}
    releases = {
        name: kept
        for name, kept in (before.releases.items() if before is not None else ())
        if kept.sha256 in vouched and name not in without
    }
    for step in steps:
        info = step.target.info
        releases[info.name] = AssignedRelease(
            version=info.version,
            sha256=info.sha256,
            allow_downgrade=step.allow_downgrade,
            force=step.force,
            is_return=step.is_return,
        )
    last = max(before.seq if before is not None else 0, followed)
    try:
        assignment = Assignment(
            fleet=fleet,
            device=device,
            device_key_sha256=row.key_sha256,
            seq=next_seq(last, now),
            issued_at=now,
            expires_at=now + life,
            releases=releases,
            budget=budget.text if budget is not None else before.budget if before is not None else None,
            window=window,
        )
    except ValidationError as error:
        raise UsageError(f"no assignment: {codec.describe(error)}") from error
    body = sign_assignment(assignment, signers)
    verify_assignment(
        body,
        authority,
        fleet=fleet,
        device=device,
        device_key_sha256=row.key_sha256,
        last_seq=last,
        now=now,
    )
    session.merge(
        FactRow(key=f"{_ASSIGNED}/{row.id}", value=assignment.model_dump(mode="json", exclude_none=True))
    )
    keep_desired(session, row, assignment, body, renews=renews)
    audit(
        session, actor, "assign", device, now,
        seq=assignment.seq, releases=" ".join(step.label for step in steps),
        **({"downgrade": True} if any(step.allow_downgrade for step in steps) else {}),
        **({"budget": budget.text or "none"} if budget is not None else {}),
        **({"force": True} if any(step.force for step in steps) else {}),
    )  # fmt: skip
    return assignment, body


def keep_desired(
    session: Session, row: DeviceRow, assignment: Assignment, body: bytes, *, renews: bool
) -> None:
    """Write down what the broker is to keep for a device, in the transaction that numbers it.

    So it is published even if whoever made it ends right after.
    """
    kept = session.get(DesiredRow, row.id)
    if kept is None:
        kept = DesiredRow(device_id=row.id, published_seq=0)
        session.add(kept)
    kept.device, kept.key_sha256 = assignment.device, assignment.device_key_sha256
    kept.seq, kept.body, kept.renews = assignment.seq, body, renews
    kept.issued_at, kept.expires_at = assignment.issued_at, assignment.expires_at


def mark_published(session: Session, device_id: int, seq: int) -> None:
    """Note that the broker has assignment `seq` of a device.

    If another one was made meanwhile, that may have been published first, so it is published again.
    """
    kept = session.get(DesiredRow, device_id)
    if kept is not None:
        kept.published_seq = seq if kept.seq == seq else 0


# --- at the broker ------------------------------------------------------------------------------------------


class Visit:
    """The operator at the broker for a moment; used as a context manager it is connected inside."""

    def __init__(
        self, config: BrokerConfig, client_id: str, wanted: Sequence[str] = (), *, filters: Sequence[str] = ()
    ) -> None:
        """Set up.

        Args:
            config: how to reach the broker.
            client_id: there.
            wanted: topics whose retained messages are of interest; no wildcards.
            filters: instead of these, filters with wildcards.
        """
        self._filters = tuple(filters)
        self._config = config
        self._link = MqttLink(config, client_id)
        self._wanted = tuple(dict.fromkeys(wanted))
        self._changed = threading.Condition()
        self._connected_at_s: float | None = None
        self._heard_at_s = 0.0
        self._retained: dict[str, bytes] = {}
        self._confirmed: set[int] = set()
        self._reason = "no answer"

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            LinkError: the broker cannot be reached.
        """
        try:
            self._link.start(self, [(topic, 1) for topic in (*self._wanted, *self._filters)])
            if not self._wait(lambda: self._connected_at_s is not None, CONNECT_TIMEOUT_S):
                raise self._fault(f"cannot be reached: {self._reason}")
        except BaseException:
            self._link.stop()
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._link.stop()

    def retained(self) -> dict[str, bytes]:
        """What the broker keeps on the topics that were named, by topic."""
        deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
        while time.monotonic() < deadline_s:
            with self._changed:
                if not self._filters and len(self._retained) == len(self._wanted):
                    break
                quiet_s = time.monotonic() - self._heard_at_s
                if quiet_s >= QUIET_S:
                    break
                self._changed.wait(QUIET_S - quiet_s)
        with self._changed:
            return {topic: payload for topic, payload in self._retained.items() if payload}

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish a retained message, and wait until the broker has it.

        Raises:
            LinkError: it does not take it.
        """
        token = self._link.publish(Message(topic, payload, retain=True))
        if token is None or not self._wait(lambda: token in self._confirmed, CONNECT_TIMEOUT_S):
            raise self._fault(f"does not confirm: {self._reason}")

    def _wait(self, is_met: Callable[[], bool], timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(is_met, timeout_s)

    def _fault(self, what: str) -> LinkError:
        return LinkError(f"the broker at {self._config.host}:{self._config.port} {what}")

    # --- the link's thread ---

    def on_message(self, message: Message) -> None:
        """Part of ``LinkEvents``."""
        with self._changed:
            self._retained[message.topic] = message.payload
            self._heard_at_s = time.monotonic()
            self._changed.notify_all()
        message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None:
        """Part of ``LinkEvents``."""
        del session_present
        with self._changed:
            self._connected_at_s = self._heard_at_s = time.monotonic()
            self._changed.notify_all()

    def on_disconnected(self, reason: str) -> None:
        """Part of ``LinkEvents``."""
        self._reason = reason

    def on_published(self, token: int) -> None:
        """Part of ``LinkEvents``."""
        with self._changed:
            self._confirmed.add(token)
            self._changed.notify_all()
