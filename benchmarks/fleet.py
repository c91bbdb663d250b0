"""Figures of a fleet: ``python -m benchmarks.fleet [--json] [--quick] [--only KEY,...]``.

Enrolment and rollouts run against ``edgeslm fleet serve`` as a process of its own, a real mosquitto and a store on a
real disk, with simulated devices that speak the real protocol over TLS. Whether rollouts are stopped rightly is seen in
virtual time, with the controller and the gates that ship; what is lost when a controller is killed, by SIGKILL.
"""

from __future__ import annotations

import os
import platform

from benchmarks.fleet_metrics import measure_ingest, measure_query
from benchmarks.fleet_scale import measure_reporting, measure_scale
from benchmarks.fleet_takeover import measure_takeover
from benchmarks.fleet_verdicts import measure_verdicts
from benchmarks.report import Benchmark, Found, Group, run

BARS = {
    "controller_cores": ("<", 1.0),
    "controller_mb": ("<", 300.0),
    "scale_cost_ratio": ("<=", 1.2),
    "bad_release_stopped_at_canary": (">=", 95.0),
    "good_release_wrongly_paused": ("<=", 5.0),
    "takeover_lost": ("<=", 0.0),
    "ingest_per_s": (">=", 5000.0),
    "query_ms": ("<", 50.0),
}

GROUPS = (
    Group(
        (
            "devices",
            "enrol_s",
            "rollout_s",
            "controller_cores",
            "controller_cores_worst",
            "controller_mb",
            "cost_ms",
            "scale_cost_ratio",
        ),
        measure_scale,
    ),
    Group(("reporting_cores", "reporting_mb"), measure_reporting),
    Group(("bad_release_stopped_at_canary", "good_release_wrongly_paused"), measure_verdicts),
    Group(("takeover_lost", "takeover_s"), measure_takeover),
    Group(("ingest_per_s", "ingest_cpu_us", "roll_up_ms"), measure_ingest),
    Group(("query_ms", "sum_ms", "fleet_day_ms", "top_ms", "database_mb"), measure_query),
)


def _conditions() -> Found:
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


if __name__ == "__main__":
    run(Benchmark("fleet", __doc__ or "", GROUPS, BARS, conditions=_conditions))
