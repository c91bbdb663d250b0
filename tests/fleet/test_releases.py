"""The release repository: editing, signing in steps, publishing, and being cut off anywhere."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_trust_rig import ONLINE, START, Clock, Rig, fast_directory, key, keys
from edgeslm.errors import (
    MetadataSignatureError,
    PackageError,
    ReleaseNotFoundError,
    ReleaseRepositoryError,
    SigningKeyError,
)
from edgeslm.fleet import releases
from edgeslm.fleet.release_metadata import RoleKeys
from edgeslm.fleet.releases import ReleaseRepository
from edgeslm.fleet.signing import sign_file
from edgeslm.schema.release import Lifetimes
from edgeslm.trust.fetch import DirectoryFetch
from edgeslm.trust.releases import TrustedReleases, check_bytes
from edgeslm.trust.storage import TrustStorage

SIGNERS = [key("snapshot"), key("timestamp")]


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    with fast_directory() as directory:
        Rig(directory).device().refresh()
        yield directory


@pytest.fixture
def made(template: Path) -> Iterator[Rig]:
    with fast_directory() as directory:
        shutil.copytree(template, directory / "rig")
        yield Rig(directory / "rig")


def _sign(made: Rig, *names: str) -> None:
    made.repository.sign_pending([key(name) for name in names])


def _publish(made: Rig) -> dict[str, int]:
    return dict(made.repository.publish([key(name) for name in ONLINE]).published)


def _pending(made: Rig) -> dict[str, int]:
    """Missing signatures by role."""
    return {item.role: item.missing for item in made.repository.pending()}


def _public(made: Rig) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in made.repository.public.rglob("*") if path.is_file()}


# --- making ---


def test_nothing_is_published_before_root_and_targets_are_signed(tmp_path: Path):
    repository = ReleaseRepository.create(
        tmp_path,
        root=keys("root-1", "root-2"),
        targets=keys("targets-1"),
        snapshot=keys("snapshot"),
        timestamp=keys("timestamp"),
    )
    for names in ([], ["targets-1"], ["root-1"]):
        repository.sign_pending([key(name) for name in names])
        with pytest.raises(ReleaseRepositoryError):
            repository.publish(SIGNERS)
        with pytest.raises(ReleaseRepositoryError):
            repository.root_bytes()
    repository.sign_pending([key("root-2")])
    assert repository.publish(SIGNERS).published == {"root": 1, "targets": 1}
    assert repository.root_bytes()


def test_a_repository_is_not_made_over_another(made: Rig):
    role = keys("root-1")
    with pytest.raises(ReleaseRepositoryError):
        ReleaseRepository.create(
            made.directory / "repository", root=role, targets=role, snapshot=role, timestamp=role
        )


def test_a_directory_that_is_no_repository_is_refused(tmp_path: Path):
    with pytest.raises(ReleaseRepositoryError):
        ReleaseRepository(tmp_path)


def test_one_key_is_never_worth_two_signatures():
    once = key("root-1").public_key
    again = type(once)("another-id", once.keytype, once.scheme, once.keyval)
    with pytest.raises(ReleaseRepositoryError):
        RoleKeys((once, again), 2)


@pytest.mark.parametrize("threshold", [0, -1, 3])
def test_a_threshold_is_met_by_the_keys_there_are(threshold: int):
    with pytest.raises(ReleaseRepositoryError):
        keys("root-1", "root-2", threshold=threshold)


# --- releasing ---


def test_what_is_added_is_served_only_when_it_is_signed_and_published(made: Rig):
    made.release("lamp", "2.0.0")
    assert _pending(made) == {"targets": 2}
    _sign(made, "targets-1")
    assert _pending(made) == {"targets": 1}
    assert _publish(made) == {}
    made.device().refresh()
    with pytest.raises(ReleaseNotFoundError):
        made.device().find("lamp", "2.0.0")
    _sign(made, "targets-2")
    assert _publish(made) == {"targets": 2}
    made.device().refresh()
    target = made.device().find("lamp", "2.0.0")
    check_bytes(target, made.repository.public / target.info.file_path)


def test_the_custom_metadata_says_what_the_package_says(made: Rig):
    requires = {"ram_mb": 128, "agent": "0.2.0", "cpu_features": ["asimddp"]}
    made.release("lamp", "2.0.0", requires=requires, security_floor="1.1.0")
    made.publish()
    made.device().refresh()
    target = made.device().find("lamp", "2.0.0")
    assert target.info.requires.model_dump() == {
        **requires,
        "cpu_features": ("asimddp",),
        "runtimes": ("litert",),
    }
    assert (target.info.task, target.info.security_floor, target.floor) == ("generate", "1.1.0", "1.1.0")


def test_adding_the_same_again_changes_nothing(made: Rig):
    before = _public(made)
    made.repository.add(made.directory / "lamp-1.1.0.slm")
    assert _pending(made) == {}
    assert _public(made) == before


def test_a_release_keeps_its_bytes(made: Rig):
    shutil.rmtree(made.directory / "lamp-1.1.0")
    before = _public(made)
    with pytest.raises(ReleaseRepositoryError, match="other content"):
        made.release("lamp", "1.1.0", description="Another one")
    assert _public(made) == before
    assert _pending(made) == {}


def test_what_is_no_package_leaves_nothing(made: Rig, tmp_path: Path):
    before = _public(made)
    (tmp_path / "broken.slm").write_bytes(b"PK\x03\x04" * 100)
    for name in ("broken.slm", "missing.slm"):
        with pytest.raises((PackageError, ReleaseRepositoryError)):
            made.repository.add(tmp_path / name)
    assert _public(made) == before
    assert _pending(made) == {}


def test_a_release_below_the_floor_is_not_taken(made: Rig):
    made.release("lamp", "2.0.0", security_floor="1.5.0")
    with pytest.raises(ReleaseRepositoryError, match="security floor"):
        made.release("lamp", "1.4.0")
    with pytest.raises(ReleaseRepositoryError, match="security floor"):
        made.release("oven", "1.0.0", security_floor="1.0.1")


def test_a_floor_can_be_lowered_by_those_who_sign(made: Rig):
    made.release("lamp", "2.0.0", security_floor="1.5.0")
    made.publish()
    made.repository.set_floor("lamp", "1.0.0")
    made.publish()
    made.device().refresh()
    assert made.device().find("lamp", "1.0.0").floor == "1.0.0"
    with pytest.raises(ReleaseRepositoryError):
        made.repository.set_floor("lamp", "latest")


def test_chunk_maps_and_deltas_are_served_by_their_digests(made: Rig, tmp_path: Path):
    (tmp_path / "chunks").write_bytes(b"chunks")
    (tmp_path / "delta").write_bytes(b"delta")
    base = made.device().find("lamp", "1.0.0").info.sha256
    made.repository.attach("lamp", "1.1.0", chunks=tmp_path / "chunks")
    made.repository.attach("lamp", "1.1.0", deltas={base: tmp_path / "delta"})
    made.publish()
    made.device().refresh()
    info = made.device().find("lamp", "1.1.0").info
    assert (made.repository.public / str(info.chunks_path)).read_bytes() == b"chunks"
    assert (made.repository.public / str(info.delta_path(base))).read_bytes() == b"delta"
    assert info.delta_path("0" * 64) is None
    made.repository.attach("lamp", "1.1.0", chunks=tmp_path / "chunks")
    assert _pending(made) == {}


@pytest.mark.parametrize("base", ["", "../x", "A" * 64])
def test_a_delta_starts_from_a_digest(made: Rig, tmp_path: Path, base: str):
    (tmp_path / "delta").write_bytes(b"delta")
    with pytest.raises(ReleaseRepositoryError):
        made.repository.attach("lamp", "1.1.0", deltas={base: tmp_path / "delta"})
    assert _pending(made) == {}


def test_what_was_withdrawn_is_gone_after_pruning_and_the_rest_is_whole(made: Rig):
    target = made.device().find("lamp", "1.0.0")
    made.repository.withdraw("lamp", "1.0.0")
    made.publish()
    assert (made.repository.public / target.info.file_path).exists()
    gone = made.repository.prune()
    assert target.info.file_path in gone
    assert not (made.repository.public / target.info.file_path).parent.exists()
    assert [(item.info.name, item.info.version) for item in made.repository.releases()] == [
        ("greenhouse-advisor", "1.0.0"),
        ("lamp", "1.1.0"),
    ]
    made.device().refresh()
    for item in made.repository.releases():
        check_bytes(item, made.repository.public / item.info.file_path)
    assert made.repository.prune() == ()


def test_pruning_keeps_what_is_pending(made: Rig):
    made.release("lamp", "2.0.0")
    made.repository.prune()
    made.publish()
    target = next(item for item in made.repository.releases() if item.info.version == "2.0.0")
    check_bytes(target, made.repository.public / target.info.file_path)


# --- signing in steps ---


def test_several_people_sign_copies_on_machines_of_their_own(made: Rig, tmp_path: Path):
    made.release("lamp", "2.0.0")
    [pending] = made.repository.pending()
    for name in ("targets-1", "targets-2"):
        copy = tmp_path / f"{name}.json"
        shutil.copy(pending.path, copy)
        sign_file(copy, key(name))
        made.repository.collect("targets", copy)
    [pending] = made.repository.pending()
    assert pending.missing == 0
    assert set(pending.signed_by) == {key("targets-1").public_key.keyid, key("targets-2").public_key.keyid}


def test_a_root_is_signed_away_from_home_as_well(made: Rig, tmp_path: Path):
    made.repository.renew("root")
    for name in ("root-1", "root-2"):
        shutil.copy(made.repository.pending()[0].path, tmp_path / "root.json")
        sign_file(tmp_path / "root.json", key(name))
        made.repository.collect("root", tmp_path / "root.json")
    assert _publish(made) == {"root": 2}


def test_signatures_on_what_was_pending_before_are_not_taken(made: Rig, tmp_path: Path):
    made.release("lamp", "2.0.0")
    shutil.copy(made.repository.pending()[0].path, tmp_path / "targets.json")
    sign_file(tmp_path / "targets.json", key("targets-1"))
    made.release("lamp", "2.1.0")
    with pytest.raises(ReleaseRepositoryError, match="not the targets that is pending"):
        made.repository.collect("targets", tmp_path / "targets.json")


def test_a_change_takes_signatures_off(made: Rig):
    made.release("lamp", "2.0.0")
    _sign(made, "targets-1", "targets-2")
    made.release("lamp", "2.1.0")
    assert _pending(made) == {"targets": 2}
    assert b'"signatures":[]' in made.repository.pending()[0].path.read_bytes()


def test_what_a_publication_left_pending_is_not_published_again(made: Rig):
    made.release("lamp", "2.0.0")
    _sign(made, "targets-1", "targets-2")
    path = made.repository.pending()[0].path
    left = path.read_bytes()
    assert _publish(made) == {"targets": 2}
    path.write_bytes(left)  # as if cut off before it was removed
    assert _pending(made) == {}
    path.write_bytes(left)
    made.release("lamp", "2.1.0")
    _sign(made, "targets-1", "targets-2")
    assert _publish(made) == {"targets": 3}


def test_what_somebody_signs_is_told_in_words(made: Rig):
    made.release("lamp", "2.0.0", security_floor="1.0.0")
    made.repository.withdraw("lamp", "1.0.0")
    [pending] = made.repository.pending()
    lines = "\n".join(pending.changes)
    assert "+ packages/lamp/2.0.0/lamp-2.0.0.slm" in lines
    assert "- packages/lamp/1.0.0/lamp-1.0.0.slm" in lines
    assert "+ security floor of lamp: 1.0.0" in lines
    assert "lamp-1.1.0" not in lines


def test_a_key_without_a_say_is_told_so(made: Rig):
    made.release("lamp", "2.0.0")
    with pytest.raises(SigningKeyError):
        _sign(made, "team")
    assert _pending(made) == {"targets": 2}


def test_a_stranger_s_signature_brings_nothing_closer(made: Rig, tmp_path: Path):
    made.release("lamp", "2.0.0")
    shutil.copy(made.repository.pending()[0].path, tmp_path / "targets.json")
    sign_file(tmp_path / "targets.json", key("stranger"))
    made.repository.collect("targets", tmp_path / "targets.json")
    assert _pending(made) == {"targets": 2}


def test_what_is_pending_can_be_given_up(made: Rig):
    made.release("lamp", "2.0.0")
    made.repository.discard("targets")
    assert _pending(made) == {}
    made.publish()
    made.device().refresh()


# --- teams ---


def test_a_team_signs_its_names_and_nobody_else_is_needed(made: Rig):
    made.release("greenhouse-vents", "1.0.0")
    assert _pending(made) == {"growers": 1}
    _sign(made, "team")
    _publish(made)
    made.device().refresh()
    assert made.device().find("greenhouse-vents", "1.0.0").role == "growers"


@pytest.mark.parametrize(
    "names", [["greenhouse-*"], ["green*"], ["greenhouse-advisor"], ["greenhouse-a*"], ["*"]]
)
def test_no_two_teams_share_a_name(made: Rig, names: list[str]):
    with pytest.raises(ReleaseRepositoryError, match="share names"):
        made.repository.delegate("others", keys("other"), names)
    assert _pending(made) == {}


@pytest.mark.parametrize("name", ["a/b", "../x", "UPPER", "a*b", "", "[a]"])
def test_a_team_gets_names_and_beginnings_only(made: Rig, name: str):
    with pytest.raises(ReleaseRepositoryError):
        made.repository.delegate("others", keys("other"), [name])


@pytest.mark.parametrize("team", ["root", "targets", "assignments-home", "a/b", "..", "", "growers"])
def test_a_team_has_a_name_of_its_own(made: Rig, team: str):
    with pytest.raises(ReleaseRepositoryError):
        made.repository.delegate(team, keys("other"), ["lamp-*"])


def test_a_team_that_has_not_signed_yet_keeps_nobody_waiting(made: Rig):
    made.repository.delegate("others", keys("other"), ["oven-*"])
    made.release("lamp", "2.0.0")
    _sign(made, "targets-1", "targets-2")
    assert _publish(made) == {"targets": 2}
    made.device().refresh()
    assert made.device().find("lamp", "2.0.0")
    with pytest.raises(ReleaseNotFoundError):
        made.device().find("oven-top", "1.0.0")


def test_what_a_team_released_is_gone_with_its_delegation_and_its_floors_stay(made: Rig):
    made.release("greenhouse-advisor", "1.5.0", security_floor="1.5.0")
    made.publish()
    made.repository.undelegate("growers")
    made.publish()
    made.device().refresh()
    with pytest.raises(ReleaseNotFoundError):
        made.device().find("greenhouse-advisor", "1.0.0")
    assert "greenhouse-advisor" not in {item.info.name for item in made.repository.releases()}
    assert key("team").public_key.keyid.encode() not in made.served("targets")[1]
    made.repository.delegate("growers", keys("new-team"), ["greenhouse-*"])
    with pytest.raises(ReleaseRepositoryError, match="security floor"):
        made.release("greenhouse-advisor", "1.4.0")
    made.release("greenhouse-advisor", "1.6.0")
    made.publish()
    made.device().refresh()
    with pytest.raises(ReleaseNotFoundError):
        made.device().find("greenhouse-advisor", "1.5.0")
    target = made.device().find("greenhouse-advisor", "1.6.0")
    assert (target.role, target.floor) == ("growers", "1.5.0")
    made.repository.set_floor("greenhouse-advisor", "1.0.0")
    made.publish()
    made.device().refresh()
    assert made.device().find("greenhouse-advisor", "1.6.0").floor == "1.0.0"


# --- keys ---


def test_new_keys_wait_until_what_they_judge_is_signed_by_them(made: Rig):
    new, old = key("new-targets").public_key, key("targets-2").public_key
    made.repository.rotate("targets", add=[new], remove=[old.keyid[:10]])
    _sign(made, "root-1", "root-2")
    before = _public(made)
    with pytest.raises(ReleaseRepositoryError, match="Still to be signed: targets 2"):
        _publish(made)
    assert _public(made) == before
    _sign(made, "targets-1", "new-targets")
    assert _publish(made) == {"root": 2, "targets": 2}
    made.device().refresh()


def test_a_root_needs_those_before_it_and_those_to_come(made: Rig):
    made.repository.rotate("root", add=[key("new-root").public_key], remove=[key("root-2").public_key.keyid])
    _sign(made, "root-1", "new-root")
    assert _pending(made) == {"root": 1}
    assert _publish(made) == {}
    _sign(made, "root-2")
    assert _publish(made) == {"root": 2}


def test_no_role_is_left_without_enough_keys(made: Rig):
    with pytest.raises(ReleaseRepositoryError):
        made.repository.rotate("root", remove=[key("root-1").public_key.keyid])
    with pytest.raises(ReleaseRepositoryError):
        made.repository.rotate("root", remove=["ffff" * 16])
    with pytest.raises(ReleaseRepositoryError):
        made.repository.rotate("nobody", add=[key("other").public_key])


def test_only_the_keys_of_the_machine_keep_a_repository_fresh(made: Rig):
    made.clock.at += timedelta(days=20)
    made.release("lamp", "2.0.0")
    _sign(made, "targets-1", "targets-2")
    assert made.repository.refresh(SIGNERS).published == {}
    state = made.device().refresh()
    assert (state.targets, state.snapshot) == (1, 2)
    with pytest.raises(SigningKeyError):
        made.repository.refresh([key("snapshot"), key("targets-1")])


# --- time ---


def test_what_is_due_is_told_before_it_expires(made: Rig):
    assert not any(item.due for item in made.repository.expiries())
    made.clock.at += timedelta(days=6)
    due = [item for item in made.repository.expiries() if item.due]
    assert [(item.role, item.offline) for item in due] == [("timestamp", False)]
    made.clock.at += timedelta(days=150)
    due = [item.role for item in made.repository.expiries() if item.due and item.offline]
    assert due == ["growers"]


def test_lifetimes_are_as_settled(tmp_path: Path):
    clock = Clock()
    ReleaseRepository.create(
        tmp_path,
        root=keys("root-1"),
        targets=keys("targets-1"),
        snapshot=keys("snapshot"),
        timestamp=keys("timestamp"),
        lifetimes=Lifetimes(timestamp_days=1, root_days=3),
        clock=clock,
    )
    repository = ReleaseRepository(tmp_path, clock=clock)
    repository.sign_pending([key("root-1"), key("targets-1")])
    repository.publish(SIGNERS)
    ends = {item.role: item.expires_at for item in repository.expiries()}
    assert ends["timestamp"] == START + timedelta(days=1)
    assert ends["root"] == START + timedelta(days=3)
    assert ends["targets"] == START + timedelta(days=365)


def test_a_repository_left_alone_for_years_is_brought_back(made: Rig):
    made.clock.at += timedelta(days=900)
    with pytest.raises(ReleaseRepositoryError, match="devices would refuse"):
        made.repository.refresh(SIGNERS)
    for role in ("root", "targets", "growers"):
        made.repository.renew(role)
    made.publish()
    made.device().refresh()
    assert made.device().find("greenhouse-advisor", "1.0.0")


def test_an_expired_team_keeps_nobody_else_from_publishing(made: Rig):
    made.clock.at += timedelta(days=200)
    made.release("lamp", "2.0.0")
    _sign(made, "targets-1", "targets-2")
    _publish(made)
    made.device().refresh()
    assert made.device().find("lamp", "2.0.0")


# --- other clients ---


class _Files(FetcherInterface):
    def __init__(self, public: Path) -> None:
        self.public = public

    def _fetch(self, url: str):
        path = self.public / url.removeprefix("https://host/")
        if not path.exists():
            raise DownloadHTTPError("missing", 404)
        yield path.read_bytes()


def test_python_tuf_s_own_client_follows_the_repository(tmp_path: Path):
    made = Rig(tmp_path / "rig", at=Clock().at)
    made.clock.at = made.clock.at.now(made.clock.at.tzinfo)  # its clock is the system's
    for role in ("root", "targets", "growers"):
        made.repository.renew(role)
    made.publish()
    updater = Updater(
        str(tmp_path / "metadata"),
        "https://host/metadata/",
        str(tmp_path),
        "https://host/targets/",
        fetcher=_Files(made.repository.public),
        bootstrap=made.repository.root_bytes(),
    )
    updater.refresh()
    for name, version in (("lamp", "1.1.0"), ("greenhouse-advisor", "1.0.0")):
        found = updater.get_targetinfo(f"packages/{name}/{version}/{name}-{version}.slm")
        assert found is not None
        saved = updater.download_target(found, str(tmp_path / "saved"))
        assert Path(saved).read_bytes() == (made.directory / f"{name}-{version}.slm").read_bytes()


# --- cut off ---


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

        for name in ("replace", "fsync", "unlink", "mkdir"):
            setattr(os, name, dying(getattr(os, name)))
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, 9}
    return status == 9


Work = Callable[[ReleaseRepository, Path], object]
WORKS: dict[str, Work] = {
    "add": lambda repository, package: repository.add(package),
    "sign": lambda repository, package: repository.sign_pending([key("targets-1"), key("targets-2")]),
    "publish": lambda repository, package: repository.publish([key(name) for name in ONLINE]),
    "prune": lambda repository, package: repository.prune(),
}


@pytest.mark.parametrize(("name", "least"), [("add", 8), ("sign", 6), ("publish", 16), ("prune", 2)])
def test_cut_off_anywhere_devices_see_a_whole_state_and_the_same_work_again_completes_it(
    made: Rig, name: str, least: int
):
    made.release("lamp", "2.0.0")
    made.repository.discard("targets")
    made.repository.prune()
    package = made.directory / "lamp-2.0.0.slm"
    made.repository.rotate(
        "snapshot", add=[key("new-snapshot").public_key], remove=[key("snapshot").public_key.keyid]
    )
    _sign(made, "root-1", "root-2")
    done = list(WORKS)[: list(WORKS).index(name)]
    for before in done:
        WORKS[before](made.repository, package)
    step, between, killed = 0, 0, True
    while killed:
        step += 1
        copy = made.directory / str(step)
        shutil.copytree(made.directory / "repository", copy / "repository")
        shutil.copytree(made.storage.directory, copy / "device")
        repository = ReleaseRepository(copy / "repository", clock=made.clock)
        storage, source = TrustStorage(copy / "device"), DirectoryFetch(repository.public)
        device = TrustedReleases(storage, source, clock=made.clock)

        def work(repository: ReleaseRepository = repository) -> None:
            # In the child alone: trying a state out writes to a directory of its own, where nothing can break.
            releases.try_out = lambda *args, **kwargs: None
            WORKS[name](repository, package)

        killed = _killed_at(step, work)
        try:
            device.refresh()
            assert device.find("lamp", "1.1.0")
        except MetadataSignatureError:
            assert name == "publish"
            between += 1
        for after in list(WORKS)[len(done) :]:
            WORKS[after](repository, package)
        device.refresh()
        target = device.find("lamp", "2.0.0")
        check_bytes(target, repository.public / target.info.file_path)
        assert not list(copy.rglob(".partial-*"))
        assert repository.pending() == ()
        shutil.rmtree(copy)
    assert step > least
    assert between <= 4  # the new root is there, the timestamp that it goes with is not
