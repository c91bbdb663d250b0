"""A small web server for files: of a fleet's own machine, or of a device that lends what it has.

It reads and serves, and that is all: GET and HEAD, one range at a time, as many connections as it was given,
and none that rests for long. What is served under which path is not its business; :func:`by_sha256` serves
``/blocks/<sha256>``. Who fetches checks what comes, so that TLS is for those who want to hide it.

Source: RFC 9110, sections 14.1.2 (byte ranges), 14.2 (which may be ignored) and 15.5.17.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from edgeslm.delivery.files import FileBlob, find_file
from edgeslm.delivery.port import Blob
from edgeslm.errors import ConfigError, EdgeslmError

log = logging.getLogger(__name__)

Find = Callable[[str], Blob | None]

_READ_BYTES = 2**14
"""Written at once, within the time that a connection may rest: a slow reader gets on with it."""
_POLL_S = 0.5
_SHA256_PATH = re.compile(r"/blocks/([0-9a-f]{64})")
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 10\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


def by_sha256(find: Find) -> Find:
    """Serves what `find` has for a sha256 under ``/blocks/<sha256>``, and nothing else."""

    def find_path(path: str) -> Blob | None:
        match = _SHA256_PATH.fullmatch(path)
        return find(match[1]) if match is not None else None

    return find_path


def in_directory(directory: Path) -> Find:
    """Finds the files of `directory` that are named by their sha256, with or without a suffix of ours."""

    def find(sha256: str) -> Blob | None:
        path = find_file(directory, sha256)
        return FileBlob(path) if path is not None else None

    return find


class PackageServer:
    """The server; used as a context manager it is running inside."""

    def __init__(
        self,
        find: Find,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        context: ssl.SSLContext | None = None,
        max_connections: int = 32,
        idle_s: float = 30.0,
    ) -> None:
        """Bind the port.

        Args:
            find: opens the file under a path, or gives ``None``.
            host: address to listen on.
            port: 0 takes any that is free.
            context: makes it an ``https://`` server.
            max_connections: at once; beyond it the answer is 503.
            idle_s: seconds without progress after which a connection is closed.

        Raises:
            ConfigError: the address cannot be had.
        """
        try:
            self._server = _Server((host, port), find, context, max_connections, idle_s)
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        self._scheme = "http" if context is None else "https"
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        host, port = self._server.server_address[:2]
        return f"{self._scheme}://{host!s}:{port}"

    def start(self) -> None:
        """Serve from a thread of its own."""
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="package-server", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; connections end when they are idle or their file is through."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self,
        address: tuple[str, int],
        find: Find,
        context: ssl.SSLContext | None,
        max_connections: int,
        idle_s: float,
    ) -> None:
        self.find = find
        self.context = context
        self.idle_s = idle_s
        self._slots = threading.BoundedSemaphore(max_connections)
        super().__init__(address, _Handler)

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], address: object) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, address)
        elif isinstance(request, socket.socket):
            request.settimeout(1.0)
            if self.context is None:
                request.sendall(_BUSY)
            self.shutdown_request(request)

    def process_request_thread(self, request: object, address: object) -> None:
        try:
            super().process_request_thread(request, address)  # type: ignore[arg-type]
        finally:
            self._slots.release()

    def handle_error(self, _request: object, address: object) -> None:
        # Connections break; a client that is no client is none of our faults.
        log.debug("connection from %s failed", address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "edgeslm"
    sys_version = ""

    def setup(self) -> None:
        self.request.settimeout(self.server.idle_s)
        if self.server.context is not None:
            # Here and not at accept: a client that is slow to shake hands holds up nobody else.
            self.request = self.server.context.wrap_socket(self.request, server_side=True)
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().setup()

    def finish(self) -> None:
        super().finish()
        self.request.close()

    def do_GET(self) -> None:
        self._serve(with_body=True)

    def do_HEAD(self) -> None:
        self._serve(with_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by the base class
        log.debug("%s " + format, self.client_address, *args)

    def _serve(self, *, with_body: bool) -> None:
        try:
            blob = self.server.find(self.path)
        except EdgeslmError as error:
            log.warning("%s cannot be served: %s", self.path[:200], error)
            blob = None
        if blob is None:
            self._answer(HTTPStatus.NOT_FOUND, 0)
            return
        try:
            self._send(blob, with_body=with_body)
        except EdgeslmError as error:
            log.warning("%s broke off: %s", self.path[:200], error)
            self.close_connection = True
        finally:
            blob.close()

    def _send(self, blob: Blob, *, with_body: bool) -> None:
        size_bytes = blob.size_bytes
        asked = requested_range(self.headers.get("Range"), size_bytes)
        offset, end = asked or (0, size_bytes)
        if asked is None:
            self._answer(HTTPStatus.OK, size_bytes)
        elif offset < end:
            part = f"bytes {offset}-{end - 1}/{size_bytes}"
            self._answer(HTTPStatus.PARTIAL_CONTENT, end - offset, content_range=part)
        else:
            whole = f"bytes */{size_bytes}"
            self._answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, content_range=whole)
        while with_body and offset < end:
            data = blob.read(offset, min(_READ_BYTES, end - offset))
            self.wfile.write(data)
            offset += len(data)

    def _answer(self, status: HTTPStatus, length: int, *, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        if content_range is not None:
            self.send_header("Content-Range", content_range)
        self.end_headers()


def requested_range(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """Start and end of what a Range header asks for; nothing lies between them outside of the file.

    A header of another form, or of several ranges, counts as none.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or match[1] == match[2] == "":
        return None
    if not match[1]:
        return max(0, size_bytes - int(match[2])), size_bytes
    start = int(match[1])
    end = min(int(match[2]) + 1, size_bytes) if match[2] else size_bytes
    return start, max(start, end)
