"""The bridge at a real broker: what a Sparkplug host sees of a device, and what it can ask of it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from edgeslm import codec, topics
from edgeslm.agent import sparkplug
from edgeslm.agent.sparkplug import DataType, Metric, Payload
from edgeslm.agent.sparkplug_bridge import BirthNumbers, SparkplugBridge, mqtt_links
from edgeslm.agent.sparkplug_node import EdgeNode
from edgeslm.errors import JournalError
from edgeslm.link.broker import EmbeddedBroker, available_kinds
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.schema.message import Availability, ErrorBody, PromptRequest, Result

WAIT_S = 30.0

pytestmark = pytest.mark.skipif("mosquitto" not in available_kinds(), reason="mosquitto is not installed")


class Client:
    """A client that writes down what comes."""

    def __init__(self, broker: EmbeddedBroker, *filters: str) -> None:
        self.messages: list[Message] = []
        self.connected = threading.Event()
        self.link = MqttLink(
            broker.client_config().model_copy(update={"session_expiry_s": 0}), uuid.uuid4().hex
        )
        self.link.start(self, [(one, 1) for one in filters])
        assert self.connected.wait(WAIT_S)

    def on_message(self, message: Message) -> None:
        message.acknowledge()
        self.messages.append(message)

    def on_connected(self, *, session_present: bool) -> None:
        del session_present
        self.connected.set()

    def on_disconnected(self, reason: str) -> None:
        del reason

    def on_published(self, token: int) -> None:
        del token

    def send(self, topic: str, body: bytes, **more) -> None:
        assert self.link.publish(Message(topic, body, **more)) is not None

    def wait(self, is_met: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not is_met():
            assert time.monotonic() < deadline_s, [one.topic for one in self.messages]
            time.sleep(0.01)

    def of(self, verb: str) -> list[Payload]:
        return [
            sparkplug.decode(one.payload)
            for one in self.messages
            if sparkplug.parse_topic(one.topic)[1] == verb
        ]


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(kind="mosquitto") as running:
        yield running


class Rig:
    """A device played by a client, a host played by another, and the bridge between them."""

    def __init__(self, broker: EmbeddedBroker, directory, hosts: EmbeddedBroker | None = None) -> None:
        self.group = f"plant-{uuid.uuid4().hex[:6]}"
        self.device = f"d-{uuid.uuid4().hex[:6]}"
        self.host = Client(hosts or broker, f"spBv1.0/{self.group}/#")
        self.side = Client(broker, topics.device_topic("home", self.device, "prompt"))
        self.stopped = threading.Event()
        self.links: list[MqttLink] = []
        node = EdgeNode(self.group, self.device, lambda: time.time_ns() // 10**6, lambda: "made-up")

        def opened(client_id: str, will: Message | None) -> MqttLink:
            link = mqtt_links((hosts or broker).client_config())(client_id, will)
            self.links.append(link)
            return link

        numbers = BirthNumbers(directory, self.group, self.device)
        links = mqtt_links(broker.client_config())
        self.bridge = SparkplugBridge("home", self.device, node, numbers, links, opened)
        self.thread = threading.Thread(target=self.bridge.run, args=(self.stopped,))
        self.thread.start()

    def say(self, state: str) -> None:
        body = codec.encode(Availability(state=state))
        self.side.send(topics.device_topic("home", self.device, "availability"), body, retain=True)

    def order(self, *metrics: Metric) -> None:
        topic = sparkplug.topic(self.group, "NCMD", self.device)
        self.host.send(topic, sparkplug.encode(Payload(0, metrics)))

    def born(self, times: int = 1) -> Payload:
        self.host.wait(lambda: len(self.host.of("NBIRTH")) >= times)
        return self.host.of("NBIRTH")[times - 1]

    def close(self) -> None:
        self.stopped.set()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()
        self.host.link.stop()
        self.side.link.stop()


@pytest.fixture
def rig(broker, tmp_path) -> Iterator[Rig]:
    made = Rig(broker, tmp_path / "state")
    yield made
    made.close()


def _number(payload: Payload) -> object:
    metric = sparkplug.find(payload.metrics, "bdSeq")
    assert metric is not None
    return metric.value


def test_a_device_is_born_while_it_is_online_and_dies_with_the_number_of_its_birth(rig):
    rig.say("online")
    birth = rig.born()
    rig.say("offline")
    rig.host.wait(lambda: bool(rig.host.of("NDEATH")))
    assert _number(rig.host.of("NDEATH")[0]) == _number(birth)
    rig.say("online")
    assert _number(rig.born(2)) == _number(birth) + 1


def test_a_host_asks_and_reads_the_answer(rig):
    rig.say("online")
    rig.born()
    rig.order(
        Metric("Prompt/Text", "lock the door", DataType.STRING), Metric("Prompt/Id", "q-1", DataType.STRING)
    )
    rig.side.wait(lambda: bool(rig.side.messages))
    asked = rig.side.messages[0]
    request = codec.decode(PromptRequest, asked.payload)
    assert (request.id, request.prompt) == ("q-1", "lock the door")
    assert asked.response_topic is not None
    answer = Result(id="q-1", device=rig.device, error=ErrorBody(code="busy", message="full"))
    rig.side.send(asked.response_topic, codec.encode(answer))
    rig.host.wait(lambda: bool(rig.host.of("NDATA")))
    values = {one.name: one.value for one in rig.host.of("NDATA")[0].metrics}
    assert values == {"Answer/Id": "q-1", "Answer/Error": "busy: full"}


def test_a_host_that_missed_the_birth_gets_it_again_with_the_same_number(rig):
    rig.say("online")
    first = rig.born()
    rig.order(Metric("Node Control/Rebirth", True, DataType.BOOLEAN))
    again = rig.born(2)
    assert (_number(again), again.seq) == (_number(first), 0)


def test_a_lost_connection_is_a_death_by_the_broker_and_a_birth_with_the_next_number(rig):
    rig.say("online")
    first = rig.born()
    _cut(rig.links[-1])
    second = rig.born(2)
    assert _number(second) == _number(first) + 1
    assert [_number(one) for one in rig.host.of("NDEATH")] == [_number(first)]


def test_a_device_out_of_reach_is_dead_to_the_hosts_until_it_is_heard_again(rig):
    rig.say("online")
    first = rig.born()
    _cut(rig.bridge._device_link)
    assert _number(rig.born(2)) == _number(first) + 1
    assert [_number(one) for one in rig.host.of("NDEATH")] == [_number(first)]


def _cut(link: MqttLink) -> None:
    link._connection._client.socket().shutdown(2)


@pytest.mark.parametrize("body", [b"", b"\xff" * 40, b"{}", b"\x12\x00", bytes(70_000)])
def test_a_command_of_any_bytes_leaves_the_bridge_running(rig, body):
    rig.say("online")
    rig.born()
    rig.host.send(sparkplug.topic(rig.group, "NCMD", rig.device), body)
    rig.order(Metric("Node Control/Rebirth", True, DataType.BOOLEAN))
    rig.born(2)


@pytest.mark.parametrize("channel", ["info", "m/power", "availability"])
def test_a_broken_message_of_the_device_leaves_the_bridge_running(rig, channel):
    rig.side.send(topics.device_topic("home", rig.device, channel), b'{"v":9')
    rig.say("online")
    rig.born()


def test_stopping_says_farewell(broker, tmp_path):
    rig = Rig(broker, tmp_path)
    rig.say("online")
    birth = rig.born()
    rig.stopped.set()
    rig.host.wait(lambda: bool(rig.host.of("NDEATH")))
    assert _number(rig.host.of("NDEATH")[0]) == _number(birth)
    rig.close()


def test_hosts_may_have_a_broker_of_their_own(broker, tmp_path):
    with EmbeddedBroker(kind="mosquitto") as other:
        rig = Rig(broker, tmp_path, hosts=other)
        rig.say("online")
        rig.born()
        rig.order(Metric("Prompt/Text", "lock", DataType.STRING))
        rig.side.wait(lambda: bool(rig.side.messages))
        rig.close()


def test_numbers_go_round_and_outlive_the_process(tmp_path):
    assert [BirthNumbers(tmp_path, "g", "n").take() for _ in range(258)] == [*range(256), 0, 1]
    assert BirthNumbers(tmp_path, "g", "other").take() == 0


@pytest.mark.parametrize("text", [b"", b"256\n", b"-1", b"x" * 100, b"\xff"])
def test_a_broken_file_of_numbers_begins_anew(tmp_path, text):
    numbers = BirthNumbers(tmp_path, "g", "n")
    numbers.take()
    (file,) = tmp_path.iterdir()
    file.write_bytes(text)
    assert numbers.take() == 0


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=r"cannot be (kept|read)"):
        BirthNumbers(tmp_path / "file", "g", "n").take()
