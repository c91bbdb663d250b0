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
    assert kinds == {(who, action) for who in ("device", "claim", "door") for action in actions} | {
        ("stranger", "get in")
    }
