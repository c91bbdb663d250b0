"""Python's own library, compiled here: a board's agent may not write beside it, and would compile it at each start.

What always holds: a compiled file counts only as long as its source has the content that it was compiled from (PEP
552), since Debian's packages bring newer ones.

Left to others: how Python is asked (:mod:`edgeslm.flash.bytecode`).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from edgeslm.errors import BaseImageError, ToolFailedError
from edgeslm.flash.bytecode import Compiler, Module, cached_name, compile_modules, compiler_of
from edgeslm.flash.tree import Entry

_SOURCE = re.compile(r"usr/lib/python(3\.\d+)/(?!test/|site-packages/|dist-packages/)(?:[^/]+/)*[^/]+\.py")
_PACKAGE = re.compile(r"libpython(3\.\d+)-minimal_")


def is_source(path: str) -> bool:
    """Whether a file of a package is one of Python's own library.

    Args:
        path: without a ``/`` at its beginning.
    """
    return _SOURCE.fullmatch(path) is not None


def find_compiler(packages: Iterable[str]) -> Compiler | None:
    """A Python of the version that is among the packages; ``None`` where this machine has none.

    Args:
        packages: names of their files.
    """
    wanted = next((found[1] for name in packages if (found := _PACKAGE.match(name))), None)
    return None if wanted is None else compiler_of(wanted)


def compiled(sources: Mapping[str, bytes], compiler: Compiler) -> list[Entry]:
    """The compiled files that belong beside sources.

    Args:
        sources: content by path, without a ``/`` at its beginning.

    Raises:
        BaseImageError: Python did not do it.
        OSError: the disk refuses.
    """
    with tempfile.TemporaryDirectory(prefix="edgeslm-bytecode-") as name:
        modules: dict[str, Module] = {}
        for number, (path, content) in enumerate(sorted(sources.items())):
            source = Path(name) / f"{number}.py"
            source.write_bytes(content)
            version = found[1] if (found := _SOURCE.fullmatch(path)) else ""
            modules[cached_name(f"/{path}", version)] = Module(source, f"/{path}", source.with_suffix(".pyc"))
        try:
            compile_modules(modules.values(), compiler, "CHECKED_HASH")
        except ToolFailedError as error:
            raise BaseImageError(error.message) from error
        made = [(path, each.made) for path, each in sorted(modules.items()) if each.made.exists()]
        return [Entry(path, content=pyc.read_bytes()) for path, pyc in made]
