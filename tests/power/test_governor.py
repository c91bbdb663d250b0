from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from edgeslm.power.governor import Governor
from edgeslm.power.governor_pacing import GO_S
from edgeslm.power.governor_settings import ways_to_run
from edgeslm.power.governor_types import Defer, Go, Pause, Refuse, Run, Setting, Stop, Work, WorkEstimate
from edgeslm.power.port import Battery, Vitals
from edgeslm.schema.board import PowerTable
from edgeslm.schema.budget import Budget
from edgeslm.schema.message import Priority

IDLE_W = 2.0
SETTINGS = (Setting(3, None, 3.0, 1.0), Setting(1, None, 1.0, 0.4))


def budget(**more: object) -> Budget:
    windows = [
        {"name": "heat", "limit": "3 W", "over": "1m"},
        {"name": "hour", "limit": "2.5 W", "over": "1h"},
    ]
    return Budget.model_validate({"windows": windows} | more)


def governor(of: Budget | None = None, **more: object) -> Governor:
    return Governor(of or budget(), IDLE_W, now_s=0.0, **more)  # type: ignore[arg-type]


def work(priority: Priority = "normal", need_j: float = 9.0, accepted_s: float = 0.0) -> Work:
    estimate = WorkEstimate(need_j, 1.3 * need_j, need_j / 3, 0.3, 1.0, 0.6)
    return Work("w", priority, accepted_s, None, 40, estimate, SETTINGS)


def run_of(decision: object) -> Run:
    assert isinstance(decision, Run)
    return decision


def test_what_the_meter_tells_takes_room() -> None:
    one = governor()
    assert isinstance(one.decide(0.0, 0, work()), Run)
    one.note_energy(0.0, 10.0, IDLE_W * 10 + 55.0)
    decision = one.decide(10.0, 0, work())
    assert isinstance(decision, Defer)
    assert decision.reasons[0].subject == "heat"
    assert isinstance(one.decide(75.0, 0, work()), Run)


def test_what_runs_takes_room_before_the_meter_tells() -> None:
    one, asked = governor(), work()
    one.begin(0.0, asked, run_of(one.decide(0.0, 0, asked)))
    assert one.usage(10.0)[0].used_j == pytest.approx(30.0)
    assert isinstance(one.decide(18.0, 0, work()), Defer)
    one.end(18.0)
    assert isinstance(one.decide(19.0, 0, work()), Defer)
    one.note_energy(0.0, 20.0, IDLE_W * 20)  # it drew nothing after all
    assert isinstance(one.decide(20.0, 0, work()), Run)


def test_an_answer_that_exceeds_its_estimate_is_cut_off_before_the_window_is_exceeded() -> None:
    one, asked = governor(), work()
    one.begin(0.0, asked, run_of(one.decide(0.0, 0, asked)))
    now_s, steps = 0.0, 0
    while not isinstance(step := one.pace(now_s, decoding=True), Stop):
        assert isinstance(step, Go)
        assert now_s < step.until_s <= now_s + GO_S
        one.note_energy(now_s, step.until_s, (IDLE_W + 3.0) * (step.until_s - now_s))
        now_s = step.until_s
        steps += 1
        assert steps < 1000
    one.end(now_s)
    assert 55 < 3.0 * now_s <= 60.0
    assert step.reason.subject == "heat"


def test_an_answer_is_cut_off_as_well_when_the_meter_is_silent() -> None:
    one, asked = governor(), work()
    one.begin(0.0, asked, run_of(one.decide(0.0, 0, asked)))
    now_s = 0.0
    while isinstance(step := one.pace(now_s, decoding=True), Go) and now_s < 100:
        now_s = max(step.until_s, now_s + 0.1)
    assert isinstance(step, Stop)
    assert 50 < 3.0 * now_s <= 60.0


def test_an_answer_pauses_to_keep_a_short_window() -> None:
    of = Budget.model_validate({"windows": [{"name": "supply", "limit": "2.8 W", "over": "1s"}]})
    one, asked = governor(of), work()
    run = run_of(one.decide(0.0, 0, asked))
    assert run.setting == SETTINGS[1]
    assert run.reasons[-1].code == "pauses"
    one.begin(0.0, asked, run)
    now_s, computed_s, drawn = 0.0, 0.0, []
    token_s = 0.1 / 0.4
    while now_s < 30:
        step = one.pace(now_s, decoding=True)
        seconds = step.seconds if isinstance(step, Pause) else token_s
        net_w = 0.0 if isinstance(step, Pause) else 1.0
        drawn.append((now_s, now_s + seconds, net_w))
        computed_s += seconds * net_w
        one.note_energy(now_s, now_s + seconds, (IDLE_W + net_w) * seconds)
        now_s += seconds
    for _, end_s, _ in drawn:
        lasting = sum(
            max(0.0, min(end, end_s) - max(start, end_s - 1)) * watts for start, end, watts in drawn
        )
        assert lasting <= 0.8 + 1e-9
    assert computed_s / now_s > 0.7


def test_a_prompt_may_spend_half_of_the_reserve_rather_than_be_cut_off() -> None:
    one = governor()
    one.note_accepted(0.0, work("high", need_j=8.0))
    asked = work(need_j=12.0)
    run = run_of(one.decide(0.0, 0, asked))
    kept_j = 1.25 * 8 * 1.3 + 8 * 1.3
    assert run.reasons[-1].figures["reserve_j"] == pytest.approx(kept_j)
    assert run.line_j["heat"] == pytest.approx(kept_j / 2)
    one.begin(0.0, asked, run)
    one.note_energy(0.0, 10.0, IDLE_W * 10 + 60 - 0.75 * kept_j)
    assert isinstance(one.pace(10.0, decoding=True), Go)
    one.note_energy(10.0, 20.0, IDLE_W * 10 + 0.3 * kept_j)
    assert isinstance(one.pace(20.0, decoding=True), Stop)


def test_a_weaker_meter_keeps_more_free() -> None:
    free_j = {}
    for error_share in (0.0, 0.02, 0.5):
        one = governor()
        one.note_meter(error_share)
        decision = run_of(one.decide(0.0, 0, work()))
        free_j[error_share] = next(r.figures["reserve_j"] for r in decision.reasons if r.subject == "heat")
    assert free_j == {0.0: 0.0, 0.02: pytest.approx(3.6), 0.5: pytest.approx(9.0)}
    at_once = run_of(governor(error_share=0.5).decide(0.0, 0, work()))
    assert at_once.reasons[-1].figures["reserve_j"] == pytest.approx(9.0)


def test_a_window_plans_with_the_idle_draw_of_its_own_length() -> None:
    one = governor()
    for minute in range(5):
        one.note_idle(60.0 * minute, IDLE_W * 1.02)
    one.note_energy(0.0, 300.0, IDLE_W * 1.02 * 300)
    heat_j = run_of(one.decide(300.0, 0, work())).reasons[-1].figures["free_j"]
    assert heat_j == pytest.approx((3.0 - IDLE_W * 1.02) * 60, abs=0.1)
    hour = Budget.model_validate({"windows": [{"name": "hour", "limit": "2.5 W", "over": "1h"}]})
    slow = governor(hour)
    slow.note_idle(60.0, IDLE_W * 1.02)
    assert run_of(slow.decide(60.0, 0, work())).reasons[-1].figures["free_j"] == pytest.approx(1798, abs=3)
    slow.note_idle(61.0, IDLE_W * 1.5)  # something was plugged in: no waiting for an hour's mean
    refused = slow.decide(61.0, 0, work())
    assert isinstance(refused, Refuse)
    assert "never holds more than 0.0 J above idle" in refused.reasons[0].text
    slow.note_idle(62.0, IDLE_W)  # and out again
    assert isinstance(slow.decide(62.0, 0, work()), Run)


def test_how_long_alarms_can_wait_is_learned_from_their_deadlines() -> None:
    one = governor()
    one.note_accepted(0.0, replace(work("high", need_j=6.0), deadline_s=34.0))
    assert one.state()["slack_s"] == pytest.approx(30.0)
    one.note_accepted(1.0, work("high", need_j=6.0))  # whoever names no deadline wants it now
    assert one.state()["slack_s"] == 0.0


def test_a_battery_curve_binds_all_but_high_priority() -> None:
    of = Budget.model_validate({"battery": {"reserve": "10 %", "curve": [{"at": "50 %", "limit": "2.02 W"}]}})
    one = governor(of)
    assert isinstance(one.decide(0.0, 0, work()), Run)  # no battery seen yet
    one.note_vitals(Vitals(0.0, battery=Battery(0.4, None, None, None)))
    decision = one.decide(0.0, 0, work(need_j=9.0))
    assert isinstance(decision, Run)
    assert decision.reasons[-1].subject == "battery"
    assert run_of(one.decide(0.0, 0, work(need_j=11.9))).max_tokens == 36
    assert isinstance(one.decide(0.0, 0, work("high", need_j=50)), Run)


def test_the_limit_of_quiet_hours_comes_and_goes() -> None:
    of = Budget.model_validate(
        {"quiet_hours": [{"begins": "22:00", "ends": "06:00", "lowest_priority": "low", "limit": "2.01 W"}]}
    )
    one = governor(of)
    assert isinstance(one.decide(0.0, 12 * 60, work()), Run)
    assert not isinstance(one.decide(0.0, 23 * 60, work()), Run)
    assert isinstance(one.decide(0.0, 23 * 60, work("high")), Run)
    assert isinstance(one.decide(0.0, None, work()), Run)


def test_a_hot_board_slows_what_runs() -> None:
    one, asked = governor(budget(temperature={"ceiling": "70 C"})), work()
    one.begin(0.0, asked, run_of(one.decide(0.0, 0, asked)))
    one.note_vitals(Vitals(0.1, temperature_c=71.0))
    steps = [one.pace(0.1, decoding=True), one.pace(0.4, decoding=True), one.pace(0.7, decoding=True)]
    assert [type(step) for step in steps] == [Pause, Go, Pause]


def test_what_was_drawn_and_learned_before_a_restart_counts() -> None:
    before = governor()
    before.note_accepted(0.0, work("high", need_j=8.0))
    after = governor(state=before.state())
    after.restore([(-40.0, -20.0, IDLE_W * 20 + 30.0)])
    figures = run_of(after.decide(0.0, 0, work(need_j=3.0))).reasons[-1].figures
    assert figures["free_j"] == pytest.approx(30.0)
    assert figures["reserve_j"] == pytest.approx(2.25 * 8 * 1.3)


def test_usage_tells_what_each_window_holds() -> None:
    one = governor()
    one.note_energy(0.0, 100.0, 250.0)
    heat, hour = one.usage(100.0)
    assert (heat.name, heat.over_s, heat.limit_j) == ("heat", 60.0, 180.0)
    assert heat.used_j == pytest.approx(150.0)
    assert (hour.limit_j, hour.used_j) == (9000.0, pytest.approx(250.0))


def test_asking_how_nothing_goes_on_is_a_mistake() -> None:
    with pytest.raises(RuntimeError, match="none runs"):
        governor().pace(0.0, decoding=True)


def test_sampler_and_worker_may_call_at_once() -> None:
    one, failures = governor(), []

    def sample() -> None:
        try:
            for tenth in range(3000):
                one.note_energy(tenth / 10, (tenth + 1) / 10, 0.25)
                one.note_idle(tenth / 10, IDLE_W + 0.01 * (tenth % 7))
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=sample)
    thread.start()
    for tenth in range(500):
        asked = work()
        decision = one.choose(tenth / 10, 0, [asked])
        if isinstance(decision.decision, Run):
            one.begin(tenth / 10, asked, decision.decision)
            one.pace(tenth / 10 + 0.01, decoding=True)
            one.end(tenth / 10 + 0.05)
    thread.join()
    assert failures == []
    assert one.usage(300.0)[1].used_j == pytest.approx(750.0, abs=1)


def test_ways_to_run_grow_gentler() -> None:
    table = PowerTable(
        idle_w=2.7,
        core_load_w=0.9,
        max_mhz=1500,
        min_mhz=600,
        frequency_exponent=2.0,
        source="made up for tests",
    )
    ways = ways_to_run(table, 3, frequencies_mhz=(600, 1500, 1000))
    assert [(way.threads, way.frequency_mhz) for way in ways] == [
        (3, None),
        (2, None),
        (1, None),
        (1, 1000),
        (1, 600),
    ]
    assert [way.net_w for way in ways] == pytest.approx([2.7, 1.8, 0.9, 0.4, 0.144])
    assert ways[0].speed == 1.0
    assert ways[2].speed == pytest.approx(0.4)
    assert ways[4].speed == pytest.approx(0.16)
    learned = ways_to_run(table, 2, net_w=2.2)
    assert [way.net_w for way in learned] == [2.2, 1.1]
    no_clock = table.model_copy(update={"max_mhz": None})
    assert len(ways_to_run(no_clock, 1, frequencies_mhz=(600,))) == 1
