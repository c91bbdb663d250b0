"""The block devices of this machine, as lsblk(8) tells them.

What always holds: whatever lsblk wrote is bounded and typed here, or it is an error; its older versions wrote numbers
and truth values as text, and one mount point where there are several today. Names, labels and serial numbers come from
what is plugged in: they are data, and are shown to nobody without care.

Source: util-linux, ``lsblk -J -b -O``, versions 2.33 to 2.41.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from edgeslm.errors import DiskError

MAX_JSON_BYTES = 4 * 2**20
_MAX_CHARS = 4_096
_TIMEOUT_S = 30.0


def _flag(value: object) -> object:
    """Truth values were ``"0"`` and ``"1"`` before 2.33, and may be missing."""
    return {"0": False, "1": True, None: False}.get(value, value) if isinstance(value, str | None) else value


def _text(value: object) -> object:
    """Empty and missing are one; blanks around are how drives fill their fields."""
    return value.strip() if isinstance(value, str) else ("" if value is None else str(value))


def _points(value: object) -> object:
    """Mount points: a list with a ``null`` in it where there is none."""
    return tuple(point for point in value if point) if isinstance(value, list | tuple) else ()


_Flag = Annotated[bool, BeforeValidator(_flag)]
_Text = Annotated[str, BeforeValidator(_text), Field(max_length=_MAX_CHARS)]
_Points = Annotated[tuple[str, ...], BeforeValidator(_points), Field(max_length=10_000)]


class BlockDevice(BaseModel):
    """A disk, a part of one, or what stands on it.

    Attributes:
        name: as lsblk shows it.
        kname: as the kernel names it.
        path: in ``/dev``.
        number: major and minor, as ``8:16``.
        kind: ``disk``, ``part``, ``loop``, ``lvm``, ``crypt``, ``raid1``, ``rom`` and others.
        size_bytes: 0 where a reader holds no card.
        removable: the medium can be taken out of the drive.
        hotplug: the drive, or the medium, can be taken off.
        read_only: it cannot be written: a switch on the card, or the kernel's word.
        transport: ``usb``, ``mmc``, ``sata``, ``nvme``, or empty.
        subsystems: what the kernel reaches it through, as ``block:scsi:usb:pci``.
        block_bytes: of a logical block.
        medium: counts the media that the kernel has seen (diskseq); 0 for unknown.
        format: what it holds, such as ``ext4`` or ``LVM2_member``.
        mount_points: where it is mounted; ``[SWAP]`` for swap.
        children: parts, and what is built upon it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    name: _Text
    kname: _Text = ""
    path: _Text = ""
    number: _Text = Field(default="", alias="maj:min")
    kind: _Text = Field(default="", alias="type")
    size_bytes: Annotated[int, Field(ge=0, le=2**63)] = Field(default=0, alias="size")
    removable: _Flag = Field(default=False, alias="rm")
    hotplug: _Flag = False
    read_only: _Flag = Field(default=False, alias="ro")
    transport: _Text = Field(default="", alias="tran")
    subsystems: _Text = ""
    block_bytes: Annotated[int, Field(ge=0, le=2**24)] = Field(default=512, alias="log-sec")
    medium: Annotated[int, BeforeValidator(lambda value: value or 0)] = Field(default=0, alias="disk-seq")
    model: _Text = ""
    vendor: _Text = ""
    serial: _Text = ""
    wwn: _Text = ""
    format: _Text = Field(default="", alias="fstype")
    label: _Text = ""
    mount_point: _Text = Field(default="", alias="mountpoint")
    many_points: _Points = Field(default=(), alias="mountpoints")
    children: Annotated[tuple[BlockDevice, ...], Field(max_length=1_000)] = ()

    @property
    def device(self) -> str:
        """Its path; lsblk told none before 2.33."""
        return self.path or f"/dev/{self.kname or self.name}"

    @property
    def short_name(self) -> str:
        """What a person types to mean it, as ``sdb``."""
        return self.kname or self.name

    @property
    def mount_points(self) -> tuple[str, ...]:
        """Where it is mounted itself; see :meth:`family` for what stands on it."""
        return self.many_points or ((self.mount_point,) if self.mount_point else ())

    @property
    def title(self) -> str:
        """What is printed on it, as far as it says."""
        return " ".join(word for word in (self.vendor, self.model) if word)

    def family(self) -> Iterator[BlockDevice]:
        """Itself and everything on it."""
        yield self
        for child in self.children:
            yield from child.family()


class _Listing(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    blockdevices: Annotated[tuple[BlockDevice, ...], Field(max_length=10_000)]


def parse_lsblk(data: bytes) -> tuple[BlockDevice, ...]:
    """The devices at the top of what ``lsblk -J -b -O`` wrote, each with what stands on it.

    Raises:
        DiskError: it is not what lsblk writes.
    """
    if len(data) > MAX_JSON_BYTES:
        raise DiskError(f"lsblk tells more than {MAX_JSON_BYTES} bytes", device="")
    try:
        return _Listing.model_validate(json.loads(data)).blockdevices
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise DiskError(f"lsblk tells '{where[:200]}' in a way that is not understood", device="") from error
    except (ValueError, RecursionError) as error:
        raise DiskError(
            "lsblk tells no JSON", device="", hint="edgeslm needs util-linux 2.33 or later: lsblk --version"
        ) from error


def list_devices() -> tuple[BlockDevice, ...]:
    """The block devices of this machine; everyone may ask.

    Raises:
        DiskError: lsblk is missing or fails.
    """
    try:
        done = subprocess.run(
            ["lsblk", "-J", "-b", "-O"],
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise DiskError(
            "lsblk is not installed, so disks cannot be told apart",
            device="",
            hint="Install it: apt install util-linux",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise DiskError(
            f"lsblk did not answer within {_TIMEOUT_S:g} s", device="", hint="A drive may hang: unplug it"
        ) from error
    # 32 means that nothing was found, 64 that some devices went away meanwhile.
    if done.returncode not in {0, 32, 64}:
        said = done.stderr.decode(errors="replace").strip()[:200]
        raise DiskError(f"lsblk failed: {said or f'exit code {done.returncode}'}", device="")
    return parse_lsblk(done.stdout) if done.stdout.strip() else ()
