"""Blocks over HTTP: ranges of a file on any web server, object store, gateway cache or neighbour.

A connection is kept over requests, and what came of a block when it broke is kept as well, so that a link
that breaks often loses little. Everything that a server says about ranges and lengths is compared with what
was asked for. It needs no trust: plain HTTP is fine, as blocks are checked by who takes them.

Source: RFC 9110, sections 14 (range requests) and 15.4 (redirection).
"""

from __future__ import annotations

import http.client
import io
import logging
import re
import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from urllib.parse import SplitResult, urljoin, urlsplit

from edgeslm.delivery.port import Block, Reach, Received
from edgeslm.errors import ConfigError, LyingSourceError, SourceError, SourceMissingError
from edgeslm.schema.delivery import BLOCK_BYTES, BlobRef

log = logging.getLogger(__name__)

MAX_REDIRECTS = 5
MAX_HEAD_BYTES = 65_536

_TICK_S = 0.5
_BUFFER_BYTES = 65_536
_READ_BYTES = 65_536
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_REDIRECTS = {301, 302, 303, 307, 308}


def blob_path(blob: BlobRef) -> str:
    """Where servers of ours have a blob."""
    return f"blocks/{blob.sha256}"


class HttpSource:
    """One server."""

    def __init__(
        self,
        base_url: str,
        *,
        reach: Reach = "wan",
        path: Callable[[BlobRef], str] = blob_path,
        context: ssl.SSLContext | None = None,
        timeout_s: float = 15.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up a source; nothing is connected yet.

        Args:
            base_url: ``http://`` or ``https://``, up to where `path` goes on.
            reach: whether the server is a neighbour.
            path: of a blob, relative to `base_url`.
            context: whom to trust and who we are, for ``https://``.
            timeout_s: seconds to connect in, and seconds without a byte after which a connection is dead.
            now: monotonic seconds.

        Raises:
            ConfigError: `base_url` is no such URL.
        """
        self._base_url = base_url if base_url.endswith("/") else f"{base_url}/"
        self._name = base_url
        self._reach: Reach = reach
        self._path = path
        self._context = context
        self._timeout_s = timeout_s
        self._now = now
        try:
            self._scheme = _split(self._base_url).scheme
        except ValueError as error:
            raise ConfigError(f"a source of files: {error}") from error
        self._connection: _Connection | None = None
        self._moved: dict[str, str] = {}
        self._kept: tuple[str, int, bytes] | None = None

    @property
    def name(self) -> str:
        """The URL."""
        return self._name

    @property
    def reach(self) -> Reach:
        """As given."""
        return self._reach

    def blocks(
        self, blob: BlobRef, wanted: Sequence[range], received: Received
    ) -> Generator[Block, None, None]:
        """The blocks `wanted`; see :class:`~edgeslm.delivery.port.BlockSource`."""
        done = False
        try:
            for run in wanted:
                yield from self._run(blob, run, received)
            done = True
        except (OSError, http.client.HTTPException) as error:
            reason = f"{self._name}: {error or type(error).__name__}"
            raise SourceError(reason, source=self._name, sha256=blob.sha256) from error
        finally:
            if not done:  # whatever stands between us and the next answer is not worth reading
                self.close()
                self._moved.pop(blob.sha256, None)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- one run ---

    def _run(self, blob: BlobRef, run: range, received: Received) -> Iterator[Block]:
        kept = self._take_kept(blob, run.start)
        index, block = run.start, bytearray(kept)
        end = min(run.stop * BLOCK_BYTES, blob.size_bytes)
        while index < run.stop:
            start = index * BLOCK_BYTES + len(block)
            body = self._body(blob, start, end, received)
            try:
                for data in body:
                    block += data
                    while index < run.stop and len(block) >= blob.block_bytes(index):
                        size_bytes = blob.block_bytes(index)
                        whole = Block(index, bytes(block[:size_bytes]))
                        del block[:size_bytes]
                        index += 1
                        yield whole
            finally:
                if block and index < run.stop:
                    self._kept = (blob.sha256, index, bytes(block))

    def _take_kept(self, blob: BlobRef, index: int) -> bytes:
        kept, self._kept = self._kept, None
        return kept[2] if kept is not None and kept[:2] == (blob.sha256, index) else b""

    def _body(self, blob: BlobRef, start: int, end: int, received: Received) -> Iterator[bytes]:
        """The bytes from `start` on, up to `end` or where the server chooses to stop."""
        answer = self._answer(blob, start, end, received)
        left, skip = self._span(answer, blob, start, end)
        while left:
            data = answer.read1(min(_READ_BYTES, left))
            if not data:
                raise SourceError(
                    f"{self._name}: broke off with {left} bytes to come",
                    source=self._name,
                    sha256=blob.sha256,
                )
            left -= len(data)
            if skip:
                data, skip = data[skip:], max(0, skip - len(data))
            yield data
        if answer.length == 0:
            answer.close()
        else:  # there is more, or how much there is was never said: the connection is of no further use
            self.close()

    def _span(self, answer: http.client.HTTPResponse, blob: BlobRef, start: int, end: int) -> tuple[int, int]:
        """Bytes to read of an answer, and how many of them to skip."""
        length = answer.getheader("Content-Length")
        if answer.getheader("Content-Encoding", "identity") != "identity":
            raise self._lie(blob, "answers with an encoding that nobody asked for")
        if answer.status == http.client.OK:
            if length is not None and length != str(blob.size_bytes):
                raise self._lie(blob, f"says that the file has {length} bytes, not {blob.size_bytes}")
            if start:
                log.warning("%s answers without ranges: %d bytes move again", self._name, start)
            return end, start
        found = _CONTENT_RANGE.fullmatch(answer.getheader("Content-Range", ""))
        if found is None:
            raise self._lie(blob, "answers with a part and does not say which")
        first, last, total = int(found[1]), int(found[2]), found[3]
        if first != start or not first <= last < end or total not in {"*", str(blob.size_bytes)}:
            raise self._lie(blob, f"answers with {found[0]} to bytes {start}-{end - 1}/{blob.size_bytes}")
        if length is not None and length != str(last - first + 1):
            raise self._lie(blob, f"says that {found[0]} are {length} bytes")
        return last - first + 1, 0

    # --- requests ---

    def _answer(self, blob: BlobRef, start: int, end: int, received: Received) -> http.client.HTTPResponse:
        """The answer with the bytes from `start` to `end`, or with the whole file."""
        url = self._moved.get(blob.sha256) or urljoin(self._base_url, self._path(blob))
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._request(url, start, end, received)
            if answer.status in {http.client.OK, http.client.PARTIAL_CONTENT}:
                return answer
            self.close()
            if answer.status not in _REDIRECTS:
                raise self._refused(blob, answer)
            try:
                url = urljoin(url, answer.getheader("Location", ""))
                scheme = _split(url).scheme
            except ValueError as error:
                raise self._lie(blob, f"leads to no URL: {error}") from error
            if scheme != self._scheme:
                raise self._lie(blob, f"leads from {self._scheme}:// to {scheme}://")
            self._moved[blob.sha256] = url
        raise SourceError(f"{self._name}: leads in circles", source=self._name, sha256=blob.sha256)

    def _request(self, url: str, start: int, end: int, received: Received) -> http.client.HTTPResponse:
        parts = _split(url)
        target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        headers = {
            "Range": f"bytes={start}-{end - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": "edgeslm",
        }
        reused = self._connection is not None and self._connection.at == (parts.scheme, parts.netloc)
        try:
            return self._connected(parts, received).request(target, headers, received)
        except (OSError, http.client.HTTPException):
            if not reused:
                raise
            # A server may close a connection that rests; that is no failure of its own.
            self.close()
            return self._connected(parts, received).request(target, headers, received)

    def _connected(self, parts: SplitResult, received: Received) -> _Connection:
        if self._connection is None or self._connection.at != (parts.scheme, parts.netloc):
            self.close()
            received(0)
            self._connection = _Connection(parts, self._context, self._timeout_s, self._now)
        return self._connection

    def _refused(self, blob: BlobRef, answer: http.client.HTTPResponse) -> SourceError:
        text = f"{self._name}: answers {answer.status} {answer.reason[:80]}"
        if answer.status in {401, 403, 404, 410, 451}:
            return SourceMissingError(text, source=self._name, sha256=blob.sha256)
        if answer.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return self._lie(blob, "has a shorter file")
        after = answer.getheader("Retry-After", "")
        wait_s = float(after) if after.isascii() and after.isdigit() and len(after) < 7 else None
        return SourceError(text, source=self._name, sha256=blob.sha256, retry_after_s=wait_s)

    def _lie(self, blob: BlobRef, what: str) -> LyingSourceError:
        return LyingSourceError(f"{self._name}: {what}", source=self._name, sha256=blob.sha256)


# --- connections --------------------------------------------------------------------------------------------


class _Connection:
    """A connection of `http.client` whose every wait is short, and told to who waits."""

    def __init__(
        self, parts: SplitResult, context: ssl.SSLContext | None, timeout_s: float, now: Callable[[], float]
    ) -> None:
        self.at = (parts.scheme, parts.netloc)
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "https":
            self._http: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=timeout_s, context=context
            )
        else:
            self._http = http.client.HTTPConnection(host, port, timeout=timeout_s)
        self._http.connect()
        self._http.auto_open = 0
        self._socket = _Socket(self._http.sock, timeout_s, now)
        self._http.sock = self._socket

    def request(self, target: str, headers: dict[str, str], received: Received) -> http.client.HTTPResponse:
        self._socket.received = received
        self._socket.head_bytes = MAX_HEAD_BYTES + _BUFFER_BYTES
        self._http.request("GET", target, headers=headers)
        answer = self._http.getresponse()
        self._socket.head_bytes = None
        return answer

    def close(self) -> None:
        self._http.close()


class _Socket:
    """As much of a socket as `http.client` uses.

    Attributes:
        received: told what came, and regularly when nothing does.
        head_bytes: most bytes that may come before the end of the headers, while they are awaited.
    """

    def __init__(self, sock: socket.socket, timeout_s: float, now: Callable[[], float]) -> None:
        self.received: Received = lambda _: None
        self.head_bytes: int | None = None
        self._sock = sock
        self._sock.settimeout(_TICK_S)
        self._timeout_s = timeout_s
        self._now = now

    def sendall(self, data: bytes) -> None:
        self._sock.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Stream(self), _BUFFER_BYTES)

    def close(self) -> None:
        self._sock.close()

    def keep_open(self) -> io.RawIOBase:
        """Keeps the socket open until it is closed: an answer is read after `http.client` lets go of it."""
        return self._sock.makefile("rb", buffering=0)

    def recv_into(self, buffer: memoryview) -> int:
        silent_from_s = self._now()
        while True:
            try:
                count = self._sock.recv_into(buffer)
                break
            except TimeoutError:
                self.received(0)
                if self._now() - silent_from_s >= self._timeout_s:
                    raise TimeoutError(f"no byte for {self._timeout_s:.0f} s") from None
        self.received(count)
        if self.head_bytes is not None:
            self.head_bytes -= count
            if self.head_bytes < 0:
                raise http.client.HTTPException("headers without end")
        return count


class _Stream(io.RawIOBase):
    """One answer, as it comes."""

    def __init__(self, sock: _Socket) -> None:
        super().__init__()
        self._sock = sock
        self._kept_open = sock.keep_open()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        return self._sock.recv_into(buffer)

    def close(self) -> None:
        if not self.closed:
            self._kept_open.close()
        super().close()


def _split(url: str) -> SplitResult:
    """The parts of `url`.

    Raises:
        ValueError: it is no URL of a web server.
    """
    parts = urlsplit(url)
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("a URL is written in ASCII without spaces")
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.port == 0:
        raise ValueError(f"'{url[:80]}' is no http:// or https:// URL of a server")
    return parts
