"""Block devices as the kernel gives them: loop devices, and kernels that say no."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeslm.errors import (
    CardContentError,
    DiskBusyError,
    DiskError,
    DiskFaultError,
    DiskFullError,
    DiskGoneError,
    DiskRefusedError,
)
from edgeslm.flash.disks.card import check_card, file_device, find_card, held, write_card
from edgeslm.flash.disks.lsblk import BlockDevice, list_devices
from edgeslm.flash.disks.progress import Progress
from edgeslm.flash.disks.selection import Need
from edgeslm.flash.disks.source import open_raw
from edgeslm.flash.disks.target import DiskTarget, Expected, disk_error
from edgeslm.flash.image.past_cache import aligned

MIB = 2**20
TRYING = Need(loops=True)
Loop = Callable[[Path], str]


def silent(progress: Progress) -> None:
    del progress


def write(image: Path, device: BlockDevice) -> None:
    with open_raw(image) as raw, held(device) as card:
        write_card(raw, card, tell=silent)


def test_a_block_device_is_written_read_back_and_compared(
    loop: Loop, make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    image, card = make_image(mib=24, data=(0, 2, 11, 23)), make_card()
    device = find_card(Path(loop(card)), TRYING, list_devices)
    assert device.size_bytes == 80 * MIB
    write(image, device)
    assert card.read_bytes()[: 24 * MIB] == image.read_bytes()
    with open_raw(image) as raw, held(device, writing=False) as again:
        assert check_card(raw, again, tell=silent) == 24 * MIB


def test_a_block_device_that_something_holds_is_not_written(
    loop: Loop, make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    card = make_card()
    before = card.read_bytes()
    device = find_card(Path(loop(card)), TRYING, list_devices)
    holder = os.open(device.device, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(DiskBusyError, match="mounted or in use"):
            write(make_image(), device)
    finally:
        os.close(holder)
    assert card.read_bytes() == before


def test_a_block_device_is_held_while_it_is_written(loop: Loop, make_card: Callable[..., Path]) -> None:
    with held(find_card(Path(loop(make_card())), TRYING, list_devices)) as card:
        with pytest.raises(OSError, match="busy") as raised:
            os.open(card.device.device, os.O_RDONLY | os.O_EXCL)
        assert raised.value.errno == errno.EBUSY


def test_a_link_to_a_disk_means_the_disk(loop: Loop, make_card: Callable[..., Path], tmp_path: Path) -> None:
    device = loop(make_card())
    (tmp_path / "by-id").symlink_to(device)
    assert find_card(tmp_path / "by-id", TRYING, list_devices).device == device


def test_a_loop_device_is_no_card_unless_things_are_tried_out(
    loop: Loop, make_card: Callable[..., Path]
) -> None:
    with pytest.raises(DiskRefusedError) as raised:
        find_card(Path(loop(make_card())), Need(), list_devices)
    assert raised.value.reasons == ("virtual",)


def test_a_disk_that_took_the_name_of_another_is_not_written(
    loop: Loop, make_card: Callable[..., Path]
) -> None:
    """What lsblk said is held against what was opened."""
    device = loop(make_card())
    with pytest.raises(DiskGoneError, match="another disk"):
        DiskTarget(device, expected=Expected("7:999", 80 * MIB))
    number = Path(device).stat().st_rdev
    with pytest.raises(DiskGoneError, match="another disk"):
        DiskTarget(device, expected=Expected(f"{os.major(number)}:{os.minor(number)}", 81 * MIB))


def test_a_card_that_became_smaller_while_it_was_written_is_an_error(
    loop: Loop, make_image: Callable[..., Path], make_card: Callable[..., Path]
) -> None:
    """The kernel says so itself: the device ends before what was asked for."""
    image, card = make_image(mib=40), make_card()
    device = find_card(Path(loop(card)), TRYING, list_devices)

    def shrink(progress: Progress) -> None:
        if progress.phase == "writing" and progress.done_bytes > 10 * MIB:
            os.truncate(card, 20 * MIB)
            subprocess.run(["losetup", "--set-capacity", device.device], timeout=30, check=True)

    with open_raw(image) as raw, held(device) as one, pytest.raises((DiskFullError, DiskFaultError)):
        write_card(raw, one, tell=shrink)
    assert not any(card.read_bytes()[:MIB])


@pytest.fixture
def small_place(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB, where this machine lets one mount any."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", place],
        capture_output=True,
        timeout=30,
        check=False,
    )
    if done.returncode:
        pytest.skip("nothing can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", place], timeout=30, check=True)


def test_a_block_device_with_less_behind_it_than_it_says_never_looks_good(
    small_place: Path, loop: Loop, make_image: Callable[..., Path]
) -> None:
    """The device says 128 MiB and has 40: the kernel's own I/O errors, as of a card at its end."""
    card = small_place / "card"
    with card.open("wb") as stream:
        stream.truncate(128 * MIB)
    device = find_card(Path(loop(card)), TRYING, list_devices)
    image = make_image(mib=64)
    with pytest.raises((DiskFaultError, DiskFullError, CardContentError)) as raised:
        write(image, device)
    assert raised.value.hint
    with card.open("rb") as stream:
        assert not any(stream.read(4096))


def test_what_is_no_disk_is_refused(tmp_path: Path, make_card: Callable[..., Path]) -> None:
    for path in (tmp_path / "nothing", tmp_path, Path("/dev/null"), make_card()):
        with pytest.raises(DiskRefusedError):
            find_card(path, Need(), list_devices)
    with pytest.raises(DiskRefusedError):
        find_card(tmp_path, TRYING, list_devices)
    with pytest.raises(DiskError):
        file_device(tmp_path / "nothing")


def test_a_file_that_may_not_be_written_says_what_to_do(
    make_card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everything, so the kernel's word is given by hand."""

    def refuse(*arguments: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DiskError, match="sudo"):
        DiskTarget(str(make_card()))


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENODEV, DiskGoneError),
        (errno.ENXIO, DiskGoneError),
        (errno.ENOMEDIUM, DiskGoneError),
        (errno.ENOSPC, DiskFullError),
        (errno.EIO, DiskFaultError),
        (errno.EREMOTEIO, DiskFaultError),
        (errno.ETIMEDOUT, DiskFaultError),
    ],
)
def test_what_the_kernel_says_of_a_disk_becomes_what_to_do(number: int, kind: type[DiskError]) -> None:
    error = disk_error("write", "/dev/sdz", 4096, OSError(number, os.strerror(number)))
    assert type(error) is kind
    assert error.hint
    assert (error.device, error.offset) == ("/dev/sdz", 4096)


def test_closing_twice_does_no_harm_and_buffers_begin_at_a_page(make_card: Callable[..., Path]) -> None:
    target = DiskTarget(str(make_card()))
    view = aligned(4096)
    assert target.read(0, view) == 4096
    target.close()
    target.close()
