"""The content-addressed store of unpacked packages on a device.

::

    <root>/sha256-<hex>/       one package; the name is the sha256 of the .slm file it came from
    <root>/current/<name>      symbolic link: the package that serves as <name>
    <root>/previous/<name>     symbolic link: the one before it, to fall back to
    <root>/.partial-*          work of a living process, or rubbish of a dead one
    <root>/.lock               held while names change

What always holds, whenever power is cut and however many processes work here: a directory ``sha256-*`` is
whole, because it gets that name by one rename after its files, and the directory itself, were synced; a link
is the old one or the new one. Work in progress is locked by its process (`flock`, which dies with
the process), so opening the store clears the dead's work and leaves the living's alone. Packages in use stay
readable through open files and memory maps even when they are removed.

Left to others: which package to run (the agent's updater), and whether a file is one to trust (release
signatures); give `expected_sha256` to tie the two together.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from edgeslm.errors import (
    PackageContentError,
    PackageError,
    PackageHashError,
    PackageSizeError,
    StoreError,
)
from edgeslm.files import sync_directory
from edgeslm.models.archive import fault, layout, sha256_file
from edgeslm.models.package import extract, parse_manifest, read_manifest, writing
from edgeslm.models.packing import measure, serialized
from edgeslm.schema.base import is_identifier
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.package import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest

Slot = Literal["current", "previous"]
SLOTS: tuple[Slot, ...] = ("current", "previous")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PREFIX = "sha256-"
_PARTIAL = ".partial-"
_INSTALL_AGAIN = "Install the package again: the damaged one is replaced"
_SPARE_BYTES = 16 * 2**20
"""Left free by an install: the journal of the agent lives on the same disk."""


class ModelStore:
    """The packages under one directory; any number of processes may work on it at once.

    Attributes:
        root: the directory; it is made when missing.
    """

    def __init__(self, root: Path) -> None:
        """Open the store and clear what dead installs left behind.

        Raises:
            StoreError: `root` is missing and cannot be made, or cannot be cleared.
        """
        self.root = root
        if root.is_dir() and not os.access(root, os.W_OK):
            return  # a reader without write access still lists and verifies
        with writing(root):
            for slot in SLOTS:
                (root / slot).mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._clear_leftovers()

    def install(
        self, slm: Path, *, expected_sha256: str | None = None, verify: bool = False
    ) -> InstalledPackage:
        """Check the package file `slm` and unpack it under its sha256.

        A package that is here already is only checked as by :meth:`get`, or as by :meth:`verify` where that is
        asked for, and with `expected_sha256` the file is not even read; one that is here but damaged is replaced.

        Raises:
            PackageError: what is wrong with the file; :class:`PackageHashError` when not the expected one.
            StoreError: no room, or the disk refuses.
        """
        sha256 = _checked_sha256(expected_sha256) if expected_sha256 is not None else None
        if sha256 is None:
            read_manifest(slm)  # a file that is no package is refused before all of it is read
            sha256 = sha256_file(slm)
        present = self._find_sound(sha256, verify=verify)
        if present is not None:
            return present
        self._need_room(read_manifest(slm))
        with self._partial() as partial:
            unpacked = partial / "package"
            contents = extract(slm, unpacked)
            if contents.sha256 != sha256:
                raise fault(
                    PackageHashError, slm, "is another package than expected",
                    expected=sha256, actual=contents.sha256,
                )  # fmt: skip
            self._commit(unpacked, sha256, partial, verify=verify)
        return InstalledPackage(self._directory(sha256), contents.manifest, sha256)

    def contains(self, sha256: str) -> bool:
        """Whether a package of that digest is installed, sound or not.

        Raises:
            StoreError: `sha256` is none.
        """
        return self._directory(sha256).is_dir()

    def get(self, sha256: str) -> InstalledPackage:
        """The installed package with that digest; manifest, names and sizes are checked, bytes are not.

        Raises:
            StoreError: not installed, or unreadable.
            PackageError: installed, but damaged.
        """
        directory = self._directory(sha256)
        if not directory.is_dir():
            raise StoreError(f"{self.root}: no package {sha256} is installed", path=str(directory))
        manifest = _read_installed_manifest(directory)
        _check_files(directory, manifest)
        return InstalledPackage(directory, manifest, sha256)

    def list(self) -> tuple[InstalledPackage, ...]:
        """All installed packages by name, version and digest.

        Raises:
            StoreError: the store is unreadable.
            PackageError: one of them is damaged; :meth:`remove` it or install it again.
        """
        found = [self.get(digest) for digest in self.digests()]
        return tuple(sorted(found, key=lambda item: (item.manifest.name, item.manifest.version, item.sha256)))

    def verify(self, installed: InstalledPackage) -> None:
        """Read every byte of an installed package and compare it with the digest in its directory's name.

        Raises:
            StoreError: not installed, or unreadable.
            PackageError: damaged, and where.
        """
        directory = installed.directory
        manifest = self.get(installed.sha256).manifest
        names = [MANIFEST_NAME, *manifest.files]
        measured = {name: measure(directory / name) for name in names}
        for name, member in manifest.files.items():
            if measured[name][2] != member.sha256:
                raise fault(
                    PackageHashError, directory, "has another sha256 than the manifest states", member=name,
                    expected=member.sha256, actual=measured[name][2], hint=_INSTALL_AGAIN,
                )  # fmt: skip
        # A package has one byte form, so the file that it came from can be hashed without being there: this
        # covers the manifest, which nothing else does.
        entries = layout({name: (size, crc32) for name, (size, crc32, _) in measured.items()})
        digest = hashlib.sha256()
        for chunk in serialized(entries, {name: directory / name for name in names}):
            digest.update(chunk)
        if digest.hexdigest() != installed.sha256:
            raise fault(
                PackageHashError, directory, "is another package than its directory says",
                member=MANIFEST_NAME, expected=installed.sha256, actual=digest.hexdigest(),
                hint=_INSTALL_AGAIN,
            )  # fmt: skip

    def remove(self, sha256: str) -> bool:
        """Remove a package, sound or not; returns whether there was one.

        Raises:
            StoreError: it is current or previous for some name, or the disk refuses.
        """
        directory = self._directory(sha256)
        with self._partial() as partial, self._locked():
            for slot in SLOTS:
                for link in _children(self.root / slot):
                    if self._read_link(slot, link.name) == sha256:
                        raise StoreError(
                            f"{self.root}: package {sha256} is {slot} for {link.name}",
                            path=str(link),
                            hint="Make another package current, or drop the previous one, before removing it",
                        )
            if not directory.is_dir():
                return False
            with writing(directory):
                directory.rename(partial / "removed")
                sync_directory(self.root)
            return True

    def set_current(self, name: str, sha256: str) -> InstalledPackage:
        """Let the package `sha256` serve as `name`; what did so before becomes the previous one.

        Doing it twice is doing it once, so that a journal may repeat it after a power cut.

        Raises:
            StoreError: not installed, a package of another name, or the disk refuses.
            PackageError: installed, but damaged.
        """
        _check_name(name)
        with self._locked():
            installed = self.get(sha256)
            if installed.manifest.name != name:
                raise StoreError(
                    f"{self.root}: package {sha256} is {installed.manifest.name}, not {name}",
                    path=str(installed.directory),
                )
            before = self._read_link("current", name)
            if before == sha256:
                return installed
            # Previous first: cut off between the two, the package in service is still current.
            if before is not None:
                self._write_link("previous", name, before)
            self._write_link("current", name, sha256)
            return installed

    def drop_previous(self, name: str) -> None:
        """Give up what `name` could fall back to, if anything, so that it can be removed.

        Raises:
            StoreError: the disk refuses.
        """
        _check_name(name)
        with self._locked(), writing(self.root / "previous" / name):
            (self.root / "previous" / name).unlink(missing_ok=True)
            sync_directory(self.root / "previous")

    def drop_current(self, name: str) -> None:
        """Let no package serve as `name` any longer, and none be its previous one.

        Raises:
            StoreError: the disk refuses.
        """
        _check_name(name)
        with self._locked():
            for slot in SLOTS:
                with writing(self.root / slot / name):
                    (self.root / slot / name).unlink(missing_ok=True)
                    sync_directory(self.root / slot)

    def digests(self) -> tuple[str, ...]:
        """sha256 of every installed package, sound or not, in order.

        Raises:
            StoreError: the store is unreadable.
        """
        names = [
            path.name.removeprefix(_PREFIX) for path in _children(self.root) if path.name.startswith(_PREFIX)
        ]
        return tuple(name for name in names if _SHA256.fullmatch(name))

    def names(self, slot: Slot) -> tuple[str, ...]:
        """Names for which some package is current or previous, in order.

        Raises:
            StoreError: the store is unreadable.
        """
        return tuple(link.name for link in _children(self.root / slot))

    def digest(self, slot: Slot, name: str) -> str | None:
        """sha256 of the package that is current or previous for `name`, whether it is installed or not.

        Raises:
            StoreError: the link is broken.
        """
        _check_name(name)
        return self._read_link(slot, name)

    def current(self, name: str) -> InstalledPackage | None:
        """The package that serves as `name`, or ``None`` if none was ever chosen.

        Raises:
            StoreError: the link is broken.
            PackageError: the package is damaged.
        """
        return self._linked("current", name)

    def previous(self, name: str) -> InstalledPackage | None:
        """The package that served as `name` before the current one; otherwise as :meth:`current`."""
        return self._linked("previous", name)

    # --- parts ---

    def _directory(self, sha256: str) -> Path:
        return self.root / f"{_PREFIX}{_checked_sha256(sha256)}"

    def _find_sound(self, sha256: str, *, verify: bool) -> InstalledPackage | None:
        if not self.contains(sha256):
            return None
        try:
            found = self.get(sha256)
            if verify:
                self.verify(found)
        except PackageError:
            return None  # installing again is the cure
        return found

    def _need_room(self, manifest: Manifest) -> None:
        members_bytes = sum(member.size_bytes for member in manifest.files.values())
        needed_bytes = MAX_MANIFEST_BYTES + members_bytes + _SPARE_BYTES
        with writing(self.root):
            free_bytes = shutil.disk_usage(self.root).free
        if needed_bytes > free_bytes:
            raise StoreError(
                f"{self.root}: no room for {manifest.name} {manifest.version}: it needs "
                f"{needed_bytes / 2**20:.0f} MiB, {free_bytes / 2**20:.0f} MiB are free",
                path=str(self.root),
                needed_bytes=needed_bytes,
                free_bytes=free_bytes,
                hint="Remove a package that is no longer needed",
            )

    def _commit(self, unpacked: Path, sha256: str, partial: Path, *, verify: bool) -> None:
        """Give `unpacked` its name, unless another process was first; a damaged one moves out of the way."""
        directory = self._directory(sha256)
        with self._locked(), writing(directory):
            if self._find_sound(sha256, verify=verify) is not None:
                return
            if directory.is_dir():
                directory.rename(partial / "damaged")
            os.replace(unpacked, directory)  # noqa: PTH105 - named so that a test can let it fail
            sync_directory(self.root)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclude every other process and thread while names change. Not reentrant."""
        with writing(self.root):
            descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with writing(self.root):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _partial(self) -> Iterator[Path]:
        """A working directory in the store that is gone in the end, and that nobody clears before."""
        with self._locked(), writing(self.root):
            path = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self.root))
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)

    def _clear_leftovers(self) -> None:
        for path in self.root.glob(f"{_PARTIAL}*"):
            if path.is_symlink():  # links are made under the lock that we hold: its maker is dead
                path.unlink(missing_ok=True)
                continue
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # its owner was faster
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            except BlockingIOError:
                pass  # its owner lives
            finally:
                os.close(descriptor)

    def _linked(self, slot: Slot, name: str) -> InstalledPackage | None:
        _check_name(name)
        sha256 = self._read_link(slot, name)
        return None if sha256 is None else self.get(sha256)

    def _read_link(self, slot: Slot, name: str) -> str | None:
        link = self.root / slot / name
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            return None
        except OSError as error:
            what = (
                "is no symbolic link" if error.errno == errno.EINVAL else f"cannot be read: {error.strerror}"
            )
            raise StoreError(f"{link}: {what}", path=str(link)) from error
        sha256 = target.removeprefix(f"../{_PREFIX}")
        if not _SHA256.fullmatch(sha256):
            raise StoreError(
                f"{link}: points to {ascii(target)[:120]}, which is no package of this store", path=str(link)
            )
        return sha256

    def _write_link(self, slot: Slot, name: str, sha256: str) -> None:
        link = self.root / slot / name
        temporary = self.root / f"{_PARTIAL}{secrets.token_hex(8)}"
        with writing(link):
            try:
                temporary.symlink_to(f"../{_PREFIX}{sha256}")
                os.replace(temporary, link)  # noqa: PTH105 - as in _commit
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync_directory(link.parent)


def _checked_sha256(sha256: str) -> str:
    # What is asked for becomes part of a path.
    if not _SHA256.fullmatch(sha256):
        raise StoreError(f"{ascii(sha256)[:80]} is no sha256 in 64 lower-case hexadecimal digits")
    return sha256


def _check_name(name: str) -> None:
    if not is_identifier(name) or name.endswith("\n"):
        raise StoreError(f"{ascii(name)[:80]} cannot be the name of a model")


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError as error:
        raise StoreError(f"{directory}: cannot be read: {error.strerror}", path=str(directory)) from error


def _read_installed_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST_NAME
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError as error:
        raise fault(
            PackageContentError, directory, "is missing", member=MANIFEST_NAME, hint=_INSTALL_AGAIN
        ) from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}", path=str(path)) from error
    return parse_manifest(data, directory)


def _check_files(directory: Path, manifest: Manifest) -> None:
    """What can be told without reading: members and nothing else are there, as files of the right sizes."""
    found = {path.name: path for path in _children(directory)}
    for name in sorted(found.keys() ^ {MANIFEST_NAME, *manifest.files}):
        what = "is not part of the package" if name in found else "is missing"
        raise fault(PackageContentError, directory, what, member=name, hint=_INSTALL_AGAIN)
    for name, member in manifest.files.items():
        status = _status(found[name])
        if not stat.S_ISREG(status.st_mode):
            raise fault(PackageContentError, directory, "is not a file", member=name, hint=_INSTALL_AGAIN)
        if status.st_size != member.size_bytes:
            raise fault(
                PackageSizeError, directory, "has another size than the manifest states", member=name,
                expected=f"{member.size_bytes} bytes", actual=f"{status.st_size} bytes", hint=_INSTALL_AGAIN,
            )  # fmt: skip


def _status(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}", path=str(path)) from error
