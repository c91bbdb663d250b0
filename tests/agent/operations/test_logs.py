from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest

from edgeslm.agent.operations.logs import MAX_BYTES, Logs, chosen, stamp
from edgeslm.agent.operations.ports import Command, Done
from edgeslm.agent.operations.redaction import REMOVED, Redactor
from edgeslm.errors import OperationError
from edgeslm.schema.log_lines import LogLines
from edgeslm.schema.message import MAX_BODY_BYTES

SECRET = "planted-5ecret"
LINES = [
    "the rest of an older record",
    "2026-11-25 02:00:00,000 INFO edgeslm.agent: begins",
    "2026-11-25 02:00:01,000 WARNING edgeslm.link: broker lost",
    "Traceback (most recent call last):",
    "2026-11-25 02:00:02,000 INFO edgeslm.agent.operations.runner: operation logs/a begins",
    "2026-11-25 02:00:02,000 INFO edgeslm.agent.operations.runner: command logs/a: received",
    "2026-11-25 02:00:03,000 ERROR edgeslm.agent: the end",
]


class Quiet:
    def tell(self, text: str, share: float | None = None) -> None: ...

    def is_cancelled(self) -> bool:
        return False


def ask(log: Sequence[str], now_s: float = 0.0, **args: Any) -> LogLines:
    operation = Logs(lambda: log, lambda: Redactor([SECRET]), clock=lambda: now_s)
    done = operation.begin(Command("a", "logs", args), Quiet())
    assert isinstance(done, Done)
    return LogLines.model_validate(dict(done.result))


def test_lines_come_oldest_first_and_without_those_about_being_asked() -> None:
    assert ask(LINES).lines == (LINES[1], LINES[2], LINES[3], LINES[6])


def test_a_record_of_several_lines_is_chosen_as_one() -> None:
    assert ask(LINES, level="warning").lines == (LINES[2], LINES[3], LINES[6])
    assert ask(LINES, level="error").lines == (LINES[6],)


def test_the_latest_stay_and_what_was_left_out_is_counted() -> None:
    found = ask(LINES, lines=1)
    assert (found.lines, found.left_out) == ((LINES[6],), 3)


def test_nothing_older_is_told_than_was_asked_for() -> None:
    assert ask(LINES, after="2026-11-25 02:00:01,000").lines == (LINES[2], LINES[3], LINES[6])
    then_s = time.mktime((2026, 11, 25, 2, 0, 5, 0, 0, -1))
    assert ask(LINES, now_s=then_s, since_s=3).lines == (LINES[6],)
    assert stamp(then_s + 0.25) == "2026-11-25 02:00:05,250"


def test_a_secret_is_gone_even_where_only_a_part_of_it_is_asked_for() -> None:
    lines = [
        *LINES[:2],
        f"2026-11-25 02:00:01,000 INFO x: {SECRET}",
        "-----BEGIN PRIVATE KEY-----",
        "2026-11-25 02:00:02,000 INFO x: MIGHAgEAMBM",
        "-----END PRIVATE KEY-----",
    ]
    for count in (1, 2, 3, 4):
        text = "\n".join(ask(lines, lines=count).lines)
        assert SECRET not in text
        assert "MIGHAgEAMBM" not in text
    assert REMOVED in text


@pytest.mark.parametrize("char", ["x", "\x01", "\u20ac", "\U0001f600", '"', "\ud800"])
def test_whatever_was_logged_fits_into_one_event(char: str) -> None:
    lines = [f"2026-11-25 02:00:00,000 INFO x: {number} {char * 390}" for number in range(400)]
    found = chosen(lines, "info", "", 400)
    assert len(found.lines) + found.left_out == 400
    assert found.lines[-1].startswith(lines[-1][:34])
    size = len(json.dumps(found.model_dump(mode="json"), ensure_ascii=False).encode())
    assert size < MAX_BYTES + 10_000 < MAX_BODY_BYTES


@pytest.mark.parametrize(
    "args", [{"lines": 0}, {"lines": 401}, {"level": "debug"}, {"after": "yesterday"}, {"path": "/etc"}]
)
def test_what_it_does_not_know_is_refused(args: dict[str, Any]) -> None:
    with pytest.raises(OperationError, match="logs"):
        ask(LINES, **args)


def test_it_is_not_done_twice() -> None:
    with pytest.raises(OperationError, match="ended while logs ran"):
        Logs(lambda: (), Redactor).resume(Command("a", "logs", {}), None, Quiet())
