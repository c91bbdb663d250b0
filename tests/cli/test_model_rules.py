"""Packages with rules from the command line: packed, shown, checked, and read together with a device's own."""

from __future__ import annotations

import json
import zipfile
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeslm.agent.rules.brought import BroughtRules
from edgeslm.agent.rules.runner import RuleRunner
from edgeslm.agent.rules.trace import TRACE_NAME, TraceStore
from edgeslm.cli.main import cli
from edgeslm.models.store import ModelStore

GOOD = """allow: [home/fan/set]
inputs:
  humidity: {topic: sensors/bathroom, path: humidity}
rules:
  - {name: fan-on, when: humidity > 65, then: [{publish: {topic: home/fan/set, payload: "ON"}}]}
"""


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result.stderr if code else result.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The model that ships, unpacked, with a place for rules."""
    directory = tmp_path / "home"
    with zipfile.ZipFile(str(resources.files("edgeslm._packages") / "home-command.slm")) as archive:
        archive.extractall(directory)
    draft = json.loads((directory / "manifest.json").read_text())
    del draft["files"]
    (directory / "manifest.json").write_text(json.dumps(draft))
    (directory / "rules").mkdir()
    (directory / "rules" / "bathroom.yaml").write_text(GOOD)
    return directory


def test_a_directory_with_rules_becomes_a_package_that_shows_and_proves_them(
    source: Path, tmp_path: Path
) -> None:
    made = tmp_path / "home.slm"
    found = json.loads(run("model", "pack", source, "--out", made, "--json"))
    assert found["rules"] == ["rules.bathroom.yaml"]
    assert "rules    rules.bathroom.yaml" in run("model", "info", made)
    assert "1 rules in it are well formed" in run("model", "verify", made, "--no-run")


def test_other_rules_can_be_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.yaml").write_text(GOOD)
    found = json.loads(
        run("model", "pack", source, "--rules", tmp_path / "mine", "--out", tmp_path / "m.slm", "--json")
    )
    assert found["rules"] == ["rules.a.yaml"]


def test_rules_with_a_fault_are_not_packed(source: Path, tmp_path: Path) -> None:
    (source / "rules" / "bathroom.yaml").write_text(GOOD.replace("humidity > 65", "humidty > 65"))
    told = run("model", "pack", source, "--out", tmp_path / "home.slm", code=2)
    assert "bathroom.yaml, line 5, rules.0.when" in told
    assert "Did you mean 'humidity'?" in told
    assert not (tmp_path / "home.slm").exists()


def test_a_package_is_checked_beside_files_as_on_a_device(source: Path, tmp_path: Path) -> None:
    made = tmp_path / "home.slm"
    run("model", "pack", source, "--out", made)
    own = tmp_path / "own.yaml"
    own.write_text(GOOD.replace("> 65", "> 80"))
    found = json.loads(run("rules", "check", made, "--json"))
    assert [(rule["name"], rule["file"], rule["origin"]) for rule in found["rules"]] == [
        ("fan-on", "home-command/rules.bathroom.yaml", "home-command@1.0.0")
    ]
    found = json.loads(run("rules", "check", own, made, "--json"))
    assert [rule["origin"] for rule in found["rules"]] == [None]
    assert [(item["name"], item["by"]) for item in found["overridden"]] == [("fan-on", str(own))]
    assert "not in use: fan-on of home-command@1.0.0" in run("rules", "check", own, made)


def test_rules_of_a_package_can_be_tried(source: Path, tmp_path: Path) -> None:
    run("model", "pack", source, "--out", tmp_path / "home.slm")
    message = 'sensors/bathroom={"humidity": 70}'
    fired = json.loads(run("rules", "test", tmp_path / "home.slm", "--message", message, "--json"))
    assert fired["actions"][0]["to"] == "home/fan/set"


def test_the_status_tells_where_each_rule_comes_from(source: Path, tmp_path: Path) -> None:
    run("model", "pack", source, "--out", tmp_path / "home.slm")
    own = tmp_path / "own.yaml"
    own.write_text(GOOD + GOOD.split("rules:\n")[1].replace("fan-on", "other"))
    brought = BroughtRules([own])
    brought.use({"home-command": ModelStore(tmp_path / "store").install(tmp_path / "home.slm")})
    (tmp_path / "state").mkdir()
    store = TraceStore(tmp_path / "state" / TRACE_NAME)
    runner = RuleRunner([], store, lambda kind, detail, figures: None, brought=brought)
    runner.stop()
    told = run("rules", "status", "--state-dir", tmp_path / "state")
    assert "fan-on  home-command@1.0.0" in told
    store = TraceStore(tmp_path / "state" / TRACE_NAME)
    runner = RuleRunner([own], store, lambda kind, detail, figures: None, brought=brought)
    runner.stop()
    told = run("rules", "status", "--state-dir", tmp_path / "state")
    assert "home-command@1.0.0" in told
    assert "not in use: fan-on of home-command@1.0.0" in told
    assert "FROM" not in told, "all that run are the device's own"
