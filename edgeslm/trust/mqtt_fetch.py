"""Metadata over MQTT, where only the broker can be reached: both ends.

They know no topics and no client. Whoever wires them publishes what they hand out and passes on what arrives.
A file comes in parts of at most 64 KiB, each asked for by itself, so that a broker never holds more than one message
of a device; a part that is lost is asked for again.

::

    <device>/fetch/<name>     MetadataRequest in JSON; the name is that of the file, such as 7.root.json
    <device>/blocks/<name>    magic "SLM1", number of the request (uint64), offset of the part and size of the file
                              (uint32 each), the part; or MetadataRefusal in JSON

What always holds: the device takes no byte more than was asked for, and waits no longer than its deadline, whatever
the other end or the broker sends; of answers only those to its own latest question count. The sender reads files of
metadata and no others, and remembers one question of each device.

Left to others: whether the bytes are to be trusted.
"""

from __future__ import annotations

import os
import re
import secrets
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Protocol

from edgeslm.codec import decode, encode
from edgeslm.errors import (
    CodecError,
    MetadataFetchError,
    MetadataMissingError,
    SlowRetrievalError,
)
from edgeslm.schema.delivery import MAX_METADATA_BYTES, MetadataRefusal, MetadataRequest
from edgeslm.trust.fetch import check_path, oversize

PART_BYTES = 2**16
FIRST_RETRY_S = 3.0
"""Seconds without an answer after which a part is asked for again; doubled each time."""
SILENCE_S = 25.0
DEADLINE_S = 60.0
MAX_REQUEST_BYTES = 1024
MAX_DEVICES = 20_000
"""Devices whose question waits at the sender at most; those that find no room ask again."""

_HEADER = struct.Struct("<4sQII")
_MAGIC = b"SLM1"
_MAX_REFUSAL_BYTES = 4096
_DIRECTORY = "metadata/"
_NAME = re.compile(r"(timestamp|[1-9][0-9]{0,9}\.[a-z0-9-]{1,64})\.json")
_TICK_S = 0.5


class Stopped(Protocol):
    """Tells that the service is to end; a `threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether it is to end."""


def is_metadata_name(text: str) -> bool:
    """Whether `text` is the name of a metadata file; the digest of a file of another kind never is."""
    return _NAME.fullmatch(text) is not None


# --- the device ---------------------------------------------------------------------------------------------


class MqttFetch:
    """Takes metadata from whoever answers at the other end of a broker; see :class:`~edgeslm.trust.fetch.Fetch`.

    One file is fetched at a time.
    """

    def __init__(
        self,
        ask: Callable[[str, bytes], None],
        *,
        retry_s: float = FIRST_RETRY_S,
        silence_s: float = SILENCE_S,
        deadline_s: float = DEADLINE_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up one end.

        Args:
            ask: publishes a request about the file of that name; it may be lost. What it raises passes through.
            retry_s: seconds without an answer after which a part is asked for again, at first.
            silence_s: longest time without a part.
            deadline_s: longest time for one file.
            now: monotonic seconds.
        """
        self._ask = ask
        self._retry_s = retry_s
        self._silence_s = silence_s
        self._deadline_s = deadline_s
        self._now = now
        self._answers: Queue[tuple[str, bytes]] = Queue(16)
        self._is_closed = False

    def close(self) -> None:
        """End what is under way, from any thread; nothing is fetched any more."""
        self._is_closed = True
        self.offer("", b"")  # wakes who waits

    def offer(self, name: str, payload: bytes) -> None:
        """Take an answer about the file `name`, from any thread; never blocks."""
        with suppress(Full):  # lost, as on the way: it is asked for again
            self._answers.put_nowait((name, payload))

    def __call__(self, path: str, max_bytes: int) -> bytes:
        """See :class:`~edgeslm.trust.fetch.Fetch`."""
        check_path(path)
        name = path.removeprefix(_DIRECTORY)
        if name == path or not is_metadata_name(name):
            raise MetadataFetchError(f"{path}: the broker has metadata and nothing else", path=path)
        while not self._answers.empty():
            self._answers.get_nowait()
        deadline_s = self._now() + self._deadline_s
        number = secrets.randbits(63)
        data, size_bytes = bytearray(), None
        while size_bytes is None or len(data) < size_bytes:
            part, total_bytes = self._part(name, number, len(data), deadline_s)
            if total_bytes > max_bytes:
                raise oversize(path, max_bytes)
            if not part or len(data) + len(part) > total_bytes or size_bytes not in {None, total_bytes}:
                raise MetadataFetchError(f"the broker sent what is no part of {path}", path=path)
            size_bytes = total_bytes
            data += part
        return bytes(data)

    def _part(self, name: str, number: int, offset: int, deadline_s: float) -> tuple[bytes, int]:
        """The part of a file at `offset`, and the size of the whole as the sender says."""
        path = _DIRECTORY + name
        request = encode(MetadataRequest(id=number, offset=offset))
        until_s = min(deadline_s, self._now() + self._silence_s)
        ask_at_s, retry_s = self._now(), self._retry_s
        while (now_s := self._now()) < until_s:
            if self._is_closed:
                raise MetadataFetchError(f"{path}: this device is about to stop", path=path)
            if now_s >= ask_at_s:
                self._ask(name, request)
                ask_at_s, retry_s = now_s + retry_s, 2 * retry_s
            try:
                about, payload = self._answers.get(timeout=max(0.001, min(until_s, ask_at_s) - now_s))
            except Empty:
                continue
            answer = _answer(payload, path, number) if about == name else None
            if answer is not None and answer[0] == offset:
                return answer[2], answer[1]
        raise SlowRetrievalError(
            f"the broker: {path} did not come within {self._deadline_s:g} s, "
            f"or nothing of it within {self._silence_s:g} s",
            path=path,
        )


def _answer(payload: bytes, path: str, number: int) -> tuple[int, int, bytes] | None:
    """Offset, size of the file and part in the answer to request `number`; ``None`` if it answers another.

    Raises:
        MetadataMissingError: the sender has no such file.
        MetadataFetchError: it gives none, or what came is no answer.
    """
    strange = MetadataFetchError(f"the broker sent what is no part of {path}", path=path)
    if payload[:1] == b"{":
        try:
            refusal = decode(MetadataRefusal, payload, max_bytes=_MAX_REFUSAL_BYTES)
        except CodecError as error:
            raise strange from error
        if refusal.id != number:
            return None
        if refusal.reason == "missing":
            raise MetadataMissingError(f"the fleet has no {path}", path=path)
        raise MetadataFetchError(f"the fleet gives no {path}: {refusal.reason}", path=path)
    if not _HEADER.size <= len(payload) <= _HEADER.size + PART_BYTES or payload[:4] != _MAGIC:
        raise strange
    _, answered, offset, size_bytes = _HEADER.unpack_from(payload)
    return (offset, size_bytes, payload[_HEADER.size :]) if answered == number else None


# --- the sender ---------------------------------------------------------------------------------------------


class MetadataService:
    """The sender: answers the questions of many devices, from one thread."""

    def __init__(self, directory: Path, answer: Callable[[str, str, bytes], None]) -> None:
        """Set up the other end.

        Args:
            directory: of the metadata.
            answer: publishes a message to a device, about the file of that name. It should block or fail while
                the link is busy: nothing is queued here.
        """
        self._directory = directory
        self._answer = answer
        self._waiting: OrderedDict[str, tuple[str, bytes]] = OrderedDict()
        self._changed = threading.Condition()

    def offer(self, device: str, name: str, payload: bytes) -> None:
        """Take a question of `device` about the file `name`, from any thread; never blocks.

        It takes the place of an earlier one of that device that is not answered yet.
        """
        with self._changed:
            if device in self._waiting or len(self._waiting) < MAX_DEVICES:
                self._waiting[device] = (name, payload)
                self._changed.notify()

    def run(self, stopped: Stopped) -> None:
        """Answer until `stopped`."""
        while not stopped.is_set():
            with self._changed:
                if not self._waiting:
                    self._changed.wait(_TICK_S)
                    continue
                device, (name, payload) = self._waiting.popitem(last=False)
            answer = self.answer(name, payload)
            if answer is not None:
                self._answer(device, name, answer)

    def answer(self, name: str, payload: bytes) -> bytes | None:
        """The answer to a question about the file `name`; ``None`` to what is none."""
        try:
            request = decode(MetadataRequest, payload, max_bytes=MAX_REQUEST_BYTES)
        except CodecError:
            return None
        if not is_metadata_name(name):
            return encode(MetadataRefusal(id=request.id, reason="missing"))
        try:
            part, size_bytes = _read_part(self._directory / name, request.offset)
        except FileNotFoundError:
            return encode(MetadataRefusal(id=request.id, reason="missing"))
        except OSError:
            return encode(MetadataRefusal(id=request.id, reason="unreadable"))
        return _HEADER.pack(_MAGIC, request.id, request.offset, size_bytes) + part


def _read_part(path: Path, offset: int) -> tuple[bytes, int]:
    with path.open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)
        if size_bytes > MAX_METADATA_BYTES:
            raise OSError("longer than metadata may be")
        file.seek(offset)
        return file.read(PART_BYTES), size_bytes
