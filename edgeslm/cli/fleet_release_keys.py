"""``edgeslm fleet release keys|new-key|rotate|delegate|undelegate``: who may sign what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeslm.cli.fleet_common import ago, fleet_options, open_fleet, print_table
from edgeslm.cli.fleet_release_common import (
    KEYID_CHARS,
    Change,
    changing,
    open_repository,
    passphrases,
    release_passphrase_option,
)
from edgeslm.cli.output import json_option, print_json, reporting_errors
from edgeslm.clock import utc_now
from edgeslm.errors import UsageError

if TYPE_CHECKING:
    from securesystemslib.signer import Key

    from edgeslm.fleet.releases import ReleaseRepository

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_NEW_FILE = click.Path(path_type=Path, dir_okay=False)
_add_option = click.option(
    "--add",
    "added",
    type=_FILE,
    multiple=True,
    help="Public half of a key to add; several times for several.",
)


@click.command("keys")
@fleet_options
@json_option
@reporting_errors
def keys_(fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """List the roles: which keys sign for each, how many are needed, and when it expires."""
    print_roles(open_repository(open_fleet(fleet_dir, fleet_name)), as_json=as_json)


def print_roles(repository: ReleaseRepository, *, as_json: bool) -> None:
    """Print the roles of a repository, with their keys and when what they signed expires."""
    ends = {one.role: one for one in repository.expiries()}
    records = []
    for name, role in repository.role_keys().items():
        end = ends.get(name)
        records.append(
            {
                "role": name,
                "keys": list(role.keyids),
                "threshold": role.threshold,
                "signs": list(role.paths),
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
    rows: list[list[str | None]] = []
    for name, role in repository.role_keys().items():
        end = ends.get(name)
        due = ", sign it again" if end is not None and end.due else ""
        rows.append(
            [
                name,
                f"{role.threshold} of {len(role.keyids)}",
                ", ".join(keyid[:KEYID_CHARS] for keyid in role.keyids),
                str(end.version) if end is not None else None,
                f"{ago(end.expires_at, now)}{due}" if end is not None else None,
                ", ".join(role.paths) or None,
            ]
        )
    print_table(["ROLE", "NEEDS", "KEYS", "VERSION", "EXPIRES", "SIGNS"], rows, empty="no roles")


@click.command("new-key")
@click.argument("file", type=_NEW_FILE)
@release_passphrase_option
@json_option
@reporting_errors
def new_key(file: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Make a key with a passphrase: FILE, such as anna.pem, and its public half anna.pub. No fleet is needed.

    Who makes it hands over the public half alone, for rotate or delegate.
    """
    from edgeslm.fleet.signing import create_key  # noqa: PLC0415

    if file.suffix != ".pem":
        raise UsageError(f"{file}: a key file is called .pem, its public half .pub")
    key = create_key(file, passphrases(passphrase_file)(file))
    public = file.with_suffix(".pub")
    if as_json:
        print_json({"key": key.keyid, "file": str(file), "public": str(public)})
    else:
        click.echo(f"key {key.keyid[:KEYID_CHARS]}: keep {file} to yourself, hand over {public}")


@click.command()
@click.argument("role")
@_add_option
@click.option("--remove", multiple=True, metavar="KEYID", help="Key to revoke, or the beginning of its id.")
@click.option(
    "--threshold", type=click.IntRange(1, 64), help="How many have to sign from now on; default: as before."
)
@click.option(
    "--new",
    "with_new",
    is_flag=True,
    help="Make a key for this machine in place of those of ROLE: snapshot, timestamp or assignments-FLEET.",
)
@changing
def rotate(
    change: Change,
    role: str,
    added: tuple[Path, ...],
    remove: tuple[str, ...],
    threshold: int | None,
    with_new: bool,
) -> None:
    """Change the keys of ROLE: root, targets, snapshot, timestamp, a team, or assignments-FLEET.

    The root signs for the first four, and the targets for the others. What ROLE itself has signed is signed again.
    """
    if not (added or remove or with_new or threshold is not None):
        raise UsageError("nothing would change", hint="Give --add, --remove, --threshold or --new")
    added_keys = _public_keys(added)
    if with_new:
        added_keys.append(_made_key(change, role))
        held = change.repository.role_keys().get(role)
        remove = remove or (held.keyids if held is not None else ())
    change.carry_out(
        "rotate",
        role,
        lambda repository: repository.rotate(role, add=added_keys, remove=remove, threshold=threshold),
        added=" ".join(key.keyid[:KEYID_CHARS] for key in added_keys),
        removed=" ".join(keyid[:KEYID_CHARS] for keyid in remove),
    )


@click.command()
@click.argument("team")
@click.argument("names", nargs=-1, required=True, metavar="NAMES...")
@_add_option
@click.option("--threshold", type=click.IntRange(1, 64), default=1, show_default=True, help="How many sign.")
@changing
def delegate(
    change: Change, team: str, names: tuple[str, ...], added: tuple[Path, ...], threshold: int
) -> None:
    """Let TEAM release packages of these NAMES, and no others, with its own keys.

    A name may end in *, such as 'greenhouse-*'. The targets sign it; from then on add puts such packages into the
    team's own metadata, which the team signs alone.
    """
    from edgeslm.fleet.release_metadata import RoleKeys  # noqa: PLC0415

    if not added:
        raise UsageError("a team needs keys", hint="Give the public half of each with --add")
    keys = RoleKeys(tuple(_public_keys(added)), threshold)
    change.carry_out(
        "delegate", team, lambda repository: repository.delegate(team, keys, names), names=" ".join(names)
    )


@click.command()
@click.argument("role", metavar="TEAM")
@changing
def undelegate(change: Change, role: str) -> None:
    """Take from TEAM what was delegated to it. What it released is gone with it; its security floors stay."""
    change.carry_out("undelegate", role, lambda repository: repository.undelegate(role))


def _public_keys(files: tuple[Path, ...]) -> list[Key]:
    from edgeslm.fleet.signing import load_public_key  # noqa: PLC0415

    return [load_public_key(file) for file in files]


def _made_key(change: Change, role: str) -> Key:
    """A new key of this machine; for a dry run one that is nowhere."""
    from securesystemslib.signer import CryptoSigner  # noqa: PLC0415

    from edgeslm.fleet.release_setup import ONLINE_ROLES, make_online_key  # noqa: PLC0415

    if role not in (*ONLINE_ROLES, f"assignments-{change.fleet.directory.name}"):
        raise UsageError(
            f"the keys of '{role[:80]}' are not on this machine",
            hint="Make one with edgeslm fleet release new-key, and give its public half with --add",
        )
    if change.dry_run:
        return CryptoSigner.generate_ed25519().public_key
    return make_online_key(change.keys, role)[0]
