"""A client that asks on and on while everything around it is killed, and keeps the evidence.

It does what any careful client does: a persistent session, QoS 1, and the same id again after a reconnect or
when no answer came for some time. It stops at no outage. Some ids it asks again though it has their answer,
as a client would that was killed itself.
"""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.agent_client import Arrival, ConnectionLostError, LeanClient
from benchmarks.agent_rig import LONG_OPTIONS, PROMPT_TOPIC, REPLY_TOPIC, new_id, prompt_body

OUTSTANDING = 12
"""Ids without an answer at once: below mosquitto's Receive Maximum and the agent's queue."""
INTERVAL_S = 0.005
"""Mean time between new prompts, shorter than an answer takes: one is always in work when a kill comes."""
RESEND_AFTER_S = 3.0
FORGETS = 0.2
"""Share of the ids that are asked again after their answer, within as many seconds as FORGETS_WITHIN_S."""
FORGETS_WITHIN_S = 6.0
_SESSION_S = 3600
_RECONNECT_S = 0.1


@dataclass
class Asked:
    """One id and everything seen of it.

    Attributes:
        expected: its only right text; ``None`` where the agent draws the seed.
        accepted: whether a broker has acknowledged it, with somebody subscribed.
        answers: each different answer body.
        silences: how often no answer came in time, though the connection held.
        deliveries: answers that arrived, equal ones included.
    """

    body: bytes
    expected: str | None
    is_streamed: bool
    due_s: float = 0.0
    sends: int = 0
    silences: int = 0
    accepted: bool = False
    answers: set[bytes] = field(default_factory=set)
    deliveries: int = 0
    refusals: list[str] = field(default_factory=list)
    asked_again: bool = False


class PromptStream(threading.Thread):
    """The client's thread. `asked` belongs to it until :meth:`finish` has returned."""

    def __init__(self, port: int, prompts: list[str], expected: dict[str, str], seed: int) -> None:
        super().__init__(name="bench-stream", daemon=True)
        self._port = port
        self._prompts = prompts
        self._expected = expected
        self._random = random.Random(seed)
        self._stop_asking = threading.Event()
        self._end = threading.Event()
        self._next_s = 0.0
        self._mids: dict[int, str] = {}
        self.asked: dict[str, Asked] = {}
        self._open: dict[str, Asked] = {}
        self._forgotten: list[tuple[float, str]] = []
        self.answered = 0
        self.unasked: list[str] = []
        self.connections = 0
        self.failure: BaseException | None = None

    # --- the owner's thread -------------------------------------------------------------------------------

    def wait_answers(self, more: int, timeout_s: float) -> bool:
        """Wait for `more` answers from now on."""
        goal, until_s = self.answered + more, time.monotonic() + timeout_s
        while self.answered < goal and time.monotonic() < until_s and self.is_alive():
            time.sleep(0.01)
        return self.answered >= goal

    def finish(self, timeout_s: float, linger_s: float) -> float:
        """Ask nothing new; wait for all answers, and for double ones; seconds until the last."""
        began_s = time.monotonic()
        self._stop_asking.set()
        while self._open and time.monotonic() - began_s < timeout_s and self.is_alive():
            time.sleep(0.01)
        took_s = time.monotonic() - began_s
        time.sleep(linger_s)
        self._end.set()
        self.join()
        if self.failure is not None:
            raise self.failure
        return took_s

    @property
    def unanswered(self) -> list[str]:
        """Ids that wait for an answer, the first or another."""
        return list(self._open)

    # --- the client's thread ------------------------------------------------------------------------------

    def run(self) -> None:
        """Ask until the end, over as many connections as it takes."""
        try:
            while not self._end.is_set():
                try:
                    self._live()
                except ConnectionLostError:
                    self._end.wait(_RECONNECT_S)
        except Exception as error:  # told by finish(), in the owner's thread
            self.failure = error

    def _live(self) -> None:
        filters = [(REPLY_TOPIC, 1)]
        client = LeanClient(self._port, filters, client_id="bench-client", session_expiry_s=_SESSION_S)
        self.connections += 1
        self._mids.clear()
        for asked in self._open.values():
            asked.due_s = 0.0
        while not self._end.is_set():
            self._send_due(client)
            client.poll(0.005)
            while client.confirmed:
                self._confirm(*client.confirmed.popleft())
            while client.arrivals:
                self._take(client.arrivals.popleft())
        client.close()

    def _send_due(self, client: LeanClient) -> None:
        now_s = time.monotonic()
        if not self._stop_asking.is_set() and now_s >= self._next_s and len(self._open) < OUTSTANDING:
            self._next_s = now_s + self._random.uniform(0, 2 * INTERVAL_S)
            if not self._ask_again(now_s):
                self._ask()
        for request_id, asked in self._open.items():
            if asked.due_s <= now_s:
                asked.silences += asked.due_s > 0
                asked.due_s = now_s + RESEND_AFTER_S
                asked.sends += 1
                mid = client.publish(
                    PROMPT_TOPIC, asked.body, response_topic=REPLY_TOPIC, correlation=request_id.encode()
                )
                self._mids[mid] = request_id

    def _ask_again(self, now_s: float) -> bool:
        """An id whose answer has been forgotten; ``False`` if there is none now."""
        due = next((entry for entry in self._forgotten if entry[0] <= now_s), None)
        if due is None:
            return False
        self._forgotten.remove(due)
        asked = self.asked[due[1]]
        asked.asked_again, asked.due_s = True, 0.0
        self._open[due[1]] = asked
        return True

    def _ask(self) -> None:
        """One more: some streamed; some sampled, and so long, with a seed that only the agent knows."""
        prompt, request_id = self._random.choice(self._prompts), new_id("s")
        options: dict[str, Any] = {}
        if self._random.random() < 0.25:
            options["stream"] = True
        if is_sampled := self._random.random() < 0.25:
            options |= LONG_OPTIONS
        asked = Asked(
            prompt_body(request_id, prompt, options),
            None if is_sampled else self._expected[prompt],
            "stream" in options,
        )
        self.asked[request_id] = self._open[request_id] = asked

    def _confirm(self, mid: int, reason: int) -> None:
        request_id = self._mids.pop(mid, None)
        if request_id is None:
            return
        asked = self.asked[request_id]
        if reason == 0:
            asked.accepted = True
        else:  # the broker has forgotten the agent's session: nobody got it
            asked.due_s = min(asked.due_s, time.monotonic() + 0.5)

    def _take(self, arrival: Arrival) -> None:
        body = json.loads(arrival.payload)
        asked = self.asked.get(body["id"])
        if asked is None:
            self.unasked.append(f"{arrival.topic}: {arrival.payload[:200]!r}")
        elif "error" in body:
            asked.refusals.append(str(body["error"]))
            asked.due_s = min(asked.due_s, time.monotonic() + 0.5)
        else:
            asked.deliveries += 1
            asked.answers.add(arrival.payload)
            if self._open.pop(body["id"], None) is not None:
                self.answered += 1
                if not asked.asked_again and self._random.random() < FORGETS:
                    when_s = time.monotonic() + self._random.uniform(0, FORGETS_WITHIN_S)
                    self._forgotten.append((when_s, body["id"]))
