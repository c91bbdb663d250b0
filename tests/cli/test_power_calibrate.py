"""``edgeslm power calibrate``, over a simulated board whose clock and load the tests move."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from edgeslm.cli.power import power
from edgeslm.cli.power_calibrate import BoardBench
from edgeslm.power.actuators import FrequencyCap
from edgeslm.power.boards import load_boards
from edgeslm.power.calibrating import Load, loads, visits
from edgeslm.power.calibration import read_calibration
from edgeslm.power.meters.model import Predictors, predict
from edgeslm.power.port import MeterFacts
from edgeslm.schema.board import Board
from edgeslm.schema.calibration import Calibration
from edgeslm.schema.scenario import Scenario
from edgeslm.sim.board_driver import SimBoard

FACTS = MeterFacts("meter", "measured", 0.1, 0.01, 0.0, averages=False, source="tests")


class SimBench:
    """``Bench`` over a simulated board."""

    def __init__(self, board: SimBoard, cores: int = 4) -> None:
        self.board = board
        self.cores = cores
        self.frequencies_mhz: tuple[int, ...] = ()
        self.held: list[Load] = []

    def clock(self) -> float:
        return self.board.clock()

    def pause(self, seconds: float) -> None:
        self.board.advance(seconds)

    def hold(self, load: Load) -> None:
        self.held.append(load)
        self.board.busy_cores = load.cores


def true_board(name: str, **figures: float) -> Board:
    """A unit of the board type `name` whose own figures differ from the table's."""
    board = load_boards()[name]
    return board.model_copy(update={"power": board.power.model_copy(update=figures), "thermal": None})


def simulated(tmp_path: Path, board: Board, *kinds: str, **more: Any) -> SimBoard:
    scenario = Scenario.model_validate(
        {
            "name": "test",
            "title": "test",
            "load": {"shape": "constant", "busy_cores": 0},
            "meters": [{"kind": kind, "gain_error": 0.0} for kind in kinds],
            **more,
        }
    )
    return SimBoard(board, scenario, tmp_path / "board", max_step_s=0.1)


@pytest.fixture
def pi4(tmp_path: Path) -> Iterator[SimBench]:
    with simulated(tmp_path, true_board("pi-4b", idle_w=3.3, core_load_w=1.2), "ina226") as board:
        yield SimBench(board)


@pytest.fixture
def pi5(tmp_path: Path) -> Iterator[SimBench]:
    with simulated(tmp_path, true_board("pi-5"), "ina226", "pmic") as board:
        yield SimBench(board)


def invoke(tmp_path: Path, bench: SimBench, board: str, *arguments: str, typed: str | None = None) -> Result:
    config = {
        "device": "test",
        "board": board,
        "state_dir": str(tmp_path / "state"),
        "power": {"root": str(tmp_path / "board"), "vcgencmd": [str(bench.board.vcgencmd)]},
    }
    path = tmp_path / "agent.yaml"
    path.write_text(yaml.safe_dump(config))
    return CliRunner().invoke(
        power,
        ["calibrate", "--config", str(path), *arguments],
        obj=bench,
        input=typed,
        catch_exceptions=False,
    )


def calibration_of(tmp_path: Path) -> Calibration:
    found = read_calibration(tmp_path / "state" / "calibration.yaml")
    assert found is not None
    return found


def test_the_model_learns_the_figures_of_this_very_board(tmp_path, pi4):
    done = invoke(tmp_path, pi4, "pi-4b", "--against", "ina226", "--yes")
    assert done.exit_code == 0, done.output
    model = calibration_of(tmp_path).model
    assert model is not None
    assert model.idle_w == pytest.approx(3.3, rel=0.03)
    assert model.core_load_w == pytest.approx(1.2, rel=0.05)
    assert (model.against, model.against_class) == ("hwmon:ina226@1-0040", "measured")
    assert "4 cores busy" in done.stdout
    assert "of 10: idle" in done.stderr


def test_the_board_is_loaded_from_idle_to_all_cores_and_back(tmp_path, pi4):
    invoke(tmp_path, pi4, "pi-4b", "--against", "ina226", "--yes")
    assert [load.cores for load in pi4.held] == [0, 1, 2, 3, 4, 4, 3, 2, 1, 0]


def test_the_power_chip_is_calibrated_where_there_is_one_and_the_result_is_right(tmp_path, pi5):
    done = invoke(tmp_path, pi5, "pi-5", "--against", "hwmon", "--yes", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["meter"] == "pmic"
    line = calibration_of(tmp_path).line("pmic")
    assert line is not None
    # The simulated chip is made by the published line, so that is what has to come out.
    assert (line.scale, line.offset_w) == (pytest.approx(1.1451, rel=0.05), pytest.approx(0.5879, abs=0.3))
    assert all(abs(one["true_w"] - one["fitted_w"]) < 0.2 for one in report["residuals"])


def test_a_person_types_what_a_wattmeter_shows(tmp_path, pi4):
    asked = visits(loads(4), 1)
    typed = "".join(f"{3.3 + 1.2 * load.cores:.1f}\n" for load in asked)
    done = invoke(tmp_path, pi4, "pi-4b", "--manual", typed=typed + "y\n")
    assert done.exit_code == 0, done.output
    model = calibration_of(tmp_path).model
    assert model is not None
    assert (model.against, model.pairs) == ("wattmeter", len(asked))
    assert model.core_load_w == pytest.approx(1.2, rel=0.1)
    assert len(asked) >= 20


def test_nothing_is_written_unless_the_person_agrees(tmp_path, pi4):
    done = invoke(tmp_path, pi4, "pi-4b", "--against", "ina226", typed="n\n")
    assert done.exit_code == 2
    assert "nothing was written" in done.stderr
    assert not (tmp_path / "state" / "calibration.yaml").exists()


def test_a_load_that_hardly_changes_is_refused_and_the_file_stays(tmp_path, pi4):
    class Lazy(SimBench):
        def hold(self, load: Load) -> None:
            pass

    done = invoke(tmp_path, Lazy(pi4.board), "pi-4b", "--against", "ina226", "--yes")
    assert done.exit_code == 1
    assert "the load hardly changed" in done.stderr
    assert not (tmp_path / "state").exists()


def test_an_instrument_that_falls_silent_is_named(tmp_path):
    faults = [{"meter": "ina226", "fault": "gone", "at_s": 30, "for_s": 10_000}]
    with simulated(tmp_path, true_board("pi-4b"), "ina226", faults=faults) as board:
        done = invoke(tmp_path, SimBench(board), "pi-4b", "--against", "ina226", "--yes")
    assert done.exit_code == 1
    assert "hwmon:ina226@1-0040" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--against METER, or --manual"),
        (("--against", "ina226", "--manual"), "--against METER, or --manual"),
        (("--against", "plug"), "no meter is called 'plug'"),
        (("--against", "hwmon", "--meter", "rapl"), "no meter 'rapl'"),
    ],
)
def test_what_cannot_work_is_refused_before_any_load(tmp_path, pi4, arguments, words):
    done = invoke(tmp_path, pi4, "pi-4b", *arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert pi4.held == []


def test_nothing_is_calibrated_against_itself(tmp_path, pi5):
    done = invoke(tmp_path, pi5, "pi-5", "--against", "pmic", "--meter", "pmic")
    assert done.exit_code == 2
    assert "against itself" in done.stderr


def test_what_the_fit_says_is_what_the_model_will_say(tmp_path, pi4):
    invoke(tmp_path, pi4, "pi-4b", "--against", "ina226", "--yes")
    model = calibration_of(tmp_path).model
    assert model is not None
    table = load_boards()["pi-4b"].power.model_copy(
        update=model.model_dump(include={"idle_w", "core_load_w"})
    )
    assert predict(table, Predictors(busy_cores=2.0)) == pytest.approx(3.3 + 2.4, rel=0.04)


def test_the_board_spins_as_many_cores_as_it_is_told_to_and_rests_again(tmp_path):
    bench = BoardBench(FrequencyCap(tmp_path / "frequency.json", tmp_path))
    bench.hold(Load(2))
    pids = bench._spinners.pids
    try:
        assert len(pids) == 2
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    finally:
        bench.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert bench.cores == len(os.sched_getaffinity(0))
