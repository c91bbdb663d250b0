"""A simulated fleet at a real mosquitto."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from edgeslm import codec, topics
from edgeslm.clock import utc_now
from edgeslm.errors import LinkError
from edgeslm.fleet.assignments import Visit
from edgeslm.fleet.registry import list_devices
from edgeslm.fleet.release_setup import assignment_signer, online_signers, set_up
from edgeslm.fleet.signing import create_key, load_signer, sign_assignment
from edgeslm.fleet.store.models import EnrolmentRow
from edgeslm.link.broker import find_mosquitto
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.schema.assignment import AssignedRelease, Assignment
from edgeslm.schema.sim_fleet import FleetScenario
from edgeslm.schema.update import Reported
from edgeslm.sim.fleet import SimFleet, Site, make_devices
from edgeslm.sim.fleet_trust import invented_digest
from edgeslm.sim.rehearsal import Stage, populated, preset_site, temporary_fleet

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")

WAIT_S = 60.0
WORDS = b"four words of mine"
_numbers = itertools.count(1)


def scenario(count: int = 50, **fields: Any) -> FleetScenario:
    group = {"name": "d", "count": count, "models": {"m": "1.0.0"}} | fields.pop("group", {})
    whole = {"name": "x", "title": "x", "interval_s": None, "speed": 600, "groups": [group]} | fields
    return FleetScenario.model_validate(whole)


@pytest.fixture(scope="module")
def empty() -> Iterator[Stage]:
    with temporary_fleet("green", plain=True) as stage:
        yield stage


@contextmanager
def devices_of(empty: Stage, count: int = 50, *, join: bool = False, **fields: Any) -> Iterator[SimFleet]:
    """Devices that are connected, of names that were never used: the broker keeps what others were assigned."""
    fields["group"] = {"name": f"d{next(_numbers)}"} | fields.get("group", {})
    made = scenario(count, **fields)
    with populated(empty, made, join=join) as stage:
        fleet = stage.devices
        assert fleet.wait_until(lambda now: now.online() == count, WAIT_S), fleet.summary()
        yield fleet


class Listener:
    """Hears what devices say."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.heard: dict[str, bytes] = {}

    def on_message(self, message: Message) -> None:
        with self.changed:
            self.heard[message.topic] = message.payload
            self.changed.notify_all()
        message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None: ...
    def on_disconnected(self, reason: str) -> None: ...
    def on_published(self, token: int) -> None: ...

    def wait(self, is_met: Callable[[dict[str, bytes]], bool]) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: is_met(self.heard), WAIT_S)


@contextmanager
def listening(stage: Stage, *filters: str) -> Iterator[Listener]:
    listener, link = Listener(), MqttLink(stage.fleet.operator_config(), "test-listener")
    link.start(listener, [(name, 1) for name in filters])
    try:
        yield listener
    finally:
        link.stop()


def assignment(device: Any, seq: int, version: str, sha256: str | None = None) -> Assignment:
    now = utc_now()
    return Assignment(
        fleet=device.fleet,
        device=device.name,
        device_key_sha256=device.credentials.key_sha256,
        seq=seq,
        issued_at=now,
        expires_at=now + timedelta(days=7),
        releases={"m": AssignedRelease(version=version, sha256=sha256 or invented_digest("m", version))},
    )


def unsigned(wanted: Assignment) -> bytes:
    signed = wanted.model_dump(mode="json", exclude_none=True)
    return json.dumps({"signatures": [], "signed": signed}).encode()


def assign(stage: Stage, fleet: SimFleet, version: str, seq: int = 1) -> None:
    with Visit(stage.fleet.operator_config(), "test-assigns") as visit:
        for device in fleet.devices:
            topic = topics.device_topic("green", device.name, "desired")
            visit.publish(topic, unsigned(assignment(device, seq, version)))


# --- joining ------------------------------------------------------------------------------------------------


def test_devices_join_over_the_wire_with_claims_and_certificates_of_their_own(empty: Stage) -> None:
    with devices_of(empty, 25, join=True, group={"profile": "bench"}) as fleet:
        assert fleet.summary().counts["joined"] == 25
        keys = {device.name: device.credentials.key_sha256 for device in fleet.devices}
        assert len(set(keys.values())) == 25

        def is_settled() -> bool:
            with empty.store.read() as session:
                done = select(func.count()).select_from(EnrolmentRow).where(EnrolmentRow.state == "done")
                return session.scalar(done) == 25

        assert fleet.wait_until(lambda _: is_settled(), WAIT_S)
        with empty.store.read() as session:
            known = {one.name: one for one in list_devices(session) if one.name in keys}
        assert {name: one.key_sha256 for name, one in known.items()} == keys
        assert {(one.board, one.profile) for one in known.values()} == {("pi-4b", "bench")}


def test_preset_devices_are_known_before_they_connect_and_present_afterwards(
    empty: Stage, tmp_path: Path
) -> None:
    made = make_devices(scenario(3, group={"name": "preset", "tags": ["canary"]}), "green")
    site = preset_site(empty, made, tmp_path)
    with empty.store.read() as session:
        known = [one for one in list_devices(session) if one.name.startswith("preset")]
    assert [(one.standing, one.tags, one.presence) for one in known] == [("active", ("canary",), None)] * 3
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    with SimFleet(scenario(3), made, site) as fleet:

        def presences() -> set[str | None]:
            with empty.store.read() as session:
                return {one.presence for one in list_devices(session) if one.name.startswith("preset")}

        assert fleet.wait_until(lambda _: presences() == {"online"}, WAIT_S)


def test_devices_that_nobody_gave_a_claim_are_rejected(empty: Stage) -> None:
    made = make_devices(scenario(2, group={"name": "unknown"}), "green")
    broker = empty.fleet.config.broker
    site = Site(broker.host, broker.port, empty.fleet.authority_certificate, Path("/nonexistent"))
    with SimFleet(scenario(2), made, site) as fleet:
        assert fleet.wait_until(lambda now: now.phases.get("rejected") == 2, WAIT_S)


# --- updates ------------------------------------------------------------------------------------------------


def test_what_is_assigned_is_tried_and_kept_or_taken_back_and_reported(empty: Stage) -> None:
    effects = [{"release": "m@1.2.0", "time": 0.2}]
    reported = topics.fleet_filter("green", "reported")
    with devices_of(empty, releases=effects) as fleet, listening(empty, reported) as listener:
        assign(empty, fleet, "1.1.0")
        assert fleet.wait_until(lambda now: now.running == {"m@1.1.0": 50}, WAIT_S), fleet.summary()
        assert fleet.wait_until(lambda now: now.changes == {"m@1.1.0 committed": 50}, WAIT_S)
        assign(empty, fleet, "1.2.0", seq=2)
        assert fleet.wait_until(lambda now: now.changes == {"m@1.2.0 rolled_back": 50}, WAIT_S), (
            fleet.summary()
        )
        assert fleet.summary().running == {"m@1.1.0": 50}
        assert fleet.summary().faults == {"gate_failed": 50}

        def all_rolled_back(heard: dict[str, bytes]) -> bool:
            latest = [codec.decode(Reported, heard.get(topic, b"{}")) for topic in ours if topic in heard]
            changes = [report.models[0].change for report in latest]
            return sum(change is not None and change.state == "rolled_back" for change in changes) == 50

        ours = [topics.device_topic("green", device.name, "reported") for device in fleet.devices]
        assert listener.wait(all_rolled_back)
        report = codec.decode(Reported, listener.heard[ours[0]])
        assert report.models[0].change.verdict.outcome == "fail"
        assert report.models[0].change.fault.denied


def test_a_device_that_was_away_gets_what_was_assigned_meanwhile(empty: Stage) -> None:
    with devices_of(empty, 5) as fleet:
        names = [device.name for device in fleet.devices]
        fleet.switch_off(names[:2])
        assign(empty, fleet, "1.1.0")
        assert fleet.wait_until(lambda now: now.running == {"m@1.0.0": 2, "m@1.1.0": 3}, WAIT_S)
        fleet.bring_back(names[:2])
        assert fleet.wait_until(lambda now: now.running == {"m@1.1.0": 5}, WAIT_S), fleet.summary()


def test_only_what_the_fleets_repository_vouches_for_is_followed(tmp_path: Path) -> None:
    with temporary_fleet("green") as empty:
        keys = empty.fleet.root / "keys"
        repository = set_up(empty.fleet.releases, keys, "green", lambda _: WORDS)
        package = next(Path(__file__).parents[2].glob("edgeslm/_packages/home-command.slm"))
        info = repository.add(package)
        repository.sign_pending([load_signer(keys / "targets.pem", lambda _: WORDS)])
        repository.publish(online_signers(keys))
        create_key(tmp_path / "thief.pem", None)
        start = {"models": {info.name: "0.0.1"}}
        with populated(empty, scenario(4, group=start)) as stage:
            fleet = stage.devices
            assert fleet.wait_until(lambda now: now.online() == 4, WAIT_S)
            signers = [assignment_signer(keys), load_signer(tmp_path / "thief.pem")]
            bodies = {}
            for device, signer, sha256 in zip(
                fleet.devices, (signers[0], signers[1], signers[0], signers[0]), (info.sha256,) * 3 + ("0" * 64,),
                strict=True,
            ):  # fmt: skip
                wanted = assignment(device, 1, info.version, sha256)
                named = wanted.model_copy(update={"releases": {info.name: wanted.releases["m"]}})
                bodies[device.name] = sign_assignment(named, [signer])
            # The third gets what was signed for the first.
            bodies[fleet.devices[2].name] = bodies[fleet.devices[0].name]
            with Visit(stage.fleet.operator_config(), "test-assigns") as visit:
                for name, payload in bodies.items():
                    visit.publish(topics.device_topic("green", name, "desired"), payload)
            running = f"{info.name}@{info.version}"
            assert fleet.wait_until(lambda now: now.running.get(running) == 1, WAIT_S), fleet.summary()
            assert fleet.wait_until(lambda now: now.refused == 2, WAIT_S)
            assert fleet.wait_until(lambda now: now.faults == {"not_trusted": 1}, WAIT_S), fleet.summary()
            assert fleet.look(lambda: [device.updates.assignment for device in fleet.devices]) == [1, 0, 0, 1]


# --- what goes wrong ----------------------------------------------------------------------------------------


def test_a_board_that_goes_out_is_missed_by_its_will_and_comes_back(empty: Stage) -> None:
    with (
        devices_of(empty, 3) as fleet,
        listening(empty, topics.fleet_filter("green", "availability")) as listener,
    ):
        first, second, _ = (device.name for device in fleet.devices)
        topic = topics.device_topic("green", first, "availability")
        assert listener.wait(lambda heard: b"online" in heard.get(topic, b""))
        fleet.switch_off([first])
        assert listener.wait(lambda heard: b"offline" in heard[topic])
        assert fleet.summary().phases == {"online": 2, "off": 1}
        fleet.bring_back([first])
        assert listener.wait(lambda heard: b"online" in heard[topic])
        fleet.switch_off([second], for_s=0.2)
        assert fleet.wait_until(lambda now: now.counts["connected"] == 5, WAIT_S)


def test_a_device_that_is_cut_off_says_nothing_though_the_broker_has_not_missed_it(empty: Stage) -> None:
    with devices_of(empty, 2, interval_s=0.2) as fleet:
        cut, other = (topics.device_topic("green", device.name, "m/power") for device in fleet.devices)
        fleet.cut_off([fleet.devices[0].name])
        with listening(empty, cut, other) as listener:
            assert listener.wait(lambda heard: other in heard)
            assert cut not in listener.heard
            fleet.bring_back([fleet.devices[0].name])
            assert listener.wait(lambda heard: cut in heard)


def test_outages_of_the_scenario_hit_their_share_and_end(empty: Stage) -> None:
    outages = [{"at_s": 600, "for_s": 1200, "share": 0.4}]
    with devices_of(empty, 40, group={"outages": outages}) as fleet:
        assert fleet.wait_until(lambda now: now.phases.get("off", 0) >= 8, WAIT_S)
        assert fleet.summary().phases["off"] <= 25
        assert fleet.wait_until(lambda now: now.online() == 40, WAIT_S)


def test_a_board_that_dies_in_its_trial_stays_away(empty: Stage) -> None:
    outages = [{"during": "trial", "share": 0.5}]
    with devices_of(empty, 20, group={"outages": outages}) as fleet:
        assign(empty, fleet, "1.1.0")
        assert fleet.wait_until(
            lambda now: now.changes.get("m@1.1.0 committed", 0) + now.changes.get("m@1.1.0 trial", 0) == 20,
            WAIT_S,
        )
        now = fleet.summary()
        assert now.phases["off"] == now.changes["m@1.1.0 trial"] == now.running["m@1.0.0"] > 4


def test_links_that_drop_come_back_by_themselves(empty: Stage) -> None:
    link = {"drop_every_s": 300, "outage_s": 30}
    with devices_of(empty, 20, group={"link": link}) as fleet:
        assert fleet.wait_until(lambda now: now.counts["lost"] > 20, WAIT_S)
        assert fleet.summary().reasons["dropped by the scenario"] > 20
        assert fleet.wait_until(lambda now: now.online() >= 15, WAIT_S)


def test_what_a_slow_link_delays_arrives(empty: Stage) -> None:
    with devices_of(empty, 3, group={"link": {"latency_ms": 150}}) as fleet:
        began_s = time.monotonic()
        topic = topics.device_topic("green", fleet.devices[0].name, "reported")
        with listening(empty, topic) as listener:
            assign(empty, fleet, "1.1.0")
            assert listener.wait(lambda heard: b"committed" in heard.get(topic, b""))
        assert time.monotonic() - began_s > 0.15


def test_the_broker_lets_no_liar_speak_for_another(empty: Stage) -> None:
    liars = [{"kind": "other's identity", "share": 1.0}]
    with devices_of(empty, 5, join=True, interval_s=0.2, group={"liars": liars}) as fleet:
        assert fleet.wait_until(lambda now: now.counts["denied"] >= 5, WAIT_S)
        assert fleet.summary().online() == 5


def test_all_come_back_when_the_broker_does() -> None:
    with temporary_fleet("green") as empty, populated(empty, scenario(30)) as stage:
        fleet = stage.devices
        assert fleet.wait_until(lambda now: now.online() == 30, WAIT_S)
        assert stage.process is not None
        stage.process.stop()
        assert fleet.wait_until(lambda now: now.online() == 0 and now.counts["failed"] > 0, WAIT_S)
        stage.process.start()
        assert fleet.wait_until(lambda now: now.online() == 30, WAIT_S), fleet.summary()


# --- the fleet as a whole -----------------------------------------------------------------------------------


def test_a_name_is_enough_on_a_plain_listener_and_the_access_list_holds_there_too(empty: Stage) -> None:
    assert empty.plain_port is not None
    liars = [{"kind": "other's identity", "share": 1.0}]
    with devices_of(empty, 5, interval_s=0.2, group={"liars": liars}) as fleet:
        assert fleet.wait_until(lambda now: now.counts["denied"] >= 5, WAIT_S)


def test_at_the_end_all_have_said_goodbye_and_no_thread_is_left(empty: Stage) -> None:
    before = threading.active_count()
    with listening(empty, topics.fleet_filter("green", "availability")) as listener:
        with devices_of(empty, 10) as fleet:
            names = [topics.device_topic("green", device.name, "availability") for device in fleet.devices]
            assert listener.wait(lambda heard: all(b"online" in heard.get(name, b"") for name in names))
        assert listener.wait(lambda heard: all(b"offline" in heard[name] for name in names))
    assert threading.active_count() <= before
    assert fleet.summary().online() == 0
    fleet.stop()


def test_waiting_ends_in_time_where_nothing_comes(empty: Stage) -> None:
    with devices_of(empty, 1) as fleet:
        assert not fleet.wait_until(lambda now: now.online() == 2, 0.2)


def test_what_goes_wrong_in_looking_is_the_lookers_and_ends_nothing(empty: Stage) -> None:
    with devices_of(empty, 1) as fleet:
        with pytest.raises(KeyError):
            fleet.switch_off(["nobody"])
        with pytest.raises(ZeroDivisionError):
            fleet.look(lambda: 1 // 0)
        assert fleet.summary().online() == 1


def test_refuses_a_host_that_has_no_address(empty: Stage, tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="no address"):
        SimFleet(scenario(1), (), Site("no.such.host.invalid", 1, tmp_path, tmp_path))


@pytest.mark.slow
def test_a_thousand_devices_join_and_a_release_reaches_them_all(tmp_path: Path) -> None:
    with temporary_fleet("green") as empty, populated(empty, scenario(1000), join=True) as stage:
        fleet = stage.devices
        assert fleet.wait_until(lambda now: now.online() == 1000, 300), fleet.summary()
        assign(stage, fleet, "1.1.0")
        assert fleet.wait_until(lambda now: now.changes == {"m@1.1.0 committed": 1000}, 300), fleet.summary()
