"""Files of a Debian-like system by which a profile's settings are carried out there: units, drop-ins, udev rules.

Pure texts. Each says what it does once, on whatever board: sysfs and systemd are the same on all of them, where loaders
and firmware differ. A setting that cannot be carried out fails its unit, where ``systemctl --failed`` shows it.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeslm.flash.payload import layout
from edgeslm.flash.tree import Entry
from edgeslm.schema.profile import CpuSettings, LogSettings, SwapSettings, WatchdogSettings

_SYSTEMD = "/etc/systemd"
SCRIPTS = f"{layout.OPT}/board"
JOURNAL = f"{_SYSTEMD}/journald.conf.d/50-edgeslm.conf"
WATCHDOG = f"{_SYSTEMD}/system.conf.d/50-edgeslm.conf"
TIME = f"{_SYSTEMD}/timesyncd.conf.d/50-edgeslm.conf"
TIME_CHRONY = "/etc/chrony/sources.d/edgeslm.sources"
RADIO = "/etc/udev/rules.d/90-edgeslm-radio.rules"
LEDS = "/etc/udev/rules.d/90-edgeslm-leds.rules"
WIRED_NETWORKD = f"{_SYSTEMD}/network/05-edgeslm-no-wired.network"
WIRED_MANAGER = "/etc/NetworkManager/conf.d/50-edgeslm-no-wired.conf"
RPI_SWAP = "/etc/rpi/swap.conf.d/90-edgeslm.conf"
CPU_UNIT, SWAP_UNIT = "edgeslm-cpu.service", "edgeslm-swap.service"
CPU_SCRIPT, SWAP_SCRIPT = f"{SCRIPTS}/cpu.sh", f"{SCRIPTS}/swap.sh"
SWAP_FILE = "/var/edgeslm.swap"
OTHER_SWAPS = ("dphys-swapfile.service", "armbian-zram-config.service", "zramswap.service")
"""Services that set up swap in Raspberry Pi OS up to Bookworm, in Armbian, and in Debian's zram-tools."""

_CPUFREQ = "/sys/devices/system/cpu/cpufreq"


def unit_path(name: str) -> str:
    """Where a unit of ours lies."""
    return f"{_SYSTEMD}/system/{name}"


def wanted_path(name: str) -> str:
    """The link that starts it."""
    return f"{_SYSTEMD}/system/multi-user.target.wants/{name}"


OURS = (
    JOURNAL, WATCHDOG, TIME, TIME_CHRONY, RADIO, LEDS, WIRED_NETWORKD, WIRED_MANAGER, RPI_SWAP, CPU_SCRIPT, SWAP_SCRIPT,
    *(path for unit in (CPU_UNIT, SWAP_UNIT) for path in (wanted_path(unit), unit_path(unit))),
)  # fmt: skip
"""Every path that this module can give, so that a setting which a profile no longer has can be taken back."""


def journal(log: LogSettings) -> list[Entry]:
    """The system's journal, kept in memory or bounded on the card (journald.conf(5))."""
    size = "RuntimeMaxUse" if log.storage == "volatile" else "SystemMaxUse"
    text = f"[Journal]\nStorage={log.storage}\n{size}={log.max_mb}M\n"
    if log.storage == "persistent":
        text += "SyncIntervalSec=5min\n"
    return [Entry(JOURNAL, content=text.encode())]


def watchdog(settings: WatchdogSettings, longest_s: float | None) -> list[Entry]:
    """The hardware watchdog, fed by systemd (systemd-system.conf(5)); never longer than the hardware counts."""
    timeout_s = settings.timeout_s if longest_s is None else min(settings.timeout_s, int(longest_s))
    value = f"{timeout_s}s" if settings.enabled else "off"
    return [Entry(WATCHDOG, content=f"[Manager]\nRuntimeWatchdogSec={value}\n".encode())]


def time_servers(servers: Sequence[str], *, with_chrony: bool) -> list[Entry]:
    """Whose time it takes (timesyncd.conf(5), chrony.conf(5))."""
    if with_chrony:
        text = "".join(f"server {server} iburst\n" for server in servers)
        return [Entry(TIME_CHRONY, content=text.encode())]
    return [Entry(TIME, content=f"[Time]\nNTP={' '.join(servers)}\n".encode())]


def radios_off(*, wifi: bool, bluetooth: bool) -> list[Entry]:
    """Radios that the kernel blocks as soon as it finds them (Linux, sysfs-class-rfkill)."""
    kinds = [kind for kind, is_off in (("wlan", wifi), ("bluetooth", bluetooth)) if is_off]
    text = "".join(
        f'ACTION=="add", SUBSYSTEM=="rfkill", ATTR{{type}}=="{kind}", ATTR{{soft}}="1"\n' for kind in kinds
    )
    return [Entry(RADIO, content=text.encode())]


def leds_off() -> list[Entry]:
    """Lights of the board itself; those of keyboards and network plugs have their own masters."""
    text = (
        'ACTION=="add", SUBSYSTEM=="leds", KERNEL!="*::*lock*", KERNEL!="input*", '
        'ATTR{trigger}="none", ATTR{brightness}="0"\n'
    )
    return [Entry(LEDS, content=text.encode())]


def wired_off() -> list[Entry]:
    """The wired network left alone, whoever manages networks (systemd.network(5), NetworkManager.conf(5))."""
    networkd = "[Match]\nType=ether\nKind=!*\n\n[Link]\nActivationPolicy=always-down\nRequiredForOnline=no\n"
    manager = "[keyfile]\nunmanaged-devices=type:ethernet\n"
    return [Entry(WIRED_NETWORKD, content=networkd.encode()), Entry(WIRED_MANAGER, content=manager.encode())]


def frequency(cpu: CpuSettings, profile: str) -> list[Entry]:
    """Governor and highest frequency, set after what the image itself sets them with."""
    script = ["#!/bin/sh", "set -eu", f"for policy in {_CPUFREQ}/policy*; do"]
    script += ['  [ -d "$policy" ] || { echo "this kernel cannot set frequencies" >&2; exit 1; }']
    if cpu.governor is not None:
        script.append(f'  echo {cpu.governor} > "$policy/scaling_governor"')
    if cpu.max_mhz is not None or cpu.max_share is not None:
        script.append('  highest=$(cat "$policy/cpuinfo_max_freq")')
        if cpu.max_share is not None:
            script.append(f"  cap=$((highest / 1000 * {round(cpu.max_share * 1000)}))")
        else:
            script.append(f"  cap={(cpu.max_mhz or 0) * 1000}")
        script.append('  [ "$cap" -gt "$highest" ] && cap=$highest')
        script.append('  echo "$cap" > "$policy/scaling_max_freq"')
    script.append("done")
    return _oneshot(
        CPU_UNIT, f"Processor frequency, as the profile {profile} has it", CPU_SCRIPT, script,
        ("After=raspi-config.service cpufrequtils.service ondemand.service",),
    )  # fmt: skip


def swap(settings: SwapSettings, profile: str) -> list[Entry]:
    """Swap in compressed memory or in a file, set up at each start."""
    if settings.kind == "none":
        return []
    script = ["#!/bin/sh", "set -eu"]
    if settings.kind == "zram":
        size = f"{settings.size_mb}M" if settings.size_mb is not None else "${size}K"
        if settings.share is not None:
            script.append("memory=$(awk '/^MemTotal:/ { print $2 }' /proc/meminfo)")
            script.append(f"size=$((memory * {round(settings.share * 1000)} / 1000))")
        script += ["modprobe zram", f"device=$(zramctl --find --size {size})", 'mkswap "$device"']
        script.append('swapon --priority 100 "$device"')
    else:
        script += [f"file={SWAP_FILE}", f"size={(settings.size_mb or 0) * 2**20}"]
        script += ['if [ "$(stat -c %s "$file" 2>/dev/null)" != "$size" ]; then', '  rm -f "$file"']
        script += ['  fallocate -l "$size" "$file"', '  chmod 600 "$file"', '  mkswap "$file"', "fi"]
        script.append('swapon "$file"')
    return _oneshot(SWAP_UNIT, f"Swap, as the profile {profile} has it", SWAP_SCRIPT, script, ())


def other_swaps_off(present: Sequence[str], *, rpi_swap: bool) -> list[Entry]:
    """What the image would set up by itself: a service that leads nowhere does not start (systemd.unit(5))."""
    entries = [Entry(unit_path(name), "symlink", target="/dev/null") for name in present]
    if rpi_swap:
        entries.append(Entry(RPI_SWAP, content=b"[Main]\nMechanism=none\n"))
    return entries


def _oneshot(
    name: str, description: str, script: str, lines: Sequence[str], order: Sequence[str]
) -> list[Entry]:
    unit = ["[Unit]", f"Description={description}", *order, ""]
    unit += ["[Service]", "Type=oneshot", "RemainAfterExit=yes", f"ExecStart=/bin/sh {script}", ""]
    unit += ["[Install]", "WantedBy=multi-user.target", ""]
    return [
        Entry(layout.OPT, "directory", mode=0o755),
        Entry(SCRIPTS, "directory", mode=0o755),
        Entry(script, content=("\n".join(lines) + "\n").encode(), mode=0o755),
        Entry(unit_path(name), content="\n".join(unit).encode()),
        Entry(wanted_path(name), "symlink", target=f"../{name}"),
    ]
