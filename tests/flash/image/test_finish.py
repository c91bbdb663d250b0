"""What a finished image is handed on with."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeslm.errors import ImageError, PartitionError
from edgeslm.flash.image.bmap import read_bmap
from edgeslm.flash.image.finish import UNIT_BYTES, finish, map_image
from edgeslm.flash.image.source import read_digest
from edgeslm.flash.tree import Entry
from tests.flash.image.conftest import MIB, Workshop

Tool = Callable[..., str]
Fsck = Callable[[Path], None]


@pytest.fixture
def prepared(workshop: Workshop, disk: Path) -> Path:
    image = workshop.open(disk)
    image.grow(128 * MIB)
    image.root.write([
        Entry("/opt/data", content=random.Random(1).randbytes(3 * MIB)), Entry("/opt/zeros", content=bytes(2 * MIB)),
    ])  # fmt: skip
    assert image.boot is not None
    image.boot.write([Entry("/user-data", content=b"#cloud-config\n")])
    return disk


def used_card(path: Path, size: int) -> Path:
    """A card that was used before."""
    path.write_bytes(b"\xa5" * size)
    return path


def test_digest_and_map_lie_beside_the_image(prepared: Path, tool: Tool) -> None:
    found = finish(prepared)
    assert found.sha256 == hashlib.sha256(prepared.read_bytes()).hexdigest()
    assert (found.size_bytes, found.path) == (128 * MIB, prepared)
    assert read_digest(prepared) == found.sha256
    assert tool("sh", "-c", f"cd {prepared.parent} && sha256sum -c {found.digest_path.name}").endswith("OK\n")
    assert read_bmap(found.bmap_path.read_bytes()) == found.block_map


def test_what_the_map_leaves_out_is_zero_and_what_it_names_has_its_digest(prepared: Path) -> None:
    _, block_map = map_image(prepared)
    data = bytearray(prepared.read_bytes())
    for each in block_map.ranges:
        start, end = block_map.span(each)
        assert hashlib.sha256(data[start:end]).hexdigest() == each.sha256
        data[start:end] = bytes(end - start)
    assert not any(data)
    assert block_map.mapped_blocks < 0.5 * block_map.blocks


def test_a_used_card_that_got_only_what_the_map_names_is_sound(
    prepared: Path, tool: Tool, fsck: Fsck
) -> None:
    found = finish(prepared)
    card = used_card(prepared.with_name("card"), found.size_bytes)
    tool("bmaptool", "copy", "--bmap", found.bmap_path, prepared, card)
    fsck(card)
    out = prepared.with_name("data")
    tool("debugfs", "-R", f"dump /opt/data {out}", f"{card}?offset={17 * MIB}")
    assert out.read_bytes() == random.Random(1).randbytes(3 * MIB)
    out.unlink()
    tool("debugfs", "-R", f"dump /opt/zeros {out}", f"{card}?offset={17 * MIB}")
    assert out.read_bytes() == bytes(2 * MIB)


def test_the_journal_and_inodes_in_use_are_written_though_they_are_zero(prepared: Path, tool: Tool) -> None:
    """What bmaptool would leave out, since it looks at holes alone."""
    found = finish(prepared)
    card = used_card(prepared.with_name("card"), found.size_bytes)
    tool("bmaptool", "copy", "--bmap", found.bmap_path, prepared, card)
    place = f"{card}?offset={17 * MIB}"
    table = int(tool("debugfs", "-R", "imap <2>", place).split("at block ")[1].split(",")[0])
    image, written = prepared.read_bytes(), card.read_bytes()
    blocks = [
        int(number) for number in tool("debugfs", "-R", "blocks <8>", place).split() if number.isdigit()
    ]
    assert len(blocks) > 100
    for block in [*blocks, table, table + 1]:
        at = 17 * MIB + block * 1024
        assert written[at : at + 1024] == image[at : at + 1024]


def test_the_map_follows_from_the_content_and_not_from_how_it_is_stored(prepared: Path, tool: Tool) -> None:
    full = prepared.with_name("full.img")
    full.write_bytes(prepared.read_bytes())
    sparse = Path(shutil.copy(prepared, prepared.with_name("sparse.img")))
    tool("fallocate", "--dig-holes", sparse)
    assert map_image(full) == map_image(prepared) == map_image(sparse)


def test_what_bmaptool_maps_and_is_not_zero_is_mapped_here_as_well(prepared: Path, tool: Tool) -> None:
    tool("bmaptool", "create", "-o", prepared.with_name("theirs.bmap"), prepared)
    theirs = read_bmap(prepared.with_name("theirs.bmap").read_bytes())
    _, ours = map_image(prepared)
    mine = {block for each in ours.ranges for block in range(each.first, each.last + 1)}
    data = prepared.read_bytes()
    for each in theirs.ranges:
        for block in range(each.first, each.last + 1):
            if any(data[block * 4096 : (block + 1) * 4096]):
                assert block in mine


def test_gaps_are_whole_units(prepared: Path) -> None:
    _, block_map = map_image(prepared)
    unit = UNIT_BYTES // 4096
    assert all(each.first % unit == 0 for each in block_map.ranges)
    assert all((each.last + 1) % unit == 0 for each in block_map.ranges[:-1])
    assert block_map.ranges[0].first == 0


def test_an_image_that_is_no_whole_block_is_mapped_to_its_end(prepared: Path) -> None:
    with prepared.open("ab") as stream:
        stream.write(b"end")
    digest, block_map = map_image(prepared)
    assert digest == hashlib.sha256(prepared.read_bytes()).hexdigest()
    assert block_map.image_bytes == 128 * MIB + 3
    assert block_map.ranges[-1].last == block_map.blocks - 1
    assert block_map.span(block_map.ranges[-1])[1] == 128 * MIB + 3


def test_progress_ends_with_all_of_the_image_and_can_end_the_work(prepared: Path) -> None:
    told: list[tuple[int, int]] = []
    map_image(prepared, report=lambda done, total: told.append((done, total)))
    assert told[-1] == (128 * MIB, 128 * MIB)
    assert told == sorted(told)

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(prepared, report=stop)
    assert not prepared.with_name("disk.img.bmap").exists()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot read"):
        map_image(tmp_path / "missing.img")
    (tmp_path / "zeros").write_bytes(bytes(MIB))
    with pytest.raises(PartitionError):
        finish(tmp_path / "zeros")
    assert not (tmp_path / "zeros.sha256").exists()
