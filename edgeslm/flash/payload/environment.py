"""The agent's virtual environment on a board, made of an archive of its wheels without running the board's Python.

A virtual environment is a directory with links to an interpreter, ``pyvenv.cfg``, and unpacked wheels (PEP 405, and
the specification of binary distributions). All of that can be written down here for a board of another kind, and is:
as entries, whose bytes lie in a directory of this machine meanwhile. The marker with which a version counts as
installed comes last, and the launcher's link to it.

What always holds:

* The same archive for the same Python gives the same entries, in the same order, with the same bytes.
* A wheel is hostile: what would lie outside of the environment, in place of a part of it, or in place of another
  wheel's file is refused by its name, and so is more than the archive says that it unpacks to.

Left to others: whether the archive may run on the board (:func:`edgeslm.schema.agent_release.system_misfit`), compiling
it (:mod:`edgeslm.flash.payload.bytecode`), and the tree that takes the entries. Where nobody compiles, the board does:
the agent owns the environment, and Python keeps what it compiled.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import posixpath
import re
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from edgeslm import codec
from edgeslm.errors import AgentArchiveError
from edgeslm.flash.payload import layout
from edgeslm.flash.payload.bytecode import Compiling, with_bytecode
from edgeslm.flash.tree import Entry, is_plain
from edgeslm.schema.agent_release import (
    AGENT_MARKER,
    AgentManifest,
    InstalledAgent,
    version_name,
)
from edgeslm.wheelhouse import unpack

if TYPE_CHECKING:
    from installer.destinations import WheelDestination
    from installer.records import RecordEntry
    from installer.utils import Scheme

_MAX_FILES = 100_000
_MAX_NAME_BYTES = 255
_PIECE_BYTES = 2**20
_GENERATED_BYTES = 2**24
"""Allowed for what is written beside what the wheels hold: their lists of files, and scripts."""
_LAUNCHER_IN_WHEEL = "edgeslm/agent/launcher.py"
_OWN = ("pyvenv.cfg", "lib64", AGENT_MARKER)
_ENTRY_POINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class BoardPython:
    """The Python of a board.

    Attributes:
        version: such as ``3.13``.
        path: of its interpreter on the board.
    """

    version: str
    path: str


@dataclass(frozen=True)
class Environment:
    """A version of the agent as it is to lie on a board.

    Attributes:
        name: of its directory, as the agent's own updates would call it.
        version: of the agent in it.
        sha256: of the archive.
        python: of the board that it is for.
        directory: where it is to lie on the board.
        entries: all of it, from the directory to the launcher's link.
        launcher: the launcher that this version comes with.
        size_bytes: of all files.
    """

    name: str
    version: str
    sha256: str
    python: BoardPython
    directory: str
    entries: tuple[Entry, ...]
    launcher: bytes
    size_bytes: int


def make_environment(
    archive: Path, python: BoardPython, directory: Path, compiling: Compiling | None = None
) -> Environment:
    """Lay out the environment of an archive.

    Args:
        archive: of the agent.
        python: of the board.
        directory: an empty one of ours, which keeps the bytes of the entries as long as they are wanted.
        compiling: compiles its modules; ``None`` leaves that to the board.

    Raises:
        AgentArchiveError: it is no archive, or one of its wheels cannot be installed.
        ToolFailedError: who compiles did not do it.
        OSError: `directory` cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix=".wheels-", dir=directory) as wheels:
        found = unpack(archive, Path(wheels))
        manifest = found.manifest
        name = version_name(manifest.version, found.sha256)
        destination = _Destination(python, manifest, archive, directory, name)
        for wheel in manifest.wheels:
            destination.take(Path(wheels) / wheel.file)
    launcher = destination.content(_LAUNCHER_IN_WHEEL)
    where = f"{layout.VERSIONS}/{name}"
    marker = codec.encode(InstalledAgent(version=manifest.version, sha256=found.sha256))
    files = list(destination.entries())
    if compiling is not None:
        files += with_bytecode(files, compiling, directory, sha256=found.sha256)
    inside = [*files, *_frame(python, where)]
    entries = [
        Entry(layout.AGENT_ROOT, "directory", mode=0o755),
        Entry(layout.VERSIONS, "directory", mode=0o755),
        Entry(where, "directory", mode=0o755),
        *_directories(inside, where),
        *sorted(inside, key=lambda entry: entry.path),
        Entry(f"{where}/{AGENT_MARKER}", content=marker),
        Entry(layout.CURRENT, "symlink", target=f"versions/{name}"),
    ]
    return Environment(
        name=name,
        version=manifest.version,
        sha256=found.sha256,
        python=python,
        directory=where,
        entries=tuple(entries),
        launcher=launcher,
        size_bytes=sum(entry.size_bytes for entry in files),
    )


def _frame(python: BoardPython, where: str) -> list[Entry]:
    """What makes a directory with packages a virtual environment (PEP 405)."""
    short = f"python{python.version}"
    settings = (
        f"home = {posixpath.dirname(python.path)}\n"
        "include-system-site-packages = false\n"
        f"version = {python.version}\n"
        f"executable = {python.path}\n"
    )
    return [
        Entry(f"{where}/pyvenv.cfg", content=settings.encode()),
        Entry(f"{where}/lib64", "symlink", target="lib"),
        Entry(f"{where}/bin/python", "symlink", target="python3"),
        Entry(f"{where}/bin/python3", "symlink", target=python.path),
        Entry(f"{where}/bin/{short}", "symlink", target="python3"),
    ]


def _directories(entries: Iterable[Entry], above: str) -> list[Entry]:
    found = set()
    for entry in entries:
        parent = posixpath.dirname(entry.path)
        while parent != above and parent not in found:
            found.add(parent)
            parent = posixpath.dirname(parent)
    return [Entry(path, "directory", mode=0o755) for path in sorted(found)]


# --- unpacking wheels ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kept:
    """A file of the environment, and where its bytes lie meanwhile."""

    content: Path
    size_bytes: int
    digest: str
    is_executable: bool
    wheel: str


class _Destination:
    """Takes what :func:`installer.install` hands out, and checks each path (``installer.WheelDestination``)."""

    def __init__(
        self, python: BoardPython, manifest: AgentManifest, archive: Path, directory: Path, name: str
    ) -> None:
        self._files: dict[str, _Kept] = {}
        self._archive = archive
        self._directory = directory
        self._left_bytes = manifest.installed_bytes + _GENERATED_BYTES
        self._where = f"{layout.VERSIONS}/{name}"
        self._interpreter = f"{self._where}/bin/python"
        self._packages = f"lib/python{python.version}/site-packages"
        self._headers = f"include/site/python{python.version}"
        self._reserved = {
            *_OWN,
            *(f"bin/{link}" for link in ("python", "python3", f"python{python.version}")),
        }
        self._wheel = ""
        self._distribution = ""

    def take(self, wheel: Path) -> None:
        """Unpack a wheel.

        Raises:
            AgentArchiveError: it cannot be installed.
        """
        from installer import install  # noqa: PLC0415 - of the extra `flash`
        from installer.sources import WheelFile  # noqa: PLC0415

        self._wheel = wheel.name
        with self._wheel_faults(), warnings.catch_warnings(), WheelFile.open(wheel) as source:
            # Compiled files in a wheel are passed over, and a warning about it helps nobody here.
            warnings.simplefilter("ignore", RuntimeWarning)
            self._distribution = source.distribution
            source.validate_record(validate_contents=False)
            install(source, cast("WheelDestination", self), {"INSTALLER": b"edgeslm\n"})

    def content(self, name: str) -> bytes:
        """The bytes of a file among the packages.

        Raises:
            AgentArchiveError: no wheel brings it.
        """
        kept = self._files.get(f"{self._packages}/{name}")
        if kept is None:
            raise AgentArchiveError(
                f"{self._archive} has no {name}", path=str(self._archive), member=name,
                hint="Pack it with this version: edgeslm agent pack",
            )  # fmt: skip
        return kept.content.read_bytes()

    def entries(self) -> Iterator[Entry]:
        """All files that were taken."""
        for path, kept in self._files.items():
            mode = 0o755 if kept.is_executable else 0o644
            yield Entry(f"{self._where}/{path}", content=kept.content, mode=mode)

    # --- the port of the library --------------------------------------------------------------------------------

    def write_script(self, name: str, module: str, attr: str, section: str) -> RecordEntry:
        """A console script, which runs the environment's own Python."""
        from installer.scripts import Script  # noqa: PLC0415

        if not (_ENTRY_POINT.fullmatch(name) and _DOTTED.fullmatch(module) and _DOTTED.fullmatch(attr)):
            raise self._fault(f"the entry point {name[:80]!r} is none")
        _, data = Script(name, module, attr, "gui" if section == "gui" else "console").generate(
            self._interpreter, "posix"
        )
        return self._keep("scripts", name, io.BytesIO(data), is_executable=True)

    def write_file(self, scheme: Scheme, path: str, stream: BinaryIO, is_executable: bool) -> RecordEntry:
        """A file of the wheel."""
        if scheme == "scripts":
            from installer.utils import fix_shebang  # noqa: PLC0415

            with fix_shebang(stream, self._interpreter) as fixed:
                return self._keep(scheme, path, fixed, is_executable=True)
        return self._keep(scheme, path, stream, is_executable=is_executable)

    def finalize_installation(
        self, scheme: Scheme, record_file_path: str, records: Iterable[tuple[Scheme, RecordEntry]]
    ) -> None:
        """The list of what was installed, by which ``pip`` finds and removes it."""
        rows = []
        for its_scheme, record in records:
            place = self._place(its_scheme, record.path)
            shown = posixpath.relpath(place, self._packages)
            digest = f"sha256={record.hash_.value}" if record.hash_ else ""
            rows.append((shown, digest, "" if record.size is None else str(record.size)))
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(sorted(rows))
        self._keep(scheme, record_file_path, io.BytesIO(text.getvalue().encode()), is_executable=False)

    # --- pieces -------------------------------------------------------------------------------------------------

    def _keep(self, scheme: str, path: str, stream: BinaryIO, *, is_executable: bool) -> RecordEntry:
        from installer.records import Hash, RecordEntry  # noqa: PLC0415

        place = self._place(scheme, path)
        if len(self._files) >= _MAX_FILES:
            raise self._fault(f"the wheels hold more than {_MAX_FILES} files")
        content = self._directory / f"{len(self._files):05d}"
        digest, size_bytes = hashlib.sha256(), 0
        with content.open("wb") as write:
            while piece := stream.read(_PIECE_BYTES):
                size_bytes += len(piece)
                if size_bytes > self._left_bytes:
                    raise self._fault("it unpacks to more than the archive says", path)
                digest.update(piece)
                write.write(piece)
        self._left_bytes -= size_bytes
        kept = _Kept(content, size_bytes, digest.hexdigest(), is_executable, self._wheel)
        before = self._files.get(place)
        if before is not None and before.digest != kept.digest:
            raise self._fault(f"it would replace a file of {before.wheel}", path)
        self._files[place] = kept
        value = base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()
        return RecordEntry(path=path, hash_=Hash("sha256", value), size=size_bytes)

    def _place(self, scheme: str, path: str) -> str:
        """Where in the environment a file of a wheel goes; what would leave it is refused."""
        base = {
            "purelib": self._packages,
            "platlib": self._packages,
            "scripts": "bin",
            "data": "",
            "headers": f"{self._headers}/{self._distribution}",
        }[scheme]
        place = posixpath.join("/", base, path) if not path.startswith("/") else path
        parts = path.split("/")
        hidden = any(ord(char) < 32 or char in "\\\x7f" for char in path)
        if path.startswith("/") or not is_plain(place) or ".." in parts or hidden:
            raise self._fault("it would lie outside of the environment", path)
        if any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
            raise self._fault("its name is too long for a file system", path)
        inside = place[1:]
        if inside in self._reserved or inside.split("/")[0] in _OWN:
            raise self._fault("it would replace a part of the environment itself", path)
        above = posixpath.dirname(inside)
        while above:
            if above in self._files or above in self._reserved:
                raise self._fault("it would lie below a file", path)
            above = posixpath.dirname(above)
        return inside

    def _fault(self, text: str, member: str | None = None) -> AgentArchiveError:
        shown = f"{self._wheel}: {member[:200]!r}" if member else self._wheel
        return AgentArchiveError(
            f"{self._archive}: {shown}: {text}", path=str(self._archive), member=self._wheel,
            hint="Pack it anew from wheels that you trust: edgeslm agent pack",
        )  # fmt: skip

    @contextmanager
    def _wheel_faults(self) -> Iterator[None]:
        """Turn what reading a wheel can raise into an error that names it."""
        from installer.exceptions import InstallerError  # noqa: PLC0415
        from installer.records import InvalidRecordEntry  # noqa: PLC0415

        # The library checks by assertions, and passes on what zipfile, csv and zlib raise over damaged files.
        faults = (
            InstallerError, InvalidRecordEntry, AssertionError, EOFError, KeyError, NotImplementedError,
            RuntimeError, TypeError, ValueError, csv.Error, zipfile.BadZipFile, zlib.error,
        )  # fmt: skip
        try:
            yield
        except faults as error:
            raise self._fault(f"it is no wheel that can be installed: {str(error)[:300]}") from error
