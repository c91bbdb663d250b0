"""Whether an assignment is one that this device may follow.

An assignment is signed with keys to which the repository's targets delegate ``assignments/<fleet>/<device>``, in
TUF's own way: a role ``assignments-...`` with keys, threshold and paths. So a broker, however broken, forges
nothing; keys are rotated like any other; and a fleet may give groups of devices keys of their own. The role has no
targets metadata, it only signs assignments.

The body has one byte form: canonical JSON of ``{"signatures": [...], "signed": {...}}``. Anything that is not written
exactly so is refused, so that no part of it can escape the signatures or be read in two ways. Fields that this
release does not know are covered by the signature and otherwise ignored.

An expired or older assignment changes nothing; the device goes on with what it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pydantic import ValidationError
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import Signature
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Targets

from edgeslm.codec import describe
from edgeslm.errors import (
    AssignmentFormatError,
    AssignmentSignatureError,
    ExpiredAssignmentError,
    ForeignAssignmentError,
    ReplayedAssignmentError,
)
from edgeslm.schema.assignment import MAX_ASSIGNMENT_BYTES, Assignment, utc_text
from edgeslm.trust.decisions import parse_json

ROLE_PREFIX = "assignments-"
_MAX_SIGNATURES = 8
_BODY = "assignment"


def assignment_path(fleet: str, device: str) -> str:
    """What has to be delegated to whoever signs assignments for the device."""
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


def payload(assignment: Assignment) -> bytes:
    """The bytes that are signed."""
    return canonical(assignment.model_dump(mode="json", exclude_none=True))


def body(assignment: Assignment, signatures: Iterable[Signature]) -> bytes:
    """The bytes that travel."""
    signed = assignment.model_dump(mode="json", exclude_none=True)
    return canonical({"signatures": [signature.to_dict() for signature in signatures], "signed": signed})


def verify_assignment(
    data: bytes,
    authority: Targets,
    *,
    fleet: str,
    device: str,
    device_key_sha256: str,
    last_seq: int,
    now: datetime,
) -> Assignment:
    """The assignment in `data`, if this device may follow it.

    The one that was followed last, come again, is accepted: brokers repeat what they retain.

    Args:
        data: body of the message.
        authority: the trusted top-level targets, which delegate the signing.
        fleet: of this device.
        device: this device.
        device_key_sha256: digest of its public key.
        last_seq: number of the assignment that was followed last; 0 if none.
        now: the trusted time.

    Raises:
        AssignmentFormatError: not an assignment in its one form.
        AssignmentSignatureError: not signed by enough of the keys that are delegated to.
        ForeignAssignmentError: for another fleet, device or device key.
        ReplayedAssignmentError: older than the one followed last.
        ExpiredAssignmentError: its time is over.
    """
    signed, signatures = _parts(data)
    signed_bytes = canonical(signed)
    _check_signatures(authority, assignment_path(fleet, device), signed_bytes, signatures)
    assignment = _parse(signed, signed_bytes)
    for what, actual, expected in (
        ("fleet", assignment.fleet, fleet),
        ("device", assignment.device, device),
        ("device key", assignment.device_key_sha256, device_key_sha256),
    ):
        if actual != expected:
            raise ForeignAssignmentError(
                f"the assignment is for another {what}", role=_BODY, expected=expected, actual=actual
            )
    if assignment.seq < last_seq:
        raise ReplayedAssignmentError(
            "the assignment is older than the one followed last",
            role=_BODY, expected=f"at least {last_seq}", actual=str(assignment.seq),
        )  # fmt: skip
    if now >= assignment.expires_at:
        raise ExpiredAssignmentError(
            "the assignment has expired",
            role=_BODY, expected=f"before {utc_text(assignment.expires_at)}", actual=utc_text(now),
        )  # fmt: skip
    return assignment


def _parts(data: bytes) -> tuple[dict[str, object], dict[str, Signature]]:
    if len(data) > MAX_ASSIGNMENT_BYTES:
        raise AssignmentFormatError(
            "the assignment is longer than it may be",
            role=_BODY, expected=f"at most {MAX_ASSIGNMENT_BYTES} bytes", actual=f"{len(data)} bytes",
        )  # fmt: skip
    try:
        value = parse_json(data)
        in_form = canonical(value) == data
    except ValueError as error:
        raise AssignmentFormatError(f"the assignment is not plain JSON: {error}", role=_BODY) from error
    if not in_form:
        raise AssignmentFormatError("the assignment is not written as canonical JSON", role=_BODY)
    if not isinstance(value, dict) or value.keys() != {"signed", "signatures"}:
        raise AssignmentFormatError("the assignment is not covered by its signatures as a whole", role=_BODY)
    signed, listed = value["signed"], value["signatures"]
    if not isinstance(signed, dict) or not isinstance(listed, list) or len(listed) > _MAX_SIGNATURES:
        raise AssignmentFormatError("the assignment is not of the form of one", role=_BODY)
    try:
        signatures = [Signature.from_dict(item) for item in listed]
    except (KeyError, TypeError, AttributeError) as error:
        raise AssignmentFormatError("the assignment has a signature that is none", role=_BODY) from error
    found = {str(signature.keyid): signature for signature in signatures}
    if len(found) != len(signatures):
        raise AssignmentFormatError("the assignment has two signatures of one key", role=_BODY)
    return signed, found


def _check_signatures(
    authority: Targets, path: str, signed_bytes: bytes, signatures: dict[str, Signature]
) -> None:
    delegations = authority.delegations
    roles = [role for role, _ in delegations.get_roles_for_target(path)] if delegations else []
    role = next((role for role in roles if role.startswith(ROLE_PREFIX)), None)
    if role is None:
        raise AssignmentSignatureError(f"the repository delegates {path} to nobody", role="targets")
    try:
        authority.verify_delegate(role, signed_bytes, signatures)
    except UnsignedMetadataError as error:
        raise AssignmentSignatureError(f"the assignment is not signed: {error}", role=role) from error


def _parse(signed: dict[str, object], signed_bytes: bytes) -> Assignment:
    # Asked before the schema, which would fill in what is missing.
    if signed.get("type") != _BODY or signed.get("v") != 1:
        raise AssignmentFormatError(
            "the assignment is of a kind that this release does not know",
            role=_BODY, expected="type assignment, v 1",
            actual=f"type {ascii(signed.get('type'))[:40]}, v {ascii(signed.get('v'))[:40]}",
        )  # fmt: skip
    try:
        return Assignment.model_validate_json(signed_bytes)
    except ValidationError as error:
        raise AssignmentFormatError(f"the assignment: {describe(error)}", role=_BODY) from error
