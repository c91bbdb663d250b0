from __future__ import annotations

import itertools
import random
import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslm.power.account import AccountedSpan, EnergyAccount, PowerSample
from edgeslm.power.attribution import EndedSpan, Interval, Settlement
from edgeslm.power.port import Cause, CpuTimes, MeterFacts, Reading
from edgeslm.schema.board import PowerTable
from edgeslm.schema.message import MeterClass

IDLE_W = 3.0
CORE_W = 1.2
STEP_S = 0.1
TABLE = PowerTable(idle_w=2.0, core_load_w=0.5, source="made up for the tests")
PROMPT = Cause("prompt", model="m@1", id="p1", rule="r")


@dataclass
class Board:
    """A board that draws 3 W and 1.2 W for each busy core, with a meter that counts joules unless told otherwise."""

    meter_class: MeterClass = "measured"
    table: PowerTable = TABLE
    error_w: float = 0.01
    noise_w: float = 0.0
    state: dict[str, object] | None = None
    counts: bool = True
    now_s: float = 50.0
    own_s: float = 0.0
    other_s: float = 0.0
    energy_j: float = 0.0
    wobble_s: float = 0.0
    intervals: list[Interval] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.account = EnergyAccount(
            self.table, state=self.state, clock=lambda: self.now_s, cpu_clock=lambda: self.own_s
        )
        self.facts = MeterFacts(
            "meter", self.meter_class, 0.1, 0.01, self.error_w, averages=True, source="made up for the tests"
        )
        self.random = random.Random(1)
        self.first_j = 0.0
        self.sample()

    @property
    def settlements(self) -> list[Settlement]:
        return [interval.settlement for interval in self.intervals if interval.settlement is not None]

    @property
    def ended(self) -> list[EndedSpan]:
        return [span for settlement in self.settlements for span in settlement.ended]

    def by_kind(self) -> dict[str, float]:
        sums: dict[str, float] = {}
        for settlement in self.settlements:
            for share in settlement.shares:
                sums[share.kind] = sums.get(share.kind, 0.0) + share.energy_j
        return sums

    def go(self, seconds: float, own: float = 0.0, other: float = 0.0, extra_w: float = 0.0) -> None:
        """Let time pass without a sample."""
        self.now_s += seconds
        self.own_s += own * seconds
        self.other_s += other * seconds
        self.energy_j += (IDLE_W + CORE_W * (own + other) + extra_w) * seconds

    def sample(self) -> None:
        power_w = (self.energy_j - self.first_j) / STEP_S + self.random.gauss(0.0, self.noise_w)
        self.first_j = self.energy_j
        reading = Reading(self.now_s, max(power_w, 0.0), self.energy_j if self.counts else None)
        busy_s = self.own_s + self.other_s + self.random.uniform(0, self.wobble_s)
        self.observe(PowerSample(reading, self.facts, CpuTimes(self.now_s, busy_s, self.own_s)))

    def observe(self, sample: PowerSample | None) -> None:
        interval = self.account.observe(sample)
        if interval is not None:
            self.intervals.append(interval)

    def run(self, seconds: float, own: float = 0.0, other: float = 0.0, extra_w: float = 0.0) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.go(STEP_S, own, other, extra_w)
            self.sample()

    def prompt(self, seconds: float, cause: Cause = PROMPT) -> None:
        """A prompt on one core between two samples."""
        span = self.account.begin(cause)
        self.go(seconds, own=1.0)
        span.end()


def trained(**changes: object) -> Board:
    """One that has seen idle time and work."""
    board = Board(**changes)  # type: ignore[arg-type]
    board.run(10)
    board.run(30, own=1.0)
    board.run(10)
    return board


def test_every_joule_goes_to_one_cause() -> None:
    board = Board()
    board.run(3)
    span = board.account.begin(PROMPT)
    board.run(2, own=1.0, other=0.5)
    span.end()
    board.run(2, own=0.1, other=0.3)
    assert sum(board.by_kind().values()) == pytest.approx(board.energy_j)
    assert set(board.by_kind()) == {"idle", "agent", "other", "prompt"}


events = st.lists(
    st.tuples(
        st.sampled_from(["begin", "end", "sample", "sample", "miss"]),
        st.floats(0, 0.3),
        st.floats(0, 2),
        st.floats(0, 2),
        st.floats(-2, 5),
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(events, st.booleans())
def test_shares_sum_to_the_total_and_to_the_time_whatever_happens(
    happenings: list[tuple[str, float, float, float, float]], counts: bool
) -> None:
    board = Board(counts=counts)
    spans: list[AccountedSpan] = []
    for what, seconds, own, other, extra_w in happenings:
        board.go(seconds, own, other, extra_w)
        if what == "begin":
            spans.append(board.account.begin(PROMPT))
        elif what == "end" and spans:
            spans.pop(0).end()
        elif what == "miss":
            board.observe(None)
        else:
            board.sample()
    for settlement in board.settlements:
        assert sum(share.energy_j for share in settlement.shares) == pytest.approx(settlement.energy_j)
        assert sum(share.seconds for share in settlement.shares) == pytest.approx(
            settlement.end_s - settlement.start_s
        )
        assert all(share.energy_j >= share.net_j >= 0 and share.seconds >= 0 for share in settlement.shares)
    for before, after in itertools.pairwise(board.settlements):
        assert after.start_s == before.end_s


def test_a_prompt_is_charged_its_own_cores_and_the_idle_board_meanwhile() -> None:
    board = trained()
    span = board.account.begin(PROMPT)
    board.run(5, own=1.5, other=0.5)
    board.go(0.05, own=1.5, other=0.5)
    span.end()
    board.run(0.1)
    (ended,) = board.ended
    assert ended.cause == PROMPT
    assert ended.seconds == pytest.approx(5.05)
    assert ended.net_j == pytest.approx(5.05 * 1.5 * CORE_W, rel=0.02)
    assert ended.energy_j == pytest.approx(5.05 * (IDLE_W + 1.5 * CORE_W), rel=0.02)
    assert ended.meter == "measured"


def test_a_receipt_is_there_at_once_and_close_to_what_the_meter_says_later() -> None:
    board = trained()
    span = board.account.begin(PROMPT)
    board.go(0.007, own=1.0)
    receipt = span.end()
    assert receipt.net_j == pytest.approx(0.007 * CORE_W, rel=0.1)
    assert receipt.energy_j == pytest.approx(0.007 * (IDLE_W + CORE_W), rel=0.1)
    assert receipt.power_w == pytest.approx(IDLE_W + CORE_W, rel=0.1)
    assert receipt.meter == "calibrated"
    board.go(0.093)
    board.sample()
    assert board.ended[-1].net_j == pytest.approx(receipt.net_j, rel=0.05)


def test_a_receipt_that_rests_on_the_power_table_alone_is_an_estimate() -> None:
    board = Board()
    span = board.account.begin(PROMPT)
    board.go(0.007, own=1.0)
    receipt = span.end()
    assert receipt.meter == "estimated"
    assert receipt.net_j == pytest.approx(0.007 * TABLE.core_load_w)


def test_a_long_span_is_measured_but_for_its_last_moment() -> None:
    board = trained()
    span = board.account.begin(PROMPT)
    board.run(3, own=1.0)
    board.go(0.05, own=1.0)
    assert span.so_far().meter == "measured"
    assert span.so_far().energy_j == pytest.approx(3.05 * (IDLE_W + CORE_W), rel=0.02)


def test_what_a_span_took_so_far_never_falls_while_nothing_is_corrected() -> None:
    board = trained()
    span = board.account.begin(PROMPT)
    told = []
    for _ in range(50):
        board.go(0.0004, own=1.0)
        told.append(span.so_far().energy_j)
    assert told == sorted(told)
    assert span.end().energy_j == pytest.approx(told[-1])
    assert span.end() == span.so_far()


def test_spans_at_the_same_time_share_what_the_process_burnt() -> None:
    board = trained()
    first = board.account.begin(PROMPT)
    second = board.account.begin(Cause("test", id="t"))
    board.run(4, own=2.0)
    first.end()
    board.run(4, own=1.0)
    second.end()
    board.run(0.2)
    prompt, test = board.ended
    assert prompt.net_j == pytest.approx(4 * CORE_W, rel=0.03)
    assert test.net_j == pytest.approx(8 * CORE_W, rel=0.03)
    assert prompt.energy_j + test.energy_j == pytest.approx(8 * IDLE_W + 12 * CORE_W, rel=0.02)


def test_own_work_outside_spans_is_the_agents_and_all_else_is_others() -> None:
    board = trained()
    before = board.by_kind()
    board.run(10, own=0.3, other=0.7)
    after = board.by_kind()
    assert after["agent"] - before["agent"] == pytest.approx(3 * CORE_W, rel=0.03)
    assert after["other"] - before["other"] == pytest.approx(7 * CORE_W, rel=0.03)
    assert after["idle"] - before["idle"] == pytest.approx(10 * IDLE_W, rel=0.02)


def test_the_ticks_of_the_kernel_do_not_add_up_to_work_of_others() -> None:
    board = trained(wobble_s=0.02)
    before = board.by_kind()["other"]
    board.run(300)
    assert board.by_kind()["other"] - before < 0.002 * 300 * IDLE_W


def test_draw_that_no_processor_explains_is_not_blamed_on_prompts() -> None:
    board = trained()
    board.run(20, extra_w=2.0)
    span = board.account.begin(PROMPT)
    board.run(5, own=1.0, extra_w=2.0)
    span.end()
    board.run(0.1, extra_w=2.0)
    assert board.ended[-1].net_j == pytest.approx(5 * CORE_W, rel=0.05)


def test_the_noise_of_the_meter_does_not_drown_a_short_prompt() -> None:
    board = trained(counts=False, noise_w=0.3, error_w=0.3)
    for _ in range(200):
        board.go(0.04)
        board.prompt(0.007)
        board.go(0.053)
        board.sample()
    costs = [span.net_j for span in board.ended]
    assert len(costs) == 200
    # Noise of 0.3 W over a sample is 30 mJ; the prompt takes 8.4 mJ.
    assert all(cost == pytest.approx(0.007 * CORE_W, rel=0.5) for cost in costs)
    assert sum(costs) == pytest.approx(200 * 0.007 * CORE_W, rel=0.1)


def test_a_long_prompt_is_charged_what_the_meter_says_though_its_work_is_unlike_what_was_learned() -> None:
    board = trained()
    span = board.account.begin(PROMPT)
    board.run(20, own=1.0, extra_w=0.6)
    span.end()
    board.run(0.1)
    assert board.ended[-1].net_j == pytest.approx(20 * (CORE_W + 0.6), rel=0.05)


@pytest.mark.parametrize("stall_s", [0.5, 5.0, 55.0])
@pytest.mark.parametrize("told", [True, False])
def test_a_stall_is_bridged_by_what_the_processor_did_in_it(stall_s: float, told: bool) -> None:
    board = trained(counts=False)
    start_j, settled_j = board.energy_j, sum(s.energy_j for s in board.settlements)
    stale = Reading(board.now_s, IDLE_W)
    for _ in range(round(stall_s / STEP_S)):
        board.go(STEP_S, other=2.0)
        cpu = CpuTimes(board.now_s, board.own_s + board.other_s, board.own_s)
        board.observe(None if told else PowerSample(stale, board.facts, cpu))
    board.go(STEP_S, other=2.0)
    board.first_j = board.energy_j - (IDLE_W + 2 * CORE_W) * STEP_S
    board.sample()
    drawn_j = board.energy_j - start_j
    bridged = board.settlements[-1]
    assert sum(s.energy_j for s in board.settlements) - settled_j == pytest.approx(drawn_j, rel=0.02)
    assert bridged.meter == "calibrated"
    assert bridged.end_s - bridged.start_s == pytest.approx(stall_s + STEP_S)
    board.run(1)
    assert board.settlements[-1].meter == "measured"
    assert board.account.total_j == pytest.approx(sum(s.energy_j for s in board.settlements), rel=1e-6)


def test_across_a_stall_a_counter_needs_no_bridge() -> None:
    board = trained()
    settled_j = sum(s.energy_j for s in board.settlements)
    drawn_j = board.energy_j
    board.go(5.0, other=3.0, extra_w=7.0)
    board.sample()
    assert sum(s.energy_j for s in board.settlements) - settled_j == pytest.approx(board.energy_j - drawn_j)
    assert board.settlements[-1].meter == "measured"


def test_with_every_meter_silent_accounting_goes_on_by_expectation() -> None:
    board = trained()
    count = len(board.settlements)
    for _ in range(130):
        board.go(1.0)
        board.observe(None)
    assert [s.meter for s in board.settlements[count:]] == ["calibrated", "calibrated"]
    assert sum(i.energy_j for i in board.intervals) == pytest.approx(board.energy_j, rel=0.02)


def test_intervals_are_told_ten_times_a_second_though_the_meter_speaks_once() -> None:
    board = Board(counts=False)
    slow = MeterFacts("slow", "measured", 1.0, 0.01, 0.01, averages=True, source="made up for the tests")
    reading = Reading(board.now_s, IDLE_W)
    last_j = board.energy_j
    for step in range(600):
        board.go(STEP_S, other=2.0 if 200 <= step < 400 else 0.0)
        if step % 10 == 9:
            reading = Reading(board.now_s, board.energy_j - last_j)
            last_j = board.energy_j
        cpu = CpuTimes(board.now_s, board.own_s + board.other_s, board.own_s)
        board.observe(PowerSample(reading, slow, cpu))
    assert len(board.intervals) == 600
    assert sum(interval.energy_j for interval in board.intervals) == pytest.approx(board.energy_j, rel=0.01)
    assert all(interval.energy_j >= 0 for interval in board.intervals)
    for before, after in itertools.pairwise(board.intervals):
        assert after.start_s == before.end_s
    assert board.by_kind()["other"] == pytest.approx(40 * CORE_W, rel=0.1)


def test_what_was_expected_too_high_is_made_up_for_and_no_interval_is_negative() -> None:
    board = trained(counts=False)
    slow = MeterFacts("slow", "measured", 1.0, 0.01, 0.01, averages=True, source="made up for the tests")
    start_j, told_j, count = board.energy_j, board.account.total_j, len(board.intervals)
    reading, last_j = Reading(board.now_s, IDLE_W), board.energy_j
    for step in range(100):
        board.go(STEP_S, other=2.0, extra_w=-2.0)
        if step % 10 == 9:
            reading, last_j = Reading(board.now_s, board.energy_j - last_j), board.energy_j
        cpu = CpuTimes(board.now_s, board.own_s + board.other_s, board.own_s)
        board.observe(PowerSample(reading, slow, cpu))
    energies_j = [interval.energy_j for interval in board.intervals[count:]]
    assert min(energies_j) == 0
    assert board.account.total_j - told_j == pytest.approx(board.energy_j - start_j, rel=0.02)


def test_noise_of_the_meter_does_not_lower_the_idle_draw() -> None:
    board = trained(counts=False, noise_w=0.5, error_w=0.5)
    board.run(900)
    assert board.account.draw.idle.idle_w == pytest.approx(IDLE_W, abs=0.06)


def test_what_the_board_draws_during_light_work_does_not_become_idle_draw() -> None:
    board = trained()
    span = board.account.begin(PROMPT)
    board.run(600, own=0.1, extra_w=1.0)
    span.end()
    assert board.account.draw.idle.idle_w == pytest.approx(IDLE_W, rel=0.02)


def test_what_is_open_at_the_end_is_settled() -> None:
    board = trained()
    board.go(0.05)
    interval = board.account.close()
    assert interval is not None
    assert interval.settlement is not None
    assert interval.settlement.energy_j == pytest.approx(0.05 * IDLE_W, rel=0.02)
    assert interval.settlement.meter == "calibrated"


def test_nothing_is_settled_without_a_reading() -> None:
    account = EnergyAccount(TABLE)
    assert account.observe(None) is None
    assert account.close() is None
    assert account.meter_class == "estimated"


def test_a_span_begun_before_the_first_reading_is_not_charged_to_the_meter() -> None:
    now_s = 10.0
    account = EnergyAccount(TABLE, clock=lambda: now_s, cpu_clock=lambda: now_s)
    span = account.begin(PROMPT)
    now_s = 14.0
    facts = MeterFacts("m", "measured", 0.1, 0.0, 0.0, averages=True, source="made up for the tests")
    assert account.observe(PowerSample(Reading(14.0, 9.0), facts, None)) is None
    now_s = 14.1
    interval = account.observe(PowerSample(Reading(14.1, 9.0), facts, None))
    assert interval is not None
    assert interval.energy_j == pytest.approx(0.9)
    reading = span.end()
    assert reading.energy_j == pytest.approx(4 * 2.5 + 0.9)
    assert reading.meter == "estimated"


def test_idle_draw_and_core_draw_are_learned() -> None:
    board = trained()
    assert board.account.draw.idle.idle_w == pytest.approx(IDLE_W, rel=0.02)
    assert board.account.draw.core.core_w == pytest.approx(CORE_W, rel=0.1)


def test_work_that_never_pauses_does_not_become_idle_draw() -> None:
    board = trained()
    span = board.account.begin(PROMPT)
    board.run(600, own=1.0)
    span.end()
    assert board.account.draw.idle.idle_w == pytest.approx(IDLE_W, rel=0.02)


def test_what_was_learned_survives_a_restart() -> None:
    board = trained()
    again = Board(state=board.account.state())
    span = again.account.begin(PROMPT)
    again.go(0.007, own=1.0)
    receipt = span.end()
    assert receipt.net_j == pytest.approx(0.007 * CORE_W, rel=0.1)
    assert receipt.meter == "calibrated"


def test_an_estimated_meter_gives_estimated_energies() -> None:
    board = trained(meter_class="estimated")
    board.prompt(0.5)
    board.run(0.1)
    assert board.account.meter_class == "estimated"
    assert board.ended[-1].meter == "estimated"


def test_threads_begin_and_end_spans_while_another_samples() -> None:
    account = EnergyAccount(TABLE)
    facts = MeterFacts("m", "measured", 0.001, 0.0, 0.0, averages=False, source="made up for the tests")
    ended: list[EndedSpan] = []
    shared_j = settled_j = 0.0
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for number in range(300):
                span = account.begin(Cause("prompt", id=str(number)))
                span.so_far()
                span.end()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    account.observe(PowerSample(Reading(account._clock(), 5.0), facts, None))
    for thread in threads:
        thread.start()
    running = True
    while running:
        running = any(thread.is_alive() for thread in threads)
        interval = account.observe(PowerSample(Reading(account._clock(), 5.0), facts, None))
        if interval is not None and interval.settlement is not None:
            ended += interval.settlement.ended
            settled_j += interval.settlement.energy_j
            shared_j += sum(share.energy_j for share in interval.settlement.shares)
    assert not failures
    assert len(ended) == 900
    assert shared_j == pytest.approx(settled_j)
