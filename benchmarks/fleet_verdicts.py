"""Is a release that is worse stopped by its canaries, and does one that is no different go through?

Every seed is another fleet: one to four types of board, some devices with a meter and some that only estimate, boards
that are quiet and boards that are not. Devices judge with the gate that ships, the controller that ships decides, the
plan is the default one. What is worse is worse by exactly the limit.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from typing import Any, Final

from benchmarks.agent_rig import say
from benchmarks.fleet_rig import BOARDS, MODEL
from benchmarks.fleet_virtual import VirtualFleet, published
from benchmarks.report import Found
from edgeslm.schema.rollout import DEFAULT_WAVES, RolloutPlan, parse_waves
from edgeslm.schema.sim_fleet import FleetScenario, Noise, ReleaseEffect, SimulatedGroup

RUNS, QUICK_RUNS = 100, 10
DEVICES = 40
KINDS: Final[Mapping[str, dict[str, float]]] = {
    "slower": {"time": 0.10},
    "hungrier": {"energy": 0.10},
    "answers": {"answers": 0.03},
    "same": {},
}
_PROCESSES = 2
_PARTS = 4
_LIMIT = timedelta(days=2)


def fleet_of(kind: str, seed: int) -> FleetScenario:
    """The fleet of one run."""
    chance = random.Random(f"{kind} {seed}")
    boards = chance.sample(BOARDS, chance.randint(1, len(BOARDS)))
    groups = []
    for place, board in enumerate(boards):
        count = DEVICES // len(boards) + (place < DEVICES % len(boards))
        measured = chance.randint(3, count - 1)
        noise = Noise(
            speed=chance.uniform(0.005, 0.03),
            energy=chance.uniform(0.01, 0.04),
            drift=chance.uniform(-0.002, 0.002),
            bursts=chance.uniform(0.0, 0.05),
            spread=chance.uniform(0.0, 0.01),
        )
        for meter, part in (("measured", measured), ("estimated", count - measured)):
            groups.append(
                SimulatedGroup.model_validate(
                    {
                        "name": f"{board}-{meter}",
                        "count": part,
                        "board": board,
                        "models": {MODEL: "1.0.0"},
                        "meter": meter,
                        "noise": noise,
                    }
                )
            )
    effects = [ReleaseEffect(release=f"{MODEL}@1.1.0", **KINDS[kind])] if KINDS[kind] else []
    return FleetScenario(
        name="verdict", title=kind, seed=seed, interval_s=None, groups=tuple(groups), releases=tuple(effects)
    )


def runs(kind: str, seeds: range) -> list[tuple[str, str]]:
    """How rollouts end, and why.

    ``through`` is one that its canaries let pass, or, where the release is no different, one that was completed; else
    it is the phase in which it is.
    """
    found = []
    plan = RolloutPlan(waves=parse_waves(DEFAULT_WAVES))
    with published(["1.0.0", "1.1.0"]) as releases:
        for seed in seeds:
            with VirtualFleet(releases, fleet_of(kind, seed)) as fleet:
                number = fleet.begin("1.1.0", plan)
                phase, wave, reason = fleet.carry_on(number, within_wave=bool(KINDS[kind]), limit=_LIMIT)
                is_through = phase == "completed" or (KINDS[kind] and wave > 0)
                found.append(("through" if is_through else phase, reason))
    return found


def measure_verdicts(quick: bool) -> Found:
    """``bad_release_stopped_at_canary`` of 100, for the worst kind, and ``good_release_wrongly_paused`` of 100."""
    count = QUICK_RUNS if quick else RUNS
    part = -(-count // _PARTS)
    asked = [
        (kind, range(first, min(first + part, count))) for kind in KINDS for first in range(0, count, part)
    ]
    ends: dict[str, list[tuple[str, str]]] = {kind: [] for kind in KINDS}
    # Processes of their own: each thinks long, and there is one lock for all threads of one.
    with ProcessPoolExecutor(_PROCESSES, mp_context=get_context("spawn")) as pool:
        jobs = [(kind, pool.submit(runs, kind, seeds)) for kind, seeds in asked]
        for kind, job in jobs:
            ends[kind] += job.result()
            say(f"{kind}: {dict(Counter(end for end, _ in ends[kind]))}")
    stopped = {
        kind: sum(end != "through" for end, _ in found) * 100 / count
        for kind, found in ends.items()
        if KINDS[kind]
    }
    paused = sum(end != "through" for end, _ in ends["same"]) * 100 / count
    return {
        "bad_release_stopped_at_canary": min(stopped.values()),
        "good_release_wrongly_paused": paused,
        "verdict_detail": _detail(ends),
    }


def _detail(ends: Mapping[str, list[tuple[str, str]]]) -> dict[str, Any]:
    return {
        kind: {
            "runs": len(found),
            **Counter(end for end, _ in found),
            "odd": [reason for end, reason in found if end not in {"through", "returning"}][:5],
        }
        for kind, found in ends.items()
    }
