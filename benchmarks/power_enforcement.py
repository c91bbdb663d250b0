"""Is a budget kept, is it used, and are alarms on time? Simulated days with the governor that ships.

Four boards with their budgets, several seeds each; up to two days a run, so that the window of a day slides over a
day and a night. Beside the governor, on the same prompts: a fixed duty cycle, worked out from the board's table once
as it stands there and once with the caution that somebody needs who does not measure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgeslm.power.boards import load_boards
from edgeslm.schema.budget import Budget
from edgeslm.sim.enforcement import Outcome, Trial, simulate
from edgeslm.sim.enforcement_board import SimMeter
from edgeslm.sim.enforcement_duty import Caution
from edgeslm.sim.enforcement_work import Load

CAUTION = Caution(idle=1.05, draw=1.1)
"""Boards of a kind differ by about that much at rest and at work."""


def _budget(**windows: str) -> Budget:
    """From ``name="limit over"``."""
    pairs = {name: text.rsplit(" ", 1) for name, text in windows.items()}
    named = [{"name": name, "limit": limit, "over": over} for name, (limit, over) in pairs.items()]
    return Budget.model_validate({"windows": named})


def trials() -> tuple[tuple[Trial, int], ...]:
    """What is tried, and with how many seeds."""
    boards = load_boards()
    pi3, pi4 = boards["pi-3b"].power, boards["pi-4b"].power
    alarming = Load(
        alarm_seconds=(1.0, 3.0), alarms_per_h=20.0, alarm_bursts_per_day=12.0, alarm_burst=(3, 8)
    )
    # A day's energy decides; heat and hour let bursts through.
    day = Trial("pi-4b day", pi4, 3, _budget(heat="4.5 W 1m", hour="3.6 W 1h", day="84 Wh 1d"), load=alarming)
    # A weak supply besides: three threads would draw too much.
    supply = Trial(
        "pi-3b supply",
        pi3,
        3,
        _budget(supply="3.0 W 1s", heat="2.4 W 1m", hour="2.2 W 1h", day="48 Wh 1d"),
        hours=24,
    )
    # A battery's day that can be burnt in a few hours, and then has to last till the next; a slower meter.
    battery = Trial(
        "pi-3b battery",
        pi3,
        3,
        _budget(heat="3 W 1m", hour="2.8 W 1h", day="45 Wh 1d"),
        meter=SimMeter(period_s=1.0, noise_share=0.01, error_share=0.005),
        load=alarming,
    )
    # A supply so weak that even one thread has to pause between tokens.
    pauses = Trial(
        "pi-4b pauses",
        pi4,
        3,
        _budget(supply="3.5 W 1s", hour="3.2 W 1h"),
        load=Load(token_s=0.2, seconds=(1.0, 4.0), alarm_seconds=(0.3, 1.0), burst_every_s=300.0),
        hours=6,
    )
    return (day, 6), (supply, 3), (battery, 7), (pauses, 4)


@dataclass(frozen=True)
class Run:
    """One trial with one seed, by the governor and by fixed duty cycles."""

    trial: Trial
    seed: int
    governed: Outcome
    duty: Outcome
    cautious_duty: Outcome


def run_all(say: Callable[[str], None], most_seeds: int | None) -> list[Run]:
    """Every trial with every seed."""
    runs = []
    for trial, seeds in trials():
        for seed in range(seeds if most_seeds is None else min(seeds, most_seeds)):
            run = Run(
                trial,
                seed,
                simulate(trial, seed),
                simulate(trial, seed, fixed_duty=Caution()),
                simulate(trial, seed, fixed_duty=CAUTION),
            )
            runs.append(run)
            say(f"{trial.name} {seed}: {_line(run.governed)} | duty {_line(run.duty)}")
    return runs


def _line(outcome: Outcome) -> str:
    over = max(outcome.kept.overshoot.values())
    return (
        f"over {over:.4f} used {outcome.kept.used:.4f} net {outcome.kept.used_net:.4f} "
        f"late {outcome.late}/{outcome.alarms}"
    )


def measure_enforcement(
    say: Callable[[str], None] = lambda text: None, most_seeds: int | None = None
) -> dict[str, float]:
    """The figures; shares between 0 and 1. Overshoot and use are those of the worst run.

    Args:
        say: told of each run.
        most_seeds: fewer seeds for a quick look; the bars ask for all.
    """
    runs = run_all(say, most_seeds)
    governed = [run.governed for run in runs]
    return {
        "enforcement_runs": len(runs),
        "simulated_days": sum(run.trial.hours for run in runs) / 24,
        **_figures(governed, ""),
        "work_waiting_share": min(outcome.waiting_share for outcome in governed),
        "prompts_answered": sum(outcome.counts["answered"] for outcome in governed),
        "prompts_shortened": sum(outcome.counts["shortened"] for outcome in governed),
        "prompts_refused_with_retry": sum(outcome.counts["refused"] for outcome in governed),
        "prompts_refused_for_good": sum(outcome.counts["refused_for_good"] for outcome in governed),
        "prompts_expired": sum(outcome.counts["expired"] for outcome in governed),
        "prompts_busy": sum(outcome.counts["busy"] for outcome in governed),
        "longest_wait_s": max(outcome.longest_wait_s for outcome in governed),
        **_figures([run.cautious_duty for run in runs], "fixed_duty_"),
        **_figures([run.duty for run in runs], "fixed_duty_by_table_"),
    }


def measure_reserve(seeds: int = 2) -> dict[str, float]:
    """What a reserve of a fixed share would do in place of the learned one, where the battery has to last."""
    trial = next(trial for trial, _ in trials() if trial.name == "pi-3b battery")
    found: dict[str, float] = {}
    for name, share in (("learned", None), ("none", 0.0), ("fifth", 0.2)):
        budget = trial.budget.model_copy(update={"reserve_share": share})
        outcomes = [simulate(replace(trial, budget=budget), seed) for seed in range(seeds)]
        found[f"reserve_{name}_budget_used"] = min(outcome.kept.used for outcome in outcomes)
        late, alarms = sum(one.late for one in outcomes), sum(one.alarms for one in outcomes)
        found[f"reserve_{name}_on_time"] = 1 - late / alarms
    return found


def _figures(outcomes: Sequence[Outcome], prefix: str) -> dict[str, float]:
    alarms = sum(outcome.alarms for outcome in outcomes)
    in_need = sum(outcome.alarms_in_need for outcome in outcomes)
    return {
        f"{prefix}window_overshoot": max(max(outcome.kept.overshoot.values()) for outcome in outcomes),
        f"{prefix}budget_used": min(outcome.kept.used for outcome in outcomes),
        f"{prefix}budget_used_mean": sum(outcome.kept.used for outcome in outcomes) / len(outcomes),
        f"{prefix}budget_used_net": min(outcome.kept.used_net for outcome in outcomes),
        f"{prefix}budget_used_net_mean": sum(outcome.kept.used_net for outcome in outcomes) / len(outcomes),
        f"{prefix}high_priority_on_time": 1 - sum(outcome.late_in_need for outcome in outcomes) / in_need,
        f"{prefix}high_priority_on_time_always": 1 - sum(outcome.late for outcome in outcomes) / alarms,
        f"{prefix}alarms_in_need": in_need,
    }


if __name__ == "__main__":
    for name, figure in {**measure_enforcement(print), **measure_reserve()}.items():
        print(f"{name:40} {figure:.4f}")
