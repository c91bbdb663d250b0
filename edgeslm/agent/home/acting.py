"""From a sentence to what is done in the home: asks the model, resolves the answer, publishes the orders.

Left to others: how sentences come (:mod:`edgeslm.agent.home.assist`), and what an answer means
(:mod:`edgeslm.agent.home.resolve`).
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

import yaml
from pydantic import ValidationError

from edgeslm.agent.home.resolve import Resolution, resolve
from edgeslm.agent.ports import Message
from edgeslm.codec import describe
from edgeslm.errors import ConfigError, LinkError
from edgeslm.files import read_bounded
from edgeslm.schema.home_map import MAX_MAP_BYTES, HomeMap
from edgeslm.schema.message import MAX_PROMPT_CHARS, Options, PromptRequest, Result

log = logging.getLogger(__name__)

ORDER_EXPIRY_S: Final = 10
"""Nobody wants a lamp to go on an hour after it was asked to."""
ANSWER_S: Final = 25.0
"""Assist gives up after thirty seconds."""
ACCOUNT: Final = "assist"
"""Whose energy it is, in the ledger and in reports."""


class Asks(Protocol):
    """What answers prompts of this process; ``Agent`` does."""

    def ask(self, request: PromptRequest, rule: str, told: Callable[[Result], None]) -> None:
        """See ``Agent``."""

    def take_back(self, request_ids: Sequence[str]) -> None:
        """See ``Agent``."""


@dataclass(frozen=True)
class Reply:
    """What came of a sentence.

    Attributes:
        text: for who said it.
        done: it was understood, and everything that it asked for was ordered.
    """

    text: str
    done: bool


class Home:
    """A home that one device acts in. From any thread."""

    def __init__(
        self,
        home: HomeMap,
        publish: Callable[[Message], int | None],
        now: Callable[[], datetime | None],
    ) -> None:
        """Take the map, who publishes, and local time, which is ``None`` while the clock is not set."""
        self._home = home
        self._publish = publish
        self._now = now

    def act(self, answer: Mapping[str, object]) -> Reply:
        """Do what `answer` means."""
        found = resolve(self._home, answer, self._now())
        if found.problem is not None:
            log.info("an answer is not carried out: %s", found.problem)
            return Reply(found.problem, done=False)
        return self._order(found)

    def _order(self, found: Resolution) -> Reply:
        for order in found.orders:
            try:
                token = self._publish(Message(order.topic, order.payload.encode(), expiry_s=ORDER_EXPIRY_S))
            except LinkError as error:
                return Reply(f"{order.entity.name} cannot be told: {error.message}", done=False)
            if token is None:
                return Reply(f"{order.entity.name} cannot be told: the broker is away", done=False)
            log.info("%s is told %r", order.topic, order.payload)
        return Reply(found.said, done=True)


class Listener:
    """Understands sentences. From any thread; it waits for the model."""

    def __init__(self, agent: Asks, home: Home | None, wait_s: float = ANSWER_S) -> None:
        """Take who answers within `wait_s`, and the home; without one the answer itself is the reply."""
        self._agent = agent
        self._home = home
        self._wait_s = wait_s

    def hear(self, sentence: str) -> Reply:
        """What comes of `sentence`."""
        text = sentence.strip()
        if not 0 < len(text) <= MAX_PROMPT_CHARS:
            return Reply(f"a sentence has 1 to {MAX_PROMPT_CHARS} characters", done=False)
        deadline_ms = round(self._wait_s * 1000)
        request = PromptRequest(
            id=f"said-{uuid.uuid4()}",
            prompt=text,
            options=Options(priority="high", deadline_ms=deadline_ms),
        )
        answered: Future[Result] = Future()
        self._agent.ask(request, ACCOUNT, answered.set_result)
        try:
            result = answered.result(self._wait_s)
        except TimeoutError:
            self._agent.take_back([request.id])
            return Reply("that took too long", done=False)
        if result.error is not None:
            log.warning("a sentence is not answered: %s", result.error.message)
            return Reply(result.error.message, done=False)
        if result.finish_reason in {"deadline", "cancelled"}:
            return Reply("that took too long", done=False)
        if self._home is None:
            return Reply(result.text or "", done=True)
        if not isinstance(result.data, dict):
            return Reply("that was not understood", done=False)
        return self._home.act(result.data)


def read_home(path: Path) -> HomeMap:
    """The map in the file at `path`.

    Raises:
        ConfigError: unreadable, too large, no YAML, an unknown key or a wrong value, each named.
    """
    try:
        data = read_bounded(path, MAX_MAP_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    if len(data) > MAX_MAP_BYTES:
        raise ConfigError(f"{path} has more than {MAX_MAP_BYTES} bytes", path=str(path))
    try:
        return HomeMap.model_validate(yaml.safe_load(data))
    except ValidationError as error:
        raise ConfigError(
            f"{path}: {describe(error)}", path=str(path), hint="See docs/home-assistant.md for the map"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        told = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path} is no YAML: {told}", path=str(path)) from error
