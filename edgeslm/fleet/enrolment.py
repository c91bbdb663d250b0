"""How devices join: the rules, and the transactions that carry them out.

What always holds:

- :func:`decide` is pure; everything else takes a session of the store and commits nothing itself.
- A claim is bound to the first key that is shown under it. The same key gets the same answer, however often it
  asks; another key gets none.
- A name in use is never given to another key without an operator's word.

Messages under a claim are hostile until they are unsealed.

Left to others: making certificates and what follows once a device has one (:mod:`edgeslm.fleet.certificates`), and
carrying messages (:mod:`edgeslm.fleet.service`).
"""

from __future__ import annotations

import base64
import difflib
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, cast

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from edgeslm import topics
from edgeslm.errors import (
    CertificateError,
    ClaimError,
    CodecError,
    DeviceStateError,
    EdgeslmError,
    UnknownDeviceError,
)
from edgeslm.fleet.ca import common_name, read_request
from edgeslm.fleet.certificates import Issuer, Outcome, certify
from edgeslm.fleet.claims import claim_state
from edgeslm.fleet.registry import (
    Severity,
    audit,
    device_row,
    forget_machines,
    note_event,
    note_fault,
    revoke_certificates,
)
from edgeslm.fleet.store.models import ClaimRow, DeviceRow, EnrolmentRow
from edgeslm.schema.enrol import EnrolReply, EnrolRequest, Machine
from edgeslm.schema.fleet import Approval, EnrolmentRecord, EnrolmentState, FleetConfig
from edgeslm.trust.claim import seal, unseal

Verdict = Literal["approve", "wait", "reject", "ask hook"]
SERVICE = "service"
"""The actor of what happens by itself."""
_MAX_REASON = 500


@dataclass(frozen=True)
class Candidate:
    """What is known of who asks to join, for :func:`decide`.

    Attributes:
        device: the name that it is to get, if there is one.
        is_bound: the claim is for this name.
        is_replacing: the claim may replace the key of a device in use.
        name_problem: why it cannot have the name, whoever it is.
        holder: standing of the device that has the name with another key.
        key_holder: another device that has the key.
        serial: of its hardware.
    """

    device: str | None
    is_bound: bool = False
    is_replacing: bool = False
    name_problem: str | None = None
    holder: str | None = None
    key_holder: str | None = None
    serial: str | None = None


@dataclass(frozen=True)
class Decision:
    """What to do with who asks to join.

    Attributes:
        reason: for the operator, and for whoever asked.
        is_duplicate: the name is another key's.
    """

    verdict: Verdict
    reason: str
    is_duplicate: bool = False


def decide(approval: Approval, who: Candidate) -> Decision:
    """Whether `who` may join under the settings `approval`."""
    if who.device is None:
        return Decision("wait", "it proposes no name")
    if who.name_problem is not None:
        return Decision("wait", who.name_problem)
    if who.key_holder is not None:
        return Decision("wait", f"its key is that of '{who.key_holder}'")
    if who.holder == "active" and not who.is_replacing:
        return Decision("wait", f"'{who.device}' is in use with another key", is_duplicate=True)
    if who.holder not in {None, "active"} and not who.is_bound:
        return Decision("wait", f"'{who.device}' was {who.holder}")
    if approval.mode == "hook":
        return Decision("ask hook", "the hook decides")
    if approval.mode == "allow-list":
        if who.is_bound:
            return Decision("approve", "its claim is for this name")
        if who.serial is not None and who.serial in approval.serials:
            return Decision("approve", "its hardware serial is listed")
        return Decision("wait", "neither its claim names it nor its hardware serial is listed")
    return Decision("wait", "every device waits for an operator")


# --- first contact ------------------------------------------------------------------------------------------


def take_request(session: Session, issuer: Issuer, claim_id: str, payload: bytes, now: datetime) -> Outcome:
    """A device asks to join under a claim."""
    claim = session.get(ClaimRow, claim_id)
    if claim is None:
        return Outcome()
    try:
        request = unseal(claim.proof_key, "request", EnrolRequest, payload)
        key_sha256 = read_request(request.csr).key_sha256
    except (ClaimError, CodecError, CertificateError) as error:
        note_fault(session, claim_id, "bad-request", f"a request under the claim is refused: {error}", now)
        return Outcome()
    row = session.scalars(select(EnrolmentRow).where(EnrolmentRow.claim == claim_id)).one_or_none()
    if row is None:
        state = claim_state(claim, now)
        if state != "open":
            return _rejection(issuer, claim, key_sha256, f"the claim is {state}")
        claim.state = "bound"
        row = EnrolmentRow(
            claim=claim_id,
            device=claim.device or request.device,
            state="pending",
            csr=request.csr,
            key_sha256=key_sha256,
            machine=request.machine.model_dump(mode="json", exclude_none=True),
            agent=request.agent,
            requested_at=now,
            is_answered=False,
        )
        session.add(row)
        session.flush()
        return _consider(session, issuer, claim, row, now)
    if row.key_sha256 != key_sha256:
        note_fault(session, claim_id, "claim-reused", "another key asks under a claim that was used", now)
        return _rejection(issuer, claim, key_sha256, "the claim was used with another key")
    if row.state == "approved":
        return _issue(session, issuer, claim, row, now)
    if row.state == "pending" and row.decided_by is None:
        # Settings may have changed, or the hook's answer was lost. A hook that left it open is not asked again.
        return _consider(session, issuer, claim, row, now)
    return _answer(issuer, claim, row)


def settle(session: Session, issuer: Issuer, claim_id: str, decision: Decision, now: datetime) -> Outcome:
    """Carry out what the hook said about the request under a claim."""
    row = session.scalars(select(EnrolmentRow).where(EnrolmentRow.claim == claim_id)).one()
    claim = session.get_one(ClaimRow, claim_id)
    if row.state != "pending":
        return _answer(issuer, claim, row)  # an operator was faster
    row.decided_by = SERVICE
    return _carry_out(session, issuer, claim, row, decision, now)


def carry_on(session: Session, issuer: Issuer, now: datetime) -> list[Outcome]:
    """What operators decided since the last call: certificates to issue, and answers to send."""
    rows = session.scalars(
        select(EnrolmentRow)
        .where(or_(EnrolmentRow.state == "approved", EnrolmentRow.state == "rejected"))
        .where(EnrolmentRow.is_answered.is_(False))
        .order_by(EnrolmentRow.id)
    ).all()
    outcomes = []
    for row in rows:
        claim = session.get_one(ClaimRow, row.claim)
        if row.state == "approved":
            outcomes.append(_issue(session, issuer, claim, row, now))
        else:
            outcomes.append(_answer(issuer, claim, row))
    return outcomes


# --- operators ----------------------------------------------------------------------------------------------


def list_pending(session: Session) -> list[EnrolmentRecord]:
    """Requests to join that wait for an operator, oldest first."""
    query = select(EnrolmentRow).where(EnrolmentRow.state == "pending").order_by(EnrolmentRow.id)
    return [_record(row) for row in session.scalars(query)]


def approve(
    session: Session,
    config: FleetConfig,
    which: str,
    *,
    name: str | None,
    replaces: bool,
    actor: str,
    now: datetime,
) -> EnrolmentRecord:
    """Let a device join; its certificate is made by the service, with the answer.

    Args:
        config: of the fleet.
        which: the name that it proposes, or its claim.
        name: another name to give to it.
        replaces: a device in use may lose its name's key to this one.
        actor: who says so.

    Raises:
        UnknownDeviceError: nothing of that name waits.
        DeviceStateError: it cannot have the name, which is in use with another key and `replaces` is not set, or
            too long for a certificate; or several wait under it.
    """
    row = _need_pending(session, which)
    device = name or row.device
    if device is None:
        raise DeviceStateError(
            f"the device of claim '{row.claim}' proposes no name",
            name=which,
            state="pending",
            hint="Give one with --as",
        )
    problem = _name_problem(session, config, device)
    if problem is not None:
        raise DeviceStateError(problem, name=device, state="pending", hint="Give another name with --as")
    holder = device_row(session, device)
    is_other = holder is not None and holder.standing == "active" and holder.key_sha256 != row.key_sha256
    if is_other and not replaces:
        raise DeviceStateError(
            f"'{device}' is in use with another key",
            name=device,
            state="active",
            hint="Give another name with --as, or say that this board takes its place with --replace",
        )
    row.device, row.state = device, "approved"
    row.decided_at, row.decided_by, row.is_answered = now, actor, False
    audit(session, actor, "approve", device, now, claim=row.claim, replaces=bool(is_other))
    return _record(row)


def reject(session: Session, which: str, *, reason: str, actor: str, now: datetime) -> EnrolmentRecord:
    """Send a device away.

    Raises:
        UnknownDeviceError: nothing of that name waits.
        DeviceStateError: several wait under it.
    """
    row = _need_pending(session, which)
    row.state, row.reason = "rejected", reason
    row.decided_at, row.decided_by, row.is_answered = now, actor, False
    audit(session, actor, "reject", row.device or row.claim, now, claim=row.claim, reason=reason)
    return _record(row)


# --- inside: first contact ----------------------------------------------------------------------------------


def _consider(session: Session, issuer: Issuer, claim: ClaimRow, row: EnrolmentRow, now: datetime) -> Outcome:
    decision = decide(issuer.config.approval, _candidate(session, issuer.config, claim, row))
    if decision.verdict == "ask hook":
        return Outcome(
            claim=row.claim,
            hook_input={
                "fleet": issuer.config.name,
                "claim": row.claim,
                "device": row.device,
                "key_sha256": row.key_sha256,
                "machine": row.machine,
                "agent": row.agent,
            },
        )
    return _carry_out(session, issuer, claim, row, decision, now)


def _candidate(session: Session, config: FleetConfig, claim: ClaimRow, row: EnrolmentRow) -> Candidate:
    who = Candidate(
        device=row.device,
        is_bound=claim.device is not None,
        is_replacing=claim.replaces,
        serial=Machine.model_validate(row.machine).serial,
    )
    if row.device is None:
        return who
    who = replace(who, name_problem=_name_problem(session, config, row.device))
    holder = device_row(session, row.device)
    if holder is not None and holder.key_sha256 != row.key_sha256:
        who = replace(who, holder=holder.standing)
    key_holder = session.scalars(select(DeviceRow).where(DeviceRow.key_sha256 == row.key_sha256)).first()
    if key_holder is not None and key_holder is not holder:
        who = replace(who, key_holder=key_holder.name)
    return who


def _carry_out(
    session: Session, issuer: Issuer, claim: ClaimRow, row: EnrolmentRow, decision: Decision, now: datetime
) -> Outcome:
    subject, is_news = row.device or row.claim, row.reason != decision.reason
    row.reason = decision.reason
    if decision.verdict == "approve":
        row.state, row.decided_at, row.decided_by = "approved", now, SERVICE
        audit(session, SERVICE, "approve", subject, now, claim=row.claim, reason=decision.reason)
        return _issue(session, issuer, claim, row, now)
    if decision.verdict == "reject":
        row.state, row.decided_at, row.decided_by = "rejected", now, SERVICE
        audit(session, SERVICE, "reject", subject, now, claim=row.claim, reason=decision.reason)
    elif is_news:
        kind = "duplicate-identity" if decision.is_duplicate else "waits"
        text = f"a device waits for approval under claim {row.claim}: {decision.reason}"
        severity: Severity = "warning" if decision.is_duplicate else "info"
        note_event(session, subject, kind, text, now, severity=severity)
    return _answer(issuer, claim, row)


def _issue(session: Session, issuer: Issuer, claim: ClaimRow, row: EnrolmentRow, now: datetime) -> Outcome:
    """Certify an approved device."""
    if row.device is None:
        raise DeviceStateError(
            f"claim '{row.claim}' is approved without a name", name=row.claim, state=row.state
        )
    device = device_row(session, row.device)
    disconnect = None
    if device is None:
        device = DeviceRow(name=row.device, created_at=now, notes="", certificates=[])
        session.add(device)
    elif device.key_sha256 != row.key_sha256:
        if device.standing == "active":
            disconnect = device.name
        revoke_certificates(device, "replaced by another key", now)
        forget_machines(session, device)
    machine = Machine.model_validate(row.machine)
    device.standing, device.key_sha256 = "active", row.key_sha256
    device.finding = device.finding_text = device.rename_to = device.presence = None
    device.board, device.serial, device.agent = machine.board, machine.serial, row.agent
    device.profile = claim.profile or device.profile
    row.certificate = certify(session, issuer, device, read_request(row.csr), device.name, now)
    row.state = "issued"
    note_event(session, device.name, "joined", f"joined under claim {row.claim}", now, device=device)
    return replace(_answer(issuer, claim, row), broker_changed=True, disconnect=disconnect)


def _answer(issuer: Issuer, claim: ClaimRow, row: EnrolmentRow) -> Outcome:
    if row.certificate is not None and row.certificate.revoked_at is not None:
        reason = f"its certificate was revoked: {row.certificate.reason}"
        reply = EnrolReply(state="rejected", key_sha256=row.key_sha256, reason=reason[:_MAX_REASON])
    elif row.certificate is not None:
        root = issuer.trust_root()
        reply = EnrolReply(
            state="issued",
            key_sha256=row.key_sha256,
            device=row.device,
            certificate=row.certificate.pem,
            host=issuer.config.broker.host,
            port=issuer.config.broker.port,
            trust_root=None if root is None else base64.b64encode(root).decode(),
        )
    elif row.state == "rejected":
        reason = row.reason or "rejected"
        reply = EnrolReply(state="rejected", key_sha256=row.key_sha256, reason=reason[:_MAX_REASON])
    else:
        reason = row.reason or "nobody has looked yet"
        reply = EnrolReply(state="pending", key_sha256=row.key_sha256, reason=reason[:_MAX_REASON])
    row.is_answered = row.state != "pending"
    return _sealed(issuer, claim, reply)


def _rejection(issuer: Issuer, claim: ClaimRow, key_sha256: str, reason: str) -> Outcome:
    return _sealed(issuer, claim, EnrolReply(state="rejected", key_sha256=key_sha256, reason=reason))


def _sealed(issuer: Issuer, claim: ClaimRow, reply: EnrolReply) -> Outcome:
    topic = topics.enrol_topic(issuer.config.name, claim.claim, "reply")
    return Outcome(reply=seal(claim.proof_key, "reply", reply), topic=topic, claim=claim.claim)


# --- inside: requests ---------------------------------------------------------------------------------------


def _name_problem(session: Session, config: FleetConfig, name: str) -> str | None:
    """Why nobody can have that name now."""
    try:
        common_name(config.name, name)
    except EdgeslmError as error:
        return str(error)
    if session.scalars(select(DeviceRow).where(DeviceRow.rename_to == name)).first() is not None:
        return f"another device is about to be called '{name}'"
    return None


def _need_pending(session: Session, which: str) -> EnrolmentRow:
    query = select(EnrolmentRow).where(EnrolmentRow.state == "pending")
    rows = session.scalars(query.where(or_(EnrolmentRow.device == which, EnrolmentRow.claim == which))).all()
    if not rows:
        waiting = session.scalars(query).all()
        names = [row.device or row.claim for row in waiting]
        near = tuple(difflib.get_close_matches(which, names, n=3))
        raise UnknownDeviceError(f"nothing called '{which}' waits for approval", name=which, nearest=near)
    if len(rows) > 1:
        claims = ", ".join(row.claim for row in rows)
        raise DeviceStateError(
            f"{len(rows)} devices wait as '{which}'",
            name=which,
            state="pending",
            hint=f"Name one by its claim: {claims}",
        )
    return rows[0]


def _record(row: EnrolmentRow) -> EnrolmentRecord:
    machine = Machine.model_validate(row.machine)
    return EnrolmentRecord(
        claim=row.claim,
        device=row.device,
        state=cast(EnrolmentState, row.state),
        reason=row.reason,
        board=machine.board,
        serial=machine.serial,
        key_sha256=row.key_sha256,
        agent=row.agent,
        requested_at=row.requested_at,
        decided_at=row.decided_at,
        decided_by=row.decided_by,
    )
