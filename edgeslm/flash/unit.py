"""The systemd unit of the agent, as text.

What always holds: the agent has no privilege but those that the board's own facts ask for; nothing in the unit waits
for a network or for the clock; a file that may be missing is none that the unit needs.

Why what is there, and what is left out:

* ``DynamicUser=`` needs no entry in the image's passwd. systemd gives the state directory to that user at the first
  start, whoever wrote it, so the agent updates itself there while launcher and models stay root's.
* A credential that is missing would fail the unit, but for one that ``SetCredential=`` names as well (systemd.exec(5)).
* A version on trial runs as a child of the launcher and has to speak for the service: ``NotifyAccess=all``.
* ``ProcSubset=pid`` hides /proc/stat and /proc/meminfo, by which the agent knows load and memory.
* ``PrivateUsers=`` fails the unit on kernels of some board makers, which are built without user namespaces.
* ``nice`` and ``ionice`` of an update need ``@resources``.
* Power monitors of the kernel (hwmon) are files that everybody may read, and take nothing here. The counters of PC
  processors are root's alone, and are lent to the agent; the firmware of a Raspberry Pi is asked through a device.
* systemd before 254 does not know ``RestartSteps=``, says so, and tries again every five seconds throughout.

Left to others: the paths (:mod:`edgeslm.flash.payload.layout`), and writing it (:mod:`edgeslm.flash.payload`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from edgeslm.errors import FlashError
from edgeslm.flash.payload.layout import AGENT_ROOT, CLAIM, LAUNCHER, SETTINGS, STATE
from edgeslm.schema.board import Board

CLAIM_CREDENTIAL = "claim.json"
NO_CREDENTIAL = "none"
"""What a credential holds whose file is not there; the agent takes it for nothing."""
WATCHDOG_S = 90
VCIO = "/dev/vcio"
"""The mailbox of the Raspberry Pi's firmware, which ``vcgencmd`` asks."""
VIDEO = "video"
"""The group that may open it, in Raspberry Pi OS and Debian alike."""
_STATE_NAME = STATE.rpartition("/")[2]
RESTART_S, RESTART_STEPS, LONGEST_RESTART_S = 5, 6, 60
"""Seconds from the end of the service to its next start: at first, after so many ends, and from then on."""
_COUNTERS = "/sys/class/powercap/intel-rapl:*/energy_uj"
_CPUFREQ = "/sys/devices/system/cpu/cpufreq"
_SPARE_CPU_PERCENT = 25


@dataclass(frozen=True)
class UnitOptions:
    """What differs from board to board.

    Attributes:
        python: the interpreter that runs the launcher.
        devices: device files that the agent may read and write.
        groups: groups that it is in beside its own; each has to exist, or the unit fails.
        credentials: more files of root's that it may read: name below ``$CREDENTIALS_DIRECTORY``, and path.
        memory_max_mb: at most so much memory, in MiB; ``None`` is 80 % of the board's.
        cpu_quota_percent: at most so much processor time, 100 being one core; ``None`` is no limit.
        caps_frequency: it may hold the processor's frequency down, as a power budget can ask.
        reads_counters: it may read the energy counters of a PC processor, which are root's (CVE-2020-8694).
    """

    python: str = "/usr/bin/python3"
    devices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    credentials: tuple[tuple[str, str], ...] = ()
    memory_max_mb: int | None = None
    cpu_quota_percent: int | None = None
    caps_frequency: bool = False
    reads_counters: bool = False

    def __post_init__(self) -> None:
        """Refuse what would mean something else in a unit.

        Raises:
            FlashError: a word with a blank, a control character, or one that systemd gives a meaning.
        """
        pairs = [word for pair in self.credentials for word in pair]
        for word in (self.python, *self.devices, *self.groups, *pairs):
            if not word or not word.isprintable() or any(sign in word for sign in " \t'\"\\%$:;"):
                raise FlashError(f"{word[:80]!r} cannot stand in a systemd unit")


def options_for(
    board: Board,
    groups: Collection[str],
    *,
    python: str = "/usr/bin/python3",
    credentials: tuple[tuple[str, str], ...] = (),
    memory_max_mb: int | None = None,
    cpu_quota_percent: int | None = None,
    caps_frequency: bool = False,
) -> UnitOptions:
    """What a board needs, and nothing that it does not.

    Args:
        groups: that exist on the system which the unit is for (its /etc/group).
        memory_max_mb: as the profile wants it.
        cpu_quota_percent: as the profile wants it; ``None`` leaves a quarter of a core to the rest of the system.
        caps_frequency: the profile's budget may hold the frequency down.
    """
    # The power chip of a Raspberry Pi 5, and what the firmware of all of them does to protect the board.
    asks_firmware = board.boot is not None and board.boot.kind == "raspberrypi-firmware"
    if cpu_quota_percent is None and board.cores is not None:
        cpu_quota_percent = 100 * board.cores - _SPARE_CPU_PERCENT
    return UnitOptions(
        python=python,
        devices=(VCIO,) if asks_firmware else (),
        groups=(VIDEO,) if asks_firmware and VIDEO in groups else (),
        credentials=credentials,
        memory_max_mb=memory_max_mb,
        cpu_quota_percent=cpu_quota_percent,
        caps_frequency=caps_frequency,
        reads_counters=board.arch != "aarch64",
    )


def unit_text(options: UnitOptions) -> str:
    """The unit, ready to be written."""
    sections = {
        "Unit": [
            "Description=edgeslm agent",
            "# A board in the field is tried again for as long as it has power.",
            "StartLimitIntervalSec=0",
        ],
        "Service": [*_process(options), "", *_limits(options), "", *_confinement(options)],
        "Install": ["WantedBy=multi-user.target"],
    }
    return "\n".join(
        line for name, lines in sections.items() for line in (f"[{name}]", *lines, "")
    ).rstrip("\n") + "\n"  # fmt: skip


def _process(options: UnitOptions) -> list[str]:
    credentials = ((CLAIM_CREDENTIAL, CLAIM), *options.credentials)
    lines = ["Type=notify", "NotifyAccess=all", f"WatchdogSec={WATCHDOG_S}", "TimeoutStartSec=900"]
    lines += ["TimeoutStopSec=60", "Restart=always", f"RestartSec={RESTART_S}"]
    lines += [f"RestartSteps={RESTART_STEPS}", f"RestartMaxDelaySec={LONGEST_RESTART_S}"]
    lines += ["# Settings and packages that cannot work do not get better by trying again."]
    lines += ["RestartPreventExitStatus=2 4"]
    if options.caps_frequency:
        lines += [_lend(f"{_CPUFREQ}/policy*/scaling_max_freq")]
    if options.reads_counters:
        lines += [_lend(_COUNTERS)]
    lines += [f"ExecStart={options.python} {LAUNCHER} agent run --config {SETTINGS}"]
    lines += [f"Environment=EDGESLM_ROOT={AGENT_ROOT} HOME={STATE}"]
    lines += [f"WorkingDirectory={STATE}", f"StateDirectory={_STATE_NAME}", "StateDirectoryMode=0700"]
    for name, path in credentials:
        lines += [f"LoadCredential={name}:{path}", f"SetCredential={name}:{NO_CREDENTIAL}"]
    return lines


def _lend(files: str) -> str:
    """Files of the kernel for the service's user, until the board starts again.

    By the state directory's owner: the name of a dynamic user is unknown to images without libnss-systemd.
    """
    give = f'for file in {files}; do test ! -e "$$file" || chown --reference={STATE} "$$file"; done'
    return f"ExecStartPre=+-/bin/sh -c '{give}'"


def _limits(options: UnitOptions) -> list[str]:
    if options.memory_max_mb is None:
        lines = ["MemoryHigh=70%", "MemoryMax=80%"]
    else:
        lines = [f"MemoryHigh={options.memory_max_mb * 7 // 8}M", f"MemoryMax={options.memory_max_mb}M"]
    if options.cpu_quota_percent is not None:
        lines.append(f"CPUQuota={options.cpu_quota_percent}%")
    return [*lines, "TasksMax=256", "LimitCORE=0"]


def _confinement(options: UnitOptions) -> list[str]:
    lines = ["DynamicUser=yes", f"User={_STATE_NAME}", "UMask=0077", "NoNewPrivileges=yes"]
    lines += [f"SupplementaryGroups={' '.join(options.groups)}"] if options.groups else []
    lines += ["CapabilityBoundingSet=", "AmbientCapabilities="]
    if options.devices:
        lines += ["DevicePolicy=closed", *(f"DeviceAllow={device} rw" for device in options.devices)]
    else:
        lines += ["PrivateDevices=yes"]
    if options.caps_frequency:
        lines += [f"ReadWritePaths=-{_CPUFREQ}"]
    # systemd 257 and later mount the state directory of a dynamic user noexec; the agent's libraries lie there.
    lines += [f"ExecPaths=-/var/lib/private/{_STATE_NAME} -{STATE}"]
    return [*lines, *_CONFINEMENT]


_CONFINEMENT = (
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "ProtectProc=invisible",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectControlGroups=yes",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "RemoveIPC=yes",
    "KeyringMode=private",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged",
    "SystemCallErrorNumber=EPERM",
)
