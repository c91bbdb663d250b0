"""Rollouts under anything that may happen: devices of every kind, controllers killed anywhere, clocks that step."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.rollout_rig import PaperFleet, many, paper_fleet
from edgeslm.errors import RolloutError
from edgeslm.fleet.rollout import operate, records, writing
from edgeslm.schema.rollout import FINISHED, UNSETTLED

BEHAVIOURS = st.sampled_from(
    ["good", "good", "good", "worse", "false_fail", "crash", "inconclusive", "no_room", "deaf"]
)
DEVICES = st.integers(0, 5)


class Killed(BaseException):
    """The controller ends here."""


class Rollouts(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.fleet: PaperFleet = self.stack.enter_context(paper_fleet(many(6)))
        self.rollouts: list[int] = []
        self.asked: dict[tuple[int, str], set[int]] = {}

    def teardown(self) -> None:
        try:
            self.bring_to_rest()
        finally:
            self.stack.close()

    @initialize(behaviours=st.lists(BEHAVIOURS, min_size=6, max_size=6))
    def devices_are_of_every_kind(self, behaviours: list[Any]) -> None:
        for device, behaviour in zip(self.fleet.devices.values(), behaviours, strict=True):
            device.behaviours = {"1.1.0": behaviour}

    # --- what operators do ---

    @rule(
        what=st.sampled_from([("lamp", "1.1.0"), ("lamp", "1.2.0"), ("fern", "1.1.0")]),
        waves=st.sampled_from(["100%", "1 per board, 100%", "2, 50%, 100%"]),
        approve=st.booleans(),
        on_failure=st.sampled_from(["return", "pause"]),
    )
    @precondition(lambda self: len(self.rollouts) < 4)
    def begin(self, what: tuple[str, str], waves: str, approve: bool, on_failure: str) -> None:
        try:
            made = self.fleet.begin(
                what[1],
                name=what[0],
                waves=waves,
                approve=approve,
                on_failure=on_failure,
                allow_downgrade=True,
            )
        except RolloutError:
            return
        self.rollouts.append(made)

    @rule(
        action=st.sampled_from(["pause", "resume", "approve", "retry", "abort", "keep"]),
        which=st.integers(0, 3),
    )
    @precondition(lambda self: self.rollouts)
    def step_in(self, action: str, which: int) -> None:
        rollout_id = self.rollouts[which % len(self.rollouts)]
        by: dict[str, Any] = {"actor": "me", "now": self.fleet.now}
        try:
            with self.fleet.store.write() as session:
                if action == "pause":
                    operate.pause(session, rollout_id, reason="", **by)
                elif action == "resume":
                    operate.resume(session, rollout_id, **by)
                elif action == "approve":
                    operate.approve(session, rollout_id, every=False, **by)
                elif action == "retry":
                    operate.retry(session, rollout_id, [], **by)
                else:
                    operate.abort(session, rollout_id, keep=action == "keep", reason="", **by)
        except RolloutError:
            pass

    @rule(which=DEVICES, pinned=st.booleans())
    def pin(self, which: int, pinned: bool) -> None:
        name = self._device(which).name
        with self.fleet.store.write() as session:
            if pinned:
                operate.pin(session, name, reason="a demonstration", actor="me", now=self.fleet.now)
            elif any(one.device == name for one in operate.list_pins(session)):
                operate.unpin(session, name, actor="me", now=self.fleet.now)

    # --- what time and networks do ---

    @rule()
    def hear(self) -> None:
        self.fleet.hear()

    @rule()
    def turn(self) -> None:
        self.fleet.controller.turn()

    @rule()
    def confirm(self) -> None:
        self.fleet.confirm()

    @rule(which=DEVICES)
    def follow(self, which: int) -> None:
        self.fleet.follow(self._device(which))

    @rule(which=DEVICES)
    def step(self, which: int) -> None:
        device = self._device(which)
        if device.step():
            self.fleet.say(device)

    @rule()
    def everybody(self) -> None:
        self.fleet.round()

    @rule(which=DEVICES, off=st.booleans())
    def switch(self, which: int, off: bool) -> None:
        self._device(which).is_off = off

    @rule(minutes=st.sampled_from([-60, -5, 1, 5, 30, 180]))
    def clock_steps(self, minutes: int) -> None:
        self.fleet.now += timedelta(minutes=minutes)

    @rule()
    def kill_between_steps(self) -> None:
        self.fleet.new_controller()

    @rule(after=st.integers(0, 4))
    def kill_within_a_step(self, after: int) -> None:
        left = [after]
        whole = writing.enter, writing._assign

        def dying(original: Any) -> Any:
            def call(*arguments: Any, **named: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return original(*arguments, **named)

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writing, "enter", dying(whole[0]))
            patch.setattr(writing, "_assign", dying(whole[1]))
            try:
                self.fleet.controller.turn()
            except Killed:
                self.fleet.new_controller()

    # --- what always holds ---

    @invariant()
    def numbers_rise_and_mean_one_thing(self) -> None:
        for topic, bodies in self.fleet.broker.sent.items():
            numbers: dict[int, bytes] = {}
            last = 0
            for body in bodies:
                seq = json.loads(body)["signed"]["seq"]
                assert numbers.setdefault(seq, body) == body, topic
                assert seq >= last, topic
                last = seq

    @invariant()
    def no_step_is_taken_twice(self) -> None:
        """A device begins a change once for each assignment, and the same change again only after it failed."""
        for device in self.fleet.devices.values():
            assert len({(name, seq) for name, _, seq in device.history}) == len(device.history), device

    @invariant()
    def an_older_rollout_is_done_with_a_device_before_a_newer_one_asks_it(self) -> None:
        with self.fleet.store.read() as session:
            loaded = [records.load(session, one) for one in self.rollouts]
        for index, newer in enumerate(loaded):
            for member in newer.state.members:
                if member.status != "asked" or (newer.row.id, member.device) in self.asked:
                    continue
                self.asked[newer.row.id, member.device] = {member.seq}
                for older in loaded[:index]:
                    if older.row.phase in FINISHED:
                        continue
                    others = [one for one in older.state.members if one.device == member.device]
                    assert all(one.status not in UNSETTLED or one.seq for one in others)

    # --- the end ---

    def bring_to_rest(self) -> None:
        """Whatever happened: with everybody there again, each rollout ends and no device is left in between."""
        for device in self.fleet.devices.values():
            device.is_off = False
            device.behaviours = {
                version: kind for version, kind in device.behaviours.items() if kind != "deaf"
            }
        self.fleet.new_controller()
        self.fleet.now += timedelta(minutes=2)
        for _ in range(30):
            for rollout_id in self.rollouts:
                if self.fleet.show(rollout_id).phase in {"paused", "waiting"}:
                    self.step_in_at_rest(rollout_id)
            for _ in range(6):
                self.fleet.round()
                self.fleet.now += timedelta(seconds=5)
            if all(self.fleet.show(one).phase in FINISHED for one in self.rollouts):
                break
        for _ in range(8):  # those that were silent to the last say what became of them
            self.fleet.round()
            self.fleet.now += timedelta(seconds=5)
        for rollout_id in self.rollouts:
            view = self.fleet.show(rollout_id)
            assert view.phase in FINISHED, (view.phase, view.reason)
            for member in view.members:
                assert member.status not in UNSETTLED, (member, view.phase, view.reason)
        for device in self.fleet.devices.values():
            assert all(change.settled for change in device.changes.values()), device
        self.what_is_written_is_so()

    def step_in_at_rest(self, rollout_id: int) -> None:
        with self.fleet.store.write() as session:
            row = records.need_rollout(session, rollout_id)
            if row.phase == "waiting":
                operate.approve(session, rollout_id, every=True, actor="me", now=self.fleet.now)
            else:
                operate.resume(session, rollout_id, actor="me", now=self.fleet.now)

    def what_is_written_is_so(self) -> None:
        newest: set[tuple[str, str]] = set()
        for rollout_id in reversed(self.rollouts):
            view = self.fleet.show(rollout_id)
            name, _, version = view.release.partition("@")
            for member in view.members:
                if member.status in {"skipped", "superseded"} or (name, member.device) in newest:
                    continue
                newest.add((name, member.device))
                running = self.fleet.devices[member.device].running[name]
                if member.status in {"passed", "unproven"}:
                    assert running == version, (member, running)
                elif member.status == "returned":
                    assert running == member.base, (member, running)

    def _device(self, which: int) -> Any:
        return list(self.fleet.devices.values())[which]


Rollouts.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestRollouts = Rollouts.TestCase
