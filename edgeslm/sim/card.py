"""A card that forgets: what was written to it and not flushed may be lost when the power goes, in any combination.

An image, offered over the NBD protocol to an emulator on this machine. Writes stay in memory until the emulated system
asks for a flush, as they stay in the cache of a card or a disk. At a cut some of them reach the image and others do
not, whatever their order was: a card promises nothing else.

What always holds: what was answered after a flush, or written through (FUA), is in the image. The same seed and the
same writes lose the same.

Source: the NBD protocol, https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from edgeslm.errors import EmulationError

_PAGE_BYTES = 4096
_MAX_REQUEST_BYTES = 64 * 2**20
_HELLO = b"NBDMAGICIHAVEOPT"
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_OPTION_REPLY_MAGIC = 0x0003E889045565A9
_EXPORT_NAME, _ABORT, _INFO, _GO = 1, 2, 6, 7
_ACK, _REP_INFO, _UNSUPPORTED = 1, 3, 2**31 + 1
_FLAGS = 1 | 4 | 8
"""It can flush, and write through; that these flags are given is the first bit."""
_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC = 0x25609513
_REPLY = struct.Struct(">IIQ")
_REPLY_MAGIC = 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
_FUA = 1
_INVALID, _FAILED = 22, 5


class ForgetfulCard:
    """An image behind a socket; one emulator at a time.

    Attributes:
        address: by which QEMU opens it.
        unflushed: pages that a cut may lose at this moment.
    """

    def __init__(self, image: Path, directory: Path, *, seed: int = 0) -> None:
        """Open the image and listen.

        Args:
            image: a raw image, which is written.
            directory: for the socket; its path has to be short.
            seed: of what is lost.

        Raises:
            EmulationError: the image cannot be opened, or the socket not be made.
        """
        self._random = random.Random(seed)  # noqa: S311 - nothing secret
        self._pages: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        path = directory / "card"
        try:
            self._descriptor = os.open(image, os.O_RDWR | os.O_CLOEXEC)
            self._size = os.fstat(self._descriptor).st_size
            self._listener.bind(str(path))
            self._listener.listen(1)
        except OSError as error:
            self._listener.close()
            raise EmulationError(f"{image} cannot be offered as a card: {error.strerror or error}") from error
        self.address = f"nbd+unix:///?socket={path}"
        self._thread = threading.Thread(target=self._serve, name="edgeslm-card", daemon=True)
        self._thread.start()

    @property
    def unflushed(self) -> int:
        """See the class."""
        with self._lock:
            return len(self._pages)

    def cut(self) -> int:
        """Lose some of what was not flushed; how many pages were lost. Call it when the emulator is dead."""
        self._hang_up()
        with self._lock:
            lost = {at for at in sorted(self._pages) if self._random.random() < 0.5}
            for at in lost:
                del self._pages[at]
        self._flush()
        return len(lost)

    def close(self) -> None:
        """Stop serving; what was not flushed reaches the image."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._hang_up()
        self._thread.join(5.0)
        self._flush()
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- pages --------------------------------------------------------------------------------------------------

    def _read(self, at: int, size: int) -> bytes:
        first, last = at // _PAGE_BYTES, -(-(at + size) // _PAGE_BYTES)
        data = bytearray(os.pread(self._descriptor, (last - first) * _PAGE_BYTES, first * _PAGE_BYTES))
        data += bytes((last - first) * _PAGE_BYTES - len(data))
        with self._lock:
            for page in self._pages.keys() & range(first, last):
                start = (page - first) * _PAGE_BYTES
                data[start : start + _PAGE_BYTES] = self._pages[page]
        start = at - first * _PAGE_BYTES
        return bytes(data[start : start + size])

    def _write(self, at: int, data: bytes) -> None:
        first, last = at // _PAGE_BYTES, -(-(at + len(data)) // _PAGE_BYTES)
        whole = bytearray(self._read(first * _PAGE_BYTES, (last - first) * _PAGE_BYTES))
        start = at - first * _PAGE_BYTES
        whole[start : start + len(data)] = data
        with self._lock:
            for number, page in enumerate(range(first, last)):
                self._pages[page] = bytes(whole[number * _PAGE_BYTES : (number + 1) * _PAGE_BYTES])

    def _flush(self, at: int = 0, size: int | None = None) -> None:
        last = -(-(self._size if size is None else at + size) // _PAGE_BYTES)
        with self._lock:
            for page in sorted(self._pages.keys() & range(at // _PAGE_BYTES, last)):
                start = page * _PAGE_BYTES
                os.pwrite(self._descriptor, self._pages[page][: self._size - start], start)
                del self._pages[page]

    # --- the protocol -------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connection = connection
            # Whoever is killed hangs up in the middle of a sentence.
            with connection, contextlib.suppress(OSError, EOFError):
                if self._greet(connection):
                    self._answer(connection)
            self._connection = None

    def _hang_up(self) -> None:
        """End the connection, once all that was sent through it is taken."""
        connection, thread = self._connection, self._thread
        if connection is None:
            return
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        for _ in range(500):
            if self._connection is not connection or not thread.is_alive():
                return
            thread.join(0.01)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def _greet(self, connection: socket.socket) -> bool:
        connection.sendall(_HELLO + struct.pack(">H", _FIXED_NEWSTYLE | _NO_ZEROES))
        (client,) = struct.unpack(">I", _take(connection, 4))
        while True:
            _, option, size = _OPTION.unpack(_take(connection, _OPTION.size))
            if size > _PAGE_BYTES:
                return False
            _take(connection, size)
            if option == _EXPORT_NAME:
                zeroes = b"" if client & _NO_ZEROES else bytes(124)
                connection.sendall(struct.pack(">QH", self._size, _FLAGS) + zeroes)
                return True
            if option in {_INFO, _GO}:
                export = struct.pack(">HQH", 0, self._size, _FLAGS)
                self._reply_option(connection, option, _REP_INFO, export)
                self._reply_option(connection, option, _ACK)
                if option == _GO:
                    return True
            elif option == _ABORT:
                self._reply_option(connection, option, _ACK)
                return False
            else:
                self._reply_option(connection, option, _UNSUPPORTED)

    @staticmethod
    def _reply_option(connection: socket.socket, option: int, kind: int, data: bytes = b"") -> None:
        connection.sendall(_OPTION_REPLY.pack(_OPTION_REPLY_MAGIC, option, kind, len(data)) + data)

    def _answer(self, connection: socket.socket) -> None:
        while True:
            magic, flags, kind, cookie, at, size = _REQUEST.unpack(_take(connection, _REQUEST.size))
            if magic != _REQUEST_MAGIC or size > _MAX_REQUEST_BYTES:
                return
            data = _take(connection, size) if kind == _WRITE else b""
            if kind == _DISCONNECT:
                self._flush()
                return
            error, answer = 0, b""
            try:
                if kind in {_READ, _WRITE} and at + size > self._size:
                    error = _INVALID
                elif kind == _READ:
                    answer = self._read(at, size)
                elif kind == _WRITE:
                    self._write(at, data)
                elif kind != _FLUSH:
                    error = _INVALID
                if kind == _FLUSH:
                    self._flush()
                elif kind == _WRITE and flags & _FUA and not error:
                    self._flush(at, size)
            except OSError:
                error, answer = _FAILED, b""
            connection.sendall(_REPLY.pack(_REPLY_MAGIC, error, cookie) + answer)


def _take(connection: socket.socket, size: int) -> bytes:
    """Exactly so many bytes.

    Raises:
        EOFError: the other side hung up.
        OSError: it was cut off.
    """
    data = bytearray()
    while len(data) < size:
        if not (piece := connection.recv(size - len(data))):
            raise EOFError
        data += piece
    return bytes(data)
