"""A device announces itself when it has to, and is taken out where it is switched off."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgeslm import topics
from edgeslm.agent.discovery import Facts, ShownModel
from edgeslm.agent.home.announcing import Announcer, was_announced
from edgeslm.link.inprocess import InProcessBroker, InProcessLink
from edgeslm.link.port import Message

TOPIC = "homeassistant/device/home/dev1/config"
FACTS = {"fleet": "home", "device": "dev1", "board": "Host", "board_id": "host", "agent": "0.1.0"}


class Device:
    """An announcer over the in-process broker, and who listens there."""

    def __init__(self, broker: InProcessBroker, mark: Path, prefix: str | None = "homeassistant") -> None:
        self.models = [ShownModel("echo", "1.0.0")]
        self.reports_s: list[float] = []
        self.now_s = 0.0
        self.link = InProcessLink(broker, "device")
        self.announcer = Announcer(
            "home",
            "dev1",
            prefix,
            mark,
            self.link.publish,
            self._facts,
            self.reports_s.append,
            monotonic=lambda: self.now_s,
        )
        self.link.start(self, [])

    def _facts(self, order_id: str) -> Facts:
        return Facts(**FACTS, models=self.models, order_id=order_id, now=datetime(2026, 11, 25, tzinfo=UTC))

    def on_message(self, message: Message) -> None: ...

    def on_connected(self, *, session_present: bool) -> None:
        self.announcer.connected()

    def on_disconnected(self, reason: str) -> None: ...

    def on_published(self, token: int) -> None:
        self.announcer.published(token)

    def tick(self, by_s: float = 0.1) -> None:
        self.now_s += by_s
        self.announcer.tick(self.now_s)


class Listener:
    """Home Assistant, as far as it listens."""

    def __init__(self, broker: InProcessBroker) -> None:
        self.heard: list[Message] = []
        self.link = InProcessLink(broker, "home-assistant")
        self.link.start(self, [("homeassistant/#", 1)])

    def on_message(self, message: Message) -> None:
        self.heard.append(message)
        message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None: ...

    def on_disconnected(self, reason: str) -> None: ...

    def on_published(self, token: int) -> None: ...


@pytest.fixture
def broker() -> InProcessBroker:
    return InProcessBroker()


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "home-assistant.json"


@pytest.fixture
def listener(broker: InProcessBroker) -> Iterator[Listener]:
    listener = Listener(broker)
    yield listener
    listener.link.stop()


def _wait(listener: Listener, device: Device, count: int) -> list[Message]:
    for _ in range(2000):
        device.tick(0)
        if len(listener.heard) >= count:
            return listener.heard
        time.sleep(0.005)
    raise AssertionError(f"{len(listener.heard)} of {count} messages came")


def _order_id(message: Message) -> str:
    topic = json.loads(message.payload)["components"]["self_test"]["command_topic"]
    parsed = topics.parse(topic)
    assert isinstance(parsed, topics.CommandTopic)
    return parsed.command_id


def test_announces_itself_retained_when_it_connects(
    broker: InProcessBroker, mark: Path, listener: Listener
) -> None:
    device = Device(broker, mark)
    _wait(listener, device, 1)
    (message,) = _wait(Listener(broker), device, 1)
    assert (message.topic, message.retain) == (TOPIC, True)
    assert json.loads(message.payload)["origin"]["name"] == "edgeslm"
    assert was_announced(mark)


def test_announces_itself_again_when_home_assistant_starts(
    broker: InProcessBroker, mark: Path, listener: Listener
) -> None:
    device = Device(broker, mark)
    _wait(listener, device, 1)
    device.announcer.on_birth(Message("homeassistant/status", b"offline"))
    device.announcer.on_birth(Message("homeassistant/status", b"online", retain=True))
    device.tick()
    device.announcer.on_birth(Message("homeassistant/status", b"online"))
    _wait(listener, device, 2)
    assert len(listener.heard) == 2


def test_reports_soon_after_home_assistant_started_so_that_no_sensor_waits_for_the_interval(
    broker: InProcessBroker, mark: Path, listener: Listener
) -> None:
    device = Device(broker, mark)
    _wait(listener, device, 1)
    device.tick(100)
    device.reports_s.clear()
    device.announcer.on_birth(Message("homeassistant/status", b"online"))
    for _ in range(120):
        device.tick(0.1)
    assert [round(at_s - 100, 0) for at_s in device.reports_s] == [1, 3, 7]


def test_a_used_order_gets_another_id_and_one_of_others_does_not(
    broker: InProcessBroker, mark: Path, listener: Listener
) -> None:
    device = Device(broker, mark)
    first = _order_id(_wait(listener, device, 1)[0])
    device.announcer.commanded(topics.command_topic("home", "dev1", "self-test", "somebody-else"))
    device.announcer.commanded("no topic of the tree")
    device.tick()
    assert len(listener.heard) == 1
    device.announcer.commanded(topics.command_topic("home", "dev1", "self-test", first))
    second = _order_id(_wait(listener, device, 2)[1])
    assert second != first
    device.announcer.commanded(topics.command_topic("home", "dev1", "retry", f"{second}.echo"))
    assert _order_id(_wait(listener, device, 3)[2]) != second


def test_announces_other_models_once_they_are_served(
    broker: InProcessBroker, mark: Path, listener: Listener
) -> None:
    device = Device(broker, mark)
    _wait(listener, device, 1)
    device.models.append(ShownModel("other", "1.0.0"))
    device.announcer.changed()
    message = _wait(listener, device, 2)[1]
    assert json.loads(message.payload)["components"]["model"]["options"] == ["echo", "other"]


def test_renews_the_order_whose_body_is_fixed_before_it_expires(
    broker: InProcessBroker, mark: Path, listener: Listener
) -> None:
    device = Device(broker, mark)
    _wait(listener, device, 1)
    device.tick(16 * 86_400)
    assert len(_wait(listener, device, 2)) == 2


def test_switched_off_it_is_taken_out_and_forgotten(
    broker: InProcessBroker, mark: Path, listener: Listener
) -> None:
    device = Device(broker, mark)
    _wait(listener, device, 1)
    device.link.stop()
    off = Device(broker, mark, prefix=None)
    assert off.announcer.birth_topic is None
    message = _wait(listener, off, 2)[1]
    assert (message.topic, message.payload) == (TOPIC, b"")
    for _ in range(2000):
        off.tick()
        if not was_announced(mark):
            break
    assert not was_announced(mark)
    assert off.reports_s == []


def test_under_another_prefix_the_old_message_is_taken_back(
    broker: InProcessBroker, mark: Path, listener: Listener
) -> None:
    device = Device(broker, mark)
    _wait(listener, device, 1)
    device.link.stop()
    moved = Device(broker, mark, prefix="homeassistant/flat-2")
    found = {message.topic: message.payload for message in _wait(listener, moved, 3)}
    assert found[TOPIC] == b""
    assert found["homeassistant/flat-2/device/home/dev1/config"]


def test_what_an_earlier_agent_announced_on_another_topic_is_taken_back(
    broker: InProcessBroker, mark: Path, listener: Listener
) -> None:
    former = "homeassistant/device/edgeslm_home_dev1/config"
    mark.write_text(json.dumps({"topics": [former]}))
    found = {message.topic: message.payload for message in _wait(listener, Device(broker, mark), 2)}
    assert found[former] == b""
    assert found[TOPIC]


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}[", b'{"topics": [1]}', b'{"x": 1}'])
def test_a_damaged_mark_keeps_nothing_from_being_announced(
    broker: InProcessBroker, mark: Path, listener: Listener, content: bytes
) -> None:
    mark.write_bytes(content)
    device = Device(broker, mark)
    assert len(_wait(listener, device, 1)) == 1
