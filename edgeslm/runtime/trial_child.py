"""The process in which a graph is tried before another opens it: ``python -m edgeslm.runtime.trial_child PARENT``.

It reads a :class:`~edgeslm.runtime.trial.TrialOrder` from standard input and ends with one
:class:`~edgeslm.runtime.preflight.TrialSaid` on standard output, unless the graph ends it before. What native code says
goes to standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from edgeslm.errors import EdgeslmError, RuntimeMissingError
from edgeslm.runtime.preflight import TrialSaid
from edgeslm.runtime.trial import TrialOrder

_PR_SET_PDEATHSIG = 1
_STATUS = Path("/proc/self/status")


def main(arguments: Sequence[str]) -> int:
    """Load what standard input asks for, and say how it went."""
    if not _confine(int(arguments[0])):
        return 1
    order = TrialOrder.model_validate_json(sys.stdin.buffer.read())
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        os.dup2(2, 1)
        try:
            said = _load(order)
        except MemoryError:
            said = TrialSaid(fault=MemoryError.__name__)
        except RuntimeMissingError as error:
            lacked_memory = order.limit_bytes is not None and _is_there_without_limit(order)
            fault = MemoryError if lacked_memory else RuntimeMissingError
            said = TrialSaid(fault=fault.__name__, message=error.message[:2048], hint=error.hint)
        except EdgeslmError as error:
            hint = None if error.hint is None else error.hint[:1024]
            said = TrialSaid(
                fault=type(error).__name__,
                message=error.message[:2048],
                hint=hint,
                interpreter=_ask_interpreter(order)[:2048],
            )
        out.write(said.model_dump_json().encode() + b"\n")
    return 0


def _confine(parent: int) -> bool:
    """Bind this process to its parent; ``False`` where that is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    return os.getppid() == parent


def _load(order: TrialOrder) -> TrialSaid:
    from edgeslm.runtime.loading import load_served  # noqa: PLC0415
    from edgeslm.schema.installed import InstalledPackage  # noqa: PLC0415

    if order.limit_bytes is not None:
        limit = _status_bytes("VmData") + order.limit_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    before = _status_bytes("VmRSS")
    started = time.monotonic()
    installed = InstalledPackage(order.directory, order.manifest, order.sha256)
    load_served(installed, order.runtime, order.threads, order.cache_dir)
    return TrialSaid(grown_bytes=max(0, _status_bytes("VmHWM") - before), load_s=time.monotonic() - started)


def _is_there_without_limit(order: TrialOrder) -> bool:
    """Whether the runtime can be imported after all: one that lacks memory says that it cannot begin, no more."""
    from edgeslm.runtime.backend import choose_runtime, import_runtime  # noqa: PLC0415

    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        import_runtime(choose_runtime(order.runtime))
    except RuntimeMissingError:
        return False
    return True


def _ask_interpreter(order: TrialOrder) -> str:
    """What the interpreter says against the graph: it names operations that it does not have, which others do not."""
    from edgeslm.runtime.backend import choose_runtime, open_interpreter  # noqa: PLC0415

    path = order.directory / order.manifest.graphs[0].file
    try:
        open_interpreter(path, choose_runtime(order.runtime), order.threads).allocate_tensors()
    except (EdgeslmError, ValueError, RuntimeError) as error:
        return str(error)
    return ""


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text("utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    # The runtime's exit handlers have nothing to save, and may hang on what a graph left behind.
    sys.stdout.flush()
    os._exit(main(sys.argv[1:]))
