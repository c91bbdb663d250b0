"""Whether metadata is to be trusted: python-tuf's decisions, behind checks of form that it does not make.

The order and the rules of the TUF client workflow are those of python-tuf's ``TrustedMetadataSet``. That class is
kept in an internal package, and is used nevertheless: it decides in memory, without disk, network or clock of its
own, and it is what python-tuf's own client and the TUF conformance tests exercise. The public alternatives are worse.
``Updater`` reads the system clock and writes without fsync; ``Metadata`` and ``verify_delegate`` alone would leave
every rule on rollback, order and expiry to be written anew here. A version range in setup.cfg, a guarded import and
tests of what is used of it (tests/trust/test_release_contract.py) hold the risk; nothing else imports it.

What is checked before, because the parser would let it pass:

* JSON in which two readers could see different things: repeated keys.
* Fields beside ``signed`` and ``signatures``, which no signature covers.
* More bytes than the role may have.

Every fault is a :class:`MetadataError` that names the role. Left to others: files (:mod:`edgeslm.trust.storage`),
transport (:mod:`edgeslm.trust.fetch`), and what comes first (:mod:`edgeslm.trust.releases`).

Source: TUF specification 1.0.33, section 5 (client workflow).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from tuf.api.exceptions import (
    BadVersionNumberError,
    EqualVersionNumberError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Root, Signed, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError, SerializationError
from tuf.ngclient.config import EnvelopeType

from edgeslm.errors import (
    MetadataError,
    MetadataExpiredError,
    MetadataFormatError,
    MetadataHashError,
    MetadataSignatureError,
    MetadataSizeError,
    MetadataVersionError,
    TrustStateError,
)

try:
    from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
except ImportError as error:
    raise TrustStateError(
        f"the installed tuf has no TrustedMetadataSet: {error}",
        path="tuf",
        hint="Install the version of tuf that edgeslm names",
    ) from error


@dataclass(frozen=True)
class Limits:
    """The most that is taken from a repository.

    Attributes:
        roots: new roots that one refresh follows; the next one goes on from there.
        delegations: roles that are looked into for one release.
    """

    root_bytes: int = 256 * 1024
    timestamp_bytes: int = 16 * 1024
    snapshot_bytes: int = 512 * 1024
    targets_bytes: int = 2 * 1024 * 1024
    roots: int = 32
    delegations: int = 16


class Decisions:
    """The metadata trusted so far, and what may be added to it.

    Attributes:
        limits: the most that is taken.
    """

    def __init__(self, root: bytes, *, now: datetime, limits: Limits) -> None:
        """Begin with a root that is trusted already, expired or not.

        Raises:
            MetadataError: it is no root, or not signed by its own keys.
        """
        self.limits = limits
        check_form(root, "root", limits.root_bytes)
        with _decided("root"):
            self._set = TrustedMetadataSet(root, EnvelopeType.METADATA)
        self.set_time(now)

    def set_time(self, now: datetime) -> None:
        """Judge expiry by `now` from here on."""
        self._set.reference_time = now

    @property
    def root(self) -> Root:
        """The newest trusted root."""
        return self._set.root

    @property
    def has_timestamp(self) -> bool:
        """Whether a timestamp was added, expired or not."""
        return Timestamp.type in self._set

    @property
    def timestamp(self) -> Timestamp:
        """The newest timestamp; one was added."""
        return self._set.timestamp

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot; one was added."""
        return self._set.snapshot

    @property
    def targets(self) -> Targets:
        """The top-level targets; they were added."""
        return self._set.targets

    def add_root(self, data: bytes) -> None:
        """Trust the next root: signed by the keys of the one before it and by its own.

        Raises:
            MetadataError: it is not to be trusted.
        """
        check_form(data, "root", self.limits.root_bytes)
        with _decided("root"):
            self._set.update_root(data)

    def add_timestamp(self, data: bytes) -> bool:
        """Trust a timestamp, and no root from here on; returns whether it is newer than the one before.

        Raises:
            MetadataError: it is not to be trusted. An expired one is kept for comparison with newer ones.
        """
        self._need_fresh("root", self.root)
        check_form(data, "timestamp", self.limits.timestamp_bytes)
        with _decided("timestamp"):
            try:
                self._set.update_timestamp(data)
            except EqualVersionNumberError:
                return False
        return True

    def add_snapshot(self, data: bytes, *, from_disk: bool = False) -> None:
        """Trust the snapshot that the timestamp names.

        Args:
            data: its bytes.
            from_disk: it was trusted before; then it may be an older one, which is kept for comparison.

        Raises:
            MetadataError: it is not to be trusted, or is an older one.
        """
        self._need_fresh("timestamp", self.timestamp)
        check_form(data, "snapshot", self.limits.snapshot_bytes)
        with _decided("snapshot"):
            self._set.update_snapshot(data, trusted=from_disk)

    def add_targets(self, data: bytes, role: str = "targets", delegator: str = "root") -> Targets:
        """Trust the targets of a role that the snapshot names and the delegator delegates to.

        Raises:
            MetadataError: they are not to be trusted.
        """
        check_form(data, role, self.limits.targets_bytes)
        with _decided(role):
            return self._set.update_delegated_targets(data, role, delegator)

    def _need_fresh(self, role: str, signed: Signed) -> None:
        if signed.is_expired(self._set.reference_time):
            raise MetadataExpiredError(
                f"{role} {signed.version} expired",
                role=role,
                expected=f"a time before {signed.expires:%Y-%m-%d %H:%M} UTC",
                actual=f"{self._set.reference_time:%Y-%m-%d %H:%M} UTC",
                hint="The repository has to be refreshed, or this clock is wrong",
            )


def check_form(data: bytes, role: str, max_bytes: int) -> None:
    """Refuse what is too long, ambiguous, or only partly covered by signatures.

    Raises:
        MetadataSizeError: longer than `max_bytes`.
        MetadataFormatError: the rest.
    """
    if len(data) > max_bytes:
        raise MetadataSizeError(
            f"{role} is longer than it may be",
            role=role, expected=f"at most {max_bytes} bytes", actual=f"{len(data)} bytes or more",
        )  # fmt: skip
    try:
        value = parse_json(data)
    except ValueError as error:
        raise MetadataFormatError(f"{role} is not plain JSON: {error}", role=role) from error
    if not isinstance(value, dict) or value.keys() != {"signed", "signatures"}:
        found = sorted(str(key)[:40] for key in value) if isinstance(value, dict) else [type(value).__name__]
        raise MetadataFormatError(
            f"{role} is not covered by its signatures as a whole",
            role=role, expected="signed, signatures", actual=", ".join(found)[:200],
        )  # fmt: skip


def parse_json(data: bytes) -> object:
    """The value in `data`, if every reader would see the same.

    Raises:
        ValueError: not JSON in UTF-8, or with repeated keys.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


@contextmanager
def _decided(role: str) -> Iterator[None]:
    """Turn python-tuf's errors into ours, by their type."""
    try:
        yield
    except ExpiredMetadataError as error:
        raise MetadataExpiredError(
            f"{role}: {error}", role=role, hint="The repository has to be refreshed, or this clock is wrong"
        ) from error
    except BadVersionNumberError as error:
        raise MetadataVersionError(f"{role}: {error}", role=role) from error
    except LengthOrHashMismatchError as error:
        raise MetadataHashError(f"{role}: {error}", role=role) from error
    except UnsignedMetadataError as error:
        raise MetadataSignatureError(f"{role}: {error}", role=role) from error
    except (DeserializationError, SerializationError) as error:
        reason = str(error.__cause__ or error)[:200]
        raise MetadataFormatError(f"{role} is not metadata: {reason}", role=role) from error
    except RepositoryError as error:
        raise MetadataError(f"{role}: {error}", role=role) from error
    except ValueError as error:  # how python-tuf says that nobody delegated to the role
        raise MetadataSignatureError(f"{role}: {error}", role=role) from error
