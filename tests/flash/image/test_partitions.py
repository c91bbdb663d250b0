"""Partition tables, as sfdisk writes them and as a broken or hostile image has them."""

from __future__ import annotations

import binascii
import itertools
import json
import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import PartitionError
from edgeslm.flash.image.partitions import SECTOR, Partition, grow_last, read_table
from edgeslm.flash.image.window import Window

MIB = 2**20
Tool = Callable[..., str]
Look = Callable[[Path], Window]


@pytest.fixture
def look() -> Iterator[Look]:
    opened = []

    def window(path: Path) -> Window:
        stream = path.open("rb")
        opened.append(stream)
        return Window(path, stream.fileno(), 0, path.stat().st_size)

    yield window
    for stream in opened:
        stream.close()


def make(tool: Tool, path: Path, script: str, size: int = 64 * MIB) -> Path:
    with path.open("wb") as stream:
        stream.truncate(size)
    tool("sfdisk", "-q", path, stdin=script)
    return path


def sfdisk(tool: Tool, path: Path) -> list[tuple[int, int, int]]:
    """What sfdisk reads: number, start and size in bytes."""
    table = json.loads(tool("sfdisk", "--json", path))["partitiontable"]
    return [
        (int(each["node"].removeprefix(str(path))), each["start"] * SECTOR, each["size"] * SECTOR)
        for each in table["partitions"]
    ]


def ours(partitions: Sequence[Partition]) -> list[tuple[int, int, int]]:
    return [(each.number, each.start_bytes, each.size_bytes) for each in partitions]


SCRIPTS = {
    "mbr": "label: dos\nlabel-id: 0xdeadbeef\nstart=4MiB, size=8MiB, type=c\nstart=12MiB, type=83\n",
    "mbr-gap": "label: dos\n2: start=30MiB, size=8MiB, type=83\n4: start=4MiB, size=8MiB, type=c\n",
    "mbr-logical": "label: dos\nstart=1MiB, size=8MiB, type=c\nstart=10MiB, size=40MiB, type=5\n"
    "start=11MiB, size=5MiB\nstart=20MiB, size=5MiB\nstart=30MiB, size=5MiB\n4: start=52MiB, size=4MiB\n",
    "gpt": "label: gpt\nlabel-id: 11111111-2222-4333-8444-555555555555\nstart=4MiB, size=8MiB, name=boot\n"
    'start=12MiB, name="root élan"\n',
    "gpt-backwards": "label: gpt\n1: start=30MiB, size=8MiB\n15: start=4MiB, size=8MiB, type=uefi\n",
    "gpt-many": "label: gpt\ntable-length: 256\nstart=4MiB, size=8MiB\n",
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_partitions_are_those_that_sfdisk_reads(tmp_path: Path, tool: Tool, look: Look, script: str) -> None:
    path = make(tool, tmp_path / "disk.img", script)
    table = read_table(look(path))
    known = [each for each in sfdisk(tool, path) if not ("type=5" in script and each[0] == 2)]
    assert ours(table.partitions) == known
    assert table.kind == ("gpt" if "gpt" in script else "mbr")
    assert table.image_bytes == 64 * MIB


def test_identities_and_names_are_read(tmp_path: Path, tool: Tool, look: Look) -> None:
    mbr = read_table(look(make(tool, tmp_path / "mbr", SCRIPTS["mbr"])))
    gpt = read_table(look(make(tool, tmp_path / "gpt", SCRIPTS["gpt"])))
    assert mbr.disk_id == "deadbeef"
    assert [each.type for each in mbr.partitions] == ["0c", "83"]
    assert gpt.disk_id == "11111111-2222-4333-8444-555555555555"
    assert [each.name for each in gpt.partitions] == ["boot", "root élan"]


@pytest.mark.parametrize("name", ["mbr", "mbr-gap", "gpt", "gpt-backwards", "gpt-many"])
def test_the_last_partition_grows_as_sfdisk_would_have_it(
    tmp_path: Path, tool: Tool, look: Look, name: str
) -> None:
    path = make(tool, tmp_path / "disk.img", SCRIPTS[name])
    table = read_table(look(path))
    last = max(table.partitions, key=lambda each: each.start_bytes)
    grown, patches = grow_last(table, last, 128 * MIB, str(path))
    with path.open("r+b") as stream:
        stream.truncate(128 * MIB)
        for at, data in patches:
            stream.seek(at)
            stream.write(data)
    assert "No errors detected" in tool("sfdisk", "--verify", path)
    read = read_table(look(path))
    assert (read.partitions, read.disk_id) == (grown.partitions, table.disk_id)
    assert ours(read.partitions) == sfdisk(tool, path)
    after = next(each for each in read.partitions if each.number == last.number)
    assert after.start_bytes == last.start_bytes
    assert after.end_bytes == 128 * MIB - (0 if table.kind == "mbr" else after_gpt(table.head))
    others = [each for each in table.partitions if each.number != last.number]
    assert [each for each in read.partitions if each.number != last.number] == others
    assert patches[-1][0] == 0


def after_gpt(head: Sequence[bytes]) -> int:
    return len(head[2]) + SECTOR


def test_both_headers_of_a_grown_gpt_are_whole_and_nothing_is_left_at_the_old_place(
    tmp_path: Path, tool: Tool, look: Look
) -> None:
    path = make(tool, tmp_path / "disk.img", SCRIPTS["gpt"])
    table = read_table(look(path))
    _, patches = grow_last(table, table.partitions[-1], 128 * MIB, str(path))
    with path.open("r+b") as stream:
        stream.truncate(128 * MIB)
        for at, piece in patches:
            stream.seek(at)
            stream.write(piece)
    with path.open("rb") as stream:
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    places = []
    for at in (SECTOR, 128 * MIB - SECTOR):
        size, crc = struct.unpack_from("<II", data, at + 12)
        header = bytes(data[at : at + 16]) + bytes(4) + bytes(data[at + 20 : at + size])
        assert binascii.crc32(header) == crc
        own, other = struct.unpack_from("<QQ", data, at + 24)
        places.append((own, other))
        entries_at, count, entry_bytes, entries_crc = struct.unpack_from("<QIII", data, at + 72)
        entries = data[entries_at * SECTOR : entries_at * SECTOR + count * entry_bytes]
        assert binascii.crc32(entries) == entries_crc
    last = 128 * MIB // SECTOR - 1
    assert places == [(1, last), (last, 1)]


def test_only_the_last_partition_grows(tmp_path: Path, tool: Tool, look: Look) -> None:
    for name in ("mbr", "gpt", "gpt-backwards"):
        table = read_table(look(make(tool, tmp_path / name, SCRIPTS[name])))
        first = min(table.partitions, key=lambda each: each.start_bytes)
        with pytest.raises(PartitionError, match="another follows it"):
            grow_last(table, first, 128 * MIB, name)


def test_logical_partitions_do_not_grow(tmp_path: Path, tool: Tool, look: Look) -> None:
    table = read_table(look(make(tool, tmp_path / "disk.img", SCRIPTS["mbr-logical"])))
    with pytest.raises(PartitionError, match="logical"):
        grow_last(table, next(each for each in table.partitions if each.number == 4), 128 * MIB, "disk.img")


def test_an_mbr_does_not_grow_past_what_32_bits_hold(tmp_path: Path, tool: Tool, look: Look) -> None:
    table = read_table(look(make(tool, tmp_path / "disk.img", SCRIPTS["mbr"])))
    with pytest.raises(PartitionError, match="cannot hold"):
        grow_last(table, table.partitions[-1], 2**41, "disk.img")


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("name", ["mbr", "gpt"])
def test_an_image_cut_short_is_named_as_such(
    tmp_path: Path, tool: Tool, look: Look, name: str, share: float
) -> None:
    path = make(tool, tmp_path / "disk.img", SCRIPTS[name])
    with path.open("r+b") as stream:
        stream.truncate(int(64 * MIB * share))
    with pytest.raises(PartitionError) as caught:
        read_table(look(path))
    assert "cut short" in (caught.value.hint or "")


def test_a_gpt_that_lost_its_end_is_refused_though_its_partitions_lie_within(
    tmp_path: Path, tool: Tool, look: Look
) -> None:
    path = make(tool, tmp_path / "disk.img", "label: gpt\nstart=4MiB, size=8MiB\n")
    with path.open("r+b") as stream:
        stream.truncate(32 * MIB)
    with pytest.raises(PartitionError, match="second header") as caught:
        read_table(look(path))
    assert "cut short" in (caught.value.hint or "")


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1000, 100_000])
def test_what_is_no_disk_has_no_table(tmp_path: Path, look: Look, size: int) -> None:
    (tmp_path / "none.img").write_bytes(b"\x11" * size)
    with pytest.raises(PartitionError):
        read_table(look(tmp_path / "none.img"))


def test_a_file_system_without_a_table_is_one_partition(tmp_path: Path, tool: Tool, look: Look) -> None:
    with (tmp_path / "bare.img").open("wb") as stream:
        stream.truncate(8 * MIB)
    tool("mke2fs", "-q", "-F", tmp_path / "bare.img")
    table = read_table(look(tmp_path / "bare.img"))
    assert (table.kind, ours(table.partitions)) == ("none", [(1, 0, 8 * MIB)])
    grown, patches = grow_last(table, table.partitions[0], 16 * MIB, "bare.img")
    assert (grown.partitions[0].size_bytes, patches) == (16 * MIB, [])


def entry(kind: int, start: int, count: int, flag: int = 0) -> bytes:
    return struct.pack("<B3sB3sII", flag, b"", kind, b"", start, count)


def mbr(*entries: bytes) -> bytes:
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


def crafted(path: Path, sectors: dict[int, bytes], size: int = 8 * MIB) -> Path:
    with path.open("wb") as stream:
        stream.truncate(size)
        for at, sector in sectors.items():
            stream.seek(at * SECTOR)
            stream.write(sector)
    return path


HOSTILE: dict[str, tuple[dict[int, bytes], str]] = {
    "overlapping": ({0: mbr(entry(0x83, 2048, 4096), entry(0x83, 4096, 4096))}, "overlap"),
    "over the table": ({0: mbr(entry(0x83, 0, 4096))}, "where the table lies"),
    "behind the end": ({0: mbr(entry(0x83, 2048, 2**32 - 1))}, "ends at byte"),
    "none": ({0: mbr()}, "has no partitions"),
    "no table": ({0: mbr(entry(0x83, 2048, 8, flag=0x41))}, "no partition table of a known kind"),
    "two extended": ({0: mbr(entry(5, 2048, 2048), entry(5, 8192, 2048))}, "two extended"),
    "over extended": (
        {0: mbr(entry(5, 2048, 4096), entry(0x83, 4096, 4096)), 2048: mbr(entry(0x83, 8, 8))},
        "overlaps the extended",
    ),
    "chain in a circle": (
        {0: mbr(entry(5, 2048, 8192)), 2048: mbr(entry(0x83, 8, 8), entry(5, 0x100, 8)),
         2048 + 0x100: mbr(entry(0x83, 8, 8), entry(5, 0x100, 8))},
        "leads back",
    ),
    "chain that leads out": (
        {0: mbr(entry(5, 2048, 8192)), 2048: mbr(entry(0x83, 8, 8), entry(5, 9000, 8))}, "leads back or out"
    ),
    "chain that breaks off": ({0: mbr(entry(5, 2048, 8192))}, "breaks off"),
    "logical that leads out": (
        {0: mbr(entry(5, 2048, 4096)), 2048: mbr(entry(0x83, 8, 8000))}, "outside of the extended"
    ),
    "endless chain": (
        {0: mbr(entry(5, 1, 16000)), **{1 + n: mbr(entry(0, 0, 0), entry(5, n + 1, 8)) for n in range(200)}},
        "more than 128",
    ),
    "extended behind the end": ({0: mbr(entry(5, 2**31, 8192))}, "too short"),
    "gpt without a header": ({0: mbr(entry(0xEE, 1, 16383))}, "cannot be used: it is not there"),
    "gpt of large sectors": ({0: mbr(entry(0xEE, 1, 2047)), 8: b"EFI PART".ljust(512, b"\0")}, "4096"),
}  # fmt: skip


@pytest.mark.parametrize(("sectors", "why"), HOSTILE.values(), ids=HOSTILE)
def test_an_impossible_table_is_refused_by_name(
    tmp_path: Path, look: Look, sectors: dict[int, bytes], why: str
) -> None:
    with pytest.raises(PartitionError, match=why):
        read_table(look(crafted(tmp_path / "disk.img", sectors)))


def resealed(data: bytearray, *, entries: bool) -> None:
    """Make the checksums of a GPT fit again what was changed in it."""
    at, count, entry_bytes = struct.unpack_from("<QII", data, SECTOR + 72)
    if entries:
        crc = binascii.crc32(data[at * SECTOR : at * SECTOR + count * entry_bytes])
        struct.pack_into("<I", data, SECTOR + 88, crc)
    struct.pack_into("<I", data, SECTOR + 16, 0)
    (size,) = struct.unpack_from("<I", data, SECTOR + 12)
    struct.pack_into("<I", data, SECTOR + 16, binascii.crc32(data[SECTOR : SECTOR + size]))


ENTRIES = 2 * SECTOR
CHANGED: dict[str, tuple[str, int, int, bool, str]] = {
    "header changed": ("<Q", SECTOR + 40, 99, False, "its checksum is wrong"),
    "entry changed": ("<Q", ENTRIES + 32, 9000, False, "checksum of its entries is wrong"),
    "overlapping": ("<Q", ENTRIES + 40, 30000, True, "overlap"),
    "over the entries": ("<Q", SECTOR + 40, 8, True, "among the partitions"),
    "outside": ("<Q", ENTRIES + 40, 2**40, True, "outside of what its GPT may use"),
    "backwards": ("<Q", ENTRIES + 40, 2, True, "outside of what its GPT may use"),
    "another place": ("<Q", SECTOR + 24, 5, True, "another place than its own"),
    "odd entries": ("<I", SECTOR + 84, 96, True, "no possible size"),
    "endless entries": ("<I", SECTOR + 80, 2**31, False, "no possible size"),
    "entries far away": ("<Q", SECTOR + 72, 2**60, False, "behind the end"),
    "no room": ("<Q", SECTOR + 48, 1, True, "no room for partitions"),
    "unknown version": ("<I", SECTOR + 8, 0x20000, True, "unknown version"),
}


@pytest.mark.parametrize(("form", "at", "value", "seal", "why"), CHANGED.values(), ids=CHANGED)
def test_a_damaged_or_hostile_gpt_is_refused_by_name(
    tmp_path: Path, tool: Tool, look: Look, form: str, at: int, value: int, seal: bool, why: str
) -> None:
    path = make(tool, tmp_path / "disk.img", SCRIPTS["gpt"])
    with path.open("r+b") as stream:
        data = bytearray(stream.read(64 * 1024))
        struct.pack_into(form, data, at, value)
        if seal or why != "its checksum is wrong":
            resealed(data, entries=seal)
        stream.seek(0)
        stream.write(data)
    with pytest.raises(PartitionError, match=why):
        read_table(look(path))


def test_a_broken_first_header_beside_a_whole_second_one_says_how_to_mend_it(
    tmp_path: Path, tool: Tool, look: Look
) -> None:
    path = make(tool, tmp_path / "disk.img", SCRIPTS["gpt"])
    with path.open("r+b") as stream:
        stream.seek(SECTOR)
        stream.write(bytes(SECTOR))
    with pytest.raises(PartitionError, match="the one at the end is whole") as caught:
        read_table(look(path))
    assert "gdisk" in (caught.value.hint or "")


def test_a_hybrid_mbr_is_read_and_not_grown(tmp_path: Path, tool: Tool, look: Look) -> None:
    path = make(tool, tmp_path / "disk.img", SCRIPTS["gpt"])
    with path.open("r+b") as stream:
        stream.seek(446 + 16)
        stream.write(entry(0x0C, 8192, 100))
    table = read_table(look(path))
    assert len(table.partitions) == 2
    with pytest.raises(PartitionError, match="hybrid"):
        grow_last(table, table.partitions[-1], 128 * MIB, str(path))


@given(
    partitions=st.lists(
        st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=4
    ),
    chained=st.lists(st.tuples(st.integers(0, 255), st.integers(0, 300), st.integers(0, 300)), max_size=4),
)
def test_whatever_an_mbr_says_is_a_table_within_the_image_or_an_error(
    tmp_path_factory: pytest.TempPathFactory,
    partitions: list[tuple[int, int, int]],
    chained: list[tuple[int, int, int]],
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.img"
    chain = mbr(*(entry(*each) for each in chained))
    crafted(path, {0: mbr(*(entry(*each) for each in partitions)), **dict.fromkeys(range(100, 200), chain)})
    with path.open("rb") as stream:
        try:
            table = read_table(Window(path, stream.fileno(), 0, 8 * MIB))
        except PartitionError:
            return
    ordered = sorted(table.partitions, key=lambda each: each.start_bytes)
    assert all(0 <= each.start_bytes < each.end_bytes <= 8 * MIB for each in ordered)
    assert all(before.end_bytes <= after.start_bytes for before, after in itertools.pairwise(ordered))
