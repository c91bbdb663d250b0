"""What the devices of a simulated group have in common, and what a moment is. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from edgeslm.schema.board import Board
from edgeslm.schema.scenario import Scenario
from edgeslm.schema.sim_fleet import SimulatedGroup
from edgeslm.schema.update import UpdatePolicy
from edgeslm.sim.board import Plant
from edgeslm.sim.fleet_gate import Effects
from edgeslm.sim.fleet_trust import Trust
from edgeslm.sim.fleet_update import Running


@dataclass(frozen=True, slots=True)
class Now:
    """A moment.

    Attributes:
        sim_s: simulated seconds since the simulation began.
        real_s: seconds of a monotonic clock.
        wall_s: the right Unix time.
    """

    sim_s: float
    real_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What all devices of a group have in common.

    Attributes:
        fleet: its name.
        seed: of the simulation.
        speed: simulated seconds in a real one.
        interval_s: real seconds between reports; ``None`` is no reports.
        board: its facts,
        plant: its physics,
        conditions: and what acts on it.
        starts: what runs at the beginning, by name.
        effects: what releases do.
        policy: of updates.
        trust: what is believed.
        epoch: of this simulation: its devices know nothing of an earlier one.
    """

    fleet: str
    seed: int
    speed: float
    interval_s: float | None
    group: SimulatedGroup
    board: Board
    plant: Plant
    conditions: Scenario
    starts: dict[str, Running]
    effects: Effects
    policy: UpdatePolicy
    trust: Trust
    epoch: str
