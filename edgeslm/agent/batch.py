"""Several inputs in one request: answered one after the other, each for itself, with one receipt for all.

What always holds: an input that cannot be served has an error in its place, and the others are answered. What ends the
request as a whole (cancelled, past its deadline, no energy left) ends the inputs that are not done yet; those that are
stay.

What inputs begin with alike is computed once, as it is with prompts that follow one another.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import JsonValue, TypeAdapter, ValidationError

from edgeslm.agent.ports import Model
from edgeslm.codec import describe
from edgeslm.errors import (
    BadRequestError,
    BudgetError,
    CancelledError,
    DeadlineError,
    EdgeslmError,
    InferenceError,
    RequestError,
    TooLargeError,
)
from edgeslm.runtime.generation import Generation, ShouldStop
from edgeslm.runtime.outcome import beat_of
from edgeslm.schema.message import MAX_PROMPT_CHARS, ErrorBody, FinishReason, Output, PromptRequest
from edgeslm.schema.tensor import Tensors, TensorValue

MAX_OUTPUT_BYTES = 3 * 2**19
"""Most bytes of all outputs of a request, as JSON: what the longest answer to a single input takes."""

_TENSORS: TypeAdapter[dict[str, TensorValue]] = TypeAdapter(Tensors)
_ALL_DONE: FinishReason = "stop"
_ENDS: dict[type[RequestError], FinishReason] = {
    CancelledError: "cancelled",
    DeadlineError: "deadline",
    BudgetError: "budget",
}


@dataclass(frozen=True)
class BatchAnswer:
    """What came of a batch.

    Attributes:
        outputs: one for each input, in their order.
        finish_reason: why it ended; ``stop`` where all inputs had their turn.
        total: tokens and seconds of all of them.
    """

    outputs: tuple[Output, ...]
    finish_reason: FinishReason
    total: Generation


def split(request: PromptRequest) -> Iterator[PromptRequest | BadRequestError]:
    """The request for each input of `request`, or what is wrong with the input."""
    for value in request.inputs or ():
        try:
            yield _single(request, value)
        except BadRequestError as error:
            yield error


def _single(request: PromptRequest, value: JsonValue) -> PromptRequest:
    if isinstance(value, str):
        if request.task == "tensor":
            raise BadRequestError("task 'tensor' needs arrays", hint="An input of arrays is an object")
        if not 0 < len(value) <= MAX_PROMPT_CHARS:
            raise BadRequestError(f"a text of {len(value)} characters; 1 to {MAX_PROMPT_CHARS} are taken")
        return request.model_copy(update={"prompt": value, "inputs": None})
    if not isinstance(value, dict):
        raise BadRequestError("an input is a text, or an object of arrays")
    if request.task == "generate":
        raise BadRequestError("task 'generate' takes texts; arrays go with task 'tensor'")
    try:
        tensors = _TENSORS.validate_python(value)
    except ValidationError as error:
        raise BadRequestError(describe(error)) from error
    return request.model_copy(update={"tensor": tensors, "inputs": None})


def count_tokens(model: Model, request: PromptRequest) -> int:
    """Tokens of all inputs together, as far as they can be served; at least one for each."""
    total = 0
    for single in split(request):
        try:
            counted = isinstance(single, PromptRequest) and single.tensor is None
            total += max(model.count_tokens(single.prompt), 1) if counted else 1  # type: ignore[union-attr]
        except RequestError:
            total += 1
    return total


def answer_inputs(
    model: Model, request: PromptRequest, *, should_stop: ShouldStop | None = None
) -> BatchAnswer:
    """Answer each input of `request` with `model`.

    Args:
        should_stop: asked between inputs, and by the model within one.

    Raises:
        CancelledError, DeadlineError, BudgetError: it ended before any was answered.
        InferenceError: none was answered, and the runtime failed.
    """
    started_s = time.perf_counter()
    beat = beat_of(should_stop)
    outputs: list[Output] = []
    totals = _Totals()
    ended: RequestError | None = None
    failed: InferenceError | None = None
    size_bytes = 0
    for single in split(request):
        try:
            if ended is not None:
                raise ended
            if isinstance(single, BadRequestError):
                raise single
            beat()
            output = _answer(model, single, should_stop, totals, time.perf_counter() - started_s)
            if output.finish_reason in _ENDS.values():
                ended = _as_error(output.finish_reason)
            size_bytes += _bounded(output, MAX_OUTPUT_BYTES - size_bytes)
        except (CancelledError, DeadlineError, BudgetError) as error:
            ended = error
            output = _error(error)
        except RequestError as error:
            output = _error(error)
        except InferenceError as error:
            failed = error
            output = _error(error)
        outputs.append(output)
    if failed is not None and all(output.error is not None for output in outputs):
        raise failed
    if ended is not None and all(output.error is not None for output in outputs):
        raise ended
    reason = next((reason for kind, reason in _ENDS.items() if isinstance(ended, kind)), _ALL_DONE)
    return BatchAnswer(tuple(outputs), reason, totals.generation(reason, time.perf_counter() - started_s))


def _answer(
    model: Model, single: PromptRequest, should_stop: ShouldStop | None, totals: _Totals, begun_s: float
) -> Output:
    if single.task == "generate":
        answer = model.answer(single.prompt, single.options, should_stop=should_stop)
        made = answer.generation
        totals.add(made, begun_s)
        return Output(
            text=made.text,
            json=answer.data,
            finish_reason=made.finish_reason,
            closed=made.closed,
            prompt_tokens=made.prompt_tokens,
            completion_tokens=len(made.token_ids),
            dropped_chars=answer.dropped_chars or None,
        )
    outcome = model.infer(single, should_stop=should_stop)
    totals.prompt_tokens += outcome.prompt_tokens
    totals.cached_tokens += outcome.cached_tokens
    totals.prefill_s += outcome.total_s
    return Output(
        label=next(iter(outcome.scores), None) if outcome.scores is not None else None,
        scores=None if outcome.scores is None else dict(outcome.scores),
        embedding=outcome.embedding,
        tensor=None if outcome.tensor is None else dict(outcome.tensor),
        finish_reason="stop",
        prompt_tokens=outcome.prompt_tokens,
    )


class _Totals:
    """Tokens and seconds of the inputs so far."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.prefill_s = 0.0
        self._decode_s = 0.0
        self._token_ids: list[int] = []
        self._first_token_s: float | None = None

    def add(self, made: Generation, begun_s: float) -> None:
        """Count an answer that began `begun_s` seconds after the first."""
        self.prompt_tokens += made.prompt_tokens
        self.cached_tokens += made.cached_tokens
        self.prefill_s += made.prefill_s
        self._decode_s += made.decode_s
        self._token_ids += made.token_ids
        if self._first_token_s is None and made.first_token_s is not None:
            self._first_token_s = begun_s + made.first_token_s

    def generation(self, reason: FinishReason, total_s: float) -> Generation:
        """All of them as if they were one."""
        return Generation(
            text="",
            token_ids=tuple(self._token_ids),
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            finish_reason=reason,
            prefill_s=self.prefill_s,
            first_token_s=self._first_token_s,
            decode_s=self._decode_s,
            total_s=total_s,
        )


def _bounded(output: Output, left_bytes: int) -> int:
    size = len(output.model_dump_json(exclude_none=True))
    if size > left_bytes:
        raise TooLargeError(
            f"this output has {size} bytes, and all of the request together at most {MAX_OUTPUT_BYTES}",
            actual=size,
            limit=left_bytes,
            unit="bytes",
        )
    return size


def _as_error(reason: FinishReason | None) -> RequestError:
    kind = next(kind for kind, known in _ENDS.items() if known == reason)
    return kind(f"the request ended ({reason}) before this input had its turn")


def _error(error: EdgeslmError) -> Output:
    return Output(error=ErrorBody(code=error.code, message=str(error)[:1000]))
