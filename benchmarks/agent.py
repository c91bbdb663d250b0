"""Figures of the agent: ``python -m benchmarks.agent [--json] [--quick] [--only KEY,...]``.

Everything is measured in this run, against a real broker and a real agent process, and against a peer in the
same run where a ratio means something.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.agent_bad import measure_bad
from benchmarks.agent_kills import measure_kills
from benchmarks.agent_speed import conditions, measure_echo, measure_speed, measure_start
from benchmarks.report import Benchmark, Found, Group, run
from edgeslm.link.broker import available_kinds

BARS = {
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

GROUPS = (
    Group(("start_s", "start_s_max", "start_first_s"), lambda quick: measure_start(2 if quick else 5)),
    Group(
        (
            *("overhead_ms_p50", "overhead_ms_p95", "answer_ms_p50", "answer_ms_p95"),
            *("tps_cost", "tps_cost_short", "tps_cost_long", "tps_cost_streaming"),
            *("agent_decode_tps", "rss_mb", "rss_peak_mb"),
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


def _conditions() -> Found:
    kinds = available_kinds()
    around: Found = conditions(kinds[0] if kinds else "none")
    if "mosquitto" not in kinds:
        broker = kinds[0] if kinds else "none"
        around["notes"] = {"broker": f"mosquitto is not installed; taken with {broker} instead"}
    return around


def _ratios(found: Found, peers: Mapping[str, float]) -> dict[str, float]:
    ratios = {}
    if "answer_ms_p50" in found and "inprocess_ms_p50" in peers:
        ratios["answer_to_inprocess"] = found["answer_ms_p50"] / peers["inprocess_ms_p50"]
    if "agent_decode_tps" in found and peers.get("inprocess_decode_tps"):
        ratios["decode_tps_to_inprocess"] = found["agent_decode_tps"] / peers["inprocess_decode_tps"]
    if "overhead_ms_p50" in found and "mqtt_echo_ms_p50" in peers:
        ratios["overhead_to_mqtt_echo"] = found["overhead_ms_p50"] / peers["mqtt_echo_ms_p50"]
    return ratios


if __name__ == "__main__":
    run(Benchmark("agent", __doc__ or "", GROUPS, BARS, _ratios, _conditions))
