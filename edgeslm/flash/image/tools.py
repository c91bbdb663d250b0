"""Programs of the system that work on file systems, run so that nothing of this machine shows in what they make.

What always holds: no shell, a time limit, the C locale, UTC, and one fixed time for everything they stamp. Their exit
status says little (debugfs ends with 0 whatever happened), so that whoever runs them looks at what they did.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeslm.errors import ToolFailedError, ToolMissingError

PACKAGES = {
    "debugfs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "fallocate": "util-linux",
    "fsck.vfat": "dosfstools",
    "mattrib": "mtools",
    "mcopy": "mtools",
    "mdel": "mtools",
    "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mmd": "mtools",
    "mrd": "mtools",
    "resize2fs": "e2fsprogs",
    "sfdisk": "fdisk",
}
"""The Debian package that each program is in."""
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where these programs are on systems that keep it out of the PATH of ordinary users."""
_OUTPUT_BYTES = 4096
_TIMEOUT_S = 1800.0


def find_tool(name: str) -> str:
    """The path of the program `name`.

    Raises:
        ToolMissingError: it is not installed.
    """
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}")
    if found is None:
        raise ToolMissingError(name, package=PACKAGES.get(name, name))
    return found


def run_tool(
    command: Sequence[str],
    *,
    time_s: int = 0,
    cwd: Path | None = None,
    good: Sequence[int] = (0,),
    says: bool = False,
    timeout_s: float = _TIMEOUT_S,
) -> str:
    """Run a program to its end; the end of what it said on standard error, the banner of its version left out.

    Args:
        command: name of the program and its arguments.
        time_s: Unix time of everything that it stamps.
        cwd: where it runs.
        good: exit statuses that are no failure.
        says: what it says on standard output counts as well.
        timeout_s: how long it may take.

    Raises:
        ToolMissingError: it is not installed.
        ToolFailedError: it ended with another status, or took too long.
    """
    said, output = _run(command, time_s=time_s, cwd=cwd, says=says, timeout_s=timeout_s)
    if said not in good:
        name = command[0]
        how = f"did not end within {timeout_s:.0f} s" if said is None else f"ended with {said}"
        message = f"{name} {how}: {output or 'it said nothing'}"
        raise ToolFailedError(message, tool=name, exit_status=said, output=output)
    return output


def _run(
    command: Sequence[str], *, time_s: int, cwd: Path | None, says: bool, timeout_s: float
) -> tuple[int | None, str]:
    name = command[0]
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": str(time_s),
        "E2FSPROGS_FAKE_TIME": str(max(time_s, 1)),
        "E2FSCK_TIME": str(max(time_s, 1)),
        "MTOOLSRC": os.devnull,
        "MTOOLS_SKIP_CHECK": "1",
        "DEBUGFS_PAGER": "cat",
        "PAGER": "cat",
    }
    with tempfile.TemporaryFile() as log:
        try:
            done = subprocess.run(
                [find_tool(name), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log if says else subprocess.DEVNULL,
                stderr=log,
                env=environment,
                cwd=cwd,
                timeout=timeout_s,
                check=False,
            )
            status: int | None = done.returncode
        except subprocess.TimeoutExpired:
            status = None
        except OSError as error:
            raise ToolFailedError(
                f"cannot start {name}: {error.strerror or error}", tool=name, exit_status=None, output=""
            ) from error
        log.seek(max(log.seek(0, os.SEEK_END) - _OUTPUT_BYTES, 0))
        text = log.read(_OUTPUT_BYTES).decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    return status, "; ".join(line for line in lines if line and not line.startswith(f"{name} 1."))
