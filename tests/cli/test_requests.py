"""Flags that say how to answer, and what `model run` makes of them."""

import json

import pytest
from click.testing import CliRunner

from edgeslm.cli.model import run
from edgeslm.cli.requests import parse_options, read_asked
from edgeslm.errors import UsageError
from edgeslm.schema.message import Options

COMMAND = "turn the kitchen lights to 40 percent"
SCHEMA = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["HassTurnOn", "HassLightSet"]},
        "area": {"type": "string"},
        "brightness": {"type": "integer", "maximum": 100},
    },
    "required": ["intent", "area", "brightness"],
    "additionalProperties": False,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_form_comes_from_a_file_or_the_command_line(tmp_path):
    schema, grammar = tmp_path / "schema.json", tmp_path / "form.lark"
    schema.write_text(json.dumps(SCHEMA))
    grammar.write_text('start: "a"+\n')
    assert parse_options({"json_schema": schema}) == Options(json_schema=SCHEMA)
    assert parse_options({"grammar": grammar}) == Options(grammar='start: "a"+\n')
    assert parse_options({"regex": "a+", "seed": None}) == Options(regex="a+")
    assert parse_options({"choices": "on, off,,very dim"}) == Options(choices=("on", "off", "very dim"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is no JSON"),
        (b"[1]", "holds no object"),
        (b"\xff", "cannot be read"),
        (b"[" * 100_000, "is no JSON"),
    ],
)
def test_a_file_without_a_schema_is_named(tmp_path, content, words):
    path = tmp_path / "schema.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        parse_options({"json_schema": path})


def test_forms_exclude_each_other_and_empty_choices_are_none():
    with pytest.raises(UsageError, match="contradict each other"):
        parse_options({"regex": "a", "choices": "a,b"})
    with pytest.raises(UsageError, match="choices"):
        parse_options({"choices": " , "})


def test_model_run_answers_in_the_form_of_a_schema(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    done = CliRunner().invoke(run, ["home-command", COMMAND, "--json-schema", str(path), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    result = json.loads(done.stdout)
    assert result["json"] == {"intent": "HassLightSet", "area": "Kitchen", "brightness": 40}
    assert result["finish_reason"] == "schema"


def test_model_run_tells_on_stderr_that_an_answer_was_completed(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    done = CliRunner().invoke(run, ["home-command", COMMAND, "--json-schema", str(path), "--max-tokens", "1"])
    assert json.loads(done.stdout).keys() == {"intent", "area", "brightness"}
    assert "[ended early: length, completed to its form]" in done.stderr


def test_a_form_that_cannot_be_followed_is_an_error_of_the_prompt():
    done = CliRunner().invoke(run, ["home-command", COMMAND, "--regex", "(a"])
    assert done.exit_code == 1
    assert "bad_request: the regular expression cannot be followed" in done.stderr


def test_lines_of_a_session_are_its_turns():
    lines = f"{COMMAND}\nturn off the lamp\n"
    found = CliRunner().invoke(run, ["home-command", "--batch", "--session", "s", "--json"], input=lines)
    receipts = [json.loads(line)["receipt"] for line in found.stdout.splitlines()]
    assert [(one["session"], one["session_turns"]) for one in receipts] == [("new", 0), ("continued", 1)]
    assert receipts[1]["cached_tokens"] > receipts[0]["prompt_tokens"]


def test_lines_that_go_together_are_one_request_with_one_receipt():
    lines = f"{COMMAND}\n\na <sep> b\nturn off the lamp\n"
    found = CliRunner().invoke(run, ["home-command", "--batch", "--together", "--json"], input=lines)
    assert found.exit_code == 1, found.stderr
    (result,) = [json.loads(line) for line in found.stdout.splitlines()]
    assert [output.get("json", {}).get("intent") for output in result["outputs"]] == [
        "HassLightSet",
        None,
        "HassTurnOff",
    ]
    assert result["outputs"][1]["error"]["code"] == "bad_request"
    plain = CliRunner().invoke(run, ["home-command", "--batch", "--together"], input=lines)
    assert len(plain.stdout.splitlines()) == 2
    assert "input 2: bad_request" in plain.stderr


def test_many_lines_are_as_many_requests_as_they_need():
    asked = list(read_asked("\n".join(["a"] * 130), batch=True, together=True, task=None, tensor_file=None))
    assert [len(fields["inputs"]) for fields in asked] == [64, 64, 2]
    long = "\n".join(["ü" * 20_000] * 12)
    asked = list(read_asked(long, batch=True, together=True, task="embed", tensor_file=None))
    assert [len(fields["inputs"]) for fields in asked] == [4, 4, 4]
    with pytest.raises(UsageError, match="--together goes with --batch"):
        list(read_asked("a", batch=False, together=True, task=None, tensor_file=None))


def test_a_list_of_arrays_is_a_batch(tmp_path):
    path = tmp_path / "windows.json"
    path.write_text('[{"x": [1]}, {"x": [2]}]')
    (fields,) = read_asked(None, batch=False, together=False, task=None, tensor_file=path)
    assert fields == {"task": "tensor", "inputs": [{"x": [1]}, {"x": [2]}]}
