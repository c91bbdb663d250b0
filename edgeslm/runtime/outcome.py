"""What a task other than generating gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgeslm.errors import BadRequestError, BudgetError, CancelledError, DeadlineError
from edgeslm.schema.message import FinishReason, PromptRequest, Task
from edgeslm.schema.tensor import TensorValue


@dataclass(frozen=True)
class Outcome:
    """Scores, a vector or arrays, and what they took.

    Attributes:
        prompt_tokens: tokens of the text; 0 of arrays.
        cached_tokens: of these, how many did not have to be computed.
        total_s: seconds that it took.
        scores: of a classification, probability by label, the likeliest first.
        embedding: a vector of length one.
        tensor: outputs by name.
    """

    prompt_tokens: int
    total_s: float
    cached_tokens: int = 0
    scores: Mapping[str, float] | None = None
    embedding: tuple[float, ...] | None = None
    tensor: Mapping[str, TensorValue] | None = None


def check_task(request: PromptRequest, name: str, tasks: tuple[Task, ...]) -> None:
    """Make sure that the model `name`, which does `tasks`, can be asked for `request`.

    Raises:
        BadRequestError: it does something else.
    """
    if request.task not in tasks:
        raise BadRequestError(
            f"task '{request.task}' is not served by {name} (it serves: {', '.join(tasks)})"
        )


def beat_of(should_stop: Callable[[], FinishReason | None] | None) -> Callable[[], None]:
    """`should_stop` for a task of which half is worth nothing: a reason to end becomes an error.

    The function that is given back raises CancelledError, DeadlineError or BudgetError.
    """

    def beat() -> None:
        reason = None if should_stop is None else should_stop()
        if reason is None:
            return
        if reason == "cancelled":
            raise CancelledError("cancelled while it was computed")
        if reason == "deadline":
            raise DeadlineError("the deadline passed while it was computed")
        raise BudgetError(f"ended early ({reason}): nothing came of it")

    return beat
