from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslm.errors import LedgerError
from edgeslm.power import ledger_batch
from edgeslm.power.attribution import CauseKind, EndedSpan, Interval, Settlement, Share
from edgeslm.power.ledger import RESTART_GAP_S, Ledger
from edgeslm.power.ledger_file import MOST_PROMPTS
from edgeslm.power.ledger_reader import EnergyBucket, LedgerReader, PowerPoint, PromptNote
from edgeslm.power.port import Cause
from edgeslm.schema.message import MeterClass

NOON = 1_790_000_000 // 86_400 * 86_400 + 43_200
BOOT = "boot-1"


def interval(
    start_s: float,
    seconds: float,
    energy_j: float,
    *,
    kind: CauseKind = "idle",
    model: str | None = None,
    rule: str | None = None,
    net_j: float = 0.0,
    meter: MeterClass = "measured",
    ended: tuple[EndedSpan, ...] = (),
) -> Interval:
    share = Share(kind, model, rule, energy_j, net_j, seconds)
    end_s = start_s + seconds
    settlement = Settlement(start_s, end_s, energy_j, meter, (share,), ended)
    return Interval(start_s, end_s, energy_j, energy_j / seconds, meter, settlement)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "energy.db", BOOT)


def total_j(ledger: LedgerReader) -> float:
    return sum(row.energy_j for row in ledger.energy(0, 1e12))


def test_energy_is_kept_by_minute_cause_model_and_rule(ledger: Ledger) -> None:
    for second in range(120):
        ledger.add(interval(second, 1, 3.0), second + 1, NOON + second + 1)
    work = interval(120, 1, 5.0, kind="prompt", model="m@1", rule="lights", net_j=2.0)
    ledger.add(work, 121, NOON + 121)
    ledger.flush(NOON + 121)
    rows = ledger.energy(NOON, NOON + 3600, ("minute", "cause", "model", "rule"))
    assert [(row.start_s, row.cause, row.model, row.rule, row.energy_j, row.net_j) for row in rows] == [
        (NOON, "idle", None, None, pytest.approx(180.0), 0.0),
        (NOON + 60, "idle", None, None, pytest.approx(180.0), 0.0),
        (NOON + 120, "prompt", "m@1", "lights", pytest.approx(5.0), pytest.approx(2.0)),
    ]
    assert [row.seconds for row in rows] == pytest.approx([60, 60, 1])
    (whole,) = ledger.energy(NOON, NOON + 3600)
    assert (whole.start_s, whole.cause, whole.energy_j) == (None, None, pytest.approx(365.0))
    assert ledger.energy(NOON + 3600, NOON + 7200) == []


def test_energy_is_grouped_by_hour_and_day(ledger: Ledger) -> None:
    for hour in range(30):
        ledger.add(interval(hour * 3600, 1, 1.0), hour * 3600 + 1, NOON + hour * 3600 + 1)
    ledger.flush(NOON)
    assert len(ledger.energy(0, 1e12, ("hour",))) == 30
    assert [row.energy_j for row in ledger.energy(0, 1e12, ("day",))] == pytest.approx([12, 18])


def test_a_stretch_over_several_minutes_is_spread_over_them(ledger: Ledger) -> None:
    ledger.add(interval(30, 300, 300.0), 330, NOON + 330)
    ledger.flush(NOON)
    rows = ledger.energy(0, 1e12, ("minute",))
    assert [row.energy_j for row in rows] == pytest.approx([30, 60, 60, 60, 60, 30])
    assert [row.seconds for row in rows] == pytest.approx([30, 60, 60, 60, 60, 30])


def test_the_class_told_is_the_weakest_that_a_tenth_rests_on(ledger: Ledger) -> None:
    ledger.add(interval(0, 1, 95.0), 1, NOON + 1)
    ledger.add(interval(1, 1, 5.0, meter="estimated"), 2, NOON + 2)
    ledger.flush(NOON)
    assert ledger.energy(0, 1e12)[0].meter == "measured"
    ledger.add(interval(2, 1, 50.0, meter="calibrated"), 3, NOON + 3)
    ledger.flush(NOON)
    assert ledger.energy(0, 1e12)[0].meter == "calibrated"


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0.1, 100), st.floats(0, 500), st.sampled_from([0, 0, -30, 40, -86_400, 10**8, -(10**8)])
        ),
        min_size=1,
        max_size=20,
    )
)
def test_steps_of_the_clock_lose_and_double_nothing(
    tmp_path_factory: pytest.TempPathFactory, happenings: list[tuple[float, float, int]]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "energy.db"
    ledger = Ledger(path, None)
    now_s, offset_s = 0.0, float(NOON)
    for seconds, energy_j, step_s in happenings:
        ledger.add(interval(now_s, seconds, energy_j), now_s + seconds, now_s + seconds + offset_s)
        ledger.flush(now_s + offset_s)
        now_s += seconds
        offset_s += step_s
    rows = ledger.energy(0, 1e12, ("minute",))
    ledger.close()
    assert all(row.energy_j >= 0 and row.seconds >= 0 for row in rows)
    assert sum(row.energy_j for row in rows) == pytest.approx(sum(energy_j for _, energy_j, _ in happenings))
    assert sum(row.seconds for row in rows) == pytest.approx(now_s)


def test_watts_are_kept_by_minute(ledger: Ledger) -> None:
    for second, watts in enumerate([2.0, 5.0, 3.0]):
        ledger.add(interval(second, 1, watts), second + 1, NOON + second + 1)
    ledger.flush(NOON)
    ledger.add(interval(3, 1, 10.0), 4, NOON + 4)
    ledger.flush(NOON)
    assert ledger.power(NOON, NOON + 60) == [PowerPoint(NOON, 60, 2.0, 5.0, 10.0)]
    assert ledger.power(NOON, NOON + 60, width_s=3600)[0].width_s == 3600


def test_windows_can_be_filled_from_what_was_drawn(ledger: Ledger) -> None:
    for minute in range(3):
        ledger.add(interval(minute * 60, 60, 60.0), minute * 60 + 60, NOON + minute * 60 + 59.9)
    ledger.flush(NOON)
    buckets = ledger.buckets(NOON, NOON + 600)
    assert sum(bucket.energy_j for bucket in buckets) == pytest.approx(180, rel=0.01)
    assert buckets[1] == EnergyBucket(NOON + 60, 60, pytest.approx(60.0), pytest.approx(60.0))


def test_minutes_become_hours_and_hours_days_and_no_joule_is_lost(ledger: Ledger) -> None:
    days = 100
    for hour in range(days * 24):
        now_s = hour * 3600.0
        for minute in (0, 30):
            at_s = now_s + minute * 60
            ledger.add(interval(at_s, 1, 2.0), at_s + 1, NOON + at_s + 1)
        if hour % 240 == 239:
            ledger.flush(NOON + now_s)
    end_s = NOON + days * 86_400.0
    ledger.flush(end_s)
    ledger.flush(end_s + 4000)
    assert total_j(ledger) == pytest.approx(days * 24 * 2 * 2.0)
    widths = [(bucket.width_s, end_s - bucket.start_s) for bucket in ledger.buckets(0, 1e12)]
    assert {width for width, _ in widths} == {60, 3600, 86_400}
    assert all(age <= 2 * 86_400 + 7200 for width, age in widths if width == 60)
    assert all(2 * 86_400 - 7200 <= age <= 91 * 86_400 for width, age in widths if width == 3600)
    assert all(age >= 89 * 86_400 for width, age in widths if width == 86_400)
    old = ledger.power(NOON, NOON + 86_400, 86_400)
    assert all(point.min_w == point.max_w == point.mean_w == pytest.approx(2.0) for point in old)


def test_a_prompt_has_what_the_agent_and_what_the_meter_say_of_it_in_whatever_order(ledger: Ledger) -> None:
    note = PromptNote("p1", NOON, "m@1", "lights", "high", 12, 8, 0.5, '{"why": "fits"}')
    cost = EndedSpan(Cause("prompt", "m@1", "p1", "lights"), 0.25, 2.0, 0.6, "measured")
    ledger.add(interval(0, 1, 3.0, ended=(cost,)), 1, NOON + 1)
    ledger.flush(NOON)
    early = ledger.prompt("p1")
    assert early is not None
    assert (early.note.decision, early.energy_j) == (None, 2.0)
    ledger.note(note)
    ledger.flush(NOON)
    row = ledger.prompt("p1")
    assert row is not None
    assert row.note == note
    assert (row.energy_j, row.net_j, row.seconds, row.meter) == (2.0, 0.6, 0.25, "measured")
    ledger.note(PromptNote("p2", NOON + 1, decision="{}"))
    ledger.flush(NOON)
    assert [row.note.id for row in ledger.prompts(10)] == ["p2", "p1"]
    refused = ledger.prompt("p2")
    assert refused is not None
    assert refused.energy_j is None
    assert ledger.prompt("p3") is None


def test_prompts_are_bounded_in_number_even_when_the_clock_steps_back(ledger: Ledger) -> None:
    for number in range(MOST_PROMPTS + 500):
        ledger.note(PromptNote(f"p{number}", NOON - number * 100))
    ledger.flush(NOON - 10**7)
    assert len(ledger.prompts(MOST_PROMPTS * 2)) == MOST_PROMPTS
    assert ledger.prompt("p499") is None
    assert ledger.prompt(f"p{MOST_PROMPTS + 499}") is not None


def test_prompts_are_bounded_in_age(ledger: Ledger) -> None:
    ledger.note(PromptNote("old", NOON - 31 * 86_400))
    ledger.note(PromptNote("young", NOON - 29 * 86_400))
    ledger.flush(NOON)
    assert [row.note.id for row in ledger.prompts(10)] == ["young"]


def test_state_survives_a_restart(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "energy.db", BOOT)
    ledger.set_state("account", {"idle_w": 2.5})
    assert ledger.state("account") == {"idle_w": 2.5}
    ledger.flush(NOON)
    ledger.close()
    again = Ledger(tmp_path / "energy.db", BOOT)
    assert again.state("account") == {"idle_w": 2.5}
    assert again.state("nothing") == {}


def test_a_state_that_is_no_json_object_is_none(tmp_path: Path, ledger: Ledger) -> None:
    with sqlite3.connect(tmp_path / "energy.db") as db:
        db.execute("INSERT INTO state VALUES ('a', '[1'), ('b', '[1]')")
    assert ledger.state("a") == ledger.state("b") == {}


def test_a_command_reads_beside_a_running_agent(tmp_path: Path, ledger: Ledger) -> None:
    ledger.add(interval(0, 1, 3.0), 1, NOON + 1)
    ledger.flush(NOON)
    reader = LedgerReader.open(tmp_path / "energy.db")
    assert total_j(reader) == pytest.approx(3.0)
    ledger.add(interval(1, 1, 4.0), 2, NOON + 2)
    ledger.flush(NOON)
    assert total_j(reader) == pytest.approx(7.0)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._db.execute("DELETE FROM energy")
    reader.close()


def test_reading_what_is_not_there_is_an_error_and_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"energy\.db"):
        LedgerReader.open(tmp_path / "energy.db")
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_of_a_newer_release_is_refused_and_left_alone(tmp_path: Path, ledger: Ledger) -> None:
    ledger.close()
    with sqlite3.connect(tmp_path / "energy.db") as db:
        db.execute("PRAGMA user_version=99")
    for opening in (lambda path: Ledger(path, BOOT), LedgerReader.open):
        with pytest.raises(LedgerError, match="schema 99"):
            opening(tmp_path / "energy.db")
    assert not list(tmp_path.glob("*.broken*"))


@pytest.mark.parametrize("content", [b"no database at all" * 1000, b"SQLite format 3\0" + b"\xff" * 9000])
def test_a_broken_ledger_is_set_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "energy.db"
    path.write_bytes(content)
    ledger = Ledger(path, BOOT)
    ledger.add(interval(0, 1, 3.0), 1, NOON + 1)
    assert ledger.flush(NOON)
    assert (tmp_path / "energy.db.broken").read_bytes() == content
    assert total_j(ledger) == pytest.approx(3.0)


def test_a_ledger_that_breaks_while_in_use_is_replaced_and_the_batch_kept(
    tmp_path: Path, ledger: Ledger
) -> None:
    path = tmp_path / "energy.db"
    page = ledger._db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'energy'").fetchone()[0]
    ledger.close()
    data = bytearray(path.read_bytes())
    data[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    path.write_bytes(data)
    ledger = Ledger(path, None)
    ledger.add(interval(0, 1, 3.0), 1, NOON + 1)
    assert not ledger.flush(NOON)
    assert ledger.flush(NOON)
    assert total_j(ledger) == pytest.approx(3.0)
    assert (tmp_path / "energy.db.broken").exists()


def fill_up(ledger: Ledger) -> None:
    """Make SQLite report a full disk, as it does when the file may not grow."""
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count={pages}")


def test_with_a_full_disk_accounting_goes_on_in_memory_and_is_written_later(ledger: Ledger) -> None:
    fill_up(ledger)
    for number in range(50):
        ledger.note(PromptNote(f"p{number}", NOON, decision="x" * 1000))
    ledger.add(interval(0, 1, 3.0), 1, NOON + 1)
    ledger.set_state("account", {"idle_w": 2.5})
    assert not ledger.flush(NOON)
    assert not ledger.flush(NOON)
    assert ledger.failed_flushes == 2
    assert total_j(ledger) == 0
    assert ledger.state("account") == {"idle_w": 2.5}
    ledger.add(interval(1, 1, 4.0), 2, NOON + 2)
    ledger._db.execute("PRAGMA max_page_count=100000")
    assert ledger.flush(NOON)
    assert total_j(ledger) == pytest.approx(7.0)
    assert len(ledger.prompts(100)) == 50


def test_what_is_recorded_while_a_flush_fails_is_kept_too(ledger: Ledger) -> None:
    fill_up(ledger)
    ledger.note(PromptNote("p1", NOON, decision="x" * 50_000))
    ledger.add(interval(0, 1, 3.0), 1, NOON + 1)

    def meanwhile(sql: str) -> None:
        if sql.startswith("BEGIN"):
            ledger.add(interval(1, 1, 4.0), 2, NOON + 2)
            ledger.note(PromptNote("p2", NOON))
            ledger.set_state("account", {"idle_w": 2.5})

    ledger._db.set_trace_callback(meanwhile)
    assert not ledger.flush(NOON)
    ledger._db.set_trace_callback(None)
    ledger._db.execute("PRAGMA max_page_count=100000")
    assert ledger.flush(NOON)
    assert total_j(ledger) == pytest.approx(7.0)
    assert ledger.power(NOON, NOON + 60) == [PowerPoint(NOON, 60, 3.0, 3.5, 4.0)]
    assert ledger.prompt("p2") is not None
    assert ledger.state("account") == {"idle_w": 2.5}


def test_with_a_disk_full_for_days_memory_stays_bounded_and_no_joule_is_lost(ledger: Ledger) -> None:
    fill_up(ledger)
    for minute in range(5 * 1440):
        at_s = minute * 60.0
        ledger.add(interval(at_s, 60, 60.0), at_s + 60, NOON + at_s + 59.9)
        if minute % 60 == 0:
            ledger.note(PromptNote(f"p{minute}", NOON, decision="x" * 10_000))
            assert not ledger.flush(NOON + at_s)
    for number in range(ledger_batch.MOST_PENDING + 10):
        ledger.note(PromptNote(f"q{number}", NOON))
    assert not ledger.flush(NOON)
    batch = ledger._batch
    assert len(batch.notes) == ledger_batch.MOST_PENDING
    assert len(batch.energy) <= ledger_batch.MOST_PENDING + 120
    assert len(batch.power) <= ledger_batch.MOST_PENDING + 120
    ledger._db.execute("PRAGMA max_page_count=100000")
    assert ledger.flush(NOON + 5 * 86_400.0)
    assert total_j(ledger) == pytest.approx(5 * 86_400)


_CRASH = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_ledger import BOOT, NOON, Ledger, interval
ledger = Ledger(Path(sys.argv[1]), BOOT)
for second in range(100):
    ledger.add(interval(second, 1, 3.0), second + 1, NOON + second + 1)
    if second % 10 == 9 and second < 95:
        ledger.flush(NOON + second)
os._exit(9)
"""


def test_a_crash_loses_at_most_one_batch_and_that_is_made_up_for(tmp_path: Path) -> None:
    path = tmp_path / "energy.db"
    crashed = subprocess.run(
        [sys.executable, "-c", _CRASH, str(path), str(Path(__file__).parent)], check=False
    )
    assert crashed.returncode == 9
    ledger = Ledger(path, BOOT)
    assert total_j(ledger) == pytest.approx(270.0)
    ledger.add(interval(103, 1, 3.0), 104, NOON + 104)
    ledger.flush(NOON + 104)
    assert total_j(ledger) == pytest.approx(104 * 3.0)
    (made_up,) = [row for row in ledger.energy(0, 1e12, ("cause",)) if row.cause == "other"]
    assert made_up.meter == "estimated"
    assert made_up.seconds == pytest.approx(13)


@pytest.mark.parametrize(
    ("boot", "gap_s"), [("boot-2", 5.0), (None, 5.0), (BOOT, RESTART_GAP_S + 1), (BOOT, -50.0)]
)
def test_time_switched_off_is_not_made_up_for(tmp_path: Path, boot: str | None, gap_s: float) -> None:
    ledger = Ledger(tmp_path / "energy.db", BOOT)
    ledger.add(interval(100, 1, 3.0), 101, NOON + 1)
    ledger.flush(NOON)
    ledger.close()
    again = Ledger(tmp_path / "energy.db", boot)
    again.add(interval(101 + gap_s, 1, 3.0), 102 + gap_s, NOON + 2 + gap_s)
    again.flush(NOON)
    assert total_j(again) == pytest.approx(6.0)


def test_what_was_seen_last_may_be_of_no_use(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "energy.db", BOOT)
    for number, seen in enumerate(
        ({"boot": BOOT}, {"boot": BOOT, "at_s": "x", "power_w": None}, {"at_s": 1.0})
    ):
        ledger._seen = json.loads(json.dumps(seen))
        ledger.add(interval(number, 1, 3.0), 1, NOON + 1)
    ledger.flush(NOON)
    assert total_j(ledger) == pytest.approx(9.0)
