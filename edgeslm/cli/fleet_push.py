"""``edgeslm fleet push``: a release goes through devices in waves, and back where it is no good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from pydantic import ValidationError

from edgeslm.cli.fleet_common import (
    Fleet,
    confirm,
    dry_run_option,
    fleet_options,
    note,
    open_fleet,
    yes_option,
)
from edgeslm.cli.fleet_push_rehearsal import parse_effects, rehearse_push
from edgeslm.cli.fleet_release_common import find_release, keys_option, open_repository
from edgeslm.cli.fleet_rollout_common import carry_out, detail
from edgeslm.cli.fleet_select import Selection, select_options
from edgeslm.cli.fleet_survey import survey
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors, stopped_by_signals
from edgeslm.cli.times import duration
from edgeslm.clock import utc_now
from edgeslm.codec import describe
from edgeslm.errors import UsageError
from edgeslm.schema.rollout import (
    DEFAULT_WAVES,
    LeftOutView,
    PlannedView,
    PreflightView,
    RolloutPlan,
    parse_waves,
    parse_window,
)

if TYPE_CHECKING:
    from edgeslm.fleet.rollout.preflight import Facts, Preflight
    from edgeslm.schema.release import ReleaseTarget

_SHOWN = 12
T = TypeVar("T")


def _read(option: str, parse: Callable[[str], T], text: str) -> T:
    """What an option says.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return parse(text)
    except ValidationError as error:
        raise UsageError(f"{option}: {describe(error)}") from error
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error


def _share(text: str) -> float:
    number = text.strip().removesuffix("%").strip()
    try:
        share = float(number) / 100
    except ValueError as error:
        raise ValueError(f"'{text[:40]}' is no percentage") from error
    if not text.strip().endswith("%") or not 0 <= share <= 1:
        raise ValueError(f"'{text[:40]}' is no percentage")
    return share


def _failures(text: str) -> float | int:
    """A number of devices, or a share."""
    return int(text) if text.strip().isdecimal() else _share(text)


def rollout_options(command: Any) -> Any:
    """Options that say how a release goes through devices; the command gets them as named."""
    for option in reversed(
        (
            click.option(
                "--waves",
                default=DEFAULT_WAVES,
                show_default=True,
                help="Parts separated by commas: '1 per board', '5' (devices more), '10%' (of all), 'group NAME'.",
            ),
            click.option(
                "--k",
                type=click.IntRange(1, 1000),
                default=1,
                show_default=True,
                help="Devices of each type of board that pass their gate before the next wave.",
            ),
            click.option("--approve", is_flag=True, help="Each wave after the first waits for your word."),
            click.option(
                "--deadline",
                type=duration,
                default="2h",
                show_default=True,
                help="A device that is not done after this long counts as failed.",
            ),
            click.option(
                "--success",
                default="90%",
                show_default=True,
                help="Of a wave, after which the next one begins without waiting for the rest.",
            ),
            click.option(
                "--max-failures",
                default="10%",
                show_default=True,
                help="Of a wave, or a number of devices: more, and the rollout stops.",
            ),
            click.option(
                "--spares",
                type=click.IntRange(0, 100),
                default=2,
                show_default=True,
                help="Devices of each type of board that a wave may take from later ones to decide.",
            ),
            click.option(
                "--window",
                help="Hours in which devices begin, such as '22:00-05:00' or '22:00-05:00 Europe/Berlin'.",
            ),
            click.option(
                "--on-failure",
                type=click.Choice(["return", "pause"]),
                default="return",
                show_default=True,
                help="Where the release is at fault: take it back everywhere, or wait for you.",
            ),
            click.option(
                "--require",
                type=click.Choice(["answers", "ttft", "decode", "energy", "memory"]),
                multiple=True,
                help="Has to be measured on one device at least; may be given again.",
            ),
            click.option("--downgrade", is_flag=True, help="Also where it is older than what runs."),
            click.option("--force", is_flag=True, help="Also where it failed on a device before."),
            click.option("--note", "remark", default="", help="Kept with the rollout."),
        )
    ):
        command = option(command)
    return command


@click.command()
@click.argument("release", metavar="NAME@VERSION")
@click.argument("devices", nargs=-1, metavar="[DEVICE]...")
@select_options
@rollout_options
@click.option("--detach", is_flag=True, help="Leave carrying it out to edgeslm fleet serve.")
@click.option(
    "--rehearse", is_flag=True, help="To simulated devices that are like the real ones, on this machine."
)
@click.option(
    "--suppose",
    multiple=True,
    metavar="EFFECT",
    help="What the release does to them, such as 'time=+10% answers=3%' or 'pi-3b: crashes=50%'.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of what they measure.")
@fleet_options
@keys_option
@yes_option
@dry_run_option
@json_option
@reporting_errors
def push(
    release: str,
    devices: tuple[str, ...],
    selection: Selection,
    detach: bool,
    rehearse: bool,
    suppose: tuple[str, ...],
    seed: int,
    fleet_dir: Path | None,
    fleet_name: str | None,
    keys_dir: Path | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Bring a published release to devices, wave by wave.

    Devices are named, or found by --group and --where; without any it is the whole fleet. A wave begins when the one
    before has passed; where the release is no good, devices go back to what they ran. Ctrl-C stops nothing but this
    command: edgeslm fleet serve goes on, or edgeslm fleet rollout resume.
    """
    plan = plan_of(how)
    fleet = open_fleet(fleet_dir, fleet_name)
    repository = open_repository(fleet)
    known = repository.releases()
    target = find_release(known, release)
    chosen = Selection(devices, selection.groups, selection.queries).of(fleet)
    effects = parse_effects(release, suppose)
    if effects and not rehearse:
        raise UsageError("nothing is supposed of real devices", hint="Leave --suppose out, or add --rehearse")
    facts = survey(fleet, chosen)
    checked = check(fleet, target, plan, facts, published={one.info.sha256 for one in known})
    view = preflight_view(checked)
    if rehearse and not dry_run:
        rehearse_push(fleet, keys_dir, checked, facts, effects, seed=seed, as_json=as_json)
        return
    if not confirm(plan_lines(view), yes=yes, dry_run=dry_run):
        if as_json:
            print_json(view)
        return
    from edgeslm.fleet.rollout.beginning import begin  # noqa: PLC0415

    with stopped_by_signals() as stop:
        with fleet.store.write() as session:
            rollout_id = begin(
                session, plan, target.info, checked.members(), actor=fleet.actor, now=utc_now()
            )
        if detach:
            _tell_detached(fleet, rollout_id, as_json=as_json)
            return
        if not as_json:
            click.echo(f"rollout {rollout_id}")
        carry_out(fleet, keys_dir, rollout_id, as_json=as_json, stop=stop)


def plan_of(how: dict[str, Any]) -> RolloutPlan:
    """The plan that the options of :func:`rollout_options` say.

    Raises:
        UsageError: they cannot be.
    """
    failures = _read("--max-failures", _failures, how["max_failures"])
    deadline: timedelta = how["deadline"]
    try:
        return RolloutPlan(
            waves=_read("--waves", parse_waves, how["waves"]),
            k=how["k"],
            approve=how["approve"],
            deadline_s=deadline.total_seconds(),
            success=_read("--success", _share, how["success"]),
            max_failures=failures if isinstance(failures, int) else None,
            max_failures_share=0.0 if isinstance(failures, int) else failures,
            spares=how["spares"],
            window=_read("--window", parse_window, how["window"]) if how["window"] else None,
            on_failure=how["on_failure"],
            require=how["require"],
            allow_downgrade=how["downgrade"],
            force=how["force"],
            note=how["remark"],
        )
    except ValidationError as error:
        raise UsageError(f"no rollout: {describe(error)}") from error


# --- what it would do ---------------------------------------------------------------------------------------


def check(
    fleet: Fleet,
    target: ReleaseTarget,
    plan: RolloutPlan,
    facts: Sequence[Facts],
    *,
    published: set[str],
) -> Preflight:
    """What bringing `target` to devices would do, by what is known of them.

    Raises:
        SelectionError: a wave names a group that there is not.
        RolloutError: no device can take it.
    """
    from edgeslm.fleet.quarantine import quarantined  # noqa: PLC0415
    from edgeslm.fleet.rollout.beginning import claimed_otherwise  # noqa: PLC0415
    from edgeslm.fleet.rollout.operate import list_pins  # noqa: PLC0415
    from edgeslm.fleet.rollout.preflight import preflight  # noqa: PLC0415
    from edgeslm.fleet.selection import select  # noqa: PLC0415

    with fleet.store.read() as session:
        groups = {
            wave.group: frozenset(one.name for one in select(session, groups=[wave.group]))
            for wave in plan.waves
            if wave.group is not None
        }
        return preflight(
            target,
            plan,
            facts,
            published=published,
            pinned={one.device: one.reason or "no reason given" for one in list_pins(session)},
            quarantined=set(quarantined(session)),
            groups=groups,
            claimed=claimed_otherwise(session, target.info.name, target.info.sha256),
        )


# --- words --------------------------------------------------------------------------------------------------


def preflight_view(checked: Preflight) -> PreflightView:
    """What a rollout would do, as it is printed."""
    info = checked.target.info
    return PreflightView(
        release=f"{info.name}@{info.version}",
        sha256=info.sha256,
        moves_bytes=checked.moves_bytes,
        waves=tuple(
            tuple(
                PlannedView(
                    device=one.device,
                    board=one.board,
                    runs=one.step.running.version if one.step.running is not None else None,
                    way=one.step.way,
                    moves_bytes=one.step.moves_bytes,
                    unchecked=one.step.unchecked,
                    returnless=checked.returnless.get(one.device),
                )
                for one in wave
            )
            for wave in checked.waves
        ),
        left_out=tuple(
            LeftOutView(device=one.device, board=one.board, reason=one.reason) for one in checked.left_out
        ),
        plan=checked.plan,
    )


def plan_lines(view: PreflightView) -> list[str]:
    """The plan that is shown before it is confirmed."""
    devices = [one for wave in view.waves for one in wave]
    ways = [f"{sum(one.way == way for one in devices)} {text}" for way, text in _WAYS if _has(devices, way)]
    lines = [
        f"{view.release} to {len(devices)} devices ({', '.join(ways)}): {view.moves_bytes} bytes move in all"
    ]
    for number, (wave, text) in enumerate(zip(view.waves, view.plan.waves, strict=True), start=1):
        lines.append(f"wave {number} ({text}): {_listed([_planned(one) for one in wave])}")
    if view.left_out:
        left = [f"{one.device}: {one.reason}" for one in view.left_out]
        lines.append(f"left out: {_listed(left, '; ')}")
    lost = [f"{one.device}: {one.returnless}" for one in devices if one.returnless is not None]
    if lost:
        lines.append(f"could not be taken back: {_listed(lost, '; ')}")
    unchecked = sorted({what for one in devices for what in one.unchecked})
    if unchecked:
        lines.append(f"not checked on some, as they have not told: {', '.join(unchecked)}")
    lines.append(_conditions(view.plan))
    return [printable(line) for line in lines]


_WAYS = (("delta", "by delta"), ("full", "by the whole package"), ("nothing", "that run it still"))


def _has(devices: Sequence[PlannedView], way: str) -> bool:
    return any(one.way == way for one in devices)


def _planned(one: PlannedView) -> str:
    how = "nothing moves" if one.way == "nothing" else f"{one.way} {one.moves_bytes} bytes"
    return f"{one.device} ({one.board}, {one.runs or 'runs none'}, {how})"


def _listed(parts: Sequence[str], separator: str = ", ") -> str:
    if not parts:
        return "no devices"
    more = f"{separator}and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return separator.join(parts[:_SHOWN]) + more


def _conditions(plan: RolloutPlan) -> str:
    failures = (
        f"{plan.max_failures}"
        if plan.max_failures is not None
        else f"{plan.max_failures_share:.0%} of a wave"
    )
    parts = [
        f"next wave after {plan.k} of each board passed" + (" and your approval" if plan.approve else ""),
        f"silent after {_span(plan.deadline_s)}",
        f"at most {failures} may fail",
    ]
    if plan.window is not None:
        parts.append(f"devices begin within {plan.window}")
    parts.append(
        "taken back where it is at fault" if plan.on_failure == "return" else "paused where it is at fault"
    )
    return "; ".join(parts)


def _span(seconds: float) -> str:
    for unit_s, name in ((86_400, "d"), (3600, "h")):
        if seconds % unit_s == 0:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _tell_detached(fleet: Fleet, rollout_id: int, *, as_json: bool) -> None:
    from edgeslm.fleet.rollout.controller import LEASE  # noqa: PLC0415
    from edgeslm.fleet.rollout.lease import holder_of  # noqa: PLC0415

    with fleet.store.read() as session:
        holder = holder_of(session, LEASE, utc_now())
    if holder is None:
        note("nobody carries it out yet: run edgeslm fleet serve, or edgeslm fleet rollout resume")
    if as_json:
        print_json(detail(fleet, rollout_id))
    else:
        click.echo(f"rollout {rollout_id}")
