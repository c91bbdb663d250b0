"""``edgeslm fleet release``: what is released. Keys, signatures and serving have files of their own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeslm.cli.fleet_common import (
    confirm,
    dry_run_option,
    fleet_options,
    note,
    open_fleet,
    print_table,
    yes_option,
)
from edgeslm.cli.fleet_release_agent import agents_of, print_agents
from edgeslm.cli.fleet_release_common import (
    Change,
    audit_release,
    changing,
    find_release,
    finish,
    key_option,
    keys_of,
    keys_option,
    open_repository,
    parse_release,
    passphrases,
    pending_record,
    print_pending,
    print_state,
    release_passphrase_option,
    state_record,
)
from edgeslm.cli.output import CommandGroup, json_option, print_json, printable, reporting_errors
from edgeslm.errors import ReleaseRepositoryError

if TYPE_CHECKING:
    from edgeslm.fleet.distribution import Prepared
    from edgeslm.fleet.release_files import Superfluous
    from edgeslm.fleet.releases import ReleaseRepository
    from edgeslm.schema.release import ReleaseInfo

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_COMMANDS = {
    "add-agent": ("edgeslm.cli.fleet_release_agent:add_agent", "Release a version of edgeslm itself."),
    "collect": (
        "edgeslm.cli.fleet_release_signing:collect",
        "Take over signatures that were made elsewhere.",
    ),
    "delegate": ("edgeslm.cli.fleet_release_keys:delegate", "Let a team release packages of some names."),
    "discard": ("edgeslm.cli.fleet_release_signing:discard", "Give up what is pending for a role."),
    "keys": ("edgeslm.cli.fleet_release_keys:keys_", "List the roles, their keys, and when they expire."),
    "new-key": ("edgeslm.cli.fleet_release_keys:new_key", "Make a key with a passphrase."),
    "publish": ("edgeslm.cli.fleet_release_signing:publish", "Let everything that is signed enough go live."),
    "refresh": ("edgeslm.cli.fleet_release_signing:refresh", "Sign snapshot and timestamp anew."),
    "renew": ("edgeslm.cli.fleet_release_signing:renew", "Let a role say the same again, for longer."),
    "rotate": ("edgeslm.cli.fleet_release_keys:rotate", "Change the keys of a role, or how many sign."),
    "serve": ("edgeslm.cli.fleet_release_serve:serve", "Give devices releases: over HTTP and the broker."),
    "sign": ("edgeslm.cli.fleet_release_signing:sign", "Sign what is pending, after showing it."),
    "sign-file": (
        "edgeslm.cli.fleet_release_signing:sign_file",
        "Sign a pending file that was carried here.",
    ),
    "undelegate": ("edgeslm.cli.fleet_release_keys:undelegate", "Take from a team what was delegated to it."),
    "withdraw-agent": (
        "edgeslm.cli.fleet_release_agent:withdraw_agent",
        "Take a version of edgeslm itself back.",
    ),
}


@click.group(cls=CommandGroup, lazy=_COMMANDS)
def release() -> None:
    """Release packages: nothing else runs on the devices of a fleet.

    Whatever changes is first pending, then signed with offline keys, then published with the keys of this machine.
    """


# --- making and looking -------------------------------------------------------------------------------------


@release.command()
@fleet_options
@keys_option
@release_passphrase_option
@json_option
@reporting_errors
def init(
    fleet_dir: Path | None,
    fleet_name: str | None,
    keys_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Make the fleet's release repository and its keys, those of root and targets with a passphrase.

    Cut off it is completed by the next run; afterwards another run changes nothing.
    """
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.release_files import is_repository  # noqa: PLC0415
    from edgeslm.fleet.release_setup import OFFLINE_ROLES, set_up  # noqa: PLC0415

    keys = keys_of(fleet, keys_dir)
    # Once it is published its offline keys may be elsewhere, and new ones in their place would be worth nothing.
    if not is_repository(fleet.directory.releases) or not _is_published(open_repository(fleet)):
        set_up(fleet.directory.releases, keys, fleet.directory.name, passphrases(passphrase_file))
        audit_release(fleet, "init", fleet.directory.name)
    offline = [keys / f"{role}.pem" for role in OFFLINE_ROLES]
    public = fleet.directory.releases / "public"
    if as_json:
        print_json(
            {"public": str(public), "keys": str(keys), "offline_keys": [str(path) for path in offline]}
        )
        return
    click.echo(f"releases of fleet {fleet.directory.name}: {public} is what is served")
    there = [path for path in offline if path.exists()]
    if there:
        click.echo(f"move offline now, and keep a copy of each elsewhere: {' '.join(map(str, there))}")
        click.echo(f"next: edgeslm fleet release add PACKAGE.slm --key {offline[-1]}")


def _is_published(repository: ReleaseRepository) -> bool:
    with suppress(ReleaseRepositoryError):
        repository.root_bytes()
        return bool(repository.expiries())
    return False


@release.command("list")
@fleet_options
@json_option
@reporting_errors
def list_(fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """List the published releases, and what is pending."""
    repository = open_repository(open_fleet(fleet_dir, fleet_name))
    known, pending = repository.releases(), repository.pending()
    agents = agents_of(repository).published()
    if as_json:
        print_json(
            {
                "releases": [one.model_dump(mode="json") for one in known],
                "agents": [one.model_dump(mode="json") for one in agents],
                "pending": [pending_record(one) for one in pending],
            }
        )
        return
    print_table(
        ["RELEASE", "BYTES", "DELTAS", "FLOOR", "MEMORY", "SIGNED AS", "SHA256"],
        [
            [
                f"{one.info.name}@{one.info.version}",
                str(one.info.size_bytes),
                ", ".join(str(delta.size_bytes) for delta in one.info.deltas.values()) or None,
                one.floor,
                f"{one.info.requires.ram_mb} MB",
                one.role,
                one.info.sha256[:12],
            ]
            for one in known
        ],
        empty="no releases",
    )
    print_agents(agents)
    print_pending(pending)


@release.command()
@click.argument("which", metavar="NAME@VERSION")
@fleet_options
@json_option
@reporting_errors
def show(which: str, fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """Show all about one published release."""
    repository = open_repository(open_fleet(fleet_dir, fleet_name))
    known = repository.releases()
    target = find_release(known, which)
    if as_json:
        print_json(target.model_dump(mode="json"))
        return
    info, needs = target.info, target.info.requires
    facts = {
        "release": f"{info.name}@{info.version}",
        "task": info.task,
        "signed as": target.role,
        "sha256": info.sha256,
        "bytes": str(info.size_bytes),
        "file": str(repository.public / info.file_path),
        "chunk map": f"{info.chunks.size_bytes} bytes" if info.chunks else "none",
        "floor": target.floor,
        "needs": f"{needs.ram_mb} MB, edgeslm {needs.agent}, {' or '.join(needs.runtimes)}"
        + (f", a processor with {', '.join(needs.cpu_features)}" if needs.cpu_features else ""),
    }
    for key, value in facts.items():
        click.echo(f"{key:<11}{printable(value)}")
    names = {one.info.sha256: one.info.version for one in known if one.info.name == info.name}
    for base, delta in info.deltas.items():
        click.echo(f"{'delta':<11}{delta.size_bytes} bytes, from {names.get(base, base[:12])}")


# --- changing -----------------------------------------------------------------------------------------------


@release.command()
@click.argument("package", type=_FILE)
@click.option("--no-delta", is_flag=True, help="Make no deltas.")
@fleet_options
@keys_option
@key_option
@release_passphrase_option
@yes_option
@dry_run_option
@json_option
@reporting_errors
def add(
    package: Path,
    no_delta: bool,
    fleet_dir: Path | None,
    fleet_name: str | None,
    keys_dir: Path | None,
    key_files: tuple[Path, ...],
    passphrase_file: Path | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Release PACKAGE (a .slm file): check it, add what helps to deliver it, sign and publish.

    Deltas from the version before, and from what devices report to run, are added where they are at most half of the
    whole. Without --key the release lies pending until it is signed.
    """
    fleet = open_fleet(fleet_dir, fleet_name)
    repository, keys = open_repository(fleet), keys_of(fleet, keys_dir)
    from edgeslm.cli.wiring_rules import check_package_rules  # noqa: PLC0415
    from edgeslm.fleet.assignments import running_packages  # noqa: PLC0415
    from edgeslm.fleet.distribution import prepared, release_prepared  # noqa: PLC0415

    check_package_rules(package)
    with fleet.store.read() as session:
        running = running_packages(session)
    with prepared(repository, package, with_deltas=not no_delta, running=running) as made:
        if not as_json:
            click.echo("\n".join(_sizes(made)))
        elif dry_run:
            print_json(_prepared_record(made))
        if dry_run:
            confirm([], yes=yes, dry_run=True)
            return
        info = release_prepared(repository, made)
    audit_release(fleet, "add", f"{info.name}@{info.version}", sha256=info.sha256)
    published, pending = finish(fleet, repository, keys, key_files, passphrase_file, yes=yes)
    if as_json:
        print_json({**_release_record(info), **state_record(published, pending)})
    else:
        print_state(published, pending)


def _sizes(made: Prepared) -> list[str]:
    lines = [
        f"{made.name}@{made.version}: {made.size_bytes} bytes, sha256 {made.sha256[:12]}",
        f"chunk map: {made.chunks_bytes} bytes",
    ]
    for delta in made.deltas:
        share = 100 * delta.size_bytes / made.size_bytes
        kept = "" if delta.path is not None else ": left out, the whole is hardly more"
        lines.append(f"delta from {delta.base.version}: {delta.size_bytes} bytes, {share:.1f} %{kept}")
    return lines


def _prepared_record(made: Prepared) -> dict[str, Any]:
    return {
        "release": f"{made.name}@{made.version}",
        "sha256": made.sha256,
        "size_bytes": made.size_bytes,
        "chunks_bytes": made.chunks_bytes,
        "deltas": {delta.base.sha256: delta.size_bytes for delta in made.deltas if delta.path is not None},
    }


def _release_record(info: ReleaseInfo) -> dict[str, Any]:
    return {
        "release": f"{info.name}@{info.version}",
        "sha256": info.sha256,
        "size_bytes": info.size_bytes,
        "chunks_bytes": info.chunks.size_bytes if info.chunks else None,
        "deltas": {base: delta.size_bytes for base, delta in info.deltas.items()},
    }


@release.command()
@click.argument("which", metavar="NAME@VERSION")
@changing
def withdraw(change: Change, which: str) -> None:
    """Take a release back: devices that do not have it yet will not get it. Its security floor stays."""
    name, version = parse_release(which)
    change.carry_out("withdraw", which, lambda repository: repository.withdraw(name, version))


@release.command()
@click.argument("name")
@click.argument("version")
@changing
def floor(change: Change, name: str, version: str) -> None:
    """Call no version of NAME below VERSION safe: nothing below it is installed, whatever is assigned."""
    change.carry_out("floor", f"{name}@{version}", lambda repository: repository.set_floor(name, version))


@release.command()
@fleet_options
@yes_option
@dry_run_option
@json_option
@reporting_errors
def prune(fleet_dir: Path | None, fleet_name: str | None, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Remove files that nothing names any more: of withdrawn releases, and earlier metadata.

    A device that is just fetching one of them begins again with what is assigned to it.
    """
    fleet = open_fleet(fleet_dir, fleet_name)
    repository = open_repository(fleet)
    files = repository.superfluous()
    in_all_bytes = sum(file.size_bytes for file in files)
    plan = [f"{file.path}: {file.size_bytes} bytes" for file in files]
    if as_json and (dry_run or not files):
        print_json(_pruned_record(files, dry_run=dry_run))
    if not files:
        note("nothing is to be removed")
        return
    plan.append(f"{len(files)} files, {in_all_bytes} bytes in all")
    if not confirm(plan, yes=yes, dry_run=dry_run):
        return
    gone = set(repository.prune())
    files = tuple(file for file in files if file.path in gone)
    audit_release(fleet, "prune", f"{len(gone)} files")
    if as_json:
        print_json(_pruned_record(files, dry_run=False))
    else:
        click.echo(f"removed {len(gone)} files, {sum(file.size_bytes for file in files)} bytes")


def _pruned_record(files: Sequence[Superfluous], *, dry_run: bool) -> dict[str, Any]:
    return {
        "files": [{"path": file.path, "size_bytes": file.size_bytes} for file in files],
        "size_bytes": sum(file.size_bytes for file in files),
        "dry_run": dry_run,
    }
