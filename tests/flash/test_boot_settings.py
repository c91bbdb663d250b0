"""What a profile wants of firmware, kernel and system, carried out on an image's own files or refused by its key."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgeslm.errors import BootSettingsError
from edgeslm.flash.boot_settings import BootChanges, BootFacts, CommandLine, boot_changes, read_boot_facts
from edgeslm.flash.payload import drop_ins
from edgeslm.flash.payload.boot_text import BEGIN
from edgeslm.flash.tree import DirectoryTree, Entry
from edgeslm.power.boards import choose_board
from edgeslm.schema.profile import Profile

LINE = "console=tty1 root=PARTUUID=1-02 rootfstype=ext4 rootwait\n"
PI = BootFacts(
    config="arm_64bit=1\ndtoverlay=disable-bt\n",
    command_line=CommandLine("cmdline", "boot", "/cmdline.txt", LINE),
    has_zram=True,
    time="timesyncd",
    has_overlay=True,
    fstab="PARTUUID=1-02 / ext4 defaults,noatime 0 1\n",
)
PLAIN = dataclasses.replace(
    PI,
    config=None,
    command_line=CommandLine("extlinux", "root", "/boot/extlinux/extlinux.conf", "append root=a\n"),
)
SEALED = {"read_only_root": True, "state_device": "card", "log": {"storage": "volatile"}}


def carry_out(facts: BootFacts = PI, board: str = "pi-4b", **settings: Any) -> BootChanges:
    profile = Profile.model_validate({"name": "x", "title": "X", **settings})
    return boot_changes(profile, choose_board(board, None), facts)


def text_of(entries: tuple[Entry, ...], path: str) -> str:
    found = next(entry for entry in entries if entry.path == path).content
    assert isinstance(found, bytes)
    return found.decode()


class TestFirmware:
    def test_gets_one_block_with_parameters_before_overlays(self):
        changes = carry_out(
            boot={
                "config": {"gpu_mem": "16"},
                "overlays": {"i2c-rtc": "ds3231"},
                "dtparams": {"i2c_arm": "on"},
            }
        )
        text = text_of(changes.boot, "/config.txt")
        block = text[text.index(BEGIN) :].splitlines()[1:-1]
        assert block[:2] == ["[all]", "dtoverlay="]
        assert (
            block.index("dtparam=i2c_arm=on")
            < block.index("dtoverlay=i2c-rtc,ds3231")
            < block.index("gpu_mem=16")
        )
        assert text.startswith("arm_64bit=1\n")

    def test_loses_what_would_switch_a_radio_off_that_is_to_be_on(self):
        assert "disable-bt" not in text_of(carry_out(radio={"bluetooth": True}).boot, "/config.txt")

    def test_switches_a_radio_off_in_the_kernel_too(self):
        changes = carry_out(radio={"wifi": False})
        assert "dtoverlay=disable-wifi" in text_of(changes.boot, "/config.txt")
        assert 'ATTR{type}=="wlan"' in text_of(changes.root, drop_ins.RADIO)

    def test_settings_need_one(self):
        with pytest.raises(BootSettingsError, match=r"no config\.txt") as found:
            carry_out(PLAIN, "qemu-virt", boot={"config": {"gpu_mem": "16"}})
        assert found.value.key == "boot.config"

    def test_done_again_on_what_it_made_changes_nothing(self):
        settings = {"boot": {"config": {"gpu_mem": "16"}}, "cpu": {"cores": 2}, "hdmi": False}
        first = carry_out(**settings)
        made = dataclasses.replace(
            PI,
            config=text_of(first.boot, "/config.txt"),
            command_line=CommandLine("cmdline", "boot", "/cmdline.txt", text_of(first.boot, "/cmdline.txt")),
        )
        profile = Profile.model_validate({"name": "x", "title": "X", **settings})
        again = boot_changes(profile, choose_board("pi-4b", None), made, earlier=first.words)
        assert again.boot == ()
        assert again.words == first.words


class TestTheKernel:
    def test_is_told_of_cores_and_screens_and_accounts_for_memory(self):
        line = text_of(carry_out(cpu={"cores": 2}, hdmi=False).boot, "/cmdline.txt")
        assert line.count("\n") == 1
        words = line.split()
        assert {"maxcpus=2", "video=HDMI-A-1:d", "video=HDMI-A-2:d", "cgroup_enable=memory"} <= set(words)
        assert words[:4] == LINE.split()

    def test_is_told_by_whatever_loader_the_image_has(self):
        changes = carry_out(PLAIN, "qemu-virt", boot={"cmdline": {"quiet": True}})
        assert text_of(changes.root_edits, "/boot/extlinux/extlinux.conf") == "append root=a quiet\n"

    def test_cannot_be_told_where_no_loader_is_known(self):
        facts = dataclasses.replace(PLAIN, command_line=None)
        with pytest.raises(BootSettingsError, match="quiet belongs there"):
            carry_out(facts, "qemu-virt", boot={"cmdline": {"quiet": True}})

    def test_is_not_told_more_than_it_reads(self):
        long = dataclasses.replace(
            PLAIN, command_line=CommandLine("cmdline", "boot", "/cmdline.txt", "x " * 1200)
        )
        with pytest.raises(BootSettingsError, match="more than 2048"):
            carry_out(long, "qemu-virt", boot={"cmdline": {"quiet": True}})


class TestTheSystem:
    def test_says_for_people_what_is_set(self):
        said = carry_out(
            leds=False, log={"storage": "volatile", "max_mb": 16}, watchdog={"timeout_s": 12}
        ).said
        assert {"lights of the board off", "journal: volatile, 16 MB", "hardware watchdog: 12 s"} <= set(said)

    def test_takes_back_what_an_earlier_profile_set(self):
        changes = carry_out(leds=False)
        assert drop_ins.LEDS not in changes.remove
        assert drop_ins.RADIO in changes.remove

    def test_keeps_the_watchdog_within_what_the_hardware_counts(self):
        text = text_of(carry_out(watchdog={"timeout_s": 600}).root, drop_ins.WATCHDOG)
        assert text == "[Manager]\nRuntimeWatchdogSec=15s\n"

    def test_has_one_swap_and_not_two(self):
        facts = dataclasses.replace(PI, other_swaps=("dphys-swapfile.service",), has_rpi_swap=True)
        changes = carry_out(facts, swap={"kind": "zram", "share": 0.5})
        masked = next(entry for entry in changes.root if entry.path.endswith("/dphys-swapfile.service"))
        assert masked.target == "/dev/null"
        assert text_of(changes.root, drop_ins.RPI_SWAP) == "[Main]\nMechanism=none\n"

    def test_has_no_zram_where_no_kernel_has(self):
        with pytest.raises(BootSettingsError, match="zram"):
            carry_out(dataclasses.replace(PI, has_zram=False), swap={"kind": "zram", "size_mb": 64})

    @pytest.mark.parametrize(
        ("time", "path"), [("timesyncd", drop_ins.TIME), ("chrony", drop_ins.TIME_CHRONY)]
    )
    def test_asks_for_the_time_with_what_it_has(self, time: Any, path: str):
        changes = carry_out(dataclasses.replace(PI, time=time), network={"ntp": ["time.lan"]})
        assert "time.lan" in text_of(changes.root, path)

    def test_has_to_have_something_that_asks_for_the_time(self):
        with pytest.raises(BootSettingsError) as found:
            carry_out(dataclasses.replace(PI, time=None), network={"ntp": ["time.lan"]})
        assert found.value.key == "network.ntp"

    def test_has_to_be_systemd(self):
        with pytest.raises(BootSettingsError, match="no systemd"):
            carry_out(dataclasses.replace(PI, has_systemd=False), leds=False)

    def test_has_scripts_that_a_shell_reads(self, tmp_path: Path):
        changes = carry_out(
            cpu={"governor": "powersave", "max_share": 0.5}, swap={"kind": "zram", "share": 0.5}, **SEALED
        )
        scripts = [entry for entry in changes.root if entry.path.endswith(".sh")]
        assert len(scripts) == 3
        for script in scripts:
            (tmp_path / "script").write_bytes(script.content if isinstance(script.content, bytes) else b"")
            subprocess.run(["sh", "-n", tmp_path / "script"], check=True)


class TestAReadOnlyRoot:
    def test_gets_a_line_for_the_state_and_a_unit_that_seals_it(self):
        changes = carry_out(**SEALED)
        fstab = text_of(changes.root_edits, "/etc/fstab")
        assert fstab.startswith(PI.fstab or "?")
        assert fstab.count("edgeslm-state") == 1
        assert any(entry.path.endswith("/edgeslm-read-only.service") for entry in changes.root)

    @pytest.mark.parametrize(
        ("facts", "settings", "key"),
        [
            ({}, {"log": {"storage": "persistent"}}, "log"),
            ({}, {"swap": {"kind": "file", "size_mb": 64}}, "swap"),
            ({}, {"state_device": "/dev/sda1"}, "state_device"),
            ({"has_overlay": False}, {}, "read_only_root"),
            ({"fstab": "# nothing\n"}, {}, "read_only_root"),
            ({"fstab": None}, {}, "read_only_root"),
        ],
    )
    def test_is_refused_by_what_stands_against_it(
        self, facts: dict[str, Any], settings: dict[str, Any], key: str
    ):
        with pytest.raises(BootSettingsError) as found:
            carry_out(dataclasses.replace(PI, **facts), **{**SEALED, **settings})
        assert found.value.key == key


class TestReading:
    def test_finds_loader_modules_and_clock(self, tmp_path: Path):
        for name, text in {
            "usr/lib/systemd/systemd": "", "usr/sbin/chronyd": "", "etc/fstab": "x / ext4 rw 0 1\n",
            "usr/lib/modules/6.1/modules.builtin": "kernel/drivers/block/zram/zram.ko\n",
            "usr/lib/modules/6.1/kernel/fs/overlayfs/overlay.ko.xz": "",
            "boot/armbianEnv.txt": "verbosity=1\n",
        }.items():  # fmt: skip
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, "utf-8")
        found = read_boot_facts(None, DirectoryTree(tmp_path))
        assert (found.has_systemd, found.has_zram, found.has_overlay, found.time) == (
            True,
            True,
            True,
            "chrony",
        )
        assert found.command_line == CommandLine("armbian", "root", "/boot/armbianEnv.txt", "verbosity=1\n")
        assert found.config is None

    def test_does_not_guess_at_kernels_that_it_does_not_see(self, tmp_path: Path):
        found = read_boot_facts(None, DirectoryTree(tmp_path))
        assert (found.has_zram, found.has_overlay, found.fstab) == (None, None, None)
