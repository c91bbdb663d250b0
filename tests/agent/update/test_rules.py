"""Rules of a release go with its model: in force once it is committed, gone when it is taken back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.update_device_rig import FAST, NAME, Release, RigDevice, Run, make_release
from edgeslm.agent.rules.brought import BroughtRules
from edgeslm.errors import ModelLoadError
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.update import ReportedChange, UpdatePolicy

Start = Callable[..., Run]


def rules(name: str, when: str = "t > 20", topic: str = "in/t", out: str = "out/fan") -> str:
    return (
        f"allow: [{out}]\ninputs: {{t: {{topic: {topic}}}}}\nrules:\n"
        f"  - {{name: {name}, when: {when}, then: [{{publish: {{topic: {out}, payload: 'ON'}}}}]}}\n"
    )


class Releases:
    """Of one model, with rules."""

    def __init__(self, directory: Path) -> None:
        self.first = make_release(directory, "2.0.0", golden=4, rules=rules("first"))
        self.second = make_release(directory, "2.1.0", golden=4, rules=rules("second"))
        self.broken = make_release(directory, "2.2.0", golden=4, rules=rules("broken", when="t >"))
        self.silent = make_release(directory, "2.3.0", golden=4)


@pytest.fixture(scope="module")
def made(depot: Any) -> Releases:
    return Releases(depot.depot)


@pytest.fixture
def releases(fleet: Any, made: Releases) -> Releases:
    for release in (made.first, made.second, made.broken, made.silent):
        fleet.vouching.releases[NAME, release.target.info.version] = release
    return made


class Watched(BroughtRules):
    """Notes what was in force, and in which state of the change."""

    def __init__(self, own: tuple[Path, ...] = ()) -> None:
        super().__init__(own)
        self.run: Run | None = None
        self.steps: list[tuple[str, list[str]]] = []

    def use(self, packages: Mapping[str, InstalledPackage]) -> None:
        super().use(packages)
        found = [file.origin.removeprefix(f"{NAME}@") for file in self.files()]
        change = None if self.run is None else self.run.updater._changes.get(NAME)
        self.steps.append(("start" if change is None else change.state, found))

    @property
    def now(self) -> list[str]:
        return self.steps[-1][1]


def change_of(run: Run) -> ReportedChange:
    change = next(item.change for item in run.report().models if item.name == NAME)
    assert change is not None
    return change


def begin(start: Start, releases: Releases, content: Watched, **settings: Any) -> Run:
    content.run = None
    run = start(**{"factory": [releases.first.path], "content": content, **settings})
    content.run = run
    return run


def update(run: Run, release: Release, assignment: int = 1, **changes: Any) -> None:
    run.updater.follow([release.wanted(assignment, **changes)], assignment)
    run.turn()


def test_rules_of_the_factory_package_are_in_force_from_the_start(device: Start, releases: Releases) -> None:
    content = Watched()
    begin(device, releases, content)
    assert content.now == ["2.0.0"]


def test_the_old_rules_remain_until_the_release_is_committed_and_serves(
    device: Start, releases: Releases
) -> None:
    content = Watched()
    run = begin(device, releases, content)
    update(run, releases.second)
    assert change_of(run).state == "committed"
    before = [found for state, found in content.steps if state != "committed"]
    assert {tuple(found) for found in before} == {("2.0.0",)}
    assert {state for state, _ in content.steps} >= {"trial", "gating", "staged"}
    assert content.now == ["2.1.0"]
    # Judged already, but not serving yet.
    assert content.steps[[state for state, _ in content.steps].index("committed")][1] == ["2.0.0"]


def test_a_model_that_serves_for_its_trial_brings_no_rules_before_it_is_committed(
    device: Start, releases: Releases
) -> None:
    content = Watched()
    rig = RigDevice(memory_mb=60)  # not enough for both
    run = begin(device, releases, content, device=rig)
    run.updater.follow([releases.second.wanted(1)], 1)
    run.turn(until=lambda: run.state() == "gating")
    assert run.serves() == releases.second.target.info.sha256
    assert content.now == ["2.0.0"]
    run.turn()
    assert content.now == ["2.1.0"]


def test_a_release_that_is_taken_back_takes_its_rules_along(device: Start, releases: Releases) -> None:
    policy = UpdatePolicy.model_validate({**FAST.model_dump(), "probation_s": 600.0})
    content = Watched()
    run = begin(device, releases, content, policy=policy)
    run.updater.follow([releases.second.wanted(1)], 1)
    run.turn(until=lambda: content.now == ["2.1.0"])
    run.serving.begun, run.serving.failed = 10, 9
    run.turn()
    assert change_of(run).state == "rolled_back"
    assert content.now == ["2.0.0"]


def test_a_swap_that_fails_never_puts_the_new_rules_in_force(device: Start, releases: Releases) -> None:
    content = Watched()
    run = begin(device, releases, content)
    run.updater.follow([releases.second.wanted(1)], 1)
    run.turn(until=lambda: run.state() == "committed")
    run.serving.refuses = ModelLoadError("no memory", path="x")
    run.turn(until=lambda: run.state() == "rolled_back")
    assert change_of(run).state == "rolled_back"
    assert {tuple(found) for _, found in content.steps} == {("2.0.0",)}


def test_going_on_without_rules_and_back_again(device: Start, releases: Releases) -> None:
    content = Watched()
    run = begin(device, releases, content)
    update(run, releases.silent)
    assert content.now == []
    update(run, releases.first, 2, allow_downgrade=True)
    assert content.now == ["2.0.0"]


@pytest.mark.parametrize("state", ["fetching", "staged", "trial", "gating"])
def test_a_restart_in_between_keeps_the_old_rules_and_ends_with_the_new(
    device: Start, releases: Releases, state: str
) -> None:
    content = Watched()
    run = begin(device, releases, content)
    run.updater.follow([releases.second.wanted(1)], 1)
    run.turn(until=lambda: run.state() == state)
    run.stop()
    content = Watched()
    run = begin(device, releases, content)
    assert content.now == ["2.0.0"]
    run.turn()
    assert content.now == ["2.1.0"]
    run.stop()
    content = Watched()
    begin(device, releases, content)
    assert content.now == ["2.1.0"]


def test_rules_that_would_do_nowhere_are_refused_before_the_trial_and_not_tried_again(
    device: Start, releases: Releases
) -> None:
    content = Watched()
    run = begin(device, releases, content)
    update(run, releases.broken)
    change = change_of(run)
    assert (change.state, change.settled) == ("rejected", True)
    assert change.fault is not None
    assert change.fault.cause == "bad_package"
    assert "rules.home.yaml, line 4, rules.0.when" in change.fault.detail
    assert change.fault.denied
    assert not run.serving.swaps
    assert content.now == ["2.0.0"]


def test_rules_that_go_round_with_the_devices_own_are_refused_as_incompatible(
    device: Start, releases: Releases, tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(rules("back", topic="out/fan", out="in/t"))
    content = Watched((own,))
    run = begin(device, releases, content, factory=[releases.silent.path])
    update(run, releases.second, allow_downgrade=True)
    fault = change_of(run).fault
    assert fault is not None
    assert fault.cause == "incompatible"
    assert "without end" in fault.detail
    own.write_text(rules("back", topic="out/other", out="in/t"))
    run.updater.retry(NAME)
    update(run, releases.second, 2, allow_downgrade=True)
    assert content.now == ["2.1.0"]
