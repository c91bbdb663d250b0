"""Which disks may be written, by what lsblk said on machines of many kinds. No disk of this machine is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgeslm.errors import DiskError, DiskRefusedError
from edgeslm.flash.disks.lsblk import MAX_JSON_BYTES, BlockDevice, parse_lsblk
from edgeslm.flash.disks.selection import (
    Need,
    choose,
    contents,
    describe,
    format_size,
    judge,
    judge_all,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "lsblk"
RECORDED = sorted(path.stem for path in GOLDEN.glob("*.json"))
FOUR_GB = Need(4 * 10**9)


@pytest.mark.parametrize("name", RECORDED)
def test_every_disk_of_recorded_machines_is_judged_as_written_down(name: str) -> None:
    found = judge_all(parse_lsblk((GOLDEN / f"{name}.json").read_bytes()), FOUR_GB)
    lines = [
        f"{judged.device.device} {' '.join(one.code for one in judged.refusals) or 'writable'}"
        for judged in found
    ]
    assert lines == (GOLDEN / f"{name}.expected").read_text("utf-8").splitlines()


@pytest.mark.parametrize("name", RECORDED)
def test_no_option_lets_a_system_disk_or_a_built_in_one_be_written(name: str) -> None:
    """Whatever is wanted: the widest need refuses at least what serves the machine."""
    need = Need(None, max_bytes=10**18, loops=True)
    for judged in judge_all(parse_lsblk((GOLDEN / f"{name}.json").read_bytes()), need):
        device = judged.device
        points = [point for part in device.family() for point in part.mount_points]
        if points or device.short_name.startswith(("nvme", "vd", "zram", "sr")):
            assert not judged.writable, device.device
        if judged.writable:
            assert device.removable or device.transport == "usb" or "mmc" in device.subsystems


def test_a_card_that_is_mounted_anywhere_is_refused_with_the_place(edit_lsblk: Callable[..., bytes]) -> None:
    devices = parse_lsblk(edit_lsblk("laptop-with-usb-reader", "sda", mountpoints=["/media/me/photos"]))
    with pytest.raises(DiskRefusedError, match="mounted at /media/me/photos") as raised:
        choose(devices, "/dev/sda", FOUR_GB)
    assert raised.value.reasons == ("mounted",)
    assert "unmount" in str(raised.value.hint)
    assert raised.value.exit_code == 2


def test_a_disk_that_holds_swap_is_the_systems(edit_lsblk: Callable[..., bytes]) -> None:
    devices = parse_lsblk(edit_lsblk("laptop-with-usb-reader", "sda", mountpoints=["[SWAP]"]))
    with pytest.raises(DiskRefusedError) as raised:
        choose(devices, "/dev/sda", FOUR_GB)
    assert raised.value.reasons == ("system",)


def test_a_part_of_a_disk_is_refused_and_its_disk_named(lsblk: Callable[[str], bytes]) -> None:
    devices = parse_lsblk(lsblk("laptop-with-mounted-card"))
    with pytest.raises(DiskRefusedError, match="whole disk") as raised:
        choose(devices, "/dev/mmcblk0p1", FOUR_GB)
    assert raised.value.reasons == ("partition",)
    assert "/dev/mmcblk0" in str(raised.value.hint)


def test_a_disk_that_is_not_there_is_named(lsblk: Callable[[str], bytes]) -> None:
    with pytest.raises(DiskRefusedError, match="no disk /dev/sdz"):
        choose(parse_lsblk(lsblk("laptop-with-usb-reader")), "/dev/sdz", FOUR_GB)


def test_a_card_smaller_than_the_image_is_refused_with_both_sizes(lsblk: Callable[[str], bytes]) -> None:
    devices = parse_lsblk(lsblk("laptop-with-usb-reader"))
    card = next(one for one in devices if one.device == "/dev/sda")
    with pytest.raises(DiskRefusedError, match=r"is less than the image's") as raised:
        choose(devices, "/dev/sda", Need(card.size_bytes + 1))
    assert raised.value.reasons == ("too-small",)
    assert choose(devices, "/dev/sda", Need(card.size_bytes)) is card


def test_a_disk_larger_than_cards_are_is_refused_until_asked_for(lsblk: Callable[[str], bytes]) -> None:
    devices = parse_lsblk(lsblk("usb-drives-of-many-sizes"))
    with pytest.raises(DiskRefusedError) as raised:
        choose(devices, "/dev/sda", Need())
    assert raised.value.reasons == ("too-large",)
    assert choose(devices, "/dev/sda", Need(max_bytes=2 * 10**12)).device == "/dev/sda"


def test_a_card_in_a_slot_on_the_board_is_taken_and_soldered_storage_is_not(
    lsblk: Callable[[str], bytes],
) -> None:
    assert choose(parse_lsblk(lsblk("laptop-with-pci-reader")), "/dev/mmcblk0", FOUR_GB)
    with pytest.raises(DiskRefusedError) as raised:
        choose(parse_lsblk(lsblk("board-with-emmc")), "/dev/mmcblk2", FOUR_GB)
    assert raised.value.reasons == ("built-in",)


def test_a_write_protected_card_is_refused_and_the_switch_named(edit_lsblk: Callable[..., bytes]) -> None:
    devices = parse_lsblk(edit_lsblk("laptop-with-usb-reader", "sda", ro=True))
    with pytest.raises(DiskRefusedError, match="switch"):
        choose(devices, "/dev/sda", FOUR_GB)


def test_a_loop_device_is_a_card_only_to_try_things_out() -> None:
    device = BlockDevice(name="loop3", path="/dev/loop3", kind="loop", size_bytes=10**9)
    assert [one.code for one in judge(device, Need()).refusals] == ["virtual"]
    assert judge(device, Need(loops=True)).writable


def test_a_loop_device_that_the_system_uses_is_refused_even_then() -> None:
    device = BlockDevice(
        name="loop3", path="/dev/loop3", kind="loop", size_bytes=10**9, many_points=("/snap/core/1",)
    )
    assert [one.code for one in judge(device, Need(loops=True)).refusals] == ["system"]


def test_names_from_a_drive_are_shown_with_its_content(lsblk: Callable[[str], bytes]) -> None:
    devices = parse_lsblk(lsblk("laptop-with-mounted-card"))
    card = next(one for one in devices if one.device == "/dev/mmcblk0")
    assert "GB" in describe(card)
    assert any("/dev/mmcblk0p1" in line for line in contents(card))


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(31_914_983_424, "31.9 GB"), (10**12, "1.0 TB"), (512, "512 bytes"), (2**20, "1.0 MB")],
)
def test_sizes_are_shown_as_cards_are_labelled(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"lsblk: unrecognized option",
        b"{}",
        b'{"blockdevices": 3}',
        b'{"blockdevices": [{"size": 1}]}',
        b'{"blockdevices": [{"name": "sda", "size": -1}]}',
        b'{"blockdevices": [{"name": "sda", "size": "much"}]}',
        b'{"blockdevices": [{"name": "sda", "ro": "perhaps"}]}',
        b'{"blockdevices": [' + b'{"name":"a","children":[' * 2_000 + b"]}" * 2_000 + b"]}",
        b'"' + b"x" * MAX_JSON_BYTES + b'"',
    ],
)
def test_what_lsblk_never_writes_is_an_error_and_no_empty_list(data: bytes) -> None:
    with pytest.raises(DiskError):
        parse_lsblk(data)
