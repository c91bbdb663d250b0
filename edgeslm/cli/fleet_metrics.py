"""``edgeslm fleet metrics``: what devices drew, did and cost, as table, chart and file."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import click

from edgeslm.cli.fleet_common import Fleet, fleet_options, naming_the_extra, note, open_fleet, print_table
from edgeslm.cli.fleet_figures import blocks, change_text, column_title, value_text
from edgeslm.cli.fleet_select import Selection, select_arguments
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors
from edgeslm.cli.times import duration, moment
from edgeslm.clock import utc_now
from edgeslm.errors import UsageError

if TYPE_CHECKING:
    from edgeslm.fleet.metrics.collector import MetricsCollector
    from edgeslm.fleet.metrics.figures import Figure
    from edgeslm.fleet.metrics.report import ChangeReport, FiguresReport
    from edgeslm.fleet.metrics.store import MetricsStore

_CHART_STEPS: Final = 72
_CHART_CHARS: Final = 60
_NAMES_TOLD: Final = 5
_BY: Final = ("fleet", "device", "group", "board", "model")
_FIGURES: Final = (
    "power",
    "peak",
    "energy",
    "net",
    "j-prompt",
    "j-token",
    "tps",
    "ttft",
    "prompts",
    "failed",
    "refused",
    "deferred",
    "shortened",
    "waiting",
    "temperature",
    "hottest",
    "throttled",
    "budget",
    "exceeded",
    "battery",
    "co2",
    "cost",
)


@contextmanager
def opened_metrics(fleet: Fleet) -> Iterator[MetricsStore]:
    """The collected figures of `fleet`.

    Raises:
        FleetError: they cannot be read.
    """
    from edgeslm.fleet.metrics.store import MetricsStore, metrics_url  # noqa: PLC0415

    metrics = MetricsStore(metrics_url(fleet.directory.root, fleet.directory.config.database))
    try:
        yield metrics
    finally:
        metrics.close()


@contextmanager
def running_collector(fleet: Fleet) -> Iterator[MetricsCollector]:
    """Collects what devices of `fleet` report, for as long as the block lasts.

    Raises:
        FleetError: a database refuses.
        LinkError: the link cannot be set up.
    """
    from edgeslm.fleet.metrics.collector import MetricsCollector  # noqa: PLC0415
    from edgeslm.fleet.metrics.intake import Intake  # noqa: PLC0415
    from edgeslm.link.mqtt import MqttLink  # noqa: PLC0415
    from edgeslm.power.boards import load_boards  # noqa: PLC0415

    directory = fleet.directory
    settings = directory.config.metrics
    with opened_metrics(fleet) as metrics:
        link = MqttLink(directory.operator_config(), f"edgeslm-metrics-{secrets.token_hex(6)}")
        intake = Intake(fleet.store, metrics, load_boards(), settings)
        with MetricsCollector(directory.name, link, intake, metrics, settings) as collector:
            yield collector


@click.command()
@select_arguments
@click.option(
    "--since",
    type=moment,
    default="1d",
    show_default=True,
    metavar="TIME",
    help="Where the period begins: so long ago, or a date.",
)
@click.option("--until", type=moment, metavar="TIME", help="Where it ends; default is now.")
@click.option(
    "--by", type=click.Choice(_BY), default="device", show_default=True, help="What figures are grouped by."
)
@click.option(
    "--metric",
    "names",
    multiple=True,
    type=click.Choice(_FIGURES),
    metavar="NAME",
    help=f"Which figures: {', '.join(_FIGURES)}. May be given again; there are usual ones.",
)
@click.option(
    "--step", type=duration, metavar="TIME", help="A row for each step of time, such as 10min or 1h."
)
@click.option("--chart", is_flag=True, help="Draw the figures over time here, one line for each group.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to this file instead: .png, .svg, .csv, .json or .parquet.",
)
@click.option(
    "--before-after",
    "around",
    metavar="WHEN",
    help="Compare before and after: a time, a release (NAME@VERSION) or a rollout.",
)
@click.option(
    "--window",
    type=duration,
    default="1d",
    show_default=True,
    help="With --before-after: how long before and after is looked at.",
)
@fleet_options
@json_option
@reporting_errors
def metrics(
    selection: Selection,
    since: datetime,
    until: datetime | None,
    by: str,
    names: tuple[str, ...],
    step: timedelta | None,
    chart: bool,
    as_csv: bool,
    out: Path | None,
    around: str | None,
    window: timedelta,
    fleet_dir: Path | None,
    fleet_name: str | None,
    as_json: bool,
) -> None:
    """Show what devices drew, did and cost; all in use, or those named.

    Figures are collected while `fleet serve` runs. A time is read from minutes where few rows are needed for it, else
    from full hours. Devices in quarantine are in no sum.
    """
    now = utc_now()
    until = until or now
    if since >= until:
        raise UsageError("the period ends before it begins")
    if sum([chart, as_csv, as_json, out is not None]) > 1:
        raise UsageError("--chart, --csv, --json and --out exclude each other")
    fleet = open_fleet(fleet_dir, fleet_name)
    with naming_the_extra():
        from edgeslm.fleet.metrics import report  # noqa: PLC0415
        from edgeslm.fleet.metrics.figures import FIGURES  # noqa: PLC0415
    devices = selection.of(fleet)
    if around is not None:
        if chart or as_csv or out is not None or step is not None:
            raise UsageError("--before-after gives a table, or --json")
        figures = [FIGURES[name] for name in names]
        if window % timedelta(days=1):
            note("what follows the time of day, such as draw, is compared fairly over whole days only")
        with opened_metrics(fleet) as store, fleet.store.read() as session:
            changes = report.compare_around(
                session,
                store,
                devices,
                moment=_turn(session, around),
                figures=figures,
                window_s=window.total_seconds(),
                settings=fleet.directory.config.metrics,
                now=now,
            )
        _show_changes(changes, as_json=as_json)
        return
    grouping = next(one for one in get_args(report.By) if one == by)
    figures = report.chosen_figures(names, grouping)
    is_drawn = chart or (out is not None and out.suffix.lower() in {".png", ".svg"})
    step_s = int(step.total_seconds()) if step is not None else None
    if is_drawn and not names:
        figures = [figure for figure in figures if not figure.is_total]
    if is_drawn and step_s is None:
        step_s = _chart_step_s((until - since).total_seconds())
    with opened_metrics(fleet) as store, fleet.store.read() as session:
        found = report.make_report(
            session,
            store,
            devices,
            by=grouping,
            figures=figures,
            since_s=since.timestamp(),
            until_s=until.timestamp(),
            step_s=step_s,
            settings=fleet.directory.config.metrics,
            now=now,
        )
    _tell_missing(found)
    if out is not None:
        from edgeslm.cli.fleet_metrics_files import write_file  # noqa: PLC0415

        write_file(out, found, figures)
        click.echo(f"wrote {out}", err=True)
    elif as_json:
        print_json(found.model_dump(mode="json"))
    elif as_csv:
        from edgeslm.cli.fleet_metrics_files import csv_text  # noqa: PLC0415

        click.echo(csv_text(found, figures), nl=False)
    elif chart:
        _chart(found, figures)
    else:
        _table(found, figures)


def _turn(session: Any, text: str) -> Any:
    """What ``--before-after`` names: a moment, a release, or each device's moment in a rollout.

    Raises:
        UsageError: it is none of these.
    """
    from edgeslm.fleet.metrics.moments import rollout_moments  # noqa: PLC0415

    if "@" in text:
        return text
    try:
        return moment(text)
    except ValueError:
        pass
    found = rollout_moments(session, text)
    if found is None:
        raise UsageError(
            f"'{text[:80]}' is no time, no release and no rollout",
            hint="Write '2d', '2026-11-24T12:00', 'home-command@1.3.0', or a rollout of edgeslm fleet rollouts",
        )
    return found


def _chart_step_s(span_s: float) -> int:
    """Seconds of a step, so that a chart has some dozens of them."""
    steps = (60, 300, 600, 1800, 3600, 3 * 3600, 6 * 3600, 86_400)
    return next((step for step in steps if span_s / step <= _CHART_STEPS), 7 * 86_400)


# --- showing ------------------------------------------------------------------------------------------------


def _tell_missing(found: FiguresReport) -> None:
    for name, reason in found.left_out.items():
        note(f"{name} is in quarantine, and in no sum: it {printable(reason)}")
    silent = found.silent
    if silent:
        told = ", ".join(silent[:_NAMES_TOLD])
        more = f" and {len(silent) - _NAMES_TOLD} more" if len(silent) > _NAMES_TOLD else ""
        note(f"nothing of this was reported by {told}{more}")


def _table(found: FiguresReport, figures: list[Figure]) -> None:
    with_steps = found.step_s is not None
    # Devices are one each; everything else is of some.
    with_count = found.by != "device"
    rows = [*found.rows, *([found.whole] if found.whole is not None and len(found.rows) > 1 else [])]
    print_table(
        [
            *(["FROM"] if with_steps else []),
            found.by.upper(),
            *(["DEVICES"] if with_count else []),
            *(column_title(figure) for figure in figures),
        ],
        [
            [
                *([f"{row.start:%Y-%m-%d %H:%M}" if row.start else None] if with_steps else []),
                row.group if row is not found.whole else "all",
                *([str(row.devices)] if with_count else []),
                *(value_text(figure.unit, row.figures.get(figure.name)) for figure in figures),
            ]
            for row in rows
        ],
        empty="nothing was reported in that time; figures are collected while 'edgeslm fleet serve' runs",
    )


def _chart(found: FiguresReport, figures: list[Figure]) -> None:
    """A line of blocks for each figure and group, all groups of a figure on one scale."""
    if not found.rows or found.step_s is None:
        click.echo("nothing was reported in that time", err=True)
        return
    first_s = int(found.since.timestamp()) // found.step_s * found.step_s
    count = -int(-(found.until.timestamp() - first_s) // found.step_s)
    groups = sorted({row.group for row in found.rows})
    width = max(len(group) for group in groups)
    click.echo(f"{found.since.astimezone():%Y-%m-%d %H:%M} to {found.until.astimezone():%Y-%m-%d %H:%M}")
    for figure in figures:
        lines: dict[str, list[float | None]] = {group: [None] * count for group in groups}
        for row in found.rows:
            at = (int(row.start.timestamp()) - first_s) // found.step_s if row.start is not None else -1
            if 0 <= at < count:
                lines[row.group][at] = row.figures.get(figure.name)
        known = [value for line in lines.values() for value in line if value is not None]
        if not known:
            continue
        low, high = min(known), max(known)
        click.echo(f"\n{figure.title}, {value_text(figure.unit, low)} to {value_text(figure.unit, high)}")
        for group, line in lines.items():
            told = [value for value in line if value is not None]
            last = value_text(figure.unit, told[-1] if told else None)
            drawn = blocks(line, low, high, _CHART_CHARS)
            click.echo(f"  {printable(group):<{width}}  {drawn:<{min(count, _CHART_CHARS)}}  {last}")


def _show_changes(found: ChangeReport, *, as_json: bool) -> None:
    from edgeslm.fleet.metrics.figures import FIGURES  # noqa: PLC0415

    for name, reason in list(found.left_out.items())[: _NAMES_TOLD * 2]:
        note(f"{name} is left out: {printable(reason)}")
    if len(found.left_out) > _NAMES_TOLD * 2:
        note(f"{len(found.left_out) - _NAMES_TOLD * 2} more devices are left out; --json names them")
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    count = len(found.compared)
    devices = f"{count} device{'' if count == 1 else 's'}"
    click.echo(f"{devices}, {found.window_s / 3600:g} h before and after {found.moment}")
    rows = []
    for row in found.rows:
        unit = FIGURES[row.figure].unit
        low = change_text(row.low, unit, is_share=row.is_share)
        high = change_text(row.high, unit, is_share=row.is_share)
        rows.append(
            [
                row.figure,
                value_text(unit, row.before),
                value_text(unit, row.after),
                change_text(row.change, unit, is_share=row.is_share),
                None if row.low is None else f"{low} to {high}",
                f"{row.count} {'devices' if row.basis == 'devices' else 'steps of time'}",
                row.verdict,
            ]
        )
    print_table(
        ["FIGURE", "BEFORE", "AFTER", "CHANGE", "95 % SURE", "FROM", "VERDICT"], rows, empty="no figures"
    )
