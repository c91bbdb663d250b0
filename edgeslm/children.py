"""Processes that end with the one that started them, however that ends: PR_SET_PDEATHSIG, prctl(2).

The kernel means the *thread* that started them: start them from one that lasts. The signal survives exec.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

# The parent may have died before prctl was called: then no signal would ever come.
_BIND = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[2]))
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[3], sys.argv[3:])
"""


def bound_to_parent(command: Sequence[str], how: signal.Signals = signal.SIGKILL) -> list[str]:
    """`command` so that it gets the signal `how` when we end; as it is where there is no such call.

    Args:
        command: path of a program and its arguments.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-P", "-c", _BIND, str(os.getpid()), str(int(how)), *command]
