from __future__ import annotations

from pathlib import Path

import pytest

from edgeslm.trust.machine import read_machine


class Board:
    """A file system with what a board tells about itself."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.counter = root / "boots.json"
        self.boot("11111111-aaaa")
        self.write("etc/machine-id", b"0123456789abcdef0123456789abcdef\n")

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def boot(self, boot_id: str) -> None:
        self.write("proc/sys/kernel/random/boot_id", boot_id.encode() + b"\n")

    def read(self):
        return read_machine("pi-4b", self.counter, root=self.root)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_a_raspberry_pi_tells_its_serial_number(board: Board) -> None:
    board.write("proc/device-tree/serial-number", b"10000000abcdef01\0")
    assert board.read().serial == "10000000abcdef01"


@pytest.mark.parametrize(
    "serial", [b"", b"\0", b"0000000000000000\0", b"None\n", b"To be filled by O.E.M.\n", b"\xff\xfe"]
)
def test_a_serial_number_that_is_none_is_not_told(board: Board, serial: bytes) -> None:
    board.write("proc/device-tree/serial-number", serial)
    assert board.read().serial is None


def test_the_machine_id_leaves_the_machine_only_hashed(board: Board) -> None:
    machine = board.read()
    assert machine.machine_id is not None
    assert "0123456789abcdef" not in machine.machine_id
    assert machine.machine_id == board.read().machine_id


def test_a_boot_counts_once_however_often_the_agent_starts(board: Board) -> None:
    assert [board.read().boots, board.read().boots] == [1, 1]
    board.boot("22222222-bbbb")
    assert [board.read().boots, board.read().boots] == [2, 2]


def test_a_damaged_counter_begins_anew(board: Board) -> None:
    board.counter.write_bytes(b'{"boots": "many"')
    assert board.read().boots == 1


def test_a_count_that_cannot_be_kept_is_not_told(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.read()

    def full(*_arguments: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeslm.trust.machine.replace_file", full)
    board.boot("22222222-bbbb")
    assert board.read().boots == 0


def test_a_machine_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    machine = read_machine(None, tmp_path / "boots.json", root=tmp_path / "empty")
    assert (machine.board, machine.serial, machine.machine_id, machine.boot_id) == (None, None, None, None)
