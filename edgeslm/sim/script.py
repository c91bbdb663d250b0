"""What the demo says: spoken-style commands, the right answer to each, and what the home is like afterwards.

What always holds: a script is data (``script.yaml`` beside this module), and judging by it is pure. Left to
others: asking (:mod:`edgeslm.cli.demo`).
"""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import Field, JsonValue

from edgeslm.schema.base import FileModel, Identifier
from edgeslm.sim.home import Home, Word, load_shipped


class Command(FileModel):
    """One line of the demo's script: what is said, the right answer, and what the home is like afterwards.

    Attributes:
        state: device id -> the fields that matter.
    """

    say: Word
    answer: dict[str, str | int | float]
    state: dict[Identifier, dict[str, JsonValue]] = Field(default_factory=dict)

    def missed(self, home: Home) -> list[str]:
        """Where `home` differs from what this command should have led to."""
        found = []
        for device_id, fields in self.state.items():
            actual = home.by_id[device_id].state.model_dump(mode="json") if device_id in home.by_id else {}
            for name, value in fields.items():
                if not same_json(actual.get(name), value):
                    found.append(f"{device_id}.{name} is {_json(actual.get(name))}, expected {_json(value)}")
        return found


class Script(FileModel):
    """What the demo says."""

    commands: Annotated[tuple[Command, ...], Field(min_length=1)]


def load_script() -> Script:
    """The script that ships with edgeslm."""
    return load_shipped(Script, "script.yaml")


def same_json(one: object, other: object) -> bool:
    """Whether two JSON values are equal: order of keys apart, and ``true`` is not 1."""
    return _json(one) == _json(other)


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
