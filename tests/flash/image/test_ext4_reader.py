"""Reading ext4 from its blocks, and what crafted ones are refused with."""

from __future__ import annotations

import random
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeslm.errors import TreeError
from edgeslm.flash.image.ext4 import Ext4Tree
from edgeslm.flash.image.ext4_reader import ROOT_INODE, Ext4Reader
from edgeslm.flash.image.ext4_superblock import Superblock, read_superblock
from edgeslm.flash.image.window import Window
from tests.flash.image.conftest import MIB, STAMP_S, Workshop, lay

Tool = Callable[..., str]
RNG = random.Random(9)
FILES = {
    "a": b"",
    "b": b"text",
    "dir/large": RNG.randbytes(700_001),
    "dir/sub/zeros": bytes(90_000),
    **{f"many/{'n' * (number % 90)}{number}": str(number) for number in range(400)},
}
PLAIN = ["-b", "1024", "-I", "256", "-O", "^metadata_csum,^has_journal,^64bit"]
FORMS: dict[str, list[str]] = {
    "default": [],
    "4k": ["-b", "4096"],
    "2k-bigalloc-off": ["-b", "2048"],
    "meta-bg": ["-b", "1024", "-O", "meta_bg,^resize_inode"],
    "plain": PLAIN,
    "mapped": ["-b", "1024", "-O", "^extents,^64bit,^metadata_csum"],
    "small-inodes": ["-I", "128"],
}


def sparse(path: Path, stretches: dict[int, bytes], size: int) -> None:
    with path.open("wb") as stream:
        for at, data in stretches.items():
            stream.seek(at)
            stream.write(data)
        stream.truncate(size)


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_every_form_is_read_as_mke2fs_laid_it(workshop: Workshop, options: list[str]) -> None:
    tree = Ext4Tree(workshop.ext4(FILES, options=options))
    for name, content in FILES.items():
        assert tree.read(f"/{name}", max_bytes=MIB) == (
            content if isinstance(content, bytes) else content.encode()
        )
    assert len(tree.names("/many")) == 400
    assert tree.names("/dir") == ("large", "sub")
    assert tree.stat("/lost+found") is not None


@pytest.mark.parametrize("options", [FORMS["default"], FORMS["mapped"]], ids=["extents", "mapped"])
def test_holes_and_files_in_many_pieces_read_as_they_were(workshop: Workshop, options: list[str]) -> None:
    stretches = {at * 7000: RNG.randbytes(1500) for at in range(0, 600, 3)}
    stretches[3_000_000] = b"far"
    sparse(lay(workshop.directory / "root.img.seed", {}) / "holes", stretches, 5_000_000)
    tree = Ext4Tree(workshop.ext4({}, options=options))
    expected = (workshop.directory / "root.img.seed/holes").read_bytes()
    assert tree.read("/holes", max_bytes=5_000_000) == expected


def test_reserved_space_that_was_never_written_reads_as_zeros(workshop: Workshop, tool: Tool) -> None:
    window = workshop.ext4({"f": b"\1" * 5000}, options=["-b", "1024"])
    tool("debugfs", "-w", "-f", "/dev/stdin", window.path, stdin="fallocate /f 5 60\nsif /f size 60000\n")
    assert Ext4Tree(window).read("/f", max_bytes=60_000) == (b"\1" * 5000).ljust(60_000, b"\0")


def test_the_superblock_says_what_dumpe2fs_says(workshop: Workshop, tool: Tool) -> None:
    window = workshop.ext4(FILES)
    said = dict(
        line.split(":", 1) for line in tool("dumpe2fs", "-h", window.path).splitlines() if ":" in line
    )
    fs = read_superblock(window)
    assert fs.blocks == int(said["Block count"])
    assert fs.free_blocks == int(said["Free blocks"])
    assert fs.reserved_blocks == int(said["Reserved block count"])
    assert fs.free_inodes == int(said["Free inodes"])
    assert fs.block_bytes == int(said["Block size"])
    assert (fs.written_s, fs.needs_repair) == (STAMP_S, False)


def numbers(text: str) -> set[int]:
    """The numbers in a list of dumpe2fs, such as ``3-5, 9``."""
    found = set()
    for stretch in filter(None, text.strip().split(", ")):
        first, _, last = stretch.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_free_ranges_hold_nothing_that_dumpe2fs_calls_taken(
    workshop: Workshop, tool: Tool, options: list[str]
) -> None:
    window = workshop.ext4(FILES, options=options)
    fs = read_superblock(window)
    free: set[int] = set()
    idle: set[int] = set()
    for group in re.split(r"\nGroup (?=\d)", tool("dumpe2fs", window.path))[1:]:
        free |= numbers(re.search(r"Free blocks: (.*)", group)[1])  # type: ignore[index]
        table = numbers(re.search(r"Inode table at ([\d-]+)", group)[1])  # type: ignore[index]
        unused = re.search(r"(\d+) unused inodes", group)
        if unused and "ITABLE_ZEROED" not in group:
            used = -(-(fs.inodes_per_group - int(unused[1])) * fs.inode_bytes // fs.block_bytes)
            idle |= set(sorted(table)[used:])
    ours = list(Ext4Reader(window).free_ranges())
    blocks = {at // fs.block_bytes for start, end in ours for at in range(start, end, fs.block_bytes)}
    assert ours == sorted(ours)
    assert blocks <= free | idle
    assert len(blocks) > 0.9 * len(free)
    assert idle <= blocks


# --- crafted ------------------------------------------------------------------------------------------------------


@pytest.fixture
def crafted(workshop: Workshop, patch: Callable[[Path, int, bytes], None]) -> Callable[..., Window]:
    """A small file system in which fields of the superblock are overwritten."""
    window = workshop.ext4(FILES, size_mib=4, options=PLAIN)

    def change(**fields: tuple[int, str, int]) -> Window:
        for at, form, value in fields.values():
            patch(window.path, 1024 + at, struct.pack(form, value))
        return window

    return change


IMPOSSIBLE: dict[str, tuple[int, str, int, str]] = {
    "no magic": (56, "<H", 0, "no ext4"),
    "blocks of 2 TiB": (24, "<I", 31, "sizes"),
    "blocks behind the end": (4, "<I", 2**31, "blocks of 1024 bytes in"),
    "no blocks": (4, "<I", 0, "blocks of"),
    "groups of no blocks": (32, "<I", 0, "groups"),
    "groups of one block": (32, "<I", 1, "groups"),
    "groups without inodes": (40, "<I", 0, "groups"),
    "more inodes than groups hold": (0, "<I", 2**32 - 1, "groups"),
    "inodes of 3 bytes": (88, "<H", 3, "sizes"),
    "inodes larger than blocks": (88, "<H", 4096, "sizes"),
    "first block far away": (20, "<I", 2**32 - 1, "sizes"),
    "unknown feature": (96, "<I", 0x80000000, "features that are not known"),
    "clusters": (100, "<I", 0x200, "clusters"),
    "encrypted": (96, "<I", 0x10000, "features that are not known"),
    "files within inodes": (96, "<I", 0x8000, "features that are not known"),
}


@pytest.mark.parametrize(("at", "form", "value", "why"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_superblock_is_refused_by_name(
    crafted: Callable[..., Window], at: int, form: str, value: int, why: str
) -> None:
    with pytest.raises(TreeError, match=why):
        read_superblock(crafted(field=(at, form, value)))


def test_a_window_too_small_for_a_superblock_holds_none(workshop: Workshop) -> None:
    (workshop.directory / "tiny").write_bytes(bytes(2000))
    with pytest.raises(TreeError, match="no ext4"):
        read_superblock(workshop.window(workshop.directory / "tiny"))


class Surgeon:
    """Overwrites inodes and blocks of a file system, without regard for sense."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.fs: Superblock = read_superblock(window)
        self.reader = Ext4Reader(window)

    def write(self, at: int, data: bytes) -> None:
        with self.window.path.open("r+b") as stream:
            stream.seek(at)
            stream.write(data)

    def inode_at(self, number: int) -> int:
        group, index = divmod(number - 1, self.fs.inodes_per_group)
        table = self.reader._inode_table(group)
        return table * self.fs.block_bytes + index * self.fs.inode_bytes

    def inode(self, number: int, at: int, data: bytes) -> None:
        self.write(self.inode_at(number) + at, data)

    def number(self, path: str) -> int:
        found = self.reader.find(path)
        assert found is not None
        return found.number

    def first_block(self, path: str) -> int:
        found = self.reader.find(path)
        assert found is not None
        return next(self.reader._runs(found))[1]

    def tree(self) -> Ext4Tree:
        return Ext4Tree(self.window)


@pytest.fixture
def surgeon(crafted: Callable[..., Window]) -> Surgeon:
    return Surgeon(crafted())


def extents(*entries: bytes, depth: int = 0, count: int | None = None) -> bytes:
    head = struct.pack("<HHHHI", 0xF30A, len(entries) if count is None else count, 340, depth, 0)
    return head + b"".join(entries)


def leaf(logical: int, place: int, length: int) -> bytes:
    return struct.pack("<IHHI", logical, length, place >> 32, place & 0xFFFFFFFF)


def branch(logical: int, place: int) -> bytes:
    return struct.pack("<IIHH", logical, place & 0xFFFFFFFF, place >> 32, 0)


def test_a_directory_that_holds_itself_is_told_before_it_is_walked_forever(surgeon: Surgeon) -> None:
    block = surgeon.first_block("/dir/sub") * 1024
    names = struct.pack("<IHBB", surgeon.number("/dir"), 1024, 4, 2) + b"loop"
    surgeon.write(block, names)
    tree = surgeon.tree()
    assert tree.names("/dir/sub") == ("loop",)
    started = time.monotonic()
    with pytest.raises(TreeError, match="circle"):
        tree.read("/dir/sub" + "/loop/sub" * 500 + "/x", max_bytes=1)
    assert time.monotonic() - started < 5


def test_links_that_make_a_path_endless_end(surgeon: Surgeon) -> None:
    tree = surgeon.tree()
    long = "sub/../" * 500 + "sub"
    surgeon_tree = Ext4Tree(tree.window, time_s=STAMP_S)
    surgeon_tree.write([])
    number = surgeon.number("/b")
    block = surgeon.first_block("/b") * 1024
    target = ("../dir/" + long + "/../../b").encode()[:4000]
    room = surgeon.first_block("/dir/large") * 1024
    surgeon.write(block, b"")
    surgeon.write(room, target)
    surgeon.inode(number, 0, struct.pack("<H", 0o120777))
    surgeon.inode(number, 4, struct.pack("<I", len(target)))
    surgeon.inode(number, 40, extents(leaf(0, room // 1024, 4)))
    started = time.monotonic()
    with pytest.raises(TreeError, match=r"circle|too long"):
        surgeon.tree().read("/b", max_bytes=1)
    assert time.monotonic() - started < 20


HOSTILE_AREAS: dict[str, tuple[bytes, str]] = {
    "no extents": (bytes(60), "extents are damaged"),
    "too deep": (extents(branch(0, 100), depth=6), "extents are damaged"),
    "more than fit": (extents(leaf(0, 100, 1), count=9), "more extents than there is room for"),
    "outside": (extents(leaf(0, 2**40, 1)), "lie outside"),
    "reaching out": (extents(leaf(0, 4000, 32768)), "lie outside"),
    "reserved and outside": (extents(leaf(0, 4000, 32769), leaf(0, 10, 1)), "overlap"),
    "nowhere": (extents(leaf(0, 0, 1)), "nothing can lie"),
    "nothing": (extents(leaf(0, 100, 0), leaf(0, 100, 0)), "overlap"),
    "overlapping": (extents(leaf(0, 100, 5), leaf(3, 200, 5)), "overlap"),
    "backwards": (extents(leaf(9, 100, 1), leaf(0, 200, 1)), "overlap"),
    "branch outside": (extents(branch(0, 2**40), depth=1), "is asked for"),
    "branch to the boot block": (extents(branch(0, 0), depth=1), "is asked for"),
    "branch to no node": (extents(branch(0, 1), depth=1), "extents are damaged"),
}


@pytest.mark.parametrize(("area", "why"), HOSTILE_AREAS.values(), ids=HOSTILE_AREAS)
def test_a_file_with_impossible_extents_is_refused_by_name(surgeon: Surgeon, area: bytes, why: str) -> None:
    surgeon.inode(surgeon.number("/dir/large"), 40, area.ljust(60, b"\0")[:60])
    with pytest.raises(TreeError, match=why):
        surgeon.tree().read("/dir/large", max_bytes=MIB)


@pytest.mark.parametrize("written", [True, False])
def test_extents_that_branch_into_themselves_end_soon(surgeon: Surgeon, written: bool) -> None:
    block = surgeon.first_block("/dir/large")
    surgeon.inode(surgeon.number("/dir/large"), 40, extents(branch(0, block), branch(0, block), depth=5))
    for depth in range(4, 0, -1):
        surgeon.write((block + 4 - depth) * 1024, extents(*[branch(0, block + 5 - depth)] * 80, depth=depth))
    length = 1 if written else 32769
    surgeon.write((block + 4) * 1024, extents(*(leaf(at, 100, length) for at in range(80))))
    started = time.monotonic()
    with pytest.raises(TreeError):
        surgeon.tree().read("/dir/large", max_bytes=MIB)
    assert time.monotonic() - started < 5


def test_empty_branches_without_end_end(surgeon: Surgeon) -> None:
    block = surgeon.first_block("/dir/large")
    surgeon.inode(surgeon.number("/dir/large"), 40, extents(*[branch(0, block)] * 4, depth=5))
    for depth in range(4, 0, -1):
        surgeon.write((block + 4 - depth) * 1024, extents(*[branch(0, block + 5 - depth)] * 80, depth=depth))
    surgeon.write((block + 4) * 1024, extents())
    started = time.monotonic()
    with pytest.raises(TreeError, match="extents take more than"):
        surgeon.tree().read("/dir/large", max_bytes=MIB)
    assert time.monotonic() - started < 20


def test_a_file_that_says_it_is_huge_is_not_read(surgeon: Surgeon) -> None:
    surgeon.inode(surgeon.number("/b"), 108, struct.pack("<I", 0xFFFF))
    with pytest.raises(TreeError, match="more than"):
        surgeon.tree().read("/b", max_bytes=MIB)


def test_a_directory_that_says_it_is_huge_is_refused(surgeon: Surgeon) -> None:
    surgeon.inode(surgeon.number("/dir"), 4, struct.pack("<I", 0xFFFFFFFF))
    with pytest.raises(TreeError, match="a directory of"):
        surgeon.tree().names("/dir")


@pytest.mark.parametrize("size", [0, 5000, 2**31])
def test_a_link_of_no_possible_length_is_refused(surgeon: Surgeon, size: int) -> None:
    number = surgeon.number("/b")
    surgeon.inode(number, 0, struct.pack("<H", 0o120777))
    surgeon.inode(number, 4, struct.pack("<I", size))
    with pytest.raises(TreeError, match="length"):
        surgeon.tree().stat("/b")


NAMES: dict[str, bytes] = {
    "length of zero": struct.pack("<IHBB", 12, 0, 1, 1) + b"x",
    "length that is no word": struct.pack("<IHBB", 12, 13, 1, 1) + b"x",
    "longer than its block": struct.pack("<IHBB", 12, 2048, 1, 1) + b"x",
    "name longer than its entry": struct.pack("<IHBB", 12, 12, 200, 1) + b"x",
    "four bytes at the end": struct.pack("<IHBB", 12, 1020, 1, 1) + b"x",
    "slash": struct.pack("<IHBB", 12, 1024, 3, 1) + b"a/b",
    "no name": struct.pack("<IHBB", 12, 1024, 0, 1),
    "zero in a name": struct.pack("<IHBB", 12, 1024, 3, 1) + b"a\0b",
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_a_directory_with_impossible_names_is_refused(surgeon: Surgeon, names: bytes) -> None:
    surgeon.write(surgeon.first_block("/dir/sub") * 1024, names)
    with pytest.raises(TreeError, match="name"):
        surgeon.tree().names("/dir/sub")


@pytest.mark.parametrize("number", [0xFFFFFFFF, 100_000])
def test_a_name_that_leads_to_no_inode_is_refused(surgeon: Surgeon, number: int) -> None:
    surgeon.write(surgeon.first_block("/dir/sub") * 1024, struct.pack("<IHBB", number, 1024, 1, 1) + b"x")
    with pytest.raises(TreeError, match="none of this number"):
        surgeon.tree().stat("/dir/sub/x")


def test_a_name_that_leads_to_a_deleted_file_is_refused(surgeon: Surgeon) -> None:
    surgeon.inode(surgeon.number("/b"), 26, struct.pack("<H", 0))
    with pytest.raises(TreeError, match="counts none"):
        surgeon.tree().stat("/b")


@pytest.mark.parametrize("place", [0, 2**32 - 1, 4095])
def test_a_table_of_inodes_that_lies_outside_or_is_cut_short_is_refused(surgeon: Surgeon, place: int) -> None:
    surgeon.write(2048 + 8, struct.pack("<I", place))
    with pytest.raises(TreeError):
        surgeon.tree().names("/many")


def test_a_file_system_cut_short_is_refused(surgeon: Surgeon) -> None:
    path = surgeon.window.path
    with path.open("r+b") as stream:
        stream.truncate(surgeon.first_block("/dir/large") * 1024 + 100_000)
    with pytest.raises(TreeError, match="blocks of 1024 bytes in"):
        Ext4Tree(Window(path, surgeon.window.descriptor, 0, MIB))
    with pytest.raises(TreeError, match="ends within"):
        Ext4Tree(surgeon.window).read("/dir/large", max_bytes=MIB)


def test_bytes_that_lie_in_the_inode_or_are_encrypted_are_refused(surgeon: Surgeon) -> None:
    for flag in (0x800, 0x10000000):
        surgeon.inode(surgeon.number("/b"), 32, struct.pack("<I", flag))
        with pytest.raises(TreeError, match="not known here"):
            surgeon.tree().read("/b", max_bytes=MIB)


def test_the_root_that_is_no_directory_is_refused(surgeon: Surgeon) -> None:
    surgeon.inode(ROOT_INODE, 0, struct.pack("<H", 0o100644))
    with pytest.raises(TreeError):
        surgeon.tree().names("/")
    assert surgeon.tree().stat("/etc") is None
