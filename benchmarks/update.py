"""Figures of enrolment, releases and updates: ``python -m benchmarks.update [--json] [--quick] [--only KEY,...]``.

Attacks run against the client that ships, access against a real mosquitto, deliveries over real sockets, power cuts as
SIGKILLs of a real update at each place where it writes.
"""

from __future__ import annotations

from benchmarks import update_acl
from benchmarks.report import Benchmark, Found, Group, run
from benchmarks.update_cuts import measure_cuts
from benchmarks.update_delivery import measure_broker, measure_delta, measure_link
from benchmarks.update_gate import measure_gate
from benchmarks.update_swap import measure_swaps
from benchmarks.update_trust import measure_trust

BARS = {
    "power_cut_survived": (">=", 1.0),
    "trust_attacks_refused": (">=", 1.0),
    "acl_refused": (">=", 1.0),
    "regression_caught": (">=", 0.95),
    "false_hold": ("<=", 0.05),
    "bytes_share": ("<=", 1.05),
    "delta_share": ("<=", 0.05),
    "apply_mb": ("<", 16.0),
    "swap_s": ("<", 1.0),
}

GROUPS = (
    Group(
        ("power_cut_points", "power_cut_survived"),
        lambda quick: measure_cuts(10) if quick else measure_cuts(),
    ),
    Group(("trust_attacks", "trust_attacks_refused"), lambda quick: measure_trust()),
    Group(("acl_cases", "acl_refused"), lambda quick: _acl()),
    Group(("regression_caught", "false_hold"), lambda quick: measure_gate(20) if quick else measure_gate()),
    Group(("bytes_share",), measure_link),
    Group(("mqtt_bytes_share", "mqtt_under_way_mb"), measure_broker),
    Group(("delta_share", "apply_mb"), measure_delta),
    Group(("swap_s",), measure_swaps),
)


def _acl() -> Found:
    figures = update_acl.figures()
    return {"acl_cases": figures["acl_cases"], "acl_refused": figures["acl_refused"] / figures["acl_cases"]}


if __name__ == "__main__":
    run(Benchmark("update", __doc__ or "", GROUPS, BARS))
