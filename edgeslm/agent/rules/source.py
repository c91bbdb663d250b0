"""One file of rules as data, with the line on which everything in it stands.

What always holds: the YAML that is read is the plain part of it. No aliases, since a small file could unfold into a
huge one; no key twice; no dates; ``on`` and ``22:30`` are texts, as in YAML 1.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeAlias

import yaml
from pydantic import BaseModel, ValidationError

from edgeslm.errors import RuleFileError
from edgeslm.schema.rule import Action, Call, Input, Publish, Rate, Rule, RuleFile

MAX_YAML_NODES = 20_000

Location: TypeAlias = tuple[str | int, ...]
"""Keys and indices that lead to a part of a file."""

_PARTS: dict[str, type[BaseModel]] = {
    "inputs": Input,
    "rules": Rule,
    "then": Action,
    "publish": Publish,
    "call": Call,
    "rate": Rate,
}


@dataclass(frozen=True)
class Source:
    """A file, and where in it everything stands."""

    name: str
    file: RuleFile
    lines: dict[Location, int]

    def error(self, where: Location, message: str, nearest: str | None = None) -> RuleFileError:
        """What is wrong at `where`."""
        return _error(self.name, self.lines, where, message, nearest)


def _error(
    name: str, lines: dict[Location, int], where: Location, message: str, nearest: str | None = None
) -> RuleFileError:
    known = where
    while known and known not in lines:
        known = known[:-1]
    line = lines.get(known)
    key = ".".join(str(step)[:40] for step in where)
    return RuleFileError(
        f"{name}{f', line {line}' if line else ''}{f', {key}' if key else ''}: {message}",
        path=name,
        line=line,
        key=key or None,
        nearest=nearest,
        hint=f"Did you mean '{nearest}'?" if nearest else None,
    )


def _is_text(node: yaml.Node) -> bool:
    """Whether only YAML 1.1 takes a scalar for something else: ``on`` for true, ``22:30`` for 1,350."""
    if node.tag == "tag:yaml.org,2002:bool":
        return str(node.value).lower() not in {"true", "false"}
    return node.tag in {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"} and ":" in str(node.value)


class _Builder:
    """Plain data from YAML's nodes: no aliases (a small file could unfold into a huge one), no key twice."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loader = yaml.SafeLoader("")
        self._seen: set[int] = set()
        self.lines: dict[Location, int] = {}

    def build(self, node: yaml.Node, where: Location) -> object:
        self.lines.setdefault(where, node.start_mark.line + 1)
        if id(node) in self._seen or len(self._seen) >= MAX_YAML_NODES or len(where) > 24:
            what = "an alias" if id(node) in self._seen else "too much of it, or too deep"
            raise _error(self._name, self.lines, where, f"{what}; write it out")
        self._seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*where, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            made: dict[object, object] = {}
            for key_node, value_node in node.value:
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
                if key is None or len(key) > 256:
                    raise _error(self._name, self.lines, where, "a key is a short text")
                self.lines[(*where, key)] = key_node.start_mark.line + 1
                if key in made:
                    raise _error(self._name, self.lines, (*where, key), "this key is there twice")
                made[key] = self.build(value_node, (*where, key))
            return made
        if _is_text(node):
            return node.value
        try:
            value: object = self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            raise _error(self._name, self.lines, where, f"no value: {str(error)[:80]}") from error
        if value is not None and not isinstance(value, str | bool | int | float):
            raise _error(self._name, self.lines, where, f"a {type(value).__name__}; put it in quotes")
        return value


def parse(name: str, body: bytes) -> Source:
    """The file of that name and body.

    Raises:
        RuleFileError: no YAML of that part, an unknown key, or a wrong value, each with its line.
    """
    try:
        node = yaml.compose(body.decode("utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise RuleFileError(f"{name} is not UTF-8: byte {error.start}", path=name) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else None
        raise RuleFileError(
            f"{name}{f', line {line}' if line else ''}: no YAML: {(error.problem or 'it cannot be read')[:120]}",
            path=name,
            line=line,
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RuleFileError(f"{name}: no YAML: {' '.join(str(error).split())[:120]}", path=name) from error
    if node is None:
        raise RuleFileError(f"{name} is empty; 'rules' is expected", path=name)
    builder = _Builder(name)
    data = builder.build(node, ())
    try:
        return Source(name, RuleFile.model_validate(data), builder.lines)
    except ValidationError as error:
        raise _validation(name, builder.lines, error) from error


def _validation(name: str, lines: dict[Location, int], error: ValidationError) -> RuleFileError:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    # An unknown key explains why a needed one is missing; so it is told first.
    faults.sort(key=lambda fault: fault["type"] != "extra_forbidden")
    # A list without its faulty parts is too short: that is no fault of its own.
    faults = [fault for fault in faults if fault["type"] != "too_short"] or faults
    fault = faults[0]
    where = _location(fault["loc"], lines)
    message = _WORDS.get(fault["type"]) or fault["msg"].removeprefix("Value error, ")
    nearest = None
    if fault["type"] == "extra_forbidden":
        model = _model_at(where[:-1])
        known = sorted(field.alias or key for key, field in model.model_fields.items())
        message = f"unknown key; expected: {', '.join(known)}"
        nearest = next(iter(get_close_matches(str(where[-1]), known, 1)), None)
    rest = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return _error(name, lines, where, f"{message}{rest}", nearest)


_WORDS = {
    "dict_type": "keys with values are expected",
    "missing": "this key is needed",
    "model_type": "keys with values are expected",
    "string_type": "a text is expected; put it in quotes",
    "tuple_type": "a list is expected",
}
"""What pydantic says of these means Python's types, which nobody wrote."""


def _location(steps: tuple[str | int, ...], lines: dict[Location, int]) -> Location:
    """`steps` without those that only name the branch of a union."""
    where: Location = ()
    for step in steps:
        is_branch = isinstance(step, str) and (step.startswith("dict[") or step in {"bool", "none"})
        if not is_branch or (*where, step) in lines:
            where = (*where, step)
    return where


def _model_at(where: Location) -> type[BaseModel]:
    for step in reversed(where):
        if isinstance(step, str) and step in _PARTS:
            return _PARTS[step]
    return RuleFile
