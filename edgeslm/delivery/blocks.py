"""The pull of blocks over MQTT: what both sides say and remember, without a broker or a clock.

A device asks for blocks by number and the sender answers with one message each. Only what was asked for is
under way, so that a broker never holds more than the window of a device, and never more than the windows of
the devices that the sender serves at once. Blocks travel at QoS 0: a broker keeps none for a device that is
gone, and what is lost is asked for again.

::

    <device>/fetch/<sha256>     BlockRequest in JSON
    <device>/blocks/<sha256>    magic "SLB1", number of the block (uint32), its bytes; or BlockRefusal in JSON

Left to others: whether a block is the right one (who takes it), and topics (:mod:`edgeslm.topics`).
"""

from __future__ import annotations

import struct
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edgeslm.codec import decode, encode
from edgeslm.delivery.port import Block
from edgeslm.errors import CodecError, LyingSourceError, SourceError, SourceMissingError
from edgeslm.schema.delivery import BlobRef, BlockRefusal, BlockRequest, BlockRun
from edgeslm.schema.message import ErrorBody

WINDOW = 16
"""Blocks of one device that are under way at most: 1 MiB."""
SILENCE_S = 10.0
MAX_DEVICES = 8
"""Devices that a sender serves at once: with full windows 8 MiB are in the broker."""
LEASE_S = 30.0
"""After that long without a request a device makes room for another."""
MAX_REQUEST_BYTES = 16_384
MAX_UNASKED = 1024
"""Blocks that nobody asked for after which a sender is not one."""

_HEADER = struct.Struct("<4sI")
_MAGIC = b"SLB1"
_REFUSAL_BYTES = 4096
_FIRST_WINDOW = 2


def block_message(index: int, data: bytes) -> bytes:
    """The message that carries a block."""
    return _HEADER.pack(_MAGIC, index) + data


# --- the device ---------------------------------------------------------------------------------------------


class BlockPuller:
    """Asks for blocks of one blob, and again for those that do not come.

    It begins with two blocks under way and takes one more for each that comes, up to the window. After a
    silence it begins again. So over a link on which a window takes minutes, a silence that was none costs the
    two blocks that come twice; those that are only late are taken when they come.

    Attributes:
        unasked: blocks that came again, or that nobody asked for.
        lost: blocks that were taken for lost.
    """

    def __init__(
        self,
        blob: BlobRef,
        wanted: Sequence[range],
        now_s: float,
        *,
        source: str = "mqtt",
        window: int = WINDOW,
        silence_s: float = SILENCE_S,
        give_up_s: float = 60.0,
    ) -> None:
        """Begin.

        Args:
            blob: what to pull.
            wanted: runs of block numbers.
            now_s: monotonic.
            source: name for errors.
            window: blocks under way at most.
            silence_s: seconds without a block after which what is under way counts as lost; longer where
                blocks come slowly, and doubled with each silence.
            give_up_s: seconds without a block after which the sender counts as gone.
        """
        self.unasked = self.lost = 0
        self._blob = blob
        self._source = source
        self._window = window
        self._silence_s = silence_s
        self._give_up_s = give_up_s
        self._todo: Iterator[int] = (index for run in wanted for index in run)
        self._again: deque[int] = deque()
        self._left = sum(len(run) for run in wanted)
        self._asked: OrderedDict[int, int] = OrderedDict()
        self._number = 0
        self._heard_s = now_s
        self._asked_s = now_s
        self._gap_s = 0.0
        self._silences = 0
        self._open = _FIRST_WINDOW

    @property
    def finished(self) -> bool:
        """Whether all blocks came."""
        return self._left == 0

    def ask(self, now_s: float) -> bytes | None:
        """The request to send now, if there is one.

        Raises:
            SourceError: nothing came for too long.
        """
        if now_s - self._heard_s >= self._give_up_s:
            raise SourceError(
                f"{self._source}: no block for {now_s - self._heard_s:.0f} s",
                source=self._source, sha256=self._blob.sha256,
            )  # fmt: skip
        if self._asked and now_s >= self._silent_from_s():
            self._silences += 1
            self._open = _FIRST_WINDOW
            self._lose(list(self._asked))
        if len(self._asked) > self._open // 2:
            return None
        indexes = self._next(self._open - len(self._asked))
        if not indexes:
            return None
        for index in indexes:
            self._number += 1
            self._asked[index] = self._number
        self._asked_s = now_s
        return encode(BlockRequest(blocks=_runs(indexes)))

    def wait_s(self, now_s: float) -> float:
        """Seconds until :meth:`ask` is due again if nothing comes meanwhile."""
        return max(0.0, min(self._silent_from_s(), self._heard_s + self._give_up_s) - now_s)

    def receive(self, payload: bytes, now_s: float) -> Block | None:
        """The block in a message, unless it came before or nobody asked for it.

        Raises:
            LyingSourceError: it is no answer, or one of another size.
            SourceMissingError: the sender does not have the file.
            SourceError: it has no time.
        """
        if payload[:1] == b"{":
            raise self._refused(payload)
        if len(payload) < _HEADER.size or payload[:4] != _MAGIC:
            raise self._lie("sent what is no block")
        _, index = _HEADER.unpack_from(payload)
        if index >= self._blob.block_count or len(payload) != _HEADER.size + self._blob.block_bytes(index):
            raise self._lie(f"sent {len(payload) - _HEADER.size} bytes as block {index}")
        self._gap_s += (now_s - self._heard_s - self._gap_s) / 4
        self._heard_s, self._silences = now_s, 0
        number = self._asked.pop(index, None)
        if number is None and index in self._again:
            self._again.remove(index)
        elif number is None:
            self._count_unasked(index)
            return None
        else:
            # A broker keeps the order: what was asked for a whole window earlier is not coming any more.
            self._lose([other for other, asked in self._asked.items() if asked <= number - self._window])
        self._left -= 1
        self._open = min(self._window, self._open + 1)
        return Block(index, payload[_HEADER.size :])

    def _silent_from_s(self) -> float:
        silence_s = max(self._silence_s, 4 * self._gap_s) * 2.0**self._silences
        return max(self._heard_s, self._asked_s) + silence_s

    def _next(self, count: int) -> list[int]:
        indexes: list[int] = []
        while self._again and len(indexes) < count:
            indexes.append(self._again.popleft())
        while len(indexes) < count and (index := next(self._todo, None)) is not None:
            indexes.append(index)
        return indexes

    def _lose(self, indexes: Sequence[int]) -> None:
        for index in indexes:
            del self._asked[index]
            self._again.append(index)
        self.lost += len(indexes)

    def _count_unasked(self, index: int) -> None:
        self.unasked += 1
        if self.unasked > MAX_UNASKED:
            raise self._lie(f"sends what nobody asked for, block {index} among others")

    def _refused(self, payload: bytes) -> SourceError:
        try:
            error = decode(BlockRefusal, payload, max_bytes=_REFUSAL_BYTES).error
        except CodecError as fault:
            return self._lie(f"sent what is no answer: {fault}")
        text = f"{self._source}: {error.message[:200]}"
        if error.code != "busy":
            return SourceMissingError(text, source=self._source, sha256=self._blob.sha256)
        wait_s = error.retry_after_s
        return SourceError(text, source=self._source, sha256=self._blob.sha256, retry_after_s=wait_s)

    def _lie(self, what: str) -> LyingSourceError:
        return LyingSourceError(f"{self._source}: {what}", source=self._source, sha256=self._blob.sha256)


def _runs(indexes: Sequence[int]) -> tuple[BlockRun, ...]:
    runs: list[BlockRun] = []
    for index in sorted(indexes):
        if runs and runs[-1].last == index - 1:
            runs[-1] = BlockRun(first=runs[-1].first, last=index)
        else:
            runs.append(BlockRun(first=index, last=index))
    return tuple(runs)


# --- the sender ---------------------------------------------------------------------------------------------


@dataclass
class _Served:
    """A device that blocks are sent to."""

    heard_s: float
    due: deque[tuple[str, int]] = field(default_factory=deque)


class BlockServer:
    """Takes requests of many devices and says which block to send next, to each in turn."""

    def __init__(
        self, *, window: int = WINDOW, max_devices: int = MAX_DEVICES, lease_s: float = LEASE_S
    ) -> None:
        self._window = window
        self._max_devices = max_devices
        self._lease_s = lease_s
        self._served: OrderedDict[str, _Served] = OrderedDict()

    def request(self, device: str, blob: BlobRef | None, payload: bytes, now_s: float) -> bytes | None:
        """Take a request.

        Args:
            device: who asks.
            blob: the blob that the topic names, or ``None`` if there is no such here.
            payload: the request.
            now_s: monotonic.

        Returns:
            The refusal to answer with, if it is one.
        """
        try:
            request = decode(BlockRequest, payload, max_bytes=MAX_REQUEST_BYTES)
        except CodecError as error:
            return _refusal(ErrorBody(code="bad_request", message=error.message))
        if not request.blocks:
            self._served.pop(device, None)
            return None
        if blob is None:
            return _refusal(ErrorBody(code="unknown_model", message="there is no such file here"))
        for name in [name for name, served in self._served.items() if self._is_over(served, now_s)]:
            del self._served[name]
        if device not in self._served and len(self._served) >= self._max_devices:
            busy = ErrorBody(code="busy", message="as many are served as can be", retry_after_s=self._lease_s)
            return _refusal(busy)
        served = self._served.setdefault(device, _Served(now_s))
        served.heard_s = now_s
        for run in request.blocks:
            for index in range(run.first, min(run.last, blob.block_count - 1) + 1):
                if len(served.due) >= self._window:
                    return None
                if (blob.sha256, index) not in served.due:
                    served.due.append((blob.sha256, index))
        return None

    def next(self) -> tuple[str, str, int] | None:
        """Device, sha256 and number of the block to send next, if there is one."""
        for device, served in self._served.items():
            if served.due:
                self._served.move_to_end(device)
                return device, *served.due.popleft()
        return None

    def _is_over(self, served: _Served, now_s: float) -> bool:
        return now_s - served.heard_s >= self._lease_s


def _refusal(error: ErrorBody) -> bytes:
    return encode(BlockRefusal(error=error))
