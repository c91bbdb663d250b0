"""``edgeslm install`` and ``edgeslm uninstall``: the agent as a service of the machine that this runs on."""

from __future__ import annotations

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

_MAX_GROUP_BYTES = 2**20

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
@click.option("--no-start", is_flag=True, help="Leave the service alone.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@json_option
@reporting_errors
def install(
    board_name: str | None,
    devices_dir: Path | None,
    root: Path,
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
    from edgeslm.power.boards import choose_board  # noqa: PLC0415

    root = root.resolve()
    with _told():
        main.check_privilege(root)
    board = choose_board(board_name, devices_dir)
    request = make_request(board, _system(root), **wanted)
    with built(request) as payload, _told():
        manifest, disk = describe(request, payload), Disk(root)
        main.check_host(manifest, root, any_board=board_name is not None)
        plan = work.plan_install(manifest, disk)
        starts = work.is_live(root) and not no_start
        lines = main.install_lines(manifest, plan, starts=starts)
        if confirm([printable(line) for line in lines], yes=yes, dry_run=dry_run):
            source = Source(payload.entries)
            main.perform_install(manifest, plan, disk, source.open_bytes, _tell, starts=starts)
    record = {
        "root": str(root),
        "edgeslm": manifest.edgeslm,
        "board": manifest.board,
        "profile": manifest.profile,
        "written": 0 if dry_run else len(plan.missing),
        "missing": len(plan.missing),
        "started": starts and not dry_run,
    }
    if as_json:
        print_json(record)
    elif not dry_run:
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
    from edgeslm.flash.onboard import main, work  # noqa: PLC0415
    from edgeslm.flash.onboard.disk import Disk  # noqa: PLC0415
    from edgeslm.flash.payload import layout  # noqa: PLC0415

    root = root.resolve()
    with _told():
        main.check_privilege(root)
        disk = Disk(root)
        removal = work.plan_uninstall(layout.MANIFEST, layout.STATE, disk, purge=purge)
        service = layout.UNIT_NAME if work.is_live(root) else None
        lines = [printable(line) for line in main.removal_lines(removal, service=service)]
        if confirm(lines, yes=yes, dry_run=dry_run):
            main.perform_uninstall(removal, layout.MANIFEST, disk, _tell, service=service)
    if as_json:
        print_json({"root": str(root), "kept": list(removal.kept), "purged": purge, "removed": not dry_run})
    elif not dry_run:
        click.echo(f"uninstalled edgeslm {printable(removal.edgeslm)}")


def _system(root: Path) -> BoardSystem:
    """The system at `root`, seen through its files.

    Raises:
        TreeError: it cannot be read.
        WrongMachineError: it has no Python.
    """
    from edgeslm.flash.image.facts import read_facts  # noqa: PLC0415
    from edgeslm.flash.payload.environment import BoardPython  # noqa: PLC0415
    from edgeslm.flash.payload.whole import BoardSystem  # noqa: PLC0415
    from edgeslm.flash.tree import DirectoryTree  # noqa: PLC0415

    tree = DirectoryTree(root)
    facts = read_facts(tree, None, image_bytes=0, root_bytes=0)
    if facts.python is None or facts.python_path is None or facts.machine is None:
        raise WrongMachineError(f"{root} has no Python", hint="On Debian: apt install python3")
    text = b""
    if tree.stat("/etc/group") is not None:
        text = tree.read("/etc/group", max_bytes=_MAX_GROUP_BYTES)
    groups = frozenset(line.partition(":")[0] for line in text.decode("utf-8", "replace").splitlines())
    return BoardSystem(BoardPython(facts.python, facts.python_path), facts.machine, facts.glibc, groups)


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
