"""What a board file may say, and what each that ships says."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from edgeslm.schema.board import WATCHED_FEATURES, Board

SHIPPED = {
    entry.name: yaml.safe_load(entry.read_text("utf-8"))
    for entry in sorted(resources.files("edgeslm._devices").iterdir(), key=lambda entry: entry.name)
    if entry.name.endswith(".yaml")
}
STANDING_FOR_ANY = {"generic-arm64", "host", "qemu-virt"}
ASIMDDP = {"Cortex-A55", "Cortex-A76", "Cortex-A78AE"}
"""Cores with dot products, by Arm's manuals; none of those on the boards here has matrix products (i8mm)."""

every_file = pytest.mark.parametrize("file_name", SHIPPED)


def read(file_name: str) -> Board:
    return Board.model_validate(SHIPPED[file_name])


def with_changes(**changes: Any) -> dict[str, Any]:
    return {**SHIPPED["pi-4b.yaml"], **changes}


@every_file
def test_every_part_of_a_board_has_its_source(file_name):
    board = read(file_name)
    assert board.sources
    parts = (board.power, board.thermal, board.boot, board.ports, board.supply, *board.meters)
    assert all(part.source.strip() for part in parts if part is not None)


@every_file
def test_a_board_that_is_none_in_particular_promises_nothing_and_any_other_is_whole(file_name):
    board = read(file_name)
    assert board.boot is not None
    assert board.context_tokens is not None
    if board.name in STANDING_FOR_ANY:
        assert (board.cpu_features, board.ram_mb, board.clusters) == ((), (), ())
        assert board.power.error_share >= 0.5
        return
    assert board.family not in {"other", "generic", "virtual"}
    assert all((board.clusters, board.ram_mb, board.cpu_features, board.storage, board.compatible))
    assert all((board.ports, board.thermal, board.boot.device_trees))


@every_file
def test_figures_of_power_agree_with_each_other(file_name):
    board = read(file_name)
    table = board.power
    full_w = table.idle_w + (board.cores or 1) * table.core_load_w
    assert 0 < table.idle_w < full_w
    if table.supply_w is not None:
        assert full_w <= table.supply_w
    if board.supply is not None:
        assert board.supply.volts * board.supply.amps == pytest.approx(table.supply_w, rel=0.05)
    if table.min_mhz is not None and table.max_mhz is not None:
        assert table.min_mhz < table.max_mhz


@every_file
def test_an_estimate_says_so_and_has_a_wide_error(file_name):
    table = read(file_name).power
    if "All of it our estimate" in table.source:
        assert table.error_share >= 0.5


@every_file
def test_clusters_agree_with_cores_and_frequencies(file_name):
    board = read(file_name)
    if not board.clusters:
        return
    assert sum(cluster.count for cluster in board.clusters) == board.cores
    speeds = [cluster.max_mhz for cluster in board.clusters]
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[0] == board.power.max_mhz
    policies = [policy for cluster in board.clusters for policy in cluster.policies]
    assert len(policies) == len(set(policies))
    assert board.threads <= board.clusters[0].count


@every_file
def test_features_are_those_of_the_cores(file_name):
    board = read(file_name)
    assert set(board.cpu_features) <= WATCHED_FEATURES
    if board.clusters:
        cores = {cluster.core for cluster in board.clusters}
        assert ("asimddp" in board.cpu_features) == (cores <= ASIMDDP)
        assert "i8mm" not in board.cpu_features


@every_file
def test_heat_throttles_before_it_switches_off(file_name):
    thermal = read(file_name).thermal
    if thermal is not None and thermal.critical_c is not None:
        assert thermal.throttle_c < thermal.critical_c


@every_file
def test_raspberry_pi_boots_by_its_firmware_with_its_files_named(file_name):
    board = read(file_name)
    assert board.boot is not None
    assert (board.boot.kind == "raspberrypi-firmware") == (board.family == "raspberry-pi")
    if board.family == "raspberry-pi":
        layout = (board.boot.partition, board.boot.mounted_at, board.boot.settings_file)
        assert layout == ("fat", "/boot/firmware", "config.txt")
        assert board.boot.command_line_file == "cmdline.txt"
        assert board.boot.kernel_files[-1] == "kernel8.img"
        assert board.soc.startswith("Broadcom BCM2712") == any(meter.kind == "pmic" for meter in board.meters)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ram_mb": [2048, 1024]}, "ascends"),
        ({"ram_mb": [1024, 1024]}, "ascends"),
        ({"cores": 6}, "'cores' says 6"),
        ({"recognised_by": ["Pi"]}, "at least 3"),
        ({"cpu_features": ["dot prod"]}, "pattern"),
        ({"boot": {"kind": "bios", "source": "nobody said so"}}, "raspberrypi-firmware"),
        ({"boot": {"kind": "direct", "mounted_at": "boot/../etc", "source": "nobody said so"}}, "pattern"),
        ({"boot": {"kind": "direct", "device_trees": ["../x.dtb"], "source": "nobody said so"}}, "pattern"),
        ({"storage": ["floppy"]}, "emmc"),
        (
            {"thermal": {"throttle_c": 20, "resistance_c_per_w": 1, "time_constant_s": 1, "source": "x" * 9}},
            "30",
        ),
        ({"sources": ["short"]}, "at least 8"),
    ],
)
def test_refuses_what_cannot_be(changes, words):
    with pytest.raises(ValidationError, match=words):
        Board.model_validate(with_changes(**changes))


def test_a_file_with_only_what_it_has_to_say_is_a_board():
    board = Board.model_validate(
        {
            "name": "my-board",
            "title": "My Board",
            "arch": "aarch64",
            "soc": "Maker Chip, 4 x Cortex-A53 at 1.4 GHz",
            "cores": 4,
            "ram_mb": [1024],
            "cpu_features": [],
            "recognised_by": ["My Board"],
            "threads": 3,
            "power": {"idle_w": 1.9, "core_load_w": 0.8, "source": "Who measured it"},
            "sources": ["Where the other facts stand"],
        }
    )
    assert (board.family, board.boot, board.supply, board.clusters) == ("other", None, None, ())
