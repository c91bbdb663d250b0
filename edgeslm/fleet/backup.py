"""Backup of a whole fleet in one file, and back.

::

    manifest.json     what this is
    store.db          the store, as SQLite, whatever database it is in
    files/...         everything else of the fleet's directory, keys included

What always holds: a backup shows one state of the store; it is for its owner alone, since who has it has the fleet;
restoring never writes over a fleet, leaves nothing behind when it fails, and takes no path out of the archive on
trust. What a broker keeps of itself (sessions, retained messages) is left out: devices bring it again. So
are the figures that devices reported, which are large and worth little without the devices.

The archive is a plain tar: models do not compress.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path, PurePosixPath

from edgeslm.errors import FleetError, FleetSetupError, FleetVersionError
from edgeslm.files import PARTIAL, sync_directory
from edgeslm.fleet.directory import CONFIG, DATABASE, FleetDirectory, settings_text
from edgeslm.fleet.store.database import HEAD, Store, sqlite_url

_FORMAT = 1
_MANIFEST, _STORE, _FILES = "manifest.json", "store.db", "files"
_LEFT_OUT = (
    "broker/data",
    "broker/mosquitto.pid",
    "broker/door.pid",
    "broker/mosquitto.log",
    *(f"metrics.db{suffix}" for suffix in ("", "-wal", "-shm")),
)
_MAX_MANIFEST_BYTES = 65_536
_MAX_MEMBERS = 1_000_000
_COPY_BYTES = 2**20


def write_backup(fleet: FleetDirectory, file: Path, now: datetime) -> int:
    """Write a backup of `fleet` to the new file `file`; its size in bytes.

    Raises:
        FleetSetupError: the file exists.
        FleetError: the disk or the store refuses.
    """
    if file.exists():
        raise FleetSetupError(f"{file} exists already", path=str(file), hint="Take another name")
    partial = file.with_name(f"{PARTIAL}{file.name}")
    manifest = {"v": _FORMAT, "fleet": fleet.name, "revision": HEAD, "made_at": now.isoformat()}
    try:
        with tempfile.TemporaryDirectory(prefix="edgeslm-backup-") as name:
            copy = Path(name) / _STORE
            _copy_store(fleet, copy)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                with tarfile.open(fileobj=stream, mode="w") as archive:
                    _add_bytes(archive, _MANIFEST, json.dumps(manifest).encode(), now)
                    archive.add(copy, _STORE)
                    for path, relative in _files(fleet.root):
                        archive.add(path, f"{_FILES}/{relative}", recursive=False)
                stream.flush()
                os.fsync(stream.fileno())
        partial.rename(file)
        sync_directory(file.parent)
        return file.stat().st_size
    except OSError as error:
        raise FleetError(f"{error.filename or file}: {error.strerror}", path=str(file)) from error
    finally:
        partial.unlink(missing_ok=True)


def restore_backup(file: Path, root: Path, *, database: str | None = None) -> FleetDirectory:
    """Make the fleet in `file` anew at `root`.

    Args:
        file: a backup.
        root: directory that does not exist, or is empty.
        database: URL of an empty database to put the store into; ``None`` for the one in the fleet's settings.

    Raises:
        FleetSetupError: `root` is in use, or `file` is no backup.
        FleetVersionError: a newer release made it.
        FleetError: the disk or the database refuses.
    """
    if root.exists() and any(root.iterdir()):
        raise FleetSetupError(f"{root} is not empty", path=str(root), hint="Restore to a new directory")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=root.parent) as name:
            work = Path(name) / "fleet"
            store = Path(name) / _STORE
            work.mkdir(mode=0o700)
            _unpack(file, work, store)
            fleet = FleetDirectory(work)
            url = database or fleet.config.database
            if url is None:
                shutil.move(store, work / DATABASE)
                fleet.open_store().close()
            else:
                _copy_rows(store, url)
            if database is not None:
                settings = fleet.config.model_copy(update={"database": database})
                (work / CONFIG).write_text(settings_text(settings), "utf-8")
            if root.exists():
                root.rmdir()
            work.rename(root)
            sync_directory(root.parent)
    except OSError as error:
        raise FleetError(f"{error.filename or root}: {error.strerror}", path=str(root)) from error
    return FleetDirectory(root)


# --- inside -------------------------------------------------------------------------------------------------


def _copy_store(fleet: FleetDirectory, to: Path) -> None:
    source, target = fleet.open_store(), Store(sqlite_url(to))
    try:
        source.copy_to(target)
    finally:
        source.close()
        target.close()


def _copy_rows(store: Path, url: str) -> None:
    source, target = Store(sqlite_url(store)), Store(url)
    try:
        source.copy_to(target)
    finally:
        source.close()
        target.close()


def _files(root: Path) -> Iterator[tuple[Path, str]]:
    """Every file of a fleet's directory that belongs into a backup, with its path below it."""
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root).as_posix()
        is_ours = path.is_file() and not path.is_symlink() and not path.name.startswith(".")
        is_store = relative.split("/")[0].startswith(DATABASE)
        is_left_out = any(relative == name or relative.startswith(f"{name}/") for name in _LEFT_OUT)
        if is_ours and not is_store and not is_left_out:
            yield path, relative


def _add_bytes(archive: tarfile.TarFile, name: str, data: bytes, now: datetime) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o600, int(now.timestamp())
    archive.addfile(member, io.BytesIO(data))


def _unpack(file: Path, root: Path, store: Path) -> None:
    try:
        with tarfile.open(file, mode="r:") as archive:
            _check_manifest(archive, file)
            for count, member in enumerate(archive):
                if count > _MAX_MEMBERS:
                    raise _no_backup(file, "too many files")
                if member.name == _MANIFEST:
                    continue
                target = _target(member, root, store)
                if target is None:
                    raise _no_backup(file, f"an entry '{member.name[:80]}'")
                stream = archive.extractfile(member)
                if stream is None:
                    raise _no_backup(file, f"an entry '{member.name[:80]}'")
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with target.open("xb") as out:
                    shutil.copyfileobj(stream, out, _COPY_BYTES)
                    out.flush()
                    os.fsync(out.fileno())
                target.chmod(0o600 if member.mode & 0o077 == 0 else 0o644)
    except tarfile.TarError as error:
        raise _no_backup(file, str(error)) from error
    if not (root / CONFIG).is_file() or not store.is_file():
        raise _no_backup(file, "settings or store are missing")


def _check_manifest(archive: tarfile.TarFile, file: Path) -> None:
    member = archive.next()
    stream = (
        archive.extractfile(member)
        if member is not None and member.name == _MANIFEST and member.isreg()
        else None
    )
    if member is None or stream is None or member.size > _MAX_MANIFEST_BYTES:
        raise _no_backup(file, "it does not begin with a manifest")
    try:
        manifest = json.loads(stream.read())
        version, revision = int(manifest["v"]), str(manifest["revision"])
    except (ValueError, KeyError, TypeError) as error:
        raise _no_backup(file, "its manifest is damaged") from error
    if version > _FORMAT or revision > HEAD:
        raise FleetVersionError(
            f"{file} was made by a newer release (store {revision})",
            found=revision,
            known=HEAD,
            hint="Use that release, or a newer one",
        )


def _target(member: tarfile.TarInfo, root: Path, store: Path) -> Path | None:
    """Where an entry goes; ``None`` for one that is none of a backup."""
    parts = PurePosixPath(member.name).parts
    if not member.isreg():
        return None
    if parts == (_STORE,):
        return store
    if len(parts) < 2 or parts[0] != _FILES or member.name != "/".join(parts) or ".." in parts:
        return None
    return root.joinpath(*parts[1:])


def _no_backup(file: Path, reason: str) -> FleetSetupError:
    return FleetSetupError(f"{file} is no backup of a fleet: {reason}", path=str(file))
