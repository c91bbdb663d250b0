"""``edgeslm flash write``: an image onto a card, read back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeslm.cli.flash_common import (
    ProgressLine,
    confirm_by_name,
    confirm_option,
    image_argument,
    max_size_option,
    need_flash_extra,
    no_bmap_option,
    sha256_option,
    span_text,
    try_option,
    work_dir_option,
)
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors

if TYPE_CHECKING:
    from edgeslm.flash.disks.card import Card
    from edgeslm.flash.disks.lsblk import BlockDevice
    from edgeslm.flash.disks.source import RawImage
    from edgeslm.flash.disks.writer import Written


@click.command()
@image_argument
@click.argument("target", type=click.Path(path_type=Path))
@sha256_option
@no_bmap_option
@max_size_option
@click.option("--check", is_flag=True, help="Write nothing: compare the card with the image.")
@click.option("--from-start", is_flag=True, help="Do not go on where an earlier write was cut off.")
@click.option("--no-eject", is_flag=True, help="Leave the card ready for use in this machine.")
@work_dir_option
@try_option
@confirm_option
@click.option("--dry-run", is_flag=True, help="Show the plan, and write nothing.")
@json_option
@reporting_errors
def write(
    image: Path,
    target: Path,
    sha256: str | None,
    no_bmap: bool,
    max_bytes: int,
    check: bool,
    from_start: bool,
    no_eject: bool,
    work_dir: Path | None,
    trying: bool,
    confirmed: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write IMAGE to the card TARGET, such as /dev/sdb, and read back what is on it.

    The image is raw, or packed by xz, gzip, zstd or ZIP. Whatever interrupts it, the card has a partition table only
    when all of it is right; call the same command again, and it goes on. Needs the right to write to the disk (sudo).
    """
    need_flash_extra()
    from edgeslm.flash.disks.card import check_card, find_card, held  # noqa: PLC0415
    from edgeslm.flash.disks.lsblk import list_devices  # noqa: PLC0415
    from edgeslm.flash.disks.selection import Need  # noqa: PLC0415
    from edgeslm.flash.disks.source import ready_image  # noqa: PLC0415

    find_card(
        target, Need(None, max_bytes, loops=trying), list_devices
    )  # before an image is unpacked for long
    line = ProgressLine()
    with ready_image(image, sha256=sha256, with_map=not no_bmap, work_dir=work_dir, tell=line) as raw:
        line.end()
        device = find_card(target, Need(raw.layout.image_bytes, max_bytes, loops=trying), list_devices)
        plan = _plan(image, raw, device)
        record = _record(image, raw, device)
        if dry_run:
            confirm_by_name(plan, device.short_name, confirmed=confirmed, dry_run=True)
        elif check:
            with held(device, writing=False) as card:
                record["verified_bytes"] = check_card(raw, card, tell=line)
                line.end()
        else:
            with held(device) as card:
                confirm_by_name(plan, device.short_name, confirmed=confirmed, dry_run=False)
                done = _write(raw, card, line, keep_journal=raw.path == image and not from_start)
                record |= asdict(done) | {"ejected": not no_eject and card.target.eject()}
    if as_json:
        print_json(record)
    elif not dry_run:
        _tell(record)


def _write(raw: RawImage, card: Card, line: ProgressLine, *, keep_journal: bool) -> Written:
    from edgeslm.flash.disks.card import write_card  # noqa: PLC0415

    try:
        return write_card(raw, card, tell=line, keep_journal=keep_journal)
    except BaseException:
        line.end()
        click.echo(
            f"{printable(card.device.device)} is not done: do not use it as it is",
            err=True,
        )
        raise
    finally:
        line.end()


def _plan(image: Path, raw: RawImage, device: BlockDevice) -> list[str]:
    from edgeslm.flash.disks.selection import contents, describe, format_size  # noqa: PLC0415

    layout = raw.layout
    how = f"{format_size(layout.written_bytes)} of it, by its block map" if raw.mapped else "all of it"
    return [
        f"image    {image}: {format_size(layout.image_bytes)}; {how}",
        f"card     {device.device}: {describe(device)}",
        *(f"lost     {line}" for line in contents(device) or ("nothing that is known",)),
    ]


def _record(image: Path, raw: RawImage, device: BlockDevice) -> dict[str, Any]:
    return {
        "image": str(image),
        "device": device.device,
        "size_bytes": device.size_bytes,
        "image_bytes": raw.layout.image_bytes,
        "to_write_bytes": raw.layout.written_bytes,
        "mapped": raw.mapped,
    }


def _tell(record: dict[str, Any]) -> None:
    from edgeslm.flash.disks.selection import format_size  # noqa: PLC0415

    name = printable(record["device"])
    if "write_s" not in record:
        click.echo(f"{name} holds {record['image']}: {format_size(record['verified_bytes'])} were compared")
        return
    words = [f"{name} holds {record['image']}", f"written {format_size(record['written_bytes'])}"]
    if record["write_s"] > 0:
        words[-1] += f" in {span_text(record['write_s'])}"
        words[-1] += f" ({record['written_bytes'] / record['write_s'] / 1e6:.1f} MB/s)"
    if record["kept_bytes"]:
        words.append(f"kept {format_size(record['kept_bytes'])} of an earlier write")
    words.append(
        f"read back and compared {format_size(record['verified_bytes'])} in {span_text(record['verify_s'])}"
    )
    click.echo("; ".join(words))
    click.echo(
        "The card can be taken out" if record["ejected"] else "All is on the card: it can be taken out"
    )
