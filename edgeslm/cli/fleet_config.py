"""``edgeslm fleet config set|show|diff|history|clear``: settings that devices get from afar."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeslm.cli.fleet_common import (
    Fleet,
    ago,
    confirm,
    dry_run_option,
    exit_for,
    fleet_options,
    note,
    open_fleet,
    print_table,
    yes_option,
)
from edgeslm.cli.fleet_release_common import keys_of, keys_option, open_repository
from edgeslm.cli.fleet_select import Selection, select_arguments
from edgeslm.cli.output import (
    CommandGroup,
    json_option,
    print_json,
    printable,
    reporting_errors,
    stopped_by_signals,
)
from edgeslm.cli.times import duration
from edgeslm.clock import utc_now
from edgeslm.errors import ConfigError, LinkError

if TYPE_CHECKING:
    from edgeslm.fleet.config_sending import ConfigSender
    from edgeslm.fleet.operations import Outcome
    from edgeslm.fleet.remote_config import Change, ConfigRecord

_MAX_FILE_BYTES = 65_536
_RESTARTS_S = 60.0
"""What two starts of an agent may take, on the slowest board."""
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)

file_option = click.option(
    "--file",
    "-f",
    "file",
    type=_FILE,
    required=True,
    help="YAML with everything that is to be set from afar.",
)
_sending_options = (
    click.option(
        "--confirm",
        "confirm_s",
        type=int,
        default=120,
        show_default=True,
        help="Seconds within which a device has to be at the broker with it; else it goes back by itself.",
    ),
    click.option(
        "--expires",
        "life",
        type=duration,
        default="7d",
        show_default=True,
        help="How long a device that is off may take it up.",
    ),
    click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0),
        help="Seconds to wait for the answers; default: twice --confirm and a minute.",
    ),
    click.option("--detach", is_flag=True, help="Do not wait for the answers."),
    keys_option,
    yes_option,
    dry_run_option,
)


def sending_options(command: Any) -> Any:
    """Options of what sends a configuration."""
    for option in reversed(_sending_options):
        command = option(command)
    return command


@click.group(cls=CommandGroup)
def config() -> None:
    """Set what devices run with, from afar.

    What is set goes before a device's own file. Each device tries it, and goes back by itself where it does not reach
    the broker with it.
    """


@config.command("set")
@select_arguments
@file_option
@fleet_options
@sending_options
@json_option
@reporting_errors
def set_(selection: Selection, file: Path, **options: Any) -> None:
    """Set everything in a file on devices; what was set before and is not in it comes from their own files again."""
    _give(selection, read_file(file), **options)


@config.command()
@select_arguments
@fleet_options
@sending_options
@json_option
@reporting_errors
def clear(selection: Selection, **options: Any) -> None:
    """Take back everything that was set from afar on devices: their own files say everything again."""
    _give(selection, {}, **options)


@config.command()
@click.argument("device")
@fleet_options
@json_option
@reporting_errors
def show(device: str, fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """Show what is set from afar on DEVICE, and what became of the latest configuration."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.remote_config import history, in_force  # noqa: PLC0415
    from edgeslm.schema.remote_config import flattened  # noqa: PLC0415

    _ask_again(fleet, device)
    with fleet.store.read() as session:
        current, newest = in_force(session, device), history(session, device, limit=1)
    latest = newest[0] if newest else None
    if as_json:
        print_json(
            {
                "device": device,
                "in_force": None if current is None else current.model_dump(mode="json", exclude_none=True),
                "latest": None if latest is None else latest.model_dump(mode="json", exclude_none=True),
            }
        )
        return
    if latest is not None and (current is None or latest.version != current.version):
        note(f"version {latest.version}, sent {ago(latest.issued_at, utc_now())}: {_standing(latest)}")
    if current is not None:
        note(f"version {current.version} is in force, sent {ago(current.issued_at, utc_now())}")
    rows = [] if current is None else [[key, _value(one)] for key, one in flattened(current.settings).items()]
    print_table(["SETTING", "VALUE"], rows, empty=f"nothing is set from afar on {device}")


@config.command()
@click.argument("device")
@file_option
@fleet_options
@json_option
@reporting_errors
def diff(device: str, file: Path, fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """Show what setting a file would change in what is set from afar on DEVICE."""
    settings = read_file(file)
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.remote_config import difference, in_force  # noqa: PLC0415

    with fleet.store.read() as session:
        current = in_force(session, device)
    changes = difference({} if current is None else current.settings, settings)
    if as_json:
        print_json([asdict(change) for change in changes])
        return
    for change in changes:
        click.echo(printable(_line(change)))
    if not changes:
        click.echo("nothing changes", err=True)


@config.command("history")
@click.argument("device")
@fleet_options
@json_option
@reporting_errors
def history_(device: str, fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """Show the configurations of DEVICE, newest first."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.remote_config import history  # noqa: PLC0415
    from edgeslm.schema.remote_config import flattened  # noqa: PLC0415

    _ask_again(fleet, device)
    with fleet.store.read() as session:
        records = history(session, device)
    if as_json:
        print_json([record.model_dump(mode="json", exclude_none=True) for record in records])
        return
    now = utc_now()
    print_table(
        ["VERSION", "SENT", "BY", "SETS", "STATE"],
        [
            [
                str(record.version),
                ago(record.issued_at, now),
                record.issued_by,
                " ".join(flattened(record.settings)) or "nothing",
                _standing(record),
            ]
            for record in records
        ],
        empty=f"nothing was ever set from afar on {device}",
    )


def read_file(path: Path) -> dict[str, Any]:
    """The settings in the YAML file `path`, as they would arrive.

    Raises:
        ConfigError: unreadable, no YAML, too large, or settings that may not be set or are wrong.
    """
    import yaml  # noqa: PLC0415

    from edgeslm.files import read_bounded  # noqa: PLC0415
    from edgeslm.fleet.remote_config import check  # noqa: PLC0415
    from edgeslm.schema.remote_config import settings_text  # noqa: PLC0415

    try:
        data = read_bounded(path.resolve(), _MAX_FILE_BYTES)
        if len(data) > _MAX_FILE_BYTES:
            raise ConfigError(f"{path} is longer than {_MAX_FILE_BYTES} bytes", path=str(path))
        text = data.decode("utf-8")
        # A few of them stand for gigabytes.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ConfigError(f"{path} has aliases (*name): write out what they stand for", path=str(path))
        settings = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is no YAML: {' '.join(str(error).split())[:300]}", path=str(path)
        ) from error
    if not isinstance(settings, dict) or not settings:
        raise ConfigError(
            f"{path}: a mapping of settings is expected", path=str(path),
            hint="To take everything back: edgeslm fleet config clear",
        )  # fmt: skip
    check(settings)
    read: dict[str, Any] = json.loads(settings_text(settings))
    return read


# --- what the commands share --------------------------------------------------------------------------------


def _give(
    selection: Selection,
    settings: Mapping[str, Any],
    *,
    confirm_s: int,
    life: timedelta,
    timeout_s: float | None,
    detach: bool,
    fleet_dir: Path | None,
    fleet_name: str | None,
    keys_dir: Path | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    selection.need()
    fleet = open_fleet(fleet_dir, fleet_name)
    open_repository(fleet)
    from edgeslm.fleet.release_setup import assignment_signer  # noqa: PLC0415
    from edgeslm.fleet.remote_config import difference, history, in_force  # noqa: PLC0415

    signer = assignment_signer(keys_of(fleet, keys_dir))
    names = [record.name for record in selection.of(fleet)]
    plan: dict[str, list[Change]] = {}
    with fleet.store.read() as session:
        for name in names:
            current, newest = in_force(session, name), history(session, name, limit=1)
            changes = difference({} if current is None else current.settings, settings)
            # Where the latest has not been answered, nobody knows what is in force.
            if changes or (newest and newest[0].state == "sent"):
                plan[name] = changes
    for name in names:
        if name not in plan:
            note(f"{name}: nothing changes")
    lines = [f"{name}: {_line(change)}" for name, changes in plan.items() for change in changes]
    lines += [f"{name}: sent again, as nothing was heard of the last" for name in plan if not plan[name]]
    if not plan or not confirm([printable(line) for line in lines], yes=yes, dry_run=dry_run):
        if as_json:
            print_json([_told(name, None, plan.get(name, ())) for name in names])
        return
    from edgeslm.fleet.operations import Wishes  # noqa: PLC0415

    sender = _sender(fleet)
    prepared = sender.prepare(plan, settings, [signer], life=life, confirm_s=confirm_s)
    if timeout_s is None:
        timeout_s = 2 * confirm_s + _RESTARTS_S
    with stopped_by_signals() as stop:
        wishes = Wishes(timeout_s=0.0 if detach else timeout_s, on_news=_teller(), stop=stop)
        found = sender.send(prepared, wishes)
    if as_json:
        print_json([_told(name, found.get(name), plan.get(name, ())) for name in names])
    else:
        for record in found.values():
            click.echo(printable(f"{record.device}: version {record.version}: {_standing(record)}"))
    if not detach:
        done = [name for name in names if name not in found or found[name].state == "committed"]
        exit_for(done, names)


def _sender(fleet: Fleet) -> ConfigSender:
    from edgeslm.fleet.config_sending import ConfigSender  # noqa: PLC0415

    return ConfigSender(fleet.directory, fleet.store, fleet.actor)


def _ask_again(fleet: Fleet, device: str) -> None:
    try:
        _sender(fleet).ask_again(device)
    except LinkError as error:
        note(f"this is what was known before: {error}")


def _teller() -> Callable[[Outcome], None]:
    """Tells what devices say on their way, each thing once."""
    said: dict[str, str] = {}

    def tell(outcome: Outcome) -> None:
        words = f"{outcome.device}: {outcome.text or outcome.state}"
        if outcome.open and outcome.state != "pending" and said.get(outcome.device) != words:
            said[outcome.device] = words
            click.echo(printable(words), err=True)

    return tell


def _told(device: str, record: ConfigRecord | None, changes: Sequence[Change]) -> dict[str, Any]:
    return {
        "device": device,
        "changes": [asdict(change) for change in changes],
        "sent": None if record is None else record.model_dump(mode="json", exclude_none=True),
    }


def _line(change: Change) -> str:
    if change.kind == "added":
        return f"{change.key}: {_value(change.after)}"
    if change.kind == "removed":
        return f"{change.key}: {_value(change.before)} is taken back"
    return f"{change.key}: {_value(change.before)} -> {_value(change.after)}"


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _standing(record: ConfigRecord) -> str:
    words = "sent, not answered yet" if record.state == "sent" else record.state.replace("_", " ")
    return f"{words}: {record.detail}" if record.detail else words
