"""Home Assistant's own Wyoming integration uses a real device as its conversation agent: a sentence moves a light.

Needs an environment with Home Assistant: ``make test-homeassistant`` sets one up and calls this.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.agent_client import LeanClient
from benchmarks.home_assistant_rig import World, home_assistant_python, is_right

pytest.importorskip("wyoming")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PYTHON = home_assistant_python()
HOME = """
areas:
  - {name: Kitchen}
  - {name: Hall}
entities:
  - {name: Ceiling, area: Kitchen, domain: light, via: zigbee2mqtt, topic: kitchen_ceiling}
  - {name: Counter, area: Kitchen, domain: light, via: tasmota, topic: counter}
  - {name: Front Door, area: Hall, domain: lock, via: zigbee2mqtt, topic: front_door}
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for_port(port: int, world: World, timeout_s: float = 60.0) -> None:
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < until_s, f"the device does not listen: {world.device.log}"
            time.sleep(0.1)
        else:
            return


class Assisted:
    """Home Assistant with a device as an agent, and somebody who hears the orders."""

    def __init__(self, world: World, home: Path) -> None:
        self.world = world
        self.port = free_port()
        self._home = home
        self.start_device()
        world.home_assistant.start()
        world.wait(is_right, 60.0)
        self.added = world.home_assistant.add("wyoming", host="127.0.0.1", port=self.port)
        self.agent = self.find_agent()
        self.light = LeanClient(world.broker.port, [("zigbee2mqtt/+/set", 1), ("cmnd/+/+", 1)])

    def start_device(self) -> None:
        self.world.device.start(wyoming_port=self.port, home=str(self._home))
        wait_for_port(self.port, self.world)

    def find_agent(self) -> str:
        (agent,) = self.world.home_assistant.agents()
        return agent

    def say(self, text: str) -> tuple[str, str, str | None]:
        """What Assist makes of the reply: its kind, what is spoken, and the error's code."""
        response: dict[str, Any] = self.world.home_assistant.say(text, self.agent)["response"]
        code = response["data"].get("code")
        return response["response_type"], response["speech"]["plain"]["speech"], code

    def orders(self, count: int) -> list[tuple[str, bytes]]:
        found = [self.light.take(10.0) for _ in range(count)]
        assert None not in found
        assert self.light.take(0.3) is None, "nothing more is ordered"
        return sorted((item.topic, item.payload) for item in found if item is not None)


@pytest.fixture
def assisted(tmp_path: Path) -> Iterator[Assisted]:
    if PYTHON is None:
        pytest.skip("no Home Assistant, or no mosquitto; make test-homeassistant has both")
    home = tmp_path / "home.yaml"
    home.write_text(HOME)
    with World(PYTHON) as world:
        made = Assisted(world, home)
        yield made
        made.light.close()


def test_a_sentence_to_assist_becomes_the_lights_command(assisted: Assisted) -> None:
    added = assisted.added
    assert (added["step"], added["type"], added["errors"], added["state"]) == (
        "user", "create_entry", None, "loaded",
    )  # fmt: skip
    assert added["title"] == "edgeslm kitchen-pi"
    assert assisted.agent.startswith("conversation.edgeslm_kitchen_pi")

    kind, speech, code = assisted.say("turn on the kitchen lights")
    assert (kind, code) == ("action_done", None)
    assert "Kitchen Ceiling: on" in speech
    assert assisted.orders(2) == [
        ("cmnd/counter/POWER", b"ON"),
        ("zigbee2mqtt/kitchen_ceiling/set", b'{"state":"ON"}'),
    ]

    kind, speech, _ = assisted.say("lock the front door")
    assert kind == "action_done"
    assert assisted.orders(1) == [("zigbee2mqtt/front_door/set", b'{"state":"LOCK"}')]

    kind, speech, code = assisted.say("turn on the lights in the cellar")
    assert (kind, code) == ("error", "failed_to_handle")
    assert speech
    assert assisted.orders(0) == []
    assert assisted.world.home_assistant.warnings() == []


def test_a_device_that_is_away_is_an_error_that_is_spoken_and_works_again_when_it_is_back(
    assisted: Assisted,
) -> None:
    assisted.world.device.stop()
    kind, speech, code = assisted.say("turn on the kitchen lights")
    assert (kind, code) == ("error", "unknown")
    assert "Error communicating with service" in speech
    assisted.start_device()
    until_s = time.monotonic() + 60
    while assisted.say("lock the front door")[0] != "action_done":
        assert time.monotonic() < until_s
        time.sleep(0.5)
    assert ("zigbee2mqtt/front_door/set", b'{"state":"LOCK"}') in assisted.orders(1)


def test_home_assistant_keeps_the_agent_over_its_own_restart(assisted: Assisted) -> None:
    home = assisted.world.home_assistant
    home.stop()
    home.start()
    until_s = time.monotonic() + 60
    while not home.agents():
        assert time.monotonic() < until_s
        time.sleep(0.2)
    assert assisted.find_agent() == assisted.agent
    assert assisted.say("lock the front door")[0] == "action_done"


def test_an_address_where_nobody_is_is_told_in_the_form() -> None:
    if PYTHON is None:
        pytest.skip("no Home Assistant, or no mosquitto; make test-homeassistant has both")
    with World(PYTHON) as world:
        world.home_assistant.start()
        told = world.home_assistant.add("wyoming", host="127.0.0.1", port=free_port())
        assert (told["type"], told["errors"]) == ("form", {"base": "cannot_connect"})
        assert world.home_assistant.agents() == []
