"""Byte code of the agent's environment, compiled when a card is made ready instead of at the board's first start.

A small board compiles for half a minute before its agent says its first word. What it compiles then is not synced
either, and a power cut can leave a file cut short that Python stumbles over at each start from then on; what lies on
the card from the beginning cannot be.

What always holds: the same environment and the same Python give the same files, however often and whoever asks. Python
believes them without a look at their source, since both come and go together, as one version of the agent. What is kept
is read to its last byte before it is used, and compiled anew where it is damaged. Wheels are hostile: their modules are
read by Python's compiler in a process of its own, and never run.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeslm.files import PARTIAL, locked
from edgeslm.flash.bytecode import Compiler, Module, cached_name, compile_modules
from edgeslm.flash.tree import Entry

_PACKAGES = "/site-packages/"
_LEFT_OUT = frozenset({"test", "tests"})
_UNLOADED = frozenset(
    (
        *("anyio", "filelock", "fsspec", "google", "hf_xet", "httpcore2", "httpx2"),
        *("huggingface_hub", "jinja2", "pycparser"),
    )
)
"""Directories of packages, and packages, whose modules no agent loads: that of tokenizers can download, and brings what
it takes for it. Where one is loaded after all, the board compiles it."""
_KEPT = 4
_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Compiling:
    """Who compiles, and where the result is kept for the next card.

    Attributes:
        compiler: a Python of the board's version.
        version: of it, such as ``3.13``.
        cache: directory of ours; made when missing.
    """

    compiler: Compiler
    version: str
    cache: Path


def with_bytecode(
    entries: Sequence[Entry], compiling: Compiling, directory: Path, *, sha256: str
) -> list[Entry]:
    """The compiled files that belong beside the modules among `entries`.

    Args:
        entries: files of an environment, whose bytes lie in files of this machine.
        compiling: who compiles.
        directory: an empty one of ours, which keeps the bytes as long as they are wanted.
        sha256: of the archive that the environment was made of.

    Raises:
        ToolFailedError: Python did not do it.
        OSError: the cache or `directory` cannot be read or written.
    """
    found = {entry.path: entry for entry in entries}
    modules: dict[str, Module] = {}
    for path, entry in sorted(found.items()):
        made = cached_name(path, compiling.version)
        if _is_module(path) and isinstance(entry.content, Path) and made not in found:
            modules[made] = Module(entry.content, path, directory / f"{len(modules):05d}.pyc")
    key = hashlib.sha256(
        "\n".join(
            [sha256, compiling.compiler.version, *modules, *(each.shown for each in modules.values())]
        ).encode()
    ).hexdigest()
    kept = compiling.cache / f"{key[:32]}.zip"
    compiling.cache.mkdir(parents=True, exist_ok=True)
    with locked(compiling.cache / ".lock"):
        if not _unpack(kept, modules):
            compile_modules(modules.values(), compiling.compiler, "UNCHECKED_HASH")
            _keep(modules, kept)
        kept.touch()
        for other in sorted(compiling.cache.glob("*.zip"), key=lambda path: -path.stat().st_mtime)[_KEPT:]:
            other.unlink(missing_ok=True)
    return [Entry(path, content=each.made) for path, each in modules.items() if each.made.exists()]


def _is_module(path: str) -> bool:
    inside = path.partition(_PACKAGES)[2]
    parts = inside.split("/")
    return inside.endswith(".py") and parts[0] not in _UNLOADED and _LEFT_OUT.isdisjoint(parts)


def _unpack(kept: Path, modules: dict[str, Module]) -> bool:
    """Lay out what was compiled before; whether all of it is there and whole."""
    try:
        with zipfile.ZipFile(kept) as archive:
            for name in archive.namelist():
                modules[name].made.write_bytes(archive.read(name))
    except FileNotFoundError:
        return False
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, ValueError):
        for each in modules.values():
            each.made.unlink(missing_ok=True)
        return False
    return True


def _keep(modules: dict[str, Module], kept: Path) -> None:
    beside = kept.parent / f"{PARTIAL}{secrets.token_hex(8)}"
    try:
        with zipfile.ZipFile(beside, "x") as archive:
            for path, each in modules.items():
                if each.made.exists():
                    archive.writestr(zipfile.ZipInfo(path, _TIME), each.made.read_bytes())
        with beside.open("rb") as stream:
            os.fsync(stream.fileno())
        beside.replace(kept)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
