"""A broker on a board, bridged to one elsewhere: two real mosquittos."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from link_harness import Recorder, wait_for

from edgeslm import topics
from edgeslm.agent.description import AgentIdentity, availability
from edgeslm.agent.journal import Journal
from edgeslm.agent.service import Agent
from edgeslm.cli.broker import broker as broker_command
from edgeslm.errors import ConfigError, TopicError
from edgeslm.link.broker import EmbeddedBroker, accepts_mqtt, find_mosquitto
from edgeslm.link.broker_bridge import Bridge, bridge_lines
from edgeslm.link.broker_config import mosquitto_config
from edgeslm.link.client import RequestClient
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.power.meter import EstimatedMeter
from edgeslm.schema.board import PowerTable
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.message import PromptRequest
from edgeslm.sim.model import EchoModel

NEEDS_MOSQUITTO = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
FLEET, DEVICE = "home", "kitchen-pi"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    (tmp_path / "upstream").mkdir()
    with EmbeddedBroker(kind="mosquitto", persistence_dir=tmp_path / "upstream") as broker:
        yield broker


@pytest.fixture
def local(tmp_path: Path, upstream: EmbeddedBroker) -> Iterator[BrokerConfig]:
    (tmp_path / "local").mkdir()
    port = free_port()
    config = tmp_path / "local.conf"
    config.write_text(
        mosquitto_config(
            port=port,
            bind_address="127.0.0.1",
            allow_anonymous=True,
            persistence_dir=tmp_path / "local",
            user="root" if os.geteuid() == 0 else None,
            bridge=Bridge("127.0.0.1", upstream.port, FLEET, DEVICE),
        )
    )
    program = find_mosquitto()
    assert program is not None
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(config)], stderr=log)
    try:
        assert wait_for(lambda: accepts_mqtt(port), 20), (tmp_path / "log").read_text()
        yield BrokerConfig(host="127.0.0.1", port=port)
    finally:
        process.terminate()
        process.wait(20)


@NEEDS_MOSQUITTO
def test_a_device_behind_a_bridge_is_asked_from_elsewhere_and_outages_lose_nothing(
    upstream: EmbeddedBroker, local: BrokerConfig, tmp_path: Path
) -> None:
    link = MqttLink(local, DEVICE, availability(FLEET, DEVICE, "offline"))
    meter = EstimatedMeter(PowerTable(idle_w=2.0, core_load_w=1.0, source="made up for tests"))
    agent = Agent(
        AgentIdentity(FLEET, DEVICE, "host"),
        {"echo": EchoModel()},
        link,
        meter,
        Journal(tmp_path / "agent.db"),
    )
    agent.start()
    watcher = Recorder()
    report_topic = topics.device_topic(FLEET, DEVICE, "m/system")
    watching = MqttLink(upstream.client_config(), "watcher")
    watching.start(watcher, [(report_topic, 1)])
    prompt_topic = topics.device_topic(FLEET, DEVICE, "prompt")
    try:
        with RequestClient(upstream.client_config()) as client:
            client.wait_online(FLEET, DEVICE, 30)
            assert client.ask(prompt_topic, PromptRequest(id="r1", prompt="one")).text == "one"
        upstream.kill()
        for number in range(50):
            assert wait_for(lambda n=number: agent.publish(Message(report_topic, b"%d" % n)) is not None)
        with RequestClient(local) as near:
            assert near.ask(prompt_topic, PromptRequest(id="r2", prompt="two")).text == "two", (
                "it goes on here"
            )
        upstream.start()
        assert wait_for(lambda: len(watcher.messages) >= 50, 60)
        assert list(dict.fromkeys(watcher.payloads())) == [b"%d" % number for number in range(50)]
        with RequestClient(upstream.client_config()) as client:
            assert client.ask(prompt_topic, PromptRequest(id="r3", prompt="three")).text == "three"
    finally:
        agent.stop()
        watching.stop()


def test_each_topic_crosses_in_one_direction_and_pools_do_not_cross() -> None:
    lines = [line for part in bridge_lines(Bridge("up", 1883, FLEET, DEVICE)) for line in part.splitlines()]
    found = [line.split() for line in lines if line.startswith("topic ")]
    names = [parts[1] for parts in found]
    assert len(names) == len(set(names))
    assert {parts[2] for parts in found} == {"in", "out"}
    assert not any(f"/{topics.POOL}/" in name for name in names)
    assert topics.device_topic(FLEET, DEVICE, "prompt") in names


@pytest.mark.parametrize("host", ["", "a b", "up\nallow_anonymous true"])
def test_refuses_a_host_that_cannot_stand_in_the_file(host: str) -> None:
    with pytest.raises(ConfigError):
        bridge_lines(Bridge(host, 1883, FLEET, DEVICE))


def test_refuses_what_would_reach_beyond_the_device() -> None:
    with pytest.raises(TopicError):
        bridge_lines(Bridge("up", 1883, FLEET, "#"))
    with pytest.raises(ConfigError, match="line break"):
        bridge_lines(Bridge("up", 1883, FLEET, DEVICE, username="me", password="x\ntopic # both"))


def test_the_command_writes_it_and_the_file_with_the_password_is_not_for_everyone(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    flags = ["config", "--anonymous", "--bridge", "up.example", "--bridge-username", "me"]
    flags += ["--bridge-password-file", str(tmp_path / "secret"), "-o", str(tmp_path / "conf")]
    refused = CliRunner().invoke(broker_command, flags)
    assert refused.exit_code == 2
    assert "--device" in refused.output
    done = CliRunner().invoke(broker_command, [*flags, "--device", DEVICE])
    assert done.exit_code == 0, done.output
    assert "remote_password s3cret" in (tmp_path / "conf").read_text()
    assert (tmp_path / "conf").stat().st_mode & 0o007 == 0
