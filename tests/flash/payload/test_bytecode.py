"""Modules of the agent are compiled before the card is written, the same way each time, and never run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.agent_update_rig import make_wheel
from edgeslm.agent import launcher
from edgeslm.errors import ToolFailedError
from edgeslm.flash.bytecode import Compiler, compiler_of
from edgeslm.flash.payload.bytecode import Compiling
from edgeslm.flash.payload.environment import BoardPython, Environment, make_environment
from edgeslm.flash.tree import DirectoryTree
from edgeslm.wheelhouse import write_archive

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
HERE = BoardPython(VERSION, os.path.realpath(sys.executable))
FILES = {
    "edgeslm/agent/launcher.py": Path(launcher.__file__).read_text("utf-8"),
    "edgeslm/hello.py": "NAMES = {'a', 'b', 'c', 'd'}\nprint('hello', __cached__)\n",
    "edgeslm/tests/test_hello.py": "",
    "edgeslm/template.py": "def {{ name }}(:\n",
    "edgeslm/runs.py": "open('/tmp/edgeslm-was-run', 'w')\n",
}


@pytest.fixture
def compiling(tmp_path: Path) -> Compiling:
    compiler = compiler_of(VERSION)
    assert compiler is not None
    return Compiling(compiler, VERSION, tmp_path / "cache")


def laid_out(tmp_path: Path, compiling: Compiling | None, name: str = "bytes") -> Environment:
    archive = tmp_path / "agent.tar"
    if not archive.exists():
        write_archive([make_wheel(tmp_path / "wheels", "0.1.0", files=FILES)], archive)
    (tmp_path / name).mkdir()
    return make_environment(archive, HERE, tmp_path / name, compiling)


def compiled(made: Environment) -> dict[str, bytes]:
    found = {}
    for entry in made.entries:
        if entry.path.endswith(".pyc"):
            assert isinstance(entry.content, Path)
            found[entry.path.rpartition("/")[2].partition(".")[0]] = entry.content.read_bytes()
    return found


def test_python_takes_what_was_compiled_and_writes_nothing(tmp_path: Path, compiling: Compiling) -> None:
    made = laid_out(tmp_path, compiling)
    DirectoryTree(tmp_path / "board", keeps_owners=False).write(made.entries)
    inside = tmp_path / "board" / made.directory[1:]
    packages = inside / f"lib/python{VERSION}/site-packages"
    # What is believed without a look at its source: with another source it still says what it said.
    (packages / "edgeslm/hello.py").write_text("print('another')\n")
    before = sorted(inside.rglob("*"))
    said = subprocess.run(
        [inside / "bin/python", "-I", "-c", "import edgeslm.hello"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert said == f"hello {importlib.util.cache_from_source(str(packages / 'edgeslm/hello.py'))}\n"
    assert sorted(inside.rglob("*")) == before
    assert made.size_bytes == laid_out(tmp_path, None, "plain").size_bytes + sum(
        map(len, compiled(made).values())
    )


def test_tests_templates_and_the_modules_themselves_are_left_alone(
    tmp_path: Path, compiling: Compiling
) -> None:
    ran = Path("/tmp/edgeslm-was-run")
    assert sorted(compiled(laid_out(tmp_path, compiling))) == [
        "__init__",
        "__main__",
        "hello",
        "launcher",
        "runs",
    ]
    assert not ran.exists()


def test_it_is_compiled_once_and_the_same_each_time(tmp_path: Path, compiling: Compiling) -> None:
    first = compiled(laid_out(tmp_path, compiling, "1"))
    unable = Compiling(Compiler("/bin/false", compiling.compiler.version), VERSION, compiling.cache)
    assert compiled(laid_out(tmp_path, unable, "2")) == first
    other = Compiling(compiling.compiler, VERSION, tmp_path / "other")
    assert compiled(laid_out(tmp_path, other, "3")) == first


@pytest.mark.parametrize("damage", ["cut", "other bytes", "another file", "no archive"])
def test_what_was_kept_and_is_damaged_is_compiled_anew(
    tmp_path: Path, compiling: Compiling, damage: str
) -> None:
    first = compiled(laid_out(tmp_path, compiling, "1"))
    (kept,) = compiling.cache.glob("*.zip")
    data = kept.read_bytes()
    match damage:
        case "cut":
            kept.write_bytes(data[: len(data) // 2])
        case "other bytes":
            kept.write_bytes(data.replace(b"hello", b"jello", 1))
        case "another file":
            with zipfile.ZipFile(kept, "a") as archive:
                archive.writestr("/../../evil.pyc", b"x")
        case _:
            kept.write_bytes(b"no archive")
    assert compiled(laid_out(tmp_path, compiling, "2")) == first
    assert not (tmp_path / "evil.pyc").exists()
    assert compiled(laid_out(tmp_path, compiling, "3")) == first


def test_a_python_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolFailedError, match="/bin/false cannot compile"):
        laid_out(tmp_path, Compiling(Compiler("/bin/false", "3"), VERSION, tmp_path / "cache"))


@pytest.mark.parametrize("version", ["3.99", "2.7", "3", "", "3.11; ls", "/bin/sh"])
def test_without_such_a_python_nobody_compiles(version: str) -> None:
    assert compiler_of(version) is None
