"""Rules over messages of another time: the clock is the log's, so that the same log gives the same firings.

An answer comes in the moment of its question, whoever computes it: how long a model takes here and today would change
what happens afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from edgeslm import codec
from edgeslm.agent.rules.compiled import RuleSet
from edgeslm.agent.rules.decisions import Ask, Decision, Done, Heard, Moment
from edgeslm.agent.rules.engine import Engine
from edgeslm.errors import CodecError, ConfigError
from edgeslm.schema.message import PromptRequest, Result
from edgeslm.schema.rule_trace import FiringTrace, RecordedMessage

MAX_LINE_BYTES = 4 * 2**20
_LATEST_WALL_S = 253_402_000_000.0
"""Later times have five digits for the year, which a date cannot have."""
_NO_RECEIPT = {
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "queue_ms": 0.0,
    "total_ms": 0.0,
    "energy_j": 0.0,
    "energy_net_j": 0.0,
    "power_w": 0.0,
    "meter": "estimated",
    "model": "recorded",
    "model_sha256": "",
    "runtime": "none",
}


def read_log(path: Path) -> Iterator[RecordedMessage]:
    """The messages of a log, in order.

    Raises:
        ConfigError: it cannot be read, or a line is none.
    """
    last_s = 0.0
    for number, line in _lines(path):
        message = _line(RecordedMessage, path, number, line)
        if message.at_s < last_s:
            raise ConfigError(f"{path}, line {number}: it is earlier than the line before", path=str(path))
        last_s = message.at_s
        yield message


def payload_of(message: RecordedMessage) -> bytes:
    """The body.

    Raises:
        ConfigError: it is neither text nor hexadecimal.
    """
    if message.hex is None:
        return (message.text or "").encode("utf-8", "surrogatepass")
    try:
        return bytes.fromhex(message.hex)
    except ValueError as error:
        raise ConfigError(f"a body on {message.topic[:80]} is no hexadecimal") from error


class _Recorded(BaseModel):
    prompt: str
    answer: object


def read_answers(path: Path) -> dict[str, str]:
    """Recorded answers by prompt: lines such as ``{"prompt": "...", "answer": {...}}``.

    Raises:
        ConfigError: it cannot be read, or a line is none.
    """
    answers: dict[str, str] = {}
    for number, line in _lines(path):
        found = _line(_Recorded, path, number, line)
        answers[found.prompt] = found.answer if isinstance(found.answer, str) else json.dumps(found.answer)
    return answers


def recorded_result(request: PromptRequest, text: str) -> Result:
    """`text` as the result of a model that took no time."""
    return Result.model_validate(
        {
            "id": request.id,
            "device": "recorded",
            "text": text,
            "finish_reason": "stop",
            "receipt": _NO_RECEIPT,
        }
    )


def replay(
    rules: RuleSet,
    messages: Iterable[RecordedMessage],
    answer: Callable[[PromptRequest, str], Result],
    *,
    until_s: float = 0.0,
) -> Iterator[FiringTrace]:
    """Every firing that `rules` come to over `messages`.

    Args:
        answer: computes the answer to a prompt of a rule.
        until_s: seconds to go on after the last message, for what waits.
    """
    count = 0

    def new_id(rule: str) -> str:
        nonlocal count
        count += 1
        return f"replay-{rule}-{count}"

    engine: Engine | None = None
    base_wall_s = 0.0
    last_s = 0.0
    for message in messages:
        if engine is None:
            base_wall_s = message.wall_s - message.at_s
            engine = Engine(rules, _moment(base_wall_s, 0.0), new_id)
        yield from _pass_time(engine, message.at_s, base_wall_s, answer)
        now = _moment(base_wall_s, message.at_s)
        heard = Heard(message.topic, payload_of(message), message.retain)
        yield from _settle(engine, engine.hear(heard, now), now, answer)
        last_s = message.at_s
    if engine is not None:
        yield from _pass_time(engine, last_s + until_s, base_wall_s, answer)


def _moment(base_wall_s: float, at_s: float) -> Moment:
    return Moment(at_s, min(max(base_wall_s + at_s, 0.0), _LATEST_WALL_S))


def _pass_time(
    engine: Engine, until_s: float, base_wall_s: float, answer: Callable[[PromptRequest, str], Result]
) -> Iterator[FiringTrace]:
    while (tick_s := engine.next_tick_s()) is not None and tick_s <= until_s:
        now = _moment(base_wall_s, tick_s)
        yield from _settle(engine, engine.tick(now), now, answer)


def _settle(
    engine: Engine, decisions: list[Decision], now: Moment, answer: Callable[[PromptRequest, str], Result]
) -> Iterator[FiringTrace]:
    waiting = list(decisions)
    while waiting:
        decision = waiting.pop(0)
        if isinstance(decision, Ask):
            waiting += engine.answer(answer(decision.request, decision.rule), now)
        elif isinstance(decision, Done):
            yield decision.trace


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise ConfigError(
                        f"{path}, line {number}: more than {MAX_LINE_BYTES} bytes", path=str(path)
                    )
                if line.strip():
                    yield number, line
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", path=str(path)) from error


def _line(kind: type[codec.ModelT], path: Path, number: int, line: bytes) -> codec.ModelT:
    try:
        return codec.decode(kind, line)
    except (CodecError, ValidationError) as error:
        raise ConfigError(f"{path}, line {number}: {error}", path=str(path)) from error
