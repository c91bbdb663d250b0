"""``edgeslm rules trace`` and ``status``: what the rules of the agent on this machine did, and how they are."""

from __future__ import annotations

from pathlib import Path

import click

from edgeslm.cli.output import json_option, print_json, printable, reporting_errors, stopped_by_signals
from edgeslm.cli.rules_common import show_trace
from edgeslm.errors import JournalError

_FOLLOW_S = 0.5
_ANSWER_S = 6.0

_state_dir_option = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/edgeslm"),
    show_default=True,
    envvar="EDGESLM_STATE_DIR",
    show_envvar=True,
    help="Of the agent.",
)


@click.command()
@_state_dir_option
@click.option("--rule", help="Only firings of this rule.")
@click.option(
    "-n",
    "--last",
    "limit",
    type=click.IntRange(0, 10_000),
    default=20,
    show_default=True,
    help="How many of the latest firings.",
)
@click.option("--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@json_option
@reporting_errors
def trace(state_dir: Path, rule: str | None, limit: int, follow: bool, as_json: bool) -> None:
    """Show what rules did: inputs, prompt, answer, actions and cost of every firing, the latest last."""
    from edgeslm.agent.rules.trace import TRACE_NAME, TraceReader  # noqa: PLC0415

    reader = TraceReader(state_dir / TRACE_NAME)
    newest = reader.latest(1)
    last = newest[-1][0] if newest else 0
    for number, found in reader.latest(limit, rule) if limit else ():
        show_trace(found, as_json=as_json)
        last = max(last, number)
    if not follow:
        return
    with stopped_by_signals() as stop:
        while not stop.wait(_FOLLOW_S):
            for number, found in reader.after(last, rule):
                show_trace(found, as_json=as_json)
                last = number


@click.command()
@_state_dir_option
@json_option
@reporting_errors
def status(state_dir: Path, as_json: bool) -> None:
    """Ask the rules of the agent on this machine how they are; where it does not run, as it last told."""
    from edgeslm.agent.rules.trace import TRACE_NAME, TraceReader  # noqa: PLC0415

    found = TraceReader(state_dir / TRACE_NAME).ask_status(_ANSWER_S)
    if found is None:
        raise JournalError(f"{state_dir / TRACE_NAME} has no status yet", hint="Is the agent running?")
    if as_json:
        print_json(found)
        return
    ended = "" if found.running else ", when the agent ended"
    click.echo(f"at {found.at}{ended}, {len(found.rules)} rules of {len(found.files)} files")
    if found.error is not None:
        click.echo(click.style(f"not in use: {printable(found.error)}", fg="red"))
    if found.shed:
        click.echo(f"{found.shed} messages were dropped: more came than could be looked at")
    if found.rules:
        width = max(len(rule.name) for rule in found.rules)
        origins = [rule.origin or "own" for rule in found.rules]
        # Where all are the device's own, nobody asks.
        wide = max(map(len, origins)) + 2 if any(rule.origin for rule in found.rules) else 0
        click.echo(
            f"{'RULE':{width}}  {'FROM' if wide else '':{wide}}LOOKED  FIRED  ACTED  SKIPPED  REFUSED  FAILED  LAST"
        )
        for rule, origin in zip(found.rules, origins, strict=True):
            click.echo(
                f"{rule.name:{width}}  {origin if wide else '':{wide}}{rule.looked:>6}  {rule.fired:>5}  "
                f"{rule.acted:>5}  {rule.skipped:>7}  {rule.refused:>7}  {rule.failed:>6}  "
                f"{printable(rule.last)[:80]}"
            )
    for gone in found.overridden:
        click.echo(
            f"not in use: {gone.name} of {gone.origin}, since {printable(gone.by)} has a rule of that name"
        )
    if found.inputs:
        width = max(len(item.name) for item in found.inputs)
        click.echo(f"{'INPUT':{width}}  {'VALUE':>12}  {'AGE':>8}  FAULTS  TOPIC")
        for item in found.inputs:
            age = "never" if item.age_s is None else f"{item.age_s:.0f} s"
            value = "" if item.value is None else printable(str(item.value))[:12]
            fault = f"  ({printable(item.last_fault)[:80]})" if item.last_fault else ""
            click.echo(
                f"{item.name:{width}}  {value:>12}  {age:>8}  {item.faults:>6}  {printable(item.topic)}{fault}"
            )
