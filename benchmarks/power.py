"""Figures of power: ``python -m benchmarks.power [--json] [--quick] [--only KEY,...]``.

Enforcement is taken on simulated days in virtual time, by the governor that ships, and beside it in the same run the
plain alternative, a fixed duty cycle. Energy and prediction are held against a simulated truth; what measuring costs is
taken on this machine, in real time.
"""

from __future__ import annotations

from benchmarks.power_cost import sampler_cost, tokens_lost
from benchmarks.power_energy import energy_runs
from benchmarks.power_enforcement import measure_enforcement
from benchmarks.power_prediction import prediction_error, real_prediction_error
from benchmarks.report import Benchmark, Found, Group, run

BARS = {
    "window_overshoot": ("<=", 0.02),
    "budget_used": (">=", 0.95),
    "high_priority_on_time": (">=", 0.999),
    "prediction_error": ("<", 0.15),
    "energy_error": ("<", 0.01),
    "attribution_error": ("<", 0.01),
    "sampler_cpu": ("<", 0.01),
    "sampler_mb": ("<", 5.0),
    "sampler_tps_cost": ("<", 0.01),
}


def _energy(quick: bool) -> Found:
    runs = energy_runs(1) if quick else energy_runs()
    return {
        "energy_error": max(run.error for run in runs),
        "attribution_error": max(run.split_error for run in runs),
        "energy_detail": {run.name: {"error": run.error, "prompts_error": run.prompts_error} for run in runs},
    }


def _prediction(quick: bool) -> Found:
    simulated = prediction_error(4) if quick else prediction_error()
    real = real_prediction_error()
    return {
        "prediction_error": simulated.error,
        "prediction_error_real": real.error,
        "prediction_detail": {
            "seconds_error": simulated.seconds_error,
            "below_p90": simulated.below_p90,
            "real_below_p90": real.below_p90,
        },
    }


def _cost(quick: bool) -> Found:
    cost = sampler_cost(10.0) if quick else sampler_cost()
    return {"sampler_cpu": cost.cpu, "sampler_mb": cost.mb, "sampler_samples": cost.samples}


GROUPS = (
    Group(
        (
            *("window_overshoot", "budget_used", "budget_used_net", "high_priority_on_time"),
            *("fixed_duty_budget_used", "fixed_duty_window_overshoot", "fixed_duty_high_priority_on_time"),
        ),
        lambda quick: {**measure_enforcement(most_seeds=1 if quick else None)},
    ),
    Group(("energy_error", "attribution_error"), _energy),
    Group(("prediction_error", "prediction_error_real"), _prediction),
    Group(("sampler_cpu", "sampler_mb"), _cost),
    Group(
        ("sampler_tps_cost",),
        lambda quick: {"sampler_tps_cost": tokens_lost(10.0) if quick else tokens_lost()},
    ),
)


if __name__ == "__main__":
    run(Benchmark("power", __doc__ or "", GROUPS, BARS))
