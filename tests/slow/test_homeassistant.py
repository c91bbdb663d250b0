"""A real Home Assistant over a real broker shows a real device as it is, whatever is restarted and in which order.

Needs an environment with Home Assistant: ``make test-homeassistant`` sets one up and calls this.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from benchmarks.home_assistant_rig import (
    DEVICE,
    FLEET,
    State,
    World,
    home_assistant_python,
    is_right,
)
from edgeslm.agent.discovery import (
    Facts,
    ShownModel,
    birth_topic,
    discovery_payload,
    discovery_topic,
    is_birth,
)
from edgeslm.schema.update import Reported

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PYTHON = home_assistant_python()
CONFIG = discovery_topic("homeassistant", FLEET, DEVICE)
FIRST_S = 60.0
RIGHT_S = 10.0


@pytest.fixture
def world() -> Iterator[World]:
    if PYTHON is None:
        pytest.skip("no Home Assistant, or no mosquitto; make test-homeassistant has both")
    with World(PYTHON) as world:
        yield world


@pytest.fixture
def running(world: World) -> World:
    world.device.start()
    world.home_assistant.start()
    world.wait(is_right, FIRST_S)
    return world


def _state(key: str, test: Callable[[State], bool]) -> Callable[[dict[str, State]], bool]:
    return lambda states: key in states and test(states[key])


def test_every_announced_entity_is_made_and_shown_without_a_warning(running: World) -> None:
    announced = json.loads(running.retained(CONFIG))["components"]
    states = running.home_assistant.states()
    assert states.keys() == announced.keys()
    assert not [key for key, state in states.items() if state["state"] in {None, "unavailable"}]
    (device,) = running.home_assistant.devices()
    assert device["name"] == DEVICE
    assert running.home_assistant.warnings() == []


def test_a_prompt_from_home_assistant_is_answered_there(running: World) -> None:
    home = running.home_assistant
    entity_id = running.home_assistant.states()
    home.call(
        "notify", "send_message", entity_id["ask"]["entity_id"], message='turn on the "kitchen" lights\n'
    )
    running.wait(_state("answer", lambda s: s["state"].startswith('{"intent":"HassTurnOn"')), FIRST_S)
    home.call("text", "set_value", entity_id["prompt"]["entity_id"], value="lock the front door")
    running.wait(_state("answer", lambda s: "Front Door" in s["state"]), FIRST_S)
    states = home.states()
    assert states["answer"]["attributes"]["json"]["name"] == "Front Door"
    assert states["answered"]["attributes"]["event_type"] == "answer"
    assert states["answered"]["attributes"]["energy_j"] > 0
    assert states["prompt"]["state"] == "lock the front door"
    assert home.warnings() == []


def test_the_button_runs_a_self_test_each_time_it_is_pressed(running: World) -> None:
    home = running.home_assistant
    for _ in range(2):
        config = running.retained(CONFIG)
        pressed = datetime.now(UTC).isoformat(timespec="seconds")[:19]
        home.call("button", "press", home.states()["self_test"]["entity_id"])

        def is_done(state: State, since: str = pressed) -> bool:
            checks = state["attributes"].get("checks", [])
            return state["state"].startswith("done") and any(since[:16] in check["text"] for check in checks)

        running.wait(_state("self_test_result", is_done), FIRST_S)
        _until(lambda before=config: running.retained(CONFIG) != before)
    home.call("select", "select_option", home.states()["model"]["entity_id"], option="home-command")
    assert home.warnings() == []


def _until(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + FIRST_S
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.1)


def test_switched_off_the_device_and_all_its_entities_are_gone(running: World) -> None:
    running.device.stop()
    running.device.start(enabled=False)
    running.wait(lambda states: states == {}, FIRST_S)
    assert running.home_assistant.devices() == []


@pytest.mark.parametrize("order", list(itertools.permutations(("home", "broker", "device"))), ids="-".join)
def test_states_are_right_within_ten_seconds_of_restarts_in_any_order(
    running: World, order: tuple[str, ...]
) -> None:
    stops = {
        "home": running.home_assistant.stop,
        "broker": running.broker.kill,
        "device": running.device.stop,
    }
    starts = {
        "home": running.home_assistant.start,
        "broker": running.broker.start,
        "device": running.device.start,
    }
    for name in order:
        stops[name]()
    for name in order[: order.index("broker") + 1]:
        starts[name]()
    # What counts is from when both speak to the broker: a process takes seconds to start, and Home Assistant tries
    # only every ten seconds to reach a broker that was away.
    with running.hearing(birth_topic("homeassistant")) as heard:
        for name in order[order.index("broker") + 1 :]:
            starts[name]()
        assert is_birth(heard(FIRST_S))
    running.retained(running.topic("info"))
    took_s = running.wait(is_right, FIRST_S)
    assert took_s <= RIGHT_S
    assert not [
        text for text in running.home_assistant.warnings() if "mqtt" in text and "connect" not in text
    ]


FACTS = Facts(
    fleet=FLEET,
    device=DEVICE,
    board="Host",
    board_id="host",
    agent="0.1.0",
    models=(ShownModel("triage", "1.0.0"),),
    order_id="ha-1",
    now=datetime.now(UTC),
    updates=("triage",),
    budget=True,
    battery=True,
)


def _reported(change: dict[str, Any] | None) -> bytes:
    model = {"name": "triage", "version": "1.0.0", "change": change}
    report = {"device": DEVICE, "epoch": "e", "seq": 1, "assignment": 4, "models": [model]}
    return Reported.model_validate(report).model_dump_json(exclude_none=True).encode()


CHANGE = {"number": 1, "version": "2.0.0", "state": "fetching", "assignment": 4, "settled": False}
FAULT = {"cause": "gate_failed", "detail": "ttft is 40 % worse " * 20}


def test_an_update_is_shown_as_the_device_reports_it(world: World) -> None:
    world.publish(
        (CONFIG, discovery_payload(FACTS)), (world.topic("availability"), b'{"state":"online"}'), retain=True
    )
    world.home_assistant.start()
    for change, holds in [
        (None, lambda s: s["state"] == "off" and s["attributes"]["installed_version"] == "1.0.0"),
        (CHANGE, lambda s: s["attributes"]["in_progress"] and s["attributes"]["update_percentage"] is None),
        (
            CHANGE | {"done_bytes": 500, "total_bytes": 2000},
            lambda s: s["state"] == "on" and s["attributes"]["update_percentage"] == 25,
        ),
        (
            CHANGE | {"state": "wait_window", "waits_for": "01:00"},
            lambda s: s["attributes"]["release_summary"] == "wait window: 01:00",
        ),
        (
            CHANGE | {"state": "rolled_back", "settled": True, "fault": FAULT},
            lambda s: s["state"] == "on" and not s["attributes"]["in_progress"],
        ),
    ]:
        world.publish((world.topic("reported"), _reported(change)), retain=True)
        world.wait(_state("update_triage", holds), FIRST_S)
    summary = world.home_assistant.states()["update_triage"]["attributes"]["release_summary"]
    assert summary.startswith("rolled back: ttft is 40 % worse")
    assert world.home_assistant.warnings() == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"offline",
        b"[]",
        b"{}",
        b"null",
        b"5",
        b'{"models":null,"windows":null}',
        b'{"id":1,"device":1,"error":null,"receipt":null,"text":null,"op":null,"state":null,"span_s":null,"battery":null}',
        b'"x"',
        b"x" * 9000,
    ],
    ids=range(10),
)
def test_what_is_no_message_of_ours_changes_no_state_and_makes_no_warning(world: World, body: bytes) -> None:
    world.publish((CONFIG, discovery_payload(replace(FACTS, updates=("triage",)))), retain=True)
    world.publish((world.topic("availability"), b'{"state":"online"}'), retain=True)
    world.home_assistant.start()
    topics_ = ("m/power", "m/inference", "m/system", "reported", "info", "availability")
    good = (
        (
            world.topic("m/power"),
            b'{"energy_j":50,"span_s":10,"today_j":3600,"windows":[{"left_share":0.01}]}',
        ),
        (world.topic("m/system"), b'{"temperature_c":51.5,"throttling":["throttled"]}'),
        (world.topic("info"), b'{"models":[{"name":"triage"}]}'),
    )
    _until(lambda: _sent(world, good))
    world.publish(*((world.topic(channel), body) for channel in topics_))
    world.publish(*((f"edgeslm/v1/{FLEET}/{DEVICE}/{end}", body) for end in ("e/operation", "result/x1")))
    world.publish((world.topic("m/inference"), b'{"waiting":7,"models":[]}'))
    world.wait(_state("queue", lambda s: s["state"] == "7"), FIRST_S)
    states = world.home_assistant.states()
    known = ("power", "temperature", "throttled", "budget_exhausted", "model")
    assert [states[key]["state"] for key in known] == ["5.0", "51.5", "on", "on", "triage"]
    assert world.home_assistant.warnings() == []


def _sent(world: World, messages: tuple[tuple[str, bytes], ...]) -> bool:
    """Whether Home Assistant, which may not listen yet, has all of them."""
    world.publish(*messages)
    states = world.home_assistant.states()
    keys = ("power", "temperature", "model")
    return all(key in states and states[key]["state"] not in {"unknown", "unavailable"} for key in keys)
