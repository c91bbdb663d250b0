"""What the fleet's commands share: which fleet, its parts, tables, and asking before something is done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeslm.cli.output import FLEET, printable
from edgeslm.clock import utc_now
from edgeslm.errors import EdgeslmError, UsageError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from edgeslm.fleet.broker import Broker, Synced
    from edgeslm.fleet.ca import CertificateAuthority
    from edgeslm.fleet.directory import FleetDirectory
    from edgeslm.fleet.store.database import Store

FLEET_DIR = "EDGESLM_FLEET_DIR"
_UNWRAPPED_CHARS = 10_000
PARTLY = 3
"""Exit code where some of several things could not be done."""

_EXTRA_MODULES = {"sqlalchemy", "alembic", "cryptography", "rich", "tuf", "securesystemslib"}


def fleet_options(command: Any) -> Any:
    """Options that say which fleet a command is about."""
    directory = click.Path(path_type=Path, file_okay=False)
    for option in (
        click.option(
            "--fleet-dir", type=directory, envvar=FLEET_DIR, show_envvar=True, help="Directory of the fleet."
        ),
        click.option(
            "--fleet",
            "fleet_name",
            envvar=FLEET,
            show_envvar=True,
            help="Name of the fleet, if there are several.",
        ),
    ):
        command = option(command)
    return command


passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Holds the passphrase of the authority's key, if that has one; else it is asked for.",
)
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


@contextmanager
def naming_the_extra() -> Iterator[None]:
    """Say what to install where a library of the fleet is missing.

    Raises:
        UsageError: it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA_MODULES:
            raise
        raise UsageError(
            f"{error.name} is not installed", hint="The fleet's commands need: pip install 'edgeslm[fleet]'"
        ) from error


@dataclass(frozen=True)
class Fleet:
    """A fleet with its parts, each opened when it is used first."""

    directory: FleetDirectory
    passphrase_file: Path | None

    @cached_property
    def store(self) -> Store:
        """The store."""
        return self.directory.open_store()

    @cached_property
    def authority(self) -> CertificateAuthority:
        """The authority; its passphrase is asked for once."""
        from edgeslm.fleet.signing import passphrase_source  # noqa: PLC0415

        prompt = (
            (lambda text: str(click.prompt(text, hide_input=True, err=True, prompt_suffix="")))
            if sys.stdin.isatty()
            else None
        )
        return self.directory.authority(passphrase_source(file=self.passphrase_file, prompt=prompt))

    @cached_property
    def broker(self) -> Broker:
        """The broker."""
        from edgeslm.fleet.broker import Broker  # noqa: PLC0415

        return Broker(self.directory, lambda: self.authority)

    @cached_property
    def actor(self) -> str:
        """Who calls."""
        from edgeslm.fleet.registry import current_actor  # noqa: PLC0415

        return current_actor()

    def sync_broker(self) -> Synced:
        """Let the broker's files say what the store says, and tell what the operator still has to do."""
        done = self.broker.sync(self.store, utc_now())
        if done.needs_restart:
            note("settings of the broker changed: start it and its door anew, at a moment that suits")
        if done.reload == "refused":
            note("the door runs as another user and has not read its passwords: send it SIGHUP")
        elif done.reload == "not running":
            note("no door of this fleet runs on this machine; it reads its passwords when it starts")
        return done


def open_fleet(fleet_dir: Path | None, fleet_name: str | None, passphrase_file: Path | None = None) -> Fleet:
    """The fleet that the options name.

    Raises:
        FleetSetupError: there is none.
        UsageError: a library is missing.
    """
    with naming_the_extra():
        from edgeslm.fleet.directory import FleetDirectory, default_fleets_dir, locate  # noqa: PLC0415

        return Fleet(FleetDirectory(fleet_dir or locate(fleet_name, default_fleets_dir())), passphrase_file)


# --- output -------------------------------------------------------------------------------------------------


def note(text: str) -> None:
    """Something beside the result, on stderr."""
    click.echo(f"note: {text}", err=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str | None]], *, empty: str) -> None:
    """A table on stdout: with colours on a terminal, plain and unwrapped elsewhere; `empty` goes to stderr."""
    if not rows:
        click.echo(empty, err=True)
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell or "-")) for cell in row))
    if sys.stdout.isatty():
        Console().print(table)
        return
    console = Console(width=_UNWRAPPED_CHARS, no_color=True)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def ago(at: datetime | None, now: datetime) -> str | None:
    """How long ago or ahead a time is, roughly."""
    if at is None:
        return None
    seconds = (now - at).total_seconds()
    units = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    unit_s, name = next((unit for unit in units if abs(seconds) >= 2 * unit[0]), units[-1])
    size = f"{abs(seconds) / unit_s:.0f} {name}"
    return f"{size} ago" if seconds >= 0 else f"in {size}"


# --- doing something to several things ----------------------------------------------------------------------


def confirm(plan: Sequence[str], *, yes: bool, dry_run: bool) -> bool:
    """Show `plan` on stderr and ask; ``False`` for a dry run.

    Raises:
        UsageError: nobody can be asked, or the answer is no.
    """
    for line in plan:
        click.echo(line, err=True)
    if dry_run:
        click.echo("dry run: nothing was done", err=True)
        return False
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("nobody can be asked here", hint="Confirm with --yes")
    if not click.confirm("Go on?", err=True):
        raise UsageError("nothing was done")
    return True


@contextmanager
def changing(fleet: Fleet, *, dry_run: bool) -> Iterator[Session]:
    """A transaction that changes the store; a dry run fails wherever the change would, and is undone at its end."""
    with fleet.store.write() as session:
        yield session
        if dry_run:
            session.rollback()
    if dry_run:
        click.echo("dry run: nothing was done", err=True)


def for_each(names: Sequence[str], do: Callable[[str], None]) -> list[str]:
    """Do something for each name, tell what fails, and return the names for which it worked.

    Raises:
        EdgeslmError: the one failure, where there is but one name.
    """
    if len(names) == 1:
        do(names[0])
        return list(names)
    done = []
    for name in names:
        try:
            do(name)
        except EdgeslmError as error:
            click.echo(f"edgeslm: {name}: {error}", err=True)
        else:
            done.append(name)
    return done


def exit_for(done: Sequence[str], asked: Sequence[str]) -> None:
    """End with the exit code for what was done of what was asked."""
    if len(done) < len(asked):
        sys.exit(PARTLY if done else 1)
