"""Cuts at any moment: of the power, and of the program. The card is never taken for good unless it is."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeslm.errors import DiskError
from edgeslm.flash.disks import writer
from edgeslm.flash.disks.journal import WriteJournal
from edgeslm.flash.disks.source import open_raw
from edgeslm.flash.disks.writer import write_image

MIB = 2**20
BLOCK = 4096
CARD_MIB, IMAGE_MIB = 10, 9


class PowerCutError(DiskError):
    """Nothing reaches the card any more."""


class MemoryCard:
    """A card in memory, whose writes are lasting once they were synced, and until then come or come not, in any order.

    It takes 4 KiB as one, as flash memory does.
    """

    device = "memory"
    align_bytes = 512

    def __init__(self, content: bytes, cut_after: int) -> None:
        self.size_bytes = len(content)
        self.lasting = bytearray(content)
        self.shown = bytearray(content)
        self.pending: set[int] = set()
        self.left = cut_after
        self.calls = 0

    def _call(self) -> None:
        self.calls += 1
        if self.left == 0:
            raise PowerCutError("no power", device=self.device)
        self.left -= 1

    def write(self, offset: int, data: memoryview) -> int:
        self._call()
        self.shown[offset : offset + len(data)] = data
        self.pending.update(range(offset // BLOCK, -(-(offset + len(data)) // BLOCK)))
        return len(data)

    def read(self, offset: int, into: memoryview) -> int:
        self._call()
        into[:] = self.shown[offset : offset + len(into)]
        return len(into)

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, memoryview(bytes(length)))

    def sync(self) -> None:
        self._call()
        self.keep(self.pending)

    def keep(self, blocks: set[int]) -> None:
        for block in blocks:
            self.lasting[block * BLOCK : (block + 1) * BLOCK] = self.shown[
                block * BLOCK : (block + 1) * BLOCK
            ]
        self.pending = set()

    def after_cut(self, seed: int) -> bytes:
        """What is on it when the power comes back."""
        source = random.Random(seed)
        self.keep({block for block in sorted(self.pending) if source.random() < 0.5})
        return bytes(self.lasting)

    def forget(self) -> None:
        self._call()

    def reread(self) -> None:
        self._call()

    def eject(self) -> bool:
        return False

    def close(self) -> None:
        pass


OLD = random.Random("old").randbytes(CARD_MIB * MIB)


def test_after_a_power_cut_at_any_order_the_first_block_says_the_truth_and_the_write_goes_on(
    make_image: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is that of before, and all is as before; or it is empty; or it is the image's, and all of that is there."""
    monkeypatch.setattr(writer, "_CHECKPOINT_BYTES", 1)
    image = make_image(mib=IMAGE_MIB)
    wanted, journal = image.read_bytes(), tmp_path / "journal"
    seen = set()
    with open_raw(image) as raw:

        def write(card: MemoryCard) -> int:
            kept = WriteJournal(journal, raw.fingerprint, "card")
            return write_image(raw, card, tell=lambda progress: None, journal=kept).kept_bytes

        whole = MemoryCard(OLD, -1)
        write(whole)
        for cut_after in range(whole.calls):
            journal.unlink(missing_ok=True)
            card = MemoryCard(OLD, cut_after)
            with contextlib.suppress(PowerCutError):
                write(card)
            found = card.after_cut(seed=cut_after)
            if found[:BLOCK] == OLD[:BLOCK]:
                assert found == OLD
                seen.add("old")
            elif any(found[:BLOCK]):
                assert found[: len(wanted)] == wanted
                seen.add("new")
            else:
                seen.add("none")
            card = MemoryCard(found, -1)
            if write(card):
                seen.add("went on")
            assert card.lasting[: len(wanted)] == wanted
    assert seen == {"old", "none", "new", "went on"}


KILLED = """
import os, signal, sys
from pathlib import Path
from edgeslm.flash.disks import writer
from edgeslm.flash.disks.card import Card, file_device, held, write_card
from edgeslm.flash.disks.faulty import Faults, FaultyTarget
from edgeslm.flash.disks.source import open_raw
writer._CHECKPOINT_BYTES = 4 * 2**20
image, path, after = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def kill(written):
    if written >= after:
        os.kill(os.getpid(), signal.SIGKILL)
with open_raw(image) as raw, held(file_device(path)) as card:
    write_card(raw, Card(card.device, FaultyTarget(card.target, Faults(), on_write=kill)), tell=lambda progress: None)
"""


@pytest.mark.parametrize(
    "after", [0, 1, MIB, MIB + 4096 * 20, 13 * MIB, 25 * MIB + 2**17, 26 * MIB + 2**17 - BLOCK]
)
def test_a_program_that_is_killed_leaves_no_table_and_the_command_goes_on(
    after: int, make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    image, card = make_image(mib=24), make_card()
    old = card.read_bytes()[:BLOCK]
    ended = subprocess.run([sys.executable, "-c", KILLED, image, card, str(after)], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    found = card.read_bytes()
    assert found[:BLOCK] == (old if after == 0 else bytes(BLOCK))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "edgeslm",
            "flash",
            "write",
            image,
            card,
            "--try",
            "--confirm",
            card.name,
            "--json",
        ],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert card.read_bytes()[: 24 * MIB] == image.read_bytes()
    if after > 13 * MIB:
        assert b'"kept_bytes":0,' not in done.stdout
    assert [path.name for path in image.parent.glob(".*")] == []


def test_a_command_that_is_killed_at_random_moments_ends_well_at_last(
    make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    """From outside, while it is at whatever it is at."""
    image, card = make_image(mib=64), make_card()
    arguments = [
        sys.executable,
        "-m",
        "edgeslm",
        "flash",
        "write",
        image,
        card,
        "--try",
        "--confirm",
        card.name,
    ]
    wanted, source, killed = image.read_bytes(), random.Random(7), 0
    for _ in range(5):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(b"probing"):
                break
        try:
            process.wait(timeout=source.uniform(0, 0.4))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
        process.stderr.close()
        process.wait(timeout=60)
        killed += process.returncode == -signal.SIGKILL
        found = card.read_bytes()
        if any(found[:BLOCK]):
            assert found[: len(wanted)] == wanted
    assert subprocess.run(arguments, capture_output=True, timeout=60, check=False).returncode == 0
    assert card.read_bytes()[: len(wanted)] == wanted
    assert killed
