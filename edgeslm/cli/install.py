"""``edgeslm install`` and ``edgeslm uninstall``: the agent as a service of the machine that this runs on."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeslm.cli.board import complete_boards
from edgeslm.cli.flash_archive import built, make_request, payload_options
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors
from edgeslm.errors import DamagedInstallError, InstallHereError, WrongMachineError

if TYPE_CHECKING:
    from edgeslm.flash.payload.whole import BoardSystem

root_option = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default="/",
    show_default=True,
    help="Directory that stands for /; nothing is started there.",
)


@click.command()
@click.option(
    "--board",
    "board_name",
    help="Board to assume instead of the recognised one.",
    shell_complete=complete_boards,
)
@payload_options
@root_option
@click.option(
    "--replace-settings", is_flag=True, help="Replace settings that were changed as well; they stay as *.old."
)
@click.option("--no-start", is_flag=True, help="Leave the service alone.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@json_option
@reporting_errors
def install(
    board_name: str | None,
    devices_dir: Path | None,
    root: Path,
    replace_settings: bool,
    no_start: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Run the agent as a service of this machine, now and whenever it starts.

    A power cut or Ctrl-C at any moment does no harm: run the same command again, and it goes on. What
    `edgeslm uninstall` takes away again is all of it.
    """
    from edgeslm.cli.fleet_common import confirm  # noqa: PLC0415
    from edgeslm.flash.archive import Source, describe  # noqa: PLC0415
    from edgeslm.flash.onboard import main, work  # noqa: PLC0415
    from edgeslm.flash.onboard.disk import Disk  # noqa: PLC0415
    from edgeslm.flash.payload import layout  # noqa: PLC0415
    from edgeslm.power.boards import choose_board  # noqa: PLC0415

    root = root.resolve()
    with _told():
        if not dry_run:
            main.check_privilege(root, _command())
    board = choose_board(board_name, devices_dir)
    request = make_request(board, _system(root), **wanted)
    with built(request) as payload, _told():
        manifest, disk = describe(request, payload), Disk(root, layout.STATE)
        main.check_host(manifest, root, any_board=board_name is not None)
        plan = work.plan_install(manifest, disk, replace_settings=replace_settings)
        starts = not no_start and main.has_to_start(manifest, plan, root)
        lines = main.install_lines(manifest, plan, starts=starts)
        done = confirm([printable(line) for line in lines], yes=yes, dry_run=dry_run)
        if done:
            source = Source(payload.entries)
            main.perform_install(manifest, plan, disk, source.open_bytes, _tell, starts=starts)
    if as_json:
        print_json(main.install_record(manifest, plan, root, done=done, started=starts and done))
    elif done:
        click.echo(
            f"installed edgeslm {manifest.edgeslm}; systemctl status {manifest.service} says how it is"
        )


@click.command()
@root_option
@click.option("--purge", is_flag=True, help="Remove identity, journal, models and changed files as well.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@json_option
@reporting_errors
def uninstall(root: Path, purge: bool, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Take away what `edgeslm install`, an archive or a prepared image put on this machine.

    Identity and journal of the device stay unless --purge says otherwise; so do files that were changed since.
    """
    from edgeslm.cli.fleet_common import confirm  # noqa: PLC0415
    from edgeslm.flash.onboard import main, removal  # noqa: PLC0415
    from edgeslm.flash.onboard.disk import Disk  # noqa: PLC0415
    from edgeslm.flash.onboard.service import is_live  # noqa: PLC0415
    from edgeslm.flash.payload import layout  # noqa: PLC0415

    root = root.resolve()
    with _told():
        if not dry_run:
            main.check_privilege(root, _command())
        disk = Disk(root, layout.STATE)
        found = removal.plan_uninstall(layout.MANIFEST, layout.STATE, layout.UNIT_NAME, disk, purge=purge)
        service = layout.UNIT_NAME if is_live(root) else None
        lines = [printable(line) for line in main.removal_lines(found, service=service)]
        done = confirm(lines, yes=yes, dry_run=dry_run)
        if done:
            main.perform_uninstall(found, layout.MANIFEST, disk, _tell, service_name=service)
    if as_json:
        print_json(main.removal_record(found, root, done=done))
    elif done:
        click.echo(f"uninstalled edgeslm {printable(found.edgeslm)}")


def _command() -> list[str]:
    """This command as it was called, by a path that sudo finds as well."""
    return [shutil.which(sys.argv[0]) or sys.argv[0], *sys.argv[1:]]


def _system(root: Path) -> BoardSystem:
    """The system at `root`, seen through its files.

    Raises:
        TreeError: it cannot be read.
        WrongMachineError: it has no Python, or nothing tells what processor it is for.
    """
    from edgeslm.flash.image.facts import read_facts  # noqa: PLC0415
    from edgeslm.flash.payload.systems import board_system  # noqa: PLC0415
    from edgeslm.flash.tree import DirectoryTree  # noqa: PLC0415

    tree = DirectoryTree(root)
    facts = read_facts(tree, None, image_bytes=0, root_bytes=0)
    if facts.python is None or facts.python_path is None:
        raise WrongMachineError(
            f"{root} has no Python that is called python3", hint="On Debian: apt install python3"
        )
    if facts.machine is None:
        raise WrongMachineError(f"nobody can tell what processor the programs in {root} are for")
    return board_system(facts, tree)


@contextmanager
def _told() -> Iterator[None]:
    """Turn what the program of archives says into errors of ours."""
    from edgeslm.flash.onboard.manifest import DamagedError, MisfitError, OnboardError  # noqa: PLC0415

    try:
        yield
    except MisfitError as error:
        raise WrongMachineError(error.message, hint=error.hint) from error
    except DamagedError as error:
        raise DamagedInstallError(error.message, hint=error.hint) from error
    except OnboardError as error:
        raise InstallHereError(error.message, hint=error.hint) from error


def _tell(text: str) -> None:
    click.echo(f"{text} ...", err=True)
