"""Versions of the agent that are made of almost nothing, to try how one takes the place of another.

Wheels, archives, processes, links and signals are real. What stands in for the real thing is the agent itself, a few
lines that do what their version says, and, where it is done often, the making of a virtual environment
(:func:`bare_run`).
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgeslm.agent.installation import Installation
from edgeslm.wheelhouse import Wheelhouse, write_archive

HEAD = """
import json, os, pathlib, signal, sys, time
root = pathlib.Path(os.environ.get("EDGESLM_LAUNCHER", "/nowhere/x")).parent
if "--version" in sys.argv:
    print("edgeslm, version", {version!r})
    sys.exit(0)

def note(text):
    with (root / "seen").open("a") as seen:
        seen.write(text + chr(10))

def mark(state):
    trial = json.loads((root / "trial.json").read_text())
    trial["state"] = state
    (root / ".mark").write_text(json.dumps(trial))
    os.replace(root / ".mark", root / "trial.json")

def serve():
    signal.signal(signal.SIGTERM, lambda *_: (note("ended " + {version!r}), os._exit(0)))
    note("serves " + {version!r} + " " + str(os.getpid()))
    while True:
        time.sleep(0.05)

note("starts " + {version!r})
"""
SERVES = "serve()"
HEALTHY = "mark('healthy')\nserve()"
CRASHES = "sys.exit(7)"
HANGS = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(1)"
ENDS = "sys.exit(0)"


def make_wheel(
    directory: Path,
    version: str,
    main: str = SERVES,
    *,
    name: str = "edgeslm",
    tag: str = "py3-none-any",
    requires: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
) -> Path:
    """A wheel of a package that does `main` when it is run as a module."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {item}\n" for item in requires)
    members = {
        f"{name}/__init__.py": f"__version__ = {version!r}\n",
        f"{name}/__main__.py": HEAD.replace("{version!r}", repr(version)) + main + "\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: rig\nRoot-Is-Purelib: true\nTag: {tag}\n",
        **(files or {}),
    }
    record = "".join(
        f"{path},sha256={_digest(text)},{len(text.encode())}\n" for path, text in members.items()
    )
    path = directory / f"{name}-{version}-{tag}.whl"
    directory.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in {**members, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            # The time is fixed: the same version has to have the same bytes each time.
            archive.writestr(zipfile.ZipInfo(member, (2026, 1, 1, 0, 0, 0)), text)
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def make_archive(
    directory: Path, version: str, main: str = SERVES, *, tag: str = "py3-none-any", agent: str = "0.0.0"
) -> tuple[Path, Wheelhouse]:
    """An archive of a version that does `main`."""
    out = directory / f"edgeslm-agent-{version}-{tag}.tar"
    return out, write_archive([make_wheel(directory / "wheels", version, main, tag=tag)], out, agent=agent)


def bare_run(command: Sequence[str], cancelled: Callable[[], bool]) -> str:
    """``Run`` that makes no virtual environment but what the launcher needs of one."""
    del cancelled
    words = list(command)
    if "venv" in words:
        directory = Path(words[-1])
        (directory / "bin").mkdir(parents=True)
        python = directory / "bin" / "python"
        # Without the site module: nothing of this machine's packages is seen.
        python.write_text(f'#!/bin/sh\nPYTHONPATH={directory}/lib exec {sys.executable} -S "$@"\n')
        python.chmod(0o755)
        return ""
    if "install" in words:
        for wheel in (word for word in words if word.endswith(".whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(Path(words[0]).parents[1] / "lib")
        return ""
    if "check" in words:
        return ""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def make_layout(
    directory: Path, *versions: tuple[str, str], run: Callable[..., str] = bare_run
) -> tuple[Installation, list[str]]:
    """A layout with `versions` (number, what it does), the first one current; and their directories' names."""
    installation, names = Installation(directory / "root", run=run), list[str]()
    for version, main in versions:
        archive, found = make_archive(directory / "build", version, main)
        names.append(installation.build(archive, version, found.sha256))
    installation.adopt(names[0])
    return installation, names


# --- the real agent -----------------------------------------------------------------------------------------

_SOURCE = Path(__file__).parents[1]


def real_wheel(
    directory: Path, version: str, edits: Mapping[str, Callable[[str], str]] | None = None
) -> Path:
    """A wheel of this tree under another version number, with some of its files edited.

    Args:
        edits: what becomes of the text of a file, by its path in the wheel.
    """
    info = f"edgeslm-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: edgeslm\nVersion: {version}\n"
    members = {
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: rig\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    for top, name in (("edgeslm", "edgeslm"), ("devices", "edgeslm/_devices")):
        for path in sorted((_SOURCE / top).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                members[f"{name}/{path.relative_to(_SOURCE / top)}"] = path.read_bytes()
    changes = {"edgeslm/__init__.py": lambda text: f'{text}\n__version__ = "{version}"\n', **(edits or {})}
    for member, change in changes.items():
        members[member] = change(members[member].decode()).encode()
    return _write_wheel(directory, "edgeslm", version, members)


def dependencies_wheel(directory: Path, packages: Path) -> Path:
    """A wheel that lets an environment see what is installed in `packages`, in place of all that edgeslm needs."""
    info = "edgeslm_rig_packages-1.dist-info"
    members = {
        "edgeslm_rig_packages.pth": f"{packages}\n".encode(),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: edgeslm-rig-packages\nVersion: 1\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: rig\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    return _write_wheel(directory, "edgeslm_rig_packages", "1", members)


def _write_wheel(directory: Path, name: str, version: str, members: Mapping[str, bytes]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}-{version}-py3-none-any.whl"
    record = "".join(f"{member},,\n" for member in members) + f"{name}-{version}.dist-info/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in {**members, f"{name}-{version}.dist-info/RECORD": record.encode()}.items():
            archive.writestr(zipfile.ZipInfo(member, (2026, 1, 1, 0, 0, 0)), data)
    return path
