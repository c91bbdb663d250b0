from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from edgeslm.power.boards import load_boards
from edgeslm.power.meters.discovery import Discovery, discover
from edgeslm.power.meters.hwmon import HwmonMeter
from edgeslm.schema.calibration import Calibration, LineCalibration
from edgeslm.schema.power import HwmonConfig, MetersConfig, PlugConfig

BOARD = load_boards()["pi-5"]
NO_TOOL = ("/no/such/vcgencmd",)
PLUG = PlugConfig(dialect="tasmota", topic="desk")


def tree(root: Path, **files: str) -> Path:
    for path, text in files.items():
        file = root / path.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


def hwmon(root: Path, number: int, name: str) -> None:
    directory = root / f"sys/class/hwmon/hwmon{number}"
    directory.mkdir(parents=True)
    (directory / "name").write_text(f"{name}\n")
    (directory / "power1_input").write_text("3000000\n")
    device = root / f"sys/devices/{number}-0040"
    device.mkdir(parents=True)
    (directory / "device").symlink_to(device)


def look(root: Path, calibration: Calibration | None = None, **settings: object) -> Discovery:
    config = MetersConfig.model_validate({"vcgencmd": NO_TOOL} | settings)
    return discover(BOARD, config, calibration=calibration, root=root, clock=lambda: 1.0)


def reasons(found: Discovery) -> dict[str, str]:
    return {finding.name: finding.reason for finding in found.findings}


def test_an_empty_board_has_a_model_and_a_reason_for_everything_else(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert found.meters == ()
    assert found.plug is None
    assert set(reasons(found)) == {"hwmon", "pmic", "supply", "rapl", "plug", "model"}
    assert found.model.read().power_w > 0


def test_known_chips_are_used_and_sensors_of_parts_are_not(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, "ina226")
    hwmon(tmp_path, 1, "amdgpu")
    hwmon(tmp_path, 2, "nvme")
    found = look(tmp_path)
    assert [meter.facts.name for meter in found.meters] == ["hwmon:ina226@0-0040"]
    assert "power.hwmon" in reasons(found)["hwmon:amdgpu@1-0040"]
    assert found.meters[0].read().power_w == pytest.approx(3.0)


def test_a_sensor_that_is_named_is_used_and_no_other(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, "ina226")
    hwmon(tmp_path, 1, "pac1934")
    found = look(tmp_path, hwmon=[HwmonConfig(sensor="pac1934@1-0040"), HwmonConfig(sensor="ina260")])
    assert [meter.facts.name for meter in found.meters] == ["hwmon:pac1934@1-0040"]
    assert reasons(found)["hwmon:ina226@0-0040"] == "others are named in the settings"
    assert reasons(found)["hwmon:ina260"] == "named in the settings, but not there"


def test_a_channel_that_is_not_there_is_told(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, "ina226")
    found = look(tmp_path, hwmon=[HwmonConfig(sensor="ina226", channels=("VDD_IN",))])
    assert found.meters == ()
    assert "no channel VDD_IN" in reasons(found)["hwmon:ina226@0-0040"]


def test_everything_at_once(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, "ina226")
    supply, zone = "sys__class__power_supply__bq", "sys__class__powercap__intel-rapl:0"
    tree(
        tmp_path,
        **{
            f"{supply}__type": "Battery",
            f"{supply}__status": "Discharging",
            f"{supply}__capacity": "50",
            f"{supply}__power_now": "4000000",
            f"{zone}__name": "package-0",
            f"{zone}__energy_uj": "7",
            f"{zone}__max_energy_range_uj": "1000000000",
        },
    )
    tool = tmp_path / "vcgencmd"
    tool.write_text("#!/bin/sh\necho 'VDD_CORE_A current(7)=2.0A'; echo 'VDD_CORE_V volt(15)=1.0V'\n")
    tool.chmod(0o755)
    found = look(tmp_path, vcgencmd=(str(tool),), plug=PLUG)
    names = [meter.facts.name for meter in found.meters]
    assert names == ["hwmon:ina226@0-0040", "pmic", "supply", "rapl", "plug"]
    assert found.plug is found.meters[-1]
    assert "tele/desk/SENSOR" in reasons(found)["plug"]
    assert all(finding.facts is not None for finding in found.findings)


def test_what_is_disabled_is_not_touched(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, "ina226")
    found = look(tmp_path, disabled=("hwmon", "plug", "pmic", "rapl", "supply"), plug=PLUG)
    assert found.meters == ()
    assert found.plug is None
    assert reasons(found)["hwmon"] == "disabled in the settings"


def line(board: str) -> Calibration:
    entry = LineCalibration(
        meter="pmic",
        scale=1.5,
        offset_w=0.25,
        against="plug",
        against_class="measured",
        made_at=datetime(2026, 3, 1, tzinfo=UTC),
        pairs=40,
        least_w=2.0,
        most_w=9.0,
        error_share=0.03,
        error_w=0.1,
    )
    return Calibration(board=board, lines=(entry,))


@pytest.mark.parametrize(("board", "watts"), [("pi-5", 3.25), ("pi-4b", 1.1451 * 2 + 0.5879)])
def test_a_calibration_counts_on_the_board_that_it_was_made_on(
    tmp_path: Path, board: str, watts: float
) -> None:
    tool = tmp_path / "vcgencmd"
    tool.write_text("#!/bin/sh\necho 'VDD_CORE_A current(7)=2.0A'; echo 'VDD_CORE_V volt(15)=1.0V'\n")
    tool.chmod(0o755)
    found = look(tmp_path, line(board), vcgencmd=(str(tool),))
    assert found.meters[0].read().power_w == pytest.approx(watts)
    assert ("calibration" in reasons(found)) == (board != "pi-5")


def test_a_machine_without_any_tree_can_be_looked_at() -> None:
    found = discover(BOARD, MetersConfig(vcgencmd=NO_TOOL))
    assert found.model.read().power_w > 0
    for meter in found.meters:
        assert isinstance(meter, HwmonMeter) or meter.facts.source
        meter.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"sample_hz": 0.1},
        {"sample_hz": 100},
        {"vcgencmd": []},
        {"disabled": ["model"]},
        {"hwmon": [{"sensor": "ina226"}, {"sensor": "ina226"}]},
        {"hwmon": [{"sensor": "../../etc"}]},
        {"unknown": 1},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        MetersConfig.model_validate(settings)
