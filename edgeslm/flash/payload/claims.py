"""The claim that lets a board join its fleet by itself: checked, and laid where only root and the agent see it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from edgeslm import codec
from edgeslm.errors import CertificateError, ClaimError, CodecError
from edgeslm.files import read_bounded
from edgeslm.flash.payload import layout
from edgeslm.flash.tree import Entry
from edgeslm.schema.enrol import Claim
from edgeslm.trust.claim import pem_pin

MAX_CLAIM_BYTES = 65_536
_MAKE = "Make one with: edgeslm fleet claim --out claim.json"


def read_claim(path: Path, *, now: datetime) -> Claim:
    """The claim in a file.

    Args:
        path: from ``edgeslm fleet claim --out``.
        now: aware; a claim that has expired by then is of no use.

    Raises:
        ClaimError: it cannot be read, is no claim, has expired, or its authority is none.
    """
    try:
        data = read_bounded(path.resolve(), MAX_CLAIM_BYTES)
    except OSError as error:
        raise ClaimError(f"{path} cannot be read: {error.strerror or error}", hint=_MAKE) from error
    try:
        claim = codec.decode(Claim, data, max_bytes=MAX_CLAIM_BYTES)
    except CodecError as error:
        raise ClaimError(f"{path} is no claim: {error}", hint=_MAKE) from error
    return check_claim(claim, now=now, shown_as=str(path))


def check_claim(claim: Claim, *, now: datetime, shown_as: str = "the claim") -> Claim:
    """Make sure that a claim can still be used.

    Raises:
        ClaimError: it has expired, or its authority is none.
    """
    if claim.expires_at is not None and claim.expires_at <= now:
        raise ClaimError(
            f"{shown_as} expired at {claim.expires_at:%Y-%m-%d %H:%M} UTC: the fleet would refuse the board",
            hint="Make a new one with: edgeslm fleet claim --out claim.json",
        )
    try:
        pem_pin(claim.ca)
    except CertificateError as error:
        raise ClaimError(f"{shown_as} names an authority that is no certificate", hint=_MAKE) from error
    return claim


def claim_entries(claim: Claim) -> tuple[Entry, ...]:
    """The claim on the board; it reaches the agent as a credential of its service."""
    return (
        Entry(layout.ETC, "directory", mode=0o755),
        Entry(layout.CLAIM, content=codec.encode(claim), mode=0o600),
    )
