"""What the commands of rollouts share: the controller in this process, following a rollout, showing one."""

from __future__ import annotations

import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeslm.cli.fleet_common import PARTLY, Fleet, ago, note, print_table
from edgeslm.cli.fleet_release_common import keys_of, open_repository
from edgeslm.cli.output import print_json, printable, stopped_by_signals
from edgeslm.clock import utc_now
from edgeslm.schema.rollout import FINISHED, MemberStatus, RolloutView, WaveView

if TYPE_CHECKING:
    from edgeslm.fleet.rollout.controller import Controller

_POLL_S = 0.5
_CONNECT_S = 10.0
_SHOWN: tuple[MemberStatus, ...] = (
    "passed", "unproven", "asked", "waiting", "failed", "silent", "stuck", "returning", "returned", "skipped",
    "superseded",
)  # fmt: skip
_COLOURS = {"passed": "green", "failed": "red", "silent": "red", "stuck": "red", "returned": "yellow"}


# --- the controller -----------------------------------------------------------------------------------------


@contextmanager
def running_controller(fleet: Fleet, keys_dir: Path | None) -> Iterator[Controller]:
    """The controller of rollouts, working inside; where another one works it stands by.

    Raises:
        ReleaseRepositoryError: the fleet has no releases.
        SigningKeyError: the key that signs assignments cannot be opened.
        LinkError: the link cannot be set up.
    """
    from edgeslm.fleet.release_setup import assignment_signer  # noqa: PLC0415
    from edgeslm.fleet.rollout.assigner import Assigner  # noqa: PLC0415
    from edgeslm.fleet.rollout.controller import Controller  # noqa: PLC0415
    from edgeslm.link.mqtt import MqttLink  # noqa: PLC0415
    from edgeslm.power.boards import load_boards  # noqa: PLC0415

    directory = fleet.directory
    open_repository(fleet)
    signer = assignment_signer(keys_of(fleet, keys_dir))
    assigner = Assigner(directory.name, directory.releases, [signer], load_boards())
    link = MqttLink(directory.operator_config(), f"edgeslm-rollouts-{secrets.token_hex(6)}")
    with Controller(fleet.store, directory.name, link, assigner) as controller:
        yield controller


def carry_out(
    fleet: Fleet,
    keys_dir: Path | None,
    rollout_id: int,
    *,
    as_json: bool,
    stop: threading.Event | None = None,
) -> None:
    """Carry a rollout out in the foreground, and end with the exit code for how it went.

    Ctrl-C leaves it as it is, for ``fleet serve`` or ``fleet rollout resume`` to go on with.

    Args:
        stop: set by signals, where these are caught already.
    """
    with ExitStack() as stack:
        if stop is None:
            stop = stack.enter_context(stopped_by_signals())
        controller = stack.enter_context(running_controller(fleet, keys_dir))
        if not stop.is_set() and not controller.wait_connected(_CONNECT_S):
            note(f"the broker is waited for: {controller.reason}")
        follow(fleet, rollout_id, as_json=as_json, stop=stop)


def follow(fleet: Fleet, rollout_id: int, *, as_json: bool, stop: threading.Event | None = None) -> None:
    """Show how a rollout goes until it ends or waits for the operator; then exit with the code for that.

    Args:
        stop: as for :func:`carry_out`.

    Raises:
        RolloutError: there is no such rollout.
    """
    with ExitStack() as stack:
        if stop is None:
            stop = stack.enter_context(stopped_by_signals())
        show = shown_live(stack) if sys.stderr.isatty() else _as_lines(fleet, rollout_id)
        view = _until_it_rests(fleet, rollout_id, stop, show)
    if as_json:
        print_json(detail(fleet, rollout_id))
    if view.phase in FINISHED or view.phase in {"paused", "waiting"}:
        click.echo(closing_words(view), err=True)
    else:
        click.echo(
            f"rollout {view.id} goes on where edgeslm fleet serve runs, or with: "
            f"edgeslm fleet rollout resume {view.id}",
            err=True,
        )
    code = exit_code(view)
    if code:
        sys.exit(code)


def exit_code(view: RolloutView) -> int:
    """0 done or waiting for approval, 3 part of the devices failed, 1 anything else that is no success."""
    if view.phase in {"completed", "waiting"}:
        return PARTLY if view.failed else 0
    if view.phase == "paused":
        return PARTLY if view.passed else 1
    return 1


def detail(fleet: Fleet, rollout_id: int) -> RolloutView:
    """All about one rollout.

    Raises:
        RolloutError: there is none.
    """
    from edgeslm.fleet.quarantine import quarantined  # noqa: PLC0415
    from edgeslm.fleet.rollout.views import show  # noqa: PLC0415

    with fleet.store.read() as session:
        return show(session, rollout_id, quarantined(session))


def _until_it_rests(
    fleet: Fleet, rollout_id: int, stop: threading.Event, show: Callable[[RolloutView], None]
) -> RolloutView:
    from edgeslm.fleet.rollout.views import held_up_by, summarize  # noqa: PLC0415

    told: list[str] = []
    while True:
        held_up = []
        with fleet.store.read() as session:
            view = summarize(session, rollout_id)
            if _asks_nobody(view):
                held_up = [waiting_words(summarize(session, one)) for one in held_up_by(session, rollout_id)]
        show(view)
        if held_up and held_up != told:
            told = held_up
            note(printable("; ".join(held_up)))
        if view.phase in FINISHED or view.phase in {"paused", "waiting"}:
            return view
        if stop.wait(_POLL_S):
            return view


def _asks_nobody(view: RolloutView) -> bool:
    """Whether a rollout goes on, and nobody of its present wave has been asked."""
    present = view.waves[view.wave - 1].counts
    return view.phase == "running" and present.get("waiting", 0) > 0 and not present.get("asked", 0)


# --- progress, on stderr ------------------------------------------------------------------------------------


def shown_live(stack: ExitStack) -> Callable[[RolloutView], None]:
    """Shows a rollout on the terminal for as long as `stack` is open."""
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    live = stack.enter_context(Live(console=Console(stderr=True), refresh_per_second=4))

    def show(view: RolloutView) -> None:
        table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
        table.title = Text(printable(headline(view)))
        for column in ("WAVE", "DEVICES", ""):
            table.add_column(column)
        for wave in view.waves:
            cells = Text(" ").join(
                Text(f"{wave.counts[status]} {status}", style=_COLOURS.get(status, ""))
                for status in _SHOWN
                if wave.counts.get(status)
            )
            mark = ">" if wave.number == view.wave and view.phase not in FINISHED else " "
            table.add_row(f"{mark} {wave.number} ({wave.text})", str(wave.devices), cells)
        live.update(table, refresh=True)

    return show


def _as_lines(fleet: Fleet, rollout_id: int) -> Callable[[RolloutView], None]:
    from edgeslm.fleet.rollout.views import member_lines  # noqa: PLC0415

    told: dict[str, str] = {}
    phase: list[str] = []

    def show(view: RolloutView) -> None:
        with fleet.store.read() as session:
            lines = member_lines(session, rollout_id)
        for device, (status, text) in lines.items():
            # Those that were never asked go together with the whole; of the others each is told.
            is_left_out = status == "skipped" and view.phase in {"returning", "aborted"}
            if told.get(device, "waiting") != status and not is_left_out:
                click.echo(printable(f"{device}: {status}{f': {text}' if text else ''}"), err=True)
            told[device] = status
        now = headline(view)
        if phase != [now]:
            phase[:] = [now]
            click.echo(printable(now), err=True)

    return show


# --- words --------------------------------------------------------------------------------------------------


def headline(view: RolloutView) -> str:
    """One line for the whole."""
    where = (
        f"wave {view.wave} of {len(view.waves)}" if view.phase not in FINISHED else f"{view.devices} devices"
    )
    reason = f": {view.reason}" if view.reason else ""
    return f"rollout {view.id} {view.release}: {view.phase}, {where}{reason}"


def waiting_words(other: RolloutView) -> str:
    """What a newer rollout waits for, and what the operator can do about it."""
    words = f"devices wait for rollout {other.id} of {other.release}, which is {other.phase}"
    return words + (f". Next: {other.next}" if other.next else "")


def closing_words(view: RolloutView) -> str:
    """What became of it, and what the operator can do."""
    parts = [f"{view.passed} of {view.devices} devices passed"]
    if view.failed:
        parts.append(f"{view.failed} failed")
    text = f"rollout {view.id} is {view.phase}: {', '.join(parts)}"
    if view.reason:
        text += f". {view.reason}"
    return printable(text + (f". Next: {view.next}" if view.next else ""))


def counts_text(wave: WaveView) -> str:
    """Counts by status, such as ``3 passed, 1 failed``."""
    return ", ".join(f"{wave.counts[status]} {status}" for status in _SHOWN if wave.counts.get(status))


def print_rollout(view: RolloutView, *, every: bool) -> None:
    """One rollout on stdout.

    Args:
        every: all its devices, not only those of which there is something to say.
    """
    click.echo(printable(headline(view)))
    if view.next:
        click.echo(f"next: {view.next}")
    if view.plan.note:
        click.echo(f"note: {printable(view.plan.note)}")
    now = utc_now()
    click.echo(f"begun {ago(view.created_at, now)} by {printable(view.created_by)}")
    click.echo("")
    print_table(
        ["WAVE", "WHO", "DEVICES", "STATE"],
        [[str(one.number), one.text, str(one.devices), counts_text(one)] for one in view.waves],
        empty="no waves",
    )
    if view.evidence:
        click.echo("")
        print_table(
            ["BOARD", "CRITERION", "GATES", "WORSE BY", "BETWEEN", "LIMIT", "SAYS"],
            [
                [
                    one.board or "all", one.criterion, str(one.devices), f"{one.change:+.1%}",
                    f"{one.low:+.1%} and {one.high:+.1%}", f"{one.limit:.0%}", one.verdict,
                ]
                for one in view.evidence
            ],
            empty="",
        )  # fmt: skip
    told = [one for one in view.members if every or _has_news(one.status, one.waits_for)]
    if told:
        click.echo("")
        print_table(
            ["DEVICE", "BOARD", "WAVE", "STATE", "RAN", "WHY"],
            [
                [
                    one.device, one.board, f"{one.wave}{' spare' if one.spare else ''}",
                    one.status + (", not believed" if one.quarantined else ""), one.base,
                    _why(one.cause, one.detail, one.waits_for),
                ]
                for one in told
            ],
            empty="",
        )  # fmt: skip
    if len(told) < len(view.members):
        note(f"{len(view.members) - len(told)} devices more, with nothing to say of; --all shows them")


def _has_news(status: MemberStatus, waits_for: str | None) -> bool:
    return status not in {"passed", "waiting"} or (waits_for or "").startswith("rollout")


def _why(cause: str | None, detail_: str, waits_for: str | None) -> str | None:
    if waits_for is not None:
        return f"waits for {waits_for}"
    return ": ".join(part for part in (cause, detail_) if part) or None


def summary_row(view: RolloutView) -> list[str | None]:
    """One line of the list of rollouts."""
    now = utc_now()
    return [
        str(view.id), view.release, view.phase, f"{view.wave}/{len(view.waves)}", str(view.devices),
        str(view.passed), str(view.failed), ago(view.created_at, now), view.reason or None,
    ]  # fmt: skip


SUMMARY_COLUMNS = ["ID", "RELEASE", "STATE", "WAVE", "DEVICES", "PASSED", "FAILED", "BEGUN", "WHY"]


def print_summaries(views: list[RolloutView]) -> None:
    """Rollouts in short."""
    print_table(SUMMARY_COLUMNS, [summary_row(one) for one in views], empty="no rollout yet")


def as_record(view: RolloutView) -> dict[str, Any]:
    """A rollout as JSON prints it."""
    return view.model_dump(mode="json", exclude_none=True)
