"""What the updater gets told by trust, delivery and board."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_device_rig import make_release
from edgeslm.agent.following import Assigned, Judge
from edgeslm.agent.update.change import Wanted
from edgeslm.cli.wiring_updates import (
    BoardDevice,
    CheckedReleases,
    FetchedDelivery,
    delivery_target,
    prepare_trust,
)
from edgeslm.delivery.fetcher import Fetcher
from edgeslm.errors import MetadataError, UpdateError, UpdateInterruptedError
from edgeslm.models.store import ModelStore
from edgeslm.power.attribution import Interval
from edgeslm.power.boards import choose_board
from edgeslm.power.port import Battery, Vitals
from edgeslm.schema.config import UpdatesConfig
from edgeslm.schema.delivery import DeliveryPolicy
from edgeslm.schema.release import CheckedRelease, CheckResult, Refusal, ReleaseInfo, ReleaseTarget, SideFile
from edgeslm.trust.storage import ENROLLED

SHA = "ab" * 32
WANTED = Wanted("lamp", "1.1.0", SHA, 7)


def info(**changes: Any) -> ReleaseInfo:
    requires = {"ram_mb": 1, "cpu_features": (), "agent": "0.1.0", "runtimes": ("litert",)}
    fields: dict[str, Any] = {
        "name": "lamp",
        "version": "1.1.0",
        "task": "generate",
        "sha256": SHA,
        "size_bytes": 100,
        "security_floor": "0.0.0",
        "requires": requires,
    }
    return ReleaseInfo.model_validate({**fields, **changes})


class Judgement:
    """Says what a test wants."""

    def __init__(self, **found: Any) -> None:
        self.found = CheckResult(now=datetime(2026, 12, 1, tzinfo=UTC), clock="wall", **found)
        self.asked: list[tuple[Any, ...]] = []

    def judge(self, *asked: Any) -> CheckResult:
        self.asked.append(asked)
        return self.found


def releases(directory: Path, judgement: Judgement, body: str = "signed") -> CheckedReleases:
    assigned = Assigned(directory / "assigned.json")
    assigned.keep(body)
    return CheckedReleases(cast("Judge", judgement), Assigned(directory / "assigned.json"))


def refusal(error: str) -> Refusal:
    return Refusal(error=error, message=f"because of {error}")


def test_a_release_is_the_one_that_the_repository_vouches_for(tmp_path: Path) -> None:
    target = ReleaseTarget(role="targets", info=info(), floor="0.0.0")
    judgement = Judgement(releases=(CheckedRelease(name="lamp", version="1.1.0", target=target),))
    assert releases(tmp_path, judgement).find(WANTED, None, lambda: False) == target
    assert judgement.asked[0][:3] == ("signed", 7, {})


@pytest.mark.parametrize(
    ("found", "cause"),
    [
        ({"refused": "SecurityFloorError"}, "unsafe_version"),
        ({"refused": "DowngradeError"}, "unsafe_version"),
        ({"refused": "ReleaseNotFoundError"}, "not_trusted"),
        ({"refused": "MetadataFetchError"}, "unreachable"),
        ({"assignment_refused": "ExpiredAssignmentError"}, "not_trusted"),
        (
            {"assignment_refused": "MetadataExpiredError", "refresh_refused": "SlowRetrievalError"},
            "unreachable",
        ),
        (
            {"assignment_refused": "MetadataExpiredError", "refresh_refused": "MetadataSignatureError"},
            "not_trusted",
        ),
        ({}, "not_trusted"),
    ],
)
def test_why_a_release_is_none_decides_whether_it_is_tried_again(
    tmp_path: Path, found: dict[str, str], cause: str
) -> None:
    named = {key: refusal(error) for key, error in found.items() if key != "refused"}
    if "refused" in found:
        checked = CheckedRelease(name="lamp", version="1.1.0", refused=refusal(found["refused"]))
        named["releases"] = cast("Any", (checked,))
    with pytest.raises(UpdateError) as caught:
        releases(tmp_path, Judgement(**named)).find(WANTED, None, lambda: False)
    assert caught.value.cause == cause


def test_other_bytes_than_assigned_and_no_assignment_at_all_are_no_release(tmp_path: Path) -> None:
    other = ReleaseTarget(role="targets", info=info(sha256="cd" * 32), floor="0.0.0")
    judgement = Judgement(releases=(CheckedRelease(name="lamp", version="1.1.0", target=other),))
    with pytest.raises(UpdateError) as caught:
        releases(tmp_path, judgement).find(WANTED, None, lambda: False)
    assert caught.value.cause == "not_trusted"
    with pytest.raises(UpdateError) as caught:
        releases(tmp_path, judgement, body="").find(WANTED, None, lambda: False)
    assert caught.value.cause == "unreachable"


def test_a_root_that_is_none_is_refused_and_nothing_is_trusted(tmp_path: Path) -> None:
    root = tmp_path / "root.json"
    root.write_bytes(b"{}")
    with pytest.raises(MetadataError):
        prepare_trust(tmp_path / "trust", root)
    assert not (tmp_path / "trust" / ENROLLED).exists()


# --- delivery -----------------------------------------------------------------------------------------------

QUICK = DeliveryPolicy(retry_s=0.01, max_retry_s=0.02, deadline_s=0.5)


def delivery(directory: Path, **settings: Any) -> FetchedDelivery:
    config = UpdatesConfig.model_validate({"delivery": QUICK, **settings})
    store = ModelStore(directory / "models")
    return FetchedDelivery(Fetcher(directory / "fetched"), store, config, "http://127.0.0.1:9/none")


def test_a_release_is_fetched_from_a_source_beside_the_repository_and_found_again(tmp_path: Path) -> None:
    release = make_release(tmp_path / "stick", "1.1.0", golden=1)
    path = delivery(tmp_path, sources=(str(tmp_path / "stick"),)).fetch(
        release.target, None, lambda done, total: None, lambda: False
    )
    assert path.read_bytes() == release.path.read_bytes()
    release.path.unlink()
    again = delivery(tmp_path)
    assert again.fetch(release.target, None, lambda done, total: None, lambda: False) == path
    again.keep_only(())
    assert not path.exists()


def test_what_nobody_has_is_unreachable_and_a_wish_taken_back_is_no_error(tmp_path: Path) -> None:
    target = ReleaseTarget(role="targets", info=info(), floor="0.0.0")
    with pytest.raises(UpdateError) as caught:
        delivery(tmp_path).fetch(target, None, lambda done, total: None, lambda: False)
    assert caught.value.cause == "unreachable"
    with pytest.raises(UpdateInterruptedError):
        delivery(tmp_path).fetch(target, None, lambda done, total: None, lambda: True)


def test_outside_of_the_hours_the_policy_says_when_to_come_back(tmp_path: Path) -> None:
    hour = datetime.now().astimezone().hour
    hours = f"{(hour + 2) % 24:02}:00-{(hour + 3) % 24:02}:00"
    closed = FetchedDelivery(
        Fetcher(tmp_path / "fetched"),
        ModelStore(tmp_path / "models"),
        UpdatesConfig(delivery=QUICK.model_copy(update={"hours": hours})),
        "http://127.0.0.1:9/none",
    )
    with pytest.raises(UpdateError) as caught:
        closed.fetch(
            ReleaseTarget(role="targets", info=info(), floor="0.0.0"), None, lambda *_: None, lambda: False
        )
    assert caught.value.cause == "unreachable"
    assert 0 < (caught.value.retry_after_s or 0) <= 3 * 3600


def test_chunk_map_and_deltas_of_a_release_are_delivered_as_well() -> None:
    side = SideFile(sha256="cd" * 32, size_bytes=9)
    target = delivery_target(info(chunks=SideFile(sha256="ef" * 32, size_bytes=9), deltas={"12" * 32: side}))
    assert (target.package.sha256, target.package.chunks_sha256) == (SHA, "ef" * 32)
    assert [(delta.base_sha256, delta.blob.sha256) for delta in target.deltas] == [("12" * 32, "cd" * 32)]


# --- the board ----------------------------------------------------------------------------------------------


class Monitor:
    """The monitor of a board, by hand."""

    def __init__(self) -> None:
        self.vitals = Vitals(0.0)
        self.facts = SimpleNamespace(period_s=0.5)

    def listen(self, *, on_interval: Any) -> None:
        self.tell = on_interval


def board_device(monitor: Monitor) -> BoardDevice:
    return BoardDevice("porch", choose_board("host"), cast("Any", monitor), 2, 0.3)


def test_the_meter_s_intervals_add_up() -> None:
    monitor = Monitor()
    energy = board_device(monitor).energy
    assert (energy.period_s, energy.count()) == (0.5, None)
    for end_s, energy_j in ((1.0, 2.0), (2.0, 3.0)):
        monitor.tell(Interval(end_s - 1, end_s, energy_j, energy_j, "measured", None))
    count = energy.count()
    assert count is not None
    assert (count.at_s, count.total_j, count.meter) == (2.0, 5.0, "measured")


@pytest.mark.parametrize(
    ("share", "external", "may"),
    [(0.2, False, False), (0.3, False, False), (0.4, False, True), (0.1, True, True)],
)
def test_nothing_is_tried_on_a_battery_near_its_reserve(share: float, external: bool, may: bool) -> None:
    monitor = Monitor()
    device = board_device(monitor)
    assert device.may_try() is None
    monitor.vitals = Vitals(0.0, battery=Battery(share, None, None, external))
    assert (device.may_try() is None) is may


def test_a_device_tells_what_it_is() -> None:
    device = board_device(Monitor())
    facts = device.facts
    assert (facts.name, facts.threads) == ("porch", 2)
    assert facts.runtimes
    assert facts.ram_mb > (device.available_mb() or 0) > 0
    assert facts.cpu_features & {"sse2", "asimd"}
    assert not device.is_online()
    device.online = lambda: True
    assert device.is_online()
    now = device.utc()
    assert now is not None
    assert now.tzinfo is UTC
