"""``edgeslm fleet ask``: one prompt to many devices, and how far their answers agree."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from edgeslm.cli.fleet_common import (
    PARTLY,
    Fleet,
    fleet_options,
    naming_the_extra,
    open_fleet,
    print_table,
)
from edgeslm.cli.fleet_select import Selection, select_arguments
from edgeslm.cli.output import print_json, printable, reporting_errors, stopped_by_signals
from edgeslm.cli.requests import format_energy, outcome_text, parse_options, read_asked, request_options
from edgeslm.codec import describe
from edgeslm.errors import UsageError
from edgeslm.schema.message import Output, PromptRequest, Task

if TYPE_CHECKING:
    from edgeslm.fleet.asking import Agreement, Answer

_COLUMNS = ("DEVICE", "ANSWER", "TTFT", "TOKENS/S", "ENERGY", "POWER", "METER")
_SHOWN_NAMES = 10
_REASON_CHARS = 300


@click.command()
@select_arguments
@request_options
@click.option("--model", help="Model to ask, where devices serve several.")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), default="normal", show_default=True)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 86_400),
    default=60.0,
    show_default=True,
    help="Seconds to wait for the answers to one prompt; what is open then is cancelled.",
)
@click.option("--agreement", "by_answer", is_flag=True, help="Show each different answer with its devices.")
@fleet_options
@reporting_errors
def ask(
    text: str | None,
    as_json: bool,
    batch: bool,
    selection: Selection,
    model: str | None,
    priority: str,
    timeout_s: float,
    by_answer: bool,
    fleet_dir: Path | None,
    fleet_name: str | None,
    task: Task | None,
    tensor_file: Path | None,
    messages: str | None,
    **flags: Any,
) -> None:
    """Ask devices the prompt TEXT, all at once, and show answers and receipts side by side.

    Without devices, --group or --where the whole fleet is asked. ``-`` as TEXT reads standard input; with --batch each
    line of it is a prompt of its own. Devices that are off are named and not waited for. Exit code 3 if some did not
    answer, 1 if none did.
    """
    options = parse_options({**flags, "priority": priority})
    fleet = open_fleet(fleet_dir, fleet_name)
    with naming_the_extra():
        from edgeslm.fleet.asker import Asker, Wishes  # noqa: PLC0415
        from edgeslm.fleet.asking import agreement  # noqa: PLC0415

    if text is not None and (tensor_file is not None or messages is not None):  # so all names are devices
        selection, text = replace(selection, devices=(*selection.devices, text)), None
    _refuse_a_name(fleet, text)
    names = [device.name for device in selection.of(fleet)]
    asked: Iterable[dict[str, Any]] = read_asked(
        text, batch=batch, together=False, task=task, tensor_file=tensor_file, messages=messages
    )
    if not batch:  # lines of a batch are taken as they come
        asked = list(asked)
    missing = answered = 0
    with Asker(fleet.directory.operator_config(), fleet.directory.name, names) as asker:
        for number, fields in enumerate(asked, start=1):
            try:
                request = PromptRequest(**fields, id="template", model=model, options=options)
            except ValidationError as error:
                raise UsageError(describe(error)) from error
            prompt = _shown(request)
            teller = _Teller(number, prompt, as_json=as_json, total=len(names))
            # Only here: whoever waits for the next line of the input has to end at once.
            with stopped_by_signals() as stop:
                answers = asker.ask(request, Wishes(timeout_s=timeout_s, on_answer=teller, stop=stop))
            found = agreement(answers)
            _show(prompt, answers, found, as_json=as_json, batch=batch, by_answer=by_answer)
            answered += found.answered
            missing += found.asked - found.answered
            if stop.by_signal:  # as Ctrl-C ends it between two prompts; the event is set a moment later
                raise click.Abort
    if missing:
        sys.exit(PARTLY if answered else 1)


def _shown(request: PromptRequest) -> str:
    """What is asked, for people: the words that are asked last, or the names of arrays."""
    if request.messages is not None:
        return request.messages[-1].content
    arrays = request.tensor or next((one for one in request.inputs or () if isinstance(one, dict)), {})
    return request.prompt or f"arrays: {', '.join(arrays)}"


def _refuse_a_name(fleet: Fleet, text: str | None) -> None:
    """Do not ask a fleet the name of one of its devices: somebody forgot the prompt.

    Raises:
        UsageError: `text` is such a name.
    """
    from edgeslm.fleet.registry import device_row  # noqa: PLC0415

    if text is None:
        return
    with fleet.store.read() as session:
        is_device = device_row(session, text) is not None
    if is_device:
        raise UsageError(
            f"'{text}' is a device: what should be asked?",
            hint="The prompt comes last; '-' reads it from standard input",
        )


class _Teller:
    """Tells what becomes of a prompt while it does: as JSON on stdout, else on stderr what did not work."""

    def __init__(self, number: int, prompt: str, *, as_json: bool, total: int) -> None:
        self._number = number
        self._prompt = prompt
        self._as_json = as_json
        self._total = total
        self._done = 0

    def __call__(self, answer: Answer) -> None:
        """One device has answered, or will not."""
        self._done += 1
        if self._as_json:
            print_json({"number": self._number, "prompt": self._prompt, **record(answer)})
            sys.stdout.flush()
        elif not answer.is_answered:
            click.echo(f"{answer.device}: {printable(words(answer))}", err=True)
        elif sys.stderr.isatty():
            click.echo(f"{answer.device}: answered, {self._done} of {self._total}", err=True)


def record(answer: Answer) -> dict[str, Any]:
    """An answer as JSON; the answer as an object is called ``json``, as on the wire."""
    found = answer.model_dump(mode="json", exclude_none=True)
    if "data" in found:
        found["json"] = found.pop("data")
    return {**found, "ok": answer.is_answered}


def words(answer: Answer) -> str:
    """Why there is no answer."""
    if answer.error is not None:
        retry = answer.error.retry_after_s
        again = f" (again in {retry:g} s)" if retry is not None else ""
        return f"{answer.error.code}: {answer.error.message[:_REASON_CHARS]}{again}"
    if answer.state == "absent":
        return f"{answer.presence or 'never seen at the broker'}, not asked"
    if answer.presence != "online":
        return f"{answer.presence or 'gone'} while it was asked, no answer"
    return "no answer in time, cancelled"


def _show(
    prompt: str,
    answers: Sequence[Answer],
    found: Agreement,
    *,
    as_json: bool,
    batch: bool,
    by_answer: bool,
) -> None:
    """Show what came of one prompt; JSON has told of each device already."""
    if as_json:
        if by_answer:
            print_json({"prompt": prompt, "agreement": found.model_dump(mode="json")})
        return
    if batch:
        click.echo(f"> {printable(prompt)}")
    print_table(_COLUMNS, [cells(answer) for answer in answers], empty="no device was asked")
    click.echo()
    click.echo(f"{found}{_energy(answers)}")
    if by_answer:
        for group in found.groups:
            names = ", ".join(group.devices[:_SHOWN_NAMES])
            rest = len(group.devices) - _SHOWN_NAMES
            more = f" and {rest} more" if rest > 0 else ""
            click.echo(f"  {len(group.devices)}  {printable(_one_line(group.text))}")
            click.echo(f"     {names}{more}")
    if batch:
        click.echo()


def cells(answer: Answer) -> list[str | None]:
    """An answer as a row of the table."""
    receipt = answer.receipt
    if not answer.is_answered or receipt is None:
        return [answer.device, f"({words(answer)})", *[None] * 5]
    text = _one_line(_said(answer))
    if answer.finish_reason not in {"stop", "schema", None}:
        text = f"{text} [ended early: {answer.finish_reason}]".lstrip()
    return [
        answer.device,
        text,
        None if receipt.ttft_ms is None else f"{receipt.ttft_ms:.1f} ms",
        None if receipt.decode_tps is None else f"{receipt.decode_tps:,.0f}",
        format_energy(receipt.energy_j),
        f"{receipt.power_w:.2f} W",
        receipt.meter,
    ]


def _said(answer: Answer) -> str:
    if answer.label is not None and answer.scores is not None:
        return f"{answer.label} ({answer.scores[answer.label]:.4f})"
    if answer.text is not None or answer.outcome is None:
        return answer.text or ""
    if answer.outputs is not None:
        return json.dumps(answer.outcome, separators=(",", ":"))
    return outcome_text(Output(embedding=answer.embedding, tensor=answer.tensor))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _energy(answers: Sequence[Answer]) -> str:
    """What the answers took together; what is measured and what is estimated is not the same."""
    receipts = [answer.receipt for answer in answers if answer.receipt is not None]
    if not receipts:
        return ""
    classes = sorted({receipt.meter for receipt in receipts})
    return f"; {format_energy(sum(one.energy_j for one in receipts))} together ({', '.join(classes)})"
