"""What is written: a card or disk, opened so that nobody else holds it.

What always holds: a disk is opened with ``O_EXCL``, and where the kernel refuses that, because it is mounted or
something stands on it, it is not opened at all (open(2)). Reads after :meth:`Target.forget` come from the medium and
not from the memory of this machine. Errors are :class:`~edgeslm.errors.DiskError` and its children, never ``OSError``.

Left to others: whether this disk should be written (:mod:`edgeslm.flash.disks.selection`), and in which order.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from dataclasses import dataclass
from typing import Protocol

from edgeslm.errors import DiskBusyError, DiskError, DiskFaultError, DiskFullError, DiskGoneError
from edgeslm.flash.disks.layout import STEP_BYTES
from edgeslm.flash.image.past_cache import aligned

# linux/fs.h and linux/cdrom.h
_BLKRRPART = 0x125F
_BLKFLSBUF = 0x1261
_BLKSSZGET = 0x1268
_BLKZEROOUT = 0x127F
_BLKGETSIZE64 = 0x80081272
_CDROMEJECT = 0x5309
_FILE_ALIGN_BYTES = 4_096
_UNSYNCED_BYTES = 64 * 2**20
_BUSY_TRIES = 20
_BUSY_WAIT_S = 0.1


class Target(Protocol):
    """A disk that is held for writing.

    Offsets and lengths are multiples of `align_bytes`, buffers begin at such a multiple (:func:`aligned`). Every method
    raises :class:`~edgeslm.errors.DiskError` and no other error.

    Attributes:
        device: its path.
        size_bytes: how much it says that it holds.
        align_bytes: size of its blocks.
    """

    device: str
    size_bytes: int
    align_bytes: int

    def write(self, offset: int, data: memoryview) -> int:
        """Write, and return how many bytes were taken: at least one."""
        ...

    def read(self, offset: int, into: memoryview) -> int:
        """Read, and return how many bytes came: 0 at the end."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """Let `length` bytes be zero."""
        ...

    def sync(self) -> None:
        """Return when all that was written is on the medium, as far as that tells the truth."""
        ...

    def forget(self) -> None:
        """Let the next reads come from the medium."""
        ...

    def reread(self) -> None:
        """Let the kernel look at the partition table anew; where it cannot, it does so when the card is put in."""
        ...

    def eject(self) -> bool:
        """Make it ready to be pulled out; ``False`` where that is no more than not using it."""
        ...

    def close(self) -> None:
        """Let go of it. May be called twice."""
        ...


@dataclass(frozen=True)
class Expected:
    """What the disk is, by lsblk's word, which a path alone does not say.

    Attributes:
        number: major and minor, as ``8:16``.
    """

    number: str
    size_bytes: int


class DiskTarget:
    """A block device; for tests and benchmarks a plain file as well."""

    def __init__(self, device: str, *, expected: Expected | None = None, writing: bool = True) -> None:
        """Take hold of it.

        Args:
            device: path.
            expected: what must be there; another disk may have got its name meanwhile.
            writing: else it is only read.

        Raises:
            DiskBusyError: something holds it.
            DiskGoneError: it is not there, or another is there now.
            DiskError: it cannot be opened.
        """
        self.device = device
        self._writing = writing
        self._unsynced_bytes = 0
        flags = (os.O_RDWR | os.O_EXCL) if writing else os.O_RDONLY
        self._fd, self._direct = self._open(flags | os.O_CLOEXEC)
        try:
            self._is_block = stat.S_ISBLK(os.fstat(self._fd).st_mode)
            self.size_bytes, self.align_bytes = self._measure()
            if expected is not None:
                self._check(expected)
        except BaseException:
            self.close()
            raise
        self._zeros = aligned(STEP_BYTES)
        self._can_zero = self._is_block

    def write(self, offset: int, data: memoryview) -> int:
        """See :meth:`Target.write`."""
        try:
            taken = os.pwrite(self._fd, data, offset)
            self._unsynced_bytes += taken
            if not self._direct and self._unsynced_bytes >= _UNSYNCED_BYTES:
                self.sync()
        except OSError as error:
            raise disk_error("write", self.device, offset, error) from error
        if not taken:
            raise DiskFullError(
                f"{self.device} takes no more at byte {offset}", device=self.device, offset=offset
            )
        return taken

    def read(self, offset: int, into: memoryview) -> int:
        """See :meth:`Target.read`."""
        try:
            return os.preadv(self._fd, [into], offset)
        except OSError as error:
            raise disk_error("read", self.device, offset, error) from error

    def zero(self, offset: int, length: int) -> None:
        """See :meth:`Target.zero`; the device does it by itself where it can."""
        if self._can_zero:
            try:
                # The kernel writes zeros itself where the device has no order for it.
                fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("QQ", offset, length))
            except OSError as error:
                if error.errno not in {errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP}:
                    raise disk_error("write", self.device, offset, error) from error
                self._can_zero = False
            else:
                return
        while length:
            taken = self.write(offset, self._zeros[: min(length, len(self._zeros))])
            offset, length = offset + taken, length - taken

    def sync(self) -> None:
        """See :meth:`Target.sync`."""
        try:
            os.fsync(self._fd)
            self._unsynced_bytes = 0
            if not self._direct:
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise disk_error("sync", self.device, None, error) from error

    def forget(self) -> None:
        """See :meth:`Target.forget`."""
        try:
            if self._is_block and self._writing:
                # EACCES: who may write the card need not be who may empty caches. O_DIRECT passes them by anyway.
                with contextlib.suppress(PermissionError):
                    fcntl.ioctl(self._fd, _BLKFLSBUF)
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise disk_error("read", self.device, None, error) from error

    def reread(self) -> None:
        """See :meth:`Target.reread`."""
        if not self._is_block:
            return
        for _ in range(_BUSY_TRIES):
            try:
                fcntl.ioctl(self._fd, _BLKRRPART)
            except OSError as error:
                # udev looks at the card as soon as it changes, and holds a part of it for a moment.
                if error.errno != errno.EBUSY:
                    return
                time.sleep(_BUSY_WAIT_S)
            else:
                return

    def eject(self) -> bool:
        """See :meth:`Target.eject`."""
        if not self._is_block:
            return False
        try:
            fcntl.ioctl(self._fd, _CDROMEJECT)
        except OSError:  # no SCSI device: nothing has to be stopped
            return False
        return True

    def close(self) -> None:
        """See :meth:`Target.close`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # --- pieces -------------------------------------------------------------------------------------------------

    def _open(self, flags: int) -> tuple[int, bool]:
        try:
            mode = os.stat(self.device).st_mode  # noqa: PTH116 - beside the other calls of the kernel
            if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
                raise DiskError(f"{self.device} is no disk", device=self.device)
            try:
                return os.open(self.device, flags | os.O_DIRECT), True
            except OSError as error:
                # Some file systems do not know it; every disk does.
                if error.errno != errno.EINVAL or stat.S_ISBLK(mode):
                    raise
            return os.open(self.device, flags), False
        except OSError as error:
            raise _open_error(self.device, error) from error

    def _measure(self) -> tuple[int, int]:
        if not self._is_block:
            return os.fstat(self._fd).st_size, _FILE_ALIGN_BYTES
        try:
            size, block = array.array("Q", [0]), array.array("i", [0])
            fcntl.ioctl(self._fd, _BLKGETSIZE64, size)
            fcntl.ioctl(self._fd, _BLKSSZGET, block)
        except OSError as error:
            raise disk_error("ask", self.device, None, error) from error
        return size[0], block[0]

    def _check(self, expected: Expected) -> None:
        number = os.fstat(self._fd).st_rdev
        found = f"{os.major(number)}:{os.minor(number)}"
        if found != expected.number or self.size_bytes != expected.size_bytes:
            raise DiskGoneError(
                f"{self.device} is another disk than a moment ago",
                device=self.device,
                hint="Look again: edgeslm flash disks",
            )


def disk_error(verb: str, device: str, offset: int | None, error: OSError) -> DiskError:
    """What the kernel's word about a disk means."""
    where = f" at byte {offset}" if offset is not None else ""
    text = f"cannot {verb} {device}{where}: {error.strerror or error}"
    if error.errno in {errno.ENODEV, errno.ENXIO, errno.ENOENT, errno.ENOMEDIUM, errno.ESHUTDOWN}:
        hint = "The card was taken out, or its reader unplugged: put it in again, and run the command again"
        return DiskGoneError(text, device=device, offset=offset, hint=hint)
    if error.errno in {errno.ENOSPC, errno.EFBIG}:
        return DiskFullError(
            text, device=device, offset=offset, hint="The card is smaller than it says: take another one"
        )
    if error.errno in {errno.EIO, errno.EREMOTEIO, errno.EILSEQ, errno.ETIMEDOUT, errno.EROFS, errno.ENODATA}:
        hint = "The card was taken out or is worn out, or its reader is bad: try again, then with another"
        return DiskFaultError(text, device=device, offset=offset, hint=hint)
    return DiskError(text, device=device, offset=offset)


def _open_error(device: str, error: OSError) -> DiskError:
    text = f"cannot open {device}: {error.strerror or error}"
    if error.errno == errno.EBUSY:
        return DiskBusyError(
            f"something holds {device}: it, or a part of it, is mounted or in use",
            device=device,
            hint=f"See what: lsblk {device}; unmount it, and run the command again",
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return DiskError(text, device=device, hint="Disks are root's: run this one command with sudo")
    if error.errno == errno.EROFS:
        return DiskFaultError(text, device=device, hint="Look at the switch on the side of the card")
    return disk_error("open", device, None, error)
