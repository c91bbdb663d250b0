"""An engine whose time is wound by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgeslm.agent.rules.decisions import Ask, Decision, Done, Heard, Moment, Send, Tell
from edgeslm.agent.rules.engine import Engine
from edgeslm.agent.rules.loading import compile_rules
from edgeslm.agent.rules.replay import recorded_result
from edgeslm.schema.message import ErrorBody, Result
from edgeslm.schema.rule_trace import FiringTrace

WALL_S = 1_800_000_000.0


class Bench:
    """Rules, and what they decide."""

    def __init__(self, text: str) -> None:
        self.now_s = 0.0
        self.wall_s = WALL_S
        self.ids = 0
        self.engine = Engine(compile_rules([("r.yaml", text.encode())]), self.now, self._new_id)
        self.decisions: list[Decision] = []

    @property
    def now(self) -> Moment:
        return Moment(self.now_s, self.wall_s + self.now_s)

    def _new_id(self, rule: str) -> str:
        self.ids += 1
        return f"{rule}-{self.ids}"

    def change(self, text: str) -> None:
        rules = compile_rules([("r.yaml", text.encode())])
        self.engine = Engine(rules, self.now, self._new_id, self.engine)

    def hear(self, topic: str, body: Any, *, retain: bool = False) -> list[Decision]:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._keep(self.engine.hear(Heard(topic, payload, retain), self.now))

    def wait(self, seconds: float) -> list[Decision]:
        until_s = self.now_s + seconds
        found: list[Decision] = []
        while (tick_s := self.engine.next_tick_s()) is not None and tick_s <= until_s:
            self.now_s = max(self.now_s, tick_s)
            found += self._keep(self.engine.tick(self.now))
        self.now_s = until_s
        return found

    def answer(self, ask: Ask, text: str | dict[str, Any], **changes: Any) -> list[Decision]:
        said = text if isinstance(text, str) else json.dumps(text)
        result = recorded_result(ask.request, said).model_copy(update=changes)
        return self._keep(self.engine.answer(result, self.now))

    def refuse(self, ask: Ask, code: str) -> list[Decision]:
        error = ErrorBody.model_validate({"code": code, "message": "no"})
        return self._keep(self.engine.answer(Result(id=ask.request.id, device="x", error=error), self.now))

    @property
    def asks(self) -> list[Ask]:
        return [one for one in self.decisions if isinstance(one, Ask)]

    @property
    def sends(self) -> list[Send]:
        return [one for one in self.decisions if isinstance(one, Send)]

    @property
    def tells(self) -> list[Tell]:
        return [one for one in self.decisions if isinstance(one, Tell)]

    @property
    def traces(self) -> list[FiringTrace]:
        return [one.trace for one in self.decisions if isinstance(one, Done)]

    def _keep(self, decisions: list[Decision]) -> list[Decision]:
        self.decisions += decisions
        return decisions


@pytest.fixture
def bench() -> type[Bench]:
    return Bench
