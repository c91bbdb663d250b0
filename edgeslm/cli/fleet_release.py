"""``edgeslm fleet release init|add|list|show|withdraw|sign|publish|refresh|keys|serve``."""

from __future__ import annotations

import logging
import re
import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeslm.cli.fleet_common import (
    Fleet,
    ago,
    confirm,
    dry_run_option,
    fleet_options,
    note,
    open_fleet,
    print_table,
    yes_option,
)
from edgeslm.cli.output import (
    CommandGroup,
    json_option,
    print_json,
    printable,
    reporting_errors,
    stopped_by_signals,
)
from edgeslm.clock import utc_now
from edgeslm.errors import ReleaseRepositoryError, UsageError

if TYPE_CHECKING:
    from edgeslm.fleet.distribution import Prepared
    from edgeslm.fleet.release_drafts import PendingRole
    from edgeslm.fleet.releases import ReleaseRepository
    from edgeslm.fleet.signing import Passphrase
    from edgeslm.schema.release import ReleaseInfo, ReleaseTarget

KEYS_DIR = "EDGESLM_KEYS_DIR"
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_RELEASE = re.compile(r"([a-z0-9-]{1,64})@([0-9A-Za-z.-]{1,96})")
_KEYID_CHARS = 12
_WATCH_S = 0.2

keys_option = click.option(
    "--keys",
    "keys_dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar=KEYS_DIR,
    show_envvar=True,
    help="Directory of the keys that sign without a person; default: keys, in the fleet's directory.",
)
key_option = click.option(
    "--key",
    "key_files",
    type=_FILE,
    multiple=True,
    help="Offline key to sign with; several times for several. Without it nothing is signed.",
)
release_passphrase_option = click.option(
    "--passphrase-file",
    type=_FILE,
    help="Holds the passphrase of the offline keys; else EDGESLM_PASSPHRASE, else it is asked for.",
)


@click.group(cls=CommandGroup)
def release() -> None:
    """Release packages: nothing else runs on the devices of a fleet.

    Whatever changes is first pending, then signed with offline keys, then published with the keys of this machine.
    """


# --- what the commands share --------------------------------------------------------------------------------


def parse_release(text: str) -> tuple[str, str]:
    """Name and version of ``NAME@VERSION``.

    Raises:
        UsageError: it is not of that form.
    """
    match = _RELEASE.fullmatch(text)
    if match is None:
        raise UsageError(f"'{text[:80]}' names no release", hint="Write it as name@version")
    return match[1], match[2]


def find_release(known: Sequence[ReleaseTarget], text: str) -> ReleaseTarget:
    """The published release that ``NAME@VERSION`` names.

    Raises:
        UsageError: there is none.
    """
    name, version = parse_release(text)
    for target in known:
        if (target.info.name, target.info.version) == (name, version):
            return target
    versions = [target.info.version for target in known if target.info.name == name]
    there = f"Published of {name}: {', '.join(versions)}" if versions else "See edgeslm fleet release list"
    raise UsageError(f"{text} is not published", hint=there)


def keys_of(fleet: Fleet, keys_dir: Path | None) -> Path:
    """Directory of the keys."""
    return keys_dir or fleet.directory.root / "keys"


def open_repository(fleet: Fleet) -> ReleaseRepository:
    """The fleet's release repository.

    Raises:
        ReleaseRepositoryError: there is none, or it cannot be read.
    """
    from edgeslm.fleet.release_files import is_repository  # noqa: PLC0415
    from edgeslm.fleet.releases import ReleaseRepository  # noqa: PLC0415

    directory = fleet.directory.releases
    if not is_repository(directory):
        raise ReleaseRepositoryError(
            f"fleet {fleet.directory.name} has no releases yet", path=str(directory),
            hint="Begin with: edgeslm fleet release init",
        )  # fmt: skip
    return ReleaseRepository(directory)


def _passphrases(file: Path | None) -> Passphrase:
    """Asks for each key's passphrase once, and twice for a key that is about to be made."""
    from edgeslm.fleet.signing import passphrase_source  # noqa: PLC0415

    known: dict[Path, bytes] = {}

    def read(key: Path) -> bytes:
        if key not in known:
            is_new = not key.exists()

            def prompt(text: str) -> str:
                asked = text.rstrip(": ")
                return str(click.prompt(asked, hide_input=True, confirmation_prompt=is_new, err=True))

            known[key] = passphrase_source(file=file, prompt=prompt if sys.stdin.isatty() else None)(key)
        return known[key]

    return read


def _pending_record(one: PendingRole) -> dict[str, Any]:
    return {
        "role": one.role,
        "version": one.version,
        "file": str(one.path),
        "expires_at": one.expires_at.isoformat(),
        "missing": one.missing,
        "signed_by": list(one.signed_by),
        "may_sign": list(one.may_sign),
        "changes": list(one.changes),
    }


def _changes(pending: Sequence[PendingRole]) -> list[str]:
    """What is pending, for somebody who is about to sign it."""
    lines = []
    for one in pending:
        lines.append(f"{one.role} {one.version}:")
        lines += [f"  {printable(change)}" for change in one.changes] or ["  the same again, for longer"]
    return lines


def _print_pending(pending: Sequence[PendingRole]) -> None:
    for one in pending:
        if one.missing:
            keys = " or ".join(keyid[:_KEYID_CHARS] for keyid in one.may_sign)
            click.echo(f"{one.role} {one.version} needs {one.missing} more signature(s), of key {keys}")
            click.echo(f"  sign it with: edgeslm fleet release sign --key KEY, or carry away {one.path}")
        else:
            click.echo(f"{one.role} {one.version} is signed enough: edgeslm fleet release publish")


def _sign(
    repository: ReleaseRepository, key_files: Sequence[Path], passphrase_file: Path | None
) -> tuple[PendingRole, ...]:
    from edgeslm.fleet.signing import load_signer  # noqa: PLC0415

    passphrases = _passphrases(passphrase_file)
    return repository.sign_pending([load_signer(path, passphrases) for path in key_files])


def _publish_ready(fleet: Fleet, repository: ReleaseRepository, keys: Path) -> dict[str, int]:
    """Publish what is signed enough; versions by role of what went live."""
    from edgeslm.fleet.release_setup import online_signers  # noqa: PLC0415

    if not any(one.missing == 0 for one in repository.pending()):
        return {}
    published = dict(repository.publish(online_signers(keys)).published)
    _audit(fleet, "publish", " ".join(f"{role}:{version}" for role, version in published.items()))
    return published


def _audit(fleet: Fleet, action: str, subject: str, **detail: Any) -> None:
    from edgeslm.fleet.registry import audit  # noqa: PLC0415

    with fleet.store.write() as session:
        audit(session, fleet.actor, f"release {action}", subject[:128], utc_now(), **detail)


def _finish(
    fleet: Fleet,
    repository: ReleaseRepository,
    keys: Path,
    key_files: Sequence[Path],
    passphrase_file: Path | None,
    *,
    yes: bool,
) -> tuple[dict[str, int], tuple[PendingRole, ...]]:
    """Show what is pending, sign it with what keys were given, and publish what is signed enough."""
    if not key_files:
        return {}, repository.pending()
    plan = [*_changes(repository.pending()), f"sign with {len(key_files)} key(s)"]
    try:
        confirm(plan, yes=yes, dry_run=False)
    except UsageError as error:
        raise UsageError(f"it is pending, and not signed: {error.message}", hint=error.hint) from error
    _sign(repository, key_files, passphrase_file)
    published = _publish_ready(fleet, repository, keys)
    return published, repository.pending()


def _print_state(published: dict[str, int], pending: Sequence[PendingRole]) -> None:
    if published:
        click.echo(f"published {', '.join(f'{role} {version}' for role, version in published.items())}")
    _print_pending(pending)


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
        set_up(fleet.directory.releases, keys, fleet.directory.name, _passphrases(passphrase_file))
        _audit(fleet, "init", fleet.directory.name)
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
    if as_json:
        print_json(
            {
                "releases": [one.model_dump(mode="json") for one in known],
                "pending": [_pending_record(one) for one in pending],
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
    _print_pending(pending)


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
    from edgeslm.fleet.assignments import running_packages  # noqa: PLC0415
    from edgeslm.fleet.distribution import prepared, release_prepared  # noqa: PLC0415

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
    _audit(fleet, "add", f"{info.name}@{info.version}", sha256=info.sha256)
    published, pending = _finish(fleet, repository, keys, key_files, passphrase_file, yes=yes)
    if as_json:
        print_json({**_release_record(info), **_state_record(published, pending)})
    else:
        _print_state(published, pending)


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


def _state_record(published: dict[str, int], pending: Sequence[PendingRole]) -> dict[str, Any]:
    return {"published": published, "pending": [_pending_record(one) for one in pending]}


@release.command()
@click.argument("which", metavar="NAME@VERSION")
@fleet_options
@keys_option
@key_option
@release_passphrase_option
@yes_option
@dry_run_option
@json_option
@reporting_errors
def withdraw(
    which: str,
    fleet_dir: Path | None,
    fleet_name: str | None,
    keys_dir: Path | None,
    key_files: tuple[Path, ...],
    passphrase_file: Path | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take a release back: devices that do not have it yet will not get it. Its security floor stays."""
    fleet = open_fleet(fleet_dir, fleet_name)
    repository, keys = open_repository(fleet), keys_of(fleet, keys_dir)
    name, version = parse_release(which)
    if dry_run:
        find_release(repository.releases(), which)
        confirm([f"{which}: is withdrawn"], yes=yes, dry_run=True)
        return
    repository.withdraw(name, version)
    _audit(fleet, "withdraw", which)
    published, pending = _finish(fleet, repository, keys, key_files, passphrase_file, yes=yes)
    if as_json:
        print_json({"withdrawn": which, **_state_record(published, pending)})
    else:
        _print_state(published, pending)


@release.command()
@fleet_options
@click.option(
    "--key",
    "key_files",
    type=_FILE,
    multiple=True,
    required=True,
    help="Key to sign with; several for several.",
)
@release_passphrase_option
@yes_option
@dry_run_option
@json_option
@reporting_errors
def sign(
    fleet_dir: Path | None,
    fleet_name: str | None,
    key_files: tuple[Path, ...],
    passphrase_file: Path | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Sign what is pending, after showing it. Devices believe what is signed: read it."""
    fleet = open_fleet(fleet_dir, fleet_name)
    repository = open_repository(fleet)
    pending = repository.pending()
    if not pending:
        raise UsageError("nothing is pending")
    if not confirm(_changes(pending), yes=yes, dry_run=dry_run):
        return
    after = _sign(repository, key_files, passphrase_file)
    _audit(fleet, "sign", " ".join(f"{one.role}:{one.version}" for one in after))
    if as_json:
        print_json({"pending": [_pending_record(one) for one in after]})
    else:
        _print_pending(after)


@release.command()
@fleet_options
@keys_option
@dry_run_option
@json_option
@reporting_errors
def publish(
    fleet_dir: Path | None, fleet_name: str | None, keys_dir: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Let everything that is signed enough go live."""
    fleet = open_fleet(fleet_dir, fleet_name)
    repository = open_repository(fleet)
    if dry_run:
        confirm(_changes([one for one in repository.pending() if not one.missing]), yes=True, dry_run=True)
        return
    published = _publish_ready(fleet, repository, keys_of(fleet, keys_dir))
    pending = repository.pending()
    if as_json:
        print_json(_state_record(published, pending))
        return
    if not published:
        note("nothing is signed enough to be published")
    _print_state(published, pending)


@release.command()
@fleet_options
@keys_option
@json_option
@reporting_errors
def refresh(fleet_dir: Path | None, fleet_name: str | None, keys_dir: Path | None, as_json: bool) -> None:
    """Sign snapshot and timestamp anew, which devices want every few days."""
    fleet = open_fleet(fleet_dir, fleet_name)
    repository = open_repository(fleet)
    from edgeslm.fleet.release_setup import online_signers  # noqa: PLC0415

    repository.refresh(online_signers(keys_of(fleet, keys_dir)))
    _print_roles(repository, as_json=as_json)


@release.command("keys")
@fleet_options
@json_option
@reporting_errors
def keys_(fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """List the roles: which keys sign for each, how many are needed, and when it expires."""
    _print_roles(open_repository(open_fleet(fleet_dir, fleet_name)), as_json=as_json)


def _print_roles(repository: ReleaseRepository, *, as_json: bool) -> None:
    from edgeslm.fleet.release_files import RepositoryFiles  # noqa: PLC0415

    published = RepositoryFiles.open(repository.public.parent).published()
    roles: dict[str, Any] = dict(published.require_root().signed.roles)
    targets = published.targets.get("targets")
    if targets is not None and targets.signed.delegations is not None:
        roles |= targets.signed.delegations.roles or {}
    ends = {one.role: one for one in repository.expiries()}
    records = []
    for name, role in roles.items():
        end = ends.get(name)
        records.append(
            {
                "role": name,
                "keys": list(role.keyids),
                "threshold": role.threshold,
                "version": end.version if end else None,
                "expires_at": end.expires_at.isoformat() if end else None,
                "offline": end.offline if end else None,
                "due": end.due if end else False,
            }
        )
    if as_json:
        print_json(records)
        return
    now = utc_now()
    print_table(
        ["ROLE", "NEEDS", "KEYS", "VERSION", "EXPIRES"],
        [
            [
                record["role"],
                f"{record['threshold']} of {len(record['keys'])}",
                ", ".join(keyid[:_KEYID_CHARS] for keyid in record["keys"]),
                str(record["version"]) if record["version"] else None,
                f"{ago(ends[record['role']].expires_at, now)}{', sign it again' if record['due'] else ''}"
                if record["role"] in ends
                else None,
            ]
            for record in records
        ],
        empty="no roles",
    )


# --- serving ------------------------------------------------------------------------------------------------


@release.command()
@click.option("--host", default="0.0.0.0", show_default=True, help="Address to listen on.")  # noqa: S104
@click.option("--port", type=click.IntRange(0, 65_535), default=8080, show_default=True, help="0: any.")
@fleet_options
@keys_option
@reporting_errors
def serve(
    host: str, port: int, fleet_dir: Path | None, fleet_name: str | None, keys_dir: Path | None
) -> None:
    """Give devices releases until SIGTERM or Ctrl-C: over HTTP, and over the broker.

    It also writes down what devices report, and keeps snapshot and timestamp from expiring.
    """
    logging.getLogger("edgeslm.fleet").setLevel(logging.INFO)
    fleet = open_fleet(fleet_dir, fleet_name)
    with (
        stopped_by_signals() as stop,
        running_distribution(fleet, keys_of(fleet, keys_dir), host, port) as distribution,
    ):
        click.echo(f"releases of fleet {fleet.directory.name} at {distribution.url}", err=True)
        was_connected = False
        while not stop.wait(_WATCH_S):
            if distribution.wait_connected(0) and not was_connected:
                was_connected = True
                click.echo("connected to the broker: blocks are served there as well", err=True)


def running_distribution(fleet: Fleet, keys: Path, host: str, port: int) -> Any:
    """The service that gives out releases of `fleet`; a context in which it runs.

    Raises:
        ReleaseRepositoryError: there is no repository.
        ConfigError: the address cannot be had.
    """
    from edgeslm.fleet.distribution import Distribution  # noqa: PLC0415

    repository, directory = open_repository(fleet), fleet.directory
    return Distribution(
        fleet.store,
        repository,
        directory.name,
        directory.operator_config(),
        f"edgeslm-releases-{secrets.token_hex(6)}",
        keys=keys if (keys / "timestamp.pem").exists() else None,
        host=host,
        port=port,
    )
