"""The request client against a scripted device, in memory and over real brokers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from link_harness import InProcessHarness, MqttHarness, started, wait_for

from edgeslm import codec, topics
from edgeslm.errors import BadRequestError, LinkError, NoAnswerError, TopicError, UsageError
from edgeslm.link.client import RequestClient
from edgeslm.link.port import Message
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.message import CancelRequest, ErrorBody, Options, PromptRequest, Result, StreamDelta

Harness = InProcessHarness | MqttHarness


class Device:
    """Answers each prompt with an error that names it; remembers what it was asked."""

    def __init__(self, harness: Harness, fleet: str, name: str = "kitchen") -> None:
        self.fleet, self.name = fleet, name
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.deltas: list[int] = []
        self.is_silent = False
        self.prompt_topic = topics.device_topic(fleet, name, "prompt")
        self._availability = topics.device_topic(fleet, name, "availability")
        will = Message(self._availability, b'{"v":1,"state":"offline"}', retain=True)
        self.link = harness.link(f"{fleet}-{name}", will)
        events = started(
            self.link,
            [
                (self.prompt_topic, 1),
                (topics.device_topic(fleet, name, "cancel"), 1),
                (topics.pool_topic(fleet, "m"), 1),
            ],
        )
        events.on_message = self._on_message  # type: ignore[method-assign]

    def announce(self, state: str = "online") -> None:
        self.link.publish(Message(self._availability, b'{"v":1,"state":"%s"}' % state.encode(), retain=True))

    def _on_message(self, message: Message) -> None:
        message.acknowledge()
        if message.topic.endswith("/cancel"):
            self.cancelled.append(codec.decode(CancelRequest, message.payload).id)
            return
        request = codec.decode(PromptRequest, message.payload)
        self.asked.append(request.id)
        if self.is_silent:
            return
        for seq in self.deltas:
            topic = topics.id_topic(self.fleet, self.name, "stream", request.id)
            delta = StreamDelta(id=request.id, seq=seq, text=f"{seq} ")
            self.link.publish(Message(topic, codec.encode(delta), qos=0))
        reply = message.response_topic or topics.id_topic(self.fleet, self.name, "result", request.id)
        for body in (b"nonsense", codec.encode(_result(request.id))):
            self.link.publish(Message(reply, body, correlation=message.correlation))


def _result(request_id: str) -> Result:
    return Result(
        id=request_id, device="kitchen", error=ErrorBody(code="internal", message=f"as {request_id}")
    )


def _request(request_id: str, **options: Any) -> PromptRequest:
    return PromptRequest(id=request_id, prompt="hello", options=Options(**options))


@pytest.fixture
def client(harness: Harness, name: str) -> Iterator[RequestClient]:
    if isinstance(harness, MqttHarness):
        config = harness.config
        link = harness.link(f"client-{name}", session_expiry_s=0)
        made = RequestClient(config, link=link)
    else:
        made = RequestClient(link=harness.link(f"client-{name}", session_expiry_s=0))
    with made:
        yield made


def _in_background(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except LinkError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_asks_and_gets_the_result(harness: Harness, name: str, client: RequestClient) -> None:
    device = Device(harness, name)
    result = client.ask(device.prompt_topic, _request("r1"), timeout_s=8)
    assert result == _result("r1")
    assert device.asked == ["r1"]


def test_streams_deltas_in_order_and_once_in_the_askers_thread(
    harness: Harness, name: str, client: RequestClient
) -> None:
    device = Device(harness, name)
    device.deltas = [0, 1, 1, 2, 0, 3]
    heard: list[tuple[int, str]] = []
    result = client.ask(
        device.prompt_topic,
        _request("r1", stream=True),
        lambda delta: heard.append((threading.get_ident(), delta.text)),
        timeout_s=8,
    )
    assert result.id == "r1"
    assert [text for _, text in heard] == ["0 ", "1 ", "2 ", "3 "]
    assert {thread for thread, _ in heard} == {threading.get_ident()}


def test_many_requests_may_be_on_their_way(harness: Harness, name: str, client: RequestClient) -> None:
    device = Device(harness, name)
    asked = [
        _in_background(
            lambda number=number: client.ask(device.prompt_topic, _request(f"r{number}"), timeout_s=8)
        )
        for number in range(30)
    ]
    for number, (thread, found) in enumerate(asked):
        thread.join()
        assert found == [_result(f"r{number}")]


def test_asks_again_under_the_same_id_after_an_outage(
    harness: Harness, name: str, client: RequestClient
) -> None:
    device = Device(harness, name)
    device.is_silent = True
    thread, found = _in_background(lambda: client.ask(device.prompt_topic, _request("r1"), timeout_s=10))
    assert wait_for(lambda: device.asked == ["r1"])
    harness.cut(client._link)
    time.sleep(0.1)
    device.is_silent = False
    harness.restore(client._link)
    thread.join()
    assert found == [_result("r1")]
    assert device.asked == ["r1", "r1"]


def test_a_silent_device_is_an_error_in_time(harness: Harness, name: str, client: RequestClient) -> None:
    device = Device(harness, name)
    device.is_silent = True
    began_s = time.monotonic()
    with pytest.raises(NoAnswerError, match="r1") as caught:
        client.ask(device.prompt_topic, _request("r1"), timeout_s=0.4)
    assert caught.value.waited_s == 0.4
    assert 0.3 < time.monotonic() - began_s < 2
    device.is_silent = False
    assert client.ask(device.prompt_topic, _request("r1"), timeout_s=8).id == "r1"  # the id is free again


def test_an_id_is_on_its_way_once(harness: Harness, name: str, client: RequestClient) -> None:
    device = Device(harness, name)
    device.is_silent = True
    thread, _ = _in_background(lambda: client.ask(device.prompt_topic, _request("r1"), timeout_s=1.5))
    assert wait_for(lambda: device.asked == ["r1"])
    with pytest.raises(BadRequestError):
        client.ask(device.prompt_topic, _request("r1"), timeout_s=1)
    thread.join()


def test_a_pool_answers_over_mqtt_5_only(harness: Harness, name: str, client: RequestClient) -> None:
    Device(harness, name)
    pool = topics.pool_topic(name, "m")
    if harness.name.endswith("3.1.1"):
        with pytest.raises(UsageError):
            client.ask(pool, _request("r1"), timeout_s=1)
    else:
        assert client.ask(pool, _request("r1"), timeout_s=8).id == "r1"


def test_cancels(harness: Harness, name: str, client: RequestClient) -> None:
    device = Device(harness, name)
    client.cancel(name, "kitchen", "r1")
    assert wait_for(lambda: device.cancelled == ["r1"])


def test_waits_for_a_device_and_lists_those_there_are(
    harness: Harness, name: str, client: RequestClient
) -> None:
    with pytest.raises(NoAnswerError, match="unheard of"):
        client.wait_online(name, "kitchen", timeout_s=0.2)
    kitchen, attic = Device(harness, name), Device(harness, name, "attic")
    kitchen.announce()
    attic.announce("sleeping")
    client.wait_online(name, "kitchen", timeout_s=8)
    views = client.list_devices(name, wait_s=0.5)
    assert [(view.device, view.state, view.info) for view in views] == [
        ("attic", "sleeping", None),
        ("kitchen", "online", None),
    ]
    harness.kill(kitchen.link)
    assert wait_for(lambda: client.list_devices(name)[1].state == "offline")


def test_refuses_what_is_no_prompt_topic(harness: Harness, name: str, client: RequestClient) -> None:
    _ = harness
    for topic in ("elsewhere", topics.device_topic(name, "kitchen", "cancel")):
        with pytest.raises(TopicError):
            client.ask(topic, _request("r1"), timeout_s=1)


def test_no_broker_is_an_error_that_says_why() -> None:
    with pytest.raises(NoAnswerError, match=r"127\.0\.0\.1:1 .*refused"):
        RequestClient(BrokerConfig(port=1)).connect(timeout_s=1)


def test_its_own_link_has_a_clean_session(iotcore: Any, name: str) -> None:
    harness = MqttHarness(iotcore, "5")
    device = Device(harness, name)
    with RequestClient(iotcore.client_config()) as client:
        assert client.ask(device.prompt_topic, _request("r1"), timeout_s=8).id == "r1"
    harness.close()
