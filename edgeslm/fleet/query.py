"""The language in which operators say which devices they mean. Pure.

::

    board = pi-4b and (tag:north or tag:east) and not model.home-command >= 1.2
    seen > 2d and standing = active
    name ~ kitchen-* and group:greenhouses

What always holds: :func:`parse` and :func:`text_of` are inverses; what is parsed can be evaluated for any device
without an error; a fault is told with its place and the nearest word that would do.

Grammar, loosest first: ``or``, ``and``, ``not``, then a comparison or a query in parentheses. A comparison is a field,
an operator and a value; ``:`` is another way to write ``=``; ``online`` alone is ``presence = online``. A value with
other characters than letters, digits and ``._+*?[]@/,-`` stands in quotes; ``none``, without quotes, is no value.

Left to others: the fields (:mod:`edgeslm.fleet.query_fields`), and which devices are in a group
(:mod:`edgeslm.fleet.groups`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from edgeslm.errors import SelectionError
from edgeslm.fleet.query_fields import (
    FIELD_NAMES,
    OPERATORS,
    Kind,
    Moment,
    Operator,
    find_field,
    holds,
    value_fault,
)
from edgeslm.schema.fleet import DeviceFacts

MAX_CHARS = 4000
MAX_DEPTH = 50
_WORDS = {"and", "or", "not", "none"}
_BARE = re.compile(r"[\w.+*?\[\]@/,-]+", re.ASCII)
_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<mark>[()])|(?P<operator>!=|<=|>=|[=<>~:])"
    r'|(?P<quoted>"(?:[^"\\]|\\["\\])*")|(?P<word>[\w.+*?\[\]@/,-]+)',
    re.ASCII,
)


@dataclass(frozen=True)
class Comparison:
    """A field compared with a value; ``None`` is the absence of one.

    Attributes:
        position: of the value in the text that it was parsed from.
    """

    name: str
    operator: Operator
    value: str | None
    position: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Not:
    """True where `part` is not."""

    part: Query


@dataclass(frozen=True)
class And:
    """True where all of two or more parts are."""

    parts: tuple[Query, ...]


@dataclass(frozen=True)
class Or:
    """True where one of two or more parts is."""

    parts: tuple[Query, ...]


Query = Comparison | Not | And | Or


def matches(query: Query, facts: DeviceFacts, moment: Moment) -> bool:
    """Whether a device is one that the query means."""
    if isinstance(query, And):
        return all(matches(part, facts, moment) for part in query.parts)
    if isinstance(query, Or):
        return any(matches(part, facts, moment) for part in query.parts)
    if isinstance(query, Not):
        return not matches(query.part, facts, moment)
    asked = find_field(query.name)
    return asked is not None and holds(asked, query.operator, query.value, facts, moment)


def comparisons(query: Query) -> Iterator[Comparison]:
    """All comparisons in a query."""
    if isinstance(query, Comparison):
        yield query
    elif isinstance(query, Not):
        yield from comparisons(query.part)
    else:
        for part in query.parts:
            yield from comparisons(part)


def groups_in(query: Query) -> dict[str, int | None]:
    """The groups that a query names, each with its place in the text."""
    return {
        one.value: one.position for one in comparisons(query) if one.name == "group" and one.value is not None
    }


def renamed_group(query: Query, name: str, to: str) -> Query:
    """The query with another name for one group."""
    if isinstance(query, Not):
        return Not(renamed_group(query.part, name, to))
    if isinstance(query, And | Or):
        return type(query)(tuple(renamed_group(part, name, to) for part in query.parts))
    if (query.name, query.value) == ("group", name):
        return Comparison("group", query.operator, to)
    return query


# --- writing ------------------------------------------------------------------------------------------------


def text_of(query: Query) -> str:
    """The query as a person would write it."""
    if isinstance(query, Or):
        return " or ".join(_within(part, Or) for part in query.parts)
    if isinstance(query, And):
        return " and ".join(_within(part, Or, And) for part in query.parts)
    if isinstance(query, Not):
        return f"not {_within(query.part, Or, And)}"
    if query.operator == "=" and query.name in {"tag", "group"} and query.value is not None:
        return f"{query.name}:{_quoted(query.value)}"
    return f"{query.name} {query.operator} {_quoted(query.value)}"


def _within(part: Query, *looser: type[Query]) -> str:
    return f"({text_of(part)})" if isinstance(part, looser) else text_of(part)


def _quoted(value: str | None) -> str:
    if value is None:
        return "none"
    if _BARE.fullmatch(value) and value not in _WORDS:
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# --- reading ------------------------------------------------------------------------------------------------


def parse(expression: str) -> Query:
    """Read a query.

    Raises:
        SelectionError: it is none; with the place of the fault, and what was probably meant.
    """
    if len(expression) > MAX_CHARS:
        raise SelectionError(
            f"a query of {len(expression)} characters; {MAX_CHARS} are the most", expression=expression[:100]
        )
    return _Parser(expression).parse()


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int


class _Parser:
    """Reads one expression by recursive descent."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._tokens = list(self._split())
        self._at = 0
        self._depth = 0

    def parse(self) -> Query:
        """The whole of it."""
        query = self._any_of()
        if self._next.kind != "end":
            near = "'and' or 'or'" if self._next.text != ")" else "nothing, or '(' before"
            self._fail(f"expected {near} here, not '{self._next.text}'", self._next)
        return query

    def _split(self) -> Iterator[_Token]:
        position = 0
        while position < len(self._expression):
            match = _TOKEN.match(self._expression, position)
            if match is None:
                text = self._expression[position]
                why = "a quote that does not end" if text == '"' else f"{text!r} has to stand in quotes"
                self._fail(why, _Token("", text, position))
            if match.lastgroup != "space":
                yield _Token(str(match.lastgroup), match[0], position)
            position = match.end()
        yield _Token("end", "the end", position)

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._next
        self._at += 1
        return token

    def _takes(self, text: str) -> bool:
        is_next = self._next.kind in {"word", "mark"} and self._next.text == text
        self._at += is_next
        return is_next

    def _any_of(self) -> Query:
        parts = [self._all_of()]
        while self._takes("or"):
            parts.append(self._all_of())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _all_of(self) -> Query:
        parts = [self._one()]
        while self._takes("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _one(self) -> Query:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(f"more than {MAX_DEPTH} queries within each other", self._next)
        try:
            if self._takes("not"):
                return Not(self._one())
            if self._takes("("):
                query = self._any_of()
                if not self._takes(")"):
                    self._fail(f"expected ')' here, not '{self._next.text}'", self._next)
                return query
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Query:
        name = self._take()
        if name.kind != "word" or name.text in _WORDS:
            self._fail(f"expected a field here, not '{name.text}'", name)
        if name.text == "online" and self._next.kind != "operator":
            return Comparison("presence", "=", "online", name.position)
        asked = find_field(name.text)
        if asked is None:
            self._fail(f"no field '{name.text}'", name, _nearest_fields(name.text))
        sign = self._take()
        if sign.kind != "operator":
            self._fail(f"expected an operator after '{name.text}', not '{sign.text}'", sign)
        operator = _operator(sign.text, asked.kind)
        if operator is None:
            able = " ".join(OPERATORS[asked.kind])
            self._fail(f"'{name.text}' is compared with {able}, not {sign.text}", sign)
        value = self._take()
        if value.kind not in {"word", "quoted"} or (value.kind == "word" and value.text in _WORDS - {"none"}):
            self._fail(f"expected a value after '{name.text} {sign.text}', not '{value.text}'", value)
        text = _value(value)
        fault = value_fault(asked.kind, operator, text)
        if fault is not None:
            self._fail(fault, value)
        return Comparison(name.text, operator, text, value.position)

    def _fail(self, why: str, token: _Token, nearest: tuple[str, ...] = ()) -> NoReturn:
        raise SelectionError(
            f"{why}: character {token.position + 1} of the query {self._expression!r}",
            expression=self._expression,
            position=token.position,
            nearest=nearest,
        )


def _operator(text: str, kind: Kind) -> Operator | None:
    wanted = "=" if text == ":" else text
    return next((one for one in OPERATORS[kind] if one == wanted), None)


def _value(token: _Token) -> str | None:
    if token.kind == "quoted":
        return re.sub(r"\\(.)", r"\1", token.text[1:-1])
    return None if token.text == "none" else token.text


def _nearest_fields(name: str) -> tuple[str, ...]:
    prefix, dot, rest = name.partition(".")
    known = [one.partition(".")[0] if dot else one for one in FIELD_NAMES if not dot or "." in one]
    near = difflib.get_close_matches(prefix, known, n=3)
    return tuple(f"{one}.{rest}" if dot else one for one in near)
