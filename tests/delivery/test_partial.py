"""What has arrived is on the disk, and nothing that is not right ever counts as arrived."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeslm.delivery import partial as partial_module
from edgeslm.delivery.chunks import ChunkMap, parse_map
from edgeslm.delivery.partial import PartialFile, is_whole
from edgeslm.errors import ChunkMapError, DeliveryDiskError, DeliveryRoomError
from edgeslm.schema.delivery import BLOCK_BYTES, BlobRef

SIZE = 9 * BLOCK_BYTES + 77


@pytest.fixture
def blob(library):
    return library.add(SIZE)


@pytest.fixture
def chunks(library, blob):
    return parse_map(library.data(blob.chunks_sha256), blob)


@pytest.fixture
def blocks(library, blob):
    data = library.data(blob.sha256)
    return [data[at : at + BLOCK_BYTES] for at in range(0, SIZE, BLOCK_BYTES)]


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "arriving").mkdir()
    return tmp_path / "arriving"


def suffix(descriptor):
    return Path(f"/proc/self/fd/{descriptor}").readlink().suffix


def put_all(part, blob, data):
    for index in range(blob.block_count):
        part.put(index, data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])


def names(directory):
    return sorted(path.suffix for path in directory.iterdir())


def test_blocks_in_any_order_give_the_file(disk, blob, chunks, blocks, library):
    with closing(PartialFile(disk, blob, chunks)) as part:
        assert part.missing() == [range(10)]
        for index in (9, 0, 5, 4, 2, 8, 1, 3, 7):
            assert part.put(index, blocks[index])
        assert part.missing() == [range(6, 7)]
        assert part.done_bytes == SIZE - BLOCK_BYTES
        assert part.put(6, blocks[6])
        assert part.missing() == []
        assert part.done_bytes == SIZE
        assert part.finish()
    assert part.whole.read_bytes() == library.data(blob.sha256)
    assert names(disk) == [".blob"]
    assert is_whole(part.whole, blob)


def test_a_wrong_block_is_not_kept(disk, blob, chunks, blocks):
    with closing(PartialFile(disk, blob, chunks)) as part:
        for index, data in (
            (0, blocks[1]),
            (0, blocks[0][:-1]),
            (0, b""),
            (9, blocks[0]),
            (10, b"x"),
            (-1, b"x"),
        ):
            assert not part.put(index, data)
        assert part.missing() == [range(10)]
        assert part.put(0, blocks[0])
        assert part.put(0, blocks[0])  # twice is once
        assert part.done_bytes == BLOCK_BYTES


def test_only_synced_blocks_count_after_a_restart(disk, blob, chunks, blocks):
    with closing(PartialFile(disk, blob, chunks)) as part:
        part.put(3, blocks[3])
        part.put(4, blocks[4])
        part.sync()
        part.put(5, blocks[5])
    with closing(PartialFile(disk, blob, chunks)) as part:
        assert part.missing() == [range(3), range(5, 10)]


def test_data_is_synced_before_the_bitmap_that_names_it(disk, blob, chunks, blocks, monkeypatch):
    done = []
    sync, write = os.fdatasync, os.pwrite

    def synced(descriptor):
        done.append(("sync", suffix(descriptor)))
        sync(descriptor)

    def written(descriptor, data, offset):
        done.append(("write", suffix(descriptor)))
        return write(descriptor, data, offset)

    with closing(PartialFile(disk, blob, chunks)) as part:
        monkeypatch.setattr(os, "fdatasync", synced)
        monkeypatch.setattr(os, "pwrite", written)
        part.put(0, blocks[0])
        part.put(1, blocks[1])
        part.sync()
        part.sync()
    assert done == [
        ("write", ".part"), ("write", ".part"), ("sync", ".part"), ("write", ".have"), ("sync", ".have")
    ]  # fmt: skip


def test_syncs_come_in_batches(disk, blob, chunks, blocks, monkeypatch):
    monkeypatch.setattr(partial_module, "SYNC_BYTES", 4 * BLOCK_BYTES)
    count = 0
    sync = os.fdatasync

    def counted(descriptor):
        nonlocal count
        count += 1
        sync(descriptor)

    with closing(PartialFile(disk, blob, chunks)) as part:
        monkeypatch.setattr(os, "fdatasync", counted)
        for index in range(8):
            part.put(index, blocks[index])
    assert count == 4  # data and bitmap, twice


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_happens_to_the_bitmap_only_right_blocks_count(tmp_path_factory, blob, chunks, blocks, data):
    disk = tmp_path_factory.mktemp("disk")
    there = data.draw(st.sets(st.integers(0, 9)))
    with closing(PartialFile(disk, blob, chunks)) as part:
        for index in there:
            part.put(index, blocks[index])
        part.sync()
    have = disk / f"{blob.sha256}.have"
    right = bytearray(have.read_bytes())
    damage = data.draw(st.sampled_from(["flip", "cut", "more", "gone", "zeros", "other"]))
    if damage == "flip" and right:
        right[data.draw(st.integers(0, len(right) - 1))] ^= data.draw(st.integers(1, 255))
    have.unlink()
    if damage != "gone":
        right = bytearray(data.draw(st.binary(max_size=60))) if damage == "other" else right
        right = bytearray(len(right)) if damage == "zeros" else right
        have.write_bytes(
            bytes(right[: len(right) // 2] if damage == "cut" else right + b"x" * (damage == "more"))
        )
    with closing(PartialFile(disk, blob, chunks)) as part:
        assert {index for run in part.missing() for index in run} == set(range(10)) - there
        for run in part.missing():
            for index in run:
                part.put(index, blocks[index])
        assert part.finish()


def test_a_bitmap_with_any_bit_flipped_is_not_believed(disk, blob, chunks, blocks):
    with closing(PartialFile(disk, blob, chunks)) as part:
        for index in (1, 9):
            part.put(index, blocks[index])
        part.sync()
    have = disk / f"{blob.sha256}.have"
    right = have.read_bytes()
    for bit in range(8 * len(right)):
        flipped = bytearray(right)
        flipped[bit // 8] ^= 1 << bit % 8
        have.write_bytes(flipped)
        with closing(PartialFile(disk, blob, chunks)) as part:
            assert part.missing() == [range(1), range(2, 9)]


def test_a_part_that_lost_its_end_loses_those_blocks_only(disk, blob, chunks, blocks):
    with closing(PartialFile(disk, blob, chunks)) as part:
        for index in range(10):
            part.put(index, blocks[index])
        part.sync()
    os.truncate(disk / f"{blob.sha256}.part", 5 * BLOCK_BYTES + 3)
    with closing(PartialFile(disk, blob, chunks)) as part:
        assert part.missing() == [range(5, 10)]


@pytest.mark.parametrize("index", [0, 4, 9])
def test_a_block_that_went_bad_on_the_disk_is_found_and_fetched_again(disk, blob, chunks, blocks, index):
    with closing(PartialFile(disk, blob, chunks)) as part:
        for number in range(10):
            part.put(number, blocks[number])
        part.sync()
        with (disk / f"{blob.sha256}.part").open("r+b") as stream:
            stream.seek(index * BLOCK_BYTES + 50)
            stream.write(b"rotten")
        assert not part.finish()
        assert part.missing() == [range(index, index + 1)]
        assert part.put(index, blocks[index])
        assert part.finish()


@pytest.mark.parametrize("with_map", [True, False])
def test_a_part_that_is_too_long_is_cut(disk, blob, chunks, blocks, with_map):
    with (disk / f"{blob.sha256}.part").open("wb") as stream:
        stream.write(b"".join(blocks) + b"and more")
    with closing(PartialFile(disk, blob, chunks if with_map else None)) as part:
        assert part.missing() == ([] if with_map else [range(10)])
        for index, block in enumerate(blocks):
            assert part.put(index, block)
        assert part.finish()
    assert part.whole.stat().st_size == SIZE


def test_a_map_that_contradicts_the_whole_leaves_nothing(disk, blob, blocks, chunks):
    other = [bytes([block[0] ^ 1]) + block[1:] for block in blocks]
    wrong = ChunkMap(blob.sha256, SIZE, b"".join(hashlib.sha256(block).digest() for block in other))
    with closing(PartialFile(disk, blob, wrong)) as part:
        for index, block in enumerate(other):
            assert part.put(index, block)
        with pytest.raises(ChunkMapError):
            part.finish()
    assert names(disk) == []


def test_without_a_map_only_the_whole_is_checked_and_nothing_is_taken_over(disk, blob, blocks):
    with closing(PartialFile(disk, blob, None)) as part:
        for index, block in enumerate(blocks):
            assert part.put(index, bytes(len(block)) if index == 3 else block)
        assert not part.finish()
        assert part.missing() == [range(10)]
        part.put(0, blocks[0])
        part.sync()
    with closing(PartialFile(disk, blob, None)) as part:
        assert part.missing() == [range(10)]
        for index, block in enumerate(blocks):
            part.put(index, block)
        assert part.finish()


def test_beyond_4_gib_blocks_land_where_they_belong(disk, library):
    count = 2**32 // BLOCK_BYTES + 3
    size = (count - 1) * BLOCK_BYTES + 5
    blob = BlobRef(sha256="ab" * 32, size_bytes=size)
    digests = bytearray(32 * count)
    for index, data in ((count - 2, b"y" * BLOCK_BYTES), (count - 1, b"zzzzz")):
        digests[32 * index : 32 * index + 32] = hashlib.sha256(data).digest()
    chunks = ChunkMap(blob.sha256, size, bytes(digests))
    with closing(PartialFile(disk, blob, chunks)) as part:
        assert part.put(count - 1, b"zzzzz")
        assert part.put(count - 2, b"y" * BLOCK_BYTES)
        part.sync()
    with closing(PartialFile(disk, blob, chunks)) as part:
        assert part.missing() == [range(count - 2)]
        assert part.done_bytes == BLOCK_BYTES + 5
    with (disk / f"{blob.sha256}.part").open("rb") as stream:
        stream.seek(size - 6)
        assert stream.read() == b"yzzzzz"


# --- disks --------------------------------------------------------------------------------------------------


def test_a_full_disk_is_named_with_figures(small_disk, library):
    blob = library.add(40 * 2**20)
    chunks = parse_map(library.data(blob.chunks_sha256), blob)
    data = library.data(blob.sha256)
    with closing(PartialFile(small_disk, blob, chunks)) as part:
        with pytest.raises(DeliveryRoomError) as caught:
            put_all(part, blob, data)
        assert 10 * 2**20 < caught.value.needed_bytes < 30 * 2**20
        assert caught.value.free_bytes < 2**20
        arrived = part.done_bytes
    assert arrived > 10 * 2**20
    with closing(PartialFile(small_disk, blob, chunks)) as part:  # what was synced before is still there
        assert arrived - part.done_bytes <= 4 * 2**20


@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "fsync", "open", "ftruncate", "pread"])
def test_a_disk_that_refuses_any_call_is_a_disk_error_and_nothing_wrong_counts(
    disk, blob, chunks, blocks, monkeypatch, call
):
    real, failed = getattr(os, call), 0

    def bring():
        with closing(PartialFile(disk, blob, chunks)) as part:
            for run in part.missing():
                for index in run:
                    part.put(index, blocks[index])
            return part.finish()

    for at in range(100):
        count = -1

        def refuse(*arguments):
            nonlocal count
            count += 1
            if count == at:  # noqa: B023 - called within this turn only
                raise OSError(5, "Input/output error")
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            try:
                bring()
            except DeliveryDiskError:
                failed += 1
        assert bring()
        assert is_whole(disk / f"{blob.sha256}.blob", blob)
        (disk / f"{blob.sha256}.blob").unlink()
        if count < at:
            break
    assert failed or call == "ftruncate"


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DeliveryRoomError),
        (errno.EDQUOT, DeliveryRoomError),
        (errno.EFBIG, DeliveryDiskError),  # what FAT says at 4 GiB: there may be room enough
        (errno.EROFS, DeliveryDiskError),
    ],
)
def test_a_disk_without_room_is_told_from_one_that_refuses(
    disk, blob, chunks, blocks, monkeypatch, number, kind
):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    with closing(PartialFile(disk, blob, chunks)) as part:
        monkeypatch.setattr(os, "pwrite", refuse)
        with pytest.raises(DeliveryDiskError) as caught:
            part.put(0, blocks[0])
    assert type(caught.value) is kind
    assert caught.value.path == str(disk / f"{blob.sha256}.part")


def test_opening_in_a_directory_that_is_gone_is_a_disk_error(tmp_path, blob, chunks):
    with pytest.raises(DeliveryDiskError):
        PartialFile(tmp_path / "gone", blob, chunks)
