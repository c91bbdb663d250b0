"""``abort`` and ``retry`` over a real updater with a change that waits for its window."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.update_device_rig import NAME, Release, Run, Vouching, make_release
from edgeslm.agent.operations.model_change import AbortChange, RetryRelease
from edgeslm.agent.operations.ports import Command, Done
from edgeslm.errors import OperationError


class Progress:
    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def tell(self, text: str, share: float | None = None) -> None: ...

    def is_cancelled(self) -> bool:
        return self.cancelled.is_set()


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Release, Release]:
    depot = tmp_path_factory.mktemp("depot")
    return make_release(depot, "1.0.1", golden=4), make_release(depot, "1.1.0", golden=4)


@pytest.fixture
def run(tmp_path: Path, releases: tuple[Release, Release]) -> Iterator[Run]:
    old, new = releases
    made = Run(tmp_path, [old.path], old.path.parent, Vouching(old, new))
    yield made
    made.stop()


def under_way(run: Run, release: Release) -> None:
    opens_at = datetime.now(UTC) + timedelta(days=1)
    run.updater.follow([release.wanted(1, opens_at=opens_at, closes_at=opens_at + timedelta(hours=1))], 1)
    run.turn(until=lambda: bool(run.reports) and run.state() == "wait_window")


def command(op: str, name: str = NAME) -> Command:
    return Command("a", op, {"name": name})


def abort(run: Run, *, again: bool = False) -> Done:
    """Abort on a thread, as operations do, while the updater takes turns here."""
    operation = AbortChange(run.updater)
    steps: list[object] = []

    def act() -> None:
        wanted, progress = command("abort"), Progress()
        steps.append(operation.resume(wanted, None, progress) if again else operation.begin(wanted, progress))

    thread = threading.Thread(target=act)
    thread.start()
    while thread.is_alive():
        run.updater.turn()
        thread.join(0.01)
    (step,) = steps
    assert isinstance(step, Done)
    return step


@pytest.mark.parametrize("again", [False, True])
def test_a_change_under_way_is_stopped_and_tried_again_on_request(
    run: Run, releases: tuple[Release, Release], again: bool
) -> None:
    under_way(run, releases[1])
    step = abort(run, again=again)
    assert (step.result["name"], step.result["version"]) == (NAME, "1.1.0")
    assert step.result["cause"] == "aborted"
    run.turn()
    assert run.serves() == releases[0].target.info.sha256
    assert len(run.updater.history()) == 1
    assert AbortChange(run.updater).resume(command("abort"), None, Progress()) == step
    retry = RetryRelease(run.updater)
    assert retry.begin(command("retry"), Progress()) == step
    assert retry.resume(command("retry"), None, Progress()) == step
    run.turn(until=lambda: len(run.updater.history()) == 2)


def test_where_nothing_is_under_way_nothing_is_aborted(run: Run) -> None:
    with pytest.raises(OperationError, match="no update of") as error:
        AbortChange(run.updater).begin(command("abort"), Progress())
    assert error.value.reason == "refused"
    with pytest.raises(OperationError, match="ever begun"):
        RetryRelease(run.updater).begin(command("retry"), Progress())


def test_what_is_under_way_is_not_retried(run: Run, releases: tuple[Release, Release]) -> None:
    under_way(run, releases[1])
    with pytest.raises(OperationError, match="under way"):
        RetryRelease(run.updater).begin(command("retry"), Progress())


@pytest.mark.parametrize("name", ["", "../x", "A", 7, None])
def test_a_name_that_is_none_is_refused(run: Run, name: object) -> None:
    for operation in (AbortChange(run.updater), RetryRelease(run.updater)):
        with pytest.raises(OperationError) as error:
            operation.begin(Command("a", operation.op, {"name": name}), Progress())
        assert error.value.reason == "refused"


def test_one_that_waits_for_the_updater_can_be_stopped(run: Run, releases: tuple[Release, Release]) -> None:
    under_way(run, releases[1])
    progress = Progress()
    progress.cancelled.set()
    with pytest.raises(OperationError, match="has not yet") as error:
        AbortChange(run.updater).begin(command("abort"), progress)
    assert error.value.reason == "cancelled"
