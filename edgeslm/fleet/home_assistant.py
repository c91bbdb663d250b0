"""Home Assistant at the fleet's broker: one client beside the devices, with a certificate of the authority.

What always holds: at most one certificate is good at a time. A new one takes the place of the former, which is on the
revocation list from then on; so does taking access away. The private key leaves with its owner and is not kept.

Left to others: what its holder may do (:func:`edgeslm.topics.home_assistant_access`), and bringing the revocation to
the broker (:mod:`edgeslm.fleet.broker`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

from pydantic import Field, ValidationError
from sqlalchemy.orm import Session

from edgeslm.codec import describe
from edgeslm.errors import FleetError
from edgeslm.fleet.broker_files import HOME_ASSISTANT
from edgeslm.fleet.ca import CertificateAuthority, IssuedCertificate, Revoked, key_pem, new_key
from edgeslm.fleet.registry import audit
from edgeslm.fleet.store.models import FactRow
from edgeslm.schema.base import FileModel

_FACT: Final = "home-assistant"
_MAX_KEPT: Final = 1000


class _Issued(FileModel):
    """One certificate; times are ISO 8601."""

    serial: str
    not_after: datetime
    revoked_at: datetime | None = None


class _Known(FileModel):
    """Certificates that have not run out, the newest last."""

    certificates: Annotated[tuple[_Issued, ...], Field(max_length=_MAX_KEPT)] = ()


@dataclass(frozen=True)
class HomeAssistantIdentity:
    """What Home Assistant shows at the broker.

    Attributes:
        key_pem: the private key, PEM without a passphrase, since Home Assistant takes no other.
    """

    certificate: IssuedCertificate
    key_pem: bytes


def issue_identity(
    session: Session, authority: CertificateAuthority, *, actor: str, now: datetime
) -> HomeAssistantIdentity:
    """A new identity; the one before is revoked.

    Raises:
        FleetError: what the store says of earlier ones cannot be read, or there are too many of them.
    """
    key = new_key()
    issued = authority.issue_client(key.public_key(), HOME_ASSISTANT, now)
    before = _revoked(_read(session, now), now)
    if len(before) >= _MAX_KEPT:
        raise FleetError(f"Home Assistant had {_MAX_KEPT} certificates in five years: no more are made")
    _write(session, (*before, _Issued(serial=issued.serial, not_after=issued.not_after)))
    audit(session, actor, "issue-home-assistant", HOME_ASSISTANT, now, serial=issued.serial)
    return HomeAssistantIdentity(issued, key_pem(key))


def revoke_identity(session: Session, *, actor: str, now: datetime) -> bool:
    """Take the access away; whether there was any.

    Raises:
        FleetError: what the store says cannot be read.
    """
    before = _read(session, now)
    had_one = any(one.revoked_at is None for one in before)
    if had_one:
        _write(session, _revoked(before, now))
        audit(session, actor, "revoke-home-assistant", HOME_ASSISTANT, now)
    return had_one


def has_identity(session: Session, now: datetime) -> bool:
    """Whether a certificate is good.

    Raises:
        FleetError: what the store says cannot be read.
    """
    return any(one.revoked_at is None for one in _read(session, now))


def revoked_identities(session: Session, now: datetime) -> list[Revoked]:
    """Those on the revocation list.

    Raises:
        FleetError: what the store says cannot be read.
    """
    return [Revoked(one.serial, one.revoked_at) for one in _read(session, now) if one.revoked_at is not None]


def _revoked(known: tuple[_Issued, ...], now: datetime) -> tuple[_Issued, ...]:
    return tuple(
        one if one.revoked_at is not None else one.model_copy(update={"revoked_at": now}) for one in known
    )


def _read(session: Session, now: datetime) -> tuple[_Issued, ...]:
    fact = session.get(FactRow, _FACT)
    if fact is None:
        return ()
    try:
        known = _Known.model_validate(fact.value, strict=False)
    except ValidationError as error:
        raise FleetError(f"the store's note on Home Assistant cannot be read: {describe(error)}") from error
    return tuple(one for one in known.certificates if one.not_after > now)


def _write(session: Session, known: tuple[_Issued, ...]) -> None:
    session.merge(FactRow(key=_FACT, value=_Known(certificates=known).model_dump(mode="json")))
