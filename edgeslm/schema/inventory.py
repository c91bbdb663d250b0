"""The file in which operators carry tags, notes and groups from one place to another.

What a key leaves out stays as it is; so do devices and groups that the file does not mention.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from edgeslm.schema.base import FileModel, Identifier
from edgeslm.schema.fleet import MAX_TAGS, NoteText, Tag

MAX_INVENTORY_BYTES = 32 * 2**20
MAX_INVENTORY_DEVICES = 100_000
MAX_INVENTORY_GROUPS = 10_000

_Told = Annotated[str, StringConstraints(max_length=200)]
_Groups = Annotated[tuple[Identifier, ...], Field(max_length=MAX_INVENTORY_GROUPS)]


class InventoryDevice(FileModel):
    """One device.

    Attributes:
        tags: all that it has.
        groups: all that it is in by name; groups that a query makes are not among them.
        board: as the device tells, and for people who read the file: never brought in, as are the others below.
    """

    name: Identifier
    tags: Annotated[tuple[Tag, ...], Field(max_length=MAX_TAGS)] | None = None
    note: NoteText | None = None
    groups: _Groups | None = None
    board: _Told | None = None
    serial: _Told | None = None
    profile: _Told | None = None
    standing: _Told | None = None


class InventoryGroup(FileModel):
    """One group; without a query its devices name it."""

    name: Identifier
    query: Annotated[str, StringConstraints(max_length=4000)] | None = None


class Inventory(FileModel):
    """The file.

    Attributes:
        fleet: that it came from.
    """

    v: Literal[1] = 1
    fleet: Identifier | None = None
    groups: Annotated[tuple[InventoryGroup, ...], Field(max_length=MAX_INVENTORY_GROUPS)] = ()
    devices: Annotated[tuple[InventoryDevice, ...], Field(max_length=MAX_INVENTORY_DEVICES)] = ()

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        for names in ([one.name for one in self.groups], [one.name for one in self.devices]):
            seen: set[str] = set()
            for name in names:
                if name in seen:
                    raise ValueError(f"'{name}' is there twice")
                seen.add(name)
        return self
