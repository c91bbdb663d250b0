"""Whether a graph will do on this machine, decided before it is opened in the process that serves. Pure.

Two times: by what is known beforehand (processor, C library, memory), and by how a process ended that opened the graph
in our stead (:mod:`edgeslm.runtime.trial`), since a native library that fails takes its process with it.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from edgeslm.errors import (
    EdgeslmError,
    GraphCrashError,
    GraphHangError,
    MemoryShortError,
    ModelLoadError,
    OperationMissingError,
    ProcessorError,
    ProofError,
    RuntimeMissingError,
    SystemLibraryError,
)
from edgeslm.schema.base import FileModel

_BASE_S = 60.0
_BYTES_PER_S = 2e6
"""A slow card and one slow core: reading, packing and computing the golden vector."""
_MANYLINUX = re.compile(r"manylinux_(\d+)_(\d+)")
_MISSING = (
    re.compile(r"unresolved custom op: ([^\s.]+)"),
    re.compile(r"Didn't find op for builtin opcode '([^']+)'"),
    re.compile(r"custom op '([^']+)'"),
)
"""How TFLite names an operation that it does not have (``interpreter_builder.cc``, ``op_resolver.cc``)."""
_NO_MEMORY = re.compile(
    r"bad_alloc|MemoryError|cannot allocate|memory allocation|failed to (?:allocate|mmap|map segment)|out of memory"
    r"|can't start new thread|mmap of [^\n]* failed with error '12'"
    r"|returned NULL without setting an exc|with an exception set"
    r"|error return without exception set",
    re.IGNORECASE,
)
"""How libraries, the dynamic linker and CPython (``Objects/call.c``, where C code found none and did not say so) tell
want of memory."""


class TrialSaid(FileModel):
    """The last line of a trial.

    Attributes:
        fault: ``None`` if the graph computes its golden vector; else the error's class.
        interpreter: what the interpreter says against the graph, where there is a fault.
        grown_bytes: by how much the process grew.
        load_s: seconds that it took.
    """

    fault: str | None = Field(default=None, max_length=64)
    message: str = Field(default="", max_length=2048)
    hint: str | None = Field(default=None, max_length=1024)
    interpreter: str = Field(default="", max_length=2048)
    grown_bytes: int = Field(default=0, ge=0)
    load_s: float = Field(default=0.0, ge=0)


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended.

    Attributes:
        exit_code: below 0 the signal; ``None`` where it had to be ended after `waited_s`.
        said: its last line, where it came to one.
        native: the end of what native code said.
    """

    exit_code: int | None
    waited_s: float
    said: TrialSaid | None = None
    native: str = ""


@dataclass(frozen=True)
class Subject:
    """What is tried.

    Attributes:
        name: of the model, with version.
        path: the graph.
        runtime: which runtime, with version.
        custom_operations: of the graph.
    """

    name: str
    path: Path
    runtime: str
    custom_operations: tuple[str, ...] = ()


def patience_s(size_bytes: int) -> float:
    """Seconds after which loading a graph of that size counts as hung."""
    return _BASE_S + size_bytes / _BYTES_PER_S


def check_processor(subject: Subject, wanted: Collection[str], flags: frozenset[str] | None) -> None:
    """Refuse a package for other processors; where the kernel does not say what this one can do, nothing is refused.

    Raises:
        ProcessorError: which features are missing.
    """
    missing = tuple(sorted(set(wanted) - flags)) if flags else ()
    if missing:
        raise ProcessorError(
            f"{subject.name} needs a processor with {', '.join(missing)}",
            path=str(subject.path),
            missing=missing,
            hint="Take another model, or a board whose processor has that",
        )


def check_system_library(subject: Subject, wheel_tags: Sequence[str], glibc: str | None) -> None:
    """Refuse a runtime whose wheel was built for a newer C library, which fails with riddles when it is imported.

    Args:
        wheel_tags: of the runtime's distribution, such as ``cp311-cp311-manylinux_2_27_x86_64``.
        glibc: version of this system's, such as ``2.41``; ``None`` where it has none, or nobody knows.

    Raises:
        SystemLibraryError: it is older.
    """
    wanted = [(int(major), int(minor)) for tag in wheel_tags for major, minor in _MANYLINUX.findall(tag)]
    if not wanted or glibc is None:
        return
    numbers = [int(part) for part in re.findall(r"\d+", glibc)[:2]]
    if len(numbers) == 2 and tuple(numbers) < min(wanted):
        expected = ".".join(map(str, min(wanted)))
        raise SystemLibraryError(
            f"{subject.runtime} needs glibc {expected}, this system has {glibc}",
            path=str(subject.path),
            expected=expected,
            actual=glibc,
            hint="Use a newer release of the operating system, such as Debian 12 or later",
        )


def check_memory(subject: Subject, needed_bytes: int, free_bytes: int | None) -> None:
    """Refuse a model that will not fit; where free memory is not known, nothing is refused.

    Raises:
        MemoryShortError: it will not.
    """
    if free_bytes is not None and needed_bytes > free_bytes:
        raise MemoryShortError(
            f"{subject.name} will need {needed_bytes / 2**20:.0f} MiB of memory, {free_bytes / 2**20:.0f} MiB are free",
            path=str(subject.path),
            needed_bytes=needed_bytes,
            free_bytes=free_bytes,
            hint="Stop what else runs on the board, or take a smaller model",
        )


def judge(subject: Subject, end: TrialEnd, free_bytes: int | None = None) -> TrialSaid:
    """What the end of a trial says about a graph.

    Args:
        free_bytes: memory that the trial could have.

    Returns:
        What it said, if the graph can be served.

    Raises:
        PreflightError: of its own class for an illegal instruction, want of memory, a missing operation, another
            death, and no end at all.
        ProofError: it computes other values than its package states.
        RuntimeMissingError: the runtime cannot be imported.
        ModelLoadError: the runtime refuses it.
    """
    if end.exit_code is None:
        raise GraphHangError(
            f"{subject.path.name} did not load on {subject.runtime} within {end.waited_s:.0f} s; that was ended",
            path=str(subject.path),
            waited_s=end.waited_s,
            hint="Try it with one thread, or with the other runtime; the card may be at its end, too",
        )
    if end.said is not None and end.exit_code == 0:
        if end.said.fault is None:
            return end.said
        raise _refusal(subject, end.said, end.native, free_bytes)
    raise _death(subject, end, free_bytes)


def _death(subject: Subject, end: TrialEnd, free_bytes: int | None) -> ModelLoadError:
    path = str(subject.path)
    number = -(end.exit_code or 0)
    if number == signal.SIGILL:
        return ProcessorError(
            f"illegal instruction: {subject.runtime} was built for a newer processor than this",
            path=path,
            hint="Use a 64-bit Arm or x86-64 board of the last ten years, or try the other runtime",
        )
    if number == signal.SIGKILL or _NO_MEMORY.search(end.native):
        # Nobody but the kernel sends a trial SIGKILL, for want of memory.
        return _no_memory(subject, free_bytes)
    name = signal.Signals(number).name if number in set(signal.Signals) else None
    how = f"died of {name}" if name else f"ended with exit code {end.exit_code}"
    last = f": {end.native.strip().splitlines()[-1][:200]}" if end.native.strip() else ""
    return GraphCrashError(
        f"the process that tried {subject.path.name} on {subject.runtime} {how}{last}",
        path=path,
        signal=name,
        hint="Compare its files: edgeslm model verify --no-run; if they are right, try the other runtime",
    )


def _no_memory(subject: Subject, free_bytes: int | None) -> MemoryShortError:
    free = f"; {free_bytes / 2**20:.0f} MiB were free" if free_bytes is not None else ""
    return MemoryShortError(
        f"{subject.name} ran out of memory while it was loaded{free}",
        path=str(subject.path),
        needed_bytes=None,
        free_bytes=free_bytes,
        hint="Stop what else runs on the board, or take a smaller model",
    )


def _refusal(subject: Subject, said: TrialSaid, native: str, free_bytes: int | None) -> EdgeslmError:
    path = str(subject.path)
    if said.fault == MemoryError.__name__:
        return _no_memory(subject, free_bytes)
    if said.fault == ProofError.__name__:
        return ProofError(said.message, path=path, hint=said.hint)
    missing = missing_operations(subject, f"{said.message}\n{said.interpreter}\n{native}")
    if missing:
        return OperationMissingError(
            f"{subject.path.name} needs {', '.join(missing)}, which {subject.runtime} does not have",
            path=path,
            operations=missing,
            hint="Convert the model without it, or update the runtime",
        )
    if _NO_MEMORY.search(said.message) or _NO_MEMORY.search(native):
        return _no_memory(subject, free_bytes)
    if said.fault == RuntimeMissingError.__name__:
        return RuntimeMissingError(said.message, hint=said.hint)
    return ModelLoadError(said.message, path=path, hint=said.hint)


def missing_operations(subject: Subject, words: str) -> tuple[str, ...]:
    """Operations that the runtime says it does not have, in `words` of a refusal."""
    found = {name for pattern in _MISSING for name in pattern.findall(words)}
    known = set(subject.custom_operations)
    # The sentence ends after the name, and a name may have a dot in it.
    return tuple(sorted(next((op for op in known if op.startswith(name)), name) for name in found))
