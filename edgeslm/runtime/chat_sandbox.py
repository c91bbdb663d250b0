"""Jinja2 for templates that nobody vouches for: the sandbox of Jinja2, with everything that costs counted.

The sandbox keeps a template away from Python; it does not keep it from running on. Here each round of a loop, each
call, filter and test, and each character that is put together is charged to an account, which ends the work past its
limits: of steps, of characters, and of this thread's processor time. What a single step can do is bounded by the length
of the texts and lists that it may make. So nothing is asked of a template's form, but that it is of a size.

What cannot be counted is refused by name: methods and filters other than those listed, powers, and formats with widths.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from difflib import get_close_matches
from functools import wraps
from types import BuiltinMethodType
from typing import Any, Final, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_WORDS = 6_000
"""Words, signs and the spaces between them."""
MAX_NODES = 8_000
MAX_DEPTH = 60
MAX_CALL_DEPTH = 64
MAX_STEPS = 50_000
MAX_CHARS = 8 * 2**20
"""Characters that one run may put together on its way, those that it gives included."""
MAX_TEXT_CHARS = 2**20
"""Longest text that there may be, the one that is given included."""
MAX_ITEMS = 20_000
"""Most values in a list or object, those inside of it included."""
MAX_CPU_S = 0.04
CPU_S_PER_MESSAGE = 0.002
"""What a conversation may take beyond that: fifty times what one message takes x86."""
_STEPS_PER_LOOK = 8
"""The clock is asked that often: it costs more than a step."""

FILTERS: Final = (
    *(
        "abs",
        "capitalize",
        "count",
        "d",
        "default",
        "dictsort",
        "first",
        "float",
        "int",
        "items",
        "join",
        "last",
    ),
    *("length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round"),
    *("safe", "select", "selectattr", "sort", "string", "title", "tojson", "trim", "unique", "upper"),
)
_METHODS: Final[Mapping[type, frozenset[str]]] = {
    str: frozenset(
        [
            *("capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower"),
            *("isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix"),
            *("replace", "rfind", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith"),
            *("strip", "title", "upper"),
        ]
    ),
    dict: frozenset(["get", "items", "keys", "values"]),
    list: frozenset(["count", "index"]),
    tuple: frozenset(["count", "index"]),
}
_PLAIN = (str, int, float, type(None), Undefined)
_STRFTIME = re.compile(r"(?:[^%]|%-?[A-Za-z%]){0,128}")


class Spent(Exception):  # noqa: N818 - no fault of this program, and never shown as such
    """A template that cannot be run, or not to its end."""


class Refusal(Exception):  # noqa: N818 - as above
    """The template's own words about what it does not take."""


class _Account:
    """What one run has cost."""

    def __init__(self, now: Callable[[], datetime], cpu_s: float) -> None:
        self.now = now
        self.steps = 0
        self.chars = 0
        self.depth = 0
        self._look_at = 0
        self._cpu_s = cpu_s
        self._until_s = time.thread_time() + cpu_s

    def step(self, count: int = 1) -> None:
        self.steps += count
        if self.steps > MAX_STEPS:
            raise Spent(f"it takes more than {MAX_STEPS} steps")
        if self.steps >= self._look_at:
            self._look_at = self.steps + _STEPS_PER_LOOK
            if time.thread_time() > self._until_s:
                raise Spent(f"it computes for more than {self._cpu_s * 1e3:.0f} ms")

    def write(self, chars: int) -> None:
        if chars > MAX_TEXT_CHARS:
            raise Spent(f"it makes a text of more than {MAX_TEXT_CHARS} characters")
        self.chars += chars
        if self.chars > MAX_CHARS:
            raise Spent(f"it puts together more than {MAX_CHARS} characters")
        self.step()


_ACCOUNT: ContextVar[_Account] = ContextVar("account")


def _charge(value: object) -> None:
    """Charge the account with the characters of `value` as text, or a little more.

    Raises:
        Spent: too many, too many values in it, or something that is no value.
    """
    chars, items = 0, 0
    stack = [value]
    while stack:
        found = stack.pop()
        items += 1
        if isinstance(found, str):
            chars += len(found) + 2
        elif isinstance(found, dict):
            stack += [*found, *found.values()]
        elif isinstance(found, list | tuple):
            stack += found
        elif isinstance(found, _PLAIN):
            chars += 24
        else:
            raise Spent(f"it makes a text of a {type(found).__name__}")
        if items > MAX_ITEMS or len(stack) > MAX_ITEMS:
            raise Spent(f"it makes a value of more than {MAX_ITEMS} parts")
        if chars > MAX_TEXT_CHARS:
            break
    account = _ACCOUNT.get()
    account.write(chars)
    account.step(items // 16)


def _checked(value: Any) -> Any:
    """`value`, whole and of a size; what would be made bit by bit is made now."""
    account = _ACCOUNT.get()
    if isinstance(value, str):
        account.write(len(value))
        return value
    if isinstance(value, bool | float | None | Undefined):
        account.step()
        return value
    if isinstance(value, int):
        if value.bit_length() > 64:
            raise Spent("it makes a number of more than 64 bits")
        account.step()
        return value
    if isinstance(value, range):
        account.step(len(value))
        return value
    if hasattr(value, "__next__"):
        made = []
        for item in value:
            account.step()
            made.append(item)
        value = made
    elif isinstance(value, type({}.items()) | type({}.keys()) | type({}.values())):
        value = list(value)
    if isinstance(value, list | tuple | dict):
        _weigh(value, account)
    else:
        account.step()
    return value


def _weigh(value: object, account: _Account) -> None:
    """Bound the values in a list, each as often as it is in there, so that no other step multiplies them."""
    items = 0
    stack = [value]
    while stack:
        found = stack.pop()
        items += 1
        if isinstance(found, dict):
            stack += [*found, *found.values()]
        elif isinstance(found, list | tuple):
            stack += found
        if items > MAX_ITEMS or len(stack) > MAX_ITEMS:
            raise Spent(f"it makes a value of more than {MAX_ITEMS} parts")
    account.step(1 + items // 16)


class _Rounds(list[Any]):
    """What a loop goes over, a step each."""

    def __iter__(self) -> Iterator[Any]:
        account = _ACCOUNT.get()
        for item in super().__iter__():
            account.step()
            yield item


def _rounds(value: Any) -> _Rounds:
    is_whole = isinstance(value, str | list | tuple | dict | range | Undefined)
    return _Rounds(value if is_whole else _checked(value))


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    _charge(value)
    return str(value)


def _concat(values: list[object]) -> str:
    texts = [_text(value) for value in values]
    _ACCOUNT.get().write(sum(map(len, texts)))
    return "".join(texts)


def _join(values: object, separator: str = "", attribute: str | None = None) -> str:
    items = list(_rounds(values))
    if attribute is not None:
        items = [item.get(attribute, "") if isinstance(item, dict) else "" for item in items]
    texts = [_text(item) for item in items]
    _ACCOUNT.get().write(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def _replace(text: object, old: str, new: str, count: int = -1) -> str:
    whole = _text(text)
    times = whole.count(old) if count < 0 else count
    _ACCOUNT.get().write(len(whole) + min(times, len(whole) + 1) * len(new))
    return whole.replace(old, new, count)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As the templates know it: without the escapes of HTML."""
    width = min(max(indent or 0, 0), 16) if isinstance(indent, int) else None
    _charge(value)
    return json.dumps(
        value, ensure_ascii=bool(ensure_ascii), indent=width, separators=separators, sort_keys=bool(sort_keys)
    )


def _raise_exception(message: object) -> NoReturn:
    raise Refusal(" ".join(str(message)[:200].split()))


def _emit(_: object, value: object) -> str:
    text = _text(value)
    _ACCOUNT.get().write(len(text))
    return text


class _Generation(Extension):
    """``{% generation %}``: marks an answer for training, and means nothing else."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What stands inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _counted(made: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(made)
    def counting(*args: Any, **kwargs: Any) -> Any:
        return _checked(made(*args, **kwargs))

    return counting


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def call_binop(self, context: object, operator: str, left: Any, right: Any) -> Any:
        """`left` and `right` put together."""
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise Spent("a power, or a format with '%': neither is taken")
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, str | list | tuple) and isinstance(other, int):
                    _ACCOUNT.get().write(len(one) * max(other, 0))
                    if not isinstance(one, str) and len(one) * other > MAX_ITEMS:
                        raise Spent(f"it makes a value of more than {MAX_ITEMS} parts")
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            _ACCOUNT.get().write(len(left) + len(right))
            return left + right
        return _checked(self.binop_table[operator](left, right))

    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what may be called, and count it."""
        account = _ACCOUNT.get()
        account.step(4)
        if isinstance(__obj, Undefined):
            __obj._fail_with_undefined_error()
        if isinstance(__obj, BuiltinMethodType):
            named = {name: value for name, value in kwargs.items() if name not in _OF_CALLS}
            return _call_method(__obj, args, named)
        is_loops = isinstance(__obj, LoopContext) or isinstance(getattr(__obj, "__self__", None), LoopContext)
        if (
            not is_loops
            and not isinstance(__obj, Macro)
            and not any(__obj is one for one in _GLOBALS.values())
        ):
            raise Spent(f"it calls a {type(__obj).__name__}")
        account.depth += 1
        if account.depth > MAX_CALL_DEPTH:
            raise Spent(f"it calls itself without end, or deeper than {MAX_CALL_DEPTH} times")
        made = super().call(__context, __obj, *args, **kwargs)
        account.depth -= 1
        return made if isinstance(made, Namespace) else _checked(made)


def _call_method(method: BuiltinMethodType, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    owner = method.__self__
    known = next((names for kind, names in _METHODS.items() if type(owner) is kind), frozenset())
    if method.__name__ not in known:
        raise Spent(f"it calls {type(owner).__name__}.{method.__name__}, which is not among what it may")
    if isinstance(owner, str):
        _ACCOUNT.get().write(len(owner))
        if method.__name__ == "join":
            return _join(args[0] if args else (), owner)
        if method.__name__ == "replace":
            return _replace(owner, *args, **kwargs)
    return _checked(method(*args, **kwargs))


def _strftime_now(form: object) -> str:
    if not isinstance(form, str) or not _STRFTIME.fullmatch(form):
        raise Spent("it asks for the time in a form that is not taken")
    return _ACCOUNT.get().now().strftime(form)


def _environment() -> _Environment:
    made = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        cache_size=0,
        optimized=False,
        extensions=["jinja2.ext.loopcontrols", _Generation],
        finalize=pass_context(_emit),
    )
    made.globals = dict(_GLOBALS)
    own: dict[str, Callable[..., Any]] = {
        "join": _join,
        "replace": _replace,
        "tojson": _tojson,
        "string": _text,
        "safe": _text,
    }
    all_filters: dict[str, Any] = {**made.filters, **own}
    made.filters = {name: _counted(all_filters[name]) for name in FILTERS}
    # Not to be spelled in a template: no name of Jinja's begins like this.
    made.filters |= {_MADE: _checked, _CONCAT: _concat, _ROUNDS: _rounds}
    all_tests: dict[str, Any] = made.tests
    made.tests = {name: _counted(test) for name, test in all_tests.items()}
    return made


def _range(*args: int) -> range:
    found = range(*args)
    if len(found) > MAX_STEPS:
        raise Spent(f"it takes more than {MAX_STEPS} steps")
    return found


_GLOBALS: Final[Mapping[str, Callable[..., Any]]] = {
    "dict": dict,
    "namespace": Namespace,
    "range": _range,
    "raise_exception": _raise_exception,
    "strftime_now": _strftime_now,
}
_OF_CALLS: Final = ("_loop_vars", "_block_vars")
"""What compiled templates hand along with a call, for functions that want to know."""
_MADE, _CONCAT, _ROUNDS = " made", " concat", " rounds"
_ENVIRONMENT = _environment()
_REFUSED: Final[Mapping[type[nodes.Node], str]] = {
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "from",
    nodes.Extends: "extends",
    nodes.Block: "block",
}


def compile_template(text: str) -> Template:
    """The template in `text`, ready to be run.

    Raises:
        Spent: it is none, or has something in it that is not taken.
    """
    try:
        if sum(1 for _ in zip(_ENVIRONMENT.lex(text), range(MAX_WORDS + 1), strict=False)) > MAX_WORDS:
            raise Spent(f"it has more than {MAX_WORDS} words and signs")
        tree = _ENVIRONMENT.parse(text)
        _check(tree)
        return _ENVIRONMENT.from_string(_count_in(tree))
    except TemplateSyntaxError as error:
        raise Spent(f"line {error.lineno}: {error.message}{_nearest(error.message or '')}") from error
    except (TemplateError, SyntaxError, RecursionError, MemoryError, ValueError, OverflowError) as error:
        raise Spent(f"it is nested too deeply, or no template ({type(error).__name__})") from error


def run_template(
    template: Template,
    context: Mapping[str, object],
    *,
    now: Callable[[], datetime],
    cpu_s: float = MAX_CPU_S,
) -> str:
    """What `template` makes of `context`.

    Args:
        now: the time of day, for templates that say it.
        cpu_s: processor time of this thread, in seconds, that it may take.

    Raises:
        Refusal: it says itself that it does not take this.
        Spent: it fails, or goes on for too long.
    """
    with _faults():
        token = _ACCOUNT.set(_Account(now, cpu_s))
        try:
            return template.render(context)
        finally:
            _ACCOUNT.reset(token)


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except (Spent, Refusal):
        raise
    except RecursionError as error:
        raise Spent("it calls itself without end") from error
    except SecurityError as error:
        raise Spent(f"it reaches for what it may not: {str(error)[:160]}") from error
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise Spent(f"{type(error).__name__}: {str(error)[:160]}") from error


def _check(tree: nodes.Template) -> None:
    count = 0
    stack: list[tuple[nodes.Node, int]] = [(tree, 0)]
    while stack:
        node, depth = stack.pop()
        count += 1
        if count > MAX_NODES:
            raise Spent(f"it has more than {MAX_NODES} parts")
        if depth > MAX_DEPTH:
            raise Spent(f"it is nested deeper than {MAX_DEPTH} levels")
        word = _REFUSED.get(type(node))
        if word is not None:
            raise Spent(f"line {node.lineno}: '{word}' has no place in it")
        stack += [(child, depth + 1) for child in node.iter_child_nodes()]


def _count_in(node: Any) -> Any:
    """`node` with what costs handed to a function that counts it; see the depth that :func:`_check` allows."""
    for name, value in node.iter_fields():
        if isinstance(value, nodes.Node):
            setattr(node, name, _count_in(value))
        elif isinstance(value, list):
            setattr(node, name, [_count_in(item) if isinstance(item, nodes.Node) else item for item in value])
    if isinstance(node, nodes.TemplateData):
        return nodes.Const(node.data, lineno=node.lineno)
    if isinstance(node, nodes.For):
        node.iter = _filtered(node.iter, _ROUNDS)
    elif isinstance(node, nodes.Concat):
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _CONCAT)
    elif isinstance(node, nodes.Compare):
        node.expr = _filtered(node.expr, _MADE)
    elif isinstance(node, nodes.List | nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
        return _filtered(node, _MADE)
    return node


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _nearest(message: str) -> str:
    named = re.search(r"No filter named '([^']{1,40})", message)
    close = get_close_matches(named[1], FILTERS, 1) if named else []
    return f" Did you mean '{close[0]}'?" if close else ""
