"""Documents that are signed for one device: their one byte form, and who may sign them.

A document is signed with keys to which the repository's targets delegate ``assignments/<fleet>/<device>``, in TUF's
own way: a role ``assignments-...`` with keys, threshold and paths. So a broker, however broken, forges nothing; keys
are rotated like any other; and a fleet may give groups of devices keys of their own. The role has no targets metadata,
it only signs documents.

The body has one byte form: canonical JSON of ``{"signatures": [...], "signed": {...}}``. Anything that is not written
exactly so is refused, so that no part of it can escape the signatures or be read in two ways. What is signed says of
which type it is, and is asked for it before anything else, so that no document passes as one of another type. Fields
that this release does not know are covered by the signature and otherwise ignored.

Left to others: what a type of document means (:mod:`edgeslm.trust.assignment`, :mod:`edgeslm.trust.remote_config`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from pydantic import BaseModel, ValidationError
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import Signature
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Targets

from edgeslm.codec import describe
from edgeslm.errors import TrustError
from edgeslm.schema.assignment import utc_text
from edgeslm.trust.decisions import parse_json

ROLE_PREFIX = "assignments-"
_MAX_SIGNATURES = 8


class Document(Protocol):
    """What every document says."""

    @property
    def fleet(self) -> str:
        """For which fleet it is."""

    @property
    def device(self) -> str:
        """For which device."""

    @property
    def device_key_sha256(self) -> str:
        """For which key of that device."""

    @property
    def expires_at(self) -> datetime:
        """From then on it is not taken any more."""


DocumentT = TypeVar("DocumentT", bound=BaseModel)


@dataclass(frozen=True)
class Kind(Generic[DocumentT]):
    """A type of document.

    Attributes:
        name: of the type, as it stands in the document.
        model: its form.
        max_bytes: of its body.
        format_error: raised where it is no such document in its one form.
        signature_error: where the signatures do not do.
        foreign_error: where it is for another device.
        expired_error: where its time is over.
    """

    name: str
    model: type[DocumentT]
    max_bytes: int
    format_error: type[TrustError]
    signature_error: type[TrustError]
    foreign_error: type[TrustError]
    expired_error: type[TrustError]


def signing_path(fleet: str, device: str) -> str:
    """What has to be delegated to whoever signs documents for the device."""
    return f"assignments/{fleet}/{device}"


def canonical(value: object) -> bytes:
    """`value` in the one byte form that it has.

    Raises:
        ValueError: it holds what canonical JSON has no form for.
    """
    try:
        return str(encode_canonical(value)).encode()  # type: ignore[arg-type]
    except (FormatError, RecursionError) as error:
        raise ValueError(str(error)[:200]) from error


def payload(document: BaseModel) -> bytes:
    """The bytes that are signed."""
    return canonical(document.model_dump(mode="json", exclude_none=True))


def body(document: BaseModel, signatures: Iterable[Signature]) -> bytes:
    """The bytes that travel."""
    signed = document.model_dump(mode="json", exclude_none=True)
    return canonical({"signatures": [signature.to_dict() for signature in signatures], "signed": signed})


def read_document(
    kind: Kind[DocumentT], data: bytes, authority: Targets, *, fleet: str, device: str
) -> DocumentT:
    """The document in `data`, if those signed it who may do so for this device.

    Args:
        kind: what it has to be.
        data: as it came.
        authority: the trusted top-level targets, which delegate the signing.

    Raises:
        TrustError: it is none in its one form, or not signed by enough of the keys; of the classes of `kind`.
    """
    signed, signatures = _parts(kind, data)
    signed_bytes = canonical(signed)
    _check_signatures(kind, authority, signing_path(fleet, device), signed_bytes, signatures)
    # Asked before the schema, which would fill in what is missing.
    if signed.get("type") != kind.name or signed.get("v") != 1:
        raise kind.format_error(
            f"the {kind.name} is of a kind that this release does not know",
            role=kind.name, expected=f"type {kind.name}, v 1",
            actual=f"type {ascii(signed.get('type'))[:40]}, v {ascii(signed.get('v'))[:40]}",
        )  # fmt: skip
    try:
        return kind.model.model_validate_json(signed_bytes)
    except ValidationError as error:
        raise kind.format_error(f"the {kind.name}: {describe(error)}", role=kind.name) from error


def check_address(
    kind: Kind[DocumentT], document: Document, *, fleet: str, device: str, device_key_sha256: str
) -> None:
    """Make sure that `document` is for this device.

    Raises:
        TrustError: it is for another fleet, device or device key; of the class of `kind`.
    """
    for what, actual, expected in (
        ("fleet", document.fleet, fleet),
        ("device", document.device, device),
        ("device key", document.device_key_sha256, device_key_sha256),
    ):
        if actual != expected:
            raise kind.foreign_error(
                f"the {kind.name} is for another {what}", role=kind.name, expected=expected, actual=actual
            )


def check_time(kind: Kind[DocumentT], document: Document, now: datetime) -> None:
    """Make sure that the time of `document` is not over.

    Raises:
        TrustError: it is; of the class of `kind`.
    """
    if now >= document.expires_at:
        raise kind.expired_error(
            f"the {kind.name} has expired",
            role=kind.name, expected=f"before {utc_text(document.expires_at)}", actual=utc_text(now),
        )  # fmt: skip


def _parts(kind: Kind[DocumentT], data: bytes) -> tuple[dict[str, object], dict[str, Signature]]:
    if len(data) > kind.max_bytes:
        raise kind.format_error(
            f"the {kind.name} is longer than it may be",
            role=kind.name, expected=f"at most {kind.max_bytes} bytes", actual=f"{len(data)} bytes",
        )  # fmt: skip
    try:
        value = parse_json(data)
        in_form = canonical(value) == data
    except ValueError as error:
        raise kind.format_error(f"the {kind.name} is not plain JSON: {error}", role=kind.name) from error
    if not in_form:
        raise kind.format_error(f"the {kind.name} is not written as canonical JSON", role=kind.name)
    if not isinstance(value, dict) or value.keys() != {"signed", "signatures"}:
        raise kind.format_error(
            f"the {kind.name} is not covered by its signatures as a whole", role=kind.name
        )
    signed, listed = value["signed"], value["signatures"]
    if not isinstance(signed, dict) or not isinstance(listed, list) or len(listed) > _MAX_SIGNATURES:
        raise kind.format_error(f"the {kind.name} is not of the form of one", role=kind.name)
    try:
        signatures = [Signature.from_dict(item) for item in listed]
    except (KeyError, TypeError, AttributeError) as error:
        raise kind.format_error(f"the {kind.name} has a signature that is none", role=kind.name) from error
    if any(str(signature.signature) != str(signature.signature).lower() for signature in signatures):
        # It would be as good in capitals, and the document would have a second form.
        raise kind.format_error(f"the {kind.name} has a signature in capitals", role=kind.name)
    found = {str(signature.keyid): signature for signature in signatures}
    if len(found) != len(signatures):
        raise kind.format_error(f"the {kind.name} has two signatures of one key", role=kind.name)
    return signed, found


def _check_signatures(
    kind: Kind[DocumentT],
    authority: Targets,
    path: str,
    signed_bytes: bytes,
    signatures: dict[str, Signature],
) -> None:
    delegations = authority.delegations
    roles = [role for role, _ in delegations.get_roles_for_target(path)] if delegations else []
    role = next((role for role in roles if role.startswith(ROLE_PREFIX)), None)
    if role is None:
        raise kind.signature_error(f"the repository delegates {path} to nobody", role="targets")
    try:
        authority.verify_delegate(role, signed_bytes, signatures)
    except UnsignedMetadataError as error:
        raise kind.signature_error(f"the {kind.name} is not signed: {error}", role=role) from error
