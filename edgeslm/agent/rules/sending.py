"""What rules publish, and the trace that tells how that went. On the rules' thread.

What always holds: what cannot be published is tried again for a few seconds, in order, and then given up: an action
that comes minutes late is a wrong one. The trace of a firing is kept once it is known what became of all its messages,
and says ``failed`` where one of them was given up.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from edgeslm.agent.ports import Message
from edgeslm.agent.rules.decisions import Send
from edgeslm.errors import LinkError
from edgeslm.schema.rule_trace import FiringTrace

log = logging.getLogger(__name__)

SEND_WITHIN_S = 10.0
_MAX_UNSENT = 256

Publish = Callable[[Message], int | None]
"""See ``Link.publish``."""
Keep = Callable[[FiringTrace], None]
"""Keeps the trace of a firing that is over."""


@dataclass
class _Firing:
    """The messages of one firing that are not off our hands."""

    left: int = 0
    lost: int = 0
    trace: FiringTrace | None = None


class Sending:
    """Publishes for all rules of a device."""

    def __init__(self, publish: Publish, keep: Keep, gave_up: Callable[[str, str], None]) -> None:
        """Take whom to call.

        Args:
            gave_up: told of each firing that failed this way: rule, and why.
        """
        self._publish = publish
        self._keep = keep
        self._gave_up = gave_up
        self._unsent: deque[tuple[Send, float, _Firing]] = deque()
        self._firing = _Firing()

    def __bool__(self) -> bool:
        """Whether something waits."""
        return bool(self._unsent)

    def send(self, send: Send) -> None:
        """Publish a message of the firing whose trace comes next."""
        if not self._unsent and self._offer(send, self._firing):
            return
        if len(self._unsent) >= _MAX_UNSENT:
            self._settle(self._unsent.popleft(), is_lost=True)
        self._firing.left += 1
        self._unsent.append((send, time.monotonic() + SEND_WITHIN_S, self._firing))

    def done(self, trace: FiringTrace) -> None:
        """The firing is over, but for what is not sent yet."""
        firing, self._firing = self._firing, _Firing()
        firing.trace = trace
        if not firing.left:
            self._end(firing)

    def again(self, now_s: float) -> None:
        """Try what waits."""
        while self._unsent:
            send, until_s, firing = self._unsent[0]
            if now_s > until_s:
                log.warning("rule %s: a message to %s is given up: the broker is away", send.rule, send.topic)
                self._settle(self._unsent.popleft(), is_lost=True)
            elif self._offer(send, firing):
                self._settle(self._unsent.popleft(), is_lost=False)
            else:
                return

    def give_up(self) -> None:
        """Nothing is sent any more."""
        while self._unsent:
            self._settle(self._unsent.popleft(), is_lost=True)

    def _offer(self, send: Send, firing: _Firing) -> bool:
        """Whether it is off our hands."""
        try:
            message = Message(send.topic, send.payload, qos=send.qos, retain=send.retain, hops=send.hops)
            return self._publish(message) is not None
        except LinkError as error:
            log.warning("rule %s: a message to %s is dropped: %s", send.rule, send.topic, error)
            firing.lost += 1
            return True

    def _settle(self, item: tuple[Send, float, _Firing], *, is_lost: bool) -> None:
        firing = item[2]
        firing.left -= 1
        firing.lost += is_lost
        if not firing.left and firing.trace is not None:
            self._end(firing)

    def _end(self, firing: _Firing) -> None:
        trace = firing.trace
        assert trace is not None  # noqa: S101 - whoever calls has looked
        if firing.lost:
            why = f"{firing.lost} of its messages could not be sent"
            trace = trace.model_copy(update={"outcome": "failed", "detail": why})
            self._gave_up(trace.rule, why)
        self._keep(trace)
