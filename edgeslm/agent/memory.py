"""Keeps the agent's resident memory near what answering prompts needs.

Both functions ask the C library or the kernel for something that changes no behaviour; where it is not to be had,
nothing happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from pathlib import Path

_M_ARENA_MAX = -8  # malloc.h
_MADV_DONTNEED = 4  # madvise(2)
_SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-.. [0-9a-f]+ [0-9a-f:]+ [1-9]\d* +/")


def share_one_heap() -> None:
    """Let all threads allocate from one heap: glibc gives each its own, which keeps memory that others lack.

    Our threads take turns rather than compete, so nothing is lost.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def release_startup_pages(smaps: Path = _SMAPS) -> int:
    """Unmap the pages of libraries and models that only start-up touched; returns how many bytes.

    Loading touches some 25 MB of program text that no prompt ever needs again. The pages stay in the kernel's page
    cache, first in line for whoever needs memory, and one that is needed after all comes back by a minor fault.
    Only mappings of files of which this process has no page of its own (``Anonymous: 0``) are let go, so nothing
    can be lost.
    """
    try:
        mappings = clean_file_mappings(smaps.read_text("utf-8", "surrogateescape"))
        madvise = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return 0
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return sum(
        resident_bytes
        for start, size_bytes, resident_bytes in mappings
        if madvise(start, size_bytes, _MADV_DONTNEED) == 0
    )


def clean_file_mappings(smaps: str) -> list[tuple[int, int, int]]:
    """Start, size and resident bytes of each read-only file mapping in `smaps` without a page of our own.

    Source: proc(5), ``/proc/pid/smaps``.
    """
    found = []
    mapping: re.Match[str] | None = None
    resident_bytes = 0
    for line in smaps.splitlines():
        if (start := _MAPPING.match(line)) is not None or "-" in line.split(" ", 1)[0]:
            mapping = start
        elif line.startswith("Rss:"):
            resident_bytes = int(line.split()[1]) * 1024
        elif line.startswith("Anonymous:") and mapping is not None and line.split()[1] == "0":
            first, end = int(mapping[1], 16), int(mapping[2], 16)
            found.append((first, end - first, resident_bytes))
    return found
