"""Decides: messages, time and answers in, decisions out. No clock, no network, no threads of its own.

What always holds:

* Whatever a message holds, every rule takes the next one. Each call returns.
* A firing ends exactly once, with one trace: acted, or why not.
* Nothing is done on an answer that does not match its schema, nor on readings that are too old.
* The same messages, times and answers give the same decisions.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from pydantic import JsonValue, ValidationError
from pydantic_core import from_json

from edgeslm.agent.rules.acting import Go, plan_actions
from edgeslm.agent.rules.compiled import CompiledInput, CompiledRule, InputKey, RuleSet
from edgeslm.agent.rules.decisions import Ask, Decision, Done, Heard, Moment, NewId, Send, Tell
from edgeslm.agent.rules.loops import FOLLOW_S, HOLD_S, PAUSE_S, LoopWatch
from edgeslm.agent.rules.matching import TopicTree
from edgeslm.agent.rules.readings import Reading, RuleScope, new_reading
from edgeslm.agent.rules.safety import MAX_HOPS
from edgeslm.agent.rules.values import check_bounded, decode
from edgeslm.errors import AnswerRefusedError, NoReadingError, PayloadError, RuleFaultError
from edgeslm.schema.budget import minute_of_day
from edgeslm.schema.message import MAX_PROMPT_CHARS, Options, PromptRequest, Result
from edgeslm.schema.rule_trace import ActionTrace, FiringTrace, InputStatus, Outcome, RuleStatus

_ECHO_S = 30.0
_MAX_ECHOES = 512
CIRCLE = (
    f"part of a circle through other devices: again and again one message followed its action within {FOLLOW_S:g} s, "
    "and without its action none came"
)
_SKIP_TRACE_S = 10.0
"""A rule that is set off a thousand times a second and may fire once a minute leaves a trace of that now and then."""


@dataclass(frozen=True, slots=True)
class _Firing:
    """A rule was set off."""

    cause: str
    began: Moment
    hops: int
    extra: dict[str, JsonValue]
    inputs: dict[str, JsonValue]
    prompt: str | None = None


@dataclass(slots=True)
class _State:
    """One rule, as it is now."""

    rule: CompiledRule
    was_true: bool = False
    debounced: _Firing | None = None
    due_s: float = math.inf
    watch: LoopWatch = field(default_factory=LoopWatch)
    held: _Firing | None = None
    held_until_s: float = math.inf
    every_due_s: float = math.inf
    fired_s: deque[float] = field(default_factory=deque)
    asked: tuple[str, _Firing] | None = None
    waiting: deque[_Firing] = field(default_factory=deque)
    skip_traced_s: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("looked", "fired", "acted", "skipped", "refused", "failed"), 0)
    )
    last: str = ""


class Engine:
    """All rules of one device. On one thread."""

    def __init__(self, rules: RuleSet, now: Moment, new_id: NewId, former: Engine | None = None) -> None:
        """Begin.

        Args:
            former: whose readings are kept for inputs that are the same as before, with counts of rules that are.
        """
        self.rules = rules
        self._new_id = new_id
        self._readings = {key: _kept(former, spec) for key, spec in rules.inputs.items()}
        self._tree: TopicTree[Reading] = TopicTree(
            (reading.spec.spec.topic, reading) for reading in self._readings.values()
        )
        self._states = {name: _State(rule) for name, rule in rules.rules.items()}
        self._triggered: dict[InputKey, list[_State]] = {key: [] for key in rules.inputs}
        for state in self._states.values():
            for key in dict.fromkeys(state.rule.triggers):
                self._triggered[key].append(state)
        self._asked: dict[str, _State] = {}
        self._echoes: OrderedDict[tuple[str, bytes], tuple[int, float]] = OrderedDict()
        self._agenda: list[tuple[float, str]] = []
        for name, state in self._states.items():
            before = None if former is None else former._states.get(name)
            if before is not None and before.rule.spec == state.rule.spec:
                state.counts, state.last = before.counts, before.last
                state.was_true, state.fired_s = before.was_true, before.fired_s
                state.watch = before.watch
            if state.rule.spec.every_s is not None:
                state.every_due_s = now.mono_s + state.rule.spec.every_s
                self._schedule(state.every_due_s, name)

    # --- what comes ----------------------------------------------------------------------------------------------

    def takes(self, topic: str) -> bool:
        """Whether any input listens to `topic`."""
        return bool(self._tree.find(topic))

    def hear(self, message: Heard, now: Moment) -> list[Decision]:
        """A message came."""
        out: list[Decision] = []
        readings = self._tree.find(message.topic)
        if not readings:
            return out
        contents: dict[str, JsonValue | PayloadError] = {}
        touched: dict[str, tuple[_State, JsonValue]] = {}
        for reading in readings:
            how = reading.spec.spec.decode
            if how not in contents:
                contents[how] = _decoded(message.payload, how)
            content = contents[how]
            try:
                if isinstance(content, PayloadError):
                    raise content
                reading.take(content, now.mono_s, is_old=message.retain)
            except PayloadError as error:
                reading.fault(error)
                continue
            for state in self._triggered[reading.spec.key]:
                touched.setdefault(state.rule.name, (state, content))
        if message.retain:
            return out  # it may have been true long ago
        hops = self._hops_of(message, now)
        for state, content in touched.values():
            extra: dict[str, JsonValue] = {"topic": message.topic, "payload": content}
            self._look(state, message.topic, now, hops, extra, out)
        return out

    def tick(self, now: Moment) -> list[Decision]:
        """Time went by."""
        out: list[Decision] = []
        while self._agenda and self._agenda[0][0] <= now.mono_s:
            _, name = heapq.heappop(self._agenda)
            state = self._states[name]
            if state.every_due_s <= now.mono_s:
                every_s = state.rule.spec.every_s or math.inf
                state.every_due_s = now.mono_s + every_s
                self._schedule(state.every_due_s, name)
                self._look(state, "every", now, 0, {}, out)
            if state.due_s <= now.mono_s and state.debounced is not None:
                firing, state.debounced, state.due_s = state.debounced, None, math.inf
                if self._holds(state, RuleScope(state.rule, self._readings, now, dict(firing.extra))):
                    self._fire(state, firing, now, out)
                else:
                    state.was_true = False
            if state.held_until_s <= now.mono_s and state.held is not None:
                self._let_go(state, now, out)
        return out

    def next_tick_s(self) -> float | None:
        """When :meth:`tick` has something to do (monotonic); ``None`` for never."""
        return self._agenda[0][0] if self._agenda else None

    def answer(self, result: Result, now: Moment) -> list[Decision]:
        """What became of an :class:`Ask`."""
        out: list[Decision] = []
        state = self._asked.pop(result.id, None)
        if state is None or state.asked is None:
            return out
        firing, state.asked = state.asked[1], None
        self._take_answer(state, firing, result, now, out)
        while state.waiting and state.asked is None:
            self._begin(state, state.waiting.popleft(), now, out)
        return out

    def withdraw_all(self) -> list[str]:
        """Ids of what was asked and is not answered; nobody waits for it any more."""
        ids = list(self._asked)
        self._asked.clear()
        for state in self._states.values():
            state.asked = None
            state.waiting.clear()
        return ids

    # --- how it is -----------------------------------------------------------------------------------------------

    def rule_statuses(self) -> tuple[RuleStatus, ...]:
        """All rules."""
        return tuple(
            RuleStatus(
                name=name,
                file=state.rule.file,
                origin=state.rule.origin,
                waiting=len(state.waiting) + (state.asked is not None),
                last=state.last,
                **state.counts,
            )
            for name, state in self._states.items()
        )

    def input_statuses(self, now: Moment) -> tuple[InputStatus, ...]:
        """All inputs."""
        return tuple(
            InputStatus(
                name=key[1],
                file=key[0],
                topic=reading.spec.spec.topic,
                value=_brief(reading.value),
                age_s=None if reading.at_s is None else round(max(now.mono_s - reading.at_s, 0.0), 1),
                readings=reading.count,
                faults=reading.faults,
                last_fault=reading.last_fault,
            )
            for key, reading in self._readings.items()
        )

    # --- from a cause to a firing --------------------------------------------------------------------------------

    def _look(
        self,
        state: _State,
        cause: str,
        now: Moment,
        hops: int,
        extra: dict[str, JsonValue],
        out: list[Decision],
    ) -> None:
        state.counts["looked"] += 1
        scope = RuleScope(state.rule, self._readings, now, extra)
        was_true, state.was_true = state.was_true, self._holds(state, scope)
        if not state.was_true:
            state.debounced, state.due_s = None, math.inf
            return
        is_call = cause.startswith("call:")
        if was_true and state.rule.spec.is_once and not is_call:
            return
        firing = _Firing(cause, now, hops, extra, scope.shown())
        debounce_s = state.rule.spec.debounce_s
        if debounce_s is None or is_call:
            self._fire(state, firing, now, out)
            return
        state.debounced, state.due_s = firing, now.mono_s + debounce_s
        self._schedule(state.due_s, state.rule.name)

    def _holds(self, state: _State, scope: RuleScope) -> bool:
        condition = state.rule.condition
        if condition is None:
            return True
        try:
            return condition.holds(scope)
        except NoReadingError as error:
            state.last = f"waits: {error.message}"
        except RuleFaultError as error:
            state.counts["failed"] += 1
            state.last = f"failed: {error.message}"
        return False

    def _fire(self, state: _State, firing: _Firing, now: Moment, out: list[Decision]) -> None:
        if firing.hops > MAX_HOPS:
            self._end(state, firing, "refused", f"more than {MAX_HOPS} rules in a row", now, out)
            return
        is_set_off = firing.cause != "every" and not firing.cause.startswith("call:")
        if is_set_off and self._is_held(state, firing, now, out):
            return
        self._go_on(state, firing, now, out)

    def _is_held(self, state: _State, firing: _Firing, now: Moment, out: list[Decision]) -> bool:
        """Whether the firing has to wait, or to end, since the rule may be part of a circle through other devices."""
        if state.held is not None:
            self._skip(state, state.held, "a newer firing took its place", now, out)
            state.held, state.held_until_s = None, math.inf
            state.watch.was_disturbed(now.mono_s)
        verdict = state.watch.fired(now.mono_s)
        if verdict == "hold":
            state.held, state.held_until_s = firing, now.mono_s + HOLD_S
            self._schedule(state.held_until_s, state.rule.name)
        elif verdict == "paused":
            self._look_again(state)
            self._skip(state, firing, "paused: part of a circle through other devices", now, out)
        return verdict != "go"

    def _let_go(self, state: _State, now: Moment, out: list[Decision]) -> None:
        """Nothing set the rule off while a firing was held back."""
        firing, state.held, state.held_until_s = state.held, None, math.inf
        assert firing is not None  # noqa: S101 - whoever calls has looked
        if state.watch.was_silent(now.mono_s):
            self._look_again(state)
            self._end(state, firing, "refused", CIRCLE, now, out)
            out.append(Tell(state.rule.name, f"paused for {PAUSE_S / 60:g} minutes: {CIRCLE}"))
        elif self._holds(state, RuleScope(state.rule, self._readings, now, dict(firing.extra))):
            self._go_on(state, firing, now, out)
        else:
            state.was_true = False
            self._skip(state, firing, "the condition does not hold any more", now, out)

    def _go_on(self, state: _State, firing: _Firing, now: Moment, out: list[Decision]) -> None:
        spec = state.rule.spec
        if _is_quiet(spec.quiet, now.wall_s):
            self._look_again(state)
            self._skip(state, firing, "quiet hours", now, out)
            return
        while state.fired_s and now.mono_s - state.fired_s[0] >= spec.rate.over_s:
            state.fired_s.popleft()
        if len(state.fired_s) >= spec.rate.most:
            why = f"{spec.rate.most} firings in {spec.rate.over_s:g} s already"
            self._look_again(state)
            self._skip(state, firing, why, now, out)
            return
        if state.rule.prompt is not None:
            try:
                firing = replace(firing, prompt=self._prompt(state.rule, firing, now))
            except RuleFaultError as error:
                self._end(state, firing, "failed", error.message, now, out)
                return
        if state.asked is None:
            self._begin(state, firing, now, out)
            return
        if spec.busy == "queue":
            if len(state.waiting) >= spec.queue:
                self._skip(state, firing, "the queue is full", now, out)
                return
        else:
            for older in state.waiting:
                self._skip(state, older, "a newer firing took its place", now, out)
            state.waiting.clear()
        state.waiting.append(firing)

    def _prompt(self, rule: CompiledRule, firing: _Firing, now: Moment) -> str:
        assert rule.prompt is not None  # noqa: S101 - whoever calls has looked
        context = RuleScope(rule, self._readings, now, dict(firing.extra)).template_context()
        text = rule.prompt.render(context, MAX_PROMPT_CHARS).strip()
        if not text:
            raise RuleFaultError("the prompt is empty")
        return text

    def _begin(self, state: _State, firing: _Firing, now: Moment, out: list[Decision]) -> None:
        spec = state.rule.spec
        left_s = spec.patience_s - (now.mono_s - firing.began.mono_s)
        if firing.prompt is not None and left_s <= 0:
            self._skip(state, firing, "it waited longer than its deadline", now, out)
            return
        state.fired_s.append(now.mono_s)
        state.counts["fired"] += 1
        if firing.prompt is None:
            self._act(state, firing, None, None, now, out)
            return
        try:
            request = PromptRequest(
                id=self._new_id(spec.name),
                prompt=firing.prompt,
                model=spec.model,
                options=Options(
                    max_tokens=spec.max_tokens,
                    priority=spec.priority,
                    deadline_ms=max(1, min(int(left_s * 1e3), 86_400_000)),
                ),
            )
        except ValidationError:
            self._end(state, firing, "failed", "the prompt is none that can be sent", now, out)
            return
        state.asked = (request.id, firing)
        self._asked[request.id] = state
        out.append(Ask(spec.name, request))

    # --- from an answer to actions -------------------------------------------------------------------------------

    def _take_answer(
        self, state: _State, firing: _Firing, result: Result, now: Moment, out: list[Decision]
    ) -> None:
        if result.error is not None:
            is_short = result.error.code == "budget"
            outcome: Outcome = "skipped" if is_short else "failed"
            why = f"no answer: {result.error.code}: {result.error.message[:200]}"
            self._end(state, firing, outcome, why, now, out, result)
            return
        if now.mono_s - firing.began.mono_s > state.rule.spec.patience_s:
            self._end(state, firing, "refused", "the answer came after the deadline", now, out, result)
            return
        if result.finish_reason not in {"stop", "schema"}:
            why = f"the answer ended early: {result.finish_reason}"
            self._end(state, firing, "refused", why, now, out, result)
            return
        try:
            answer = _answer_of(result)
            check_bounded(answer)
            if state.rule.answer is not None:
                state.rule.answer.check(answer, "the answer")
        except AnswerRefusedError as error:
            self._end(state, firing, "refused", error.message, now, out, result)
            return
        except PayloadError as error:
            self._end(state, firing, "refused", f"the answer: {error.message}", now, out, result)
            return
        self._act(state, firing, answer, result, now, out)

    def _act(
        self,
        state: _State,
        firing: _Firing,
        answer: JsonValue,
        result: Result | None,
        now: Moment,
        out: list[Decision],
    ) -> None:
        rule = state.rule
        extra = dict(firing.extra) if result is None else {**firing.extra, "answer": answer}
        scope = RuleScope(rule, self._readings, now, extra)
        try:
            plan = plan_actions(rule, scope)
        except AnswerRefusedError as error:
            if result is None:
                self._look_again(state)
            self._end(state, firing, "refused", error.message, now, out, result)
            return
        except RuleFaultError as error:
            self._end(state, firing, "failed", error.message, now, out, result)
            return
        traces = tuple(plan.traces)
        if not plan.steps:
            self._end(state, firing, "nothing", "no action's condition holds", now, out, result)
            return
        if rule.spec.dry_run:
            self._end(state, firing, "dry_run", "", now, out, result, traces)
            return
        state.watch.acted(now.mono_s)
        for step in plan.steps:
            if isinstance(step, Send):
                self._note_echo(step, firing.hops, now)
                out.append(replace(step, hops=firing.hops + 1))
            elif isinstance(step, Tell):
                out.append(step)
        self._end(state, firing, "acted", "", now, out, result, traces)
        for step in plan.steps:
            if isinstance(step, Go):
                called = self._states[step.rule]
                self._look(
                    called, f"call:{rule.name}", now, firing.hops + 1, {"given": dict(step.given)}, out
                )

    def failed_to_act(self, name: str, why: str) -> None:
        """What the rule did in the end could not be published."""
        state = self._states.get(name)
        if state is not None:
            state.counts["acted"] = max(state.counts["acted"] - 1, 0)
            state.counts["failed"] += 1
            state.last = f"failed: {why}"

    def _look_again(self, state: _State) -> None:
        """What kept a rule from firing passes: while its condition stays true, the next message tries once more."""
        state.was_true = False

    # --- ends ----------------------------------------------------------------------------------------------------

    def _skip(self, state: _State, firing: _Firing, why: str, now: Moment, out: list[Decision]) -> None:
        last_s = state.skip_traced_s.get(why, -math.inf)
        if now.mono_s - last_s < _SKIP_TRACE_S:
            state.counts["skipped"] += 1
            state.last = f"skipped: {why}"
            return
        state.skip_traced_s[why] = now.mono_s
        self._end(state, firing, "skipped", why, now, out)

    def _end(
        self,
        state: _State,
        firing: _Firing,
        outcome: Outcome,
        detail: str,
        now: Moment,
        out: list[Decision],
        result: Result | None = None,
        actions: Sequence[ActionTrace] = (),
    ) -> None:
        counted = "acted" if outcome == "dry_run" else outcome
        if counted in state.counts:
            state.counts[counted] += 1
        state.last = f"{outcome}: {detail}" if detail else outcome
        out.append(
            Done(
                FiringTrace(
                    at=_iso(firing.began.wall_s),
                    rule=state.rule.name,
                    outcome=outcome,
                    detail=detail[:500],
                    cause=firing.cause[:256],
                    inputs=firing.inputs,
                    prompt=firing.prompt,
                    answer=None if result is None else _told_answer(result),
                    actions=tuple(actions),
                    receipt=None if result is None else result.receipt,
                    took_ms=round((now.mono_s - firing.began.mono_s) * 1e3, 3),
                    hops=firing.hops,
                )
            )
        )

    def _schedule(self, at_s: float, name: str) -> None:
        heapq.heappush(self._agenda, (at_s, name))
        if len(self._agenda) > 8 * len(self._states) + 64:
            self._agenda = [
                (due_s, key)
                for key, state in self._states.items()
                for due_s in {state.due_s, state.every_due_s, state.held_until_s}
                if due_s < math.inf
            ]
            heapq.heapify(self._agenda)

    # --- what comes back to us -----------------------------------------------------------------------------------

    def _note_echo(self, step: Send, hops: int, now: Moment) -> None:
        if not self.takes(step.topic):
            return
        key = (step.topic, hashlib.blake2b(step.payload, digest_size=16).digest())
        before = self._echoes.pop(key, (0, 0.0))[0]
        self._echoes[key] = (max(before, hops), now.mono_s)
        while len(self._echoes) > _MAX_ECHOES:
            self._echoes.popitem(last=False)

    def _hops_of(self, message: Heard, now: Moment) -> int:
        """How many rules stand behind a message: as it says, or one more than behind what we sent, if it is that."""
        if not self._echoes:
            return message.hops
        key = (message.topic, hashlib.blake2b(message.payload, digest_size=16).digest())
        hops, at_s = self._echoes.get(key, (-1, -math.inf))
        return max(hops + 1, message.hops) if now.mono_s - at_s <= _ECHO_S else message.hops


def _kept(former: Engine | None, spec: CompiledInput) -> Reading:
    before = None if former is None else former._readings.get(spec.key)
    if before is None or before.spec.spec != spec.spec:
        return new_reading(spec)
    return replace(before, spec=spec)


def _decoded(payload: bytes, how: str) -> JsonValue | PayloadError:
    try:
        return decode(payload, how)  # type: ignore[arg-type]  # the inputs' own
    except PayloadError as error:
        return error


def _answer_of(result: Result) -> JsonValue:
    """The answer as data: its JSON, or its text where it is none."""
    if result.data is not None:
        return result.data
    text = (result.text or "").strip()
    try:
        value: JsonValue = from_json(text, allow_inf_nan=False)
    except ValueError:
        return text
    return value


def _told_answer(result: Result) -> JsonValue:
    if result.error is not None:
        return None
    return result.data if result.data is not None else (result.text or "")[:1000]


def _brief(value: JsonValue) -> JsonValue:
    if isinstance(value, dict | list):
        return f"{len(value)} parts"
    return value[:100] if isinstance(value, str) else value


def _is_quiet(hours: Sequence[str], wall_s: float) -> bool:
    if not hours:
        return False
    local = datetime.fromtimestamp(wall_s).astimezone()
    minute = local.hour * 60 + local.minute
    for span in hours:
        opens, closes = minute_of_day(span[:5]), minute_of_day(span[6:])
        inside = opens <= minute < closes if opens <= closes else minute >= opens or minute < closes
        if inside:
            return True
    return False


def _iso(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds")
