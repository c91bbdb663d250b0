"""What the commands about releases share: the repository, its keys, and bringing a change to its signatures."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeslm.cli.fleet_common import (
    Fleet,
    confirm,
    dry_run_option,
    fleet_options,
    note,
    open_fleet,
    yes_option,
)
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors
from edgeslm.clock import utc_now
from edgeslm.errors import ReleaseRepositoryError, UsageError

if TYPE_CHECKING:
    from edgeslm.fleet.release_drafts import PendingRole
    from edgeslm.fleet.releases import ReleaseRepository
    from edgeslm.fleet.signing import Passphrase
    from edgeslm.schema.release import ReleaseTarget

KEYS_DIR = "EDGESLM_KEYS_DIR"
KEYID_CHARS = 12
"""Of a key's id that are shown."""
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_RELEASE = re.compile(r"([a-z0-9-]{1,64})@([0-9A-Za-z.-]{1,96})")

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
    near = get_close_matches(name, sorted({target.info.name for target in known}), n=3)
    there = f"Did you mean {' or '.join(near)}?" if near else "See edgeslm fleet release list"
    if versions:
        there = f"Published of {name}: {', '.join(versions)}"
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


def passphrases(file: Path | None) -> Passphrase:
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


def pending_record(one: PendingRole) -> dict[str, Any]:
    """One pending role as JSON."""
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


def changes_of(pending: Sequence[PendingRole]) -> list[str]:
    """What is pending, for somebody who is about to sign it."""
    lines = []
    for one in pending:
        lines.append(f"{one.role} {one.version}:")
        lines += [f"  {printable(change)}" for change in one.changes] or ["  the same again, for longer"]
    return lines


def print_pending(pending: Sequence[PendingRole]) -> None:
    """Say what is still to be done about what is pending."""
    for one in pending:
        if one.missing:
            keys = " or ".join(keyid[:KEYID_CHARS] for keyid in one.may_sign)
            click.echo(f"{one.role} {one.version} needs {one.missing} more signature(s), of key {keys}")
            click.echo(f"  sign it with: edgeslm fleet release sign --key KEY, or carry away {one.path}")
        else:
            click.echo(f"{one.role} {one.version} is signed enough: edgeslm fleet release publish")


def sign_with(
    repository: ReleaseRepository, key_files: Sequence[Path], passphrase_file: Path | None
) -> tuple[PendingRole, ...]:
    """Sign what is pending with the keys in `key_files`; returns how far it is."""
    from edgeslm.fleet.signing import load_signer  # noqa: PLC0415

    asked = passphrases(passphrase_file)
    return repository.sign_pending([load_signer(path, asked) for path in key_files])


def publish_ready(fleet: Fleet, repository: ReleaseRepository, keys: Path) -> dict[str, int]:
    """Publish what is signed enough; versions by role of what went live."""
    from edgeslm.fleet.release_setup import online_signers  # noqa: PLC0415

    if not any(one.missing == 0 for one in repository.pending()):
        return {}
    published = dict(repository.publish(online_signers(keys)).published)
    audit_release(fleet, "publish", " ".join(f"{role}:{version}" for role, version in published.items()))
    settle_keys(repository, keys)
    return published


def settle_keys(repository: ReleaseRepository, keys: Path) -> None:
    """Put keys of this machine aside that were rotated away."""
    from edgeslm.fleet.release_setup import retire_keys  # noqa: PLC0415

    for path in retire_keys(keys, repository.keyids()):
        note(f"nothing needs this key any more: {path}")


def audit_release(fleet: Fleet, action: str, subject: str, **detail: Any) -> None:
    """Write into the audit log who did what."""
    from edgeslm.fleet.registry import audit  # noqa: PLC0415

    with fleet.store.write() as session:
        audit(session, fleet.actor, f"release {action}", subject[:128], utc_now(), **detail)


def finish(
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
    plan = [*changes_of(repository.pending()), f"sign with {len(key_files)} key(s)"]
    try:
        confirm(plan, yes=yes, dry_run=False)
    except UsageError as error:
        raise UsageError(f"it is pending, and not signed: {error.message}", hint=error.hint) from error
    sign_with(repository, key_files, passphrase_file)
    try:
        published = publish_ready(fleet, repository, keys)
    except ReleaseRepositoryError as error:
        if not any(one.missing for one in repository.pending()):
            raise
        note(f"not published yet: {error}")
        published = {}
    return published, repository.pending()


def print_state(published: dict[str, int], pending: Sequence[PendingRole]) -> None:
    """Say what went live, and what is still to be done."""
    if published:
        click.echo(f"published {', '.join(f'{role} {version}' for role, version in published.items())}")
    print_pending(pending)


def state_record(published: dict[str, int], pending: Sequence[PendingRole]) -> dict[str, Any]:
    """The same as JSON."""
    return {"published": published, "pending": [pending_record(one) for one in pending]}


# --- a change -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """A change of a repository that somebody asked for, with all that brings it to its signatures.

    Attributes:
        keys: directory of the keys that sign without a person.
        key_files: offline keys to sign with at once.
        passphrase_file: holds their passphrase.
        yes: do not ask.
        dry_run: say what would be signed, and change nothing.
        as_json: print JSON.
    """

    fleet: Fleet
    repository: ReleaseRepository
    keys: Path
    key_files: tuple[Path, ...]
    passphrase_file: Path | None
    yes: bool
    dry_run: bool
    as_json: bool

    def carry_out(
        self, action: str, subject: str, do: Callable[[ReleaseRepository], object], **detail: Any
    ) -> None:
        """Make the change, sign and publish it as far as keys were given, and print how far it is.

        Args:
            action: for the audit log.
            subject: what it is about, for the same.
            do: makes the change; for a dry run on a copy of the repository.
            detail: more for the audit log.
        """
        if self.dry_run:
            self._rehearse(do)
            return
        do(self.repository)
        audit_release(self.fleet, action, subject, **detail)
        published, pending = finish(
            self.fleet, self.repository, self.keys, self.key_files, self.passphrase_file, yes=self.yes
        )
        if self.as_json:
            print_json({action: subject, **state_record(published, pending)})
        else:
            print_state(published, pending)

    def _rehearse(self, do: Callable[[ReleaseRepository], object]) -> None:
        from edgeslm.fleet.release_rehearsal import rehearsed  # noqa: PLC0415

        with rehearsed(self.fleet.directory.releases) as copy:
            do(copy)
            pending = copy.pending()
        confirm(changes_of(pending), yes=True, dry_run=True)
        if self.as_json:
            kept = ("role", "version", "missing", "may_sign", "changes")
            records = [{name: pending_record(one)[name] for name in kept} for one in pending]
            print_json({"dry_run": True, "pending": records})


def changing(command: Callable[..., None]) -> Any:
    """Give a command the options of a :class:`Change`; it is called with one, and with its own parameters."""

    @fleet_options
    @keys_option
    @key_option
    @release_passphrase_option
    @yes_option
    @dry_run_option
    @json_option
    @reporting_errors
    @wraps(command)
    def run(
        fleet_dir: Path | None,
        fleet_name: str | None,
        keys_dir: Path | None,
        key_files: tuple[Path, ...],
        passphrase_file: Path | None,
        yes: bool,
        dry_run: bool,
        as_json: bool,
        **own: Any,
    ) -> None:
        fleet = open_fleet(fleet_dir, fleet_name)
        change = Change(
            fleet=fleet,
            repository=open_repository(fleet),
            keys=keys_of(fleet, keys_dir),
            key_files=key_files,
            passphrase_file=passphrase_file,
            yes=yes,
            dry_run=dry_run,
            as_json=as_json,
        )
        command(change, **own)

    return run
