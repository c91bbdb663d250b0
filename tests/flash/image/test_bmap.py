"""Block maps, as bmaptool writes and reads them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import BlockMapError
from edgeslm.flash.image.bmap import MAX_BMAP_BYTES, BlockMap, BlockRange, read_bmap, write_bmap
from tests.flash.image.conftest import MIB

Tool = Callable[..., str]
ONE = BlockMap(
    1_000_001,
    4096,
    (BlockRange(0, 9, "0" * 64), BlockRange(20, 20, "1" * 64), BlockRange(244, 244, "2" * 64)),
)


@st.composite
def maps(draw: st.DrawFn) -> BlockMap:
    """Any map."""
    block_bytes = draw(st.sampled_from([512, 4096, 65536]))
    image_bytes = draw(st.integers(1, 10**12))
    blocks = -(-image_bytes // block_bytes)
    edges = sorted(draw(st.sets(st.integers(0, blocks - 1), max_size=12)))
    digest = st.binary(min_size=32, max_size=32).map(bytes.hex)
    pairs = zip(edges[::2], edges[1::2], strict=False)
    return BlockMap(
        image_bytes, block_bytes, tuple(BlockRange(first, last, draw(digest)) for first, last in pairs)
    )


@given(maps())
def test_writing_and_reading_are_inverses(block_map: BlockMap) -> None:
    assert read_bmap(write_bmap(block_map)) == block_map


def test_a_map_knows_its_sizes() -> None:
    assert (ONE.blocks, ONE.mapped_blocks) == (245, 12)
    assert ONE.span(ONE.ranges[0]) == (0, 40960)
    assert ONE.span(ONE.ranges[2]) == (244 * 4096, 1_000_001)


def holey(path: Path) -> Path:
    with path.open("wb") as stream:
        for at in (0, 3 * MIB, 9 * MIB + 12345):
            stream.seek(at)
            stream.write(b"\5" * 10_000)
        stream.truncate(12 * MIB + 100)
    return path


def test_a_map_of_bmaptool_is_read(tmp_path: Path, tool: Tool) -> None:
    image = holey(tmp_path / "image")
    tool("bmaptool", "create", "-o", tmp_path / "image.bmap", image)
    block_map = read_bmap((tmp_path / "image.bmap").read_bytes())
    data = image.read_bytes()
    assert block_map.image_bytes == len(data)
    assert len(block_map.ranges) >= 3
    for each in block_map.ranges:
        start, end = block_map.span(each)
        assert hashlib.sha256(data[start:end]).hexdigest() == each.sha256
        data = data[:start] + bytes(end - start) + data[end:]
    assert not any(data)


def test_bmaptool_reads_a_map_of_ours_and_compares_its_checksums(tmp_path: Path, tool: Tool) -> None:
    image = holey(tmp_path / "image")
    data = image.read_bytes()
    ranges = tuple(
        BlockRange(first, last, hashlib.sha256(data[first * 4096 : (last + 1) * 4096]).hexdigest())
        for first, last in ((0, 2), (768, 770), (2307, 2309), (3072, 3072))
    )
    (tmp_path / "good.bmap").write_bytes(write_bmap(BlockMap(len(data), 4096, ranges)))
    tool("bmaptool", "copy", "--bmap", tmp_path / "good.bmap", image, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    wrong = (*ranges[:1], BlockRange(768, 770, "0" * 64), *ranges[2:])
    (tmp_path / "wrong.bmap").write_bytes(write_bmap(BlockMap(len(data), 4096, wrong)))
    said = tool("bmaptool", "copy", "--bmap", tmp_path / "wrong.bmap", image, tmp_path / "copy", status=None)
    assert "checksum" in said.lower()


OWN = re.compile(r"(?<=<BmapFileChecksum> )\w{64}")


def changed(old: str, new: str) -> bytes:
    """A map with a word changed, and its own checksum made to fit again."""
    text, count = re.subn(old, new, write_bmap(ONE).decode(), count=1)
    assert count
    text = OWN.sub("0" * 64, text)
    return OWN.sub(hashlib.sha256(text.encode()).hexdigest(), text).encode()


def test_the_checksum_is_made_to_fit() -> None:
    assert read_bmap(changed("20 </Range>", "21 </Range>")).ranges[1].first == 21


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("0-9 ", "9-0 ", "overlap|order"),
        ("20 </Range>", "5 </Range>", "overlap"),
        ("244 </Range>", "245 </Range>", "outside"),
        ("20 </Range>", "x </Range>", "no blocks"),
        ("20 </Range>", "20-21-22 </Range>", "no blocks"),
        ("20 </Range>", "99999999999 </Range>", "no blocks"),
        ('chksum="1{64}"', 'chksum="11"', "no blocks or no checksum"),
        ("ImageSize> 1000001", "ImageSize> -5", "no number"),
        ("ImageSize> 1000001", "ImageSize> 0", "sizes"),
        ("ImageSize> 1000001", "ImageSize> 999999999999999", "counts|larger"),
        ("BlockSize> 4096", "BlockSize> 1", "sizes"),
        ("BlocksCount> 245", "BlocksCount> 246", "counts"),
        ("MappedBlocksCount> 12", "MappedBlocksCount> 13", "counts"),
        ("sha256", "md5", "other checksums"),
        ('version="2.0"', 'version="1.3"', "version 2"),
        ("<bmap ", "<bnap ", "damaged"),
        ("</bmap>", "", "damaged"),
        ("<bmap ", "<!DOCTYPE x><bmap ", "declares"),
        ("<ImageSize>", '<ImageSize xmlns="http://x">', "no number"),
    ],
)
def test_an_impossible_map_is_refused_by_name(old: str, new: str, why: str) -> None:
    with pytest.raises(BlockMapError, match=why) as caught:
        read_bmap(changed(old, new), path="disk.img.bmap")
    assert caught.value.path == "disk.img.bmap"


def test_a_map_that_was_changed_or_cut_short_is_refused() -> None:
    data = write_bmap(ONE)
    for wrong in (
        data.replace(b"0-9", b"0-8"),
        data[:-20],
        data[: len(data) // 2],
        b"",
        b"\0" * 100,
        b"hello",
    ):
        with pytest.raises(BlockMapError):
            read_bmap(wrong)


def test_a_map_larger_than_maps_can_be_is_refused_unread() -> None:
    with pytest.raises(BlockMapError, match="more than"):
        read_bmap(b" " * (MAX_BMAP_BYTES + 1))


def test_entities_are_refused_before_they_are_expanded() -> None:
    bomb = b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><bmap>&b;</bmap>'
    for data in (bomb, bomb.decode().encode("utf-16")):
        with pytest.raises(BlockMapError, match="declares"):
            read_bmap(data)
