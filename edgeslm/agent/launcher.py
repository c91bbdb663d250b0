"""Starts the version of the agent that is to run, and goes back to the one before where a new one does not hold.

This file is copied to ``<root>/launch.py`` and run by a Python outside of all versions, so it imports nothing but the
standard library, and no update ever replaces it: what leads back must not change with what it leads back from::

    <root>/launch.py                     python3 <root>/launch.py agent run --config ...
    <root>/versions/<version>-<sha8>/    a virtual environment each
    <root>/current, <root>/previous      links to two of them
    <root>/trial.json                    the last change: which version, and how it goes

``EDGESLM_ROOT`` names a layout elsewhere than beside this file: where the agent runs as a user of its own, this file
stays root's, out of its reach, while the versions are its to change.

A version that is settled is run in place of this process. One on trial is run as a child, until it says itself that it
is healthy (``trial.json``). Where it does not within its time, or not after so many starts, ``current`` leads to the
version before again, even if the new one cannot be imported at all.

What always holds: a start is counted, synced, before it is made; the verdict is written, synced, before the link that
follows from it; a link is replaced in one step. So it does not matter where a power cut comes.

Left to others: installing a version, and saying that it is healthy (:mod:`edgeslm.agent.installation`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Literal

LAUNCHER = "launch.py"
TRIAL = "trial.json"
VERSIONS = "versions"
CURRENT, PREVIOUS = "current", "previous"

ENV_LAUNCHER = "EDGESLM_LAUNCHER"
"""Tells the agent by which launcher it was started."""
ENV_PYTHON = "EDGESLM_LAUNCHER_PYTHON"
"""Tells the agent which Python runs the launcher."""
ENV_ROOT = "EDGESLM_ROOT"
"""Names the layout, where the launcher lies elsewhere; tells the agent which one it is."""
ENV_SUPERVISOR = "EDGESLM_LAUNCHER_PID"
"""Tells a launcher that a version on trial became that another one waits for it."""
RESTART = 88
"""Exit status of a version on trial that wants to begin anew."""

State = Literal["trial", "healthy", "failed", "rolled_back"]
_STATES = ("trial", "healthy", "failed", "rolled_back")

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z.-]{0,120}")
_MAX_TRIAL_BYTES = 65_536
_POLL_S = 0.25
_PAUSE_S = 1.0
_STOP_S = 20.0
_PR_SET_PDEATHSIG = 1
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Trial:
    """The last change of version. Launchers outlive versions: a field may be added, and none ever left out.

    Attributes:
        id: of the operation that asked for it.
        version: directory of the version on trial.
        previous: directory of the version to go back to.
        starts: of the version, so far.
        max_starts: after so many without being healthy it goes back.
        healthy_within_s: after a start that took longer it goes back.
        state: how it goes; ``failed`` is what still has to go back.
        reason: why it goes back, or how the last start ended.
    """

    id: str
    version: str
    previous: str
    starts: int = 0
    max_starts: int = 3
    healthy_within_s: float = 600.0
    state: State = "trial"
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """What to do next.

    Attributes:
        kind: run what ``current`` leads to as ``settled`` or ``on trial``; or go ``back`` first.
        reason: to go back.
    """

    kind: Literal["settled", "on trial", "back"]
    reason: str = ""


def plan(trial: Trial | None, current: str | None) -> Plan:
    """What to do, by the last change and what ``current`` leads to."""
    if trial is None or trial.version != current or trial.state == "healthy":
        return Plan("settled")
    if trial.state != "trial":
        return Plan("back", trial.reason)
    if trial.starts >= trial.max_starts:
        ended = f"; the last one: {trial.reason}" if trial.reason else ""
        return Plan("back", f"it was not healthy after {trial.starts} starts{ended}")
    return Plan("on trial")


# --- files --------------------------------------------------------------------------------------------------


def read_trial(root: Path) -> Trial | None:
    """The last change; ``None`` where there was none, or the file is damaged."""
    try:
        with (root / TRIAL).open("rb") as stream:
            found = json.loads(stream.read(_MAX_TRIAL_BYTES))
        trial = Trial(**{item.name: found[item.name] for item in fields(Trial)})
        texts = all(isinstance(text, str) for text in (trial.id, trial.version, trial.previous, trial.reason))
        counts = isinstance(trial.starts, int) and isinstance(trial.max_starts, int)
        limit_s = float(trial.healthy_within_s)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    named = texts and bool(_NAME.fullmatch(trial.version)) and bool(_NAME.fullmatch(trial.previous))
    return trial if named and counts and limit_s > 0 and trial.state in _STATES else None


def write_trial(root: Path, trial: Trial) -> None:
    """Write down a change; after a power cut it is there as a whole, or as it was before.

    Raises:
        OSError: the disk refuses.
    """
    temporary = root / f".{TRIAL}.{secrets.token_hex(4)}"
    try:
        with temporary.open("wb") as stream:
            stream.write(json.dumps(asdict(trial)).encode())
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, root / TRIAL)  # noqa: PTH105 - named so that a test can cut it off
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(root)


def read_link(root: Path, name: str) -> str | None:
    """The version that a link leads to; ``None`` where there is no such link of ours."""
    try:
        parent, _, version = os.readlink(root / name).rpartition("/")  # noqa: PTH115 - relative, as it is
    except OSError:
        return None
    return version if parent == VERSIONS and _NAME.fullmatch(version) else None


def replace_link(root: Path, name: str, version: str) -> None:
    """Let a link lead to another version, in one step.

    Raises:
        OSError: the disk refuses.
    """
    temporary = root / f".{name}.{secrets.token_hex(4)}"
    try:
        os.symlink(f"{VERSIONS}/{version}", temporary)  # noqa: PTH211 - as above
        os.replace(temporary, root / name)  # noqa: PTH105 - as above
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(root)


def go_back(root: Path, trial: Trial, reason: str) -> None:
    """Let ``current`` lead to the version before the trial, and say why.

    Raises:
        OSError: the disk refuses.
    """
    if trial.state != "rolled_back":
        write_trial(root, replace(trial, state="rolled_back", reason=reason[:500]))
    replace_link(root, CURRENT, trial.previous)


def python_of(root: Path, version: str) -> Path:
    """The interpreter of a version. Never by way of a link: what runs must not change under its feet."""
    return root / VERSIONS / version / "bin" / "python"


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- running ------------------------------------------------------------------------------------------------


class Launcher:
    """Runs the agent of one layout, with the arguments that it was given."""

    def __init__(self, file: Path, root: Path, arguments: list[str]) -> None:
        self._file = file
        self._root = root
        self._arguments = arguments
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def run(self) -> int:
        """Run the version that is to run; returns only where one on trial ends for good, its exit status."""
        while True:
            trial, current = read_trial(self._root), read_link(self._root, CURRENT)
            what = plan(trial, current)
            if what.kind == "back" and trial is not None:
                if not self._is_there(trial.previous):
                    _tell(f"{trial.previous} is gone, so {trial.version} stays: {what.reason}")
                    return self._become(current)
                _tell(f"back from {trial.version} to {trial.previous}: {what.reason}")
                try:
                    go_back(self._root, trial, what.reason)
                except OSError as error:
                    return self._become_without_writing(trial, error)
            elif what.kind == "on trial" and trial is not None:
                try:
                    status = self._try(trial)
                except OSError as error:
                    return self._become_without_writing(trial, error)
                if status is not None:
                    return status
            else:
                return self._become(current)

    def _become(self, current: str | None) -> int:
        """Let the agent take the place of this process; the version before where the current one is not there."""
        for version in (current, read_link(self._root, PREVIOUS)):
            if version is None:
                continue
            command = self._command(version)
            try:
                os.execve(command[0], command, self._environment())  # noqa: S606 - no shell is wanted
            except OSError as error:
                _tell(f"{version} cannot be run: {error.strerror}")
        _tell(f"no version can be run: install one with edgeslm agent adopt --root {self._root}")
        return 1

    def _become_without_writing(self, trial: Trial, error: OSError) -> int:
        """Where nothing can be written down, the version that is known to hold runs."""
        _tell(f"{error.filename}: {error.strerror}: {trial.previous} runs")
        return self._become(trial.previous)

    def _try(self, trial: Trial) -> int | None:
        """One start of a version on trial; its exit status where that is the end, ``None`` to look again."""
        trial = replace(trial, starts=trial.starts + 1)
        write_trial(self._root, trial)
        _tell(f"{trial.version} is on trial, start {trial.starts} of {trial.max_starts}")
        before = {number: signal.signal(number, self._forward) for number in _FORWARDED}
        try:
            return self._supervise(trial)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._child = None

    def _supervise(self, trial: Trial) -> int | None:
        environment = {**self._environment(), ENV_SUPERVISOR: str(os.getpid())}
        try:
            self._child = subprocess.Popen(
                self._command(trial.version),
                env=environment,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - there is but this thread
            )
        except (OSError, subprocess.SubprocessError) as error:
            self._note(trial, state="failed", reason=f"it cannot be started: {error}")
            return None
        if self._stopping:  # the signal came before there was a child
            self._child.terminate()
        is_settled, in_time = self._wait(self._child, trial.healthy_within_s)
        if not in_time:
            is_settled = self._is_healthy()
            if not is_settled:
                self._note(
                    trial, state="failed", reason=f"it was not healthy within {trial.healthy_within_s:g} s"
                )
                return None
        code = self._child.returncode
        if code == RESTART and not self._stopping:
            return None
        if self._stopping or is_settled:
            return code if code >= 0 else 128 - code
        ended = f"signal {-code}" if code < 0 else f"exit status {code}"
        _tell(f"{trial.version} ended with {ended}")
        self._note(trial, state="trial", reason=ended)
        time.sleep(_PAUSE_S)
        return None

    def _wait(self, child: subprocess.Popen[bytes], limit_s: float) -> tuple[bool, bool]:
        """Wait until it ends; whether it was healthy, and whether that or its end came in time."""
        deadline_s = time.monotonic() + limit_s
        while time.monotonic() < deadline_s or self._stopping:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_POLL_S)
                return self._is_healthy(), True
            if self._is_healthy():
                child.wait()
                return True, True
        child.terminate()
        try:
            child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        return False, False

    def _note(self, trial: Trial, *, state: State, reason: str) -> None:
        """Write down how a start ended, unless the version itself has said more by now."""
        now = read_trial(self._root)
        if now is not None and (now.version, now.state) == (trial.version, "trial"):
            write_trial(self._root, replace(now, state=state, reason=reason[:500]))

    def _is_healthy(self) -> bool:
        trial = read_trial(self._root)
        return trial is None or trial.state == "healthy"

    def _is_there(self, version: str) -> bool:
        return os.access(python_of(self._root, version), os.X_OK)

    def _command(self, version: str) -> list[str]:
        # Without -P a directory called edgeslm where the service happens to start would come first.
        return [str(python_of(self._root, version)), "-P", "-m", "edgeslm", *self._arguments]

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key != ENV_SUPERVISOR}
        found = {ENV_LAUNCHER: str(self._file), ENV_ROOT: str(self._root), ENV_PYTHON: sys.executable}
        return {**kept, **found}

    def _forward(self, number: int, _: FrameType | None) -> None:
        if number in {signal.SIGTERM, signal.SIGINT}:
            self._stopping = True
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _tell(text: str) -> None:
    print(f"edgeslm launcher: {text}", file=sys.stderr, flush=True)  # noqa: T201 - there is no logging here


def main(file: Path, arguments: list[str]) -> int:
    """Run the layout that the launcher at `file` is for; returns its exit status, if at all."""
    if os.environ.get(ENV_SUPERVISOR) == str(os.getppid()):
        return RESTART  # the launcher that waits for us begins anew
    file, elsewhere = file.resolve(), os.environ.get(ENV_ROOT)
    return Launcher(file, Path(elsewhere).absolute() if elsewhere else file.parent, arguments).run()


if __name__ == "__main__":
    sys.exit(main(Path(__file__), sys.argv[1:]))
