from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import ImageContentError
from edgeslm.flash.disks.layout import HEAD_BYTES, STEP_BYTES, Digester, plan_layout, steps
from edgeslm.flash.image.bmap import BlockMap, BlockRange

MIB = 2**20


def block_map(image_bytes: int, cuts: list[int]) -> BlockMap:
    """A map whose ranges begin and end at `cuts`, every other stretch left out."""
    blocks = -(-image_bytes // 4096)
    edges = sorted({cut % blocks for cut in cuts})
    pairs = zip(edges[::2], edges[1::2], strict=False)
    ranges = tuple(BlockRange(first, last - 1, "0" * 64) for first, last in pairs if last > first)
    return BlockMap(image_bytes, 4096, ranges)


@given(
    sectors=st.integers(1, 60 * 2048),
    cuts=st.lists(st.integers(0, 15_000), max_size=40),
    align=st.sampled_from([512, 4096]),
    mapped=st.booleans(),
)
def test_steps_cover_what_is_to_be_written_once_and_in_order(
    sectors: int, cuts: list[int], align: int, mapped: bool
) -> None:
    size = sectors * 512
    layout = plan_layout(size, block_map(size, cuts) if mapped else None, path="x")
    found = steps(layout, align)
    before = 0
    for run in found:
        assert run.start >= before
        assert run.start % align == 0 == run.end % align
        assert 0 < run.end - run.start <= STEP_BYTES
        assert not run.start < HEAD_BYTES < run.end
        before = run.end
    assert before <= -(-size // align) * align
    for unit in layout.units:
        at = unit.start
        for run in found:
            if run.start <= at < run.end:
                at = run.end
        assert at >= unit.end


@given(
    sectors=st.integers(1, 20 * 2048),
    cuts=st.lists(st.integers(0, 5_000), max_size=20),
    seed=st.integers(0, 255),
)
def test_digests_of_units_are_those_of_their_bytes_however_they_come(
    sectors: int, cuts: list[int], seed: int
) -> None:
    size = sectors * 512
    data = bytes([seed]) * 511 + bytes(range(256)) * (size // 256 + 2)
    layout = plan_layout(size, block_map(size, cuts), path="x")
    digester, completed = Digester(layout.units), []
    for run in steps(layout, 512):
        completed += digester.feed(run.start, data[run.start : run.end])
    assert digester.complete
    assert completed == list(range(len(layout.units)))
    assert digester.digests == [hashlib.sha256(data[unit.start : unit.end]).digest() for unit in layout.units]


def test_bytes_that_were_left_out_are_noticed() -> None:
    whole = BlockMap(8 * MIB, 4096, (BlockRange(0, 2047, "0" * 64),))
    digester = Digester(plan_layout(8 * MIB, whole, path="x").units)
    digester.feed(0, bytes(MIB))
    with pytest.raises(ValueError, match="left out"):
        digester.feed(2 * MIB, bytes(MIB))


@pytest.mark.parametrize("size", [0, 1, 511, 513, 1_000_001])
def test_a_size_that_no_disk_has_is_an_image_that_was_cut_off(size: int) -> None:
    with pytest.raises(ImageContentError, match="cut off"):
        plan_layout(size, None, path="sd.img")


def test_a_map_of_another_image_is_refused() -> None:
    with pytest.raises(ImageContentError, match="its block map says"):
        plan_layout(8 * MIB, BlockMap(16 * MIB, 4096, ()), path="sd.img")


def test_short_gaps_are_written_along_and_long_ones_are_jumped_over() -> None:
    near = BlockMap(64 * MIB, 4096, (BlockRange(0, 9, "0" * 64), BlockRange(20, 29, "0" * 64)))
    far = BlockMap(64 * MIB, 4096, (BlockRange(0, 9, "0" * 64), BlockRange(9000, 9009, "0" * 64)))
    assert [(run.start, run.end) for run in plan_layout(64 * MIB, near, path="x").runs] == [(0, 30 * 4096)]
    assert len(plan_layout(64 * MIB, far, path="x").runs) == 2


def test_an_image_without_a_map_is_written_as_one() -> None:
    whole = plan_layout(8 * MIB, None, path="x")
    assert whole.written_bytes == 8 * MIB
    assert whole.units == ()
