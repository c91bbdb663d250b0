from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslm.errors import MeterError
from edgeslm.power.meters.linear import Correction
from edgeslm.power.meters.rapl import RaplMeter, Zone, default_correction, find_zones

RANGE_UJ = 262_143_328_850
PLAIN = Correction(scale=1.0, offset_w=0.0, error_share=0.0, error_w=0.0, source="test")


class Counters:
    """A powercap tree and a clock that a test moves."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now_s = 0.0

    def zone(self, name: str, kind: str, energy_uj: int = 5, range_uj: int = RANGE_UJ) -> Zone:
        directory = self.root / "sys/class/powercap" / name
        directory.mkdir(parents=True, exist_ok=True)
        for file, text in (("name", kind), ("max_energy_range_uj", range_uj), ("energy_uj", energy_uj)):
            (directory / file).write_text(f"{text}\n")
        return Zone(kind=kind, directory=directory, range_uj=range_uj)

    def count(self, zone: Zone, energy_uj: int) -> None:
        (zone.directory / "energy_uj").write_text(f"{energy_uj}\n")

    def meter(self, *zones: Zone, correction: Correction = PLAIN) -> RaplMeter:
        return RaplMeter(zones, correction, clock=lambda: self.now_s)


@pytest.fixture
def counters(tmp_path: Path) -> Counters:
    return Counters(tmp_path)


def test_watts_are_the_energy_over_the_time_between_reads(counters: Counters) -> None:
    zone = counters.zone("intel-rapl:0", "package-0", 1_000_000)
    meter = counters.meter(zone)
    counters.now_s = 2.0
    counters.count(zone, 21_000_000)
    reading = meter.read()
    assert reading.power_w == pytest.approx(10.0)
    assert reading.counter_j == pytest.approx(20.0)
    assert reading.at_s == 2.0
    assert meter.facts.averages


@given(
    start=st.integers(0, 999_999_999),
    steps=st.lists(st.tuples(st.floats(0.01, 30.0), st.integers(0, 499_999_999)), min_size=1, max_size=30),
)
@settings(max_examples=40, deadline=None)
def test_energy_is_right_across_any_number_of_wraps(
    tmp_path_factory: pytest.TempPathFactory, start: int, steps: list[tuple[float, int]]
) -> None:
    counters = Counters(tmp_path_factory.mktemp("rapl"))
    range_uj = 1_000_000_000
    zone = counters.zone("intel-rapl:0", "package-0", start, range_uj)
    meter = counters.meter(zone)
    total_uj = 0
    for length_s, drawn_uj in steps:
        counters.now_s += length_s
        total_uj += drawn_uj
        counters.count(zone, (start + total_uj) % range_uj)
        reading = meter.read()
        assert reading.power_w == pytest.approx(drawn_uj * 1e-6 / length_s, abs=1e-6)
        assert reading.counter_j == pytest.approx(total_uj * 1e-6)
    meter.close()


def test_a_counter_that_started_over_is_told_once_and_counts_on(counters: Counters) -> None:
    zone = counters.zone("intel-rapl:0", "package-0", 90_000_000)
    meter = counters.meter(zone)
    counters.now_s = 1.0
    counters.count(zone, 91_000_000)
    meter.read()
    counters.now_s = 2.0
    counters.count(zone, 500)
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.fault == "rubbish"
    counters.now_s = 3.0
    counters.count(zone, 1_000_500)
    reading = meter.read()
    assert reading.power_w == pytest.approx(1.0)
    assert reading.counter_j == pytest.approx(2.0)


def test_packages_and_memory_are_added_and_parts_of_packages_are_not(counters: Counters) -> None:
    counters.zone("intel-rapl:0", "package-0")
    counters.zone("intel-rapl:0:0", "core")
    counters.zone("intel-rapl:0:1", "uncore")
    counters.zone("intel-rapl:0:2", "dram")
    counters.zone("intel-rapl:1", "package-1")
    counters.zone("intel-rapl-mmio:0", "package-0")
    assert [zone.kind for zone in find_zones(counters.root)] == ["package-0", "dram", "package-1"]


def test_the_platform_counter_stands_alone_where_it_counts(counters: Counters) -> None:
    counters.zone("intel-rapl:0", "package-0")
    psys = counters.zone("intel-rapl:1", "psys")
    assert find_zones(counters.root) == [psys]
    counters.count(psys, 0)
    assert [zone.kind for zone in find_zones(counters.root)] == ["package-0"]


def test_without_the_platform_counter_it_is_an_estimate_that_says_so(counters: Counters) -> None:
    zone = counters.zone("intel-rapl:0", "package-0")
    meter = counters.meter(zone, correction=default_correction([zone], idle_w=20.0))
    counters.now_s = 1.0
    counters.count(zone, 15_000_005)
    assert meter.read().power_w == pytest.approx(25.0)
    assert meter.facts.meter_class == "estimated"
    assert meter.facts.error_w == pytest.approx(5.77, abs=0.01)
    assert counters.meter(counters.zone("intel-rapl:1", "psys")).facts.meter_class == "measured"


def test_reads_close_together_give_the_last_value(counters: Counters) -> None:
    zone = counters.zone("intel-rapl:0", "package-0", 0)
    meter = counters.meter(zone)
    counters.now_s = 0.1
    counters.count(zone, 1_000_000)
    first = meter.read()
    counters.now_s = 0.101
    assert meter.read() is first


def test_a_meter_that_was_just_opened_waits_rather_than_divides_by_nothing(counters: Counters) -> None:
    meter = counters.meter(counters.zone("intel-rapl:0", "package-0"))
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.fault == "stale"


def test_a_counter_that_may_not_be_read_says_what_to_do(
    counters: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = counters.zone("intel-rapl:0", "package-0")

    def refuse(*unused: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("edgeslm.power.sysfs.os.open", refuse)
    with pytest.raises(MeterError) as caught:
        counters.meter(zone)
    assert caught.value.fault == "gone"
    assert "docs/power-meters.md" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["", "-5", "many", "262143328851"])
def test_a_counter_that_holds_no_count_is_rubbish(counters: Counters, text: str) -> None:
    zone = counters.zone("intel-rapl:0", "package-0")
    meter = counters.meter(zone)
    counters.now_s = 1.0
    (zone.directory / "energy_uj").write_text(text)
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.fault == "rubbish"


def test_a_processor_without_counters_has_none(tmp_path: Path) -> None:
    assert find_zones(tmp_path) == []
