"""What is known of each input, and what an expression or template may see of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import JsonValue

from edgeslm.agent.rules.compiled import CompiledInput, CompiledRule, InputKey
from edgeslm.agent.rules.decisions import Moment
from edgeslm.agent.rules.values import check_type, describe_value, extract, parse_path
from edgeslm.agent.rules.windows import Window
from edgeslm.errors import NoReadingError, PayloadError


@dataclass(slots=True)
class Reading:
    """One input.

    Attributes:
        at_s: monotonic time of the latest value; ``None`` before the first.
        is_old: the broker had it in store: nobody knows when it was true.
    """

    spec: CompiledInput
    value: JsonValue = None
    at_s: float | None = None
    is_old: bool = False
    window: Window | None = None
    count: int = 0
    faults: int = 0
    last_fault: str = ""

    def take(self, content: JsonValue, at_s: float, *, is_old: bool) -> None:
        """The value that is in the body of a message.

        Raises:
            PayloadError: there is none, or it is out of range; the former one stays.
        """
        spec = self.spec.spec
        value = extract(content, self.spec.path) if self.spec.path else content
        check_type(value, spec.value_type)
        if spec.range is not None and isinstance(value, int | float):
            low, high = spec.range
            if not low <= value <= high:
                raise PayloadError(f"{value:g} is out of the range {low:g} to {high:g}")
        if is_old and self.at_s is not None and not self.is_old:
            return  # after a reconnect the broker repeats what may be older than what we have
        self.value, self.at_s, self.is_old = value, at_s, is_old
        self.count += 1
        if self.window is not None and not is_old and isinstance(value, int | float):
            self.window.add(at_s, float(value))

    def fault(self, error: PayloadError) -> None:
        """A message could not be used."""
        self.faults += 1
        self.last_fault = error.message[:200]

    def fresh(self, now_s: float, max_age_s: float | None) -> JsonValue:
        """The value, if it is not older than the input's own limit and `max_age_s`.

        Raises:
            NoReadingError: it never came, or is too old.
        """
        name = self.spec.name
        if self.at_s is None:
            raise NoReadingError(f"'{name}' has no value yet")
        limits = [limit for limit in (self.spec.spec.max_age_s, max_age_s) if limit is not None]
        if limits:
            if self.is_old:
                raise NoReadingError(f"'{name}' is a retained message, whose age nobody knows")
            if now_s - self.at_s > min(limits):
                raise NoReadingError(f"'{name}' is {now_s - self.at_s:.0f} s old")
        return self.value


def new_reading(spec: CompiledInput) -> Reading:
    """Of an input that has heard nothing."""
    span_s = spec.spec.window_s
    return Reading(spec, window=None if span_s is None else Window(span_s))


@dataclass(slots=True)
class RuleScope:
    """What one rule sees in one moment; a ``conditions.Scope``.

    Attributes:
        extra: ``payload``, ``topic``, ``given`` and ``answer``, as far as there are such.
    """

    rule: CompiledRule
    readings: Mapping[InputKey, Reading]
    now: Moment
    extra: dict[str, JsonValue] = field(default_factory=dict)

    def value(self, name: str) -> JsonValue:
        """See ``Scope``."""
        return self.readings[self.rule.inputs[name]].fresh(self.now.mono_s, self.rule.spec.max_age_s)

    def figure(self, function: str, name: str) -> JsonValue:
        """See ``Scope``."""
        reading = self.readings[self.rule.inputs[name]]
        now_s = self.now.mono_s
        if function == "has":
            try:
                self.value(name)
            except NoReadingError:
                return False
            return True
        if function == "last":
            return self.value(name)
        if function == "age":
            if reading.at_s is None or reading.is_old:
                raise NoReadingError(f"the age of '{name}' is not known")
            return now_s - reading.at_s
        window = reading.window
        summary = None if window is None else window.summary(now_s)
        if function == "count":
            return 0 if summary is None else summary.count
        if summary is None or window is None:
            raise NoReadingError(f"'{name}' has no value in its window")
        if function == "slope":
            slope = window.slope_per_min(now_s)
            if slope is None:
                raise NoReadingError(f"'{name}' has fewer than two values in its window")
            return slope
        return {"mean": summary.mean, "min": summary.low, "max": summary.high}[function]

    def context(self, function: str, path: str) -> JsonValue:
        """See ``Scope``."""
        if function not in self.extra:
            raise NoReadingError(f"there is no {function} here")
        try:
            return extract(self.extra[function], parse_path(path))
        except PayloadError as error:
            raise NoReadingError(f"{function}: {error.message}") from error

    def local_time(self, part: str) -> int:
        """See ``Scope``."""
        local = datetime.fromtimestamp(self.now.wall_s).astimezone()
        return local.hour if part == "hour" else local.weekday()

    def template_context(self) -> dict[str, JsonValue]:
        """What templates see: each input that has a value, figures that some template asks for, and the rest."""
        context: dict[str, JsonValue] = {"rule": self.rule.name, "now": self.local_text()}
        stats: dict[str, JsonValue] = {}
        for name, figure in {pair for template in self.rule.templates for pair in template.figures}:
            try:
                of_input = stats.setdefault(name, {})
                if isinstance(of_input, dict):
                    of_input[figure] = self.figure(figure, name)
            except NoReadingError:
                continue  # a template that really needs it says so
        context["stats"] = stats
        for name in self.rule.shown:
            try:
                context[name] = self.value(name)
            except NoReadingError:
                continue
        return {**context, **self.extra}

    def local_text(self) -> str:
        """Local time, ISO 8601 to the second."""
        return datetime.fromtimestamp(self.now.wall_s).astimezone().isoformat(timespec="seconds")

    def shown(self) -> dict[str, JsonValue]:
        """Inputs that the rule reads, for the trace."""
        found: dict[str, JsonValue] = {}
        for name in self.rule.shown:
            reading = self.readings[self.rule.inputs[name]]
            if reading.at_s is not None:
                value = reading.value
                found[name] = describe_value(value) if isinstance(value, dict | list) else _short(value)
        return found


def _short(value: JsonValue) -> JsonValue:
    return value[:200] if isinstance(value, str) else value
