from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.agent.metrics import Gatherer, Outcome
from edgeslm.power.attribution import Interval, Settlement, Share


def interval(start_s: float, energy_j: float, power_w: float, *shares: Share) -> Interval:
    settlement = Settlement(start_s, start_s + 1, energy_j, "measured", shares, ()) if shares else None
    return Interval(start_s, start_s + 1, energy_j, power_w, "measured", settlement)


def test_a_report_holds_all_energy_in_points_of_ten_seconds() -> None:
    gatherer = Gatherer()
    for second in range(25):
        gatherer.add_interval(interval(second, 3.0, 2.0 + second % 3))
    report = gatherer.take_energy(25.0)
    assert report.energy_j == pytest.approx(75.0)
    assert [point.ago_s for point in report.points] == [15.0, 5.0, 0.0]
    assert [point.mean_w for point in report.points] == [3.0] * 3
    assert (report.points[0].min_w, report.points[0].max_w) == (2.0, 4.0)


def test_causes_add_up_over_settlements() -> None:
    gatherer = Gatherer()
    prompt = Share("prompt", "m@1", None, 2.0, 1.5, 0.5)
    idle = Share("idle", None, None, 1.0, 0.0, 0.5)
    for second in range(3):
        gatherer.add_interval(interval(second, 3.0, 3.0, prompt, idle))
    causes = gatherer.take_energy(3.0).causes
    assert [(share.cause, share.model, share.energy_j, share.net_j) for share in causes] == [
        ("prompt", "m@1", 6.0, 4.5),
        ("idle", None, 3.0, 0.0),
    ]


def test_what_was_taken_is_not_told_again() -> None:
    gatherer = Gatherer()
    gatherer.add_interval(interval(0, 3.0, 3.0))
    gatherer.add_outcome(Outcome("m@1", "answered"))
    gatherer.take_energy(1.0)
    gatherer.take_models()
    assert gatherer.take_energy(2.0).points == ()
    assert gatherer.take_models() == ()


def test_outcomes_are_counted_by_model_and_fate() -> None:
    gatherer = Gatherer()
    for tps in (10.0, 30.0, 20.0):
        gatherer.add_outcome(
            Outcome("a@1", "answered", prompt_tokens=4, completion_tokens=5, decode_tps=tps, net_j=2.0)
        )
    gatherer.add_outcome(Outcome("a@1", "refused", deferred=True))
    gatherer.add_outcome(Outcome("b@1", "failed"))
    first, second = gatherer.take_models()
    assert (first.answered, first.refused, first.failed, first.deferred) == (3, 1, 0, 1)
    assert (first.prompt_tokens, first.completion_tokens) == (12, 15)
    assert first.decode_tps == 20.0
    assert first.j_per_token == pytest.approx(6.0 / 15)
    assert (second.failed, second.j_per_token, second.decode_tps) == (1, None, None)


@given(
    st.lists(
        st.tuples(st.floats(0.01, 30), st.floats(0, 20), st.floats(0, 400), st.floats(0, 5)),
        min_size=1,
        max_size=20,
    )
)
def test_the_mean_lies_between_the_lowest_and_the_highest_however_seldom_the_board_looks(
    looks: list[tuple[float, float, float, float]],
) -> None:
    gatherer, now_s = Gatherer(), 0.0
    for seconds, power_w, energy_j, gap_s in looks:
        gatherer.add_interval(Interval(now_s, now_s + seconds, energy_j, power_w, "estimated", None))
        now_s += seconds + gap_s
    for point in gatherer.take_energy(now_s).points:
        assert point.min_w - 1e-3 <= point.mean_w <= point.max_w + 1e-3
