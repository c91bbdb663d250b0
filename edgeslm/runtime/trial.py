"""Trying a graph in a process of its own before it is opened in the one that serves.

What always holds: whatever a graph does to the process that tries it, ours gets an error with a name; when
:meth:`GraphTrial.check` returns or raises, that process is gone. The process dies with the thread that started it, is
the first that the kernel takes when memory runs out, may take no more private memory than was free (RLIMIT_DATA,
setrlimit(2)), and writes no core file.

A graph that computed its golden vector once is not tried again: that is remembered beside the packed weights, under
the graph's digest, the versions of runtime and edgeslm, and the kind of processor. What fails is not remembered: it may
have been for want of memory. What a graph needs is compared with what is free each time.

Left to others: what that process does (:mod:`edgeslm.runtime.trial_child`), and what its end means
(:mod:`edgeslm.runtime.preflight`).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

import edgeslm
from edgeslm.errors import MemoryShortError, RuntimeMissingError
from edgeslm.files import read_bounded, replace_file
from edgeslm.procfs import cpu_flags, memory_kib
from edgeslm.runtime import preflight
from edgeslm.runtime.preflight import Subject, TrialEnd, TrialSaid
from edgeslm.schema.base import FileModel
from edgeslm.schema.config import RuntimeChoice
from edgeslm.schema.package import Manifest

if TYPE_CHECKING:
    from edgeslm.runtime.backend import Runtime
    from edgeslm.runtime.memory import MemoryNeed
    from edgeslm.schema.installed import InstalledPackage
    from edgeslm.schema.package import GraphSpec

log = logging.getLogger(__name__)

_MAX_LINE = 16_384
_MAX_NATIVE = 8_192
_MAX_RECORD = 4_096
_SUFFIX = ".proved"
_OWN_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


class TrialOrder(FileModel):
    """To the trial: load this.

    Attributes:
        directory: of the unpacked package.
        manifest: with the one graph that is meant.
        limit_bytes: private memory that it may take beyond what it has; ``None`` for no limit.
    """

    directory: Path
    sha256: str
    manifest: Manifest
    runtime: RuntimeChoice
    threads: int = Field(ge=1)
    cache_dir: Path | None
    limit_bytes: int | None = None


class Proved(FileModel):
    """What is remembered of a graph that computed its golden vector here.

    Attributes:
        needed_bytes: memory, as predicted.
        library_bytes: of it, what a process has already that has loaded another model.
        grown_bytes: memory that the trial took.
    """

    needed_bytes: int = Field(ge=0)
    library_bytes: int = Field(default=0, ge=0)
    grown_bytes: int = Field(ge=0)
    load_s: float = Field(ge=0)


def trial_command() -> list[str]:
    """How the process is started."""
    return [sys.executable, "-P", "-m", "edgeslm.runtime.trial_child"]


class GraphTrial:
    """Says of graphs whether they can be opened here, each tried once."""

    def __init__(
        self,
        cache_dir: Path | None,
        threads: int,
        choice: RuntimeChoice = "auto",
        *,
        free_bytes: Callable[[], int | None] | None = None,
        command: Callable[[], list[str]] = trial_command,
        patience_s: float | None = None,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            cache_dir: where packed weights are kept, and what is remembered; without it each graph is tried each time.
            threads: worker threads, as in serving.
            free_bytes: memory that a process can have; that of this machine by default.
            command: starts the process.
            patience_s: seconds after which a load counts as hung; by the graph's size by default.
        """
        self._cache_dir = cache_dir
        self._threads = threads
        self._choice: RuntimeChoice = choice
        self._free_bytes = free_bytes or read_free_bytes
        self._command = command
        self._patience_s = patience_s

    def check(self, installed: InstalledPackage, graph: GraphSpec, runtime: Runtime) -> None:
        """Refuse a graph that this machine is not for.

        Raises:
            PreflightError: as its classes say.
            ProofError: it computes other values than its package states.
            RuntimeMissingError: the runtime cannot be imported.
            ModelLoadError: it is damaged, or the runtime refuses it.
        """
        manifest = installed.manifest
        path = installed.file(graph.file)
        subject = Subject(f"{manifest.name}@{manifest.version}", path, str(runtime))
        preflight.check_processor(subject, manifest.requires.cpu_features, cpu_flags())
        known = self.recall(installed, graph, runtime)
        if known is not None:
            is_loaded = any(
                name.startswith(f"{runtime.module.partition('.')[0]}.") for name in list(sys.modules)
            )
            needed_bytes = known.needed_bytes - (known.library_bytes if is_loaded else 0)
            preflight.check_memory(subject, needed_bytes, self._free_bytes())
            return
        preflight.check_system_library(subject, _wheel_tags(runtime.package), _glibc())
        need, custom = self._predict(installed, graph, runtime)
        subject = Subject(subject.name, path, subject.runtime, custom)
        free_bytes = self._free_bytes()
        # With the libraries, though ours may be loaded: the trial loads its own.
        preflight.check_memory(subject, need.total_bytes, free_bytes)
        order = TrialOrder(
            directory=installed.directory,
            sha256=installed.sha256,
            manifest=manifest.model_copy(update={"graphs": (graph,)}),
            runtime=self._choice,
            threads=self._threads,
            cache_dir=self._cache_dir,
            limit_bytes=free_bytes,
        )
        patience_s = self._patience_s or preflight.patience_s(manifest.files[graph.file].size_bytes)
        try:
            end = run_trial(order, self._command(), patience_s)
        except OSError as error:
            raise MemoryShortError(
                f"{subject.name} cannot be tried: no process can be started ({error.strerror})",
                path=str(path),
                needed_bytes=need.total_bytes,
                free_bytes=free_bytes,
                hint="Stop what else runs on the board",
            ) from error
        said = preflight.judge(subject, end, free_bytes)
        log.info(
            "%s: tried in %.1f s; %.0f MiB of memory, %.0f predicted",
            subject.name,
            end.waited_s,
            said.grown_bytes / 2**20,
            need.total_bytes / 2**20,
        )
        self.remember(installed, graph, runtime, grown_bytes=said.grown_bytes, load_s=said.load_s)

    def model_bytes(self, installed: InstalledPackage) -> int:
        """Memory that a package's model will take here, as predicted; without the libraries that compute it.

        Of a bundle, which nobody looks into, it is what the trial took here, with the library; before one, what the
        package says.

        Raises:
            ModelLoadError: its graph is damaged.
            RuntimeMissingError: there is none that the package has a graph for.
        """
        from edgeslm.runtime.backend import choose_runtime  # noqa: PLC0415
        from edgeslm.runtime.litert_lm_bundle import litert_lm_runtime  # noqa: PLC0415

        if installed.manifest.is_bundle:
            first = installed.manifest.graphs[0]
            known = self.recall(installed, first, litert_lm_runtime())
            return known.needed_bytes if known else installed.manifest.requires.ram_mb << 20
        runtime = choose_runtime(self._choice)
        graph = next((one for one in installed.manifest.graphs if runtime.kind in one.runtimes), None)
        if graph is None:
            raise RuntimeMissingError(f"{installed.manifest.name} has no graph for {runtime}")
        known = self.recall(installed, graph, runtime)
        if known is not None:
            return known.needed_bytes - known.library_bytes
        need, _ = self._predict(installed, graph, runtime)
        return need.model_bytes

    def remember(
        self,
        installed: InstalledPackage,
        graph: GraphSpec,
        runtime: Runtime,
        *,
        grown_bytes: int,
        load_s: float,
    ) -> None:
        """Take it from the caller that a graph computed its golden vector, in a process of its own.

        Raises:
            ModelLoadError: it is damaged.
        """
        from edgeslm.runtime.memory import of_bundle  # noqa: PLC0415

        # What is in a bundle is known to LiteRT-LM alone, so what it took here is what it will take.
        is_bundle = installed.manifest.is_bundle
        need = of_bundle(grown_bytes) if is_bundle else self._predict(installed, graph, runtime)[0]
        self._keep(installed, graph, runtime, _proved(need, grown_bytes, load_s))

    def recall(self, installed: InstalledPackage, graph: GraphSpec, runtime: Runtime) -> Proved | None:
        """What is remembered of a graph; ``None`` where it was never proved here, or the record can't be read."""
        path = self._record(installed, graph, runtime)
        if path is None:
            return None
        try:
            data = read_bounded(path, _MAX_RECORD)
            return Proved.model_validate_json(data)
        except (OSError, ValidationError):
            return None

    def _predict(
        self, installed: InstalledPackage, graph: GraphSpec, runtime: Runtime
    ) -> tuple[MemoryNeed, tuple[str, ...]]:
        """Memory that a graph will take, and its operations that are not built in; of a bundle what it says."""
        from edgeslm.runtime.executor import will_compile  # noqa: PLC0415
        from edgeslm.runtime.graph_facts import read_graph  # noqa: PLC0415
        from edgeslm.runtime.memory import of_bundle, predict  # noqa: PLC0415

        manifest = installed.manifest
        if manifest.is_bundle:
            return of_bundle(manifest.requires.ram_mb << 20), ()
        facts = read_graph(installed.file(graph.file))
        tokenizer = manifest.tokenizer
        size_bytes = 0 if tokenizer is None else manifest.files[tokenizer.file].size_bytes
        need = predict(facts, size_bytes, in_place=manifest.task == "generate" and will_compile(runtime))
        return need, facts.custom_operations

    def _record(self, installed: InstalledPackage, graph: GraphSpec, runtime: Runtime) -> Path | None:
        from edgeslm.runtime.weight_cache import processor_kind  # noqa: PLC0415

        if self._cache_dir is None:
            return None
        sha256 = installed.manifest.files[graph.file].sha256
        release = f"{runtime.kind}-{runtime.version}-{edgeslm.__version__}"
        return self._cache_dir / f"{sha256[:32]}-{release}-{processor_kind()}{_SUFFIX}"

    def _keep(self, installed: InstalledPackage, graph: GraphSpec, runtime: Runtime, proved: Proved) -> None:
        path = self._record(installed, graph, runtime)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, proved.model_dump_json().encode())
        except OSError as error:
            log.debug("not remembered, so the next start tries it again: %s", error)


def _proved(need: MemoryNeed, grown_bytes: int, load_s: float) -> Proved:
    return Proved(
        needed_bytes=need.total_bytes,
        library_bytes=need.library_bytes,
        grown_bytes=grown_bytes,
        load_s=load_s,
    )


def run_trial(order: TrialOrder, command: Sequence[str], patience_s: float) -> TrialEnd:
    """Start a trial and wait for its end, but no longer than `patience_s`.

    Raises:
        OSError: it cannot be started.
    """
    started = time.monotonic()
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "EDGESLM_NATIVE_LOG": "1"}
    with tempfile.TemporaryFile() as native, tempfile.TemporaryFile() as answer:
        child = subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=native,
            env=environment,
            start_new_session=True,
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.communicate(order.model_dump_json().encode(), timeout=patience_s)
            exit_code = child.poll()
        finally:
            _end(child)
        return TrialEnd(
            exit_code=exit_code,
            waited_s=time.monotonic() - started,
            said=_parse(_tail(answer.fileno(), _MAX_LINE)),
            native=_tail(native.fileno(), _MAX_NATIVE).decode("utf-8", "replace"),
        )


def _end(child: subprocess.Popen[bytes]) -> None:
    # Its group first: what it may have started must not outlive it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _tail(descriptor: int, most: int) -> bytes:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, most, max(0, size - most))


def _parse(text: bytes) -> TrialSaid | None:
    lines = text.splitlines()
    try:
        return TrialSaid.model_validate_json(lines[-1]) if lines else None
    except ValidationError:
        return None


def read_free_bytes() -> int | None:
    """Memory that a process here can have: what the machine has, within the limit of our control group."""
    free_kib = memory_kib("MemAvailable")
    rooms = [] if free_kib is None else [free_kib * 1024]
    with contextlib.suppress(OSError, ValueError, KeyError):
        rooms.append(cgroup_room_bytes(_OWN_CGROUP.read_text("ascii"), _CGROUPS))
    return min(rooms, default=None)


def cgroup_room_bytes(membership: str, root: Path) -> int:
    """What a control group may still take; files that the kernel keeps in memory for it do not count as taken.

    Args:
        membership: ``/proc/self/cgroup`` (cgroups(7), version 2).

    Raises:
        OSError, ValueError, KeyError: there is no limit, or no such files.
    """
    path = next(line.removeprefix("0::") for line in membership.splitlines() if line.startswith("0::"))
    group = root / path.lstrip("/")
    limit = int((group / "memory.max").read_text("ascii"))  # "max" is no number
    taken = int((group / "memory.current").read_text("ascii"))
    rows = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
    return max(0, limit - taken + int(rows["inactive_file"]) + int(rows["active_file"]))


def _wheel_tags(package: str) -> tuple[str, ...]:
    try:
        text = importlib.metadata.distribution(package).read_text("WHEEL") or ""
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("Tag:"))


def _glibc() -> str | None:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):
        return None
    return version if name == "glibc" and version else None
