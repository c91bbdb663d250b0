"""A release that hangs in the agent itself is left for what served before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.update_device_rig import FAST, NAME, Run
from edgeslm.agent.ports import Model
from edgeslm.agent.update.change import Failed, Fault
from edgeslm.agent.update.watchdog import Pulse, Watchdog, WatchedModel, Work
from edgeslm.errors import JournalError
from edgeslm.schema.message import Options
from edgeslm.schema.update import UpdatePolicy

Start = Callable[..., Run]

PATIENCE_S = 60.0
STRICT = UpdatePolicy.model_validate({**FAST.model_dump(), "answer_s": 0.2, "load_s": 0.3})


def sha256(release) -> str:
    return release.target.info.sha256


class Hanging:
    """A model that computes until it is let go."""

    def __init__(self, installed: Any) -> None:
        self.installed = installed
        self.let_go = threading.Event()

    def answer(self, *_: object, **__: object) -> None:
        self.let_go.wait(PATIENCE_S)


@contextmanager
def watching(run: Run, policy: UpdatePolicy = STRICT) -> Iterator[tuple[Watchdog, threading.Event]]:
    """A watchdog over the journal of `run`, and what is set when it replaces the process."""
    replaced = threading.Event()
    watchdog = Watchdog(run.updater._journal, policy, replaced.set, look_s=0.05)
    watchdog.start()
    yield watchdog, replaced
    watchdog.stop()


@contextmanager
def hanging(watchdog: Watchdog, installed: Any) -> Iterator[None]:
    """Somebody asks `installed`, and it hangs."""
    hung = Hanging(installed)
    model = watchdog.watched(lambda _: cast("Model", hung))(installed)
    user = threading.Thread(target=lambda: model.answer("on", Options()), daemon=True)
    user.start()
    yield
    hung.let_go.set()
    user.join(PATIENCE_S)


def on_probation(run: Run, fleet) -> None:
    run.updater.follow([fleet.new.wanted(1)], 1)
    run.turn(until=lambda: run.state() == "committed" and run.serves() == sha256(fleet.new))


def check_went_back(run: Run, fleet) -> None:
    """`run` is the process after the one that hung."""
    assert run.packages[NAME].sha256 == sha256(fleet.old)
    run.turn()
    change = next(item.change for item in run.report().models if item.name == NAME)
    assert change is not None
    assert change.fault is not None
    assert (change.state, change.fault.cause, change.fault.denied) == ("rolled_back", "hung", True)
    assert run.store.current(NAME).sha256 == sha256(fleet.old)
    assert run.store.previous(NAME) is None


def test_a_release_that_hangs_on_probation_is_taken_back_by_the_next_process(device: Start, fleet) -> None:
    run = device()
    on_probation(run, fleet)
    with watching(run) as (watchdog, replaced), hanging(watchdog, run.store.current(NAME)):
        assert replaced.wait(PATIENCE_S)
    check_went_back(device(), fleet)  # the one before never said goodbye


def test_one_that_hangs_while_the_agent_loads_it_as_well(device: Start, fleet) -> None:
    run = device()
    on_probation(run, fleet)
    let_go = threading.Event()

    def load(_: Any) -> Model:
        let_go.wait(PATIENCE_S)
        return cast("Model", SimpleNamespace())

    with watching(run) as (watchdog, replaced):
        loading = threading.Thread(
            target=watchdog.watched(load), args=(run.store.current(NAME),), daemon=True
        )
        loading.start()
        assert replaced.wait(PATIENCE_S)
        let_go.set()
        loading.join(PATIENCE_S)
    check_went_back(device(), fleet)


def test_one_that_was_tried_in_place_of_what_serves_as_well(device: Start, fleet) -> None:
    run = device()
    run.device.memory_mb = 60
    run.updater.follow([fleet.new.wanted(1)], 1)
    run.turn(until=lambda: run.state() == "trial")
    with (
        watching(run) as (watchdog, replaced),
        hanging(watchdog, run.store.get(sha256(fleet.new))),
    ):
        assert replaced.wait(PATIENCE_S)
    check_went_back(device(), fleet)


def test_going_back_that_waits_for_what_hangs_goes_on_in_the_next_process(device: Start, fleet) -> None:
    run = device()
    on_probation(run, fleet)
    run.updater._changes.apply(NAME, Failed(Fault("unhealthy", "it failed at 4 of 10 prompts")))
    with watching(run) as (watchdog, replaced), hanging(watchdog, run.store.current(NAME)):
        assert replaced.wait(PATIENCE_S)
    run = device()
    assert run.packages[NAME].sha256 == sha256(fleet.old)
    run.turn()
    assert run.state() == "rolled_back"


def test_where_the_journal_refuses_it_counts_as_a_crash(
    device: Start, fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = device()
    on_probation(run, fleet)

    def refuse(*_: object) -> None:
        raise JournalError("no space left on device")

    with watching(run) as (watchdog, replaced), monkeypatch.context() as patch:
        patch.setattr(run.updater._journal, "save", refuse)
        with hanging(watchdog, run.store.current(NAME)):
            assert replaced.wait(PATIENCE_S)
    run = device()
    assert run.updater._changes.get(NAME).crashes == 1


@pytest.mark.parametrize("what", ["settled", "before"])
def test_what_has_nothing_better_to_go_to_is_left_alone(device: Start, fleet, what: str) -> None:
    run = device()
    on_probation(run, fleet)
    if what == "settled":
        run.turn()
    hung = run.store.get(sha256(fleet.new if what == "settled" else fleet.old))
    before = run.updater.history()
    with watching(run) as (watchdog, replaced), hanging(watchdog, hung):
        assert not replaced.wait(5 * STRICT.answer_s)
    assert run.updater.history() == before


class Slow:
    """A model that takes its time, and says so."""

    installed = SimpleNamespace(sha256="ab" * 32)

    def answer(self, *_: object, should_stop: Callable[[], object], **__: object) -> object:
        for _ in range(10):
            time.sleep(0.01)
            should_stop()
        return "answered"


def test_an_answer_that_goes_on_slowly_is_none_that_hangs() -> None:
    pulse = Pulse()
    found: list[Work | None] = []
    model = WatchedModel(cast("Model", Slow()), pulse, limit_s=15.0)

    # Ten seconds at each look, and one look between two tokens.
    def asked() -> None:
        found.append(pulse.silent(10.0))

    assert cast("object", model.answer("on", Options(), should_stop=asked)) == "answered"
    assert found == [None] * 10
    assert pulse.silent(1e6) is None


def test_a_pause_for_the_budget_is_no_silence() -> None:
    pulse = Pulse()
    model = WatchedModel(cast("Model", Slow()), pulse, limit_s=1.0)

    def pause() -> None:
        for _ in range(3):
            assert pulse.silent(3600.0) is None

    assert cast("object", model.answer("on", Options(), should_stop=pause)) == "answered"


def test_silence_is_counted_from_the_last_sign_of_life() -> None:
    pulse = Pulse()
    with pulse.of(Work("ab" * 32, "an answer", limit_s=10.0)) as work:
        assert [pulse.silent(4.0) for _ in range(3)] == [None] * 3
        work.beats += 1
        assert [pulse.silent(4.0) for _ in range(3)] == [None] * 3
        assert pulse.silent(4.0) is work


def test_a_process_whose_interpreter_stands_still_is_ended_by_the_kernel() -> None:
    script = """
        import ctypes
        from edgeslm.agent.update.watchdog import kernel_alarm
        kernel_alarm(0.5)
        print("hangs", flush=True)
        ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock, as native code that never comes back
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    try:
        assert process.wait(PATIENCE_S) == -signal.SIGALRM
    finally:
        process.kill()
        process.communicate()


def test_the_alarm_is_put_off_at_every_look_and_taken_away_in_the_end(device: Start) -> None:
    run = device()
    alarms: list[float] = []
    several = threading.Event()

    def alarm(seconds: float) -> None:
        alarms.append(seconds)
        if len(alarms) > 3:
            several.set()

    watchdog = Watchdog(run.updater._journal, STRICT, os.abort, alarm, look_s=0.02)
    watchdog.start()
    assert several.wait(PATIENCE_S)
    watchdog.stop()
    watchdog.stop()
    assert set(alarms[:-1]) == {STRICT.load_s}
    assert alarms[-1] == 0.0
