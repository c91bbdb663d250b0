"""Releases of the agent itself: who may vouch for one, what a device believes, and what is served."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile, Targets

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.agent_update_rig import make_archive
from benchmarks.update_trust_rig import DEVICE, DEVICE_KEY, FLEET, TEAM, Rig, fast_directory, key, keys
from edgeslm.errors import (
    AgentArchiveError,
    MetadataError,
    MetadataFormatError,
    MetadataSignatureError,
    ReleaseNotFoundError,
    ReleaseRepositoryError,
)
from edgeslm.fleet.agent_releases import AgentReleases
from edgeslm.fleet.distribution import files_by_sha256, public_files
from edgeslm.schema.agent_release import AgentInfo, agent_target_path
from edgeslm.schema.release import CheckedAgent, CheckRequest, WantedAgent
from edgeslm.trust.check import check
from edgeslm.trust.fetch import DirectoryFetch
from edgeslm.trust.releases import TrustedReleases


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    with fast_directory() as directory:
        Rig(directory).device().refresh()
        yield directory


@pytest.fixture
def rig(template: Path) -> Iterator[Rig]:
    with fast_directory() as directory:
        shutil.copytree(template, directory / "rig")
        yield Rig(directory / "rig")


def agents(rig: Rig) -> AgentReleases:
    return AgentReleases(rig.directory / "repository", clock=rig.clock)


def add(rig: Rig, version: str, tag: str = "py3-none-any", **more: str) -> AgentInfo:
    return agents(rig).add(make_archive(rig.directory / "archives", version, tag=tag)[0], **more)


def device(rig: Rig) -> TrustedReleases:
    found = rig.device()
    found.refresh()
    return found


def checked(rig: Rig, info: AgentInfo, running: str = "1.0.0", **more: bool) -> CheckedAgent:
    wanted = WantedAgent(version=info.version, sha256=info.sha256, running=running, **more)
    request = CheckRequest(
        state_dir=str(rig.storage.directory),
        fleet=FLEET,
        device=DEVICE,
        device_key_sha256=DEVICE_KEY,
        agents=(wanted,),
    )
    (found,) = check(request, rig.server, clock=rig.clock).agents
    return found


class TestReleasing:
    def test_it_lies_pending_until_it_is_signed_and_published(self, rig: Rig):
        info = add(rig, "1.1.0")
        assert agents(rig).published() == ()
        assert [(one.role, one.missing) for one in rig.repository.pending()] == [("targets", 2)]
        with pytest.raises(ReleaseNotFoundError):
            device(rig).find_agent("1.1.0", info.sha256)
        rig.publish()
        assert device(rig).find_agent("1.1.0", info.sha256).info == info
        assert [one.info for one in agents(rig).published()] == [info]

    def test_its_files_are_named_by_their_digests_and_served(self, rig: Rig):
        info = add(rig, "1.1.0")
        for path in info.paths:
            assert (rig.repository.public / path).is_file()
        by_path, by_digest = public_files(rig.repository.public), files_by_sha256(rig.repository.public)
        for found in (
            by_path(f"/{info.file_path}"),
            by_path(f"/blocks/{info.sha256}"),
            by_digest(info.sha256),
        ):
            assert found is not None
            assert found.size_bytes == info.size_bytes
        assert by_digest(info.chunks_sha256 or "") is not None

    def test_adding_it_again_changes_nothing(self, rig: Rig):
        info = add(rig, "1.1.0")
        rig.publish()
        assert add(rig, "1.1.0") == info
        assert rig.repository.pending() == ()

    def test_one_version_has_one_archive_for_each_kind_of_board(self, rig: Rig):
        builds = [
            add(rig, "1.1.0", f"cp311-cp311-manylinux_2_28_{machine}") for machine in ("aarch64", "x86_64")
        ]
        rig.publish()
        assert {one.info.sha256 for one in agents(rig).published()} == {info.sha256 for info in builds}
        with pytest.raises(
            ReleaseRepositoryError, match=r"for aarch64 and Python 3\.11 is released with other content"
        ):
            add(rig, "1.1.0", "cp311-cp311-manylinux_2_17_aarch64")

    def test_packages_are_as_they_were_beside_it(self, rig: Rig):
        before = rig.repository.releases()
        info = add(rig, "1.1.0")
        rig.publish()
        assert rig.repository.releases() == before
        rig.repository.prune()
        assert all((rig.repository.public / path).is_file() for path in info.paths)

    def test_withdrawn_it_is_found_no_more_and_its_files_go_with_the_next_pruning(self, rig: Rig):
        info = add(rig, "1.1.0")
        rig.publish()
        assert agents(rig).withdraw("1.1.0") == 1
        rig.publish()
        with pytest.raises(ReleaseNotFoundError):
            device(rig).find_agent("1.1.0", info.sha256)
        rig.repository.prune()
        assert not any((rig.repository.public / path).exists() for path in info.paths)
        with pytest.raises(ReleaseRepositoryError, match="not released"):
            agents(rig).withdraw("1.1.0")

    def test_what_is_no_archive_is_refused_and_leaves_nothing(self, rig: Rig):
        before = sorted(rig.repository.public.rglob("*"))
        bad = rig.directory / "bad.tar"
        bad.write_bytes(b"no archive" * 100)
        with pytest.raises(AgentArchiveError, match=r"bad\.tar"):
            agents(rig).add(bad)
        assert sorted(rig.repository.public.rglob("*")) == before
        assert rig.repository.pending() == ()


class TestTheFloor:
    def test_rises_when_asked_and_outlives_what_raised_it(self, rig: Rig):
        old, new = add(rig, "1.0.0"), add(rig, "1.2.0", floor="1.1.0")
        agents(rig).withdraw("1.2.0")
        rig.publish()
        assert checked(rig, new).refused is not None
        found = checked(rig, old)
        assert found.refused is not None
        assert (found.refused.error, found.refused.expected) == ("SecurityFloorError", "at least 1.1.0")

    def test_no_flag_leads_below_it(self, rig: Rig):
        old = add(rig, "1.0.0")
        add(rig, "1.2.0", floor="1.1.0")
        rig.publish()
        found = checked(rig, old, running="1.2.0", allow_downgrade=True)
        assert found.refused is not None
        assert found.refused.error == "SecurityFloorError"

    def test_never_falls(self, rig: Rig):
        add(rig, "1.2.0", floor="1.1.0")
        add(rig, "1.3.0", floor="1.0.0")
        rig.publish()
        assert {one.floor for one in agents(rig).published()} == {"1.1.0"}
        with pytest.raises(ReleaseRepositoryError, match=r"below the security floor 1\.1\.0"):
            add(rig, "1.0.5")

    def test_can_be_raised_by_adding_the_same_again(self, rig: Rig):
        info = add(rig, "1.2.0")
        rig.publish()
        add(rig, "1.2.0", floor="1.2.0")
        rig.publish()
        assert device(rig).find_agent("1.2.0", info.sha256).floor == "1.2.0"


class TestADevice:
    def test_takes_what_is_newer(self, rig: Rig):
        info = add(rig, "1.1.0")
        rig.publish()
        found = checked(rig, info)
        assert found.target is not None
        assert found.target.info == info

    def test_takes_what_is_older_only_where_that_is_meant(self, rig: Rig):
        info = add(rig, "1.1.0")
        rig.publish()
        found = checked(rig, info, running="1.2.0")
        assert found.refused is not None
        assert found.refused.error == "DowngradeError"
        assert checked(rig, info, running="1.2.0", allow_downgrade=True).target is not None

    def test_takes_no_other_archive_under_that_version(self, rig: Rig):
        info = add(rig, "1.1.0")
        rig.publish()
        found = checked(rig, info.model_copy(update={"sha256": "b" * 64}))
        assert found.refused is not None
        assert found.refused.error == "ReleaseNotFoundError"

    def test_offline_believes_what_it_believed(self, rig: Rig):
        info = add(rig, "1.1.0")
        rig.publish()
        device(rig)
        empty = rig.directory / "empty"
        empty.mkdir()
        found = rig.device(DirectoryFetch(empty)).find_agent("1.1.0", info.sha256)
        assert found.info == info


def evil(info: AgentInfo) -> TargetFile:
    path = agent_target_path(info.version, info.sha256)
    custom = info.model_dump(mode="json", exclude_none=True)
    return TargetFile(info.size_bytes, {"sha256": info.sha256}, path, {"custom": custom})


class TestNobodyElseCanVouchForCode:
    @pytest.fixture
    def info(self, rig: Rig) -> AgentInfo:
        info = add(rig, "1.1.0")
        rig.publish()
        return info.model_copy(update={"version": "6.6.6", "sha256": "e" * 64})

    def test_the_keys_of_the_machine_that_publishes_do_not_suffice(self, rig: Rig, info: AgentInfo):
        target = evil(info)
        rig.forge_targets(
            "targets", lambda targets: targets.targets.update({target.path: target}), "snapshot"
        )
        found = checked(rig, info)
        assert found.refused is not None
        assert found.target is None

    def test_one_of_two_offline_keys_does_not_suffice(self, rig: Rig, info: AgentInfo):
        target = evil(info)
        rig.forge_targets(
            "targets", lambda targets: targets.targets.update({target.path: target}), "targets-1"
        )
        with pytest.raises(MetadataSignatureError):
            rig.device().refresh()

    def test_a_team_does_not_even_where_its_paths_would_let_it(self, rig: Rig, info: AgentInfo):
        target = evil(info)

        def let_it(targets: Targets) -> None:
            assert targets.delegations is not None
            assert targets.delegations.roles is not None
            targets.delegations.roles[TEAM].paths = ["agents/*/*"]

        rig.forge_targets("targets", let_it, "targets-1", "targets-2")
        rig.forge_targets(TEAM, lambda targets: targets.targets.update({target.path: target}), "team")
        found = checked(rig, info)
        assert found.refused is not None
        assert found.refused.error == "ReleaseNotFoundError"

    def test_a_team_cannot_be_given_such_paths(self, rig: Rig):
        for name in ("agents", "../agents", "*"):
            with pytest.raises(ReleaseRepositoryError):
                rig.repository.delegate("others", keys("new-team"), [name, f"{name}/x"])

    @pytest.mark.parametrize(
        "change",
        [
            {"version": "1.0.0"},
            {"sha256": "f" * 64},
            {"size_bytes": 7},
            {"requires": {"pythons": []}},
            {"installed_bytes": -1},
            {"v": 2},
        ],
    )
    def test_what_contradicts_itself_is_not_believed(
        self, rig: Rig, info: AgentInfo, change: dict[str, object]
    ):
        target = evil(info)
        target.custom.update(change)
        rig.forge_targets(
            "targets", lambda targets: targets.targets.update({target.path: target}), "targets-1", "targets-2"
        )
        with pytest.raises(MetadataFormatError):
            device(rig).find_agent(info.version, info.sha256)

    def test_a_floor_that_is_none_stops_updates_instead_of_being_left_out(self, rig: Rig, info: AgentInfo):
        target = evil(info)

        def edit(targets: Targets) -> None:
            targets.targets[target.path] = target
            targets.unrecognized_fields["x-edgeslm-agent-floor"] = "latest"

        rig.forge_targets("targets", edit, "targets-1", "targets-2")
        with pytest.raises(MetadataError, match="x-edgeslm-agent-floor"):
            device(rig).find_agent(info.version, info.sha256)


def test_what_devices_would_refuse_is_not_published(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    add(rig, "1.1.0")
    monkeypatch.setattr(TrustedReleases, "find_agent", _refuse)
    rig.repository.sign_pending([key("targets-1"), key("targets-2")])
    with pytest.raises(ReleaseRepositoryError, match="devices would refuse"):
        rig.repository.publish([key("snapshot"), key("timestamp")])


def _refuse(*_: object) -> None:
    raise ReleaseNotFoundError("not here", role="targets")
