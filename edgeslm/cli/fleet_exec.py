"""``edgeslm fleet exec``: ask devices to do something once, and see what comes of it."""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from edgeslm.cli.fleet_common import (
    PARTLY,
    Fleet,
    confirm,
    dry_run_option,
    fleet_options,
    naming_the_extra,
    note,
    open_fleet,
    print_table,
    yes_option,
)
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
from edgeslm.errors import FleetError, UsageError

if TYPE_CHECKING:
    from edgeslm.fleet.operations import Outcome
    from edgeslm.schema.operation_results import Bundle, ServedBench

OPERATIONS = ("self-test", "bench", "diagnostics", "restart", "abort", "retry", "update-agent")
_SKEW_S = 30.0
"""What a device's clock may be ahead of ours."""
_DIRECTORY = click.Path(path_type=Path, file_okay=False)

out_option = click.option(
    "--out",
    "out_dir",
    type=_DIRECTORY,
    default=Path(),
    show_default=True,
    help="Where the archives go, one for each device.",
)
_waiting_options = (
    click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(1, 86_400),
        default=120.0,
        show_default=True,
        help="Seconds to wait; what is still open then is taken back.",
    ),
    click.option(
        "--keep",
        is_flag=True,
        help="Leave what is still open to the devices: those that are off do it later.",
    ),
    click.option("--detach", is_flag=True, help="Do not wait at all; the same as --keep otherwise."),
    click.option(
        "--expires",
        "life",
        type=duration,
        default="1d",
        show_default=True,
        help="With --keep or --detach: how long a device that is off may take it up.",
    ),
)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which devices, how long to wait, and how to show what comes."""
    for option in reversed((select_arguments, *_waiting_options, fleet_options, json_option)):
        command = option(command)
    return command


@click.group("exec", cls=CommandGroup)
def exec_() -> None:
    """Ask devices to do something once.

    A device that is off finds the command when it comes back, if --keep or --detach is given. Each does it once,
    whatever happens in between; `collect` asks for what came of it later. Exit code 3 where some did not do it.
    """


@exec_.command("self-test")
@_options
@reporting_errors
def self_test(**options: Any) -> None:
    """Let devices test themselves: models, answers, meter, card, memory, clock, certificate, broker."""
    _ask("self-test", {}, **options)


@exec_.command()
@click.option("--model", help="Name of a served model; default is the first.")
@click.option(
    "--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Of all golden prompts."
)
@_options
@reporting_errors
def bench(model: str | None, rounds: int, **options: Any) -> None:
    """Measure what a served model takes, while devices go on with their work: prompts of users go first."""
    _ask("bench", {"rounds": rounds} | ({} if model is None else {"model": model}), **options)


@exec_.command()
@out_option
@_options
@reporting_errors
def diagnostics(out_dir: Path, **options: Any) -> None:
    """Fetch versions, settings without secrets, the latest log, state and figures, as DEVICE-ID.tar.gz."""
    _ask("diagnostics", {}, out_dir=out_dir, **options)


@exec_.command()
@yes_option
@dry_run_option
@_options
@reporting_errors
def restart(yes: bool, dry_run: bool, **options: Any) -> None:
    """Let agents end in order and begin anew. Prompts that wait are answered afterwards."""
    _ask("restart", {}, plan="begins its agent anew", yes=yes, dry_run=dry_run, **options)


@exec_.command()
@click.option("--model", required=True, help="Name of the model.")
@yes_option
@dry_run_option
@_options
@reporting_errors
def abort(model: str, yes: bool, dry_run: bool, **options: Any) -> None:
    """Stop the update of a model; its release is not tried again until it is told to."""
    _ask("abort", {"name": model}, plan=f"stops its update of {model}", yes=yes, dry_run=dry_run, **options)


@exec_.command()
@click.option("--model", required=True, help="Name of the model.")
@yes_option
@dry_run_option
@_options
@reporting_errors
def retry(model: str, yes: bool, dry_run: bool, **options: Any) -> None:
    """Forget that a release failed on devices, so that what is assigned is tried again."""
    _ask("retry", {"name": model}, plan=f"tries {model} again", yes=yes, dry_run=dry_run, **options)


@exec_.command("update-agent")
@click.option(
    "--version", required=True, help="Version of edgeslm, as released with fleet release add-agent."
)
@click.option("--allow-downgrade", is_flag=True, help="An older version than the running one is meant.")
@yes_option
@dry_run_option
@_options
@reporting_errors
def update_agent(version: str, allow_downgrade: bool, yes: bool, dry_run: bool, **options: Any) -> None:
    """Let devices take another version of edgeslm itself, and go back by themselves where it does not hold.

    Each takes the archive that is for boards like it. What is not over when the waiting ends goes on, as with --keep.
    """
    fleet = open_fleet(options["fleet_dir"], options["fleet_name"])
    from edgeslm.cli.fleet_release_agent import agents_of  # noqa: PLC0415
    from edgeslm.cli.fleet_release_common import open_repository  # noqa: PLC0415

    known = [one.info for one in agents_of(open_repository(fleet)).published()]
    sha256s = [info.sha256 for info in known if info.version == version]
    if not sha256s:
        there = ", ".join(dict.fromkeys(info.version for info in known))
        raise UsageError(
            f"edgeslm {version[:40]} is not published",
            hint=f"Published are: {there}" if there else "Release it with: edgeslm fleet release add-agent",
        )
    args = {"version": version, "sha256s": sha256s, "allow_downgrade": allow_downgrade}
    _ask(
        "update-agent", args, plan=f"goes to edgeslm {version}", yes=yes, dry_run=dry_run,
        **{**options, "keep": True},
    )  # fmt: skip


@exec_.command()
@click.argument("op", type=click.Choice(OPERATIONS))
@click.argument("command_id", metavar="ID")
@click.argument("devices", nargs=-1, metavar="[DEVICE]...")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(1, 86_400),
    default=30.0,
    show_default=True,
    help="Seconds.",
)
@out_option
@fleet_options
@json_option
@reporting_errors
def collect(
    op: str,
    command_id: str,
    devices: tuple[str, ...],
    timeout_s: float,
    out_dir: Path,
    fleet_dir: Path | None,
    fleet_name: str | None,
    as_json: bool,
) -> None:
    """Ask for what came of a request that was kept; all its devices, or those named."""
    fleet = open_fleet(fleet_dir, fleet_name)
    with naming_the_extra():
        from edgeslm.fleet import operations  # noqa: PLC0415

    with stopped_by_signals() as stop:
        wishes = operations.Wishes(timeout_s=timeout_s, keep=True, on_news=_Teller(), stop=stop)
        outcomes = operations.collect(
            fleet.directory.operator_config(), fleet.directory.name, op, command_id, wishes, devices
        )
    if not outcomes:
        raise FleetError(
            f"the broker keeps no {op} '{command_id}': it was answered to the last, taken back, or is over"
        )
    _finish(fleet, outcomes, out_dir, as_json=as_json)


def _ask(
    op: str,
    args: Mapping[str, Any],
    *,
    selection: Selection,
    timeout_s: float,
    keep: bool,
    detach: bool,
    life: timedelta,
    fleet_dir: Path | None,
    fleet_name: str | None,
    as_json: bool,
    plan: str | None = None,
    yes: bool = False,
    dry_run: bool = False,
    out_dir: Path | None = None,
) -> None:
    from edgeslm.schema.operation import MAX_LIFE  # noqa: PLC0415

    if life > MAX_LIFE:
        raise UsageError(f"a command waits for {MAX_LIFE.days} days at most")
    selection.need()
    if detach and out_dir is not None:
        note("the archives come with: edgeslm fleet exec collect diagnostics ID")
    fleet = open_fleet(fleet_dir, fleet_name)
    with naming_the_extra():
        from edgeslm.fleet import operations  # noqa: PLC0415

    names = [device.name for device in selection.of(fleet)]
    if plan is not None and not confirm([f"{name} {plan}" for name in names], yes=yes, dry_run=dry_run):
        if as_json:
            print_json([])
        return
    command_id = operations.new_id()
    with fleet.store.write() as session:
        operations.note_request(session, op, command_id, names, actor=fleet.actor, now=utc_now())
    click.echo(f"{op} {command_id} goes to {len(names)} device{'s' if len(names) != 1 else ''}", err=True)
    with stopped_by_signals() as stop:
        wishes = operations.Wishes(
            timeout_s=0.0 if detach else timeout_s,
            # What is to be taken back at the end may not be begun later by a device that was off.
            life=life if keep or detach else timedelta(seconds=timeout_s + _SKEW_S),
            keep=keep or detach,
            on_news=_Teller(),
            stop=stop,
        )
        outcomes = operations.request(
            fleet.directory.operator_config(),
            fleet.directory.name,
            op,
            dict.fromkeys(names, args),
            wishes,
            command_id=command_id,
        )
    if any(outcome.open and outcome.kept for outcome in outcomes):
        note(f"what is open can be asked for with: edgeslm fleet exec collect {op} {command_id}")
    _finish(fleet, outcomes, out_dir, as_json=as_json, detached=detach)


# --- what comes -----------------------------------------------------------------------------------------------


class _Teller:
    """Tells on stderr what devices say, as it comes."""

    def __init__(self) -> None:
        """Nothing was said."""
        self._before: dict[str, Outcome] = {}

    def __call__(self, outcome: Outcome) -> None:
        """One thing that a device said."""
        before = self._before.get(outcome.device)
        self._before[outcome.device] = outcome
        if outcome.presence != (None if before is None else before.presence):
            if outcome.presence != "online":
                click.echo(f"{outcome.device}: {outcome.presence}", err=True)
            return
        share = f" {outcome.share:.0%}" if outcome.share is not None else ""
        click.echo(f"{outcome.device}: {outcome.state}{share} {printable(outcome.text)}".rstrip(), err=True)


def _finish(
    fleet: Fleet,
    outcomes: Sequence[Outcome],
    out_dir: Path | None,
    *,
    as_json: bool,
    detached: bool = False,
) -> None:
    """Write down and show what came, and end with the exit code for it."""
    from edgeslm.fleet import operations  # noqa: PLC0415

    with fleet.store.write() as session:
        operations.note_outcomes(session, outcomes, utc_now())
    shown = [_shown(outcome, out_dir) for outcome in outcomes]
    if as_json:
        print_json([row for row, _ in shown])
    else:
        print_table(
            ["DEVICE", "STATE", "WHAT"],
            [line for row, lines in shown for line in _table(row, lines)],
            empty="no device was asked",
        )
    if detached:
        return
    failed = sum(not row["ok"] for row, _ in shown)
    if failed:
        sys.exit(PARTLY if failed < len(shown) else 1)


def _table(row: Mapping[str, Any], lines: Sequence[tuple[str, str]]) -> list[list[str]]:
    first = [row["device"], row["state"], row["text"]]
    return [first, *([row["device"], state, text] for state, text in lines)]


def _shown(outcome: Outcome, out_dir: Path | None) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """An outcome as JSON, and the lines below it in a table."""
    row = outcome.model_dump(mode="json", exclude_none=True)
    row["ok"], row["text"] = outcome.is_done, printable(_words(outcome))
    lines: list[tuple[str, str]] = []
    if outcome.is_done:
        try:
            lines = _result(outcome, row, out_dir)
        except (ValidationError, ValueError, FleetError) as error:
            row["ok"], row["text"] = False, printable(f"what it answered is of no use: {str(error)[:200]}")
            row.pop("result", None)
    return row, lines


def _words(outcome: Outcome) -> str:
    if outcome.state == "pending":
        where = outcome.presence if outcome.presence is not None else "never seen at the broker"
        return f"{where}; the command waits for it" if outcome.kept else f"{where}; taken back"
    if outcome.open:
        return (
            f"{outcome.text}; it goes on"
            if outcome.kept
            else f"{outcome.text}; taken back, not confirmed yet"
        )
    return outcome.text


def _result(outcome: Outcome, row: dict[str, Any], out_dir: Path | None) -> list[tuple[str, str]]:
    """The lines of what came of an operation that was done.

    Raises:
        ValueError: it is not what that operation gives.
        FleetError: an archive cannot be written.
    """
    from edgeslm.schema.operation_results import Bundle, SelfTestResult, ServedBench  # noqa: PLC0415

    result = outcome.result or {}
    if outcome.op == "self-test":
        test = SelfTestResult.model_validate(result)
        row["ok"] = not test.failed
        return [(check.state, f"{check.name}: {check.text}") for check in test.checks]
    if outcome.op == "bench":
        return [("", line) for line in _bench_lines(ServedBench.model_validate(result))]
    if outcome.op == "diagnostics":
        path = _write(outcome, Bundle.model_validate(result), out_dir or Path())
        row["result"] = {name: value for name, value in result.items() if name != "data"} | {
            "path": str(path)
        }
        return [("", str(path))]
    return [("", f"{name}: {value}") for name, value in result.items()]


def _bench_lines(result: ServedBench) -> list[str]:
    rate = result.tokens_per_s
    lines = [f"{rate.median:.1f} tokens/s ({rate.least:.1f} to {rate.most:.1f})"]
    if result.ttft_ms is not None:
        lines.append(f"{result.ttft_ms.median:.1f} ms to the first token")
    if result.j_per_token is not None and result.net_j_per_token is not None:
        lines.append(
            f"{result.j_per_token.median * 1e3:.2f} mJ a token, {result.net_j_per_token.median * 1e3:.2f} above idle "
            f"({result.meter})"
        )
    lines.append(
        f"{result.right} of {result.prompts} golden prompts right, {result.disturbed} given up for users"
    )
    if result.throttled:
        lines.append("the firmware slowed the board down")
    return lines


def _write(outcome: Outcome, bundle: Bundle, out_dir: Path) -> Path:
    """Write the archive of a device; nothing in it is looked at.

    Raises:
        ValueError: it is not whole.
        FleetError: it cannot be written.
    """
    data = base64.b64decode(bundle.data, validate=True)
    if len(data) != bundle.size_bytes or hashlib.sha256(data).hexdigest() != bundle.sha256:
        raise ValueError("the archive is not whole")
    path = out_dir / f"{outcome.device}-{outcome.id.replace(':', '-')}.tar.gz"
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise FleetError(f"cannot write {path}: {error.strerror}", path=str(path)) from error
    return path
