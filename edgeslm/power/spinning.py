"""Keeps a number of cores busy: processes that spin, one for each.

They end when they are told to, or within a moment of the end of the process that started them, however it ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

_SPIN: Final = """
import os, sys
parent = int(sys.argv[1])
while os.getppid() == parent:
    for _ in range(200_000):
        pass
"""
_END_TIMEOUT_S: Final = 5.0


class Spinners:
    """Processes that spin. Not for several threads at once."""

    def __init__(self) -> None:
        """Start with none."""
        self._processes: list[subprocess.Popen[bytes]] = []

    def spin(self, cores: int) -> None:
        """Keep so many cores busy from now on."""
        while len(self._processes) > cores:
            self._end(self._processes.pop())
        while len(self._processes) < cores:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _SPIN, str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
            )

    @property
    def pids(self) -> tuple[int, ...]:
        """Of those that spin."""
        return tuple(process.pid for process in self._processes)

    def close(self) -> None:
        """End all."""
        self.spin(0)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait(_END_TIMEOUT_S)
