from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.power.attribution import Interval
from edgeslm.power.benching import Phase, Trace, compare, figures, notes, spread
from edgeslm.schema.bench import BenchProtocol, BenchResult, BenchWindow
from edgeslm.schema.message import MeterClass


def interval(start_s: float, end_s: float, power_w: float, meter: MeterClass = "measured") -> Interval:
    return Interval(start_s, end_s, power_w * (end_s - start_s), power_w, meter, None)


def window(**fields: Any) -> BenchWindow:
    usual = {
        "seconds": 10.0,
        "prompts": 5,
        "prompt_tokens": 50,
        "completion_tokens": 100,
        "energy_j": 40.0,
        "net_j": 20.0,
    }
    return BenchWindow.model_validate(usual | fields)


def result(*windows: BenchWindow, meter: dict[str, Any] | None = None, **fields: Any) -> BenchResult:
    told = {
        "name": "hwmon:ina226@1-0040",
        "meter_class": "measured",
        "period_s": 0.035,
        "error_share": 0.0,
        "error_w": 0.0,
        "source": "tests",
    }
    windows = windows or (window(),)
    return BenchResult.model_validate(
        {
            "made_at": "2026-05-01T12:00:00Z",
            "system": dict.fromkeys(
                ("title", "machine", "kernel", "os", "python", "edgeslm", "runtime", "numpy"), "x"
            )
            | {"board": "pi-4b", "cores": 4},
            "model": {"name": "m@1", "sha256": "0" * 64, "graph": "g", "quantization": "int8", "threads": 3},
            "meter": told | (meter or {}),
            "protocol": {"window_s": 10.0, "repeats": 5},
            "idle_before_w": 2.0,
            "idle_after_w": 2.0,
            "golden_asked": 10,
            "golden_right": 10,
            "windows": windows,
            "figures": figures(windows),
        }
        | fields
    )


# --- the trace ----------------------------------------------------------------------------------------------


def test_energy_between_samples_counts_as_even():
    trace = Trace()
    for second, power_w in enumerate((2.0, 4.0, 6.0)):
        trace.add(interval(second, second + 1, power_w))
    assert trace.energy_j(0.5, 2.5) == pytest.approx(1.0 + 4.0 + 3.0)
    assert trace.energy_j(1.0, 2.0) == pytest.approx(4.0)


def test_outside_of_what_was_sampled_there_is_nothing():
    trace = Trace()
    trace.add(interval(10, 11, 5.0))
    assert trace.energy_j(0.0, 20.0) == pytest.approx(5.0)
    assert trace.energy_j(11.0, 20.0) == 0.0


@given(
    st.lists(st.tuples(st.floats(0.001, 5), st.floats(0, 50)), min_size=1, max_size=40),
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_parts_sum_to_the_whole(steps, cuts):
    trace, at_s, total_j = Trace(), 0.0, 0.0
    for seconds, power_w in steps:
        trace.add(interval(at_s, at_s + seconds, power_w))
        at_s += seconds
        total_j += power_w * seconds
    ends = [0.0, *sorted(cut * at_s for cut in cuts), at_s]
    parts = [trace.energy_j(start, end) for start, end in pairwise(ends)]
    assert sum(parts) == pytest.approx(total_j, abs=1e-6)
    assert all(part >= -1e-9 for part in parts)


def test_the_class_is_the_weakest_that_a_tenth_rests_on():
    trace = Trace()
    for second in range(100):
        trace.add(interval(second, second + 1, 1.0))
    assert trace.meter_class == "measured"
    trace.add(interval(100, 101, 20.0, "estimated"))
    assert trace.meter_class == "estimated"


def test_a_phase_is_as_long_as_it_took():
    assert Phase(2.0, 5.0).seconds == 3.0


# --- figures ------------------------------------------------------------------------------------------------


def test_figures_are_the_median_of_the_windows():
    found = figures([window(), window(completion_tokens=200), window(completion_tokens=150)])
    assert (found.tokens_per_s.least, found.tokens_per_s.median, found.tokens_per_s.most) == (10, 15, 20)
    assert found.j_per_token.median == pytest.approx(40 / 150)
    assert found.net_j_per_token.least == pytest.approx(0.1)
    assert (found.j_per_prompt.median, found.net_j_per_prompt.median) == (8.0, 4.0)
    assert (found.power_w.median, found.prompts_per_s.median) == (4.0, 0.5)


def test_a_model_that_generates_nothing_has_no_energy_a_token():
    assert figures([window(completion_tokens=0)]).j_per_token.median == 0.0


def test_a_spread_is_median_least_and_most():
    found = spread([3.0, 1.0, 9.0, 2.0])
    assert (found.median, found.least, found.most) == (2.5, 1.0, 9.0)


FINE: dict[str, Any] = {
    "protocol": BenchProtocol(window_s=10, repeats=5),
    "idle_w": (2.0, 2.02),
    "busy_cores": 0.1,
    "windows": [window(), window(energy_j=41.0)],
    "meter": "measured",
    "golden": (10, 10),
    "meters": {"ina"},
}


def test_a_run_without_trouble_has_no_notes():
    assert notes(**FINE) == ()


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ({"protocol": BenchProtocol(window_s=9, repeats=5)}, "5 windows of 9 s"),
        ({"protocol": BenchProtocol(window_s=10, repeats=4)}, "4 windows of 10 s"),
        ({"meter": "estimated"}, "no meter"),
        ({"meters": {"ina", "model"}}, "the meter changed while it ran: ina, model"),
        ({"idle_w": (2.0, 2.2)}, "the idle draw changed from 2.00 W to 2.20 W"),
        ({"busy_cores": 0.5}, "0.5 cores busy"),
        ({"windows": [window(throttled=True)]}, "slowed the board down"),
        ({"windows": [window(), window(energy_j=50.0)]}, "the windows differ: 4.00 to 5.00 W"),
        ({"golden": (10, 9)}, "1 of 10 golden prompts"),
    ],
)
def test_what_a_reader_should_know_is_noted(trouble, words):
    (note,) = notes(**FINE | trouble)
    assert words in note


# --- comparing ----------------------------------------------------------------------------------------------


def by_name(first: BenchResult, second: BenchResult):
    return {one.figure: one for one in compare(first, second)}


def test_a_result_is_the_same_as_itself():
    assert {one.verdict for one in compare(result(), result())} == {"same"}
    assert {one.ratio for one in compare(result(), result())} == {1.0}


def test_what_exceeds_the_scatter_differs():
    calm = result(window(completion_tokens=99), window(completion_tokens=100), window(completion_tokens=101))
    fast = result(window(completion_tokens=109), window(completion_tokens=110), window(completion_tokens=111))
    wild = result(window(completion_tokens=80), window(completion_tokens=110), window(completion_tokens=140))
    assert by_name(calm, fast)["tokens_per_s"].verdict == "differs"
    assert by_name(calm, wild)["tokens_per_s"].verdict == "same"
    assert by_name(calm, fast)["tokens_per_s"].ratio == pytest.approx(1.1)


def test_an_inexact_meter_explains_a_difference_unless_it_is_the_same_one():
    other = result(window(energy_j=44.0), meter={"error_share": 0.1})
    mine = result(meter={"error_share": 0.1})
    assert by_name(mine, other)["power_w"].verdict == "differs"
    plug = result(window(energy_j=44.0), meter={"error_share": 0.1, "name": "plug"})
    assert by_name(mine, plug)["power_w"].verdict == "same"
    assert by_name(mine, plug)["tokens_per_s"].error_share == 0.0


def test_the_offset_of_a_meter_counts_for_the_whole_draw_and_cancels_above_idle():
    first, second = result(meter={"error_w": 0.4}), result(meter={"error_w": 0.4, "name": "plug"})
    found = by_name(first, second)
    assert found["power_w"].error_share == pytest.approx(0.1 * 2**0.5)
    assert found["net_j_per_token"].error_share == 0.0


def test_a_baseline_that_moved_makes_what_lies_above_it_uncertain():
    first = result(idle_before_w=1.8, idle_after_w=2.2)
    found = by_name(first, result(window(net_j=24.0)))
    assert found["net_j_per_token"].error_share == pytest.approx(0.2 / 2.0)
    assert found["net_j_per_token"].verdict == "same"
    assert found["j_per_token"].error_share == 0.0


def test_nothing_to_divide_by_differs():
    found = by_name(result(window(net_j=0.0)), result())
    assert (found["net_j_per_token"].ratio, found["net_j_per_token"].verdict) == (None, "differs")
