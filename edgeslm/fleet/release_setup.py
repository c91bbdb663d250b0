"""A first release repository with a key for each role, for a fleet of one operator.

::

    <keys>/root.pem  targets.pem                        encrypted; to be moved offline
    <keys>/snapshot.pem  timestamp.pem  assignments.pem  in the clear, for the machine that publishes and assigns
    <keys>/timestamp-2.pem and so on                     what a rotation puts in place of the first one
    <keys>/*.pub                                         their public halves
    <keys>/retired                                       keys that no role has any more

Being cut off anywhere does no harm: doing it again completes it, and never replaces a key. More keys, thresholds and
teams come later, by rotation and delegation (:mod:`edgeslm.fleet.releases`).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from securesystemslib.signer import Key, Signer

from edgeslm.clock import utc_now
from edgeslm.errors import SigningKeyError
from edgeslm.fleet.release_files import is_repository
from edgeslm.fleet.release_metadata import RoleKeys
from edgeslm.fleet.releases import ReleaseRepository
from edgeslm.fleet.signing import Passphrase, create_key, load_signer
from edgeslm.trust.clock import Clock
from edgeslm.trust.document import ROLE_PREFIX

OFFLINE_ROLES = ("root", "targets")
ONLINE_ROLES = ("snapshot", "timestamp")
ASSIGNMENTS = "assignments"
_RETIRED = "retired"


def set_up(
    directory: Path, keys: Path, fleet: str, passphrase: Passphrase, *, clock: Clock = utc_now
) -> ReleaseRepository:
    """Make keys and a repository, and publish it without releases.

    Args:
        directory: of the repository.
        keys: directory of the keys.
        fleet: name of the fleet whose assignments the key for assignments signs.
        passphrase: gives the passphrase of each offline key, when it is made and when it is opened.

    Raises:
        SigningKeyError: a key cannot be made or opened.
        ReleaseRepositoryError: the repository cannot be made.
        MetadataError: what an earlier attempt left is damaged.
    """
    offline = {role: _signer(keys, role, passphrase) for role in OFFLINE_ROLES}
    online = {role: _signer(keys, role, None) for role in (*ONLINE_ROLES, ASSIGNMENTS)}
    if is_repository(directory):
        repository = ReleaseRepository(directory, clock=clock)
    else:
        granted = {role: RoleKeys((signer.public_key,)) for role, signer in {**offline, **online}.items()}
        repository = ReleaseRepository.create(
            directory,
            root=granted["root"],
            targets=granted["targets"],
            snapshot=granted["snapshot"],
            timestamp=granted["timestamp"],
            clock=clock,
        )
    repository.delegate_assignments(fleet, RoleKeys((online[ASSIGNMENTS].public_key,)))
    waiting = {keyid for pending in repository.pending() for keyid in pending.may_sign}
    repository.sign_pending([signer for signer in offline.values() if signer.public_key.keyid in waiting])
    if repository.pending():
        repository.publish([online[role] for role in ONLINE_ROLES])
    return repository


def has_online_keys(keys: Path) -> bool:
    """Whether the keys that publish are in `keys`."""
    return all(_files(keys, role) for role in ONLINE_ROLES)


def online_signers(keys: Path) -> list[Signer]:
    """The keys that publish, those of a rotation that is not published yet among them.

    Raises:
        SigningKeyError: one of them is missing, or cannot be opened.
    """
    return [load_signer(path) for role in ONLINE_ROLES for path in _files(keys, role) or [_path(keys, role)]]


def assignment_signer(keys: Path) -> Signer:
    """The key that signs assignments.

    Raises:
        SigningKeyError: it cannot be opened.
    """
    # A newer one counts once the rotation that brought it is published: then the older one is retired.
    return load_signer(next(iter(_files(keys, ASSIGNMENTS)), _path(keys, ASSIGNMENTS)))


def make_online_key(keys: Path, role: str) -> tuple[Key, Path]:
    """A new key for a role that signs without a person, beside the one that it has.

    Args:
        keys: directory of the keys.
        role: snapshot, timestamp, or the role that signs assignments of a fleet.

    Raises:
        SigningKeyError: it cannot be written.
    """
    number = 2
    while (path := keys / f"{_file_name(role)}-{number}.pem").exists() or (
        keys / _RETIRED / path.name
    ).exists():
        number += 1
    return create_key(path, None), path


def retire_keys(keys: Path, used: Collection[str]) -> tuple[Path, ...]:
    """Put online keys aside that no role has any more; returns where they lie now.

    A role whose keys are elsewhere is left alone.

    Args:
        keys: directory of the keys.
        used: ids of all keys that roles have, or will have.

    Raises:
        SigningKeyError: a key cannot be opened or moved.
    """
    retired = []
    for role in (*ONLINE_ROLES, ASSIGNMENTS):
        known = {path: load_signer(path).public_key.keyid in used for path in _files(keys, role)}
        for path, is_used in known.items():
            if is_used or not any(known.values()):
                continue
            try:
                (keys / _RETIRED).mkdir(mode=0o700, exist_ok=True)
                for file in (path, path.with_suffix(".pub")):
                    if file.exists():
                        file.rename(keys / _RETIRED / file.name)
            except OSError as error:
                raise SigningKeyError(f"{path}: {error.strerror}", path=str(path)) from error
            retired.append(keys / _RETIRED / path.name)
    return tuple(retired)


def _file_name(role: str) -> str:
    return ASSIGNMENTS if role.startswith(ROLE_PREFIX) else role


def _files(keys: Path, role: str) -> list[Path]:
    """The files of an online role's keys, the oldest first."""
    numbered = {
        int(match[1]): path
        for path in keys.glob(f"{role}-*.pem")
        if (match := re.fullmatch(rf"{role}-([1-9][0-9]{{0,5}})\.pem", path.name))
    }
    first = [_path(keys, role)] if _path(keys, role).exists() else []
    return [*first, *(numbered[number] for number in sorted(numbered))]


def _path(keys: Path, role: str) -> Path:
    return keys / f"{role}.pem"


def _signer(keys: Path, role: str, passphrase: Passphrase | None) -> Signer:
    path = _path(keys, role)
    if not path.exists():
        create_key(path, passphrase(path) if passphrase else None)
    return load_signer(path, passphrase)
