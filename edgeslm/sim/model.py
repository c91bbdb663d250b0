"""A simulated model: says the prompt's words back, one a token, at a pace of its own.

For tests and rehearsals of everything around a model (queues, deadlines, cancellation), where a real one would be
too fast or too large.
"""

from __future__ import annotations

import time
from pathlib import Path

from edgeslm.errors import BadRequestError, ConstraintMissingError, TooLargeError
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

    def count_tokens(self, prompt: str) -> int:
        """Words of `prompt`.

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
    ) -> Answer:
        """Say the words of `prompt` back.

        Raises:
            BadRequestError: it has no words.
            TooLargeError: it has more than 100.
            ConstraintMissingError: the answer shall have a form, which words said back have not.
        """
        if options.answer_form is not None:
            raise ConstraintMissingError(
                f"option '{options.answer_form}' is not supported by a simulated model",
                kind=options.answer_form,
            )
        words = _words(prompt)
        started = time.perf_counter()
        said: list[str] = []
        reason: FinishReason | None = should_stop() if should_stop is not None else None
        for word in words:
            if reason is not None:
                break
            time.sleep(self.token_s)
            said.append(word if not said else f" {word}")
            if on_text is not None:
                on_text(said[-1])
            if options.max_tokens is not None and len(said) >= options.max_tokens:
                reason = "length"
            elif should_stop is not None:
                reason = should_stop()
        self.answered.append(prompt)
        total_s = time.perf_counter() - started
        return Answer(
            Generation(
                text="".join(said),
                token_ids=tuple(range(len(said))),
                prompt_tokens=len(words),
                finish_reason=reason or "stop",
                prefill_s=0.0,
                first_token_s=self.token_s if said else None,
                decode_s=total_s,
                total_s=total_s,
            ),
            None,
        )


def _words(prompt: str) -> list[str]:
    words = prompt.split()
    if not words:
        raise BadRequestError("empty prompt")
    if len(words) > MAX_WORDS:
        raise TooLargeError(f"{len(words)} words", actual=len(words), limit=MAX_WORDS, unit="words")
    return words
