"""Tags and notes: what operators say about devices.

What always holds: every change is in the audit log, in the same transaction; what changes nothing leaves no entry.

Functions take a session of the store and commit nothing themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeslm.errors import UsageError
from edgeslm.fleet.registry import audit, need_device
from edgeslm.fleet.store.models import DeviceRow, TagRow
from edgeslm.schema.fleet import MAX_NOTE_CHARS, MAX_TAGS, NoteText, Tag

_TAG: TypeAdapter[str] = TypeAdapter(Tag)
_NOTE: TypeAdapter[str] = TypeAdapter(NoteText)


@dataclass(frozen=True)
class TagChange:
    """Tags to put on devices, and to take off them."""

    add: frozenset[str] = frozenset()
    remove: frozenset[str] = frozenset()

    def of(self, tags: Collection[str]) -> frozenset[str]:
        """What becomes of the tags of a device."""
        return (frozenset(tags) - self.remove) | self.add


def parse_tags(words: Sequence[str]) -> TagChange:
    """A change from words such as ``+north`` and ``-old``.

    Raises:
        UsageError: one is no such word, or both put on and taken off.
    """
    add = frozenset(_checked(word[1:]) for word in words if word.startswith("+"))
    remove = frozenset(_checked(word[1:]) for word in words if word.startswith("-"))
    if both := sorted(add & remove):
        raise UsageError(f"'{both[0]}' cannot be put on and taken off at once")
    return TagChange(add, remove)


def tag_device(session: Session, name: str, change: TagChange, *, actor: str, now: datetime) -> list[str]:
    """Put tags on a device and take others off; returns its tags after that.

    Raises:
        UnknownDeviceError: there is none of that name.
        UsageError: they would be more than a device can have.
    """
    row = need_device(session, name)
    before = {tag.tag for tag in row.tags}
    after = change.of(before)
    if after != before:
        set_tags(row, after)
        detail = {"added": " ".join(sorted(after - before)), "removed": " ".join(sorted(before - after))}
        audit(session, actor, "tag", name, now, **{key: text for key, text in detail.items() if text})
    return sorted(after)


def set_tags(row: DeviceRow, tags: Collection[str]) -> None:
    """Let a device have these tags and no others.

    Raises:
        UsageError: they are more than a device can have.
    """
    if len(tags) > MAX_TAGS:
        raise UsageError(f"'{row.name}' would have {len(tags)} tags; {MAX_TAGS} are the most")
    row.tags = [tag for tag in row.tags if tag.tag in tags]
    row.tags += [TagRow(tag=tag) for tag in sorted(set(tags) - {tag.tag for tag in row.tags})]


def note_device(session: Session, name: str, text: str, *, actor: str, now: datetime) -> None:
    """Let the note of a device say `text`; an empty one removes it.

    Raises:
        UnknownDeviceError: there is none of that name.
        UsageError: the text is too long, or holds what cannot be printed.
    """
    row = need_device(session, name)
    try:
        text = _NOTE.validate_python(text.strip())
    except ValidationError as error:
        raise UsageError(
            f"a note has at most {MAX_NOTE_CHARS} characters, all of which can be printed"
        ) from error
    if text != row.notes:
        row.notes = text
        audit(session, actor, "note", name, now, text=text)


def tags_in_use(session: Session) -> list[str]:
    """Tags that devices have."""
    return list(session.scalars(select(TagRow.tag).distinct().order_by(TagRow.tag)))


def _checked(text: str) -> str:
    try:
        return _TAG.validate_python(text)
    except ValidationError as error:
        raise UsageError(
            f"'{text}' is no tag: 1 to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit first"
        ) from error
