"""A base image: packages fetched, read, and made into a disk with a boot and a root partition.

What always holds: the image appears under its name when it is whole, or not at all; the same packages give the same
bytes. What was fetched, and images that were made, are kept in a cache, which can be removed at any time.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import BaseImageError
from edgeslm.files import PARTIAL, locked, sync_directory
from edgeslm.flash.base.fetch import PackageFile, PackageSource, Told, sources
from edgeslm.flash.base.initrd import make_initrd, with_needed
from edgeslm.flash.base.recipe import BOOT_LABEL, INITRD, KERNEL, ROOT_LABEL, SUITE, Recipe
from edgeslm.flash.base.root import RootFiles, module_reader, write_root
from edgeslm.flash.base.table import TAIL_BYTES, Span, table_bytes
from edgeslm.flash.image.sparse import copy_sparse
from edgeslm.flash.image.tools import run_tool

_MIB = 2**20
_ALIGN = 4 * _MIB
_INODE_BYTES = 256
_WORK = "edgeslm-base-"
_SPACE = uuid.UUID("1d0b5a7c-6d7e-5b43-9d2f-2f1c55a0b001")
"""Identities of images are derived from what they hold, below this."""


@dataclass(frozen=True)
class BaseImage:
    """What was made.

    Attributes:
        key: SHA-256 of what it is made of.
        cached: it was taken from the cache.
    """

    path: Path
    size_bytes: int
    packages: int
    key: str
    cached: bool


def default_cache() -> Path:
    """Where packages and images are kept when nobody says where."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeslm" / "base"


def make_base_image(
    recipe: Recipe,
    out: Path,
    tell: Told,
    *,
    cache: Path | None = None,
    mirror: str | None = None,
    free_mib: int = 256,
) -> BaseImage:
    """Make a base image, or take it from the cache.

    Args:
        recipe: what it consists of.
        out: the image; what is there is replaced.
        tell: told what is being done.
        cache: directory for packages and images; ``None`` keeps nothing.
        mirror: of Debian; ``None`` takes the machine's.
        free_mib: room in the root file system.

    Raises:
        BaseImageError: packages cannot be had or read.
        FlashError: a program that is needed is missing, or failed.
    """
    try:
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
        # Beside where the image is to be, so that it can be renamed into place.
        with tempfile.TemporaryDirectory(prefix=_WORK, dir=cache or out.parent) as name:
            work = Path(name)
            kept = (cache or work).resolve()
            with locked(kept / ".lock"):
                source = PackageSource(kept / f"apt-{recipe.name}", recipe, sources(SUITE, mirror))
                packages = source.fetch(tell)
                key = _key(recipe, packages, free_mib)
                image = kept / f"{recipe.name}-{key[:16]}.img" if cache is not None else out
                cached = cache is not None and image.exists()
                if not cached:
                    _build(recipe, packages, uuid.uuid5(_SPACE, key), work, free_mib, tell)
                    _put(work / "image", image)
            if cache is not None:
                tell(f"copying {image}")
                _copy(image, out)
            return BaseImage(out, out.stat().st_size, len(packages), key, cached)
    except OSError as error:
        raise BaseImageError(
            f"the image cannot be made: {error.filename or out}: {error.strerror or error}"
        ) from error


def _key(recipe: Recipe, packages: Sequence[PackageFile], free_mib: int) -> str:
    lines = [recipe.identity(), str(free_mib), *(f"{one.file_name} {one.sha256}" for one in packages)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _copy(image: Path, path: Path) -> None:
    beside = path.parent / f"{PARTIAL}{secrets.token_hex(8)}"
    try:
        copy_sparse(image, beside)
        _put(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _put(made: Path, path: Path) -> None:
    """Let a file that was made appear under its name, whole."""
    with made.open("rb") as stream:
        os.fsync(stream.fileno())
    made.replace(path)
    sync_directory(path.parent)


def _build(
    recipe: Recipe,
    packages: Sequence[PackageFile],
    identity: uuid.UUID,
    work: Path,
    free_mib: int,
    tell: Told,
) -> None:
    """Make ``work / "image"``."""
    (work / "modules").mkdir()
    root = write_root(packages, recipe, work / "modules", work / "root.tar", tell)
    image = work / "image"
    boot_span, root_span, disk_bytes = _layout(recipe, root, free_mib)
    with image.open("xb") as stream:
        stream.truncate(disk_bytes)
        for offset, data in table_bytes(recipe.table, disk_bytes, boot_span, root_span, identity).items():
            stream.seek(offset)
            stream.write(data)
    tell("making the boot partition")
    _make_boot(recipe, root, image, boot_span, identity, work / "boot")
    tell("making the root file system")
    _make_root(root, image, root_span, identity, work / "root.tar")


def _layout(recipe: Recipe, root: RootFiles, free_mib: int) -> tuple[Span, Span, int]:
    # A twentieth for the file system's own tables, its journal, and directories.
    needed = root.size_bytes + root.count * (_INODE_BYTES + 64) + free_mib * _MIB
    root_bytes = _aligned(needed + needed // 20 + 64 * _MIB)
    boot = Span(_ALIGN, recipe.boot_mib * _MIB)
    span = Span(boot.start + _aligned(boot.size), root_bytes)
    return boot, span, span.start + span.size + _aligned(TAIL_BYTES)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGN) * _ALIGN


def _make_boot(
    recipe: Recipe, root: RootFiles, image: Path, span: Span, identity: uuid.UUID, directory: Path
) -> None:
    modules = with_needed(recipe.modules, module_reader(root))
    files = {
        **root.boot,
        **recipe.boot_texts(),
        KERNEL: root.kernel,
        INITRD: make_initrd(root.busybox, modules),
    }
    directory.mkdir()
    for name, data in files.items():
        path = directory / name
        path.write_bytes(data)
        os.utime(path, (root.time_s, root.time_s))
    run_tool(
        [
            *("mkfs.vfat", "-F", "32", "-n", BOOT_LABEL, "-i", f"{identity.int >> 96:08x}"),
            *("-s", "1", f"--offset={span.first}", str(image), str(span.size // 1024)),
        ],
        time_s=root.time_s,
    )
    paths = [str(directory / name) for name in sorted(files)]
    run_tool(["mcopy", "-Q", "-m", "-i", f"{image}@@{span.start}", *paths, "::/"], time_s=root.time_s)


def _make_root(root: RootFiles, image: Path, span: Span, identity: uuid.UUID, archive: Path) -> None:
    run_tool(
        [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-L", ROOT_LABEL, "-m", "1", "-b", "4096"),
            *("-U", str(identity), "-d", str(archive)),
            *("-E", f"offset={span.start},hash_seed={identity},root_owner=0:0,lazy_itable_init=0,nodiscard"),
            *(str(image), f"{span.size // 1024}k"),
        ],
        time_s=root.time_s,
    )
