"""Environments of the agent: whether an archive is for this device, and the programs that build one."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from edgeslm.agent import environments as module
from edgeslm.agent.environments import Host, check_room, misfit, run_gently
from edgeslm.errors import InstallationCancelledError, InstallationError
from edgeslm.schema.agent_release import AgentRequirements

HOST = Host("3.11", "aarch64", "2.36")


def never() -> bool:
    return False


class TestRoom:
    def test_too_little_room_is_told_with_the_figures(self, tmp_path: Path):
        check_room(tmp_path, 1000, 1000)
        with pytest.raises(InstallationError, match=r"no room: \d+ MiB are needed, \d+ MiB are free"):
            check_room(tmp_path, 2**40, 2**42)

    def test_too_little_memory_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "memory_kib", lambda _: 50 * 1024)
        with pytest.raises(InstallationError, match="96 MB are needed to install, 50 MB"):
            check_room(tmp_path, 1, 1)

    def test_a_python_that_makes_no_environments_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
        with pytest.raises(InstallationError, match="apt install python3-venv"):
            check_room(tmp_path, 1, 1)


class TestPrograms:
    def test_run_at_the_lowest_priority_and_without_settings_of_others(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("PYTHONPATH", "/elsewhere")
        monkeypatch.setenv("PIP_TARGET", "/elsewhere")
        code = (
            "import os; print(os.nice(0), [key for key in os.environ if key.startswith(('PYTHON', 'PIP_'))])"
        )
        assert run_gently([sys.executable, "-c", code], never).strip() == "19 []"

    def test_that_fail_are_told_with_their_last_words(self):
        with pytest.raises(InstallationError, match=r"failed with 3: .*too bad$"):
            run_gently([sys.executable, "-c", "print('x' * 9999, 'too bad'); exit(3)"], never)

    def test_that_are_not_wanted_any_more_are_ended(self):
        wanted = threading.Event()
        threading.Timer(0.3, wanted.set).start()
        with pytest.raises(InstallationCancelledError):
            run_gently([sys.executable, "-c", "import time; time.sleep(600)"], wanted.is_set)

    def test_that_are_not_there_are_told(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module.shutil, "which", lambda _: None)
        with pytest.raises(InstallationError, match="failed with 1"):
            run_gently(["/nowhere/python", "-c", ""], never)


@pytest.mark.parametrize(
    ("requires", "reason"),
    [
        ({"pythons": ("3.11", "3.12")}, None),
        ({"pythons": ("3.12",)}, "for Python 3.12, and this is 3.11"),
        ({"machine": "aarch64", "glibc": "2.36"}, None),
        ({"machine": "x86_64"}, "for x86_64, and this is aarch64"),
        ({"machine": "aarch64", "glibc": "2.38"}, "needs glibc 2.38, and this system has 2.36"),
        ({"agent": "1.0.0"}, None),
        ({"agent": "1.1.0"}, "only 1.1.0 and later can install it"),
    ],
)
def test_an_archive_for_other_boards_says_why(requires: dict[str, object], reason: str | None):
    found = misfit(AgentRequirements.model_validate({"pythons": ("3.11",), **requires}), HOST, "1.0.0")
    assert (found is None) if reason is None else (reason in (found or ""))


def test_an_archive_for_glibc_does_not_fit_another_c_library():
    requires = AgentRequirements(pythons=("3.11",), machine="aarch64", glibc="2.17")
    assert "another C library" in (misfit(requires, Host("3.11", "aarch64", None), "1.0.0") or "")
