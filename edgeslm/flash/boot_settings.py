"""What a profile wants of firmware, kernel and system, as changes of an image's own files. Pure but for reading it.

What always holds:

* Nothing is left out in silence: a setting that this image cannot carry out is an error that names its key.
* A second run replaces what the first one wrote, with this profile or another: config.txt has one marked block, the
  kernel's command line stays one line, and every other file is ours alone.

Frequencies, swap, lights and radios are set by the kernel's own interfaces, alike on every board; only what the
firmware alone can do goes to its files.

Left to others: the texts (:mod:`edgeslm.flash.payload.boot_text`, :mod:`edgeslm.flash.payload.drop_ins`), and what is
the user's own (:mod:`edgeslm.flash.first_boot`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgeslm.errors import BootSettingsError
from edgeslm.flash.payload import boot_text, drop_ins, read_only
from edgeslm.flash.tree import Entry, Tree
from edgeslm.schema.board import Board
from edgeslm.schema.profile import CARD, MAX_CONFIG_LINE, Profile

_MODULES = "/usr/lib/modules"
_ZRAM = ("kernel/drivers/block/zram", "/zram.ko")
_OVERLAY = ("kernel/fs/overlayfs", "/overlay.ko")
_BUILTIN = "modules.builtin"
_MAX_BUILTIN_BYTES = 4 * 2**20
_RPI_SWAP = ("/usr/lib/systemd/system-generators/rpi-swap-generator",)
_UNIT_DIRECTORIES = ("/usr/lib/systemd/system", "/etc/systemd/system")
_TIMESYNCD, _CHRONY = "/usr/lib/systemd/systemd-timesyncd", "/usr/sbin/chronyd"
_SYSTEMD = "/usr/lib/systemd/systemd"
_UNWIRED = re.compile(r"dtoverlay=disable-wifi(,.*)?", re.IGNORECASE)
_NO_BLUETOOTH = re.compile(r"dtoverlay=disable-bt(,.*)?", re.IGNORECASE)
_MOST_DISPLAYS = 2

LoaderKind = Literal["cmdline", "extlinux", "armbian"]
Place = Literal["boot", "root"]


@dataclass(frozen=True)
class CommandLine:
    """The kernel's command line, where the image has it.

    Attributes:
        kind: of file.
        place: file system that it is in.
        path: there.
        text: of the file.
    """

    kind: LoaderKind
    place: Place
    path: str
    text: str

    @property
    def line(self) -> str:
        """The words alone."""
        if self.kind == "extlinux":
            return boot_text.extlinux_words(self.text) or ""
        return boot_text.armbian_words(self.text) if self.kind == "armbian" else self.text.strip()

    def entry(self, line: str) -> Entry:
        """The file with other words."""
        text = f"{line}\n"
        if self.kind == "extlinux":
            text = boot_text.with_extlinux_words(self.text, line)
        elif self.kind == "armbian":
            text = boot_text.with_armbian_words(self.text, line)
        return Entry(self.path, content=_bytes(text))


@dataclass(frozen=True)
class BootFacts:
    """What an image can carry out.

    Attributes:
        config: text of the Raspberry Pi firmware's config.txt; ``None`` where it boots otherwise.
        command_line: ``None`` where there is none that we know.
        has_systemd: it starts with systemd.
        has_zram: its kernel can keep swap in compressed memory; ``None``: its kernels could not be found.
        time: what sets the clock.
        other_swaps: services of the image that set up swap.
        has_rpi_swap: Raspberry Pi's own swap, from Trixie on.
        has_overlay: its kernel can lay memory over a directory; ``None``: its kernels could not be found.
        fstab: text of ``/etc/fstab``.
    """

    config: str | None = None
    command_line: CommandLine | None = None
    has_systemd: bool = True
    has_zram: bool | None = None
    time: Literal["timesyncd", "chrony"] | None = None
    other_swaps: tuple[str, ...] = ()
    has_rpi_swap: bool = False
    has_overlay: bool | None = None
    fstab: str | None = None


@dataclass(frozen=True)
class BootChanges:
    """What carries out the settings.

    Attributes:
        boot: files of the boot partition.
        root_edits: files of the image's own in the root.
        root: files of ours in the root.
        remove: files of ours that an earlier run left and this one does not want.
        said: what is set, for people.
        words: that were added to the command line.
    """

    boot: tuple[Entry, ...] = ()
    root_edits: tuple[Entry, ...] = ()
    root: tuple[Entry, ...] = ()
    remove: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


# --- reading ------------------------------------------------------------------------------------------------


def read_boot_facts(boot: Tree | None, root: Tree) -> BootFacts:
    """What an image can carry out.

    Raises:
        TreeError: it cannot be read.
    """
    config = _text(boot, "/config.txt")
    time: Literal["timesyncd", "chrony"] | None = None
    if root.stat(_CHRONY) is not None:
        time = "chrony"
    elif root.stat(_TIMESYNCD) is not None:
        time = "timesyncd"
    return BootFacts(
        config=config,
        command_line=_command_line(boot, root, config),
        has_systemd=root.stat(_SYSTEMD) is not None or root.stat("/lib/systemd/systemd") is not None,
        has_zram=_has_module(root, *_ZRAM),
        has_overlay=_has_module(root, *_OVERLAY),
        fstab=_text(root, "/etc/fstab"),
        time=time,
        other_swaps=tuple(
            name
            for name in drop_ins.OTHER_SWAPS
            if any(_is_file(root, f"{directory}/{name}") for directory in _UNIT_DIRECTORIES)
        ),
        has_rpi_swap=any(root.stat(path) is not None for path in _RPI_SWAP),
    )


def _command_line(boot: Tree | None, root: Tree, config: str | None) -> CommandLine | None:
    prefix = boot_text.option(config, "os_prefix") if config is not None else None
    candidates: list[tuple[LoaderKind, Place, str]] = []
    if prefix is not None and re.fullmatch(r"[A-Za-z0-9_.-]{1,64}/", prefix):
        candidates.append(("cmdline", "boot", f"/{prefix}cmdline.txt"))
    candidates += [
        ("cmdline", "boot", "/cmdline.txt"),
        ("extlinux", "boot", "/extlinux/extlinux.conf"),
        ("armbian", "boot", "/armbianEnv.txt"),
        ("extlinux", "root", "/boot/extlinux/extlinux.conf"),
        ("armbian", "root", "/boot/armbianEnv.txt"),
    ]
    for kind, place, path in candidates:
        text = _text(boot if place == "boot" else root, path)
        if text is not None and (kind != "extlinux" or boot_text.extlinux_words(text) is not None):
            return CommandLine(kind, place, path, text)
    return None


def _has_module(root: Tree, directory: str, name: str) -> bool | None:
    """Whether a kernel of the image has a module, or that built in; ``None`` where its kernels could not be found."""
    if root.stat(_MODULES) is None:
        return None
    for kernel in root.names(_MODULES):
        if root.stat(f"{_MODULES}/{kernel}/{directory}") is not None:
            return True
        listed = _text(root, f"{_MODULES}/{kernel}/{_BUILTIN}", _MAX_BUILTIN_BYTES)
        if listed is not None and name in listed:
            return True
    return False


def _text(tree: Tree | None, path: str, max_bytes: int = boot_text.MAX_TEXT_BYTES) -> str | None:
    if tree is None or tree.stat(path) is None:
        return None
    # Whatever bytes are in it come out again as they were.
    return tree.read(path, max_bytes=max_bytes).decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _is_file(tree: Tree, path: str) -> bool:
    node = tree.stat(path)
    return node is not None and node.kind == "file"


# --- deciding -----------------------------------------------------------------------------------------------


def boot_changes(
    profile: Profile,
    board: Board,
    facts: BootFacts,
    *,
    words: Sequence[str] = (),
    ntp: Sequence[str] = (),
    earlier: Sequence[str] = (),
) -> BootChanges:
    """What carries out a profile on an image.

    Args:
        profile: with its parents.
        board: that it is for.
        facts: about the image.
        words: for the kernel's command line, from elsewhere.
        ntp: time servers that are set elsewhere already.
        earlier: words that an earlier run added.

    Raises:
        BootSettingsError: the image cannot carry out one of the settings.
    """
    wanted = _Wanted(profile, board, facts, ntp)
    changes, line = wanted.changes, facts.command_line
    config = _config(facts, wanted)
    boot = [Entry("/config.txt", content=_bytes(config))] if config is not None else []
    root_edits: list[Entry] = list(wanted.root_edits)
    added: tuple[str, ...] = ()
    words = (*wanted.words, *words)
    if line is None:
        named = [*(key for key, value in wanted.cmdline.items() if value is not False), *words]
        if named:
            raise BootSettingsError(
                f"the image has no command line of the kernel that we know, and {', '.join(named)} belongs there",
                key="boot.cmdline",
                hint="There has to be a cmdline.txt, extlinux/extlinux.conf or armbianEnv.txt",
            )
    else:
        base = boot_text.changed_words(line.line, {}, remove=(*earlier, *wanted.unwanted_words))
        after = boot_text.changed_words(base, wanted.cmdline, add=words)
        if len(after.encode("utf-8", "surrogateescape")) >= boot_text.MAX_COMMAND_LINE:
            raise BootSettingsError(
                f"the kernel's command line would have more than {boot_text.MAX_COMMAND_LINE} characters",
                key="boot.cmdline",
            )
        added = boot_text.added_words(base, after)
        if after != line.line:
            (boot if line.place == "boot" else root_edits).append(line.entry(after))
    ours = {entry.path for entry in changes.root}
    remove = tuple(path for path in (*drop_ins.OURS, *read_only.OURS) if path not in ours)
    return replace(
        changes, boot=tuple(boot), root_edits=tuple(root_edits), remove=remove, words=added,
        said=(*changes.said, *(f"kernel: {word}" for word in added)),
    )  # fmt: skip


class _Wanted:
    """Settings sorted by who carries them out."""

    def __init__(self, profile: Profile, board: Board, facts: BootFacts, ntp: Sequence[str]) -> None:
        self._profile, self._board, self._facts = profile, board, facts
        self.cmdline: dict[str, str | bool] = dict(profile.boot.cmdline)
        self.words: tuple[str, ...] = ()
        self.unwanted_words: tuple[str, ...] = ()
        self.config: list[str] = []
        self.unwanted: list[re.Pattern[str]] = []
        self.root_edits: list[Entry] = []
        self._root: list[Entry] = []
        self._said: list[str] = []
        self._firmware()
        self._processor()
        self._radio()
        self._lights_and_screens()
        self._swap()
        self._system(ntp)
        self._read_only()
        if self._root and not facts.has_systemd:
            raise BootSettingsError(
                f"the image has no systemd, which carries out: {'; '.join(self._said)}",
                key="image", hint="Take an image with systemd, as Raspberry Pi OS, Debian, Ubuntu and Armbian are",
            )  # fmt: skip

    @property
    def changes(self) -> BootChanges:
        """What is known before the command line is."""
        root = {entry.path: entry for entry in self._root}
        return BootChanges(root=tuple(root.values()), said=tuple(self._said))

    def _add(self, entries: Sequence[Entry], said: str) -> None:
        self._root += entries
        self._said.append(said)

    @property
    def _has_firmware(self) -> bool:
        return self._facts.config is not None

    def _firmware(self) -> None:
        boot = self._profile.boot
        if boot.needs_firmware and not self._has_firmware:
            key = "config" if boot.config else "dtparams" if boot.dtparams else "overlays"
            raise BootSettingsError(
                f"boot.{key} is for the firmware of a Raspberry Pi, and the image has no config.txt",
                key=f"boot.{key}", hint=f"Take it out of the profile for {self._board.name}, or out of what it extends",
            )  # fmt: skip
        if self._has_firmware:
            # Its device trees switch the accounting of memory off, and the service's limit would not hold.
            self.cmdline.setdefault("cgroup_enable", "memory")
        for name, value in boot.dtparams.items():
            self.config.append(f"dtparam={name}={value}" if value else f"dtparam={name}")
        for name, value in boot.overlays.items():
            self.config.append(f"dtoverlay={name},{value}" if value else f"dtoverlay={name}")
        # Parameters that follow an overlay would be its own; an empty one ends it.
        self.config += ["dtoverlay="] if boot.overlays else []
        self.config += [f"{key}={value}" for key, value in boot.config.items()]
        self._said += [f"config.txt: {line}" for line in self.config if line != "dtoverlay="]

    def _processor(self) -> None:
        cpu = self._profile.cpu
        if cpu.cores is not None:
            self.cmdline["maxcpus"] = str(cpu.cores)
        parts = [f"governor {cpu.governor}"] if cpu.governor is not None else []
        if cpu.max_mhz is not None:
            parts.append(f"at most {cpu.max_mhz} MHz")
        elif cpu.max_share is not None:
            parts.append(f"at most {cpu.max_share:.0%} of its highest frequency")
        if parts:
            self._add(drop_ins.frequency(cpu, self._profile.name), f"processor: {', '.join(parts)}")

    def _radio(self) -> None:
        radio = self._profile.radio
        kinds = (("wifi", radio.wifi, _UNWIRED), ("bt", radio.bluetooth, _NO_BLUETOOTH))
        for overlay, is_on, pattern in kinds:
            if is_on:
                self.unwanted.append(pattern)
            elif is_on is False and self._has_firmware:
                self.config.append(f"dtoverlay=disable-{overlay}")
        off = [
            name for name, is_on in (("Wi-Fi", radio.wifi), ("Bluetooth", radio.bluetooth)) if is_on is False
        ]
        if off:
            entries = drop_ins.radios_off(wifi=radio.wifi is False, bluetooth=radio.bluetooth is False)
            self._add(entries, f"{' and '.join(off)} off")

    def _lights_and_screens(self) -> None:
        profile, ports = self._profile, self._board.ports
        displays = _MOST_DISPLAYS if ports is None else ports.hdmi
        off = tuple(f"video=HDMI-A-{number}:d" for number in range(1, max(displays, _MOST_DISPLAYS) + 1))
        if profile.hdmi is False and displays:
            self.words = off[:displays]
            self._said.append("HDMI off")
        elif profile.hdmi:
            self.unwanted_words += off
        if profile.leds is False:
            self._add(drop_ins.leds_off(), "lights of the board off")

    def _swap(self) -> None:
        settings, facts = self._profile.swap, self._facts
        if settings is None:
            return
        if settings.kind == "zram" and not facts.has_zram:
            raise BootSettingsError(
                "swap: no kernel of the image has zram, compressed memory",
                key="swap", hint="Set swap: {kind: none}, or {kind: file, size_mb: ...}",
            )  # fmt: skip
        entries = drop_ins.other_swaps_off(facts.other_swaps, rpi_swap=facts.has_rpi_swap)
        entries += drop_ins.swap(settings, self._profile.name)
        size = f", {settings.size_mb} MB" if settings.size_mb else ""
        size = f", {settings.share:.0%} of the memory" if settings.share else size
        self._add(entries, f"swap: {settings.kind}{size}")

    def _system(self, ntp: Sequence[str]) -> None:
        profile, facts = self._profile, self._facts
        if profile.watchdog is not None:
            longest_s = self._board.boot.watchdog_max_s if self._board.boot is not None else None
            state = f"{profile.watchdog.timeout_s} s" if profile.watchdog.enabled else "off"
            self._add(drop_ins.watchdog(profile.watchdog, longest_s), f"hardware watchdog: {state}")
            if self._has_firmware and profile.watchdog.enabled:
                self.config.append("dtparam=watchdog=on")
        if profile.log is not None:
            self._add(
                drop_ins.journal(profile.log), f"journal: {profile.log.storage}, {profile.log.max_mb} MB"
            )
        if profile.network.wired is False:
            self._add(drop_ins.wired_off(), "wired network off")
        servers = profile.network.ntp
        if servers and not ntp:
            if facts.time is None:
                raise BootSettingsError(
                    "network.ntp: the image has neither systemd-timesyncd nor chrony, which would ask for the time",
                    key="network.ntp",
                )
            entries = drop_ins.time_servers(servers, with_chrony=facts.time == "chrony")
            self._add(entries, f"time from {', '.join(servers)}")

    def _read_only(self) -> None:
        profile, facts = self._profile, self._facts
        if not profile.read_only_root:
            return
        log, swap = profile.log, profile.swap
        reasons = {
            "state_device": profile.state_device != CARD
            and f"the agent's state goes into a partition of the card alone, and not to {profile.state_device}",
            "log": (log is None or log.storage == "persistent")
            and "the journal cannot be kept on a root that is only read; say log: {storage: volatile}",
            "swap": swap is not None
            and swap.kind == "file"
            and "a swap file cannot lie on a root that is only read",
            "read_only_root": (facts.has_overlay is False and "no kernel of the image has overlayfs")
            or (
                (facts.fstab is None or not read_only.has_root_line(facts.fstab))
                and "the image's /etc/fstab does not say how its root is mounted"
            ),
        }
        for key, why in reasons.items():
            if why:
                raise BootSettingsError(
                    f"read_only_root: {why}",
                    key=key,
                    hint="Change that, or take read_only_root out of the profile",
                )
        text = read_only.fstab_with_state(facts.fstab or "")
        self.root_edits += [Entry("/etc/fstab", content=_bytes(text)), *read_only.mount_entries()]
        # It would want the root to be the last partition.
        self.unwanted_words += ("resize",)
        self._add(
            read_only.read_only_entries(),
            f"root read-only from the second start on; the agent's state in a partition '{read_only.STATE_LABEL}'",
        )


def _config(facts: BootFacts, wanted: _Wanted) -> str | None:
    """The new config.txt; ``None`` where it stays as it is."""
    if facts.config is None:
        return None
    for line in wanted.config:
        if len(line) > MAX_CONFIG_LINE:
            raise BootSettingsError(
                f"config.txt: the firmware reads {MAX_CONFIG_LINE} characters of a line, and '{line[:40]}...' has more",
                key="boot",
            )
    text = facts.config
    for pattern in wanted.unwanted:
        text = boot_text.without_lines(text, pattern)
    # The parameters first: after an overlay they would be the overlay's.
    params = [line for line in wanted.config if line.startswith("dtparam=")]
    others = [line for line in wanted.config if not line.startswith("dtparam=")]
    lines = ["[all]", "dtoverlay=", *params, *others] if wanted.config else []
    text = boot_text.with_block(text, lines)
    return text if text != facts.config else None
