"""``edgeslm fleet metrics``, ``top``, ``budget`` and ``quarantine``; the screen once through a real terminal."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[2]))

import random

from benchmarks.fleet_metrics_load import FLEET, add_devices, inference, power, reports
from benchmarks.update_fleet_rig import FleetRig, Visitor, fleet_rig, wait_for
from benchmarks.update_trust_rig import fast_directory
from edgeslm import codec, topics
from edgeslm.agent.power_side import parse_budget
from edgeslm.cli import fleet_metrics
from edgeslm.cli.fleet import fleet
from edgeslm.cli.fleet_figures import blocks, change_text, value_text
from edgeslm.cli.fleet_top import SORTS, Line, ordered
from edgeslm.clock import utc_now
from edgeslm.errors import UsageError
from edgeslm.fleet.directory import create_fleet
from edgeslm.fleet.metrics.figures import FIGURES
from edgeslm.fleet.metrics.intake import Intake
from edgeslm.fleet.metrics.report import FiguresReport, FiguresRow
from edgeslm.fleet.metrics.store import MetricsStore, metrics_url
from edgeslm.fleet.quarantine import quarantine
from edgeslm.fleet.release_setup import set_up
from edgeslm.link.broker import find_mosquitto
from edgeslm.power.boards import load_boards
from edgeslm.schema.assignment import Assignment
from edgeslm.schema.fleet import FleetBroker, FleetConfig
from edgeslm.schema.fleet_metrics import MetricsSettings

NEEDS_MOSQUITTO = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
NAMES = ["attic", "cellar", "kitchen", "liar"]
MINUTES = 120
WAIT_S = 60.0


def run(root: Path, *arguments: str) -> Result:
    clean: dict[str, str | None] = {name: None for name in os.environ if name.startswith("EDGESLM_")}
    return CliRunner(env=clean).invoke(fleet, [*arguments, "--fleet-dir", str(root)])


def ok(root: Path, *arguments: str) -> str:
    result = run(root, *arguments)
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return str(result.stdout)


def told(root: Path, *arguments: str) -> Any:
    return json.loads(ok(root, *arguments, "--json"))


def as_it_sends(message: tuple[str, bytes]) -> tuple[str, bytes]:
    """The cellar's way to the broker costs by the byte: it compresses."""
    topic, body = message
    return (topic, codec.compress(body) if "/cellar/" in topic else body)


def fill(root: Path, now: datetime) -> None:
    """Two hours of four devices until now, one of which is in quarantine."""
    directory = create_fleet(
        root, FleetConfig(name=FLEET, broker=FleetBroker(host="broker.local")), passphrase=None, now=now
    )
    store = directory.open_store()
    metrics = MetricsStore(metrics_url(root, None))
    add_devices(store, NAMES, now)
    intake = Intake(store, metrics, load_boards(), MetricsSettings())
    chance = random.Random(1)
    for minute in range(MINUTES):
        at = now - timedelta(minutes=MINUTES - 1 - minute)
        said = reports(NAMES, minute, at, chance)
        intake.take(map(as_it_sends, said), at + timedelta(seconds=1))
    metrics.roll_up()
    with store.write() as session:
        quarantine(session, "liar", "draws -1 W", now)
    metrics.close()
    store.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cli") / "green"
    fill(made, utc_now())
    return made


# --- metrics ------------------------------------------------------------------------------------------------


def test_the_table_has_a_line_for_each_device_and_one_for_all_and_names_who_is_left_out(root: Path) -> None:
    result = run(root, "metrics")
    lines = result.stdout.splitlines()
    assert lines[0].split()[:4] == ["DEVICE", "POWER", "ENERGY", "J-PROMPT"]
    assert [line.split()[0] for line in lines[1:]] == ["attic", "cellar", "kitchen", "all"]
    assert "liar is in quarantine, and in no sum: it draws -1 W" in result.stderr


def test_json_tells_the_same_as_the_table(root: Path) -> None:
    found = told(root, "metrics", "kitchen", "--metric", "power", "--metric", "tps")
    (row,) = found["rows"]
    assert row["group"] == "kitchen"
    assert row["figures"]["power"] == pytest.approx(3.25, abs=0.7)
    line = ok(root, "metrics", "kitchen", "--metric", "power", "--metric", "tps").splitlines()[1]
    assert line.split() == [
        "kitchen",
        *value_text("W", row["figures"]["power"]).split(),
        f"{row['figures']['tps']:.1f}/s",
    ]


@pytest.mark.parametrize("by", ["fleet", "group", "board", "model"])
def test_figures_can_be_grouped_by_anything(root: Path, by: str) -> None:
    names = {"fleet": "fleet", "group": "(no group)", "board": "pi-4b", "model": "home-command@1.0.0"}
    assert told(root, "metrics", "--by", by)["rows"][0]["group"] == names[by]
    assert ok(root, "metrics", "--by", by)


def test_steps_of_time_are_rows(root: Path) -> None:
    found = told(root, "metrics", "--by", "fleet", "--step", "30min", "--since", "2h", "--metric", "energy")
    assert len(found["rows"]) in {4, 5}
    assert sum(row["figures"]["energy"] for row in found["rows"]) > 0
    assert "FROM" in ok(root, "metrics", "--by", "fleet", "--step", "30min")


def test_a_chart_is_drawn_in_the_terminal(root: Path) -> None:
    said = ok(root, "metrics", "--chart", "--since", "2h", "--metric", "power")
    assert "mean draw" in said
    assert any(block in said for block in "▁▄█")
    assert "kitchen" in said


def test_csv_and_files_hold_what_the_table_holds(root: Path, tmp_path: Path) -> None:
    rows = list(csv.reader(io.StringIO(ok(root, "metrics", "--csv"))))
    assert rows[0][:4] == ["device", "devices", "power_w", "energy_j"]
    assert [row[0] for row in rows[1:]] == ["attic", "cellar", "kitchen"]
    ok(root, "metrics", "--out", str(tmp_path / "a.csv"))
    assert len((tmp_path / "a.csv").read_text().splitlines()) == len(rows)
    ok(root, "metrics", "--out", str(tmp_path / "a.json"))
    assert json.loads((tmp_path / "a.json").read_text())["by"] == "device"


def test_pictures_are_drawn(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for kind, begins in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        ok(root, "metrics", "--since", "2h", "--out", str(tmp_path / f"a.{kind}"))
        assert (tmp_path / f"a.{kind}").read_bytes().startswith(begins)


def test_a_picture_of_many_devices_shows_their_range_and_one_of_nothing_is_refused() -> None:
    pytest.importorskip("matplotlib")
    from edgeslm.cli.fleet_metrics_chart import draw  # noqa: PLC0415

    began = utc_now()
    rows = tuple(
        FiguresRow(
            group=f"device-{device:02}",
            start=began + timedelta(hours=hour),
            devices=1,
            figures={"power": 3.0 + device / 10, "throttled": 0.1},
        )
        for hour in (0, 1, 2, 5, 6)
        for device in range(12)
    )
    found = FiguresReport(
        since=began,
        until=began + timedelta(hours=7),
        by="device",
        step_s=3600,
        rows=rows,
        left_out={},
        silent=(),
    )
    picture = draw(found, [FIGURES["power"], FIGURES["throttled"]], "svg")
    assert b"middle four fifths" in picture or len(picture) > 10_000
    with pytest.raises(UsageError):
        draw(found, [FIGURES["tps"]], "svg")


def test_parquet_holds_typed_columns_or_says_what_is_missing(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    result = run(root, "metrics", "--step", "1h", "--out", str(file))
    try:
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ModuleNotFoundError:
        assert result.exit_code == 2
        assert "edgeslm[parquet]" in result.stderr
        assert not file.exists()
        return
    table = pq.read_table(file)
    assert table.column_names[:4] == ["from", "device", "devices", "power_w"]
    assert {str(table.schema.field(name).type) for name in ("from", "power_w")} == {
        "timestamp[ms, tz=UTC]",
        "double",
    }
    assert set(table["device"].to_pylist()) == {"attic", "cellar", "kitchen"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--out", "a.txt"],
        ["--metric", "volts"],
        ["--since", "tomorrow"],
        ["--since", "1h", "--until", "2h"],
        ["--by", "model", "--metric", "power"],
        ["--csv", "--json"],
        ["--before-after", "nothing"],
        ["--before-after", "1h", "--chart"],
        ["--before-after", "1h", "--metric", "energy"],
        ["attick"],
        ["--where", "board ="],
        ["--group", "none"],
        ["--out", "/nowhere/at/all.csv"],
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_a_usage_error(root: Path, arguments: list[str]) -> None:
    result = run(root, "metrics", *arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr


def test_before_and_after_is_a_table_with_bounds(root: Path) -> None:
    said = ok(root, "metrics", "--before-after", "1h", "--window", "1h")
    assert said.startswith("3 devices, 1 h before and after")
    found = told(root, "metrics", "--before-after", "1h", "--window", "1h", "--metric", "tps")
    assert found["left_out"] == {"liar": "in quarantine: draws -1 W"}
    assert found["rows"][0]["verdict"] == "no difference shown"
    assert found["rows"][0]["count"] == 3


def test_a_fleet_that_reported_nothing_yet_says_what_collects(tmp_path: Path) -> None:
    made = tmp_path / "new"
    directory = create_fleet(
        made, FleetConfig(name=FLEET, broker=FleetBroker(host="x")), passphrase=None, now=utc_now()
    )
    store = directory.open_store()
    add_devices(store, ["kitchen"], utc_now())
    store.close()
    result = run(made, "metrics")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "fleet serve" in result.stderr
    assert told(made, "top")[0]["power_w"] is None


def test_the_names_of_figures_are_those_of_the_library() -> None:
    assert tuple(FIGURES) == fleet_metrics._FIGURES


def test_values_are_written_with_their_units() -> None:
    assert value_text("W", 2.5) == "2.50 W"
    assert value_text("share", -0.034) == "-3.4%"
    assert value_text("", None) == "-"
    assert value_text("", 3.0) == "3"
    assert change_text(0.1, "W", is_share=True) == "+10.0%"
    assert change_text(-2.0, "C", is_share=False) == "-2.0 C"
    assert blocks([0.0, None, 1.0], 0.0, 1.0, 10) == "▁ █"
    assert len(blocks([1.0] * 500, 0.0, 2.0, 60)) == 60


# --- top ----------------------------------------------------------------------------------------------------


def line(name: str, **values: Any) -> Line:
    empty = dict.fromkeys(
        ("board", "age_s", "power_w", "j_per_prompt", "tps", "waiting", "temperature_c", "budget_share")
    )
    return Line(device=name, notes=(), **{**empty, **values})


def test_devices_come_in_the_order_that_is_asked_for_and_the_silent_last() -> None:
    lines = [line("a"), line("b", power_w=1.0, waiting=5), line("c", power_w=3.0, waiting=0)]
    assert [one.device for one in ordered(lines, "watts")] == ["c", "b", "a"]
    assert [one.device for one in ordered(lines, "watts", reverse=True)] == ["b", "c", "a"]
    assert [one.device for one in ordered(lines, "waiting")] == ["b", "c", "a"]
    assert [one.device for one in ordered(lines, "device")] == ["a", "b", "c"]
    assert len({sort.key for sort in SORTS.values()} | {"q", "r"}) == len(SORTS) + 2


def test_top_is_a_table_where_there_is_no_terminal(root: Path) -> None:
    said = ok(root, "top", "--limit", "3")
    assert said.splitlines()[0].startswith("DEVICE")
    assert len(said.splitlines()) == 4
    found = {one["device"]: one for one in told(root, "top", "--sort", "device")}
    assert found["kitchen"]["temperature_c"] == 51.5
    assert found["liar"]["power_w"] is None
    assert found["liar"]["notes"] == ["in quarantine"]


def test_the_screen_takes_keys_and_leaves_the_terminal_as_it_was(root: Path) -> None:
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeslm", "fleet", "top", "--every", "0.5", "--fleet-dir", str(root)],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "140", "LINES": "30"},
    )
    os.close(child)
    try:
        assert "by watts" in _screen_with(parent, "q quit")
        os.write(parent, b"t")
        assert "by temperature" in _screen_with(parent, "by temperature")
        os.write(parent, b"r")
        assert "reversed" in _screen_with(parent, "reversed")
        os.write(parent, b"q")
        _screen_with(parent, "\x1b[?1049l")
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(parent)


def _screen_with(terminal: int, text: str) -> str:
    """What the terminal shows until `text` is among it."""
    shown, deadline_s = "", time.monotonic() + WAIT_S
    while text not in shown:
        assert time.monotonic() < deadline_s, shown
        ready, _, _ = select.select([terminal], [], [], 1.0)
        if ready:
            shown += os.read(terminal, 65_536).decode("utf-8", "replace")
    return shown


# --- quarantine ---------------------------------------------------------------------------------------------


def test_who_is_in_quarantine_is_listed_everywhere_and_released_when_asked(tmp_path: Path) -> None:
    made = tmp_path / "green"
    fill(made, utc_now())
    assert "draws -1 W" in ok(made, "quarantine", "list")
    assert "quarantined" in ok(made, "list")
    assert "draws -1 W" in ok(made, "show", "liar")
    assert run(made, "quarantine", "release", "liar").exit_code == 2, "nobody confirmed it"
    ok(made, "quarantine", "release", "liar", "--dry-run")
    assert [one["device"] for one in told(made, "quarantine", "list")] == ["liar"]
    assert told(made, "quarantine", "release", "liar", "--yes") == {"released": ["liar"]}
    assert told(made, "quarantine", "list") == []
    assert told(made, "quarantine", "list", "--all")[0]["released_by"]
    assert run(made, "quarantine", "release", "liar", "--yes").exit_code == 1
    assert run(made, "quarantine", "release", "lair", "--yes").exit_code == 2
    assert [row["group"] for row in told(made, "metrics")["rows"]] == NAMES
    ok(made, "quarantine", "add", "attic", "--reason", "its meter fell off")
    assert told(made, "quarantine", "list")[0]["reason"] == "its meter fell off"


# --- budgets ------------------------------------------------------------------------------------------------


def test_the_report_says_who_keeps_to_a_budget(root: Path) -> None:
    rows = {row["device"]: row for row in told(root, "budget", "report")}
    assert (rows["kitchen"]["verdict"], rows["kitchen"]["origin"]) == ("kept", "device")
    assert rows["liar"]["verdict"] == "not believed"
    assert rows["kitchen"]["day_limit_j"] == 360_000
    assert [row["device"] for row in told(root, "budget", "report", "--broken")] == ["liar"]
    assert "A DAY TAKES" in ok(root, "budget", "report")


@pytest.mark.parametrize(
    "arguments",
    [
        ["set", "kitchen"],
        ["set", "--day", "20Wh"],
        ["set", "kitchen", "--day", "20"],
        ["set", "kitchen", "--day", "20Wh"],
        ["clear"],
    ],
    ids=" ".join,
)
def test_a_budget_that_means_nothing_or_cannot_be_kept_is_refused(root: Path, arguments: list[str]) -> None:
    assert run(root, "budget", *arguments, "--yes").exit_code == 2


class World:
    """A fleet with a broker, a release repository, and a device that has joined."""

    def __init__(self, rig: FleetRig) -> None:
        self.rig, self.root = rig, rig.fleet.root
        set_up(rig.fleet.releases, self.root / "keys", "green", lambda path: b"four words of mine")
        with rig.service():
            self.identity = rig.join("kitchen")

    def desired(self) -> Assignment:
        """What the broker keeps for the device."""
        topic = topics.device_topic("green", "kitchen", "desired")
        with Visitor(self.identity.broker_config(), "kitchen", [(topic, 1)]) as device:
            assert wait_for(lambda: bool(device.events.messages))
            return Assignment.model_validate(
                json.loads(device.events.messages[-1].payload)["signed"], strict=False
            )


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with fast_directory(), fleet_rig() as rig:
        yield World(rig)


@NEEDS_MOSQUITTO
def test_a_budget_is_signed_sent_shown_and_taken_back(world: World) -> None:
    root = world.root
    assert told(root, "budget", "show") == [{"device": "kitchen", "budget": None}]
    result = run(root, "budget", "set", "kitchen", "--day", "90Wh", "--dry-run")
    assert (result.exit_code, told(root, "budget", "show")[0]["budget"]) == (0, None)
    said = told(root, "budget", "set", "kitchen", "--day", "90Wh", "--sustained", "6W", "--yes")
    assert said["devices"] == ["kitchen"]
    kept = world.desired()
    assert kept.seq == said["seq"]["kitchen"]
    assert kept.budget is not None
    assert {one.name: round(one.limit_j) for one in parse_budget(kept.budget).windows} == {
        "day": 324_000,
        "sustained": 3600,
    }
    assert "day 90.00 Wh in 1 d, sustained 6.00 W in 10 min" in ok(root, "budget", "show")
    told(root, "budget", "clear", "kitchen", "--yes")
    assert world.desired().budget is None


@NEEDS_MOSQUITTO
def test_serve_collects_what_devices_report(world: World) -> None:
    process = subprocess.Popen(
        [
            sys.executable, "-m", "edgeslm", "fleet", "serve", "--no-releases", "--fleet-dir", str(world.root),
        ],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with Visitor(world.identity.broker_config(), "kitchen") as device:
            number = iter(range(10_000))

            def is_collected() -> bool:
                seq = next(number)
                for channel, said in (
                    ("m/power", power("kitchen", seq, utc_now())),
                    ("m/inference", inference("kitchen", seq, utc_now())),
                ):
                    device.publish(topics.device_topic("green", "kitchen", channel), codec.encode(said))  # type: ignore[arg-type]
                found = told(world.root, "top")
                return bool(found[0]["power_w"])

            assert wait_for(is_collected, WAIT_S)
    finally:
        process.terminate()
        assert process.wait(WAIT_S) == 0
    assert told(world.root, "metrics", "--by", "fleet")["rows"][0]["devices"] == 1
