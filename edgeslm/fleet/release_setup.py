"""A first release repository with a key for each role, for a fleet of one operator.

::

    <keys>/root.pem  targets.pem                        encrypted; to be moved offline
    <keys>/snapshot.pem  timestamp.pem  assignments.pem  in the clear, for the machine that publishes and assigns
    <keys>/*.pub                                         their public halves

Being cut off anywhere does no harm: doing it again completes it, and never replaces a key. More keys, thresholds and
teams come later, by rotation and delegation (:mod:`edgeslm.fleet.releases`).
"""

from __future__ import annotations

from pathlib import Path

from securesystemslib.signer import Signer

from edgeslm.clock import utc_now
from edgeslm.fleet.release_files import is_repository
from edgeslm.fleet.release_metadata import RoleKeys
from edgeslm.fleet.releases import ReleaseRepository
from edgeslm.fleet.signing import Passphrase, create_key, load_signer
from edgeslm.trust.clock import Clock

OFFLINE_ROLES = ("root", "targets")
ONLINE_ROLES = ("snapshot", "timestamp")
ASSIGNMENTS = "assignments"


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


def online_signers(keys: Path) -> list[Signer]:
    """The keys that publish.

    Raises:
        SigningKeyError: one of them cannot be opened.
    """
    return [load_signer(_path(keys, role)) for role in ONLINE_ROLES]


def assignment_signer(keys: Path) -> Signer:
    """The key that signs assignments.

    Raises:
        SigningKeyError: it cannot be opened.
    """
    return load_signer(_path(keys, ASSIGNMENTS))


def _path(keys: Path, role: str) -> Path:
    return keys / f"{role}.pem"


def _signer(keys: Path, role: str, passphrase: Passphrase | None) -> Signer:
    path = _path(keys, role)
    if not path.exists():
        create_key(path, passphrase(path) if passphrase else None)
    return load_signer(path, passphrase)
