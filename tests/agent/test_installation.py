"""The layout of versions on a device: built, switched, settled, left, tidied; and cut off anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.agent_update_rig import CRASHES, SERVES, bare_run, make_archive, make_layout, make_wheel
from edgeslm.agent import launcher
from edgeslm.agent.environments import Run
from edgeslm.agent.installation import Installation, find_installation, restart_command
from edgeslm.errors import AgentArchiveError, InstallationCancelledError, InstallationError
from edgeslm.schema.agent_release import version_name
from edgeslm.wheelhouse import write_archive


def never() -> bool:
    return False


class TestBuilding:
    def test_a_real_virtual_environment_is_made_without_any_network(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/nobody")
        archive, found = make_archive(tmp_path, "1.2.0")
        installation = Installation(tmp_path / "root")
        told: list[str] = []
        name = installation.build(archive, "1.2.0", found.sha256, lambda text, _: told.append(text))
        python = launcher.python_of(installation.root, name)
        run = subprocess.run(
            [python, "-P", "-c", "import edgeslm; print(edgeslm.__version__)"],
            capture_output=True,
            check=True,
        )
        assert run.stdout.strip() == b"1.2.0"
        assert installation.installed(name) is not None
        assert told[0] == "unpacking the wheels"
        assert {path.name for path in installation.root.iterdir()} == {"versions", ".lock"}

    def test_a_dependency_that_was_forgotten_is_found_before_the_switch(self, tmp_path: Path):
        wheel = make_wheel(tmp_path, "1.2.0", requires=["nothing-of-that-name>=2"])
        found = write_archive([wheel], tmp_path / "a.tar")
        installation = Installation(tmp_path / "root")
        with pytest.raises(InstallationError, match=r"pip check failed.*nothing-of-that-name"):
            installation.build(tmp_path / "a.tar", "1.2.0", found.sha256)
        assert list((installation.root / "versions").iterdir()) == []

    def test_what_does_not_run_at_all_is_not_installed(self, tmp_path: Path):
        archive, found = make_archive(tmp_path, "1.2.0")
        with pytest.raises(InstallationError, match="--version"):
            Installation(tmp_path / "root", run=self._failing("--version")).build(
                archive, "1.2.0", found.sha256
            )
        assert list((tmp_path / "root" / "versions").iterdir()) == []

    @staticmethod
    def _failing(word: str) -> Run:
        def run(command: object, cancelled: object) -> str:
            words = [str(item) for item in command]  # type: ignore[attr-defined]
            if word in words:
                raise InstallationError(f"{word} failed", path=words[0])
            return bare_run(words, never)

        return run

    def test_an_archive_of_another_version_is_not_installed(self, tmp_path: Path):
        archive, found = make_archive(tmp_path, "1.2.0")
        with pytest.raises(AgentArchiveError, match=r"not edgeslm 1\.3\.0"):
            Installation(tmp_path / "root", run=bare_run).build(archive, "1.3.0", found.sha256)

    def test_other_bytes_than_were_vouched_for_are_not_installed(self, tmp_path: Path):
        archive, _ = make_archive(tmp_path, "1.2.0")
        with pytest.raises(AgentArchiveError, match=r"not edgeslm 1\.2\.0"):
            Installation(tmp_path / "root", run=bare_run).build(archive, "1.2.0", "a" * 64)
        assert list((tmp_path / "root" / "versions").iterdir()) == []

    def test_the_second_time_does_nothing(self, tmp_path: Path):
        archive, found = make_archive(tmp_path, "1.2.0")
        name = Installation(tmp_path / "root", run=bare_run).build(archive, "1.2.0", found.sha256)
        archive.unlink()
        again = Installation(tmp_path / "root", run=self._failing("-m"))
        assert again.build(archive, "1.2.0", found.sha256) == name

    def test_half_a_version_is_built_anew(self, tmp_path: Path):
        archive, found = make_archive(tmp_path, "1.2.0")
        installation = Installation(tmp_path / "root", run=bare_run)
        directory = installation.root / "versions" / version_name("1.2.0", found.sha256)
        (directory / "lib" / "edgeslm").mkdir(parents=True)
        (directory / "lib" / "edgeslm" / "stale.py").touch()
        installation.build(archive, "1.2.0", found.sha256)
        assert not (directory / "lib" / "edgeslm" / "stale.py").exists()

    def test_nothing_is_left_when_it_is_not_wanted_any_more(self, tmp_path: Path):
        archive, found = make_archive(tmp_path, "1.2.0")
        installation = Installation(tmp_path / "root", run=bare_run)
        with pytest.raises(InstallationCancelledError):
            installation.build(archive, "1.2.0", found.sha256, cancelled=lambda: True)
        assert list((installation.root / "versions").iterdir()) == []
        assert not (installation.root / ".wheels").exists()


class TestSwitching:
    def test_both_links_change_and_the_trial_is_written_down(self, tmp_path: Path):
        installation, (old, new) = make_layout(tmp_path, ("1.0.0", SERVES), ("2.0.0", SERVES))
        trial = installation.begin_trial("op-1", new, healthy_within_s=5, max_starts=2)
        assert (trial.previous, trial.starts, trial.state) == (old, 0, "trial")
        assert (installation.current, installation.previous, installation.trial) == (new, old, trial)
        assert installation.on_trial
        assert (installation.root / "current").readlink() == Path("versions") / new

    def test_doing_it_again_changes_nothing_and_keeps_the_count(self, tmp_path: Path):
        installation, (old, new) = make_layout(tmp_path, ("1.0.0", SERVES), ("2.0.0", SERVES))
        installation.begin_trial("op-1", new)
        trial = installation.trial
        assert trial is not None
        launcher.write_trial(installation.root, launcher.replace(trial, starts=2))
        assert installation.begin_trial("op-1", new).starts == 2
        assert installation.previous == old

    def test_one_is_tried_at_a_time(self, tmp_path: Path):
        installation, (_, new, third) = make_layout(
            tmp_path, ("1.0.0", SERVES), ("2.0.0", SERVES), ("3.0.0", SERVES)
        )
        installation.begin_trial("op-1", new)
        with pytest.raises(InstallationError, match="on trial"):
            installation.begin_trial("op-2", third)

    def test_nothing_is_tried_without_a_way_back(self, tmp_path: Path):
        installation, (old, new) = make_layout(tmp_path, ("1.0.0", SERVES), ("2.0.0", SERVES))
        (installation.root / "versions" / old / "agent.json").unlink()
        with pytest.raises(InstallationError, match="nothing that it could go back to"):
            installation.begin_trial("op-1", new)
        assert installation.current == old

    def test_a_version_that_settled_is_not_taken_back(self, tmp_path: Path):
        installation, (_, new) = make_layout(tmp_path, ("1.0.0", SERVES), ("2.0.0", SERVES))
        installation.begin_trial("op-1", new)
        installation.settle()
        installation.give_up("too late")
        installation.call_off("too late")
        assert installation.trial is not None
        assert (installation.trial.state, installation.current) == ("healthy", new)
        assert not installation.on_trial

    def test_calling_it_off_leads_back_at_once(self, tmp_path: Path):
        installation, (old, new) = make_layout(tmp_path, ("1.0.0", SERVES), ("2.0.0", SERVES))
        installation.begin_trial("op-1", new)
        installation.call_off("nobody starts it")
        assert installation.current == old
        assert installation.trial is not None
        assert installation.trial.reason == "nobody starts it"

    def test_adopting_replaces_the_launcher_and_keeps_the_one_before(self, tmp_path: Path):
        installation, (old, new) = make_layout(tmp_path, ("1.0.0", SERVES), ("2.0.0", CRASHES))
        installation.begin_trial("op-1", new)
        installation.call_off("x")
        (installation.root / "launch.py").write_text("of long ago")
        installation.adopt(new)
        assert (installation.current, installation.previous, installation.trial) == (new, old, None)
        assert (installation.root / "launch.py").read_bytes() == Path(launcher.__file__).read_bytes()


class TestTidying:
    def test_what_runs_what_ran_and_what_is_tried_stays(self, tmp_path: Path):
        made = [(f"{number}.0.0", SERVES) for number in range(1, 6)]
        installation, names = make_layout(tmp_path, *made)
        running = Installation(installation.root, running=names[0])
        running.begin_trial("op-1", names[1])
        assert running.collect(keep=[names[2]]) == (names[3], names[4])
        assert sorted(path.name for path in (installation.root / "versions").iterdir()) == names[:3]
        running.settle()
        assert Installation(installation.root, running=names[1]).collect() == (names[2],)

    def test_what_was_left_is_removed(self, tmp_path: Path):
        installation, (old, new) = make_layout(tmp_path, ("1.0.0", SERVES), ("2.0.0", SERVES))
        installation.begin_trial("op-1", new)
        installation.call_off("it failed")
        assert installation.collect() == (new,)
        assert installation.current == old


class TestFinding:
    def test_the_layout_that_the_process_runs_from(self, tmp_path: Path):
        installation, (name,) = make_layout(tmp_path, ("1.0.0", SERVES))
        environment = {"EDGESLM_LAUNCHER": str(installation.root / "launch.py")}
        found = find_installation(installation.root / "versions" / name, environment)
        assert (found.root, found.running) == (installation.root, name)

    def test_an_agent_of_elsewhere_is_told_what_to_do(self, tmp_path: Path):
        with pytest.raises(InstallationError, match=r"no other version .*edgeslm agent adopt"):
            find_installation(tmp_path, {})

    def test_an_agent_that_the_launcher_did_not_start_is_told_what_to_do(self, tmp_path: Path):
        installation, (name,) = make_layout(tmp_path, ("1.0.0", SERVES))
        with pytest.raises(InstallationError, match=r"not started by .*python3 .*launch\.py agent run"):
            find_installation(installation.root / "versions" / name, {})

    def test_beginning_anew_goes_by_way_of_the_launcher_that_started_us(self, tmp_path: Path):
        file = tmp_path / "launch.py"
        environment = {"EDGESLM_LAUNCHER": str(file), "EDGESLM_LAUNCHER_PYTHON": "/usr/bin/python3"}
        assert restart_command({}, ["agent", "run"]) is None
        assert restart_command(environment, ["agent", "run"]) is None
        file.touch()
        assert restart_command(environment, ["agent", "run"]) == [
            "/usr/bin/python3",
            str(file),
            "agent",
            "run",
        ]
