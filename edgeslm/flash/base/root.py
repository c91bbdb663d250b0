"""The files of the root file system, out of packages: one archive that the file system is made of.

What always holds: files keep the owners and times that the packages give them; two runs over the same packages write
the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeslm.errors import PackageFileError, ToolMissingError
from edgeslm.flash.base import books
from edgeslm.flash.base.bytecode import compiled, is_source
from edgeslm.flash.base.deb import opened_data, read_control
from edgeslm.flash.base.fetch import INITRD_PROVIDER, PackageFile, Told
from edgeslm.flash.base.initrd import is_module
from edgeslm.flash.base.recipe import Recipe
from edgeslm.flash.base.settings import is_kept, is_read, system_entries
from edgeslm.flash.bytecode import Compiler
from edgeslm.flash.image.tools import find_tool, run_tool
from edgeslm.flash.tree import Entry

_MERGED = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib"}
_MODULES = "usr/lib/modules/"
_KERNEL = "boot/vmlinuz-"
_BUSYBOX = "usr/bin/busybox"
_BLOCK_BYTES = 4096


@dataclass
class RootFiles:
    """What was found on the way.

    Attributes:
        size_bytes: of all files, each in whole blocks.
        count: of files, directories and links.
        time_s: the newest of the packages' files, which is the time of the image.
        kernel: the kernel itself.
        busybox: its program.
        modules: directory with the kernel's modules, as ``lib/modules/<version>/...``.
        boot: files for the boot partition, by name.
    """

    size_bytes: int = 0
    count: int = 0
    time_s: int = 0
    kernel: bytes = b""
    kernel_version: str = ""
    busybox: bytes = b""
    modules: Path = Path()
    boot: dict[str, bytes] = field(default_factory=dict)


@dataclass
class _Kept:
    """Content and scripts that are needed after all packages were read."""

    files: dict[str, bytes] = field(default_factory=dict)
    library: dict[str, bytes] = field(default_factory=dict)
    scripts: list[str] = field(default_factory=list)
    status: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)


def write_root(
    packages: Sequence[PackageFile],
    recipe: Recipe,
    directory: Path,
    out: Path,
    tell: Told,
    *,
    compiler: Compiler | None = None,
) -> RootFiles:
    """Write the archive of the root file system.

    Args:
        packages: all of them, in the order in which they are put there.
        recipe: says which files go into the boot partition.
        directory: an empty one, for the kernel's modules.
        out: the archive, a tar file.
        compiler: compiles Python's library.

    Raises:
        BaseImageError: the compiler fails.
        PackageFileError: a package is damaged, or the kernel or busybox is not among them.
        ToolMissingError: depmod is not installed.
        OSError: the disk refuses.
    """
    found, kept = RootFiles(modules=directory), _Kept()
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as archive:
        writer = _Writer(archive, found)
        for number, package in enumerate(packages):
            if number % 40 == 0:
                tell(f"reading packages: {number} of {len(packages)}")
            _take(package, recipe, writer, kept, found)
        if not found.kernel or not found.busybox:
            missing = "kernel" if not found.kernel else "busybox"
            raise PackageFileError(f"there is no {missing} among the packages", path=str(out))
        tell("writing down what the kernel's modules need")
        _index_modules(directory, found)
        for path in sorted((directory / "lib/modules" / found.kernel_version).glob("modules.*")):
            target = f"/{_MODULES}{found.kernel_version}/{path.name}"
            if target[1:] not in writer.written:
                kept.entries.append(Entry(target, content=path))
        kept.entries.append(
            Entry("/var/lib/dpkg/status", content="\n".join([*kept.status, INITRD_PROVIDER]).encode())
        )
        kept.entries += [
            Entry("/var/lib/dpkg/info/edgeslm-initrd.list", content=b"/.\n"),
            Entry("/var/lib/dpkg/arch", content=b"arm64\n"),
            Entry("/var/lib/dpkg/available"),
            Entry("/var/lib/dpkg/updates", "directory", mode=0o755),
            *system_entries(kept.files, kept.scripts, time_s=found.time_s),
        ]
        if compiler is not None:
            tell("compiling Python's library")
            kept.entries += compiled(kept.library, compiler)
        for entry in kept.entries:
            writer.add_entry(entry)
    return found


def _take(package: PackageFile, recipe: Recipe, writer: _Writer, kept: _Kept, found: RootFiles) -> None:
    control_files = read_control(package.path)
    control = control_files["control"].decode(errors="replace")
    conffiles = dict.fromkeys(control_files.get("conffiles", b"").decode().split(), "newconffile")
    kept.scripts.append(control_files.get("postinst", b"").decode(errors="replace"))
    paths = []
    with opened_data(package.path) as archive:
        for member in archive:
            name = _plain(member.name, package)
            if not name:
                continue
            paths.append(f"/{name}")
            if not is_kept(name):
                continue
            data = b""
            if member.isreg():
                stream = archive.extractfile(member)
                data = stream.read() if stream else b""
                _keep(name, data, recipe, kept, found)
                if f"/{name}" in conffiles:
                    conffiles[f"/{name}"] = hashlib.md5(data, usedforsecurity=False).hexdigest()
            elif member.islnk():
                member.linkname = _plain(member.linkname, package)
            found.time_s = max(found.time_s, int(member.mtime))
            writer.add(member, name, data)
    stated = {path: digest for path, digest in conffiles.items() if digest != "newconffile"}
    kept.status.append(books.stanza(control, stated))
    kept.entries.extend(books.info_entries(books.stem(control), control_files, paths))


def _keep(name: str, data: bytes, recipe: Recipe, kept: _Kept, found: RootFiles) -> None:
    if is_read(name):
        kept.files[name] = data
    if is_source(name):
        kept.library[name] = data
    if name == _BUSYBOX:
        found.busybox = data
    elif name.startswith(_KERNEL):
        found.kernel, found.kernel_version = data, name.removeprefix(_KERNEL)
    elif name.startswith(_MODULES) and (is_module(name) or "/modules." in name):
        path = found.modules / name.removeprefix("usr/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for part, endings in recipe.firmware:
        if part in name and name.endswith(endings):
            found.boot[posixpath.basename(name)] = data


def _plain(name: str, package: PackageFile) -> str:
    """A path without ``./``, below the directories that /bin, /sbin and /lib lead to.

    Raises:
        PackageFileError: it leads out of the tree.
    """
    plain = posixpath.normpath("/" + name)[1:]
    if ".." in name.split("/") or "\n" in name:
        raise PackageFileError(
            f"{package.file_name} holds a path that leads elsewhere", path=str(package.path)
        )
    first, slash, rest = plain.partition("/")
    return f"{_MERGED[first]}/{rest}" if slash and first in _MERGED else plain


def _index_modules(directory: Path, found: RootFiles) -> None:
    try:
        find_tool("depmod")
    except ToolMissingError as error:
        raise ToolMissingError("depmod", package="kmod") from error
    run_tool(["depmod", "-b", str(directory), found.kernel_version], time_s=found.time_s)


class _Writer:
    """Adds to the archive what the file system is to hold, once for each path.

    Attributes:
        written: all paths that are in it.
    """

    def __init__(self, archive: tarfile.TarFile, found: RootFiles) -> None:
        self._archive = archive
        self._found = found
        self.written: set[str] = set()

    def add(self, member: tarfile.TarInfo, name: str, data: bytes) -> None:
        """Add one of a package, and the directories above it; what is there already is left as it is."""
        if name in self.written:
            return
        for parent in _parents(name):
            if parent not in self.written:
                self.add(self._info(parent, tarfile.DIRTYPE, 0o755), parent, b"")
        self.written.add(name)
        member.name = name
        member.uname = member.gname = ""
        member.mtime = int(member.mtime)
        # mke2fs takes a name that is not ASCII only where the archive says that it is to be taken as it is.
        ascii_only = (member.name + member.linkname).isascii()
        member.pax_headers = {} if ascii_only else {"hdrcharset": "BINARY"}
        self._archive.addfile(member, io.BytesIO(data) if member.isreg() else None)
        self._found.count += 1
        self._found.size_bytes += -(-len(data) // _BLOCK_BYTES) * _BLOCK_BYTES

    def add_entry(self, entry: Entry) -> None:
        """Add one of ours."""
        name = entry.path[1:]
        kinds = {"file": tarfile.REGTYPE, "directory": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE}
        info = self._info(name, kinds[entry.kind], 0o777 if entry.kind == "symlink" else entry.mode)
        info.uid, info.gid, info.linkname = entry.uid, entry.gid, entry.target
        data = b""
        if entry.kind == "file":
            data = entry.content if isinstance(entry.content, bytes) else entry.content.read_bytes()
            info.size = len(data)
        self.add(info, name, data)

    def _info(self, name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.mtime = kind, mode, self._found.time_s
        return info


def _parents(name: str) -> Iterable[str]:
    parts = name.split("/")[:-1]
    return ("/".join(parts[: count + 1]) for count in range(len(parts)))


Read = Callable[[str], bytes | None]


def module_reader(found: RootFiles) -> Read:
    """Reads the kernel's modules by name."""
    from edgeslm.flash.base.initrd import module_name  # noqa: PLC0415

    by_name = {
        module_name(path.name): path
        for path in sorted((found.modules / "lib/modules").rglob("*.ko*"))
        if is_module(path.name)
    }

    def read(name: str) -> bytes | None:
        path = by_name.get(name)
        return None if path is None else path.read_bytes()

    return read


def module_aliases(found: RootFiles) -> dict[str, str]:
    """Names of modules by what else they are asked for as, from what depmod wrote; patterns are left out."""
    lines = (found.modules / "lib/modules" / found.kernel_version / "modules.alias").read_text().splitlines()
    rows = [line.split() for line in lines if line.startswith("alias ") and "*" not in line]
    return {row[1].replace("-", "_"): row[2] for row in reversed(rows) if len(row) == 3}
