"""Tells the service manager how the agent is: ready, alive, ending, and in words (sd_notify(3), by a plain socket).

What always holds:

* Where nobody listens nothing is sent and nothing fails: a terminal is as good as systemd.
* The watchdog hears from us only while everything that has to move does move. A timer that beats by itself would hold
  up an agent that answers nobody.
* Starting may take its time, but not for ever.

Left to others: what has to move (:mod:`edgeslm.agent.liveness`), and what follows from silence (the unit).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping

from edgeslm.agent.launcher import ENV_SUPERVISOR

log = logging.getLogger(__name__)

STARTING_LIMIT_S = 900.0
"""A slow board with a large model takes minutes, and the first start after an update packs the weights anew."""
_TELL_S = 10.0
_BEATS_PER_PERIOD = 3
_MAX_STATUS_CHARS = 200

Ailment = Callable[[], str | None]
"""What does not move any more, as a sentence; ``None`` where all does. One thread asks."""


def _nothing() -> str | None:
    return None


class Notifier:
    """Sends messages to the service manager that started us, where one did. From any thread.

    Attributes:
        watchdog_s: it wants to hear from us at least so often; ``None`` where it does not.
    """

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        """Take the socket's address as ``NOTIFY_SOCKET`` gives it: a path, or ``@`` and an abstract name."""
        known = address is not None and address.startswith(("/", "@")) and len(address) > 1
        self._address = address.replace("@", "\0", 1) if known and address is not None else None
        self.watchdog_s = watchdog_s if known else None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], pid: int) -> Notifier:
        """What ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` say to the process `pid`.

        A version on trial speaks for the launcher that waits for it.
        """
        us = {str(pid), environment.get(ENV_SUPERVISOR, str(pid))}
        watchdog_s = None
        if environment.get("WATCHDOG_PID", str(pid)) in us:
            with contextlib.suppress(ValueError):
                watchdog_s = int(environment.get("WATCHDOG_USEC", "")) / 1e6
        return cls(environment.get("NOTIFY_SOCKET"), watchdog_s if watchdog_s and watchdog_s > 0 else None)

    @property
    def is_heard(self) -> bool:
        """Whether a service manager listens."""
        return self._address is not None

    def ready(self) -> None:
        """The service has started."""
        self._send("READY=1")

    def alive(self) -> None:
        """It works."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """It ends."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """What it does, on one line, for ``systemctl status``."""
        line = "".join(char if char.isprintable() else " " for char in text)
        self._send(f"STATUS={line[:_MAX_STATUS_CHARS]}")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(message.encode(), self._address)
        except OSError as error:
            log.debug("the service manager does not hear %s: %s", message.partition("=")[0], error)


class Heartbeat:
    """Says that the agent is alive for as long as it is, on a thread of its own."""

    def __init__(
        self,
        notifier: Notifier,
        *,
        starting_limit_s: float = STARTING_LIMIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take who is told; nothing is sent before :meth:`start`.

        Args:
            starting_limit_s: after so long without :meth:`prove` it falls silent.
        """
        self.notifier = notifier
        self._clock = clock
        self._deadline_s: float | None = clock() + starting_limit_s
        self._ailment: Ailment = _nothing
        self._said: Callable[[], str] = str
        self._told = ""
        self._ailing = ""
        self._ended = threading.Event()
        self._look = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> Heartbeat:
        """Begin, where somebody listens."""
        if self.notifier.is_heard and self._thread is None:
            self.beat()
            self._thread = threading.Thread(target=self._run, name="edgeslm-heartbeat", daemon=True)
            self._thread.start()
        return self

    def prove(self, ailment: Ailment, said: Callable[[], str]) -> None:
        """The service is there: from now on it is alive while `ailment` finds nothing; `said` is its status."""
        with self._look:
            self._deadline_s, self._ailment, self._said = None, ailment, said
        self.notifier.ready()
        self.beat()

    def tell(self, text: str) -> None:
        """Another status."""
        if text != self._told:
            self._told = text
            self.notifier.status(text)

    def beat(self) -> None:
        """Look once, and say what there is to say."""
        with self._look:
            late = self._deadline_s is not None and self._clock() > self._deadline_s
            ailment = "it does not get through its start" if late else self._ailment()
            if ailment is None:
                self.notifier.alive()
            elif ailment != self._ailing:
                log.error("the service manager is not told that the agent is alive: %s", ailment)
            self._ailing = ailment or ""
            text = ailment or self._said()
        if text:
            self.tell(text)

    def stop(self, *, ends: bool) -> None:
        """Fall silent.

        Args:
            ends: the service ends; else another process goes on with it.
        """
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self.notifier.alive()
        if ends:
            self.notifier.stopping()

    def _run(self) -> None:
        watchdog_s = self.notifier.watchdog_s
        period_s = _TELL_S if watchdog_s is None else min(watchdog_s / _BEATS_PER_PERIOD, _TELL_S)
        while not self._ended.wait(period_s):
            try:
                self.beat()
            except Exception:  # then it is not alive, and says so by silence
                log.exception("nobody can tell whether the agent is alive")


def settle_files() -> None:
    """Make everything on this machine's disks last, before anybody hears that this device is there.

    Who sees a board come up for the first time may well unplug it. What other programs wrote on the first boot (host
    keys, accounts) is then still in memory only. sync(2) needs no privilege.
    """
    began_s = time.monotonic()
    os.sync()
    log.info("synced the disks in %.2f s", time.monotonic() - began_s)
