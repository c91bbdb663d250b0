"""Python's library is compiled where a Python of the image's version is here, the same way each time."""

from __future__ import annotations

import importlib.util
import marshal
import sys

import pytest

from edgeslm.errors import BaseImageError
from edgeslm.flash.base.bytecode import compiled, find_compiler, is_source
from edgeslm.flash.bytecode import Compiler

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
PACKAGES = [f"libpython{VERSION}-minimal_{VERSION}.5-2_arm64.deb", "base-files_13_arm64.deb"]
SOURCE = b"NAMES = {'a', 'b', 'c'}\n\ndef is_name(text):\n    return text in {'d', 'e', 'f', 'g'}\n"


@pytest.fixture
def compiler() -> Compiler:
    found = find_compiler(PACKAGES)
    assert found is not None
    return found


def test_a_compiled_file_is_what_python_takes_for_its_source(compiler: Compiler) -> None:
    (entry,) = compiled({f"usr/lib/python{VERSION}/small.py": SOURCE}, compiler)
    assert entry.path == f"/usr/lib/python{VERSION}/__pycache__/small.{sys.implementation.cache_tag}.pyc"
    assert isinstance(entry.content, bytes)
    assert entry.content[:4] == importlib.util.MAGIC_NUMBER
    assert entry.content[4] == 0b11, "it counts as long as its source is the same"
    assert entry.content[8:16] == importlib.util.source_hash(SOURCE)
    code = marshal.loads(entry.content[16:])
    assert code.co_filename == f"/usr/lib/python{VERSION}/small.py"
    names: dict[str, object] = {}
    exec(code, names)
    assert names["NAMES"] == {"a", "b", "c"}


def test_two_runs_give_the_same_bytes(compiler: Compiler) -> None:
    sources = {f"usr/lib/python{VERSION}/{name}.py": SOURCE for name in ("one", "two")}
    assert compiled(sources, compiler) == compiled(dict(reversed(sources.items())), compiler)


def test_a_source_that_is_none_is_passed_over(compiler: Compiler) -> None:
    assert compiled({f"usr/lib/python{VERSION}/template.py": b"def {{ name }}(:\n"}, compiler) == []


def test_a_python_that_fails_is_named() -> None:
    with pytest.raises(BaseImageError, match="/bin/false cannot compile"):
        compiled({f"usr/lib/python{VERSION}/small.py": SOURCE}, Compiler("/bin/false", "3"))


def test_without_such_a_python_there_is_no_compiler() -> None:
    assert find_compiler(["libpython3.99-minimal_3.99.1_arm64.deb"]) is None
    assert find_compiler(["base-files_13_arm64.deb"]) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("usr/lib/python3.13/argparse.py", True),
        ("usr/lib/python3.13/asyncio/events.py", True),
        ("usr/lib/python3.13/test/test_x.py", False),
        ("usr/lib/python3/dist-packages/x.py", False),
        ("usr/share/x/y.py", False),
        ("usr/lib/python3.13/LICENSE.txt", False),
    ],
)
def test_only_pythons_own_library_is_compiled(path: str, expected: bool) -> None:
    assert is_source(path) is expected
