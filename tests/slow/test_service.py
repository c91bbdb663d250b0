"""The service under a real systemd: installed from an archive, confined, joined by itself, watched, updated, removed.

systemd is process 1 of namespaces of its own, over an overlay of this machine's files that is thrown away afterwards.
So it takes root, a kernel with overlayfs and namespaces, and systemd; where one is missing this is skipped.
"""

from __future__ import annotations

import json
import os
import pty
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import FleetRig, fleet_rig
from edgeslm.codec import encode
from edgeslm.flash.unit import options_for, unit_text
from edgeslm.link.broker import find_mosquitto
from edgeslm.link.client import RequestClient
from edgeslm.power.boards import choose_board
from edgeslm.schema.message import PromptRequest
from edgeslm.topics import device_topic

SERVICE = "edgeslm-agent.service"
PATIENCE_S = 240.0
_SYSTEMD = Path("/usr/lib/systemd/systemd")
_MASKED = """systemd-sysctl.service systemd-remount-fs.service systemd-modules-load.service ldconfig.service
systemd-journal-catalog-update.service systemd-update-done.service systemd-logind.service e2scrub_reap.service
cron.service console-getty.service getty@tty1.service systemd-ask-password-console.path apt-daily.timer
apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_all.timer man-db.timer systemd-firstboot.service
systemd-binfmt.service proc-sys-fs-binfmt_misc.automount systemd-udevd.service mosquitto.service"""

_BOOT = f"""
set -eu
work=$1 console=$2 shared=$3
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$work"
mkdir "$work/up" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/up,workdir=$work/work" "$work/root"
cd "$work/root"
mount -t proc proc proc
mount --rbind /sys sys
umount -R sys/fs/cgroup
mount -t cgroup2 none sys/fs/cgroup
for name in run dev tmp; do mount -t tmpfs -o mode=755 tmpfs $name; done
chmod 1777 tmp
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mkdir dev/shm dev/pts shared .old
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
touch dev/console
mount --bind "$console" dev/console
mount --bind "$shared" shared
rm -f etc/systemd/system/*.wants/* etc/resolv.conf
for name in {" ".join(_MASKED.split())}; do ln -sfn /dev/null etc/systemd/system/$name; done
pivot_root . .old
umount -l /.old
mount --make-rshared /
exec env -i container=edgeslm-test PATH=/usr/sbin:/usr/bin {_SYSTEMD} --log-target=console --unit=multi-user.target
"""


def _is_possible() -> bool:
    if os.geteuid() != 0 or not _SYSTEMD.exists() or shutil.which("unshare") is None:
        return False
    done = subprocess.run(["unshare", "-mpfiuC", "true"], capture_output=True, check=False)
    return done.returncode == 0 and "overlay" in Path("/proc/filesystems").read_text()


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not _is_possible(), reason="needs root, namespaces, overlayfs and systemd"),
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
    pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs the system's own Python"),
]


def wait_for(found: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    deadline_s = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < deadline_s, f"in vain: {what}"
        time.sleep(0.1)
    return value


class Machine:
    """A machine with a systemd of its own."""

    def __init__(self, directory: Path) -> None:
        self.work, self.shared = directory / "work", directory / "shared"
        self.work.mkdir()
        self.shared.mkdir()
        self.console = b""
        self._master, self._slave = pty.openpty()
        boot = directory / "boot.sh"
        boot.write_text(_BOOT)
        command = ["unshare", "-mpfiuC", "--kill-child", "sh", str(boot), str(self.work)]
        self._process = subprocess.Popen(
            [*command, os.ttyname(self._slave), str(self.shared)], stdin=subprocess.DEVNULL
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.pid = wait_for(self._child, "the machine starts")
        wait_for(lambda: self.run("systemctl", "is-system-running").stdout.strip() != "", "systemd answers")

    def _read(self) -> None:
        while True:
            try:
                self.console += os.read(self._master, 65_536)
            except OSError:
                return

    def _child(self) -> int:
        number = self._process.pid
        text = Path(f"/proc/{number}/task/{number}/children").read_text().split()
        return int(text[0]) if text and Path(f"/proc/{text[0]}/comm").read_text() == "systemd\n" else 0

    def run(self, *command: str, check: bool = False, stdin: str = "") -> subprocess.CompletedProcess[str]:
        inside = ["nsenter", f"--target={self.pid}", "--all", "--root", "--wd", *command]
        done = subprocess.run(inside, input=stdin, capture_output=True, text=True, check=False)
        if check and done.returncode:
            pytest.fail(f"{command}: {done.stdout}\n{done.stderr}\n{self.tail()}")
        return done

    def property(self, name: str) -> str:
        return self.run("systemctl", "show", "--property", name, "--value", SERVICE).stdout.strip()

    def tail(self) -> str:
        journal = self.run("journalctl", "-u", SERVICE, "-n", "60", "--no-pager", "-o", "cat").stdout
        return f"{journal}\n{self.console.decode('utf-8', 'replace')[-3000:]}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._slave)
        os.close(self._master)


@pytest.fixture(scope="module")
def agent_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This edgeslm, packed for the system's own Python."""
    given = os.environ.get("EDGESLM_TEST_AGENT")
    if given:
        return Path(given)
    out = tmp_path_factory.mktemp("agent") / "agent.tar"
    python = subprocess.check_output(["/usr/bin/python3", "-V"], text=True).split()[1].rsplit(".", 1)[0]
    glibc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    target = ["--machine", os.uname().machine, "--glibc", glibc.split()[-1], "--python", python]
    source = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "edgeslm", "agent", "pack", source, *target, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the agent cannot be packed here: {done.stderr[-300:]}")
    return out


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


def make_archive(machine: Machine, agent: Path, *more: str) -> str:
    python = subprocess.check_output(["/usr/bin/python3", "-V"], text=True).split()[1].rsplit(".", 1)[0]
    glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()[-1]
    out = machine.shared / "board.pyz"
    target = ["--board", "host", "--machine", os.uname().machine, "--glibc", glibc, "--python", python]
    command = [sys.executable, "-m", "edgeslm", "flash", "archive", *target, "--agent", str(agent)]
    done = subprocess.run(
        [*command, "--out", str(out), "--force", *more], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return "/shared/board.pyz"


def test_a_board_joins_by_itself_measures_is_watched_upgraded_and_removed(
    machine: Machine, agent_archive: Path, tmp_path: Path
) -> None:
    with fleet_rig() as rig:
        claim = tmp_path / "claim.json"
        claim.write_bytes(encode(rig.claim("porch").claim))
        archive = make_archive(machine, agent_archive, "--claim", str(claim))
        # Nobody answers for the fleet yet: the service is there all the same, and says what it waits for.
        installed = machine.run("/usr/bin/python3", archive, "--yes", check=True)
        assert "installed edgeslm" in installed.stdout
        assert machine.property("ActiveState") == "active"
        wait_for(
            lambda: "waiting for the fleet's answer" in machine.property("StatusText"), "it tries to join"
        )
        with rig.service():
            is_online(machine)
            answer(rig)
            assert meter(rig) == "estimated"
            assert_it_is_confined(machine)
            assert_doing_it_again_disturbs_nobody(machine, archive)
            assert_meters_are_read(machine, rig)
            hangs_are_noticed(machine)
            assert_settings_and_identity_outlast_an_upgrade(machine, agent_archive, rig)
        assert_it_is_removed(machine, archive)


def is_online(machine: Machine) -> None:
    try:
        wait_for(lambda: "online at" in machine.property("StatusText"), "it serves")
    except AssertionError:
        pytest.fail(machine.tail())


def answer(rig: FleetRig) -> None:
    with RequestClient(rig.fleet.operator_config()) as client:
        request = PromptRequest(id=secrets.token_hex(8), prompt="turn on the kitchen light")
        result = client.ask(device_topic("green", "porch", "prompt"), request, timeout_s=60)
    assert result.error is None, result
    assert "Kitchen" in (result.text or "")


def meter(rig: FleetRig) -> str | None:
    """What kind of meter the device says that it has."""
    with RequestClient(rig.fleet.operator_config()) as client:
        found = {view.device: view.info for view in client.list_devices("green", 2.0)}
    info = found.get("porch")
    return None if info is None else info.meter


def assert_it_is_confined(machine: Machine) -> None:
    pid = machine.property("MainPID")
    status = dict(
        line.split(":\t", 1)
        for line in machine.run("cat", f"/proc/{pid}/status", check=True).stdout.splitlines()
    )
    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "1"
    assert status["CapBnd"] == "0000000000000000"
    assert int(status["Uid"].split()[0]) > 1000
    assert machine.run("stat", "-Lc", "%a", "/var/lib/edgeslm").stdout.strip() == "700"
    assert machine.run("stat", "-c", "%U %a", "/opt/edgeslm/launch.py").stdout.strip() == "root 755"


def assert_doing_it_again_disturbs_nobody(machine: Machine, archive: str) -> None:
    pid = machine.property("MainPID")
    again = json.loads(machine.run("/usr/bin/python3", archive, "--yes", "--json", check=True).stdout)
    assert (again["missing"], again["started"]) == (0, False)
    assert machine.property("MainPID") == pid


# --- meters -----------------------------------------------------------------------------------------------------------

_SENSORS = """
set -eu
mkdir -p /tmp/sensors/up /tmp/sensors/work
mount -t overlay overlay -o lowerdir=/sys/class,upperdir=/tmp/sensors/up,workdir=/tmp/sensors/work /sys/class
"""
_HWMON = """
set -eu
mkdir -p /sys/class/hwmon/hwmon3
cd /sys/class/hwmon/hwmon3
echo ina226 > name
echo 3500000 > power1_input
"""
_COUNTERS = """
set -eu
mkdir -p /sys/class/powercap/intel-rapl:0
cd /sys/class/powercap/intel-rapl:0
echo psys > name
echo 262143328850 > max_energy_range_uj
echo 1000000 > energy_uj
chmod 0400 energy_uj
"""
# It asks the firmware by its device, which here is another one that no unit gets by itself.
_FIRMWARE = """
set -eu
mknod /dev/vcio c 10 229
chgrp video /dev/vcio
chmod 0660 /dev/vcio
cat > /usr/bin/vcgencmd <<'end'
#!/bin/sh
exec 3<> /dev/vcio || exit 1
case "$1" in
pmic_read_adc) printf '%s\n' '  VDD_CORE_A current(7)=2.00000000A' '  VDD_CORE_V volt(15)=0.90000000V' ;;
get_throttled) echo throttled=0x1 ;;
esac
end
chmod 755 /usr/bin/vcgencmd
"""


def assert_meters_are_read(machine: Machine, rig: FleetRig) -> None:
    """The unit of each kind of board lets the agent read what that kind measures with, and no more."""
    machine.run("sh", "-c", _SENSORS, check=True)
    machine.run("sh", "-c", _COUNTERS, check=True)
    with_unit(machine, "host")
    owner = machine.run("stat", "-Lc", "%u", "/var/lib/edgeslm").stdout.strip()
    lent = machine.run("stat", "-c", "%u %a", "/sys/class/powercap/intel-rapl:0/energy_uj").stdout.strip()
    assert lent == f"{owner} 400"
    machine.run("rm", "-r", "/sys/class/powercap/intel-rapl:0", check=True)

    machine.run("sh", "-c", _FIRMWARE, check=True)
    with_unit(machine, "generic-arm64")
    assert meter(rig) == "estimated"  # the device is not on this unit's list
    with_unit(machine, "pi-5")
    assert meter(rig) == "calibrated"

    machine.run("sh", "-c", _HWMON, check=True)
    with_unit(machine, "generic-arm64")
    assert meter(rig) == "measured"
    machine.run("sh", "-c", "umount -l /sys/class; rm /usr/bin/vcgencmd /dev/vcio", check=True)
    with_unit(machine, "host")


def with_unit(machine: Machine, board: str) -> None:
    """Run the service by the unit of another kind of board."""
    options = options_for(choose_board(board), {"video"}, python="/usr/bin/python3", cpu_quota_percent=400)
    machine.run("tee", f"/etc/systemd/system/{SERVICE}", stdin=unit_text(options), check=True)
    machine.run("systemctl", "daemon-reload", check=True)
    machine.run("systemctl", "restart", SERVICE, check=True)
    is_online(machine)


# --- the rest of its life ---------------------------------------------------------------------------------------------


def hangs_are_noticed(machine: Machine) -> None:
    """An agent that stands still is killed by the watchdog, and another one serves."""
    drop_in = "/run/systemd/system/edgeslm-agent.service.d"
    machine.run("mkdir", "-p", drop_in, check=True)
    machine.run("sh", "-c", f"printf '[Service]\nWatchdogSec=5\n' > {drop_in}/fast.conf", check=True)
    machine.run("systemctl", "daemon-reload", check=True)
    machine.run("systemctl", "restart", SERVICE, check=True)
    wait_for(lambda: machine.property("StatusText") != "starting", "it serves again")
    pid = machine.property("MainPID")
    machine.run("kill", "-STOP", pid, check=True)
    wait_for(lambda: machine.property("MainPID") not in {pid, "0"}, "the watchdog ends it")
    wait_for(lambda: machine.property("ActiveState") == "active", "another one is there")
    assert "watchdog" in machine.tail().lower()
    machine.run("rm", "-r", drop_in, check=True)
    machine.run("systemctl", "daemon-reload", check=True)


def assert_settings_and_identity_outlast_an_upgrade(machine: Machine, agent: Path, rig: FleetRig) -> None:
    """Another archive, of no claim and with other settings, over a board that a person has set up meanwhile."""
    machine.run("sh", "-c", "echo 'threads: 1' >> /etc/edgeslm/agent.yaml", check=True)
    key = machine.run("sh", "-c", "cat /var/lib/edgeslm/identity/*/device.key | sha256sum").stdout
    archive = make_archive(machine, agent, "--device", "other", "--profile", "low-power")
    said = json.loads(machine.run("/usr/bin/python3", archive, "--yes", "--json", check=True).stdout)
    assert said["kept"] == ["/etc/edgeslm/agent.yaml"]
    assert (said["profile"], said["started"]) == ("low-power", True)
    is_online(machine)
    assert machine.run("sh", "-c", "cat /var/lib/edgeslm/identity/*/device.key | sha256sum").stdout == key
    assert "threads: 1" in machine.run("cat", "/etc/edgeslm/agent.yaml").stdout
    answer(rig)


def assert_it_is_removed(machine: Machine, archive: str) -> None:
    gone = machine.run("/usr/bin/python3", archive, "--uninstall", "--yes", check=True)
    assert "keep /etc/edgeslm/agent.yaml: it was changed since" in gone.stderr
    assert "keep /var/lib/edgeslm: identity, journal and models of this device" in gone.stderr
    left = machine.run(
        "find", "/opt/edgeslm", "/etc/edgeslm", "/etc/systemd/system", "-name", "*edgeslm*"
    ).stdout
    assert left.split() == ["/etc/edgeslm"]
    assert machine.run("test", "-d", "/var/lib/edgeslm/identity").returncode == 0
    assert machine.property("LoadState") == "not-found"
    machine.run("/usr/bin/python3", archive, "--yes", "--no-start", check=True)
    purged = machine.run("/usr/bin/python3", archive, "--uninstall", "--purge", "--yes", check=True)
    assert "remove /var/lib/edgeslm: identity" in purged.stderr
    assert machine.run("ls", "/var/lib/edgeslm", "/var/lib/private/edgeslm", "/opt/edgeslm").stdout == ""
