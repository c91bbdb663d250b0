"""How a file is drawn from several sources until it is whole.

A source that fails is left alone for a while, longer each time, and the next in order of preference goes on;
one that breaks off after it gave something may go on at once. A source that lies is left for good after three
lies, and one that does not have the file at once. Without a chunk map blocks of two sources are never mixed,
so that it is clear who is to blame for a whole that is wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from edgeslm.delivery.chunks import ChunkMap
from edgeslm.delivery.partial import PartialFile
from edgeslm.delivery.policy import RateFloor, RateMeter, SourceState, TokenBucket, choose
from edgeslm.delivery.port import BlockSource, Cancel, Progress
from edgeslm.errors import (
    DeliveryCancelledError,
    DeliveryDeadlineError,
    DeliveryDiskError,
    LyingSourceError,
    NoSourceError,
    SlowSourceError,
    SourceError,
    SourceMissingError,
)
from edgeslm.schema.delivery import BlobRef, DeliveryPolicy

log = logging.getLogger(__name__)

PROGRESS_S = 0.5
ALLOWED_CHECK_S = 5.0
MAX_SPOILED = 3
"""Times that blocks may go bad between being written and being read back."""


@dataclass(frozen=True)
class Terms:
    """On which terms files are fetched.

    Attributes:
        policy: cap, least rate, retries and deadline.
        progress: told about twice a second.
        cancelled: ends it when set.
        allowed: asked before a source is used and every few seconds meanwhile; what it raises ends it.
        patience_s: seconds without a source that gives anything after which to give up, or ``None``.
        now: monotonic seconds.
        chance: from 0 to 1, for the spread of retries.
    """

    policy: DeliveryPolicy
    progress: Callable[[Progress], None]
    cancelled: Cancel
    allowed: Callable[[BlockSource], None]
    patience_s: float | None
    now: Callable[[], float]
    chance: Callable[[], float]


class Session:
    """Fetches a file, and its chunk map before it, under one deadline."""

    def __init__(self, directory: Path, sources: Sequence[BlockSource], terms: Terms) -> None:
        """Begin.

        Args:
            directory: where files arrive.
            sources: in order of preference.
            terms: the deadline runs from now on.
        """
        self._directory = directory
        self._sources = sources
        self._terms = terms
        self._policy = terms.policy
        self._now = terms.now
        began_s = self._now()
        self._deadline_s = began_s + self._policy.deadline_s
        self._gained_s = began_s
        cap = self._policy.max_bytes_per_s
        self._bucket = TokenBucket(cap, began_s) if cap is not None else None
        self._meter = RateMeter(began_s)
        self._moved_bytes = 0
        self._told_s = began_s - PROGRESS_S

    def bring(self, blob: BlobRef, chunks: ChunkMap | None) -> None:
        """Go on until the file `blob` is whole.

        Raises:
            DeliveryError: it could not be brought here; subclasses tell why.
        """
        self._meter = RateMeter(self._now())
        states = [SourceState() for _ in self._sources]
        used: int | None = None
        spoiled = 0
        with closing(PartialFile(self._directory, blob, chunks)) as part:
            while True:
                if not part.missing():
                    if part.finish():
                        return
                    if chunks is not None:
                        # Each block was right when it was written.
                        spoiled += 1
                        _check_disk(spoiled, part)
                    elif used is not None:
                        problem = f"{self._sources[used].name}: gave another file"
                        states[used] = states[used].exposed(problem)
                    continue
                index = self._choose(blob, states, part)
                if chunks is None and used not in {None, index}:
                    part.restart()  # from one source alone, so that it is clear who is to blame
                used = index
                states[index] = self._draw(blob, self._sources[index], states[index], part)
                self._tell(blob, part, self._sources[index], states[index].problem, always=True)

    def _choose(self, blob: BlobRef, states: Sequence[SourceState], part: PartialFile) -> int:
        """The source to use now, after the wait that it takes."""
        while True:
            self._check(blob)
            if all(state.dropped for state in states):
                reasons = [state.dropped or "" for state in states]
                raise NoSourceError(
                    f"no source is left for {blob.sha256}: {'; '.join(reasons) or 'there was none'}",
                    sha256=blob.sha256, missing=not any(state.lies for state in states),
                )  # fmt: skip
            index = choose(states, self._now())
            if index is not None:
                return index
            ready_s = min(state.ready_at_s for state in states if state.dropped is None)
            problem = next((state.problem for state in states if state.problem), None)
            self._tell(blob, part, None, problem, always=True)
            self._wait(blob, ready_s - self._now())

    def _draw(
        self,
        blob: BlobRef,
        source: BlockSource,
        state: SourceState,
        part: PartialFile,
    ) -> SourceState:
        """Take from `source` what it gives; what is to be thought of it afterwards."""
        before_bytes = part.done_bytes
        problem = state.problem
        floor = RateFloor(self._policy.min_bytes_per_s, self._policy.slow_after_s)
        waiting_from_s = self._now()
        allowed_s = waiting_from_s
        self._terms.allowed(source)

        def received(size_bytes: int) -> None:
            nonlocal waiting_from_s, allowed_s
            now_s = self._now()
            if floor.too_slow(now_s - waiting_from_s, size_bytes):
                raise SlowSourceError(
                    f"{source.name}: gives less than {self._policy.min_bytes_per_s} bytes a second",
                    source=source.name, sha256=blob.sha256,
                )  # fmt: skip
            self._moved_bytes += size_bytes
            self._check(blob)
            if now_s - allowed_s >= ALLOWED_CHECK_S:
                self._terms.allowed(source)
                allowed_s = now_s
            if self._bucket is not None and size_bytes and source.reach != "local":
                self._wait(blob, self._bucket.take(size_bytes, now_s))
            self._tell(blob, part, source, problem, came_bytes=size_bytes)
            waiting_from_s = self._now()

        try:
            with closing(source.blocks(blob, part.missing(), received)) as blocks:
                for block in blocks:
                    if not part.put(block.number, block.data):
                        raise LyingSourceError(
                            f"{source.name}: gave other bytes as block {block.number}",
                            source=source.name, sha256=blob.sha256,
                        )  # fmt: skip
                    self._gained_s = self._now()
                    problem = None
            if part.missing():
                raise SourceError(f"{source.name}: stopped early", source=source.name, sha256=blob.sha256)
        except SourceMissingError as error:
            log.info("%s", error)
            return state.without(error.message)
        except LyingSourceError as error:
            log.warning("%s", error)
            return state.lied(error.message, self._now(), self._policy, self._terms.chance())
        except SourceError as error:
            log.info("%s", error)
            gained = part.done_bytes > before_bytes and not isinstance(error, SlowSourceError)
            if gained and error.retry_after_s is None:
                return state.broke_off(error.message)
            now_s, chance = self._now(), self._terms.chance()
            return state.failed(error.message, now_s, self._policy, chance, error.retry_after_s)
        finally:
            part.sync()
        return SourceState(lies=state.lies)

    def _check(self, blob: BlobRef) -> None:
        if self._terms.cancelled.is_set():
            raise DeliveryCancelledError(f"{blob.sha256}: no longer wanted", sha256=blob.sha256)
        now_s = self._now()
        if now_s >= self._deadline_s:
            raise DeliveryDeadlineError(
                f"{blob.sha256}: not here within {self._policy.deadline_s:.0f} s", sha256=blob.sha256
            )
        if self._terms.patience_s is not None and now_s - self._gained_s >= self._terms.patience_s:
            raise NoSourceError(
                f"{blob.sha256}: nothing came for {self._terms.patience_s:.0f} s",
                sha256=blob.sha256,
                missing=False,
            )

    def _wait(self, blob: BlobRef, wait_s: float) -> None:
        ends_s = min(self._now() + wait_s, self._deadline_s)
        if self._terms.patience_s is not None:
            ends_s = min(ends_s, self._gained_s + self._terms.patience_s)
        while (left_s := ends_s - self._now()) > 0:
            if self._terms.cancelled.wait(left_s):
                break
        self._check(blob)

    def _tell(
        self,
        blob: BlobRef,
        part: PartialFile,
        source: BlockSource | None,
        problem: str | None,
        *,
        came_bytes: int = 0,
        always: bool = False,
    ) -> None:
        now_s = self._now()
        rate = self._meter.add(came_bytes, now_s)
        if not always and now_s - self._told_s < PROGRESS_S:
            return
        self._told_s = now_s
        left_bytes = blob.size_bytes - part.done_bytes
        self._terms.progress(
            Progress(
                blob=blob,
                done_bytes=part.done_bytes,
                moved_bytes=self._moved_bytes,
                rate_bytes_per_s=rate,
                eta_s=left_bytes / rate if rate > 0 else None,
                source=source.name if source is not None else None,
                problem=problem,
            )
        )


def _check_disk(spoiled: int, part: PartialFile) -> None:
    """Whether the disk may still be trusted after a file went bad on it so many times.

    Raises:
        DeliveryDiskError: it may not.
    """
    if spoiled >= MAX_SPOILED:
        raise DeliveryDiskError(
            f"{part.whole}: blocks went bad on the disk {spoiled} times while they arrived",
            path=str(part.whole),
            hint="Replace the card",
        )
