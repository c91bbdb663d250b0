"""Judges a device's own certificate, and says when the next one is due.

A certificate is judged by a TLS handshake in memory: that checks its chain, its purpose and that it is of our key,
with the code that the broker uses, and needs no library that would stay in the agent's memory. Its dates are left
out of that judgement, since the board's clock may say 1970; the broker, which knows the time, judges them at every
connection. The other way round, an authority's and a broker's certificate are valid from 1970 on
(:mod:`edgeslm.fleet.ca`), and a device knows from its own certificate what time it is at least.

A certificate also says by its digest which root of the release repository the fleet's authority gives to the device
(:func:`root_name`), so that a root which came with it can be told from one that a broker made up.

Left to others: where certificates lie (:mod:`edgeslm.trust.identity`), and issuing them (:mod:`edgeslm.fleet.ca`).
"""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm.errors import CertificateError
from edgeslm.schema.base import is_identifier

_X509_V_FLAG_NO_CHECK_TIME = 0x200000
"""OpenSSL, X509_VERIFY_PARAM_set_flags(3); Python's ssl has no name for it."""
_ROOT_NAME = re.compile(r"urn:edgeslm:root:sha256:([0-9a-f]{64})")
RENEW_AFTER = 2 / 3
"""Share of a certificate's life after which the next one is asked for."""


@dataclass(frozen=True)
class CertificateFacts:
    """What stands in a certificate that passed :func:`inspect`.

    Attributes:
        serial: serial number in hexadecimal.
        not_before_s: Unix time from which it is valid: the least that the time can be.
        not_after_s: Unix time until which it is valid.
        root_sha256: digest of the root of the release repository that the device may begin with, if it names one.
    """

    fleet: str
    device: str
    serial: str
    not_before_s: float
    not_after_s: float
    root_sha256: str | None = None


def root_name(root_sha256: str) -> str:
    """The name by which a certificate vouches for a root: a URI among its alternative names."""
    return f"urn:edgeslm:root:sha256:{root_sha256}"


def root_named(uris: Iterable[str]) -> str | None:
    """The digest of the root that a certificate with those URIs vouches for; the inverse of :func:`root_name`."""
    found = [match[1] for match in map(_ROOT_NAME.fullmatch, uris) if match is not None]
    return found[0] if len(found) == 1 else None


def renewal_due(facts: CertificateFacts, now_s: float) -> bool:
    """Whether to ask for the next certificate.

    A clock that is before the certificate's beginning is not set. Then asking is right as well: the fleet knows
    the time, and answers only if it is due.

    Args:
        now_s: the board's clock, Unix time.
    """
    life_s = facts.not_after_s - facts.not_before_s
    return now_s < facts.not_before_s or now_s >= facts.not_before_s + RENEW_AFTER * life_s


def inspect(certificate: Path, key: Path, authority: Path) -> CertificateFacts:
    """What stands in `certificate`, once it is sure that it is ours: of `key`, and signed by `authority`.

    Raises:
        CertificateError: it is not, it is for no client, its name is none of a device, or a file is unreadable.
    """
    try:
        found = _shake_hands(certificate, key, authority)
        subject = dict(item for group in found["subject"] for item in group)
        fleet, _, device = str(subject.get("commonName", "")).partition("/")
        facts = CertificateFacts(
            fleet=fleet,
            device=device,
            serial=str(found["serialNumber"]).lower().lstrip("0"),
            not_before_s=float(ssl.cert_time_to_seconds(found["notBefore"])),
            not_after_s=float(ssl.cert_time_to_seconds(found["notAfter"])),
            root_sha256=root_named(name for kind, name in found.get("subjectAltName", ()) if kind == "URI"),
        )
    except (OSError, ValueError, KeyError) as error:  # ssl.SSLError is an OSError
        raise CertificateError(
            f"{certificate} is no certificate of this device's key by its fleet's authority: {error}",
            role="certificate",
        ) from error
    if not (is_identifier(facts.fleet) and is_identifier(facts.device)):
        raise CertificateError(f"{certificate} names no device of a fleet", role="certificate")
    return facts


def _shake_hands(certificate: Path, key: Path, authority: Path) -> dict[str, Any]:
    """The certificate as a TLS server sees it that asks its client for one; both are in memory."""
    # The server shows the same certificate, which its client does not look at: some certificate it has to have.
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    server.load_verify_locations(authority)
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VerifyFlags(_X509_V_FLAG_NO_CHECK_TIME)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.load_cert_chain(certificate, key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(4):  # TLS 1.3 takes two rounds
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return dict(ends[1].getpeercert() or {})
