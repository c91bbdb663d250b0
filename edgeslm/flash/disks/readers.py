"""Readers into which one card after the other is put.

What always holds: a card is offered once. It has to be taken out, or another to be put in, before its reader offers
anything again; and each is judged like any other disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from edgeslm.flash.disks.lsblk import BlockDevice
from edgeslm.flash.disks.selection import Judged, Need, judge


@dataclass
class Reader:
    """One reader, as it was seen last. Pure: whoever looks brings what lsblk says.

    Attributes:
        path: its device.
    """

    path: str
    need: Need
    _taken: tuple[object, ...] | None = field(default=None, init=False)
    _refused: tuple[object, ...] | None = field(default=None, init=False)

    def wants(self, image_bytes: int) -> None:
        """The next card is for an image of that size."""
        self.need = replace(self.need, image_bytes=image_bytes)
        self._refused = None

    def offer(self, devices: Sequence[BlockDevice]) -> Judged | None:
        """The card in it, judged; ``None`` where there is none, or nothing new.

        One that is refused comes again when something else speaks against it, or nothing: when it was unmounted.
        """
        device = next((one for one in devices if self.path in {one.device, f"/dev/{one.short_name}"}), None)
        if device is None or not device.size_bytes:
            self._taken = self._refused = None
            return None
        mark = (device.medium, device.serial, device.size_bytes, device.title)
        if mark == self._taken:
            return None
        judged = judge(device, self.need, devices)
        if judged.writable:
            self._taken, self._refused = mark, None
            return judged
        seen = (*mark, *(one.code for one in judged.refusals))
        if seen == self._refused:
            return None
        self._refused = seen
        return judged
