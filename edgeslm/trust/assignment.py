"""Whether an assignment is one that this device may follow.

An assignment is a signed document (:mod:`edgeslm.trust.document`). An expired or older assignment changes nothing; the
device goes on with what it has.
"""

from __future__ import annotations

from datetime import datetime

from tuf.api.metadata import Targets

from edgeslm.errors import (
    AssignmentFormatError,
    AssignmentSignatureError,
    ExpiredAssignmentError,
    ForeignAssignmentError,
    ReplayedAssignmentError,
)
from edgeslm.schema.assignment import MAX_ASSIGNMENT_BYTES, Assignment
from edgeslm.trust.document import Kind, check_address, check_time, read_document

ASSIGNMENT = Kind(
    name="assignment",
    model=Assignment,
    max_bytes=MAX_ASSIGNMENT_BYTES,
    format_error=AssignmentFormatError,
    signature_error=AssignmentSignatureError,
    foreign_error=ForeignAssignmentError,
    expired_error=ExpiredAssignmentError,
)


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
    assignment = read_document(ASSIGNMENT, data, authority, fleet=fleet, device=device)
    check_address(ASSIGNMENT, assignment, fleet=fleet, device=device, device_key_sha256=device_key_sha256)
    if assignment.seq < last_seq:
        raise ReplayedAssignmentError(
            "the assignment is older than the one followed last",
            role=ASSIGNMENT.name, expected=f"at least {last_seq}", actual=str(assignment.seq),
        )  # fmt: skip
    check_time(ASSIGNMENT, assignment, now)
    return assignment
