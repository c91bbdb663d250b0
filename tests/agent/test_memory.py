from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from edgeslm.agent.memory import clean_file_mappings

_ROWS = "Size: 8 kB\nRss: {rss} kB\nAnonymous: {anonymous} kB\nVmFlags: rd mr mw me\n"


def mapping(head: str, *, rss: int = 4, anonymous: int = 0) -> str:
    return f"{head}\n{_ROWS.format(rss=rss, anonymous=anonymous)}"


@pytest.mark.parametrize(
    "head",
    [
        "1000-3000 rw-p 00000000 fe:00 12 /usr/lib/libc.so.6",
        "1000-3000 r--p 00000000 00:00 0 ",
        "1000-3000 r-xp 00000000 00:00 0          [vdso]",
        "1000-3000 rw-p 00000000 00:00 0          [heap]",
    ],
)
def test_lets_go_of_nothing_that_is_writable_or_no_file(head: str) -> None:
    assert clean_file_mappings(mapping(head)) == []


def test_lets_go_of_no_mapping_with_a_page_of_its_own() -> None:
    relocated = mapping("1000-3000 r--p 00000000 fe:00 12 /usr/lib/libc.so.6", anonymous=4)
    text = mapping("5000-9000 r-xp 00002000 fe:00 12 /usr/lib/libc.so.6", rss=12)
    heap = mapping("a000-b000 rw-p 00000000 00:00 0 [heap]")
    assert clean_file_mappings(relocated + text + heap) == [(0x5000, 0x4000, 12 * 1024)]


_PROGRAM = """
import mmap, sys
from edgeslm.agent.memory import release_startup_pages
with open(sys.argv[1], "rb") as stream:
    view = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
total = sum(view[::mmap.PAGESIZE])
released = release_startup_pages()
assert sum(view[::mmap.PAGESIZE]) == total
print(released)
"""


def test_released_pages_come_back_with_what_was_in_them(tmp_path: Path) -> None:
    model = tmp_path / "model.bin"
    model.write_bytes(bytes(range(256)) * (2**20 // 256) * 8)
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(model)], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(run.stdout) >= 8 * 2**20 - mmap.PAGESIZE
