"""What a simulated device says, at no broker."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from edgeslm import codec, topics
from edgeslm.errors import ReplayedAssignmentError
from edgeslm.link.port import Message
from edgeslm.schema.base import WireModel
from edgeslm.schema.enrol import IdentityReport
from edgeslm.schema.message import Availability, Info
from edgeslm.schema.metrics import Event, InferenceMetrics, PowerMetrics, SystemMetrics
from edgeslm.schema.sim_fleet import FleetScenario
from edgeslm.schema.update import Reported
from edgeslm.sim.fleet import make_devices
from edgeslm.sim.fleet_device import SimulatedDevice
from edgeslm.sim.fleet_plan import Now
from edgeslm.sim.fleet_trust import Credulous, Recipient, invented_digest

WALL_S = datetime(2026, 12, 1, 12, tzinfo=UTC).timestamp()
FORMS: dict[str, type[WireModel]] = {
    "availability": Availability,
    "identity": IdentityReport,
    "info": Info,
    "reported": Reported,
    "m/power": PowerMetrics,
    "m/inference": InferenceMetrics,
    "m/system": SystemMetrics,
    "e": Event,
}


def devices(count: int = 1, speed: float = 1.0, seed: int = 1, **group: Any) -> tuple[SimulatedDevice, ...]:
    fields = {"name": "d", "count": count, "models": {"m": "1.0.0"}} | group
    scenario = {"name": "x", "title": "x", "seed": seed, "speed": speed, "groups": [fields]}
    return make_devices(FleetScenario.model_validate(scenario), "green")


def at(seconds: float) -> Now:
    return Now(seconds, seconds, WALL_S + seconds)


def body(messages: list[Message], channel: str) -> Any:
    """The message on that channel, read as whoever gets it does."""
    for message in messages:
        topic = topics.parse(message.topic)
        assert isinstance(topic, topics.DeviceTopic)
        if topic.channel == channel:
            return codec.decode(FORMS[channel], message.payload)
    raise AssertionError(f"nothing on {channel}: {[message.topic for message in messages]}")


def desired(seq: int, version: str, device: str = "d-0001") -> bytes:
    signed = {
        "v": 1, "type": "assignment", "fleet": "green", "device": device, "device_key_sha256": "0" * 64, "seq": seq,
        "issued_at": "2026-12-01T12:00:00Z", "expires_at": "2026-12-08T12:00:00Z",
        "releases": {"m": {"version": version, "sha256": invented_digest("m", version)}},
    }  # fmt: skip
    return json.dumps({"signatures": [], "signed": signed}).encode()


def tell(device: SimulatedDevice, payload: bytes, seconds: float) -> list[Message]:
    return device.take(topics.device_topic("green", device.name, "desired"), payload, at(seconds))


def test_on_connecting_it_says_what_real_devices_say() -> None:
    (device,) = devices(board="pi-5", meter="calibrated")
    said = device.connected(at(0))
    assert body(said, "availability").state == "online"
    info = body(said, "info")
    assert (info.board, info.meter, info.models[0].version) == ("pi-5", "calibrated", "1.0.0")
    assert body(said, "identity").machine.board == "pi-5"
    reported = body(said, "reported")
    assert (reported.seq, reported.assignment, reported.models[0].sha256) == (
        1,
        0,
        invented_digest("m", "1.0.0"),
    )
    assert {message.retain for message in said} == {True}
    assert topics.device_topic("green", "d-0001", "desired") in device.filters()


def test_reports_come_at_their_interval_each_with_the_next_number() -> None:
    (device,) = devices()
    device.connected(at(0))
    assert 0 <= device.due_s(at(0)) < 60
    numbers = []
    for second in range(600):
        for message in device.wake(at(second)):
            if message.topic.endswith("m/power"):
                numbers.append(codec.decode(PowerMetrics, message.payload).seq)
    assert numbers == list(range(10))


def test_reports_tell_of_the_board_and_of_what_it_runs() -> None:
    (device,) = devices(prompts_per_h=600, board="pi-4b")
    device.connected(at(0))
    device.wake(at(61))
    said = device.wake(at(121))
    power, inference, system = (body(said, name) for name in ("m/power", "m/inference", "m/system"))
    assert (power.device, power.clock_set, power.span_s) == ("d-0001", True, 60.0)
    assert power.energy_j == pytest.approx(60 * 2.7, rel=0.4)
    assert sum(cause.energy_j for cause in power.causes) == pytest.approx(power.energy_j, abs=0.01)
    assert (inference.models[0].model, inference.models[0].answered) == ("m@1.0.0", 10)
    assert 20 < system.temperature_c < 80
    assert power.at == "2026-12-01T12:02:01.000+00:00"


def test_an_assignment_is_followed_step_by_step_and_reported_with_rising_numbers() -> None:
    (device,) = devices(speed=60)
    device.connected(at(0))
    states, seqs, now = [], [], 0.0
    said = tell(device, desired(7, "1.1.0"), now)
    while device.updates.due_s < float("inf") or said:
        for message in said:
            if message.topic.endswith("reported"):
                report = codec.decode(Reported, message.payload)
                assert report.assignment == 7
                states.append(report.models[0].change.state)
                seqs.append(report.seq)
        now += 1.0
        said = device.wake(at(now))
    assert (states[0], states[-1]) == ("offered", "committed")
    assert seqs == list(range(2, 2 + len(seqs)))
    assert device.updates.serving("m").version == "1.1.0"


def test_what_ends_as_the_same_assignment_comes_again_is_reported() -> None:
    (device,) = devices()
    device.connected(at(0))
    tell(device, desired(1, "1.1.0"), 0)
    now_s = 0.0
    while device.updates.due_s < float("inf"):
        now_s = device.updates.due_s
        said = tell(device, desired(1, "1.1.0"), now_s)
        if said:
            last = body(said, "reported").models[0].change
    assert (last.state, last.settled) == ("committed", True)


def test_what_runs_now_is_said_again_when_it_changes() -> None:
    (device,) = devices(speed=60)
    device.connected(at(0))
    tell(device, desired(1, "1.1.0"), 0)
    infos = [
        body([one], "info")
        for second in range(1, 2000)
        for one in device.wake(at(second))
        if "info" in one.topic
    ]
    assert [info.models[0].version for info in infos] == ["1.1.0"]


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff",
        b"{}",
        b"[" * 40_000,
        b"x" * 40_000,
        desired(1, "1.1.0", device="d-0002"),
        b'{"signed": 3}',
        b"null",
    ],
    ids=["bytes", "empty", "deep", "long", "of another", "number", "null"],
)
def test_what_is_no_assignment_for_it_changes_nothing_and_is_counted(payload: bytes) -> None:
    (device,) = devices()
    device.connected(at(0))
    assert tell(device, payload, 1) == []
    assert (device.refused, device.updates.assignment) == (1, 0)
    assert device.why_refused


def test_an_older_assignment_is_refused() -> None:
    with pytest.raises(ReplayedAssignmentError):
        Credulous().judge(desired(3, "1.1.0"), Recipient("green", "d-0001", "0" * 64, datetime.now(UTC)), 4)


def test_chance_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    def first_words(seed: int) -> list[bytes]:
        made = devices(20, seed=seed, liars=[{"kind": "future time", "share": 0.3}], clock={"offset_s": 60})
        for device in made:
            device.connected(at(0))
        said = [message for device in made for message in device.wake(at(59.99))]
        return [message.payload for message in said]

    assert first_words(1) == first_words(1) != first_words(2)


def test_clocks_are_off_drift_and_may_not_be_set_at_all() -> None:
    made = devices(200, clock={"offset_s": 100, "drift_ppm": 100, "unset_share": 0.25})
    offsets, unset = [], 0
    for device in made:
        device.connected(at(0))
        power = body(device.wake(at(60)), "m/power")
        clock = datetime.fromisoformat(power.at).timestamp()
        assert power.clock_set == (clock > 1e9)
        if power.clock_set:
            offsets.append(clock - WALL_S - 60)
        else:
            unset += 1
            assert device.utc() is None
    assert 35 <= unset <= 65
    assert 80 < (sum(offset**2 for offset in offsets) / len(offsets)) ** 0.5 < 120


@pytest.mark.parametrize("kind", ["negative watts", "future time", "other's identity"])
def test_liars_are_as_many_as_told_and_lie_in_their_way(kind: str) -> None:
    made = devices(100, liars=[{"kind": kind, "share": 0.2}])
    liars = [device for device in made if device.lie == kind]
    assert 12 <= len(liars) <= 28
    device = liars[0]
    device.connected(at(0))
    said = device.wake(at(60))
    power = body(said, "m/power")
    lies = {
        "negative watts": power.energy_j < 0,
        "future time": power.at.startswith("2027"),
        "other's identity": power.device == device.other != device.name
        and any(message.topic == topics.device_topic("green", device.other, "m/power") for message in said),
    }
    assert [name for name, told in lies.items() if told] == [kind]


def test_a_battery_that_runs_empty_takes_the_board_with_it_and_is_told_before() -> None:
    (device,) = devices(speed=60, conditions="dark-days")
    events, hour = [], 0

    def after(hours: int) -> Now:
        return Now(3600.0 * hours, 60.0 * hours, WALL_S + 60.0 * hours)

    device.connected(after(0))
    while device.is_on and hour < 72:
        hour += 1
        for message in device.wake(after(hour)):
            if "/e/" in message.topic:
                events.append(body([message], "e").type)
    assert not device.is_on
    assert "battery_low" in events
    assert any(device.power_is_back(after(hour + later)) for later in range(1, 48))
