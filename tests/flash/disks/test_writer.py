"""Writing to cards that behave, and to cards that do not. A card is a plain file; faults stand before it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeslm.errors import (
    CardContentError,
    DiskFaultError,
    DiskFullError,
    DiskGoneError,
    EdgeslmError,
    FakeCapacityError,
    ImageContentError,
)
from edgeslm.flash.disks import writer
from edgeslm.flash.disks.faulty import Faults, FaultyTarget
from edgeslm.flash.disks.journal import WriteJournal
from edgeslm.flash.disks.progress import Progress
from edgeslm.flash.disks.source import RawImage, open_raw
from edgeslm.flash.disks.target import DiskTarget
from edgeslm.flash.disks.writer import Written, verify_image, write_image

MIB = 2**20
HEAD = bytes(MIB)


def silent(progress: Progress) -> None:
    del progress


def write(
    image: Path,
    card: Path,
    faults: Faults | None = None,
    *,
    journal: Path | None = None,
    on_write: Callable[[int], None] | None = None,
    tell: Callable[[Progress], None] = silent,
) -> Written:
    target = DiskTarget(str(card))
    try:
        with open_raw(image) as raw:
            return write_image(
                raw,
                FaultyTarget(target, faults or Faults(), on_write=on_write),
                tell=tell,
                journal=None if journal is None else WriteJournal(journal, raw.fingerprint, "a card"),
            )
    finally:
        target.close()


def beginning(path: Path, size: int = MIB) -> bytes:
    with path.open("rb") as stream:
        return stream.read(size)


def holds(card: Path, image: Path) -> bool:
    return beginning(card, image.stat().st_size) == image.read_bytes()


def test_a_card_holds_the_image_and_was_read_back(
    make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    image, card = make_image(), make_card()
    done = write(image, card)
    assert holds(card, image)
    assert done.written_bytes == done.verified_bytes == 12 * MIB
    assert done.kept_bytes == 0


def test_an_image_with_holes_overwrites_what_lay_there_with_zeros(
    make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    image, card = make_image(mib=40, data=(0, 3, 17, 39)), make_card()
    card.write_bytes(os.urandom(80 * MIB))
    write(image, card)
    assert holds(card, image)


def test_what_a_block_map_leaves_out_is_left_as_it_is(
    make_image: Callable[..., Path], make_card: Callable[..., Path], make_map: Callable[..., Path]
) -> None:
    image, card = make_image(mib=40, data=(0, 3, 17, 39)), make_card()
    make_map(image, (0, 3, 17, 39))
    with card.open("r+b") as stream:
        stream.seek(9 * MIB)
        stream.write(b"somebody's")
    done = write(image, card)
    assert done.written_bytes == 4 * MIB
    for at in (0, 3, 17, 39):
        assert beginning(card, (at + 1) * MIB)[-MIB:] == image.read_bytes()[at * MIB :][:MIB]
    assert beginning(card, 9 * MIB + 10)[-10:] == b"somebody's"


def test_the_spare_table_of_what_was_on_the_card_before_is_gone(
    make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    image, card = make_image(), make_card()
    with card.open("r+b") as stream:
        stream.seek(80 * MIB - 512)
        stream.write(b"EFI PART")
    write(image, card)
    with card.open("rb") as stream:
        stream.seek(79 * MIB)
        assert not any(stream.read())


def test_a_card_as_large_as_the_image_is_large_enough(
    make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    image, card = make_image(mib=70), make_card(mib=70)
    write(image, card)
    assert holds(card, image)


def test_a_card_smaller_than_the_image_is_left_alone(
    make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    image, card = make_image(mib=70), make_card(mib=69)
    before = card.read_bytes()
    with pytest.raises(DiskFullError, match="larger card"):
        write(image, card)
    assert card.read_bytes() == before


FAULTS = {
    "pulled out at once": (Faults(gone_after_bytes=1), DiskGoneError),
    "pulled out while writing": (Faults(gone_after_bytes=9 * MIB), DiskGoneError),
    "cannot be written at a place": (Faults(fails_at=7 * MIB), DiskFaultError),
    "cannot be read at a place": (Faults(unreadable_at=7 * MIB + 5), DiskFaultError),
    "says late that it is full": (Faults(full_at=9 * MIB), DiskFullError),
    "is smaller than it says, and loses": (Faults(real_bytes=40 * MIB), FakeCapacityError),
    "is smaller than it says, and wraps": (Faults(real_bytes=40 * MIB, wraps=True), FakeCapacityError),
    "is much smaller, and wraps": (Faults(real_bytes=2 * MIB, wraps=True), FakeCapacityError),
    "flips a bit": (Faults(flips_at=6 * MIB + 77), CardContentError),
    "keeps nothing any more": (Faults(ignores_after_bytes=8 * MIB), CardContentError),
    "keeps nothing of the beginning": (Faults(flips_at=700_000), CardContentError),
    "keeps nothing of the first block": (Faults(flips_at=446), CardContentError),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_card_that_fails_is_named_so_and_has_no_partition_table(
    name: str, make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    """It never looks good: an error of the right kind with what to do, and an empty beginning."""
    faults, kind = FAULTS[name]
    image, card = make_image(), make_card()
    with pytest.raises(kind) as raised:
        write(image, card, faults)
    assert raised.value.hint
    assert raised.value.device == str(card)
    if faults.gone_after_bytes != 1:
        assert not any(beginning(card, 4096))


def test_a_card_smaller_than_it_says_is_found_out_beyond_the_image(
    make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    """The image would fit; the file system that grows at first boot would not."""
    image, card = make_image(mib=12), make_card(mib=80)
    with pytest.raises(FakeCapacityError) as raised:
        write(image, card, Faults(real_bytes=60 * MIB))
    assert raised.value.exit_code == 4
    assert not any(beginning(card))


@pytest.mark.parametrize("most_bytes", [4096, 4096 * 3 + 512, 100_000])
def test_a_reader_that_takes_little_at_once_is_served_until_all_is_there(
    most_bytes: int, make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    image, card = make_image(mib=6), make_card()
    write(image, card, Faults(most_bytes=most_bytes))
    assert holds(card, image)


def test_a_reader_that_takes_less_than_a_block_is_a_fault_and_no_endless_loop(
    make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    with pytest.raises(DiskFaultError, match="less than a block"):
        write(make_image(), make_card(), Faults(most_bytes=100))


# --- images that are wrong --------------------------------------------------------------------------------------


def test_an_image_that_is_not_what_its_map_says_never_gets_a_partition_table(
    make_image: Callable[..., Path], make_card: Callable[..., Path], make_map: Callable[..., Path]
) -> None:
    image, card = make_image(), make_card()
    make_map(image, (0, 9))
    with image.open("r+b") as stream:
        stream.seek(9 * MIB)
        stream.write(b"changed")
    with pytest.raises(ImageContentError, match="not what its block map says") as raised:
        write(image, card)
    assert raised.value.exit_code == 4
    assert not any(beginning(card))


def test_an_image_that_changes_while_it_is_written_is_found_out(
    make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    image, card, touched = make_image(mib=30), make_card(), []

    def change(written: int) -> None:
        if written > 10 * MIB and not touched:
            touched.append(written)
            with image.open("r+b") as stream:
                stream.seek(29 * MIB)
                stream.write(b"changed")

    with pytest.raises(ImageContentError, match="was changed"):
        write(image, card, on_write=change)
    assert not any(beginning(card))


def test_an_image_that_is_cut_while_it_is_written_is_found_out(
    make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    image, card = make_image(mib=40), make_card()

    def cut(written: int) -> None:
        if written > 5 * MIB:
            os.truncate(image, 20 * MIB)

    with pytest.raises(ImageContentError):
        write(image, card, on_write=cut)
    assert not any(beginning(card))


# --- going on ---------------------------------------------------------------------------------------------------


class PulledOutError(Exception):
    """Ends a write where a test wants it."""


def cut_off(image: Path, card: Path, journal: Path, after: int) -> None:
    def stop(written: int) -> None:
        if written >= after:
            raise PulledOutError

    with pytest.raises(PulledOutError):
        write(image, card, journal=journal, on_write=stop)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint at every step, as a card of a few hundred GB would have many."""
    monkeypatch.setattr(writer, "_CHECKPOINT_BYTES", 1)


@pytest.mark.usefixtures("often")
def test_a_write_that_was_cut_off_goes_on_where_it_was(
    make_image: Callable[..., Path], make_card: Callable[..., Path], tmp_path: Path
) -> None:
    image, card, journal = make_image(mib=40), make_card(), tmp_path / "journal"
    cut_off(image, card, journal, 25 * MIB)
    assert not any(beginning(card))
    phases: list[str] = []
    done = write(image, card, journal=journal, tell=lambda progress: phases.append(progress.phase))
    assert holds(card, image)
    assert done.kept_bytes >= 15 * MIB
    assert done.kept_bytes + done.written_bytes == 40 * MIB
    assert "probing" not in phases
    assert not journal.exists()


@pytest.mark.usefixtures("often")
def test_another_card_in_the_same_reader_is_written_from_the_start(
    make_image: Callable[..., Path], make_card: Callable[..., Path], tmp_path: Path
) -> None:
    """The journal takes it for the card that was cut off; the comparison does not, however late they differ."""
    image, card, journal = make_image(mib=40), make_card(), tmp_path / "journal"
    cut_off(image, card, journal, 25 * MIB)
    with card.open("r+b") as stream:
        stream.seek(13 * MIB)
        stream.write(b"not what was written")
    phases: list[str] = []
    done = write(image, card, journal=journal, tell=lambda progress: phases.append(progress.phase))
    assert holds(card, image)
    assert done.kept_bytes == 0
    assert "probing" in phases


@pytest.mark.usefixtures("often")
def test_a_write_of_another_image_begins_anew(
    make_image: Callable[..., Path], make_card: Callable[..., Path], tmp_path: Path
) -> None:
    card, journal = make_card(), tmp_path / "journal"
    cut_off(make_image(mib=40), card, journal, 25 * MIB)
    other = make_image("other.img", mib=40, seed=2)
    assert write(other, card, journal=journal).kept_bytes == 0
    assert holds(card, other)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff" * 100, b'{"v": 1, "done_bytes": -1}', b"x" * 20_000])
def test_a_damaged_journal_is_none(
    text: bytes, make_image: Callable[..., Path], make_card: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "journal").write_bytes(text)
    assert write(make_image(), make_card(), journal=tmp_path / "journal").kept_bytes == 0


@pytest.mark.usefixtures("often")
def test_a_journal_that_cannot_be_kept_lets_the_write_go_on(
    make_image: Callable[..., Path], make_card: Callable[..., Path], tmp_path: Path
) -> None:
    image, card = make_image(), make_card()
    write(image, card, journal=tmp_path / "no-such-place" / "journal")
    assert holds(card, image)


# --- comparing, and telling -------------------------------------------------------------------------------------


def verify(image: Path, card: Path) -> int:
    target = DiskTarget(str(card), writing=False)
    try:
        with open_raw(image) as raw:
            return verify_image(raw, target, tell=silent)
    finally:
        target.close()


def test_a_card_is_compared_with_its_image_and_not_written(
    make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    image, card = make_image(), make_card()
    write(image, card)
    card.chmod(0o400)
    assert verify(image, card) == 12 * MIB


@pytest.mark.parametrize("at", [0, 600_000, 5 * MIB, 12 * MIB - 1])
def test_one_byte_that_differs_is_found_wherever_it_is(
    at: int, make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    image, card = make_image(), make_card()
    write(image, card)
    with card.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CardContentError) as raised:
        verify(image, card)
    assert raised.value.exit_code == 4


def test_a_card_smaller_than_the_image_does_not_hold_it(
    make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    with pytest.raises(CardContentError):
        verify(make_image(mib=12), make_card(mib=8))


def test_progress_comes_in_order_and_ends_at_the_whole(
    make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    told: list[Progress] = []
    write(make_image(), make_card(), tell=told.append)
    phases = list(dict.fromkeys(one.phase for one in told))
    assert phases == ["probing", "writing", "syncing", "verifying", "sealing"]
    for phase in ("writing", "verifying"):
        of_it = [one for one in told if one.phase == phase]
        assert of_it[-1].done_bytes == of_it[-1].total_bytes == 12 * MIB
        assert [one.done_bytes for one in of_it] == sorted(one.done_bytes for one in of_it)


def test_what_is_thrown_while_it_is_told_ends_the_write_and_its_threads(
    make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    before = threading.active_count()

    def interrupt(progress: Progress) -> None:
        if progress.phase == "verifying":
            raise KeyboardInterrupt

    card = make_card()
    with pytest.raises(KeyboardInterrupt):
        write(make_image(), card, tell=interrupt)
    assert threading.active_count() == before
    assert not any(beginning(card))


def test_every_error_of_a_card_is_one_of_ours(make_image: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(EdgeslmError):
        DiskTarget(str(tmp_path / "nothing"))
    with pytest.raises(EdgeslmError):
        DiskTarget(str(tmp_path))
    with pytest.raises(EdgeslmError):
        RawImage(tmp_path / "nothing", None)
