"""Collects what devices report, for as long as it runs: part of ``fleet serve``, and of whatever else looks on.

What always holds: the link's thread only enqueues; a batch that a database refuses is brought again until it is taken;
what comes faster than it can be written is dropped, counted, and said, and shows as gaps in the sequences as well.

Two collectors of one fleet do no harm: the same report is there once.

Left to others: what becomes of a report (:mod:`edgeslm.fleet.metrics.intake`).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Final, Self

from edgeslm import topics
from edgeslm.clock import utc_now
from edgeslm.errors import EdgeslmError
from edgeslm.fleet.metrics.intake import Intake
from edgeslm.fleet.metrics.store import MetricsStore
from edgeslm.link.port import Link, Message
from edgeslm.schema.fleet_metrics import MetricsSettings

_LOG = logging.getLogger(__name__)

MAX_WAITING: Final = 50_000
"""Reports that wait to be written; of ten thousand devices all three of a minute, and more."""
MAX_BATCH: Final = 5_000
GATHER_S: Final = 0.25
"""How long a batch gathers: one transaction for many reports is what makes it fast."""
_ROLL_UP_S: Final = 10.0
_PRUNE_S: Final = 3600.0
_RETRY_S: Final = 1.0


class MetricsCollector:
    """Collects for one fleet; used as a context manager it is running inside. It lives once."""

    def __init__(
        self,
        fleet: str,
        link: Link,
        intake: Intake,
        metrics: MetricsStore,
        settings: MetricsSettings,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """Take the parts.

        Args:
            fleet: its name.
            link: as the operator, not started yet.
            intake: where reports go.
            metrics: the database that is rolled up and kept small.
            settings: how long what is kept.
            clock: gives aware UTC time.
        """
        self._fleet, self._link, self._intake, self._metrics = fleet, link, intake, metrics
        self._settings, self._clock = settings, clock
        self._inbox: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._dropped = 0
        self._connected = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet-metrics", daemon=True)

    def __enter__(self) -> Self:
        """Connect in the background, and collect.

        Raises:
            LinkError: the link cannot be set up.
            ConfigError: a certificate file cannot be used.
        """
        # QoS 1 would give nothing more, as no session outlasts the connection, and costs half of the speed.
        self._link.start(self, [(name, 0) for name in topics.metrics_filters(self._fleet)])
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Write what has arrived, roll it up, and disconnect."""
        self._link.stop()
        self._stopping.set()
        self._thread.join()

    @property
    def dropped(self) -> int:
        """Messages that came faster than they could be written."""
        return self._dropped

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait for the broker; ``False`` if it did not accept us in time."""
        return self._connected.wait(timeout_s)

    # --- the link's thread: enqueue only --------------------------------------------------------------------

    def on_message(self, message: Message) -> None:
        """Part of ``LinkEvents``."""
        message.acknowledge()
        if self._inbox.qsize() >= MAX_WAITING:
            self._dropped += 1
        elif not message.retain:
            self._inbox.put((message.topic, message.payload))

    def on_connected(self, *, session_present: bool) -> None:
        """Part of ``LinkEvents``."""
        del session_present
        self._connected.set()

    def on_disconnected(self, reason: str) -> None:
        """Part of ``LinkEvents``."""
        self._connected.clear()
        _LOG.warning("metrics: broker lost: %s", reason)

    def on_published(self, token: int) -> None:
        """Part of ``LinkEvents``."""

    # --- a thread of our own --------------------------------------------------------------------------------

    def _run(self) -> None:
        rolled_s, pruned_s, told = time.monotonic(), float("-inf"), 0
        while True:
            is_last = self._stopping.is_set()
            batch = self._gather()
            if batch:
                self._bring(batch)
            elif is_last:
                break
            now_s = time.monotonic()
            if now_s - rolled_s >= _ROLL_UP_S:
                rolled_s = now_s
                self._try(self._metrics.roll_up)
            if now_s - pruned_s >= _PRUNE_S:
                pruned_s = now_s
                self._try(
                    lambda: self._metrics.prune(self._settings, round(self._clock().timestamp() * 1000))
                )
            if self._dropped > told:
                _LOG.warning("%d reports came too fast and are dropped", self._dropped - told)
                told = self._dropped
        self._try(self._metrics.roll_up)

    def _gather(self) -> list[tuple[str, bytes]]:
        """What comes in a while, at most a batch."""
        found: list[tuple[str, bytes]] = []
        self._stopping.wait(0 if self._inbox.qsize() >= MAX_BATCH else GATHER_S)
        try:
            while len(found) < MAX_BATCH:
                found.append(self._inbox.get_nowait())
        except queue.Empty:
            pass
        return found

    def _bring(self, batch: list[tuple[str, bytes]]) -> None:
        while True:
            try:
                self._intake.take(batch, self._clock())
            except (
                EdgeslmError
            ) as error:  # the database is locked, the disk full: the next turn may be better
                _LOG.error("metrics: %s", error)
                if self._stopping.wait(_RETRY_S):
                    return
            except Exception:  # no report must end the collector
                _LOG.exception("metrics: %d reports are dropped", len(batch))
                return
            else:
                return

    def _try(self, do: Callable[[], object]) -> None:
        try:
            do()
        except EdgeslmError as error:
            _LOG.error("metrics: %s", error)
