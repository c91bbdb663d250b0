"""The language of conditions: numbers, texts, comparisons, arithmetic, and what is known of the inputs. By simpleeval.

What always holds: an expression is checked as a whole before it is used. It has no attributes, no indices, no loops,
no power, and no names but those that were declared, so that evaluating it takes time in proportion to its length. Texts
are compared and never multiplied or joined; a number stays finite.

Functions of an input: ``last(x)`` (the same as ``x``), ``mean(x)``, ``min(x)``, ``max(x)``, ``slope(x)`` (change a
minute), ``count(x)``, ``age(x)`` (seconds) and ``has(x)``. Others: ``abs``, ``round``, ``lower``, ``hour()`` and
``weekday()`` (local, Monday is 0), ``answer("path")`` and ``given("name")``, each with a default as second argument.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol, TypeAlias

import simpleeval
from pydantic import JsonValue

from edgeslm.errors import NoReadingError, RuleFaultError
from edgeslm.schema.rule import MAX_MAGNITUDE

MAX_NODES = 200
_DEEPEST = 24

Value: TypeAlias = JsonValue

OF_INPUT = ("last", "mean", "min", "max", "slope", "count", "age", "has")
OF_WINDOW = frozenset({"mean", "min", "max", "slope", "count"})
OF_CONTEXT = ("answer", "given")
_OTHERS = {"abs": 1, "round": 2, "lower": 1, "hour": 0, "weekday": 0}
FUNCTIONS = (*OF_INPUT, *OF_CONTEXT, *_OTHERS)

_NODES = (
    *(ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.UAdd),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Mod),
    *(ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn),
    *(ast.IfExp, ast.Call, ast.Name, ast.Load, ast.Constant, ast.Tuple, ast.List),
)


class ExpressionError(ValueError):
    """An expression is wrong; :mod:`~edgeslm.agent.rules.loading` says where.

    Attributes:
        nearest: the valid name that was probably meant.
    """

    def __init__(self, message: str, nearest: str | None = None) -> None:
        super().__init__(message)
        self.nearest = nearest


class Scope(Protocol):
    """What an expression can ask for. Each raises ``NoReadingError`` where there is nothing."""

    def value(self, name: str) -> Value:
        """The latest value of an input, if it is not too old."""

    def figure(self, function: str, name: str) -> Value:
        """``mean``, ``age`` and so on of an input."""

    def context(self, function: str, path: str) -> Value:
        """What stands at `path` in the answer (``answer``) or in what a calling rule gave (``given``)."""

    def local_time(self, part: str) -> int:
        """``hour`` or ``weekday``."""


@dataclass(frozen=True)
class Names:
    """What may stand in an expression.

    Attributes:
        inputs: names of inputs.
        windowed: of these, those that keep a window.
        context: functions among ``answer`` and ``given`` that have something to tell here.
    """

    inputs: Collection[str]
    windowed: Collection[str] = ()
    context: Collection[str] = ()


class Condition:
    """An expression that was checked.

    Attributes:
        reads: inputs that it asks for.
    """

    def __init__(self, text: str, names: Names) -> None:
        """Check `text`.

        Raises:
            ExpressionError: it holds what no condition may, or a name that nobody declared.
        """
        self.text = text
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply"
            raise ExpressionError(f"'{text[:80]}' is no expression: {reason}") from error
        self.reads = frozenset(_check(tree, names))
        self._body = tree.body
        self._evaluator = _Evaluator()

    def value(self, scope: Scope) -> Value:
        """What the expression comes to.

        Raises:
            NoReadingError: it asks for a value that is not there.
            RuleFaultError: its parts do not go together, such as a text and a number.
        """
        return self._evaluator.run(self.text, self._body, scope)

    def holds(self, scope: Scope) -> bool:
        """Whether it is true; raises as :meth:`value`."""
        return bool(self.value(scope))


def _check(tree: ast.Expression, names: Names) -> set[str]:
    """The inputs that `tree` asks for."""
    reads: set[str] = set()
    functions: set[int] = set()
    nodes = list(ast.walk(tree))
    if len(nodes) > MAX_NODES or _depth(tree) > _DEEPEST:
        raise ExpressionError(f"an expression of more than {MAX_NODES} parts, or {_DEEPEST} levels")
    for node in nodes:
        if not isinstance(node, _NODES):
            raise ExpressionError(f"a condition cannot have this in it: {type(node).__name__.lower()}")
        if isinstance(node, ast.Constant):
            _check_constant(node.value)
        if isinstance(node, ast.Call):
            functions.add(id(node.func))
            _check_call(node, names)
    for node in nodes:
        if isinstance(node, ast.Name) and id(node) not in functions:
            if node.id not in names.inputs:
                raise _unknown("input", node.id, names.inputs)
            reads.add(node.id)
    return reads


def _check_constant(value: object) -> None:
    if value is not None and not isinstance(value, str | int | float):
        raise ExpressionError(f"a condition cannot have this in it: {type(value).__name__}")
    if isinstance(value, int | float) and not abs(value) <= MAX_MAGNITUDE:
        raise ExpressionError(f"numbers go up to {MAX_MAGNITUDE:g}")


def _check_call(node: ast.Call, names: Names) -> None:
    if not isinstance(node.func, ast.Name) or node.keywords:
        raise ExpressionError("only functions are called, and without keywords")
    name = node.func.id
    if name in OF_INPUT:
        if len(node.args) != 1 or not isinstance(node.args[0], ast.Name):
            raise ExpressionError(f"{name}() takes the name of one input")
        read = node.args[0].id
        if read in names.inputs and name in OF_WINDOW and read not in names.windowed:
            raise ExpressionError(f"{name}({read}) needs a 'window' at the input '{read}'")
    elif name in OF_CONTEXT:
        if name not in names.context:
            raise ExpressionError(f"there is no {name}() here")
        path = node.args[0] if node.args else None
        if not isinstance(path, ast.Constant) or not isinstance(path.value, str) or len(node.args) > 2:
            raise ExpressionError(f"{name}() takes a path as text, and a value to take without one")
    elif name in _OTHERS:
        fewest = 1 if name == "round" else _OTHERS[name]
        if not fewest <= len(node.args) <= _OTHERS[name]:
            raise ExpressionError(f"{name}() takes {_OTHERS[name]} arguments")
    else:
        raise _unknown("function", name, FUNCTIONS)


def _unknown(what: str, name: str, known: Collection[str]) -> ExpressionError:
    nearest = next(iter(get_close_matches(name, list(known), 1)), None)
    return ExpressionError(f"there is no {what} '{name[:40]}' here", nearest)


def _depth(node: ast.AST) -> int:
    level, depth = [node], 0
    while level and depth <= 2 * _DEEPEST:
        level = [child for one in level for child in ast.iter_child_nodes(one)]
        depth += 1
    return depth


class _Evaluator(simpleeval.SimpleEval):  # type: ignore[misc]  # simpleeval has no types
    """Evaluates trees that :func:`_check` let through; one for each condition, on one thread at a time."""

    def __init__(self) -> None:
        super().__init__(operators=_OPERATORS, functions={}, names={})
        self._scope: Scope | None = None
        self.nodes = {
            ast.BoolOp: self._eval_boolop,
            ast.UnaryOp: self._eval_unaryop,
            ast.BinOp: self._eval_binop,
            ast.Compare: self._eval_compare,
            ast.IfExp: self._eval_ifexp,
            ast.Call: self._eval_call,
            ast.Name: self._eval_name,
            ast.Constant: self._eval_constant,
            ast.Tuple: self._eval_items,
            ast.List: self._eval_items,
        }

    def run(self, text: str, body: ast.expr, scope: Scope) -> Value:
        """Evaluate `body`."""
        self._scope = scope
        try:
            value: Value = self.eval(text, body)
        except RuleFaultError:
            raise
        except ZeroDivisionError as error:
            raise RuleFaultError(f"'{text[:80]}' divides by zero") from error
        except (TypeError, ValueError, OverflowError, simpleeval.InvalidExpression) as error:
            raise RuleFaultError(f"'{text[:80]}': {str(error)[:120]}") from error
        else:
            return value
        finally:
            self._scope = None

    @property
    def _asked(self) -> Scope:
        assert self._scope is not None  # noqa: S101 - set for as long as something is evaluated
        return self._scope

    def _eval_name(self, node: ast.Name) -> Value:
        return self._asked.value(node.id)

    def _eval_items(self, node: ast.Tuple | ast.List) -> list[Value]:
        return [self._eval(item) for item in node.elts]

    def _eval_call(self, node: ast.Call) -> Value:
        name, args, scope = node.func.id, node.args, self._asked  # type: ignore[attr-defined]  # a Name: checked
        if name in OF_INPUT:
            read = args[0].id  # type: ignore[attr-defined]  # a Name: checked
            return scope.value(read) if name == "last" else scope.figure(name, read)
        if name in OF_CONTEXT:
            try:
                return scope.context(name, args[0].value)  # type: ignore[attr-defined]  # a Constant: checked
            except NoReadingError:
                if len(args) < 2:
                    raise
                return self._eval(args[1])  # type: ignore[no-any-return]
        if name in {"hour", "weekday"}:
            return scope.local_time(name)
        given = [self._eval(argument) for argument in args]
        if name == "lower":
            if not isinstance(given[0], str):
                raise TypeError("lower() takes a text")
            return given[0].lower()
        if name == "abs":
            return abs(_number(given[0]))
        digits = int(_number(given[1])) if len(given) > 1 else 0
        return round(_number(given[0]), max(-15, min(digits, 15)))


def _number(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a number is expected, not {type(value).__name__}")
    return value


def _arithmetic(operation: Callable[[float, float], float]) -> Callable[[object, object], float]:
    def bounded(left: object, right: object) -> float:
        result = operation(_number(left), _number(right))
        if not abs(result) <= MAX_MAGNITUDE**2:
            raise OverflowError("the number becomes too large")
        return result

    return bounded


def _order(operation: Callable[..., bool]) -> Callable[[object, object], bool]:
    def ordered(left: object, right: object) -> bool:
        if isinstance(left, str) and isinstance(right, str):
            return operation(left, right)
        return operation(_number(left), _number(right))

    return ordered


def _is_in(item: object, among: object) -> bool:
    if isinstance(among, str):
        if not isinstance(item, str):
            raise TypeError("only a text can be in a text")
        return item in among
    if isinstance(among, list | dict):
        return item in among
    raise TypeError("'in' needs a list or a text")


_OPERATORS: dict[type[ast.AST], Callable[..., object]] = {
    ast.Add: _arithmetic(operator.add),
    ast.Sub: _arithmetic(operator.sub),
    ast.Mult: _arithmetic(operator.mul),
    ast.Div: _arithmetic(operator.truediv),
    ast.Mod: _arithmetic(operator.mod),
    ast.USub: lambda value: -_number(value),
    ast.UAdd: _number,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: _order(operator.lt),
    ast.LtE: _order(operator.le),
    ast.Gt: _order(operator.gt),
    ast.GtE: _order(operator.ge),
    ast.In: _is_in,
    ast.NotIn: lambda item, among: not _is_in(item, among),
}
