"""A base image: packages fetched, read, and made into a disk with a boot and a root partition.

What always holds: the image appears under its name when it is whole, or not at all; the same packages give the same
bytes. What was fetched, and the image that was made last of each kind, are kept in a cache, which can be removed at any
time; what a run that was killed left there is cleared by the next one.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import BaseImageError
from edgeslm.files import PARTIAL, locked, sync_directory
from edgeslm.flash.base.bytecode import find_compiler
from edgeslm.flash.base.fetch import KEYRING, PackageFile, PackageSource, Told, sources
from edgeslm.flash.base.initrd import make_initrd, with_needed
from edgeslm.flash.base.recipe import BOOT_LABEL, INITRD, KERNEL, ROOT_LABEL, SUITE, Recipe
from edgeslm.flash.base.root import RootFiles, module_aliases, module_reader, write_root
from edgeslm.flash.base.table import TAIL_BYTES, Span, table_bytes
from edgeslm.flash.bytecode import Compiler
from edgeslm.flash.image.past_cache import copy_sparse
from edgeslm.flash.image.tools import run_tool

_MIB = 2**20
_ALIGN = 4 * _MIB
_INODE_BYTES = 256
_WORK = "edgeslm-base-"
_LINK = "disk.img"
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
    keyring: Path = KEYRING,
    offline: bool = False,
) -> BaseImage:
    """Make a base image, or take it from the cache.

    Args:
        recipe: what it consists of.
        out: the image; what is there is replaced.
        tell: told what is being done.
        cache: directory for packages and images; ``None`` keeps nothing.
        mirror: of Debian; ``None`` takes the machine's.
        free_mib: room in the root file system.
        keyring: keys with which the mirror's index is signed.
        offline: take the image that the cache has, whatever the mirror has by now.

    Raises:
        BaseImageError: packages cannot be had or read, or the cache does not have what it is asked for.
        FlashError: a program that is needed is missing, or failed.
    """
    if not out.parent.is_dir():
        raise BaseImageError(f"{out.parent} is no directory", hint="Make it first, or name another file")
    kind = _digest(recipe.identity(), str(free_mib))
    where = sources(SUITE, mirror)
    try:
        if cache is None:
            with tempfile.TemporaryDirectory(prefix=_WORK, dir=out.parent) as name:
                source = PackageSource(Path(name) / "apt", recipe, where, keyring)
                return _make(recipe, out, tell, Path(name), source, free_mib, None, kind)
        cache.mkdir(parents=True, exist_ok=True)
        cache = cache.resolve()
        with locked(cache / ".lock"):
            for left in cache.glob(f"{_WORK}*"):
                shutil.rmtree(left, ignore_errors=True)
            if offline:
                return _from_cache(recipe, out, tell, cache, kind)
            source = PackageSource(cache / f"apt-{recipe.name}", recipe, where, keyring)
            with tempfile.TemporaryDirectory(prefix=_WORK, dir=cache) as name:
                return _make(recipe, out, tell, Path(name), source, free_mib, cache, kind)
    except OSError as error:
        raise BaseImageError(
            f"the image cannot be made: {error.filename or out}: {error.strerror or error}"
        ) from error


def _make(
    recipe: Recipe,
    out: Path,
    tell: Told,
    work: Path,
    source: PackageSource,
    free_mib: int,
    cache: Path | None,
    kind: str,
) -> BaseImage:
    """Fetch and build, in `work`; an image of the same packages that the cache has is taken instead."""
    packages = source.fetch(tell)
    compiler = find_compiler(one.file_name for one in packages)
    if compiler is None:
        tell("no Python of the image's version is here to compile its library: boards start a little later")
    made_by = "" if compiler is None else compiler.version
    key = _digest(kind, made_by, *(f"{one.file_name} {one.sha256}" for one in packages))
    image = out if cache is None else cache / _kept_name(recipe, kind, len(packages), key)
    is_kept = cache is not None and image.exists()
    if not is_kept:
        _build(recipe, packages, uuid.uuid5(_SPACE, key), work, free_mib, tell, compiler)
        _put(work / "image", image)
    if cache is not None:
        for other in cache.glob(_kept_name(recipe, kind)):
            if other != image:
                other.unlink()
        tell(f"copying {image}")
        _copy(image, out)
    return BaseImage(out, out.stat().st_size, len(packages), key, is_kept)


def _from_cache(recipe: Recipe, out: Path, tell: Told, cache: Path, kind: str) -> BaseImage:
    for image in cache.glob(_kept_name(recipe, kind)):
        count, key = image.stem.split("-")[-2:]
        tell(f"copying {image}")
        _copy(image, out)
        return BaseImage(out, out.stat().st_size, int(count), key, cached=True)
    raise BaseImageError(
        f"no such image lies in {cache} yet", hint="Make it once with a network, without --offline"
    )


def _kept_name(recipe: Recipe, kind: str, packages: int | str = "*", key: str = "*") -> str:
    return f"{recipe.name}-{kind[:12]}-{packages}-{key}.img"


def _digest(*lines: str) -> str:
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
    compiler: Compiler | None,
) -> None:
    """Make ``work / "image"``."""
    (work / "modules").mkdir()
    root = write_root(packages, recipe, work / "modules", work / "root.tar", tell, compiler=compiler)
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
    modules = with_needed(recipe.modules, module_reader(root), module_aliases(root))
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
    # mtools gives names of images to a shell, so this one is called by a name of ours.
    (directory / _LINK).symlink_to(image.absolute())
    run_tool(
        ["mcopy", "-Q", "-m", "-i", f"{_LINK}@@{span.start}", *sorted(files), "::/"],
        time_s=root.time_s,
        cwd=directory,
    )


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
