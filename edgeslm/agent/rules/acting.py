"""From a firing, with its answer where there was a prompt, to what is to be done. Pure.

All of a firing's actions are made and checked before the first is carried out: one that is refused refuses them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue
from pydantic_core import to_json

from edgeslm.agent.rules.compiled import CompiledCall, CompiledPublish, CompiledRule, Structure
from edgeslm.agent.rules.decisions import Send, Tell
from edgeslm.agent.rules.readings import RuleScope
from edgeslm.agent.rules.templates import Template
from edgeslm.agent.rules.values import MAX_STRING_CHARS
from edgeslm.errors import AnswerRefusedError, NoReadingError, RuleFaultError
from edgeslm.schema.rule import MAX_PAYLOAD_BYTES
from edgeslm.schema.rule_trace import ActionTrace

_MAX_LEVEL_CHARS = 256
_MAX_EVENT_CHARS = 1000
_SHOWN_CHARS = 1000


@dataclass(frozen=True, slots=True)
class Go:
    """Go on with another rule."""

    rule: str
    given: dict[str, JsonValue]


@dataclass(slots=True)
class Plan:
    """What a firing comes to."""

    steps: list[Send | Tell | Go] = field(default_factory=list)
    traces: list[ActionTrace] = field(default_factory=list)


def plan_actions(rule: CompiledRule, scope: RuleScope) -> Plan:
    """What `rule` does in `scope`, whose ``answer`` was checked.

    Raises:
        AnswerRefusedError: an interlock does not hold, or something that would be done is not allowed.
        RuleFaultError: a template or condition cannot be worked out.
    """
    _check_interlock(rule, scope)
    plan = Plan()
    context = scope.template_context()
    for action in rule.actions:
        if action.condition is not None and not action.condition.holds(scope):
            continue
        if isinstance(action.what, CompiledPublish):
            _plan_publish(plan, rule, action.what, context)
        elif isinstance(action.what, CompiledCall):
            given = {name: fill(part, context) for name, part in action.what.values.items()}
            plan.steps.append(Go(action.what.rule, given))
            plan.traces.append(ActionTrace(kind="call", to=action.what.rule, payload=_shown(given)))
        else:
            detail = action.what.render(context, _MAX_EVENT_CHARS)
            plan.steps.append(Tell(rule.name, detail))
            plan.traces.append(ActionTrace(kind="event", to="rule", payload=detail))
    return plan


def _check_interlock(rule: CompiledRule, scope: RuleScope) -> None:
    for condition in rule.interlock:
        try:
            holds = condition.holds(scope)
        except NoReadingError as error:
            raise AnswerRefusedError(f"interlock '{condition.text[:80]}': {error.message}") from error
        if not holds:
            raise AnswerRefusedError(f"interlock '{condition.text[:80]}' does not hold")


def _plan_publish(
    plan: Plan, rule: CompiledRule, publish: CompiledPublish, context: dict[str, JsonValue]
) -> None:
    topic = "/".join(_level(level, context) for level in publish.topic)
    rule.allowed.check(topic)
    value, clamped = publish.clamp.apply(fill(publish.payload, context))
    if publish.schema is not None:
        publish.schema.check(value, "the payload")
    payload = value.encode() if publish.is_text and isinstance(value, str) else to_json(value)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise AnswerRefusedError(f"a payload of {len(payload)} bytes, at most {MAX_PAYLOAD_BYTES} are sent")
    plan.steps.append(Send(rule.name, topic, payload, publish.qos, publish.retain))
    shown = payload[:_SHOWN_CHARS].decode("utf-8", "replace")
    plan.traces.append(ActionTrace(kind="publish", to=topic, payload=shown, clamped=clamped))


def _level(level: Template | str, context: dict[str, JsonValue]) -> str:
    if isinstance(level, str):
        return level
    text = level.render(context, _MAX_LEVEL_CHARS)
    if not text or any(char in text for char in "/+#\x00") or not text.isprintable():
        raise AnswerRefusedError(f"'{text[:60]}' cannot be a level of a topic")
    return text


def fill(structure: Structure, context: dict[str, JsonValue]) -> JsonValue:
    """The payload that `structure` makes of `context`.

    Raises:
        RuleFaultError: a template cannot be worked out.
    """
    content = structure.content
    if isinstance(content, Template):
        return content.value(context, MAX_STRING_CHARS)
    if isinstance(content, dict):
        return {
            key: fill(part, context) if isinstance(part, Structure) else part for key, part in content.items()
        }
    if isinstance(content, list):
        return [fill(part, context) if isinstance(part, Structure) else part for part in content]
    return content


def _shown(value: JsonValue) -> str:
    try:
        return to_json(value).decode()[:_SHOWN_CHARS]
    except ValueError as error:
        raise RuleFaultError(f"a value cannot be told: {str(error)[:80]}") from error
