"""Where in a JSON text one is while it is being written: in a string, in a number, or between them."""

from __future__ import annotations

import re

_NUMBER_START = frozenset(b"-0123456789")
_NUMBER = frozenset(b"-+.0123456789eE")
_PARTS = re.compile(rb"-?(\d+)(?:\.\d*)?(?:[eE]\+?(\d+))?")
_MAX_DECIMAL_EXPONENT = 307
"""IEEE 754 double precision ends at 1.8e308; what is beyond is read as infinite, or not at all."""


class JsonPlace:
    """Follows a JSON text byte by byte; the text is assumed to be right so far.

    Attributes:
        in_string: the next byte belongs to a string, or ends it.
    """

    def __init__(self) -> None:
        self.in_string = False
        self._escaped = False
        self._number = bytearray()

    @property
    def in_number(self) -> bool:
        """Whether the next byte may belong to the number that has begun."""
        return bool(self._number)

    def feed(self, data: bytes) -> None:
        """`data` comes next."""
        for byte in data:
            if not self.in_string:
                self.in_string = byte == 0x22
                if byte in (_NUMBER if self._number else _NUMBER_START):
                    self._number.append(byte)
                elif self._number:
                    self._number.clear()
            elif self._escaped:
                self._escaped = False
            elif byte == 0x5C:
                self._escaped = True
            elif byte == 0x22:
                self.in_string = False

    def overflows(self, data: bytes) -> bool:
        """Whether `data` would make the number that has begun larger than a double holds."""
        if not self._number:
            return False
        end = next((at for at, byte in enumerate(data) if byte not in _NUMBER), len(data))
        parts = _PARTS.match(bytes(self._number) + data[:end])
        if parts is None:
            return False
        whole, exponent = parts.groups()
        digits = (exponent or b"").lstrip(b"0")[:6]
        return len(whole) + int(digits or b"0") > _MAX_DECIMAL_EXPONENT + 1
