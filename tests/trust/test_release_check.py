"""A whole check, in this process and in a child."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_trust_rig import DEVICE, DEVICE_KEY, FLEET, Rig, rig
from edgeslm.errors import MetadataFetchError, MetadataMissingError, SlowRetrievalError, TrustStateError
from edgeslm.schema.assignment import AssignedRelease
from edgeslm.schema.base import version_key
from edgeslm.schema.release import CheckRequest, HeldRelease
from edgeslm.trust.check import check
from edgeslm.trust.child import run_check
from edgeslm.trust.fetch import DirectoryFetch, oversize


@pytest.fixture
def made() -> Iterator[Rig]:
    with rig() as found:
        yield found


def _request(made: Rig, body: bytes | None = None, **fields) -> CheckRequest:
    found = {"fleet": FLEET, "device": DEVICE, "device_key_sha256": DEVICE_KEY, **fields}
    text = None if body is None else body.decode()
    return CheckRequest(state_dir=str(made.storage.directory), assignment=text, **found)


def _offline(path: str, max_bytes: int) -> bytes:
    raise MetadataFetchError("offline", path=path)


def _assigned(made: Rig, *items: tuple[str, str], downgrade: bool = False) -> bytes:
    releases = {}
    for name, version in items:
        try:
            sha256 = made.device().find(name, version).info.sha256
        except Exception:
            sha256 = "0" * 64
        releases[name] = AssignedRelease(version=version, sha256=sha256, allow_downgrade=downgrade)
    return made.assign(seq=11, releases=releases)


def test_what_is_assigned_is_found(made: Rig):
    result = made.check(_assigned(made, ("lamp", "1.1.0"), ("greenhouse-advisor", "1.0.0")))
    assert result.refresh_refused is None
    assert result.assignment is not None
    assert [(item.name, item.target.info.version) for item in result.releases if item.target] == [
        ("greenhouse-advisor", "1.0.0"),
        ("lamp", "1.1.0"),
    ]


def test_one_release_that_is_refused_keeps_no_other_back(made: Rig):
    result = made.check(_assigned(made, ("lamp", "1.1.0"), ("greenhouse-advisor", "7.0.0")))
    refused, found = result.releases
    assert refused.refused is not None
    assert refused.refused.error == "ReleaseNotFoundError"
    assert found.target is not None


def test_offline_what_was_trusted_before_decides(made: Rig):
    result = check(_request(made, _assigned(made, ("lamp", "1.1.0"))), _offline, clock=made.clock)
    assert result.refresh_refused is not None
    assert result.refresh_refused.error == "MetadataFetchError"
    assert result.releases[0].target is not None


def test_by_expired_metadata_no_assignment_is_followed(made: Rig):
    body = _assigned(made, ("lamp", "1.1.0"))
    made.clock.at = made.clock.at.replace(year=2027)
    result = check(_request(made, body), _offline, clock=made.clock)
    assert result.assignment is None
    assert result.expires_at is None
    assert result.assignment_refused is not None
    assert result.assignment_refused.error == "MetadataExpiredError"


def test_a_downgrade_is_taken_when_it_is_meant_and_safe(made: Rig):
    held = {"lamp": HeldRelease(version="1.1.0", security_floor="0.0.0")}
    refused = made.check(_assigned(made, ("lamp", "1.0.0")), held).releases[0].refused
    assert refused is not None
    assert refused.error == "DowngradeError"
    assert made.check(_assigned(made, ("lamp", "1.0.0"), downgrade=True), held).releases[0].target is not None


def test_a_floor_holds_from_the_next_refresh_on_for_what_was_released_before(made: Rig):
    body = _assigned(made, ("lamp", "1.0.0"), downgrade=True)
    made.repository.set_floor("lamp", "1.0.5")
    made.publish()
    refused = made.check(body).releases[0].refused
    assert refused is not None
    assert (refused.error, version_key(refused.actual or "")) == ("SecurityFloorError", version_key("1.0.0"))


# --- in a child ---


def test_a_child_finds_what_this_process_would(made: Rig):
    made.publish()
    body = _assigned(made, ("lamp", "1.1.0"), ("greenhouse-advisor", "1.0.0"))
    result = run_check(_request(made, body), made.server)
    assert result.refresh_refused is None
    assert result.assignment is not None
    assert all(item.target for item in result.releases)
    assert made.server.asked


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (MetadataFetchError("gone", path="p"), "MetadataFetchError"),
        (SlowRetrievalError("slow", path="p"), "SlowRetrievalError"),
        (MetadataMissingError("missing", path="p"), "MetadataMissingError"),
        (oversize("p", 1), "MetadataSizeError"),
    ],
)
def test_how_a_fetch_fails_crosses_the_processes(made: Rig, raised: Exception, error: str):
    def fetch(path: str, max_bytes: int) -> bytes:
        raise raised

    result = run_check(_request(made), fetch)
    assert result.refresh_refused is not None
    assert result.refresh_refused.error == error
    assert result.expires_at is not None


def test_a_child_without_an_enrolled_root_says_so(made: Rig, tmp_path: Path):
    with pytest.raises(TrustStateError, match="no root was enrolled"):
        run_check(
            CheckRequest(state_dir=str(tmp_path), fleet="a", device="b", device_key_sha256="0" * 64), _offline
        )


def test_a_child_that_hangs_is_ended(made: Rig):
    def fetch(path: str, max_bytes: int) -> bytes:
        time.sleep(0.6)
        return DirectoryFetch(made.repository.public)(path, max_bytes)

    with pytest.raises(TrustStateError, match="without a verdict"):
        run_check(_request(made), fetch, timeout_s=0.5)


def test_the_parent_loads_none_of_the_child_s_libraries():
    code = "import sys, edgeslm.trust.child; sys.exit(bool({'tuf', 'cryptography'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
