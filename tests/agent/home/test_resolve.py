"""What answers mean in a home with four ecosystems in it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.agent.home.acting import read_home
from edgeslm.agent.home.resolve import known_intents, resolve
from edgeslm.sim.home_intents import known_intents as simulated_intents

HOME = read_home(Path(__file__).with_name("home.yaml"))


def _done(intent: str, **slots: Any) -> dict[str, str]:
    found = resolve(HOME, {"intent": intent, **slots})
    assert found.problem is None, found.problem
    return {order.topic: order.payload for order in found.orders}


def _problem(intent: str, **slots: Any) -> str:
    found = resolve(HOME, {"intent": intent, **slots})
    assert found.problem is not None
    assert found.orders == ()
    return found.problem


@pytest.mark.parametrize(
    ("answer", "orders"),
    [
        (
            {"intent": "HassTurnOn", "area": "Kitchen", "domain": "light"},
            {"zigbee2mqtt/kitchen_ceiling/set": '{"state":"ON"}', "cmnd/counter/POWER": "ON"},
        ),
        ({"intent": "HassTurnOff", "name": "Kettle"}, {"cmnd/kettle/POWER2": "OFF"}),
        (
            {"intent": "HassLightSet", "area": "cooking room", "brightness": 50},
            {"zigbee2mqtt/kitchen_ceiling/set": '{"brightness":127}', "cmnd/counter/Dimmer": "50"},
        ),
        (
            {"intent": "HassLightSet", "name": "lamp", "brightness": 100},
            {"living/light/lamp/command": '{"state":"ON","brightness":255}'},
        ),
        (
            {"intent": "HassLightSet", "name": "lamp", "color": "Red"},
            {"living/light/lamp/command": '{"state":"ON","color":{"r":255,"g":0,"b":0}}'},
        ),
        ({"intent": "HassLightSet", "name": "Counter", "color": "blue"}, {"cmnd/counter/Color": "0000FF"}),
        (
            {"intent": "HassLightSet", "name": "night light", "color": "green"},
            {"zigbee2mqtt/bedside/set": '{"color":{"hex":"#00FF00"}}'},
        ),
        (
            {"intent": "HassLightSet", "name": "Night Light", "temperature": 2700},
            {"zigbee2mqtt/bedside/set": '{"color_temp":370}'},
        ),
        ({"intent": "HassLightSet", "name": "Counter", "brightness": 0}, {"cmnd/counter/POWER": "OFF"}),
        (
            {"intent": "HassSetPosition", "name": "Blinds", "position": 40},
            {"cmnd/blinds/ShutterPosition1": "40"},
        ),
        (
            {"intent": "HassTurnOff", "area": "Living Room", "device_class": "blind"},
            {"cmnd/blinds/ShutterClose1": ""},
        ),
        (
            {"intent": "HassClimateSetTemperature", "area": "Living Room", "temperature": 21.5},
            {"living/climate/heating/target_temperature/command": "21.5"},
        ),
        (
            {"intent": "HassClimateSetTemperature", "floor": "First Floor", "temperature": 18},
            {"zigbee2mqtt/radiator/set": '{"current_heating_setpoint":18}'},
        ),
        ({"intent": "HassFanSetSpeed", "name": "Ceiling Fan", "percentage": 60}, {"cmnd/fan/FanSpeed": "2"}),
        ({"intent": "HassSetVolume", "volume_level": 30}, {"radio/set": '{"volume": 30}'}),
        ({"intent": "HassMediaPlayerMute", "area": "Kitchen"}, {"radio/mute": "1"}),
        ({"intent": "HassTurnOn", "name": "Front Door"}, {"zigbee2mqtt/front_door/set": '{"state":"LOCK"}'}),
        ({"intent": "HassTurnOff", "name": "Back Door"}, {"zigbee2mqtt/back_door/set": '{"state":"UNLOCK"}'}),
        ({"intent": "HassTurnOff", "name": "Garage Door"}, {"garage/cover/door/command": "CLOSE"}),
    ],
)
def test_an_answer_becomes_the_right_topic_and_payload(
    answer: dict[str, Any], orders: dict[str, str]
) -> None:
    assert _done(**answer) == orders


def test_everything_in_a_room_is_lights_switches_and_fans() -> None:
    assert set(_done("HassTurnOff", area="Kitchen")) == {
        "zigbee2mqtt/kitchen_ceiling/set",
        "cmnd/counter/POWER",
        "cmnd/kettle/POWER2",
    }


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"intent": "HassTurnOff", "name": "Front Door"}, "Hall Front Door is not unlocked by voice here"),
        ({"intent": "HassTurnOn", "name": "Garage Door"}, "Hall Garage Door is not opened by voice here"),
        ({"intent": "HassSetPosition", "name": "Garage Door", "position": 1}, "not opened by voice"),
        ({"intent": "HassTurnOff", "area": "Kitchen", "domain": "lock"}, "unlocked only when it is named"),
        ({"intent": "HassTurnOff"}, "does not say what"),
        ({"intent": "HassTurnOn", "area": "Kitchin"}, "there is no area 'Kitchin'; nearest: Kitchen"),
        ({"intent": "HassTurnOn", "name": "Kettel"}, "there is no 'Kettel'; nearest: Kettle"),
        ({"intent": "HassTurnOn", "name": "Kettle", "colour": "red"}, "takes no slot 'colour'"),
        ({"intent": "HassLightSet", "name": "Kettle", "brightness": 3}, "Kettle is a switch in the Kitchen"),
        (
            {"intent": "HassLightSet", "area": "Kitchen", "brightness": 101},
            "brightness has to be from 0 to 100",
        ),
        ({"intent": "HassLightSet", "area": "Kitchen", "brightness": True}, "brightness is no number"),
        ({"intent": "HassLightSet", "area": "Kitchen", "brightness": float("nan")}, "from 0 to 100"),
        ({"intent": "HassClimateSetTemperature", "temperature": 99}, "from 5 to 35"),
        (
            {"intent": "HassClimateSetTemperature", "area": "Hall", "temperature": 20},
            "there is no climate there",
        ),
        ({"intent": "HassSetVolume", "volume_level": 10**400}, "from 0 to 100"),
        ({"intent": "HassMediaPause"}, "Radio cannot be told to pause by way of plain"),
        ({"intent": "HassStartTimer", "minutes": 5}, "nothing that is done here"),
        ({"intent": 7}, "names no intent"),
        ({"intent": "HassTurnOn", "name": "a\nb"}, "not printable"),
        ({"intent": "HassTurnOn", "name": "x" * 5000}, "too long"),
    ],
)
def test_what_does_not_fit_is_refused_whole_with_a_reason(answer: dict[str, Any], why: str) -> None:
    assert why in _problem(**answer)


def test_the_time_is_told_only_where_the_clock_is_set() -> None:
    assert resolve(HOME, {"intent": "HassGetCurrentTime"}, datetime(2026, 1, 2, 3, 4)).said == "03:04"
    assert resolve(HOME, {"intent": "HassGetCurrentTime"}).problem == "the time is not known here"


def test_every_intent_has_the_slots_that_the_simulated_home_gives_it() -> None:
    known = simulated_intents()
    assert {name: slots for name, slots in known_intents().items() if known[name] != slots} == {}


_SLOT_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30), st.lists(st.integers(), max_size=2),
    st.sampled_from(["Kitchen", "Front Door", "lock", "light", "garage", "Radio", "red", "Ground Floor"]),
)  # fmt: skip
_ANSWERS = st.dictionaries(
    st.sampled_from(
        ["name", "area", "floor", "domain", "device_class", "brightness", "color", "temperature", "position",
         "percentage", "volume_level", "fan_mode", "other"]
    ),
    _SLOT_VALUES,
    max_size=4,
)  # fmt: skip


@given(st.one_of(st.sampled_from(sorted(known_intents())), _SLOT_VALUES), _ANSWERS)
def test_whatever_a_model_answers_is_an_order_or_a_reason_and_never_opens_what_is_locked(
    intent: object, slots: dict[str, object]
) -> None:
    found = resolve(HOME, {"intent": intent, **slots})
    assert (found.problem is None) or found.orders == ()
    for order in found.orders:
        assert not (order.topic.endswith("front_door/set") and "UNLOCK" in order.payload)
        assert (order.topic, order.payload) != ("garage/cover/door/command", "OPEN")
        assert not any(char in order.topic for char in "+#\x00")
