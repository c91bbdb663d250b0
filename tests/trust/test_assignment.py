from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuf.api.metadata import Targets

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_trust_rig import DEVICE, DEVICE_KEY, FLEET, Rig, key, keys, rig
from edgeslm.errors import AssignmentError, AssignmentFormatError, AssignmentSignatureError
from edgeslm.fleet.signing import next_seq, sign_assignment
from edgeslm.schema.assignment import (
    MAX_ASSIGNMENT_BYTES,
    MAX_LIFETIME,
    AssignedRelease,
    Assignment,
    UpdateWindow,
)
from edgeslm.trust.assignment import verify_assignment
from edgeslm.trust.document import canonical, payload

NOW = datetime(2026, 12, 1, 13, tzinfo=UTC)
TIMES = st.datetimes(datetime(2026, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))
NAMES = st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
VERSIONS = st.tuples(*[st.integers(0, 999)] * 3).map(lambda parts: ".".join(map(str, parts)))
RELEASES = st.builds(AssignedRelease, version=VERSIONS, sha256=DIGESTS, allow_downgrade=st.booleans())
WINDOWS = st.builds(
    lambda at, span: UpdateWindow(opens_at=at, closes_at=at + span), TIMES, st.just(timedelta(1))
)
ASSIGNMENTS = st.builds(
    lambda issued, lifetime, **fields: Assignment(issued_at=issued, expires_at=issued + lifetime, **fields),
    TIMES,
    st.timedeltas(timedelta(seconds=2), MAX_LIFETIME),
    fleet=NAMES,
    device=NAMES,
    device_key_sha256=DIGESTS,
    seq=st.integers(1, 2**53 - 1),
    releases=st.dictionaries(NAMES, RELEASES, max_size=4),
    budget=st.none() | st.from_regex(r"[ -~]{0,60}", fullmatch=True),
    window=st.none() | WINDOWS,
)


@pytest.fixture
def made() -> Iterator[Rig]:
    with rig() as found:
        yield found


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Targets, bytes]]:
    """What the device trusts, and an assignment that it would follow."""
    with rig() as found:
        yield found.device().targets, found.assign()


def _judge(authority: Targets, body: bytes) -> Assignment:
    return verify_assignment(
        body,
        authority,
        fleet=FLEET,
        device=DEVICE,
        device_key_sha256=DEVICE_KEY,
        last_seq=0,
        now=NOW,
    )


@given(ASSIGNMENTS)
def test_what_is_signed_says_all_that_the_assignment_says(assignment: Assignment):
    data = payload(assignment)
    assert Assignment.model_validate_json(data) == assignment
    assert canonical(json.loads(data)) == data


def test_the_same_again_is_no_replay(made: Rig):
    body = made.assign(seq=11)
    assert made.follow(body) == made.follow(body)


def test_a_field_of_a_later_release_is_signed_and_otherwise_ignored(made: Rig):
    value = json.loads(made.assign(seq=11))
    value["signed"]["later"] = {"a": 1}
    signature = key("assignments").sign(canonical(value["signed"]))
    body = canonical({"signatures": [signature.to_dict()], "signed": value["signed"]})
    assert made.follow(body).seq == 11
    with pytest.raises(AssignmentSignatureError):
        made.follow(body.replace(b'{"a":1}', b'{"a":2}'))


@pytest.mark.parametrize("field", ["type", "v"])
def test_what_does_not_say_that_it_is_an_assignment_is_none(made: Rig, field: str):
    value = json.loads(made.assign(seq=11))
    del value["signed"][field]
    signature = key("assignments").sign(canonical(value["signed"]))
    with pytest.raises(AssignmentFormatError):
        made.follow(canonical({"signatures": [signature.to_dict()], "signed": value["signed"]}))


def test_a_signature_too_many_does_no_harm(made: Rig):
    assert made.follow(sign_assignment(made.assignment(seq=11), [key("stranger"), key("assignments")]))


def test_two_keys_have_to_sign_where_two_are_asked_for(made: Rig):
    made.repository.rotate("assignments-home", add=[key("second").public_key], threshold=2)
    made.publish()
    made.device().refresh()
    with pytest.raises(AssignmentSignatureError):
        made.follow(sign_assignment(made.assignment(seq=11), [key("assignments")]))
    assert made.follow(sign_assignment(made.assignment(seq=11), [key("assignments"), key("second")]))


def test_a_new_key_is_taken_as_soon_as_the_repository_names_it(made: Rig):
    body = sign_assignment(made.assignment(seq=11), [key("new-assignments")])
    with pytest.raises(AssignmentSignatureError):
        made.follow(body)
    made.repository.rotate("assignments-home", add=[key("new-assignments").public_key])
    made.publish()
    made.device().refresh()
    assert made.follow(body)


def test_one_fleet_s_key_signs_for_no_other(made: Rig):
    made.repository.delegate_assignments("office", keys("office"))
    made.publish()
    made.device().refresh()
    with pytest.raises(AssignmentSignatureError):
        made.follow(sign_assignment(made.assignment(seq=11), [key("office")]))


def test_a_team_cannot_be_let_sign_assignments_by_its_paths(made: Rig):
    # Only roles that are made for it sign assignments, however wide another's paths are.
    def widen(targets):
        targets.delegations.roles["growers"].paths.append("*/*/*")
        targets.delegations.roles = dict(reversed(targets.delegations.roles.items()))

    made.forge_targets("targets", widen, "targets-1", "targets-2")
    made.device().refresh()
    with pytest.raises(AssignmentSignatureError):
        made.follow(sign_assignment(made.assignment(seq=11), [key("team")]))
    assert made.follow(made.assign(seq=11))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_rubbish_is_refused(shared: tuple[Targets, bytes], body: bytes):
    with pytest.raises(AssignmentError):
        _judge(shared[0], body)


def test_one_that_is_too_long_is_not_even_parsed(shared: tuple[Targets, bytes]):
    with pytest.raises(AssignmentFormatError, match="longer"):
        _judge(shared[0], shared[1] + b" " * MAX_ASSIGNMENT_BYTES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@settings(max_examples=200, deadline=None)
@given(signed=JSON, signatures=JSON)
def test_anything_in_the_right_envelope_is_refused(
    shared: tuple[Targets, bytes], signed: object, signatures: object
):
    with pytest.raises(AssignmentError):
        _judge(shared[0], canonical({"signed": signed, "signatures": signatures}))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_body_with_any_byte_replaced_is_refused(shared: tuple[Targets, bytes], data: st.DataObject):
    authority, body = shared
    assert _judge(authority, body)
    at = data.draw(st.integers(0, len(body) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != body[at]))
    with pytest.raises(AssignmentError):
        _judge(authority, body[:at] + bytes([byte]) + body[at + 1 :])


def test_lasts_no_longer_than_a_month():
    fields = {"fleet": "a", "device": "b", "device_key_sha256": "0" * 64, "seq": 1, "issued_at": NOW}
    Assignment(**fields, expires_at=NOW + MAX_LIFETIME)
    for wrong in (NOW, NOW - timedelta(days=1), NOW + MAX_LIFETIME + timedelta(seconds=1)):
        with pytest.raises(ValueError, match="expire"):
            Assignment(**fields, expires_at=wrong)


def test_numbers_rise_even_when_the_last_one_was_lost():
    assert next_seq(0, NOW) > 1_700_000_000
    assert next_seq(next_seq(0, NOW), NOW) == next_seq(0, NOW) + 1
    assert next_seq(10**12, NOW) == 10**12 + 1
