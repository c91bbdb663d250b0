"""What an answer is held to, in our words and in ``llguidance``'s own notation."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from edgeslm.errors import ConstraintError
from edgeslm.schema.message import AnswerFormKind, Options

NAMES = {
    "json_schema": "the schema",
    "regex": "the regular expression",
    "choices": "the choices",
    "grammar": "the grammar",
}
"""What a form is called in errors."""

_MAX_REMAINDERS = 10_000
"""Takes the library some 60 ms and 5 MB."""


@dataclass(frozen=True)
class AnswerForm:
    """What an answer is held to.

    Attributes:
        kind: the option that states it.
        text: a schema or the choices as JSON, else as it was given.
    """

    kind: AnswerFormKind
    text: str


def form_of(options: Options) -> AnswerForm | None:
    """The form that `options` ask for, where they do."""
    kind = options.answer_form
    if kind is None:
        return None
    value = getattr(options, kind)
    is_text = isinstance(value, str)
    return AnswerForm(
        kind, value if is_text else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    )


def to_grammar(library: Any, form: AnswerForm) -> str:
    """`form` in the library's own notation.

    Raises:
        ConstraintError: it is no JSON where it should be, or takes more than any answer is worth.
    """
    try:
        form.text.encode()
        match form.kind:
            case "json_schema":
                _check_multiples(json.loads(form.text))
                made = library.LLMatcher.grammar_from_json_schema(
                    form.text, defaults={"whitespace_flexible": False}
                )
            case "regex":
                made = library.LLMatcher.grammar_from_regex(form.text)
            case "choices":
                made = library.LLMatcher.grammar_from_lark(
                    "start: " + " | ".join(json.dumps(choice) for choice in json.loads(form.text))
                )
            case "grammar":
                if "%json" in form.text:
                    raise ConstraintError(
                        "the grammar contains a JSON Schema (%json)",
                        kind="grammar",
                        hint="Use the option json_schema",
                    )
                made = library.LLMatcher.grammar_from_lark(form.text)
    except ValueError as error:  # a lone surrogate is one too
        raise ConstraintError(
            f"{NAMES[form.kind]} cannot be followed: {first_line(str(error))}", kind=form.kind
        ) from error
    return str(made)


def _check_multiples(schema: Any) -> None:
    """Refuse multiples that the library would take minutes and gigabytes for: it counts all remainders.

    Raises:
        ConstraintError: there are too many remainders.
    """
    steps: list[int] = []
    level = [schema]
    while level:
        steps += [
            _digits(item["multipleOf"]) for item in level if isinstance(item, dict) and "multipleOf" in item
        ]
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    # What holds at once multiplies, what holds in different places adds up.
    if max(sum(steps), math.lcm(*steps)) > _MAX_REMAINDERS:
        raise ConstraintError(
            f"the schema cannot be followed: its multipleOf have more than {_MAX_REMAINDERS} remainders",
            kind="json_schema",
            hint="Leave multipleOf out, and check the number where it is used",
        )


def _digits(step: Any) -> int:
    """The digits of a number without its point: 25 for 0.25. 1 for what is no number, which the library refuses."""
    if isinstance(step, bool) or not isinstance(step, int | float):
        return 1
    if abs(step) > _MAX_REMAINDERS:
        return _MAX_REMAINDERS + 1
    text = f"{abs(step):.12f}".rstrip("0") if isinstance(step, float) else str(abs(step))
    return max(int(text.replace(".", "")), 1)


def first_line(message: str) -> str:
    """What the library says first: what follows is its state, or the whole grammar."""
    return message.strip().partition("\n")[0][:300] or "no reason is given"
