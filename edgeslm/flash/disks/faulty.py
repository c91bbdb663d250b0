"""A card with faults that were chosen: what cards and readers do when they go wrong, on demand.

It stands before another target, and without faults behaves as that does. Tests use it here and in programs of users.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from edgeslm.flash.disks.target import Target, disk_error
from edgeslm.flash.disks.transfer import write_all
from edgeslm.flash.image.past_cache import aligned


@dataclass(frozen=True)
class Faults:
    """What goes wrong.

    Attributes:
        gone_after_bytes: the card is pulled out once that many bytes were written.
        fails_at: writing over this byte is an I/O error.
        unreadable_at: reading this byte is an I/O error.
        real_bytes: it holds only so many, whatever it says.
        wraps: what goes beyond lands at the beginning again; else it is lost. As forged cards do either.
        full_at: it ends here, and says so only now.
        most_bytes: it takes and gives no more than that at once.
        flips_at: a bit of this byte is never what was written.
        ignores_after_bytes: it takes writes and keeps none once that many bytes were written: a worn-out card.
    """

    gone_after_bytes: int | None = None
    fails_at: int | None = None
    unreadable_at: int | None = None
    real_bytes: int | None = None
    wraps: bool = False
    full_at: int | None = None
    most_bytes: int | None = None
    flips_at: int | None = None
    ignores_after_bytes: int | None = None


class FaultyTarget:
    """See the module; a :class:`~edgeslm.flash.disks.target.Target`."""

    def __init__(
        self, inner: Target, faults: Faults, *, on_write: Callable[[int], None] | None = None
    ) -> None:
        """Stand before `inner`.

        Args:
            on_write: is told before each write how many bytes were written so far; what it raises is raised.
        """
        self.device = inner.device
        self.size_bytes = inner.size_bytes
        self.align_bytes = inner.align_bytes
        self.written_bytes = 0
        self._inner = inner
        self._faults = faults
        self._on_write = on_write

    def write(self, offset: int, data: memoryview) -> int:
        """See :meth:`Target.write`."""
        faults = self._faults
        if self._on_write is not None:
            self._on_write(self.written_bytes)
        self._check_gone(offset)
        data = data[: faults.most_bytes]
        end = offset + len(data)
        if faults.fails_at is not None and offset <= faults.fails_at < end:
            raise self._error(errno.EIO, "write", offset)
        if faults.full_at is not None and end > faults.full_at:
            raise self._error(errno.ENOSPC, "write", offset)
        self.written_bytes += len(data)
        if faults.ignores_after_bytes is not None and self.written_bytes > faults.ignores_after_bytes:
            return len(data)
        if faults.real_bytes is not None and end > faults.real_bytes:
            if not faults.wraps:
                return len(data)
            offset %= faults.real_bytes
            data = data[: faults.real_bytes - offset]
        # Part of a block is taken and lost, as by a reader that is unplugged within it.
        whole = len(data) - len(data) % self.align_bytes
        if whole:
            write_all(self._inner, offset, data[:whole])
        return len(data)

    def read(self, offset: int, into: memoryview) -> int:
        """See :meth:`Target.read`."""
        faults = self._faults
        self._check_gone(offset)
        into = into[: faults.most_bytes]
        if faults.unreadable_at is not None and offset <= faults.unreadable_at < offset + len(into):
            raise self._error(errno.EIO, "read", offset)
        if faults.real_bytes is not None and offset + len(into) > faults.real_bytes:
            if not faults.wraps:
                into[:] = b"\xff" * len(into)
                return len(into)
            offset %= faults.real_bytes
            into = into[: faults.real_bytes - offset]
        whole = aligned(-(-len(into) // self.align_bytes) * self.align_bytes)
        got = min(self._inner.read(offset, whole), len(into))
        into[:got] = whole[:got]
        if faults.flips_at is not None and offset <= faults.flips_at < offset + got:
            into[faults.flips_at - offset] ^= 0x10
        return got

    def zero(self, offset: int, length: int) -> None:
        """See :meth:`Target.zero`; written, so that it meets the faults."""
        zeros = aligned(2**20)
        for start in range(offset, offset + length, len(zeros)):
            write_all(self, start, zeros[: min(len(zeros), offset + length - start)])

    def sync(self) -> None:
        """See :meth:`Target.sync`."""
        self._check_gone(0)
        self._inner.sync()

    def forget(self) -> None:
        """See :meth:`Target.forget`."""
        self._check_gone(0)
        self._inner.forget()

    def reread(self) -> None:
        """See :meth:`Target.reread`."""
        self._inner.reread()

    def eject(self) -> bool:
        """See :meth:`Target.eject`."""
        return self._inner.eject()

    def close(self) -> None:
        """See :meth:`Target.close`."""
        self._inner.close()

    # --- pieces -------------------------------------------------------------------------------------------------

    def _check_gone(self, offset: int) -> None:
        after = self._faults.gone_after_bytes
        if after is not None and self.written_bytes >= after:
            raise self._error(errno.ENODEV, "use", offset)

    def _error(self, number: int, verb: str, offset: int) -> Exception:
        return disk_error(verb, self.device, offset, OSError(number, os.strerror(number)))
