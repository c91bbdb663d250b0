"""The script is run: in a root made of directories, with programs that write down how they were called."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeslm.errors import FirstBootError, FirstBootOptionError
from edgeslm.flash.first_boot.firstrun import LOG
from edgeslm.schema.customisation import Customisation

MakeImage = Callable[..., Any]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBcWDzeXLwBzt94Wnnk2wArfcvyp9G6XVpwaaWrJRaKK o'ps $(touch owned)"
HASH = "$6$abcdefgh$" + "x" * 86
CUSTOMISATION = Customisation.model_validate(
    {
        "hostname": "sensor-07",
        "account": {"name": "ops", "password_hash": HASH},
        "ssh_keys": [KEY],
        "wifi": {"ssid": "'; touch owned; '", "psk": "ab" * 32, "country": "DE"},
        "keyboard": "de",
    }
)
COMMANDS = ("getent", "systemctl", "rfkill", "usermod", "groupmod", "chpasswd", "raspi-config", "sync")
_STUB = """#!/bin/sh
count=$(($(cat "$CALLS/count") + 1))
echo "$count" >"$CALLS/count"
printf '%s' "$(basename "$0")" >>"$CALLS/log"
for word in "$@"; do printf ' <%s>' "$word" >>"$CALLS/log"; done
echo >>"$CALLS/log"
if [ "$count" = "$DIE_AT" ]; then kill -9 0; fi
case "$(basename "$0")" in
  getent) echo pi:x:1000:1000::/home/pi:/bin/bash ;;
  chpasswd) cat >>"$CALLS/log" ;;
esac
exit "${FAIL:-0}"
"""


class Board:
    """A board that starts with the script on its kernel's command line."""

    def __init__(self, image: Any, directory: Path, *, tools: bool = True) -> None:
        files = image.take(CUSTOMISATION)
        self.root = directory / "board"
        self.calls = directory / "calls"
        self.boot = self.root / "boot/firmware"
        for path in (self.boot, self.root / "var/log", self.root / "var/lib/systemd/rfkill", self.calls):
            path.mkdir(parents=True, exist_ok=True)
        bin_dir = directory / "bin"
        bin_dir.mkdir(exist_ok=True)
        stubs = [bin_dir / name for name in COMMANDS]
        if tools:
            stubs += [
                self.root / "usr/lib/raspberrypi-sys-mods/imager_custom",
                self.root / "usr/lib/userconf-pi/userconf",
            ]
        for stub in stubs:
            stub.parent.mkdir(parents=True, exist_ok=True)
            stub.write_text(_STUB)
            stub.chmod(0o755)
        (self.root / "var/lib/systemd/rfkill/x:wlan").write_text("1\n")
        self.words = files.cmdline
        line = image.boot_text("/cmdline.txt").strip()
        (self.boot / "cmdline.txt").write_text(" ".join((line, *files.cmdline)) + "\n")
        self.script = re.sub(
            r"(?<![\w.$\"])/(?=(usr/lib|boot|var)/)", f"{self.root}/", image.boot_text("/firstrun.sh")
        )
        (self.boot / "firstrun.sh").write_text(self.script)
        self._env = {**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}", "CALLS": str(self.calls)}

    def start(self, *, die_at: int = 0, fail: int = 0) -> int:
        (self.calls / "count").write_text("0\n")
        (self.calls / "log").write_text("")
        env = {**self._env, "DIE_AT": str(die_at), "FAIL": str(fail)}
        done = subprocess.run(
            ["sh", self.boot / "firstrun.sh"],
            env=env,
            timeout=60,
            check=False,
            cwd=self.root,
            start_new_session=True,
        )
        return done.returncode

    @property
    def log(self) -> list[str]:
        return (self.calls / "log").read_text().splitlines()

    @property
    def is_asked_to_run(self) -> bool:
        return "systemd.run=" in (self.boot / "cmdline.txt").read_text()

    @property
    def is_done(self) -> bool:
        line = (self.boot / "cmdline.txt").read_text()
        return "systemd." not in line and not (self.boot / "firstrun.sh").exists()


@pytest.fixture
def board(make_image: MakeImage, tmp_path: Path) -> Board:
    return Board(make_image("raspios-bookworm"), tmp_path)


def test_it_is_started_from_where_the_boot_partition_is_mounted(make_image: MakeImage) -> None:
    files = make_image("raspios-bookworm").method.files(CUSTOMISATION)
    assert "systemd.run=/boot/firmware/firstrun.sh" in files.cmdline
    assert "systemd.unit=kernel-command-line.target" in files.cmdline
    older = make_image("raspios-bookworm", extra={"etc/fstab": "PARTUUID=1-01 /boot vfat defaults 0 2\n"})
    assert "systemd.run=/boot/firstrun.sh" in older.method.files(CUSTOMISATION).cmdline


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_it_is_a_script_for(make_image: MakeImage, shell: str) -> None:
    (script,) = make_image("raspios-bookworm").method.files(CUSTOMISATION).boot
    subprocess.run([shell, "-n"], input=script.content, check=True, timeout=60)


def test_the_images_own_tools_are_called_with_what_was_asked(board: Board) -> None:
    assert board.start() == 0
    assert f"userconf <ops> <{HASH}>" in board.log
    assert "imager_custom <enable_ssh>" in board.log
    assert "imager_custom <set_wlan_country> <DE>" in board.log
    assert "imager_custom <set_keymap> <de>" in board.log
    assert (board.root / "var/lib/systemd/rfkill/x:wlan").read_text() == "0\n"
    assert board.is_done
    assert not list(board.root.rglob("owned"))


def test_what_other_words_the_kernel_was_given_stay(board: Board) -> None:
    board.start()
    line = (board.boot / "cmdline.txt").read_text()
    assert line.startswith("console=tty1 root=PARTUUID=1-02 rootfstype=ext4 rootwait")
    assert "cfg80211.ieee80211_regdom=DE" in line
    assert len(line.splitlines()) == 1


def test_an_image_without_those_tools_is_set_up_as_well(make_image: MakeImage, tmp_path: Path) -> None:
    board = Board(make_image("raspios-bookworm"), tmp_path, tools=False)
    assert board.start() == 0
    assert "usermod <-l> <ops> <pi>" in board.log
    assert f"ops:{HASH}" in board.log
    assert "systemctl <enable> <ssh>" in board.log
    assert board.is_done


def test_a_cut_at_any_step_is_made_good_at_the_next_start(board: Board) -> None:
    board.start()
    whole = board.log
    script = board.boot / "firstrun.sh"
    line = "console=tty1 root=PARTUUID=1-02 rootwait systemd.run=/boot/firmware/firstrun.sh\n"
    for step in range(1, len(whole) + 1):
        (board.boot / "cmdline.txt").write_text(line)
        script.write_text(board.script)
        assert board.start(die_at=step) != 0
        if board.is_asked_to_run:
            assert script.exists()
            assert board.start() == 0
            assert board.log == whole
        # After the cut at the very end nothing asks for the script any more; whether it still lies there is no matter.
        assert not board.is_asked_to_run


def test_tools_that_fail_do_not_keep_the_board_from_starting(board: Board) -> None:
    assert board.start(fail=1) == 0
    # The line is left where the sync before the change failed: then all is tried again.
    assert (board.root / LOG[1:]).exists()


def test_keys_lie_in_the_home_that_is_renamed(make_image: MakeImage) -> None:
    image = make_image("raspios-bookworm")
    files = image.take(CUSTOMISATION)
    assert image.text("/home/pi/.ssh/authorized_keys") == f"{KEY}\n"
    (entry,) = (entry for entry in files.root if entry.path.endswith("authorized_keys"))
    assert (entry.uid, entry.gid, entry.mode) == (1000, 1000, 0o600)
    assert image.text("/etc/ssh/sshd_config.d/10-edgeslm.conf") == "PasswordAuthentication no\n"


def test_where_only_a_key_lets_in_the_password_is_locked(make_image: MakeImage) -> None:
    files = make_image("raspios-bookworm").method.files(
        Customisation.model_validate({"account": {"name": "ops"}, "ssh_keys": [KEY]})
    )
    assert b"userconf ops '*'" in files.boot[0].content


def test_what_is_a_file_needs_no_script(make_image: MakeImage) -> None:
    image = make_image("raspios-bookworm")
    files = image.take(
        Customisation.model_validate({"hostname": "sensor-07", "timezone": "Europe/Berlin", "ntp": ["a.b"]})
    )
    assert not files.boot
    assert not files.cmdline
    assert image.text("/etc/hostname") == "sensor-07\n"
    assert "127.0.1.1\tsensor-07\n" in image.text("/etc/hosts")
    assert image.root.stat("/etc/localtime").target == "/usr/share/zoneinfo/Europe/Berlin"


def test_refuses_an_image_without_a_first_user(make_image: MakeImage) -> None:
    image = make_image("raspios-bookworm", extra={"etc/passwd": "root:x:0:0::/root:/bin/sh\n"})
    with pytest.raises(FirstBootOptionError, match="--user"):
        image.method.files(Customisation.model_validate({"account": {"name": "ops", "password_hash": HASH}}))
    image = make_image("raspios-bookworm", without=("etc/shadow",))
    with pytest.raises(FirstBootError, match="/etc/shadow"):
        image.method.files(Customisation.model_validate({"account": {"name": "ops", "password_hash": HASH}}))
