"""Archives that are damaged, or for another machine: named, with what to do, before anything is written."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeslm.flash.onboard import main
from edgeslm.flash.onboard.manifest import (
    MANIFEST,
    DamagedError,
    Manifest,
    MisfitError,
    decode,
    encode,
    misfits,
    read_host,
)

Archives = Callable[..., Any]
ARM = b"\x7fELF\x02\x01\x01" + bytes(11) + (183).to_bytes(2, "little") + bytes(44)
ARM32 = b"\x7fELF\x01\x01\x01" + bytes(11) + (40).to_bytes(2, "little") + bytes(32)


def refused(board: Any, made: Any, *words: str) -> str:
    before = board.tree()
    done = board.call(made, "--yes", *words)
    assert done.returncode == 2, done.stderr
    assert board.tree() == before
    return str(done.stderr)


class TestOtherMachines:
    def test_another_architecture(self, board: Any, archives: Archives) -> None:
        board.write("usr/bin/python3.13", ARM, 0o755)
        said = refused(board, archives())
        assert "it is for x86_64, and the programs here are for aarch64" in said
        assert "edgeslm flash archive --board host --python 3.13 --glibc 2.41 --machine aarch64" in said

    def test_a_64_bit_kernel_with_programs_for_32(self, board: Any, archives: Archives) -> None:
        board.write("usr/bin/python3.13", ARM32, 0o755)
        assert "the programs here are for armv7l" in refused(board, archives())

    def test_another_python(self, board: Any, archives: Archives) -> None:
        (board.root / "usr/bin/python3.13").rename(board.root / "usr/bin/python3.12")
        said = refused(board, archives())
        assert "it is for /usr/bin/python3.13, which is not here (here: Python 3.12)" in said
        assert "--python 3.12" in said

    def test_no_python_that_is_new_enough(self, board: Any, archives: Archives) -> None:
        (board.root / "usr/bin/python3.13").rename(board.root / "usr/bin/python3.9")
        assert "Install Python 3.11 or later there" in refused(board, archives())

    def test_an_older_glibc(self, board: Any, archives: Archives) -> None:
        made = archives()
        board.write(
            "usr/lib/x86_64-linux-gnu/libc.so.6", b"\0GNU C Library (x) stable release version 2.31.\n"
        )
        found = misfits(replace(made.manifest, glibc="2.34"), read_host(board.root, made.manifest.python))
        assert found == ["it needs glibc 2.34 or later, and 2.31 is here"]

    def test_another_c_library(self, board: Any, archives: Archives) -> None:
        made = archives()
        (board.root / "usr/lib/x86_64-linux-gnu/libc.so.6").unlink()
        host = read_host(board.root, made.manifest.python)
        assert misfits(replace(made.manifest, glibc="2.34"), host) == [
            "it needs glibc, and the C library here is another one"
        ]

    def test_no_systemd(self, board: Any, archives: Archives) -> None:
        (board.root / "usr/lib/systemd/systemd").unlink()
        said = refused(board, archives())
        assert "it needs systemd, which is not here" in said
        assert "docs/install.md" in said

    def test_a_group_that_the_unit_names(self, board: Any, archives: Archives) -> None:
        made = archives()
        host = read_host(board.root, made.manifest.python)
        assert misfits(replace(made.manifest, groups=("video", "gpio")), host) == [
            "it needs the group gpio, which is not here"
        ]

    @pytest.mark.parametrize(
        ("model", "fits"),
        [
            (b"Raspberry Pi 5 Model B Rev 1.0\0", True),
            (b"Raspberry Pi 500 Rev 1.0\0", False),
            (b"Radxa ROCK 5B\0", False),
            (b"", True),
        ],
    )
    def test_another_board_unless_that_is_wanted(
        self, board: Any, archives: Archives, model: bytes, fits: bool
    ) -> None:
        made = replace(archives().manifest, board="pi-5", recognised_by=("Raspberry Pi 5",))
        if model:
            board.write("proc/device-tree/model", model)
        host = read_host(board.root, made.python)
        assert (not misfits(made, host)) == fits
        assert not misfits(made, host, any_board=True)

    def test_everything_that_does_not_fit_is_said_at_once(self, board: Any, archives: Archives) -> None:
        board.write("usr/bin/python3.13", ARM, 0o755)
        (board.root / "usr/lib/systemd/systemd").unlink()
        said = refused(board, archives())
        assert "aarch64" in said
        assert "systemd" in said


def test_somebody_who_is_not_root_is_told_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MisfitError) as caught:
        main.check_privilege(Path("/"), ["python3", "my board.pyz", "--yes"])
    assert caught.value.hint == "Call: sudo python3 'my board.pyz' --yes"
    main.check_privilege(Path("/elsewhere"), [])  # an unpacked tree is not the system


def test_an_old_python_is_told_so_and_not_with_a_traceback(
    archives: Archives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    with pytest.raises(SystemExit, match=r"needs Python 3.11 or later, and this is Python 3\.9"):
        runpy.run_path(str(archives().path), run_name="__main__")


class TestDamage:
    def test_no_bit_of_a_file_can_change_unseen(self, board: Any, archives: Archives, tmp_path: Path) -> None:
        made = archives()
        whole = made.path.read_bytes()
        before = board.tree()
        for at in range(200, len(whole), len(whole) // 12):
            damaged = replace(made, path=tmp_path / "damaged.pyz")
            damaged.path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
            done = board.call(damaged, "--yes", "--dry-run")
            # What is damaged may be the program itself, which Python then refuses.
            assert done.returncode != 0 or board.tree() == before, at
        assert board.tree() == before

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
    def test_a_copy_that_was_cut_off(
        self, board: Any, archives: Archives, tmp_path: Path, share: float
    ) -> None:
        made = archives()
        whole = made.path.read_bytes()
        before = board.tree()
        cut = replace(made, path=tmp_path / "cut.pyz")
        cut.path.write_bytes(whole[: int(len(whole) * share)])
        board.call(cut, "--yes")
        assert board.tree() == before

    def test_bytes_that_are_not_those_of_the_manifest(
        self, board: Any, archives: Archives, tmp_path: Path
    ) -> None:
        made = archives()
        changed = replace(made, path=tmp_path / "changed.pyz")
        with zipfile.ZipFile(made.path) as source, zipfile.ZipFile(changed.path, "w") as target:
            names = [name for name in source.namelist() if name.startswith("files/")]
            for name in source.namelist():
                target.writestr(name, b"other" if name == names[-1] else source.read(name))
        before = board.tree()
        done = board.call(changed, "--yes")
        assert done.returncode == 4
        assert "is damaged in the archive. Copy the archive anew" in done.stderr
        assert board.tree() == before

    def test_a_file_that_is_missing(self, board: Any, archives: Archives, tmp_path: Path) -> None:
        made = archives()
        changed = replace(made, path=tmp_path / "changed.pyz")
        with zipfile.ZipFile(made.path) as source, zipfile.ZipFile(changed.path, "w") as target:
            names = [name for name in source.namelist() if name.startswith("files/")]
            for name in source.namelist():
                if name != names[0]:
                    target.writestr(name, source.read(name))
        done = board.call(changed, "--yes")
        assert (done.returncode, "is damaged in the archive" in done.stderr) == (4, True)

    @pytest.mark.parametrize(
        "change",
        [
            {"items": [{"path": "/x", "kind": "file"}]},
            {"items": [1]},
            {"machine": 3},
            {"state": "var/lib"},
            {"settings": "/etc/../x"},
            {"service": "../x.service"},
            {"more": 1},
            {"v": 2},
        ],
    )
    def test_a_manifest_that_is_none(self, archives: Archives, change: dict[str, Any]) -> None:
        import json  # noqa: PLC0415

        good = json.loads(encode(archives().manifest))
        with pytest.raises(DamagedError):
            decode(json.dumps({**good, **change}).encode())

    @pytest.mark.parametrize("path", ["/a/../b", "//a", "a", "/", "/a/", "/a\n", "/a\0"])
    def test_a_path_with_two_readings(self, archives: Archives, path: str) -> None:
        made: Manifest = archives().manifest
        with pytest.raises(DamagedError):
            decode(encode(replace(made, items=(replace(made.items[0], path=path),))))

    def test_a_manifest_comes_back_as_it_went(self, archives: Archives) -> None:
        assert decode(encode(archives().manifest)) == archives().manifest


def test_an_archive_is_one_file_that_needs_nothing_beside_it(
    board: Any, archives: Archives, tmp_path: Path
) -> None:
    made = archives()
    alone = replace(made, path=tmp_path / "elsewhere" / "board.pyz")
    alone.path.parent.mkdir()
    shutil.copy(made.path, alone.path)
    assert board.install(alone)["edgeslm"] == "1.0.0"
    with zipfile.ZipFile(made.path) as found:
        assert {name.split("/")[0] for name in found.namelist()} == {
            "__main__.py",
            "edgeslm_onboard",
            MANIFEST,
            "files",
        }
