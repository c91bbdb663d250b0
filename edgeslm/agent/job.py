"""One accepted prompt on its way through the agent."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from edgeslm.power.steward import Plan
from edgeslm.schema.message import PromptRequest, Result

ReplyForm = Literal["json", "text", "gzip"]


@dataclass(frozen=True)
class ReplyAddress:
    """Where an answer goes.

    Attributes:
        topic: the Response Topic, or the device's own result topic.
        correlation: Correlation Data to repeat.
        form: the whole result as JSON, that compressed by gzip, or just its text.
    """

    topic: str
    correlation: bytes | None = None
    form: ReplyForm = "json"


@dataclass
class Job:
    """A prompt that will be answered exactly once.

    Attributes:
        request: the prompt, its sampling seed already drawn, so that a rerun after a crash gives the same text.
        replies: where the answer goes; grows when the same id is asked again from elsewhere.
        accepted_s: monotonic time of acceptance.
        deadline_s: monotonic time after which the answer is worthless.
        cancelled: set when the requester takes the prompt back.
        settled: set once it is decided whether the prompt is on disk; its answer may not leave before.
        dropped: it is not on disk and has been refused: its answer is worth nothing.
        plan: what it will probably take, where there is a budget to decide by.
        rule: the rule of this device that asks, where one does.
        told: gets the answer of a prompt that this device asks itself, on the worker's thread. Such a one is in no
            journal.
    """

    request: PromptRequest
    replies: list[ReplyAddress]
    accepted_s: float
    deadline_s: float | None
    cancelled: threading.Event = field(default_factory=threading.Event)
    settled: threading.Event = field(default_factory=threading.Event)
    dropped: bool = False
    plan: Plan | None = None
    rule: str | None = None
    told: Callable[[Result], None] | None = None

    @property
    def id(self) -> str:
        """The requester's id."""
        return self.request.id

    def expired(self, now_s: float) -> bool:
        """Whether the deadline has passed at monotonic `now_s`."""
        return self.deadline_s is not None and now_s >= self.deadline_s
