"""What commands of ``edgeslm rules`` share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeslm.cli.output import printable
from edgeslm.errors import ConfigError, UsageError
from edgeslm.schema.message import PromptRequest, Result
from edgeslm.schema.rule_trace import FiringTrace

if TYPE_CHECKING:
    from edgeslm.agent.rules.compiled import RuleSet
    from edgeslm.cli.wiring_rules import Answer

DEFAULT_MODEL = "builtin:home-command"

files_argument = click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True), metavar="FILE..."
)
model_option = click.option(
    "--model", "model", default=None, help=f"Model that answers prompts; default: {DEFAULT_MODEL}."
)
answers_option = click.option(
    "--answers",
    "answers",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help='Recorded answers instead of a model, lines such as {"prompt": "...", "answer": {...}}.',
)

_COLOURS = {"acted": "green", "dry_run": "cyan", "refused": "red", "failed": "red"}


def load_files(files: Sequence[Path]) -> RuleSet:
    """The rules in files, in directories of them, and in packages (``*.slm``), read together as on a device.

    Raises:
        RuleFileError: something is wrong with one of them.
        PackageError: one is no package.
    """
    from edgeslm.agent.rules.brought import brought_files  # noqa: PLC0415
    from edgeslm.agent.rules.loading import load_rules  # noqa: PLC0415

    packages = [path for path in files if path.suffix == ".slm"]
    own = [path for path in files if path not in packages]
    if not packages:
        return load_rules(own)
    from edgeslm.models.package import read_rules  # noqa: PLC0415

    return load_rules(own, [file for path in packages for file in brought_files(*read_rules(path))])


def choose_answers(model: str | None, answers: Path | None) -> Answer:
    """Who answers: recorded answers, or a model that is loaded with the first prompt.

    Raises:
        UsageError: both are given.
        ConfigError: the recorded answers cannot be read.
    """
    from edgeslm.agent.intake import error_result  # noqa: PLC0415
    from edgeslm.agent.rules.replay import read_answers, recorded_result  # noqa: PLC0415
    from edgeslm.cli.wiring_rules import DEVICE, model_answers  # noqa: PLC0415

    if model is not None and answers is not None:
        raise UsageError("--model and --answers exclude each other")
    if answers is None:
        loaded: list[Answer] = []

        def by_model(request: PromptRequest, rule: str) -> Result:
            if not loaded:
                loaded.append(model_answers(model or DEFAULT_MODEL))
            return loaded[0](request, rule)

        return by_model
    recorded = read_answers(answers)

    def by_record(request: PromptRequest, rule: str) -> Result:
        del rule
        if request.prompt not in recorded:
            missing = ConfigError(f"no answer is recorded to '{request.prompt[:80]}'", path=str(answers))
            return error_result(request.id, DEVICE, missing)
        return recorded_result(request, recorded[request.prompt])

    return by_record


def show_trace(trace: FiringTrace, *, as_json: bool, timeless: bool = False) -> None:
    """One firing on stdout.

    Args:
        timeless: leave out what differs from run to run: receipt and durations.
    """
    if timeless:
        trace = trace.model_copy(update={"receipt": None, "took_ms": 0.0})
    if as_json:
        click.echo(trace.model_dump_json(by_alias=True, exclude_none=True))
        return
    outcome = click.style(f"{trace.outcome:8}", fg=_COLOURS.get(trace.outcome))
    took = "" if timeless else f"  {trace.took_ms:.1f} ms"
    click.echo(f"{trace.at}  {outcome}{trace.rule}  <- {printable(trace.cause)}{took}")
    if trace.detail:
        click.echo(f"    {printable(trace.detail)}")
    if trace.inputs:
        shown = ", ".join(f"{name} = {value}" for name, value in trace.inputs.items())
        click.echo(f"    inputs   {printable(shown)[:300]}")
    if trace.prompt is not None:
        click.echo(f"    prompt   {printable(trace.prompt)[:300]}")
    if trace.answer is not None:
        said = trace.answer if isinstance(trace.answer, str) else json.dumps(trace.answer, ensure_ascii=False)
        click.echo(f"    answer   {printable(said)[:300]}")
    for action in trace.actions:
        changed = f"  ({'; '.join(action.clamped)})" if action.clamped else ""
        text = f"{action.to}  {action.payload or ''}{changed}"
        click.echo(f"    {action.kind:8} {printable(text)[:300]}")
    if trace.receipt is not None:
        from edgeslm.cli.requests import receipt_line  # noqa: PLC0415

        click.echo(f"    receipt  {receipt_line(trace.receipt)}")
