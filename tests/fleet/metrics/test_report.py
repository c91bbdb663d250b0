"""Figures of devices, groups, boards and models, and before and after."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.fleet_metrics_load import FLEET, add_devices, inference, power, system
from edgeslm import codec, topics
from edgeslm.errors import UsageError
from edgeslm.fleet.groups import create_group
from edgeslm.fleet.metrics.figures import FIGURES, combined
from edgeslm.fleet.metrics.intake import Intake
from edgeslm.fleet.metrics.query import events, newest, period, points
from edgeslm.fleet.metrics.report import By, ChangeReport, FiguresReport, compare_around, make_report
from edgeslm.fleet.metrics.store import MetricsStore
from edgeslm.fleet.quarantine import quarantine
from edgeslm.fleet.selection import select
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.power.boards import load_boards
from edgeslm.schema.fleet_metrics import MetricsSettings

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
BEGAN = NOW - timedelta(hours=6)
TURN = NOW - timedelta(hours=3)
NAMES = ["attic", "cellar", "garage", "kitchen"]
KEEP = MetricsSettings()
OLD, NEW = "home-command@1.0.0", "home-command@1.1.0"


class World:
    """Six hours of four devices, which changed to a release that takes a quarter more and is as fast, after three."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(sqlite_url(directory / "fleet.db"))
        self.metrics = MetricsStore(sqlite_url(directory / "metrics.db"))
        add_devices(self.store, NAMES[:2], NOW)
        add_devices(self.store, NAMES[2:], NOW, board="pi-5")
        self.intake = Intake(self.store, self.metrics, load_boards(), KEEP)
        chance = random.Random(1)
        work: list[tuple[str, bytes]] = []
        for minute in range(1, 361):
            at = BEGAN + timedelta(minutes=minute)
            is_new = at > TURN
            for place, name in enumerate(NAMES):
                said = inference(
                    name, minute, at, model=NEW if is_new else OLD, tps=20 + 5 * place + chance.random()
                )
                model = said.models[0]
                cost = 1.25 if is_new else 1.0
                model = model.model_copy(
                    update={"energy_j": model.energy_j * cost, "net_j": model.net_j * cost}
                )
                mean_w = 3.0 + place + 0.2 * chance.random()
                for channel, one in (
                    ("m/power", power(name, minute, at, mean_w=mean_w)),
                    ("m/inference", said.model_copy(update={"models": (model,)})),
                    ("m/system", system(name, minute, at, temperature_c=50.0 + place)),
                ):
                    work.append((topics.device_topic(FLEET, name, channel), codec.encode(one)))  # type: ignore[arg-type]
        for at in range(0, len(work), 600):
            self.intake.take(work[at : at + 600], NOW)
        self.metrics.roll_up()

    def report(self, by: By = "device", *names: str, **values: Any) -> FiguresReport:
        asked = {"since_s": BEGAN.timestamp(), "until_s": NOW.timestamp(), **values}
        with self.store.read() as session:
            return make_report(
                session,
                self.metrics,
                select(session),
                by=by,
                figures=[FIGURES[name] for name in names or ("power", "energy", "tps", "temperature")],
                settings=KEEP,
                now=NOW,
                **asked,
            )

    def changes(self, moment: Any, *names: str, devices: list[str] | None = None) -> ChangeReport:
        with self.store.read() as session:
            return compare_around(
                session,
                self.metrics,
                select(session, devices=devices or ()),
                moment=moment,
                figures=[FIGURES[name] for name in names],
                window_s=3 * 3600.0,
                settings=KEEP,
                now=NOW,
            )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("report"))
    yield world
    world.metrics.close()
    world.store.close()


# --- over a time --------------------------------------------------------------------------------------------


def test_each_device_has_its_own_figures_and_the_whole_is_their_sum(made: World) -> None:
    found = made.report()
    assert [row.group for row in found.rows] == NAMES
    for place, row in enumerate(found.rows):
        assert row.figures["power"] == pytest.approx(3.1 + place, abs=0.05)
        assert row.figures["temperature"] == pytest.approx(50.0 + place)
    assert found.whole is not None
    assert found.whole.figures["energy"] == pytest.approx(sum(row.figures["energy"] for row in found.rows))
    assert found.whole.figures["power"] == pytest.approx(4.6, abs=0.05)
    assert found.silent == ()


def test_boards_and_groups_count_their_devices_and_one_in_several_groups_counts_in_each(made: World) -> None:
    with made.store.write() as session:
        create_group(session, "low", query=None, devices=["cellar"], actor="me", now=NOW)
        create_group(session, "dark", query=None, devices=["attic", "cellar"], actor="me", now=NOW)
    boards = {row.group: row.devices for row in made.report("board").rows}
    assert boards == {"pi-4b": 2, "pi-5": 2}
    groups = made.report("group")
    assert {row.group: row.devices for row in groups.rows} == {"(no group)": 2, "dark": 2, "low": 1}
    assert groups.whole is not None
    assert groups.whole.devices == 4


def test_models_are_told_apart_by_version(made: World) -> None:
    found = {row.group: row.figures for row in made.report("model", "j-prompt", "prompts").rows}
    assert sorted(found) == [OLD, NEW]
    assert found[NEW]["j-prompt"] == pytest.approx(1.25 * found[OLD]["j-prompt"])
    assert found[OLD]["prompts"] == 4 * 180 * 3


def test_steps_of_time_add_up_to_the_whole(made: World) -> None:
    steps = made.report("fleet", "energy", step_s=3600)
    assert [row.start for row in steps.rows] == [BEGAN + timedelta(hours=hour) for hour in range(6)]
    whole = made.report("fleet", "energy").rows[0].figures["energy"]
    assert sum(row.figures["energy"] for row in steps.rows) == pytest.approx(whole)


def test_a_long_time_of_many_devices_is_read_from_hours() -> None:
    def width(days: float, devices: int, step_s: float | None = None) -> str:
        now_s = NOW.timestamp()
        found = period(
            now_s - days * 86_400, now_s, devices=devices, settings=KEEP, now_s=now_s, step_s=step_s
        )
        return found.width

    assert width(1, 1) == "minute"
    assert width(1, 1000) == "hour"
    assert width(1, 1000, 600) == "minute"
    assert width(40, 1) == "hour"
    assert width(40, 1, 600) == "hour"


def test_nothing_of_a_device_in_quarantine_is_in_any_sum(made: World, tmp_path: Path) -> None:
    world = World(tmp_path)
    with world.store.write() as session:
        quarantine(session, "kitchen", "draws -1 W", NOW)
    found = world.report()
    assert found.left_out == {"kitchen": "draws -1 W"}
    assert [row.group for row in found.rows] == NAMES[:3]
    assert world.report("board").rows[-1].devices == 1
    compared = world.changes(NEW, "j-prompt")
    assert "kitchen" not in compared.compared
    assert "quarantine" in compared.left_out["kitchen"]
    world.metrics.close()
    world.store.close()


def test_devices_that_reported_nothing_are_named(made: World) -> None:
    found = made.report(since_s=NOW.timestamp() + 60, until_s=NOW.timestamp() + 120)
    assert (found.silent, found.rows) == (tuple(NAMES), ())


def test_the_newest_reports_and_single_points_of_a_device_can_be_had(made: World) -> None:
    found = newest(made.metrics, {1, 2, 99})
    assert sorted(found) == [1, 2]
    assert found[1].power is not None
    assert found[1].inference is not None
    assert found[1].system is not None
    assert found[1].at_ms == NOW.timestamp() * 1000
    last = points(made.metrics, 1, NOW.timestamp() - 120, NOW.timestamp() + 1)
    assert len(last) == 18
    assert events(made.metrics, {1}, 0.0, "throttled") == {}


def test_a_figure_of_nothing_is_missing_rather_than_zero() -> None:
    assert all(figure.value({}) is None for figure in FIGURES.values())
    assert combined([{"power.max_w": 1.0}, {}, {"power.max_w": 3.0, "power.min_w": 0.5}]) == {
        "power.max_w": 3.0,
        "power.min_w": 0.5,
    }


# --- before and after ---------------------------------------------------------------------------------------


def test_a_release_is_compared_with_what_was_before_it_on_each_device(made: World) -> None:
    found = made.changes(NEW, "j-prompt", "tps")
    cost, speed = found.rows
    assert found.compared == tuple(NAMES)
    assert (cost.verdict, cost.count, cost.basis) == ("worse", 4, "devices")
    assert cost.change == pytest.approx(0.25, abs=0.01)
    assert speed.verdict == "no difference shown"
    assert speed.low is not None
    assert speed.low < 0 < (speed.high or 0)


def test_a_moment_does_as_well_and_one_device_is_enough(made: World) -> None:
    found = made.changes(TURN, "j-prompt", devices=["attic"])
    (cost,) = found.rows
    assert (cost.verdict, cost.basis) == ("worse", "time")
    each = made.changes({"attic": TURN, "cellar": TURN}, "j-prompt")
    assert each.compared == ("attic", "cellar")
    assert each.left_out["kitchen"] == "has no moment"


def test_devices_without_enough_on_both_sides_are_left_out_and_named(made: World) -> None:
    found = made.changes(BEGAN, "power")
    assert found.compared == ()
    assert found.rows[0].verdict == "too little data"
    assert set(found.left_out) == set(NAMES)
    never = made.changes("home-command@9.9.9", "power")
    assert set(never.left_out.values()) == {"never told of home-command@9.9.9"}


def test_what_grows_with_time_is_not_compared(made: World) -> None:
    with pytest.raises(UsageError, match="energy grows"):
        made.changes(TURN, "energy")
