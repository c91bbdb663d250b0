"""What the agent does with malformed prompts, and with good ones that come between them."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.agent_client import Arrival, LeanClient
from benchmarks.agent_malformed import BadPrompt, draw
from benchmarks.agent_rig import (
    DEVICE,
    FLEET,
    PROMPT_TOPIC,
    REPLY_TOPIC,
    AgentProcess,
    ModelWorker,
    Rig,
    ask,
    golden_prompts,
    new_id,
    prompt_body,
    rss_mb,
    say,
)
from edgeslm import topics

SEED = 20_261_124
PROMPTS_BEFORE = 200
BAD_TO_GOOD = 4
OUTSTANDING = 16
"""Messages without an answer at once: below mosquitto's Receive Maximum of 20."""
SILENCE_S = 5.0
"""After as long without a word, what is unanswered is given up (an answer that comes later still counts)."""
_SHOWN = 20


@dataclass
class _Tally:
    """What came of what was sent; the keys are Correlation Data."""

    bad: dict[bytes, BadPrompt] = field(default_factory=dict)
    good: dict[bytes, str] = field(default_factory=dict)
    open: set[bytes] = field(default_factory=set)
    given_up: set[bytes] = field(default_factory=set)
    refused: set[bytes] = field(default_factory=set)
    right: set[bytes] = field(default_factory=set)
    wrong: dict[str, str] = field(default_factory=dict)
    codes: Counter[str] = field(default_factory=Counter)
    offline: int = 0

    def take(self, arrival: Arrival, worker: ModelWorker) -> None:
        """Judge one message."""
        if arrival.topic == topics.device_topic(FLEET, DEVICE, "availability"):
            self.offline += b'"online"' not in arrival.payload
            return
        key = arrival.correlation or b""
        if key not in self.open | self.given_up:
            self.wrong[f"unasked on {arrival.topic[:60]}"] = repr(arrival.payload[:120])
            return
        self.open.discard(key)
        self.given_up.discard(key)
        result = json.loads(arrival.payload)
        error = result.get("error")
        if key in self.bad:
            if error is not None:
                self.refused.add(key)
                self.codes[str(error["code"])] += 1
            else:
                self.wrong[self.bad[key].kind] = f"answered: {self.bad[key].body[:120]!r}"
        elif result.get("text") == worker.expected(self.good[key]):
            self.right.add(key)
        else:
            self.wrong[f"good: {self.good[key]}"] = str(result)[:200]


def measure_bad(count: int) -> dict[str, Any]:
    """Send `count` malformed prompts, and a good one for each few of them."""
    rng = random.Random(SEED)
    with Rig() as rig:
        worker = rig.worker()
        agent = rig.online_agent()
        client = _listening_client(rig)
        prompts = golden_prompts()
        for index in range(PROMPTS_BEFORE):
            ask(client, prompts[index % len(prompts)])
        before_mb = rss_mb(agent.pid)
        say(f"{count} malformed prompts, {count // BAD_TO_GOOD} good ones between them")
        plan: list[BadPrompt | str] = [*draw(rng, count)]
        plan += [rng.choice(prompts) for _ in range(count // BAD_TO_GOOD)]
        rng.shuffle(plan)
        for prompt in prompts:
            worker.expected(prompt)
        began_s = time.monotonic()
        tally = _run(client, plan[: len(plan) // 2], worker, agent, _Tally())
        half_mb = rss_mb(agent.pid) if agent.is_running else None
        tally = _run(client, plan[len(plan) // 2 :], worker, agent, tally)
        took_s = time.monotonic() - began_s
        is_alive = agent.is_running
        after_mb = rss_mb(agent.pid) if is_alive else None
    silent = Counter(tally.bad[key].kind for key in tally.given_up if key in tally.bad)
    good = sum(isinstance(item, str) for item in plan)
    found: dict[str, Any] = {
        "bad_prompts": len(tally.refused) / count,
        "good_lost": (good - len(tally.right)) / good,
        "bad_detail": {
            "sent_bad": count,
            "sent_good": good,
            "kinds": len({bad.kind for bad in tally.bad.values()}),
            "error_codes": dict(tally.codes),
            "without_answer": dict(silent),
            "wrong": dict(list(tally.wrong.items())[:_SHOWN]),
            "agent_survived": is_alive,
            "agent_lost_its_connection": tally.offline,
            "rss_before_mb": before_mb,
            "rss_half_way_mb": half_mb,
            "rss_after_mb": after_mb,
            "took_s": took_s,
        },
    }
    if after_mb is not None:
        found["rss_growth_mb"] = after_mb - before_mb
    return found


def _listening_client(rig: Rig) -> LeanClient:
    # An answer whose Response Topic is refused goes to the device's own result topic, with Correlation Data.
    return rig.client(
        [
            (REPLY_TOPIC, 1),
            (f"{topics.ROOT}/{FLEET}/{DEVICE}/result/#", 1),
            (topics.device_topic(FLEET, DEVICE, "availability"), 1),
        ]
    )


def _run(
    client: LeanClient, plan: list[BadPrompt | str], worker: ModelWorker, agent: AgentProcess, tally: _Tally
) -> _Tally:
    for item in plan:
        _drain(client, tally, worker, OUTSTANDING - 1)
        if not agent.is_running:
            say(f"the agent has ended: {agent.log_tail()}")
            break
        key = new_id("k").encode()
        tally.open.add(key)
        if isinstance(item, str):
            tally.good[key] = item
            body = prompt_body(new_id("g"), item)
            client.publish(PROMPT_TOPIC, body, response_topic=REPLY_TOPIC, correlation=key)
        else:
            tally.bad[key] = item
            to = item.response_topic or REPLY_TOPIC
            client.publish(item.topic, item.body, response_topic=to, correlation=key)
    _drain(client, tally, worker, 0)
    return tally


def _drain(client: LeanClient, tally: _Tally, worker: ModelWorker, most_open: int) -> None:
    """Take answers until `most_open` are missing, or give up those that are."""
    silent_since_s = time.monotonic()
    while len(tally.open) > most_open:
        arrival = client.take(0.5)
        if arrival is not None:
            silent_since_s = time.monotonic()
            tally.take(arrival, worker)
        elif time.monotonic() - silent_since_s > SILENCE_S:
            tally.given_up |= tally.open
            tally.open.clear()
