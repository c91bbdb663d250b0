from __future__ import annotations

import contextlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgeslm.errors import MeterError
from edgeslm.power.meters.plug import PlugMeter, find, parse_report, topic_of
from edgeslm.schema.power import PlugConfig

TASMOTA = PlugConfig(dialect="tasmota", topic="desk-plug")
SHELLY = PlugConfig(dialect="shelly", topic="shellyplusplugs-e86beae8a1b0")
NUMBER = PlugConfig(dialect="number", topic="homeassistant/sensor/desk_power/state")
NESTED = PlugConfig(dialect="json", topic="zigbee2mqtt/plug", power_path="meters[1].power", unit="mW")

TASMOTA_BODY = (
    b'{"Time":"2026-03-01T12:00:00","ENERGY":{"TotalStartTime":"2026-01-01T00:00:00","Total":12.345,'
    b'"Yesterday":0.1,"Today":0.05,"Period":1,"Power":5.2,"ApparentPower":9,"Voltage":231,"Current":0.04}}'
)
SHELLY_BODY = (
    b'{"id":0,"source":"init","output":true,"apower":5.3,"voltage":231.2,"current":0.043,'
    b'"aenergy":{"total":1234.567,"by_minute":[10.1,9.9,10.0],"minute_ts":1700000000},"temperature":{"tC":31.2}}'
)


@pytest.mark.parametrize(
    ("config", "body", "watts"),
    [
        (TASMOTA, TASMOTA_BODY, 5.2),
        (SHELLY, SHELLY_BODY, 5.3),
        (NUMBER, b"4.75", 4.75),
        (NUMBER, b" 4\n", 4.0),
        (NUMBER.model_copy(update={"unit": "kW"}), b"0.0051", 5.1),
        (NESTED, b'{"meters":[{"power":1},{"power":5400}]}', 5.4),
    ],
)
def test_every_dialect_tells_its_watts(config: PlugConfig, body: bytes, watts: float) -> None:
    assert parse_report(config, body).power_w == pytest.approx(watts)


def test_a_plug_with_several_outlets_is_read_at_its_channel() -> None:
    config = TASMOTA.model_copy(update={"channel": 1})
    body = json.dumps({"ENERGY": {"Power": [1.5, 2.5]}}).encode()
    assert parse_report(config, body).power_w == 2.5
    with pytest.raises(ValueError):
        parse_report(config.model_copy(update={"channel": 2}), body)
    assert topic_of(SHELLY.model_copy(update={"channel": 3})).endswith("/status/switch:3")


def test_each_dialect_has_its_topic() -> None:
    assert topic_of(TASMOTA) == "tele/desk-plug/SENSOR"
    assert topic_of(SHELLY) == "shellyplusplugs-e86beae8a1b0/status/switch:0"
    assert topic_of(NUMBER) == "homeassistant/sensor/desk_power/state"


@pytest.mark.parametrize(
    ("config", "body"),
    [
        (TASMOTA, b"{}"),
        (TASMOTA, b'{"ENERGY":{"Power":"unknown"}}'),
        (TASMOTA, b'{"ENERGY":{"Power":true}}'),
        (TASMOTA, b'{"ENERGY":[5]}'),
        (SHELLY, b'{"apower":null}'),
        (SHELLY, b"online"),
        (NUMBER, b"unavailable"),
        (NUMBER, b"nan"),
        (NUMBER, b"inf"),
        (NUMBER, b"\xff\xfe"),
        (NESTED, b'{"meters":[{"power":1}]}'),
        (NESTED, b"[" * 5000),
        (NUMBER, b"1" * 9000),
    ],
)
def test_what_says_no_watts_is_an_error(config: PlugConfig, body: bytes) -> None:
    with pytest.raises(ValueError):
        parse_report(config, body)


@given(st.sampled_from([TASMOTA, SHELLY, NUMBER, NESTED]), st.binary(max_size=60) | st.text(max_size=60))
def test_no_message_can_break_the_meter(config: PlugConfig, body: bytes | str) -> None:
    meter = PlugMeter(config, clock=lambda: 1.0)
    meter.on_message(topic_of(config), body if isinstance(body, bytes) else body.encode(), at_s=1.0)
    with contextlib.suppress(MeterError):
        assert math.isfinite(meter.read().power_w)


@given(
    st.recursive(
        st.floats() | st.text() | st.none(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    )
)
def test_a_path_finds_something_or_says_that_there_is_nothing(value: object) -> None:
    with contextlib.suppress(ValueError):
        find(value, "a.b[0].c")
    assert find({"a": {"b": [{"c": value}]}}, "a.b[0].c") is value


class Desk:
    """A plug and a clock that a test moves."""

    def __init__(self, config: PlugConfig) -> None:
        self.now_s = 0.0
        self.config = config
        self.meter = PlugMeter(config, clock=lambda: self.now_s)

    def says(self, body: bytes, **more: bool) -> None:
        self.meter.on_message(topic_of(self.config), body, self.now_s, **more)

    def fault(self) -> str:
        with pytest.raises(MeterError) as caught:
            self.meter.read()
        return caught.value.fault


def test_a_value_holds_for_three_periods_and_is_stale_after() -> None:
    desk = Desk(NUMBER)
    desk.says(b"5.0")
    desk.now_s = 30.0
    assert desk.meter.read().at_s == 0.0
    desk.now_s = 30.1
    assert desk.fault() == "stale"
    desk.says(b"6.0")
    assert desk.meter.read().power_w == 6.0


def test_before_the_first_message_it_is_stale() -> None:
    assert Desk(NUMBER).fault() == "stale"


def test_a_message_that_the_broker_had_stored_is_no_value() -> None:
    desk = Desk(NUMBER)
    desk.says(b"5.0", retained=True)
    assert desk.fault() == "stale"


def test_messages_on_other_topics_are_none_of_ours() -> None:
    desk = Desk(NUMBER)
    desk.meter.on_message("homeassistant/sensor/fridge_power/state", b"80", 0.0)
    assert desk.fault() == "stale"
    assert desk.meter.filters() == (NUMBER.topic,)


def test_a_sensor_that_becomes_unavailable_is_rubbish_until_it_is_back() -> None:
    desk = Desk(NUMBER)
    desk.says(b"5.0")
    desk.says(b"unavailable")
    assert desk.fault() == "rubbish"
    desk.says(b"5.1")
    assert desk.meter.read().power_w == 5.1


def test_an_error_that_is_told_often_does_not_grow() -> None:
    desk = Desk(NUMBER)
    desk.says(b"unavailable")
    depths = set()
    for _ in range(20):
        with pytest.raises(MeterError) as caught:
            desk.meter.read()
        depths.add(len(caught.traceback))
    assert len(depths) == 1


def test_a_fine_counter_is_carried_and_never_falls() -> None:
    desk = Desk(SHELLY)
    counts = []
    for total_wh in (100.0, 100.5, 100.5, 0.25, 1.25):
        desk.says(json.dumps({"apower": 5.0, "aenergy": {"total": total_wh}}).encode())
        counts.append(desk.meter.read().counter_j)
    assert counts == pytest.approx([0.0, 1800.0, 1800.0, 2700.0, 6300.0])


def test_a_coarse_counter_is_not_carried() -> None:
    desk = Desk(TASMOTA)
    desk.says(TASMOTA_BODY)
    assert desk.meter.read().counter_j is None


def test_the_share_that_reaches_the_board_scales_watts_and_joules() -> None:
    desk = Desk(SHELLY.model_copy(update={"supply_efficiency": 0.8}))
    desk.says(b'{"apower":10.0,"aenergy":{"total":1.0}}')
    desk.says(b'{"apower":10.0,"aenergy":{"total":2.0}}')
    reading = desk.meter.read()
    assert reading.power_w == pytest.approx(8.0)
    assert reading.counter_j == pytest.approx(2880.0)
    assert desk.meter.facts.error_share < PlugMeter(SHELLY).facts.error_share


@pytest.mark.parametrize(
    "settings",
    [
        {"dialect": "json", "topic": "a"},
        {"dialect": "number", "topic": "a", "power_path": "b"},
        {"dialect": "tasmota", "topic": "a", "unit": "kW"},
        {"dialect": "number", "topic": "a/#"},
        {"dialect": "number", "topic": "a/+/b"},
        {"dialect": "number", "topic": ""},
        {"dialect": "json", "topic": "a", "power_path": "a..b"},
        {"dialect": "json", "topic": "a", "power_path": "a[b]"},
        {"dialect": "number", "topic": "a", "period_s": 0},
        {"dialect": "number", "topic": "a", "supply_efficiency": 1.5},
        {"dialect": "zigbee", "topic": "a"},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PlugConfig.model_validate(settings)
