"""Python's own library, compiled here: a board's agent may not write beside it, and would compile it at each start.

Byte code does not depend on the processor, only on the version of Python. So where a Python of the image's version is
on this machine, it compiles; elsewhere the board does without, and starts a few seconds later.

What always holds: the same sources and the same Python give the same bytes. A compiled file counts only as long as its
source has the content that it was compiled from (PEP 552).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import BaseImageError
from edgeslm.flash.tree import Entry

_SOURCE = re.compile(r"usr/lib/python3\.\d+/(?!test/|site-packages/|dist-packages/)(?:[^/]+/)*[^/]+\.py")
_PACKAGE = re.compile(r"libpython(3\.\d+)-minimal_")
_TIMEOUT_S = 600.0
_COMPILE = """\
import py_compile, sys
from pathlib import Path
mode = py_compile.PycInvalidationMode.CHECKED_HASH
for path in sorted(Path(sys.argv[1]).rglob("*.py")):
    shown = "/" + path.relative_to(sys.argv[1]).as_posix()
    made = path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc"
    try:
        py_compile.compile(str(path), str(made), shown, doraise=True, invalidation_mode=mode)
    except (py_compile.PyCompileError, ValueError):
        pass  # a template, or an example of what is wrong
"""


@dataclass(frozen=True)
class Compiler:
    """A Python of this machine.

    Attributes:
        program: its path.
        version: all that it says of itself.
    """

    program: str
    version: str


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
    if wanted is None:
        return None
    own = ".".join(map(str, sys.version_info[:2]))
    program = sys.executable if own == wanted else shutil.which(f"python{wanted}")
    if not program:
        return None
    done = _run([program, "-I", "-S", "-c", "import sys; print(sys.version)"])
    return None if done is None or done.returncode else Compiler(program, done.stdout.strip())


def compiled(sources: Mapping[str, bytes], compiler: Compiler) -> list[Entry]:
    """The compiled files that belong beside sources.

    Args:
        sources: content by path, without a ``/`` at its beginning.

    Raises:
        BaseImageError: Python did not do it.
        OSError: the disk refuses.
    """
    with tempfile.TemporaryDirectory(prefix="edgeslm-bytecode-") as name:
        directory = Path(name)
        for path, content in sources.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(content)
        done = _run([compiler.program, "-I", "-S", "-c", _COMPILE, name])
        if done is None or done.returncode:
            said = "it took too long" if done is None else done.stderr.strip()[-300:]
            raise BaseImageError(f"{compiler.program} cannot compile Python's library: {said}")
        made = sorted(directory.rglob("*.pyc"))
        return [Entry(f"/{path.relative_to(directory)}", content=path.read_bytes()) for path in made]


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            # The order of a set's members is part of the byte code.
            env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
