"""``edgeslm power meters``: what can tell this board's draw, what it says, and why the rest is left alone."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Final

import click

from edgeslm.cli.output import print_json, printable
from edgeslm.cli.power_common import Settings, open_meters, power_command
from edgeslm.cli.power_words import error_text, power_text, print_table, time_text
from edgeslm.errors import MeterError
from edgeslm.power.bank import BankReading, Demoted, MeterBank
from edgeslm.power.health import limits_of
from edgeslm.power.meters.discovery import Discovery
from edgeslm.power.port import MeterFacts, Reading

_LEAST_LOOKS: Final = 5
_LOOK_S: Final = 0.15
_LONGEST_S: Final = 12.0
"""A smart plug speaks about every ten seconds."""


@dataclass(frozen=True)
class _Seen:
    """A meter that is there.

    Attributes:
        used: its values count.
        reason: why it is used or not.
    """

    facts: MeterFacts
    used: bool
    reason: str
    value: Reading | MeterError

    def report(self) -> dict[str, object]:
        """As JSON."""
        value = self.value
        if isinstance(value, MeterError):
            said: dict[str, object] = {"error": value.message, "fault": value.fault}
        else:
            said = {"power_w": round(value.power_w, 4)}
        return {**asdict(self.facts), "used": self.used, "reason": self.reason, **said}


def _look(discovery: Discovery, bank: MeterBank) -> tuple[BankReading, dict[str, Reading | MeterError]]:
    """Look several times, until every meter has a value or has had its chance.

    Returns:
        The last look, and what each meter said last; for one that is not believed, why.
    """
    values: dict[str, Reading | MeterError] = {}
    demoted: dict[str, MeterError] = {}
    deadline_s = time.monotonic() + _LONGEST_S
    looks = 0
    while True:
        found = bank.read(time.monotonic())
        looks += 1
        values |= dict(found.readings)
        for event in found.events:
            demoted.pop(event.meter, None)
            # One that was silent at first, as a plug is, counts once it speaks.
            if isinstance(event, Demoted) and event.fault not in ("gone", "stale"):
                demoted[event.meter] = MeterError(event.detail, meter=event.meter, fault=event.fault)
        waiting = discovery.plug is not None and isinstance(values.get(discovery.plug.facts.name), MeterError)
        if looks >= _LEAST_LOOKS and (not waiting or time.monotonic() >= deadline_s):
            return found, values | demoted
        if waiting and looks == _LEAST_LOOKS:
            click.echo("waiting for a message of the plug", err=True)
        time.sleep(_LOOK_S)


def _seen(discovery: Discovery, found: BankReading, values: dict[str, Reading | MeterError]) -> list[_Seen]:
    seen = []
    for finding in discovery.findings:
        if finding.facts is None:
            continue
        if finding.name == found.facts.name:
            # What is used may be more than that meter alone: a model that an instrument corrects.
            seen.append(_Seen(found.facts, True, finding.reason, found.reading))
        else:
            seen.append(_Seen(finding.facts, False, finding.reason, values[finding.name]))
    return seen


@click.command()
@power_command
def meters(settings: Settings, as_json: bool) -> None:
    """List the meters of this board: class, period, error, and what they say now.

    The one marked with * is used. What was looked for in vain, or left alone, is told with the reason.
    """
    board = settings.board
    with open_meters(settings) as discovery:
        bank = MeterBank(discovery.meters, discovery.model, limits_of(board.power, board.cores))
        found, values = _look(discovery, bank)
    seen = _seen(discovery, found, values)
    alone = [(finding.name, finding.reason) for finding in discovery.findings if finding.facts is None]
    if as_json:
        print_json(
            {
                "board": board.name,
                "meters": [meter.report() for meter in seen],
                "not_used": [{"name": name, "reason": reason} for name, reason in alone],
            }
        )
        return
    click.echo(f"{board.title} ({board.name})\n")
    print_table(
        ("", "meter", "class", ">now", ">period", "error (one sigma)"), [_row(meter) for meter in seen]
    )
    click.echo()
    for meter in seen:
        click.echo(f"{meter.facts.name}: {printable(meter.reason)}")
        if isinstance(meter.value, MeterError):
            click.echo(f"    no value: {printable(meter.value.message)}")
        click.echo(f"    error from {printable(meter.facts.source)}")
    if alone:
        click.echo(click.style("\nnot used", bold=True))
        for name, reason in alone:
            click.echo(f"{printable(name)}: {printable(reason)}")


def _row(meter: _Seen) -> tuple[str, ...]:
    facts = meter.facts
    return (
        "*" if meter.used else "",
        facts.name,
        facts.meter_class,
        "-" if isinstance(meter.value, MeterError) else power_text(meter.value.power_w),
        time_text(facts.period_s),
        error_text(facts.error_share, facts.error_w),
    )
