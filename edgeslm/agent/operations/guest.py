"""Asks served models as a guest of the device: prompts of users go first.

What always holds: nothing is asked while a prompt of a user waits or is answered; one that comes meanwhile ends the
guest's, which is asked again. What it takes is measured like a prompt, and booked as a test.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from edgeslm.agent.operations.ports import Progress
from edgeslm.agent.ports import EnergyMeter, Model
from edgeslm.agent.serving import ServedModels
from edgeslm.errors import OperationError
from edgeslm.models.package import MAX_GOLDEN_BYTES, parse_golden
from edgeslm.power.port import Cause, EnergyReading
from edgeslm.runtime.model import Answer
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.message import FinishReason, Options
from edgeslm.schema.package import GoldenCase

_LOOK_S: Final = 0.05


@dataclass(frozen=True)
class Asked:
    """One golden prompt, answered.

    Attributes:
        seconds: that it took.
        disturbed: how often it was given up for a user's.
    """

    answer: Answer
    energy: EnergyReading
    seconds: float
    disturbed: int


class Guest:
    """Asks golden prompts."""

    def __init__(self, models: ServedModels, meter: EnergyMeter, waiting: Callable[[], int]) -> None:
        """Take the parts.

        Args:
            models: in service.
            meter: tells what a prompt takes.
            waiting: how many prompts of users are accepted and not answered.
        """
        self.models = models
        self._meter = meter
        self._waiting = waiting

    def ask(self, name: str, case: GoldenCase, progress: Progress) -> Asked:
        """Let the model that serves `name` answer.

        Raises:
            OperationError: it was cancelled.
            UnknownModelError: nothing serves under that name any more.
            RequestError: the model refuses the prompt.
            InferenceError: the runtime fails.
        """
        disturbed = 0

        def should_stop() -> FinishReason | None:
            return "cancelled" if self._waiting() or progress.is_cancelled() else None

        while True:
            self._let_users_go_first(progress)
            with self.models.hold(name) as model:
                began_s = time.monotonic()
                answer, energy = self._measured(model, case.prompt, should_stop)
                seconds = time.monotonic() - began_s
            if answer.generation.finish_reason != "cancelled":
                return Asked(answer, energy, seconds, disturbed)
            disturbed += 1

    def _measured(
        self, model: Model, prompt: str, should_stop: Callable[[], FinishReason | None]
    ) -> tuple[Answer, EnergyReading]:
        span = self._meter.begin(Cause("test", model=model.name))
        try:
            answer = model.answer(prompt, Options(), should_stop=should_stop)
        finally:
            energy = span.end()
        return answer, energy

    def _let_users_go_first(self, progress: Progress) -> None:
        while True:
            if progress.is_cancelled():
                raise OperationError("it was stopped while it ran", reason="cancelled")
            if not self._waiting():
                return
            time.sleep(_LOOK_S)


def golden_cases(installed: InstalledPackage, limit: int) -> list[GoldenCase]:
    """The first golden prompts of a package; none where it has none.

    Raises:
        OperationError: they cannot be read.
        PackageContentError: they are none.
    """
    name = installed.manifest.golden
    if name is None:
        return []
    try:
        with installed.file(name).open("rb") as file:
            data = file.read(MAX_GOLDEN_BYTES)
    except OSError as error:
        raise OperationError(
            f"the golden prompts of {installed.manifest.name} cannot be read: {error.strerror}",
            reason="failed",
        ) from error
    cases = []
    for case in parse_golden(data, installed.directory, name):
        cases.append(case)
        if len(cases) >= limit:
            break
    return cases


def is_right(case: GoldenCase, answer: Answer) -> bool:
    """Whether `answer` is what the package says."""
    return answer.generation.text == case.text if case.text is not None else answer.data == case.json_answer
