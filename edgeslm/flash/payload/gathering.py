"""Wheels of edgeslm and all that it needs, brought together by pip, for this machine or for boards of another kind.

The only part of making boards ready that asks a network, and only where no archive is given.

A source directory is built in a copy, so that nothing is left in it, and nothing that an earlier build left there gets
into the wheel.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import edgeslm
from edgeslm.errors import AgentArchiveError

_OLDEST_GLIBC = 17
_KEPT_LINES = 20
_UNWANTED = {"ai_edge_litert": ("ai_edge_litert/libLiteRtWebGpuAccelerator.so",)}
"""Files of wheels that boards are better off without: 17 MB that the runtime loads whether it computes with them or
not, and that end the process on Raspberry Pi 3, 4 and Zero 2 W (see :mod:`edgeslm.runtime.executor`)."""
_SOURCES = ("setup.cfg", "pyproject.toml", "edgeslm/__init__.py")
_LEFT_OUT = shutil.ignore_patterns(
    ".*", "__pycache__", "build", "dist", "*.egg-info", "tests", "benchmarks", "docs", "node_modules"
)

Told = Callable[[str], None]
"""Hears what pip says, line by line."""


@dataclass(frozen=True)
class Target:
    """Boards that wheels are for.

    Attributes:
        python: version of Python there, such as ``3.13``.
        machine: as ``uname -m`` calls it there.
        glibc: version of the C library there, such as ``2.36``.
    """

    python: str
    machine: str
    glibc: str


def own_source() -> str:
    """Where edgeslm itself is taken from: the checkout that this is run from, else the released version."""
    above = Path(edgeslm.__file__).parents[1]
    if all((above / name).is_file() for name in _SOURCES):
        return str(above)
    return f"{edgeslm.__name__}=={edgeslm.__version__}"


def gather(source: str, directory: Path, target: Target | None, tell: Told = lambda _: None) -> list[Path]:
    """Let pip bring all wheels together.

    Args:
        source: a wheel of edgeslm, a directory of its source, or what pip understands.
        directory: an empty one, for the wheels.
        target: boards that they are for; ``None`` for this machine.

    Raises:
        AgentArchiveError: it cannot.
        OSError: `directory` cannot be written.
    """
    if Path(source).is_dir():
        copy = directory / "source"
        shutil.copytree(source, copy, ignore=_LEFT_OUT)
        own = directory / "own"
        _pip(["wheel", "--no-deps", "--wheel-dir", str(own), str(copy)], source, tell)
        shutil.rmtree(copy)
        source = str(next(own.glob("*.whl")))
    gathered = directory / "all"
    if target is None:
        _pip(["wheel", "--wheel-dir", str(gathered), source], source, tell)
    else:
        _pip(["download", "--dest", str(gathered), *_flags(target), source], source, tell)
    found = sorted(gathered.glob("*.whl"))
    for wheel in found:
        without(wheel, _UNWANTED.get(wheel.name.partition("-")[0], ()))
    return found


def without(wheel: Path, unwanted: Sequence[str]) -> None:
    """Take files out of a wheel, and out of what it says of itself.

    Raises:
        AgentArchiveError: it is no wheel.
        OSError: it cannot be written anew.
    """
    if not unwanted:
        return
    slim = wheel.with_suffix(".slim")
    try:
        with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(slim, "w") as new:
            for member in old.infolist():
                if member.filename in unwanted:
                    continue
                data = old.read(member)
                if member.filename.endswith(".dist-info/RECORD"):
                    rows = data.decode().splitlines(keepends=True)
                    data = "".join(row for row in rows if row.partition(",")[0] not in unwanted).encode()
                new.writestr(member, data, member.compress_type)
    except (zipfile.BadZipFile, zlib.error, UnicodeDecodeError) as error:
        raise AgentArchiveError(f"{wheel.name} is no wheel: {error}", path=str(wheel)) from error
    slim.replace(wheel)


def _flags(target: Target) -> list[str]:
    """Flags of ``pip download`` for boards of another kind than this machine."""
    short = target.python.replace(".", "")
    machine, glibc = target.machine, int(target.glibc.partition(".")[2])
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(glibc, _OLDEST_GLIBC - 1, -1)]
    platforms += [f"manylinux2014_{machine}", f"linux_{machine}"]
    flags = ["--only-binary=:all:", "--python-version", target.python, "--implementation", "cp"]
    flags += [word for abi in (f"cp{short}", "abi3", "none") for word in ("--abi", abi)]
    return [*flags, *(word for platform in platforms for word in ("--platform", platform))]


def _pip(arguments: Sequence[str], source: str, tell: Told) -> None:
    """Run pip.

    Raises:
        AgentArchiveError: it failed.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as pip:
        said: deque[str] = deque(maxlen=_KEPT_LINES)
        for line in pip.stdout or ():
            tell(line.rstrip())
            said.append(line.strip())
    if pip.returncode:
        faults = [line for line in said if line.startswith("ERROR")] or list(said)[-1:]
        raise AgentArchiveError(
            f"pip {arguments[0]} failed for {source}: {' '.join(faults)[:500]}",
            path=source,
            hint="It needs a network; or pack wheels at hand with edgeslm agent pack --wheels DIR, and give that with "
            "--agent",
        )
