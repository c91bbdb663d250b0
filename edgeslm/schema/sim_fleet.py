"""A fleet of simulated devices (``edgeslm/sim/fleets/*.yaml``): what they are, what goes wrong, what releases do.

Times are seconds since the simulation began, in simulated time, of which `speed` pass in a real one. Shares are
fractions: 0.1 is ten percent. What a release does is told as in a verdict: above 0 is for the worse, whatever the unit.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from edgeslm.schema.base import FileModel, Identifier, SemanticVersion
from edgeslm.schema.message import MeterClass
from edgeslm.schema.scenario import Seconds, Share, Spell
from edgeslm.schema.update import UpdatePolicy, UpdateState

MAX_SIMULATED = 20_000

GroupName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,23}$")]
"""Devices are called after their group, and a certificate has room for 64 characters."""
ReleaseName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9-]{1,64}@\d{1,9}\.\d{1,9}\.\d{1,9}[0-9A-Za-z.-]{0,65}$")
]
"""Such as ``home-command@1.1.0``."""
Change = Annotated[float, Field(gt=-0.9, le=10, allow_inf_nan=False)]
Sigma = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
LieKind = Literal["negative watts", "future time", "other's identity"]
OutageKind = Literal["off", "cut"]


class Noise(FileModel):
    """How much runs of the same release differ on one device.

    Attributes:
        speed: deviation (one sigma) of the mean time of a block of prompts,
        energy: and of its joules.
        drift: share by which everything gets slower from one block to the next, as on a board that warms up.
        bursts: share of blocks into which something bursts that takes half as long again.
        spread: deviation of what a release does on one device from what it does on the next.
    """

    speed: Sigma = 0.015
    energy: Sigma = 0.02
    drift: Annotated[float, Field(ge=-0.1, le=0.1)] = 0.0
    bursts: Share = 0.0
    spread: Sigma = 0.005


class SimulatedLink(FileModel):
    """The network of a device.

    Attributes:
        drop_every_s: mean time between lost connections; ``None`` is never.
        outage_s: how long each of them lasts, on average.
        latency_ms: what everything takes longer that a device sends, in real time.
        mb_per_s: megabytes of a package that arrive in a second.
        keepalive_s: seconds after which the broker misses a silent device, half as long again; real ones.
    """

    drop_every_s: Annotated[float, Field(ge=1, le=1e9)] | None = None
    outage_s: Annotated[float, Field(gt=0, le=1e7)] = 5.0
    latency_ms: Annotated[float, Field(ge=0, le=60_000)] = 0.0
    mb_per_s: Annotated[float, Field(gt=0, le=10_000)] = 2.0
    keepalive_s: Annotated[int, Field(ge=5, le=3600)] = 60


class SimulatedClock(FileModel):
    """The clocks of a group.

    Attributes:
        offset_s: deviation (one sigma) of the clocks from the right time.
        drift_ppm: deviation of their rates, in seconds a million seconds.
        unset_share: devices whose clock began in 1970.
    """

    offset_s: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    drift_ppm: Annotated[float, Field(ge=0, le=100_000)] = 0.0
    unset_share: Share = 0.0


class Outage(Spell):
    """Some of a group's devices go away for a while, or for good.

    Attributes:
        kind: ``off`` is a board that goes out without a word; ``cut`` a network that swallows everything.
        share: of the group, chosen by the seed.
        at_s: when,
        during: or as soon as a change of theirs enters this state; then `at_s` does not count.
    """

    at_s: Seconds = 0.0
    kind: OutageKind = "off"
    share: Share = 1.0
    during: UpdateState | None = None


class Liar(FileModel):
    """Devices that say what is not so.

    Attributes:
        kind: ``negative watts`` reports energy below 0; ``future time`` has a clock a year ahead that it calls set;
            ``other's identity`` speaks in the name, and on the topics, of another device.
        share: of the group, chosen by the seed.
    """

    kind: LieKind
    share: Share


class SimulatedGroup(FileModel):
    """Devices of one kind.

    Attributes:
        name: they are called ``<name>-0001`` and so on.
        board: type of board, by the name of its file.
        conditions: what acts on the boards: supply, sun, air, work; a name that ``edgeslm sim scenarios`` lists.
        models: version that runs at the beginning, by name; what a name begins with has nothing to be compared with.
        meter: how energy is known; ``None`` is not at all.
        prompts_per_h: prompts that each device answers.
        profile: what they are set up to do.
        tags: in the fleet's store, of devices that are written there instead of joining.
    """

    name: GroupName
    count: Annotated[int, Field(ge=1, le=MAX_SIMULATED)]
    board: Identifier = "pi-4b"
    conditions: Identifier = "desk"
    models: Annotated[dict[Identifier, SemanticVersion], Field(max_length=32)]
    meter: MeterClass | None = "measured"
    noise: Noise = Noise()
    link: SimulatedLink = SimulatedLink()
    clock: SimulatedClock = SimulatedClock()
    outages: Annotated[tuple[Outage, ...], Field(max_length=32)] = ()
    liars: Annotated[tuple[Liar, ...], Field(max_length=8)] = ()
    prompts_per_h: Annotated[float, Field(ge=0, le=1e6)] = 12.0
    profile: Identifier | None = None
    tags: Annotated[tuple[Identifier, ...], Field(max_length=16)] = ()

    @model_validator(mode="after")
    def _lies_are_of_somebody(self) -> Self:
        if sum(liar.share for liar in self.liars) > 1.0 + 1e-9:
            raise ValueError("the shares of liars add up to more than the whole group")
        return self


class ReleaseEffect(FileModel):
    """What a release does to devices, compared with one that does nothing.

    Attributes:
        release: name and version.
        boards: types of boards on which it does so; empty is all.
        time: share by which prompts take longer,
        energy: need more joules,
        memory: and more memory.
        answers: share of golden prompts that it gets wrong.
        crashes: share of devices on which it crashes in its trial,
        crashes_later: and on which it passes, and crashes when it serves.
        size_mb: of its package, where no repository says so.
    """

    release: ReleaseName
    boards: Annotated[tuple[Identifier, ...], Field(max_length=32)] = ()
    time: Change = 0.0
    energy: Change = 0.0
    memory: Change = 0.0
    answers: Share = 0.0
    crashes: Share = 0.0
    crashes_later: Share = 0.0
    size_mb: Annotated[float, Field(gt=0, le=100_000)] = 4.0


class FleetScenario(FileModel):
    """A simulated fleet.

    Attributes:
        title: one line for a list.
        seed: decides everything that is left to chance.
        speed: simulated seconds in a real one. What is on the wire stays in real time: reports, clocks, reconnecting.
        arrive_s: real seconds over which devices connect for the first time.
        interval_s: real seconds between reports; ``None`` is no reports.
        policy: of the devices' updates.
    """

    name: Identifier
    title: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    speed: Annotated[float, Field(gt=0, le=1e5)] = 1.0
    arrive_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    interval_s: Annotated[float, Field(ge=0.1, le=86_400)] | None = 60.0
    groups: Annotated[tuple[SimulatedGroup, ...], Field(min_length=1, max_length=1024)]
    releases: Annotated[tuple[ReleaseEffect, ...], Field(max_length=256)] = ()
    policy: UpdatePolicy = UpdatePolicy()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            raise ValueError("two groups have the same name")
        if sum(group.count for group in self.groups) > MAX_SIMULATED:
            raise ValueError(f"more than {MAX_SIMULATED} devices")
        places = [(effect.release, board) for effect in self.releases for board in effect.boards or ("",)]
        if len(set(places)) != len(places):
            raise ValueError("two effects of one release on the same boards")
        return self


class FleetSummary(BaseModel):
    """How a simulated fleet is.

    Attributes:
        sim_s: simulated seconds since it began.
        phases: devices by how they are: ``online``, ``waiting`` for the next attempt to connect, ``connecting``,
            ``joining``, ``off``, ``cut``, ``rejected``.
        running: devices by what they run, as ``name@version``.
        changes: devices by the state of their latest change to a release, as ``name@version state``; who committed it
            and has yet to show that it serves well is ``on probation``.
        faults: devices by why that did not go on.
        counts: what happened so far, see :class:`edgeslm.sim.fleet_peer.Counts`.
        refused: assignments that devices did not follow; `why_refused` tells of one.
        reasons: why connections ended or did not come to be, by how often.
    """

    model_config = ConfigDict(frozen=True)

    devices: int
    sim_s: float
    phases: dict[str, int]
    running: dict[str, int]
    changes: dict[str, int]
    faults: dict[str, int]
    counts: dict[str, int]
    refused: int
    why_refused: str = ""
    reasons: dict[str, int]

    def online(self) -> int:
        """Devices that are connected."""
        return self.phases.get("online", 0)
