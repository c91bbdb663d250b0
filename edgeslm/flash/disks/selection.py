"""Which disks may be written, and what speaks against the others. Pure.

What always holds: a disk that anything of this machine stands on is refused, and so is one that is built in: a card in
a reader and a stick or drive on a cable are written, nothing else. No option lifts that. What lsblk does not show (a
file system of another machine, ZFS) the kernel's exclusive open refuses (:mod:`edgeslm.flash.disks.target`).

Left to others: asking lsblk (:mod:`edgeslm.flash.disks.lsblk`), asking the person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgeslm.errors import DiskRefusedError
from edgeslm.flash.disks.lsblk import BlockDevice

DEFAULT_MAX_BYTES = 512 * 10**9
"""Cards are smaller; what is larger is more likely somebody's backup."""

Code = Literal[
    "system", "in-use", "mounted", "member", "virtual", "partition", "kind", "built-in", "read-only", "empty",
    "too-small", "too-large",
]  # fmt: skip
_SYSTEM_POINTS = ("/boot", "/usr", "/var", "/home", "/opt", "/etc", "/nix", "/snap", "/srv", "/root")
_BUILT_UPON = ("lvm", "crypt", "raid", "linear", "md", "mpath", "dmraid", "dm", "bcache", "vdo", "multipath")
_MEMBERS = frozenset(
    {"LVM2_member", "LVM1_member", "linux_raid_member", "isw_raid_member", "ddf_raid_member", "zfs_member",
     "bcache", "bcachefs", "mpath_member", "ceph_bluestore", "drbd", "VMFS_volume_member"}
)  # fmt: skip
_VIRTUAL_NAMES = ("zram", "ram", "nbd", "md", "dm-", "rbd", "drbd", "mtdblock", "ubiblock", "nullb", "pmem")
_PLUGGED = frozenset({"usb", "mmc", "ieee1394", "pcmcia", "thunderbolt"})


@dataclass(frozen=True)
class Refusal:
    """One thing that speaks against a disk.

    Attributes:
        code: what, for programs.
        text: what, for people.
    """

    code: Code
    text: str


@dataclass(frozen=True)
class Need:
    """What a disk is wanted for.

    Attributes:
        image_bytes: the image that is to fit, or ``None`` where none is named.
        max_bytes: larger ones are refused.
        loops: loop devices count as disks, to try things out.
    """

    image_bytes: int | None = None
    max_bytes: int = DEFAULT_MAX_BYTES
    loops: bool = False


@dataclass(frozen=True)
class Judged:
    """A disk and what speaks against it.

    Attributes:
        refusals: the gravest first; empty where it may be written.
    """

    device: BlockDevice
    refusals: tuple[Refusal, ...]

    @property
    def writable(self) -> bool:
        """Nothing speaks against it."""
        return not self.refusals


def judge(device: BlockDevice, need: Need, siblings: Sequence[BlockDevice] = ()) -> Judged:
    """What speaks against writing `device`.

    Args:
        siblings: the other devices of the machine: soldered storage shows itself by its boot areas.
    """
    kind = _kind(device, need)
    # What is no card is not also too large for one.
    place = [] if kind or device.kind == "loop" else _place(device, siblings)
    medium = [] if kind or place else _medium(device, need)
    return Judged(device, (*_uses(device), *kind, *place, *medium))


def judge_all(devices: Sequence[BlockDevice], need: Need) -> tuple[Judged, ...]:
    """All devices at the top, judged, in lsblk's order."""
    return tuple(judge(device, need, devices) for device in devices)


def choose(devices: Sequence[BlockDevice], path: str, need: Need) -> BlockDevice:
    """The disk at `path`, where nothing speaks against it.

    Args:
        path: in ``/dev``, links resolved by the caller.

    Raises:
        DiskRefusedError: there is none, or it may not be written.
    """
    for judged in judge_all(devices, need):
        if path in {judged.device.device, f"/dev/{judged.device.short_name}"}:
            if judged.writable:
                return judged.device
            raise DiskRefusedError(
                f"{path} is not written: " + "; ".join(refusal.text for refusal in judged.refusals),
                device=path,
                reasons=tuple(refusal.code for refusal in judged.refusals),
                hint=_hint(judged.refusals[0].code),
            )
        for part in judged.device.family():
            if part is not judged.device and part.device == path:
                raise DiskRefusedError(
                    f"{path} is a part of {judged.device.device}, and an image is for a whole disk",
                    device=path,
                    reasons=("partition",),
                    hint=f"If that is the card, name {judged.device.device}",
                )
    raise DiskRefusedError(
        f"there is no disk {path}", device=path, hint="See which there are: edgeslm flash disks"
    )


def describe(device: BlockDevice) -> str:
    """One line about a disk: size, what is printed on it, how it is reached."""
    words = [format_size(device.size_bytes) if device.size_bytes else "no card"]
    if device.title:
        words.append(device.title)
    if reached := device.transport or ("mmc" if _names_subsystem(device, "mmc") else ""):
        words.append(reached)
    if device.serial:
        words.append(f"serial {device.serial}")
    return ", ".join(words)


def contents(device: BlockDevice) -> tuple[str, ...]:
    """What is on a disk now, a line for each part: so that its owner recognises it."""
    lines = []
    for part in device.family():
        if part is device and not part.format:
            continue
        words = [part.device, format_size(part.size_bytes), part.format or "unknown content"]
        if part.label:
            words.append(f"called {part.label!r}")
        lines.append(" ".join(words))
    return tuple(lines)


def format_size(size_bytes: int) -> str:
    """As cards are labelled: powers of ten, as ``31.9 GB``."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} bytes"


# --- what speaks against a disk ---------------------------------------------------------------------------------


def _uses(device: BlockDevice) -> list[Refusal]:
    """It serves this machine in some way."""
    found: list[Refusal] = []
    points = [(part, point) for part in device.family() for point in part.mount_points]
    system = [(part, point) for part, point in points if _is_system(point)]
    if system:
        part, point = system[0]
        what = "swap" if point == "[SWAP]" else f"{point} of this machine"
        found.append(Refusal("system", f"{part.device} is {what}"))
    elif points:
        part, point = points[0]
        found.append(Refusal("mounted", f"{part.device} is mounted at {point}"))
    upon = next((part for part in device.family() if part.kind.startswith(_BUILT_UPON)), None)
    if upon is not None:
        found.append(Refusal("in-use", f"{upon.device} ({upon.kind}) stands on it"))
    elif member := next((part for part in device.family() if part.format in _MEMBERS), None):
        found.append(Refusal("member", f"{member.device} belongs to a pool or array ({member.format})"))
    return found


def _is_system(point: str) -> bool:
    return point in {"/", "[SWAP]"} or any(
        point == place or point.startswith(f"{place}/") for place in _SYSTEM_POINTS
    )


def _kind(device: BlockDevice, need: Need) -> list[Refusal]:
    """It is no disk that one could hold in the hand."""
    if device.kind == "loop":
        return [] if need.loops else [Refusal("virtual", "a loop device: a file, and no card")]
    if device.kind == "part":
        return [Refusal("partition", "a part of a disk, and an image is for a whole one")]
    if device.kind != "disk":
        return [Refusal("kind", f"a {device.kind or 'device'} is no disk")]
    if device.subsystems == "block" or device.short_name.startswith(_VIRTUAL_NAMES):
        return [Refusal("virtual", "made by the kernel, and no card")]
    return []


def _place(device: BlockDevice, siblings: Sequence[BlockDevice]) -> list[Refusal]:
    """It is built into this machine."""
    if device.kind != "disk":
        return []
    name = device.short_name
    if any(part in name for part in ("boot", "rpmb", "gp")) and name.startswith("mmcblk"):
        return [Refusal("built-in", "an area of soldered storage")]
    # eMMC has boot areas of its own, SD cards have none; lsblk shows no other difference (JEDEC JESD84-B51, 6.2).
    if name.startswith("mmcblk") and any(one.short_name.startswith(f"{name}boot") for one in siblings):
        return [Refusal("built-in", "storage soldered to this machine (eMMC)")]
    if device.removable or device.transport in _PLUGGED or _PLUGGED & {*device.subsystems.split(":")}:
        return []
    if device.hotplug and device.transport not in {"nvme", "sata", "sas", "ata", "pcie"}:
        return []
    return [Refusal("built-in", "built into this machine, neither a card nor on a cable")]


def _names_subsystem(device: BlockDevice, name: str) -> bool:
    return name in device.subsystems.split(":")


def _medium(device: BlockDevice, need: Need) -> list[Refusal]:
    """What is in it does not do."""
    if not device.size_bytes:
        return [Refusal("empty", "no card is in the reader")]
    found = []
    if device.read_only:
        found.append(Refusal("read-only", "read-only: look at the switch on the side of the card"))
    if need.image_bytes is not None and device.size_bytes < need.image_bytes:
        short = f"{format_size(device.size_bytes)} is less than the image's {format_size(need.image_bytes)}"
        found.append(Refusal("too-small", short))
    if device.size_bytes > need.max_bytes:
        size = f"{format_size(device.size_bytes)} is more than the {format_size(need.max_bytes)} of a card"
        found.append(Refusal("too-large", size))
    return found


def _hint(code: Code) -> str:
    return {
        "system": "Choose the card: edgeslm flash disks",
        "in-use": "If it is the card after all, take down what stands on it first",
        "mounted": "If it is the card after all, unmount it first, all of its parts",
        "member": "If nothing needs it any more: wipefs --all, on the disk and its parts",
        "virtual": "Choose the card: edgeslm flash disks",
        "partition": "Name the disk, not one of its parts",
        "kind": "Choose the card: edgeslm flash disks",
        "built-in": "Put the card into a reader, or the drive into a USB case",
        "read-only": "Slide the switch towards the contacts, and put the card in again",
        "empty": "Put a card in",
        "too-small": "Take a larger card, or prepare a smaller image",
        "too-large": "If it is the right one, raise --max-size",
    }[code]
