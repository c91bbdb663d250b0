"""``edgeslm power explain``: what was decided about a prompt and why, and what it took."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Final

import click

from edgeslm.cli.output import print_json, printable
from edgeslm.cli.power_common import Settings, open_ledger, power_command
from edgeslm.cli.power_words import class_text, energy_text, print_table, time_text
from edgeslm.errors import UsageError
from edgeslm.power.decisions import FiledStep, read_decision
from edgeslm.power.ledger_reader import PromptRow

_WORDS: Final = {"waits": "waited", "runs": "ran", "refused": "was refused", "stopped": "was stopped"}


def _steps(row: PromptRow) -> tuple[FiledStep, ...]:
    return () if row.note.decision is None else read_decision(row.note.decision)


def _at(row: PromptRow) -> datetime:
    return datetime.fromtimestamp(row.note.at_s).astimezone()


def _report(row: PromptRow) -> dict[str, object]:
    note = row.note
    return {
        "id": note.id,
        "at": _at(row).isoformat(timespec="milliseconds"),
        "model": note.model,
        "rule": note.rule,
        "priority": note.priority,
        "prompt_tokens": note.prompt_tokens,
        "completion_tokens": note.completion_tokens,
        "predicted_j": note.predicted_j,
        "net_j": row.net_j,
        "energy_j": row.energy_j,
        "seconds": row.seconds,
        "meter_class": row.meter,
        "steps": [asdict(step) for step in _steps(row)],
    }


@click.command()
@click.argument("prompt_id", metavar="[ID]", required=False)
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    help="How many of the latest prompts are listed where no ID is given.",
)
@power_command
def explain(settings: Settings, prompt_id: str | None, limit: int, as_json: bool) -> None:
    """Say why the prompt ID waited, shrank or was refused, and what it took; without ID list the latest.

    What the ledger knows is up to ten seconds old, and kept for thirty days.
    """
    with open_ledger(settings) as reader:
        if prompt_id is None:
            rows = reader.prompts(limit)
        else:
            row = reader.prompt(prompt_id)
            if row is None:
                raise UsageError(
                    f"the ledger knows no prompt '{prompt_id}'", hint="edgeslm power explain lists the latest"
                )
            rows = [row]
    if as_json:
        reports = [_report(row) for row in rows]
        print_json(reports if prompt_id is None else reports[0])
    elif prompt_id is None:
        _print_list(rows)
    else:
        _print_one(rows[0])


def _print_list(rows: list[PromptRow]) -> None:
    if not rows:
        click.echo("the ledger knows no prompts", err=True)
        return
    print_table(
        ("when", "id", "model", "priority", "what happened", ">expected", ">took", "class"),
        [
            (
                f"{_at(row):%Y-%m-%d %H:%M:%S}",
                row.note.id,
                row.note.model or "-",
                row.note.priority,
                _summary(row),
                _energy(row.note.predicted_j),
                _energy(row.net_j),
                class_text(row.meter),
            )
            for row in rows
        ],
    )


def _summary(row: PromptRow) -> str:
    """What happened, in a few words."""
    parts = []
    steps = _steps(row)
    if any(step.what == "waits" for step in steps) and steps[-1].what != "waits":
        end = next((step for step in steps if step.what in ("runs", "refused")), steps[-1])
        parts.append(f"waited {time_text(end.after_s)}")
    for step in steps:
        codes = {reason.code for reason in step.reasons}
        if step.what == "runs":
            parts.append("ran" + (", capped" if "tokens_capped" in codes else ""))
            parts += ["gently"] * bool(codes & {"fewer_threads", "frequency_capped", "pauses"})
        elif step.what in ("refused", "stopped"):
            parts.append(step.what)
    if not steps:
        return "ran" if row.energy_j is not None else "-"
    return ", ".join(parts) or "waits"


def _energy(energy_j: float | None) -> str:
    return "-" if energy_j is None else energy_text(energy_j)


def _print_one(row: PromptRow) -> None:
    note = row.note
    click.echo(click.style(f"prompt {printable(note.id)}", bold=True))
    asked = [note.model or "no model", f"priority {note.priority}"]
    asked += [f"rule {note.rule}"] if note.rule is not None else []
    click.echo(f"{_at(row):%Y-%m-%d %H:%M:%S}, {printable(', '.join(asked))}")
    click.echo()
    steps = _steps(row)
    for step in steps:
        reasons = [printable(reason.text) for reason in step.reasons]
        first, *rest = reasons or ["no reason given"]
        what = _WORDS.get(step.what, step.what)
        click.echo(f"{'after ' + time_text(step.after_s):<14}{printable(what):<13}{first}")
        for reason in rest:
            click.echo(f"{'':<27}{reason}")
    if not steps:
        click.echo("no budget was in force, so nothing was decided about it")
    click.echo()
    click.echo(_cost(row))


def _cost(row: PromptRow) -> str:
    note = row.note
    expected = "" if note.predicted_j is None else f"{energy_text(note.predicted_j)} above idle were expected"
    if row.net_j is None or row.energy_j is None or row.seconds is None:
        return f"{expected}; it took nothing, or what it took is not known yet".removeprefix("; ")
    parts = [f"it took {energy_text(row.net_j)} above idle in {time_text(row.seconds)}"]
    if note.predicted_j:
        parts[0] += f" ({row.net_j / note.predicted_j - 1:+.0%})"
    parts.append(f"{energy_text(row.energy_j)} with the idle draw")
    if note.completion_tokens:
        parts.append(
            f"{note.prompt_tokens or 0} + {note.completion_tokens} tokens, "
            f"{energy_text(row.net_j / note.completion_tokens)} for each of the answer"
        )
    lines = [
        f"{expected}; {parts[0]}".removeprefix("; "),
        *parts[1:],
        f"how that is known: {class_text(row.meter)}",
    ]
    return "\n".join(lines)
