"""``edgeslm fleet budget set|show|clear|report``: what devices may draw, and who keeps to it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeslm.cli.fleet_common import (
    Fleet,
    confirm,
    dry_run_option,
    exit_for,
    fleet_options,
    for_each,
    note,
    open_fleet,
    print_table,
    yes_option,
)
from edgeslm.cli.fleet_metrics import opened_metrics
from edgeslm.cli.fleet_release_common import keys_of, keys_option, open_repository
from edgeslm.cli.fleet_select import Selection, select_arguments
from edgeslm.cli.output import json_option, print_json, reporting_errors
from edgeslm.cli.power_words import energy_text, power_text, time_text
from edgeslm.cli.times import duration, moment
from edgeslm.clock import utc_now
from edgeslm.errors import BudgetConfigError, UsageError

if TYPE_CHECKING:
    from edgeslm.fleet.budgets import BudgetRow
    from edgeslm.schema.budget import Budget

_WARNINGS_TOLD = 5


@click.group()
def budget() -> None:
    """Power budgets: what devices may draw, and who keeps to it."""


# --- changes ------------------------------------------------------------------------------------------------


@budget.command("set")
@select_arguments
@click.option(
    "--day", metavar="LIMIT", help="What any 24 hours may take: an energy (20Wh) or a mean power (2W)."
)
@click.option("--sustained", metavar="LIMIT", help="Mean power of any ten minutes, such as 2W.")
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="YAML with all else that a budget can hold; --day and --sustained replace its windows of these names.",
)
@click.option(
    "--expires", "life", type=duration, default="7d", show_default=True, help="How long it can be followed."
)
@fleet_options
@keys_option
@yes_option
@dry_run_option
@json_option
@reporting_errors
def set_(
    selection: Selection,
    day: str | None,
    sustained: str | None,
    file: Path | None,
    life: timedelta,
    fleet_dir: Path | None,
    fleet_name: str | None,
    keys_dir: Path | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Give devices a power budget, as part of what is signed for each; it goes before that of their own settings.

    What a board can never keep, since it draws as much with nothing to do, is refused for all before anything is sent.
    """
    selection.need()
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.budgets import budget_text, make_budget  # noqa: PLC0415

    wanted = make_budget(day=day, sustained=sustained, file=file)
    names = [one.name for one in selection.of(fleet)]
    for line in _checked(fleet, selection, wanted):
        note(line)
    _assign(
        fleet, names, budget_text(wanted), f"gets the budget {_words(wanted)}",
        keys_dir=keys_dir, life=life, yes=yes, dry_run=dry_run, as_json=as_json,
    )  # fmt: skip


@budget.command()
@select_arguments
@click.option(
    "--expires", "life", type=duration, default="7d", show_default=True, help="How long it can be followed."
)
@fleet_options
@keys_option
@yes_option
@dry_run_option
@json_option
@reporting_errors
def clear(
    selection: Selection,
    life: timedelta,
    fleet_dir: Path | None,
    fleet_name: str | None,
    keys_dir: Path | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take the fleet's budget back: devices keep to that of their own settings again, if there is one."""
    selection.need()
    fleet = open_fleet(fleet_dir, fleet_name)
    names = [one.name for one in selection.of(fleet)]
    _assign(
        fleet, names, None, "keeps to its own settings again",
        keys_dir=keys_dir, life=life, yes=yes, dry_run=dry_run, as_json=as_json,
    )  # fmt: skip


def _checked(fleet: Fleet, selection: Selection, wanted: Budget) -> list[str]:
    """Warnings about a budget on the devices that are meant.

    Raises:
        BudgetConfigError: one of them can never keep it; all such are named.
    """
    from edgeslm.fleet.budgets import check_for, learned_idle_w  # noqa: PLC0415
    from edgeslm.fleet.metrics.query import newest  # noqa: PLC0415
    from edgeslm.fleet.metrics.report import device_ids  # noqa: PLC0415
    from edgeslm.power.boards import load_boards  # noqa: PLC0415

    boards, devices = load_boards(), selection.of(fleet)
    with opened_metrics(fleet) as metrics, fleet.store.read() as session:
        ids = device_ids(session, devices)
        said = newest(metrics, set(ids))
    warnings: dict[str, list[str]] = {}
    refused: list[BudgetConfigError] = []
    for id_, one in ids.items():
        try:
            for text in check_for(one.name, wanted, boards.get(one.board or ""), learned_idle_w(said, id_)):
                warnings.setdefault(text, []).append(one.name)
        except BudgetConfigError as error:
            refused.append(error)
    if refused:
        for another in refused[1:_WARNINGS_TOLD]:
            note(another.message)
        if len(refused) > _WARNINGS_TOLD:
            note(f"{len(refused) - _WARNINGS_TOLD} more devices cannot keep it either")
        raise refused[0]
    return [
        f"{names[0] if len(names) == 1 else f'{len(names)} devices'}: {text}"
        for text, names in warnings.items()
    ]


def _assign(
    fleet: Fleet,
    names: Sequence[str],
    text: str | None,
    what: str,
    *,
    keys_dir: Path | None,
    life: timedelta,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Sign, write down and publish, device by device; end with the exit code for how many that went well."""
    from edgeslm.fleet.assignments import Visit, mark_published  # noqa: PLC0415
    from edgeslm.fleet.budgets import Signing, assign_budget, current_budget  # noqa: PLC0415
    from edgeslm.fleet.registry import need_device  # noqa: PLC0415
    from edgeslm.fleet.release_files import RepositoryFiles  # noqa: PLC0415
    from edgeslm.fleet.release_setup import assignment_signer  # noqa: PLC0415
    from edgeslm.schema.assignment import MAX_LIFETIME  # noqa: PLC0415
    from edgeslm.topics import device_topic  # noqa: PLC0415

    if life > MAX_LIFETIME:
        raise UsageError(f"an assignment can be followed for {MAX_LIFETIME.days} days at most")
    repository = open_repository(fleet)
    with fleet.store.read() as session:
        same = {name for name in names if current_budget(session, name) == text}
    plan = [f"{name}: {what}{', as before' if name in same else ''}" for name in names]
    if not confirm(plan, yes=yes, dry_run=dry_run):
        if as_json:
            print_json(
                {"budget": json.loads(text) if text is not None else None, "devices": list(names), "seq": {}}
            )
        return
    signing = Signing(
        (assignment_signer(keys_of(fleet, keys_dir)),),
        RepositoryFiles.open(fleet.directory.releases).published().targets["targets"].signed,
        repository.releases(),
        life,
    )
    numbers: dict[str, int] = {}
    with Visit(fleet.directory.operator_config(), f"edgeslm-budget-{secrets.token_hex(6)}") as visit:

        def do(name: str) -> None:
            with fleet.store.write() as session:
                seq, body = assign_budget(
                    session, fleet.directory.name, name, text, signing, actor=fleet.actor, now=utc_now()
                )
            visit.publish(device_topic(fleet.directory.name, name, "desired"), body)
            with fleet.store.write() as session:
                mark_published(session, need_device(session, name).id, seq)
            numbers[name] = seq

        done = for_each(names, do)
    if as_json:
        value = json.loads(text) if text is not None else None
        print_json({"budget": value, "devices": done, "seq": numbers})
    else:
        click.echo(f"{len(done)} of {len(names)} devices: {what}")
    exit_for(done, names)


# --- looking ------------------------------------------------------------------------------------------------


@budget.command()
@select_arguments
@fleet_options
@json_option
@reporting_errors
def show(selection: Selection, fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """Show the budget that is assigned to each device."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.budgets import current_budget, read_budget  # noqa: PLC0415

    devices = selection.of(fleet)
    with fleet.store.read() as session:
        found = {one.name: current_budget(session, one.name) for one in devices}
    if as_json:
        print_json(
            [
                {"device": name, "budget": json.loads(text) if text is not None else None}
                for name, text in found.items()
            ]
        )
        return
    read = {name: read_budget(text) for name, text in found.items()}
    print_table(
        ["DEVICE", "BUDGET"],
        [
            [
                name,
                _words(one)
                if one is not None
                else "not one that this release reads"
                if found[name]
                else None,
            ]
            for name, one in read.items()
        ],
        empty="no devices",
    )


def _words(one: Budget) -> str:
    """A budget on one line."""
    parts = [
        f"{window.name} {_limit(window.limit_w, window.over_s)} in {time_text(window.over_s)}"
        for window in one.windows
    ]
    others = sorted(set(one.model_dump(exclude_defaults=True)) - {"windows"})
    return (
        ", ".join([*parts, *(name.removesuffix("_s").replace("_", " ") for name in others)])
        or "without limits"
    )


def _limit(limit_w: float, over_s: float) -> str:
    return energy_text(limit_w * over_s) if over_s >= 3600 else power_text(limit_w)


@budget.command()
@select_arguments
@click.option(
    "--since",
    type=moment,
    default="1d",
    show_default=True,
    metavar="TIME",
    help="Where the period begins: so long ago, or a date.",
)
@click.option("--broken", is_flag=True, help="Only devices that do not keep to their budget.")
@fleet_options
@json_option
@reporting_errors
def report(
    selection: Selection,
    since: datetime,
    broken: bool,
    fleet_dir: Path | None,
    fleet_name: str | None,
    as_json: bool,
) -> None:
    """Show who keeps to the budget and who does not, what a day takes, and what was refused or deferred for it."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.budgets import budget_row, current_budget, read_budget  # noqa: PLC0415
    from edgeslm.fleet.metrics.figures import combined  # noqa: PLC0415
    from edgeslm.fleet.metrics.query import events, newest, period, sums  # noqa: PLC0415
    from edgeslm.fleet.metrics.report import device_ids  # noqa: PLC0415
    from edgeslm.fleet.quarantine import quarantined  # noqa: PLC0415

    now = utc_now()
    devices = selection.of(fleet)
    with opened_metrics(fleet) as metrics, fleet.store.read() as session:
        ids = device_ids(session, devices)
        when = period(
            since.timestamp(),
            now.timestamp(),
            devices=len(ids),
            settings=fleet.directory.config.metrics,
            now_s=now.timestamp(),
        )
        said, exceeded = newest(metrics, set(ids)), events(metrics, set(ids), when.since_s, "budget_exceeded")
        read = sums(metrics, set(ids), when, sorts=("power", "model"))
        aside = quarantined(session)
        rows = [
            budget_row(
                one.name,
                read_budget(current_budget(session, one.name)),
                said.get(id_),
                combined(values for key, values in read.items() if key.device_id == id_),
                exceeded.get(id_, 0),
                distrust=aside.get(one.name),
                now=now,
            )
            for id_, one in sorted(ids.items(), key=lambda item: item[1].name)
        ]
    if broken:
        rows = [row for row in rows if row.verdict not in {"kept", "none"}]
    if as_json:
        print_json([row.model_dump(mode="json") for row in rows])
        return
    print_table(
        [
            "DEVICE",
            "BUDGET",
            "LEFT",
            "A DAY TAKES",
            "OF",
            "EXCEEDED",
            "REFUSED",
            "DEFERRED",
            "SHORTENED",
            "WHY",
        ],
        [_cells(row) for row in rows],
        empty="every device keeps to its budget" if broken else "no devices",
    )


def _cells(row: BudgetRow) -> list[str | None]:
    left = ", ".join(f"{one.name} {one.left_share:.0%}" for one in row.windows)
    return [
        row.device,
        row.verdict,
        left or None,
        None if row.day_j is None else energy_text(row.day_j),
        None if row.day_limit_j is None else energy_text(row.day_limit_j),
        str(row.times_exceeded),
        str(row.refused),
        str(row.deferred),
        str(row.shortened),
        row.why,
    ]
