"""What rules ask goes through the budget and stands in the energy account, as the prompts of others do."""

from __future__ import annotations

import queue
from typing import Any

from edgeslm.schema.message import Options, PromptRequest, Result

from ..test_power_side import COMMAND, board, model, root, spend, start, window

__all__ = ["board", "model", "root", "start"]  # fixtures


def test_a_prompt_of_a_rule_is_refused_where_the_energy_is_short(start: Any) -> None:
    agent, client = start({**window(0.2), "max_wait": "0s"})
    told: queue.Queue[Result] = queue.Queue()
    agent.ask(PromptRequest(id="rule-a-1", prompt=COMMAND), "a", told.put)
    first = told.get(timeout=20)
    assert first.data == {"intent": "HassTurnOn", "area": "Kitchen", "domain": "light"}
    spend(client)
    options = Options(deadline_ms=3000)
    agent.ask(PromptRequest(id="rule-a-2", prompt=COMMAND, options=options), "a", told.put)
    short = told.get(timeout=20)
    assert short.error is not None
    assert short.error.code == "budget"
    agent.ask(PromptRequest(id="rule-a-3", prompt="x " * 4000), "a", told.put)
    too_large = told.get(timeout=20)
    assert too_large.error is not None
    assert too_large.error.code == "too_large"
    assert agent.waiting == 0
