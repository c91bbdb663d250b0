"""A trial in a process of its own: what it does to itself does not reach us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.update_device_rig import GRAPH
from edgeslm.agent.update.child import Launch, TrialProcess, TrialSettings, launch_trial
from edgeslm.errors import TrialError, UpdateInterruptedError
from edgeslm.models.store import ModelStore
from edgeslm.schema.installed import InstalledPackage

Start = Callable[..., TrialProcess]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, depot) -> InstalledPackage:
    return ModelStore(tmp_path_factory.mktemp("models")).install(depot.new.path)


@pytest.fixture
def start(installed: InstalledPackage, tmp_path: Path) -> Iterator[Start]:
    started: list[TrialProcess] = []

    def begin(launch: Launch = launch_trial, allowance_mb: int = 128, **settings: Any) -> TrialProcess:
        limits = {"load_s": 30.0, "answer_s": 10.0, **settings}
        low = limits.pop("memory_low", lambda: False)
        found = TrialProcess(
            installed,
            TrialSettings("auto", 1, tmp_path / "cache", **limits),
            allowance_mb,
            memory_low=low,
            launch=launch,
        )
        started.append(found)
        return found

    yield begin
    for trial in started:
        trial.close()


def never() -> bool:
    return False


def fault_of(step: Callable[[], object]) -> TrialError:
    with pytest.raises(TrialError) as caught:
        step()
    return caught.value


class TestTheRealOne:
    def test_it_loads_proves_and_answers_with_timings_and_memory(self, start: Start) -> None:
        trial = start()
        assert trial.load(never).graph == GRAPH
        answers = trial.answer(["turn off the lamp", "turn on the lamp"], never)
        assert [answer.data["intent"] for answer in answers] == ["HassTurnOff", "HassTurnOn"]
        assert all(answer.ttft_s > 0 and answer.decode_s > 0 and answer.tokens > 1 for answer in answers)
        assert 40 < trial.peak_mb < 400

    def test_a_prompt_that_the_model_does_not_take_is_a_wrong_answer_and_no_fault(self, start: Start) -> None:
        trial = start()
        trial.load(never)
        long, short = trial.answer(["word " * 500, "turn on the lamp"], never)
        assert (long.text, long.ttft_s) == ("", None)
        assert short.data is not None

    def test_memory_beyond_its_allowance_ends_it_and_nobody_else(self, start: Start) -> None:
        fault = fault_of(lambda: start(allowance_mb=0).load(never))
        assert fault.cause in {"out_of_memory", "load_failed", "crashed"}

    def test_it_steps_back_behind_the_agent(self, start: Start) -> None:
        trial = start()
        trial.load(never)
        pid = trial._child.pid
        assert os.getpriority(os.PRIO_PROCESS, pid) - os.getpriority(os.PRIO_PROCESS, 0) >= 9
        assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert (
            "unlimited" not in next(line for line in limits.splitlines() if line.startswith("Max data"))[:45]
        )

    def test_it_dies_with_the_agent(self, installed: InstalledPackage, tmp_path: Path) -> None:
        code = f"""
import sys, time
from pathlib import Path
from edgeslm.agent.update.child import TrialProcess, TrialSettings
from edgeslm.models.store import ModelStore
installed = ModelStore(Path({str(installed.directory.parent)!r})).get({installed.sha256!r})
trial = TrialProcess(installed, TrialSettings("auto", 1, None, 30.0, 10.0), 128, memory_low=lambda: False)
trial.load(lambda: False)
print(trial._child.pid, flush=True)
time.sleep(60)
"""
        agent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        pid = int(agent.stdout.readline())
        os.kill(pid, signal.SIGSTOP)  # as one that hangs, and does not see that nobody listens
        agent.kill()
        agent.wait()
        until_s = time.monotonic() + 5
        while is_alive(pid) and time.monotonic() < until_s:
            time.sleep(0.02)
        outlived = is_alive(pid)
        if outlived:
            os.kill(pid, signal.SIGKILL)
        assert not outlived


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in {"Z", "X"}


class TestWhateverItDoes:
    """Scripts that do what native code of a bad graph would do."""

    @pytest.mark.parametrize(
        ("does", "cause", "told"),
        [
            ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed", "SIGSEGV"),
            ("os.kill(os.getpid(), signal.SIGILL)", "crashed", "SIGILL"),
            ("os.abort()", "crashed", "SIGABRT"),
            ("os.kill(os.getpid(), signal.SIGKILL)", "out_of_memory", "killed"),
            ("sys.exit(3)", "crashed", "exit code 3"),
            ("out.write('nonsense\\n'); out.flush()", "crashed", "nonsense"),
            ("out.write('x' * 10**6); out.flush()", "crashed", "without end"),
            ("out.close(); os.close(1); time.sleep(60)", "hung", "closed its output"),
            ("time.sleep(60)", "hung", "more than 0.3 s"),
            ("say(kind='failure', cause='load_failed', detail='no')", "load_failed", "no"),
            ("say(kind='loaded', load_s=float('nan'), graph='g', runtime='r')", "crashed", "nonsense"),
        ],
    )
    @pytest.mark.parametrize("when", ["load", "answer"])
    def test_we_get_an_error_that_names_it(
        self,
        start: Start,
        depot,
        when: str,
        does: str,
        cause: str,
        told: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("edgeslm.agent.update.child._KILL_WAIT_S", 0.5)
        launch = depot.launch(for_releases=[depot.new], **{when: does})
        trial = start(launch, load_s=0.3 if "sleep(60)" in does else 5.0, answer_s=0.3)
        if when == "answer":
            trial.load(never)
            fault = fault_of(lambda: trial.answer(["a", "b"], never))
        else:
            fault = fault_of(lambda: trial.load(never))
        assert fault.cause == cause
        assert told in str(fault)
        trial.close()
        assert not is_alive(trial._child.pid)

    def test_it_is_ended_when_the_board_runs_out_of_memory(self, start: Start, depot) -> None:
        launch = depot.launch(for_releases=[depot.new], load="time.sleep(60)")
        fault = fault_of(lambda: start(launch, memory_low=lambda: True).load(never))
        assert fault.cause == "no_memory"

    def test_it_is_given_up_within_a_moment_when_it_is_no_longer_wanted(self, start: Start, depot) -> None:
        launch = depot.launch(for_releases=[depot.new], load="time.sleep(60)")
        trial = start(launch)
        began_s = time.monotonic()
        with pytest.raises(UpdateInterruptedError):
            trial.load(lambda: time.monotonic() - began_s > 0.1)
        assert time.monotonic() - began_s < 2.0

    def test_what_it_started_ends_with_it(self, start: Start, depot, tmp_path: Path) -> None:
        note = tmp_path / "pid"
        launch = depot.launch(
            for_releases=[depot.new],
            load=f"""
                import subprocess
                child = subprocess.Popen(["sleep", "60"])
                open({str(note)!r}, "w").write(str(child.pid))
            """,
        )
        trial = start(launch)
        trial.load(never)
        pid = int(note.read_text())
        assert is_alive(pid)
        trial.close()
        until_s = time.monotonic() + 5
        while is_alive(pid) and time.monotonic() < until_s:
            time.sleep(0.01)
        assert not is_alive(pid)

    def test_a_process_that_cannot_be_started_is_no_fault_of_the_candidate(self, start: Start) -> None:
        def refuse(arguments: object) -> Any:
            raise BlockingIOError(11, "no more processes")

        assert fault_of(lambda: start(refuse)).cause == "no_memory"
