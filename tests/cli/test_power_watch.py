"""``edgeslm power meters`` and ``watch``, over simulated boards; the screen once through a real terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.cli.power import power
from edgeslm.cli.power_screen import (
    Frame,
    Point,
    Today,
    as_json,
    as_line,
    bar,
    draw,
    flags,
    graph,
    points_shown,
    scale,
)
from edgeslm.link.broker import EmbeddedBroker
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.power.attribution import Interval, Settlement, Share
from edgeslm.power.boards import load_boards
from edgeslm.power.governor import WindowUse
from edgeslm.power.ledger import Ledger
from edgeslm.power.monitor import LEDGER_NAME
from edgeslm.power.port import Battery, MeterFacts, Throttling, Vitals
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.scenario import Scenario
from edgeslm.sim.board_driver import TICK_S, SimBoard

RUN = "from edgeslm.cli.power import power; power()"


STALL_S = 0.25
"""A simulated board that stood still for so long looks as if its meter were stuck, for its load leaps afterwards."""


@contextmanager
def running(root: Path, board: str = "pi-4b", **scenario: Any) -> Iterator[list[float]]:
    """A simulated board in real time, two cores busy unless `scenario` says otherwise.

    Yields:
        Seconds of each of its steps so far.
    """
    fields = {"name": "test", "title": "test", "load": {"shape": "constant", "busy_cores": 2}} | scenario
    stop = threading.Event()
    steps_s: list[float] = []
    with SimBoard(load_boards()[board], Scenario.model_validate(fields), root) as simulated:

        def live() -> None:
            began_s = time.monotonic()
            while not stop.wait(TICK_S):
                now_s = time.monotonic()
                steps_s.append(now_s - began_s)
                simulated.advance(now_s - began_s)
                began_s = now_s

        simulated.advance(1.0)
        thread = threading.Thread(target=live)
        thread.start()
        try:
            yield steps_s
        finally:
            stop.set()
            thread.join()


def config_file(tmp_path: Path, root: Path, **config: Any) -> str:
    path = tmp_path / "agent.yaml"
    settings = {"device": "test", "board": "pi-4b", "state_dir": str(tmp_path / "state")}
    meters = {"root": str(root), "vcgencmd": [str(root / "usr/bin/vcgencmd")]}
    path.write_text(yaml.safe_dump(settings | {"power": meters} | config))
    return str(path)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(power, arguments, catch_exceptions=False)


# --- meters -------------------------------------------------------------------------------------------------


def test_every_meter_is_listed_with_class_error_and_value(tmp_path):
    root = tmp_path / "board"
    meters = [{"kind": "ina226"}, {"kind": "ina219"}]
    with running(root, meters=meters):
        done = invoke("meters", "--config", config_file(tmp_path, root), "--json")
    found = json.loads(done.stdout)
    by_name = {meter["name"]: meter for meter in found["meters"]}
    assert len(by_name) == 3
    assert {name for name, meter in by_name.items() if meter["used"]} == {"hwmon:ina226@1-0040"}
    for name, meter in by_name.items():
        assert meter["power_w"] == pytest.approx(4.6, rel=0.15), name
        assert meter["error_share"] > 0
        assert meter["meter_class"] == ("estimated" if name == "model" else "measured")


def test_what_was_left_alone_is_told_with_the_reason(tmp_path):
    root = tmp_path / "board"
    with running(root, meters=[{"kind": "ina226"}]):
        text = invoke("meters", "--config", config_file(tmp_path, root)).stdout
    assert re.search(r"^\*  hwmon:ina226@1-0040  measured +4\.\d\d W", text, re.MULTILINE)
    rest = text[text.index("not used") :]
    assert "supply: no battery" in rest
    assert "plug: none in the settings" in rest


def test_a_meter_that_fails_says_so_and_the_model_takes_its_place(tmp_path):
    root = tmp_path / "board"
    faults = [{"meter": "ina226", "fault": "rubbish", "at_s": 0, "for_s": 1e6}]
    with running(root, meters=[{"kind": "ina226"}], faults=faults):
        found = json.loads(invoke("meters", "--config", config_file(tmp_path, root), "--json").stdout)
    broken, model = found["meters"]
    assert broken["fault"] == "rubbish"
    assert not broken["used"]
    assert "power_w" not in broken
    assert model["name"] == "model"
    assert model["used"]


def test_a_value_that_is_not_believed_is_not_shown(tmp_path):
    root = tmp_path / "board"
    faults = [{"meter": "ina226", "fault": "negative", "at_s": 0, "for_s": 1e6}]
    with running(root, meters=[{"kind": "ina226"}], faults=faults):
        found = json.loads(invoke("meters", "--config", config_file(tmp_path, root), "--json").stdout)
    assert found["meters"][0]["fault"] == "negative"
    assert "power_w" not in found["meters"][0]


def test_a_plug_is_heard_through_the_broker(tmp_path):
    root, stop = tmp_path / "board", threading.Event()
    with EmbeddedBroker(kind="iotcore") as broker, running(root):
        thread = threading.Thread(target=_publish_until, args=(BrokerConfig(port=broker.port), stop))
        thread.start()
        try:
            plug = {"dialect": "tasmota", "topic": "desk", "period_s": 0.5}
            power = {"root": str(root), "plug": plug}
            config = config_file(tmp_path, root, power=power, broker={"port": broker.port})
            done = invoke("meters", "--config", config, "--json")
        finally:
            stop.set()
            thread.join()
    found = next(meter for meter in json.loads(done.stdout)["meters"] if meter["name"] == "plug")
    assert found["power_w"] == 4.6


class NoEvents:
    """Link events that nobody is interested in."""

    def on_message(self, message: Message) -> None:
        pass

    def on_connected(self, *, session_present: bool) -> None:
        pass

    def on_disconnected(self, reason: str) -> None:
        pass

    def on_published(self, token: int) -> None:
        pass


def _publish_until(broker: BrokerConfig, stop: threading.Event) -> None:
    link = MqttLink(broker, "plug")
    link.start(NoEvents(), [])
    while not stop.wait(0.1):
        link.publish(Message("tele/desk/SENSOR", b'{"ENERGY":{"Power":4.6}}', qos=0))
    link.stop()


def test_a_board_without_any_meter_is_estimated(tmp_path):
    done = invoke("meters", "--board", "host", "--state-dir", str(tmp_path), "--json")
    assert done.exit_code == 0
    used = next(meter for meter in json.loads(done.stdout)["meters"] if meter["used"])
    assert used["power_w"] > 0


def test_an_unknown_board_is_a_configuration_error(tmp_path):
    done = invoke("meters", "--board", "toaster")
    assert done.exit_code == 2
    assert "unknown board 'toaster'" in done.stderr


# --- watch --------------------------------------------------------------------------------------------------


def test_json_lines_tell_draw_vitals_budget_and_the_day(tmp_path):
    root = tmp_path / "board"
    midnight = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
    ledger = Ledger(tmp_path / "state" / LEDGER_NAME, None)
    at_s = max(midnight, time.time() - 300)
    shares = (Share("idle", None, None, 300.0, 0.0, 100.0), Share("prompt", "m@1", None, 100.0, 80.0, 10.0))
    settlement = Settlement(at_s, at_s + 10, 400.0, "measured", shares, ())
    ledger.add(Interval(at_s, at_s + 10, 400.0, 40.0, "measured", settlement), at_s + 10, at_s + 10)
    ledger.flush(time.time())
    ledger.close()
    budget = {"windows": [{"name": "hour", "limit": "20 W", "over": "1h"}]}
    config = config_file(tmp_path, root, budget=budget)
    for _ in range(5):  # until the machine let the board live
        with running(
            root, meters=[{"kind": "ina226"}], battery={"capacity_wh": 50, "start_share": 0.5}
        ) as steps_s:
            done = invoke("watch", "--config", config, "--json", "--count", "2", "--interval", "0.4")
        if max(steps_s) < STALL_S:
            break
    assert done.exit_code == 0, done.output
    first, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert last["power_w"] == pytest.approx(4.6, rel=0.15)
    assert (last["meter"], last["meter_class"]) == ("hwmon:ina226@1-0040", "measured")
    assert last["busy_cores"] == pytest.approx(2.0, abs=0.6)
    assert last["idle_w"] == pytest.approx(3.0)
    assert last["temperature_c"] > 20
    assert last["battery"]["share"] == pytest.approx(0.5, abs=0.02)
    assert last["today"] == {"energy_j": 400.0, "causes_j": {"idle": 300.0, "prompt": 100.0}}
    (window,) = last["windows"]
    assert last["energy_j"] > first["energy_j"] > 1.0
    assert window["used_j"] == pytest.approx(400 + last["energy_j"], abs=1.0)


def test_elsewhere_than_on_a_terminal_there_are_plain_lines(tmp_path):
    root = tmp_path / "board"
    with running(root, meters=[{"kind": "ina226"}]):
        config = config_file(tmp_path, root)
        lines = invoke("watch", "--config", config, "--count", "2", "--interval", "0.3").stdout.splitlines()
    assert len(lines) == 2
    assert all("measured by hwmon:ina226@1-0040" in line and "\x1b" not in line for line in lines)


def test_watching_leaves_the_agents_ledger_alone(tmp_path):
    root = tmp_path / "board"
    with running(root):
        invoke("watch", "--config", config_file(tmp_path, root), "--count", "1", "--interval", "0.3")
    assert not (tmp_path / "state").exists()


def test_on_a_terminal_the_picture_is_drawn_in_place_and_the_cursor_comes_back(tmp_path):
    root = tmp_path / "board"
    with running(root, meters=[{"kind": "ina226"}]):
        config = config_file(
            tmp_path, root, budget={"windows": [{"name": "heat", "limit": "9 W", "over": "1m"}]}
        )
        shown = _on_a_terminal("watch", "--config", config, "--count", "3", "--interval", "0.3")
    assert shown.startswith("\x1b[?25l\x1b[2J")
    assert shown.rstrip().endswith("\x1b[?25h")
    pictures = shown.split("\x1b[H")[1:]
    assert len(pictures) == 3
    lines = click.unstyle(pictures[-1]).replace("\x1b[K", "").splitlines()
    assert any(re.search(r"^4\.\d\d W .* lowest .* mean .* highest", line) for line in lines)
    assert any("measured by hwmon:ina226@1-0040" in line for line in lines)
    assert any(re.search(r"│ +[▁-█]+", line) for line in lines)
    assert any(re.search(r"^heat  [█▏▎▍▌▋▊▉]+░* \d+% left", line) for line in lines)
    assert max(len(line) for line in lines) <= 80
    assert len(lines) <= 24


def _on_a_terminal(*arguments: str) -> str:
    """What the command shows on a terminal of 80 by 24."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", RUN, *arguments],
        stdin=follower,
        stdout=follower,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm", "PYTHONUTF8": "1"},
    )
    os.close(follower)
    shown = b""
    try:
        while select.select([leader], [], [], 30)[0]:
            try:
                shown += os.read(leader, 65_536)
            except OSError:
                break
    finally:
        os.close(leader)
        assert process.wait(10) == 0
    return shown.decode("utf-8")


# --- the picture --------------------------------------------------------------------------------------------

FRAME = Frame(
    at=datetime(2026, 5, 1, 12, 30, tzinfo=UTC),
    board="pi-4b",
    points=(Point(0.5, 2.0, 3.0, 5.0), Point(1.5, 2.5, 4.0, 8.0)),
    facts=MeterFacts("hwmon:ina226@1-0040", "measured", 0.035, 0.006, 0.01, averages=True, source="tests"),
    idle_w=2.7,
    busy_cores=1.4,
    seen_j=8.0,
    vitals=Vitals(
        0.0,
        temperature_c=61.5,
        frequency_mhz=1500,
        throttling=Throttling(under_voltage=True, under_voltage_since_boot=True, throttled_since_boot=True),
        battery=Battery(0.62, -3.0, 50.0, external=True),
    ),
    windows=(WindowUse("heat", 60.0, 300.0, 75.0), WindowUse("day", 86_400.0, 72_000.0, 80_000.0)),
    today=Today(3600.0, {"idle": 2700.0, "prompt": 900.0}),
    event="plug is stale",
)


def picture(frame: Frame = FRAME, columns: int = 80, rows: int = 30) -> str:
    return click.unstyle("\n".join(draw(frame, columns, rows)))


@pytest.mark.parametrize(
    "words",
    [
        "4.00 W   2.00 lowest   3.75 mean   8.00 highest of 2 s",
        "measured by hwmon:ina226@1-0040, ±0.6% and 10 mW",
        "idle 2.70 W   1.4 cores busy   61.5 °C   1500 MHz",
        "firmware, now: under voltage",
        "firmware, since boot: under voltage, throttled",
        "62%, 3.00 W in",
        "75% left: 75.00 J of 300 J used in 1 min",
        "-11% left: 22.22 Wh of 20.00 Wh used in 1 d",
        "8.00 J since watching   today 1.00 Wh  idle 75%, prompt 25%",
        "plug is stale",
    ],
)
def test_the_picture_tells(words):
    assert words in picture()


def test_what_is_not_known_is_left_out():
    text = picture(replace(FRAME, vitals=Vitals(0.0), windows=(), today=None, event=None))
    for word in ("°C", "MHz", "firmware", "battery", "left", "today"):
        assert word not in text
    found = as_json(replace(FRAME, vitals=Vitals(0.0), today=None))
    assert (found["temperature_c"], found["battery"], found["today"]) == (None, None, None)


def test_json_has_the_same_figures():
    found = as_json(FRAME)
    assert (found["power_w"], found["min_w"], found["max_w"], found["span_s"]) == (4.0, 2.5, 8.0, 1.5)
    assert found["throttling"] == ["under_voltage"]
    assert found["throttled_before"] == ["under_voltage", "throttled"]
    assert json.loads(json.dumps(found)) == found


def test_a_line_has_the_most_important_figures():
    text = as_line(FRAME)
    assert text.startswith("12:30:00     4.00 W (2.50 to 8.00)  measured by hwmon")
    assert text.endswith("heat 75% left  day -11% left  under_voltage")


@given(columns=st.integers(10, 200), rows=st.integers(3, 60))
def test_the_picture_fits_any_terminal(columns, rows):
    lines = [click.unstyle(line) for line in draw(FRAME, columns, rows)]
    assert len(lines) < max(rows, 2)
    assert all(len(line) <= max(columns, 18) for line in lines)


@given(st.lists(st.floats(0, 10_000), min_size=1, max_size=300))
def test_the_graph_shows_the_latest_at_the_right_and_taller_is_more(values):
    width, height = 40, 6
    lines = [line[2][0] for line in graph(values, width, height)]
    assert [len(line) for line in lines] == [width] * height
    shown = values[-width:]
    heights = [sum(" ▁▂▃▄▅▆▇█".index(line[column]) for line in lines) for column in range(width)]
    assert heights[: width - len(shown)] == [0] * (width - len(shown))
    drawn = heights[width - len(shown) :]
    order = sorted(range(len(shown)), key=lambda at: shown[at])
    assert [drawn[at] for at in order] == sorted(drawn)


def test_a_graph_with_more_values_than_room_shows_the_latest():
    (line,) = [line[2][0] for line in graph([8.0] * 50 + [0.0] * 10, 20, 1)]
    assert line == "█" * 10 + " " * 10


@given(st.floats(0, 1e4), st.floats(0, 1e4))
def test_the_scale_holds_the_values(one, other):
    low, high = sorted((one, other))
    floor, top = scale(low, high)
    assert 0 <= floor <= low
    assert high <= top
    assert floor < top


def test_the_scale_of_a_board_that_hardly_moves_shows_what_moves():
    floor, top = scale(20.0, 20.4)
    assert floor > 15
    assert top < 25


@given(st.floats(-1, 2))
def test_a_bar_is_as_long_as_its_share(share):
    text = bar(share, 10)
    assert len(text) == 10
    assert text.count("█") == min(max(int(share * 10 + 1 / 16), 0), 10)


def test_flags_now_and_before_are_told_apart():
    throttling = Throttling(throttled=True, under_voltage_since_boot=True)
    assert flags(throttling, since_boot=False) == ("throttled",)
    assert flags(throttling, since_boot=True) == ("under_voltage",)
    assert flags(None, since_boot=True) == ()


def test_the_graph_takes_what_the_labels_leave():
    assert points_shown(80) == 70
    assert points_shown(3) == 8
