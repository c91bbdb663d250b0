from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.power.sysfs import ValueFile, children, parse_integer, read_integer, read_text, run


def test_an_open_file_shows_each_new_value(tmp_path: Path) -> None:
    path = tmp_path / "power1_input"
    path.write_text("1\n")
    file = ValueFile(path)
    assert file.integer() == 1
    with path.open("r+") as same:
        same.write("2\n")
    assert file.integer() == 2
    file.close()


def test_a_file_that_was_replaced_says_so_once_and_then_shows_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "power1_input"
    path.write_text("1\n")
    file = ValueFile(path)
    assert file.integer() == 1
    (tmp_path / "new").write_text("2\n")
    (tmp_path / "new").replace(path)
    with pytest.raises(FileNotFoundError):
        file.read()
    assert file.integer() == 2
    file.close()


def test_a_file_that_was_removed_while_open_is_gone_and_can_come_back(tmp_path: Path) -> None:
    path = tmp_path / "power1_input"
    path.write_text("1\n")
    file = ValueFile(path)
    file.read()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        file.read()
    path.write_text("3\n")
    assert file.integer() == 3
    file.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_reading_leaves_no_descriptors_behind(tmp_path: Path) -> None:
    path = tmp_path / "value"
    before = descriptors()
    for turn in range(20):
        path.write_text(f"{turn}\n")
        file = ValueFile(path)
        file.read()
        path.unlink()
        with pytest.raises(OSError):
            file.read()
        file.close()
    assert descriptors() == before


def test_a_file_is_read_up_to_its_bound_only(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    path.write_bytes(b"1" * 100_000)
    assert len(ValueFile(path, max_bytes=32).read()) == 32
    assert len(read_text(path) or "") == 4096
    with pytest.raises(ValueError):
        ValueFile(path).integer()


@given(st.integers(-(10**20) + 1, 10**20 - 1))
def test_every_number_that_a_kernel_can_write_is_read(number: int) -> None:
    assert parse_integer(f"{number}\n".encode()) == number


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"-", b"1.5", b"0x10", b"1 2", b"nan", b"1" * 30, "٣".encode()]
)
def test_what_is_no_number_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError):
        parse_integer(content)
    path = tmp_path / "value"
    path.write_bytes(content)
    assert read_integer(path) is None


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert read_text(tmp_path / "nothing") is None
    assert read_integer(tmp_path) is None
    assert children(tmp_path / "nothing") == []


def test_a_program_that_fails_hangs_or_is_missing_is_an_os_error() -> None:
    assert run((sys.executable, "-c", "print('ok')"), 10.0) == "ok\n"
    with pytest.raises(OSError, match="status 3"):
        run((sys.executable, "-c", "raise SystemExit(3)"), 10.0)
    with pytest.raises(TimeoutError):
        run((sys.executable, "-c", "import time; time.sleep(60)"), 0.2)
    with pytest.raises(FileNotFoundError):
        run(("/no/such/program",), 1.0)
