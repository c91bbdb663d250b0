"""A rollout carried out from its beginning to where it rests, in whatever fleet: a rehearsal's, for example.

Left to others: where the devices come from (``edgeslm.sim.rehearsal``).
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

from edgeslm.clock import utc_now
from edgeslm.fleet.quarantine import quarantined
from edgeslm.fleet.rollout.assigner import Assigner
from edgeslm.fleet.rollout.beginning import begin
from edgeslm.fleet.rollout.controller import Controller
from edgeslm.fleet.rollout.preflight import Preflight
from edgeslm.fleet.rollout.views import show, summarize
from edgeslm.fleet.store.database import Store
from edgeslm.link.mqtt import MqttLink
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.rollout import FINISHED, RolloutView

_POLL_S = 0.2
_TICK_S = 0.1
"""Devices of a rehearsal need a second for what takes real ones minutes."""


def carry_out(
    store: Store,
    fleet: str,
    broker: BrokerConfig,
    assigner: Assigner,
    checked: Preflight,
    *,
    actor: str,
    stop: threading.Event,
    on_change: Callable[[RolloutView], None] = lambda view: None,
    tick_s: float = _TICK_S,
) -> RolloutView:
    """Begin the rollout that was checked, and carry it out until it ends, waits for somebody, or is stopped.

    Args:
        store: of the fleet in which it happens; it has the devices that were checked.
        fleet: its name.
        broker: as the operator reaches it.
        assigner: makes assignments.
        checked: what is to be done.
        actor: for the audit log.
        stop: ends it early.
        on_change: is told how it stands, again and again.
        tick_s: seconds from turn to turn.

    Returns:
        The rollout with its devices.

    Raises:
        RolloutError: the rollout cannot be begun.
        LinkError: the link cannot be set up.
        FleetError: the store refuses.
    """
    with store.write() as session:
        rollout_id = begin(
            session, checked.plan, checked.target.info, checked.members(), actor=actor, now=utc_now()
        )
    link = MqttLink(broker, f"edgeslm-rehearsal-{secrets.token_hex(6)}")
    with Controller(store, fleet, link, assigner, tick_s=tick_s):
        while True:
            with store.read() as session:
                view = summarize(session, rollout_id)
            on_change(view)
            if view.phase in FINISHED or view.phase in {"paused", "waiting"} or stop.wait(_POLL_S):
                break
    with store.read() as session:
        return show(session, rollout_id, quarantined(session))
