"""The agent's environment on a board: what Python takes for one, made of wheels that are not believed."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.agent_update_rig import make_wheel
from benchmarks.flash_rig import small_agent
from edgeslm.agent import launcher
from edgeslm.errors import AgentArchiveError
from edgeslm.flash.payload import layout
from edgeslm.flash.payload.environment import BoardPython, Environment, make_environment
from edgeslm.flash.tree import DirectoryTree
from edgeslm.schema.agent_release import AGENT_MARKER
from edgeslm.wheelhouse import write_archive

HERE = BoardPython(f"{sys.version_info.major}.{sys.version_info.minor}", os.path.realpath(sys.executable))
BOARD = BoardPython("3.13", "/usr/bin/python3.13")
LAUNCHER = {"edgeslm/agent/launcher.py": Path(launcher.__file__).read_text("utf-8")}


def laid_out(archive: Path, directory: Path, python: BoardPython = BOARD) -> Environment:
    directory.mkdir()
    return make_environment(archive, python, directory)


def archive_of(directory: Path, *more: Path, files: dict[str, str] | None = None) -> Path:
    wheel = make_wheel(directory / "wheels", "0.1.0", files={**LAUNCHER, **(files or {})})
    out = directory / "agent.tar"
    write_archive([wheel, *more], out)
    return out


class TestAnEnvironment:
    def test_runs_what_is_in_it(self, tmp_path: Path):
        files = {
            "edgeslm-0.1.0.dist-info/entry_points.txt": "[console_scripts]\nhello = edgeslm.hello:main\n"
        }
        files["edgeslm/hello.py"] = "import sys\ndef main(): print('hello', sys.prefix)\n"
        made = laid_out(archive_of(tmp_path, files=files), tmp_path / "bytes", HERE)
        (tmp_path / "board").mkdir()
        DirectoryTree(tmp_path / "board", keeps_owners=False).write(made.entries)
        inside = tmp_path / "board" / made.directory[1:]
        said = subprocess.run(
            [inside / "bin/python", "-I", "-c", "import edgeslm.hello; edgeslm.hello.main()"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert said == f"hello {inside}\n"
        script = (inside / "bin/hello").read_text("utf-8")
        # On the board it lies elsewhere than here, and its scripts know where.
        assert script.startswith(f"#!{made.directory}/bin/python\n")

    def test_is_listed_so_that_pip_would_know_it(self, tmp_path: Path):
        made = laid_out(small_agent(tmp_path), tmp_path / "bytes")
        by_path = {entry.path: entry for entry in made.entries}
        packages = f"{made.directory}/lib/python3.13/site-packages"
        record = by_path[f"{packages}/edgeslm-0.1.0.dist-info/RECORD"].content
        assert isinstance(record, Path)
        rows = list(csv.reader(record.read_text("utf-8").splitlines()))
        assert rows == sorted(rows)
        for name, digest, size in rows:
            if name.startswith("..") or not digest:
                continue
            content = by_path[f"{packages}/{name}"].content
            assert isinstance(content, Path)
            data = content.read_bytes()
            hashed = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={hashed}", len(data))

    def test_is_the_same_each_time(self, tmp_path: Path):
        archive = small_agent(tmp_path)
        one, other = (laid_out(archive, tmp_path / name) for name in ("1", "2"))
        assert [entry.path for entry in one.entries] == [entry.path for entry in other.entries]
        for first, second in zip(one.entries, other.entries, strict=True):
            bytes_of = [
                entry.content.read_bytes() if isinstance(entry.content, Path) else entry.content
                for entry in (first, second)
            ]
            assert bytes_of[0] == bytes_of[1]
            assert (first.mode, first.target, first.kind) == (second.mode, second.target, second.kind)

    def test_counts_as_installed_only_when_all_of_it_is_there(self, tmp_path: Path):
        entries = laid_out(small_agent(tmp_path), tmp_path / "bytes").entries
        assert entries[-2].path.endswith(f"/{AGENT_MARKER}")
        assert (entries[-1].path, entries[-1].kind) == (layout.CURRENT, "symlink")

    def test_has_its_directories_before_what_is_in_them(self, tmp_path: Path):
        seen = {layout.STATE}
        for entry in laid_out(small_agent(tmp_path), tmp_path / "bytes").entries:
            assert entry.path.rpartition("/")[0] in seen
            if entry.kind == "directory":
                seen.add(entry.path)

    def test_lies_where_the_launcher_looks_for_it(self, tmp_path: Path):
        made = laid_out(small_agent(tmp_path), tmp_path / "bytes")
        assert made.directory.startswith(f"{layout.AGENT_ROOT}/versions/")
        assert made.launcher == Path(launcher.__file__).read_bytes()


class TestIsRefused:
    def refused(self, archive: Path, directory: Path) -> str:
        with pytest.raises(AgentArchiveError) as found:
            laid_out(archive, directory / "bytes")
        assert not (directory.parent / "evil").exists()
        return str(found.value)

    @pytest.mark.parametrize("name", ["../evil", "/evil", "edgeslm/../../evil", "a\\b", "edgeslm/new\nline"])
    def test_a_wheel_that_would_leave_it(self, tmp_path: Path, name: str):
        wheel = a_wheel(tmp_path, {name: b"x"})
        self.refused(archive_of(tmp_path, wheel), tmp_path)

    @pytest.mark.parametrize("name", ["pyvenv.cfg", "bin/python3", "bin/python3.13", AGENT_MARKER, "lib64/x"])
    def test_a_wheel_that_would_replace_a_part_of_it(self, tmp_path: Path, name: str):
        wheel = a_wheel(tmp_path, {f"other-1.0.data/data/{name}": b"x"})
        assert "replace a part of the environment" in self.refused(archive_of(tmp_path, wheel), tmp_path)

    def test_a_wheel_that_would_replace_a_file_of_another(self, tmp_path: Path):
        wheel = a_wheel(tmp_path, {"edgeslm/__init__.py": b"other"})
        assert "replace a file of edgeslm-0.1.0" in self.refused(archive_of(tmp_path, wheel), tmp_path)

    def test_a_wheel_with_a_file_below_a_file(self, tmp_path: Path):
        wheel = a_wheel(tmp_path, {"edgeslm/__init__.py/x": b"x"})
        assert "below a file" in self.refused(archive_of(tmp_path, wheel), tmp_path)

    def test_a_wheel_whose_list_does_not_know_its_files(self, tmp_path: Path):
        wheel = a_wheel(tmp_path, {"other/x.py": b"x"}, listed=False)
        assert "no wheel that can be installed" in self.refused(archive_of(tmp_path, wheel), tmp_path)

    @pytest.mark.parametrize("name", ["../evil", "a b", "x;rm"])
    def test_a_script_whose_name_is_none(self, tmp_path: Path, name: str):
        text = f"[console_scripts]\n{name} = os:getcwd\n"
        wheel = a_wheel(tmp_path, {"other-1.0.dist-info/entry_points.txt": text.encode()})
        self.refused(archive_of(tmp_path, wheel), tmp_path)

    def test_an_archive_without_a_launcher(self, tmp_path: Path):
        write_archive([make_wheel(tmp_path / "wheels", "0.1.0")], tmp_path / "agent.tar")
        assert "launcher.py" in self.refused(tmp_path / "agent.tar", tmp_path)


def a_wheel(directory: Path, files: dict[str, bytes], *, listed: bool = True) -> Path:
    """A wheel of ``other`` that holds what no build would put there."""
    info = "other-1.0.dist-info"
    members = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: other\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **files,
    }
    rows = []
    for name, data in members.items():
        hashed = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        if listed or name.startswith(info):
            rows.append(f'"{name}",sha256={hashed},{len(data)}\n')
    path = directory / "other-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", "".join(rows) + f"{info}/RECORD,,\n")
    return path
