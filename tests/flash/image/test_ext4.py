"""Writing into an ext4 file system that nobody mounted."""

from __future__ import annotations

import hashlib
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeslm.errors import ToolMissingError, TreeError, TreeFullError
from edgeslm.flash.image.ext4 import Ext4Tree
from edgeslm.flash.image.tools import run_tool
from edgeslm.flash.tree import Entry
from tests.flash.image.conftest import DEBIAN, MIB, ROOT_AT, ROOT_MIB, STAMP_S, Workshop

Tool = Callable[..., str]
FORMS: dict[str, list[str]] = {
    "ext4": ["-b", "4096"],
    "ext4-1k": ["-b", "1024", "-I", "128"],
    "ext4-64bit-off": ["-O", "^64bit,^metadata_csum"],
    "ext4-meta-bg": ["-b", "1024", "-O", "meta_bg,^resize_inode"],
    "ext4-small-groups": ["-b", "1024", "-g", "512", "-O", "^flex_bg"],
    "ext4-csum-seed": ["-O", "metadata_csum_seed,orphan_file"],
    "quotas": ["-O", "quota,project"],
    "large-directories": ["-O", "large_dir,ea_inode,verity"],
    "groups-checked": ["-O", "uninit_bg,^metadata_csum"],
    "names-without-kinds": ["-O", "^filetype,^dir_index"],
    "ext3": ["-O", "^extents,^64bit,^metadata_csum"],
    "ext2": ["-O", "^has_journal,^extents,^64bit,^metadata_csum"],
}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tree_of(workshop: Workshop, name: str = "root.img", **how: object) -> Ext4Tree:
    return Ext4Tree(workshop.ext4(name=name, **how), time_s=STAMP_S)


def varied(count: int = 60) -> list[Entry]:
    """Files of all sizes, links, directories, owners and modes."""
    rng = random.Random(5)
    entries = [
        Entry("/opt", kind="directory", mode=0o750, uid=7),
        Entry("/opt/now", kind="symlink", target="d3"),
    ]
    for number in range(count):
        size = rng.choice([0, 1, 59, 60, 4096, 20_000, 300_000])
        path = f"/opt/d{number % 7}/file {number}.py"
        entries.append(Entry(path, content=rng.randbytes(size), mode=0o640, uid=number, gid=number * 1000))
    return entries


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_a_file_system_of_each_form_is_clean_after_writing(
    workshop: Workshop, tool: Tool, options: list[str]
) -> None:
    tree = tree_of(workshop, options=options)
    tree.write(varied())
    tool("e2fsck", "-fn", tree.window.path)
    tree.write([Entry("/opt/d1/file 1.py", content=b"again"), Entry("/etc/hostname", content=b"new\n")])
    tree.remove(["/opt/d2/file 2.py", "/opt/now"])
    tool("e2fsck", "-fn", tree.window.path)


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_debugfs_reads_what_was_written(
    workshop: Workshop, tool: Tool, tmp_path: Path, options: list[str]
) -> None:
    tree = tree_of(workshop, options=options)
    entries = varied(20)
    tree.write(entries)
    (tmp_path / "dump").mkdir()
    tool("debugfs", "-R", f"rdump /opt {tmp_path / 'dump'}", tree.window.path)
    for entry in entries:
        there = tmp_path / "dump" / entry.path[1:]
        if entry.kind == "file":
            assert there.read_bytes() == entry.content
            assert there.stat().st_mode & 0o7777 == entry.mode
            if os.geteuid() == 0:
                assert (there.stat().st_uid, there.stat().st_gid) == (entry.uid, entry.gid)
    assert (tmp_path / "dump/opt/now").readlink() == Path("d3")


def test_two_runs_with_the_same_entries_give_the_same_bytes(workshop: Workshop) -> None:
    digests = set()
    for name in ("one", "two"):
        tree = tree_of(workshop, name)
        tree.write(varied())
        tree.write(
            [
                Entry("/opt/d1/file 1.py", content=b"again"),
                Entry("/opt/link", kind="symlink", target="x" * 99),
            ]
        )
        tree.remove(["/opt/d1/file 1.py"])
        digests.add(digest(tree.window.path))
    assert len(digests) == 1


def test_everything_that_was_written_carries_the_given_time(workshop: Workshop, tool: Tool) -> None:
    tree = tree_of(workshop)
    tree.write([Entry("/a/file", content=b"x"), Entry("/a/link", kind="symlink", target="x")])
    for path in ("/a", "/a/file", "/a/link"):
        said = tool("debugfs", "-R", f"stat {path}", tree.window.path)
        times = [line for line in said.splitlines() if "time: 0x" in line]
        assert times
        assert all(f"0x{STAMP_S:x}" in line for line in times)


def test_the_time_is_that_of_the_file_system_where_none_is_given(workshop: Workshop) -> None:
    tree = Ext4Tree(workshop.ext4())
    assert tree.time_s == STAMP_S


@pytest.mark.parametrize("name", ["new\nline", "tab\tbed", "bell\7", "delete\x7f", "\rreturn"])
def test_a_name_that_cannot_be_said_to_debugfs_is_refused_and_nothing_is_written(
    workshop: Workshop, name: str
) -> None:
    tree = tree_of(workshop)
    before = digest(tree.window.path)
    if "\n" not in name:
        with pytest.raises(TreeError, match="control characters"):
            tree.write([Entry("/fine", content=b"x"), Entry(f"/{name}", content=b"x")])
    with pytest.raises(TreeError, match="control characters"):
        tree.write([Entry("/link", kind="symlink", target=name)])
    assert digest(tree.window.path) == before


def test_a_name_longer_than_names_can_be_is_refused_and_nothing_is_written(workshop: Workshop) -> None:
    tree = tree_of(workshop)
    before = digest(tree.window.path)
    for entry in (
        Entry("/" + "x" * 256, content=b""), Entry("/" + "é" * 128, content=b""),
        Entry("/link", kind="symlink", target="y" * 256), Entry("/link", kind="symlink", target="y/" * 4100),
        Entry("/link", kind="symlink", target=""), Entry("/" + "deep/" * 2000 + "x", content=b""),
    ):  # fmt: skip
        with pytest.raises(TreeError):
            tree.write([entry])
    assert digest(tree.window.path) == before


def test_words_that_debugfs_would_take_for_commands_are_names(workshop: Workshop, tool: Tool) -> None:
    tree = tree_of(workshop)
    names = ['x" "y', '"; rm hostname', 'a"b"c', "|sh", "`id`", "$(id)", "%s%n", "\\", '\\"', "'"]
    tree.write([Entry(f"/q/{name}", content=name.encode()) for name in names])
    assert tree.names("/q") == tuple(sorted(names))
    assert tree.read("/etc/hostname", max_bytes=10) == b"board\n"
    tool("e2fsck", "-fn", tree.window.path)


def test_what_does_not_fit_is_refused_before_anything_is_written(workshop: Workshop) -> None:
    tree = tree_of(workshop, size_mib=8)
    before = digest(tree.window.path)
    with pytest.raises(TreeFullError) as caught:
        tree.write([Entry("/small", content=b"x"), Entry("/large", content=bytes(8 * MIB))])
    assert caught.value.needed_bytes > caught.value.free_bytes == tree.free_bytes()
    assert caught.value.hint is not None
    assert digest(tree.window.path) == before


def test_more_files_than_it_has_room_for_are_refused_before_anything_is_written(workshop: Workshop) -> None:
    tree = tree_of(workshop, options=["-N", "64"])
    before = digest(tree.window.path)
    with pytest.raises(TreeFullError, match=r"room for .* files"):
        tree.write([Entry(f"/d/{number}") for number in range(64)])
    assert digest(tree.window.path) == before


@pytest.mark.parametrize("options", [FORMS["ext4"], FORMS["ext4-1k"]])
def test_what_is_said_to_fit_does_fit(workshop: Workshop, tool: Tool, options: list[str]) -> None:
    tree = tree_of(workshop, size_mib=16, options=[*options, "-N", "4096"])
    entries = [Entry(f"/d/{'n' * 240}{number}", content=b"") for number in range(400)]
    entries += [Entry(f"/e/{number}", content=b"\1" * 1025) for number in range(400)]
    size = tree.free_bytes() - tree.need([*entries, Entry("/last")]).size_bytes
    tree.write([*entries, Entry("/last", content=b"\1" * (size - 5000))])
    tool("e2fsck", "-fn", tree.window.path)


def test_a_file_system_that_is_full_all_the_same_is_an_error_and_what_was_there_stays(
    workshop: Workshop, tool: Tool, patch: Callable[[Path, int, bytes], None]
) -> None:
    tree = tree_of(workshop, size_mib=8, options=["-O", "^metadata_csum"])
    patch(tree.window.path, 1024 + 12, struct.pack("<I", 2**30))
    lying = Ext4Tree(tree.window, time_s=STAMP_S)
    with pytest.raises(TreeError, match="when read back"):
        lying.write([Entry("/large", content=b"\1" * (9 * MIB))])
    assert lying.read("/etc/hostname", max_bytes=10) == b"board\n"


def test_a_file_that_changes_while_it_is_written_is_found(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tree_of(workshop)
    source = tmp_path / "source"
    source.write_bytes(b"before")
    run = tree._run

    def change(lines: list[str], directory: Path) -> str:
        source.write_bytes(b"after!")
        return run(lines, directory)

    monkeypatch.setattr(tree, "_run", change)
    with pytest.raises(TreeError, match="other bytes"):
        tree.write([Entry("/file", content=source)])


def test_a_script_that_did_nothing_is_found_though_debugfs_ends_well(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tree_of(workshop)
    run = tree._run
    monkeypatch.setattr(
        tree, "_run", lambda lines, directory: run([f"# {line}" for line in lines], directory)
    )
    with pytest.raises(TreeError, match="is not there"):
        tree.write([Entry("/file", content=b"x")])
    with pytest.raises(TreeError, match="still there"):
        tree.remove(["/etc/hostname"])


@pytest.mark.parametrize(
    ("entry", "lost", "why"),
    [
        (Entry("/f", content=b"x", mode=0o600), "sif \"/f\" mode", "has the mode"),
        (Entry("/f", content=b"x", uid=5), "sif \"/f\" uid", "belongs to 0:0"),
        (Entry("/l", kind="symlink", target="x", gid=5), "sif \"/l\" gid", "belongs to 0:0"),
        (Entry("/d", kind="directory", mode=0o700), "sif \"/d\" mode", "has the mode"),
    ],
)  # fmt: skip
def test_a_command_that_was_lost_is_found(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, entry: Entry, lost: str, why: str
) -> None:
    tree = tree_of(workshop)
    run = tree._run
    monkeypatch.setattr(
        tree,
        "_run",
        lambda lines, directory: run([each for each in lines if not each.startswith(lost)], directory),
    )
    with pytest.raises(TreeError, match=why):
        tree.write([entry])


def test_a_file_system_that_was_not_unmounted_is_mended_before_it_is_changed(
    workshop: Workshop, tool: Tool, patch: Callable[[Path, int, bytes], None]
) -> None:
    tree = tree_of(workshop, options=["-O", "^metadata_csum"])
    patch(tree.window.path, 1024 + 58, struct.pack("<H", 0))
    dirty = Ext4Tree(tree.window, time_s=STAMP_S)
    dirty.write([Entry("/file", content=b"x")])
    assert dirty.read("/file", max_bytes=1) == b"x"
    tool("e2fsck", "-fn", tree.window.path)


def with_journal_to_replay(workshop: Workshop, tool: Tool) -> tuple[Path, int]:
    """A disk whose root's journal says that /etc/hostname holds something else; its path, and where the root begins."""
    path = workshop.disk(root={**DEBIAN, "etc/hostname": "old\n" * 1024}, options=["-b", "4096"])
    device = f"{path}?offset={ROOT_AT}"
    block = tool("debugfs", "-R", "blocks /etc/hostname", device).split()[-1]
    said = workshop.directory / "said"
    said.write_bytes(b"new\n" * 1024)
    script = workshop.directory / "script"
    script.write_text(f"jo\njw -b {block} {said}\njc\n")
    alone = workshop.directory / "alone"
    with path.open("rb") as disk:
        disk.seek(ROOT_AT)
        alone.write_bytes(disk.read(ROOT_MIB * MIB))
    tool("debugfs", "-w", "-f", script, alone)
    with path.open("r+b") as disk:
        disk.seek(ROOT_AT)
        disk.write(alone.read_bytes())
    for each in (said, script, alone):
        each.unlink()
    return path, ROOT_AT


def test_a_journal_is_replayed_before_anything_is_changed(workshop: Workshop, tool: Tool) -> None:
    path, at = with_journal_to_replay(workshop, tool)
    before = (sorted(workshop.directory.iterdir()), path.read_bytes()[:at])
    tree = workshop.open(path).root
    assert tree.read("/etc/hostname", max_bytes=4096).startswith(b"old")
    tree.write([Entry("/file", content=b"x")])
    assert tree.read("/etc/hostname", max_bytes=4096) == b"new\n" * 1024
    assert tree.read("/file", max_bytes=1) == b"x"
    tool("e2fsck", "-fn", tree.device)
    assert (sorted(workshop.directory.iterdir()), path.read_bytes()[:at]) == before


def test_a_journal_that_cannot_be_replayed_leaves_the_image_as_it_was(
    workshop: Workshop, tool: Tool, patch: Callable[[Path, int, bytes], None]
) -> None:
    path, at = with_journal_to_replay(workshop, tool)
    patch(path, at + 4096, b"\xff" * 64)
    before = digest(path)
    with pytest.raises(TreeError):
        workshop.open(path).root.write([Entry("/file", content=b"x")])
    assert digest(path) == before


def test_a_file_system_that_cannot_be_mended_without_a_question_is_refused(
    workshop: Workshop, patch: Callable[[Path, int, bytes], None]
) -> None:
    tree = tree_of(workshop, options=["-O", "^metadata_csum", "-b", "4096"])
    patch(tree.window.path, 1024 + 58, struct.pack("<H", 2))
    patch(tree.window.path, 4096, b"\xff" * 64)
    with pytest.raises(TreeError):
        Ext4Tree(tree.window, time_s=STAMP_S).write([Entry("/file", content=b"x")])


def test_a_missing_program_is_named_with_its_package(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tree_of(workshop)
    monkeypatch.setattr("edgeslm.flash.image.tools._SYSTEM_PATH", "/nonexistent")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ToolMissingError) as caught:
        tree.write([Entry("/file", content=b"x")])
    assert (caught.value.tool, caught.value.package) == ("debugfs", "e2fsprogs")


def test_nothing_is_left_beside_the_image(workshop: Workshop) -> None:
    tree = tree_of(workshop, size_mib=8)
    before = sorted(workshop.directory.iterdir())
    tree.write([Entry("/file", content=b"x")])
    with pytest.raises(TreeError):
        tree.write([Entry("/other", content=workshop.directory / "missing")])
    tree.remove(["/file"])
    assert sorted(workshop.directory.iterdir()) == before


def test_a_special_file_is_told_and_can_be_replaced(workshop: Workshop, tool: Tool) -> None:
    tree = tree_of(workshop)
    tool("debugfs", "-w", "-R", "mknod fifo p", tree.window.path)
    tree = Ext4Tree(tree.window, time_s=STAMP_S)
    node = tree.stat("/fifo")
    assert node is not None
    assert node.kind == "other"
    with pytest.raises(TreeError):
        tree.read("/fifo", max_bytes=1)
    tree.write([Entry("/fifo", content=b"file")])
    assert tree.read("/fifo", max_bytes=4) == b"file"


def test_a_file_with_another_name_keeps_its_bytes_when_one_name_is_replaced(
    workshop: Workshop, tool: Tool
) -> None:
    tree = tree_of(workshop)
    tree.write([Entry("/one", content=b"shared")])
    tool(
        "debugfs", "-w", "-f", "/dev/stdin", tree.window.path, stdin="ln /one /two\nsif /one links_count 2\n"
    )
    tree = Ext4Tree(tree.window, time_s=STAMP_S)
    tree.write([Entry("/one", content=b"own")])
    assert (tree.read("/one", max_bytes=9), tree.read("/two", max_bytes=9)) == (b"own", b"shared")
    tool("e2fsck", "-fn", tree.window.path)


def test_thousands_of_files_take_one_process(
    workshop: Workshop, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tree_of(workshop, size_mib=64, options=["-b", "4096"])
    started: list[str] = []

    def run(command: list[str], **how: Any) -> str:
        started.append(command[0])
        return run_tool(command, **how)

    monkeypatch.setattr("edgeslm.flash.image.ext4.run_tool", run)
    entries = [
        Entry(f"/opt/venv/lib/p{number % 40}/m{number}.py", content=b"\1" * 900) for number in range(2000)
    ]
    tree.write(entries)
    assert started == ["debugfs"]
    assert len(tree.names("/opt/venv/lib/p7")) == 50
    tool("e2fsck", "-fn", tree.window.path)


def test_thousands_of_files_in_one_directory_are_found_again(workshop: Workshop, tool: Tool) -> None:
    tree = tree_of(workshop, size_mib=64)
    tree.write([Entry(f"/many/{'x' * 60}{number}", content=b"") for number in range(1000)])
    assert len(tree.names("/many")) == 1000
    tool("e2fsck", "-fn", tree.window.path)
