"""Files in YAML as data, with the line on which everything in them stands, so that a fault can be told with its place.

What always holds: the YAML that is read is the plain part of it. No aliases, since a small file could unfold into a
huge one; no key twice; no dates; ``on`` and ``22:30`` are texts, as in YAML 1.2. What is wrong is told with file, line,
key, what was expected, and the nearest valid name.

Left to others: reading the bytes, with a limit on their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, Generic, TypeAlias, TypeVar, get_args, get_origin, overload

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edgeslm.errors import YamlFileError

Location: TypeAlias = tuple[str | int, ...]
"""Keys and indices that lead to a part of a file."""

ModelT = TypeVar("ModelT", bound=BaseModel)
FaultT = TypeVar("FaultT", bound=YamlFileError)
_FaultT_co = TypeVar("_FaultT_co", bound=YamlFileError, covariant=True)

_FAST_LOADER: Final = getattr(yaml, "CSafeLoader", None)
"""libyaml's parser, where PyYAML was built with it: ten times as fast, which counts on a small board."""
_MAX_NODES: Final = 20_000
_MAX_DEPTH: Final = 24
_MAX_KEY_CHARS: Final = 256
_MAX_KEYS_TOLD: Final = 40


@dataclass(frozen=True)
class YamlSourceOf(Generic[_FaultT_co]):
    """What a file holds, not yet checked against a model.

    Attributes:
        name: how the file is called in what is told of it.
        data: texts, numbers, truth values, ``None``, lists of these, and dicts of these by text.
        lines: where in the file each part stands, counted from 1.
        fault: the class of the errors that tell of this file.
    """

    name: str
    data: object
    lines: Mapping[Location, int]
    fault: type[_FaultT_co]

    def error(
        self, where: Location, message: str, nearest: str | None = None, *, hint: str | None = None
    ) -> _FaultT_co:
        """What is wrong at `where`; the line is that of the innermost part that the file has."""
        return _error(self.fault, self.name, self.lines, where, message, nearest, hint)

    def validate(self, kind: type[ModelT]) -> ModelT:
        """The file as a `kind`.

        Raises:
            YamlFileError: of class `fault`; it is none. The first fault is told, unknown keys before others.
        """
        try:
            return kind.model_validate(self.data)
        except ValidationError as error:
            raise self.explain(kind, error) from error

    def explain(self, kind: type[BaseModel], error: ValidationError, below: Location = ()) -> _FaultT_co:
        """Why what stands at `below` is no `kind`."""
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        # An unknown key explains why a needed one is missing; so it is told first.
        faults.sort(key=lambda fault: fault["type"] != "extra_forbidden")
        # A list without its faulty parts is too short: that is no fault of its own.
        faults = [fault for fault in faults if fault["type"] != "too_short"] or faults
        # Where one of several kinds may stand, a key of one is unknown to the others: that is no fault either.
        faults = [fault for fault in faults if not self._is_of_another_kind(fault, kind, below)] or faults
        fault = faults[0]
        where = (*below, *_location(fault, self.lines, below))
        message = _WORDS.get(fault["type"]) or fault["msg"].removeprefix("Value error, ")
        nearest = None
        if fault["type"] == "extra_forbidden":
            known = _known_keys(kind, where[len(below) : -1])
            rest = len(known) - _MAX_KEYS_TOLD
            listed = ", ".join(known[:_MAX_KEYS_TOLD]) + (f" and {rest} more" if rest > 0 else "")
            message = f"unknown key; expected: {listed}"
            nearest = nearest_of(str(where[-1]), known)
        elif fault["type"] in {"literal_error", "enum"}:
            nearest = nearest_of(str(value_at(self.data, where)), _quoted(fault["msg"]))
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        return self.error(where, f"{message}{more}", nearest)

    def _is_of_another_kind(self, fault: ErrorDetails, kind: type[BaseModel], below: Location) -> bool:
        where = _location(fault, self.lines, below)
        return fault["type"] == "extra_forbidden" and where[-1] in _known_keys(kind, where[:-1])


YamlSource: TypeAlias = YamlSourceOf[YamlFileError]


@overload
def read_yaml(name: str, body: bytes, *, needs: str | None = None) -> YamlSource: ...
@overload
def read_yaml(
    name: str, body: bytes, *, fault: type[FaultT], needs: str | None = None
) -> YamlSourceOf[FaultT]: ...


def read_yaml(
    name: str, body: bytes, *, fault: type[YamlFileError] = YamlFileError, needs: str | None = None
) -> YamlSource:
    """The file of that name and body.

    Args:
        fault: class of the errors.
        needs: a key that such a file has, told where it is empty.

    Raises:
        YamlFileError: of class `fault`: no YAML of that part, or nothing in it.
    """
    try:
        node = _compose(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise fault(f"{name} is not UTF-8: byte {error.start}", path=name) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else None
        raise fault(
            f"{name}{f', line {line}' if line else ''}: no YAML: {(error.problem or 'it cannot be read')[:120]}",
            path=name,
            line=line,
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise fault(f"{name}: no YAML: {' '.join(str(error).split())[:120]}", path=name) from error
    if node is None:
        raise fault(f"{name} is empty{f'; {needs!r} is expected' if needs else ''}", path=name)
    builder = _Builder(name, fault)
    return YamlSourceOf(name, builder.build(node, ()), builder.lines, fault)


def nearest_of(name: str, known: Sequence[str]) -> str | None:
    """The one of `known` that was probably meant by `name`."""
    return next(iter(get_close_matches(name, known, 1)), None)


def value_at(data: object, where: Location) -> object:
    """The part of `data` at `where`; ``None`` where there is none."""
    for step in where:
        if isinstance(data, dict):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            return None
    return data


# --- building ------------------------------------------------------------------------------------------------


def _compose(text: str) -> yaml.Node | None:
    node: yaml.Node | None
    if _FAST_LOADER is not None:
        try:
            node = yaml.compose(text, Loader=_FAST_LOADER)
        except (yaml.YAMLError, ValueError):
            pass  # told by the other parser, in words that do not depend on how PyYAML was built
        else:
            return node
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    return node


def _error(
    fault: type[FaultT],
    name: str,
    lines: Mapping[Location, int],
    where: Location,
    message: str,
    nearest: str | None = None,
    hint: str | None = None,
) -> FaultT:
    known = where
    while known and known not in lines:
        known = known[:-1]
    line = lines.get(known)
    key = ".".join(str(step)[:40] for step in where)
    return fault(
        f"{name}{f', line {line}' if line else ''}{f', {key}' if key else ''}: {message}",
        path=name,
        line=line,
        key=key or None,
        nearest=nearest,
        hint=f"Did you mean '{nearest}'?" if nearest and hint is None else hint,
    )


def _is_text(node: yaml.Node) -> bool:
    """Whether only YAML 1.1 takes a scalar for something else: ``on`` for true, ``22:30`` for 1,350."""
    if node.tag == "tag:yaml.org,2002:bool":
        return str(node.value).lower() not in {"true", "false"}
    return node.tag in {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"} and ":" in str(node.value)


class _Builder:
    """Plain data from YAML's nodes: no aliases (a small file could unfold into a huge one), no key twice."""

    def __init__(self, name: str, fault: type[YamlFileError]) -> None:
        self._name = name
        self._fault = fault
        self._loader = yaml.SafeLoader("")
        self._seen: set[int] = set()
        self.lines: dict[Location, int] = {}

    def build(self, node: yaml.Node, where: Location) -> object:
        self.lines.setdefault(where, node.start_mark.line + 1)
        if id(node) in self._seen or len(self._seen) >= _MAX_NODES or len(where) > _MAX_DEPTH:
            what = "an alias" if id(node) in self._seen else "too much of it, or too deep"
            raise self._error(where, f"{what}; write it out")
        self._seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*where, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            made: dict[object, object] = {}
            for key_node, value_node in node.value:
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
                if key is None or len(key) > _MAX_KEY_CHARS:
                    raise self._error(where, "a key is a short text")
                self.lines[(*where, key)] = key_node.start_mark.line + 1
                if key in made:
                    raise self._error((*where, key), "this key is there twice")
                made[key] = self.build(value_node, (*where, key))
            return made
        if _is_text(node):
            return node.value
        try:
            value: object = self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            raise self._error(where, f"no value: {str(error)[:80]}") from error
        if value is not None and not isinstance(value, str | bool | int | float):
            raise self._error(where, f"a {type(value).__name__}; put it in quotes")
        return value

    def _error(self, where: Location, message: str) -> YamlFileError:
        return _error(self._fault, self._name, self.lines, where, message)


# --- explaining ----------------------------------------------------------------------------------------------

_WORDS: Final = {
    "dict_type": "keys with values are expected",
    "missing": "this key is needed",
    "model_type": "keys with values are expected",
    "string_type": "a text is expected; put it in quotes",
    "tuple_type": "a list is expected",
}
"""What pydantic says of these means Python's types, which nobody wrote."""


def _location(fault: ErrorDetails, lines: Mapping[Location, int], below: Location) -> Location:
    """Where a fault is: pydantic's steps without those that only name the branch of a union."""
    steps = fault["loc"]
    where: Location = ()
    for at, step in enumerate(steps):
        is_key = fault["type"] in {"missing", "extra_forbidden"} and at == len(steps) - 1
        if is_key or (*below, *where, step) in lines:
            where = (*where, step)
    return where


def _known_keys(kind: type[BaseModel], where: Location) -> list[str]:
    kinds: set[type[BaseModel]] = {kind}
    for step in where:
        annotations = [
            field.annotation
            for model in kinds
            for name, field in model.model_fields.items()
            if step in {name, field.alias}
        ]
        # An index, or the key of a table, leads to what the list or table was said to hold.
        if annotations:
            kinds = {model for annotation in annotations for model in _models_in(annotation)}
    return sorted({field.alias or name for model in kinds for name, field in model.model_fields.items()})


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for part in get_args(annotation):
        yield from _models_in(part)


def _quoted(message: str) -> list[str]:
    """The allowed values that pydantic lists, each in quotes."""
    return message.split("'")[1::2]
