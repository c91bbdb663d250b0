"""The updater's side of a trial: a candidate in a child process that can crash, hang or grow without harm to us.

What always holds: a :class:`TrialProcess` raises nothing but what it promises, whatever the child does or says, and
when :meth:`TrialProcess.close` returns the child is gone.

Left to others: what the child does to confine itself (:mod:`edgeslm.agent.update.trial`), and whether there is memory
for it (:mod:`edgeslm.agent.update.preflight`).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from pydantic import ValidationError

from edgeslm import codec
from edgeslm.agent.update.ports import Cancelled
from edgeslm.errors import TrialError, UpdateCause, UpdateInterruptedError
from edgeslm.schema.config import RuntimeChoice
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.trial import (
    MAX_LINE_BYTES,
    TRIAL_LINE,
    TrialAnswer,
    TrialBlock,
    TrialFailure,
    TrialLoaded,
)

_POLL_S = 0.25
_READ_BYTES = 65_536
_KILL_WAIT_S = 10.0


class Child(Protocol):
    """A started process; ``subprocess.Popen`` is one."""

    @property
    def pid(self) -> int:
        """Its number, which is that of its process group too."""

    @property
    def stdin(self) -> IO[bytes] | None:
        """To it."""

    @property
    def stdout(self) -> IO[bytes] | None:
        """From it."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end: an exit code, or below 0 the signal."""


Launch = Callable[[Sequence[str]], Child]
"""Starts the trial with these arguments."""


def launch_trial(arguments: Sequence[str]) -> Child:
    """Start ``python -m edgeslm.agent.update.trial``."""
    return subprocess.Popen(
        [sys.executable, "-m", "edgeslm.agent.update.trial", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )


@dataclass(frozen=True)
class TrialSettings:
    """How trials run on this device.

    Attributes:
        runtime: which runtime.
        threads: worker threads, as in serving.
        cache_dir: where packed weights are kept.
        load_s: longest that loading may take.
        answer_s: longest that one answer may take.
    """

    runtime: RuntimeChoice
    threads: int
    cache_dir: Path | None
    load_s: float
    answer_s: float


class TrialProcess:
    """A ``Subject`` in a process of its own."""

    def __init__(
        self,
        installed: InstalledPackage,
        settings: TrialSettings,
        allowance_mb: int,
        *,
        memory_low: Callable[[], bool],
        launch: Launch = launch_trial,
    ) -> None:
        """Start it; it is ready after :meth:`load`.

        Args:
            installed: the package, in a store.
            settings: how it runs.
            allowance_mb: private memory that it may take beyond what the libraries take.
            memory_low: asked while it works: whether the board has too little memory left to go on.
            launch: starts the process.

        Raises:
            TrialError: it cannot be started.
        """
        self._name = f"{installed.manifest.name}@{installed.manifest.version}"
        self._settings = settings
        self._memory_low = memory_low
        self._pending = b""
        self._is_over = False
        self._peak_mb: float | None = None
        arguments = ["--parent", str(os.getpid()), "--store", str(installed.directory.parent)]
        arguments += ["--sha256", installed.sha256, "--threads", str(settings.threads)]
        arguments += ["--runtime", settings.runtime, "--allowance-mb", str(allowance_mb)]
        if settings.cache_dir is not None:
            arguments += ["--cache-dir", str(settings.cache_dir)]
        try:
            self._child = launch(arguments)
        except OSError as error:
            raise TrialError(f"a trial cannot be started: {error}", cause="no_memory") from error
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)

    @property
    def peak_mb(self) -> float | None:
        """Highest resident memory of its process so far."""
        return self._peak_mb

    def load(self, cancelled: Cancelled) -> TrialLoaded:
        """Wait until the package is loaded and proved.

        Raises:
            TrialError: it does not load, crashed, hung, or took too much memory.
            UpdateInterruptedError: it was cancelled.
        """
        line = self._next_line(self._settings.load_s, "loading", cancelled)
        if not isinstance(line, TrialLoaded):
            raise self._fault("crashed", "it answered before it was asked")
        return line

    def answer(self, prompts: Sequence[str], cancelled: Cancelled) -> Sequence[TrialAnswer]:
        """Answer all prompts; see ``Subject``."""
        try:
            self._in.write(codec.encode(TrialBlock(prompts=tuple(prompts))) + b"\n")
        except OSError as error:
            raise self._ended("when it was asked") from error
        answers = []
        for number in range(len(prompts)):
            line = self._next_line(self._settings.answer_s, f"prompt {number + 1}", cancelled)
            if not isinstance(line, TrialAnswer):
                raise self._fault("crashed", "it loaded twice")
            self._peak_mb = line.peak_mb
            answers.append(line)
        return answers

    def close(self) -> None:
        """End it, and wait for that. Idempotent."""
        if not self._is_over:
            # Before its pipes close: it would end by that, and its group with what it started could not be found.
            self._kill_group()
            self._child.wait(_KILL_WAIT_S)
            self._is_over = True
        self._selector.close()
        for stream in (self._in, self._out):
            with contextlib.suppress(OSError):
                stream.close()

    def _kill_group(self) -> None:
        """What a candidate might have started must not outlive it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)

    # --- parts -------------------------------------------------------------------------------------------------

    @property
    def _in(self) -> IO[bytes]:
        assert self._child.stdin is not None  # noqa: S101 - launched with a pipe
        return self._child.stdin

    @property
    def _out(self) -> IO[bytes]:
        assert self._child.stdout is not None  # noqa: S101 - launched with a pipe
        return self._child.stdout

    def _next_line(self, timeout_s: float, doing: str, cancelled: Cancelled) -> TrialLoaded | TrialAnswer:
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            if cancelled():
                raise UpdateInterruptedError
            if self._memory_low():
                raise self._fault("no_memory", f"the board ran out of memory during {doing}")
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise self._fault("hung", f"{doing} took more than {timeout_s:g} s")
            if not self._selector.select(min(_POLL_S, left_s)):
                continue
            data = os.read(self._out.fileno(), _READ_BYTES)
            if not data:
                raise self._ended(f"during {doing}")
            self._pending += data
            if len(self._pending) > MAX_LINE_BYTES:
                raise self._fault("crashed", "it talks without end")
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            parsed = TRIAL_LINE.validate_json(line)
        except ValidationError as error:
            raise self._fault("crashed", f"it talks nonsense: {codec.describe(error)}") from error
        if isinstance(parsed, TrialFailure):
            raise self._fault(parsed.cause, parsed.detail)
        return parsed

    def _ended(self, when: str) -> TrialError:
        try:
            code = self._child.wait(_KILL_WAIT_S)
        except subprocess.TimeoutExpired:
            return self._fault("hung", f"it closed its output {when} and went on")
        self._is_over = True
        self._kill_group()
        if code == -signal.SIGKILL:
            # Nobody but the kernel sends it this, for want of memory.
            return self._fault("out_of_memory", f"it was killed {when}")
        if code < 0:
            return self._fault("crashed", f"it died of {signal.Signals(-code).name} {when}")
        return self._fault("crashed", f"it ended with exit code {code} {when}")

    def _fault(self, cause: UpdateCause, detail: str) -> TrialError:
        return TrialError(f"{self._name}: {detail}", cause=cause)
