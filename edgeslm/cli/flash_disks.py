"""``edgeslm flash disks``: what can be written, and why the others cannot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeslm.cli.flash_common import max_size_option
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors

if TYPE_CHECKING:
    from edgeslm.flash.disks.selection import Judged

_NOT_SHOWN = {"virtual", "empty"}


@click.command()
@click.option(
    "--image",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Raw image that is to fit: disks that are too small are refused.",
)
@max_size_option
@click.option("--all", "show_all", is_flag=True, help="Also empty readers, loop devices and the like.")
@json_option
@reporting_errors
def disks(image: Path | None, max_bytes: int, show_all: bool, as_json: bool) -> None:
    """List the disks of this machine: which can be written, and why the others cannot.

    Cards and what hangs on a cable can be written. What this machine runs from, what is mounted and what is built in
    cannot, whatever options are given.
    """
    from edgeslm.flash.disks.lsblk import list_devices  # noqa: PLC0415
    from edgeslm.flash.disks.selection import Need, judge_all  # noqa: PLC0415

    need = Need(None if image is None else image.stat().st_size, max_bytes)
    found = judge_all(list_devices(), need)
    if as_json:
        print_json([_record(judged) for judged in found])
        return
    shown = [
        judged
        for judged in found
        if show_all or not any(refusal.code in _NOT_SHOWN for refusal in judged.refusals)
    ]
    for judged in sorted(shown, key=lambda judged: not judged.writable):
        for line in _lines(judged):
            click.echo(printable(line))
    if not any(judged.writable for judged in found):
        click.echo("No disk can be written: put a card into a reader, and call this again", err=True)


def _lines(judged: Judged) -> list[str]:
    from edgeslm.flash.disks.selection import contents, describe  # noqa: PLC0415

    verdict = "can be written" if judged.writable else "; ".join(one.text for one in judged.refusals)
    return [
        f"{'*' if judged.writable else '-'} {judged.device.device}  {describe(judged.device)}",
        f"    {'' if judged.writable else 'refused: '}{verdict}",
        *(f"    holds {line}" for line in contents(judged.device)),
    ]


def _record(judged: Judged) -> dict[str, Any]:
    from edgeslm.flash.disks.selection import contents  # noqa: PLC0415

    device = judged.device
    return {
        "device": device.device,
        "name": device.short_name,
        "writable": judged.writable,
        "refusals": [{"code": one.code, "text": printable(one.text)} for one in judged.refusals],
        "size_bytes": device.size_bytes,
        "vendor": device.vendor or None,
        "model": device.model or None,
        "serial": device.serial or None,
        "transport": device.transport or None,
        "contents": list(contents(device)),
    }
