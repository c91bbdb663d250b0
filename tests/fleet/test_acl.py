"""The access list, the doors and the sessions of a fleet's broker, all of them tried."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import update_acl
from benchmarks.update_acl import ACTOR, Case
from edgeslm import topics
from edgeslm.link.broker import find_mosquitto

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.fixture(scope="module")
def refused() -> dict[Case, bool]:
    with update_acl.whole_rig() as rig:
        return update_acl.measure(rig)


def test_everything_that_is_forbidden_is_refused(refused: dict[Case, bool]) -> None:
    assert [case for case, was_refused in refused.items() if not was_refused] == []


def test_every_channel_of_another_device_is_among_what_is_tried(refused: dict[Case, bool]) -> None:
    for fleet, device in (("green", update_acl.OTHER), ("blue", ACTOR)):
        for channel in get_args(topics.DeviceChannel):
            topic = topics.device_topic(fleet, device, channel)
            for who in ("device", "claim", "door"):
                assert Case(who, "publish", topic) in refused
                assert Case(who, "subscribe", topic) in refused


def test_what_a_device_is_told_it_may_not_say_itself(refused: dict[Case, bool]) -> None:
    for channel in ("prompt", "desired", "certificate", "cancel"):
        assert Case("device", "publish", topics.device_topic("green", ACTOR, channel)) in refused
    assert Case("device", "publish", topics.command_topic("green", ACTOR, "bench", "x")) in refused
    assert Case("device", "publish", topics.pool_topic("green", "home-command")) in refused


def test_there_are_cases_of_every_kind(refused: dict[Case, bool]) -> None:
    kinds = {(case.who, case.action) for case in refused}
    actions = {"publish", "subscribe", "subscribe widely", "leave a will", "take a session"}
    whos = ("device", "claim", "door", "home assistant")
    assert kinds == {(who, action) for who in whos for action in actions} | {("stranger", "get in")}


def test_what_others_show_home_assistant_is_among_what_is_tried(refused: dict[Case, bool]) -> None:
    own = topics.discovery_topic("green", ACTOR)
    for who in ("device", "claim", "door"):
        assert Case(who, "publish", topics.discovery_topic("green", update_acl.OTHER)) in refused
        assert Case(who, "publish", topics.birth_topic()) in refused
        assert (Case(who, "publish", own) in refused) == (who != "device")
        assert Case(who, "subscribe", own) in refused


def test_what_is_granted_to_one_device_is_tried_by_all_others(refused: dict[Case, bool]) -> None:
    for who in ("device", "claim", "door", "home assistant"):
        for topic in update_acl.GRANTED_TO_OTHER:
            assert Case(who, "publish", topic) in refused
            assert Case(who, "subscribe", topic) in refused
        assert Case(who, "publish", update_acl.GRANTED_TO_ALL) in refused
        assert (Case(who, "subscribe", update_acl.GRANTED_TO_ALL) in refused) == (who != "device")


def test_home_assistant_may_order_what_it_shows_and_nothing_else(refused: dict[Case, bool]) -> None:
    assert Case("home assistant", "publish", topics.command_topic("green", ACTOR, "bench", "x")) in refused
    assert (
        Case("home assistant", "publish", topics.command_topic("green", ACTOR, "self-test", "x"))
        not in refused
    )
    assert Case("home assistant", "publish", topics.device_topic("green", ACTOR, "desired")) in refused
    assert Case("home assistant", "subscribe", topics.device_topic("green", ACTOR, "desired")) in refused
