"""One file that puts edgeslm on a board that runs: ``python3 edgeslm-porch.pyz``, with no pip, no curl and no network.

It is a zip that Python runs (zipapp): the program of :mod:`edgeslm.flash.onboard`, a manifest, and each file once,
named by its sha256. It may hold a claim, so only its owner may read it.

What always holds: the same payload gives the same bytes; a file that was cut off is never found under its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import BinaryIO

from edgeslm.errors import FlashError
from edgeslm.files import PARTIAL, sync_directory
from edgeslm.flash.onboard.manifest import FILES, MANIFEST, Item, Manifest, encode
from edgeslm.flash.payload import layout
from edgeslm.flash.payload.whole import Payload, PayloadRequest
from edgeslm.flash.tree import Entry, pieces
from edgeslm.schema.agent_release import AGENT_MARKER
from edgeslm.wheelhouse import check_archive

_PACKAGE = "edgeslm_onboard"
"""What the program is called in an archive: not edgeslm, of which it is no installation."""
_MAIN = f"""import sys

if sys.version_info < (3, 11):
    sys.exit("edgeslm: it needs Python 3.11 or later, and this is Python %d.%d" % sys.version_info[:2])

from pathlib import Path

from {_PACKAGE}.main import main

sys.exit(main(Path(sys.argv[0]).resolve(), sys.argv[1:]))
"""
_SHEBANG = b"#!/usr/bin/env python3\n"
_LEVEL = 6
_LAST = (layout.CURRENT, layout.UNIT, layout.UNIT_LINK, layout.MANIFEST)

Told = Callable[[str], None]


@dataclass(frozen=True)
class Written:
    """An archive.

    Attributes:
        sha256: of the file.
    """

    path: Path
    sha256: str
    size_bytes: int


class Source:
    """The bytes of a payload, by the items of its manifest."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries: Mapping[str, Entry] = {entry.path: entry for entry in entries}

    @contextlib.contextmanager
    def open_bytes(self, item: Item) -> Iterator[BinaryIO]:
        """See :data:`edgeslm.flash.onboard.disk.Open`."""
        import io  # noqa: PLC0415

        content = self._entries[item.path].content
        with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as stream:
            yield stream


def describe(request: PayloadRequest, payload: Payload) -> Manifest:
    """The manifest of a payload, for whoever installs it.

    Raises:
        AgentArchiveError: the agent's archive is none.
        OSError: a file that holds the bytes of an entry cannot be read.
    """
    requires = check_archive(request.archive).manifest.requires
    claim = request.claim
    groups = tuple(sorted(request.system.groups))
    unit = next(entry for entry in payload.entries if entry.path == layout.UNIT)
    words = b"".join(pieces(unit)).decode().split()
    return Manifest(
        edgeslm=payload.environment.version,
        machine=request.system.machine,
        python=request.system.python.path,
        glibc=requires.glibc or "",
        # Of those that the builder knew of, the unit may name some; a board that lacks one could not start it.
        groups=tuple(name for name in groups if f"SupplementaryGroups={name}" in words),
        board=request.board.name,
        recognised_by=tuple(request.board.recognised_by),
        profile=request.profile.name,
        fleet=claim.fleet if claim is not None else "",
        device=(claim.device if claim is not None else request.device) or "",
        service=layout.UNIT_NAME,
        state=layout.STATE,
        agent_root=layout.AGENT_ROOT,
        installed=layout.MANIFEST,
        settings=layout.ETC,
        items=tuple(_item(entry) for entry in payload.entries),
    )


def write_archive(manifest: Manifest, entries: Sequence[Entry], out: Path) -> Written:
    """Write an archive, in place of what is there.

    Args:
        manifest: of `entries`.
        out: the file; it is there as a whole or not at all.

    Raises:
        FlashError: it cannot be written, or the bytes of an entry cannot be read.
    """
    beside = out.parent / f"{PARTIAL}{secrets.token_hex(8)}"
    try:
        try:
            descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w+b") as stream:
                stream.write(_SHEBANG)
                _write(stream, manifest, entries)
                stream.flush()
                os.fsync(stream.fileno())
                stream.seek(0)
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            beside.chmod(0o700)
            beside.replace(out)
            sync_directory(out.parent)
            return Written(out, sha256, out.stat().st_size)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise FlashError(
            f"{error.filename or out}: {error.strerror or error}", hint="Choose another place with --out"
        ) from error


def _write(stream: BinaryIO, manifest: Manifest, entries: Sequence[Entry]) -> None:
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(_member("__main__.py"), _MAIN, compresslevel=_LEVEL)
        program = resources.files("edgeslm.flash.onboard")
        for file in sorted(program.iterdir(), key=lambda file: file.name):
            if file.name.endswith(".py"):
                archive.writestr(_member(f"{_PACKAGE}/{file.name}"), file.read_bytes(), compresslevel=_LEVEL)
        archive.writestr(_member(MANIFEST), encode(manifest), compresslevel=_LEVEL)
        by_path = {entry.path: entry for entry in entries}
        written: set[str] = set()
        for item in manifest.items:
            if item.kind != "file" or item.sha256 in written:
                continue
            written.add(item.sha256)
            member = _member(f"{FILES}/{item.sha256}")
            member.file_size = item.size_bytes
            with archive.open(member, "w") as target:
                for piece in pieces(by_path[item.path]):
                    target.write(piece)


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # no time of ours gets in
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = 0o600 << 16
    return member


def _item(entry: Entry) -> Item:
    digest = hashlib.sha256()
    if entry.kind == "file":
        for piece in pieces(entry):
            digest.update(piece)
    is_marker = entry.path.startswith(f"{layout.VERSIONS}/") and entry.path.endswith(f"/{AGENT_MARKER}")
    return Item(
        path=entry.path,
        kind=entry.kind,
        mode=entry.mode,
        size_bytes=entry.size_bytes,
        sha256=digest.hexdigest() if entry.kind == "file" else "",
        target=entry.target if entry.kind == "symlink" else "",
        last=entry.path in _LAST or (is_marker and entry.path.count("/") == layout.VERSIONS.count("/") + 2),
    )
