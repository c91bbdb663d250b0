"""A simulated model: says the prompt's words back, one a token, at a pace of its own.

For tests and rehearsals of everything around a model (queues, deadlines, cancellation), where a real one would be
too fast or too large.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Self

from edgeslm.errors import BadRequestError, ConstraintMissingError, TooLargeError
from edgeslm.runtime.conversation import Turn, fit
from edgeslm.runtime.generation import Generation, OnText, ShouldStop
from edgeslm.runtime.model import Answer
from edgeslm.runtime.outcome import Outcome
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.message import FinishReason, Options, PromptRequest, Task
from edgeslm.schema.package import Manifest

MAX_WORDS = 100
_SHA256 = "0" * 64


def _manifest(name: str) -> Manifest:
    proof = {"tokens": [0], "greedy": [0], "logit_ids": [0], "logits": [0.0], "atol": 1.0}
    member = {"sha256": _SHA256, "size_bytes": 0}
    return Manifest.model_validate(
        {
            "format": 1,
            "name": name,
            "version": "1.0.0",
            "task": "generate",
            "description": "Simulated: says the words of the prompt back.",
            "graphs": [
                {"file": "none.tflite", "runtimes": ["litert"], "quantization": "none", "proof": proof}
            ],
            "tokenizer": {"kind": "tokenizers-json", "file": "none.json"},
            "context_tokens": 2 * MAX_WORDS,
            "max_prompt_tokens": MAX_WORDS,
            "max_answer_tokens": MAX_WORDS,
            "requires": {"ram_mb": 0, "agent": "0.0.0"},
            "licenses": [{"spdx": "Apache-2.0", "of": "edgeslm"}],
            "files": {"none.tflite": member, "none.json": member},
        }
    )


class EchoModel:
    """Implements the agent's ``Model`` port.

    Attributes:
        token_s: seconds that each token takes.
        answered: prompts answered so far, in order.
    """

    tasks: tuple[Task, ...] = ("generate",)
    takes_arrays = False
    graph_file = "none.tflite"
    runtime_name = "simulated"
    context_tokens = 2 * MAX_WORDS
    max_answer_tokens = MAX_WORDS

    def __init__(self, name: str = "echo", token_s: float = 0.0) -> None:
        self.installed = InstalledPackage(Path("/nonexistent"), _manifest(name), _SHA256)
        self.token_s = token_s
        self.threads = 1
        self.answered: list[str] = []

    @property
    def name(self) -> str:
        """Name and version."""
        return f"{self.installed.manifest.name}@{self.installed.manifest.version}"

    def set_threads(self, threads: int) -> None:
        """Say that so many are used; nothing becomes faster."""
        self.threads = threads

    def set_aside(self) -> AbstractContextManager[None]:
        """Answer another prompt between two words of one; nothing has to be kept."""
        return nullcontext()

    def count_tokens(self, prompt: str, *, turns: Sequence[Turn] = (), system: str | None = None) -> int:
        """Words of `prompt`; nothing else comes before it in a request.

        Raises:
            BadRequestError: it has none.
            TooLargeError: it has more than 100.
        """
        return len(_words(prompt))

    def infer(self, request: PromptRequest, *, should_stop: ShouldStop | None = None) -> Outcome:
        """Refuse: words are all that it has.

        Raises:
            BadRequestError: always.
        """
        raise BadRequestError(f"task '{request.task}' is not served by {self.name} (it serves: generate)")

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
        """Say the words of `prompt` back; each word of it and of `turns` is a token of the prompt.

        Raises:
            BadRequestError: it has no words.
            ContextOverflowError: it has more than 100, with those of `turns`, and ``overflow`` wants it refused.
            ConstraintMissingError: the answer shall have a form, which words said back have not.
        """
        if options.answer_form is not None:
            raise ConstraintMissingError(
                f"option '{options.answer_form}' is not supported by a simulated model",
                kind=options.answer_form,
            )
        overflow = options.overflow or "error"
        fitted = fit(
            _WordRenderer().with_system(system),
            turns,
            prompt,
            limit=MAX_WORDS,
            room=MAX_WORDS,
            overflow=overflow,
        )
        words = fitted.prompt.split()
        started = time.perf_counter()
        said: list[str] = []
        asked_s = 0.0

        def ask() -> FinishReason | None:
            nonlocal asked_s
            began_s = time.perf_counter()
            found = None if should_stop is None else should_stop()
            asked_s += time.perf_counter() - began_s
            return found

        reason = ask()
        for word in words:
            if reason is not None:
                break
            time.sleep(self.token_s)
            said.append(word if not said else f" {word}")
            if on_text is not None:
                on_text(said[-1])
            is_full = options.max_tokens is not None and len(said) >= options.max_tokens
            reason = "length" if is_full else ask()
        self.answered.append(prompt)
        total_s = time.perf_counter() - started
        generation = Generation(
            text="".join(said),
            token_ids=tuple(range(len(said))),
            prompt_tokens=len(fitted.token_ids),
            finish_reason=reason or "stop",
            prefill_s=0.0,
            first_token_s=self.token_s if said else None,
            decode_s=total_s - asked_s,
            total_s=total_s,
        )
        turn = None if options.session is None else _WordRenderer().turn(fitted.prompt, generation)
        return Answer(generation, None, turn, fitted.dropped_turns, fitted.dropped_chars)


class _WordRenderer:
    """`Renderer` that counts words."""

    max_chars = 64 * MAX_WORDS
    beginning: Sequence[int] = ()

    def least_tokens(self, texts: Sequence[str]) -> int:
        return 0  # words are counted fast

    def with_system(self, system: str | None) -> Self:
        if system is not None:
            raise BadRequestError("a simulated model has no form for messages")
        return self

    def clean(self, prompt: str) -> str:
        if not prompt.split():
            raise BadRequestError("empty prompt")
        return prompt

    def render(self, turns: Sequence[Turn], prompt: str) -> list[int]:
        said = [text for turn in turns for text in (turn.prompt, turn.answer)]
        return list(range(len(" ".join([*said, prompt]).split())))

    def turn(self, prompt: str, generation: Generation) -> Turn:
        return Turn(prompt, generation.text)


def _words(prompt: str) -> list[str]:
    words = prompt.split()
    if not words:
        raise BadRequestError("empty prompt")
    if len(words) > MAX_WORDS:
        raise TooLargeError(f"{len(words)} words", actual=len(words), limit=MAX_WORDS, unit="words")
    return words
