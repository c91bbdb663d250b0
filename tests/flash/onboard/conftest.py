"""Archives of small agents, made by the code that makes real ones, and a board's files to install them on."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.agent_update_rig import make_wheel
from edgeslm.agent import launcher
from edgeslm.flash.archive import describe, write_archive
from edgeslm.flash.onboard.manifest import Manifest
from edgeslm.flash.payload.environment import BoardPython
from edgeslm.flash.payload.whole import BoardSystem, PayloadRequest, build_payload
from edgeslm.flash.profiles import load_profile
from edgeslm.power.boards import choose_board
from edgeslm.schema.enrol import Claim
from edgeslm.wheelhouse import write_archive as write_wheels

PYTHON = "3.13"


@dataclass(frozen=True)
class Made:
    """An archive.

    Attributes:
        path: of the file.
        manifest: in it.
        contents: bytes of its files, by path.
    """

    path: Path
    manifest: Manifest
    contents: dict[str, bytes]


class Board:
    """Files of a board, below a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("usr/bin/python3.13", elf(62), 0o755)
        (root / "usr/bin/python3").symlink_to("python3.13")
        self.write("usr/lib/systemd/systemd", elf(62), 0o755)
        (root / "lib").symlink_to("usr/lib")
        text = b"\0GNU C Library (Debian GLIBC 2.41-12) stable release version 2.41.\n"
        self.write("usr/lib/x86_64-linux-gnu/libc.so.6", elf(62) + text, 0o755)
        self.write("etc/group", b"root:x:0:\nvideo:x:44:\n")
        (root / "var/lib").mkdir(parents=True)

    def write(self, path: str, data: bytes, mode: int = 0o644) -> Path:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        place.chmod(mode)
        return place

    def read(self, path: str) -> bytes:
        return (self.root / path.lstrip("/")).read_bytes()

    def has(self, path: str) -> bool:
        return os.path.lexists(self.root / path.lstrip("/"))

    def call(self, made: Made, *words: str) -> subprocess.CompletedProcess[str]:
        """Run an archive here, as a program of its own."""
        command = [sys.executable, str(made.path), "--root", str(self.root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    def install(self, made: Made, *words: str) -> dict[str, Any]:
        done = self.call(made, "--yes", "--json", *words)
        assert done.returncode == 0, done.stderr
        return {"said": done.stderr, **json.loads(done.stdout)}

    def tree(self, root: Path | None = None) -> dict[str, str]:
        """Everything that is here, or below another root: kind, mode and content of each path."""
        found: dict[str, str] = {}
        root = root or self.root
        for place in sorted(root.rglob("*")):
            status = place.lstat()
            if stat.S_ISLNK(status.st_mode):
                what = f"-> {place.readlink()}"
            elif stat.S_ISDIR(status.st_mode):
                what = "directory"
            else:
                what = hashlib.sha256(place.read_bytes()).hexdigest()
            mode = "" if place.is_symlink() else f"{stat.S_IMODE(status.st_mode):o} "
            found[f"/{place.relative_to(root)}"] = mode + what
        return found


def elf(machine: int) -> bytes:
    """The head of a program for a processor (elf.h)."""
    return b"\x7fELF\x02\x01\x01" + bytes(11) + machine.to_bytes(2, "little") + bytes(44)


def make(
    directory: Path,
    version: str = "1.0.0",
    *,
    claim: Claim | None = None,
    profile: str = "default",
    rules: tuple[Path, ...] = (),
    settings: dict[str, Any] | None = None,
    board: str = "host",
) -> Made:
    """An archive of a small agent."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {"edgeslm/agent/launcher.py": Path(launcher.__file__).read_text("utf-8")}
    wheels = directory / "agent.tar"
    write_wheels([make_wheel(directory / "wheels", version, files=files)], wheels)
    found = load_profile(profile).profile
    if settings:
        found = found.model_copy(update=settings)
    request = PayloadRequest(
        archive=wheels,
        system=BoardSystem(
            BoardPython(PYTHON, f"/usr/bin/python{PYTHON}"), "x86_64", "2.41", frozenset({"video"})
        ),
        board=choose_board(board),
        profile=found,
        claim=claim,
        device=None if claim is not None else "porch",
        models=("release:home-command",),
        rules=rules,
    )
    work = directory / "work"
    work.mkdir()
    payload = build_payload(request, work)
    manifest = describe(request, payload)
    out = directory / "board.pyz"
    write_archive(manifest, payload.entries, out)
    contents = {
        entry.path: entry.content if isinstance(entry.content, bytes) else entry.content.read_bytes()
        for entry in payload.entries
        if entry.kind == "file"
    }
    return Made(out, manifest, contents)


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """Makes archives, each kind once."""
    kept: dict[str, Made] = {}

    def made(version: str = "1.0.0", **options: Any) -> Made:
        key = repr((version, sorted(options.items())))
        if key not in kept:
            kept[key] = make(tmp_path_factory.mktemp("archive"), version, **options)
        return kept[key]

    return made


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is one: what is synced there takes no time."""
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="edgeslm-test-") as directory:
        yield Path(directory)


@pytest.fixture
def board(room: Path) -> Board:
    """A board with nothing of ours."""
    (room / "board").mkdir()
    return Board(room / "board")
