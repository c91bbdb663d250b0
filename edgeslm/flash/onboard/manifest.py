"""What an archive holds, and whether it is for this board: decided from facts, which :func:`read_host` reads."""

from __future__ import annotations

import json
import os
import posixpath
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FILES = "files"
FORMAT = 1
MAX_MANIFEST_BYTES = 8 * 2**20
_MAX_ITEMS = 100_000
_MAX_TEXT = 4096
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KINDS = ("file", "directory", "symlink")
_MACHINES = {183: "aarch64", 62: "x86_64", 40: "armv7l", 243: "riscv64"}
"""By ``e_machine`` of an ELF file (elf.h)."""
_LIBC_VERSION = re.compile(rb"GNU C Library[^\0]{1,80}release version (\d+\.\d+)")
_MAX_LIBC_BYTES = 16 * 2**20


class OnboardError(Exception):
    """Why nothing more is done.

    Attributes:
        exit_code: of the program.
        hint: what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class DamagedError(OnboardError):
    """What is to be installed is not what it was when it was made."""

    exit_code = 4


class MisfitError(OnboardError):
    """It is for another board or system."""

    exit_code = 2


@dataclass(frozen=True)
class Item:
    """One thing to put on the board.

    Attributes:
        size_bytes: of a file.
        sha256: of a file's bytes.
        target: of a symbolic link.
        last: it makes the rest count, and so comes when all of that lasts.
    """

    path: str
    kind: str = "file"
    mode: int = 0o644
    size_bytes: int = 0
    sha256: str = ""
    target: str = ""
    last: bool = False


@dataclass(frozen=True)
class Manifest:
    """What is installed, and on what.

    Attributes:
        edgeslm: version of the agent.
        board, profile, fleet, device: for people; what is not known is empty.
        machine: as ``uname -m`` calls it.
        python: path of the interpreter.
        glibc: least version of the C library; empty for any.
        groups: that have to exist.
        recognised_by: one of these is part of the board's name; empty for any board.
        service: the unit to start.
        state: the service's own directory.
        agent_root: directory in it that holds versions of the agent.
        installed: file that says on the board what was installed.
        settings: directory whose files people may change; what they changed stays as it is.
        items: in the order in which they are written.
    """

    edgeslm: str
    machine: str
    python: str
    service: str
    state: str
    agent_root: str
    installed: str
    settings: str
    items: tuple[Item, ...]
    board: str = ""
    profile: str = ""
    fleet: str = ""
    device: str = ""
    glibc: str = ""
    groups: tuple[str, ...] = ()
    recognised_by: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(item.size_bytes for item in self.items)


def is_plain(path: object) -> bool:
    """Whether `path` is absolute and has one reading only."""
    return (
        isinstance(path, str)
        and path.startswith("/")
        and not path.startswith("//")
        and len(path) <= _MAX_TEXT
        and posixpath.normpath(path) == path
        and path.isprintable()
    )


def encode(manifest: Manifest) -> bytes:
    """A manifest as it lies in an archive."""
    return json.dumps({"v": FORMAT, **asdict(manifest)}, sort_keys=True, separators=(",", ":")).encode()


def decode(data: bytes) -> Manifest:
    """A manifest from an archive.

    Raises:
        DamagedError: it is none.
    """
    try:
        found = json.loads(data)
        if not isinstance(found, dict) or found.pop("v", None) != FORMAT:
            raise DamagedError("it holds no manifest that this program can read")
        lists = {name: found.pop(name) for name in ("items", "groups", "recognised_by")}
        manifest = Manifest(
            items=tuple(_item(item) for item in lists["items"][:_MAX_ITEMS]),
            groups=_texts(lists["groups"]),
            recognised_by=_texts(lists["recognised_by"]),
            **{name: _text(value) for name, value in found.items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError("its manifest is damaged") from error
    paths = (manifest.python, manifest.state, manifest.agent_root, manifest.installed, manifest.settings)
    if not all(is_plain(path) for path in paths) or not re.fullmatch(
        r"[a-z-]{1,64}\.service", manifest.service
    ):
        raise DamagedError("its manifest is damaged")
    return manifest


def _item(found: Mapping[str, Any]) -> Item:
    item = Item(**{field.name: found[field.name] for field in fields(Item)})
    numbers = all(isinstance(number, int) and 0 <= number < 2**40 for number in (item.mode, item.size_bytes))
    is_file = item.kind == "file"
    sound = (
        numbers and is_plain(item.path) and item.path != "/" and item.kind in _KINDS and item.mode <= 0o7777
    )
    if not sound or (is_file and not _SHA256.fullmatch(item.sha256)) or not isinstance(item.last, bool):
        raise ValueError(item.path)
    _text(item.target)
    return item


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise ValueError(value)
    return value


def _texts(values: Sequence[object]) -> tuple[str, ...]:
    return tuple(_text(value) for value in values[:64])


# --- the board ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Host:
    """What is known about a board.

    Attributes:
        machine: that its programs are for; a 64-bit kernel may run programs for 32.
        glibc: version of its C library; empty where it has another one.
        model: as its device tree calls it; empty where it has none.
        python: whether the interpreter that was asked for is there.
        pythons: versions that are there.
        systemd: whether it has systemd.
        groups: names in its ``/etc/group``.
    """

    machine: str
    glibc: str
    model: str
    python: bool
    systemd: bool
    groups: frozenset[str]
    pythons: tuple[str, ...] = ()


def read_host(root: Path, python: str) -> Host:
    """What the board at `root` is, seen through its files.

    Args:
        python: path of the interpreter that is asked for.
    """
    interpreter = _inside(root, python)
    libraries = [
        *root.glob("lib/*/libc.so.6"),
        *root.glob("usr/lib/*/libc.so.6"),
        *root.glob("lib*/libc.so.6"),
    ]
    versions = [found[1].decode() for path in libraries if (found := _LIBC_VERSION.search(_head(path)))]
    groups = _head(root / "etc/group", 2**20).decode("utf-8", "replace")
    places = ("lib/systemd/systemd", "usr/lib/systemd/systemd")
    return Host(
        machine=_machine(interpreter),
        glibc=versions[0] if versions else "",
        model=_head(root / "proc/device-tree/model", 256).rstrip(b"\0").decode("utf-8", "replace"),
        python=interpreter.is_file(),
        systemd=any(os.access(root / place, os.X_OK) for place in places),
        groups=frozenset(line.partition(":")[0] for line in groups.splitlines()),
        pythons=_pythons(root),
    )


def _pythons(root: Path) -> tuple[str, ...]:
    names = [place.name.removeprefix("python") for place in root.glob("usr/bin/python3.*")]
    return tuple(sorted((name for name in names if re.fullmatch(r"3\.\d{1,3}", name)), key=_version))


def misfits(manifest: Manifest, host: Host, *, any_board: bool = False) -> list[str]:
    """Everything that keeps an archive from this board, a sentence each; empty where it fits."""
    found = []
    if not host.python:
        there = f" (here: Python {', '.join(host.pythons)})" if host.pythons else ""
        found.append(f"it is for {manifest.python}, which is not here{there}")
    elif host.machine != manifest.machine:
        found.append(
            f"it is for {manifest.machine}, and the programs here are for {host.machine or 'another'}"
        )
    if manifest.glibc and not host.glibc:
        found.append("it needs glibc, and the C library here is another one")
    elif manifest.glibc and _version(host.glibc) < _version(manifest.glibc):
        found.append(f"it needs glibc {manifest.glibc} or later, and {host.glibc} is here")
    if not host.systemd:
        found.append("it needs systemd, which is not here")
    found += [
        f"it needs the group {name}, which is not here" for name in manifest.groups if name not in host.groups
    ]
    if manifest.recognised_by and host.model and not any_board:
        known = any(_names(name, host.model) for name in manifest.recognised_by)
        if not known:
            found.append(
                f"it is for {manifest.board}, and this is '{host.model}' (--any-board installs it anyway)"
            )
    return found


def _names(name: str, model: str) -> bool:
    """Whether `name` is in `model`, up to the end of a word."""
    return re.search(rf"{re.escape(name)}(?![A-Za-z0-9])", model) is not None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _inside(root: Path, path: str) -> Path:
    """Where `path` leads, links followed within `root`."""
    found = root / path[1:]
    for _ in range(40):
        if not found.is_symlink():
            break
        target = os.readlink(found)  # noqa: PTH115 - as it is
        found = root / target[1:] if target.startswith("/") else found.parent / target
    return found


def _machine(program: Path) -> str:
    head = _head(program, 20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return ""
    (number,) = struct.unpack("<H" if head[5] == 1 else ">H", head[18:20])
    return _MACHINES.get(number, f"machine {number}")


def _head(path: Path, max_bytes: int = _MAX_LIBC_BYTES) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(max_bytes)
    except OSError:
        return b""
