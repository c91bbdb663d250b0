"""What the agent needs of the world, as protocols: the command line's wiring chooses who provides it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from edgeslm.link.port import Link, LinkEvents, Message
from edgeslm.power.port import EnergyMeter
from edgeslm.runtime.conversation import Turn
from edgeslm.runtime.generation import OnText, ShouldStop
from edgeslm.runtime.model import Answer
from edgeslm.runtime.outcome import Outcome
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.message import Options, PromptRequest, Task

__all__ = ["Activity", "EnergyMeter", "Link", "LinkEvents", "Message", "Model"]


class Model(Protocol):
    """A loaded model; answers on one thread. ``runtime.LoadedModel`` and ``runtime.GraphModel`` are such."""

    @property
    def installed(self) -> InstalledPackage:
        """The package."""

    @property
    def name(self) -> str:
        """Name and version."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it does."""

    @property
    def takes_arrays(self) -> bool:
        """Whether it is asked with arrays; else with text."""

    @property
    def graph_file(self) -> str:
        """The graph in use."""

    @property
    def runtime_name(self) -> str:
        """The runtime that computes it, with version."""

    @property
    def context_tokens(self) -> int:
        """Most tokens of prompt and answer together."""

    @property
    def max_answer_tokens(self) -> int:
        """Most tokens of an answer for which the request names no limit."""

    @property
    def threads(self) -> int:
        """Inference threads in use."""

    def set_threads(self, threads: int) -> None:
        """Use another number of threads from the next prompt on; raises ``ModelLoadError`` if that can't be."""

    def set_aside(self) -> AbstractContextManager[None]:
        """Within the block another prompt is answered, while `should_stop` of one that goes on afterwards is asked.

        Raises ``InferenceError`` where there is no memory for that; the first goes on.
        """

    def count_tokens(self, prompt: str, *, turns: Sequence[Turn] = (), system: str | None = None) -> int:
        """Tokens of `prompt` as it will be computed, with what comes before; from any thread.

        Raises ``RequestError`` as `answer` would.
        """

    def answer(
        self,
        prompt: str,
        options: Options,
        *,
        on_text: OnText | None = None,
        should_stop: ShouldStop | None = None,
        turns: Sequence[Turn] = (),
        system: str | None = None,
    ) -> Answer:
        """Answer one prompt, which comes after `system` and `turns`.

        Raises ``RequestError`` for the prompt's fault, ``InferenceError`` for its own.
        """

    def infer(self, request: PromptRequest, *, should_stop: ShouldStop | None = None) -> Outcome:
        """Do a task other than generating; raises as `answer` does, also where `should_stop` has a reason."""


@dataclass(frozen=True)
class Activity:
    """What prompts have come to since the agent started.

    Attributes:
        begun: prompts that began to be computed.
        failed: of these, prompts that the runtime failed at.
        is_busy: one is being computed.
    """

    begun: int
    failed: int
    is_busy: bool
