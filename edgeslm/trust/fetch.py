"""Where metadata comes from: the port, and adapters for directories and web servers.

A repository may be in the hands of an attacker, so an adapter bounds what it takes: never more than the bytes asked
for, never longer than its deadline, however slowly the other side drips them. Paths are relative to the repository
and made of plain names; anything else is refused before it is used.

Left to others: whether the bytes are to be trusted, and transport over MQTT.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
import time
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from edgeslm.errors import (
    MetadataFetchError,
    MetadataMissingError,
    MetadataSizeError,
    SlowRetrievalError,
    UsageError,
)
from edgeslm.files import read_bounded

_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,255}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,255}){0,7}")
_MISSING = frozenset({403, 404, 410})
"""403 is what object stores answer for a missing file to those who may not list."""


class Fetch(Protocol):
    """Gets files of a repository."""

    def __call__(self, path: str, max_bytes: int) -> bytes:
        """The whole file at `path`.

        Args:
            path: relative to the repository, such as ``metadata/timestamp.json``.
            max_bytes: the most that it may have.

        Raises:
            MetadataMissingError: the repository says that there is no such file.
            MetadataSizeError: it is longer, or does not end.
            SlowRetrievalError: it did not come in time.
            MetadataFetchError: it could not be had for another reason. Nothing else is raised.
        """


def check_path(path: str) -> None:
    """Refuse a path that is not made of plain names.

    Raises:
        MetadataFetchError: it is not.
    """
    if not _PATH.fullmatch(path):
        raise MetadataFetchError(f"{ascii(path)[:120]} is no path of a repository", path=path)


def oversize(path: str, max_bytes: int) -> MetadataSizeError:
    """The error for a file that is longer than `max_bytes`."""
    return MetadataSizeError(
        f"{path} is longer than it may be", role=path, expected=f"at most {max_bytes} bytes", actual="more"
    )


class DirectoryFetch:
    """Takes files from a directory, such as a mounted stick or a mirror."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, path: str, max_bytes: int) -> bytes:
        """See :class:`Fetch`."""
        check_path(path)
        if not self._root.is_dir():
            raise MetadataFetchError(f"{self._root} is no directory", path=path)
        try:
            data = read_bounded(self._root / path, max_bytes)
        except FileNotFoundError as error:
            raise MetadataMissingError(f"{self._root} has no {path}", path=path) from error
        except OSError as error:
            raise MetadataFetchError(f"{self._root / path}: {error.strerror}", path=path) from error
        if len(data) > max_bytes:
            raise oversize(path, max_bytes)
        return data


class HttpFetch:
    """Takes files from a web server or object store, one connection each.

    Redirections are not followed: give the address that answers. HTTPS is checked against the certificates of the
    system unless a context is given; that the metadata can be trusted does not rest on it.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float = 10.0,
        deadline_s: float = 60.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Remember where to ask.

        Args:
            base_url: ``http://`` or ``https://`` address of the repository.
            timeout_s: longest silence of the server.
            deadline_s: longest time for one file.
            tls: context for HTTPS, where the system's certificates are not the right ones.

        Raises:
            UsageError: `base_url` is not such an address.
        """
        try:
            parts = urlsplit(base_url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise UsageError(f"{base_url} is no address: {error}") from error
        if parts.scheme not in {"http", "https"} or not self._host or parts.query or parts.fragment:
            raise UsageError(f"{base_url} is no http or https address of a repository")
        self._prefix = parts.path.rstrip("/")
        self._timeout_s, self._deadline_s = timeout_s, deadline_s
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None

    def __call__(self, path: str, max_bytes: int) -> bytes:
        """See :class:`Fetch`."""
        check_path(path)
        deadline_s = time.monotonic() + self._deadline_s
        try:
            return self._get(path, max_bytes, deadline_s)
        except TimeoutError as error:
            raise SlowRetrievalError(
                f"{self._host}: {path} did not come within {self._deadline_s:g} s, "
                f"or not a byte of it within {self._timeout_s:g} s",
                path=path,
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise MetadataFetchError(
                f"{self._host}: {path}: {type(error).__name__}: {error}"[:300], path=path
            ) from error

    def _get(self, path: str, max_bytes: int, deadline_s: float) -> bytes:
        connection = self._connection()
        try:
            connection.request("GET", f"{self._prefix}/{path}", headers={"Connection": "close"})
            # Not `getresponse`: it closes the socket as soon as it has seen the headers.
            bounded = _BoundedSocket(connection.sock, self._timeout_s, deadline_s)
            response = http.client.HTTPResponse(bounded, method="GET")  # type: ignore[arg-type]
            response.begin()
            if response.status in _MISSING:
                raise MetadataMissingError(f"{self._host} has no {path}", path=path)
            if response.status != http.client.OK:
                raise MetadataFetchError(f"{self._host}: {path}: status {response.status}", path=path)
            if response.length is not None and response.length > max_bytes:
                raise oversize(path, max_bytes)
            data = response.read(max_bytes + 1)
            if len(data) > max_bytes:
                raise oversize(path, max_bytes)
            if response.length:  # what was announced and never came
                raise MetadataFetchError(f"{self._host}: {path} broke off", path=path)
            return data
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._tls)


class _BoundedSocket(io.RawIOBase):
    """A socket's reading side that ends at a deadline, whoever reads from it and however little comes each time."""

    def __init__(self, connected: socket.socket, timeout_s: float, deadline_s: float) -> None:
        self._socket, self._timeout_s, self._deadline_s = connected, timeout_s, deadline_s

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What `http.client` reads from."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._socket.settimeout(min(self._timeout_s, left_s))
        return self._socket.recv_into(buffer)
