"""Writing ``.slm`` files.

The same draft and members always give the same bytes: :mod:`edgeslm.models.archive` fixes the byte form,
and the manifest is written with sorted keys and only what the draft says (a field that a later release adds
with a default stays out of packages that do not use it, so that older releases go on reading them).

A package takes its name only once it has been read back and has passed every check that a device makes;
after a fault, what had the name before still has it. Left to others: making the members
(:mod:`edgeslm.forge`).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from pydantic import ValidationError

from edgeslm.codec import describe
from edgeslm.errors import (
    PackageContentError,
    PackageError,
    PackageFormatError,
    PackagePathError,
    PackageSizeError,
)
from edgeslm.files import sync_directory
from edgeslm.models.archive import (
    CHUNK_BYTES,
    FILE_NAME,
    Entry,
    archive_size_bytes,
    directory,
    fault,
    layout,
    local_header,
    open_regular,
)
from edgeslm.models.package import check_package, writing
from edgeslm.schema.package import MANIFEST_NAME, MAX_MANIFEST_BYTES, MAX_MEMBERS, MAX_PACKAGE_BYTES, Manifest

DRAFT_NAMES = (MANIFEST_NAME, "manifest.yaml")
RULES_NAME = "rules"
_RULES_SUFFIXES = (".yaml", ".yml")


Examine = Callable[[Manifest, Mapping[str, Path]], None]
"""Raises what is wrong with a package that is about to be written: its manifest, and the file under each name."""


def _find_nothing(_: Manifest, __: Mapping[str, Path]) -> None:
    """All that can be told without a runtime is looked at anyway."""


def pack(
    draft: Mapping[str, object],
    members: Mapping[str, Path],
    out: Path,
    examine: Examine = _find_nothing,
) -> str:
    """Write the package `out`, replacing a file of that name.

    Args:
        draft: the manifest without ``files``, which is computed.
        members: the file to store under each name; each has to be one that the draft or nobody refers to.
        out: path of the new package; its directory exists.
        examine: looks at it further, before anything is written.

    Returns:
        Hex sha256 of the package.

    Raises:
        PackageError: what is wrong with the draft or a member, as a device would find it.
        StoreError: `out` cannot be written.
        EdgeslmError: what `examine` raises.
    """
    if "files" in draft:
        raise fault(
            PackageFormatError, out, "the draft states 'files', which are computed", member=MANIFEST_NAME
        )
    _check_member_names(members, out)
    measured = {name: measure(source) for name, source in members.items()}
    files = {name: {"sha256": sha256, "size_bytes": size} for name, (size, _, sha256) in measured.items()}
    stated = _manifest({**draft, "files": files}, out)
    manifest = _manifest_bytes(stated, out)
    examine(stated, members)
    sizes = {name: (size, crc32) for name, (size, crc32, _) in measured.items()}
    entries = layout({MANIFEST_NAME: (len(manifest), zlib.crc32(manifest)), **sizes})
    if archive_size_bytes(entries) > MAX_PACKAGE_BYTES:
        raise fault(
            PackageSizeError, out, "would be larger than a package can be",
            expected=f"at most {MAX_PACKAGE_BYTES} bytes", actual=f"{archive_size_bytes(entries)} bytes",
        )  # fmt: skip
    with _replacing(out) as temporary:
        with writing(out), temporary.open("wb") as stream:
            for chunk in serialized(entries, {MANIFEST_NAME: manifest, **members}):
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        return check_package(temporary, shown_as=out).sha256


def pack_directory(
    source: Path, out: Path, rules: Path | None = None, examine: Examine = _find_nothing
) -> str:
    """Write the package `out` from the files of a directory; see :func:`pack`.

    Args:
        source: holds ``manifest.json`` or ``manifest.yaml`` without ``files``; every other file is a member, and so are
            the files of rules in a directory ``rules`` below it.
        out: path of the new package, outside of `source`.
        rules: directory of rules to take instead.
        examine: as for :func:`pack`.

    Raises:
        PackageError: what is wrong with `source`, the draft or a member.
        StoreError: `out` cannot be written.
        EdgeslmError: what `examine` raises.
    """
    try:
        paths = {path.name: path for path in source.iterdir()}
    except OSError as error:
        raise fault(PackageError, source, f"cannot be read: {error.strerror}") from error
    drafts = [name for name in DRAFT_NAMES if name in paths]
    if len(drafts) != 1:
        raise fault(
            PackageFormatError, source, "needs one draft of a manifest",
            expected=" or ".join(DRAFT_NAMES), actual=" and ".join(drafts) or "neither",
        )  # fmt: skip
    draft = _read_draft(paths.pop(drafts[0]))
    if RULES_NAME in paths and paths[RULES_NAME].is_dir():
        rules = paths.pop(RULES_NAME) if rules is None else rules
        paths.pop(RULES_NAME, None)
    found = {} if rules is None else rule_members(rules)
    if found:
        if "rules" in draft:
            raise fault(
                PackageFormatError, source, "the draft states 'rules', and there is a directory of them",
                member=drafts[0],
            )  # fmt: skip
        draft = {**draft, "rules": list(found)}
    return pack(draft, {**paths, **found}, out, examine)


def rule_members(directory: Path) -> dict[str, Path]:
    """The files of rules in `directory`, each with the name that it has in a package.

    Raises:
        PackageError: the directory cannot be read, or holds something else or nothing.
    """
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise fault(PackageError, directory, f"cannot be read: {error.strerror}") from error
    for path in paths:
        if path.suffix not in _RULES_SUFFIXES or not path.is_file():
            raise fault(
                PackageContentError, directory, "is no file of rules", member=path.name,
                expected=" or ".join(f"*{suffix}" for suffix in _RULES_SUFFIXES), actual=ascii(path.name[:80]),
            )  # fmt: skip
    if not paths:
        raise fault(PackageContentError, directory, "holds no file of rules")
    return {f"{RULES_NAME}.{path.name}": path for path in paths}


def measure(source: Path) -> tuple[int, int, str]:
    """Size in bytes, CRC-32 and hex sha256 of the file at `source`.

    Raises:
        PackageError: it cannot be read or is no regular file.
    """
    size_bytes, crc32, digest = 0, 0, hashlib.sha256()
    for chunk in _chunks(source):
        size_bytes += len(chunk)
        crc32 = zlib.crc32(chunk, crc32)
        digest.update(chunk)
    return size_bytes, crc32, digest.hexdigest()


def checksum(source: Path) -> tuple[int, int]:
    """Size in bytes and CRC-32 of the file at `source`; several times faster than :func:`measure`.

    Raises:
        PackageError: it cannot be read or is no regular file.
    """
    size_bytes, crc32 = 0, 0
    for chunk in _chunks(source):
        size_bytes += len(chunk)
        crc32 = zlib.crc32(chunk, crc32)
    return size_bytes, crc32


def serialized(entries: Sequence[Entry], sources: Mapping[str, Path | bytes]) -> Iterator[bytes]:
    """The bytes of a package, chunk by chunk.

    Args:
        entries: as :func:`edgeslm.models.archive.layout` gives them.
        sources: the file of each member, or its bytes.

    Raises:
        PackageError: a member cannot be read.
    """
    for entry in entries:
        yield local_header(entry)
        source = sources[entry.name]
        if isinstance(source, bytes):
            yield source
        else:
            yield from _chunks(source)
    yield directory(entries)


def _chunks(path: Path) -> Iterator[bytes]:
    with open_regular(path, path) as stream:
        while True:
            try:
                chunk = stream.read(CHUNK_BYTES)
            except OSError as error:
                raise fault(PackageError, path, f"cannot be read: {error.strerror}") from error
            if not chunk:
                return
            yield chunk


def _check_member_names(members: Mapping[str, Path], out: Path) -> None:
    if len(members) > MAX_MEMBERS:
        raise fault(
            PackageSizeError, out, "has too many members",
            expected=f"at most {MAX_MEMBERS}", actual=str(len(members)),
        )  # fmt: skip
    for name, source in members.items():
        if not FILE_NAME.fullmatch(name) or name == MANIFEST_NAME:
            raise fault(
                PackagePathError, out, "cannot be the name of a member", member=name,
                expected=FILE_NAME.pattern, actual=ascii(name[:80]),
            )  # fmt: skip
        if source.is_symlink() or not source.is_file():
            raise fault(
                PackagePathError, out, f"{source} is not a file", member=name,
                expected="regular file", actual="something else" if source.exists() else "nothing",
            )  # fmt: skip


def _manifest(draft: Mapping[str, object], out: Path) -> Manifest:
    try:
        return Manifest.model_validate(draft)
    except ValidationError as error:
        raise fault(PackageFormatError, out, describe(error), member=MANIFEST_NAME) from error


def _manifest_bytes(manifest: Manifest, out: Path) -> bytes:
    try:
        fields = manifest.model_dump(mode="json", exclude_unset=True)
        return json.dumps(fields, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
    except ValueError as error:
        raise fault(PackageFormatError, out, f"cannot be JSON: {error}", member=MANIFEST_NAME) from error


def _read_draft(path: Path) -> dict[str, object]:
    """The draft in `path`; the safe loader of YAML makes plain values only."""
    data = b"".join(_chunks(path))
    if len(data) > MAX_MANIFEST_BYTES:
        raise fault(
            PackageSizeError, path, "is larger than allowed",
            expected=f"at most {MAX_MANIFEST_BYTES} bytes", actual=f"{len(data)} bytes",
        )  # fmt: skip
    try:
        draft = yaml.safe_load(data) if path.suffix == ".yaml" else json.loads(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise fault(PackageFormatError, path, f"cannot be parsed: {str(error)[:300]}") from error
    if not isinstance(draft, dict):
        raise fault(
            PackageContentError, path, "is not a manifest", expected="mapping", actual=type(draft).__name__
        )
    return draft


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A temporary file beside `out` that takes its place when the block ends well, and is gone otherwise."""
    with writing(out):
        descriptor, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
        os.fchmod(descriptor, 0o644)
        os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with writing(out):
            temporary.replace(out)
            sync_directory(out.parent)
    finally:
        temporary.unlink(missing_ok=True)
