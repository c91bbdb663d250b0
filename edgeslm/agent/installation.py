"""The agent's own installation on a device: versions side by side, and the links that choose between them.

The layout and its links are those of :mod:`edgeslm.agent.launcher`. A version is a virtual environment, built from the
wheels of one archive without any network, in its final place::

    <root>/versions/<version>-<sha8>/            the virtual environment
    <root>/versions/<version>-<sha8>/agent.json  written last: all of it is there

What always holds:

* A version without ``agent.json`` is what a cut-off left behind; it is never run, and built anew.
* What runs, what ran before and what is on trial are never removed.
* Whatever is cut off, doing it again leads to the end that it would have had.

Left to others: what may be installed, and when (:mod:`edgeslm.agent.operations.update_agent`).
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from edgeslm import codec
from edgeslm.agent import launcher
from edgeslm.agent.environments import (
    Cancelled,
    Run,
    Told,
    build_environment,
    check_room,
    disk_faults,
    run_gently,
    sync_file_system,
)
from edgeslm.agent.launcher import CURRENT, LAUNCHER, PREVIOUS, VERSIONS, Trial
from edgeslm.errors import AgentArchiveError, CodecError, InstallationError
from edgeslm.files import PARTIAL, locked, read_bounded, replace_file, sync_directory
from edgeslm.schema.agent_release import AGENT_MARKER, InstalledAgent, version_name

_WHEELS, _LOCK = ".wheels", ".lock"
_LEFTOVERS = (_WHEELS, PARTIAL, *(f".{name}." for name in (CURRENT, PREVIOUS, launcher.TRIAL)))
_MAX_MARKER_BYTES = 4096


class Installation:
    """One layout.

    Attributes:
        root: its directory.
        running: the version that this process runs from; ``None`` for a process of elsewhere, such as a tool.
    """

    def __init__(self, root: Path, *, running: str | None = None, run: Run | None = None) -> None:
        """Take a layout; nothing is looked at yet.

        Args:
            run: runs programs; the default gives them the lowest priority.
        """
        self.root = root
        self.running = running
        self._run = run or run_gently

    # --- looking ------------------------------------------------------------------------------------------------

    @property
    def current(self) -> str | None:
        """The version that the next start runs."""
        return launcher.read_link(self.root, CURRENT)

    @property
    def previous(self) -> str | None:
        """The version to go back to."""
        return launcher.read_link(self.root, PREVIOUS)

    @property
    def trial(self) -> Trial | None:
        """The last change of version; ``None`` where there was none."""
        return launcher.read_trial(self.root)

    def installed(self, name: str) -> InstalledAgent | None:
        """What is installed under the name of a version; ``None`` where it is not there, or not as a whole."""
        try:
            data = read_bounded(self._directory(name) / AGENT_MARKER, _MAX_MARKER_BYTES)
            found = codec.decode(InstalledAgent, data, max_bytes=_MAX_MARKER_BYTES)
        except (OSError, CodecError):
            return None
        whole = (
            version_name(found.version, found.sha256) == name and launcher.python_of(self.root, name).exists()
        )
        return found if whole else None

    def check_room(self, archive_bytes: int, installed_bytes: int) -> None:
        """Make sure that an archive can be installed; see :func:`edgeslm.agent.environments.check_room`.

        Raises:
            InstallationError: it cannot.
        """
        check_room(self.root, archive_bytes, installed_bytes)

    # --- building -----------------------------------------------------------------------------------------------

    def build(
        self,
        archive: Path,
        version: str,
        sha256: str,
        tell: Told = lambda _text, _share: None,
        cancelled: Cancelled = lambda: False,
    ) -> str:
        """Install an archive beside what there is, and return the name of its directory. Nothing is switched.

        Args:
            archive: its file.
            version: of the agent in it.
            sha256: of the archive.

        Raises:
            AgentArchiveError: it is no archive, or one of another version.
            InstallationError: it cannot be installed, or does not run; nothing is left of it.
            InstallationCancelledError: it is not wanted any more; nothing is left of it.
        """
        name = version_name(version, sha256)
        with self._locked():
            if self.installed(name) is not None:
                return name
            try:
                self._remove(name)
                wheels, directory = self.root / _WHEELS, self._directory(name)
                with disk_faults(self.root):
                    directory.parent.mkdir(exist_ok=True)
                build_environment(archive, version, sha256, directory, wheels, self._run, tell, cancelled)
                tell("making sure that it lasts", 0.95)
                with disk_faults(self.root):
                    sync_file_system(directory)
                    replace_file(
                        directory / AGENT_MARKER,
                        codec.encode(InstalledAgent(version=version, sha256=sha256)),
                    )
                    sync_directory(self.root / VERSIONS)
            except (InstallationError, AgentArchiveError):
                self._remove(name)
                raise
            finally:
                shutil.rmtree(self.root / _WHEELS, ignore_errors=True)
        return name

    # --- switching ----------------------------------------------------------------------------------------------

    def begin_trial(
        self, operation: str, name: str, *, healthy_within_s: float = 600.0, max_starts: int = 3
    ) -> Trial:
        """Let the next start of the launcher try a version; doing it again for the same one changes nothing.

        Args:
            operation: id of what asked for it.
            name: of an installed version.
            healthy_within_s: from each start on.
            max_starts: without being healthy.

        Raises:
            InstallationError: another version is on trial, there is nothing to go back to, or the disk refuses.
        """
        with self._locked(), disk_faults(self.root):
            trial, current = self.trial, self.current
            if (
                trial is not None
                and (trial.id, trial.version) == (operation, name)
                and trial.state == "trial"
            ):
                previous = trial.previous
            else:
                if self.on_trial:
                    raise InstallationError("another version is on trial", path=str(self.root))
                previous = current or ""
                if self.installed(previous) is None or previous == name:
                    raise InstallationError(
                        f"{self.root / CURRENT} leads to nothing that it could go back to",
                        path=str(self.root), hint="Repair it with: edgeslm agent adopt",
                    )  # fmt: skip
                trial = Trial(operation, name, previous, 0, max_starts, healthy_within_s)
                launcher.write_trial(self.root, trial)
            launcher.replace_link(self.root, PREVIOUS, previous)
            launcher.replace_link(self.root, CURRENT, name)
            return trial

    @property
    def on_trial(self) -> bool:
        """Whether a version is being tried, or is about to be left."""
        trial = self.trial
        return trial is not None and trial.version == self.current and trial.state in {"trial", "failed"}

    def settle(self) -> None:
        """Say that the version on trial is healthy; from here on it is the one that runs.

        Raises:
            InstallationError: the disk refuses.
        """
        self._judge("healthy", "")

    def give_up(self, reason: str) -> None:
        """Say that the version on trial does not hold; the next start goes back.

        Raises:
            InstallationError: the disk refuses.
        """
        self._judge("failed", reason)

    def call_off(self, reason: str) -> None:
        """Go back at once, without a start of the version on trial.

        Raises:
            InstallationError: the disk refuses.
        """
        with self._locked(), disk_faults(self.root):
            trial = self.trial
            if trial is not None and trial.state != "healthy":
                launcher.go_back(self.root, trial, reason)

    def _judge(self, state: launcher.State, reason: str) -> None:
        with self._locked(), disk_faults(self.root):
            trial = self.trial
            if trial is not None and trial.state == "trial":
                launcher.write_trial(self.root, replace(trial, state=state, reason=reason[:500]))

    def adopt(self, name: str) -> None:
        """Let the next start run an installed version without a trial: somebody stands at the board.

        Raises:
            InstallationError: it is not installed, or the disk refuses.
        """
        with self._locked(), disk_faults(self.root):
            if self.installed(name) is None:
                raise InstallationError(f"{name} is not installed in {self.root}", path=str(self.root))
            replace_file(self.root / LAUNCHER, Path(launcher.__file__).read_bytes())
            current = self.current
            if current not in {None, name} and self.installed(current or "") is not None:
                launcher.replace_link(self.root, PREVIOUS, current or "")
            (self.root / launcher.TRIAL).unlink(missing_ok=True)
            launcher.replace_link(self.root, CURRENT, name)

    # --- tidying ------------------------------------------------------------------------------------------------

    def collect(self, keep: Collection[str] = ()) -> tuple[str, ...]:
        """Remove versions that nobody goes to any more, and what cut-offs left behind; returns which versions.

        Args:
            keep: more that stay, beside what runs, what ran before and what is on trial.

        Raises:
            InstallationError: the disk refuses.
        """
        gone = []
        with self._locked(), disk_faults(self.root):
            for path in self.root.iterdir():
                if path.name.startswith(_LEFTOVERS):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            trial = self.trial
            tried = {trial.version, trial.previous} if trial is not None and self.on_trial else set()
            kept = {self.current, self.previous, self.running, *tried, *keep}
            for path in sorted((self.root / VERSIONS).iterdir()):
                if path.name not in kept:
                    self._remove(path.name)
                    gone.append(path.name)
        return tuple(gone)

    def _remove(self, name: str) -> None:
        directory = self._directory(name)
        with disk_faults(directory):
            if not directory.is_dir():
                return
            # First, and synced: what is only half there must not look whole.
            (directory / AGENT_MARKER).unlink(missing_ok=True)
            sync_directory(directory)
            shutil.rmtree(directory)

    def _directory(self, name: str) -> Path:
        return self.root / VERSIONS / name

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with ExitStack() as stack:
            with disk_faults(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.root / _LOCK))
            yield


def find_installation(prefix: Path, environment: Mapping[str, str]) -> Installation:
    """The layout that this process runs from.

    Args:
        prefix: of the running Python.
        environment: of this process.

    Raises:
        InstallationError: it does not run from one, or was not started by its launcher; and what to do.
    """
    root = prefix.parent.parent
    started_by = environment.get(launcher.ENV_LAUNCHER)
    launched = environment.get(launcher.ENV_ROOT)
    if started_by and launched and prefix.parent.name == VERSIONS and _is_same(Path(launched), root):
        return Installation(root, running=prefix.name)  # the launcher lies elsewhere, where it is root's
    if prefix.parent.name != VERSIONS or not (root / LAUNCHER).is_file():
        raise InstallationError(
            f"this agent runs from {prefix}, where no other version can be put beside it",
            path=str(prefix),
            hint="Set it up with: edgeslm agent adopt ARCHIVE --root /opt/edgeslm; see docs/agent-update.md",
        )
    if started_by != str(root / LAUNCHER):
        raise InstallationError(
            f"this agent was not started by {root / LAUNCHER}, which would go back from a version that fails",
            path=str(root),
            hint=f"Start it with: python3 {root / LAUNCHER} agent run",
        )
    return Installation(root, running=prefix.name)


def _is_same(one: Path, other: Path) -> bool:
    """Whether both lead to one place; systemd puts a link before the state directory of a dynamic user."""
    return one.resolve() == other.resolve()


def restart_command(environment: Mapping[str, str], arguments: Sequence[str]) -> list[str] | None:
    """What has to take the place of this process so that the version that is current by now runs.

    Args:
        environment: of this process.
        arguments: of the command line, without the program.

    Returns:
        ``None`` where no launcher started it: then it is this same program again.
    """
    file, python = environment.get(launcher.ENV_LAUNCHER), environment.get(launcher.ENV_PYTHON)
    if not file or not python or not Path(file).is_file():
        return None
    return [python, file, *arguments]
