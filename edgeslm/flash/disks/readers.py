"""Readers into which one card after the other is put.

What always holds: a card is offered once. It has to be taken out, or another to be put in, before its reader offers
anything again; and each is judged like any other disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
    _used: tuple[object, ...] | None = field(default=None, init=False)

    def offer(self, devices: Sequence[BlockDevice]) -> Judged | None:
        """The card in it, judged; ``None`` where there is none, or the one that was offered before."""
        device = next((one for one in devices if self.path in {one.device, f"/dev/{one.short_name}"}), None)
        if device is None or not device.size_bytes:
            self._used = None
            return None
        mark = (device.medium, device.serial, device.size_bytes, device.title)
        if mark == self._used:
            return None
        self._used = mark
        return judge(device, self.need, devices)
