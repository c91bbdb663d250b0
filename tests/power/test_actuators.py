from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeslm.power.actuators import FrequencyCap


class Board:
    """A cpufreq tree with two groups of cores."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.memory = root / "run/edgeslm/frequency-cap.json"
        self.boot("one")
        self.policy(0, least=600_000, most=1_800_000, limit=1_800_000, steps="600000 700000 1500000 1800000")
        self.policy(4, least=500_000, most=2_400_000, limit=2_000_000, steps=None)

    def boot(self, boot_id: str) -> None:
        file = self.root / "proc/sys/kernel/random/boot_id"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{boot_id}\n")

    def policy(self, number: int, least: int, most: int, limit: int, steps: str | None) -> None:
        directory = self.directory(number)
        directory.mkdir(parents=True)
        (directory / "cpuinfo_min_freq").write_text(f"{least}\n")
        (directory / "cpuinfo_max_freq").write_text(f"{most}\n")
        (directory / "scaling_max_freq").write_text(f"{limit}\n")
        if steps is not None:
            (directory / "scaling_available_frequencies").write_text(f"{steps} \n")

    def directory(self, number: int) -> Path:
        return self.root / f"sys/devices/system/cpu/cpufreq/policy{number}"

    def limits(self) -> tuple[int, ...]:
        return tuple(int((self.directory(number) / "scaling_max_freq").read_text()) for number in (0, 4))

    def cap(self) -> FrequencyCap:
        return FrequencyCap(self.memory, self.root)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_a_cap_is_the_highest_frequency_that_can_be_had_below_it(board: Board) -> None:
    cap = board.cap()
    assert cap.permitted
    assert cap.why_not is None
    assert cap.range_mhz == (500.0, 2400.0)
    assert cap.hold(1499)
    assert board.limits() == (700_000, 1_499_000)
    assert cap.hold(1500)
    assert board.limits() == (1_500_000, 1_500_000)
    assert cap.holds


def test_a_cap_below_everything_is_the_lowest_frequency(board: Board) -> None:
    assert board.cap().hold(1)
    assert board.limits() == (600_000, 500_000)


def test_a_cap_never_lifts_a_limit_that_was_there_before(board: Board) -> None:
    assert board.cap().hold(10_000)
    assert board.limits() == (1_800_000, 2_000_000)


def test_closing_puts_back_what_was_found(board: Board) -> None:
    cap = board.cap()
    cap.hold(700)
    cap.hold(600)
    cap.close()
    assert board.limits() == (1_800_000, 2_000_000)
    assert not board.memory.exists()
    assert not cap.holds


def test_a_process_that_died_leaves_no_cap_to_the_next(board: Board) -> None:
    board.cap().hold(700)
    assert board.limits() == (700_000, 700_000)
    board.cap()
    assert board.limits() == (1_800_000, 2_000_000)
    assert not board.memory.exists()


def test_after_a_boot_nothing_is_put_back(board: Board) -> None:
    board.cap().hold(700)
    board.boot("two")
    (board.directory(0) / "scaling_max_freq").write_text("1500000\n")
    board.cap()
    assert board.limits() == (1_500_000, 700_000)
    assert not board.memory.exists()


def test_without_the_right_to_write_nothing_is_changed(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeslm.power.actuators.os.access", lambda path, mode: False)
    cap = board.cap()
    assert not cap.permitted
    assert cap.why_not is not None
    assert "may not write" in cap.why_not
    assert not cap.hold(700)
    assert board.limits() == (1_800_000, 2_000_000)


def test_a_cap_that_holds_on_one_group_only_is_taken_back(board: Board) -> None:
    cap = board.cap()
    (board.directory(4) / "scaling_max_freq").unlink()
    (board.directory(4) / "scaling_max_freq").mkdir()
    assert not cap.hold(700)
    assert int((board.directory(0) / "scaling_max_freq").read_text()) == 1_800_000


def test_what_cannot_be_remembered_is_not_changed(board: Board) -> None:
    board.memory.parent.parent.mkdir(parents=True)
    board.memory.parent.write_text("a file where a directory should be")
    assert not board.cap().hold(700)
    assert board.limits() == (1_800_000, 2_000_000)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"boot_id":"one"}',
        '{"boot_id":"one","max_khz":[]}',
        '{"boot_id":"one","max_khz":5}',
    ],
)
def test_a_memory_that_is_none_is_thrown_away(board: Board, content: str) -> None:
    board.memory.parent.mkdir(parents=True)
    board.memory.write_text(content)
    board.cap()
    assert board.limits() == (1_800_000, 2_000_000)
    assert not board.memory.exists()


@pytest.mark.parametrize("khz", [-1, 0, 10**9, "1500000", True])
def test_a_memory_cannot_set_what_the_processor_cannot_do(board: Board, khz: object) -> None:
    path = str(board.directory(0) / "scaling_max_freq")
    board.memory.parent.mkdir(parents=True)
    board.memory.write_text(json.dumps({"boot_id": "one", "max_khz": {path: khz, "/etc/passwd": 700_000}}))
    board.cap()
    assert board.limits() == (1_800_000, 2_000_000)


def test_a_system_without_frequencies_says_so(tmp_path: Path) -> None:
    cap = FrequencyCap(tmp_path / "memory", tmp_path)
    assert not cap.permitted
    assert cap.range_mhz is None
    assert "no frequency" in (cap.why_not or "")
    assert not cap.hold(700)
    cap.close()
