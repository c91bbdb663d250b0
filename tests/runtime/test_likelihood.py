"""Classification by likelihood, with the package that ships."""

from __future__ import annotations

import numpy as np
import pytest

from edgeslm.errors import BadRequestError, CancelledError, TooLargeError
from edgeslm.runtime.likelihood import measure_likelihoods
from edgeslm.runtime.model import LoadedModel
from edgeslm.schema.message import Options, PromptRequest

COMMAND = "turn the kitchen lights to 40 percent"
RIGHT = '{"intent":"HassLightSet","area":"Kitchen","domain":"light","brightness":40}'
WRONG = '{"intent":"HassLightSet","area":"Kitchen","domain":"light","brightness":45}'


def asked(*choices: str, **fields: object) -> PromptRequest:
    options = Options(choices=choices or None)
    return PromptRequest.model_validate(
        {"id": "a", "task": "classify", "prompt": COMMAND, "options": options, **fields}
    )


def test_the_answer_that_the_model_gives_is_the_likeliest(model: LoadedModel) -> None:
    found = model.infer(asked(WRONG, RIGHT, "no idea"))
    assert found.scores is not None
    assert next(iter(found.scores)) == RIGHT
    assert sum(found.scores.values()) == pytest.approx(1)
    assert found.prompt_tokens == model.count_tokens(COMMAND)


def test_scores_are_what_the_plain_loop_of_steps_gives(model: LoadedModel) -> None:
    prompt = model.encode(COMMAND)
    choices = [model.tokenizer.encode(text) for text in (RIGHT, "no idea")]
    end = frozenset(model.installed.manifest.stop_tokens)
    expected = []
    for choice in choices:
        model.engine.reset()
        steps = []
        for token, wanted in zip([*prompt, *choice], [*prompt[1:], *choice, None], strict=True):
            logits = model.engine.step(token).reshape(-1).astype(np.float64)
            logs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            ids = list(end) if wanted is None else [wanted]
            steps.append(np.log(np.exp(logs[ids]).sum()))
        expected.append(np.mean(steps[len(prompt) - 1 :]))
    found = measure_likelihoods(model.engine, prompt, choices, end)
    assert found.logarithms == pytest.approx(expected, abs=1e-2)


def test_the_order_of_choices_and_what_was_asked_before_change_nothing(model: LoadedModel) -> None:
    once = model.infer(asked(WRONG, RIGHT, "no idea")).scores
    model.answer("what time is it", Options())
    again = model.infer(asked("no idea", RIGHT, WRONG, RIGHT)).scores
    assert once is not None
    assert again == pytest.approx(once, abs=1e-3)


def test_an_answer_after_it_is_what_it_was(model: LoadedModel) -> None:
    model.infer(asked(WRONG, "no idea"))
    assert model.answer(COMMAND, Options()).generation.text == RIGHT


def test_bad_input_is_named(model: LoadedModel) -> None:
    with pytest.raises(BadRequestError, match="no labels of its own"):
        model.infer(asked())
    with pytest.raises(BadRequestError, match="takes text"):
        model.infer(asked("a", prompt="", tensor={"x": [1]}))
    with pytest.raises(BadRequestError, match="task 'embed' is not served"):
        model.infer(asked(task="embed"))
    with pytest.raises(TooLargeError, match="longest choice"):
        model.infer(asked("word " * 200))
    with pytest.raises(CancelledError):
        model.infer(asked("a", "b"), should_stop=lambda: "cancelled")
    assert model.answer(COMMAND, Options()).generation.text == RIGHT
