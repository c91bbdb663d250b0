"""What every tree keeps: that of a directory, of an ext4 file system and of a FAT one."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from edgeslm.errors import TreeError
from edgeslm.flash.image.ext4 import Ext4Tree
from edgeslm.flash.image.fat import FatTree
from edgeslm.flash.tree import DirectoryTree, Entry, Tree
from tests.flash.image.conftest import Workshop

POSIX = ["directory", "ext4", "ext4-1k", "ext3"]


def make(kind: str, workshop: Workshop) -> Tree:
    """An empty tree."""
    match kind:
        case "directory":
            (workshop.directory / "root").mkdir()
            return DirectoryTree(workshop.directory / "root", keeps_owners=os.geteuid() == 0)
        case "ext4":
            return Ext4Tree(workshop.ext4({}, options=["-b", "4096"]))
        case "ext4-1k":
            return Ext4Tree(workshop.ext4({}, options=["-b", "1024"]))
        case "ext3":
            return Ext4Tree(workshop.ext4({}, options=["-O", "^extents,^64bit,^metadata_csum"]))
        case "fat12":
            return FatTree(workshop.fat(size_mib=4, options=["-F", "12"]), time_s=0)
        case "fat16":
            return FatTree(workshop.fat(size_mib=16, options=["-F", "16"]), time_s=0)
        case _:
            return FatTree(workshop.fat(size_mib=80, options=["-F", "32", "-s", "2"]), time_s=0)


@pytest.fixture(params=[*POSIX, "fat12", "fat16", "fat32"])
def tree(request: pytest.FixtureRequest, workshop: Workshop) -> Tree:
    return make(request.param, workshop)


@pytest.fixture(params=POSIX)
def posix(request: pytest.FixtureRequest, workshop: Workshop) -> Tree:
    """A tree that knows modes and links."""
    return make(request.param, workshop)


def test_what_was_written_is_there(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"from a file")
    content = {
        "/empty": b"",
        "/a": b"text",
        "/deep/er/still/file.bin": random.Random(1).randbytes(200_001),
        "/deep/zeros": bytes(150_000),
    }
    entries = [Entry(path, content=data) for path, data in content.items()]
    tree.write(
        [
            *entries,
            Entry("/deep/copied", content=tmp_path / "here"),
            Entry("/made", kind="directory", mode=0o755),
        ]
    )
    for path, data in content.items():
        assert tree.read(path, max_bytes=len(data)) == data
        node = tree.stat(path)
        assert node is not None
        assert (node.kind, node.size_bytes) == ("file", len(data))
    assert tree.read("/deep/copied", max_bytes=100) == b"from a file"
    assert set(tree.names("/")) >= {"a", "deep", "empty", "made"}
    assert tree.names("/deep") == ("copied", "er", "zeros")
    assert tree.names("/made") == ()
    made = tree.stat("/deep/er")
    assert made is not None
    assert (made.kind, made.mode) == ("directory", 0o755)


def test_a_second_writing_takes_the_place_of_the_first(tree: Tree) -> None:
    tree.write([Entry("/d/file", content=b"\1" * 100_000), Entry("/d/other", content=b"stays")])
    free = tree.free_bytes()
    tree.write([Entry("/d/file", content=b"short"), Entry("/d", kind="directory", mode=0o755)])
    assert tree.read("/d/file", max_bytes=10) == b"short"
    assert tree.names("/d") == ("file", "other")
    if not isinstance(tree, DirectoryTree):
        assert tree.free_bytes() > free


def test_later_entries_see_those_before_them(tree: Tree) -> None:
    tree.write([
        Entry("/same", content=b"first"), Entry("/new/one", content=b"1"), Entry("/same", content=b"second"),
        Entry("/new", kind="directory", mode=0o755), Entry("/new/two", content=b"2"),
    ])  # fmt: skip
    assert tree.read("/same", max_bytes=10) == b"second"
    assert tree.names("/new") == ("one", "two")


def test_what_is_not_there_is_none_or_an_error(tree: Tree) -> None:
    tree.write([Entry("/file", content=b"x"), Entry("/d/file", content=b"x")])
    assert tree.stat("/nothing") is None
    assert tree.stat("/file/below") is None
    for path in ("/nothing", "/d"):
        with pytest.raises(TreeError):
            tree.read(path, max_bytes=10)
    for path in ("/nothing", "/file"):
        with pytest.raises(TreeError):
            tree.names(path)


def test_no_more_is_read_than_allowed(tree: Tree) -> None:
    tree.write([Entry("/file", content=b"12345")])
    assert tree.read("/file", max_bytes=5) == b"12345"
    with pytest.raises(TreeError, match="more than 4"):
        tree.read("/file", max_bytes=4)


@pytest.mark.parametrize("path", ["relative", "/a/../b", "/a//b", "/a/", "/a\nb", "/a\0b", "", "/./a"])
def test_a_path_with_two_readings_is_refused(tree: Tree, path: str) -> None:
    for call in (
        tree.stat,
        tree.names,
        lambda path: tree.read(path, max_bytes=1),
        lambda path: tree.remove([path]),
    ):
        with pytest.raises(TreeError):
            call(path)
    with pytest.raises(TreeError):
        Entry(path)


def test_a_file_does_not_take_the_place_of_a_directory_or_the_other_way_round(tree: Tree) -> None:
    tree.write([Entry("/d/file", content=b"x")])
    for entry in (
        Entry("/d", content=b"y"),
        Entry("/d/file", kind="directory"),
        Entry("/d/file/below", content=b"y"),
    ):
        with pytest.raises(TreeError):
            tree.write([entry])
    assert tree.read("/d/file", max_bytes=10) == b"x"


def test_what_is_removed_is_gone_and_what_is_not_there_is_passed_over(tree: Tree) -> None:
    tree.write([Entry("/d/file", content=b"x"), Entry("/stays", content=b"y")])
    with pytest.raises(TreeError):
        tree.remove(["/d"])
    tree.remove(["/d/file", "/nothing", "/d"])
    assert tree.stat("/d") is None
    assert tree.read("/stays", max_bytes=10) == b"y"
    tree.remove([])


# fmt: off
ODD = [
    "with space", " leading", "trailing ", "semi;colon", "ap'ostrophe", "do$llar", "back`tick", "#hash", "-dash", "--",
    "~tilde", "per%cent", "umläut", "日本語", "a" * 200, "{brace}", "plus+comma,equal=", "(parens)", "ends.", "!bang",
    "&and", "@@16", "CamelCase.TXT", "lower.txt", "UPPER2.TXT", "a.b.c.d", "x" * 9 + ".y", "emoji 🚀", '"quoted"',
    'two""quotes', '"', "<12>", "*", "a*b", "?", "[a]", "back\\slash", "pi|pe", "gr>t", "co:lon", "\\", "é" * 127,
    "\udcff\udc80", "b" * 255,
]
TARGETS = [
    "a", "/etc/passwd", "../../up", "with space", 'qu"ote', "-x", "t" * 59, "t" * 60, "t/" * 300 + "t", "日本語", "<5>",
]
# fmt: on


def test_odd_names_are_names(tree: Tree) -> None:
    refused = [name for name in ODD if isinstance(tree, FatTree) and not fits_fat(name)]
    names = [name for name in ODD if name not in refused]
    for name in refused:
        with pytest.raises(TreeError, match="cannot be a name"):
            tree.write([Entry(f"/{name}/x")])
    assert tree.names("/") in {(), ("lost+found",)}
    tree.write(
        [Entry(f"/{at}/{name}", content=name.encode("utf-8", "ignore")) for at, name in enumerate(names)]
    )
    tree.write([Entry(f"/all/{name}/{name}", content=b"deep") for name in names])
    assert tree.names("/all") == tuple(sorted(names))
    for at, name in enumerate(names):
        assert tree.names(f"/{at}") == (name,)
        assert tree.read(f"/{at}/{name}", max_bytes=1000) == name.encode("utf-8", "ignore")
    tree.write([Entry(f"/all/{name}/{name}", content=b"again") for name in names])
    tree.remove([f"/all/{name}/{name}" for name in names])
    tree.remove([f"/all/{name}" for name in names])
    assert tree.names("/all") == ()


def fits_fat(name: str) -> bool:
    odd = any(letter in '"*:<>?\\|[]' or not letter.isprintable() or ord(letter) > 0xFFFF for letter in name)
    return not odd and name == name.strip(" ") and not name.endswith(".")


def test_modes_and_owners_are_kept(posix: Tree) -> None:
    root = not isinstance(posix, DirectoryTree) or os.geteuid() == 0
    uid, gid = (1000, 70_000) if root else (os.geteuid(), os.getegid())
    posix.write([
        Entry("/secret", content=b"x", mode=0o600, uid=uid, gid=gid),
        Entry("/run", content=b"x", mode=0o755), Entry("/suid", content=b"x", mode=0o4755),
        Entry("/none", content=b"x", mode=0),
        Entry("/home", kind="directory", mode=0o2750, uid=uid, gid=gid),
        Entry("/home/tmp", kind="directory", mode=0o1777),
        Entry("/home/link", kind="symlink", target="/secret", uid=uid, gid=gid),
    ])  # fmt: skip
    found = {path: posix.stat(path) for path in ("/secret", "/run", "/suid", "/none", "/home", "/home/tmp")}
    assert [node and oct(node.mode) for node in found.values()] == [
        "0o600", "0o755", "0o4755", "0o0", "0o2750", "0o1777",
    ]  # fmt: skip
    link = posix.stat("/home/link")
    assert link is not None
    if root:
        owned = [found["/secret"], found["/home"], link]
        assert [(node.uid, node.gid) for node in owned if node is not None] == [(1000, 70_000)] * 3
    posix.write([Entry("/home", kind="directory", mode=0o700), Entry("/secret", content=b"x", mode=0o640)])
    again = posix.stat("/secret")
    assert again is not None
    assert again.mode == 0o640


@pytest.mark.parametrize("target", TARGETS, ids=range(len(TARGETS)))
def test_links_keep_their_target(posix: Tree, target: str) -> None:
    posix.write([Entry("/d/link", kind="symlink", target=target)])
    node = posix.stat("/d/link")
    assert node is not None
    assert (node.kind, node.target) == ("symlink", target)
    posix.write([Entry("/d/link", content=b"file now")])
    posix.write([Entry("/d/link", kind="symlink", target="b")])
    assert posix.names("/d") == ("link",)


def test_links_are_followed_within_the_tree_whatever_they_say(posix: Tree) -> None:
    posix.write([
        Entry("/usr/bin/tool", content=b"tool"), Entry("/bin", kind="symlink", target="usr/bin"),
        Entry("/usr/out", kind="symlink", target="../../../../../bin"), Entry("/abs", kind="symlink", target="/usr"),
        Entry("/bin/more", content=b"more"), Entry("/abs/lib/x", content=b"x"),
    ])  # fmt: skip
    for path in ("/bin/tool", "/usr/out/tool", "/abs/bin/tool", "/abs/out/tool"):
        assert posix.read(path, max_bytes=10) == b"tool"
    assert posix.names("/bin") == ("more", "tool")
    assert posix.read("/usr/lib/x", max_bytes=1) == b"x"
    posix.remove(["/bin/more"])
    assert posix.names("/usr/bin") == ("tool",)


def test_a_link_is_replaced_and_what_it_leads_to_is_not(posix: Tree) -> None:
    posix.write([Entry("/real", content=b"real"), Entry("/link", kind="symlink", target="real")])
    posix.write([Entry("/link", content=b"file")])
    assert (posix.read("/real", max_bytes=9), posix.read("/link", max_bytes=9)) == (b"real", b"file")
    posix.write([Entry("/link", kind="symlink", target="real")])
    posix.remove(["/link"])
    assert posix.read("/real", max_bytes=9) == b"real"


def test_links_in_a_circle_are_an_error(posix: Tree) -> None:
    posix.write([
        Entry("/a", kind="symlink", target="b"), Entry("/b", kind="symlink", target="/a"),
        Entry("/self", kind="symlink", target="self/self"),
    ])  # fmt: skip
    for path in ("/a", "/self", "/a/below"):
        with pytest.raises(TreeError, match=r"circle|too long"):
            posix.read(path, max_bytes=1)
    with pytest.raises(TreeError, match="circle"):
        posix.write([Entry("/a/below", content=b"x")])


def test_a_file_that_cannot_be_read_here_is_named(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(TreeError, match="/file"):
        tree.write([Entry("/file", content=tmp_path / "missing")])
    assert tree.stat("/file") is None
