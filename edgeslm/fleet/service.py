"""Answers devices: first contact, reports of identity, presence, descriptions. Run by ``fleet serve``.

What always holds: messages are handled one after another, in a thread of its own, those that wait together in one
transaction; what one of them breaks is undone for it alone; the answer leaves after the transaction is on the disk.
Nothing is lost by stopping: a device asks until it is answered, and reports again.

Left to others: what is decided (:mod:`edgeslm.fleet.enrolment`, :mod:`edgeslm.fleet.certificates`).
"""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from edgeslm import codec, topics
from edgeslm.clock import utc_now
from edgeslm.errors import CodecError, EdgeslmError, TopicError
from edgeslm.fleet.broker import Broker
from edgeslm.fleet.certificates import Issuer, Outcome, carry_on_renaming, take_presence, take_report
from edgeslm.fleet.descriptions import take_info
from edgeslm.fleet.enrolment import Decision, carry_on, settle, take_request
from edgeslm.fleet.store.database import Store
from edgeslm.link.port import Link, Message
from edgeslm.schema.fleet import Approval
from edgeslm.schema.message import Availability

_LOG = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Messages that wait to be handled; what comes after them is dropped, and comes again."""
_MAX_BATCH = 64
_TICK_S = 1.0
_SYNC_REST = 20.0
"""A sync of the broker's files is followed by a rest so many times as long: thousands of claims take a while."""
_HOOK_OUTPUT_CHARS = 300


def ask_hook(approval: Approval, request: dict[str, Any]) -> Decision:
    """What the hook of the settings says to a request: exit code 0 approves, 1 rejects, anything else waits."""
    name = approval.hook[0]
    try:
        done = subprocess.run(
            approval.hook,
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=approval.hook_timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Decision("wait", f"hook '{name}' gave no answer within {approval.hook_timeout_s:g} s")
    except OSError as error:
        return Decision("wait", f"hook '{name}' cannot be run: {error.strerror}")
    said = " ".join(done.stdout.decode("utf-8", "replace").split())[:_HOOK_OUTPUT_CHARS]
    if done.returncode == 0:
        return Decision("approve", f"hook '{name}' approves{f': {said}' if said else ''}")
    if done.returncode == 1:
        return Decision("reject", said or f"hook '{name}' rejects")
    return Decision("wait", f"hook '{name}' ended with {done.returncode}")


def _asked_in(message: Message) -> tuple[str, bytes] | None:
    """A request to join, to know it again by; ``None`` if a message is none."""
    try:
        is_request = isinstance(topics.parse(message.topic), topics.EnrolTopic)
    except TopicError:
        return None
    return (message.topic, message.payload) if is_request else None


class EnrolmentService:
    """Answers the devices of one fleet, from :meth:`start` until :meth:`stop`. It lives once."""

    def __init__(
        self,
        store: Store,
        issuer: Issuer,
        broker: Broker,
        link: Link,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """Take the parts.

        Args:
            link: as the operator, not started yet.
            clock: gives aware UTC time.
        """
        self._store = store
        self._issuer = issuer
        self._broker = broker
        self._link = link
        self._clock = clock
        self._inbox: queue.Queue[Message | None] = queue.Queue(MAX_WAITING)
        self._connected = threading.Event()
        self._reason = "no answer yet"
        self._stopping = False
        self._is_sync_due = True
        self._no_sync_before_s = 0.0
        self._asking: set[tuple[str, bytes] | None] = set()
        self._thread = threading.Thread(target=self._run, name="fleet-enrolment", daemon=True)

    def start(self) -> None:
        """Connect in the background, and answer.

        Raises:
            LinkError: the link cannot be set up.
            ConfigError: a password or certificate file cannot be used.
        """
        fleet = self._issuer.config.name
        self._link.start(
            self,
            [
                (topics.enrol_filter(fleet), 1),
                (topics.fleet_filter(fleet, "identity"), 1),
                (topics.fleet_filter(fleet, "availability"), 1),
                (topics.fleet_filter(fleet, "info"), 1),
            ],
        )
        self._thread.start()

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait for the broker; ``False`` if it did not accept us in time, and then :attr:`reason` says why."""
        return self._connected.wait(timeout_s)

    @property
    def reason(self) -> str:
        """Why there is no connection."""
        return self._reason

    def stop(self) -> None:
        """Finish what is being answered, and disconnect. Idempotent."""
        self._stopping = True
        self._link.stop()
        if self._thread.is_alive():
            with self._inbox.mutex:
                self._inbox.queue.clear()
            self._inbox.put(None)
            self._thread.join()

    # --- the link's thread: enqueue only --------------------------------------------------------------------

    def on_message(self, message: Message) -> None:
        """Part of ``LinkEvents``."""
        asked = _asked_in(message)
        if asked is not None and asked in self._asking:
            message.acknowledge()  # it asks again, and has not been answered because others were before it
            return
        try:
            if asked is not None:
                self._asking.add(asked)
            self._inbox.put_nowait(message)
        except queue.Full:
            self._asking.discard(asked)
            _LOG.warning("a message on %s is dropped: %d wait already", message.topic[:120], MAX_WAITING)
            message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None:
        """Part of ``LinkEvents``."""
        del session_present
        self._connected.set()

    def on_disconnected(self, reason: str) -> None:
        """Part of ``LinkEvents``."""
        self._connected.clear()
        self._reason = reason
        _LOG.warning("broker lost: %s", reason)

    def on_published(self, token: int) -> None:
        """Part of ``LinkEvents``."""

    # --- the service's thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        ticked_s = 0.0
        while not self._stopping:
            messages = self._next_messages()
            try:
                if messages:
                    self._handle(messages)
                if time.monotonic() - ticked_s >= _TICK_S:
                    ticked_s = time.monotonic()
                    self._tick()
            except EdgeslmError as error:  # the store is locked, the disk full: the next turn may be better
                _LOG.error("enrolment: %s", error)
            except Exception:  # one message must not end the service
                _LOG.exception("enrolment failed")

    def _next_messages(self) -> list[Message]:
        """What waits, at most a batch; waits for something, but no longer than until the next tick."""
        found: list[Message] = []
        try:
            first = self._inbox.get(timeout=_TICK_S)
            while first is not None:
                self._asking.discard(_asked_in(first))
                found.append(first)
                if len(found) == _MAX_BATCH:
                    break
                first = self._inbox.get_nowait()
        except queue.Empty:
            pass
        return found

    def _handle(self, messages: list[Message]) -> None:
        outcomes = []
        try:
            with self._store.write() as session:
                for message in messages:
                    try:
                        with self._store.part(session):
                            outcome = self._take(session, message)
                    except EdgeslmError as error:
                        _LOG.warning("a message on %s is dropped: %s", message.topic[:120], error)
                    else:
                        outcomes.append(outcome)
        finally:
            for message in messages:
                message.acknowledge()
        for outcome in outcomes:
            self._try_to_follow(outcome)

    def _take(self, session: Session, message: Message) -> Outcome:
        now, issuer = self._clock(), self._issuer
        try:
            topic = topics.parse(message.topic)
        except TopicError:
            return Outcome()
        if isinstance(topic, topics.EnrolTopic):
            return take_request(session, issuer, topic.claim, message.payload, now)
        if not isinstance(topic, topics.DeviceTopic) or not message.payload:
            return Outcome()
        if topic.channel == "identity":
            return take_report(
                session, issuer, topic.device, message.payload, now, is_retained=message.retain
            )
        if topic.channel == "info":
            take_info(session, topic.device, message.payload, now)
            return Outcome()
        try:
            state = codec.decode(Availability, message.payload, max_bytes=1024).state
        except CodecError:
            return Outcome()
        take_presence(session, topic.device, state, now, is_retained=message.retain)
        return Outcome()

    def _tick(self) -> None:
        now = self._clock()
        with self._store.write() as session:
            outcomes = [*carry_on(session, self._issuer, now), *carry_on_renaming(session, self._issuer, now)]
        for outcome in outcomes:
            self._try_to_follow(outcome)
        if self._is_sync_due and time.monotonic() >= self._no_sync_before_s:
            self._sync()

    def _try_to_follow(self, outcome: Outcome) -> None:
        try:
            self._follow(outcome)
        except EdgeslmError as error:  # what follows for one device must not keep others from being answered
            _LOG.error("%s: %s", outcome.topic or outcome.disconnect or "enrolment", error)

    def _follow(self, outcome: Outcome) -> None:
        """Do what a transaction left to be done."""
        if outcome.hook_input is not None and outcome.claim is not None:
            decision = ask_hook(self._issuer.config.approval, outcome.hook_input)
            with self._store.write() as session:
                outcome = settle(session, self._issuer, outcome.claim, decision, self._clock())
        if outcome.reply is not None and outcome.topic is not None:
            self._link.publish(Message(outcome.topic, outcome.reply))
        for topic in outcome.forget:
            self._link.publish(Message(topic, b"", retain=True))
        # Many devices that join together need one reload, not one each; one that is to be put off needs it now.
        self._is_sync_due = self._is_sync_due or outcome.broker_changed
        if outcome.disconnect is not None:
            self._sync()
            self._broker.disconnect(outcome.disconnect, self._clock())

    def _sync(self) -> None:
        began_s = time.monotonic()
        done = self._broker.sync(self._store, self._clock())
        self._is_sync_due = False
        self._no_sync_before_s = time.monotonic() + _SYNC_REST * (time.monotonic() - began_s)
        if done.reload in {"not running", "refused"}:
            _LOG.warning("the door has not read its passwords: %s", done.reload)
