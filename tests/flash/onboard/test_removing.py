"""Taken away again: what goes, what stays, and what is said of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from edgeslm.flash.onboard.disk import Disk
from edgeslm.flash.onboard.removal import plan_uninstall
from edgeslm.flash.payload import layout
from edgeslm.schema.enrol import Claim

Archives = Callable[..., Any]
CLAIM = Claim(fleet="green", claim="abcdef", secret="0123456789abcdef", host="broker", port=8884, ca="none")


def uninstall(board: Any, made: Any, *words: str) -> dict[str, Any]:
    done: subprocess.CompletedProcess[str] = board.call(made, "--uninstall", "--yes", "--json", *words)
    assert done.returncode == 0, done.stderr
    return {"said": done.stderr, **json.loads(done.stdout)}


def test_a_board_is_as_it_was_before(board: Any, archives: Archives) -> None:
    before = board.tree()
    board.install(archives(claim=CLAIM))
    found = uninstall(board, archives())
    assert (found["edgeslm"], found["removed"], found["purged"]) == ("1.0.0", True, False)
    left = set(board.tree()) - set(before)
    assert left - {"/opt", "/etc/systemd", "/etc/systemd/system", "/etc/systemd/system/multi-user.target.wants"} == {
        layout.STATE
    }  # fmt: skip


def test_identity_and_journal_stay_and_are_named(board: Any, archives: Archives) -> None:
    board.install(archives())
    board.write(f"{layout.STATE}/agent.db", b"journal")
    found = uninstall(board, archives())
    assert board.read(f"{layout.STATE}/agent.db") == b"journal"
    assert not board.has(layout.AGENT_ROOT)
    assert found["kept"] == [
        {"path": layout.STATE, "why": "identity, journal and models of this device; --purge removes it"}
    ]
    assert f"keep {layout.STATE}: identity, journal" in found["said"]


def test_what_a_person_changed_or_added_stays_and_is_named(board: Any, archives: Archives) -> None:
    board.install(archives())
    board.write(layout.SETTINGS, b"device: mine\n")
    mine = [f"{layout.RULES}/mine.yaml", f"{layout.UNIT}.d/more.conf", f"{layout.OPT}/notes/one"]
    for path in mine:
        board.write(path, b"mine")
    found = uninstall(board, archives())
    kept = {one["path"]: one["why"] for one in found["kept"]}
    assert kept[layout.SETTINGS] == "it was changed since"
    # A directory in which nothing is ours is named as one.
    assert [path for path, why in kept.items() if why == "it is not ours"] == [
        layout.RULES,
        f"{layout.OPT}/notes",
        mine[1],
    ]
    assert all(board.read(path) == b"mine" for path in mine)


def test_everything_of_ours_goes_where_that_is_asked_for(board: Any, archives: Archives) -> None:
    board.install(archives())
    state = board.root / "var/lib/edgeslm"
    (board.root / "var/lib/private").mkdir(0o700)
    state.rename(board.root / "var/lib/private/edgeslm")
    state.symlink_to("private/edgeslm")
    board.write("/var/lib/private/edgeslm/identity/key.pem", b"key")
    board.write(layout.SETTINGS, b"device: mine\n")
    board.write(f"{layout.ETC}/notes.txt", b"mine")
    found = uninstall(board, archives(), "--purge")
    assert found["purged"]
    assert f"remove {layout.STATE}: identity, journal and models" in found["said"]
    assert found["kept"] == [{"path": f"{layout.ETC}/notes.txt", "why": "it is not ours"}]
    left = [path for path in board.tree() if "edgeslm" in path]
    assert left == [layout.ETC, f"{layout.ETC}/notes.txt"]


def test_a_dry_run_says_the_same_and_does_nothing(board: Any, archives: Archives) -> None:
    board.install(archives())
    before = board.tree()
    done = board.call(archives(), "--uninstall", "--purge", "--dry-run", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["removed"] is False
    assert "remove /var/lib/edgeslm/agent with all that it holds" in done.stderr
    assert board.tree() == before


def test_a_board_without_it_is_told_so(board: Any, archives: Archives) -> None:
    done = board.call(archives(), "--uninstall", "--yes")
    assert done.returncode == 1
    assert "was not installed in" in done.stderr
    assert "taken away by hand" in done.stderr


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"files": [1]}', b'{"files": {}}', b"\xff", b'{"files": [{"path": 1}]}', b"[" * 9999]
)  # fmt: skip
def test_a_damaged_record_removes_nothing(board: Any, archives: Archives, text: bytes) -> None:
    board.install(archives())
    board.write(layout.MANIFEST, text)
    before = board.tree()
    done = board.call(archives(), "--uninstall", "--yes")
    assert done.returncode == 1
    assert f"{layout.MANIFEST} is damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert board.tree() == before


def test_a_record_that_was_tampered_with_reaches_nothing_at_the_top(board: Any, archives: Archives) -> None:
    board.install(archives())
    files = [
        {"path": path, "kind": kind}
        for path in ("/", "/etc", "/etc/../etc", "//etc", "etc/group", "/home")
        for kind in ("tree", "file", "directory")
    ]
    board.write(layout.MANIFEST, json.dumps({"edgeslm": "1.0.0", "files": files}).encode())
    found = plan_uninstall(
        layout.MANIFEST, layout.STATE, layout.UNIT_NAME, Disk(board.root, layout.STATE), purge=True
    )
    assert (found.gone, found.trees, found.directories) == ((), (), ())


def test_words_on_the_kernels_command_line_are_named(board: Any, archives: Archives) -> None:
    board.install(archives())
    record = json.loads(board.read(layout.MANIFEST))
    board.write(layout.MANIFEST, json.dumps({**record, "cmdline": ["quiet", "cma=64M"]}).encode())
    assert "leave on the kernel's command line: quiet cma=64M" in uninstall(board, archives())["said"]
