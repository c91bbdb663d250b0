from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeslm.errors import ConfigError
from edgeslm.power.boards import load_boards
from edgeslm.schema.scenario import BatteryPack, SimulatedMeter
from edgeslm.sim.board import BoardState, Inputs, Plant, initial, plant_of
from edgeslm.sim.board_tree import VCGENCMD, BoardTree, battery_texts

BOARD = load_boards()["pi-4b"]
PACK = BatteryPack(capacity_wh=10, start_share=0.5)
PLANT = replace(plant_of(BOARD, PACK), min_mhz=600, max_mhz=1500)
STATE = initial(PLANT, Inputs(0.0, 22.0, 15.0))
CPUFREQ = "sys/devices/system/cpu/cpufreq/policy0"
METERS = (SimulatedMeter(kind="ina226"), SimulatedMeter(kind="rapl"), SimulatedMeter(kind="pmic"))


def tree_in(root: Path, plant: Plant = PLANT, **options: Any) -> BoardTree:
    return BoardTree(root, BOARD, plant, METERS, **options)


def changed(**fields: Any) -> BoardState:
    return replace(STATE, **fields)


def text(path: Path) -> str:
    return path.read_text("utf-8").strip()


def vcgencmd(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [root / VCGENCMD, *arguments], capture_output=True, text=True, timeout=10, check=False
    )


# --- files --------------------------------------------------------------------------------------------------


def test_a_reader_that_keeps_a_file_open_sees_each_value_whole(tmp_path: Path) -> None:
    values = ["1000", "999999999", "-5", "9" * 20]
    allowed = {value.encode() for value in values}
    seen: set[bytes] = set()
    stop = threading.Event()
    with tree_in(tmp_path) as tree:
        tree.show("ina226", {"power1_input": values[0]})
        fd = os.open(tmp_path / "sys/class/hwmon/hwmon2/power1_input", os.O_RDONLY)

        def read() -> None:
            while not stop.is_set():
                content = os.pread(fd, 4096, 0)
                assert content.endswith(b"\n")
                seen.add(content.strip())

        reader = threading.Thread(target=read)
        reader.start()
        for count in range(1_000_000):
            tree.show("ina226", {"power1_input": values[count % len(values)]})
            if count > 20_000 and seen >= allowed:
                break
        stop.set()
        reader.join()
        os.close(fd)
    assert seen == allowed


def test_the_files_hold_what_linux_shows_in_its_units(tmp_path: Path) -> None:
    with tree_in(tmp_path) as tree:
        tree.write(changed(temperature_c=48.2, frequency_mhz=1234.4, time_s=100.0, busy_core_s=30.0))
        assert text(tmp_path / CPUFREQ / "scaling_cur_freq") == "1234000"
        assert text(tmp_path / CPUFREQ / "cpuinfo_max_freq") == "1500000"
        assert text(tmp_path / CPUFREQ / "cpuinfo_min_freq") == "600000"
        steps = [int(step) for step in text(tmp_path / CPUFREQ / "scaling_available_frequencies").split()]
        assert (steps[0], steps[-1]) == (600_000, 1_500_000)
        zone = tmp_path / "sys/class/thermal/thermal_zone0"
        assert text(zone / "type") == "cpu-thermal"
        assert abs(int(text(zone / "temp")) - 48_200) <= 244
        total, *cores = text(tmp_path / "proc/stat").splitlines()
        ticks = os.sysconf("SC_CLK_TCK")
        assert [int(field) for field in total.split()[1:5]] == [30 * ticks, 0, 0, 370 * ticks]
        assert [line.split()[0] for line in cores] == ["cpu0", "cpu1", "cpu2", "cpu3"]
        alarm = tmp_path / "sys/class/hwmon/hwmon1/in0_lcrit_alarm"
        assert text(alarm) == "0"
        tree.write(changed(flags=0x5))
        assert text(alarm) == "1"
        assert (tmp_path / "proc/device-tree/model").read_bytes() == b"Raspberry Pi 4 Model B\0"


def test_the_total_of_processor_time_fits_a_cache_line_for_thirty_years(tmp_path: Path) -> None:
    with tree_in(tmp_path) as tree:
        tree.write(changed(time_s=1e9, busy_core_s=3e9))
        total = (tmp_path / "proc/stat").read_bytes().split(b"\n")[0]
        assert len(total) < 64


def test_battery_and_mains_tell_charge_and_direction(tmp_path: Path) -> None:
    with tree_in(tmp_path) as tree:
        for state, status, percent, online in (
            (changed(battery_j=18_000.0, battery_w=3.0, external=False), "Discharging", "50", "0"),
            (changed(battery_j=18_000.0, battery_w=-3.0), "Charging", "50", "1"),
            (changed(battery_j=18_000.0, battery_w=0.0), "Not charging", "50", "1"),
            (changed(battery_j=36_000.0, battery_w=0.0), "Full", "100", "1"),
        ):
            tree.write(state)
            tree.show("battery", battery_texts(PACK, state))
            supply = tmp_path / "sys/class/power_supply"
            assert text(supply / "battery/status") == status
            assert text(supply / "battery/capacity") == percent
            assert text(supply / "battery/energy_full") == "10000000"
            assert int(text(supply / "battery/energy_now")) == round(state.battery_j / 3600 * 1e6)
            assert int(text(supply / "battery/power_now")) == round(abs(state.battery_w) * 1e6)
            product = (
                int(text(supply / "battery/voltage_now")) * int(text(supply / "battery/current_now")) * 1e-12
            )
            assert product == pytest.approx(abs(state.battery_w), rel=1e-5)
            assert text(supply / "ac/online") == online


def test_a_meter_that_went_away_comes_back_under_another_number(tmp_path: Path) -> None:
    with tree_in(tmp_path) as tree:
        tree.show("ina226", {"power1_input": "1"})
        first = tmp_path / "sys/class/hwmon/hwmon2"
        assert text(first / "name") == "ina226"
        assert (first / "device").resolve().name == "1-0040"
        held = (first / "power1_input").open("rb")
        tree.show("ina226", None)
        tree.show("ina226", None)
        assert not os.path.lexists(first)
        assert os.fstat(held.fileno()).st_nlink == 0
        tree.show("ina226", {"power1_input": "2"})
        second = tmp_path / "sys/class/hwmon/hwmon3"
        assert text(second / "power1_input") == "2"
        assert (second / "device").resolve().name == "1-0040"
        held.close()


# --- the frequency cap --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "cap_mhz", "left"),
    [
        ("900000\n", 900, "900000"),
        ("900000", 900, "900000"),
        ("100", 600, "600000"),
        ("9999999999", 1500, "1500000"),
        ("-1", 600, "600000"),
        ("fast", 1500, "1500000"),
        ("", 1500, ""),
    ],
)
def test_a_frequency_cap_is_read_as_the_kernel_would(
    tmp_path: Path, written: str, cap_mhz: float, left: str
) -> None:
    with tree_in(tmp_path) as tree:
        (tmp_path / CPUFREQ / "scaling_max_freq").write_text(written)
        assert tree.cap_mhz() == cap_mhz
        assert text(tmp_path / CPUFREQ / "scaling_max_freq") == left


def test_a_cap_stays_while_rubbish_is_written_over_it(tmp_path: Path) -> None:
    with tree_in(tmp_path) as tree:
        file = tmp_path / CPUFREQ / "scaling_max_freq"
        for written in ("800000\n", "fast", ""):
            file.write_text(written)
            assert tree.cap_mhz() == 800


def test_a_board_that_started_again_has_another_boot_id_and_no_cap(tmp_path: Path) -> None:
    with tree_in(tmp_path) as tree:
        file, boot_id = tmp_path / CPUFREQ / "scaling_max_freq", tmp_path / "proc/sys/kernel/random/boot_id"
        file.write_text("800000\n")
        tree.write(STATE)
        before = text(boot_id)
        assert tree.cap_mhz() == 800
        tree.write(changed(boots=2))
        assert tree.cap_mhz() == 1500
        assert len(text(boot_id)) == len(before) == 36
        assert text(boot_id) != before


# --- vcgencmd -----------------------------------------------------------------------------------------------


def test_vcgencmd_answers_in_the_words_of_the_firmware(tmp_path: Path) -> None:
    with tree_in(tmp_path) as tree:
        tree.write(changed(temperature_c=48.26, flags=0x5, flags_since_boot=0x7, frequency_mhz=1500.0))
        tree.show(
            "pmic", {"pmic_read_adc": " VDD_CORE_A current(7)=1.00000000A\n VDD_CORE_V volt(15)=0.72000000V"}
        )
        assert vcgencmd(tmp_path, "get_throttled").stdout == "throttled=0x70005\n"
        assert vcgencmd(tmp_path, "measure_temp").stdout == "temp=48.3'C\n"
        assert vcgencmd(tmp_path, "measure_volts", "core").stdout == "volt=0.8800V\n"
        assert vcgencmd(tmp_path, "pmic_read_adc").stdout.splitlines() == [
            " VDD_CORE_A current(7)=1.00000000A",
            " VDD_CORE_V volt(15)=0.72000000V",
        ]
        tree.write(STATE)
        assert vcgencmd(tmp_path, "get_throttled").stdout == "throttled=0x0\n"


def test_vcgencmd_refuses_what_the_board_cannot_do(tmp_path: Path) -> None:
    with tree_in(tmp_path):
        for arguments in (["pmic_read_adc"], ["display_power"], []):
            done = vcgencmd(tmp_path, *arguments)
            assert done.returncode == 255
            assert 'error_msg="Command not registered"' in done.stdout


def test_vcgencmd_hangs_for_as_long_as_it_is_told_to(tmp_path: Path) -> None:
    with tree_in(tmp_path) as tree:
        tree.show("pmic", {"pmic_read_adc": "x"})
        tree.hang_vcgencmd(True)
        waiting = subprocess.Popen([tmp_path / VCGENCMD, "pmic_read_adc"], stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.communicate(timeout=0.2)
        tree.hang_vcgencmd(False)
        assert waiting.communicate(timeout=10)[0] == b"x\n"


def test_a_board_that_is_no_raspberry_pi_has_no_vcgencmd(tmp_path: Path) -> None:
    with BoardTree(tmp_path, load_boards()["host"], PLANT):
        assert not (tmp_path / VCGENCMD).exists()


# --- the directory ------------------------------------------------------------------------------------------


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "sys" / "precious"
    precious.parent.mkdir()
    precious.write_text("mine")
    with pytest.raises(ConfigError, match="no simulated board"):
        tree_in(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["sys", "precious"]


def test_an_earlier_board_is_replaced(tmp_path: Path) -> None:
    with tree_in(tmp_path) as tree:
        tree.show("ina226", {"power1_input": "1"})
    with tree_in(tmp_path):
        assert {entry.name for entry in (tmp_path / "sys/class/hwmon").iterdir()} == {"hwmon0", "hwmon1"}


def test_two_simulations_do_not_share_a_directory(tmp_path: Path) -> None:
    with tree_in(tmp_path):
        with pytest.raises(ConfigError, match="another simulation"):
            tree_in(tmp_path)
        assert (tmp_path / "proc/stat").parent.exists()
    tree_in(tmp_path).close()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        tree_in(tmp_path / "file" / "board")
    assert caught.value.path == str(tmp_path / "file" / "board")


def test_closing_lets_go_of_every_descriptor(tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    with tree_in(tmp_path) as tree:
        tree.write(STATE)
        for instrument in ("ina226", "rapl", "pmic", "battery"):
            tree.show(instrument, {"value": "1"})
        assert len(list(descriptors.iterdir())) > before
    assert len(list(descriptors.iterdir())) == before
