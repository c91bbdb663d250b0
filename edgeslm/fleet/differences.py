"""In what two devices differ, or a device from what is assigned to it. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from edgeslm.schema.fleet import DeviceFacts, DifferenceRecord


def differences(
    one: DeviceFacts,
    other: DeviceFacts,
    *,
    groups: Mapping[str, Collection[str]],
    settings: Mapping[str, str] | None = None,
    equal_too: bool = False,
) -> list[DifferenceRecord]:
    """In what two devices differ.

    Args:
        one: a device.
        other: another one.
        groups: the devices in each group.
        settings: JSON of what is set from afar, by device.
        equal_too: name also what is the same.
    """
    said, said_too = (_facts_of(each, groups, settings or {}) for each in (one, other))
    return _compare(said, said_too, equal_too=equal_too)


def difference_from_assigned(
    one: DeviceFacts,
    *,
    settings: tuple[str | None, str | None] = (None, None),
    numbers: tuple[int | None, int | None] = (None, None),
    equal_too: bool = False,
) -> list[DifferenceRecord]:
    """In what a device differs from what it should be: `one` is what is, `other` what is assigned.

    What nothing is assigned for may be whatever it is.

    Args:
        one: the device.
        settings: JSON of what is set on it from afar, and of what should be.
        numbers: of the assignment that it follows, and of its newest.
        equal_too: name also what is the same.
    """
    follows, newest = (None if number is None else str(number) for number in numbers)
    found: dict[str, str | None] = {"assignment": follows} if newest is not None else {}
    wanted: dict[str, str | None] = {"assignment": newest} if newest is not None else {}
    found |= {f"model {name}": one.running.get(name) for name in one.assigned}
    wanted |= {f"model {name}": version for name, version in one.assigned.items()}
    found |= {f"setting {key}": text for key, text in _flat(settings[0])}
    wanted |= {f"setting {key}": text for key, text in _flat(settings[1])}
    return _compare(found, wanted, equal_too=equal_too)


def _facts_of(
    one: DeviceFacts, groups: Mapping[str, Collection[str]], settings: Mapping[str, str]
) -> dict[str, str | None]:
    found: dict[str, str | None] = {
        "standing": one.standing,
        "presence": one.presence,
        "board": one.board,
        "profile": one.profile,
        "agent": one.agent,
        "runtime": one.runtime,
        "meter": one.meter,
        "finding": one.finding,
        "quarantine": one.quarantine,
    }
    found |= {f"tag {tag}": "yes" for tag in one.tags}
    found |= {f"group {name}": "yes" for name, members in groups.items() if one.name in members}
    found |= {f"model {name}": version for name, version in one.running.items()}
    found |= {f"assigned {name}": version for name, version in one.assigned.items()}
    found |= {f"budget {key}": text for key, text in _flat(one.budget)}
    found |= {f"setting {key}": text for key, text in _flat(settings.get(one.name))}
    return found


def _flat(text: str | None) -> Iterator[tuple[str, str]]:
    """Every value in a JSON object with its dotted key; the text itself where it is no JSON."""
    if text is None:
        return
    try:
        value = json.loads(text)
    except ValueError:
        yield "text", text
        return
    yield from _flat_value("", value)


def _flat_value(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat_value(f"{key}.{name}" if key else str(name), inner)
    elif key:
        yield key, value if isinstance(value, str) else json.dumps(value)


def _compare(
    one: Mapping[str, str | None], other: Mapping[str, str | None], *, equal_too: bool
) -> list[DifferenceRecord]:
    names = dict.fromkeys([*one, *sorted(set(other) - set(one))])
    return [
        DifferenceRecord(what=name, one=one.get(name), other=other.get(name))
        for name in names
        if equal_too or one.get(name) != other.get(name)
    ]
