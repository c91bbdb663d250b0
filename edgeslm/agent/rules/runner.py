"""Runs rules beside an agent: hears messages, asks prompts, publishes, keeps the trace, reads files anew. One thread.

What always holds: the link's thread only puts messages into an inbox, bounded; files with an error leave the rules as
they are; whatever a message provokes, the thread goes on.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from edgeslm.agent.ports import Message
from edgeslm.agent.rules.brought import BroughtRules
from edgeslm.agent.rules.compiled import RuleSet
from edgeslm.agent.rules.decisions import Ask, Decision, Done, Heard, Moment, Send, Tell
from edgeslm.agent.rules.engine import Engine
from edgeslm.agent.rules.loading import load_rules, rule_files
from edgeslm.agent.rules.sending import Sending
from edgeslm.agent.rules.trace import TraceStore
from edgeslm.errors import JournalError, RuleFileError
from edgeslm.schema.message import PromptRequest, Result
from edgeslm.schema.rule_trace import FiringTrace, RulesStatus

log = logging.getLogger(__name__)

MAX_INBOX = 8192
RELOAD_S = 2.0
STATUS_S = 900.0
FLUSH_S = 0.5
RETRY_S = 0.25
_MAX_BATCH = 256
_MAX_TRACES = 1024
_IDLE_S = 30.0
_GATHER_S = 0.004
"""Where readings come one on the heels of the other, they are looked at together: each time this thread wakes it takes
the interpreter from the model for a moment."""
_LOG_AGAIN_S = 10.0

EMPTY = RuleSet((), {}, {}, "")


class Host(Protocol):
    """Whom rules run beside; ``agent.service.Agent`` is one."""

    def publish(self, message: Message) -> int | None:
        """See ``Link.publish``."""

    def change_filters(self, added: Sequence[tuple[str, int]], gone: Sequence[str]) -> None:
        """Listen to more, and no longer to some."""

    def ask(self, request: PromptRequest, rule: str, told: Callable[[Result], None]) -> None:
        """Answer a prompt on the account of `rule`; `told` only notes it."""

    def take_back(self, request_ids: Sequence[str]) -> None:
        """Nobody waits any more for these."""

    def give_way(self) -> None:
        """Return once nothing more urgent than a reading is done."""


RaiseEvent = Callable[[str, str, dict[str, float | str]], None]
"""Tells that something happened: type, detail, figures."""


@dataclass(frozen=True, slots=True)
class _Came:
    message: Message
    at_s: float


@dataclass(frozen=True, slots=True)
class _Answered:
    result: Result


@dataclass(frozen=True, slots=True)
class _Wake:
    """Look at time and link again."""


class RuleRunner:
    """The rules of one device. Made, then started by whom they run beside, then stopped."""

    def __init__(
        self,
        paths: Sequence[Path],
        store: TraceStore | None,
        raise_event: RaiseEvent,
        *,
        brought: BroughtRules | None = None,
        on_trace: Callable[[FiringTrace], None] | None = None,
        dry_run: bool = False,
    ) -> None:
        """Read the files. An error in them leaves no rule running, and is told as it is later.

        Args:
            paths: files, and directories of them.
            brought: rules of packages.
            store: keeps the trace, if anything does.
            on_trace: told of every firing, on the rules' thread.
            dry_run: publish nothing, whatever the files say.
        """
        self._paths = tuple(paths)
        self._brought = BroughtRules() if brought is None else brought
        self._store = store
        self._raise_event = raise_event
        self._on_trace = on_trace
        self._dry_run = dry_run
        self._inbox: queue.SimpleQueue[_Came | _Answered | _Wake] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._host: Host | None = None
        self._shed = 0
        self._looked_s = self._logged_s = float("-inf")
        self._error: str | None = None
        self._traces: list[FiringTrace] = []
        self._sending = Sending(self._publish, self._keep, self._note_given_up)
        self._signature = self._sign()
        rules = EMPTY
        try:
            rules = self._load()
        except RuleFileError as error:
            self._error = str(error)
            log.error("no rules run: %s", error)  # noqa: TRY400 - the text says all
        self._engine = Engine(rules, _now(), _new_id)
        self._filters = dict(rules.filters())
        _tell_overridden(rules)

    # --- ``RuleSide`` of the agent -------------------------------------------------------------------------------

    def filters(self) -> list[tuple[str, int]]:
        """What to subscribe to."""
        return list(self._filters.items())

    def on_message(self, message: Message) -> bool:
        """Part of ``RuleSide``; whether a rule listens to it."""
        if not self._engine.takes(message.topic):
            return False
        if self._inbox.qsize() >= MAX_INBOX:
            self._shed += 1
        else:
            self._inbox.put(_Came(message, time.monotonic()))
        return True

    def connected(self) -> None:
        """The broker is there: what waits may go out."""
        self._inbox.put(_Wake())

    def start(self, host: Host) -> None:
        """Begin."""
        self._host = host
        if self._error is not None:
            self._raise_event("rules", f"no rules run: {self._error}"[:1000], {})
        self._thread = threading.Thread(target=self._run, name="edgeslm-rules", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; what was asked is taken back. Idempotent."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._inbox.put(_Wake())
        if self._thread is not None:
            self._thread.join()
        self._sending.give_up()
        self._flush()
        self._tell_status()
        if self._store is not None:
            self._store.close()

    @property
    def waiting(self) -> int:
        """Messages that are still to be looked at."""
        return self._inbox.qsize()

    def status(self) -> RulesStatus:
        """How the rules are."""
        now = _now()
        return RulesStatus(
            at=datetime.fromtimestamp(now.wall_s, UTC).isoformat(timespec="milliseconds"),
            running=not self._stopping.is_set(),
            files=self._engine.rules.files,
            error=self._error,
            shed=self._shed,
            rules=self._engine.rule_statuses(),
            overridden=self._engine.rules.overridden,
            inputs=self._engine.input_statuses(now),
        )

    # --- the rules' thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        now_s = time.monotonic()
        reload_s, status_s, flush_s = now_s + RELOAD_S, now_s, now_s + FLUSH_S
        while not self._stopping.is_set():
            for event in self._next(min(reload_s, status_s, flush_s if self._traces else reload_s)):
                if self._host is not None:
                    self._host.give_way()
                self._guarded(event)
            now_s = time.monotonic()
            self._guarded(_Wake())
            if now_s >= reload_s:
                self._look_at_files()
                if self._store is not None and self._store.is_asked():
                    self._tell_status()
                reload_s = time.monotonic() + RELOAD_S
            if self._traces and (now_s >= flush_s or len(self._traces) >= _MAX_TRACES):
                self._flush()
                flush_s = now_s + FLUSH_S
            if now_s >= status_s:
                self._tell_status()
                status_s = now_s + STATUS_S
        if self._host is not None:
            self._host.take_back(self._engine.withdraw_all())

    def _next(self, until_s: float) -> list[_Came | _Answered | _Wake]:
        tick_s = self._engine.next_tick_s()
        if tick_s is not None:
            until_s = min(until_s, tick_s)
        if self._sending:
            until_s = min(until_s, time.monotonic() + RETRY_S)
        try:
            events = [self._inbox.get(timeout=min(max(until_s - time.monotonic(), 0.0), _IDLE_S))]
        except queue.Empty:
            return []
        if time.monotonic() - self._looked_s < _GATHER_S:
            self._stopping.wait(_GATHER_S)
        while len(events) < _MAX_BATCH and not self._inbox.empty():
            events.append(self._inbox.get())
        self._looked_s = time.monotonic()
        return events

    def _guarded(self, event: _Came | _Answered | _Wake) -> None:
        try:
            self._handle(event)
        except Exception:  # rules that stop are worse than one lost message
            now_s = time.monotonic()
            if (
                now_s - self._logged_s >= _LOG_AGAIN_S
            ):  # whoever can provoke it can do so a thousand times a second
                self._logged_s = now_s
                log.exception("%s failed", type(event).__name__)

    def _handle(self, event: _Came | _Answered | _Wake) -> None:
        now = _now()
        match event:
            case _Came(message, at_s):
                heard = Heard(message.topic, message.payload, message.retain, message.hops)
                self._do(self._engine.hear(heard, now), at_s)
            case _Answered(result):
                self._do(self._engine.answer(result, now), None)
            case _Wake():
                self._sending.again(now.mono_s)
                self._do(self._engine.tick(now), None)

    def _do(self, decisions: Sequence[Decision], came_s: float | None) -> None:
        for decision in decisions:
            match decision:
                case Send():
                    if not self._dry_run and self._host is not None:
                        self._sending.send(decision)
                case Ask(rule, request):
                    if self._host is not None:
                        self._host.ask(request, rule, self._note_answer)
                case Tell(rule, detail):
                    if not self._dry_run:
                        self._raise_event("rule", detail, {"rule": rule})
                case Done(trace):
                    self._sending.done(self._completed(trace, came_s))

    def _note_answer(self, result: Result) -> None:
        self._inbox.put(_Answered(result))

    def _completed(self, trace: FiringTrace, came_s: float | None) -> FiringTrace:
        update: dict[str, object] = {}
        if came_s is not None and trace.receipt is None:
            update["took_ms"] = round((time.monotonic() - came_s) * 1e3, 3)
        if self._dry_run and trace.outcome == "acted":
            update["outcome"] = "dry_run"
        return trace.model_copy(update=update) if update else trace

    def _publish(self, message: Message) -> int | None:
        assert self._host is not None  # noqa: S101 - nothing is sent before the start
        return self._host.publish(message)

    def _note_given_up(self, rule: str, why: str) -> None:
        self._engine.failed_to_act(rule, why)

    def _keep(self, trace: FiringTrace) -> None:
        if len(self._traces) < 2 * _MAX_TRACES:
            self._traces.append(trace)
        if self._on_trace is not None:
            self._on_trace(trace)

    # --- files ---------------------------------------------------------------------------------------------------

    def _load(self) -> RuleSet:
        return load_rules(self._paths, self._brought.files())

    def _sign(self) -> object:
        """Changes when a file does, or a package with rules."""
        try:
            stats = [(path, path.stat()) for path in rule_files(self._paths)]
        except (OSError, RuleFileError) as error:
            return str(error), self._brought.signature
        files = [(str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino) for path, stat in stats]
        return files, self._brought.signature

    def _look_at_files(self) -> None:
        signature = self._sign()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            rules = self._load()
        except RuleFileError as error:
            self._error = str(error)
            log.error("the rules stay as they are: %s", error)  # noqa: TRY400 - the text says all
            self._raise_event("rules", f"the rules stay as they are: {error}"[:1000], {})
        except Exception:  # a file that breaks its reader must not end the rules that run
            self._error = "the files cannot be read; see the log"
            log.exception("the rules stay as they are")
        else:
            if rules.fingerprint != self._engine.rules.fingerprint or self._error is not None:
                self._use(rules)
        self._tell_status()

    def _use(self, rules: RuleSet) -> None:
        host = self._host
        former, before = self._engine, self._filters
        if host is not None:
            host.take_back(former.withdraw_all())
        self._engine = Engine(rules, _now(), _new_id, former)
        self._error = None
        self._filters = dict(rules.filters())
        added = [(name, qos) for name, qos in self._filters.items() if before.get(name) != qos]
        gone = [name for name in before if name not in self._filters]
        if host is not None:
            host.change_filters(added, gone)
        detail = f"{len(rules.rules)} rules of {len(rules.files)} files are in use"
        if origins := sorted({rule.origin for rule in rules.rules.values() if rule.origin is not None}):
            detail += f", some of {' and '.join(origins)}"
        log.info("%s", detail)
        _tell_overridden(rules)
        self._raise_event("rules", detail, {"rules": len(rules.rules)})

    # --- what is kept --------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        traces, self._traces = self._traces, []
        if self._store is None or not traces:
            return
        try:
            self._store.add(traces)
        except JournalError:
            log.exception("%d traces of rules are lost", len(traces))

    def _tell_status(self) -> None:
        if self._store is None:
            return
        try:
            self._store.tell(self.status())
        except JournalError:
            log.exception("the status of the rules cannot be kept")


def _tell_overridden(rules: RuleSet) -> None:
    for rule in rules.overridden:
        log.info("the rule %s of %s is not in use: %s has one of that name", rule.name, rule.origin, rule.by)


def _now() -> Moment:
    return Moment(time.monotonic(), time.time())


def _new_id(rule: str) -> str:
    return f"rule-{rule}-{uuid.uuid4().hex[:16]}"
