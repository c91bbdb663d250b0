"""``edgeslm fleet rollouts|rollout|pin|unpin``: looking at rollouts, and stepping in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from edgeslm.cli.fleet_common import (
    Fleet,
    changing,
    confirm,
    dry_run_option,
    exit_for,
    fleet_options,
    for_each,
    note,
    open_fleet,
    print_table,
    yes_option,
)
from edgeslm.cli.fleet_release_common import keys_option
from edgeslm.cli.fleet_rollout_common import (
    as_record,
    carry_out,
    detail,
    follow,
    print_rollout,
    print_summaries,
)
from edgeslm.cli.output import CommandGroup, json_option, print_json, printable, reporting_errors
from edgeslm.clock import utc_now
from edgeslm.schema.rollout import MemberView, RolloutView

_ID = click.argument("rollout_id", metavar="ID", type=click.IntRange(1, 2**31 - 1))
_REASON = click.option("--reason", default="", help="Why; it is kept.")
_DETACH = click.option("--detach", is_flag=True, help="Leave carrying it out to edgeslm fleet serve.")


@click.command("rollouts")
@click.option("--going", is_flag=True, help="Only those that are not over.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many at most."
)
@fleet_options
@json_option
@reporting_errors
def rollouts(going: bool, limit: int, fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """List rollouts, the newest first."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.rollout.views import list_rollouts  # noqa: PLC0415

    with fleet.store.read() as session:
        found = list_rollouts(session, limit=limit, only_going=going)
    if as_json:
        print_json([as_record(one) for one in found])
        return
    print_summaries(found)


@click.group("rollout", cls=CommandGroup)
def rollout() -> None:
    """Look at a rollout, and step in. Rollouts begin with: edgeslm fleet push."""


@rollout.command()
@_ID
@click.option("--all", "every", is_flag=True, help="Also devices of which there is nothing to say.")
@fleet_options
@json_option
@reporting_errors
def show(rollout_id: int, every: bool, fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """Show one rollout: waves, what the gates say together, devices with reasons."""
    view = detail(open_fleet(fleet_dir, fleet_name), rollout_id)
    if as_json:
        print_json(view)
        return
    print_rollout(view, every=every)


@rollout.command("follow")
@_ID
@fleet_options
@json_option
@reporting_errors
def follow_(rollout_id: int, fleet_dir: Path | None, fleet_name: str | None, as_json: bool) -> None:
    """Watch a rollout that is carried out elsewhere, until it ends or waits for somebody."""
    follow(open_fleet(fleet_dir, fleet_name), rollout_id, as_json=as_json)


@rollout.command()
@_ID
@_REASON
@fleet_options
@dry_run_option
@json_option
@reporting_errors
def pause(
    rollout_id: int,
    reason: str,
    fleet_dir: Path | None,
    fleet_name: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Ask no more devices for now; those that were asked go on."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.rollout import operate  # noqa: PLC0415

    with changing(fleet, dry_run=dry_run) as session:
        operate.pause(session, rollout_id, reason=reason, actor=fleet.actor, now=utc_now())
    if dry_run:
        _plan(fleet, detail(fleet, rollout_id), "is not asked for now", _waiting, as_json=as_json)
        return
    _tell(fleet, rollout_id, as_json=as_json)


@rollout.command()
@_ID
@_DETACH
@fleet_options
@keys_option
@dry_run_option
@json_option
@reporting_errors
def resume(
    rollout_id: int,
    detach: bool,
    fleet_dir: Path | None,
    fleet_name: str | None,
    keys_dir: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Go on with a rollout that paused, or whose command was stopped.

    Where it paused by itself, the state of its present wave is accepted: look at it before.
    """
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.rollout import operate  # noqa: PLC0415

    view = detail(fleet, rollout_id)
    if view.phase not in {"running", "returning"}:
        with changing(fleet, dry_run=dry_run) as session:
            operate.resume(session, rollout_id, actor=fleet.actor, now=utc_now())
    if dry_run:
        _plan(fleet, view, "is asked", lambda one: _waiting(one) and one.wave <= view.wave, as_json=as_json)
        return
    _go_on(fleet, keys_dir, rollout_id, detach=detach, as_json=as_json)


@rollout.command()
@_ID
@click.option("--keep", is_flag=True, help="Devices that have the release keep it.")
@_REASON
@_DETACH
@fleet_options
@keys_option
@yes_option
@dry_run_option
@json_option
@reporting_errors
def abort(
    rollout_id: int,
    keep: bool,
    reason: str,
    detach: bool,
    fleet_dir: Path | None,
    fleet_name: str | None,
    keys_dir: Path | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """End a rollout: devices that took the release go back to what they ran before."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.rollout import operate  # noqa: PLC0415

    view = detail(fleet, rollout_id)
    asked = [one for one in view.members if one.seq]
    plan = [f"{view.release}: {len(view.members) - len(asked)} devices are not asked any more"]
    plan.append(
        f"{len(asked)} devices {'keep what they have' if keep else 'go back to what they ran before'}"
    )
    if asked and not keep:
        # A device keeps what it ran before until the next change, so that going back moves nothing.
        plan += [
            printable(f"{one.device}: goes back to {one.base or 'nothing'}, 0 bytes move") for one in asked
        ]
    if not confirm(plan, yes=yes, dry_run=dry_run):
        return
    with fleet.store.write() as session:
        operate.abort(session, rollout_id, keep=keep, reason=reason, actor=fleet.actor, now=utc_now())
    _go_on(fleet, keys_dir, rollout_id, detach=detach or keep or not asked, as_json=as_json)


@rollout.command()
@_ID
@click.option("--every", is_flag=True, help="All waves that follow.")
@_DETACH
@fleet_options
@keys_option
@dry_run_option
@json_option
@reporting_errors
def approve(
    rollout_id: int,
    every: bool,
    detach: bool,
    fleet_dir: Path | None,
    fleet_name: str | None,
    keys_dir: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Let the next wave begin."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.rollout import operate  # noqa: PLC0415

    with changing(fleet, dry_run=dry_run) as session:
        wave = operate.approve(session, rollout_id, every=every, actor=fleet.actor, now=utc_now())
    if dry_run:
        view = detail(fleet, rollout_id)
        _plan(
            fleet,
            view,
            "is asked",
            lambda one: _waiting(one) and (every or one.wave <= wave),
            as_json=as_json,
        )
        return
    note(f"wave {wave} may begin")
    _go_on(fleet, keys_dir, rollout_id, detach=detach, as_json=as_json)


@rollout.command()
@_ID
@click.argument("devices", nargs=-1, metavar="[DEVICE]...")
@_DETACH
@fleet_options
@keys_option
@dry_run_option
@json_option
@reporting_errors
def retry(
    rollout_id: int,
    devices: tuple[str, ...],
    detach: bool,
    fleet_dir: Path | None,
    fleet_name: str | None,
    keys_dir: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Let devices that failed try again: those named, or all that failed."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.rollout import operate  # noqa: PLC0415

    with changing(fleet, dry_run=dry_run) as session:
        names = operate.retry(session, rollout_id, devices, actor=fleet.actor, now=utc_now())
    if dry_run:
        view = detail(fleet, rollout_id)
        _plan(fleet, view, "tries again", lambda one: one.device in names, as_json=as_json)
        return
    note(f"asked again: {', '.join(names[:20])}{f' and {len(names) - 20} more' if len(names) > 20 else ''}")
    _go_on(fleet, keys_dir, rollout_id, detach=detach, as_json=as_json)


@click.command()
@click.argument("devices", nargs=-1, metavar="[DEVICE]...")
@click.option("--reason", default="", help="Why; it is kept, and shown where the device is left out.")
@fleet_options
@dry_run_option
@json_option
@reporting_errors
def pin(
    devices: tuple[str, ...],
    reason: str,
    fleet_dir: Path | None,
    fleet_name: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Let rollouts leave DEVICEs alone. Without names: list those that are pinned."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.rollout import operate  # noqa: PLC0415

    def do(name: str) -> None:
        with fleet.store.write() as session:
            operate.pin(session, name, reason=reason, actor=fleet.actor, now=utc_now())
            if dry_run:
                session.rollback()

    done = for_each(devices, do) if devices else []
    if dry_run and devices:
        _not_done(done, "pinned", as_json=as_json)
        exit_for(done, devices)
        return
    with fleet.store.read() as session:
        pins = [one for one in operate.list_pins(session) if not devices or one.device in done]
    if as_json:
        print_json([one.model_dump(mode="json") for one in pins])
    else:
        print_table(
            ["DEVICE", "WHY", "BY", "SINCE"],
            [[one.device, one.reason, one.actor, f"{one.at:%Y-%m-%d %H:%M}"] for one in pins],
            empty="no device is pinned",
        )
    exit_for(done, devices)


@click.command()
@click.argument("devices", nargs=-1, required=True, metavar="DEVICE...")
@fleet_options
@dry_run_option
@json_option
@reporting_errors
def unpin(
    devices: tuple[str, ...], fleet_dir: Path | None, fleet_name: str | None, dry_run: bool, as_json: bool
) -> None:
    """Let rollouts bring releases to DEVICEs again."""
    fleet = open_fleet(fleet_dir, fleet_name)
    from edgeslm.fleet.rollout import operate  # noqa: PLC0415

    def do(name: str) -> None:
        with fleet.store.write() as session:
            operate.unpin(session, name, actor=fleet.actor, now=utc_now())
            if dry_run:
                session.rollback()

    done = for_each(devices, do)
    if dry_run:
        _not_done(done, "unpinned", as_json=as_json)
        exit_for(done, devices)
        return
    if as_json:
        print_json({"unpinned": done})
    else:
        click.echo(f"not pinned any more: {', '.join(done)}")
    exit_for(done, devices)


# --- dry runs -----------------------------------------------------------------------------------------------


def _waiting(member: MemberView) -> bool:
    return member.status == "waiting"


def _plan(
    fleet: Fleet,
    view: RolloutView,
    what: str,
    which: Callable[[MemberView], bool],
    *,
    as_json: bool,
) -> None:
    """Say what would become of devices of a rollout, each by name with the bytes that would move."""
    from edgeslm.cli.fleet_survey import moves  # noqa: PLC0415

    chosen = [one for one in view.members if which(one)]
    found = moves(fleet, view, [one.device for one in chosen])
    if as_json:
        print_json(
            [{"device": one.device, "wave": one.wave, "moves_bytes": found[one.device]} for one in chosen]
        )
        return
    for one in chosen:
        moved = found[one.device]
        size = "bytes not known" if moved is None else f"{moved} bytes"
        waits = f", waits for {one.waits_for}" if (one.waits_for or "").startswith("rollout") else ""
        click.echo(printable(f"{one.device} (wave {one.wave}, {one.board}, {size}): {what}{waits}"))
    if not chosen:
        click.echo(f"no device of rollout {view.id} {what}")


def _not_done(names: Sequence[str], what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({what: list(names)})
    else:
        for name in names:
            click.echo(f"{name}: {what}")
    click.echo("dry run: nothing was done", err=True)


# --- what follows -------------------------------------------------------------------------------------------


def _tell(fleet: Fleet, rollout_id: int, *, as_json: bool) -> None:
    view: RolloutView = detail(fleet, rollout_id)
    if as_json:
        print_json(view)
    else:
        click.echo(f"rollout {view.id} is {view.phase}")


def _go_on(
    fleet: Fleet,
    keys_dir: Path | None,
    rollout_id: int,
    *,
    detach: bool,
    as_json: bool,
) -> None:
    """Carry it out here, unless somebody else does, or should."""
    if detach:
        _tell(fleet, rollout_id, as_json=as_json)
        return
    carry_out(fleet, keys_dir, rollout_id, as_json=as_json)
