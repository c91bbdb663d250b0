"""``edgeslm completion``: names of commands, options, devices, groups, tags and releases on the tab key.

What always holds: nothing is printed but completions, whatever is wrong; what a parameter takes is seen from its name
or its metavar, so that commands need not say it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, get_completion_class

from edgeslm.errors import UsageError

if TYPE_CHECKING:
    from edgeslm.cli.fleet_common import Fleet

PROGRAM = "edgeslm"
_VARIABLE = "_EDGESLM_COMPLETE"
_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that lets SHELL complete edgeslm's words, names of devices, groups and releases included.

    Add it to what the shell reads when it starts, such as: edgeslm completion bash >> ~/.bashrc. For zsh that is
    ~/.zshrc; for fish a file of its own, ~/.config/fish/completions/edgeslm.fish.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"click cannot complete for {shell}")
    click.echo(kind(context.find_root().command, {}, PROGRAM, _VARIABLE).source())


# --- names --------------------------------------------------------------------------------------------------


def _devices(fleet: Fleet) -> Sequence[str]:
    from sqlalchemy import select  # noqa: PLC0415

    from edgeslm.fleet.store.models import DeviceRow  # noqa: PLC0415

    with fleet.store.read() as session:
        return session.scalars(
            select(DeviceRow.name).where(DeviceRow.standing != "retired").order_by(DeviceRow.name)
        ).all()


def _groups(fleet: Fleet) -> Sequence[str]:
    from edgeslm.fleet.groups import group_names  # noqa: PLC0415

    with fleet.store.read() as session:
        return group_names(session)


def _tags(fleet: Fleet) -> Sequence[str]:
    from edgeslm.fleet.labels import tags_in_use  # noqa: PLC0415

    with fleet.store.read() as session:
        return tags_in_use(session)


def _kinds(fleet: Fleet) -> Sequence[str]:
    from edgeslm.fleet.history import event_kinds  # noqa: PLC0415

    with fleet.store.read() as session:
        return event_kinds(session)


def _releases(fleet: Fleet) -> Sequence[str]:
    from edgeslm.cli.fleet_release_common import open_repository  # noqa: PLC0415

    found = (target.info for target in open_repository(fleet).releases())
    return sorted(f"{info.name}@{info.version}" for info in found)


def _rollouts(fleet: Fleet) -> Sequence[str]:
    from sqlalchemy import select  # noqa: PLC0415

    from edgeslm.fleet.store.rollouts import RolloutRow  # noqa: PLC0415

    with fleet.store.read() as session:
        return [
            str(number) for number in session.scalars(select(RolloutRow.id).order_by(RolloutRow.id.desc()))
        ]


def _columns(_fleet: Fleet) -> Sequence[str]:
    from edgeslm.cli.fleet_list import COLUMNS  # noqa: PLC0415

    return list(COLUMNS)


def _devices_or_tags(fleet: Fleet) -> Sequence[str]:
    return [*_devices(fleet), *(f"+{tag}" for tag in _tags(fleet))]


_TAKES: dict[str, Callable[[Fleet], Sequence[str]]] = {
    "COLUMN": _columns,
    "DEVICE": _devices,
    "DEVICES": _devices,
    "GROUP": _groups,
    "GROUPS": _groups,
    "KINDS": _kinds,
    "NAME@VERSION": _releases,
    "OTHER": _devices,
    "RELEASE": _releases,
    "RELEASES": _releases,
    "TAGS": _tags,
    "TAG": _devices_or_tags,
}


class _NameType(click.types.StringParamType):
    """A text that is one of the names which a fleet knows."""

    def __init__(self, names: Callable[[Fleet], Sequence[str]]) -> None:
        self._names = names

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names that begin with `incomplete`; none where there is no fleet, or its store cannot be read."""
        del param
        from edgeslm.cli.fleet_common import open_fleet  # noqa: PLC0415

        try:
            fleet = open_fleet(ctx.params.get("fleet_dir"), ctx.params.get("fleet_name"))
            return [CompletionItem(name) for name in self._names(fleet) if name.startswith(incomplete)]
        except Exception:  # an error in the middle of the line that somebody writes helps nobody
            return []


class _RolloutType(click.IntRange):
    """The number of a rollout that a fleet knows."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """See :class:`_NameType`."""
        return _NameType(_rollouts).shell_complete(ctx, param, incomplete)


def complete_names(command: click.Command) -> None:
    """Let the parameters of a command that take names of a fleet complete them."""
    if not any(param.name == "fleet_dir" for param in command.params):
        return
    for param in command.params:
        if param.name == "rollout_id":
            param.type = _RolloutType(1, 2**31 - 1)
        is_plain = isinstance(param.type, click.types.StringParamType) or param.type is click.UNPROCESSED
        if is_plain:
            words = re.findall(r"[A-Z@]+", f"{param.metavar or ''} {(param.name or '').upper()}")
            taken = [_TAKES[word] for word in words if word in _TAKES]
            if taken:
                param.type = _NameType(taken[-1])
