"""Facts that tell one machine from another, read from the kernel: they show up copies of a device's key.

What always holds: nothing here fails for lack of a fact; a board without a serial number has none.

Sources: proc(5) for ``boot_id``; machine-id(5), which asks that the identifier leave the machine only hashed; the
device tree's ``serial-number`` (Devicetree Specification 0.4, section 2.3: a property of the root node), which the
Raspberry Pi firmware fills with the SoC's serial.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from edgeslm.files import read_bounded, replace_file
from edgeslm.schema.enrol import Machine

_SERIALS = ("proc/device-tree/serial-number", "sys/class/dmi/id/product_serial")
_BOOT_ID = "proc/sys/kernel/random/boot_id"
_MACHINE_ID = "etc/machine-id"
_MAX_BYTES = 512
_NO_SERIALS = frozenset({"none", "default string", "to be filled by o.e.m.", "system serial number"})
"""What firmware says when it has no serial number; 0 in any length as well."""


def read_machine(board: str | None, counter: Path, *, root: Path = Path("/")) -> Machine:
    """What this machine is.

    Args:
        board: its board, as far as it is known.
        counter: file that counts boots; it is written at the first call after each boot.
        root: of the file system to look at.
    """
    boot_id = _read(root / _BOOT_ID)
    machine_id = _read(root / _MACHINE_ID)
    return Machine(
        board=board,
        serial=next((serial for name in _SERIALS if (serial := _serial(root / name))), None),
        machine_id=None
        if machine_id is None
        else hashlib.sha256(f"edgeslm:{machine_id}".encode()).hexdigest(),
        boot_id=boot_id,
        boots=_count_boots(counter, boot_id),
    )


def _read(path: Path) -> str | None:
    """The file's text, printable and bounded; ``None`` where there is none."""
    try:
        text = read_bounded(path, _MAX_BYTES)[:128].rstrip(b"\0").decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if text and text.isprintable() else None


def _serial(path: Path) -> str | None:
    text = _read(path)
    return None if text is None or text.lower() in _NO_SERIALS or not text.strip("0 ") else text


def _count_boots(counter: Path, boot_id: str | None) -> int:
    last_id, boots = None, 0
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads(read_bounded(counter, _MAX_BYTES))
        last_id, boots = found["boot_id"], max(0, int(found["boots"]))
    if boots > 0 and last_id == boot_id:
        return boots
    try:
        replace_file(counter, json.dumps({"boot_id": boot_id, "boots": boots + 1}).encode(), mode=0o600)
    except (
        OSError
    ):  # a full card: the count is a hint, no reason to stay off line, and wrong is worse than none
        return 0
    return boots + 1
