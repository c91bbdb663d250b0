"""What cannot be answered is refused by name and at once, and the loaded model answers on as before."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from edgeslm.errors import BadRequestError, ConstraintError, ConstraintMissingError, TooLargeError
from edgeslm.runtime.generation import GenerationSettings, generate
from edgeslm.runtime.model import LoadedModel
from edgeslm.schema.message import Options

AT_ONCE_S = 0.1
COMMAND = "turn on the kitchen light"
LOOP = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}


def ask(prompt: str, **options: Any) -> Callable[[LoadedModel], object]:
    return lambda model: model.answer(prompt, Options(**options))


def say_token(token: int) -> Callable[[LoadedModel], object]:
    settings = GenerationSettings(max_tokens=4, stop_tokens=frozenset())
    return lambda model: generate(model.engine, model.tokenizer, [1, token], settings)


BAD: dict[str, tuple[Callable[[LoadedModel], object], type[Exception], str]] = {
    "nothing": (ask(""), BadRequestError, "empty prompt"),
    "white space": (ask(" \n"), BadRequestError, "empty prompt"),
    "a megabyte": (ask("turn on " * 131_072), TooLargeError, "1048576 characters"),
    "what a message holds": (ask("\u4e00 \xe9q" * 8_000), TooLargeError, "32000 characters"),
    "half a character": (ask("lone \ud800"), BadRequestError, "not Unicode"),
    "a token that is none": (say_token(10**6), BadRequestError, "token id 1000000 is none"),
    "a token below none": (say_token(-1), BadRequestError, "token id -1 is none"),
    "two forms": (ask(COMMAND, json_schema={}, regex="a"), ValidationError, "contradict each other"),
    "a minimum above the maximum": (
        ask(COMMAND, json_schema={"type": "integer", "minimum": 5, "maximum": 3}),
        ConstraintError,
        "Unsatisfiable",
    ),
    "two types at once": (
        ask(COMMAND, json_schema={"allOf": [{"type": "string"}, {"type": "integer"}]}),
        ConstraintError,
        "Unsatisfiable",
    ),
    "a schema that is itself": (ask(COMMAND, json_schema=LOOP), ConstraintError, "no answer has the form"),
    "no character at all": (ask(COMMAND, regex=r"[^\s\S]"), ConstraintError, "no answer has the form"),
    "repeated a hundred million times": (
        ask(COMMAND, regex="((((a{1,99}){1,99}){1,99}){1,99})"),
        ConstraintError,
        "too many expressions",
    ),
    "states without number": (ask(COMMAND, regex="(a?){500}a{500}"), ConstraintError, "cannot be followed"),
    "a grammar without an end": (ask(COMMAND, grammar="start: nope"), ConstraintError, "unknown name"),
}


def assert_refused_at_once(
    model: LoadedModel, what: Callable[[LoadedModel], object], error: type[Exception], words: str
) -> None:
    taken_s = []
    for _ in range(3):  # the machine may be busy with something else
        started_s = time.perf_counter()
        with pytest.raises(error, match=words):
            what(model)
        taken_s.append(time.perf_counter() - started_s)
    assert min(taken_s) < AT_ONCE_S
    answer = model.answer(COMMAND, Options())
    assert answer.data is not None
    assert answer.data["area"] == "Kitchen"


@pytest.mark.parametrize("name", BAD)
def test_it_is_refused_by_name_and_at_once_and_the_model_is_unharmed(model, name):
    assert_refused_at_once(model, *BAD[name])


def test_a_form_where_nothing_can_hold_answers_to_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert_refused_at_once(model, ask(COMMAND, regex="ab+"), ConstraintMissingError, "not supported on this")
