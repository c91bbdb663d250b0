"""The unit of the service: what stands in it, and what systemd itself makes of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.flash_service import exposure, measure
from edgeslm.agent.notify import STARTING_LIMIT_S
from edgeslm.cli.wiring_joining import CREDENTIAL
from edgeslm.cli.wiring_joining import NO_CREDENTIAL as IGNORED
from edgeslm.errors import FlashError
from edgeslm.flash.payload import layout
from edgeslm.flash.unit import (
    CLAIM_CREDENTIAL,
    NO_CREDENTIAL,
    WATCHDOG_S,
    UnitOptions,
    options_for,
    unit_text,
)
from edgeslm.power.boards import choose_board, load_boards

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def settings(options: UnitOptions) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for line in unit_text(options).splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[key].append(value)
    return found


def of(board: str, **wanted: object) -> dict[str, list[str]]:
    return settings(options_for(choose_board(board), {"video"}, **wanted))  # type: ignore[arg-type]


@needs_systemd
@pytest.mark.parametrize("board", sorted(load_boards()))
def test_systemd_takes_every_line_for_every_board(board: str, tmp_path: Path) -> None:
    # The program has to be there, or it is that which systemd-analyze names.
    options = options_for(choose_board(board), {"video"}, python="/bin/true", caps_frequency=True)
    file = tmp_path / layout.UNIT_NAME
    file.write_text(unit_text(options))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if layout.UNIT_NAME in line or "edgeslm" in line]
    assert ours == []


@needs_systemd
def test_it_exposes_little_on_every_kind_of_board() -> None:
    notes: dict[str, str] = {}
    found = measure(notes)
    assert found["exposure"] <= 2.0, found
    assert found["exposure"] == max(found["exposure_by_kind"].values())


@needs_systemd
def test_every_allowance_is_seen_by_who_judges_it() -> None:
    assert exposure(unit_text(UnitOptions())) < exposure(unit_text(UnitOptions(devices=("/dev/vcio",))))


class TestDevices:
    def test_a_board_without_any_has_none(self) -> None:
        found = of("rock-5b")
        assert (found["PrivateDevices"], found["DeviceAllow"], found["SupplementaryGroups"]) == (
            ["yes"],
            [],
            [],
        )

    @pytest.mark.parametrize("board", ["pi-5", "pi-4b", "pi-zero-2w", "cm4"])
    def test_a_raspberry_pi_has_the_firmwares_mailbox_and_nothing_else(self, board: str) -> None:
        found = of(board)
        assert found["DeviceAllow"] == ["/dev/vcio rw"]
        assert (found["DevicePolicy"], found["PrivateDevices"]) == (["closed"], [])
        assert found["SupplementaryGroups"] == ["video"]

    def test_a_group_that_is_not_there_is_not_named(self) -> None:
        assert settings(options_for(choose_board("pi-5"), set()))["SupplementaryGroups"] == []

    def test_the_counters_of_a_pc_are_lent(self) -> None:
        assert any("energy_uj" in line for line in of("host")["ExecStartPre"])
        assert of("pi-5")["ExecStartPre"] == []

    def test_the_frequency_is_in_reach_only_where_a_budget_caps_it(self) -> None:
        assert any("scaling_max_freq" in line for line in of("pi-4b", caps_frequency=True)["ExecStartPre"])
        assert of("pi-4b", caps_frequency=True)["ReadWritePaths"] == ["-/sys/devices/system/cpu/cpufreq"]
        assert of("pi-4b")["ReadWritePaths"] == []

    def test_what_is_lent_comes_from_root_and_may_be_missing(self) -> None:
        for line in of("host", caps_frequency=True)["ExecStartPre"]:
            assert line.startswith("+-/bin/sh -c ")


class TestLimits:
    def test_they_are_the_profiles(self) -> None:
        found = of("pi-4b", memory_max_mb=512, cpu_quota_percent=150)
        assert (found["MemoryMax"], found["MemoryHigh"], found["CPUQuota"]) == (["512M"], ["448M"], ["150%"])

    def test_without_any_a_part_is_left_to_the_board(self) -> None:
        found = of("pi-4b")
        assert (found["MemoryMax"], found["MemoryHigh"], found["CPUQuota"]) == (["80%"], ["70%"], ["375%"])

    def test_a_board_of_unknown_cores_has_no_quota(self) -> None:
        assert settings(UnitOptions())["CPUQuota"] == []


class TestRestarting:
    def test_a_board_in_the_field_is_tried_for_ever_but_ever_less_often(self) -> None:
        found = of("pi-4b")
        assert (found["Restart"], found["StartLimitIntervalSec"]) == (["always"], ["0"])
        assert (found["RestartSec"], found["RestartSteps"], found["RestartMaxDelaySec"]) == (
            ["5"],
            ["6"],
            ["60"],
        )

    def test_what_cannot_get_better_is_not(self) -> None:
        assert of("pi-4b")["RestartPreventExitStatus"] == ["2 4"]

    def test_systemd_waits_for_a_start_as_long_as_the_agent_allows_itself(self) -> None:
        found = of("pi-4b")
        assert (found["Type"], found["WatchdogSec"]) == (["notify"], [str(WATCHDOG_S)])
        assert float(found["TimeoutStartSec"][0]) >= STARTING_LIMIT_S
        # A version on trial is a child of the launcher.
        assert found["NotifyAccess"] == ["all"]


def test_it_waits_for_no_network_and_no_clock() -> None:
    text = unit_text(options_for(choose_board("pi-4b"), {"video"}))
    assert not any(word in text for word in ("After=", "Wants=", "Requires=", "network", "time-sync"))


def test_the_state_is_its_own_and_the_claim_a_credential_that_may_be_missing() -> None:
    found = of("pi-4b")
    assert (found["DynamicUser"], found["StateDirectory"], found["StateDirectoryMode"]) == (
        ["yes"],
        ["edgeslm"],
        ["0700"],
    )
    assert found["LoadCredential"] == [f"claim.json:{layout.CLAIM}"]
    assert found["SetCredential"] == ["claim.json:none"]


def test_the_agent_knows_the_credential_by_the_same_words() -> None:
    assert (CLAIM_CREDENTIAL, NO_CREDENTIAL.encode()) == (CREDENTIAL, IGNORED)


def test_another_credential_is_handed_on() -> None:
    found = settings(UnitOptions(credentials=(("broker.password", layout.BROKER_PASSWORD),)))
    assert f"broker.password:{layout.BROKER_PASSWORD}" in found["LoadCredential"]
    assert "broker.password:none" in found["SetCredential"]


@pytest.mark.parametrize(
    "word", ["a b", "", "%h", "$HOME", "a\nUser=root", "a;b", "a'b", 'a"b', "a\\x20", "a:b"]
)
@pytest.mark.parametrize("field", ["python", "devices", "groups", "credentials"])
def test_a_word_that_would_mean_something_else_is_refused(field: str, word: str) -> None:
    value: object = {"python": word, "credentials": ((word, "/x"),)}.get(field, (word,))
    with pytest.raises(FlashError, match="cannot stand in a systemd unit"):
        UnitOptions(**{field: value})  # type: ignore[arg-type]
