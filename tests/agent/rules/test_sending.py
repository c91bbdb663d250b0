from __future__ import annotations

import time

import pytest

from edgeslm.agent.rules.decisions import Send
from edgeslm.agent.rules.sending import SEND_WITHIN_S, Sending
from edgeslm.errors import LinkError
from edgeslm.link.port import Message
from edgeslm.schema.rule_trace import FiringTrace


class Broker:
    def __init__(self) -> None:
        self.is_there = True
        self.taken: list[str] = []

    def publish(self, message: Message) -> int | None:
        if "+" in message.topic:
            raise LinkError("wildcards")
        if not self.is_there:
            return None
        self.taken.append(message.topic)
        return len(self.taken)


class World:
    def __init__(self) -> None:
        self.broker = Broker()
        self.kept: list[FiringTrace] = []
        self.given_up: list[tuple[str, str]] = []
        self.sending = Sending(
            self.broker.publish, self.kept.append, lambda rule, why: self.given_up.append((rule, why))
        )

    def fire(self, rule: str, *names: str) -> None:
        for name in names:
            self.sending.send(Send(rule, name, b"ON", 1, False))
        self.sending.done(FiringTrace(at="2026-01-01T00:00:00Z", rule=rule, outcome="acted", cause="t"))


@pytest.fixture
def world() -> World:
    return World()


def test_keeps_the_trace_at_once_where_all_is_sent(world: World) -> None:
    world.fire("a", "x", "y")
    assert world.broker.taken == ["x", "y"]
    assert [trace.outcome for trace in world.kept] == ["acted"]


def test_a_firing_whose_messages_leave_late_acted(world: World) -> None:
    world.broker.is_there = False
    world.fire("a", "x", "y")
    world.fire("b", "z")
    assert not world.kept
    world.broker.is_there = True
    world.sending.again(time.monotonic())
    assert world.broker.taken == ["x", "y", "z"]
    assert [(trace.rule, trace.outcome) for trace in world.kept] == [("a", "acted"), ("b", "acted")]
    assert not world.sending


def test_a_firing_whose_message_is_given_up_failed(world: World) -> None:
    world.broker.is_there = False
    world.fire("a", "x")
    world.sending.again(time.monotonic() + SEND_WITHIN_S + 1)
    assert [(trace.outcome, trace.detail) for trace in world.kept] == [
        ("failed", "1 of its messages could not be sent")
    ]
    assert world.given_up == [("a", "1 of its messages could not be sent")]


def test_a_message_that_can_never_be_sent_is_no_action(world: World) -> None:
    world.fire("a", "x", "y/+")
    assert [trace.outcome for trace in world.kept] == ["failed"]


def test_what_waits_is_bounded_and_the_oldest_goes_first(world: World) -> None:
    world.broker.is_there = False
    for number in range(300):
        world.fire(f"rule-{number}", "x")
    assert [trace.rule for trace in world.kept] == [f"rule-{number}" for number in range(44)]
    world.broker.is_there = True
    world.sending.again(time.monotonic())
    assert len(world.broker.taken) == 256


def test_nothing_is_left_without_a_trace_at_the_end(world: World) -> None:
    world.broker.is_there = False
    world.fire("a", "x")
    world.sending.give_up()
    assert [trace.outcome for trace in world.kept] == ["failed"]
