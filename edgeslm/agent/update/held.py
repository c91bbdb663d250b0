"""A release that serves, measured between the prompts of users."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from edgeslm.agent.ports import Model
from edgeslm.agent.update.ports import Cancelled, Serving
from edgeslm.errors import InferenceError, RequestError, TrialError, UnknownModelError, UpdateInterruptedError
from edgeslm.schema.message import Options

HOLD_S = 0.5
"""Longest that prompts of users wait, unless a single answer takes longer."""


@dataclass(frozen=True)
class HeldAnswer:
    """``Timed`` of the model that serves."""

    text: str
    data: JsonValue
    ttft_s: float | None
    decode_s: float
    tokens: int


class HeldSubject:
    """``Subject`` of the model that serves `name`: it answers a few prompts at a time, then lets others have it."""

    def __init__(self, serving: Serving, name: str) -> None:
        self._serving = serving
        self._name = name

    @property
    def peak_mb(self) -> float | None:
        """Not to be told: the process does other work as well."""
        return None

    def answer(self, prompts: Sequence[str], cancelled: Cancelled) -> Sequence[HeldAnswer]:
        """Answer all prompts; see ``Subject``."""
        answers: list[HeldAnswer] = []
        while len(answers) < len(prompts):
            if cancelled():
                raise UpdateInterruptedError
            self._answer_some(prompts, answers)
        return answers

    def close(self) -> None:
        """Nothing to end: it goes on serving."""

    def _answer_some(self, prompts: Sequence[str], answers: list[HeldAnswer]) -> None:
        try:
            with self._serving.hold(self._name) as model:
                until_s = time.monotonic() + HOLD_S
                while len(answers) < len(prompts) and time.monotonic() < until_s:
                    answers.append(_answer(model, prompts[len(answers)]))
        except (InferenceError, UnknownModelError) as error:
            raise TrialError(f"{self._name}: {error}", cause="unhealthy") from error


def _answer(model: Model, prompt: str) -> HeldAnswer:
    try:
        answer = model.answer(prompt, Options())
    except RequestError:
        # A prompt that another release takes and this one does not: a wrong answer, no fault.
        return HeldAnswer("", None, None, 0.0, 0)
    found = answer.generation
    return HeldAnswer(found.text, answer.data, found.first_token_s, found.decode_s, len(found.token_ids))
