"""Metadata of a release repository in memory: reading it, the next version of it, and what it says in words."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Metadata, Role, Root, Signed, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from edgeslm.errors import MetadataFormatError, ReleaseRepositoryError, SigningKeyError
from edgeslm.schema.assignment import utc_text
from edgeslm.schema.release import FLOORS_FIELD
from edgeslm.trust.clock import ISSUED_FIELD
from edgeslm.trust.decisions import check_form

KindT = TypeVar("KindT", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True)
class RoleKeys:
    """The keys of a role, and how many of them have to sign.

    Raises:
        ReleaseRepositoryError: fewer keys than have to sign, or one key twice.
    """

    keys: tuple[Key, ...]
    threshold: int = 1

    def __post_init__(self) -> None:
        check_keys(self.keys, self.threshold)


def check_keys(keys: Sequence[Key], threshold: int) -> None:
    """Refuse keys that could not, or not in that number, sign.

    Raises:
        ReleaseRepositoryError: fewer keys than have to sign, or one key twice.
    """
    # By what they are, not by their ids: one key under two ids would be worth two signatures.
    if len({str(key.keyval) for key in keys}) != len(keys):
        raise ReleaseRepositoryError("one key cannot count twice")
    if not 1 <= threshold <= len(keys):
        raise ReleaseRepositoryError(f"{threshold} of {len(keys)} keys cannot be a threshold")


def parse(kind: type[KindT], data: bytes, role: str, max_bytes: int) -> Metadata[KindT]:
    """The metadata in `data`.

    Raises:
        MetadataError: it is none of that kind.
    """
    check_form(data, role, max_bytes)
    try:
        metadata: Metadata[KindT] = Metadata.from_bytes(data)
    except DeserializationError as error:
        reason = str(error.__cause__ or error)[:200]
        raise MetadataFormatError(f"{role} is not metadata: {reason}", role=role) from error
    if not isinstance(metadata.signed, kind):
        raise MetadataFormatError(
            f"{role} is metadata of another kind", role=role, expected=kind.type, actual=metadata.signed.type
        )
    return metadata


def next_version(metadata: Metadata[KindT]) -> Metadata[KindT]:
    """A copy of `metadata` to be changed, of the version after it and without signatures."""
    draft = Metadata(copy.deepcopy(metadata.signed))
    draft.signed.version += 1
    return draft


def stamp(metadata: Metadata[KindT], now: datetime, lifetime_days: int) -> None:
    """Say when it was made and when it expires; signatures on what it said before are dropped."""
    metadata.signed.expires = now + timedelta(days=lifetime_days)
    metadata.signed.unrecognized_fields[ISSUED_FIELD] = utc_text(now)
    metadata.signatures.clear()


def sign_online(metadata: Metadata[KindT], role: Role, signers: Sequence[Signer]) -> None:
    """Sign with every key that the role has.

    Raises:
        SigningKeyError: too few of `signers` are keys of the role.
    """
    able = [signer for signer in signers if signer.public_key.keyid in role.keyids]
    if len(able) < role.threshold:
        needed = ", ".join(keyid[:8] for keyid in role.keyids)
        raise SigningKeyError(
            f"{metadata.signed.type} needs {role.threshold} of the keys {needed}; {len(able)} of them were given"
        )
    for signer in able:
        metadata.sign(signer, append=True)


def replace_keys(
    keyring: dict[str, Key], role: Role, *, add: Sequence[Key], remove: Sequence[str], threshold: int | None
) -> None:
    """Change the keys of a role, among all keys of its delegator.

    Args:
        keyring: every key of the delegator, by id.
        role: the role.
        add: new keys.
        remove: ids of keys, or beginnings that name one.
        threshold: how many have to sign; as before if ``None``.

    Raises:
        ReleaseRepositoryError: a key to remove is none of the role's, or too few would be left.
    """
    gone = {_only(role.keyids, begin) for begin in remove}
    found = {keyid: keyring[keyid] for keyid in role.keyids if keyid not in gone}
    found |= {key.keyid: key for key in add}
    check_keys(list(found.values()), role.threshold if threshold is None else threshold)
    role.keyids, role.threshold = list(found), role.threshold if threshold is None else threshold
    keyring |= found


def drop_unused_keys(keyring: dict[str, Key], roles: Iterable[Role]) -> None:
    """Forget keys that no role has any more."""
    used = {keyid for role in roles for keyid in role.keyids}
    for keyid in keyring.keys() - used:
        del keyring[keyid]


def _only(keyids: Sequence[str], begin: str) -> str:
    found = [keyid for keyid in keyids if keyid.startswith(begin)]
    if len(found) != 1:
        raise ReleaseRepositoryError(
            f"'{begin[:64]}' names {len(found)} of the role's keys",
            hint=f"It has {', '.join(keyid[:8] for keyid in keyids)}",
        )
    return found[0]


# --- in words -----------------------------------------------------------------------------------------------


def changes(before: Signed | None, after: Signed) -> tuple[str, ...]:
    """What `after` says that `before` did not, and the other way round, a line each."""
    old, new = dict.fromkeys(_lines(before) if before else ()), dict.fromkeys(_lines(after))
    lost = [f"- {line}" for line in old if line not in new]
    return (*lost, *(f"+ {line}" for line in new if line not in old))


def _lines(signed: Signed) -> Iterator[str]:
    if isinstance(signed, Root):
        for name, role in sorted(signed.roles.items()):
            yield f"{name}: {_keys(role)}"
    elif isinstance(signed, Targets):
        for path, target in sorted(signed.targets.items()):
            yield f"{path}: {target.length} bytes, {target.hashes}, {json.dumps(target.custom, sort_keys=True)}"
        for name, floor in sorted(signed.unrecognized_fields.get(FLOORS_FIELD, {}).items()):
            yield f"security floor of {name}: {floor}"
        for role in (signed.delegations.roles or {}).values() if signed.delegations else ():
            yield f"{role.name} may sign {', '.join(role.paths or ())}: {_keys(role)}"


def _keys(role: Role) -> str:
    return f"{role.threshold} of {', '.join(keyid[:8] for keyid in sorted(role.keyids))}"
