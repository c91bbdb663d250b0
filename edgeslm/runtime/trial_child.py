"""The process in which a graph is tried before another opens it: ``python -m edgeslm.runtime.trial_child PARENT``.

It reads a :class:`~edgeslm.runtime.trial.TrialOrder` from standard input and ends with one
:class:`~edgeslm.runtime.preflight.TrialSaid` on standard output, unless the graph ends it before. What native code says
goes to standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from edgeslm.errors import EdgeslmError
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
        except SystemError as error:
            # What CPython says where C code found no memory and did not say so; then it is what code of ours would say.
            said = TrialSaid(fault=SystemError.__name__, message=str(error)[:2048])
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

    before, data_before = _status_bytes("VmRSS"), _status_bytes("VmData")
    _import_libraries(order)
    if order.limit_bytes is not None:
        limit = data_before + order.limit_bytes
        if limit <= _status_bytes("VmData"):
            raise MemoryError  # the libraries alone took it
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    started = time.monotonic()
    installed = InstalledPackage(order.directory, order.manifest, order.sha256)
    load_served(installed, order.runtime, order.threads, order.cache_dir)
    return TrialSaid(grown_bytes=max(0, _status_bytes("VmHWM") - before), load_s=time.monotonic() - started)


def _import_libraries(order: TrialOrder) -> None:
    """Import what computes, before memory is limited: native code that lacks it while it is loaded just dies."""
    from edgeslm.runtime.backend import choose_runtime, import_runtime  # noqa: PLC0415
    from edgeslm.runtime.executor import has_compiled_model  # noqa: PLC0415
    from edgeslm.runtime.litert_lm_bundle import litert_lm_runtime  # noqa: PLC0415

    if order.manifest.is_bundle:
        import_runtime(litert_lm_runtime())
        return
    runtime = choose_runtime(order.runtime)
    import_runtime(runtime)
    has_compiled_model(runtime)
    tokenizer = order.manifest.tokenizer
    if tokenizer is not None:
        # The package's tokenizer says itself what it misses.
        with contextlib.suppress(ImportError):
            importlib.import_module("tokenizers" if tokenizer.kind == "tokenizers-json" else "sentencepiece")


def _ask_interpreter(order: TrialOrder) -> str:
    """What the interpreter says against the graph: it names operations that it does not have, which others do not."""
    if order.manifest.is_bundle:
        return ""
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
