"""``edgeslm power report``: what the energy of a period was spent on, as table, CSV, JSON and chart."""

from __future__ import annotations

import csv
import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Final

import click

from edgeslm.cli.output import print_json
from edgeslm.cli.power_common import Settings, naming_the_extra, open_ledger, power_command
from edgeslm.cli.power_words import DAY_S, class_text, energy_text, print_table, time_text
from edgeslm.errors import UsageError
from edgeslm.power.ledger_reader import LedgerReader
from edgeslm.power.report import Rates, Report, ReportGroup, ReportRow, local_time, make_report
from edgeslm.schema.budget import quantity

_MOST_PROMPTS: Final = 10_000
_CHART_TYPES: Final = {".png", ".svg"}
_MINUTES_KEPT_S: Final = 2 * DAY_S
_HOURS_KEPT_S: Final = 90 * DAY_S
_FIGURES: Final = (
    "energy_j",
    "net_j",
    "seconds",
    "meter",
    "co2_g",
    "cost",
    "prompts",
    "completion_tokens",
    "j_per_prompt",
    "j_per_token",
)


def moment(text: str, now_s: float) -> float:
    """Unix time of ``24h`` (that long before `now_s`) or of a date, with or without a time of day, local or not.

    Raises:
        UsageError: it is neither.
    """
    try:
        return now_s - quantity(text, "s")
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise UsageError(
            f"'{text[:40]}' is no time", hint="Write '24h', '7d', '2026-05-01' or '2026-05-01T14:00'"
        ) from error


@click.command()
@click.option(
    "--since",
    default="24h",
    show_default=True,
    help="Where the period begins: so long ago, or a date and time.",
)
@click.option("--until", help="Where it ends; default is now.")
@click.option(
    "--by",
    type=click.Choice(["cause", "model", "rule", "hour", "day"]),
    default="cause",
    show_default=True,
    help="What the energy is grouped by.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@click.option(
    "--chart",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also draw power over time and energy by cause into this .png or .svg file.",
)
@click.option("--co2", "co2_g_per_kwh", type=click.FloatRange(0, 10_000), help="Grams of CO2e of a kWh.")
@click.option("--price", "price_per_kwh", type=click.FloatRange(-100, 1000), help="Price of a kWh.")
@power_command
def report(
    settings: Settings,
    since: str,
    until: str | None,
    by: ReportGroup,
    as_csv: bool,
    chart: Path | None,
    co2_g_per_kwh: float | None,
    price_per_kwh: float | None,
    as_json: bool,
) -> None:
    """Show what the energy of a period was spent on, from the agent's ledger.

    Cost and CO2e follow the tariff of the budget, or --price and --co2 in its place. Times are local.
    """
    now_s = time.time()
    since_s, until_s = moment(since, now_s), now_s if until is None else moment(until, now_s)
    if since_s >= until_s:
        raise UsageError("the period ends before it begins")
    if as_csv and as_json:
        raise UsageError("--csv and --json exclude each other")
    if chart is not None and chart.suffix.lower() not in _CHART_TYPES:
        raise UsageError(f"'{chart}' is neither .png nor .svg")
    rates = Rates(settings.config.budget.tariff, price_per_kwh, co2_g_per_kwh)
    with open_ledger(settings) as reader:
        found = _read(reader, since_s, until_s, by, rates)
        if chart is not None:
            _draw(chart, reader, found, (since_s, until_s, now_s))
    if as_json:
        print_json(
            {
                "since": local_time(since_s, None).isoformat(timespec="seconds"),
                "until": local_time(until_s, None).isoformat(timespec="seconds"),
                "by": by,
                "rows": [_figures(row) | {"group": row.group} for row in found.rows],
                "total": None if found.total is None else _figures(found.total),
            }
        )
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow((by, *_FIGURES))
        for row in found.rows:
            writer.writerow((row.group, *(getattr(row, name) for name in _FIGURES)))
    else:
        _print(found, by, since_s, until_s)


def _read(reader: LedgerReader, since_s: float, until_s: float, by: ReportGroup, rates: Rates) -> Report:
    if by in ("hour", "day"):
        return make_report(reader.energy(since_s, until_s, ["minute"]), by, rates)
    prompts = [row for row in reader.prompts(_MOST_PROMPTS) if since_s <= row.note.at_s < until_s]
    return make_report(reader.energy(since_s, until_s, ["minute", by]), by, rates, prompts=prompts)


def _figures(row: ReportRow) -> dict[str, object]:
    return {name: value for name, value in asdict(row).items() if name in _FIGURES}


def _print(found: Report, by: ReportGroup, since_s: float, until_s: float) -> None:
    period = f"{local_time(since_s, None):%Y-%m-%d %H:%M} to {local_time(until_s, None):%Y-%m-%d %H:%M}"
    if found.total is None:
        click.echo(f"the ledger has nothing of {period}", err=True)
        return
    click.echo(period)
    total = found.total
    columns = [by, ">energy", ">share", ">above idle", ">time", "class"]
    with_prompts = by in ("model", "rule")
    if with_prompts:
        columns += [">prompts", ">a prompt", ">a token"]
    if total.co2_g is not None:
        columns.append(">CO2e")
    if total.cost is not None:
        columns.append(">cost")
    rows = [[_name(row, by), *_cells(row, total, with_prompts=with_prompts)] for row in found.rows]
    print_table(columns, [*rows, ["total", *_cells(total, total, with_prompts=with_prompts)]])


def _cells(row: ReportRow, total: ReportRow, *, with_prompts: bool) -> list[str]:
    cells = [
        energy_text(row.energy_j),
        f"{row.energy_j / total.energy_j:.1%}" if total.energy_j else "-",
        energy_text(row.net_j),
        time_text(row.seconds),
        class_text(row.meter),
    ]
    if with_prompts:
        cells += [
            str(row.prompts or "-"),
            "-" if row.j_per_prompt is None else energy_text(row.j_per_prompt),
            "-" if row.j_per_token is None else energy_text(row.j_per_token),
        ]
    if total.co2_g is not None:
        cells.append("-" if row.co2_g is None else f"{row.co2_g:.2f} g")
    if total.cost is not None:
        cells.append("-" if row.cost is None else f"{row.cost:.4f}")
    return cells


def _name(row: ReportRow, by: ReportGroup) -> str:
    if by == "hour":
        return f"{local_time(row.start_s, None):%Y-%m-%d %H:00}"
    return "none" if row.group is None else row.group


def _draw(path: Path, reader: LedgerReader, found: Report, times_s: tuple[float, float, float]) -> None:
    with naming_the_extra("charts", "matplotlib"):
        from edgeslm.cli.power_chart import draw_chart  # noqa: PLC0415

    since_s, until_s, now_s = times_s
    points = reader.power(since_s, until_s, _width_s(since_s, until_s, now_s))
    if found.total is None or not points:
        raise UsageError("the ledger has nothing of that period to draw")
    draw_chart(
        path,
        points,
        reader.energy(since_s, until_s, ["minute", "cause"]),
        found.total.meter,
        daily=until_s - since_s > 3 * DAY_S,
    )
    click.echo(f"wrote {path}", err=True)


def _width_s(since_s: float, until_s: float, now_s: float) -> int:
    """Seconds of a step of the curve: as fine as the ledger keeps it, and as a chart can show."""
    if now_s - since_s > _HOURS_KEPT_S:
        return 86_400
    if now_s - since_s > _MINUTES_KEPT_S:
        return 3600
    return 300 if until_s - since_s > DAY_S / 4 else 60
