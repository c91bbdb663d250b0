"""Attacks on the trust in releases, each against the client that devices run.

``measure_trust`` gives ``trust_attacks``, their number, and ``trust_attacks_refused``, a share of them. An attack
counts as refused when the client raises the very error that names it, when what the device has on its disk is as it
was, byte for byte, and when the same device then takes the next honest release. Each attack starts from a device that
accepted the honest repository and an honest assignment, so a client that refuses everything scores nothing.

Run by itself: ``python -m benchmarks.update_trust [--json]``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    TargetFile,
    Targets,
    Timestamp,
)

from benchmarks.update_trust_rig import (
    DEVICE,
    DEVICE_KEY,
    FLEET,
    TEAM,
    Rig,
    hostile_web,
    key,
    rig,
)
from edgeslm import errors
from edgeslm.errors import (
    AssignmentFormatError,
    AssignmentSignatureError,
    DowngradeError,
    EdgeslmError,
    ExpiredAssignmentError,
    ForeignAssignmentError,
    MetadataError,
    MetadataExpiredError,
    MetadataFetchError,
    MetadataFormatError,
    MetadataHashError,
    MetadataLimitError,
    MetadataSignatureError,
    MetadataSizeError,
    MetadataVersionError,
    ReleaseBytesError,
    ReleaseNotFoundError,
    ReplayedAssignmentError,
    SecurityFloorError,
    SlowRetrievalError,
    TrustError,
)
from edgeslm.fleet.signing import sign_assignment
from edgeslm.schema.assignment import AssignedRelease
from edgeslm.schema.release import HeldRelease, Refusal, target_path
from edgeslm.trust.assignment import verify_assignment
from edgeslm.trust.decisions import Limits
from edgeslm.trust.document import canonical
from edgeslm.trust.fetch import HttpFetch
from edgeslm.trust.releases import check_bytes
from edgeslm.trust.versions import check_version

Strike = Callable[[Rig], Generator[None]]


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        name: what is tried.
        refused_by: the error that has to refuse it.
        strike: prepares, yields, and strikes; what the device has at the yield is what it has to keep.
        may_change: roles whose files may move on, because what moved them was in order.
        rotate: the device has accepted what stolen online keys signed, so they are rotated before it is asked
            whether it takes honest releases.
    """

    name: str
    refused_by: type[EdgeslmError]
    strike: Strike
    may_change: frozenset[str]
    rotate: bool


@dataclass(frozen=True)
class Outcome:
    """How an attack ended; ``fault`` says why it does not count as refused."""

    name: str
    fault: str | None


ATTACKS: list[Attack] = []


def attack(
    refused_by: type[EdgeslmError], *, may_change: tuple[str, ...] = (), rotate: bool = False
) -> Callable[[Strike], Strike]:
    """Enter a generator into the list of attacks."""

    def enter(strike: Strike) -> Strike:
        name = strike.__name__.removeprefix("_").replace("_", " ")
        ATTACKS.append(Attack(name, refused_by, strike, frozenset(may_change), rotate))
        return strike

    return enter


def run_attack(tried: Attack) -> Outcome:
    """Carry out one attack, and see whether it was refused, left nothing, and did no lasting harm."""
    with rig() as made:
        strike = tried.strike(made)
        next(strike)
        before = made.kept()
        error: BaseException | None = None
        try:
            next(strike, None)
        except Exception as caught:  # whatever it is, it is what is judged
            error = caught
        after = made.kept()
        if type(error) is not tried.refused_by:
            told = "nothing" if error is None else "".join(traceback.format_exception(error)[-3:])
            return Outcome(tried.name, f"raised {told}")
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        changed = {name for name in changed if name.split(".")[-2] not in tried.may_change}
        if changed:
            return Outcome(tried.name, f"changed {', '.join(sorted(changed))}")
        return Outcome(tried.name, _harm(made, tried.rotate))


def _harm(made: Rig, rotate: bool) -> str | None:
    """Whether, and why, the device does not take the next honest release after an attack."""
    made.server.lies.clear()
    try:
        for role in ("snapshot", "timestamp") if rotate else ():
            old, new = key(role).public_key, key(f"new-{role}").public_key
            made.repository.rotate(role, add=[new], remove=[old.keyid])
        made.release("lamp", "1.2.0")
        made.publish()
        device = made.device()
        device.refresh()
        device.find("lamp", "1.2.0")
        made.follow(made.assign(seq=made.last_seq + 1))
    except EdgeslmError as error:
        return f"does not take an honest release afterwards: {type(error).__name__}: {error}"
    return None


def measure_trust() -> dict[str, Any]:
    """Carry out all attacks: how many there are, the share that was refused, and how each ended."""
    outcomes = [run_attack(tried) for tried in ATTACKS]
    refused = sum(outcome.fault is None for outcome in outcomes)
    return {
        "trust_attacks": len(outcomes),
        "trust_attacks_refused": refused / len(outcomes),
        "trust_attacks_detail": {outcome.name: outcome.fault or "refused" for outcome in outcomes},
    }


# --- old states: the attacker has the wire ------------------------------------------------------------------


@attack(MetadataVersionError)
def _older_timestamp_replayed(made: Rig) -> Generator[None]:
    old = made.served("timestamp")[1]
    made.publish()
    made.device().refresh()
    yield
    made.server.lies["metadata/timestamp.json"] = old
    made.device().refresh()


@attack(MetadataVersionError)
def _older_snapshot_named_by_a_stolen_timestamp_key(made: Rig) -> Generator[None]:
    made.release("lamp", "1.1.1")
    made.publish()
    made.device().refresh()
    yield
    old = made.version("snapshot") - 1
    made.forge_timestamp(lambda timestamp: setattr(timestamp, "snapshot_meta", MetaFile(old)), "timestamp")
    made.device().refresh()


@attack(MetadataVersionError)
def _older_targets_named_by_stolen_online_keys(made: Rig) -> Generator[None]:
    made.release("lamp", "1.1.1")
    made.publish()
    made.device().refresh()
    yield
    old = made.version("targets") - 1
    made.forge_snapshot(lambda snapshot: snapshot.meta.update({"targets.json": MetaFile(old)}))
    made.device().refresh()


@attack(MetadataError)
def _team_hidden_by_stolen_online_keys(made: Rig) -> Generator[None]:
    yield
    made.forge_snapshot(lambda snapshot: snapshot.meta.__delitem__(f"{TEAM}.json"))
    made.device().refresh()


@attack(MetadataExpiredError)
def _frozen_until_it_expires(made: Rig) -> Generator[None]:
    yield
    made.clock.at += timedelta(days=8)
    made.device().refresh()


@attack(MetadataExpiredError)
def _frozen_state_shown_to_a_clock_at_1970(made: Rig) -> Generator[None]:
    frozen = made.served("timestamp")[1]
    made.clock.at += timedelta(days=30)
    made.publish()
    made.device().refresh()
    # A device that lost its metadata but not what it knows about the time, and whose clock starts at 1970.
    made.storage.remove("timestamp.json")
    yield
    now, made.clock.at = made.clock.at, made.clock.at.replace(year=1970)
    made.server.lies["metadata/timestamp.json"] = frozen
    try:
        made.device().refresh()
    finally:
        made.clock.at = now


# --- mixed states -------------------------------------------------------------------------------------------


@attack(MetadataHashError)
def _old_snapshot_under_a_new_name(made: Rig) -> Generator[None]:
    old = made.served("snapshot")[1]
    made.release("lamp", "1.1.1")
    made.publish()
    yield
    made.server.lies[made.served("snapshot")[0]] = old
    made.device().refresh()


@attack(MetadataHashError)
def _old_targets_under_a_new_name(made: Rig) -> Generator[None]:
    old = made.served("targets")[1]
    made.release("lamp", "1.1.1")
    made.publish()
    yield
    made.server.lies[made.served("targets")[0]] = old
    made.device().refresh()


@attack(MetadataError)
def _snapshot_given_as_timestamp(made: Rig) -> Generator[None]:
    yield
    made.server.lies["metadata/timestamp.json"] = made.served("snapshot")[1]
    made.device().refresh()


# --- signatures ---------------------------------------------------------------------------------------------


@attack(MetadataSignatureError)
def _timestamp_signed_by_a_stranger(made: Rig) -> Generator[None]:
    yield
    made.forge_timestamp(lambda timestamp: None, "stranger")
    made.device().refresh()


@attack(MetadataSignatureError)
def _timestamp_not_signed(made: Rig) -> Generator[None]:
    yield
    made.forge_timestamp(lambda timestamp: None)
    made.device().refresh()


@attack(MetadataSignatureError)
def _targets_signed_by_the_stolen_online_keys(made: Rig) -> Generator[None]:
    yield
    made.forge_targets("targets", _with_malware, "snapshot", "timestamp")
    made.device().refresh()


@attack(MetadataSignatureError)
def _targets_signed_by_one_of_two_keys(made: Rig) -> Generator[None]:
    yield
    made.forge_targets("targets", _with_malware, "targets-1")
    made.device().refresh()


@attack(MetadataFormatError)
def _one_signature_counted_twice(made: Rig) -> Generator[None]:
    yield
    metadata: Metadata[Targets] = Metadata.from_bytes(made.served("targets")[1])
    metadata.signed.version += 1
    _with_malware(metadata.signed)
    metadata.signatures.clear()
    metadata.sign(key("targets-1"))
    value = metadata.to_dict()
    value["signatures"] *= 2
    made.forge_targets_bytes("targets", metadata.signed.version, json.dumps(value).encode())
    made.device().refresh()


@attack(MetadataSignatureError)
def _root_signed_by_one_of_two_keys(made: Rig) -> Generator[None]:
    yield
    made.forge_root(lambda root: root.add_key(key("stranger").public_key, "targets"), "root-1")
    made.device().refresh()


@attack(MetadataSignatureError)
def _root_signed_by_its_own_new_keys_only(made: Rig) -> Generator[None]:
    def take_over(root: Root) -> None:
        for keyid in list(root.roles["root"].keyids):
            root.revoke_key(keyid, "root")
        root.add_key(key("stranger").public_key, "root")
        root.roles["root"].threshold = 1

    yield
    made.forge_root(take_over, "stranger")
    made.device().refresh()


@attack(MetadataVersionError)
def _root_that_skips_a_version(made: Rig) -> Generator[None]:
    yield
    made.forge_root(lambda root: setattr(root, "version", root.version + 1), "root-1", "root-2")
    made.server.lies["metadata/2.root.json"] = made.server.lies.pop("metadata/3.root.json")
    made.device().refresh()


@attack(MetadataSignatureError)
def _timestamp_signed_by_a_key_that_was_rotated_out(made: Rig) -> Generator[None]:
    made.repository.rotate(
        "timestamp", add=[key("new-timestamp").public_key], remove=[key("timestamp").public_key.keyid]
    )
    made.publish()
    made.device().refresh()
    yield
    made.forge_timestamp(lambda timestamp: None, "timestamp")
    made.device().refresh()


@attack(MetadataSignatureError)
def _targets_signed_by_a_key_that_was_revoked(made: Rig) -> Generator[None]:
    made.repository.rotate(
        "targets", add=[key("new-targets").public_key], remove=[key("targets-2").public_key.keyid]
    )
    made.publish()
    made.device().refresh()
    yield
    made.forge_targets("targets", _with_malware, "targets-1", "targets-2")
    made.device().refresh()


@attack(MetadataSignatureError)
def _root_signed_with_a_key_that_was_revoked(made: Rig) -> Generator[None]:
    made.repository.rotate("root", add=[key("new-root").public_key], remove=[key("root-2").public_key.keyid])
    made.publish()
    made.device().refresh()
    yield
    made.forge_root(lambda root: None, "root-1", "root-2")
    made.device().refresh()


@attack(MetadataSignatureError, rotate=True)
def _team_key_that_was_revoked(made: Rig) -> Generator[None]:
    made.repository.rotate(TEAM, add=[key("new-team").public_key], remove=[key("team").public_key.keyid])
    made.publish()
    made.device().refresh()
    made.forge_targets(TEAM, lambda targets: None, "team")
    made.device().refresh()
    yield
    made.device().find("greenhouse-advisor", "1.0.0")


# --- what a file is -----------------------------------------------------------------------------------------


def _rewritten(made: Rig, change: Callable[[bytes], bytes]) -> None:
    made.forge_timestamp(lambda timestamp: None, "timestamp")
    made.server.lies["metadata/timestamp.json"] = change(made.server.lies["metadata/timestamp.json"])
    made.device().refresh()


@attack(MetadataFormatError)
def _field_that_no_signature_covers(made: Rig) -> Generator[None]:
    yield
    _rewritten(made, lambda data: data[:-1] + b',"signed_by_all":true}')


@attack(MetadataFormatError)
def _key_repeated_so_that_readers_differ(made: Rig) -> Generator[None]:
    yield
    _rewritten(made, lambda data: data.replace(b'"signed":{', b'"signed":{"version":99,'))


@attack(MetadataFormatError)
def _key_repeated_by_an_escape(made: Rig) -> Generator[None]:
    yield
    _rewritten(made, lambda data: data.replace(b'"signed":{', b'"signed":{"\\u0076ersion":99,'))


@attack(MetadataFormatError)
def _number_with_a_fraction(made: Rig) -> Generator[None]:
    yield
    version = made.version("snapshot")
    _rewritten(
        made, lambda data: data.replace(f'"version":{version}'.encode(), f'"version":{version}.0'.encode())
    )


@attack(MetadataFormatError)
def _bytes_after_the_end(made: Rig) -> Generator[None]:
    yield
    _rewritten(made, lambda data: data + b"{}")


@attack(MetadataFormatError)
def _nested_too_deeply(made: Rig) -> Generator[None]:
    yield
    _rewritten(made, lambda data: b"[" * 16_000)


@attack(MetadataFormatError)
def _unknown_version_of_the_specification(made: Rig) -> Generator[None]:
    yield
    made.forge_timestamp(lambda timestamp: setattr(timestamp, "spec_version", "2.0.0"), "timestamp")
    made.device().refresh()


@attack(MetadataSignatureError)
def _other_bytes_under_the_old_signature(made: Rig) -> Generator[None]:
    yield
    old = made.served("timestamp")[1]
    metadata: Metadata[Timestamp] = Metadata.from_bytes(old)
    metadata.signed.version += 1
    made.server.lies["metadata/timestamp.json"] = metadata.to_bytes()
    made.device().refresh()


# --- too much, too slow -------------------------------------------------------------------------------------


@attack(MetadataSizeError)
def _timestamp_that_does_not_end(made: Rig) -> Generator[None]:
    def pour(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b" " * 65_536)

    yield
    with hostile_web(pour) as address:
        _fetch_timestamp(made, address)


@attack(MetadataSizeError)
def _timestamp_announced_too_long(made: Rig) -> Generator[None]:
    yield
    with hostile_web(
        lambda sent: sent.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
    ) as address:
        _fetch_timestamp(made, address)


@attack(SlowRetrievalError)
def _timestamp_dripped_byte_by_byte(made: Rig) -> Generator[None]:
    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n")
        _drip(connection)

    yield
    with hostile_web(drip) as address:
        _fetch_timestamp(made, address)


@attack(SlowRetrievalError)
def _header_dripped_byte_by_byte(made: Rig) -> Generator[None]:
    yield
    with hostile_web(_drip) as address:
        _fetch_timestamp(made, address)


@attack(SlowRetrievalError)
def _server_that_says_nothing(made: Rig) -> Generator[None]:
    yield
    with hostile_web(lambda connection: time.sleep(2)) as address:
        _fetch_timestamp(made, address)


@attack(MetadataFetchError)
def _answer_that_breaks_off(made: Rig) -> Generator[None]:
    yield
    with hostile_web(
        lambda sent: sent.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{")
    ) as address:
        _fetch_timestamp(made, address)


def _drip(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"H")
        time.sleep(0.02)


def _fetch_timestamp(made: Rig, address: str) -> None:
    """Refresh with the timestamp from a hostile web server, and the rest from the honest one."""
    web = HttpFetch(address, timeout_s=0.3, deadline_s=0.6)

    def fetch(path: str, max_bytes: int) -> bytes:
        return web(path, max_bytes) if path.endswith("timestamp.json") else made.server(path, max_bytes)

    began_s = time.monotonic()
    try:
        made.device(fetch).refresh()
    finally:
        assert time.monotonic() - began_s < 2, "the deadline was not kept"


@attack(MetadataSizeError)
def _targets_larger_than_a_device_takes(made: Rig) -> Generator[None]:
    yield
    made.forge_targets("targets", lambda targets: targets.unrecognized_fields.update(fill="x" * 3_000_000))
    made.device().refresh()


@attack(MetadataLimitError, may_change=("root",))
def _endless_chain_of_roots(made: Rig) -> Generator[None]:
    # Whoever has enough root keys may move the root; the device only must not follow for ever.
    yield
    for _ in range(Limits().roots + 50):
        made.forge_root(lambda root: None, "root-1", "root-2")
        path = f"metadata/{made.version('root') + 1}.root.json"
        (made.server.public / path).write_bytes(made.server.lies.pop(path))
    made.server.asked.clear()
    try:
        made.device().refresh()
    finally:
        assert len(made.server.asked) == Limits().roots + 1, "more roots were fetched than are followed"
        while made.version("root") > Limits().roots + 1:
            (made.server.public / f"metadata/{made.version('root')}.root.json").unlink()


# --- delegations --------------------------------------------------------------------------------------------


@attack(ReleaseNotFoundError, rotate=True)
def _team_that_releases_a_name_not_its_own(made: Rig) -> Generator[None]:
    made.forge_targets(TEAM, _with_malware, "team")
    made.device().refresh()
    yield
    made.device().find("lamp", "6.6.6")


@attack(ReleaseNotFoundError, rotate=True)
def _team_that_delegates_in_a_circle(made: Rig) -> Generator[None]:
    def circle(targets: Targets) -> None:
        role = DelegatedRole(TEAM, [key("team").public_key.keyid], 1, False, paths=["*/*/*/*"])
        targets.delegations = Delegations(
            {key("team").public_key.keyid: key("team").public_key}, {TEAM: role}
        )

    made.forge_targets(TEAM, circle, "team")
    made.device().refresh()
    made.device().find("greenhouse-advisor", "1.0.0")
    yield
    made.device().find("greenhouse-advisor", "6.6.6")


@attack(MetadataLimitError, rotate=True)
def _team_that_delegates_to_a_thousand_roles(made: Rig) -> Generator[None]:
    def fan_out(targets: Targets) -> None:
        keyid = key("team").public_key.keyid
        roles = {f"r{n}": DelegatedRole(f"r{n}", [keyid], 1, False, paths=["*/*/*/*"]) for n in range(1000)}
        targets.delegations = Delegations({keyid: key("team").public_key}, roles)

    made.forge_targets(TEAM, fan_out, "team")
    made.device().refresh()
    made.device().find("greenhouse-advisor", "1.0.0")
    yield
    made.device().find("greenhouse-advisor", "6.6.6")


@attack(MetadataFormatError, rotate=True)
def _team_that_delegates_to_a_path(made: Rig) -> Generator[None]:
    def escape(targets: Targets) -> None:
        keyid, name = key("team").public_key.keyid, "../../etc/passwd"
        role = DelegatedRole(name, [keyid], 1, False, paths=["*/*/*/*"])
        targets.delegations = Delegations({keyid: key("team").public_key}, {name: role})

    made.forge_targets(TEAM, escape, "team")
    made.device().refresh()
    made.device().find("greenhouse-advisor", "1.0.0")
    yield
    made.device().find("greenhouse-advisor", "6.6.6")


@attack(MetadataFormatError, rotate=True)
def _release_that_contradicts_itself(made: Rig) -> Generator[None]:
    def rename(targets: Targets) -> None:
        target = targets.targets[target_path("greenhouse-advisor", "1.0.0")]
        target.custom["version"] = "9.0.0"

    made.forge_targets(TEAM, rename, "team")
    made.device().refresh()
    with contextlib.suppress(ReleaseNotFoundError):  # brings the team's metadata onto the disk
        made.device().find("greenhouse-other", "1.0.0")
    yield
    made.device().find("greenhouse-advisor", "1.0.0")


# --- releases and their bytes -------------------------------------------------------------------------------


def _with_malware(targets: Targets) -> None:
    """Add a release that nobody made."""
    path = target_path("lamp", "6.6.6")
    targets.targets[path] = TargetFile(3, {"sha256": "0" * 64}, path)


def _check_changed(made: Rig, change: Callable[[bytes], bytes]) -> None:
    target = made.device().find("lamp", "1.1.0")
    came = made.directory / "came.slm"
    came.write_bytes(change(made.server(target.info.file_path, 2**30)))
    check_bytes(target, came)


@attack(ReleaseBytesError)
def _one_byte_of_a_release_changed(made: Rig) -> Generator[None]:
    yield
    _check_changed(made, lambda data: data[:-1] + bytes([data[-1] ^ 1]))


@attack(ReleaseBytesError)
def _release_cut_short(made: Rig) -> Generator[None]:
    yield
    _check_changed(made, lambda data: data[:-1])


@attack(ReleaseBytesError)
def _bytes_added_to_a_release(made: Rig) -> Generator[None]:
    yield
    _check_changed(made, lambda data: data + b"\0")


@attack(ReleaseNotFoundError)
def _release_that_was_withdrawn(made: Rig) -> Generator[None]:
    made.repository.withdraw("lamp", "1.0.0")
    made.publish()
    made.device().refresh()
    yield
    made.device().find("lamp", "1.0.0")


@attack(SecurityFloorError)
def _release_below_the_security_floor(made: Rig) -> Generator[None]:
    made.release("lamp", "1.1.1", security_floor="1.1.0")
    made.publish()
    made.device().refresh()
    yield
    check_version(made.device().find("lamp", "1.0.0"), held=None, allow_downgrade=True)


@attack(SecurityFloorError)
def _release_below_a_floor_whose_release_was_withdrawn(made: Rig) -> Generator[None]:
    made.release("lamp", "1.1.1", security_floor="1.1.0")
    made.publish()
    made.repository.withdraw("lamp", "1.1.1")
    made.publish()
    made.device().refresh()
    yield
    check_version(made.device().find("lamp", "1.0.0"), held=None, allow_downgrade=True)


@attack(SecurityFloorError)
def _release_below_the_floor_of_what_runs(made: Rig) -> Generator[None]:
    yield
    held = HeldRelease(version="1.1.0", security_floor="1.1.0")
    check_version(made.device().find("lamp", "1.0.0"), held=held, allow_downgrade=True)


@attack(DowngradeError)
def _downgrade_that_nobody_asked_for(made: Rig) -> Generator[None]:
    yield
    held = HeldRelease(version="1.1.0", security_floor="0.0.0")
    check_version(made.device().find("lamp", "1.0.0"), held=held, allow_downgrade=False)


# --- assignments: the attacker has the broker ---------------------------------------------------------------


@attack(ReplayedAssignmentError)
def _older_assignment_replayed(made: Rig) -> Generator[None]:
    old = made.assign(seq=11)
    made.follow(made.assign(seq=12))
    yield
    made.follow(old)


@attack(ExpiredAssignmentError)
def _expired_assignment(made: Rig) -> Generator[None]:
    old = made.assign(seq=11)
    made.clock.at += timedelta(days=5)
    made.publish()
    made.device().refresh()
    made.clock.at += timedelta(days=3)
    yield
    made.follow(old)


@attack(ExpiredAssignmentError)
def _expired_assignment_shown_to_a_clock_at_1970(made: Rig) -> Generator[None]:
    old = made.assign(seq=11)
    made.clock.at += timedelta(days=8)
    made.publish()
    made.device().refresh()
    yield
    now, made.clock.at = made.clock.at, made.clock.at.replace(year=1970)
    try:
        made.follow(old)
    finally:
        made.clock.at = now


@attack(ForeignAssignmentError)
def _assignment_of_another_device(made: Rig) -> Generator[None]:
    yield
    made.follow(made.assign(seq=11, device="garage"))


@attack(ForeignAssignmentError)
def _assignment_of_another_fleet(made: Rig) -> Generator[None]:
    yield
    made.follow(made.assign(seq=11, fleet="office"))


@attack(ForeignAssignmentError)
def _assignment_of_a_revoked_board_of_the_same_name(made: Rig) -> Generator[None]:
    yield
    made.follow(made.assign(seq=11), device_key_sha256="cd" * 32)


@attack(ForeignAssignmentError)
def _assignment_of_the_new_board_shown_to_the_revoked_one(made: Rig) -> Generator[None]:
    yield
    made.follow(made.assign(seq=11, device_key_sha256="cd" * 32))


@attack(AssignmentSignatureError)
def _assignment_signed_by_a_stranger(made: Rig) -> Generator[None]:
    yield
    made.follow(sign_assignment(made.assignment(seq=11), [key("stranger")]))


@attack(AssignmentSignatureError)
def _assignment_signed_by_the_stolen_online_keys(made: Rig) -> Generator[None]:
    yield
    made.follow(sign_assignment(made.assignment(seq=11), [key("snapshot"), key("timestamp"), key("team")]))


@attack(AssignmentSignatureError)
def _assignment_not_signed(made: Rig) -> Generator[None]:
    yield
    made.follow(sign_assignment(made.assignment(seq=11), []))


@attack(AssignmentSignatureError)
def _assignment_signed_by_a_key_that_was_revoked(made: Rig) -> Generator[None]:
    made.repository.rotate(
        f"assignments-{FLEET}",
        add=[key("new-assignments").public_key],
        remove=[key("assignments").public_key.keyid],
    )
    made.publish()
    made.device().refresh()
    made.assigner = "new-assignments"
    yield
    made.follow(sign_assignment(made.assignment(seq=11), [key("assignments")]))


@attack(AssignmentSignatureError)
def _assignment_for_a_fleet_that_is_delegated_to_nobody(made: Rig) -> Generator[None]:
    yield
    trusted = made.device()
    verify_assignment(
        made.assign(seq=11, fleet="office"),
        trusted.targets,
        fleet="office",
        device=DEVICE,
        device_key_sha256=DEVICE_KEY,
        last_seq=0,
        now=trusted.time.at,
    )


@attack(AssignmentSignatureError)
def _assignment_changed_under_its_signature(made: Rig) -> Generator[None]:
    yield
    made.follow(made.assign(seq=11).replace(b'"seq":11', b'"seq":99'))


@attack(AssignmentFormatError)
def _assignment_with_a_field_that_no_signature_covers(made: Rig) -> Generator[None]:
    yield
    made.follow(b'{"note":"","signatures"' + made.assign(seq=11).removeprefix(b'{"signatures"'))


@attack(AssignmentFormatError)
def _assignment_with_a_repeated_key(made: Rig) -> Generator[None]:
    yield
    made.follow(made.assign(seq=11).replace(b'"seq":11', b'"seq":99,"seq":11'))


@attack(AssignmentFormatError)
def _assignment_in_another_order(made: Rig) -> Generator[None]:
    yield
    value = json.loads(made.assign(seq=11))
    made.follow(json.dumps({"signed": value["signed"], "signatures": value["signatures"]}).encode())


@attack(AssignmentFormatError)
def _assignment_with_bytes_after_it(made: Rig) -> Generator[None]:
    yield
    made.follow(made.assign(seq=11) + b" ")


@attack(AssignmentFormatError)
def _assignment_signed_twice_by_one_key(made: Rig) -> Generator[None]:
    yield
    made.follow(sign_assignment(made.assignment(seq=11), [key("assignments"), key("assignments")]))


@attack(AssignmentFormatError)
def _assignment_without_end(made: Rig) -> Generator[None]:
    yield
    made.follow(b" " * 1_000_000)


@attack(AssignmentFormatError)
def _assignment_that_lasts_for_years(made: Rig) -> Generator[None]:
    yield
    assignment = made.assignment(seq=11)
    lasting = assignment.model_copy(update={"expires_at": assignment.issued_at + timedelta(days=900)})
    made.follow(sign_assignment(lasting, [key("assignments")]))


@attack(AssignmentFormatError)
def _metadata_passed_off_as_an_assignment(made: Rig) -> Generator[None]:
    # A key that signs assignments signs something else: that must not be read as an assignment.
    yield
    metadata: Metadata[Targets] = Metadata.from_bytes(made.served("targets")[1])
    metadata.signatures.clear()
    metadata.sign(key("assignments"))
    made.follow(canonical(metadata.to_dict()))


@attack(ReleaseNotFoundError, may_change=("clock",))
def _assignment_of_bytes_that_were_never_released(made: Rig) -> Generator[None]:
    yield
    other = {"lamp": AssignedRelease(version="1.1.0", sha256="0" * 64)}
    result = made.check(made.assign(seq=11, releases=other))
    _raise_refusal(result.releases[0].refused)


def _raise_refusal(refused: Refusal | None) -> None:
    """Turn what a check tells back into what was raised in it."""
    if refused is not None:
        kind: type[TrustError] = getattr(errors, refused.error)
        raise kind(refused.message)


def main() -> int:
    """Parse, attack, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.update_trust", description=__doc__)
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object")
    flags = parser.parse_args()
    report = measure_trust()
    if flags.as_json:
        print(json.dumps(report, indent=2))
        return 0
    for name, verdict in report["trust_attacks_detail"].items():
        print(f"{name:<62}{verdict}")
    print(f"{report['trust_attacks_refused']:.1%} of {report['trust_attacks']} refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
