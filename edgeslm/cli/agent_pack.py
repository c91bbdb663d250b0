"""``edgeslm agent pack|adopt|installed``: archives of the agent itself, and the layout that they are installed in."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import edgeslm
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors
from edgeslm.errors import AgentArchiveError, UsageError

if TYPE_CHECKING:
    from edgeslm.agent.installation import Installation
    from edgeslm.wheelhouse import Wheelhouse

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_DIRECTORY = click.Path(path_type=Path, file_okay=False, exists=True)
DEFAULT_ROOT = "/opt/edgeslm"

root_option = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_ROOT,
    show_default=True,
    envvar="EDGESLM_ROOT",
    show_envvar=True,
    help="Directory of the installation.",
)


@click.command()
@click.argument("source", required=False)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Archive to write."
)
@click.option("--wheels", type=_DIRECTORY, help="Pack the wheels of this directory, as they are.")
@click.option("--python", help="Version of Python on the boards, such as 3.11; default: this one.")
@click.option("--machine", help="What uname -m says there, such as aarch64; default: this machine.")
@click.option("--glibc", help="Version of glibc there, such as 2.36 (Debian 12); needed with --machine.")
@click.option("--minimum", default="0.0.0", show_default=True, help="Least version that may install it.")
@json_option
@reporting_errors
def pack(
    source: str | None,
    out: Path,
    wheels: Path | None,
    python: str | None,
    machine: str | None,
    glibc: str | None,
    minimum: str,
    as_json: bool,
) -> None:
    """Pack edgeslm and all that it needs into one archive, for devices to install.

    SOURCE is a wheel of edgeslm, a directory of its source, or what pip understands; without it the version of this
    installation is asked for. With --wheels nothing is fetched or built.
    """
    from edgeslm.flash.payload.gathering import Target, gather  # noqa: PLC0415
    from edgeslm.wheelhouse import write_archive  # noqa: PLC0415

    _check_target(source, wheels, python, machine, glibc)
    if wheels is not None:
        files = sorted(wheels.glob("*.whl"))
        if not files:
            raise UsageError(f"{wheels} holds no wheels")
        made = write_archive(files, out, agent=minimum)
    else:
        target = None
        if machine is not None and glibc is not None:
            version = python or f"{sys.version_info.major}.{sys.version_info.minor}"
            target = Target(version, machine, glibc)
        wanted = source or f"edgeslm=={edgeslm.__version__}"
        with tempfile.TemporaryDirectory(prefix="edgeslm-pack-") as directory:
            gathered = gather(
                wanted, Path(directory), target, lambda line: click.echo(printable(line), err=True)
            )
            made = write_archive(gathered, out, agent=minimum)
    if as_json:
        print_json(_record(out, made))
        return
    click.echo("\n".join(_lines(out, made)))


def _check_target(
    source: str | None, wheels: Path | None, python: str | None, machine: str | None, glibc: str | None
) -> None:
    if wheels is not None and (source or python or machine or glibc):
        raise UsageError("--wheels takes a directory as it is", hint="Leave SOURCE and the target out")
    if (machine is None) != (glibc is None):
        raise UsageError(
            "--machine and --glibc go together", hint="On the board: uname -m, and ldd --version"
        )
    if python is not None and machine is None:
        raise UsageError("--python needs --machine and --glibc as well")
    if glibc is not None and not (glibc.startswith("2.") and glibc[2:].isdigit()):
        raise UsageError(f"'{glibc[:40]}' is no version of glibc", hint="Such as 2.36")


def _record(out: Path, made: Wheelhouse) -> dict[str, Any]:
    manifest = made.manifest
    return {
        "file": str(out),
        "sha256": made.sha256,
        "size_bytes": made.size_bytes,
        "version": manifest.version,
        "requires": manifest.requires.model_dump(mode="json"),
        "installed_bytes": manifest.installed_bytes,
        "wheels": [wheel.file for wheel in manifest.wheels],
    }


def _lines(out: Path, made: Wheelhouse) -> list[str]:
    manifest, needs = made.manifest, made.manifest.requires
    return [
        f"{out}: edgeslm {manifest.version}, {len(manifest.wheels)} wheels, {made.size_bytes} bytes",
        f"sha256   {made.sha256}",
        f"runs on  {needs.machine}, Python {', '.join(needs.pythons)}"
        + (f", glibc {needs.glibc} and later" if needs.glibc else ""),
        f"takes    {manifest.installed_bytes / 2**20:.0f} MiB installed",
    ]


# --- on the board -------------------------------------------------------------------------------------------


@click.command()
@click.argument("archive", type=_FILE)
@root_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@json_option
@reporting_errors
def adopt(archive: Path, root: Path, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Install ARCHIVE on this device so that its fleet can update the agent from then on.

    The version takes over at the next start, without a trial: somebody stands at the board. Run it again to repair an
    installation, or to renew its launcher, which no update replaces.
    """
    from edgeslm.agent.environments import Host, misfit  # noqa: PLC0415
    from edgeslm.agent.installation import Installation  # noqa: PLC0415
    from edgeslm.cli.fleet_common import confirm  # noqa: PLC0415
    from edgeslm.schema.agent_release import version_name  # noqa: PLC0415
    from edgeslm.wheelhouse import check_archive  # noqa: PLC0415

    found = check_archive(archive)
    manifest = found.manifest
    # Whichever version installs it here, it is not the one that runs.
    reason = misfit(manifest.requires, Host.here(), manifest.requires.agent)
    if reason is not None:
        raise AgentArchiveError(f"{archive} cannot run here: {reason}", path=str(archive))
    installation = Installation(root.absolute())
    name, before = version_name(manifest.version, found.sha256), installation.current
    plan = [f"install edgeslm {manifest.version} in {root}/versions/{name}"]
    plan.append(f"run {name} from the next start on" + (f", instead of {before}" if before else ""))
    if not confirm(plan, yes=yes, dry_run=dry_run):
        return
    _make_root(root)
    installation.check_room(found.size_bytes, manifest.installed_bytes)
    installation.build(
        archive, manifest.version, found.sha256, lambda text, _: click.echo(f"{text} ...", err=True)
    )
    installation.adopt(name)
    installation.collect()
    command = f"python3 {installation.root}/launch.py agent run"
    if as_json:
        print_json({"root": str(installation.root), "current": name, "previous": before, "run": command})
        return
    click.echo(f"installed edgeslm {manifest.version} in {installation.root}")
    click.echo(f"run it with: {command}")


def _make_root(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{root}: {error.strerror}", hint="Make it, and give it to the agent's user"
        ) from error


@click.command()
@root_option
@json_option
@reporting_errors
def installed(root: Path, as_json: bool) -> None:
    """List the versions of the agent that are installed, and how the last change went."""
    from edgeslm.agent.installation import Installation  # noqa: PLC0415

    installation = Installation(root.absolute())
    rows, trial = _versions(installation), installation.trial
    if not rows:
        raise UsageError(f"{root} is no installation", hint="Make one with: edgeslm agent adopt ARCHIVE")
    if as_json:
        record = None
        if trial is not None:
            record = {
                "version": trial.version,
                "state": trial.state,
                "starts": trial.starts,
                "reason": trial.reason,
            }
        print_json({"root": str(installation.root), "versions": rows, "last_change": record})
        return
    for row in rows:
        click.echo(f"{row['name']:<32}{row['is']}")
    if trial is not None:
        told = f": {printable(trial.reason)}" if trial.reason else ""
        click.echo(f"last change: {trial.version}, {trial.state.replace('_', ' ')}{told}")


def _versions(installation: Installation) -> list[dict[str, str]]:
    try:
        names = sorted(path.name for path in (installation.root / "versions").iterdir())
    except OSError:
        return []
    trial = installation.trial
    rows = []
    for name in names:
        is_ = "not whole" if installation.installed(name) is None else "installed"
        if name == installation.previous:
            is_ = "previous"
        if name == installation.current:
            on_trial = installation.on_trial and trial is not None
            is_ = "current, on trial" if on_trial else "current"
        rows.append({"name": name, "is": is_})
    return rows
