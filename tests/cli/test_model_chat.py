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


def test_messages_come_from_a_file_standard_input_or_the_line(source: Path, tmp_path: Path) -> None:
    made = tmp_path / "home.slm"
    run("model", "pack", source, "--out", made)
    said = [
        {"role": "user", "content": "turn on the fan"},
        {"role": "assistant", "content": "it is on"},
        {"role": "user", "content": "turn it off"},
    ]
    (tmp_path / "said.json").write_text(json.dumps(said))
    alone = json.loads(run("model", "run", made, "--json", "turn it off"))
    for given in (json.dumps(said), tmp_path / "said.json"):
        found = json.loads(run("model", "run", made, "--json", "--messages", given))
        assert found["receipt"]["prompt_tokens"] > alone["receipt"]["prompt_tokens"]
    piped = CliRunner().invoke(
        cli, ["model", "run", str(made), "--json", "--messages", "-"], input=json.dumps(said)
    )
    assert json.loads(piped.stdout)["text"] == found["text"]
    # The packages that ship have no chat template.
    told = run("model", "run", "home-command", "--messages", json.dumps(said), code=1)
    assert "bad_request: home-command@" in told
    assert "has no form for messages" in told


def test_messages_that_are_none_are_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "object.json").write_text("{}")
    for given, told in (
        ("[", "--messages is no JSON"),
        ("[]", "messages"),
        ('[{"role": "assistant", "content": "x"}]', "expected is one of the user"),
        (tmp_path / "object.json", "holds no list of messages"),
        (tmp_path / "missing.json", "cannot be read"),
    ):
        assert told in run("model", "run", "home-command", "--messages", given, code=2)
    assert "takes the place" in run("model", "run", "home-command", "on", "--messages", "[]", code=2)


def test_a_template_without_an_end_is_not_packed(source: Path, tmp_path: Path) -> None:
    (source / "chat_template.jinja").write_text("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")
    told = run("model", "pack", source, "--out", tmp_path / "home.slm", code=4)
    assert "chat template: it calls itself without end" in told
    assert not (tmp_path / "home.slm").exists()
