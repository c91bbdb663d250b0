"""Claims: made for a device that is to join, used once, and gone.

What always holds: of a claim's secret the store keeps the digest of one password and the key of one seal, both
derived from it and of no use for anything else; a claim that was used is bound to the key that used it.

A claim is ``open`` until a device uses it, or it expires; then ``bound`` to that device's key, and answered again
and again, until the fleet has seen the certificate in use: then it is ``used``. Expiry is for open claims only: a
device that was cut off while it joined may come back later.

Left to others: what a device says under a claim (:mod:`edgeslm.fleet.enrolment`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from edgeslm.errors import DeviceStateError, UnknownDeviceError
from edgeslm.fleet.broker_files import hash_password
from edgeslm.fleet.ca import common_name
from edgeslm.fleet.registry import audit, device_row
from edgeslm.fleet.store.models import ClaimRow
from edgeslm.schema.enrol import Claim
from edgeslm.schema.fleet import ClaimRecord, ClaimState, FleetConfig
from edgeslm.trust.claim import Token, broker_password, new_claim_id, new_secret, pem_pin, proof_key

MAX_LIFE = timedelta(days=365)


@dataclass(frozen=True)
class NewClaim:
    """A claim in its two forms; both hold the secret, which is kept nowhere else.

    Attributes:
        claim: whole, as a file.
        token: to be typed.
    """

    claim: Claim
    token: Token


def issue_claim(
    session: Session,
    config: FleetConfig,
    authority_pem: str,
    *,
    device: str | None,
    profile: str | None,
    replaces: bool,
    life: timedelta,
    actor: str,
    now: datetime,
) -> NewClaim:
    """Make a claim.

    Args:
        config: of the fleet.
        authority_pem: certificate of its authority.
        device: the name that the device gets; ``None`` lets it propose one.
        profile: what it is set up to do.
        replaces: the device of that name may be there already, and gets a new key.
        life: how long the claim is open.
        actor: who makes it.

    Raises:
        DeviceStateError: the name belongs to a device in use, and `replaces` is not set.
        FleetSetupError: the name is too long for a certificate.
        TopicError: the name is none.
    """
    if device is not None:
        common_name(config.name, device)
        known = device_row(session, device)
        if known is not None and known.standing == "active" and not replaces:
            raise DeviceStateError(
                f"'{device}' is a device of this fleet already",
                name=device,
                state=known.standing,
                hint="Say that the claim is to replace its key (--replace), or take another name",
            )
    secret = new_secret()
    claim = Claim(
        fleet=config.name,
        claim=new_claim_id(),
        secret=secret,
        device=device,
        profile=profile,
        host=config.broker.host,
        port=config.broker.claim_port,
        ca=authority_pem,
        expires_at=now + life,
    )
    session.add(
        ClaimRow(
            claim=claim.claim,
            state="open",
            device=device,
            profile=profile,
            replaces=replaces,
            password_hash=hash_password(broker_password(secret)),
            proof_key=proof_key(secret),
            created_at=now,
            created_by=actor,
            expires_at=now + life,
        )
    )
    audit(session, actor, "claim", device or claim.claim, now, claim=claim.claim, replaces=replaces)
    return NewClaim(claim, Token(claim.claim, secret, pem_pin(authority_pem)))


def revoke_claim(session: Session, claim: str, *, actor: str, now: datetime) -> None:
    """Take a claim back.

    Raises:
        UnknownDeviceError: there is none of that name.
        DeviceStateError: it was used, or taken back before.
    """
    row = session.get(ClaimRow, claim)
    if row is None:
        raise UnknownDeviceError(f"no claim '{claim}'", name=claim)
    if row.state in {"used", "revoked"}:
        raise DeviceStateError(f"claim '{claim}' is {row.state}", name=claim, state=row.state)
    row.state = "revoked"
    audit(session, actor, "revoke-claim", claim, now)


def list_claims(session: Session, now: datetime) -> list[ClaimRecord]:
    """All claims, newest first."""
    rows = session.scalars(select(ClaimRow).order_by(ClaimRow.created_at.desc(), ClaimRow.claim))
    return [claim_record(row, now) for row in rows]


def usable_claims(session: Session, now: datetime) -> Sequence[ClaimRow]:
    """The claims that may log in: open and in time, or bound."""
    return session.scalars(select(ClaimRow).where(_is_usable(now)).order_by(ClaimRow.claim)).all()


def _is_usable(now: datetime) -> ColumnElement[bool]:
    return (ClaimRow.state == "bound") | ((ClaimRow.state == "open") & (ClaimRow.expires_at > now))


def usable_logins(session: Session, now: datetime) -> Sequence[tuple[str, str]]:
    """Claims that may log in, as :func:`usable_claims`, with the hashes of their passwords."""
    rows = session.execute(
        select(ClaimRow.claim, ClaimRow.password_hash).where(_is_usable(now)).order_by(ClaimRow.claim)
    )
    return [(claim, password_hash) for claim, password_hash in rows]


def claim_record(row: ClaimRow, now: datetime) -> ClaimRecord:
    """A claim as commands print it."""
    return ClaimRecord(
        claim=row.claim,
        state=claim_state(row, now),
        device=row.device,
        profile=row.profile,
        replaces=row.replaces,
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
    )


def claim_state(row: ClaimRow, now: datetime) -> ClaimState:
    """Where a claim is in its life."""
    match row.state:
        case "open":
            return "expired" if row.expires_at <= now else "open"
        case "bound":
            return "bound"
        case "used":
            return "used"
        case _:
            return "revoked"
