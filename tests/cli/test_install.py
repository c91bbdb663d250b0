"""`edgeslm flash archive`, `edgeslm install` and `edgeslm uninstall` on an unpacked system, with a small agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.agent_update_rig import make_wheel
from edgeslm.agent import launcher
from edgeslm.cli.main import cli
from edgeslm.codec import encode
from edgeslm.flash.payload import layout
from edgeslm.schema.enrol import Claim
from edgeslm.wheelhouse import write_archive

PACKAGE = Path(__file__).parents[2] / "edgeslm" / "_packages" / "home-command.slm"
X86 = b"\x7fELF\x02\x01\x01" + bytes(11) + (62).to_bytes(2, "little") + bytes(44)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of a small agent."""
    directory = tmp_path_factory.mktemp("agent")
    files = {"edgeslm/agent/launcher.py": Path(launcher.__file__).read_text("utf-8")}
    write_archive([make_wheel(directory, "1.0.0", files=files)], directory / "agent.tar")
    return directory / "agent.tar"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The files of a Debian."""
    found = tmp_path / "root"
    for path, data, mode in [
        ("usr/bin/python3.13", X86, 0o755),
        ("usr/bin/sh", X86, 0o755),
        ("usr/lib/systemd/systemd", X86, 0o755),
        (
            "usr/lib/x86_64-linux-gnu/libc.so.6",
            X86 + b"\0GNU C Library (D) stable release version 2.41.\n",
            0o755,
        ),
        ("etc/group", b"root:x:0:\nvideo:x:44:\n", 0o644),
        ("etc/os-release", b'ID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n', 0o644),
    ]:
        place = found / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        place.chmod(mode)
    (found / "lib").symlink_to("usr/lib")
    (found / "bin").symlink_to("usr/bin")
    (found / "usr/bin/python3").symlink_to("python3.13")
    (found / "var/lib").mkdir(parents=True)
    return found


def run(*arguments: str) -> Result:
    clean: dict[str, str | None] = {name: None for name in os.environ if name.startswith("EDGESLM_")}
    return CliRunner(env=clean).invoke(cli, arguments)


def ok(result: Result) -> Any:
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return json.loads(result.stdout) if result.stdout.startswith("{") else result.stdout


def install(root: Path, agent: Path, *more: str) -> Result:
    chosen = () if "--device" in more or "--claim" in more else ("--device", "porch")
    what = ("--board", "host", "--agent", str(agent), "--model", str(PACKAGE))
    return run("install", "--root", str(root), *what, *chosen, *more)


class TestInstall:
    def test_a_machine_gets_the_agent_as_a_service(self, root: Path, agent: Path) -> None:
        found = ok(install(root, agent, "--yes", "--json"))
        assert (found["edgeslm"], found["board"], found["device"]) == ("1.0.0", "host", "porch")
        assert (found["written"], found["started"]) == (found["missing"], False)
        assert "device: porch" in (root / layout.SETTINGS[1:]).read_text()
        assert (root / layout.UNIT_LINK[1:]).is_symlink()
        assert ok(install(root, agent, "--yes", "--json"))["written"] == 0

    def test_it_tells_people_as_well(self, root: Path, agent: Path) -> None:
        done = install(root, agent, "--yes")
        assert "installed edgeslm 1.0.0; systemctl status edgeslm-agent.service" in ok(done)
        assert "install edgeslm 1.0.0 for host with the profile default" in done.stderr

    def test_a_dry_run_writes_nothing(self, root: Path, agent: Path) -> None:
        found = ok(install(root, agent, "--dry-run", "--json"))
        assert found["missing"] > 10
        assert found["written"] == 0
        assert not (root / "opt").exists()
        assert not (root / layout.STATE[1:]).exists()

    def test_nobody_to_ask_is_no_yes(self, root: Path, agent: Path) -> None:
        done = install(root, agent)
        assert (done.exit_code, "Confirm with --yes" in done.stderr) == (2, True)
        assert not (root / "opt").exists()

    def test_a_persons_settings_stay_unless_they_are_to_go(self, root: Path, agent: Path) -> None:
        ok(install(root, agent, "--yes"))
        settings = root / layout.SETTINGS[1:]
        settings.write_text("device: mine\n")
        assert ok(install(root, agent, "--yes", "--json"))["kept"] == [layout.SETTINGS]
        assert settings.read_text() == "device: mine\n"
        found = ok(install(root, agent, "--yes", "--json", "--replace-settings"))
        assert found["saved"] == [f"{layout.SETTINGS}.old"]
        assert "device: porch" in settings.read_text()

    def test_an_unnamed_device_is_no_device(self, root: Path, agent: Path) -> None:
        done = run("install", "--root", str(root), "--board", "host", "--agent", str(agent), "--yes")
        assert done.exit_code == 2
        assert "--claim" in done.stderr
        assert "--device" in done.stderr

    def test_a_system_without_python_is_told_so(self, root: Path, agent: Path) -> None:
        for name in ("python3", "python3.13"):
            (root / "usr/bin" / name).unlink()
        done = install(root, agent, "--yes")
        assert done.exit_code == 2
        assert "has no Python that is called python3. On Debian: apt install python3" in done.stderr

    def test_a_system_without_systemd_is_told_so(self, root: Path, agent: Path) -> None:
        (root / "usr/lib/systemd/systemd").unlink()
        done = install(root, agent, "--yes")
        assert done.exit_code == 2
        assert "it needs systemd, which is not here" in done.stderr
        assert not (root / "opt").exists()

    def test_somebody_who_is_not_root_is_told_the_command(
        self, agent: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setattr(sys, "argv", ["edgeslm", "install", "--device", "porch"])
        done = run("install", "--device", "porch", "--yes", "--agent", str(agent))
        assert done.exit_code == 2
        assert "only root can change this system. Call: sudo " in done.stderr
        assert "edgeslm install --device porch" in done.stderr

    def test_a_disk_that_refuses_is_told_and_nothing_starts(self, root: Path, agent: Path) -> None:
        (root / "etc/systemd").write_text("in the way")
        done = install(root, agent, "--yes")
        assert done.exit_code == 1
        assert "Running it again goes on where it stopped" in done.stderr
        (root / "etc/systemd").unlink()
        ok(install(root, agent, "--yes"))
        assert (root / layout.UNIT_LINK[1:]).exists()


class TestUninstall:
    def test_what_was_installed_goes_and_the_rest_is_named(self, root: Path, agent: Path) -> None:
        ok(install(root, agent, "--yes"))
        (root / layout.ETC[1:] / "mine.yaml").write_text("mine")
        done = run("uninstall", "--root", str(root), "--yes", "--json")
        found = ok(done)
        assert {one["path"] for one in found["kept"]} == {layout.STATE, f"{layout.ETC}/mine.yaml"}
        assert not (root / layout.OPT[1:]).exists()
        assert (root / layout.ETC[1:] / "mine.yaml").exists()

    def test_all_of_it_goes_where_that_is_asked_for(self, root: Path, agent: Path) -> None:
        ok(install(root, agent, "--yes"))
        assert "uninstalled edgeslm 1.0.0" in ok(run("uninstall", "--root", str(root), "--purge", "--yes"))
        assert not any((root / path[1:]).exists() for path in (layout.OPT, layout.ETC, layout.STATE))

    def test_a_dry_run_removes_nothing(self, root: Path, agent: Path) -> None:
        ok(install(root, agent, "--yes"))
        found = ok(run("uninstall", "--root", str(root), "--purge", "--dry-run", "--json"))
        assert (found["removed"], found["purged"]) == (False, False)
        assert (root / layout.LAUNCHER[1:]).exists()

    def test_a_machine_without_it_is_told_so(self, root: Path) -> None:
        done = run("uninstall", "--root", str(root), "--yes")
        assert (done.exit_code, "was not installed in" in done.stderr) == (1, True)


class TestArchive:
    def make(self, out: Path, agent: Path, *more: str) -> Result:
        system = ("--board", "host", "--machine", "x86_64", "--python", "3.13", "--glibc", "2.41")
        what = ("--agent", str(agent), "--model", str(PACKAGE), "--out", str(out))
        return run("flash", "archive", *system, *what, *more)

    def test_one_file_does_what_install_does(self, root: Path, agent: Path, tmp_path: Path) -> None:
        out = tmp_path / "board.pyz"
        found = ok(self.make(out, agent, "--device", "porch", "--json"))
        assert (found["file"], found["device"], found["size_bytes"]) == (
            str(out),
            "porch",
            out.stat().st_size,
        )
        command = [sys.executable, str(out), "--root", str(root), "--yes", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert ok(install(root, agent, "--yes", "--json"))["missing"] == 0

    def test_a_claim_of_no_authority_is_refused(self, agent: Path, tmp_path: Path) -> None:
        claim = Claim(
            fleet="green", claim="abcdef", secret="0123456789abcdef", host="broker", port=8884, ca="x"
        )
        file = tmp_path / "claim.json"
        file.write_bytes(encode(claim))
        done = self.make(tmp_path / "board.pyz", agent, "--claim", str(file))
        assert done.exit_code == 2
        assert "names an authority that is no certificate" in done.stderr

    def test_a_file_that_is_there_stays_unless_it_is_to_go(self, agent: Path, tmp_path: Path) -> None:
        out = tmp_path / "board.pyz"
        out.write_text("mine")
        done = self.make(out, agent, "--device", "porch")
        assert (done.exit_code, out.read_text()) == (2, "mine")
        assert "--force" in done.stderr
        ok(self.make(out, agent, "--device", "porch", "--force"))
        assert out.stat().st_size > 1000

    def test_a_dry_run_writes_nothing(self, agent: Path, tmp_path: Path) -> None:
        out = tmp_path / "board.pyz"
        done = self.make(out, agent, "--device", "porch", "--dry-run")
        assert "installed, in" in ok(done)
        assert not out.exists()

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (("--python", "313"), "--python: '313' is no version"),
            (("--glibc", "three"), "--glibc: 'three' is no version"),
            (("--board", "pi-5"), "board 'pi-5' is aarch64, not x86_64"),
        ],
    )
    def test_what_cannot_be_is_named(
        self, agent: Path, tmp_path: Path, more: tuple[str, ...], said: str
    ) -> None:
        done = self.make(tmp_path / "board.pyz", agent, "--device", "porch", *more)
        assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
