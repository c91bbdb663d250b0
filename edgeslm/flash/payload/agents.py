"""Archives of the agent for a kind of board, packed when they are first wanted and kept for the next card.

What always holds: a kept archive is read to its last byte before it is used, and packed anew where it is damaged. The
same edgeslm for the same kind of board is packed once, however many cards want it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from edgeslm.errors import AgentArchiveError, PrepareError
from edgeslm.files import locked
from edgeslm.flash.payload.gathering import Target, Told, gather, own_source
from edgeslm.wheelhouse import check_archive, write_archive

_FORMAT = "2"
_KEPT_ARCHIVES = 3
"""Of one kind of board; each is some 60 MB."""
_SOURCE_SUFFIXES = frozenset({".py", ".yaml", ".jsonl", ".slm", ".typed", ".cfg", ".toml", ".sql"})
_DATA = ("edgeslm", "devices", "firmware_profiles")


def cache_directory() -> Path:
    """Where what takes long is kept (XDG Base Directory Specification)."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if home.startswith("/") else Path.home() / ".cache"
    return base / "edgeslm"


def packed_agent(
    target: Target, cache: Path, tell: Told = lambda _: None, *, source: str | None = None
) -> Path:
    """The archive of this edgeslm for boards of a kind.

    Args:
        target: the boards.
        cache: directory where it is kept; made when missing.
        tell: hears what pip says.
        source: of edgeslm; by default where this one comes from.

    Raises:
        AgentArchiveError: pip cannot bring the wheels together, or they make no archive.
        PrepareError: the cache cannot be written.
    """
    source = source or own_source()
    directory = cache / "agents"
    name = f"edgeslm-{target.machine}-py{target.python}-glibc{target.glibc}-{_key(source, target)}.tar"
    kept = directory / name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / f".{name}.lock"):
            with contextlib.suppress(AgentArchiveError):
                if kept.is_file():
                    check_archive(kept)
                    kept.touch()
                    return kept
            with tempfile.TemporaryDirectory(prefix=".pack-", dir=directory) as gathered:
                write_archive(gather(source, Path(gathered), target, tell), kept)
            _forget_older(directory, name.rpartition("-")[0])
    except OSError as error:
        raise PrepareError(
            f"{error.filename or directory}: {error.strerror or error}", what="agent",
            hint="Keep archives elsewhere with --cache-dir, or hand one over with --agent",
        ) from error  # fmt: skip
    return kept


def _forget_older(directory: Path, kind: str) -> None:
    """Leave the archives of one kind of board that were used last."""
    found = sorted(directory.glob(f"{kind}-*.tar"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found[_KEPT_ARCHIVES:]:
        path.unlink(missing_ok=True)
        (directory / f".{path.name}.lock").unlink(missing_ok=True)


def _key(source: str, target: Target) -> str:
    """Changes with everything that the archive is made of, as far as it lies here."""
    digest = hashlib.sha256(f"{_FORMAT}\0{target}\0".encode())
    root = Path(source)
    if not root.is_dir():
        digest.update(source.encode())
        return digest.hexdigest()[:16]
    files = [path for path in root.iterdir() if path.is_file()]
    files += [path for name in _DATA for path in (root / name).rglob("*")]
    for path in sorted(files):
        if path.suffix in _SOURCE_SUFFIXES and path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(root)}\0{content}\n".encode())
    return digest.hexdigest()[:16]
