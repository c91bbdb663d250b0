"""The ports of delivery: where blocks come from, what is served, and how to stop waiting.

Sources: :mod:`edgeslm.delivery.http_source`, :mod:`edgeslm.delivery.mqtt_source` and
:mod:`edgeslm.delivery.file_source`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from edgeslm.schema.delivery import BlobRef

Reach = Literal["local", "lan", "wan"]
"""Whose link a source takes: none, the local network's, or one that may cost."""

Received = Callable[[int], None]
"""Called with the number of bytes that came since the last call. It may wait, and it may raise."""


class Block(NamedTuple):
    """One block of a blob, unchecked."""

    number: int
    data: bytes


class BlockSource(Protocol):
    """Gives blocks of blobs. Nobody needs to trust it: blocks are checked by who takes them."""

    @property
    def name(self) -> str:
        """For logs and errors."""

    @property
    def reach(self) -> Reach:
        """Whose link it takes."""

    def blocks(
        self, blob: BlobRef, wanted: Sequence[range], received: Received
    ) -> Generator[Block, None, None]:
        """The blocks `wanted` of `blob`, each of its right size, in any order, as they arrive.

        Args:
            blob: what they are blocks of.
            wanted: runs of block numbers in ascending order.
            received: called at least every second, with 0 where nothing came; what it raises passes through.

        Raises:
            SourceError: it cannot go on, or one of its subclasses for the reason. No other error comes from
                the source itself.
        """

    def close(self) -> None:
        """Give back connections and open files. It may be used again afterwards."""


class Blob(Protocol):
    """A file to be served. Reads come from several threads."""

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Bytes from `offset` on; fewer only where the file ends.

        Raises:
            EdgeslmError: they cannot be read.
        """

    def close(self) -> None:
        """Give back the open file."""


class Cancel(Protocol):
    """Tells that something is no longer wanted; a `threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether it is no longer wanted."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds; whether it is no longer wanted."""


class Polled:
    """A :class:`Cancel` for those who only answer when they are asked."""

    _EVERY_S = 0.5

    def __init__(self, is_set: Callable[[], bool]) -> None:
        self.is_set = is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds, asking twice a second."""
        ends_s = time.monotonic() + timeout if timeout is not None else math.inf
        while not self.is_set() and (left_s := ends_s - time.monotonic()) > 0:
            time.sleep(min(left_s, self._EVERY_S))
        return self.is_set()


@dataclass(frozen=True)
class Progress:
    """How far a file is.

    Attributes:
        done_bytes: of it that are here and right.
        moved_bytes: received for it in this call, whatever became of them.
        rate_bytes_per_s: of late.
        eta_s: seconds until it is here at that rate, or ``None`` where nothing moves.
        source: where it comes from at the moment, or ``None`` while waiting.
        problem: what the last source failed with, until blocks come again.
    """

    blob: BlobRef
    done_bytes: int
    moved_bytes: int
    rate_bytes_per_s: float
    eta_s: float | None
    source: str | None
    problem: str | None
