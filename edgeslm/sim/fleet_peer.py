"""A simulated device with its connection: how it is, when it goes away, and when it next has something to do.

What always holds: who goes away when, and for how long, follows from the seed; nothing here touches the network.

Left to others: doing what is due (:mod:`edgeslm.sim.fleet_loop`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from edgeslm.link.port import Message
from edgeslm.schema.enrol import Claim
from edgeslm.schema.sim_fleet import OutageKind
from edgeslm.schema.update import UpdateState
from edgeslm.sim.chance import share
from edgeslm.sim.fleet_device import SimulatedDevice
from edgeslm.sim.fleet_joining import Joining
from edgeslm.sim.fleet_link import Connection, Endpoint
from edgeslm.sim.fleet_plan import Now

LOOK_FOR_POWER_S: Final = 60.0
"""How often it is looked, in simulated time, whether a board without power has some again."""
PING_SHARE: Final = 0.75
"""Share of the keepalive after which a silent device says that it is there."""
_ARRIVE, _AWAY, _DROP, _OUTAGE, _BACKOFF = range(100, 105)
"""What a number of chance is for; apart from those of a device's own."""

Phase = Literal["waiting", "joining", "connecting", "online", "off", "cut", "rejected"]


@dataclass(slots=True)
class Counts:
    """What happened so far.

    Attributes:
        connected: connections that the broker took,
        lost: and that ended without our wish; `failed` never came so far.
        joined: devices that got a certificate.
        sent: messages that devices said, `received` those that they heard.
        denied: messages that the broker did not let through.
    """

    connected: int = 0
    lost: int = 0
    failed: int = 0
    joined: int = 0
    sent: int = 0
    received: int = 0
    denied: int = 0


@dataclass(slots=True)
class Away:
    """A time for which a device goes away; real seconds of the loop's clock.

    Attributes:
        during: it begins when an update enters this state, and lasts `for_s`.
    """

    kind: OutageKind
    from_s: float
    for_s: float
    during: UpdateState | None = None


@dataclass(slots=True, eq=False)
class Peer:
    """A device with its connection; for the loop's thread.

    Attributes:
        file: where its key and certificate lie, or will.
        endpoint: where it connects; ``None`` while it has no certificate.
        claim: that it joins with.
        planned: when it will go away.
        away: why it is away, until `away_until_s`.
        due_s: the moment for which it stands in the heap.
    """

    device: SimulatedDevice
    file: Path | None = None
    endpoint: Endpoint | None = None
    claim: Claim | None = None
    planned: list[Away] = field(default_factory=list)
    away: OutageKind | None = None
    away_until_s: float = math.inf
    away_since_s: float = 0.0
    joining: Joining | None = None
    rejected: str | None = None
    connection: Connection | None = None
    polled: int = 0
    connect_at_s: float = math.inf
    is_queued: bool = False
    give_up_s: float = math.inf
    opened_s: float = math.inf
    failures: int = 0
    drops: int = 0
    drop_at_s: float = math.inf
    delayed: deque[tuple[float, Sequence[Message]]] = field(default_factory=deque)
    due_s: float = math.inf

    @property
    def phase(self) -> Phase:
        """How it is, in a word."""
        if self.rejected is not None:
            return "rejected"
        if self.away is not None:
            return self.away
        if not self.device.is_on:
            return "off"
        if self.endpoint is None:
            return "joining"
        if self.connection is None:
            return "waiting"
        return "online" if self.connection.phase == "open" else "connecting"

    def plan(self, began_s: float, *, seed: int, speed: float, arrive_s: float) -> None:
        """Say when it connects for the first time, and when it will be away; `began_s` is the beginning of all."""
        number, group = self.device.number, self.device.group
        self.connect_at_s = began_s + arrive_s * share(seed, number, _ARRIVE)
        for place, outage in enumerate(group.outages):
            if share(seed, number, _OUTAGE, place) < outage.share:
                from_s = math.inf if outage.during is not None else began_s + outage.at_s / speed
                for_s = math.inf if outage.for_s is None else outage.for_s / speed
                self.planned.append(Away(outage.kind, from_s, for_s, outage.during))
        self._hold()
        if self.endpoint is None and self.claim is None:
            self.rejected = "it has no certificate and no claim"
        self.plan_drop(began_s, seed=seed, speed=speed)

    def begin(self, away: Away) -> None:
        """Take it from what is planned, for it begins."""
        self.planned.remove(away)
        self._hold()

    def _hold(self) -> None:
        self.device.updates.hold_in = frozenset(
            away.during for away in self.planned if away.during is not None
        )

    def plan_drop(self, now_s: float, *, seed: int, speed: float) -> float:
        """Say when its link drops next; how long it is down when it drops now."""
        link = self.device.group.link
        if link.drop_every_s is None:
            return 0.0
        number = self.device.number
        self.drop_at_s = now_s + _waited(seed, number, _DROP, self.drops) * link.drop_every_s / speed
        self.drops += 1
        return _waited(seed, number, _AWAY, self.drops) * link.outage_s / speed

    def jitter(self, seed: int) -> float:
        """From 0 to 1, for the pause before the next attempt to connect."""
        return share(seed, self.device.number, _BACKOFF, self.failures)

    def next_s(self, now: Now, speed: float) -> float:
        """When it has something to do; infinite for never, or when the network says so."""
        if self.rejected is not None:
            return math.inf
        if self.away is not None:
            # A device whose network is cut works on.
            works = self.away == "cut" and self.endpoint is not None
            return min(self.away_until_s, self.device.due_s(now) if works else math.inf)
        due_s = min((away.from_s for away in self.planned), default=math.inf)
        if not self.device.is_on:
            return min(due_s, now.real_s + LOOK_FOR_POWER_S / speed)
        due_s = min(due_s, self.drop_at_s, self.give_up_s)
        if self.connection is None:
            if not self.is_queued:
                due_s = min(due_s, self.connect_at_s)
        elif self.connection.phase == "open":
            due_s = min(due_s, self.ping_at_s)
            if self.joining is not None:
                due_s = min(due_s, self.joining.due_s)
        if self.delayed:
            due_s = min(due_s, self.delayed[0][0])
        return due_s if self.endpoint is None else min(due_s, self.device.due_s(now))

    @property
    def ping_at_s(self) -> float:
        """When a silent device has to say that it is there."""
        if self.connection is None:
            return math.inf
        return self.connection.sent_s + PING_SHARE * self.device.group.link.keepalive_s


def _waited(seed: int, *place: int) -> float:
    """A time until something that happens at random, of mean 1."""
    return -math.log(1.0 - share(seed, *place))
