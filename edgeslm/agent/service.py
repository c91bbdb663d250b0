"""The agent: ties intake, queue, journal, worker and outbox together.

Three threads: the link's own, which only puts events into an inbox; the dispatcher, which decides about each and
writes the journal; the worker, which computes. Whatever a message holds, the dispatcher answers it and goes on.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from edgeslm import codec, topics
from edgeslm.agent import intake
from edgeslm.agent.description import AgentIdentity, AgentLimits, availability, describe
from edgeslm.agent.job import Job, ReplyAddress
from edgeslm.agent.journal import Journal
from edgeslm.agent.liveness import Liveness, Sign
from edgeslm.agent.outbox import Outbox
from edgeslm.agent.ports import EnergyMeter, Message, Model
from edgeslm.agent.power_side import PowerSide
from edgeslm.agent.precedence import Precedence
from edgeslm.agent.queue import JobQueue, in_order
from edgeslm.agent.serving import ServedModels
from edgeslm.agent.worker import Worker
from edgeslm.errors import (
    BadRequestError,
    BusyError,
    EdgeslmError,
    JournalError,
    RequestError,
)
from edgeslm.runtime.conversation import check_messages
from edgeslm.schema.message import ANSWER_FORMS, Info, PromptRequest, Result

if TYPE_CHECKING:
    from edgeslm.agent.renewal import Renewal
    from edgeslm.link.port import SubscribingLink

log = logging.getLogger(__name__)

_MAX_INBOX = 4096
_MAX_BATCH = 64
"""Prompts that share one sync to the card."""
_MAX_REPLIES_PER_PROMPT = 8
_ACK_DELAY_S = 0.05
_MAX_DELAYED_ACKS = 8
"""Acknowledging takes the interpreter away from the worker just when it decodes. It waits until an answer is out, but
no longer than this, and for no more messages than this: a broker has some twenty on the way to us at once."""
_MAYBE_URGENT = b'"high"'
"""Part of each prompt of high priority; what else has it costs readings a few milliseconds."""
_PRUNE_INTERVAL_S = 600.0
_LOOK_AT_CERTIFICATE_S = 60.0
_DISPATCH_LIMIT_S = 120.0
"""A worn card can take so long to sync a few pages."""
_COMPUTE_LIMIT_S = 300.0
"""Longest that a model may be silent within an answer: a chunk of a prompt, with a large model on a small board."""
_LINK_LIMIT_S = 300.0
"""A name server that does not answer keeps the link's thread for a minute or two."""


@dataclass(frozen=True)
class _Connected:
    """The link is up."""


@dataclass(frozen=True)
class _Disconnected:
    reason: str


@dataclass(frozen=True)
class _Published:
    token: int


@dataclass(frozen=True)
class _Asked:
    """A prompt of the device itself."""

    request: PromptRequest
    rule: str
    told: Callable[[Result], None]


@dataclass(frozen=True)
class _ModelsChanged:
    """Other models are served than before."""


@dataclass(frozen=True)
class _LoadedChanged:
    """The same models are served, but others of them are loaded."""


@dataclass(frozen=True)
class _Beat:
    """Show that the dispatcher moves."""


@dataclass(frozen=True)
class _Flush:
    """Acknowledge at once what waits for it."""


@dataclass(frozen=True)
class _Stop:
    """Leave the dispatcher."""


_Event = (
    Message
    | _Connected
    | _Disconnected
    | _Published
    | _Asked
    | _ModelsChanged
    | _LoadedChanged
    | _Beat
    | _Flush
    | _Stop
)


class UpdateSide(Protocol):
    """What follows assignments beside the agent."""

    @property
    def topic(self) -> str:
        """Where assignments come from."""

    def on_message(self, message: Message) -> None:
        """Something came on :attr:`topic`; on the link's thread."""

    def connected(self) -> None:
        """The broker is there; on the dispatcher's thread."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End; afterwards nothing is swapped any more."""


class RuleSide(Protocol):
    """Rules of this device, which listen to topics of anybody and ask prompts of their own."""

    def filters(self) -> list[tuple[str, int]]:
        """What to subscribe to, with the quality of service."""

    def on_message(self, message: Message) -> bool:
        """A message came, of whichever topic; whether a rule listens to it. On the link's thread."""

    def connected(self) -> None:
        """The broker is there; on the dispatcher's thread."""

    def start(self, agent: Agent) -> None:
        """Begin."""

    def stop(self) -> None:
        """End; afterwards no rule does anything."""


class OperationSide(Protocol):
    """What does once what an operator asks for."""

    @property
    def filter(self) -> str:
        """Where commands come from."""

    def takes(self, topic: str) -> bool:
        """Whether a message on `topic` is a command."""

    def receive(self, message: Message) -> None:
        """Take a command, and acknowledge it; on the dispatcher's thread."""

    def connected(self) -> None:
        """The broker is there; on the dispatcher's thread."""

    def published(self, token: int) -> None:
        """The broker has a message; on the dispatcher's thread."""

    def start(self) -> None:
        """Go on with what was under way."""

    def stop(self) -> None:
        """End; what is under way goes on in the next process."""


class HomeSide(Protocol):
    """What shows the device in a home."""

    def connected(self) -> None:
        """The broker is there; on the dispatcher's thread."""

    def published(self, token: int) -> None:
        """The broker has a message; on the dispatcher's thread."""

    def commanded(self, topic: str) -> None:
        """A command came; on the dispatcher's thread."""

    def changed(self) -> None:
        """Other models are served than before; on the dispatcher's thread."""

    def start(self, agent: Agent) -> None:
        """Begin; `agent` answers what people say.

        Raises:
            EdgeslmError: whatever keeps it from that.
        """

    def stop(self) -> None:
        """End; nothing is asked of the agent any more."""


class Agent:
    """One device agent. :meth:`start` returns at once; :meth:`stop` leaves nothing half done."""

    def __init__(
        self,
        identity: AgentIdentity,
        models: Mapping[str, Model] | ServedModels,
        link: SubscribingLink,
        meter: EnergyMeter,
        journal: Journal,
        limits: AgentLimits | None = None,
        *,
        power: PowerSide | None = None,
        listeners: Mapping[str, Callable[[Message], None]] | None = None,
        updates: UpdateSide | None = None,
        renewal: Renewal | None = None,
        operations: OperationSide | None = None,
        rules: RuleSide | None = None,
        home: HomeSide | None = None,
        link_beats: Callable[[], int] | None = None,
        before_first_contact: Callable[[], None] | None = None,
    ) -> None:
        """Take the parts.

        Args:
            models: by name; the first is the default.
            limits: what it accepts; ``None`` takes the defaults.
            power: measures and spends, if anything does; `meter` is a part of it then.
            listeners: topics of others that this device listens to, each with who is told, on the link's thread.
            updates: changes the models, if anything does.
            renewal: keeps the certificate fresh, on a device that has one of a fleet.
            operations: do once what an operator asks for.
            rules: turn readings into prompts, and answers into actions.
            home: shows the device in a home, where it is to be seen in one.
            link_beats: a count that goes up while the link's thread moves.
            before_first_contact: called once, when the broker is there for the first time, before it is told anything.
        """
        self._identity = identity
        self._models = models if isinstance(models, ServedModels) else ServedModels(models)
        self._models.on_change = lambda: self._inbox.put(_ModelsChanged())
        self._models.on_load(lambda: self._inbox.put(_LoadedChanged()))
        self._own_root = topics.device_topic(identity.fleet, identity.device, "prompt").removesuffix("prompt")
        self._pools: dict[str, str] = {}
        self._updates = updates
        self._renewal = renewal
        self._operations = operations
        self._rules = rules
        self._home = home
        self._link = link
        self._meter = meter
        self._journal = journal
        self._limits = limits or AgentLimits()
        self._started_at = datetime.now(UTC)
        self._inbox: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._power = power
        self._telemetry = None if power is None else power.telemetry
        self._listeners = dict(listeners or {})
        self._queue = JobQueue(in_order if power is None else power.choose)
        self._outbox = Outbox(link, journal)
        self._precedence = Precedence(link.hold)
        self._jobs: dict[str, Job] = {}
        self._jobs_lock = threading.Lock()
        self._accepting: list[tuple[Job, Message]] = []
        self._delayed_acks: list[Message] = []
        self._acks_due_s = 0.0
        self._last_prune_s = time.monotonic()
        self._connected = threading.Event()
        self._before_first_contact = before_first_contact
        self._beats_asked = self._beats_given = 0
        self._worker = Worker(
            fleet=identity.fleet,
            device=identity.device,
            models=self._models,
            meter=meter,
            queue=self._queue,
            journal=journal,
            outbox=self._outbox,
            link=link,
            steward=lambda: None if power is None else power.steward,
            precedence=self._precedence,
            forget=self._forget,
            report=self._report,
        )
        self._threads = [
            threading.Thread(target=self._dispatch, name="edgeslm-dispatch", daemon=True),
            threading.Thread(target=self._worker.run, name="edgeslm-worker", daemon=True),
        ]
        signs = [
            Sign("the dispatcher", self._ask_for_a_beat, _DISPATCH_LIMIT_S),
            Sign("the worker", self._beats_of_worker, _COMPUTE_LIMIT_S),
        ]
        self._liveness = Liveness(
            signs if link_beats is None else [*signs, Sign("the link", link_beats, _LINK_LIMIT_S)]
        )

    # --- the link's thread: enqueue only -----------------------------------------------------------------------

    def on_message(self, message: Message) -> None:
        """Part of ``LinkEvents``."""
        is_for_rules = self._rules is not None and self._rules.on_message(message)
        listener = self._listeners.get(message.topic)
        if listener is not None:
            listener(message)
            message.acknowledge()
            return
        if self._updates is not None and message.topic == self._updates.topic:
            self._updates.on_message(message)
            message.acknowledge()
            return
        if is_for_rules and not self._is_ours(message.topic):
            message.acknowledge()
            return
        # Unacknowledged QoS 1 messages are bounded by the link's receive window; a flood of QoS 0 is shed here.
        if message.qos == 0 and self._inbox.qsize() > _MAX_INBOX:
            return
        if _MAYBE_URGENT in message.payload:
            self._precedence.expect()
        self._inbox.put(message)

    def on_connected(self, *, session_present: bool) -> None:
        """Part of ``LinkEvents``."""
        log.info("connected to the broker%s", ", session kept" if session_present else "")
        self._inbox.put(_Connected())

    def on_disconnected(self, reason: str) -> None:
        """Part of ``LinkEvents``."""
        self._inbox.put(_Disconnected(reason))

    def on_published(self, token: int) -> None:
        """Part of ``LinkEvents``."""
        self._inbox.put(_Published(token))

    def publish(self, message: Message) -> int | None:
        """Hand a message of another part of the device over; see ``Link.publish``."""
        return self._link.publish(message)

    def listen(self, topic: str, told: Callable[[Message], None]) -> None:
        """Listen to one more topic, at QoS 0; `told` on the link's thread. From any thread."""
        self._listeners[topic] = told
        self._link.subscribe([(topic, 0)])

    def unlisten(self, topic: str) -> None:
        """Listen to `topic` no longer. From any thread."""
        self._link.unsubscribe([topic])
        self._listeners.pop(topic, None)

    def change_filters(self, added: Sequence[tuple[str, int]], gone: Sequence[str]) -> None:
        """Subscribe to more for the rules, and give up what they no longer listen to. From any thread."""
        own = {name for name, _ in self._fixed_filters()} | set(self._pools.values())
        if added := [(name, qos) for name, qos in added if name not in own]:
            self._link.subscribe(added)
        if gone := [name for name in gone if name not in own]:
            self._link.unsubscribe(gone)

    def ask(self, request: PromptRequest, rule: str, told: Callable[[Result], None]) -> None:
        """Put a prompt of this device itself into the queue, on the account of `rule`. From any thread.

        Args:
            told: gets the answer, or the error instead of one; on a thread of the agent, where it only notes it.
        """
        self._inbox.put(_Asked(request, rule, told))

    def give_way(self) -> None:
        """Wait while a prompt of high priority is computed. On a thread of whoever looks at readings."""
        self._precedence.wait()

    def take_back(self, request_ids: Sequence[str]) -> None:
        """Nobody waits any more for prompts of :meth:`ask`. From any thread."""
        for request_id in request_ids:
            self._cancel(request_id)

    # --- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up what a former run left, then connect.

        Raises:
            LinkError: the link cannot be set up.
            JournalError: the journal cannot be read.
        """
        self._recover()
        if self._power is not None:
            self._power.start(lambda: self.waiting)
        for thread in self._threads:
            thread.start()
        if self._operations is not None:
            self._operations.start()
        self._link.start(self, self._filters())
        if self._updates is not None:
            self._updates.start()
        if self._rules is not None:
            self._rules.start(self)
        if self._home is not None:
            self._home.start(self)

    def wait_connected(self, timeout_s: float | None = None) -> bool:
        """Wait for the broker; ``False`` if it did not accept us within `timeout_s`."""
        return self._connected.wait(timeout_s)

    def stop(self) -> None:
        """Finish the running prompt, say goodbye, close the journal. Waiting prompts run after a restart."""
        if self._home is not None:
            self._home.stop()
        if self._rules is not None:
            self._rules.stop()
        if self._operations is not None:
            self._operations.stop()
        if self._updates is not None:
            self._updates.stop()
        self._queue.close()
        for thread in self._threads[1:]:
            thread.join()
        if self._power is not None:
            self._power.stop()
        self._inbox.put(_Flush())
        self._link.stop(self._availability("offline"))
        self._inbox.put(_Stop())
        self._threads[0].join()
        self._note_confirmed()
        self._journal.close()
        if self._telemetry is not None:
            self._telemetry.close()
        if self._renewal is not None:
            self._renewal.stop()

    def ailment(self) -> str | None:
        """What of it does not move any more, as a sentence; ``None`` where all does. One thread asks, now and then."""
        return self._liveness.ailment()

    def _ask_for_a_beat(self) -> int:
        if self._beats_asked == self._beats_given:
            self._beats_asked += 1
            self._inbox.put(_Beat())
        return self._beats_given

    def _beats_of_worker(self) -> int | None:
        rests = self._threads[1].is_alive() and not self._worker.is_computing
        return None if rests else self._worker.beats

    @property
    def waiting(self) -> int:
        """Prompts accepted and not yet answered."""
        with self._jobs_lock:
            return len(self._jobs)

    def _filters(self) -> list[tuple[str, int]]:
        own = self._own_filters()
        if self._rules is None:
            return own
        names = {name for name, _ in own}
        return own + [(name, qos) for name, qos in self._rules.filters() if name not in names]

    def _is_ours(self, topic: str) -> bool:
        """Whether a message on `topic` is for the agent itself, whoever else listens to it."""
        return topic.startswith(self._own_root) or any(
            name.endswith(f"/{topic}") for name in self._pools.values()
        )

    def _own_filters(self) -> list[tuple[str, int]]:
        fixed = self._fixed_filters()
        self._pools = self._pool_filters()
        return fixed + [(name, 1) for name in self._pools.values()]

    def _fixed_filters(self) -> list[tuple[str, int]]:
        fleet, device = self._identity.fleet, self._identity.device
        filters = [
            (topics.device_topic(fleet, device, "prompt"), 1),
            (topics.device_topic(fleet, device, "prompt/text"), 1),
            (topics.device_topic(fleet, device, "cancel"), 1),
        ]
        filters += [(topic, 0) for topic in self._listeners]
        if self._updates is not None:
            filters.append((self._updates.topic, 1))
        if self._renewal is not None:
            filters.append((self._renewal.topic, 1))
        if self._operations is not None:
            filters.append((self._operations.filter, 1))
        return filters

    def _pool_filters(self) -> dict[str, str]:
        """The subscription to each pool that this device takes prompts from, by model."""
        fleet = self._identity.fleet
        return {
            name: topics.shared_subscription(fleet, topics.pool_topic(fleet, name))
            for name in (self._models.names() if self._identity.pool else ())
        }

    def _recover(self) -> None:
        now, now_s = time.time(), time.monotonic()
        for prompt, replies in self._journal.unanswered():
            # A clock that was stepped must not stretch a deadline, nor make a prompt of the future.
            age_s = max(0.0, now - prompt.accepted_at)
            job = self._job(prompt.request, replies, now_s - age_s)
            job.settled.set()
            with contextlib.suppress(EdgeslmError):  # whatever is wrong with it, the worker answers it
                if self._power is not None:
                    self._power.plan(job, self._models)
            self._queue.push(job)
        if self._jobs:
            log.info("%d prompts of the last run are taken up", len(self._jobs))

    def _job(self, request: PromptRequest, replies: list[ReplyAddress], accepted_s: float) -> Job:
        deadline_ms = request.options.deadline_ms
        deadline_s = None if deadline_ms is None else accepted_s + deadline_ms / 1e3
        job = Job(request, replies, accepted_s, deadline_s)
        with self._jobs_lock:
            self._jobs[job.id] = job
        return job

    def _report(self, job: Job, result: Result) -> None:
        if self._power is not None:
            self._power.report(job, self._models, result)

    def _forget(self, job: Job) -> None:
        with self._jobs_lock:
            self._jobs.pop(job.id, None)

    # --- the dispatcher's thread -------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        while True:
            events = self._next_events()
            for event in events:
                if isinstance(event, _Stop):
                    self._journal_accepted()
                    return
                try:
                    self._handle(event)
                except Exception:  # an agent that stops listening is worse than one lost event
                    log.exception("event %s failed", type(event).__name__)
            self._journal_accepted()
            self._note_confirmed()
            if len(self._delayed_acks) >= _MAX_DELAYED_ACKS or time.monotonic() >= self._acks_due_s:
                self._acknowledge_delayed()
            self._prune()
            self._look_at_certificate()

    def _next_events(self) -> list[_Event]:
        """What the inbox holds, at most a batch; waits for something, or for delayed acknowledgements to be due."""
        timeout_s = None if self._renewal is None else _LOOK_AT_CERTIFICATE_S
        if self._delayed_acks:
            timeout_s = max(0.0, self._acks_due_s - time.monotonic())
        try:
            events = [self._inbox.get(timeout=timeout_s)]
        except queue.Empty:
            return []
        while len(events) < _MAX_BATCH and not self._inbox.empty():
            events.append(self._inbox.get())
        return events

    def _acknowledge_delayed(self) -> None:
        messages, self._delayed_acks = self._delayed_acks, []
        for message in messages:
            message.acknowledge()

    def _handle(self, event: _Event) -> None:
        match event:
            case Message():
                self._receive(event)
            case _Published(token):
                self._note_published(token)
            case _Asked():
                self._take_own(event)
            case _ModelsChanged():
                self._models_changed()
            case _LoadedChanged():
                self._tell_info()
            case _Beat():
                self._beats_given += 1
            case _Flush():
                self._acknowledge_delayed()
            case _Connected():
                self._note_connected()
            case _Disconnected(reason):
                self._connected.clear()
                log.warning("broker lost: %s", reason)
                self._outbox.disconnected()
                if self._telemetry is not None:
                    self._telemetry.disconnected()

    def _note_connected(self) -> None:
        if self._before_first_contact is not None:
            self._before_first_contact()
            self._before_first_contact = None
        self._announce()
        self._outbox.connected()
        self._connected.set()
        if self._renewal is not None:
            self._renewal.connected()
        if self._updates is not None:
            self._updates.connected()
        if self._operations is not None:
            self._operations.connected()
        if self._telemetry is not None:
            self._telemetry.connected()
        if self._rules is not None:
            self._rules.connected()
        if self._home is not None:
            self._home.connected()

    def _note_published(self, token: int) -> None:
        self._outbox.published(token)
        self._acknowledge_delayed()
        if self._telemetry is not None:
            self._telemetry.published(token)
        if self._renewal is not None:
            self._renewal.published(token)
        if self._operations is not None:
            self._operations.published(token)
        if self._home is not None:
            self._home.published(token)

    def _look_at_certificate(self) -> None:
        if self._renewal is None:
            return
        try:
            self._renewal.tick()
        except EdgeslmError:
            log.exception("the certificate cannot be renewed")

    def _receive(self, message: Message) -> None:
        identity = self._identity
        if self._renewal is not None and message.topic == self._renewal.topic:
            self._renewal.take(message.payload)
            message.acknowledge()
            return
        if self._operations is not None and self._operations.takes(message.topic):
            self._operations.receive(message)
            if self._home is not None:
                self._home.commanded(message.topic)
            return
        decision = intake.read(message, identity.fleet, identity.device, self._limits.max_body_bytes)
        match decision:
            case intake.Prompt(request, reply):
                try:
                    self._take(request, reply, message)
                except EdgeslmError as error:
                    self._refuse(request.id, reply, error)
                    message.acknowledge()
                return  # acknowledged once journalled
            case intake.Refused(request_id, reply, error):
                self._refuse(request_id, reply, error)
            case intake.Cancel(request_id):
                self._cancel(request_id)
            case intake.Ignored(reason):
                log.debug("ignored: %s", reason)
        message.acknowledge()

    def _take(self, request: PromptRequest, reply: ReplyAddress, message: Message) -> None:
        """Accept a prompt, or raise why not. Afterwards it is acknowledged, now or once it is journalled."""
        with self._jobs_lock:
            running = self._jobs.get(request.id)
        if running is not None:
            self._ask_again(running.request, request, reply, running)
            self._acknowledge_after(running, message)
            return
        known = self._journal.find(request.id)
        if known is not None:
            self._ask_again(known.request, request, reply, None)
            message.acknowledge()
            return
        request = self._addressed(request)
        # An alarm must not be lost since the rest waits for energy: it finds as many places again.
        places = self._limits.max_queue * (2 if request.options.priority == "high" else 1)
        if len(self._queue) + len(self._accepting) >= places:
            wait_s = round(self._worker.mean_job_s * len(self._queue) / 2, 2)
            raise BusyError(f"{self._limits.max_queue} prompts are waiting", retry_after_s=max(wait_s, 0.1))
        if request.options.temperature > 0 and request.options.seed is None:
            options = request.options.model_copy(update={"seed": random.getrandbits(62)})
            request = request.model_copy(update={"options": options})
        job = self._job(request, [reply], time.monotonic())
        try:
            if self._power is not None:
                self._power.admit(job, self._models, self._waiting_jobs)
        except EdgeslmError:
            self._forget(job)
            raise
        self._accepting.append((job, message))

    def _take_own(self, asked: _Asked) -> None:
        """Queue a prompt of the device itself, or tell why not."""
        job: Job | None = None
        try:
            request = self._addressed(asked.request)
            if len(self._queue) + len(self._accepting) >= self._limits.max_queue:
                raise BusyError(f"{self._limits.max_queue} prompts are waiting")
            job = self._job(request, [], time.monotonic())
            job.rule, job.told = asked.rule, asked.told
            job.settled.set()
            if self._power is not None:
                self._power.admit(job, self._models, self._waiting_jobs)
        except EdgeslmError as error:
            if job is not None:
                self._forget(job)
            asked.told(intake.error_result(asked.request.id, self._identity.device, error))
            return
        self._queue.push(job)

    def _waiting_jobs(self) -> list[Job]:
        return [*self._queue.waiting(), *(job for job, _ in self._accepting)]

    def _acknowledge_after(self, job: Job, message: Message) -> None:
        if job.settled.is_set():
            message.acknowledge()
        else:
            self._accepting.append((job, message))

    def _addressed(self, request: PromptRequest) -> PromptRequest:
        """`request`, with the name of a model that can do it where it names none and the default cannot.

        Raises:
            UnknownModelError: the model is not served.
            BadRequestError: it does not do that task, or none does.
        """
        model = self._models.get(request.model)
        others = self._models.all() if request.model is None else ()
        if request.task in model.tasks and (not others or _fits(model, request)):
            check_messages(request, model.installed.manifest)
            return request
        for other in others:
            if request.task in other.tasks and _fits(other, request):
                return request.model_copy(update={"model": other.installed.manifest.name})
        if request.task in model.tasks:
            check_messages(request, model.installed.manifest)
            return request  # which says itself what it would take
        served = ", ".join(dict.fromkeys(task for item in (model, *others) for task in item.tasks))
        by = f"by {model.name}" if request.model is not None else "here"
        raise BadRequestError(f"task '{request.task}' is not served {by} (served: {served})")

    def _ask_again(
        self, first: PromptRequest, again: PromptRequest, reply: ReplyAddress, running: Job | None
    ) -> None:
        """The same id once more: its one answer goes to this requester too."""
        if not first.asks_as(again) or (first.model or again.model) != (again.model or first.model):
            raise BadRequestError(f"id '{again.id}' was used for another prompt")
        if any(getattr(first.options, name) != getattr(again.options, name) for name in ANSWER_FORMS):
            raise BadRequestError(f"id '{again.id}' was used for another form of answer")
        if running is not None:
            if reply in running.replies:
                return
            if len(running.replies) >= _MAX_REPLIES_PER_PROMPT:
                raise BusyError("too many requesters wait for this id", retry_after_s=1.0)
            running.replies.append(reply)
            if not running.settled.is_set():
                self._journal_accepted()
        self._journal.add_reply(again.id, reply)
        self._outbox.send(self._journal.pending(again.id), again=True)

    def _cancel(self, request_id: str) -> None:
        with self._jobs_lock:
            job = self._jobs.get(request_id)
        if job is not None:
            job.cancelled.set()
            self._queue.wake()

    def _refuse(self, request_id: str, reply: ReplyAddress, error: EdgeslmError) -> None:
        if not isinstance(error, RequestError):
            log.error("prompt %s refused: %s", request_id, error)
        self._outbox.refuse(reply, intake.error_result(request_id, self._identity.device, error))

    def _journal_accepted(self) -> None:
        """One synced write for all prompts of a batch, then tell the broker that they are safe here."""
        accepting, self._accepting = self._accepting, []
        if not accepting:
            return
        fresh = {job.id: job for job, _ in accepting if not job.settled.is_set()}
        rows = [(job.request, reply) for job in fresh.values() for reply in job.replies[:1]]

        def begin() -> None:
            # While the card syncs the worker computes; it waits for the sync before an answer leaves.
            for job in fresh.values():
                self._queue.push(job)

        try:
            if rows:
                self._journal.accept(rows, time.time(), begin)
        except JournalError as error:
            # Refused and acknowledged: left unacknowledged they would fill the receive window, and the agent
            # would hear nothing any more, not even once the disk has room again.
            log.exception("prompts cannot be journalled")
            for job in fresh.values():
                job.dropped = True
                job.cancelled.set()
                job.settled.set()
                self._forget(job)
                for reply in job.replies:
                    self._refuse(job.id, reply, error)
        else:
            for job in fresh.values():
                job.settled.set()
        if not self._delayed_acks:
            self._acks_due_s = time.monotonic() + _ACK_DELAY_S
        self._delayed_acks += [message for _, message in accepting]

    def _note_confirmed(self) -> None:
        numbers = self._outbox.confirmed()
        if not numbers:
            return
        try:
            self._journal.delivered(numbers)
        except JournalError:
            log.exception("delivered answers cannot be noted; they are published again after a restart")
        self._outbox.settle(numbers)

    def _prune(self) -> None:
        if time.monotonic() - self._last_prune_s < _PRUNE_INTERVAL_S:
            return
        self._last_prune_s = time.monotonic()
        self._journal.prune(time.time() - self._limits.answered_window_s, self._limits.max_answered)

    def _models_changed(self) -> None:
        before, self._pools = self._pools, self._pool_filters()
        if added := [(self._pools[name], 1) for name in self._pools.keys() - before.keys()]:
            self._link.subscribe(added)
        if gone := [before[name] for name in before.keys() - self._pools.keys()]:
            self._link.unsubscribe(gone)
        self._tell_info()
        if self._home is not None:
            self._home.changed()

    def _announce(self) -> None:
        self._link.publish(self._availability("online"))
        self._tell_info()

    def _tell_info(self) -> None:
        topic = topics.device_topic(self._identity.fleet, self._identity.device, "info")
        self._link.publish(Message(topic, codec.encode(self.info()), retain=True))

    def _availability(self, state: str) -> Message:
        return availability(self._identity.fleet, self._identity.device, state)

    def info(self) -> Info:
        """The retained self-description."""
        return describe(
            self._identity,
            self._limits,
            self._models.all(),
            self._meter.meter_class,
            self._started_at,
            self._models.resting(),
        )


def _fits(model: Model, request: PromptRequest) -> bool:
    """Whether `model` takes what `request` brings: arrays, text or messages."""
    has_form = request.messages is None or model.installed.manifest.takes_messages
    return has_form and model.takes_arrays == request.brings_arrays
