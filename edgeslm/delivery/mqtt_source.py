"""Blocks over MQTT, where only the broker can be reached: both ends of :mod:`edgeslm.delivery.blocks`.

They know no topics and no client. Whoever wires them publishes what they hand out and puts what arrives into
a queue; a full queue loses the message, and the block is asked for again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from queue import Empty, Full, Queue

from edgeslm.codec import encode
from edgeslm.delivery.blocks import SILENCE_S, WINDOW, BlockPuller, BlockServer, block_message
from edgeslm.delivery.port import Blob, Block, Cancel, Reach, Received
from edgeslm.errors import EdgeslmError
from edgeslm.schema.delivery import BLOCK_BYTES, BlobRef, BlockRequest

_TICK_S = 0.5
_MAX_OPEN = 16


class MqttSource:
    """The sender at the other end of a broker."""

    def __init__(
        self,
        ask: Callable[[str, bytes], None],
        *,
        name: str = "mqtt",
        reach: Reach = "wan",
        window: int = WINDOW,
        silence_s: float = SILENCE_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up one end.

        Args:
            ask: publishes a request about the file with that sha256; it may be lost.
            name: for logs and errors.
            reach: whether the broker is a neighbour.
            window: blocks under way at most.
            silence_s: seconds without a block after which what is under way counts as lost, at first.
            now: monotonic seconds.
        """
        self._ask = ask
        self._name = name
        self._reach: Reach = reach
        self._window = window
        self._silence_s = silence_s
        self._now = now
        self._answers: Queue[tuple[str, bytes]] = Queue(4 * window)

    @property
    def name(self) -> str:
        """As given."""
        return self._name

    @property
    def reach(self) -> Reach:
        """As given."""
        return self._reach

    def offer(self, sha256: str, payload: bytes) -> None:
        """Take an answer about the file `sha256`, from any thread; never blocks."""
        with suppress(Full):  # lost, as on the way: it is asked for again
            self._answers.put_nowait((sha256, payload))

    def blocks(
        self, blob: BlobRef, wanted: Sequence[range], received: Received
    ) -> Generator[Block, None, None]:
        """The blocks `wanted`; see :class:`~edgeslm.delivery.port.BlockSource`."""
        self._drop_answers()
        puller = BlockPuller(
            blob,
            wanted,
            self._now(),
            source=self._name,
            window=self._window,
            silence_s=self._silence_s,
        )
        try:
            while not puller.finished:
                payload = self._answer(blob, 0.0)
                if payload is None:
                    request = puller.ask(self._now())
                    if request is not None:
                        self._ask(blob.sha256, request)
                    payload = self._answer(blob, min(_TICK_S, max(0.01, puller.wait_s(self._now()))))
                received(len(payload) if payload is not None else 0)
                block = puller.receive(payload, self._now()) if payload is not None else None
                if block is not None:
                    yield block
        finally:
            self._ask(blob.sha256, encode(BlockRequest()))

    def close(self) -> None:
        """Forget what arrived."""
        self._drop_answers()

    def _answer(self, blob: BlobRef, wait_s: float) -> bytes | None:
        try:
            sha256, payload = self._answers.get(timeout=wait_s) if wait_s else self._answers.get_nowait()
        except Empty:
            return None
        return payload if sha256 == blob.sha256 else None

    def _drop_answers(self) -> None:
        while not self._answers.empty():
            self._answers.get_nowait()


class BlockService:
    """The sender: answers the requests of many devices, from one thread."""

    def __init__(
        self,
        find: Callable[[str], Blob | None],
        answer: Callable[[str, str, bytes], None],
        *,
        server: BlockServer | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up the other end.

        Args:
            find: opens the file with that sha256, if there is one.
            answer: publishes a message to a device, about the file with that sha256. It should block or
                fail while the link is busy: nothing is queued here.
            server: decides who is served; the default serves eight devices at once.
            now: monotonic seconds.
        """
        self._find = find
        self._answer = answer
        self._server = server or BlockServer()
        self._now = now
        self._requests: Queue[tuple[str, str, bytes]] = Queue(1024)
        self._open: OrderedDict[str, Blob] = OrderedDict()

    def offer(self, device: str, sha256: str, payload: bytes) -> None:
        """Take a request from `device` about the file `sha256`, from any thread; never blocks."""
        with suppress(Full):  # asked again later
            self._requests.put_nowait((device, sha256, payload))

    def run(self, stopped: Cancel) -> None:
        """Serve until `stopped`."""
        try:
            while not stopped.is_set():
                self._take(wait_s=0.0)
                if not self._send():
                    self._take(wait_s=_TICK_S)
        finally:
            while self._open:
                self._open.popitem()[1].close()

    def _take(self, *, wait_s: float) -> None:
        try:
            device, sha256, payload = (
                self._requests.get(timeout=wait_s) if wait_s else self._requests.get_nowait()
            )
        except Empty:
            return
        file = self._file(sha256)
        blob = BlobRef(sha256=sha256, size_bytes=file.size_bytes) if file is not None else None
        refusal = self._server.request(device, blob, payload, self._now())
        if refusal is not None:
            self._answer(device, sha256, refusal)

    def _send(self) -> bool:
        due = self._server.next()
        if due is None:
            return False
        device, sha256, index = due
        file = self._file(sha256)
        if file is not None:
            try:
                data = file.read(index * BLOCK_BYTES, BLOCK_BYTES)
            except EdgeslmError:
                self._open.pop(sha256).close()  # opened again when asked for again
            else:
                self._answer(device, sha256, block_message(index, data))
        return True

    def _file(self, sha256: str) -> Blob | None:
        if sha256 in self._open:
            self._open.move_to_end(sha256)
            return self._open[sha256]
        try:
            file = self._find(sha256)
        except EdgeslmError:
            return None
        if file is not None:
            self._open[sha256] = file
            if len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)[1].close()
        return file
