"""Installing, upgrading and removing, ended with SIGKILL before each change of the file system, one after the other."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgeslm.flash.onboard import main, removal, work
from edgeslm.flash.onboard.disk import Disk
from edgeslm.flash.payload import layout

CHANGES = {"os.mkdir", "os.rename", "os.symlink", "os.chmod", "os.chown", "os.remove", "os.rmdir"}
Archives = Callable[..., Any]


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process wrote is there, synced or not; so the disk need not be waited for."""
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def silent(text: str) -> None:
    del text


def installs(root: Path, made: Any) -> None:
    disk = Disk(root, layout.STATE)
    plan = work.plan_install(made.manifest, disk)
    main.perform_install(made.manifest, plan, disk, main.Archive(made.path).open_bytes, silent, starts=False)


def removes(root: Path) -> None:
    if not (root / layout.MANIFEST[1:]).exists():
        return  # it goes last, so all of it is gone
    disk = Disk(root, layout.STATE)
    found = removal.plan_uninstall(layout.MANIFEST, layout.STATE, layout.UNIT_NAME, disk, purge=False)
    main.perform_uninstall(found, layout.MANIFEST, disk, silent, service_name=None)


def ends_before(change: int, do: Callable[[], None]) -> bool:
    """Do something in a child that is killed before it makes so many changes; whether it was."""
    # Of other threads of the runner nothing lives on in the child, and it needs nothing of theirs.
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)
    left = change

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
        if event in CHANGES or writes:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    try:
        sys.addaudithook(hook)
        do()
    except BaseException:
        os._exit(1)
    os._exit(0)


def every_cut(
    board: Any, room: Path, do: Callable[[Path], None], look: Callable[[Path], None], step: int
) -> int:
    """Cut it off everywhere, look at what is left, and go on; returns how many cuts there were."""
    whole = room / "whole"
    shutil.copytree(board.root, whole, symlinks=True)
    do(whole)
    wanted = board.tree(whole)
    cuts = 0
    while True:
        root = room / "cut"
        shutil.copytree(board.root, root, symlinks=True)
        if not ends_before(cuts * step, partial(do, root)):
            return cuts
        look(root)
        do(root)
        left = board.tree(root)
        if do is removes and left.keys() - wanted.keys() == {layout.OPT}:
            del left[layout.OPT]  # an empty directory, and nothing says any more that it is ours
        assert left == wanted, f"cut before change {cuts * step}"
        shutil.rmtree(root)
        cuts += 1


def is_whole(root: Path, made: Any, above: str = "/") -> bool:
    disk = Disk(root, layout.STATE)
    return all(
        disk.has(item)
        for item in made.manifest.items
        if item.path.startswith(above) and item.path != layout.MANIFEST
    )


def test_a_first_installation_starts_whole_or_not_at_all(board: Any, archives: Archives, room: Path) -> None:
    made = archives()

    def look(root: Path) -> None:
        if os.path.lexists(root / layout.UNIT_LINK[1:]):
            assert is_whole(root, made)

    assert every_cut(board, room, partial(installs, made=made), look, 3) > 30


def test_an_upgrade_leaves_one_whole_version_to_run_and_all_that_is_a_persons(
    board: Any, archives: Archives, tmp_path: Path, room: Path
) -> None:
    (tmp_path / "warm.yaml").write_bytes(b"name: warm\n")
    old, new = archives(rules=(tmp_path / "warm.yaml",)), archives("2.0.0", profile="low-power")
    board.install(old)
    board.write(f"{layout.STATE}/agent.db", b"journal")

    def look(root: Path) -> None:
        target = str((root / layout.CURRENT[1:]).readlink())
        runs = new if target.startswith("versions/2.0.0-") else old
        assert is_whole(root, runs, f"{layout.AGENT_ROOT}/{target}")
        assert (root / layout.UNIT_LINK[1:]).exists()
        assert (root / layout.LAUNCHER[1:]).read_bytes() == new.contents[layout.LAUNCHER]
        assert (root / layout.SETTINGS[1:]).read_bytes() in {
            old.contents[layout.SETTINGS],
            new.contents[layout.SETTINGS],
        }
        assert (root / f"{layout.STATE}/agent.db"[1:]).read_bytes() == b"journal"

    assert every_cut(board, room, partial(installs, made=new), look, 3) > 30


def test_taking_it_away_goes_on_where_it_was_cut_off(board: Any, archives: Archives, room: Path) -> None:
    made = archives()
    board.install(made)
    board.write(f"{layout.STATE}/agent.db", b"journal")
    board.write(f"{layout.ETC}/mine.yaml", b"mine")

    def look(root: Path) -> None:
        # What starts at boot is whole, or does not start.
        if os.path.lexists(root / layout.UNIT_LINK[1:]):
            assert is_whole(root, made)

    assert every_cut(board, room, removes, look, 1) > 20
