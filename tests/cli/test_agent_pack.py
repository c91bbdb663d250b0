"""Archives of the agent from the command line: packed, installed on a board, released, asked for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.agent_update_rig import make_archive, make_layout, make_wheel
from edgeslm.cli.agent import agent
from edgeslm.cli.fleet import fleet
from edgeslm.fleet.agent_releases import AgentReleases
from edgeslm.fleet.directory import FleetDirectory
from edgeslm.fleet.registry import list_audit
from edgeslm.wheelhouse import check_archive

WORDS = "four words of mine"


def run(command: Any, *arguments: str) -> Result:
    clean: dict[str, str | None] = {name: None for name in os.environ if name.startswith("EDGESLM_")}
    return CliRunner(env={**clean, "EDGESLM_PASSPHRASE": WORDS}).invoke(command, arguments)


def ok(result: Result) -> Any:
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return json.loads(result.stdout) if result.stdout.startswith(("{", "[")) else result.stdout


class TestPack:
    def test_takes_the_wheels_of_a_directory_as_they_are(self, tmp_path: Path):
        make_wheel(tmp_path / "wheels", "1.2.0", tag="cp311-cp311-manylinux_2_28_aarch64")
        make_wheel(tmp_path / "wheels", "3.0", name="other")
        out = tmp_path / "agent.tar"
        arguments = ("pack", "--wheels", str(tmp_path / "wheels"), "--out", str(out), "--minimum", "1.0.0")
        record = ok(run(agent, *arguments, "--json"))
        found = check_archive(out)
        assert (record["sha256"], record["version"]) == (found.sha256, "1.2.0")
        assert record["requires"] == {
            "pythons": ["3.11"],
            "machine": "aarch64",
            "glibc": "2.28",
            "agent": "1.0.0",
        }
        assert "runs on  aarch64, Python 3.11, glibc 2.28 and later" in ok(run(agent, *arguments))

    def test_lets_pip_gather_them_for_this_machine(self, tmp_path: Path):
        wheel = make_wheel(tmp_path, "1.2.0")
        ok(run(agent, "pack", str(wheel), "--out", str(tmp_path / "agent.tar")))
        assert [item.file for item in check_archive(tmp_path / "agent.tar").manifest.wheels] == [wheel.name]

    def test_lets_pip_gather_them_for_other_boards(self, tmp_path: Path):
        wheel = make_wheel(tmp_path, "1.2.0", tag="cp312-cp312-manylinux_2_28_aarch64")
        target = ("--python", "3.12", "--machine", "aarch64", "--glibc", "2.36")
        ok(run(agent, "pack", str(wheel), "--out", str(tmp_path / "agent.tar"), *target))
        assert check_archive(tmp_path / "agent.tar").manifest.requires.glibc == "2.28"

    @pytest.mark.parametrize(
        ("flags", "reason"),
        [
            (["--machine", "aarch64"], "go together"),
            (["--python", "3.11"], "needs --machine"),
            (["--machine", "aarch64", "--glibc", "36"], "no version of glibc"),
            (["--wheels", ".", "--machine", "aarch64", "--glibc", "2.36"], "as it is"),
        ],
    )
    def test_refuses_what_cannot_work(self, tmp_path: Path, flags: list[str], reason: str):
        found = run(agent, "pack", "--out", str(tmp_path / "agent.tar"), *flags)
        assert (found.exit_code, reason in found.stderr) == (2, True), found.stderr

    def test_says_what_is_wrong_with_the_wheels(self, tmp_path: Path):
        empty = tmp_path / "empty"
        empty.mkdir()
        assert run(agent, "pack", "--out", str(tmp_path / "a"), "--wheels", str(empty)).exit_code == 2
        make_wheel(empty, "1.0", name="other")
        found = run(agent, "pack", "--out", str(tmp_path / "a"), "--wheels", str(empty))
        assert (found.exit_code, "0 wheels of edgeslm" in found.stderr) == (4, True)


class TestAdopt:
    def test_makes_a_layout_that_the_launcher_runs_and_lists_it(self, tmp_path: Path):
        archive, found = make_archive(tmp_path, "1.2.0", "print('ran', *sys.argv[1:])")
        root = tmp_path / "root"
        plan = run(agent, "adopt", str(archive), "--root", str(root), "--dry-run")
        assert (plan.exit_code, root.exists()) == (0, False)
        assert "install edgeslm 1.2.0" in plan.stderr
        record = ok(run(agent, "adopt", str(archive), "--root", str(root), "--yes", "--json"))
        name = f"1.2.0-{found.sha256[:8]}"
        assert (record["current"], record["previous"]) == (name, None)
        command = [sys.executable, str(root / "launch.py"), "agent", "run"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert said == "ran agent run\n"
        listed = ok(run(agent, "installed", "--root", str(root), "--json"))
        assert listed["versions"] == [{"name": name, "is": "current"}]

    def test_refuses_an_archive_for_other_boards(self, tmp_path: Path):
        archive, _ = make_archive(tmp_path, "1.2.0", tag="cp311-cp311-linux_riscv64")
        found = run(agent, "adopt", str(archive), "--root", str(tmp_path / "root"), "--yes")
        assert (found.exit_code, (tmp_path / "root").exists()) == (4, False)
        assert "for riscv64" in found.stderr or "for Python" in found.stderr

    def test_refuses_what_is_no_archive(self, tmp_path: Path):
        (tmp_path / "bad.tar").write_bytes(b"no")
        found = run(agent, "adopt", str(tmp_path / "bad.tar"), "--root", str(tmp_path / "root"), "--yes")
        assert (found.exit_code, "edgeslm agent pack" in found.stderr) == (4, True)

    def test_what_is_no_installation_is_told(self, tmp_path: Path):
        found = run(agent, "installed", "--root", str(tmp_path))
        assert (found.exit_code, "edgeslm agent adopt" in found.stderr) == (2, True)

    def test_a_change_that_did_not_hold_is_told_with_its_reason(self, tmp_path: Path):
        installation, (old, new) = make_layout(tmp_path, ("1.0.0", ""), ("2.0.0", ""))
        installation.begin_trial("op-1", new)
        shown = ok(run(agent, "installed", "--root", str(installation.root)))
        assert [line.split(maxsplit=1) for line in shown.splitlines()[:2]] == [
            [old, "previous"],
            [new, "current, on trial"],
        ]
        installation.call_off("it did not start")
        shown = ok(run(agent, "installed", "--root", str(installation.root)))
        assert f"last change: {new}, rolled back: it did not start" in shown


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("template") / "green"
    where = ("--fleet-dir", str(made))
    ok(run(fleet, "init", "green", "--broker-host", "broker.local", *where))
    ok(run(fleet, "release", "init", *where))
    return made


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "green")


class TestRelease:
    def add(self, root: Path, archive: Path, *more: str) -> Result:
        key = str(root / "keys" / "targets.pem")
        arguments = ("release", "add-agent", str(archive), "--key", key, "--yes", "--json")
        return run(fleet, *arguments, *more, "--fleet-dir", str(root))

    def listed(self, root: Path) -> list[str]:
        found = ok(run(fleet, "release", "list", "--json", "--fleet-dir", str(root)))
        return [one["info"]["version"] for one in found["agents"]]

    def test_is_published_listed_written_down_and_taken_back(self, root: Path, tmp_path: Path):
        archive, found = make_archive(tmp_path, "1.2.0")
        assert ok(self.add(root, archive))["published"] == {"targets": 2}
        assert self.listed(root) == ["1.2.0"]
        table = ok(run(fleet, "release", "list", "--fleet-dir", str(root)))
        assert found.sha256[:12] in table
        store = FleetDirectory(root).open_store()
        with closing(store), store.read() as session:
            assert "release add-agent" in {entry.action for entry in list_audit(session)}
        key = str(root / "keys" / "targets.pem")
        ok(run(fleet, "release", "withdraw-agent", "1.2.0", "--key", key, "--yes", "--fleet-dir", str(root)))
        assert self.listed(root) == []

    def test_a_dry_run_shows_what_would_be_signed_and_changes_nothing(self, root: Path, tmp_path: Path):
        before = {path: path.read_bytes() for path in (root / "releases").rglob("*") if path.is_file()}
        found = self.add(root, make_archive(tmp_path, "1.2.0")[0], "--dry-run", "--floor", "1.1.0")
        assert found.exit_code == 0
        assert "agents/1.2.0/" in found.stderr
        assert {
            path: path.read_bytes() for path in (root / "releases").rglob("*") if path.is_file()
        } == before

    def test_a_floor_that_is_no_version_is_a_fault_of_usage(self, root: Path, tmp_path: Path):
        found = self.add(root, make_archive(tmp_path, "1.2.0")[0], "--floor", "latest")
        assert (found.exit_code, "is no version" in found.stderr) == (2, True)

    def test_devices_are_sent_only_to_what_is_published(self, root: Path, tmp_path: Path):
        arguments = ("exec", "update-agent", "--version", "1.3.0", "porch", "--yes", "--fleet-dir", str(root))
        found = run(fleet, *arguments)
        assert (found.exit_code, "fleet release add-agent" in found.stderr) == (2, True)
        AgentReleases(root / "releases").add(make_archive(tmp_path, "1.3.0")[0])
        assert run(fleet, *arguments).exit_code == 2, "it is only pending"
