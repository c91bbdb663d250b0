"""A configuration is signed for one device, once, for a short time; and is no assignment."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuf.api.metadata import Targets

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_trust_rig import DEVICE, DEVICE_KEY, FLEET, START, Rig, key, keys, rig
from edgeslm.errors import AssignmentError, RemoteConfigError
from edgeslm.fleet.signing import sign_remote_config
from edgeslm.schema.release import CheckRequest, CheckResult
from edgeslm.schema.remote_config import MAX_REMOTE_CONFIG_BYTES, MAX_SETTINGS_CHARS, RemoteConfig
from edgeslm.trust.check import MAX_REQUEST_BYTES, check
from edgeslm.trust.document import canonical
from edgeslm.trust.remote_config import verify_remote_config


@pytest.fixture
def made() -> Iterator[Rig]:
    with rig() as found:
        yield found


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Targets, bytes]]:
    """What the device trusts, and a document that it would take up."""
    with rig() as found:
        yield found.device().targets, document()


def config(**changes: Any) -> RemoteConfig:
    fields: dict[str, Any] = {
        "fleet": FLEET,
        "device": DEVICE,
        "device_key_sha256": DEVICE_KEY,
        "version": 7,
        "issued_at": START,
        "expires_at": START + timedelta(days=1),
        "settings": '{"threads":2}',
    }
    return RemoteConfig(**{**fields, **changes})


def document(*signers: str, **changes: Any) -> bytes:
    return sign_remote_config(config(**changes), [key(name) for name in signers or ("assignments",)])


def judge(made: Rig, data: bytes, last_version: int = 0) -> CheckResult:
    request = CheckRequest(
        state_dir=str(made.storage.directory),
        fleet=FLEET,
        device=DEVICE,
        device_key_sha256=DEVICE_KEY,
        configuration=data.decode(),
        last_config=last_version,
    )
    return check(request, made.server, clock=made.clock)


def refused(made: Rig, data: bytes, last_version: int = 0) -> str:
    result = judge(made, data, last_version)
    assert result.configuration is None
    assert result.configuration_refused is not None
    return result.configuration_refused.message


def test_what_the_fleet_signed_for_this_device_is_taken_up(made: Rig) -> None:
    result = judge(made, document())
    assert result.configuration == config()
    assert result.configuration_refused is None
    assert result.assignment is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fleet": "office"}, "another fleet"),
        ({"device": "yard"}, "another device"),
        ({"device_key_sha256": "cd" * 32}, "another device key"),
        ({"issued_at": START - timedelta(days=2), "expires_at": START - timedelta(days=1)}, "expired"),
    ],
)
def test_what_is_for_another_or_another_time_is_refused(
    made: Rig, changes: dict[str, Any], words: str
) -> None:
    assert words in refused(made, document(**changes))


def test_the_same_or_an_older_version_is_refused_however_well_signed(made: Rig) -> None:
    assert "not newer" in refused(made, document(), last_version=7)
    assert "not newer" in refused(made, document(), last_version=8)
    assert judge(made, document(), last_version=6).configuration is not None


def test_a_stranger_a_team_and_half_of_two_keys_sign_nothing(made: Rig) -> None:
    assert "not signed" in refused(made, document("stranger"))
    assert "not signed" in refused(made, document("team"))
    made.repository.rotate("assignments-home", add=[key("second").public_key], threshold=2)
    made.publish()
    assert "not signed" in refused(made, document("assignments"))
    assert judge(made, document("assignments", "second")).configuration is not None


def test_another_fleet_s_key_signs_nothing_here(made: Rig) -> None:
    made.repository.delegate_assignments("office", keys("office"))
    made.publish()
    assert "not signed" in refused(made, document("office"))


def test_no_document_passes_as_one_of_the_other_type(made: Rig) -> None:
    assert "a kind that this release does not know" in refused(made, made.assign())
    with pytest.raises(AssignmentError):
        made.follow(document())
    # Not even one that has the fields of both, under either name.
    both = {
        **json.loads(canonical(config().model_dump(mode="json", exclude_none=True))),
        **json.loads(canonical(made.assignment().model_dump(mode="json", exclude_none=True))),
    }
    for kind in ("configuration", "assignment"):
        signed = {**both, "type": kind}
        signature = key("assignments").sign(canonical(signed))
        data = canonical({"signatures": [signature.to_dict()], "signed": signed})
        assert (judge(made, data).configuration is not None) == (kind == "configuration")
        if kind == "configuration":
            with pytest.raises(AssignmentError):
                made.follow(data)


@given(data=st.data())
@settings(max_examples=60)
def test_no_byte_can_be_changed(shared: tuple[Targets, bytes], data: st.DataObject) -> None:
    authority, whole = shared
    at = data.draw(st.integers(0, len(whole) - 1))
    # The digits of a signature may be written in capitals; what is signed may not.
    byte = data.draw(
        st.integers(0, 255).filter(lambda value: bytes([value]).lower() != whole[at : at + 1].lower())
    )
    changed = whole[:at] + bytes([byte]) + whole[at + 1 :]
    with pytest.raises(RemoteConfigError):
        verify_remote_config(
            changed,
            authority,
            fleet=FLEET,
            device=DEVICE,
            device_key_sha256=DEVICE_KEY,
            last_version=0,
            now=START,
        )


@given(st.binary(max_size=300))
def test_whatever_comes_is_refused_by_name(shared: tuple[Targets, bytes], data: bytes) -> None:
    with pytest.raises(RemoteConfigError):
        verify_remote_config(
            data,
            shared[0],
            fleet=FLEET,
            device=DEVICE,
            device_key_sha256=DEVICE_KEY,
            last_version=0,
            now=START,
        )


def test_the_longest_settings_fit_into_every_message_on_their_way(made: Rig) -> None:
    longest = '"' * MAX_SETTINGS_CHARS
    data = document(settings=longest)
    assert len(data) <= MAX_REMOTE_CONFIG_BYTES
    result = judge(made, data)
    assert result.configuration is not None
    assert result.configuration.settings == longest
    assert len(json.dumps(data.decode())) < MAX_REQUEST_BYTES // 1.5


def test_without_metadata_that_is_in_date_nothing_is_taken_up(made: Rig) -> None:
    judge(made, document())
    made.clock.at = START + timedelta(days=4000)
    late = document(issued_at=made.clock.at, expires_at=made.clock.at + timedelta(days=1))
    assert "expired" in refused(made, late)
