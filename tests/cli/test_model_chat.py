"""Packages with a chat template from the command line: packed, shown and checked."""

from __future__ import annotations

import json
import zipfile
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeslm.cli.main import cli

SHAPE = "{{ bos_token }}{% for m in messages %}{{ m.content }}<sep>{% endfor %}"


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result.stderr if code else result.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The model that ships, unpacked, with a chat template in place of a prefix and a suffix."""
    directory = tmp_path / "home"
    with zipfile.ZipFile(str(resources.files("edgeslm._packages") / "home-command.slm")) as archive:
        archive.extractall(directory)
    draft = json.loads((directory / "manifest.json").read_text())
    del draft["files"]
    draft["prompt"] = {"lower": True, "collapse_whitespace": True}
    draft["chat_template"] = {"file": "chat_template.jinja", "bos_token": "<s>"}
    (directory / "manifest.json").write_text(json.dumps(draft))
    (directory / "chat_template.jinja").write_text(SHAPE)
    return directory


def test_a_package_with_a_chat_template_is_packed_shown_and_proved(source: Path, tmp_path: Path) -> None:
    made = tmp_path / "home.slm"
    found = json.loads(run("model", "pack", source, "--out", made, "--json"))
    assert found["chat_template"]["file"] == "chat_template.jinja"
    assert "chat     prompts are put into a conversation by chat_template.jinja" in run("model", "info", made)
    report = json.loads(run("model", "verify", made, "--json"))
    assert {"chat template"} == {
        member["role"] for member in report["members"] if member["name"] == "chat_template.jinja"
    }
    answer = json.loads(run("model", "run", made, "--json", "turn on the <sep> lights"))
    assert answer["finish_reason"] == "stop"


def test_a_template_without_an_end_is_not_packed(source: Path, tmp_path: Path) -> None:
    (source / "chat_template.jinja").write_text("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")
    told = run("model", "pack", source, "--out", tmp_path / "home.slm", code=4)
    assert "chat template: it calls itself without end" in told
    assert not (tmp_path / "home.slm").exists()
