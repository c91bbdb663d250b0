from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from edgeslm.agent.exposition import Exposition
from edgeslm.errors import ConfigError
from edgeslm.schema.metrics import (
    BatteryMetrics,
    EnergyShare,
    InferenceMetrics,
    ModelMetrics,
    PowerMetrics,
    PowerPoint,
    SystemMetrics,
    WindowState,
)

prometheus_client = pytest.importorskip("prometheus_client")

HEAD: dict[str, Any] = {"device": "d", "seq": 0, "at": "2026-05-01T12:00:00.000+00:00", "span_s": 60.0}
POWER = PowerMetrics(
    **HEAD,
    meter="hwmon:ina226@1-0040",
    meter_class="measured",
    error_share=0.006,
    idle_w=2.7,
    energy_j=180.0,
    today_j=9000.0,
    points=(
        PowerPoint(ago_s=10.0, min_w=2.0, mean_w=3.0, max_w=7.0),
        PowerPoint(ago_s=0.0, min_w=2.5, mean_w=4.0, max_w=5.0),
    ),
    causes=(
        EnergyShare(cause="idle", energy_j=160.0, net_j=0.0),
        EnergyShare(cause="prompt", model="m@1", rule="lights", energy_j=20.0, net_j=12.0),
    ),
    windows=(WindowState(name="heat", window_s=60.0, limit_j=300.0, used_j=180.0, left_share=0.4),),
    battery=BatteryMetrics(share=0.5, discharge_w=2.0, external=False),
    co2_g=0.02,
    cost=0.001,
)
INFERENCE = InferenceMetrics(
    **HEAD,
    waiting=3,
    models=(
        ModelMetrics(
            model="m@1",
            answered=4,
            failed=1,
            refused=2,
            deferred=3,
            shortened=1,
            prompt_tokens=40,
            completion_tokens=50,
            decode_tps=120.0,
            ttft_ms=30.0,
            energy_j=20.0,
            net_j=12.0,
        ),
    ),
)
SYSTEM = SystemMetrics(
    **HEAD,
    uptime_s=100.0,
    temperature_c=55.5,
    frequency_mhz=1500.0,
    throttling=("under_voltage",),
    throttled_before=("under_voltage", "throttled"),
    busy_cores=1.5,
    spool_waiting=3,
    spool_dropped=7,
    rss_mb=64.0,
    memory_free_mb=512.0,
    disk_free_mb=1024.0,
)


@pytest.fixture
def exposition() -> Iterator[Exposition]:
    served = Exposition("127.0.0.1", 0)
    served.start()
    yield served
    served.stop()


@pytest.fixture(scope="module")
def reported() -> dict[str, float]:
    served = Exposition("127.0.0.1", 0)
    served.start()
    served.report(POWER, INFERENCE, SYSTEM)
    samples = scrape(served)
    served.stop()
    return samples


def scrape(exposition: Exposition) -> dict[str, float]:
    """What Prometheus gets, parsed by its own client."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    with urllib.request.urlopen(f"http://127.0.0.1:{exposition.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()) if value)
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def test_before_the_first_report_there_is_nothing(exposition):
    assert scrape(exposition) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("edgeslm_power_watts", 4.0),
        ("edgeslm_power_min_watts", 2.0),
        ("edgeslm_power_max_watts", 7.0),
        ("edgeslm_power_idle_watts", 2.7),
        ("edgeslm_power_meter_info{class=measured,meter=hwmon:ina226@1-0040}", 1.0),
        ("edgeslm_power_meter_error_ratio", 0.006),
        ("edgeslm_energy_joules_total{cause=idle}", 160.0),
        ("edgeslm_energy_joules_total{cause=prompt,model=m@1,rule=lights}", 20.0),
        ("edgeslm_energy_net_joules_total{cause=prompt,model=m@1,rule=lights}", 12.0),
        ("edgeslm_co2e_grams_total", 0.02),
        ("edgeslm_energy_cost", 0.001),
        ("edgeslm_budget_window_limit_joules{window=heat}", 300.0),
        ("edgeslm_budget_window_used_joules{window=heat}", 180.0),
        ("edgeslm_budget_window_left_ratio{window=heat}", 0.4),
        ("edgeslm_budget_window_seconds{window=heat}", 60.0),
        ("edgeslm_battery_charge_ratio", 0.5),
        ("edgeslm_battery_discharge_watts", 2.0),
        ("edgeslm_battery_external_supply", 0.0),
        ("edgeslm_prompts_total{model=m@1,outcome=answered}", 4.0),
        ("edgeslm_prompts_total{model=m@1,outcome=refused}", 2.0),
        ("edgeslm_prompts_total{model=m@1,outcome=failed}", 1.0),
        ("edgeslm_prompts_deferred_total{model=m@1}", 3.0),
        ("edgeslm_prompts_shortened_total{model=m@1}", 1.0),
        ("edgeslm_prompt_tokens_total{model=m@1}", 40.0),
        ("edgeslm_completion_tokens_total{model=m@1}", 50.0),
        ("edgeslm_prompts_waiting", 3.0),
        ("edgeslm_decode_tokens_per_second{model=m@1}", 120.0),
        ("edgeslm_first_token_seconds{model=m@1}", 0.03),
        ("edgeslm_uptime_seconds", 100.0),
        ("edgeslm_temperature_celsius", 55.5),
        ("edgeslm_processor_frequency_hertz", 1.5e9),
        ("edgeslm_throttling{flag=under_voltage}", 1.0),
        ("edgeslm_throttling{flag=throttled}", 0.0),
        ("edgeslm_busy_cores", 1.5),
        ("edgeslm_spool_waiting", 3),
        ("edgeslm_spool_dropped", 7),
        ("edgeslm_resident_memory_bytes", 64 * 2**20),
        ("edgeslm_memory_available_bytes", 512 * 2**20),
        ("edgeslm_disk_free_bytes", 1024 * 2**20),
        ("edgeslm_report_timestamp_seconds", 1777636800.0),
    ],
)
def test_a_report_is_exposed_in_base_units(reported, name, value):
    assert reported[name] == pytest.approx(value)


def test_every_name_that_is_exposed_is_tested_above(reported):
    assert len(reported) == 41


def test_counters_add_up_over_reports_and_not_over_scrapes(exposition):
    for _ in range(3):
        exposition.report(POWER, INFERENCE, SYSTEM)
    scrape(exposition)
    found = scrape(exposition)
    assert found["edgeslm_energy_joules_total{cause=idle}"] == pytest.approx(480.0)
    assert found["edgeslm_prompts_total{model=m@1,outcome=answered}"] == 12.0


def test_a_cause_that_rests_keeps_its_count(exposition):
    exposition.report(POWER, INFERENCE, SYSTEM)
    exposition.report(
        POWER.model_copy(update={"causes": ()}), INFERENCE.model_copy(update={"models": ()}), SYSTEM
    )
    found = scrape(exposition)
    assert found["edgeslm_energy_joules_total{cause=prompt,model=m@1,rule=lights}"] == 20.0
    assert found["edgeslm_completion_tokens_total{model=m@1}"] == 50.0
    assert "edgeslm_decode_tokens_per_second{model=m@1}" not in found


def test_no_counter_ever_falls(exposition):
    exposition.report(POWER, INFERENCE, SYSTEM)
    falling = EnergyShare(cause="idle", energy_j=-1e-4, net_j=-1e-4)
    exposition.report(POWER.model_copy(update={"causes": (falling,)}), INFERENCE, SYSTEM)
    assert scrape(exposition)["edgeslm_energy_joules_total{cause=idle}"] == 160.0


def test_what_is_not_known_is_not_exposed(exposition):
    power = POWER.model_copy(
        update={"battery": None, "windows": (), "points": (), "co2_g": None, "cost": None}
    )
    system = SYSTEM.model_copy(
        update={"temperature_c": None, "rss_mb": None, "throttling": (), "throttled_before": ()}
    )
    exposition.report(power, INFERENCE, system)
    names = {name.partition("{")[0] for name in scrape(exposition)}
    for part in ("battery", "window", "co2", "cost", "temperature", "resident", "throttling"):
        assert not [name for name in names if part in name]
    assert "edgeslm_power_watts" not in names


def test_after_stop_nobody_listens(exposition):
    port = exposition.port
    exposition.stop()
    exposition.stop()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_an_address_that_is_taken_is_a_configuration_error(exposition):
    with pytest.raises(ConfigError) as caught:
        Exposition("127.0.0.1", exposition.port).start()
    assert caught.value.key == "metrics.prometheus_port"
    assert caught.value.exit_code == 2


def test_without_the_library_the_line_that_installs_it_is_told():
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from edgeslm.agent.exposition import Exposition\n"
        "from edgeslm.errors import ConfigError\n"
        "try:\n    Exposition('127.0.0.1', 0).start()\n"
        "except ConfigError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "pip install 'edgeslm[prometheus]'" in done.stdout


def test_the_library_is_loaded_only_when_it_listens():
    code = "import sys, edgeslm.agent.exposition; print('prometheus_client' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"
