"""``/opt/edgeslm/installed.json``: what was put on a board, for whoever takes it away or looks what it is.

What always holds: nothing in it helps to guess a secret. A file that only root may read is named, and its digest is
not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from edgeslm.flash.tree import Entry, is_plain, pieces
from edgeslm.schema.base import FileModel, Identifier, SemanticVersion, Sha256

MAX_MANIFEST_BYTES = 2**20

BoardPath = Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x1f]{1,1023}$")]
Word = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]{1,500}$")]


class InstalledFile(FileModel):
    """One thing that was put there.

    Attributes:
        kind: ``tree`` is a directory with all that it holds, written once and the agent's own from then on.
        mode: permission bits.
        size_bytes: of a file, or of all files of a tree.
        sha256: of a file's bytes; of a tree, over its list. ``None`` for what only root may read.
        target: of a link.
    """

    path: BoardPath
    kind: Literal["file", "directory", "symlink", "tree"]
    mode: Annotated[int, Field(ge=0, le=0o7777)] = 0o644
    size_bytes: Annotated[int, Field(ge=0)] = 0
    sha256: Sha256 | None = None
    target: Annotated[str, StringConstraints(max_length=4096)] | None = None


class InstalledPayload(FileModel):
    """What was put on a board.

    Attributes:
        edgeslm: version of the agent.
        archive: sha256 of the archive that it came in.
        board: that it was made for.
        profile: that the board was set up by.
        fleet, device: that its claim is for; ``None`` where it was given none, or one without a name.
        models: that it serves first, by name and version.
        first_boot: how the image is told what is its user's, where it was.
        boot: what was set in the boot files, for people.
        cmdline: words that were added to the kernel's command line, so that they can be taken out again.
        files: everything that was written, itself excepted.
    """

    v: Literal[1] = 1
    edgeslm: SemanticVersion
    archive: Sha256
    board: Identifier | None = None
    profile: Identifier | None = None
    fleet: Identifier | None = None
    device: Identifier | None = None
    models: Annotated[tuple[Word, ...], Field(max_length=16)] = ()
    first_boot: Word | None = None
    boot: Annotated[tuple[Word, ...], Field(max_length=256)] = ()
    cmdline: Annotated[tuple[Word, ...], Field(max_length=256)] = ()
    files: Annotated[tuple[InstalledFile, ...], Field(max_length=10_000)]


def described(entries: Sequence[Entry], trees: Iterable[str]) -> tuple[InstalledFile, ...]:
    """What a manifest says of `entries`.

    Args:
        entries: in the order in which they are written.
        trees: directories that count as one thing each, with all entries below them.

    Raises:
        OSError: a file that holds the bytes of an entry cannot be read.
    """
    roots = tuple(trees)
    found: list[InstalledFile] = []
    for root in roots:
        below = [entry for entry in entries if entry.path == root or entry.path.startswith(f"{root}/")]
        listed = hashlib.sha256()
        for entry in sorted(below, key=lambda entry: entry.path):
            digest = _digest(entry) if entry.kind == "file" else entry.target
            listed.update(f"{entry.path}\0{entry.kind}\0{entry.mode:o}\0{digest}\n".encode())
        size_bytes = sum(entry.size_bytes for entry in below)
        found.append(
            InstalledFile(
                path=root, kind="tree", mode=0o755, size_bytes=size_bytes, sha256=listed.hexdigest()
            )
        )
    for entry in entries:
        if any(entry.path == root or entry.path.startswith(f"{root}/") for root in roots):
            continue
        is_file = entry.kind == "file"
        found.append(
            InstalledFile(
                path=entry.path,
                kind=entry.kind,
                mode=0o777 if entry.kind == "symlink" else entry.mode,
                size_bytes=entry.size_bytes,
                sha256=_digest(entry) if is_file and entry.mode & 0o044 else None,
                target=entry.target if entry.kind == "symlink" else None,
            )
        )
    return tuple(sorted(found, key=lambda file: file.path))


def plain_paths(payload: InstalledPayload) -> tuple[str, ...]:
    """The paths of a manifest, but for those that have two readings: a manifest on a board can say anything."""
    return tuple(file.path for file in payload.files if is_plain(file.path))


def _digest(entry: Entry) -> str:
    digest = hashlib.sha256()
    for piece in pieces(entry):
        digest.update(piece)
    return digest.hexdigest()
