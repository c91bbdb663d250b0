"""Which file system lies in a partition, told by its content."""

from __future__ import annotations

from edgeslm.flash.image.window import Window

_MARKS = (
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"XFSB", "XFS"),
    (0, b"hsqs", "SquashFS"),
    (1024, b"\x10\x20\xf5\xf2", "F2FS"),
    (1024, b"\xe2\xe1\xf5\xe0", "EROFS"),
    (1080, b"\x53\xef", "ext4"),
    (4086, b"SWAPSPACE2", "swap"),
    (65600, b"_BHRfS_M", "Btrfs"),
)
_HEAD_BYTES = 65608


def probe(window: Window) -> str | None:
    """The name of the file system in `window`; ``None`` where it is none that is known.

    Raises:
        TreeError: the image cannot be read.
    """
    head = window.read(0, min(_HEAD_BYTES, window.size_bytes))
    if head[510:512] == b"\x55\xaa" and b"FAT" in (head[54:57], head[82:85]):
        return "FAT"
    return next((name for at, mark, name in _MARKS if head[at : at + len(mark)] == mark), None)
