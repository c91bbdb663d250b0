from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.power.cpu import BusyCores, CpuClock, read_cpu_times
from edgeslm.power.port import CpuTimes


def write_stat(root: Path, **ticks: int) -> None:
    fields = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
    line = " ".join(str(ticks.get(field, 0)) for field in fields)
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/stat").write_text(f"cpu  {line}\ncpu0 {line}\nintr 1 2 3\n")


class Clocks:
    """Wall and process time that a test moves."""

    def __init__(self) -> None:
        self.wall_s = 100.0
        self.process_s = 0.0

    def reader(self, root: Path) -> CpuClock:
        return CpuClock(root, lambda: self.wall_s, lambda: self.process_s)


def test_waiting_stolen_and_guest_time_are_no_work(tmp_path: Path) -> None:
    clocks = Clocks()
    write_stat(
        tmp_path, user=100, nice=100, system=100, irq=100, softirq=100, idle=9, iowait=9, steal=9, guest=9
    )
    assert clocks.reader(tmp_path).read().busy_s == 5.0


def test_this_process_is_counted_once(tmp_path: Path) -> None:
    clocks = Clocks()
    write_stat(tmp_path)
    reader = clocks.reader(tmp_path)
    busy = BusyCores(reader.read())
    clocks.wall_s += 1.0
    clocks.process_s += 1.0
    write_stat(tmp_path, user=100)
    assert busy.advance(reader.read()) == pytest.approx(1.0)
    clocks.wall_s += 1.0
    clocks.process_s += 0.5
    write_stat(tmp_path, user=250)
    assert busy.advance(reader.read()) == pytest.approx(1.5)


def test_a_prompt_shorter_than_a_tick_is_seen(tmp_path: Path) -> None:
    clocks = Clocks()
    write_stat(tmp_path, user=100)
    reader = clocks.reader(tmp_path)
    busy = BusyCores(reader.read())
    clocks.wall_s += 0.004
    clocks.process_s += 0.004
    assert busy.advance(reader.read()) == pytest.approx(1.0)


@given(
    st.lists(
        st.tuples(st.floats(0.001, 1.0), st.floats(0.0, 4.0), st.floats(0.0, 4.0)), min_size=1, max_size=60
    )
)
def test_coarse_ticks_add_no_work_however_often_one_looks(spans: list[tuple[float, float, float]]) -> None:
    own_s = others_s = wall_s = counted_s = 0.0
    busy = BusyCores(CpuTimes(at_s=0.0, busy_s=0.0, process_s=0.0))
    for length_s, own_cores, other_cores in spans:
        wall_s += length_s
        own_s += own_cores * length_s
        others_s += other_cores * length_s
        ticks = int((own_s + others_s) * 100) / 100
        counted_s += busy.advance(CpuTimes(at_s=wall_s, busy_s=ticks, process_s=own_s)) * length_s
    assert own_s + others_s - 0.011 <= counted_s <= own_s + others_s + 1e-6


def test_a_gap_in_the_totals_is_nobodys_work(tmp_path: Path) -> None:
    clocks = Clocks()
    reader = clocks.reader(tmp_path)
    busy = BusyCores(reader.read())
    clocks.wall_s += 1.0
    clocks.process_s += 0.25
    assert busy.advance(reader.read()) == pytest.approx(0.25)
    clocks.wall_s += 1.0
    write_stat(tmp_path, user=500_000)
    assert busy.advance(reader.read()) == 0.0
    clocks.wall_s += 1.0
    write_stat(tmp_path, user=500_100)
    assert busy.advance(reader.read()) == pytest.approx(1.0)


def test_counters_that_start_over_go_on_counting(tmp_path: Path) -> None:
    clocks = Clocks()
    write_stat(tmp_path, user=1000)
    reader = clocks.reader(tmp_path)
    busy = BusyCores(reader.read())
    clocks.wall_s += 1.0
    write_stat(tmp_path, user=5)
    assert busy.advance(reader.read()) == 0.0
    clocks.wall_s += 1.0
    write_stat(tmp_path, user=105)
    assert busy.advance(reader.read()) == pytest.approx(1.0)


@pytest.mark.parametrize("content", ["", "cpu", "cpu  a b c d e f g h", "intr 1 2 3 4 5 6 7 8 9"])
def test_what_is_no_stat_file_leaves_this_process(tmp_path: Path, content: str) -> None:
    clocks = Clocks()
    clocks.process_s = 3.0
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(content)
    assert clocks.reader(tmp_path).read().busy_s == 3.0


def test_this_machine_can_be_read() -> None:
    times = read_cpu_times()
    assert times.busy_s > 0
    assert times.process_s > 0
