"""``edgeslm board`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgeslm.cli.main import cli
from edgeslm.power import detection
from edgeslm.power.boards import load_boards
from edgeslm.power.detection import Machine
from edgeslm.schema.board import Board

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "boards.md").read_text("utf-8")
OLD_PI = Machine(
    arch="aarch64",
    model="Raspberry Pi 4 Model B Rev 1.4\x1b[31m",
    compatible=("raspberrypi,4-model-b", "brcm,bcm2711"),
    cores=4,
    cpu_features=frozenset({"fp", "asimd", "evtstrm", "crc32", "cpuid"}),
    ram_mb=3791,
    max_mhz=1800,
)


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["board", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output if code else result.stdout


@pytest.fixture
def old_pi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "read_machine", lambda: OLD_PI)


def test_list_has_every_board_with_what_helps_to_choose():
    rows = {line.split()[0]: line for line in run("list").splitlines()[1:]}
    assert set(rows) == set(load_boards())
    assert "4 A76 2.4 GHz" in rows["pi-5"]
    assert "1/2/4/8/16 GB" in rows["pi-5"]
    assert rows["pi-5"].split()[-1] == "pmic"
    found = {row["name"]: row for row in json.loads(run("list", "--json"))["boards"]}
    assert set(found) == set(rows)
    assert found["pi-4b"]["all_cores_w"] == pytest.approx(2.7 + 4 * 0.93)


def test_the_guide_shows_the_list_as_it_is():
    assert run("list").strip() in GUIDE


@pytest.mark.parametrize("name", load_boards())
def test_show_prints_every_part_with_its_source_and_the_same_as_json(name):
    board = load_boards()[name]
    shown = " ".join(run("show", name).split())
    parts = (board.power, board.thermal, board.boot, board.ports, board.supply, *board.meters)
    sources = [part.source for part in parts if part is not None]
    for text in (board.title, board.soc, *sources, *board.sources, *board.recognised_by):
        assert " ".join(text.split()) in shown
    said = json.loads(run("show", name, "--json"))
    said.pop("all_cores_w")
    assert Board.model_validate({"cores": None, **said}) == board


def test_show_of_an_unknown_name_says_which_was_meant():
    assert "Did you mean 'pi-4b'?" in run("show", "pi4b", code=2)


def test_detect_says_why_and_what_differs_and_no_text_steers_the_terminal(old_pi):
    said = run("detect")
    assert said.startswith("pi-4b: Raspberry Pi 4 Model B\n")
    assert "\x1b" not in said
    assert "3,791 MB of the 4 GB variant" in said
    assert "runs at up to 1800 MHz" in " ".join(said.split())
    found: dict[str, Any] = json.loads(run("detect", "--json"))
    assert (found["board"], found["by"], found["matched"]) == ("pi-4b", "model", "Raspberry Pi 4 Model B")
    assert found["ram_variant_mb"] == 4096
    assert len(found["differences"]) == 1
    assert found["machine"]["cores"] == 4


def test_detect_says_something_of_the_machine_that_runs_the_tests():
    found = json.loads(run("detect", "--json"))
    assert found["board"] in load_boards()
    assert run("detect").startswith(f"{found['board']}: ")


def test_boards_of_ones_own_are_listed_shown_and_detected(old_pi, tmp_path):
    text = (ROOT / "devices" / "pi-4b.yaml").read_text("utf-8")
    text = text.replace("name: pi-4b", "name: old-pi").replace('Model B"]', 'Model B Rev 1.4"]', 1)
    (tmp_path / "old-pi.yaml").write_text(text)
    assert "old-pi" in run("list", "--devices-dir", tmp_path)
    assert "(old-pi)" in run("show", "old-pi", "--devices-dir", tmp_path)
    found = json.loads(run("detect", "--json", "--devices-dir", tmp_path))
    assert (found["board"], found["others"]) == ("old-pi", ["pi-4b"])


@pytest.mark.parametrize("command", [("list",), ("show", "pi-4b"), ("detect",)])
def test_a_wrong_file_is_exit_code_2_with_file_line_key_and_nearest_name(command, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntitel: Mine\n")
    said = run(*command, "--devices-dir", tmp_path, code=2)
    assert f"{path}, line 2, titel: unknown key; expected: arch, " in said
    assert "Did you mean 'title'?" in said


def test_the_tab_key_completes_names_and_keeps_still_about_wrong_files(tmp_path):
    def completed(words: str) -> list[str]:
        environment = {"_EDGESLM_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "3"}
        result = CliRunner().invoke(cli, [], prog_name="edgeslm", env=environment)
        return [line.partition(",")[2] for line in result.output.splitlines()]

    assert completed("edgeslm board show pi-5") == ["pi-5", "pi-500"]
