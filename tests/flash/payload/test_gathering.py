"""Wheels are gathered without the files that boards are better off without, and stay wheels."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from edgeslm.errors import AgentArchiveError
from edgeslm.flash.payload.gathering import without

UNWANTED = ("lib/big.so",)


def wheel(directory: Path) -> Path:
    path = directory / "lib-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lib/big.so", bytes(1000))
        archive.writestr(zipfile.ZipInfo("lib/__init__.py", (2020, 1, 2, 3, 4, 6)), b"x = 1\n")
        archive.writestr(
            "lib-1.0.dist-info/RECORD",
            b"lib/big.so,sha256=a,1000\nlib/__init__.py,sha256=b,6\nlib-1.0.dist-info/RECORD,,\n",
        )
    return path


def test_a_file_is_taken_out_of_the_wheel_and_of_what_it_says_of_itself(tmp_path: Path) -> None:
    path = wheel(tmp_path)
    without(path, UNWANTED)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["lib/__init__.py", "lib-1.0.dist-info/RECORD"]
        record = archive.read("lib-1.0.dist-info/RECORD")
        assert record == b"lib/__init__.py,sha256=b,6\nlib-1.0.dist-info/RECORD,,\n"
        assert archive.getinfo("lib/__init__.py").date_time == (2020, 1, 2, 3, 4, 6)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_the_same_wheel_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = wheel(tmp_path / "one")
    second = tmp_path / "two" / first.name
    second.write_bytes(first.read_bytes())
    without(first, UNWANTED)
    without(second, UNWANTED)
    assert first.read_bytes() == second.read_bytes()


def test_a_wheel_in_which_nothing_is_unwanted_stays_as_it_is(tmp_path: Path) -> None:
    path = wheel(tmp_path)
    before = path.read_bytes()
    without(path, ())
    assert path.read_bytes() == before


def test_what_is_no_wheel_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lib-1.0-py3-none-any.whl"
    path.write_bytes(b"<html>")
    with pytest.raises(AgentArchiveError, match="is no wheel"):
        without(path, UNWANTED)
