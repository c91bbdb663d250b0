"""``edgeslm fleet release sign|collect|sign-file|publish|refresh|renew|discard``: how a change gets to devices."""

from __future__ import annotations

from pathlib import Path

import click

from edgeslm.cli.fleet_common import (
    confirm,
    dry_run_option,
    fleet_options,
    note,
    open_fleet,
    yes_option,
)
from edgeslm.cli.fleet_release_common import (
    Change,
    audit_release,
    changes_of,
    changing,
    keys_of,
    keys_option,
    open_repository,
    passphrases,
    pending_record,
    print_pending,
    print_state,
    publish_ready,
    release_passphrase_option,
    settle_keys,
    sign_with,
    state_record,
)
from edgeslm.cli.fleet_release_keys import print_roles
from edgeslm.cli.output import json_option, print_json, reporting_errors
from edgeslm.errors import UsageError

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command()
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
    if not confirm(changes_of(pending), yes=yes, dry_run=dry_run):
        return
    after = sign_with(repository, key_files, passphrase_file)
    audit_release(fleet, "sign", " ".join(f"{one.role}:{one.version}" for one in after))
    if as_json:
        print_json({"pending": [pending_record(one) for one in after]})
    else:
        print_pending(after)


@click.command()
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
        confirm(changes_of([one for one in repository.pending() if not one.missing]), yes=True, dry_run=True)
        return
    published = publish_ready(fleet, repository, keys_of(fleet, keys_dir))
    pending = repository.pending()
    if as_json:
        print_json(state_record(published, pending))
        return
    if not published:
        note("nothing is signed enough to be published")
    print_state(published, pending)


@click.command()
@fleet_options
@keys_option
@dry_run_option
@json_option
@reporting_errors
def refresh(
    fleet_dir: Path | None, fleet_name: str | None, keys_dir: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Sign snapshot and timestamp anew, which devices want every few days."""
    fleet = open_fleet(fleet_dir, fleet_name)
    repository = open_repository(fleet)
    from edgeslm.fleet.release_setup import online_signers  # noqa: PLC0415

    keys = keys_of(fleet, keys_dir)
    signers = online_signers(keys)
    if dry_run:
        note("dry run: snapshot and timestamp would be signed anew; this is how they are")
    else:
        repository.refresh(signers)
        settle_keys(repository, keys)
    print_roles(repository, as_json=as_json)


@click.command()
@click.argument("role")
@click.argument("file", type=_FILE)
@fleet_options
@json_option
@reporting_errors
def collect(role: str, file: Path, fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """Take over the signatures in FILE, a copy of what is pending for ROLE that was signed elsewhere."""
    fleet = open_fleet(fleet_dir, fleet_name)
    pending = open_repository(fleet).collect(role, file)
    audit_release(fleet, "collect", role)
    if as_json:
        print_json({"pending": [pending_record(one) for one in pending]})
    else:
        print_pending(pending)


@click.command("sign-file")
@click.argument("file", type=_FILE)
@click.option("--key", type=_FILE, required=True, help="Key to sign with.")
@release_passphrase_option
@json_option
@reporting_errors
def sign_file(file: Path, key: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Sign FILE, a pending file that was carried to this machine. No fleet is needed here.

    Whether the key has a say in it is found by edgeslm fleet release collect, where the file came from.
    """
    from edgeslm.fleet.signing import load_signer  # noqa: PLC0415
    from edgeslm.fleet.signing import sign_file as sign_metadata  # noqa: PLC0415

    signer = load_signer(key, passphrases(passphrase_file))
    sign_metadata(file, signer)
    if as_json:
        print_json({"file": str(file), "key": signer.public_key.keyid})
    else:
        click.echo(f"{file} is signed with key {signer.public_key.keyid[:12]}; carry it back")


@click.command()
@click.argument("role")
@changing
def renew(change: Change, role: str) -> None:
    """Let ROLE say the same again for another lifetime: root, targets or a team."""
    change.carry_out("renew", role, lambda repository: repository.renew(role))


@click.command()
@click.argument("role")
@fleet_options
@yes_option
@dry_run_option
@json_option
@reporting_errors
def discard(
    role: str, fleet_dir: Path | None, fleet_name: str | None, yes: bool, dry_run: bool, as_json: bool
) -> None:
    """Give up what is pending for ROLE."""
    fleet = open_fleet(fleet_dir, fleet_name)
    repository = open_repository(fleet)
    pending = [one for one in repository.pending() if one.role == role]
    if not pending:
        raise UsageError(f"nothing is pending for '{role[:80]}'")
    if not confirm(["is given up:", *changes_of(pending)], yes=yes, dry_run=dry_run):
        return
    repository.discard(role)
    audit_release(fleet, "discard", role)
    if as_json:
        print_json({"discarded": role, **state_record({}, repository.pending())})
    else:
        print_pending(repository.pending())
