"""Prompts whose answers have a form, over the wire, answered by the package that ships."""

import json

import pytest

from edgeslm.cli.wiring import open_model

COMMAND = "turn the kitchen lights to 40 percent"
SCHEMA = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["HassTurnOn", "HassTurnOff", "HassLightSet"]},
        "area": {"type": "string"},
        "brightness": {"type": "integer", "minimum": 0, "maximum": 100},
    },
    "required": ["intent", "area", "brightness"],
    "additionalProperties": False,
}
DATA = {"intent": "HassLightSet", "area": "Kitchen", "brightness": 40}


@pytest.fixture(scope="module")
def home_command(tmp_path_factory):
    return open_model("home-command", threads=1, store_dir=tmp_path_factory.mktemp("store"))


@pytest.fixture
def asked(world, home_command):
    world.model = home_command
    world.start()

    def ask(request_id, **fields):
        world.client.ask({"id": request_id, "prompt": COMMAND, **fields})
        return world.client.result(request_id, 30)

    return ask


def test_a_schema_comes_back_as_json_beside_the_options_or_in_them(asked):
    for number, fields in enumerate(({"json_schema": SCHEMA}, {"options": {"json_schema": SCHEMA}})):
        result = asked(f"q-{number}", **fields)
        assert result["json"] == DATA
        assert json.loads(result["text"]) == DATA
        assert result["finish_reason"] == "schema"
        assert "closed" not in result


def test_json_need_not_be_an_object(asked):
    schema = {"type": "array", "items": {"enum": ["on", None]}, "minItems": 2, "maxItems": 2}
    result = asked("list", json_schema=schema)
    assert result["json"] == json.loads(result["text"])
    assert set(result["json"]) <= {"on", None}
    assert len(result["json"]) == 2


def test_a_cut_answer_says_whether_it_has_its_form(asked):
    result = asked("short", json_schema=SCHEMA, max_tokens=1)
    assert (result["finish_reason"], result["closed"]) == ("length", True)
    assert result["json"].keys() == DATA.keys()
    assert result["receipt"]["completion_tokens"] == 1


def test_pieces_of_a_stream_join_to_the_answer(world, asked):
    result = asked("flow", json_schema=SCHEMA, stream=True)
    pieces = [json.loads(m.payload) for m in world.client.kept if m.topic.endswith("/stream/flow")]
    assert "".join(piece["text"] for piece in pieces) == result["text"]


def test_choices_and_expressions_come_back_as_text(asked):
    assert asked("c", choices=["yes", "no"])["text"] in {"yes", "no"}
    assert asked("r", regex="[a-z]{4}")["finish_reason"] == "schema"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"json_schema": {"type": "integer", "minimum": 2, "maximum": 1}}, "the schema cannot be followed"),
        ({"json_schema": {"$ref": "#"}}, "no answer has the form"),
        ({"json_schema": {}, "regex": "a"}, "contradict each other"),
        ({"regex": "(a"}, "the regular expression cannot be followed"),
        ({"session": "a/b"}, "session"),
    ],
)
def test_a_form_that_cannot_be_had_is_an_error_and_the_next_prompt_is_answered(asked, fields, words):
    error = asked("bad", **fields)["error"]
    assert error["code"] == "bad_request"
    assert words in error["message"]
    assert asked("good", json_schema=SCHEMA)["json"] == DATA


def test_the_same_id_with_another_form_is_not_answered_with_the_first(world, asked):
    assert asked("same", choices=["yes", "no"])["text"]
    assert asked("same", choices=["yes", "no"])["text"]
    assert "another form" in asked("same", choices=["left", "right"])["error"]["message"]


def test_a_simulated_model_does_not_pretend(world):
    world.start()
    world.client.ask({"id": "e", "prompt": "hello", "json_schema": SCHEMA})
    assert "not supported by a simulated model" in world.client.result("e")["error"]["message"]
