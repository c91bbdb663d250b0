from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.sensors import hostile, hostile_topic, rules_text
from edgeslm.agent.rules.decisions import Ask, Done
from edgeslm.agent.rules.safety import MAX_HOPS

INPUTS = """
allow: [out/+, loop/+]
inputs:
  t: {topic: sensors/t, window: 10m, max_age: 1m, range: [-50, 150]}
  door: {topic: sensors/door, decode: text, max_age: 1m}
  said: {topic: said, decode: text}
rules:
"""
WARM = INPUTS + "  - {name: warm, when: t > 20, then: [{publish: {topic: out/fan, payload: 'ON'}}]"
ASKS = INPUTS + "  - {name: ask, prompt: '{{ said }}', answer: {type: object, required: [on]}"
ACTS = "then: [{publish: {topic: out/lamp, payload: {on: '{{ answer.on }}'}, schema: {type: object}}}]"


@pytest.fixture
def utc() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def test_fires_once_when_its_condition_becomes_true(bench):
    rules = bench(WARM + "}")
    for value in (19, 21, 22, 23):
        rules.hear("sensors/t", value)
    assert [send.payload for send in rules.sends] == [b"ON"]
    rules.hear("sensors/t", 10)
    rules.hear("sensors/t", 30)
    assert len(rules.sends) == 2
    assert rules.traces[0].inputs == {"t": 21}
    assert rules.traces[0].actions[0].to == "out/fan"


def test_fires_for_each_message_where_it_should(bench):
    rules = bench(WARM + ", fire: each}")
    for value in (19, 21, 22):
        rules.hear("sensors/t", value)
    assert len(rules.sends) == 2


def test_the_condition_has_to_stay_true_as_long_as_debounce_says(bench):
    rules = bench(WARM + ", debounce: 10s}")
    rules.hear("sensors/t", 25)
    rules.wait(9)
    assert rules.sends == []
    rules.hear("sensors/t", 10)
    rules.wait(20)
    assert rules.sends == []
    rules.hear("sensors/t", 25)
    rules.wait(10)
    assert len(rules.sends) == 1


def test_debounce_looks_once_more_when_its_time_has_come(bench):
    rules = bench(WARM + ", debounce: 2m}")
    rules.hear("sensors/t", 25)
    rules.wait(200)  # the reading is older than its max_age by then
    assert rules.sends == []


def test_with_each_debounce_waits_for_silence(bench):
    rules = bench(WARM + ", fire: each, debounce: 10s}")
    for _ in range(5):
        rules.hear("sensors/t", 25)
        rules.wait(5)
    assert rules.sends == []
    rules.wait(5)
    assert len(rules.sends) == 1


def test_time_alone_can_make_a_condition_true(bench):
    rules = bench(
        INPUTS
        + "  - {name: silent, every: 30s, when: age(t) > 50, then: [{event: 'since {{ stats.t.age | int }} s'}]}"
    )
    rules.hear("sensors/t", 20)
    rules.wait(45)
    assert rules.tells == []
    rules.wait(200)
    assert [tell.detail for tell in rules.tells] == ["since 60 s"]


def test_a_rate_holds_and_lets_go(bench):
    rules = bench(WARM + ", fire: each, rate: {most: 2, over: 1m}}")
    for _ in range(50):
        rules.hear("sensors/t", 30)
    assert len(rules.sends) == 2
    assert [trace.outcome for trace in rules.traces] == ["acted", "acted", "skipped"], (
        "one trace for all skips"
    )
    assert rules.engine.rule_statuses()[0].skipped == 48
    rules.now_s += 61
    rules.hear("sensors/t", 30)
    assert len(rules.sends) == 3


def test_is_silent_in_quiet_hours_and_catches_up(bench, utc):
    rules = bench(WARM + ", quiet: ['22:00-06:00']}")
    midnight_s = 1_799_971_200.0
    rules.wall_s = midnight_s + 23 * 3600
    rules.hear("sensors/t", 30)
    assert [trace.detail for trace in rules.traces] == ["quiet hours"]
    rules.wall_s = midnight_s + 30.5 * 3600
    rules.now_s += 1
    rules.hear("sensors/t", 30)
    assert len(rules.sends) == 1


def test_an_old_reading_is_none(bench):
    rules = bench(INPUTS + "  - {name: r, on: [door], when: t > 20, then: [{event: warm}]}")
    rules.hear("sensors/t", 30)
    rules.now_s += 61
    rules.hear("sensors/door", b"open")
    assert rules.tells == []
    assert "61 s old" in rules.engine.rule_statuses()[0].last


def test_a_retained_message_sets_nothing_off_and_counts_for_no_interlock(bench):
    rules = bench(WARM + ", interlock: [door == 'closed']}")
    assert rules.hear("sensors/t", 30, retain=True) == []
    rules.hear("sensors/door", b"closed", retain=True)
    rules.hear("sensors/t", 30)
    assert rules.traces[-1].outcome == "refused"
    assert "retained" in rules.traces[-1].detail
    assert rules.sends == []


def test_an_interlock_that_does_not_hold_is_tried_again(bench):
    rules = bench(WARM + ", interlock: [door == 'closed']}")
    rules.hear("sensors/door", b"open")
    rules.hear("sensors/t", 30)
    assert rules.traces[-1].outcome == "refused"
    rules.hear("sensors/door", b"closed")
    rules.hear("sensors/t", 30)
    assert len(rules.sends) == 1


def test_an_answer_becomes_an_action(bench):
    rules = bench(ASKS + f", {ACTS}}}")
    rules.hear("said", b"lamp on")
    rules.now_s += 0.5
    rules.answer(rules.asks[0], {"on": True})
    assert rules.sends[0].payload == b'{"on":true}'
    trace = rules.traces[0]
    assert (trace.prompt, trace.answer, trace.took_ms) == ("lamp on", '{"on": true}', 500.0)
    assert trace.receipt is not None


@pytest.mark.parametrize("said", ["no JSON", {"off": 1}, "[1]", '{"on": NaN}', '{"on": 1e999}', "[" * 500])
def test_an_answer_that_does_not_match_is_never_acted_on(bench, said):
    rules = bench(ASKS + f", {ACTS}}}")
    rules.hear("said", b"lamp on")
    rules.answer(rules.asks[0], said)
    assert rules.sends == []
    assert rules.traces[0].outcome == "refused"


def test_a_cut_answer_is_never_acted_on(bench):
    rules = bench(ASKS + f", {ACTS}}}")
    rules.hear("said", b"lamp on")
    rules.answer(rules.asks[0], {"on": True}, finish_reason="length")
    assert rules.traces[0].outcome == "refused"
    assert rules.sends == []


def test_an_answer_after_the_deadline_is_not_acted_on(bench):
    rules = bench(ASKS + f", deadline: 2s, {ACTS}}}")
    rules.hear("said", b"lamp on")
    assert rules.asks[0].request.options.deadline_ms == 2000
    rules.now_s += 2.1
    rules.answer(rules.asks[0], {"on": True})
    assert rules.traces[0].outcome == "refused"
    assert rules.sends == []


def test_interlocks_are_read_in_the_moment_of_action(bench):
    rules = bench(ASKS + f", interlock: [door == 'closed'], {ACTS}}}")
    rules.hear("sensors/door", b"closed")
    rules.hear("said", b"lamp on")
    rules.hear("sensors/door", b"open")
    rules.answer(rules.asks[0], {"on": True})
    assert rules.traces[0].outcome == "refused"
    assert rules.sends == []


def test_a_short_budget_skips_and_another_error_fails(bench):
    rules = bench(ASKS + f", {ACTS}}}")
    for code in ("budget", "internal"):
        rules.hear("said", b"lamp on")
        rules.refuse(rules.asks[-1], code)
    assert [trace.outcome for trace in rules.traces] == ["skipped", "failed"]


def test_the_latest_firing_replaces_those_that_wait(bench):
    rules = bench(ASKS + f", {ACTS}}}")
    for word in (b"one", b"two", b"three"):
        rules.hear("said", word)
    assert [ask.request.prompt for ask in rules.asks] == ["one"]
    rules.answer(rules.asks[0], {"on": 1})
    assert [ask.request.prompt for ask in rules.asks] == ["one", "three"]
    assert [trace.outcome for trace in rules.traces] == ["skipped", "acted"]


def test_a_queue_keeps_order_and_bound(bench):
    rules = bench(ASKS + f", busy: queue, queue: 2, {ACTS}}}")
    for word in (b"one", b"two", b"three", b"four"):
        rules.hear("said", word)
    for number in range(3):
        rules.answer(rules.asks[number], {"on": number})
    assert [ask.request.prompt for ask in rules.asks] == ["one", "two", "three"]
    assert [trace.detail for trace in rules.traces if trace.outcome == "skipped"] == ["the queue is full"]


def test_what_waited_beyond_its_deadline_is_not_asked(bench):
    rules = bench(ASKS + f", busy: queue, deadline: 5s, {ACTS}}}")
    rules.hear("said", b"one")
    rules.hear("said", b"two")
    rules.now_s += 6
    rules.answer(rules.asks[0], {"on": 1})
    assert len(rules.asks) == 1
    assert [trace.outcome for trace in rules.traces] == ["refused", "skipped"]


def test_energy_and_priority_reach_the_request(bench):
    rules = bench(ASKS + f", energy: wait, priority: low, max_tokens: 9, model: home-command, {ACTS}}}")
    rules.hear("said", b"one")
    request = rules.asks[0].request
    assert (request.model, request.options.priority, request.options.max_tokens) == ("home-command", "low", 9)
    assert request.options.deadline_ms == 3_600_000


def test_an_answer_that_nobody_asked_for_does_nothing(bench):
    rules = bench(ASKS + f", {ACTS}}}")
    rules.hear("said", b"one")
    assert rules.answer(rules.asks[0], {"on": 1}) != []
    assert rules.answer(rules.asks[0], {"on": 1}) == []


def test_one_refused_action_refuses_them_all(bench):
    rules = bench(
        ASKS
        + """, then: [
        {publish: {topic: out/first, payload: 'ON'}},
        {publish: {topic: 'out/{{ answer.on }}', payload: 'ON'}}]}"""
    )
    for name in ("a/b", "+", "#", "", "x\u0000", "\u0007"):
        rules.hear("said", b"go")
        rules.answer(rules.asks[-1], {"on": name})
    assert rules.sends == []
    assert {trace.outcome for trace in rules.traces} == {"refused"}
    rules.hear("said", b"go")
    rules.answer(rules.asks[-1], {"on": "lamp"})
    assert [send.topic for send in rules.sends] == ["out/first", "out/lamp"]


def test_a_payload_is_clamped_then_checked(bench):
    rules = bench(
        ASKS
        + """, then: [{publish: {topic: out/x, payload: {level: '{{ answer.on }}'}, clamp: {level: [0, 10]},
        schema: {type: object, properties: {level: {type: integer}}}}}]}"""
    )
    for value in (99, -1, 5, 2.5, "many"):
        rules.hear("said", b"go")
        rules.answer(rules.asks[-1], {"on": value})
    assert [send.payload for send in rules.sends] == [b'{"level":10}', b'{"level":0}', b'{"level":5}']
    assert rules.traces[0].actions[0].clamped == ("level: 99 -> 10",)
    assert [trace.outcome for trace in rules.traces[3:]] == ["refused", "refused"]


def test_a_dry_run_finds_out_everything_and_does_nothing(bench):
    rules = bench(WARM + ", dry_run: true}")
    rules.hear("sensors/t", 30)
    assert rules.sends == []
    assert rules.traces[0].outcome == "dry_run"
    assert rules.traces[0].actions[0].payload == "ON"


def test_rules_call_each_other_and_hops_end_it(bench):
    chain = "".join(
        f"  - {{name: r{n}, on: [], then: [{{call: {{rule: r{n + 1}, with: {{x: '{{{{ given.x + 1 }}}}'}}}}}}]}}\n"
        for n in range(MAX_HOPS + 2)
    )
    last = f"  - {{name: r{MAX_HOPS + 2}, on: [], then: [{{event: end}}]}}\n"
    start = "  - {name: start, when: t > 20, then: [{call: {rule: r0, with: {x: 1}}}]}\n"
    rules = bench(INPUTS + start + chain + last)
    rules.hear("sensors/t", 30)
    assert rules.tells == []
    assert rules.traces[-1].outcome == "refused"
    assert "in a row" in rules.traces[-1].detail
    assert rules.traces[-1].hops == MAX_HOPS + 1


def test_a_message_of_our_own_counts_as_a_hop(bench):
    rules = bench(
        """
allow: [loop/+]
inputs: {a: {topic: loop/a}, b: {topic: loop/b}}
rules:
  - {name: one, when: a > 0, fire: each, then: [{publish: {topic: loop/b, payload: 1}}]}
  - {name: two, when: b > 0, fire: each, then: [{event: here}]}
"""
    )
    rules.hear("loop/a", 1)
    rules.hear("loop/b", 1)
    assert rules.traces[-1].hops == 1
    rules.now_s += 60
    rules.hear("loop/b", 1)
    assert rules.traces[-1].hops == 0


def test_faulty_readings_are_counted_and_left_out(bench):
    rules = bench(WARM + "}")
    rules.hear("sensors/t", 10)
    for body in (b"x", b"NaN", b"151", b"null", b'"30"', b"", b"9" * 1000):
        rules.hear("sensors/t", body)
    status = rules.engine.input_statuses(rules.now)[0]
    assert (status.value, status.readings, status.faults) == (10, 1, 7)
    assert rules.sends == []


def test_new_rules_keep_readings_of_inputs_that_stay(bench):
    rules = bench(WARM + "}")
    for value in (10, 12):
        rules.hear("sensors/t", value)
    rules.change(INPUTS + "  - {name: r, when: mean(t) > 10, then: [{event: '{{ stats.t.count }}'}]}")
    rules.hear("sensors/t", 14)
    assert [tell.detail for tell in rules.tells] == ["3"]


def test_new_rules_do_not_fire_again_for_what_is_true_already(bench):
    rules = bench(WARM + "}")
    rules.hear("sensors/t", 30)
    rules.change(WARM + "}\n  - {name: other, when: t > 100, then: [{event: hot}]}")
    rules.hear("sensors/t", 31)
    assert len(rules.sends) == 1


def test_the_same_messages_give_the_same_decisions(bench):
    def run() -> list[object]:
        rules = bench(rules_text())
        chance = random.Random(5)
        for number in range(300):
            rules.now_s += 0.01
            rules.hear(f"sensors/{chance.randrange(100)}", {"value": chance.choice((20, 100))})
            if number % 50 == 0:
                rules.hear("voice/text", b"hello")
        return list(rules.decisions)

    assert run() == run()


def test_hostile_messages_leave_every_rule_running(bench):
    rules = bench(rules_text())
    chance = random.Random(11)
    for number in range(4000):
        rules.now_s += 0.001
        rules.hear(hostile_topic(chance, number), hostile(chance))
    rules.decisions.clear()
    for number in range(100):
        rules.hear(f"sensors/{number}", {"value": 100})
    assert {send.topic for send in rules.sends} == {f"out/{number}" for number in range(100)}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("t"), st.sampled_from([10, 25, 200, "x", None])),
        st.tuples(st.just("said"), st.sampled_from(["", "lamp", "{{ x }}"])),
        st.tuples(st.just("wait"), st.sampled_from([0, 1, 40, 500])),
        st.tuples(st.just("answer"), st.sampled_from(['{"on": 1}', "{}", "no", "[", "error"])),
    ),
    max_size=40,
)
MANY = (
    INPUTS
    + """
  - {name: warm, when: mean(t) > 20, debounce: 5s,
     then: [{publish: {topic: out/fan, payload: "ON"}}, {call: {rule: tell}}]}
  - {name: tell, on: [], rate: {most: 3, over: 1m}, then: [{event: "{{ t }}"}]}
  - {name: silent, every: 30s, when: age(t) > 60, then: [{event: silent}]}
  - {name: ask, prompt: "{{ said }}", busy: queue, queue: 2, deadline: 1m, answer: {type: object, required: ["on"]},
     then: [{publish: {topic: out/lamp, payload: "{{ answer.on }}", schema: {type: integer}}}]}
  - {name: latest, prompt: "{{ said }} {{ t }}", on: [said, t], answer: {type: object}, then: [{event: answered}]}
"""
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_every_question_is_settled_once_whatever_comes(bench, steps):
    rules = bench(MANY)
    open_asks: list[Ask] = []
    seen = 0
    for kind, value in steps:
        if kind == "t":
            rules.hear("sensors/t", value)
        elif kind == "said":
            rules.hear("said", str(value).encode())
        elif kind == "wait":
            rules.wait(float(value))
        elif open_asks:
            ask = open_asks.pop(0)
            found = rules.refuse(ask, "budget") if value == "error" else rules.answer(ask, str(value))
            assert sum(isinstance(one, Done) and one.trace.prompt == ask.request.prompt for one in found) >= 1
        new = rules.asks[seen:]
        seen += len(new)
        open_asks += new
        assert len({ask.rule for ask in open_asks}) == len(open_asks), "one question at a time for each rule"
    assert set(rules.engine.withdraw_all()) == {ask.request.id for ask in open_asks}
    assert all(rules.answer(ask, "{}") == [] for ask in open_asks)
