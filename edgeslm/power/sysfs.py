"""Bounded reading of sysfs and procfs, and of the few programs that stand in for them.

Every read is bounded in bytes and time, and what it returns is a number that was checked, never text that callers
have to trust. ``ValueFile`` keeps its descriptor open: a read is then one ``fstat`` and one ``pread``, about 3 us,
where opening anew costs five times that. The kernel renders a sysfs or procfs file afresh for every read from its
beginning (``seq_read_iter``, fs/seq_file.c).
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

MAX_BYTES = 4096
"""A sysfs attribute is at most one page (Documentation/filesystems/sysfs.rst)."""

Command = tuple[str, ...]
"""A program and its first arguments, such as ``("vcgencmd",)``."""


class ValueFile:
    """One file that is read again and again.

    A file that was removed or replaced while open would read as it was for ever; in sysfs the kernel answers ENODEV
    instead. So the first read after that fails, as there, and the next opens whatever has the name now.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._fd: int | None = None

    def read(self) -> bytes:
        """The content, at most `max_bytes`.

        Raises:
            OSError: it is gone, or the driver behind it failed.
        """
        if self._fd is not None and os.fstat(self._fd).st_nlink == 0:
            self.close()
            raise FileNotFoundError(errno.ENOENT, "removed while open", str(self.path))
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(self._fd, self._max_bytes, 0)
        except OSError:
            self.close()
            raise

    def integer(self) -> int:
        """The content as a decimal number.

        Raises:
            OSError: it is gone, or the driver behind it failed.
            ValueError: it holds no number.
        """
        return parse_integer(self.read())

    def close(self) -> None:
        """Let go of the descriptor; the next read opens the file again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def parse_integer(content: bytes) -> int:
    """A decimal number of at most 20 digits, as the kernel writes it.

    Raises:
        ValueError: it is none.
    """
    text = content.strip()
    if not text.removeprefix(b"-").isdigit() or len(text) > 21:
        raise ValueError(f"no number: {text[:40]!r}")
    return int(text)


def read_text(path: Path) -> str | None:
    """The stripped content of a small file, or ``None`` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES).rstrip(b"\0").decode("utf-8", "replace").strip()
    except OSError:
        return None


def read_integer(path: Path) -> int | None:
    """The number in a small file, or ``None`` where there is none."""
    text = read_text(path)
    try:
        return None if text is None else parse_integer(text.encode())
    except ValueError:
        return None


def children(directory: Path) -> list[Path]:
    """The entries of `directory` by name; none where it cannot be read."""
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def run(command: Command, timeout_s: float) -> str:
    """What a program writes to its standard output; the rest of its world is closed to it.

    Raises:
        OSError: it cannot be started, fails, or takes longer than `timeout_s`.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{command[0]} gave no answer in {timeout_s} s") from error
    if done.returncode != 0:
        raise OSError(f"{command[0]} ended with status {done.returncode}")
    return done.stdout[: 4 * MAX_BYTES].decode("utf-8", "replace")
