"""Which TFLite runtime is here, and opening a graph with it.

Two packages offer the same ``Interpreter`` class: ``ai-edge-litert`` (kept up, any Python we support) and
``tflite-runtime`` 2.14 (what older boards have; wheels end at Python 3.11, built against numpy 1). The second
loads no composites and computes zeros for per-channel int8 layers, so a graph is only ever opened by a runtime
that its package trusts, and is proved before it is served (:mod:`edgeslm.runtime.model`).
"""

from __future__ import annotations

import atexit
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm.errors import ModelLoadError, RuntimeMissingError
from edgeslm.schema.config import RuntimeChoice
from edgeslm.schema.package import BUNDLE, RuntimeKind

_MODULES: dict[str, tuple[RuntimeKind, str]] = {
    "ai-edge-litert": ("litert", "ai_edge_litert.interpreter"),
    "tflite-runtime": ("tflite-runtime", "tflite_runtime.interpreter"),
}

_INSTALL_HINT = {
    "auto": "Install one with: pip install ai-edge-litert",
    "ai-edge-litert": "Install it with: pip install ai-edge-litert",
    "tflite-runtime": "Install it with: pip install 'edgeslm[tflite]' (Python 3.11 only)",
}

TFLITE_MAGIC = b"TFL3"
LITERT_LM_MODULE = "litert_lm"


@dataclass(frozen=True)
class Runtime:
    """An importable TFLite runtime.

    Attributes:
        kind: what package manifests call it.
        package: name of its distribution.
        version: version of its distribution.
        module: module that holds ``Interpreter``.
    """

    kind: RuntimeKind
    package: str
    version: str
    module: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


def installed_runtimes() -> list[Runtime]:
    """The runtimes installed here, preferred first. Nothing is imported."""
    found = []
    for package, (kind, module) in _MODULES.items():
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            continue
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "unknown"
        found.append(Runtime(kind, package, version, module))
    return found


def installed_kinds() -> tuple[RuntimeKind, ...]:
    """What graphs and bundles can be computed here, in the words of manifests. Nothing is imported."""
    kinds = [runtime.kind for runtime in installed_runtimes()]
    if importlib.util.find_spec(LITERT_LM_MODULE) is not None:
        kinds.append(BUNDLE)
    return tuple(dict.fromkeys(kinds))


def choose_runtime(choice: RuntimeChoice = "auto") -> Runtime:
    """The runtime to use: `choice`, else ``EDGESLM_RUNTIME``, else the first that is installed.

    Raises:
        RuntimeMissingError: it is not installed.
    """
    wanted = choice if choice != "auto" else os.environ.get("EDGESLM_RUNTIME", "auto")
    runtimes = installed_runtimes()
    for runtime in runtimes:
        if wanted in {"auto", runtime.package}:
            return runtime
    have = ", ".join(map(str, runtimes)) or "none"
    raise RuntimeMissingError(
        f"TFLite runtime '{wanted}' is not installed (installed: {have})",
        hint=_INSTALL_HINT.get(wanted, "Known are auto, ai-edge-litert and tflite-runtime"),
    )


@contextmanager
def native_output_hidden() -> Iterator[None]:
    """Keep the runtime's C++ start-up notes off the terminal: they go to file descriptor 2 directly.

    For loading only: the descriptor belongs to the whole process. ``EDGESLM_NATIVE_LOG=1`` shows the notes.
    """
    if os.environ.get("EDGESLM_NATIVE_LOG"):
        yield
        return
    saved = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)


@functools.cache
def hide_native_output_at_exit() -> None:
    """Keep the notes off the terminal that the library writes when the process takes its statics down.

    Python's own last words (tracebacks, logs) are out by then: exit handlers run after them.
    """
    if not os.environ.get("EDGESLM_NATIVE_LOG"):
        atexit.register(_close_stderr)


def _close_stderr() -> None:
    sys.stderr.flush()
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    os.close(sink)


def check_flatbuffer(path: Path) -> None:
    """Refuse a file that no runtime should even be shown.

    Raises:
        ModelLoadError: unreadable, or no TFLite flatbuffer.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise ModelLoadError(f"cannot read graph: {error.strerror}", path=str(path)) from error
    if head[4:8] != TFLITE_MAGIC:
        raise ModelLoadError(f"{path.name} is no TFLite flatbuffer", path=str(path))


def import_runtime(runtime: Runtime) -> Any:
    """The module that `runtime` is.

    Raises:
        RuntimeMissingError: it is installed but cannot be imported.
    """
    try:
        return importlib.import_module(runtime.module)
    except ImportError as error:
        is_old = runtime.kind == "tflite-runtime"
        raise RuntimeMissingError(
            f"{runtime} cannot be imported: {error}",
            hint="tflite-runtime 2.14 needs Python 3.11 and numpy<2" if is_old else None,
        ) from error


def open_interpreter(path: Path, runtime: Runtime, threads: int) -> Any:
    """An ``Interpreter`` over the graph at `path`, memory-mapped, with `threads` worker threads.

    Raises:
        ModelLoadError: unreadable, no TFLite flatbuffer, or the runtime refuses it.
        RuntimeMissingError: the runtime is installed but cannot be imported.
    """
    check_flatbuffer(path)
    module = import_runtime(runtime)
    try:
        return module.Interpreter(model_path=str(path), num_threads=threads)
    except (ValueError, RuntimeError) as error:
        raise ModelLoadError(f"{runtime} refuses {path.name}: {str(error)[:300]}", path=str(path)) from error
