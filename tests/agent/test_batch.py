"""Several inputs in one request: each is answered for itself, and what is wrong with one is told in its place."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgeslm.agent.batch import answer_inputs, count_tokens
from edgeslm.cli import wiring
from edgeslm.errors import CancelledError, DeadlineError, InferenceError
from edgeslm.runtime.model import LoadedModel, load_model
from edgeslm.schema.message import MAX_INPUTS, Options, PromptRequest
from edgeslm.sim.model import EchoModel

from .test_tasks import House

COMMANDS = ["turn on the lamp", "turn off the kitchen lights"]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    agent = made.start()
    yield made
    agent.stop()
    made.client.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    directory = tmp_path_factory.mktemp("store")
    return load_model(wiring.install_package("builtin:home-command", directory))


def batch(*inputs: Any, **fields: Any) -> PromptRequest:
    return PromptRequest.model_validate({"id": "a", "inputs": list(inputs), **fields})


def test_each_text_is_answered_and_the_receipt_is_of_all(house: House) -> None:
    house.client.ask({"id": "a", "inputs": ["one two", "three"], "max_tokens": 5})
    result = house.client.result("a")
    assert [output["text"] for output in result["outputs"]] == ["one two", "three"]
    assert [output["prompt_tokens"] for output in result["outputs"]] == [2, 1]
    assert result["finish_reason"] == "stop"
    assert (result["receipt"]["prompt_tokens"], result["receipt"]["completion_tokens"]) == (3, 3)
    assert "text" not in result


def test_arrays_are_classified_one_by_one_and_a_bad_one_harms_no_other(house: House) -> None:
    inputs: list[Any] = [{"x": [[1, 2, 3]]}, {"x": [[1, 2]]}, {"y": 5}, "text", 7, {"x": [[3, 0, 0]]}]
    house.client.ask({"id": "a", "task": "classify", "inputs": inputs})
    outputs = house.client.result("a")["outputs"]
    assert [output.get("label") for output in outputs] == ["rises", None, None, None, None, "falls"]
    told = [output["error"]["message"] for output in outputs[1:5]]
    assert all(output["error"]["code"] == "bad_request" for output in outputs[1:5])
    assert "1x2" in told[0]
    assert "takes arrays, not text" in told[2]
    assert told[3] == "an input is a text, or an object of arrays"
    house.client.ask({"id": "b", "task": "tensor", "inputs": [{"x": [[1, 2, 3]]}, {"x": [[0, 0, 0]]}]})
    assert [output["tensor"] for output in house.client.result("b")["outputs"]] == [
        {"y": [[-2.0, 4.0]]},
        {"y": [[0.0, 0.0]]},
    ]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"inputs": []}, "inputs"),
        ({"inputs": ["a"] * (MAX_INPUTS + 1)}, "inputs"),
        ({"inputs": ["a"], "prompt": "b"}, "contradict each other"),
        ({"inputs": ["a"], "tensor": {"x": [1]}}, "contradict each other"),
        ({"inputs": ["a"], "stream": True}, "option 'stream' goes with one prompt"),
        ({"inputs": ["a"], "session": "s"}, "option 'session' goes with one prompt"),
    ],
)
def test_a_batch_that_makes_no_sense_is_refused_as_a_whole(
    house: House, body: dict[str, Any], told: str
) -> None:
    house.client.ask({"id": "a", **body})
    error = house.client.result("a")["error"]
    assert error["code"] == "bad_request"
    assert told in error["message"]
    with pytest.raises(ValidationError):
        PromptRequest.model_validate({"id": "a", **body})


def test_inputs_come_out_as_they_do_alone(model: LoadedModel) -> None:
    alone = [model.answer(command, Options()) for command in COMMANDS]
    found = answer_inputs(model, batch(COMMANDS[0], "", "x" * 40_000, "a <sep> b", COMMANDS[1]))
    assert [output.text for output in found.outputs] == [
        alone[0].generation.text,
        None,
        None,
        None,
        alone[1].generation.text,
    ]
    assert [output.data for output in found.outputs if output.data] == [answer.data for answer in alone]
    assert [output.error.code for output in found.outputs if output.error] == ["bad_request"] * 3
    assert found.total.prompt_tokens == sum(answer.generation.prompt_tokens for answer in alone)
    assert found.total.first_token_s is not None


def test_choices_are_scored_for_each_text(model: LoadedModel) -> None:
    request = batch(*COMMANDS, task="classify", choices=["{", "on"])
    found = answer_inputs(model, request)
    assert [set(output.scores or ()) for output in found.outputs] == [{"{", "on"}] * 2
    alone = model.infer(request.model_copy(update={"inputs": None, "prompt": COMMANDS[1]}))
    assert found.outputs[1].scores == pytest.approx(alone.scores, abs=1e-3)


def test_what_ends_the_request_ends_what_is_not_done_and_keeps_the_rest() -> None:
    model = EchoModel()
    steps = itertools.count()
    found = answer_inputs(
        model, batch("a b", "c d", "e f"), should_stop=lambda: "cancelled" if next(steps) > 4 else None
    )
    assert found.finish_reason == "cancelled"
    assert found.outputs[0].text == "a b"
    assert found.outputs[1].finish_reason in {"cancelled", None}
    assert found.outputs[2].error is not None
    assert found.outputs[2].error.code == "cancelled"
    with pytest.raises(DeadlineError):
        answer_inputs(model, batch("a", "b"), should_stop=lambda: "deadline")
    with pytest.raises(CancelledError):
        answer_inputs(model, batch("a", "b"), should_stop=lambda: "cancelled")


class Failing(EchoModel):
    """Fails at what begins with an x, as a runtime does."""

    def answer(self, prompt: str, *args: Any, **options: Any) -> Any:
        if prompt.startswith("x"):
            raise InferenceError("the runtime failed")
        return super().answer(prompt, *args, **options)


def test_a_failure_of_the_runtime_is_told_in_its_place_unless_nothing_came_of_it_all() -> None:
    found = answer_inputs(Failing(), batch("x", "y"))
    assert [output.error.code if output.error else output.text for output in found.outputs] == [
        "internal",
        "y",
    ]
    with pytest.raises(InferenceError):
        answer_inputs(Failing(), batch("x", "x"))


def test_the_outputs_together_are_bounded() -> None:
    class Wordy(EchoModel):
        def answer(self, prompt: str, *args: Any, **options: Any) -> Any:
            made = super().answer(prompt, *args, **options)
            return replace(made, generation=replace(made.generation, text="w" * 200_000))

    found = answer_inputs(Wordy(), batch(*["a"] * 10))
    assert [output.error.code if output.error else "ok" for output in found.outputs] == ["ok"] * 7 + [
        "too_large"
    ] * 3


def test_tokens_are_counted_as_far_as_inputs_can_be_served() -> None:
    assert count_tokens(EchoModel(), batch("a b", "", 5, "c")) == 5
