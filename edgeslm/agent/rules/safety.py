"""What a rule may do: where it may publish, in which ranges, on which readings, and in which circles it may not run.

Pure. What always holds: nothing is published to a topic that the rule's own file does not allow, nothing to our own
tree (where a message could be another device's prompt or command) nor to the broker's; a payload or an answer that
does not match its schema is refused as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NoReturn

import jsonschema_rs
from pydantic import JsonValue

from edgeslm import topics
from edgeslm.agent.rules.conditions import ExpressionError
from edgeslm.agent.rules.matching import TopicTree, overlap
from edgeslm.agent.rules.values import Path, parse_path
from edgeslm.errors import AnswerRefusedError
from edgeslm.schema.rule import Bounds

MAX_HOPS = 4
"""Rules that may set each other off in a row."""

_MAX_SCHEMA_NODES = 512
_OWN_FIRST_LEVEL = topics.ROOT.split("/", 1)[0]
_CHANNELS = frozenset({"e", "m", "result", "stream"})


# --- topics --------------------------------------------------------------------------------------------------


def check_allowed_filter(topic_filter: str) -> None:
    """Make sure that a file may allow `topic_filter`.

    Raises:
        ExpressionError: it could lead into our own tree or to the broker.
    """
    first = topic_filter.split("/", 1)[0]
    if first in {"#", "+"}:
        raise ExpressionError(
            f"'{topic_filter[:80]}' allows everything, other devices' prompts and commands too; "
            "name the first level of what is meant"
        )
    if first == _OWN_FIRST_LEVEL:
        raise ExpressionError(
            f"'{topic_filter[:80]}': rules publish nothing under '{_OWN_FIRST_LEVEL}/', where other devices "
            "take prompts and commands"
        )
    if first.startswith("$"):
        raise ExpressionError(f"'{topic_filter[:80]}': topics that begin with '$' are the broker's own")


def check_input_filter(topic_filter: str) -> None:
    """Make sure that an input may listen to `topic_filter`.

    Raises:
        ExpressionError: it takes the prompts of pools too, each of which is for one device only.
    """
    levels = topic_filter.split("/")
    is_of_devices = len(levels) > 4 and levels[4] in _CHANNELS  # which are no names of models
    if overlap(topic_filter, f"{topics.ROOT}/+/{topics.POOL}/+/prompt") and not is_of_devices:
        raise ExpressionError(
            f"'{topic_filter[:80]}' takes prompts of the fleet's pools too; name the first level of what is meant"
        )


class Allowed:
    """The topics that a file's rules may publish to."""

    def __init__(self, filters: Sequence[str]) -> None:
        self.filters = tuple(filters)
        self._tree = TopicTree((name, True) for name in filters)

    def covers_template(self, pattern: str) -> bool:
        """Whether some topic of `pattern` (``+`` for levels made by templates) is allowed at all."""
        return any(overlap(name, pattern) for name in self.filters)

    def check(self, topic: str) -> None:
        """Make sure that a message may be published to `topic`.

        Raises:
            AnswerRefusedError: it may not.
        """
        first = topic.split("/", 1)[0]
        if not topics.is_publishable(topic) or first == _OWN_FIRST_LEVEL:
            raise AnswerRefusedError(f"'{topic[:120]}' is no topic that a rule may publish to")
        if not self._tree.find(topic):
            raise AnswerRefusedError(f"'{topic[:120]}' is not in 'allow'")


# --- schemas -------------------------------------------------------------------------------------------------


def _fetch_nothing(address: str) -> NoReturn:
    raise ValueError(f"'{address[:80]}' is not fetched")


class Schema:
    """A JSON Schema that was checked. Nothing is fetched for it, and its patterns take linear time."""

    def __init__(self, schema: dict[str, JsonValue] | bool) -> None:
        """Check `schema`.

        Raises:
            ExpressionError: it is none, is too large, or refers to something elsewhere.
        """
        _check_schema(schema)
        try:
            self._validator = jsonschema_rs.validator_for(
                schema, retriever=_fetch_nothing, pattern_options=jsonschema_rs.RegexOptions()
            )
        except (ValueError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
            raise ExpressionError(f"no JSON Schema: {' '.join(str(error).split())[:200]}") from error

    def check(self, value: JsonValue, what: str) -> None:
        """Make sure that `value` matches.

        Raises:
            AnswerRefusedError: it does not.
        """
        if self._validator.is_valid(value):
            return
        error = next(iter(self._validator.iter_errors(value)))
        where = ".".join(str(step)[:40] for step in error.instance_path)
        raise AnswerRefusedError(
            f"{what} does not match its schema{f' at {where}' if where else ''}: {error.message[:160]}"
        )


def _check_schema(schema: JsonValue) -> None:
    stack: list[tuple[JsonValue, int]] = [(schema, 0)]
    count = 0
    while stack:
        part, depth = stack.pop()
        count += 1
        if count > _MAX_SCHEMA_NODES or depth > 16:
            raise ExpressionError(f"a schema of more than {_MAX_SCHEMA_NODES} parts or 16 levels")
        if isinstance(part, dict):
            for key, value in part.items():
                if key in {"$ref", "$dynamicRef", "$schema", "$id"} and isinstance(value, str):
                    is_near = value.startswith("#") or (key == "$schema" and "json-schema.org" in value)
                    if not is_near:
                        raise ExpressionError(f"'{key}' can refer to the schema itself only ('#/...')")
                stack.append((value, depth + 1))
        elif isinstance(part, list):
            stack += [(value, depth + 1) for value in part]


# --- ranges --------------------------------------------------------------------------------------------------


class Clamp:
    """Brings numbers of a payload into their ranges."""

    def __init__(self, bounds: Mapping[str, Bounds]) -> None:
        self._bounds: list[tuple[str, Path, Bounds]] = [
            (path, parse_path(path), limits) for path, limits in bounds.items()
        ]

    def apply(self, value: JsonValue) -> tuple[JsonValue, tuple[str, ...]]:
        """`value` with its numbers in range, and what was changed, in words. `value` itself stays as it is.

        Raises:
            AnswerRefusedError: something other than a number stands at one of the paths.
        """
        changed: list[str] = []
        for name, path, bounds in self._bounds:
            value = _at(value, path, partial(_clamped, name=name, bounds=bounds, changed=changed))
        return value, tuple(changed)


def _clamped(value: JsonValue, name: str, bounds: Bounds, changed: list[str]) -> JsonValue:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise AnswerRefusedError(f"'{name}' has a range and is no number")
    low, high = bounds
    if low <= value <= high:
        return value
    limited = low if value < low else high
    whole = int(limited) if isinstance(value, int) and limited == int(limited) else limited
    changed.append(f"{name}: {value:g} -> {limited:g}")
    return whole


def _at(value: JsonValue, path: Path, change: Callable[[JsonValue], JsonValue]) -> JsonValue:
    """A copy of `value` with what stands at `path` changed; what is not there stays so."""
    if not path:
        return change(value)
    step, rest = path[0], path[1:]
    if isinstance(step, str) and isinstance(value, dict) and step in value:
        return {**value, step: _at(value[step], rest, change)}
    if isinstance(step, int) and isinstance(value, list) and step < len(value):
        return [_at(item, rest, change) if index == step else item for index, item in enumerate(value)]
    return value


# --- circles -------------------------------------------------------------------------------------------------


def find_circle(edges: Mapping[str, Sequence[str]]) -> list[str] | None:
    """Rules that set each other off, in order, if there are such; `edges` tells of each which ones it sets off."""
    done: set[str] = set()
    for start in edges:
        path: list[str] = []
        stack: list[tuple[str, int]] = [(start, 0)]
        while stack:
            name, position = stack.pop()
            if position == 0:
                if name in path:
                    return [*path[path.index(name) :], name]
                if name in done:
                    continue
                path.append(name)
            following = edges.get(name, ())
            if position < len(following):
                stack.append((name, position + 1))
                stack.append((following[position], 0))
            else:
                path.remove(name)
                done.add(name)
    return None
