"""A device and its updater: real packages, store and delivery; what is tried answers from a script, or for real."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from benchmarks.update_device_rig import FAST, GRAPH, NAME, RigDevice, Run, make_release
from edgeslm.agent.update.change import Failed, Fault
from edgeslm.agent.update.child import launch_trial
from edgeslm.errors import ModelLoadError, UpdateError
from edgeslm.power.port import Throttling, Vitals
from edgeslm.schema.update import ReportedChange, UpdatePolicy

Start = Callable[..., Run]

SOON_OVER = UpdatePolicy.model_validate(
    {**FAST.model_dump(), "deadlines": {"offered_s": 30.0, "fetching_s": 30.0, "preflight_s": 30.0}}
)


def sha256(release) -> str:
    return release.target.info.sha256


def change_of(run: Run) -> ReportedChange:
    return next(item.change for item in run.report().models if item.name == NAME)


def states(run: Run) -> list[str]:
    """States of the latest change, each once."""
    steps = [step.state for step in run.updater.history()[0].steps]
    return [state for number, state in enumerate(steps) if number == 0 or steps[number - 1] != state]


def update(run: Run, release, assignment: int = 1, **changes) -> None:
    run.updater.follow([release.wanted(assignment, **changes)], assignment)
    run.turn()


def rotten(data: bytes) -> bytes:
    """`data` with one bit the other way."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


class TestTheGoodWay:
    def test_a_release_is_tried_judged_committed_and_serves_all_for_real(self, device: Start, fleet) -> None:
        run = device(launch=launch_trial)
        assert run.serves() == sha256(fleet.old)
        update(run, fleet.new)
        assert states(run) == [
            "offered", "preflight", "fetching", "verified", "staged", "trial", "gating", "committed",
        ]  # fmt: skip
        assert run.serves() == sha256(fleet.new)
        assert run.store.current(NAME).sha256 == sha256(fleet.new)
        assert run.store.previous(NAME).sha256 == sha256(fleet.old)
        change = change_of(run)
        # Blocks of a few milliseconds may not decide about speed; that is what longer ones are for.
        assert change.verdict.outcome != "fail"
        assert (change.settled, change.verdict.mode, change.verdict.rounds) == (True, "beside", 4)
        assert change.swap_s < 1.0

    def test_prompts_are_answered_all_the_while_but_for_a_swap_below_a_second(
        self, device: Start, fleet
    ) -> None:
        run = device(launch=launch_trial)
        pauses: list[float] = []
        ending = threading.Event()

        def ask() -> None:
            while not ending.is_set():
                began_s = time.monotonic()
                with run.serving.hold(NAME) as model:
                    pauses.append(time.monotonic() - began_s)
                    assert model.installed.sha256 in {sha256(fleet.old), sha256(fleet.new)}
                time.sleep(0.005)

        user = threading.Thread(target=ask)
        user.start()
        update(run, fleet.new)
        ending.set()
        user.join()
        assert run.state() == "committed"
        assert len(pauses) > 20
        assert max(pauses) < 1.0

    def test_nothing_but_what_serves_and_what_could_is_kept(self, device: Start, fleet) -> None:
        run = device()
        update(run, fleet.new)
        update(run, fleet.newer, 2)
        assert {item.sha256 for item in run.store.list()} == {
            sha256(fleet.old), sha256(fleet.new), sha256(fleet.newer),
        }  # fmt: skip
        assert run.store.previous(NAME).sha256 == sha256(fleet.new)
        assert [path.name for path in run.delivery.fetcher.directory.iterdir()] == [".lock"]

    def test_going_to_a_version_that_is_still_here_fetches_nothing(self, device: Start, fleet) -> None:
        run = device()
        update(run, fleet.new)
        fetched = run.delivery.fetched
        update(run, fleet.old, 2, allow_downgrade=True)
        assert (run.state(), run.serves(), run.delivery.fetched) == (
            "committed", sha256(fleet.old), fetched,
        )  # fmt: skip

    def test_a_version_that_is_still_here_but_rotted_is_fetched_anew(self, device: Start, fleet) -> None:
        run = device()
        update(run, fleet.new)
        update(run, fleet.newer, 2)
        graph = run.store.root / f"sha256-{sha256(fleet.new)}" / GRAPH
        graph.chmod(0o644)
        graph.write_bytes(rotten(graph.read_bytes()))
        fetched = run.delivery.fetched
        update(run, fleet.new, 3, allow_downgrade=True)
        assert (run.state(), run.delivery.fetched) == ("committed", fetched + 1)
        run.store.verify(run.store.current(NAME))

    def test_a_name_that_never_ran_here_is_added_without_a_comparison(self, device: Start, fleet) -> None:
        run = device(factory=[])
        assert run.packages == {}
        update(run, fleet.new)
        assert (run.state(), run.serves()) == ("committed", sha256(fleet.new))


class TestRejection:
    """Before the trial: what runs is not touched."""

    def check(self, run: Run, fleet, cause: str) -> None:
        change = change_of(run)
        assert (change.state, change.fault.cause, change.settled) == ("rejected", cause, True)
        assert run.serves() == sha256(fleet.old)
        assert not run.serving.swaps
        assert {item.sha256 for item in run.store.list()} == {sha256(fleet.old)}
        assert [path.name for path in run.delivery.fetcher.directory.glob("*")] in ([], [".lock"])

    def test_a_release_that_needs_more_than_the_board_has_is_rejected_before_a_byte_is_fetched(
        self, device: Start, fleet
    ) -> None:
        rig = RigDevice()
        rig.facts = replace(rig.facts, ram_mb=32)
        run = device(device=rig)
        update(run, fleet.new)
        self.check(run, fleet, "incompatible")
        assert run.delivery.fetched == 0

    def test_a_downgrade_nobody_asked_for_is_rejected(self, device: Start, fleet) -> None:
        run = device(factory=[fleet.newer.path])
        update(run, fleet.new)
        assert change_of(run).fault.cause == "unsafe_version"

    @pytest.mark.parametrize("why", ["metadata has expired", "the clock says 1970"])
    def test_what_nobody_vouches_for_now_is_asked_for_again_until_the_deadline(
        self, device: Start, fleet, why: str
    ) -> None:
        fleet.vouching.refuses = UpdateError(why, cause="not_trusted")
        run = device(policy=SOON_OVER)
        update(run, fleet.new)
        self.check(run, fleet, "deadline")
        assert why in change_of(run).fault.detail
        assert not change_of(run).fault.denied
        fleet.vouching.refuses = None
        update(run, fleet.new, 2)
        assert run.state() == "committed"

    def test_a_source_that_has_only_other_bytes_is_given_up(
        self, device: Start, fleet, tmp_path: Path
    ) -> None:
        bad = tmp_path / "bad"
        shutil.copytree(fleet.depot, bad)
        path = bad / fleet.new.path.name
        path.write_bytes(path.read_bytes()[:-100] + bytes(100))
        run = device(policy=SOON_OVER)
        run.delivery._source = bad
        update(run, fleet.new)
        self.check(run, fleet, "deadline")

    def test_a_file_that_rots_between_arrival_and_unpacking_is_fetched_again(
        self, device: Start, fleet
    ) -> None:
        run = device()
        run.updater.follow([fleet.new.wanted(1)], 1)
        run.turn(until=lambda: run.state() == "verified")
        file = Path(run.updater.history()[0].change.file)
        file.write_bytes(rotten(file.read_bytes()))
        run.turn()
        assert run.state() == "committed"
        assert "fetching" in states(run)[3:]

    def test_a_package_that_is_not_what_its_release_says_is_denied(self, device: Start, fleet) -> None:
        wrong = replace(
            fleet.new, target=fleet.new.target.model_copy(
                update={"info": fleet.new.target.info.model_copy(update={"version": "9.9.9"})}
            ),
        )  # fmt: skip
        fleet.vouching.releases[NAME, "9.9.9"] = wrong
        run = device()
        update(run, wrong)
        self.check(run, fleet, "bad_package")
        assert change_of(run).fault.denied

    def test_a_full_disk_is_waited_for(self, device: Start, fleet, monkeypatch: pytest.MonkeyPatch) -> None:
        run = device()
        free = shutil.disk_usage(run.store.root)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=1000))
        run.updater.follow([fleet.new.wanted(1)], 1)
        for _ in range(8):
            run.device.sleep(run.updater.turn())
        assert (change_of(run).state, change_of(run).fault.cause) == ("preflight", "no_room")
        monkeypatch.undo()
        run.turn()
        assert run.state() == "committed"


class TestWaiting:
    def test_a_window_is_kept(self, device: Start, fleet) -> None:
        rig = RigDevice()
        opens_at = rig.now + timedelta(hours=3)
        run = device(device=rig)
        window = {"opens_at": opens_at, "closes_at": opens_at + timedelta(hours=1)}
        run.updater.follow([fleet.new.wanted(1, **window)], 1)
        run.turn(until=lambda: run.state() == "wait_window")
        assert "window that opens at 2026-12-01 15:00 UTC" in change_of(run).waits_for
        assert run.serves() == sha256(fleet.old)
        rig.now = opens_at + timedelta(hours=2)
        for _ in range(4):
            rig.sleep(run.updater.turn())
        assert "closed at" in change_of(run).waits_for
        rig.now = opens_at + timedelta(minutes=5)
        run.turn()
        assert run.state() == "committed"

    def test_without_a_clock_no_window_opens_and_the_device_says_why(self, device: Start, fleet) -> None:
        rig = RigDevice(now=None)
        run = device(device=rig)
        opens_at = datetime(2026, 1, 1, tzinfo=UTC)
        run.updater.follow([fleet.new.wanted(1, opens_at=opens_at)], 1)
        run.turn(until=lambda: run.state() == "wait_window")
        assert "clock" in change_of(run).waits_for
        rig.now = datetime(2026, 12, 1, tzinfo=UTC)
        run.turn()
        assert run.state() == "committed"

    def test_a_release_without_a_window_needs_no_clock(self, device: Start, fleet) -> None:
        run = device(device=RigDevice(now=None))
        update(run, fleet.new)
        assert (run.state(), run.serves()) == ("committed", sha256(fleet.new))

    @pytest.mark.parametrize("trouble", ["battery", "supply"])
    def test_nothing_is_tried_on_a_board_that_is_in_trouble(self, device: Start, fleet, trouble: str) -> None:
        rig = RigDevice()
        if trouble == "battery":
            rig.forbids = "a battery above its reserve"
        else:
            rig.shown = Vitals(0.0, throttling=Throttling(under_voltage=True))
        run = device(device=rig)
        run.updater.follow([fleet.new.wanted(1)], 1)
        run.turn(until=lambda: run.state() == "wait_window")
        rig.forbids, rig.shown = None, Vitals(0.0)
        run.turn()
        assert run.state() == "committed"

    def test_a_device_without_a_network_waits_and_neither_rejects_nor_takes_back(
        self, device: Start, fleet, tmp_path: Path
    ) -> None:
        rig = RigDevice(online=False)
        run = device(device=rig)
        run.delivery._source = tmp_path / "nothing"
        run.updater.follow([fleet.new.wanted(1)], 1)
        run.turn(until=lambda: run.state() == "fetching")
        for _ in range(3):
            run.updater.turn()
            rig.sleep(10 * 86_400.0)
            run.updater.turn()
        assert (change_of(run).state, change_of(run).fault.cause) == ("fetching", "unreachable")
        assert change_of(run).attempt > 2
        rig.online, run.delivery._source = True, fleet.depot
        run.updater.reconnected()
        run.turn()
        assert run.state() == "committed"


class TestTheWayBack:
    """From the trial on: what ran before runs again, and the release is remembered."""

    def check(self, run: Run, fleet, cause: str, *, denied: bool = True) -> None:
        change = change_of(run)
        assert (change.state, change.fault.cause) == ("rolled_back", cause), change.fault
        assert change.fault.denied == denied
        assert run.serves() == run.store.current(NAME).sha256 == sha256(fleet.old)
        assert {item.sha256 for item in run.store.list()} == {sha256(fleet.old)}

    @pytest.mark.parametrize(
        ("does", "cause"),
        [
            ({"load": "os.kill(os.getpid(), signal.SIGSEGV)"}, "crashed"),
            ({"load": "os.kill(os.getpid(), signal.SIGKILL)"}, "out_of_memory"),
            ({"load": "say(kind='failure', cause='load_failed', detail='proof')"}, "load_failed"),
            ({"answer": "sys.exit(1)"}, "crashed"),
            ({"answer": "time.sleep(60)"}, "hung"),
        ],
    )
    def test_a_candidate_that_fails_its_trial_is_not_tried_again(
        self, device: Start, fleet, does: dict[str, str], cause: str
    ) -> None:
        policy = UpdatePolicy.model_validate({**FAST.model_dump(), "answer_s": 0.3})
        run = device(launch=fleet.launch(for_releases=[fleet.new], **does), policy=policy)
        update(run, fleet.new)
        self.check(run, fleet, cause)
        assert not run.serving.swaps
        update(run, fleet.new, 2)
        assert change_of(run).number == 1
        update(run, fleet.newer, 3)
        assert (run.state(), run.serves()) == ("committed", sha256(fleet.newer))

    @pytest.mark.parametrize("when", ["load", "answer"])
    def test_a_trial_of_what_serves_that_fails_is_not_held_against_the_candidate(
        self, device: Start, fleet, when: str
    ) -> None:
        run = device(launch=fleet.launch(for_releases=[fleet.old], **{when: "sys.exit(1)"}))
        update(run, fleet.new)
        self.check(run, fleet, "internal", denied=False)
        assert "what serves cannot be measured" in change_of(run).fault.detail

    def test_wrong_answers_fail_the_gate_and_the_report_has_the_figures(self, device: Start, fleet) -> None:
        run = device(launch=fleet.launch(wrong=[fleet.new]))
        update(run, fleet.new)
        self.check(run, fleet, "gate_failed")
        answers = change_of(run).verdict.criteria[0]
        assert (answers.name, answers.outcome, answers.old, answers.new) == ("answers", "fail", 1.0, 0.0)
        assert "4 of 4 went wrong" in change_of(run).fault.detail

    def test_a_return_is_compared_with_nothing(self, device: Start, fleet) -> None:
        run = device(launch=fleet.launch(wrong=[fleet.old]))
        update(run, fleet.new)
        assert run.serves() == sha256(fleet.new)
        update(run, fleet.old, 2, allow_downgrade=True)
        assert (run.state(), change_of(run).fault.cause) == ("rolled_back", "gate_failed")
        update(run, fleet.old, 3, allow_downgrade=True, force=True, is_return=True)
        assert (run.state(), run.serves()) == ("committed", sha256(fleet.old))

    def test_a_return_that_crashes_is_refused_as_any_release(self, device: Start, fleet) -> None:
        run = device(launch=fleet.launch(for_releases=[fleet.new], load="sys.exit(1)"))
        update(run, fleet.new, is_return=True)
        self.check(run, fleet, "crashed")

    def test_a_graph_that_computes_something_else_is_found_in_a_real_trial(
        self, device: Start, fleet, tmp_path: Path
    ) -> None:
        def other_logits(draft) -> None:
            proof = draft["graphs"][0]["proof"]
            proof["logits"] = [value + 5.0 for value in proof["logits"]]

        broken = make_release(tmp_path / "broken", "1.3.0", golden=4, change=other_logits)
        fleet.vouching.releases[NAME, "1.3.0"] = broken
        run = device(launch=launch_trial)
        run.delivery._source = broken.path.parent
        update(run, broken)
        self.check(run, fleet, "load_failed")
        assert "golden vector" in change_of(run).fault.detail

    def test_a_denied_release_is_tried_again_on_command_or_by_force(self, device: Start, fleet) -> None:
        bad = fleet.launch(for_releases=[fleet.new], load="sys.exit(1)")
        run = device(launch=bad)
        update(run, fleet.new)
        run.updater.retry(NAME)
        run.turn()
        assert (change_of(run).number, change_of(run).state) == (2, "rolled_back")
        update(run, fleet.new, 5, force=True)
        assert change_of(run).number == 3
        update(run, fleet.new, 6, force=True)
        assert change_of(run).number == 3

    def test_a_swap_that_fails_takes_it_back(self, device: Start, fleet) -> None:
        run = device()
        run.updater.follow([fleet.new.wanted(1)], 1)
        run.turn(until=lambda: run.state() == "committed")
        run.serving.refuses = ModelLoadError("no address space left", path="x")
        run.turn()
        self.check(run, fleet, "swap_failed", denied=False)

    def test_a_release_that_fails_at_prompts_in_probation_is_taken_back(self, device: Start, fleet) -> None:
        run = device()
        run.updater.follow([fleet.new.wanted(1)], 1)
        run.turn(until=lambda: run.serves() == sha256(fleet.new))
        run.serving.begun, run.serving.failed = 10, 4
        run.turn()
        self.check(run, fleet, "unhealthy")

    def test_a_few_failures_among_many_prompts_are_none_of_its_own(self, device: Start, fleet) -> None:
        run = device()
        run.updater.follow([fleet.new.wanted(1)], 1)
        run.turn(until=lambda: run.serves() == sha256(fleet.new))
        run.serving.begun, run.serving.failed = 100, 4
        run.turn()
        assert run.state() == "committed"

    def test_a_supply_that_gives_way_in_probation_takes_it_back(self, device: Start, fleet) -> None:
        run = device()
        run.updater.follow([fleet.new.wanted(1)], 1)
        run.turn(until=lambda: run.serves() == sha256(fleet.new))
        run.device.shown = Vitals(0.0, throttling=Throttling(under_voltage=True))
        run.turn()
        self.check(run, fleet, "under_voltage")

    def test_a_new_name_that_fails_is_withdrawn(self, device: Start, fleet) -> None:
        run = device(factory=[], launch=fleet.launch(for_releases=[fleet.new], load="sys.exit(1)"))
        update(run, fleet.new)
        assert (run.state(), run.serves(), run.store.list()) == ("rolled_back", None, ())

    def test_a_base_that_rotted_meanwhile_leads_to_the_factory_package(
        self, device: Start, fleet, tmp_path: Path
    ) -> None:
        run = device()
        update(run, fleet.new)
        run.updater.follow([fleet.newer.wanted(2)], 2)
        run.turn(until=lambda: run.serves() == sha256(fleet.newer))
        graph = run.store.root / f"sha256-{sha256(fleet.new)}" / GRAPH
        graph.chmod(0o644)
        graph.write_bytes(rotten(graph.read_bytes()))
        run.serving.begun, run.serving.failed = 10, 9
        run.turn()
        assert change_of(run).state == "safe_mode"
        assert run.serves() == run.store.current(NAME).sha256 == sha256(fleet.old)
        assert "going back failed too" in change_of(run).fault.detail

    def test_what_a_step_says_after_its_time_was_over_means_nothing(
        self, device: Start, fleet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = device()
        run.updater.follow([fleet.new.wanted(1)], 1)
        run.turn(until=lambda: run.state() == "trial")

        def crash_too_late(effect, change, context) -> Failed:
            run.device.sleep(1e6)
            assert context.cancelled()
            return Failed(Fault("crashed", "too late"))

        with monkeypatch.context() as patch:
            patch.setattr(run.updater._effects, "run", crash_too_late)
            run.updater.turn()
        assert (change_of(run).state, change_of(run).attempt) == ("rolling_back", 1)
        run.turn()
        self.check(run, fleet, "deadline", denied=False)


class TestSuperseding:
    @pytest.mark.parametrize("state", ["fetching", "staged", "trial", "gating", "committed"])
    def test_a_newer_assignment_wins_wherever_the_change_is(self, device: Start, fleet, state: str) -> None:
        run = device()
        run.updater.follow([fleet.new.wanted(1)], 1)
        run.turn(until=lambda: run.state() == state)
        run.updater.follow([fleet.newer.wanted(2)], 2)
        run.turn()
        assert (run.state(), run.serves(), change_of(run).number) == ("committed", sha256(fleet.newer), 2)
        first = run.updater.history()[1].change
        assert first.fault.cause == "superseded"
        assert first.state == ("rejected" if state in {"fetching", "staged"} else "rolled_back")

    def test_a_step_under_way_is_given_up_for_it(self, device: Start, fleet) -> None:
        run = device(launch=fleet.launch(for_releases=[fleet.new], load="time.sleep(60)"))
        run.updater.follow([fleet.new.wanted(1)], 1)
        run.turn(until=lambda: run.state() == "trial")
        threading.Timer(0.3, lambda: run.updater.follow([fleet.newer.wanted(2)], 2)).start()
        began_s = time.monotonic()
        run.turn()
        assert run.serves() == sha256(fleet.newer)
        assert time.monotonic() - began_s < 20

    def test_an_assignment_that_wants_what_serves_ends_the_change(self, device: Start, fleet) -> None:
        run = device()
        run.updater.follow([fleet.new.wanted(1)], 1)
        run.turn(until=lambda: run.state() == "trial")
        update(run, fleet.old, 2)
        assert (run.state(), run.serves(), change_of(run).number) == ("rolled_back", sha256(fleet.old), 1)

    def test_the_same_assignment_again_and_an_older_one_change_nothing(self, device: Start, fleet) -> None:
        run = device()
        update(run, fleet.new, 5)
        update(run, fleet.new, 5)
        update(run, fleet.newer, 4)
        assert (run.serves(), change_of(run).number) == (sha256(fleet.new), 1)

    def test_an_abort_stops_a_change_for_good(self, device: Start, fleet) -> None:
        run = device()
        run.updater.follow([fleet.new.wanted(1)], 1)
        run.turn(until=lambda: run.state() == "gating")
        run.updater.abort(NAME, "by hand")
        run.turn()
        assert (run.state(), change_of(run).fault.cause) == ("rolled_back", "aborted")
        update(run, fleet.new, 2)
        assert change_of(run).number == 1


class TestRestarts:
    @pytest.mark.parametrize("state", ["preflight", "fetching", "verified", "staged", "trial", "gating"])
    def test_a_change_goes_on_where_it_was(self, device: Start, fleet, state: str) -> None:
        first = device()
        first.updater.follow([fleet.new.wanted(1)], 1)
        first.turn(until=lambda: first.state() == state)
        first.stop()
        second = device()
        assert second.packages[NAME].sha256 == sha256(fleet.old)
        second.turn()
        assert (second.state(), second.serves()) == ("committed", sha256(fleet.new))

    def test_a_committed_release_serves_from_the_start(self, device: Start, fleet) -> None:
        first = device()
        first.updater.follow([fleet.new.wanted(1)], 1)
        first.turn(until=lambda: first.state() == "committed")
        first.stop()
        assert device().packages[NAME].sha256 == sha256(fleet.new)

    def test_a_release_that_crashes_the_agent_again_and_again_is_not_served_any_more(
        self, device: Start, fleet
    ) -> None:
        run = device()
        run.updater.follow([fleet.new.wanted(1)], 1)
        run.turn(until=lambda: run.serves() == sha256(fleet.new))
        for number in range(FAST.max_crashes):
            assert run.serves() == sha256(fleet.new), number
            run = device()  # the one before never said goodbye
        assert run.packages[NAME].sha256 == sha256(fleet.old)
        run.turn()
        assert (run.state(), change_of(run).fault.cause) == ("rolled_back", "crash_loop")

    def test_a_release_that_does_not_load_when_the_agent_starts_is_replaced_at_once(
        self, device: Start, fleet
    ) -> None:
        run = device()
        run.updater.follow([fleet.new.wanted(1)], 1)
        run.turn(until=lambda: run.serves() == sha256(fleet.new))
        run.stop()
        run = device()
        following = run.updater.load_failed(run.packages[NAME], "out of address space")
        assert following.sha256 == sha256(fleet.old)
        run.turn()
        assert (run.state(), run.serves()) == ("rolled_back", sha256(fleet.old))

    def test_the_factory_package_has_nothing_behind_it(self, device: Start) -> None:
        run = device()
        assert run.updater.load_failed(run.packages[NAME], "why") is None

    def test_a_package_that_lost_a_file_is_not_served_but_the_factorys_is_and_then_it_is_fetched_again(
        self, device: Start, fleet
    ) -> None:
        run = device()
        update(run, fleet.new)
        run.stop()
        (run.store.root / f"sha256-{sha256(fleet.new)}" / "tokenizer.json").unlink()
        again = device()
        assert again.packages[NAME].sha256 == sha256(fleet.old)
        assert again.report().models[0].change.state == "safe_mode"
        again.turn()
        assert (again.state(), again.serves()) == ("committed", sha256(fleet.new))

    def test_a_factory_package_that_rotted_is_unpacked_anew_before_it_has_to_serve(
        self, device: Start, fleet
    ) -> None:
        run = device()
        update(run, fleet.new)
        run.stop()
        for release, name in ((fleet.new, "tokenizer.json"), (fleet.old, GRAPH)):
            path = run.store.root / f"sha256-{sha256(release)}" / name
            data = path.read_bytes()
            path.unlink()
            if release is fleet.old:
                path.write_bytes(rotten(data))
        fleet.vouching.refuses = UpdateError("nobody answers", cause="not_trusted")
        again = device()
        again.turn(until=lambda: change_of(again).state == "safe_mode" and change_of(again).settled)
        again.store.verify(again.store.current(NAME))
        assert again.store.current(NAME).sha256 == sha256(fleet.old)

    def test_a_lost_journal_does_not_undo_an_update(self, device: Start, fleet, tmp_path: Path) -> None:
        run = device()
        update(run, fleet.new)
        run.stop()
        epoch = run.report().epoch
        for path in (tmp_path / "state").glob("update.db*"):
            path.unlink()
        again = device()
        assert again.packages[NAME].sha256 == sha256(fleet.new)
        assert again.report().epoch != epoch
        again.stop()
        assert device().packages[NAME].sha256 == sha256(fleet.new)

    def test_a_factory_package_that_was_exchanged_serves_where_no_update_ever_did(
        self, device: Start, fleet
    ) -> None:
        device().stop()
        assert device(factory=[fleet.newer.path]).packages[NAME].sha256 == sha256(fleet.newer)


class TestReports:
    def test_they_are_numbered_in_order_over_restarts_and_tell_what_serves(
        self, device: Start, fleet
    ) -> None:
        first = device()
        update(first, fleet.new)
        first.stop()
        second = device()
        update(second, fleet.newer, 2)
        reports = [*first.reports, *second.reports]
        assert [report.seq for report in reports] == sorted({report.seq for report in reports})
        assert len({report.epoch for report in reports}) == 1
        last = reports[-1].models[0]
        assert (last.version, last.previous, reports[-1].assignment) == ("1.2.0", sha256(fleet.new), 2)

    def test_one_that_nobody_takes_stops_nothing(self, device: Start, fleet) -> None:
        run = device()
        run.updater._on_report = lambda _: 1 / 0
        run.updater.follow([fleet.new.wanted(1)], 1)
        for _ in range(40):
            run.device.sleep(run.updater.turn())
        assert run.serves() == sha256(fleet.new)

    def test_a_journal_that_refuses_stops_the_change_and_not_the_device(self, device: Start, fleet) -> None:
        run = device()
        run.updater.follow([fleet.new.wanted(1)], 1)
        run.turn(until=lambda: run.state() == "fetching")
        database = run.updater._journal._db
        database.execute(f"PRAGMA max_page_count={database.execute('PRAGMA page_count').fetchone()[0]}")
        database.execute(
            "CREATE TEMP TRIGGER no_room BEFORE INSERT ON steps BEGIN SELECT RAISE(FAIL, 'full'); END"
        )
        assert run.updater.turn() > 0
        assert run.updater.turn() > 0
        assert run.serves() == sha256(fleet.old)
        database.execute("DROP TRIGGER no_room")
        database.execute("PRAGMA max_page_count=1000000")
        run.turn()
        assert run.state() == "committed"


class TestSmallMemory:
    def test_where_memory_holds_only_one_the_candidate_takes_the_place_of_what_serves(
        self, device: Start, fleet
    ) -> None:
        run = device(device=RigDevice(memory_mb=64), policy=FAST)
        update(run, fleet.new)
        assert run.state() == "committed", change_of(run).fault
        verdict = change_of(run).verdict
        assert (verdict.mode, verdict.rounds) == ("swap", 12)
        assert run.serves() == sha256(fleet.new)

    def test_a_crash_of_the_agent_meanwhile_is_the_candidates(self, device: Start, fleet) -> None:
        run = device(device=RigDevice(memory_mb=64))
        run.updater.follow([fleet.new.wanted(1)], 1)
        run.turn(until=lambda: run.state() == "gating")
        assert run.serves() == sha256(fleet.new)
        again = device()
        assert again.packages[NAME].sha256 == sha256(fleet.old)
        again.turn()
        assert (again.state(), change_of(again).fault.cause) == ("rolled_back", "crashed")

    def test_too_little_memory_even_for_that_is_waited_for(self, device: Start, fleet) -> None:
        rig = RigDevice(memory_mb=8)
        run = device(device=rig)
        run.updater.follow([fleet.new.wanted(1)], 1)
        for _ in range(12):
            rig.sleep(run.updater.turn())
        assert (change_of(run).state, change_of(run).fault.cause) == ("staged", "no_memory")
        rig.memory_mb = 4000
        run.turn()
        assert (run.state(), change_of(run).verdict.mode) == ("committed", "beside")


def test_the_thread_follows_and_ends(device: Start, fleet) -> None:
    run = device()
    run.updater.start()
    run.updater.follow([fleet.new.wanted(1)], 1)
    until_s = time.monotonic() + 30
    while run.serves() != sha256(fleet.new) and time.monotonic() < until_s:
        time.sleep(0.02)
    run.stop()
    assert run.serves() == sha256(fleet.new)
    assert not run.updater._thread.is_alive()


def fill(path: Path) -> None:
    """Leave no room beside the new file `path`."""
    with path.open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4096))


def test_a_disk_that_is_really_full_stops_nothing_but_the_update(
    device: Start, fleet, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(state)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    try:
        run = device()
        run.updater.follow([fleet.new.wanted(1)], 1)
        run.turn(until=lambda: run.state() == "fetching")
        fill(state / "ballast")
        for _ in range(6):
            run.device.sleep(run.updater.turn())
        assert run.serves() == sha256(fleet.old)
        run.store.verify(run.store.current(NAME))
        (state / "ballast").unlink()
        run.turn()
        assert run.serves() == sha256(fleet.new)
        run.stop()
    finally:
        subprocess.run(["umount", "-l", str(state)], check=False)


def test_a_journal_of_nonsense_is_refused_before_anything_serves(device: Start, tmp_path: Path) -> None:
    device().stop()
    path = tmp_path / "state" / "update.db"
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO wanted VALUES ('x', 'nonsense')")
    with pytest.raises(Exception, match="cannot be read"):
        device()
