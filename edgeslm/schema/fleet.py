"""A fleet as its operator sees it: the file ``fleet.yaml``, and the records that commands print."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from edgeslm.schema.base import FileModel, Identifier
from edgeslm.schema.enrol import Host, Port, Printable
from edgeslm.schema.fleet_metrics import MetricsSettings
from edgeslm.schema.message import DeviceState, MeterClass
from edgeslm.schema.rule import check_filter

ApprovalMode = Literal["hand", "allow-list", "hook"]
DeviceStanding = Literal["active", "revoked", "retired"]
ClaimState = Literal["open", "bound", "used", "revoked", "expired"]
EnrolmentState = Literal["pending", "approved", "issued", "done", "rejected"]
Finding = Literal["restored", "moved", "cloned"]
"""What is odd about a device's machine, worst last; see :mod:`edgeslm.fleet.machines`."""

Tag = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
MAX_TAGS = 64
"""Of one device."""
MAX_NOTE_CHARS = 4000
NoteText = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", max_length=MAX_NOTE_CHARS)]

_Argument = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class FleetBroker(FileModel):
    """Where the fleet's broker is.

    Attributes:
        host: name or address by which devices reach it; its certificate names it.
        port: listener for devices, which show a certificate.
        claim_port: of the door, where claims log in by password.
        operator_port: listener for the operator, who shows a certificate of another kind.
        bind: address that all listen on; ``None`` is all.
        reload_command: run after the broker's files changed, to copy them and send SIGHUP to the door, for example;
            empty sends it to the door on this machine.
    """

    host: Host
    port: Port = 8883
    claim_port: Port = 8884
    operator_port: Port = 8885
    bind: Host | None = None
    reload_command: Annotated[tuple[_Argument, ...], Field(max_length=64)] = ()

    @model_validator(mode="after")
    def _three_ports(self) -> Self:
        if len({self.port, self.claim_port, self.operator_port}) < 3:
            raise ValueError("devices, claims and the operator need ports of their own")
        return self


class Approval(FileModel):
    """Who may join without an operator's word.

    Attributes:
        mode: ``hand`` asks for every device; ``allow-list`` takes claims that are bound to a name, and boards
            whose hardware serial is in `serials`; ``hook`` asks a program.
        hook: that program with its arguments. It gets the request as JSON on stdin; exit code 0 approves, 1
            rejects, anything else, or no answer in time, leaves it to the operator.
    """

    mode: ApprovalMode = "allow-list"
    serials: Annotated[tuple[Printable, ...], Field(max_length=100_000)] = ()
    hook: Annotated[tuple[_Argument, ...], Field(max_length=64)] = ()
    hook_timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0

    @model_validator(mode="after")
    def _hook_is_named(self) -> Self:
        if (self.mode == "hook") != bool(self.hook):
            raise ValueError("mode 'hook' and a hook go together")
        return self


_OWN_TREES = frozenset({"edgeslm", "edgeslm-client", "homeassistant"})
"""First levels whose access follows from who somebody is, never from a grant."""
_NO_DEVICES = frozenset({"pool", "enrol"})


def _check_granted(text: str) -> str:
    check_filter(text)
    first = text.partition("/")[0]
    if first in {"", "+", "#"} or first.startswith("$") or first in _OWN_TREES:
        raise ValueError(
            f"a grant names the first level, and that is none of {', '.join(sorted(_OWN_TREES))}: "
            f"'{text[:80]}' would open what is not for devices"
        )
    if any(char == "%" or char.isspace() or not char.isprintable() for char in text):
        raise ValueError("a granted topic holds no space, no % and nothing that cannot be printed")
    return text


_Granted = Annotated[tuple[Annotated[str, AfterValidator(_check_granted)], ...], Field(max_length=256)]


class Grant(FileModel):
    """More topics at the fleet's broker, for rules: those of sensors and of what is switched.

    Attributes:
        device: whom it is for; with neither `device` nor `tag` it is for every device.
        tag: or those that have this tag when the broker starts.
        read: filters that may be subscribed to.
        write: filters that may be published to.
    """

    device: Identifier | None = None
    tag: Tag | None = None
    read: _Granted = ()
    write: _Granted = ()

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.device is not None and self.tag is not None:
            raise ValueError("a grant is for a device or for a tag, not for both")
        if self.device in _NO_DEVICES:
            raise ValueError(f"no device can be called '{self.device}'")
        if not (self.read or self.write):
            raise ValueError("a grant gives something to read or to write")
        return self


class FleetConfig(FileModel):
    """``fleet.yaml``.

    Attributes:
        certificate_days: life of a device's certificate; a device that is off for longer has to join again.
        database: SQLAlchemy URL of the store; ``None`` is the SQLite file ``fleet.db`` beside this one.
        metrics: how long what devices report is kept.
        grants: topics beyond their own that devices may use at the broker.
    """

    v: Literal[1] = 1
    name: Identifier
    broker: FleetBroker
    certificate_days: Annotated[float, Field(gt=0, le=3650)] = 30
    approval: Approval = Approval()
    database: Annotated[str, StringConstraints(max_length=1000)] | None = None
    metrics: MetricsSettings = MetricsSettings()
    grants: Annotated[tuple[Grant, ...], Field(max_length=256)] = ()


class Record(BaseModel):
    """Something that the store tells."""

    model_config = ConfigDict(frozen=True)


class DeviceRecord(Record):
    """One device.

    Attributes:
        name: on the wire.
        standing: ``active``, or why its certificate is refused.
        presence: what it said last.
        finding: what is odd about its machine, explained by `finding_text`.
        rename_to: the name that it is about to get.
        expires_at: end of its newest certificate.
    """

    name: str
    standing: DeviceStanding
    presence: DeviceState | None = None
    finding: Finding | None = None
    finding_text: str | None = None
    board: str | None = None
    serial: str | None = None
    profile: str | None = None
    agent: str | None = None
    tags: tuple[str, ...] = ()
    notes: str = ""
    key_sha256: str
    rename_to: str | None = None
    created_at: datetime
    first_seen_at: datetime | None = None
    last_seen_at: datetime | None = None
    expires_at: datetime | None = None


class DeviceFacts(DeviceRecord):
    """One device with what it runs and should run: what queries ask about.

    Attributes:
        running: version by name of what it runs; a version may be one that is none.
        assigned: version by name of what it should run.
        runtime: what it computes with, as it says, such as ``ai-edge-litert 2.3.0``.
        meter: how it knows energy.
        budget: JSON of the power budget that is assigned to it.
        quarantine: why its figures are not believed.
        pin: why rollouts leave it alone.
    """

    running: dict[str, str] = Field(default_factory=dict)
    assigned: dict[str, str] = Field(default_factory=dict)
    runtime: str | None = None
    meter: MeterClass | None = None
    budget: str | None = None
    quarantine: str | None = None
    pin: str | None = None


class GroupRecord(Record):
    """One group.

    Attributes:
        query: what finds its devices whenever it is used; ``None`` where they are named.
        devices: those in use that are in it now.
        idle: those that are in it and not in use.
    """

    name: str
    query: str | None
    devices: tuple[str, ...]
    idle: tuple[str, ...] = ()
    created_at: datetime
    created_by: str


class CertificateRecord(Record):
    """One certificate of a device."""

    serial: str
    name: str
    key_sha256: str
    not_before: datetime
    not_after: datetime
    revoked_at: datetime | None = None
    reason: str | None = None


class MachineRecord(Record):
    """One boot of one machine that used a device's key."""

    serial: str | None
    machine_id: str | None
    boot_id: str | None
    boots: int
    first_seen_at: datetime
    last_seen_at: datetime


class EventRecord(Record):
    """Something that happened to a device, or to a claim."""

    at: datetime
    subject: str
    kind: str
    severity: Literal["info", "warning", "error"]
    text: str


class RunRecord(Record):
    """A version that ran on a device; it runs still while there is no `until`."""

    name: str
    version: str
    sha256: str | None
    since: datetime
    until: datetime | None


class HistoryRecord(Record):
    """Something in the life of a device.

    Attributes:
        source: an event, what a person did, what ran, a certificate, a machine, or a rollout that began.
        kind: of the event, or the action; stable, for programs.
        by: who did it, where it was somebody.
    """

    at: datetime
    source: Literal["event", "action", "run", "certificate", "machine", "rollout"]
    kind: str
    severity: Literal["info", "warning", "error"] = "info"
    by: str | None = None
    text: str


class FoundRecord(Record):
    """Something that a search found.

    Attributes:
        kind: what it is.
        name: of the device, group or claim; the subject of the event.
        where: what of it matched.
        text: what that says.
    """

    kind: Literal["device", "group", "claim", "event"]
    name: str
    where: str
    text: str


class DifferenceRecord(Record):
    """Something in which two devices differ, or a device from what is assigned to it; ``None`` is nothing."""

    what: str
    one: str | None
    other: str | None


class DeviceDetail(Record):
    """All about one device, newest first."""

    device: DeviceRecord
    certificates: tuple[CertificateRecord, ...]
    machines: tuple[MachineRecord, ...]
    events: tuple[EventRecord, ...]


class FullDetail(DeviceDetail):
    """The same with what it runs and ran, and the groups that it is in."""

    device: DeviceFacts
    groups: tuple[str, ...] = ()
    runs: tuple[RunRecord, ...] = ()


class ClaimRecord(Record):
    """One claim; its secret is not among what is kept."""

    claim: str
    state: ClaimState
    device: str | None
    profile: str | None
    replaces: bool
    created_at: datetime
    created_by: str
    expires_at: datetime


class EnrolmentRecord(Record):
    """One request to join."""

    claim: str
    device: str | None
    state: EnrolmentState
    reason: str | None
    board: str | None
    serial: str | None
    key_sha256: str
    agent: str
    requested_at: datetime
    decided_at: datetime | None
    decided_by: str | None


class AuditRecord(Record):
    """Who did what."""

    at: datetime
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
