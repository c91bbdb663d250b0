"""Where the weights that XNNPACK has packed are kept between starts."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
from pathlib import Path

from edgeslm.runtime.backend import Runtime

log = logging.getLogger(__name__)

BUNDLE_SUFFIX = ".litert-lm"
"""Of a directory in which LiteRT-LM keeps packed weights of one bundle; its name begins with the bundle's digest."""


class WeightCache:
    """XNNPACK's packed weights on disk: a file per graph, runtime version and processor.

    A file appears under its name only once the graph that it was packed from has proved right, and is thrown away
    when the graph does not prove right with it: packed weights carry no checksum of their own.
    """

    def __init__(self, directory: Path, graph_sha256: str, runtime: Runtime) -> None:
        self._final = directory / f"{graph_sha256[:32]}-{runtime.version}-{processor_kind()}.xnnpack"
        self._fresh = self._final.with_suffix(f".{os.getpid()}.tmp")

    def choose(self) -> Path | None:
        """The file to open the graph with; ``None`` where the directory can't be written."""
        if self._final.exists():
            return self._final
        try:
            self._final.parent.mkdir(parents=True, exist_ok=True)
            self._fresh.unlink(missing_ok=True)
        except OSError:
            return None
        return self._fresh if os.access(self._final.parent, os.W_OK) else None

    def keep(self) -> None:
        """The graph proved right: what was packed is good for the next start."""
        try:
            with self._fresh.open("rb") as file:
                os.fsync(file.fileno())
            self._fresh.replace(self._final)
        except OSError as error:
            # Nothing fresh where the finished file was used; otherwise the next start packs anew.
            log.debug("packed weights are not kept: %s", error)

    def drop(self) -> bool:
        """The graph did not prove right; whether a finished file was thrown away, so that trying anew makes sense."""
        had = self._final.exists()
        for path in (self._fresh, self._final):
            with contextlib.suppress(OSError):
                path.unlink()
        return had and not self._final.exists()


def processor_kind() -> str:
    """Names the kind of processor: weights are packed for the kernels that it picks."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    marks = ("flags", "features", "cpu part", "model\t", "model name")
    kind = sorted({line for line in lines if line.lower().startswith(marks)})
    return hashlib.sha256("\n".join([platform.machine(), *kind]).encode()).hexdigest()[:12]
