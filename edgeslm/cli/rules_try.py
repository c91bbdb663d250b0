"""``edgeslm rules check``, ``test`` and ``replay``: rules without a device, a broker or a wait."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeslm.cli.output import json_option, print_json, printable, reporting_errors
from edgeslm.cli.rules_common import (
    answers_option,
    choose_answers,
    files_argument,
    load_files,
    model_option,
    show_trace,
)
from edgeslm.errors import RuleFileError, UsageError
from edgeslm.schema.rule_trace import RecordedMessage

if TYPE_CHECKING:
    from edgeslm.agent.rules.compiled import RuleSet

_MESSAGE_GAP_S = 0.001


@click.command()
@files_argument
@json_option
@reporting_errors
def check(files: Sequence[Path], as_json: bool) -> None:
    """Check files of rules, directories of them, and packages that bring some, as a device would read them.

    Exit code 2 if one is wrong. All of them are read together, as on a device: rules call each other across files, and
    circles do not stop at them.
    """
    try:
        rules = load_files(files)
    except RuleFileError as error:
        if as_json:
            body = {
                "valid": False,
                "error": error.message,
                "path": error.path,
                "line": error.line,
                "key": error.key,
                "nearest": error.nearest,
            }
            print_json({key: value for key, value in body.items() if value is not None})
            sys.exit(error.exit_code)
        raise
    _show_rules(rules, as_json=as_json)


def _show_rules(rules: RuleSet, *, as_json: bool) -> None:
    subscriptions = [name for name, _ in rules.filters()]
    if as_json:
        print_json(
            {
                "valid": True,
                "files": list(rules.files),
                "rules": [
                    {
                        "name": rule.name,
                        "file": rule.file,
                        "origin": rule.origin,
                        "triggers": [key[1] for key in rule.triggers],
                        "prompt": rule.prompt is not None,
                    }
                    for rule in rules.rules.values()
                ],
                "overridden": [item.model_dump(mode="json") for item in rules.overridden],
                "subscriptions": subscriptions,
            }
        )
        return
    for rule in rules.rules.values():
        causes = [key[1] for key in rule.triggers]
        if rule.spec.every_s is not None:
            causes.append(f"every {rule.spec.every_s:g} s")
        with_model = "asks a model" if rule.prompt is not None else "no model"
        click.echo(f"{rule.file}: {rule.name}: on {', '.join(causes) or 'a call'}; {with_model}")
    for gone in rules.overridden:
        click.echo(
            f"not in use: {gone.name} of {gone.origin}, since {printable(gone.by)} has a rule of that name"
        )
    click.echo(f"listens to {', '.join(printable(name) for name in subscriptions) or 'nothing'}")
    click.echo(f"{len(rules.rules)} rules in {len(rules.files)} files are right", err=True)


@click.command()
@files_argument
@click.option(
    "--message",
    "messages",
    multiple=True,
    required=True,
    metavar="TOPIC=PAYLOAD",
    help="A message to hear; may be given several times, in order. @SECONDS:TOPIC=PAYLOAD comes that much later.",
)
@click.option("--at", "at", help="When it is, such as 2026-11-25T22:30; default: now.")
@click.option(
    "--for",
    "for_s",
    type=click.FloatRange(0, 7 * 86_400),
    default=0.0,
    show_default=True,
    help="Seconds to go on after the last message.",
)
@model_option
@answers_option
@json_option
@reporting_errors
def test(
    files: Sequence[Path],
    messages: Sequence[str],
    at: str | None,
    for_s: float,
    model: str | None,
    answers: Path | None,
    as_json: bool,
) -> None:
    """Let rules hear messages and show what they would do. Nothing is published; time passes at once."""
    from edgeslm.agent.rules.replay import replay as replay_rules  # noqa: PLC0415

    recorded = list(_messages(messages, _moment(at)))
    rules = load_files(files)
    fired = 0
    for trace in replay_rules(rules, recorded, choose_answers(model, answers), until_s=for_s):
        fired += 1
        show_trace(trace, as_json=as_json)
    if not fired:
        click.echo("no rule fired", err=True)
        _say_why(rules, recorded)


def _say_why(rules: RuleSet, messages: Sequence[RecordedMessage]) -> None:
    """What the inputs make of the messages, for somebody who expected more."""
    from edgeslm.agent.rules.decisions import Heard, Moment  # noqa: PLC0415
    from edgeslm.agent.rules.engine import Engine  # noqa: PLC0415
    from edgeslm.agent.rules.replay import payload_of  # noqa: PLC0415

    engine = Engine(rules, Moment(0.0, messages[0].wall_s), lambda rule: rule)
    for message in messages:
        if not engine.takes(message.topic):
            click.echo(f"  {printable(message.topic)}: no input listens to it", err=True)
        now = Moment(message.at_s, messages[0].wall_s + message.at_s)
        engine.hear(Heard(message.topic, payload_of(message), message.retain), now)
    end = Moment(messages[-1].at_s, messages[-1].wall_s)
    for reading in engine.input_statuses(end):
        what = reading.last_fault or ("no value" if not reading.readings else f"is {reading.value}")
        click.echo(f"  input {reading.name}: {printable(str(what))}", err=True)
    for rule in engine.rule_statuses():
        why = rule.last or ("its condition is false" if rule.looked else "nothing set it off")
        click.echo(f"  rule {rule.name}: {printable(why)}", err=True)


def _moment(at: str | None) -> float:
    if at is None:
        return time.time()
    try:
        return datetime.fromisoformat(at).astimezone().timestamp()
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--at {at[:40]}: a time such as 2026-11-25T22:30 is expected") from error


def _messages(texts: Sequence[str], wall_s: float) -> Iterator[RecordedMessage]:
    at_s = 0.0
    for text in texts:
        rest = text
        if text.startswith("@"):
            later, _, rest = text[1:].partition(":")
            try:
                at_s += max(float(later), 0.0)
            except ValueError as error:
                raise UsageError(f"'{text[:60]}': @SECONDS:TOPIC=PAYLOAD is expected") from error
        topic, equals, payload = rest.partition("=")
        if not topic or not equals or not at_s <= 366 * 86_400:
            raise UsageError(f"'{text[:60]}': TOPIC=PAYLOAD is expected")
        body = payload.encode("utf-8", "surrogateescape")
        try:
            yield RecordedMessage(at_s=at_s, wall_s=wall_s + at_s, topic=topic, text=body.decode("utf-8"))
        except UnicodeDecodeError:
            yield RecordedMessage(at_s=at_s, wall_s=wall_s + at_s, topic=topic, hex=body.hex())
        at_s += _MESSAGE_GAP_S


@click.command()
@click.argument("log", type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="LOG")
@files_argument
@click.option(
    "--for",
    "for_s",
    type=click.FloatRange(0, 7 * 86_400),
    default=0.0,
    show_default=True,
    help="Seconds to go on after the last message.",
)
@model_option
@answers_option
@json_option
@reporting_errors
def replay(
    log: Path,
    files: Sequence[Path],
    for_s: float,
    model: str | None,
    answers: Path | None,
    as_json: bool,
) -> None:
    """Run the rules in FILE... over LOG, which edgeslm record wrote, and show every firing. Nothing is published.

    The clock is the log's and an answer comes in the moment of its question, so that the same log, rules and model give
    the same output.
    """
    from edgeslm.agent.rules.replay import read_log  # noqa: PLC0415
    from edgeslm.agent.rules.replay import replay as replay_rules  # noqa: PLC0415

    rules = load_files(files)
    fired = 0
    for trace in replay_rules(rules, read_log(log), choose_answers(model, answers), until_s=for_s):
        fired += 1
        show_trace(trace, as_json=as_json, timeless=True)
    click.echo(f"{fired} firings", err=True)
