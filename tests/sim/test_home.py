from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgeslm.errors import LinkError
from edgeslm.link.inprocess import InProcessBroker, InProcessLink
from edgeslm.link.port import Message
from edgeslm.sim.home import Home, load_home
from edgeslm.sim.home_devices import HomeController, SimulatedDevices, device_of, topic_of
from edgeslm.sim.home_intents import apply, known_intents

HOME = load_home()
NOW = datetime(2026, 11, 24, 17, 5, tzinfo=UTC)


def after(*answers: dict[str, Any]) -> Home:
    home = HOME
    for answer in answers:
        outcome = apply(home, answer, NOW)
        assert outcome.problem is None, outcome.problem
        home = outcome.home
    return home


def state(home: Home, device: str) -> dict[str, Any]:
    return home.by_id[device].state.model_dump(mode="json", exclude_none=True)


@pytest.mark.parametrize(
    ("answer", "device", "fields"),
    [
        ({"intent": "HassTurnOn", "name": "zorvex LAMP"}, "zorvex-lamp", {"state": "on", "brightness": 60}),
        (
            {"intent": "HassTurnOff", "area": "kitchen", "domain": "light"},
            "kitchen-counter",
            {"state": "off"},
        ),
        (
            {"intent": "HassTurnOff", "floor": "ground floor", "domain": "light"},
            "hallway-light",
            {"state": "off"},
        ),
        ({"intent": "HassTurnOff", "area": "Office"}, "office-fan", {"state": "off"}),
        ({"intent": "HassTurnOn", "name": "Moon Shade"}, "nursery-shade", {"state": "open", "position": 100}),
        (
            {"intent": "HassTurnOff", "domain": "cover", "device_class": "garage"},
            "garage-door",
            {"state": "closed", "position": 0},
        ),
        ({"intent": "HassTurnOff", "name": "Main Valve"}, "main-valve", {"state": "closed"}),
        ({"intent": "HassTurnOn", "name": "Front Door"}, "front-door", {"state": "locked"}),
        ({"intent": "HassTurnOff", "name": "Back Door"}, "back-door", {"state": "unlocked"}),
        ({"intent": "HassTurnOn", "name": "Blimsy Aircon"}, "office-aircon", {"state": "heat"}),
        (
            {"intent": "HassLightSet", "name": "Zorvex Lamp", "brightness": 40},
            "zorvex-lamp",
            {"brightness": 40},
        ),
        ({"intent": "HassLightSet", "name": "Zorvex Lamp", "brightness": 0}, "zorvex-lamp", {"state": "off"}),
        (
            {"intent": "HassLightSet", "area": "Office", "domain": "light", "color": "Blue"},
            "desk-lamp",
            {"color": "blue"},
        ),
        (
            {"intent": "HassLightSet", "name": "Desk Lamp", "temperature": 2700},
            "desk-lamp",
            {"color_temperature": 2700},
        ),
        (
            {"intent": "HassSetPosition", "name": "Moon Shade", "position": 30},
            "nursery-shade",
            {"position": 30},
        ),
        (
            {"intent": "HassClimateSetTemperature", "floor": "Upstairs", "temperature": 19.5},
            "nursery-heating",
            {"target_temperature": 19.5},
        ),
        (
            {"intent": "HassClimateSetFanMode", "area": "Nursery", "fan_mode": "high"},
            "nursery-heating",
            {"fan_mode": "high"},
        ),
        (
            {"intent": "HassFanSetSpeed", "name": "Ceiling Fan", "percentage": 20},
            "ceiling-fan",
            {"percentage": 20},
        ),
        ({"intent": "HassFanSetSpeed", "area": "Office", "percentage": 0}, "office-fan", {"state": "off"}),
        ({"intent": "HassSetVolume", "volume_level": 45}, "fenwick-speaker", {"volume": 45}),
        ({"intent": "HassSetVolumeRelative", "volume_step": "up"}, "fenwick-speaker", {"volume": 30}),
        ({"intent": "HassSetVolumeRelative", "volume_step": -80}, "fenwick-speaker", {"volume": 0}),
        ({"intent": "HassMediaPlayerMute"}, "fenwick-speaker", {"muted": True}),
        ({"intent": "HassMediaPause", "area": "Kitchen"}, "fenwick-speaker", {"state": "paused"}),
        ({"intent": "HassMediaNext"}, "fenwick-speaker", {"track": 2}),
        (
            {
                "intent": "HassMediaSearchAndPlay",
                "name": "tv",
                "search_query": "dune",
                "media_class": "movie",
            },
            "living-room-tv",
            {"state": "playing", "media": "dune (movie)"},
        ),
        ({"intent": "HassVacuumStart"}, "vacuum", {"state": "cleaning"}),
        ({"intent": "HassVacuumCleanArea", "area": "Kitchen"}, "vacuum", {"cleaning": "Kitchen"}),
        ({"intent": "HassLawnMowerStartMowing"}, "mower", {"state": "mowing"}),
        (
            {"intent": "HassShoppingListAddItem", "item": "oat milk"},
            "shopping-list",
            {"items": ["eggs", "oat milk"]},
        ),
        (
            {"intent": "HassShoppingListCompleteItem", "item": "Eggs"},
            "shopping-list",
            {"items": [], "done": ["Eggs"]},
        ),
        (
            {"intent": "HassListAddItem", "name": "Chores", "item": "iron"},
            "chores",
            {"items": ["empty the bins", "iron"]},
        ),
        (
            {"intent": "HassListRemoveItem", "name": "chores", "item": "empty the bins"},
            "chores",
            {"items": [], "done": []},
        ),
    ],
    ids=json.dumps,
)
def test_an_order_changes_what_it_names(answer: dict[str, Any], device: str, fields: dict[str, Any]) -> None:
    home = after(answer)
    assert {name: state(home, device).get(name) for name in fields} == fields


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ({"intent": "HassClimateGetTemperature", "area": "Nursery"}, "Nursery Heating: 21 °C"),
        (
            {"intent": "HassGetState", "name": "Back Door", "state": "locked"},
            "yes: Kitchen Back Door is locked",
        ),
        (
            {"intent": "HassGetState", "name": "Back Door Sensor", "state": "on"},
            "no: Kitchen Back Door Sensor is off",
        ),
        (
            {"intent": "HassGetState", "floor": "Upstairs", "domain": "light", "state": "on"},
            "1 of 4: Nursery Night Light",
        ),
        ({"intent": "HassGetState", "domain": "lock", "state": "unlocked"}, "1 of 2: Hallway Front Door"),
        ({"intent": "HassGetState", "name": "Ethan"}, "Ethan is school"),
        ({"intent": "HassGetState", "name": "Flow Meter"}, "Garage Flow Meter is 4.2 l/min"),
        ({"intent": "HassGetCurrentTime"}, "17:05"),
        ({"intent": "HassGetCurrentDate"}, "Tuesday, 24 November 2026"),
        ({"intent": "HassGetWeather"}, "partly cloudy, 11 °C"),
        ({"intent": "HassBroadcast", "message": "dinner"}, "said in every room: 'dinner'"),
        ({"intent": "HassNevermind"}, "all right"),
        ({"intent": "HassTurnOff", "name": "Zorvex Lamp"}, "already so: Living Room Zorvex Lamp is off"),
    ],
    ids=json.dumps,
)
def test_a_question_is_answered_and_changes_nothing(answer: dict[str, Any], reply: str) -> None:
    outcome = apply(HOME, answer, NOW)
    assert (outcome.reply, outcome.problem, outcome.changes) == (reply, None, ())
    assert outcome.home == HOME


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        ({}, "names no intent"),
        ({"intent": 7}, "names no intent"),
        ({"intent": "HassTurnOf"}, "nearest: HassTurnOff"),
        ({"intent": "HassTurnOn"}, "does not say what"),
        ({"intent": "HassTurnOff", "zone": "x"}, "takes no slot 'zone'"),
        ({"intent": "HassTurnOn", "name": "zorvx lamp"}, "nearest: Zorvex Lamp"),
        ({"intent": "HassTurnOn", "name": ["Zorvex Lamp"]}, "name is no text"),
        ({"intent": "HassTurnOn", "name": "\x1b[31mred"}, "not printable"),
        ({"intent": "HassTurnOn", "name": "\ud800"}, "not printable"),
        ({"intent": "HassTurnOn", "name": "Pump 7", "area": "Kitchen"}, "Pump 7 is a switch in the Garden"),
        ({"intent": "HassTurnOn", "area": "kichen"}, "nearest: Kitchen"),
        ({"intent": "HassTurnOn", "area": "Garden", "domain": "light"}, "no light in the Garden"),
        ({"intent": "HassLightSet", "brightness": 140}, "brightness"),
        ({"intent": "HassLightSet", "brightness": True}, "brightness is no number"),
        ({"intent": "HassLightSet", "brightness": 10**400}, "brightness"),
        ({"intent": "HassLightSet", "color": "beige"}, "color"),
        ({"intent": "HassLightSet", "name": "Desk Lamp"}, "what to set"),
        ({"intent": "HassLightSet", "name": "Pump 7", "brightness": 1}, "does not fit"),
        ({"intent": "HassClimateSetTemperature", "temperature": 10**400}, "temperature"),
        ({"intent": "HassClimateSetTemperature", "temperature": float("nan")}, "temperature"),
        ({"intent": "HassClimateSetTemperature", "temperature": -6}, "greater than or equal to 5"),
        ({"intent": "HassSetVolumeRelative", "volume_step": "sideways"}, "volume step is no number"),
        ({"intent": "HassMediaUnpause", "name": "Tv"}, "no player is paused"),
        ({"intent": "HassStartTimer"}, "no length"),
        ({"intent": "HassStartTimer", "minutes": -1}, "whole number"),
        ({"intent": "HassCancelTimer"}, "no timer is set"),
        ({"intent": "HassShoppingListCompleteItem", "item": "egs"}, "nearest: eggs"),
        ({"intent": "HassGetWeather", "name": "Oslo"}, "not known here"),
    ],
)
def test_what_cannot_be_done_has_a_reason_and_changes_nothing(answer: dict[str, Any], part: str) -> None:
    outcome = apply(HOME, answer)
    assert outcome.problem is not None
    assert part in outcome.problem
    assert outcome.problem.isprintable()
    assert (outcome.home, outcome.changes, outcome.reply) == (HOME, (), None)


def test_timers_are_told_apart_by_name_and_length() -> None:
    eggs = {"intent": "HassStartTimer", "name": "eggs", "minutes": 6}
    tea = {"intent": "HassStartTimer", "minutes": 3, "seconds": 30}
    both = after(eggs, tea)
    assert "which timer" in (apply(both, {"intent": "HassCancelTimer"}).problem or "")
    longer = apply(both, {"intent": "HassIncreaseTimer", "name": "Eggs", "minutes": 1}).home
    assert [timer["left_s"] for timer in state(longer, "timers")["timers"]] == [420, 210]
    paused = apply(longer, {"intent": "HassPauseTimer", "start_minutes": 6}).home
    assert [timer["paused"] for timer in state(paused, "timers")["timers"]] == [True, False]
    left = apply(paused, {"intent": "HassDecreaseTimer", "name": "eggs", "hours": 1}).home
    assert [timer["duration_s"] for timer in state(left, "timers")["timers"]] == [210]
    assert state(apply(both, {"intent": "HassCancelAllTimers"}).home, "timers")["timers"] == []


def test_a_device_refuses_a_state_that_is_not_of_its_domain() -> None:
    with pytest.raises(ValidationError, match="has no position"):
        HOME.by_id["pump-7"].changed({"position": 3})
    with pytest.raises(ValidationError, match="is one of"):
        HOME.by_id["pump-7"].changed({"state": "exploded"})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_NAMES = st.sampled_from(
    [device.name for device in HOME.devices]
    + [place.name for place in HOME.areas + HOME.floors]
    + ["light", "cover", "blind", "on", "up", "blue", "auto", "eggs"]
)
_SLOTS = st.sampled_from(sorted({slot for slots in known_intents().values() for slot in slots}))
_VALUES = _NAMES | st.integers(-10, 300) | _JSON


@st.composite
def plausible_answers(draw: st.DrawFn) -> dict[str, Any]:
    intent = draw(st.sampled_from(sorted(known_intents())))
    slots = sorted(known_intents()[intent]) or ["name"]
    return {"intent": intent, **draw(st.dictionaries(st.sampled_from(slots), _VALUES, max_size=4))}


@given(
    st.dictionaries(_SLOTS | st.just("intent") | st.text(max_size=8), _JSON, max_size=5) | plausible_answers()
)
def test_no_answer_raises(answer: dict[str, Any]) -> None:
    outcome = apply(HOME, answer, NOW)
    assert outcome == apply(HOME, answer, NOW)
    assert (outcome.home == HOME) == (outcome.changes == ())
    assert outcome.changes or outcome.reply is not None or outcome.problem is not None
    for shown in (outcome.reply, outcome.problem, *(change.text for change in outcome.changes)):
        assert shown is None or shown.isprintable()


@given(st.lists(plausible_answers(), max_size=6))
def test_changes_lead_from_one_home_to_the_other(answers: list[dict[str, Any]]) -> None:
    home = HOME
    for answer in answers:
        outcome = apply(home, answer, NOW)
        replayed = [change.before.changed(change.fields) for change in outcome.changes]
        assert home.replaced(replayed) == outcome.home
        home = outcome.home


# --- over a link --------------------------------------------------------------------------------------------


def test_topics_build_and_parse_are_inverses() -> None:
    assert device_of(topic_of("pump-7", "set")) == device_of(topic_of("pump-7", "state")) == "pump-7"
    assert device_of("home/pump-7/set/more") is device_of("edgeslm/v1/a/b/info") is None


def test_orders_reach_devices_as_messages_and_are_confirmed() -> None:
    broker = InProcessBroker()
    devices = SimulatedDevices(InProcessLink(broker, "home-devices"), HOME)
    with devices, HomeController(InProcessLink(broker, "home-controller"), HOME) as controller:
        outcome = controller.act({"intent": "HassTurnOff", "domain": "light"})
        assert len(outcome.changes) == 4
        assert controller.home == devices.home == outcome.home


def test_a_bad_set_message_leaves_the_device_as_it_is() -> None:
    devices = SimulatedDevices(InProcessLink(InProcessBroker(), "home-devices"), HOME)
    for body in (b"", b"\xff", b"[]", b'{"state":"exploded"}', b'{"position":3}', b"[" * 70_000, b'{"x":1}'):
        devices.on_message(Message(topic_of("pump-7", "set"), body))
    devices.on_message(Message(topic_of("no-such-device", "set"), b'{"state":"off"}'))
    assert devices.home == HOME


def test_a_silent_device_is_named() -> None:
    broker = InProcessBroker()
    devices = SimulatedDevices(InProcessLink(broker, "home-devices"), HOME)
    devices.start()
    with HomeController(InProcessLink(broker, "home-controller"), HOME) as controller:
        devices.stop()
        with pytest.raises(LinkError, match="pump-7"):
            controller.act({"intent": "HassTurnOff", "name": "Pump 7"}, timeout_s=0.1)
