"""Does the gate catch what is worse and let pass what is not? Seeded runs on simulated boards.

``measure_gate`` gives ``regression_caught`` (the lowest of the shares of runs in which a release that is 10 % slower,
uses 10 % more joules, or gets 3 % of the golden prompts wrong **failed**) and ``false_hold`` (share of runs in which
a release that is no different did not pass, be it failed or inconclusive).

What is measured is the product's own ``Measurement`` and ``judge``; only the board and its releases are simulated.
Each seed is another board type in another room: heat and throttling from the physics of ``sim.board``; other load as
a random walk with bursts of up to two cores; clock jitter that lasts for seconds; prompts of users; a meter with its
own period, lag, noise, and gain that is off and wanders. The figures were chosen to be about what boards at home show,
and then ``HARD`` takes all of it twice as large.

Run by itself: ``python -m benchmarks.update_gate [--json] [--quick]``.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from edgeslm.agent.ports import Activity, Model
from edgeslm.agent.update.measuring import Bench, Measurement, right_answers
from edgeslm.agent.update.ports import Cancelled, DeviceFacts, EnergyCount
from edgeslm.errors import UnknownModelError
from edgeslm.power.boards import load_boards
from edgeslm.power.port import Throttling, Vitals
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.package import GoldenCase
from edgeslm.schema.update import GatePolicy, Verdict
from edgeslm.sim.board import FREQUENCY_CAPPED, THROTTLED, UNDER_VOLTAGE, Inputs, initial, plant_of, step

SEEDS = 100
QUICK_SEEDS = 12
HARD = 2.0
TOKENS = 12
PREFILL_SHARE = 0.4
STEP_S = 0.05


@dataclass(frozen=True)
class Release:
    """A release on a simulated board, compared to one that takes 1.

    Attributes:
        work: processor time that a prompt takes.
        joules: whole-board energy a prompt, at equal time.
        wrong: numbers of the golden prompts that it gets wrong.
    """

    work: float = 1.0
    joules: float = 1.0
    wrong: frozenset[int] = frozenset()


class SimBoard:
    """A board with all that disturbs a measurement; implements ``Device``, ``BoardEnergy`` and ``Serving``."""

    def __init__(self, seed: int, noise: float = 1.0) -> None:
        self.rng = rng = random.Random(seed)
        boards = [board for name, board in load_boards().items() if name.startswith("pi-")]
        board = rng.choice(sorted(boards, key=lambda board: board.name))
        self.plant = plant_of(board)
        self.threads = board.threads
        self.air_c = rng.uniform(15.0, 38.0)
        self.state = initial(self.plant, self._inputs(0.0))
        self.prompt_work_s = rng.uniform(0.05, 0.3) * self.threads
        self._load_mean = noise * rng.uniform(0.0, 0.2)
        self._load_deviation = noise * rng.uniform(0.02, 0.12)
        self._load_lasts_s = rng.uniform(2.0, 30.0)
        self._load = self._load_mean
        self._burst_rate = noise / rng.uniform(40.0, 400.0)
        self._burst_left_s = self._burst = 0.0
        self._jitter_deviation = noise * rng.uniform(0.004, 0.025)
        self._jitter_lasts_s = rng.uniform(1.0, 20.0)
        self._jitter = 0.0
        self._user_rate = rng.choice([0.0, 1 / 120, 1 / 30])
        self._user_left_s = 0.0
        self._begun = 0
        self.period_s = rng.choice([0.04, 0.1, 0.2, 1.0])
        self._lag_s = rng.choice([0.0, 0.1, 0.3]) if self.period_s >= 0.1 else 0.0
        self._meter_noise = noise * rng.uniform(0.004, 0.025)
        self._gain = rng.gauss(1.0, 0.03)
        self._count = EnergyCount(0.0, 0.0, rng.choice(["measured", "calibrated"]))
        self._seen: list[tuple[float, float]] = [(0.0, 0.0)]

    # --- physics -----------------------------------------------------------------------------------------------

    def pass_time(self, busy_cores: float, dt_s: float) -> float:
        """Let time pass with some cores busy by us; the rate at which our work goes on, 1 at full clock and alone."""
        rng = self.rng
        fade = math.exp(-dt_s / self._load_lasts_s)
        self._load = self._load_mean + (self._load - self._load_mean) * fade
        self._load += rng.gauss(0.0, self._load_deviation) * math.sqrt(1.0 - fade * fade)
        self._burst_left_s -= dt_s
        if self._burst_left_s <= 0.0:
            self._burst = 0.0
            if rng.random() < self._burst_rate * dt_s:
                self._burst_left_s, self._burst = rng.expovariate(1 / 5.0), rng.uniform(0.3, 2.0)
        self._user_left_s -= dt_s
        if self._user_left_s <= 0.0 and rng.random() < self._user_rate * dt_s:
            self._user_left_s = rng.uniform(0.1, 2.0)
            self._begun += 1
        others = max(0.0, self._load) + self._burst + (self.threads if self._user_left_s > 0.0 else 0.0)
        fade = math.exp(-dt_s / self._jitter_lasts_s)
        self._jitter = self._jitter * fade + rng.gauss(0.0, self._jitter_deviation) * math.sqrt(
            1.0 - fade * fade
        )
        self.state = step(self.plant, self.state, self._inputs(busy_cores + others), dt_s)
        self._look_at_meter()
        wanted = busy_cores + others
        share = min(1.0, self.plant.cores / wanted) if wanted > 0.0 else 1.0
        # Others take caches and memory bandwidth as well as cores.
        return (
            self.state.frequency_mhz
            / self.plant.max_mhz
            * share
            * (1.0 - 0.04 * others)
            * math.exp(self._jitter)
        )

    def _inputs(self, busy_cores: float) -> Inputs:
        return Inputs(min(busy_cores, float(self.plant.cores)), self.air_c, self.plant.supply_w)

    def _look_at_meter(self) -> None:
        state = self.state
        self._seen.append((state.time_s, state.energy_j))
        due_s = self._count.at_s + self.period_s
        if state.time_s - self._lag_s < due_s:
            return
        until_s = state.time_s - self._lag_s
        while len(self._seen) > 2 and self._seen[1][0] <= self._count.at_s:
            del self._seen[0]
        begin = self._seen[0]
        end = next((point for point in self._seen if point[0] >= until_s), self._seen[-1])
        if end[0] <= begin[0]:
            return
        self._gain *= math.exp(self.rng.gauss(0.0, 0.0002))
        true_w = (end[1] - begin[1]) / (end[0] - begin[0])
        shown_w = round(true_w * self._gain * math.exp(self.rng.gauss(0.0, self._meter_noise)), 2)
        # The meter thinks that its value is of now.
        total_j = self._count.total_j + shown_w * (state.time_s - self._count.at_s)
        self._count = EnergyCount(state.time_s, total_j, self._count.meter)

    # --- Device ------------------------------------------------------------------------------------------------

    @property
    def facts(self) -> DeviceFacts:
        """Part of ``Device``."""
        return DeviceFacts("sim", "0.1.0", frozenset(), ("litert",), 1024, self.threads)

    @property
    def energy(self) -> SimBoard:
        """Part of ``Device``."""
        return self

    def count(self) -> EnergyCount:
        """Part of ``BoardEnergy``."""
        return self._count

    def vitals(self) -> Vitals:
        """Part of ``Device``."""
        flags = self.state.flags
        throttling = Throttling(
            under_voltage=bool(flags & UNDER_VOLTAGE),
            frequency_capped=bool(flags & FREQUENCY_CAPPED),
            throttled=bool(flags & THROTTLED),
        )
        shown_c = round(2.0 * (self.state.temperature_c + self.rng.gauss(0.0, 0.2))) / 2.0
        return Vitals(self.state.time_s, temperature_c=shown_c, throttling=throttling)

    def available_mb(self) -> int | None:
        """Part of ``Device``."""
        return None

    def is_online(self) -> bool:
        """Part of ``Device``."""
        return True

    def utc(self) -> datetime | None:
        """Part of ``Device``."""
        return datetime.now(UTC)

    def may_try(self) -> str | None:
        """Part of ``Device``."""
        return None

    def monotonic(self) -> float:
        """Part of ``Device``."""
        return self.state.time_s

    def sleep(self, seconds: float) -> None:
        """Part of ``Device``."""
        until_s = self.state.time_s + seconds
        while self.state.time_s < until_s:
            self.pass_time(0.0, min(0.5, seconds))

    # --- Serving -----------------------------------------------------------------------------------------------

    def any_activity(self) -> Activity:
        """Part of ``Serving``."""
        return Activity(self._begun, 0, self._user_left_s > 0.0)

    def activity(self, name: str) -> Activity:
        """Part of ``Serving``."""
        del name
        return self.any_activity()

    def served(self, name: str) -> InstalledPackage | None:
        """Part of ``Serving``; nothing is really served here."""
        del name
        return None

    def swap(self, name: str, installed: InstalledPackage, *, beside: bool) -> float:
        """Part of ``Serving``; nothing is really served here."""
        raise UnknownModelError(f"{name} cannot be swapped on a simulated board")

    def withdraw(self, name: str) -> None:
        """Part of ``Serving``; nothing is really served here."""

    @contextmanager
    def hold(self, name: str) -> Iterator[Model]:
        """Part of ``Serving``; nothing is really served here."""
        raise UnknownModelError(f"{name} is not served on a simulated board")
        yield


@dataclass(frozen=True)
class SimAnswer:
    """``Timed``."""

    text: str
    data: dict[str, object] | None
    ttft_s: float | None
    decode_s: float
    tokens: int


class SimSubject:
    """``Subject``: a release that computes on a simulated board."""

    def __init__(self, board: SimBoard, release: Release, peak_mb: float) -> None:
        self._board = board
        self._release = release
        self.peak_mb: float | None = peak_mb
        plant = board.plant
        busy_w = plant.idle_w + board.threads * plant.core_load_w
        more_w = (release.joules - 1.0) * busy_w
        # What draws more without taking longer keeps its cores busier.
        self._busy_cores = board.threads + more_w / plant.core_load_w

    def answer(self, prompts: Sequence[str], cancelled: Cancelled) -> Sequence[SimAnswer]:
        """Part of ``Subject``."""
        del cancelled
        return [self._answer(prompt) for prompt in prompts]

    def close(self) -> None:
        """Part of ``Subject``."""

    def _answer(self, prompt: str) -> SimAnswer:
        work_s = self._release.work * self._board.prompt_work_s / self._board.threads
        ttft_s = self._compute(work_s * PREFILL_SHARE)
        decode_s = self._compute(work_s * (1.0 - PREFILL_SHARE))
        text = "wrong" if int(prompt) in self._release.wrong else "right"
        return SimAnswer(text, None, ttft_s, decode_s, TOKENS)

    def _compute(self, work_s: float) -> float:
        board, done_s, took_s = self._board, 0.0, 0.0
        while done_s < work_s:
            dt_s = min(STEP_S, max(work_s - done_s, 1e-4))
            done_s += board.pass_time(self._busy_cores, dt_s) * dt_s
            took_s += dt_s
        return took_s


def run_gate(seed: int, old: Release, new: Release, prompts: int, noise: float = 1.0) -> Verdict:
    """The verdict of the real gate on one simulated board."""
    board = SimBoard(seed, noise)
    cases = tuple(GoldenCase(prompt=str(number), text="right") for number in range(prompts))
    peak_mb = board.rng.uniform(60.0, 300.0)
    before, after = (SimSubject(board, item, peak_mb + board.rng.uniform(0.0, 1.5)) for item in (old, new))

    def never() -> bool:
        return False

    board.sleep(60.0)
    began_s = board.monotonic()
    old_right = right_answers(before, cases, never)
    prompt_s = (board.monotonic() - began_s) / prompts
    new_right = right_answers(after, cases, never)
    bench = Bench("beside", after, before, cases, new_right, old_right, prompt_s)
    return Measurement(board, board, GatePolicy(), never).compare(bench)


def _runs(name: str, seeds: int, noise: float) -> dict[str, Any]:
    verdicts = []
    for seed in range(seeds):
        rng = random.Random(f"{name}{seed}")
        prompts = rng.randint(34, 200)
        missed = frozenset(rng.sample(range(prompts), rng.randint(0, prompts // 20)))
        old, new = Release(wrong=missed), Release(wrong=missed)
        if name == "slower":
            new = Release(work=1.1, wrong=missed)
        elif name == "hungrier":
            new = Release(joules=1.1, wrong=missed)
        elif name == "answers":
            right = sorted(set(range(prompts)) - missed)
            new = Release(wrong=missed | set(rng.sample(right, math.ceil(0.03 * prompts))))
        verdicts.append(run_gate(seed, old, new, prompts, noise))
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    rounds = sorted(verdict.rounds for verdict in verdicts)
    seconds = sorted(verdict.seconds for verdict in verdicts)
    return {
        "runs": seeds,
        **{outcome: outcomes[outcome] for outcome in ("pass", "fail", "inconclusive")},
        "rounds_p50": statistics.median(rounds),
        "rounds_max": rounds[-1],
        "minutes_p50": round(statistics.median(seconds) / 60, 2),
        "minutes_max": round(seconds[-1] / 60, 2),
        "disturbed": sum(verdict.disturbed for verdict in verdicts),
    }


def measure_gate(seeds: int = SEEDS) -> dict[str, Any]:
    """``regression_caught`` and ``false_hold``, with the runs behind them."""
    names = ("same", "slower", "hungrier", "answers")
    detail = {name: _runs(name, seeds, 1.0) for name in names}
    hard = {f"{name}, noise doubled": _runs(name, seeds, HARD) for name in names[:3]}
    return {
        "regression_caught": min(detail[name]["fail"] / seeds for name in names[1:]),
        "false_hold": 1.0 - detail["same"]["pass"] / seeds,
        "gate_detail": {**detail, **hard},
    }


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.update_gate", description=__doc__)
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SEEDS} seeds instead of {SEEDS}")
    flags = parser.parse_args()
    found = measure_gate(QUICK_SEEDS if flags.quick else SEEDS)
    if flags.as_json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in {**found, **found.pop("gate_detail")}.items():
            print(f"{name:<26}{value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
