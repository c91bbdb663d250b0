from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.power.ledger_reader import EnergyRow, PromptNote, PromptRow
from edgeslm.power.report import J_PER_KWH, Rates, make_report
from edgeslm.schema.budget import Tariff
from edgeslm.schema.message import MeterClass

NOON = int(datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp())
NIGHT = Tariff.model_validate(
    {"price_per_kwh": 0.4, "periods": [{"begins": "22:00", "ends": "06:00", "price_per_kwh": 0.1}]}
)


def row(
    minutes: float = 0,
    energy_j: float = 60.0,
    cause: str = "idle",
    model: str | None = None,
    meter: MeterClass = "measured",
) -> EnergyRow:
    return EnergyRow(NOON + int(minutes * 60), cause, model, None, energy_j, energy_j / 2, 60.0, meter)


def prompt(model: str | None = "m@1", net_j: float | None = 4.0, tokens: int | None = 2) -> PromptRow:
    note = PromptNote("p", float(NOON), model, completion_tokens=tokens)
    return PromptRow(note, net_j, net_j, 1.0, "measured")


@given(
    st.lists(
        st.builds(
            row,
            st.floats(0, 5000),
            st.floats(0, 1e6),
            st.sampled_from(["idle", "prompt", "other"]),
            meter=st.sampled_from(["measured", "estimated"]),
        ),
        min_size=1,
    ),
    st.sampled_from(["cause", "hour", "day"]),
)
def test_the_groups_sum_to_the_total(rows, by):
    report = make_report(rows, by, Rates(co2_g_per_kwh=100.0), zone=UTC)
    total = report.total
    assert total is not None
    for figure in ("energy_j", "net_j", "seconds", "co2_g"):
        assert sum(getattr(one, figure) for one in report.rows) == pytest.approx(
            getattr(total, figure), abs=1e-6
        )


def test_the_largest_comes_first_and_hours_in_order():
    rows = [row(0, 1.0, "other"), row(70, 9.0, "idle"), row(130, 5.0, "prompt")]
    assert [one.group for one in make_report(rows, "cause").rows] == ["idle", "prompt", "other"]
    hours = make_report(reversed(rows), "hour", zone=UTC).rows
    assert [one.group for one in hours] == [f"2026-05-01T{hour}:00+00:00" for hour in (12, 13, 14)]


def test_a_group_has_the_figures_of_its_rows():
    (found,) = make_report([row(0, 10.0), row(1, 20.0)], "cause", zone=UTC).rows
    assert (found.energy_j, found.net_j, found.seconds, found.start_s) == (30.0, 15.0, 120.0, NOON)


def test_days_and_hours_are_local():
    east = timezone(timedelta(hours=14))
    assert make_report([row()], "day", zone=UTC).rows[0].group == "2026-05-01"
    assert make_report([row()], "day", zone=east).rows[0].group == "2026-05-02"
    assert make_report([row()], "hour", zone=east).rows[0].group == "2026-05-02T02:00+14:00"


def test_each_part_is_priced_by_the_rate_of_its_own_hour():
    rows = [row(0, J_PER_KWH), row(11 * 60, J_PER_KWH)]
    total = make_report(rows, "cause", Rates(NIGHT), zone=UTC).total
    assert total is not None
    assert total.cost == pytest.approx(0.5)
    there = make_report(rows, "cause", Rates(NIGHT), zone=timezone(timedelta(hours=11))).total
    assert there is not None
    assert there.cost == pytest.approx(0.5)


def test_a_flat_rate_takes_the_place_of_the_tariff():
    total = make_report([row(0, J_PER_KWH)], "cause", Rates(NIGHT, price_per_kwh=1.0), zone=UTC).total
    assert total is not None
    assert (total.cost, total.co2_g) == (1.0, None)


def test_a_rate_that_is_not_known_for_a_part_is_not_known_for_the_whole():
    only_nights = Tariff.model_validate(
        {"periods": [{"begins": "22:00", "ends": "06:00", "price_per_kwh": 0.1}]}
    )
    report = make_report([row(0, 1.0), row(11 * 60, 1.0, "prompt")], "cause", Rates(only_nights), zone=UTC)
    assert {one.group: one.cost is None for one in report.rows} == {"idle": True, "prompt": False}
    assert report.total is not None
    assert report.total.cost is None


def test_the_class_is_the_weakest_that_matters():
    many = [row(minute, 1.0) for minute in range(100)]
    assert make_report([*many, row(0, 5.0, meter="estimated")], "cause").rows[0].meter == "measured"
    assert make_report([*many, row(0, 20.0, meter="estimated")], "cause").rows[0].meter == "estimated"


def test_prompts_count_for_their_model_and_tokens_where_they_are_known():
    rows = [row(0, 60.0, "prompt", "m@1"), row(0, 60.0)]
    prompts = [prompt(), prompt(net_j=8.0, tokens=None), prompt(net_j=None), prompt("other@1")]
    found = {one.group: one for one in make_report(rows, "model", prompts=prompts).rows}
    mine = found["m@1"]
    assert (mine.prompts, mine.completion_tokens) == (2, 2)
    assert (mine.j_per_prompt, mine.j_per_token) == (6.0, 2.0)
    assert (found[None].prompts, found[None].j_per_prompt) == (0, None)


def test_prompts_play_no_part_in_causes_and_hours():
    assert make_report([row()], "cause", prompts=[prompt()]).rows[0].prompts is None


def test_nothing_gives_nothing():
    report = make_report([], "cause")
    assert (report.rows, report.total) == ((), None)
