"""Whatever lies in an image, reading it ends, and with an error of ours or with what fits its bounds."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeslm.errors import BlockMapError, EdgeslmError
from edgeslm.flash.image.bmap import BlockMap, BlockRange, read_bmap, write_bmap
from edgeslm.flash.image.ext4 import Ext4Tree
from edgeslm.flash.image.facts import read_facts
from edgeslm.flash.image.fat import FatTree
from edgeslm.flash.image.filesystems import probe
from edgeslm.flash.image.finish import map_image
from edgeslm.flash.image.image import open_image
from edgeslm.flash.image.window import Window
from edgeslm.flash.tree import Tree
from tests.flash.image.conftest import DEBIAN, MIB, lay, make_ext4, run

FILES = {**DEBIAN, "usr/bin/python3.11": "x" * 5000, "etc/a/b/c": "deep", "large": "y" * 90_000}
LIMITS = settings(
    max_examples=150,
    deadline=timedelta(seconds=20),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
VALUES = st.one_of(
    st.binary(min_size=1, max_size=16),
    st.sampled_from([0, 1, 2, 11, 12, 0x7F, 0xFFFF, 0x8000, 0xF30A, 2**31, 2**32 - 1]).map(
        lambda value: struct.pack("<I", value)
    ),
)


def changes(size: int) -> st.SearchStrategy[list[tuple[int, bytes]]]:
    """Stretches of an image of so many bytes that are overwritten."""
    return st.lists(st.tuples(st.integers(0, size - 17), VALUES), min_size=1, max_size=12)


@contextmanager
def changed(path: Path, mutations: list[tuple[int, bytes]]) -> Iterator[int]:
    """An image open for reading, with stretches of it overwritten for as long as this takes."""
    with path.open("r+b", buffering=0) as stream:
        kept = [(at, os.pread(stream.fileno(), len(piece), at)) for at, piece in mutations]
        for at, piece in mutations:
            os.pwrite(stream.fileno(), piece, at)
        try:
            yield stream.fileno()
        finally:
            for at, piece in kept:
                os.pwrite(stream.fileno(), piece, at)


def walk(tree: Tree) -> None:
    """Look at everything in a tree, and at no more than a thousand places."""
    waiting, seen = ["/"], 0
    while waiting and seen < 1000:
        seen += 1
        path = waiting.pop()
        try:
            node = tree.stat(path)
            if node is None:
                continue
            if node.kind == "directory":
                waiting += [f"{path.rstrip('/')}/{name}" for name in tree.names(path) if "/" not in name]
            elif node.kind == "file":
                assert len(tree.read(path, max_bytes=MIB)) <= MIB
        except EdgeslmError:
            continue
    tree.free_bytes()


@pytest.fixture(scope="module", params=["extents", "mapped", "checksums"])
def ext4(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fuzz")
    without = {
        "extents": "^has_journal,^metadata_csum,^resize_inode", "mapped": "^has_journal,^extents,^64bit,^metadata_csum",
        "checksums": "^has_journal,64bit,metadata_csum,^resize_inode",
    }[request.param]  # fmt: skip
    options = ["-b", "1024", "-N", "64", "-O", without]
    make_ext4(directory / "image", lay(directory / "seed", FILES), size_mib=1, options=options)
    return directory / "image"


@pytest.fixture(scope="module", params=["12", "16", "32"])
def fat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "image"
    with path.open("wb") as stream:
        stream.truncate({"12": 1, "16": 8, "32": 34}[request.param] * MIB)
    run("mkfs.vfat", "-F", request.param, "-s", "1", path)
    seed = lay(
        path.with_name("seed"),
        {"config.txt": "x" * 3000, "deep/er/A long name.text": "y" * 5000, "empty": ""},
    )
    for each in sorted(seed.iterdir()):
        run("mcopy", "-s", "-i", path, each, "::")
    return path


@LIMITS
@given(st.data())
def test_a_mutated_ext4_is_read_or_refused(ext4: Path, data: st.DataObject) -> None:
    with changed(ext4, data.draw(changes(90 * 1024))) as descriptor:
        try:
            tree = Ext4Tree(Window(ext4, descriptor, 0, MIB))
            walk(tree)
            read_facts(tree, None, image_bytes=1, root_bytes=1)
            ranges = list(tree._reader.free_ranges())
        except EdgeslmError:
            return
    assert all(0 <= start < end <= MIB for start, end in ranges)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))


@LIMITS
@given(st.data())
def test_a_mutated_fat_is_read_or_refused(fat: Path, data: st.DataObject) -> None:
    size = fat.stat().st_size
    places = st.one_of(st.integers(0, 64), st.integers(0, 2048), st.integers(0, size // 16))
    mutations = data.draw(st.lists(st.tuples(places, VALUES), min_size=1, max_size=12))
    with changed(fat, mutations) as descriptor:
        try:
            tree = FatTree(Window(fat, descriptor, 0, size), time_s=0)
            walk(tree)
            ranges = list(tree._reader.free_ranges())
        except EdgeslmError:
            return
    assert all(0 <= start < end <= size for start, end in ranges)


@settings(LIMITS, max_examples=60)
@given(st.data())
def test_a_mutated_disk_is_opened_or_refused(disk: Path, data: st.DataObject) -> None:
    places = st.one_of(
        st.integers(440, 512), st.integers(512, 2048), st.integers(MIB, MIB + 512),
        st.integers(17 * MIB, 17 * MIB + 300_000),
    )  # fmt: skip
    mutations = data.draw(st.lists(st.tuples(places, VALUES), min_size=1, max_size=8))
    with changed(disk, mutations):
        with suppress(EdgeslmError), open_image(disk) as image:
            image.facts()
            walk(image.root)
        with suppress(EdgeslmError):
            map_image(disk)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=70_000))
def test_whatever_bytes_are_no_crash(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(data)
    with path.open("rb") as stream:
        window = Window(path, stream.fileno(), 0, len(data))
        probe(window)
        for make in (Ext4Tree, lambda window: FatTree(window, time_s=0)):
            with suppress(EdgeslmError):
                make(window)


GOOD = write_bmap(BlockMap(1_000_000, 4096, (BlockRange(0, 9, "0" * 64), BlockRange(20, 20, "1" * 64))))


@given(
    st.lists(
        st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
    )
)
def test_a_mutated_block_map_is_refused_or_the_same(mutations: list[tuple[int, bytes]]) -> None:
    data = bytearray(GOOD)
    for at, piece in mutations:
        data[at : at + len(piece)] = piece
    try:
        found = read_bmap(bytes(data))
    except BlockMapError:
        return
    assert found == read_bmap(GOOD)
