"""``edgeslm flash archive``: one file that puts edgeslm on a board that runs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import edgeslm
from edgeslm.cli.board import complete_boards
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors
from edgeslm.cli.profile import devices_dir_option, model_needs, profiles_dir_option
from edgeslm.errors import PrepareError, UsageError

if TYPE_CHECKING:
    from edgeslm.flash.payload.whole import BoardSystem, Payload, PayloadRequest
    from edgeslm.schema.board import Board

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_VIDEO = "video"


def payload_options(command: F) -> F:
    """What is to be on a board: for archives, and for this machine."""
    options = [
        click.option(
            "--profile", "profile_name", default="default", show_default=True, help="What it is to do."
        ),
        click.option("--claim", "claim_file", type=_FILE, help="Claim by which it joins a fleet by itself."),
        click.option("--device", help="Its name on the wire, where it has no claim."),
        click.option(
            "--model", "models", multiple=True, help="Model instead of the profile's; can be repeated."
        ),
        click.option(
            "--rules",
            "rules",
            multiple=True,
            type=click.Path(path_type=Path, exists=True),
            help="File or directory of rules beside the profile's; can be repeated.",
        ),
        click.option(
            "--agent", "agent_archive", type=_FILE, help="Archive of `edgeslm agent pack`; else it is packed."
        ),
        profiles_dir_option,
        devices_dir_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def make_request(
    board: Board,
    system: BoardSystem,
    *,
    profile_name: str,
    claim_file: Path | None,
    device: str | None,
    models: tuple[str, ...],
    rules: tuple[Path, ...],
    agent_archive: Path | None,
    profiles_dir: Path | None,
) -> PayloadRequest:
    """What is wanted, once it is known that it fits the board.

    Raises:
        EdgeslmError: whatever keeps it from that, each with its own class.
    """
    from edgeslm.flash.fit import demand, fit  # noqa: PLC0415
    from edgeslm.flash.fit_types import FitRequest  # noqa: PLC0415
    from edgeslm.flash.payload.agents import cache_directory, packed_agent  # noqa: PLC0415
    from edgeslm.flash.payload.claims import read_claim  # noqa: PLC0415
    from edgeslm.flash.payload.gathering import Target  # noqa: PLC0415
    from edgeslm.flash.payload.whole import PayloadRequest  # noqa: PLC0415
    from edgeslm.flash.profiles import load_profile, rule_paths  # noqa: PLC0415

    profile = load_profile(profile_name, profiles_dir).profile
    claim = None if claim_file is None else read_claim(claim_file, now=datetime.now(UTC))
    if claim is not None and device is not None:
        raise UsageError("--device and --claim exclude each other", hint="The claim names the device")
    if claim is None and device is None:
        raise UsageError(
            "the device needs a name", hint="Give --claim, by which it joins a fleet, or --device"
        )
    needs = model_needs(profile, models)
    demand(fit(FitRequest(board, profile, needs, edgeslm.__version__, has_claim=claim is not None)))
    if agent_archive is None:
        if system.glibc is None:
            raise PrepareError(
                "the C library there is not glibc, for which there are no wheels", what="agent"
            )
        target = Target(system.python.version, system.machine, system.glibc)
        agent_archive = packed_agent(
            target, cache_directory(), lambda line: click.echo(printable(line), err=True)
        )
    return PayloadRequest(
        archive=agent_archive,
        system=system,
        board=board,
        profile=profile,
        claim=claim,
        device=device,
        models=models,
        rules=(*rule_paths(profile), *rules),
    )


@contextmanager
def built(request: PayloadRequest) -> Iterator[Payload]:
    """The payload of a request, as long as the block lasts.

    Raises:
        EdgeslmError: whatever keeps it from being built.
    """
    from edgeslm.flash.payload.whole import build_payload  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="edgeslm-payload-") as directory:
        try:
            yield build_payload(request, Path(directory), lambda text: click.echo(f"{text} ...", err=True))
        except OSError as error:
            raise PrepareError(
                f"{error.filename or directory}: {error.strerror or error}",
                what="room",
                hint="TMPDIR names another place for what is made meanwhile",
            ) from error


@click.command("archive")
@click.option(
    "--board", "board_name", required=True, help="Board that it is for.", shell_complete=complete_boards
)
@payload_options
@click.option(
    "--python",
    "python_version",
    required=True,
    help="Version of Python on the board, such as 3.11 (python3 --version).",
)
@click.option("--machine", help="What uname -m says there, where the board can be of any architecture.")
@click.option("--glibc", required=True, help="Version of glibc there, such as 2.36 (ldd --version).")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.option("--dry-run", is_flag=True, help="Say what would be in it, and write nothing.")
@json_option
@reporting_errors
def archive(
    board_name: str,
    devices_dir: Path | None,
    python_version: str,
    machine: str | None,
    glibc: str,
    out: Path,
    force: bool,
    dry_run: bool,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Make one file that puts edgeslm on a board that runs, with no network there.

    On the board: `sudo python3 FILE`. The profile's settings of the system itself (boot files, network, swap) are not
    in it: the board keeps what it has.
    """
    from edgeslm.flash.archive import describe, write_archive  # noqa: PLC0415
    from edgeslm.flash.payload.environment import BoardPython  # noqa: PLC0415
    from edgeslm.flash.payload.whole import BoardSystem  # noqa: PLC0415
    from edgeslm.power.boards import choose_board  # noqa: PLC0415

    _check(python_version, glibc)
    if out.exists() and not force:
        raise UsageError(f"{out} is there already", hint="Name another file, or use --force")
    board = choose_board(board_name, devices_dir)
    if board.arch == "any" and machine is None:
        raise UsageError(
            f"board '{board.name}' can be of any architecture", hint="Say which: --machine x86_64"
        )
    if board.arch != "any" and machine not in {None, board.arch}:
        raise UsageError(f"board '{board.name}' is {board.arch}, not {machine}", hint="Leave --machine out")
    python = BoardPython(python_version, f"/usr/bin/python{python_version}")
    # Debian and all that comes from it have this group; the archive makes sure before it installs anything.
    system = BoardSystem(python, machine or board.arch, glibc, groups=frozenset({_VIDEO}))
    request = make_request(board, system, **wanted)
    with built(request) as payload:
        manifest = describe(request, payload)
        record = {
            "file": str(out),
            "edgeslm": manifest.edgeslm,
            "board": manifest.board,
            "profile": manifest.profile,
            "fleet": manifest.fleet or None,
            "device": manifest.device or None,
            "files": len(manifest.items),
            "installed_bytes": manifest.size_bytes,
        }
        if not dry_run:
            written = write_archive(manifest, payload.entries, out)
            record |= {"sha256": written.sha256, "size_bytes": written.size_bytes}
    if as_json:
        print_json(record)
        return
    click.echo(f"{out}: edgeslm {record['edgeslm']} for {record['board']}, profile {record['profile']}")
    click.echo(f"takes    {manifest.size_bytes / 2**20:.0f} MiB installed, in {record['files']} files")
    if dry_run:
        click.echo("dry run: nothing was written", err=True)
        return
    click.echo(f"sha256   {record['sha256']}")
    click.echo(f"install  sudo python3 {out.name}")
    if manifest.fleet:
        click.echo("It holds a claim: whoever has the file can join the fleet once with it", err=True)


def _check(python_version: str, glibc: str) -> None:
    for name, text, major in (("--python", python_version, "3."), ("--glibc", glibc, "2.")):
        if not (text.startswith(major) and text[2:].isdigit() and len(text) <= 5):
            raise UsageError(f"{name}: '{text[:40]}' is no version", hint=f"Such as {major}36"[:14])
