"""Virtual environments of the agent: whether an archive is for a device like this, and building one of it.

What always holds: nothing is asked of a network; what is installed are the bytes of one archive, and nothing else; and
all of it runs at the lowest priority, so that prompts go first.

Left to others: where an environment lies, and what becomes of it (:mod:`edgeslm.agent.installation`).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeslm.children import bound_to_parent
from edgeslm.errors import AgentArchiveError, InstallationCancelledError, InstallationError
from edgeslm.procfs import memory_kib
from edgeslm.schema.agent_release import AgentRequirements, system_misfit
from edgeslm.schema.base import version_key
from edgeslm.wheelhouse import unpack

BUILD_MEMORY_MB = 96
"""What the installer of Python packages takes, beside the agent that goes on serving."""
RESERVE_BYTES = 64 * 2**20
"""Left free by a build: journal and models of the agent may live on the same disk."""
_EMPTY_VERSION_BYTES = 20 * 2**20
_COMPILED_SHARE = 1.4
_PIP = ("pip", "--isolated", "--no-input", "--disable-pip-version-check")
_INSTALL = ("--quiet", "--no-index", "--no-deps", "--no-cache-dir", "--no-warn-script-location")
_STEP_TIMEOUT_S = 3600.0
_POLL_S = 0.2
_TAIL_CHARS = 600

Cancelled = Callable[[], bool]
Told = Callable[[str, float], None]
"""Hears what is being done, and the share of the build that is done."""
Run = Callable[[Sequence[str], Cancelled], str]
"""Runs a program to its end and returns what it wrote.

Raises:
    InstallationError: it failed.
    InstallationCancelledError: it was ended.
"""


# --- whether it fits ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Host:
    """What an archive has to fit.

    Attributes:
        python: version of Python, such as ``3.11``.
        machine: as ``uname -m`` calls it.
        glibc: version of the C library, such as ``2.36``; ``None`` where it is another one.
    """

    python: str
    machine: str
    glibc: str | None

    @classmethod
    def here(cls) -> Host:
        """This device."""
        name, version = platform.libc_ver()
        return cls(
            python=f"{sys.version_info.major}.{sys.version_info.minor}",
            machine=platform.machine(),
            glibc=version if name == "glibc" else None,
        )


def misfit(requires: AgentRequirements, host: Host, agent: str) -> str | None:
    """Why an archive cannot run here; ``None`` if it can.

    Args:
        requires: of the archive.
        host: this device.
        agent: version of the agent that would install it.
    """
    reason = system_misfit(requires, python=host.python, machine=host.machine, glibc=host.glibc)
    if reason is not None:
        return reason
    if version_key(agent) < version_key(requires.agent):
        return f"only {requires.agent} and later can install it: go there first"
    return None


def needed_bytes(archive_bytes: int, installed_bytes: int) -> int:
    """Room that it takes to install an archive, most of it for good."""
    return int(archive_bytes + installed_bytes * _COMPILED_SHARE) + _EMPTY_VERSION_BYTES


def check_room(root: Path, archive_bytes: int, installed_bytes: int) -> None:
    """Make sure that an archive can be installed in the layout at `root`.

    Raises:
        InstallationError: there is too little room or memory, virtual environments cannot be made here, or the
            layout is not ours to change.
    """
    with disk_faults(root):
        free_bytes = shutil.disk_usage(root).free
    if not os.access(root, os.W_OK):
        raise InstallationError(
            f"{root} cannot be written by the user of the agent", path=str(root),
            hint=f"Give it to that user: chown -R USER {root}",
        )  # fmt: skip
    if importlib.util.find_spec("ensurepip") is None:
        raise InstallationError(
            "this Python cannot make virtual environments", path=sys.executable,
            hint="Install what it lacks, on Debian: apt install python3-venv",
        )  # fmt: skip
    wanted_bytes = needed_bytes(archive_bytes, installed_bytes) + RESERVE_BYTES
    if wanted_bytes > free_bytes:
        raise InstallationError(
            f"{root}: no room: {wanted_bytes / 2**20:.0f} MiB are needed, "
            f"{free_bytes / 2**20:.0f} MiB are free",
            path=str(root),
        )  # fmt: skip
    kib = memory_kib("MemAvailable")
    if kib is not None and kib // 1024 < BUILD_MEMORY_MB:
        raise InstallationError(
            f"no memory: {BUILD_MEMORY_MB} MB are needed to install, {kib // 1024} MB are available",
            path=str(root),
        )


# --- building -----------------------------------------------------------------------------------------------


def build_environment(
    archive: Path,
    version: str,
    sha256: str,
    directory: Path,
    wheels: Path,
    run: Run,
    tell: Told,
    cancelled: Cancelled,
) -> None:
    """Build a virtual environment of an archive, and see that it runs. What it leaves where it fails is rubbish.

    Args:
        archive: its file.
        version: of the agent in it.
        sha256: of the archive.
        directory: the environment, made here; it cannot be moved afterwards.
        wheels: directory for the wheels meanwhile; replaced.
        run: runs programs.
        tell: hears how far it is.
        cancelled: asked again and again.

    Raises:
        AgentArchiveError: it is no archive, or not this one.
        InstallationError: it cannot be installed, or does not run.
        InstallationCancelledError: it is not wanted any more.
    """

    def on_piece(_: int) -> None:
        if cancelled():
            raise InstallationCancelledError(f"{version} is not wanted any more", path=str(directory))

    tell("unpacking the wheels", 0.0)
    with disk_faults(wheels):
        shutil.rmtree(wheels, ignore_errors=True)
        wheels.mkdir()
        found = unpack(archive, wheels, on_piece)
    # Compared when it came, and now once more: these are the bytes that are installed.
    if (found.manifest.version, found.sha256) != (version, sha256):
        raise AgentArchiveError(
            f"{archive} is not edgeslm {version}",
            path=str(archive), expected=f"{version}, sha256 {sha256}",
            actual=f"{found.manifest.version}, sha256 {found.sha256}",
        )  # fmt: skip
    tell("making a virtual environment", 0.1)
    run([sys.executable, "-P", "-m", "venv", str(directory)], cancelled)
    python = [str(directory / "bin" / "python"), "-P", "-m"]
    tell(f"installing {len(found.manifest.wheels)} wheels", 0.25)
    files = [str(wheels / wheel.file) for wheel in found.manifest.wheels]
    run([*python, *_PIP, "install", *_INSTALL, *files], cancelled)
    tell("checking that nothing is missing", 0.85)
    run([*python, *_PIP, "check"], cancelled)
    said = run([*python, found.manifest.entry, "--version"], cancelled)
    if version not in said.split():
        raise InstallationError(
            f"what was installed does not say that it is {version}, but: {said.strip()[:200]}",
            path=str(directory),
        )


def run_gently(command: Sequence[str], cancelled: Cancelled) -> str:
    """Run a program at the lowest priority, so that prompts go first; returns what it wrote.

    Raises:
        InstallationError: it failed, or did not end.
        InstallationCancelledError: it was ended because nobody wants it any more.
    """
    lowered = [tool for tool in (("nice", "-n", "19"), ("ionice", "-c", "3")) if shutil.which(tool[0])]
    whole = [*(word for tool in lowered for word in tool), *command]
    program = shutil.which(whole[0]) or whole[0]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_"))}
    with tempfile.TemporaryFile() as output:
        try:
            child = subprocess.Popen(
                bound_to_parent([program, *whole[1:]]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        except OSError as error:
            raise InstallationError(f"{program} cannot be run: {error.strerror}", path=program) from error
        with child:
            ends_s = time.monotonic() + _STEP_TIMEOUT_S
            while child.poll() is None:
                if cancelled() or time.monotonic() > ends_s:
                    child.kill()
                    child.wait()
                    if cancelled():
                        raise InstallationCancelledError("not wanted any more", path=program)
                    raise InstallationError(f"{_shown(command)} did not end", path=program)
                time.sleep(_POLL_S)
        output.seek(max(0, output.seek(0, os.SEEK_END) - 4 * _TAIL_CHARS))
        said = output.read().decode("utf-8", "replace")
    if child.returncode:
        tail = " ".join(said.split())[-_TAIL_CHARS:]
        raise InstallationError(
            f"{_shown(command)} failed with {child.returncode}: {tail or 'it said nothing'}", path=program
        )
    return said


def sync_file_system(directory: Path) -> None:
    """Make all that was written last, thousands of files at once: syncfs(2).

    Raises:
        OSError: something could not be written.
    """
    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except AttributeError:  # not Linux
        os.sync()
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(directory))
    finally:
        os.close(descriptor)


def _shown(command: Sequence[str]) -> str:
    words = [word for word in command[1:] if word not in {"-P", "-m"} and not word.startswith("--")]
    return " ".join(words[:2])


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn what the system refuses about `path` into an :class:`InstallationError`."""
    try:
        yield
    except OSError as error:
        raise InstallationError(
            f"{error.filename or path}: {error.strerror or error}", path=str(path)
        ) from error
