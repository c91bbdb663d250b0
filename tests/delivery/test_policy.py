"""Decisions of delivery: rates, retries, hours, metered links and plans."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgeslm.delivery.policy import (
    MAX_LIES,
    Conditions,
    RateFloor,
    RateMeter,
    SourceState,
    TokenBucket,
    backoff_s,
    check_wan,
    choose,
    opens_in_s,
    plan_delivery,
)
from edgeslm.errors import DeliveryPolicyError
from edgeslm.schema.delivery import BlobRef, DeliveryPolicy, DeliveryTarget, DeltaRef

NOON = datetime(2026, 3, 4, 12, 0)
FREE, METERED = Conditions(metered=False, now=NOON), Conditions(metered=True, now=NOON)


# --- rates --------------------------------------------------------------------------------------------------


@given(
    rate=st.integers(1024, 10**7),
    takes=st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 5)), min_size=1, max_size=60),
)
def test_no_more_passes_than_the_cap_and_a_second(rate, takes):
    bucket, now_s, passed = TokenBucket(rate, 0.0), 0.0, 0
    for size, rest_s in takes:
        now_s += bucket.take(size, now_s)
        passed += size
        assert passed <= rate * (now_s + 1) * 1.001 + 1
        now_s += rest_s


def test_a_bucket_lets_pass_as_much_as_the_cap():
    bucket, now_s = TokenBucket(1000, 0.0), 0.0
    for _ in range(100):
        now_s += bucket.take(500, now_s)
    assert now_s == pytest.approx(49.0)


def test_a_long_rest_saves_up_no_more_than_a_second():
    bucket = TokenBucket(1000, 0.0)
    assert bucket.take(1000, 3600.0) == 0
    assert bucket.take(1000, 3600.0) == 1


def test_a_source_below_the_least_rate_is_found_after_the_window():
    floor = RateFloor(1000, 30)
    assert not any(floor.too_slow(1.0, 999) for _ in range(29))
    assert floor.too_slow(1.0, 999)


def test_a_source_at_the_least_rate_is_kept():
    floor = RateFloor(1000, 30)
    assert not any(floor.too_slow(1.0, 1000) for _ in range(500))


def test_one_burst_does_not_pay_for_a_long_trickle():
    floor = RateFloor(1000, 30)
    floor.too_slow(0.1, 10**9)
    slow_after_s = next(s for s in range(1, 200) if floor.too_slow(1.0, 1))
    assert slow_after_s <= 60


def test_the_rate_forgets():
    meter, now_s = RateMeter(0.0), 0.0
    for _ in range(100):
        now_s += 0.5
        rate = meter.add(5_000, now_s)
    assert rate == pytest.approx(10_000)
    for _ in range(60):
        now_s += 0.5
        rate = meter.add(0, now_s)
    assert rate < 100


# --- retries ------------------------------------------------------------------------------------------------


@given(failures=st.integers(1, 10_000), chance=st.floats(0, 1))
def test_waits_double_up_to_the_longest_and_are_spread_over_half(failures, chance):
    policy = DeliveryPolicy(retry_s=2, max_retry_s=300)
    longest = min(300, 2 * 2 ** (failures - 1))
    assert longest / 2 <= backoff_s(failures, policy, chance) <= longest


def test_a_failing_source_is_left_alone_and_the_next_goes_on():
    policy = DeliveryPolicy(retry_s=2)
    states = [SourceState().failed("refused", 100, policy, 1.0, None), SourceState()]
    assert states[0].ready_at_s == 102
    assert choose(states, 100) == 1
    assert choose(states, 102) == 0
    assert choose([states[0]], 101) is None


def test_a_source_that_broke_off_after_it_gave_something_goes_on_at_once():
    state = SourceState().failed("x", 0, DeliveryPolicy(), 1.0, None).broke_off("cut")
    assert choose([state, SourceState()], 0) == 0


def test_a_source_may_ask_for_patience_but_not_for_a_day():
    policy = DeliveryPolicy(retry_s=2)
    assert SourceState().failed("busy", 0, policy, 0.0, 60).ready_at_s == 60
    assert SourceState().failed("busy", 0, policy, 0.0, 86_400).ready_at_s == 3600


def test_three_lies_are_enough():
    policy, state = DeliveryPolicy(), SourceState()
    for lie in range(MAX_LIES):
        assert state.dropped is None
        state = state.lied(f"lie {lie}", 0, policy, 0.0)
    assert state.dropped == "lie 2"
    assert choose([state], 10**9) is None


def test_lies_are_not_forgotten_over_failures():
    policy = DeliveryPolicy()
    state = SourceState().lied("a", 0, policy, 0).failed("b", 0, policy, 0, None).broke_off("c")
    assert state.lies == 1


# --- what is allowed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hours", "at", "wait_s"),
    [
        (None, "12:00", 0),
        ("01:00-05:00", "03:00", 0),
        ("01:00-05:00", "01:00", 0),
        ("01:00-05:00", "05:00", 20 * 3600),
        ("01:00-05:00", "00:30", 1800),
        ("22:00-06:00", "23:59", 0),
        ("22:00-06:00", "00:00", 0),
        ("22:00-06:00", "05:59", 0),
        ("22:00-06:00", "06:00", 16 * 3600),
        ("22:00-06:00", "21:30", 1800),
    ],
)
def test_hours(hours, at, wait_s):
    now = datetime.combine(NOON.date(), datetime.strptime(at, "%H:%M").time())
    assert opens_in_s(DeliveryPolicy(hours=hours), now) == wait_s


@given(
    opens=st.integers(0, 1439),
    closes=st.integers(0, 1439),
    at=st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31)),
)
def test_after_the_wait_the_hours_are_open(opens, closes, at):
    if opens == closes:
        return
    hours = f"{opens // 60:02}:{opens % 60:02}-{closes // 60:02}:{closes % 60:02}"
    policy = DeliveryPolicy(hours=hours)
    wait_s = opens_in_s(policy, at)
    assert 0 <= wait_s < 86_400
    assert opens_in_s(policy, at + timedelta(seconds=wait_s)) == 0


@pytest.mark.parametrize("hours", ["", "1:00-5:00", "01:00", "24:00-05:00", "01:00-05:60", "05:00-05:00"])
def test_hours_that_are_none_are_refused(hours):
    with pytest.raises(ValidationError):
        DeliveryPolicy(hours=hours)


def test_a_cap_below_the_least_rate_is_refused():
    with pytest.raises(ValidationError):
        DeliveryPolicy(max_bytes_per_s=2000, min_bytes_per_s=3000)


@pytest.mark.parametrize(
    ("rule", "kind", "moves", "most", "allowed"),
    [
        ("allow", "full", 10**9, None, True),
        ("delta", "full", 10, None, False),
        ("delta", "delta", 10**9, None, True),
        ("refuse", "delta", 10, None, False),
        ("allow", "full", 101, 100, False),
        ("allow", "full", 100, 100, True),
        ("delta", "delta", 101, 100, False),
    ],
)
def test_a_metered_link_is_kept_for_what_the_policy_names(rule, kind, moves, most, allowed):
    policy = DeliveryPolicy(metered=rule, metered_max_bytes=most)
    check_wan(policy, FREE, kind, moves)
    if allowed:
        check_wan(policy, METERED, kind, moves)
    else:
        with pytest.raises(DeliveryPolicyError) as caught:
            check_wan(policy, METERED, kind, moves)
        assert caught.value.retry_after_s


# --- plans --------------------------------------------------------------------------------------------------

BASE, OTHER = "ba" * 32, "07" * 32
PACKAGE = BlobRef(sha256="aa" * 32, size_bytes=100_000_000)
DELTA = BlobRef(sha256="dd" * 32, size_bytes=4_000_000)
TARGET = DeliveryTarget(
    package=PACKAGE,
    deltas=(DeltaRef(base_sha256=BASE, blob=DELTA), DeltaRef(base_sha256=OTHER, blob=DELTA)),
)


def plan(have=(BASE,), reaches=("wan",), conditions=FREE, arrived=None, **policy):
    steps = plan_delivery(
        TARGET,
        have=have,
        arrived_bytes=arrived or {},
        reaches=reaches,
        policy=DeliveryPolicy(**policy),
        conditions=conditions,
    )
    return [(step.kind, "+".join(sorted(step.reaches)), step.moves_bytes) for step in steps]


def test_a_delta_goes_before_the_whole_which_stays_the_way_out():
    assert plan() == [("delta", "wan", 4_000_000), ("full", "wan", 100_000_000)]


def test_a_delta_from_what_is_not_installed_is_no_way():
    assert plan(have=()) == [("full", "wan", 100_000_000)]
    assert plan(have=("99" * 32,)) == [("full", "wan", 100_000_000)]


def test_a_whole_that_is_nearly_here_goes_before_a_delta():
    steps = plan(arrived={PACKAGE.sha256: 99_000_000})
    assert steps == [("full", "wan", 1_000_000), ("delta", "wan", 4_000_000)]


def test_a_disk_beside_us_goes_before_every_network():
    steps = plan(reaches=("lan", "wan", "local"))
    assert steps[:2] == [("full", "local", 0), ("delta", "local", 0)]
    assert steps[2:] == [("delta", "lan+local+wan", 4_000_000), ("full", "lan+local+wan", 100_000_000)]


def test_over_a_metered_link_only_its_bytes_count():
    assert plan(reaches=("lan", "wan"), conditions=METERED, metered="allow") == [
        ("delta", "lan", 4_000_000),
        ("full", "lan", 100_000_000),
        ("delta", "lan+wan", 4_000_000),
        ("full", "lan+wan", 100_000_000),
    ]


def test_what_the_policy_forbids_is_no_way():
    assert plan(conditions=METERED, metered="delta") == [("delta", "wan", 4_000_000)]
    assert plan(reaches=("lan", "wan"), conditions=METERED, metered="refuse") == [
        ("delta", "lan", 4_000_000),
        ("full", "lan", 100_000_000),
    ]
    assert plan(reaches=("lan", "wan"), hours="01:00-02:00") == [
        ("delta", "lan", 4_000_000),
        ("full", "lan", 100_000_000),
    ]


def test_no_way_at_all_says_when_to_ask_again():
    with pytest.raises(DeliveryPolicyError) as caught:
        plan(hours="14:00-15:00")
    assert caught.value.retry_after_s == 2 * 3600
    with pytest.raises(DeliveryPolicyError):
        plan(conditions=METERED, metered="refuse")
    assert plan(reaches=()) == []


@given(
    reaches=st.sets(st.sampled_from(["local", "lan", "wan"])),
    metered=st.booleans(),
    rule=st.sampled_from(["allow", "delta", "refuse"]),
    have=st.sets(st.sampled_from([BASE, OTHER])),
    hour=st.integers(0, 23),
)
def test_no_plan_ever_breaks_the_policy(reaches, metered, rule, have, hour):
    policy = DeliveryPolicy(metered=rule, hours="01:00-05:00")
    conditions = Conditions(metered=metered, now=NOON.replace(hour=hour))
    try:
        steps = plan_delivery(
            TARGET, have=have, arrived_bytes={}, reaches=reaches, policy=policy, conditions=conditions
        )
    except DeliveryPolicyError:
        assert reaches == {"wan"}
        return
    for step in steps:
        assert step.reaches <= reaches
        assert step.kind == "full" or step.base_sha256 in have
        if "wan" in step.reaches:
            check_wan(policy, conditions, step.kind, step.moves_bytes)
    assert (steps == ()) == (not reaches)
