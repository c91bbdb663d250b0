"""What a ``.slm`` file holds: reading, checking and unpacking it.

What always holds:

* A package is hostile until its last byte was read. Every fault is a :class:`PackageError` that names the
  file and, where there is one to blame, the member, what was expected and what was found.
* Memory is bounded by the limits below, whatever a header or the manifest claims. Nothing is decompressed,
  nothing executed.
* What was unpacked with a fault is gone when the error is raised.

Left to others: the byte form of the file (:mod:`edgeslm.models.archive`), whole packages after power cuts
(:mod:`edgeslm.models.store`), writing packages (:mod:`edgeslm.models.packing`), and whether a graph computes
what it should (the runtime's golden vector).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from edgeslm.codec import describe
from edgeslm.errors import (
    PackageContentError,
    PackageFormatError,
    PackageHashError,
    PackageSizeError,
    RuleFileError,
    StoreError,
)
from edgeslm.files import sync_directory
from edgeslm.models.archive import (
    Entry,
    directory,
    fault,
    local_header,
    open_regular,
    read_chunks,
    read_exactly,
    too_large,
)
from edgeslm.models.archive_reader import check_crc32, check_header, read_entries
from edgeslm.schema.package import (
    BUNDLE,
    FORMAT_VERSION,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    MAX_RULE_FILE_BYTES,
    GoldenCase,
    Manifest,
    TokenizerSpec,
)

MAX_TOKENIZER_BYTES = 64 * 2**20
MAX_GOLDEN_BYTES = 2**20

_GRAPH_HEAD_BYTES = 8
_GRAPH_IDENTIFIER = b"TFL3"
_BUNDLE_IDENTIFIER = b"LITERTLM"
_SENTENCEPIECE = re.compile(rb"\n[\x80-\xff]?[\x01-\x7f]\n[\x80-\xff]?[\x01-\x7f]")
"""A message that begins with a piece, which begins with its text."""


@dataclass(frozen=True)
class Contents:
    """What a reading of the whole package found.

    Attributes:
        sha256: of the whole file.
        size_bytes: of the whole file.
        golden_cases: lines of ``golden.jsonl``.
    """

    manifest: Manifest
    sha256: str
    size_bytes: int
    golden_cases: int


@dataclass(frozen=True)
class _Opened:
    path: Path
    stream: BufferedReader
    size_bytes: int
    entries: tuple[Entry, ...]
    manifest: Manifest
    manifest_sha256: str


# --- reading ------------------------------------------------------------------------------------------------


def read_manifest(path: Path) -> Manifest:
    """The manifest of the package file at `path`.

    The container is checked as a whole, the bytes of the other members are not.

    Raises:
        PackageError: the file cannot be read, or one of its subclasses for what is wrong with it.
    """
    with _opened(path, path) as opened:
        return opened.manifest


def read_rules(path: Path) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest of the package file at `path`, and its files of rules by member.

    Raises:
        PackageError: as for :func:`read_manifest`.
    """
    with _opened(path, path) as opened:
        found = {}
        for entry in opened.entries:
            if entry.name in opened.manifest.rules:
                data = read_exactly(opened.stream, entry.size_bytes, path, at=entry.data_offset)
                _check_sha256(opened, entry, hashlib.sha256(data).hexdigest())
                found[entry.name] = data
        return opened.manifest, found


def check_package(path: Path, *, shown_as: Path | None = None) -> Contents:
    """Read the whole package at `path` and check everything that unpacking checks, without writing.

    Args:
        path: the package file.
        shown_as: path to name in errors, where the file is about to be renamed.

    Raises:
        PackageError: as for :func:`read_manifest`.
    """
    with _opened(path, shown_as or path) as opened:
        return _read_through(opened, None)


def unpack(path: Path, into: Path) -> Manifest:
    """Unpack the package at `path` into the new directory `into`; see :func:`extract`."""
    return extract(path, into).manifest


def extract(path: Path, into: Path) -> Contents:
    """Unpack the package at `path` into the new directory `into`, whose parent exists.

    Files and directory are synced to the disk. After a crash `into` may be incomplete; after an error it is
    gone.

    Raises:
        PackageError: as for :func:`read_manifest`.
        StoreError: `into` exists or cannot be written.
    """
    with _opened(path, path) as opened:
        with writing(into):
            into.mkdir()
        try:
            contents = _read_through(opened, into)
            with writing(into):
                sync_directory(into)
        except BaseException:
            shutil.rmtree(into, ignore_errors=True)
            raise
        return contents


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """The manifest in `data`.

    Args:
        data: bytes of ``manifest.json``.
        path: package file or directory, for errors.

    Raises:
        PackageSizeError: too large to be parsed.
        PackageFormatError: not JSON, of another format version, or not a manifest.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise too_large(path, MANIFEST_NAME, len(data), MAX_MANIFEST_BYTES)
    try:
        value = from_json(data, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        reason = f"is not JSON: {str(error)[:200]}"
        raise fault(PackageFormatError, path, reason, member=MANIFEST_NAME) from error
    # Asked before the schema: a later format would fail in ways that say nothing about the reason.
    version = value.get("format") if isinstance(value, dict) else None
    if type(version) is not int:
        raise fault(
            PackageFormatError, path, "has no format version", member=MANIFEST_NAME,
            expected=str(FORMAT_VERSION), actual=ascii(version)[:40],
        )  # fmt: skip
    if version != FORMAT_VERSION:
        raise fault(
            PackageFormatError, path, f"is of package format {version}; this release knows {FORMAT_VERSION}",
            member=MANIFEST_NAME, expected=str(FORMAT_VERSION), actual=str(version),
            hint="Install a release of edgeslm that knows it" if version > FORMAT_VERSION else None,
        )  # fmt: skip
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise fault(PackageFormatError, path, describe(error), member=MANIFEST_NAME) from error


@contextmanager
def _opened(path: Path, shown: Path) -> Iterator[_Opened]:
    with open_regular(path, shown) as stream:
        size_bytes = os.fstat(stream.fileno()).st_size
        entries = read_entries(stream, size_bytes, shown)
        data = read_exactly(stream, entries[0].size_bytes, shown, at=entries[0].data_offset)
        check_crc32(shown, entries[0], zlib.crc32(data))
        manifest = parse_manifest(data, shown)
        _check_against_manifest(manifest, entries, shown)
        yield _Opened(shown, stream, size_bytes, entries, manifest, hashlib.sha256(data).hexdigest())


# --- the members --------------------------------------------------------------------------------------------


def _check_against_manifest(manifest: Manifest, entries: Sequence[Entry], path: Path) -> None:
    sizes = {entry.name: entry.size_bytes for entry in entries if entry.name != MANIFEST_NAME}
    for name in sorted(sizes.keys() ^ manifest.files.keys()):
        if name in sizes:
            raise fault(
                PackageContentError, path, "is not named by the manifest", member=name,
                expected="only members that the manifest names", actual=name,
            )  # fmt: skip
        raise fault(
            PackageContentError, path, "is named by the manifest but missing", member=name,
            expected=name, actual="nothing",
        )  # fmt: skip
    for name, member in manifest.files.items():
        if member.size_bytes != sizes[name]:
            raise fault(
                PackageSizeError, path, "has another size than the manifest states", member=name,
                expected=f"{member.size_bytes} bytes", actual=f"{sizes[name]} bytes",
            )  # fmt: skip
    for name, limit_bytes in _parsed_members(manifest):
        if sizes[name] > limit_bytes:
            raise too_large(path, name, sizes[name], limit_bytes)


def _parsed_members(manifest: Manifest) -> list[tuple[str, int]]:
    """Members that are read into memory as a whole, with the most bytes that they may have."""
    parsed = []
    if manifest.tokenizer is not None:
        parsed.append((manifest.tokenizer.file, MAX_TOKENIZER_BYTES))
    if manifest.golden is not None:
        parsed.append((manifest.golden, MAX_GOLDEN_BYTES))
    parsed += [(name, MAX_RULE_FILE_BYTES) for name in manifest.rules]
    return parsed


def _read_through(opened: _Opened, into: Path | None) -> Contents:
    """Read every byte once, in order: hash the whole and each member, keep what is parsed, write all."""
    whole = hashlib.sha256()
    keep_bytes = dict.fromkeys((graph.file for graph in opened.manifest.graphs), _GRAPH_HEAD_BYTES)
    keep_bytes.update(_parsed_members(opened.manifest))
    kept: dict[str, bytes] = {}
    opened.stream.seek(0)
    for entry in opened.entries:
        header = read_exactly(opened.stream, len(local_header(entry)), opened.path)
        check_header(entry, header, opened.path)
        whole.update(header)
        digest, crc32, head = hashlib.sha256(), 0, bytearray()
        with _member_writer(into, entry.name) as write:
            for chunk in read_chunks(opened.stream, entry.size_bytes, opened.path):
                whole.update(chunk)
                digest.update(chunk)
                crc32 = zlib.crc32(chunk, crc32)
                head += chunk[: max(0, keep_bytes.get(entry.name, 0) - len(head))]
                write(chunk)
        _check_sha256(opened, entry, digest.hexdigest())
        check_crc32(opened.path, entry, crc32)
        kept[entry.name] = bytes(head)
    tail = directory(opened.entries)
    if read_exactly(opened.stream, len(tail), opened.path) != tail or opened.stream.read(1):
        raise fault(PackageFormatError, opened.path, "changed while it was read")
    whole.update(tail)
    golden_cases = _check_contents(opened.manifest, kept, opened.path)
    return Contents(opened.manifest, whole.hexdigest(), opened.size_bytes, golden_cases)


def _check_sha256(opened: _Opened, entry: Entry, actual: str) -> None:
    # The manifest cannot name its own digest; it has to be the one that was parsed.
    named = opened.manifest.files.get(entry.name)
    expected = named.sha256 if named is not None else opened.manifest_sha256
    if actual != expected:
        raise fault(
            PackageHashError, opened.path, "has another sha256 than it should", member=entry.name,
            expected=expected, actual=actual, hint="Fetch it again",
        )  # fmt: skip


# --- what members have to be --------------------------------------------------------------------------------


class _JsonObject(BaseModel):
    """Any JSON object."""


class _TokenizerFile(BaseModel):
    """As much of a `tokenizers` file as tells it from other JSON; ignored parts build no Python objects."""

    model: _JsonObject


def _check_contents(manifest: Manifest, kept: Mapping[str, bytes], path: Path) -> int:
    """Whether graphs, tokenizer and golden cases are what they are said to be; the number of golden cases."""
    for graph in manifest.graphs:
        found, expected, what = kept[graph.file][4:8], _GRAPH_IDENTIFIER, "a TFLite flatbuffer"
        if BUNDLE in graph.runtimes:
            found, expected, what = kept[graph.file][:8], _BUNDLE_IDENTIFIER, "a LiteRT-LM bundle"
        if found != expected:
            raise fault(
                PackageContentError, path, f"is not {what}", member=graph.file,
                expected=ascii(expected), actual=ascii(found),
            )  # fmt: skip
    if manifest.tokenizer is not None:
        _check_tokenizer(manifest.tokenizer, kept[manifest.tokenizer.file], path)
    for name in manifest.rules:
        _check_rules(kept[name], path, name)
    if manifest.golden is None:
        return 0
    return sum(1 for _ in parse_golden(kept[manifest.golden], path, manifest.golden))


def _check_tokenizer(spec: TokenizerSpec, data: bytes, path: Path) -> None:
    """Whether `data` looks like a tokenizer of that kind; whether it is one is for what reads it."""
    if spec.kind == "sentencepiece":
        if not _SENTENCEPIECE.match(data):
            raise fault(PackageContentError, path, "is not a SentencePiece model", member=spec.file)
        return
    try:
        _TokenizerFile.model_validate_json(data)
    except ValidationError as error:
        reason = f"is not a tokenizer in JSON: {describe(error)}"
        raise fault(PackageContentError, path, reason, member=spec.file) from error


def _check_rules(data: bytes, path: Path, member: str) -> None:
    """Whether `data` has the form of a file of rules; whether they make sense is for whoever follows them."""
    from edgeslm.schema.rule import RuleFile  # noqa: PLC0415 - only for packages that bring rules
    from edgeslm.yaml_lines import read_yaml  # noqa: PLC0415

    try:
        read_yaml(member, data, fault=RuleFileError, needs="rules").validate(RuleFile)
    except RuleFileError as error:
        raise PackageContentError(
            f"{path.name}: {error.message}", path=str(path), member=member, hint=error.hint
        ) from error


def parse_golden(data: bytes, path: Path, member: str) -> Iterator[GoldenCase]:
    """The golden cases in `data`, one a line; empty lines are skipped.

    Raises:
        PackageContentError: a line is no golden case, or there is none.
    """
    empty = True
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield GoldenCase.model_validate_json(line)
        except ValidationError as error:
            reason = f"line {number} is not a golden case: {describe(error)}"
            raise fault(PackageContentError, path, reason, member=member) from error
        empty = False
    if empty:
        raise fault(PackageContentError, path, "holds no golden case", member=member)


# --- writing ------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusals to write at `path` into a :class:`StoreError`."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}", path=str(path)) from error


@contextmanager
def _member_writer(into: Path | None, name: str) -> Iterator[Callable[[bytes], object]]:
    """A function that appends to the new file `name`, synced in the end; without `into` it does nothing."""
    if into is None:
        yield len
        return
    with writing(into / name):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(into / name, flags, 0o444), "wb") as stream:
            yield stream.write
            stream.flush()
            os.fsync(stream.fileno())
