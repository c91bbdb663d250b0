"""Figures of energy accounting: how true the joules are, how well they are predicted, and what knowing them costs.

`benchmarks/power.py` calls the functions here and puts their figures beside the others.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.power_energy_world import (
    CORE_W,
    AveragingMeter,
    Bursts,
    Constant,
    CountingMeter,
    InstantMeter,
    Load,
    Source,
    Square50Hz,
    World,
)
from edgeslm.power.account import PERIOD_S, AccountedSpan, EnergyAccount
from edgeslm.power.attribution import Interval
from edgeslm.power.ledger import FLUSH_S, Ledger
from edgeslm.power.port import Cause, Meter
from edgeslm.power.sampler import ACCOUNT_STATE, Sampler, Schedule
from edgeslm.schema.board import PowerTable

LENGTH_S = 1800.0
"""Simulated time of each run."""

_SEEDS = 4
_STALL_S = 5.0
_STALL_EVERY_S = 97.0
_SUSPENDED_SHARE = 1e-4
_ENDS_S = (437.0, 890.0, 1333.0)
_RESTART_S = 2.0
_WALL_STEPS_S = (0.0, 0.0, 0.0, 30.0, -30.0, 3600.0, -3600.0, 86_400.0 * 365, -86_400.0)
_TABLE = PowerTable(idle_w=2.0, core_load_w=0.7, source="wrong on purpose: the board draws more")


@dataclass(frozen=True)
class EnergyRun:
    """One run of accounting against a known truth; all errors are relative.

    Attributes:
        error: of the ledger's total.
        split_error: between all causes and the meter's total.
        prompts_error: of the net joules of all prompts together; 0 where there were none.
        prompt_error: median over prompts of 50 ms or more of the error of their net joules; 0 where there were none.
    """

    name: str
    error: float
    split_error: float
    prompts_error: float
    prompt_error: float


def energy_runs(seeds: int = _SEEDS) -> list[EnergyRun]:
    """Every load on every kind of meter, undisturbed and with stalls, clock steps, counter wraps and restarts."""
    return [
        _energy_run(load, kind, seed, disturbed=disturbed)
        for seed in range(seeds)
        for load in (Constant(), Bursts(LENGTH_S, seed), Square50Hz())
        for kind in ("instant", "averaging", "counting")
        for disturbed in (False, True)
    ]


def _energy_run(load: Load, kind: str, seed: int, *, disturbed: bool) -> EnergyRun:
    world = World(load)
    with tempfile.TemporaryDirectory() as folder:
        meter: Meter
        if kind == "instant":
            meter = InstantMeter(world, seed)
        elif kind == "averaging":
            meter = AveragingMeter(world, PERIOD_S)
        else:
            meter = CountingMeter(world, Path(folder))
        rig = _Rig(world, meter, Path(folder) / "energy.db", seed)
        rig.run(disturbed=disturbed)
        meter.close()
        return rig.result(f"{type(load).__name__} {kind}{' disturbed' if disturbed else ''} {seed}")


class _Rig:
    """Account, sampler and ledger in simulated time, with all that can go wrong around them."""

    def __init__(self, world: World, meter: Meter, path: Path, seed: int) -> None:
        self._world = world
        self._meter = meter
        self._path = path
        self._seed = seed
        self._rng = random.Random(seed)
        self._settled_j = 0.0
        self._shared_j = 0.0
        self._prompts: dict[str, float] = {}
        self._truth: dict[str, tuple[float, float]] = {}

    def run(self, *, disturbed: bool) -> None:
        """Run from 0 to the end, disturbed by stalls, steps of the wall clock, and ends both clean and not."""
        silences = [
            (at_s, at_s + _STALL_S)
            for at_s in (_STALL_EVERY_S * (n + 0.5) for n in range(int(LENGTH_S / _STALL_EVERY_S)))
        ]
        source = Source(
            self._world, self._meter, tuple(silences) if disturbed else (), raises=bool(self._seed % 2)
        )
        for number, end_s in enumerate([*(_ENDS_S if disturbed else ()), LENGTH_S]):
            self._run_once(source, end_s, clean=bool(number % 2), disturbed=disturbed)
            self._world.now_s += _RESTART_S

    def result(self, name: str) -> EnergyRun:
        """What the ledger says beside the truth."""
        ledger = Ledger(self._path, None)
        total = ledger.energy(0.0, 1e12)[0]
        ledger.close()
        truth_j = self._world.load.energy_j(LENGTH_S)
        told = [(net_j, self._truth[name]) for name, net_j in self._prompts.items()]
        told_j = sum(net_j for net_j, _ in told)
        true_j = sum(net_j for _, (net_j, _) in told)
        longer = sorted(
            abs(net_j - true_net_j) / true_net_j for net_j, (true_net_j, seconds) in told if seconds >= 0.05
        )
        return EnergyRun(
            name,
            abs(total.energy_j - truth_j) / truth_j,
            abs(self._shared_j - self._settled_j) / self._settled_j,
            abs(told_j - true_j) / true_j if told else 0.0,
            longer[len(longer) // 2] if longer else 0.0,
        )

    def _run_once(self, source: Source, end_s: float, *, clean: bool, disturbed: bool) -> None:
        world = self._world
        ledger = Ledger(self._path, "the same boot")
        account = EnergyAccount(
            _TABLE, state=ledger.state(ACCOUNT_STATE), clock=world.clock, cpu_clock=world.own_s
        )
        sampler = Sampler(source, account, ledger, listeners=[self._note], wall_clock=world.wall_s)
        schedule = Schedule(world.now_s, PERIOD_S, self._seed)
        work = _Work(world, account, self._truth)
        flush_s = world.now_s + FLUSH_S
        while world.now_s < end_s:
            sampler.sample(world.now_s)
            if world.now_s >= flush_s:
                flush_s += FLUSH_S
                sampler.flush()
                if disturbed:
                    world.wall_offset_s += self._rng.choice(_WALL_STEPS_S)
            due_s = schedule.next_s(world.now_s, scattered=sampler.scattered)
            if disturbed and self._rng.random() < _SUSPENDED_SHARE:
                due_s += _STALL_S  # the thread got no processor
            work.go_to(min(max(due_s, world.now_s), end_s))
        if clean or end_s == LENGTH_S:
            sampler.finish(world.now_s)
        ledger.close()

    def _note(self, interval: Interval) -> None:
        settlement = interval.settlement
        if settlement is None:
            return
        self._settled_j += settlement.energy_j
        self._shared_j += sum(share.energy_j for share in settlement.shares)
        for span in settlement.ended:
            assert span.cause.id is not None
            self._prompts[span.cause.id] = span.net_j


class _Work:
    """Opens and closes a span for each burst of ours as time goes by."""

    def __init__(self, world: World, account: EnergyAccount, truth: dict[str, tuple[float, float]]) -> None:
        bursts = world.load.bursts if isinstance(world.load, Bursts) else []
        self._ahead = [burst for burst in reversed(bursts) if burst.own and burst.start_s >= world.now_s]
        self._world = world
        self._account = account
        self._truth = truth
        self._span: AccountedSpan | None = None

    def go_to(self, at_s: float) -> None:
        """Let time pass."""
        while self._ahead:
            burst = self._ahead[-1]
            event_s = burst.start_s if self._span is None else burst.end_s
            if event_s > at_s:
                break
            self._world.now_s = event_s
            if self._span is None:
                name = f"{burst.start_s:.6f}"
                seconds = burst.end_s - burst.start_s
                self._truth[name] = (CORE_W * burst.cores * seconds, seconds)
                self._span = self._account.begin(Cause("prompt", id=name))
            else:
                self._span.end()
                self._span = None
                self._ahead.pop()
        self._world.now_s = at_s
