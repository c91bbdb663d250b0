"""The device's client, beyond the attacks: what it keeps, what it goes on with, what heals."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuf.api.metadata import DelegatedRole, Metadata, TargetFile, Targets, Timestamp

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_trust_rig import START, Rig, key, rig
from edgeslm.errors import (
    MetadataError,
    MetadataExpiredError,
    MetadataFetchError,
    MetadataLimitError,
    MetadataSizeError,
    NoMetadataError,
    ReleaseNotFoundError,
    TrustStateError,
)
from edgeslm.schema.release import target_path
from edgeslm.trust.clock import ISSUED_FIELD
from edgeslm.trust.decisions import Decisions, Limits, check_form
from edgeslm.trust.fetch import DirectoryFetch
from edgeslm.trust.releases import TrustedReleases, enrol
from edgeslm.trust.storage import TrustStorage


@pytest.fixture
def made() -> Iterator[Rig]:
    with rig() as found:
        yield found


def _offline(path: str, max_bytes: int) -> bytes:
    raise MetadataFetchError("offline", path=path)


# --- enrolment ---


def test_nothing_is_trusted_before_a_root_is_enrolled(tmp_path: Path):
    with pytest.raises(NoMetadataError):
        TrustedReleases(TrustStorage(tmp_path), _offline)


def test_enrolling_again_with_the_same_root_changes_nothing(made: Rig):
    before = made.kept()
    assert not enrol(made.storage, made.repository.root_bytes())
    assert made.kept() == before


def test_enrolling_again_changes_nothing_after_the_root_moved_on(made: Rig):
    first = made.repository.root_bytes()
    made.repository.rotate("root", add=[key("new-root").public_key])
    made.publish()
    made.device().refresh()
    assert not enrol(made.storage, first)
    assert made.device().state().root == 2


def test_another_root_replaces_the_first_only_when_told_to(made: Rig, tmp_path: Path):
    made.repository.renew("root")
    made.publish()
    made.device().refresh()
    other = Rig(tmp_path)
    other.repository.renew("root")
    other.publish()
    with pytest.raises(TrustStateError):
        enrol(made.storage, other.repository.root_bytes())
    assert enrol(made.storage, other.repository.root_bytes(), replace=True)
    assert made.kept().keys() == {"enrolled.json", "clock.json"}
    with pytest.raises(NoMetadataError):
        made.device().state()
    made.device(other.server).refresh()


def test_a_root_that_its_own_keys_did_not_sign_is_not_enrolled(made: Rig, tmp_path: Path):
    made.forge_root(lambda root: None, "root-1")
    storage = TrustStorage(tmp_path)
    with pytest.raises(MetadataError):
        enrol(storage, made.server.lies["metadata/2.root.json"])
    assert [path.name for path in tmp_path.iterdir()] == []


# --- offline ---


def test_offline_everything_that_was_trusted_stays_usable(made: Rig):
    device = made.device(_offline)
    with pytest.raises(MetadataFetchError):
        device.refresh()
    assert device.find("lamp", "1.1.0").info.version == "1.1.0"
    assert made.device(_offline).find("lamp", "1.0.0").info.version == "1.0.0"


def test_a_team_that_was_looked_up_is_found_offline(made: Rig):
    made.device().find("greenhouse-advisor", "1.0.0")
    assert made.device(_offline).find("greenhouse-advisor", "1.0.0").role == "growers"


def test_expired_metadata_says_so_and_comes_back_to_life_with_the_repository(made: Rig):
    made.clock.at += timedelta(days=10)
    with pytest.raises(MetadataExpiredError):
        made.device(_offline).find("lamp", "1.1.0")
    made.publish()
    made.device().refresh()
    assert made.device(_offline).find("lamp", "1.1.0")


def test_a_refresh_that_fails_half_way_leaves_the_old_state_in_use(made: Rig):
    made.release("lamp", "1.2.0")
    made.publish()
    before = made.kept()

    def half(path: str, max_bytes: int) -> bytes:
        return _offline(path, max_bytes) if path.endswith("targets.json") else made.server(path, max_bytes)

    device = made.device(half)
    assert device.find("lamp", "1.1.0")
    with pytest.raises(MetadataFetchError):
        device.refresh()
    assert made.kept() == before
    assert device.find("lamp", "1.1.0")
    with pytest.raises(ReleaseNotFoundError):
        device.find("lamp", "1.2.0")


def test_nothing_is_fetched_twice_that_is_on_the_disk(made: Rig):
    made.publish()
    made.device().refresh()
    made.server.asked.clear()
    made.device().refresh()
    assert made.server.asked == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_the_same_version_with_other_content_is_not_kept(made: Rig):
    def again(timestamp: Timestamp) -> None:
        timestamp.version -= 1
        timestamp.expires += timedelta(days=100)

    before = made.kept()["timestamp.json"]
    made.forge_timestamp(again, "timestamp")
    assert made.server.lies["metadata/timestamp.json"] != before
    made.device().refresh()
    assert made.kept()["timestamp.json"] == before


def test_only_files_in_use_are_kept(made: Rig):
    for version in ("1.2.0", "1.3.0"):
        made.release("lamp", version)
        made.publish()
        made.device().refresh()
    names = {name for name in made.kept() if name[0].isdigit()}
    assert names == {f"{made.version(role)}.{role}.json" for role in ("snapshot", "targets")}


# --- keys ---


def test_every_role_can_change_its_keys_and_the_device_follows(made: Rig):
    for role, new in (
        ("root", "new-root"),
        ("targets", "new-targets"),
        ("snapshot", "new-snapshot"),
        ("timestamp", "new-timestamp"),
        ("growers", "new-team"),
    ):
        old = {"root": "root-2", "targets": "targets-2", "growers": "team"}.get(role, role)
        made.repository.rotate(role, add=[key(new).public_key], remove=[key(old).public_key.keyid])
        made.publish()
        made.device().refresh()
        assert made.device().find("lamp", "1.1.0")
        assert made.device().find("greenhouse-advisor", "1.0.0")


def test_a_device_that_slept_through_many_rotations_catches_up(made: Rig):
    limit = Limits(roots=3)
    for _ in range(9):
        made.repository.renew("root")
        made.publish()
    made.publish()
    for _ in range(2):
        with pytest.raises(MetadataLimitError):
            made.device(limits=limit).refresh()
    assert made.device(limits=limit).refresh().root == 10


def test_versions_that_a_thief_drove_up_do_not_outlive_his_keys(made: Rig):
    def far(timestamp: Timestamp) -> None:
        timestamp.version = 1_000_000
        timestamp.expires = START + timedelta(days=30_000)
        timestamp.unrecognized_fields[ISSUED_FIELD] = "2090-01-01T00:00:00Z"

    made.forge_timestamp(far, "timestamp")
    made.device().refresh()
    made.server.lies.clear()
    with pytest.raises(MetadataError):  # both the version and the time are out of reach now
        made.device().refresh()
    old, new = key("timestamp").public_key, key("new-timestamp").public_key
    made.repository.rotate("timestamp", add=[new], remove=[old.keyid])
    made.publish()
    state = made.device().refresh()
    assert state.timestamp < 1_000_000
    assert (state.time.at, state.time.source) == (made.clock.at, "wall")
    assert made.device().refresh().time == state.time


def test_for_names_of_one_team_no_other_is_asked(made: Rig):
    def share(targets: Targets) -> None:
        first = targets.delegations.roles["growers"]
        second = DelegatedRole("others", [key("other").public_key.keyid], 1, False, paths=list(first.paths))
        targets.delegations.roles["others"] = second
        targets.delegations.keys[key("other").public_key.keyid] = key("other").public_key

    path = target_path("greenhouse-vents", "1.0.0")
    vents = Metadata(
        Targets(expires=START + timedelta(days=30), targets={path: TargetFile(1, {"sha256": "0"}, path)})
    )
    vents.sign(key("other"))
    made.forge_targets("targets", share, "targets-1", "targets-2")
    version = made.version("targets")
    made.forge_targets_bytes("others", 1, vents.to_bytes())
    assert made.device().refresh().targets == version
    with pytest.raises(ReleaseNotFoundError):
        made.device().find("greenhouse-vents", "1.0.0")


# --- time ---


def test_a_board_whose_clock_says_1970_still_takes_updates(made: Rig):
    made.device().refresh()
    last, made.clock.at = made.clock.at, made.clock.at.replace(year=1970)
    for _ in range(2):
        state = made.device().refresh()
        assert (state.time.at, state.time.source) == (last, "remembered")


def test_a_clock_that_was_far_ahead_for_a_while_does_no_harm(made: Rig):
    now, made.clock.at = made.clock.at, made.clock.at.replace(year=2070)
    with pytest.raises(MetadataExpiredError):
        made.device().refresh()
    made.clock.at = now
    assert made.device().refresh().time.source == "wall"


def test_a_repository_made_with_other_tools_needs_no_time_of_signing(made: Rig):
    metadata: Metadata[Timestamp] = Metadata.from_bytes(made.served("timestamp")[1])
    assert ISSUED_FIELD in metadata.signed.unrecognized_fields
    made.forge_timestamp(lambda timestamp: timestamp.unrecognized_fields.clear(), "timestamp")
    made.device().refresh()


# --- disks ---


@pytest.mark.parametrize("name", ["root.json", "timestamp.json", "clock.json", "snapshot", "targets"])
@pytest.mark.parametrize("damage", [b"", b"{", b"\xff" * 300, b" " * 3_000_000, None])
def test_a_damaged_file_heals_with_the_next_refresh(made: Rig, name: str, damage: bytes | None):
    made.repository.renew("root")
    made.publish()
    made.device().refresh()
    path = made.storage.directory / (name if "." in name else f"{made.version(name)}.{name}.json")
    assert path.exists()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    made.device().refresh()
    assert made.device(_offline).find("lamp", "1.1.0")


def _killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do `work` in a process that dies at the given write, sync or rename; whether it came that far."""
    child = os.fork()
    if child == 0:
        count = 0

        def dying(real):
            def call(*args, **kwargs):
                nonlocal count
                count += 1
                if count == step:
                    os._exit(9)
                return real(*args, **kwargs)

            return call

        for name in ("replace", "fsync", "open", "unlink"):
            setattr(os, name, dying(getattr(os, name)))
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, 9}
    return status == 9


def test_killed_anywhere_in_a_refresh_it_has_a_whole_state_and_goes_on(made: Rig):
    made.repository.rotate("snapshot", add=[key("new-snapshot").public_key])
    made.release("lamp", "1.2.0")
    made.publish()
    step, states = 1, set()
    while True:
        copy = made.directory / str(step)
        copy.mkdir()
        for path in made.storage.directory.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        storage = TrustStorage(copy)
        device = TrustedReleases(storage, made.server, clock=made.clock)
        if not _killed_at(step, device.refresh):
            break
        after = TrustedReleases(storage, _offline, clock=made.clock)
        states.add(after.state().targets)
        assert after.find("lamp", "1.1.0")
        again = TrustedReleases(storage, made.server, clock=made.clock)
        again.refresh()
        assert again.find("lamp", "1.2.0")
        assert not list(copy.glob(".partial-*"))
        step += 1
    assert step > 15
    assert len(states) == 2


def test_what_a_killed_writer_left_goes_even_when_nothing_can_be_fetched(made: Rig):
    (made.storage.directory / ".partial-0123456789abcdef").write_bytes(b"half a fi")
    with pytest.raises(MetadataFetchError):
        made.device(_offline).refresh()
    assert not list(made.storage.directory.glob(".partial-*"))


def test_only_one_at_a_time_works_on_what_is_trusted(made: Rig):
    thread = threading.Thread(target=made.device().refresh)
    with made.storage.locked():
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()


def test_two_at_once_do_not_disturb_each_other(made: Rig):
    made.release("lamp", "1.2.0")
    made.publish()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                made.device().refresh()
                made.device().find("greenhouse-advisor", "1.0.0")
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert made.device(_offline).find("lamp", "1.2.0")


# --- rubbish ---


@pytest.fixture(scope="module")
def shared() -> Iterator[Rig]:
    with rig() as found:
        yield found


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_rubbish_is_refused_as_metadata(data: bytes):
    with pytest.raises(MetadataError):
        check_form(data, "timestamp", 300)


def test_more_than_a_role_may_have_is_not_even_parsed(made: Rig, tmp_path: Path):
    data = made.repository.root_bytes()
    with pytest.raises(MetadataSizeError):
        check_form(data, "root", len(data) - 1)
    with pytest.raises(MetadataSizeError):
        enrol(TrustStorage(tmp_path), data, limits=Limits(root_bytes=len(data) - 1))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_file_with_any_part_replaced_is_refused_or_says_the_same(shared: Rig, data: st.DataObject):
    role = data.draw(st.sampled_from(["root", "timestamp", "snapshot", "targets"]))
    honest = shared.served(role)[1]
    at = data.draw(st.integers(0, len(honest) - 1))
    length = data.draw(st.integers(0, 20))
    piece = data.draw(
        st.binary(max_size=8) | st.sampled_from([b"null", b"true", b"[]", b"{}", b"-1", b'""', b"1e9"])
    )
    changed = honest[:at] + piece + honest[at + length :]
    decisions = Decisions(shared.served("root")[1], now=shared.clock.at, limits=Limits())
    try:
        if role == "root":
            Decisions(changed, now=shared.clock.at, limits=Limits())
        else:
            decisions.add_timestamp(changed if role == "timestamp" else shared.served("timestamp")[1])
        if role in {"snapshot", "targets"}:
            decisions.add_snapshot(changed if role == "snapshot" else shared.served("snapshot")[1])
        if role == "targets":
            decisions.add_targets(changed)
    except MetadataError:
        return
    assert Metadata.from_bytes(changed).signed == Metadata.from_bytes(honest).signed


def test_a_directory_is_a_source_like_any_other(made: Rig):
    made.publish()
    assert made.device(DirectoryFetch(made.repository.public)).refresh().timestamp == 2
