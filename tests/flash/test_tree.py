"""Entries, where paths lead, and a directory as a tree; what all trees keep is in image/test_trees.py."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import TreeError
from edgeslm.flash.tree import DirectoryTree, Entry, Node, is_plain, pieces, resolve

ROOT = os.geteuid() == 0
DIRECTORY, FILE = Node("directory", 0o755, 0, 0, 0), Node("file", 0o644, 0, 0, 0)


class There:
    """A tree of links alone; everything else is a directory."""

    def __init__(self, links: dict[str, str]) -> None:
        self.links = links

    def stat(self, path: str) -> Node | None:
        target = self.links.get(path)
        return DIRECTORY if target is None else Node("symlink", 0o777, 0, 0, len(target), target)


@pytest.fixture
def tree(tmp_path: Path) -> DirectoryTree:
    (tmp_path / "root").mkdir()
    return DirectoryTree(tmp_path / "root", keeps_owners=ROOT)


@pytest.mark.parametrize("path", ["a", "", "/a/", "/a//b", "/a/.", "/..", "/a/../b", "//a", "/a\0", "/a\nb"])
def test_a_path_has_one_reading_or_is_refused(path: str) -> None:
    assert not is_plain(path)
    with pytest.raises(TreeError):
        Entry(path)


def test_the_root_is_no_entry() -> None:
    assert is_plain("/")
    with pytest.raises(TreeError):
        Entry("/")


def test_an_entry_knows_how_much_it_takes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    assert Entry("/a", content=b"123").size_bytes == 3
    assert Entry("/a", content=tmp_path / "f").size_bytes == 5
    assert (
        Entry("/a", kind="directory").size_bytes == Entry("/a", kind="symlink", target="xyz").size_bytes == 0
    )
    with pytest.raises(OSError, match="missing"):
        _ = Entry("/a", content=tmp_path / "missing").size_bytes


@pytest.mark.parametrize(
    ("links", "path", "found"),
    [
        ({}, "/a/b", "/a/b"), ({}, "/", "/"),
        ({"/bin": "usr/bin"}, "/bin/sh", "/usr/bin/sh"), ({"/bin": "/usr/bin"}, "/bin/sh", "/usr/bin/sh"),
        ({"/a/b": "../c"}, "/a/b/d", "/c/d"), ({"/a": "../../../../etc"}, "/a/passwd", "/etc/passwd"),
        ({"/a": "b", "/b": "c", "/c": "d"}, "/a", "/d"), ({"/a": "."}, "/a/a/a", "/"), ({"/a": "/"}, "/a/x", "/x"),
        ({"/a": "//x///y/"}, "/a/z", "/x/y/z"),
    ],
)  # fmt: skip
def test_links_lead_within_the_tree(links: dict[str, str], path: str, found: str) -> None:
    assert resolve(There(links), path) == found


def test_the_last_part_is_left_where_that_is_asked_for() -> None:
    assert resolve(There({"/a": "b", "/b/c": "d"}), "/a/c", last=False) == "/b/c"


@pytest.mark.parametrize("links", [{"/a": "a"}, {"/a": "b", "/b": "a"}, {"/a": "a/a"}, {"/a": "../a/x"}])
def test_links_in_a_circle_are_an_error(links: dict[str, str]) -> None:
    with pytest.raises(TreeError, match="circle"):
        resolve(There(links), "/a/x")


@pytest.mark.parametrize("target", ["b/" * 2000 + "a", "b/../" * 800 + "a", "b/" * 1000 + "../" * 1000 + "a"])
def test_links_that_multiply_their_path_end(target: str) -> None:
    links = {"/a": target} | {f"{'/b' * depth}/a": target for depth in range(2100)}
    with pytest.raises(TreeError, match=r"circle|too long"):
        resolve(There(links), "/a")


PARTS = st.sampled_from(["a", "b", "..", ".", "/", "//"])


PLACES = st.sampled_from(["/a", "/b", "/a/a", "/a/b", "/b/a"])


@given(st.dictionaries(PLACES, st.lists(PARTS, min_size=1).map("/".join)))
def test_where_links_lead_is_plain_and_has_no_link_on_its_way(links: dict[str, str]) -> None:
    there = There(links)
    try:
        found = resolve(there, "/a/b/a")
    except TreeError:
        return
    assert is_plain(found)
    while found != "/":
        node = there.stat(found)
        assert node is not None
        assert node.kind != "symlink"
        found = posixpath.dirname(found)


def test_links_out_of_a_directory_lead_nowhere_outside(tmp_path: Path, tree: DirectoryTree) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    (tmp_path / "root/up").symlink_to("../outside")
    (tmp_path / "root/abs").symlink_to(tmp_path / "outside")
    (tmp_path / "root/dir").symlink_to("..")
    for path in ("/up", "/abs", "/dir/outside"):
        with pytest.raises(TreeError):
            tree.read(path, max_bytes=100)
    tree.write([Entry("/dir/outside", content=b"inside")])
    assert (tmp_path / "outside").read_bytes() == b"secret"
    assert (tmp_path / "root/outside").read_bytes() == b"inside"
    tree.remove(["/dir/outside"])
    assert (tmp_path / "outside").exists()


def test_a_write_that_fails_keeps_what_was_there(
    tmp_path: Path, tree: DirectoryTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.write([Entry("/f", content=b"before"), Entry("/l", kind="symlink", target="before")])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TreeError, match="No space left"):
        tree.write([Entry("/f", content=b"after")])
    monkeypatch.undo()
    monkeypatch.setattr(Path, "replace", full)
    for entry in (Entry("/f", content=b"after"), Entry("/l", kind="symlink", target="after")):
        with pytest.raises(TreeError, match="No space left"):
            tree.write([entry])
    assert tree.read("/f", max_bytes=9) == b"before"
    assert sorted(each.name for each in (tmp_path / "root").iterdir()) == ["f", "l"]


def test_a_file_is_never_there_in_part(
    tmp_path: Path, tree: DirectoryTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.write([Entry("/f", content=b"before")])
    replace = Path.replace
    seen = []

    def look(source: Path, target: Path) -> Path:
        seen.append((target.read_bytes(), source.read_bytes(), source.stat().st_mode & 0o777))
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", look)
    tree.write([Entry("/f", content=b"after", mode=0o600)])
    assert seen == [(b"before", b"after", 0o600)]


def test_all_that_was_touched_is_synced(
    tmp_path: Path, tree: DirectoryTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    tree.write(
        [
            Entry("/new/deep/f", content=b"x"),
            Entry("/d", kind="directory"),
            Entry("/d/l", kind="symlink", target="x"),
        ]
    )
    root = str(tmp_path / "root")
    assert {root, f"{root}/new", f"{root}/new/deep", f"{root}/d"} <= set(synced)
    assert ".partial-" in synced[0]


@pytest.mark.skipif(not ROOT, reason="only root can give files to others")
def test_owners_are_kept_only_where_that_is_asked_for(tmp_path: Path) -> None:
    for keeps, owner in ((True, 1234), (False, 0)):
        root = tmp_path / str(keeps)
        root.mkdir()
        DirectoryTree(root, keeps_owners=keeps).write([
            Entry("/f", uid=1234, gid=1234), Entry("/d", kind="directory", uid=1234, gid=1234),
            Entry("/l", kind="symlink", target="f", uid=1234, gid=1234),
        ])  # fmt: skip
        assert {(each.lstat().st_uid, each.lstat().st_gid) for each in root.iterdir()} == {(owner, owner)}


def test_a_special_file_is_told_and_not_read(tmp_path: Path, tree: DirectoryTree) -> None:
    os.mkfifo(tmp_path / "root/fifo")
    node = tree.stat("/fifo")
    assert node is not None
    assert node.kind == "other"
    with pytest.raises(TreeError):
        tree.read("/fifo", max_bytes=1)


def test_free_bytes_are_those_of_the_disk(tmp_path: Path, tree: DirectoryTree) -> None:
    assert tree.free_bytes() > 0
    with pytest.raises(TreeError):
        DirectoryTree(tmp_path / "missing").free_bytes()


def test_pieces_are_of_bounded_size(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(10))
    assert [len(piece) for piece in pieces(Entry("/f", content=tmp_path / "f"), 4)] == [4, 4, 2]
    assert list(pieces(Entry("/f", content=b"abc"))) == [b"abc"]
