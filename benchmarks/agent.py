"""Figures of the agent: ``python -m benchmarks.agent [--json] [--quick] [--only KEY,...]``.

Everything is measured in this run, against a real broker and a real agent process, and against a peer in the
same run where a ratio means something. A figure that cannot be had is left out; its reason stands under
``notes``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.agent_bad import measure_bad
from benchmarks.agent_kills import measure_kills
from benchmarks.agent_rig import MeasurementError, say
from benchmarks.agent_speed import Found, conditions, measure_echo, measure_speed, measure_start
from edgeslm.errors import EdgeslmError
from edgeslm.link.broker import available_kinds

BARS: dict[str, tuple[str, float]] = {
    "overhead_ms_p50": ("<", 2.0),
    "tps_cost": ("<", 0.03),
    "rss_mb": ("<", 90.0),
    "rss_growth_mb": ("<", 2.0),
    "start_s": ("<", 1.5),
    "answer_ms_p50": ("<", 60.0),
    "bad_prompts": (">=", 1.0),
    "good_lost": ("<=", 0.0),
    "lost_prompts": ("<=", 0.0),
    "double_answers": ("<=", 0.0),
}
NESTED = (
    *("peers", "overhead_breakdown", "rss_breakdown", "noise", "pairs", "bad_detail", "kill_detail"),
    "runtime",
)


@dataclass(frozen=True)
class Group:
    """Figures that one measurement gives."""

    keys: tuple[str, ...]
    measure: Callable[[bool], Found]


GROUPS = (
    Group(("start_s", "start_s_max", "start_first_s"), lambda quick: measure_start(2 if quick else 5)),
    Group(
        (
            *(
                "overhead_ms_p50",
                "overhead_ms_p95",
                "answer_ms_p50",
                "answer_ms_p95",
                "tps_cost",
                "tps_cost_short",
            ),
            *("tps_cost_long", "tps_cost_streaming", "agent_decode_tps", "rss_mb", "rss_peak_mb"),
        ),
        lambda quick: measure_speed(2, 40, 8) if quick else measure_speed(7, 60, 12),
    ),
    Group(("mqtt_echo_ms_p50",), lambda quick: measure_echo(60 if quick else 200)),
    Group(
        ("bad_prompts", "good_lost", "rss_growth_mb"),
        lambda quick: measure_bad(200 if quick else 1000),
    ),
    Group(
        ("lost_prompts", "double_answers", "kills_s", "recovery_s_p50", "recovery_s_max"),
        lambda quick: measure_kills(8 if quick else 50),
    ),
)


def measure(only: frozenset[str], *, quick: bool) -> dict[str, Any]:
    """Take the figures named in `only`, or all when it is empty."""
    kinds = available_kinds()
    found: Found = {}
    notes: dict[str, str] = {}
    peers: dict[str, float] = {}
    if "mosquitto" not in kinds:
        notes["broker"] = f"mosquitto is not installed; taken with {kinds[0] if kinds else 'none'} instead"
    began_s, around = time.monotonic(), conditions(kinds[0] if kinds else "none")
    for group in GROUPS:
        if only and not only & set(group.keys):
            continue
        say(f"measuring {', '.join(group.keys[:4])}")
        try:
            figures = group.measure(quick)
        except Exception as error:  # the other figures are still to be had
            if not isinstance(error, (MeasurementError, EdgeslmError, OSError)):
                traceback.print_exc()
            notes.update(dict.fromkeys(group.keys, f"{type(error).__name__}: {error}"))
            say(f"failed: {error}")
            continue
        peers.update(figures.pop("peers", {}))
        missing = [key for key in group.keys if key not in figures and key not in peers]
        notes.update(dict.fromkeys(missing, "this run gave no value; see the details and stderr"))
        found.update(figures)
    shown = {key: value for key, value in found.items() if not only or key in only or key in NESTED}
    around["took_s"] = round(time.monotonic() - began_s, 1)
    around["load_1min_after"] = round(os.getloadavg()[0], 2)
    around["quick"] = quick
    return {
        **_rounded(shown),
        "peers": _rounded(peers),
        "ratios": _rounded(_ratios(found, peers)),
        "bars": {key: _bar(key, found[key], found.get("noise", {}).get(key)) for key in BARS if key in shown},
        "conditions": around,
        "notes": notes,
    }


def _ratios(found: Found, peers: dict[str, float]) -> dict[str, float]:
    ratios = {}
    if "answer_ms_p50" in found and "inprocess_ms_p50" in peers:
        ratios["answer_to_inprocess"] = found["answer_ms_p50"] / peers["inprocess_ms_p50"]
    if "agent_decode_tps" in found and peers.get("inprocess_decode_tps"):
        ratios["decode_tps_to_inprocess"] = found["agent_decode_tps"] / peers["inprocess_decode_tps"]
    if "overhead_ms_p50" in found and "mqtt_echo_ms_p50" in peers:
        ratios["overhead_to_mqtt_echo"] = found["overhead_ms_p50"] / peers["mqtt_echo_ms_p50"]
    return ratios


def _bar(key: str, value: float, noise: float | None) -> dict[str, Any]:
    relation, bar = BARS[key]
    holds = {"<": value < bar, "<=": value <= bar, ">=": value >= bar}[relation]
    verdict: dict[str, Any] = {"bar": f"{relation} {bar:g}", "met": holds}
    if noise is not None and abs(value - bar) < noise:
        verdict["within_noise"] = True
    return verdict


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


def _print_table(report: dict[str, Any]) -> None:
    for key, value in report.items():
        if isinstance(value, (int, float)):
            bar = report["bars"].get(key)
            verdict = f"{bar['bar']:>8}  {'met' if bar['met'] else 'MISSED'}" if bar else ""
            verdict += ", but within the noise" if bar and "within_noise" in bar else ""
            print(f"{key:<24}{value:>12.4g}  {verdict}")
    for name in ("peers", "ratios", *NESTED[1:], "conditions", "notes"):
        if name not in report or not report[name]:
            continue
        part = report[name] if isinstance(report[name], dict) else {name: report[name]}
        print(f"\n{name}")
        for key, value in part.items():
            print(f"  {key:<42}{value if not isinstance(value, float) else format(value, '.4g')}")


def main() -> int:
    """Parse, measure, print."""
    keys = [key for group in GROUPS for key in group.keys]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agent", description=__doc__)
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer of everything: under a minute")
    parser.add_argument("--only", default="", metavar="KEY,...", help=f"only these: {', '.join(keys)}")
    flags = parser.parse_args()
    only = frozenset(filter(None, flags.only.split(",")))
    if unknown := sorted(only - set(keys)):
        parser.error(f"no such figure: {', '.join(unknown)}")
    report = measure(only, quick=flags.quick)
    if flags.as_json:
        print(json.dumps(report, indent=2))
    else:
        _print_table(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
