"""Writing into a FAT boot partition that nobody mounted, and reading it from its clusters."""

from __future__ import annotations

import hashlib
import itertools
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeslm.errors import ToolMissingError, TreeError, TreeFullError
from edgeslm.flash.image.fat import FatTree
from edgeslm.flash.image.fat_reader import FatReader, fold
from edgeslm.flash.tree import Entry
from tests.flash.image.conftest import MIB, STAMP_S, Workshop

Tool = Callable[..., str]
Patch = Callable[[Path, int, bytes], None]
FORMS: dict[str, tuple[int, list[str]]] = {
    "fat12": (4, ["-F", "12"]),
    "fat16": (16, ["-F", "16"]),
    "fat32": (40, ["-F", "32", "-s", "1"]),
    "fat32-large": (128, ["-F", "32"]),
    "large-sectors": (32, ["-S", "4096"]),
}


def tree_of(workshop: Workshop, form: str = "fat16", name: str = "boot.img") -> FatTree:
    size, options = FORMS[form]
    return FatTree(workshop.fat(size_mib=size, options=options, name=name), time_s=STAMP_S)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def varied() -> list[Entry]:
    return [
        Entry("/config.txt", content=b"arm_64bit=1\n"),
        Entry("/overlays/a-rather-long-name-of-an-overlay.dtbo", content=bytes(range(256)) * 40),
        *(Entry(f"/some/deep/place/File number {at}.TXT", content=b"x" * at * 501) for at in range(24)),
        Entry("/empty", content=b""),
    ]


@pytest.mark.parametrize("form", FORMS)
def test_a_file_system_of_each_form_is_clean_after_writing(workshop: Workshop, tool: Tool, form: str) -> None:
    tree = tree_of(workshop, form)
    tree.write(varied())
    tool("fsck.vfat", "-n", tree.window.path)
    tree.write([Entry("/config.txt", content=b"longer than it was before\n" * 100)])
    tree.remove(["/empty", "/overlays/a-rather-long-name-of-an-overlay.dtbo", "/overlays"])
    tool("fsck.vfat", "-n", tree.window.path)
    assert tree.names("/") == ("config.txt", "some")


@pytest.mark.parametrize("form", ["fat12", "fat16", "fat32"])
def test_mtools_reads_what_was_written(workshop: Workshop, tool: Tool, tmp_path: Path, form: str) -> None:
    tree = tree_of(workshop, form)
    tree.write(varied())
    (tmp_path / "out").mkdir()
    tool("mcopy", "-s", "-n", "-i", tree.window.path, "::*", tmp_path / "out")
    for entry in varied():
        assert (tmp_path / "out" / entry.path[1:]).read_bytes() == entry.content


def test_two_runs_with_the_same_entries_give_the_same_bytes(workshop: Workshop) -> None:
    digests = set()
    for name in ("one", "two"):
        tree = tree_of(workshop, name=name)
        tree.write(varied())
        tree.write([Entry("/config.txt", content=b"again")])
        digests.add(digest(tree.window.path))
    assert len(digests) == 1


def test_names_are_found_in_any_case_and_keep_the_one_they_were_given(workshop: Workshop, tool: Tool) -> None:
    tree = tree_of(workshop)
    tree.write(
        [Entry("/Config.TXT", content=b"1"), Entry("/LOWER", content=b"1"), Entry("/Üb.txt", content=b"1")]
    )
    assert tree.read("/config.txt", max_bytes=9) == tree.read("/CONFIG.TXT", max_bytes=9) == b"1"
    assert tree.read("/üB.TXT", max_bytes=9) == b"1"
    assert tree.names("/") == ("Config.TXT", "LOWER", "Üb.txt")
    tree.write([Entry("/CONFIG.txt", content=b"two"), Entry("/config.txt", content=b"three")])
    assert tree.read("/Config.TXT", max_bytes=9) == b"three"
    assert len(tree.names("/")) == 3
    tool("fsck.vfat", "-n", tree.window.path)


def test_a_letter_that_becomes_two_in_upper_case_stays_one() -> None:
    assert fold("straße.txt") != fold("STRASSE.TXT")
    assert fold("a.Txt") == fold("A.tXT")


def test_links_are_refused_and_nothing_is_written(workshop: Workshop) -> None:
    tree = tree_of(workshop)
    before = digest(tree.window.path)
    with pytest.raises(TreeError, match="FAT has none"):
        tree.write([Entry("/fine", content=b"x"), Entry("/link", kind="symlink", target="fine")])
    assert digest(tree.window.path) == before


@pytest.mark.parametrize("count", [1, 40])
def test_what_does_not_fit_is_refused_before_anything_is_written(workshop: Workshop, count: int) -> None:
    tree = tree_of(workshop, "fat12")
    before = digest(tree.window.path)
    with pytest.raises(TreeFullError) as caught:
        tree.write([Entry(f"/{at}", content=bytes(5 * MIB // count)) for at in range(count)])
    assert caught.value.needed_bytes > caught.value.free_bytes == tree.free_bytes()
    assert digest(tree.window.path) == before


def test_room_that_a_replaced_file_gives_back_is_counted(workshop: Workshop) -> None:
    tree = tree_of(workshop, "fat12")
    tree.write([Entry("/large", content=b"\1" * (3 * MIB))])
    tree.write([Entry("/large", content=b"\2" * (3 * MIB))])
    assert tree.read("/large", max_bytes=4 * MIB) == b"\2" * (3 * MIB)


def test_a_root_directory_that_is_full_is_an_error_and_what_was_there_stays(
    workshop: Workshop, tool: Tool
) -> None:
    tree = tree_of(workshop, "fat16")
    tree.write([Entry("/config.txt", content=b"stays")])
    with pytest.raises(TreeError, match="when read back"):
        tree.write([Entry(f"/{'n' * 200}{at}", content=b"") for at in range(40)])
    assert tree.read("/config.txt", max_bytes=9) == b"stays"
    tool("fsck.vfat", "-n", tree.window.path)


def test_free_bytes_are_those_that_mtools_counts(workshop: Workshop, tool: Tool) -> None:
    for form in ("fat12", "fat16", "fat32"):
        tree = tree_of(workshop, form, form)
        tree.write(varied())
        said = tool("mdir", "-i", tree.window.path, "::").splitlines()[-2]
        assert tree.free_bytes() == int("".join(letter for letter in said if letter.isdigit()))


def test_free_ranges_are_the_free_clusters_in_order(workshop: Workshop) -> None:
    for form in ("fat12", "fat16", "fat32"):
        tree = tree_of(workshop, form, form)
        tree.write(varied())
        reader = FatReader(tree.window)
        ranges = list(reader.free_ranges())
        assert sum(end - start for start, end in ranges) == reader.free_clusters() * reader.cluster_bytes
        assert all(one[1] < other[0] for one, other in itertools.pairwise(ranges))


def test_nothing_is_left_beside_the_image(workshop: Workshop) -> None:
    tree = tree_of(workshop)
    before = sorted(workshop.directory.iterdir())
    tree.write([Entry("/file", content=b"x")])
    tree.remove(["/file"])
    assert sorted(workshop.directory.iterdir()) == before


def test_a_missing_program_is_named_with_its_package(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tree_of(workshop)
    monkeypatch.setattr("edgeslm.flash.image.tools._SYSTEM_PATH", "/nonexistent")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ToolMissingError) as caught:
        tree.write([Entry("/file", content=b"x")])
    assert caught.value.package == "mtools"


# --- crafted ------------------------------------------------------------------------------------------------------

BOOT: dict[str, tuple[int, bytes, str]] = {
    "no mark": (510, b"\0\0", "it is no FAT"),
    "sectors of 3 bytes": (11, b"\3\0", "it is no FAT"),
    "no table": (16, b"\0", "it is no FAT"),
    "clusters of 3 sectors": (13, b"\3", "clusters have no possible size"),
    "larger than its partition": (19, b"\xff\xff", "reaches out"),
    "table larger than all": (22, b"\xff\xff", "reaches out"),
    "table too small": (22, b"\1\0", "table has no possible size"),
    "reserved larger than all": (14, b"\xff\xff", "reaches out"),
}


@pytest.mark.parametrize(("at", "data", "why"), BOOT.values(), ids=BOOT)
def test_an_impossible_boot_sector_is_refused_by_name(
    workshop: Workshop, patch: Patch, at: int, data: bytes, why: str
) -> None:
    window = workshop.fat(size_mib=16, options=["-F", "16"])
    patch(window.path, at, data)
    with pytest.raises(TreeError, match=why):
        FatReader(window)


class Table:
    """The places of a FAT16 whose fields are overwritten."""

    def __init__(self, workshop: Workshop, patch: Patch) -> None:
        self.tree = tree_of(workshop)
        self.tree.write([Entry("/dir/file", content=b"\1" * 100_000), Entry("/dir/sub", kind="directory")])
        self.patch = patch
        self.path = self.tree.window.path

    def node(self, path: str) -> tuple[int, int]:
        """First cluster of what is at a path, and where that cluster lies."""
        reader = FatReader(self.tree.window)
        found = reader.find(path)
        assert found is not None
        return found.cluster, reader._data_at + (found.cluster - 2) * reader.cluster_bytes

    def link(self, cluster: int, to: int) -> None:
        (reserved,) = struct.unpack_from("<H", self.path.read_bytes()[:512], 14)
        self.patch(self.path, reserved * 512 + cluster * 2, struct.pack("<H", to))

    def again(self) -> FatTree:
        return FatTree(self.tree.window, time_s=STAMP_S)


@pytest.fixture
def table(workshop: Workshop, patch: Patch) -> Table:
    return Table(workshop, patch)


def test_a_file_whose_clusters_run_in_a_circle_ends_with_its_size(table: Table) -> None:
    cluster, _ = table.node("/dir/file")
    table.link(cluster + 5, cluster + 3)
    assert len(table.again().read("/dir/file", max_bytes=MIB)) == 100_000


@pytest.mark.parametrize("to", [0, 1, 0xFFF0])
def test_a_file_that_leads_out_is_refused(table: Table, to: int) -> None:
    cluster, _ = table.node("/dir/file")
    table.link(cluster + 5, to)
    with pytest.raises(TreeError, match="leads to cluster"):
        table.again().read("/dir/file", max_bytes=MIB)


def test_a_file_shorter_than_it_says_is_refused(table: Table) -> None:
    cluster, _ = table.node("/dir/file")
    table.link(cluster + 5, 0xFFFF)
    with pytest.raises(TreeError, match="fewer bytes"):
        table.again().read("/dir/file", max_bytes=MIB)


def test_a_directory_whose_clusters_run_in_a_circle_is_refused_soon(table: Table) -> None:
    cluster, _ = table.node("/dir")
    table.link(cluster, cluster)
    started = time.monotonic()
    with pytest.raises(TreeError, match=r"circle|larger than directories"):
        table.again().names("/dir")
    assert time.monotonic() - started < 5


def test_a_directory_that_holds_itself_is_told_before_it_is_walked_forever(table: Table) -> None:
    cluster, _ = table.node("/dir")
    _, at = table.node("/dir/sub")
    table.patch(table.path, at + 64, struct.pack("<11sB8xHHHHI", b"LOOP       ", 0x10, 0, 0, 0, cluster, 0))
    tree = table.again()
    assert tree.names("/dir/sub") == ("LOOP",)
    with pytest.raises(TreeError, match="circle"):
        tree.read("/dir/sub" + "/loop/sub" * 500 + "/x", max_bytes=1)


def test_parts_of_a_long_name_that_belong_to_no_file_are_passed_over(
    workshop: Workshop, patch: Patch
) -> None:
    tree = tree_of(workshop)
    tree.write([Entry("/a long name.text", content=b"x")])
    raw = tree.window.path.read_bytes()
    at = raw.index("a lon".encode("utf-16-le")) - 1
    patch(tree.window.path, at + 13, b"\0")
    assert FatTree(tree.window, time_s=0).names("/") == ("ALONGN~1.TEX",)
