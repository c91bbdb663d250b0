"""Templates of prompts, topics and payloads: Jinja2 in its sandbox, and less of it than the sandbox would allow.

What always holds: a template is checked as a whole before it is used. It calls nothing, assigns nothing, includes
nothing, nests no loops, and knows a handful of filters, so that what it makes grows with its own length and with its
values, which are bounded (:mod:`~edgeslm.agent.rules.values`), and with nothing else. Beyond that, its output is
capped. A name without a value is an error, never an empty text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import TypeAlias

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined, UndefinedError, nodes
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import JsonValue
from pydantic_core import to_json

from edgeslm.agent.rules.conditions import ExpressionError
from edgeslm.agent.rules.values import check_bounded
from edgeslm.errors import NoReadingError, RuleFaultError

MAX_NODES = 400
MAX_LOOPS = 4
FILTERS = (
    *("abs", "capitalize", "default", "first", "float", "int", "join", "last", "length", "lower"),
    *("max", "min", "round", "sort", "sum", "title", "tojson", "trim", "upper"),
)
TESTS = (
    *("boolean", "defined", "divisibleby", "eq", "even", "false", "ge", "gt", "in", "le", "lt"),
    *("mapping", "ne", "none", "number", "odd", "sequence", "string", "true", "undefined"),
)
_MAX_JOINED_CHARS = 65_536

Context: TypeAlias = Mapping[str, JsonValue]

_NODES = (
    *(
        nodes.Template,
        nodes.Output,
        nodes.TemplateData,
        nodes.Name,
        nodes.Const,
        nodes.Getattr,
        nodes.Getitem,
    ),
    *(nodes.If, nodes.For, nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Compare, nodes.Operand),
    *(nodes.And, nodes.Or, nodes.Not, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod),
    *(nodes.Neg, nodes.Pos, nodes.Concat, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword),
)
_WORDS = {nodes.Call: "a call", nodes.Assign: "set", nodes.Macro: "a macro", nodes.Pow: "a power"}


class _Environment(ImmutableSandboxedEnvironment):
    """Arithmetic on numbers alone, and no way from a value to anything but its parts."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%"})

    def call_binop(self, context: object, operator: str, left: object, right: object) -> object:
        """`left` and `right` put together, if both are numbers."""
        for side in (left, right):
            if isinstance(side, Undefined):
                side._fail_with_undefined_error()
            if isinstance(side, bool) or not isinstance(side, int | float):
                raise TypeError(f"'{operator}' is for numbers; join texts with '~'")
        return self.binop_table[operator](left, right)

    def getattr(self, obj: object, attribute: str) -> object:
        """The part of that name: ``payload.items`` is what the message has there, never a method."""
        return self.getitem(obj, attribute)

    def getitem(self, obj: object, argument: object) -> object:
        """The part of that name or number."""
        if isinstance(obj, dict) and isinstance(argument, str) and argument in obj:
            return obj[argument]
        if isinstance(obj, list) and isinstance(argument, int) and -len(obj) <= argument < len(obj):
            return obj[argument]
        return self.undefined(obj=obj, name=str(argument)[:40])


def _join(items: object, separator: str = "") -> str:
    texts = [str(item) for item in items] if isinstance(items, list | tuple) else [str(items)]
    if sum(map(len, texts)) + len(separator) * len(texts) > _MAX_JOINED_CHARS:
        raise ValueError(f"join makes more than {_MAX_JOINED_CHARS} characters")
    return separator.join(texts)


def _round(value: object, digits: object = 0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isinstance(digits, int):
        raise TypeError("round is for numbers")
    return round(value, max(-15, min(digits, 15)))


def _tojson(value: object) -> str:
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()
    return to_json(value, inf_nan_mode="null").decode()


def _environment() -> _Environment:
    made = _Environment(undefined=StrictUndefined, autoescape=False, cache_size=0, optimized=False)
    made.globals.clear()
    made.filters = {name: made.filters[name] for name in FILTERS}
    made.filters.update(join=_join, round=_round, tojson=_tojson)
    made.tests = {name: made.tests[name] for name in TESTS}
    return made


_ENVIRONMENT = _environment()


class Template:
    """A template that was checked.

    Attributes:
        reads: names that it needs.
        is_constant: it has nothing in it but text.
        figures: (input, figure) pairs asked for as ``stats.<input>.<figure>``.
    """

    def __init__(self, text: str, known: Callable[[str], bool], names: list[str]) -> None:
        """Check `text`.

        Args:
            known: whether a name can have a value here.
            names: those names, to say which was probably meant.

        Raises:
            ExpressionError: it is no template, or has more in it than one may.
        """
        self.text = text
        try:
            tree = _ENVIRONMENT.parse(text)
        except (TemplateSyntaxError, RecursionError) as error:
            reason = error.message if isinstance(error, TemplateSyntaxError) else "it is nested too deeply"
            raise ExpressionError(f"'{text[:80]}' is no template: {reason}") from error
        _check(tree)
        self.reads = frozenset(find_undeclared_variables(tree))
        for name in sorted(self.reads):
            if not known(name):
                nearest = next(iter(get_close_matches(name, names, 1)), None)
                raise ExpressionError(f"'{name[:40]}' has no value here", nearest)
        outputs = [part for output in tree.find_all(nodes.Output) for part in output.nodes]
        self.is_constant = all(isinstance(part, nodes.TemplateData) for part in outputs) and not any(
            tree.find_all((nodes.If, nodes.For))
        )
        self.figures = _figures(tree)
        self._expression = None
        said = [part for part in outputs if not _is_blank(part)]
        if len(tree.body) == 1 and len(said) == 1 and not self.is_constant and _is_bare(text):
            self._expression = _ENVIRONMENT.compile_expression(
                text.strip()[2:-2].strip(), undefined_to_none=False
            )
        self._template = _ENVIRONMENT.from_string(tree)

    def render(self, context: Context, max_chars: int) -> str:
        """The text for `context`.

        Raises:
            NoReadingError: a name has no value.
            RuleFaultError: its parts do not go together, or the text is longer than `max_chars`.
        """
        with _faults(self.text):
            pieces, length = [], 0
            for piece in self._template.generate(context):
                length += len(piece)
                if length > max_chars:
                    raise RuleFaultError(f"'{self.text[:60]}' makes more than {max_chars} characters")
                pieces.append(piece)
            return "".join(pieces)

    def value(self, context: Context, max_chars: int) -> JsonValue:
        """The value of a template that is nothing but one ``{{expression}}``; the text of any other.

        Raises:
            NoReadingError: a name has no value.
            RuleFaultError: as for :meth:`render`; or it is no value for JSON.
        """
        if self._expression is None:
            return self.render(context, max_chars)
        with _faults(self.text):
            found = self._expression(context)
            if isinstance(found, Undefined):
                found._fail_with_undefined_error()
            return _as_json(found)


class _faults:  # noqa: N801 - used as a statement
    """What a template stumbles over becomes a fault of the rule."""

    def __init__(self, text: str) -> None:
        self._text = text[:80]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, RuleFaultError):
            return
        if isinstance(error, UndefinedError):
            raise NoReadingError(f"'{self._text}': {error.message}") from error
        if isinstance(
            error, TemplateError | TypeError | ValueError | ArithmeticError | LookupError | RecursionError
        ):
            raise RuleFaultError(f"'{self._text}': {str(error)[:160]}") from error


def _as_json(value: object) -> JsonValue:
    if isinstance(value, tuple | list):
        made: JsonValue = [_as_json(item) for item in value]
    elif isinstance(value, dict):
        made = {str(key): _as_json(item) for key, item in value.items()}
    elif value is None or isinstance(value, str | bool | int | float):
        made = value
    else:
        raise TypeError(f"{type(value).__name__} is no value for JSON")
    check_bounded(made)
    return made


def _is_blank(part: nodes.Node) -> bool:
    return isinstance(part, nodes.TemplateData) and not part.data.strip()


def _is_bare(text: str) -> bool:
    stripped = text.strip()
    return stripped.startswith("{{") and stripped.endswith("}}")


def _check(tree: nodes.Template) -> None:
    count = 0
    loops = 0
    stack: list[tuple[nodes.Node, bool]] = [(tree, False)]
    while stack:
        node, in_loop = stack.pop()
        count += 1
        if count > MAX_NODES:
            raise ExpressionError(f"a template of more than {MAX_NODES} parts")
        if not isinstance(node, _NODES):
            word = _WORDS.get(type(node), type(node).__name__.lower())
            raise ExpressionError(f"a template cannot have this in it: {word}")
        if isinstance(node, nodes.For):
            loops += 1
            if in_loop or node.recursive or loops > MAX_LOOPS:
                raise ExpressionError(f"at most {MAX_LOOPS} loops, and none in another")
        if isinstance(node, nodes.Filter | nodes.Test):
            known = FILTERS if isinstance(node, nodes.Filter) else TESTS
            if node.name not in known:
                nearest = next(iter(get_close_matches(node.name, known, 1)), None)
                what = "filter" if isinstance(node, nodes.Filter) else "test"
                raise ExpressionError(f"there is no {what} '{node.name[:40]}'", nearest)
            if node.dyn_args is not None or node.dyn_kwargs is not None:
                raise ExpressionError("a filter's arguments are written out")
        if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
            raise ExpressionError(f"'{node.attr[:40]}' is out of bounds")
        inside = in_loop or isinstance(node, nodes.For)
        stack += [(child, inside) for child in node.iter_child_nodes()]


def _figures(tree: nodes.Template) -> frozenset[tuple[str, str]]:
    found = set()
    for node in tree.find_all(nodes.Name):
        if node.name == "stats":
            found.add(("", ""))
    for outer in tree.find_all(nodes.Getattr):
        inner = outer.node
        is_figure = isinstance(inner, nodes.Getattr) and isinstance(inner.node, nodes.Name)
        if is_figure and inner.node.name == "stats":  # type: ignore[attr-defined]
            found.discard(("", ""))
            found.add((inner.attr, outer.attr))  # type: ignore[attr-defined]
    return frozenset(found)
