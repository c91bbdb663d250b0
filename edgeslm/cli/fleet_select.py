"""Which devices a command is about: its arguments, ``--group`` and ``--where``, the same for every command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from edgeslm.cli.fleet_common import Fleet
from edgeslm.clock import utc_now
from edgeslm.errors import SelectionError, UsageError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from edgeslm.schema.fleet import DeviceFacts, DeviceRecord

_NEAREST = 3


@dataclass(frozen=True)
class Selection:
    """The devices that a command was called with, as they were written."""

    devices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    queries: tuple[str, ...] = ()

    @property
    def is_all(self) -> bool:
        """Nothing was named, which means every device in use."""
        return not (self.devices or self.groups or self.queries)

    def of(self, fleet: Fleet) -> list[DeviceRecord]:
        """The devices in use that are meant, by name; never none.

        Raises:
            SelectionError: there is no such group or field, a query is none, or no device matches.
            UnknownDeviceError: there is no such device.
            DeviceStateError: a named device is not in use.
        """
        with fleet.store.read() as session:
            return self.chosen(session)

    def chosen(self, session: Session) -> list[DeviceRecord]:
        """As :meth:`of`, within a transaction of the store."""
        from edgeslm.fleet.selection import select  # noqa: PLC0415

        found = select(session, groups=self.groups, queries=self.queries, devices=self.devices)
        if not found:
            why = "the fleet has no device in use" if self.is_all else f"no device in use is meant by {self}"
            raise SelectionError(why, expression=str(self), nearest=self._nearest(session))
        return found

    def _nearest(self, session: Session) -> tuple[str, ...]:
        """Groups that hold devices, the most alike to those that were named first, where these are empty."""
        if not self.groups or self.queries:
            return ()
        from difflib import SequenceMatcher  # noqa: PLC0415

        from edgeslm.fleet.groups import list_groups  # noqa: PLC0415
        from edgeslm.fleet.selection import facts  # noqa: PLC0415

        in_use = [one for one in facts(session) if one.standing == "active"]
        filled = [one.name for one in list_groups(session, in_use, utc_now()) if one.devices]

        def unlike(name: str) -> float:
            return -max(SequenceMatcher(None, name, group).ratio() for group in self.groups)

        return tuple(f"--group {name}" for name in sorted(filled, key=unlike)[:_NEAREST])

    def ever(self, session: Session) -> list[DeviceFacts]:
        """The devices that are meant, in use or not, by name; there may be none."""
        from edgeslm.fleet.selection import select_facts  # noqa: PLC0415

        standings = ("active", "revoked", "retired")
        return select_facts(
            session, groups=self.groups, queries=self.queries, devices=self.devices, standings=standings
        )

    def need(self, hint: str = "Name devices, or give --group or --where") -> None:
        """Refuse to mean every device by saying nothing.

        Raises:
            UsageError: nothing was named.
        """
        if self.is_all:
            raise UsageError("which devices?", hint=hint)

    def __str__(self) -> str:
        words = [*self.devices, *(f"--group {one}" for one in self.groups)]
        return " ".join([*words, *(f"--where '{one}'" for one in self.queries)]) or "the whole fleet"


def select_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options ``--group`` and ``--where``; the command gets a `selection`."""

    @click.option("--group", "-g", "groups", multiple=True, help="Devices of a group; may be given again.")
    @click.option(
        "--where",
        "queries",
        multiple=True,
        metavar="QUERY",
        help="Only devices that match, such as 'board=pi-4b and tag:north'; several have to match all.",
    )
    @wraps(command)
    def wrapped(*args: Any, groups: tuple[str, ...], queries: tuple[str, ...], **kwargs: Any) -> Any:
        return command(*args, selection=Selection((), groups, queries), **kwargs)

    return wrapped


def select_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """Arguments ``[DEVICE]...`` with the options of :func:`select_options`; the command gets a `selection`."""

    @click.argument("devices", nargs=-1, metavar="[DEVICE]...")
    @select_options
    @wraps(command)
    def wrapped(*args: Any, devices: tuple[str, ...], selection: Selection, **kwargs: Any) -> Any:
        whole = Selection(devices, selection.groups, selection.queries)
        return command(*args, selection=whole, **kwargs)

    return wrapped
