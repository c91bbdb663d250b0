"""Byte code of Python modules, compiled here for boards of another kind.

Byte code does not depend on the processor, only on the version of Python. So where a Python of the board's version is
on this machine, it compiles; elsewhere the board does without, and its first start takes longer.

What always holds: the same sources and the same Python give the same bytes; a source that is none is passed over.
Modules are read, and never run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeslm.errors import ToolFailedError

_VERSION = re.compile(r"3\.\d{1,3}")
_TIMEOUT_S = 600.0
_SAID_CHARS = 300
_COMPILE = """\
import json, py_compile, sys, warnings
warnings.simplefilter("ignore")
told = json.load(sys.stdin)
mode = py_compile.PycInvalidationMode[told["mode"]]
for source, shown, made in told["sources"]:
    try:
        py_compile.compile(source, made, shown, doraise=True, invalidation_mode=mode)
    except (py_compile.PyCompileError, ValueError, RecursionError):
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


@dataclass(frozen=True)
class Module:
    """A source, and what is to become of it.

    Attributes:
        source: file of this machine.
        shown: its path on the board, which tracebacks name.
        made: file of this machine that gets the byte code.
    """

    source: Path
    shown: str
    made: Path


def compiler_of(version: str) -> Compiler | None:
    """A Python of this machine of a version such as ``3.13``; ``None`` where there is none."""
    if not _VERSION.fullmatch(version):
        return None
    own = ".".join(map(str, sys.version_info[:2]))
    program = sys.executable if own == version else shutil.which(f"python{version}")
    if not program:
        return None
    try:
        done = _run([program, "-I", "-S", "-c", "import sys; print(sys.version)"], "")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else Compiler(program, " ".join(done.stdout.split()))


def cached_name(path: str, version: str) -> str:
    """Where Python looks for the byte code of the source `path` (PEP 3147).

    Args:
        version: of Python, such as ``3.13``.
    """
    above, _, name = path.rpartition("/")
    return f"{above}/__pycache__/{name.removesuffix('.py')}.cpython-{version.replace('.', '')}.pyc"


def compile_modules(
    modules: Iterable[Module], compiler: Compiler, mode: Literal["CHECKED_HASH", "UNCHECKED_HASH"]
) -> None:
    """Compile what can be compiled.

    Args:
        mode: whether Python compares the source at each start, or believes that they go together (PEP 552).

    Raises:
        ToolFailedError: Python did not do it.
    """
    told = json.dumps(
        {"mode": mode, "sources": [[str(each.source), each.shown, str(each.made)] for each in modules]}
    )
    status: int | None = None
    try:
        done = _run([compiler.program, "-I", "-S", "-c", _COMPILE], told)
        status, said = done.returncode, done.stderr.strip()[-_SAID_CHARS:]
    except OSError as error:
        said = error.strerror or str(error)
    except subprocess.TimeoutExpired:
        said = "it took too long"
    if status != 0:
        raise ToolFailedError(
            f"{compiler.program} cannot compile Python's modules: {said}",
            tool=compiler.program,
            exit_status=status,
            output=said,
        )


def _run(command: list[str], told: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        input=told,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_TIMEOUT_S,
        # The order of a set's members is part of the byte code.
        env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
        check=False,
    )
