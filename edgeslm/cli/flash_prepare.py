"""``edgeslm flash prepare``: from a stock image to one that joins its fleet by itself."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeslm.cli.board import complete_boards
from edgeslm.cli.flash_archive import payload_options
from edgeslm.cli.flash_options import CustomisationOptions, customisation_options
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors
from edgeslm.cli.profile import card_size, model_needs
from edgeslm.errors import UsageError

if TYPE_CHECKING:
    from edgeslm.flash.prepare import Prepared, PrepareRequest
    from edgeslm.schema.customisation import Wifi
    from edgeslm.schema.profile import Profile

_MB = 2**20
_LINE_EVERY_S = 5.0
"""How often a log, which is no terminal, hears how far it is."""


@click.command("prepare")
@click.option(
    "--board", "board_name", required=True, help="Board that it is for.", shell_complete=complete_boards
)
@click.option(
    "--image",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    required=True,
    help="Image as its makers publish it: raw, .xz, .gz, .zst or .zip.",
)
@click.option(
    "--sha256", help="Digest that the image has to have; else a file IMAGE.sha256 says it, if there is one."
)
@payload_options
@click.option(
    "--for-many",
    is_flag=True,
    help="Neither --claim nor --device: `flash batch` gives each card its own.",
)
@customisation_options
@click.option("--keep-hostname", is_flag=True, help="Leave the host name as the image has it.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Image to write.")
@click.option("--ram", "ram_mb", type=click.IntRange(64, 1_048_576), help="Memory of your board in MB.")
@click.option("--card", "card_bytes", callback=card_size, help="Size of the card, such as 32G.")
@click.option(
    "--size",
    "image_bytes",
    callback=card_size,
    help="Length of the image, which its root fills; else as long as it has to be.",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where packed agents are kept; default is ~/.cache/edgeslm.",
)
@click.option("--force", is_flag=True, help="Replace the image if it is there.")
@click.option("--dry-run", is_flag=True, help="Look, decide, say what would be done, and leave nothing.")
@json_option
@reporting_errors
def prepare(
    board_name: str,
    devices_dir: Path | None,
    out: Path,
    force: bool,
    dry_run: bool,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Make an image that joins a fleet by itself out of a stock one. Needs no root, and mounts nothing.

    The agent, its models, settings, rules, claim and service go into the image, and what the profile and you want of
    the system. The board needs no network to be installed. Beside the image come OUT.bmap, OUT.sha256 and OUT.json,
    which says what it is.
    """
    from edgeslm.flash.prepare import prepare as make  # noqa: PLC0415
    from edgeslm.power.boards import choose_board  # noqa: PLC0415

    if out.exists() and not force and not dry_run:
        raise UsageError(f"{out} is there already", hint="Name another file, or use --force")
    if out.exists() and out.samefile(wanted["image"]):
        raise UsageError("--out is the image that is read", hint="Name another file")
    board = choose_board(board_name, devices_dir)
    progress = Progress()
    request = make_request(board=board, out=out, **wanted)
    began_s = time.monotonic()
    try:
        made = make(request, stage=progress.tell, dry_run=dry_run)
    finally:
        progress.close()
    took_s = time.monotonic() - began_s
    if as_json:
        record = made.record.model_dump(mode="json", exclude_none=True)
        if dry_run:
            record.pop("sha256")
        print_json(
            {
                **record,
                "out": str(out),
                "written": not dry_run,
                "took_s": round(took_s, 2),
                "remarks": made.remarks,
            }
        )
        return
    show(made, out, took_s, dry_run=dry_run)


def make_request(
    *,
    board: Any,
    out: Path,
    image: Path,
    sha256: str | None,
    profile_name: str,
    claim_file: Path | None,
    device: str | None,
    for_many: bool,
    models: tuple[str, ...],
    rules: tuple[Path, ...],
    agent_archive: Path | None,
    profiles_dir: Path | None,
    customise: CustomisationOptions,
    keep_hostname: bool,
    ram_mb: int | None,
    card_bytes: int | None,
    image_bytes: int | None,
    cache_dir: Path | None,
) -> PrepareRequest:
    """What is wanted, with all files read that say it.

    Raises:
        EdgeslmError: whatever keeps it from that, each with its own class.
    """
    from edgeslm.agent.rules.loading import load_rules  # noqa: PLC0415
    from edgeslm.flash.payload.agents import cache_directory  # noqa: PLC0415
    from edgeslm.flash.payload.claims import read_claim  # noqa: PLC0415
    from edgeslm.flash.prepare import PrepareRequest  # noqa: PLC0415
    from edgeslm.flash.prepare.request import UNNAMED  # noqa: PLC0415
    from edgeslm.flash.profiles import load_profile, rule_paths  # noqa: PLC0415

    _one_of({"--claim": claim_file, "--device": device, "--for-many": for_many})
    if keep_hostname and customise.hostname is not None:
        raise UsageError("--hostname and --keep-hostname exclude each other")
    profile = load_profile(profile_name, profiles_dir).profile
    claim = None if claim_file is None else read_claim(claim_file, now=datetime.now(UTC))
    all_rules = (*rule_paths(profile), *rules)
    if all_rules:
        load_rules(all_rules)
    name = UNNAMED if for_many else device if claim is None else claim.device
    return PrepareRequest(
        image=image,
        out=out,
        sha256=sha256,
        board=board,
        profile=profile,
        needs=model_needs(profile, models),
        claim=claim,
        device=device,
        for_many=for_many,
        archive=agent_archive,
        cache=cache_dir or cache_directory(),
        models=models,
        rules=all_rules,
        customisation=customise.build(device=None if keep_hostname else name, wifi=_wifi(profile)),
        ram_mb=ram_mb,
        card_bytes=card_bytes,
        image_bytes=image_bytes,
    )


class Progress:
    """How far it is, on stderr: one line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._what = ""
        self._last_s = 0.0
        self._is_open = False

    def tell(self, what: str, done: int, total: int) -> None:
        """See :data:`edgeslm.flash.prepare.Stage`."""
        now_s = time.monotonic()
        is_new = what != self._what
        ends = bool(total) and done >= total
        every_s = 0.1 if self._is_terminal else _LINE_EVERY_S
        if not is_new and not ends and now_s - self._last_s < every_s:
            return
        self._last_s = now_s
        text = printable(what) + (f"  {100 * done // total:3d} %" if total else " ...")
        if not self._is_terminal:
            if is_new or not ends:
                click.echo(text, err=True)
        else:
            if is_new:
                self.close()
            click.echo(f"\r\x1b[K{text}", err=True, nl=False)
            self._is_open = True
        self._what = what

    def close(self) -> None:
        """End the line."""
        if self._is_open:
            click.echo(err=True)
            self._is_open = False


def show(made: Prepared, out: Path, took_s: float, *, dry_run: bool) -> None:
    """Say what was made, or would be."""
    record = made.record
    who = record.device or "each card its own"
    of_fleet = f" of the fleet {record.fleet}" if record.fleet else ""
    rows = [
        ("image", f"{record.source.name}: {record.system.name}, {record.system.machine}"),
        ("board", f"{record.board}, profile {record.profile}"),
        ("device", f"{who}{of_fleet}"),
        ("told by", record.first_boot or "nothing: it stays as it is"),
        ("agent", f"edgeslm {record.edgeslm}, Python {record.system.python}"),
        ("models", ", ".join(record.models)),
        *(("sets", line) for line in record.boot),
        ("payload", f"{record.payload_bytes / _MB:.0f} MB in {record.payload_files} files"),
    ]
    if not dry_run:
        rows += [
            ("room left", f"{record.root_free_bytes / _MB:.0f} MB in the root"),
            ("to write", f"{record.mapped_bytes / _MB:.0f} of {record.size_bytes / _MB:.0f} MB"),
            ("sha256", record.sha256),
        ]
    for name, text in rows:
        click.echo(f"{name:<10} {printable(text)}")
    for check in made.report.checks:
        if check.status == "warning":
            click.echo(printable(f"note       {check.name}: {check.detail}"), err=True)
    for remark in made.remarks:
        click.echo(printable(f"note       {remark}"), err=True)
    if dry_run:
        click.echo("dry run: nothing was written", err=True)
        return
    click.echo(
        f"made {printable(str(out))} in {took_s:.0f} s; write it with: edgeslm flash write {printable(str(out))} DISK"
    )
    if record.claim is not None:
        click.echo("It holds a claim: whoever has the image can join the fleet once with it", err=True)


def _one_of(given: dict[str, object]) -> None:
    said = [flag for flag, value in given.items() if value]
    if len(said) > 1:
        raise UsageError(f"{' and '.join(said)} exclude each other", hint="The claim names the device")
    if not said:
        raise UsageError(
            "the device needs a name",
            hint="Give --claim, by which it joins a fleet, --device, or --for-many where cards get theirs later",
        )


def _wifi(profile: Profile) -> Wifi | None:
    """The profile's wireless network, its passphrase read and turned into a key."""
    from edgeslm.flash.first_boot.credentials import wifi_key  # noqa: PLC0415
    from edgeslm.flash.profiles import read_secret  # noqa: PLC0415
    from edgeslm.schema.customisation import Wifi  # noqa: PLC0415

    network = profile.network.wifi
    if network is None:
        return None
    psk = None if network.password is None else wifi_key(network.ssid, read_secret(network.password))
    return Wifi(ssid=network.ssid, psk=psk, country=network.country, hidden=network.hidden)
