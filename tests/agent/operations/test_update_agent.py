"""``update-agent``: what it refuses, what it does up to the switch, and how the new version or the old one ends it."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.agent_update_rig import CRASHES, SERVES, bare_run, make_archive, make_layout
from benchmarks.update_cuts import Meddler
from edgeslm.agent import launcher
from edgeslm.agent.environments import Host
from edgeslm.agent.installation import Installation
from edgeslm.agent.operations.ports import Command, Done, Restart, Step, Waiting
from edgeslm.agent.operations.update_agent import UpdateAgent
from edgeslm.errors import (
    DeliveryCancelledError,
    DeliveryPolicyError,
    InstallationError,
    NoSourceError,
    OperationError,
    TrustStateError,
    UpdateInterruptedError,
)
from edgeslm.schema.agent_release import AgentInfo, AgentRequirements, AgentTarget
from edgeslm.schema.release import CheckedAgent, CheckResult, Refusal, WantedAgent
from edgeslm.wheelhouse import Wheelhouse

NOW = datetime(2026, 12, 1, tzinfo=UTC)


@dataclass
class Progress:
    said: list[str] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    cancelled: bool = False

    def tell(self, text: str, share: float | None = None) -> None:
        self.said.append(text)
        if share is not None:
            self.shares.append(share)

    def is_cancelled(self) -> bool:
        return self.cancelled


def quick_run(command: Sequence[str], cancelled: Callable[[], bool]) -> str:
    """``bare_run``, but what was installed is not run."""
    if list(command)[-1] != "--version":
        return bare_run(command, cancelled)
    lib = Path(command[0]).parents[1] / "lib" / "edgeslm" / "__init__.py"
    return "edgeslm, version " + lib.read_text().split("'")[1]


class Device:
    """A device on which 1.0.0 runs, and the archives that its repository vouches for."""

    def __init__(self, directory: Path, *, run: Callable[..., str] = quick_run) -> None:
        self.directory = directory
        self.run = run
        self.installation, (self.old,) = make_layout(directory, ("1.0.0", SERVES), run=run)
        self.archives: dict[str, tuple[Path, Wheelhouse]] = {}
        self.refused: dict[str, Refusal] = {}
        self.asked: list[WantedAgent] = []
        self.fetched = 0
        self.agent = "1.0.0"
        self.lacks: str | None = None
        self.fault: Exception | None = None
        self.requires: dict[str, object] = {}

    def release(self, version: str, main: str = SERVES) -> str:
        path, found = make_archive(self.directory / version, version, main)
        self.archives[found.sha256] = (path, found)
        return found.sha256

    def operation(self, running: str | None = None) -> UpdateAgent:
        installation = Installation(self.installation.root, running=running or self.old, run=self.run)
        return UpdateAgent(
            lambda: installation,
            self.vouch,
            self,
            self,
            self.agent,
            host=lambda: Host("3.11", "x86_64", "2.36"),
        )

    # --- the ports ---

    def vouch(self, wanted: Sequence[WantedAgent], cancelled: Callable[[], bool]) -> CheckResult:
        if cancelled():
            raise UpdateInterruptedError
        self.asked += wanted
        return CheckResult(now=NOW, clock="wall", agents=tuple(self._said(one) for one in wanted))

    def _said(self, wanted: WantedAgent) -> CheckedAgent:
        refused = self.refused.get(wanted.sha256)
        if refused is None and wanted.sha256 not in self.archives:
            refused = Refusal(error="ReleaseNotFoundError", message="the repository does not vouch for it")
        if refused is not None:
            return CheckedAgent(version=wanted.version, sha256=wanted.sha256, refused=refused)
        found = self.archives[wanted.sha256][1]
        info = AgentInfo(
            version=found.manifest.version,
            sha256=found.sha256,
            size_bytes=found.size_bytes,
            installed_bytes=found.manifest.installed_bytes,
            requires=AgentRequirements.model_validate({**dict(found.manifest.requires), **self.requires}),
        )
        return CheckedAgent(
            version=wanted.version, sha256=wanted.sha256, target=AgentTarget(info=info, floor="0.0.0")
        )

    def fetch(
        self, info: AgentInfo, on_share: Callable[[float], None], cancelled: Callable[[], bool]
    ) -> Path:
        if self.fault is not None:
            raise self.fault
        if cancelled():
            raise DeliveryCancelledError("given up")
        self.fetched += 1
        on_share(1.0)
        return self.archives[info.sha256][0]

    def forget(self) -> None:
        pass

    def served(self) -> list[str]:
        return ["home-command"]

    def missing(self, served: Sequence[str], cancelled: Callable[[], bool]) -> str | None:
        del cancelled
        # Nothing is known of the version before where the power went before it was written down.
        return self.lacks if list(served) in ([], ["home-command"]) else f"served before: {served}"


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def command(version: str, *sha256s: str, **more: object) -> Command:
    return Command("op-1", "update-agent", {"version": version, "sha256s": list(sha256s), **more})


def refused(device: Device, asked: Command, reason: str = "refused") -> str:
    before = (device.installation.current, device.installation.trial)
    with pytest.raises(OperationError) as found:
        device.operation().begin(asked, Progress())
    assert found.value.reason == reason
    assert (device.installation.current, device.installation.trial) == before
    return str(found.value)


class TestRefuses:
    @pytest.mark.parametrize(
        "args",
        [
            {},
            {"version": "1.1.0"},
            {"version": "1.1.0", "sha256s": []},
            {"version": "../../etc", "sha256s": ["a" * 64]},
            {"version": "1.1.0", "sha256s": ["A" * 64]},
            {"version": "1.1.0", "sha256s": ["a" * 64] * 17},
            {"version": "1.1.0", "sha256s": ["a" * 64], "allow_downgrade": "yes"},
            {"version": 1, "sha256s": "a" * 64},
        ],
    )
    def test_arguments_that_are_none(self, device: Device, args: dict[str, Any]):
        assert "the arguments are none" in refused(device, Command("op-1", "update-agent", args))

    def test_what_nobody_vouches_for(self, device: Device):
        assert "does not vouch" in refused(device, command("1.1.0", "a" * 64))
        assert device.fetched == 0

    def test_what_is_below_the_floor_or_a_downgrade_that_is_not_meant(self, device: Device):
        sha256 = device.release("0.9.0")
        device.refused[sha256] = Refusal(
            error="DowngradeError", message="0.9.0 is older than the 1.0.0 that runs"
        )
        assert "older than" in refused(device, command("0.9.0", sha256))
        assert device.asked == [WantedAgent(version="0.9.0", sha256=sha256, running="1.0.0")]

    def test_a_downgrade_is_asked_for_as_one(self, device: Device):
        sha256 = device.release("0.9.0")
        assert isinstance(
            device.operation().begin(command("0.9.0", sha256, allow_downgrade=True), Progress()), Restart
        )
        assert device.asked[0].allow_downgrade

    def test_archives_for_other_boards(self, device: Device):
        device.requires = {"machine": "aarch64"}
        assert "for aarch64, and this is x86_64" in refused(device, command("1.1.0", device.release("1.1.0")))

    def test_an_agent_that_has_no_layout(self, device: Device):
        def find() -> Installation:
            raise InstallationError("runs from elsewhere", path="/x", hint="edgeslm agent adopt")

        operation = UpdateAgent(find, device.vouch, device, device, "1.0.0")
        for call in (operation.begin, lambda *given: operation.resume(given[0], None, given[1])):
            with pytest.raises(OperationError, match="edgeslm agent adopt") as found:
                call(command("1.1.0", "a" * 64), Progress())
            assert found.value.reason == "refused"

    def test_a_second_version_while_one_is_on_trial(self, device: Device):
        device.operation().begin(command("1.1.0", device.release("1.1.0")), Progress())
        assert "on trial" in refused(device, replace(command("1.2.0", device.release("1.2.0")), id="op-2"))


class TestUpToTheSwitch:
    def test_the_version_is_installed_and_the_agent_begins_anew(self, device: Device):
        progress = Progress()
        step = device.operation().begin(command("1.1.0", device.release("1.1.0")), progress)
        assert step == Restart({"served": ["home-command"], "restarts": 0})
        trial = device.installation.trial
        assert trial is not None
        assert (trial.id, trial.previous, device.installation.current) == ("op-1", device.old, trial.version)
        assert progress.shares == sorted(progress.shares)

    def test_the_first_archive_that_fits_is_taken(self, device: Device):
        fits = device.release("1.1.0")
        step = device.operation().begin(command("1.1.0", "a" * 64, fits), Progress())
        assert isinstance(step, Restart)

    def test_the_version_that_runs_is_done_already(self, device: Device):
        found = device.installation.installed(device.old)
        assert found is not None
        step = device.operation().begin(command("1.0.0", found.sha256), Progress())
        assert step == Done({"version": "1.0.0", "changed": False})
        assert device.asked == []

    def test_it_waits_where_the_policy_of_the_link_asks_for_it(self, device: Device):
        device.fault = DeliveryPolicyError("the link is metered", retry_after_s=600.0)
        asked = command("1.1.0", device.release("1.1.0"))
        assert device.operation().begin(asked, Progress()) == Waiting(
            {"waits_for": "the link is metered"}, 600.0
        )
        device.fault = None
        assert isinstance(device.operation().resume(asked, {"waits_for": ""}, Progress()), Restart)

    @pytest.mark.parametrize(
        ("fault", "reason"),
        [
            (NoSourceError("nobody has it", sha256="a" * 64, missing=True), "failed"),
            (DeliveryCancelledError("given up"), "cancelled"),
        ],
    )
    def test_what_cannot_be_brought_changes_nothing(self, device: Device, fault: Exception, reason: str):
        device.fault = fault
        refused(device, command("1.1.0", device.release("1.1.0")), reason)

    def test_what_cannot_be_judged_changes_nothing(self, device: Device, monkeypatch: pytest.MonkeyPatch):
        def vouch(*_: object) -> CheckResult:
            raise TrustStateError("the check ended", path="/x")

        monkeypatch.setattr(device, "vouch", vouch)
        assert "the check ended" in refused(device, command("1.1.0", device.release("1.1.0")), "failed")

    def test_too_little_room_fails_before_anything_is_fetched(
        self, device: Device, monkeypatch: pytest.MonkeyPatch
    ):
        usage = shutil.disk_usage(device.directory)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
        assert "no room" in refused(device, command("1.1.0", device.release("1.1.0")), "failed")
        assert device.fetched == 0

    def test_a_build_that_fails_leaves_nothing(self, tmp_path: Path):
        device = Device(tmp_path, run=bare_run)
        sha256 = device.release("1.1.0", CRASHES)
        # This one cannot even say its version.
        archive = device.archives[sha256][0]
        device.run = lambda words, cancelled: (
            _fail() if words[-1] == "--version" else bare_run(words, cancelled)
        )
        assert "cannot be imported" in refused(device, command("1.1.0", sha256), "failed")
        assert [path.name for path in (device.installation.root / "versions").iterdir()] == [device.old]
        assert archive.exists()

    def test_it_is_given_up_until_the_switch(self, device: Device):
        progress = Progress(cancelled=True)
        with pytest.raises(OperationError) as found:
            device.operation().begin(command("1.1.0", device.release("1.1.0")), progress)
        assert found.value.reason == "cancelled"
        assert device.installation.current == device.old


def _fail() -> str:
    raise InstallationError("it cannot be imported", path="/x")


class TestAfterTheSwitch:
    @pytest.fixture
    def asked(self, device: Device) -> Command:
        return command("1.1.0", device.release("1.1.0"))

    @pytest.fixture
    def memo(self, device: Device, asked: Command) -> dict[str, Any]:
        step = device.operation().begin(asked, Progress())
        assert isinstance(step, Restart)
        return dict(step.memo)

    def test_the_new_version_waits_until_it_lacks_nothing_and_stays(
        self, device: Device, asked: Command, memo: dict[str, Any]
    ):
        new = device.installation.current
        device.lacks = "it is not at the broker"
        progress = Progress()
        assert isinstance(device.operation(new).resume(asked, memo, progress), Waiting)
        assert "it is not at the broker" in progress.said[-1]
        assert device.installation.on_trial
        device.lacks = None
        step = device.operation(new).resume(asked, memo, Progress())
        assert step == Done({"version": new, "was": device.old, "starts": 0, "changed": True})
        assert device.installation.trial is not None
        assert device.installation.trial.state == "healthy"

    def test_what_was_told_before_is_told_again(self, device: Device, asked: Command, memo: dict[str, Any]):
        new = device.installation.current
        first = device.operation(new).resume(asked, memo, Progress())
        assert device.operation(new).resume(asked, None, Progress()) == first

    def test_the_old_version_tells_why_it_runs_again(
        self, device: Device, asked: Command, memo: dict[str, Any]
    ):
        new, trial = device.installation.current, device.installation.trial
        assert trial is not None
        launcher.go_back(device.installation.root, trial, "it was not healthy after 3 starts")
        with pytest.raises(OperationError, match="not healthy after 3 starts") as found:
            device.operation().resume(asked, memo, Progress())
        assert found.value.reason == "rolled_back"
        assert not (device.installation.root / "versions" / str(new)).exists()

    def test_the_old_version_begins_anew_until_the_launcher_takes_over_but_not_for_ever(
        self, device: Device, asked: Command, memo: dict[str, Any]
    ):
        for number in (1, 2, 3):
            step = device.operation().resume(asked, memo, Progress())
            assert isinstance(step, Restart)
            assert step.memo["restarts"] == number
            memo = dict(step.memo)
        with pytest.raises(OperationError) as found:
            device.operation().resume(asked, memo, Progress())
        assert found.value.reason == "rolled_back"
        assert device.installation.current == device.old

    def test_a_version_that_was_left_may_be_asked_for_again(
        self, device: Device, asked: Command, memo: dict[str, Any]
    ):
        del memo
        device.installation.call_off("it failed")
        assert isinstance(device.operation().begin(replace(asked, id="op-2"), Progress()), Restart)


# --- the power goes -------------------------------------------------------------------------------------------


def one_process(device: Device, journal: Path, asked: Command, cut_at: int | None, out: Path) -> None:
    """What one process of the agent does with the operation, as the machinery of operations calls it."""
    written = json.loads(journal.read_text()) if journal.exists() else {}
    meddler = Meddler(cut_at)
    meddler.install()
    operation = device.operation(device.installation.current)
    memo = written.get("memo")
    try:
        if written:
            step: Step = operation.resume(asked, memo, Progress())
        else:
            journal.write_text(json.dumps({"begun": True}))
            step = operation.begin(asked, Progress())
        if isinstance(step, Restart):
            journal.write_text(json.dumps({"begun": True, "memo": dict(step.memo)}))
        said = type(step).__name__
    except OperationError as error:
        said = error.reason
    out.write_text(json.dumps({"said": said, "points": meddler.points}))
    os._exit(0)


class Machine:
    """A device whose power goes at a given effect, and then no more, until the operation has an answer."""

    def __init__(self, directory: Path, device: Device, asked: Command, *, is_good: bool) -> None:
        self.directory = directory
        self.device = device
        self.asked = asked
        self.is_good = is_good
        self.root = device.installation.root
        self.points = 0

    def run(self, cut_at: int | None) -> str:
        journal = self.directory / "journal"
        journal.unlink(missing_ok=True)
        for _ in range(12):
            found = launcher.plan(self.device.installation.trial, self.device.installation.current)
            trial = self.device.installation.trial
            if found.kind == "back" and trial is not None:
                launcher.go_back(self.root, trial, found.reason)
                continue
            if found.kind == "on trial" and trial is not None:
                launcher.write_trial(self.root, replace(trial, starts=trial.starts + 1))
                if not self.is_good:
                    continue  # it crashes at once
            said = self._process(journal, cut_at)
            cut_at = None
            if said not in {None, "Restart"}:
                return str(said)
        raise AssertionError("it comes to no end")

    def _process(self, journal: Path, cut_at: int | None) -> str | None:
        out = self.directory / "out"
        out.unlink(missing_ok=True)
        child = multiprocessing.get_context("fork").Process(
            target=one_process, args=(self.device, journal, self.asked, cut_at, out)
        )
        child.start()
        child.join(60)
        if child.exitcode == -signal.SIGKILL:
            return None
        assert child.exitcode == 0
        found = json.loads(out.read_text())
        self.points = max(self.points, int(found["points"]))
        return str(found["said"])


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("is_good", [True, False])
def test_a_power_cut_at_any_effect_leaves_a_whole_version_and_one_answer(tmp_path: Path, is_good: bool):
    device = Device(tmp_path / "device")
    sha256 = device.release("1.1.0")
    new = f"1.1.0-{sha256[:8]}"
    asked = command("1.1.0", sha256)
    shutil.copytree(device.installation.root, tmp_path / "kept", symlinks=True)
    machine = Machine(tmp_path, device, asked, is_good=is_good)
    expected = "Done" if is_good else "rolled_back"
    assert machine.run(None) == expected
    whole = tree(device.installation.root / "versions" / (new if is_good else device.old))
    points = machine.points
    assert points > 40
    for cut_at in range(1, points + 1):
        shutil.rmtree(device.installation.root)
        shutil.copytree(tmp_path / "kept", device.installation.root, symlinks=True)
        assert machine.run(cut_at) == expected, f"cut at {cut_at} of {points}"
        current = device.installation.current
        assert current == (new if is_good else device.old)
        assert tree(device.installation.root / "versions" / str(current)) == whole, (
            f"cut at {cut_at} of {points}"
        )
        left = {path.name for path in device.installation.root.iterdir()}
        assert left - {".lock"} == {"versions", "current", "previous", "launch.py", "trial.json"}, (
            f"cut at {cut_at}"
        )


def test_the_agent_at_its_start_loads_nothing_of_this():
    code = (
        "import sys, edgeslm.cli.agent, edgeslm.cli.wiring_operations;"
        "names = ('update_agent', 'wheelhouse', 'agent.launcher', 'agent.installation', 'agent.environments');"
        "print([module for module in sys.modules if module.endswith(names)])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
