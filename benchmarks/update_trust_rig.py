"""A repository, a device and somebody in between, for attacks on the trust in releases.

Keys, signatures, files and connections are real; what the attacker has is said by each attack: the wire, the web
server, or stolen keys. The clock is set by hand.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from edgeslm.errors import MetadataMissingError
from edgeslm.fleet.release_metadata import RoleKeys
from edgeslm.fleet.releases import ReleaseRepository
from edgeslm.fleet.signing import sign_assignment
from edgeslm.models.packing import pack
from edgeslm.schema.assignment import DEFAULT_LIFETIME, AssignedRelease, Assignment
from edgeslm.schema.release import CheckRequest, CheckResult, HeldRelease
from edgeslm.trust.assignment import verify_assignment
from edgeslm.trust.check import check
from edgeslm.trust.decisions import Limits
from edgeslm.trust.fetch import Fetch, oversize
from edgeslm.trust.releases import TrustedReleases, enrol
from edgeslm.trust.storage import TrustStorage

FLEET, DEVICE, DEVICE_KEY = "home", "porch", "ab" * 32
START = datetime(2026, 12, 1, 12, tzinfo=UTC)
TEAM = "growers"
_MEMORY = "/dev/shm"  # noqa: S108 - none of this is about the disk
OFFLINE = ("root-1", "root-2", "targets-1", "targets-2", "team", "new-root", "new-targets", "new-team")
ONLINE = ("snapshot", "timestamp", "new-snapshot", "new-timestamp")


@functools.cache
def key(name: str) -> Signer:
    """The key of that name, made when first asked for."""
    return CryptoSigner.generate_ed25519()


def keys(*names: str, threshold: int | None = None) -> RoleKeys:
    """A role with these keys; all of them have to sign unless said otherwise."""
    found = tuple(key(name).public_key for name in names)
    return RoleKeys(found, len(found) if threshold is None else threshold)


@dataclass
class Clock:
    """A clock that stands where it is put."""

    at: datetime = START

    def __call__(self) -> datetime:
        """See :class:`edgeslm.trust.clock.Clock`."""
        return self.at


@dataclass
class Server:
    """Serves the files of a repository, or what an attacker puts in their place.

    Attributes:
        public: the honest files.
        lies: files in their place, by path.
        asked: paths that were asked for.
    """

    public: Path
    lies: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __call__(self, path: str, max_bytes: int) -> bytes:
        """See :class:`edgeslm.trust.fetch.Fetch`."""
        self.asked.append(path)
        data = self.lies.get(path)
        if data is None:
            try:
                data = (self.public / path).read_bytes()
            except FileNotFoundError as error:
                raise MetadataMissingError(f"no {path}", path=path) from error
        if len(data) > max_bytes:
            raise oversize(path, max_bytes)
        return data


class Rig:
    """One repository and one device that trusts it.

    Root takes two keys, targets take two, a team signs ``greenhouse-*``. ``lamp`` has the versions 1.0.0 and 1.1.0.
    """

    def __init__(self, directory: Path, *, at: datetime = START) -> None:
        self.directory = directory
        self.clock = Clock(at)
        if (directory / "repository").is_dir():
            self.repository = ReleaseRepository(directory / "repository", clock=self.clock)
        else:
            self.repository = self._create()
        self.server = Server(self.repository.public)
        self.storage = TrustStorage(directory / "device")
        enrol(self.storage, self.repository.root_bytes())
        self.last_seq = 0
        self.assigner = "assignments"

    # --- the operator ---

    def _create(self) -> ReleaseRepository:
        self.repository = ReleaseRepository.create(
            self.directory / "repository",
            root=keys("root-1", "root-2"),
            targets=keys("targets-1", "targets-2"),
            snapshot=keys("snapshot"),
            timestamp=keys("timestamp"),
            clock=self.clock,
        )
        self.repository.delegate_assignments(FLEET, keys("assignments"))
        self.repository.delegate(TEAM, keys("team"), ["greenhouse-*"])
        self.release("lamp", "1.0.0")
        self.release("lamp", "1.1.0")
        self.release("greenhouse-advisor", "1.0.0")
        self.publish()
        return self.repository

    def release(self, name: str, version: str, **draft: object) -> None:
        """Release a tiny package; it lies pending."""
        package = self.directory / f"{name}-{version}.slm"
        members = self.directory / f"{name}-{version}"
        members.mkdir()
        graph = members / "graph.tflite"
        graph.write_bytes(b"\x1c\x00\x00\x00TFL3" + f"{name} {version}".encode() * 16)
        proof = {"tokens": [1], "greedy": [2], "logit_ids": [2], "logits": [0.5], "atol": 0.01}
        tokenizer = members / "tokenizer.json"
        tokenizer.write_bytes(b'{"model": {"type": "BPE"}}')
        pack(
            {
                "format": 1,
                "name": name,
                "version": version,
                "task": "generate",
                "description": "A package for attacks",
                "graphs": [
                    {"file": "graph.tflite", "runtimes": ["litert"], "quantization": "int8", "proof": proof}
                ],
                "tokenizer": {"kind": "tokenizers-json", "file": "tokenizer.json"},
                "context_tokens": 64,
                "max_prompt_tokens": 32,
                "max_answer_tokens": 16,
                "requires": {"ram_mb": 1, "agent": "0.1.0"},
                "licenses": [{"spdx": "Apache-2.0", "of": "all"}],
                **draft,
            },
            {"graph.tflite": graph, "tokenizer.json": tokenizer},
            package,
        )
        self.repository.add(package)

    def publish(self) -> None:
        """Sign whatever is pending with whatever keys there are, and publish it."""
        for name in OFFLINE:
            if any(key(name).public_key.keyid in item.may_sign for item in self.repository.pending()):
                self.repository.sign_pending([key(name)])
        self.repository.publish([key(name) for name in ONLINE])

    def assign(self, **changes: object) -> bytes:
        """An assignment of ``lamp`` 1.1.0 to the device, signed."""
        return sign_assignment(self.assignment(**changes), [key(self.assigner)])

    def assignment(self, **changes: object) -> Assignment:
        """An assignment of ``lamp`` 1.1.0 to the device."""
        now = self.clock()
        lamp = self.device().find("lamp", "1.1.0").info
        fields: dict[str, object] = {
            "fleet": FLEET,
            "device": DEVICE,
            "device_key_sha256": DEVICE_KEY,
            "seq": 10,
            "issued_at": now,
            "expires_at": now + DEFAULT_LIFETIME,
            "releases": {"lamp": AssignedRelease(version="1.1.0", sha256=lamp.sha256)},
        }
        return Assignment.model_validate({**fields, **changes})

    # --- the device ---

    def device(self, fetch: Fetch | None = None, limits: Limits | None = None) -> TrustedReleases:
        """The device's client, as it is after a start."""
        return TrustedReleases(self.storage, fetch or self.server, clock=self.clock, limits=limits)

    def follow(self, body: bytes, *, device_key_sha256: str = DEVICE_KEY) -> Assignment:
        """Let the device judge an assignment, and remember its number."""
        trusted = self.device()
        found = verify_assignment(
            body,
            trusted.targets,
            fleet=FLEET,
            device=DEVICE,
            device_key_sha256=device_key_sha256,
            last_seq=self.last_seq,
            now=trusted.time.at,
        )
        self.last_seq = found.seq
        return found

    def check(self, body: bytes, held: Mapping[str, HeldRelease] | None = None) -> CheckResult:
        """Let the device do all that it does with an assignment."""
        request = CheckRequest(
            state_dir=str(self.storage.directory),
            fleet=FLEET,
            device=DEVICE,
            device_key_sha256=DEVICE_KEY,
            assignment=body.decode(),
            last_seq=self.last_seq,
            held=dict(held or {}),
        )
        return check(request, self.server, clock=self.clock)

    def kept(self) -> dict[str, bytes]:
        """What the device has on its disk; the file that is locked aside."""
        return {
            path.name: path.read_bytes() for path in self.storage.directory.iterdir() if path.name != ".lock"
        }

    # --- the attacker ---

    def served(self, role: str) -> tuple[str, bytes]:
        """Path and bytes of the metadata of a role, as the server would give them now."""
        name = f"{self.version(role)}.{role}.json" if role != "timestamp" else "timestamp.json"
        return f"metadata/{name}", self.server(f"metadata/{name}", 2**24)

    def version(self, role: str) -> int:
        """The version of a role that the server would give now."""
        if role == "root":
            return max(
                int(path.name.split(".")[0]) for path in self.server.public.glob("metadata/*.root.json")
            )
        timestamp: Metadata[Timestamp] = Metadata.from_bytes(self.served("timestamp")[1])
        if role == "snapshot":
            return timestamp.signed.snapshot_meta.version
        snapshot: Metadata[Snapshot] = Metadata.from_bytes(self.served("snapshot")[1])
        return snapshot.signed.meta[f"{role}.json"].version

    def forge_root(self, edit: Callable[[Root], None], *signers: str) -> None:
        """Serve the root after the last one, edited and signed with stolen keys."""
        metadata: Metadata[Root] = Metadata.from_bytes(self.served("root")[1])
        metadata.signed.version += 1
        edit(metadata.signed)
        self.server.lies[f"metadata/{metadata.signed.version}.root.json"] = _signed(metadata, signers)

    def forge_timestamp(self, edit: Callable[[Timestamp], None], *signers: str) -> None:
        """Serve a newer timestamp, edited and signed with stolen keys."""
        metadata: Metadata[Timestamp] = Metadata.from_bytes(self.served("timestamp")[1])
        metadata.signed.version += 1
        edit(metadata.signed)
        self.server.lies["metadata/timestamp.json"] = _signed(metadata, signers)

    def forge_snapshot(self, edit: Callable[[Snapshot], None]) -> None:
        """Serve a newer snapshot with stolen snapshot and timestamp keys, edited."""
        metadata: Metadata[Snapshot] = Metadata.from_bytes(self.served("snapshot")[1])
        metadata.signed.version += 1
        edit(metadata.signed)
        data, version = _signed(metadata, ["snapshot"]), metadata.signed.version
        self.server.lies[f"metadata/{version}.snapshot.json"] = data

        def name_it(timestamp: Timestamp) -> None:
            timestamp.snapshot_meta = MetaFile.from_data(version, data, ["sha256"])

        self.forge_timestamp(name_it, "timestamp")

    def forge_targets(self, role: str, edit: Callable[[Targets], None], *signers: str) -> None:
        """Serve newer targets of a role, edited and signed with these keys; the online keys are stolen as well."""
        metadata: Metadata[Targets] = Metadata.from_bytes(self.served(role)[1])
        metadata.signed.version += 1
        edit(metadata.signed)
        self.forge_targets_bytes(role, metadata.signed.version, _signed(metadata, signers))

    def forge_targets_bytes(self, role: str, version: int, data: bytes) -> None:
        """Serve these bytes as newer targets of a role; the online keys are stolen."""
        self.server.lies[f"metadata/{version}.{role}.json"] = data

        def name_it(snapshot: Snapshot) -> None:
            snapshot.meta[f"{role}.json"] = MetaFile.from_data(version, data, ["sha256"])

        self.forge_snapshot(name_it)


def _signed(
    metadata: Metadata[Root] | Metadata[Timestamp] | Metadata[Snapshot] | Metadata[Targets],
    signers: tuple[str, ...] | list[str],
) -> bytes:
    metadata.signatures.clear()
    for name in signers:
        metadata.sign(key(name), append=True)
    return metadata.to_bytes()


@contextmanager
def rig() -> Iterator[Rig]:
    """A rig in a directory that is gone in the end. The device has refreshed once and followed an assignment."""
    with fast_directory() as directory:
        shutil.copytree(_template(), directory, dirs_exist_ok=True)
        made = Rig(directory, at=START + timedelta(hours=1))
        made.follow(made.assign())
        yield made


@contextmanager
def fast_directory() -> Iterator[Path]:
    """A directory in memory where there is one, also for temporary files: what is done in it is done often, and synced.

    It is gone in the end.
    """
    before = tempfile.tempdir
    tempfile.tempdir = _MEMORY if Path(_MEMORY).is_dir() else None
    try:
        with tempfile.TemporaryDirectory(prefix="edgeslm-trust-") as directory:
            yield Path(directory)
    finally:
        tempfile.tempdir = before


@functools.cache
def _template() -> Path:
    """A rig made once: every attack gets a copy."""
    directory = tempfile.TemporaryDirectory(prefix="edgeslm-trust-")
    atexit.register(directory.cleanup)
    Rig(Path(directory.name)).device().refresh()
    return Path(directory.name)


@contextmanager
def hostile_web(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """A web server that answers every connection as `behave` says; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(65_536)
                        behave(connection)
                    except OSError:
                        pass  # the device hung up, as it should

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)
