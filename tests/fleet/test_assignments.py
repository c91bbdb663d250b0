"""Assignments: planned against what the device is, signed, followed by the device's own check, and delivered."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import FleetRig, Visitor, fleet_rig, wait_for
from benchmarks.update_trust_rig import Rig, fast_directory
from edgeslm import codec, topics
from edgeslm.cli.fleet import fleet
from edgeslm.delivery.fetcher import Fetcher
from edgeslm.delivery.http_source import HttpSource
from edgeslm.delivery.mqtt_source import MqttSource
from edgeslm.errors import (
    AssignmentSignatureError,
    DowngradeError,
    MetadataMissingError,
    SecurityFloorError,
    UpdateError,
)
from edgeslm.fleet import assignments, registry
from edgeslm.fleet.assignments import DeviceView, Running, plan_step
from edgeslm.fleet.directory import create_fleet
from edgeslm.fleet.distribution import Distribution, prepared, release_prepared
from edgeslm.fleet.release_files import RepositoryFiles
from edgeslm.fleet.release_setup import assignment_signer, online_signers, set_up
from edgeslm.fleet.releases import ReleaseRepository
from edgeslm.fleet.signing import create_key, load_signer
from edgeslm.fleet.store.models import DeviceRow
from edgeslm.link.broker import find_mosquitto
from edgeslm.power.boards import load_boards
from edgeslm.schema.delivery import BlobRef, DeliveryPolicy
from edgeslm.schema.fleet import FleetBroker, FleetConfig
from edgeslm.schema.message import Info
from edgeslm.schema.release import (
    CheckRequest,
    HeldRelease,
    ReleaseInfo,
    ReleaseRequirements,
    ReleaseTarget,
    SideFile,
)
from edgeslm.schema.update import Reported, ReportedChange, ReportedFault, ReportedModel
from edgeslm.trust.check import check
from edgeslm.trust.fetch import HttpFetch
from edgeslm.trust.identity import Identity
from edgeslm.trust.releases import check_bytes, enrol
from edgeslm.trust.storage import TrustStorage

NEEDS_MOSQUITTO = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
OLD, NEW = "a" * 64, "b" * 64
BOARDS = load_boards()


def target(version: str = "1.1.0", *, floor: str = "0.0.0", **requires: Any) -> ReleaseTarget:
    needs = {"ram_mb": 64, "cpu_features": (), "agent": "0.1.0", "runtimes": ("litert",), **requires}
    info = ReleaseInfo(
        name="lamp",
        version=version,
        task="generate",
        sha256=NEW,
        size_bytes=1000,
        security_floor="0.0.0",
        requires=ReleaseRequirements.model_validate(needs),
        chunks=SideFile(sha256="c" * 64, size_bytes=90),
        deltas={OLD: SideFile(sha256="d" * 64, size_bytes=30)},
    )
    return ReleaseTarget(role="targets", info=info, floor=floor)


VIEW = DeviceView("kitchen", BOARDS["pi-4b"], "0.1.0", "litert", {"lamp": Running("1.0.0", OLD)})


# --- planning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("running", "way", "moves_bytes"),
    [
        (None, "full", 1090),
        (Running("1.0.0", "e" * 64), "full", 1090),
        (Running("1.0.0", None), "full", 1090),
        (Running("1.0.0", OLD), "delta", 30),
        (Running("1.1.0", NEW), "nothing", 0),
    ],
)
def test_a_plan_says_which_bytes_will_move(running: Running | None, way: str, moves_bytes: int) -> None:
    view = replace(VIEW, running={"lamp": running} if running is not None else {})
    step = plan_step(target(), view)
    assert (step.way, step.moves_bytes, step.unchecked) == (way, moves_bytes, ())


@pytest.mark.parametrize(
    ("requires", "lacks"),
    [
        ({"agent": "0.2.0"}, "edgeslm 0.2.0"),
        ({"runtimes": ("tflite-runtime",)}, "tflite-runtime"),
        ({"ram_mb": 8193}, "8193 MB"),
        ({"cpu_features": ("dotprod",)}, "dotprod"),
    ],
)
def test_what_a_device_lacks_is_refused_by_name(requires: dict[str, Any], lacks: str) -> None:
    with pytest.raises(UpdateError, match=lacks) as caught:
        plan_step(target(**requires), VIEW, allow_downgrade=True)
    assert caught.value.cause == "incompatible"


def test_what_a_device_has_not_told_is_named_and_left_to_the_device() -> None:
    strict = target(agent="9.0.0", ram_mb=100_000, cpu_features=("dotprod",), runtimes=("tflite-runtime",))
    for view in (DeviceView("new"), DeviceView("odd", BOARDS["host"], "a build of mine")):
        step = plan_step(strict, view)
        assert step.unchecked == ("agent", "runtime", "memory", "processor")


def test_what_the_device_told_of_itself_counts_more_than_what_boards_of_its_type_have() -> None:
    row = DeviceRow(name="kitchen", standing="active", key_sha256="0" * 64)
    told = info().model_copy(update={"ram_mb": 900, "cpu_features": ("asimddp",)})
    view = assignments.view_device(row, told, None, BOARDS)
    assert plan_step(target(ram_mb=900, cpu_features=("asimddp",)), view).unchecked == ()
    with pytest.raises(UpdateError, match="there are 900 MB at most"):
        plan_step(target(ram_mb=901), view)
    # The board's own facts stay true beside what the kernel lists.
    known = sorted(BOARDS["pi-4b"].cpu_features)
    assert plan_step(target(cpu_features=tuple(known)), view).unchecked == ()
    host = assignments.view_device(row, told.model_copy(update={"board": "host"}), None, BOARDS)
    assert plan_step(target(ram_mb=64, cpu_features=("asimddp",)), host).unchecked == ()
    with pytest.raises(UpdateError, match="dotprod"):
        plan_step(target(cpu_features=("dotprod",)), host)


def test_an_older_version_has_to_be_meant_and_stays_above_the_floor() -> None:
    view = replace(VIEW, running={"lamp": Running("2.0.0", OLD)})
    with pytest.raises(DowngradeError):
        plan_step(target(), view)
    assert plan_step(target(), view, allow_downgrade=True).way == "delta"
    with pytest.raises(SecurityFloorError):
        plan_step(target(floor="1.2.0"), view, allow_downgrade=True)
    odd = replace(VIEW, running={"lamp": Running("latest", OLD)})
    assert plan_step(target(), odd).unchecked == ("version that runs",)


def test_what_failed_on_a_device_is_assigned_again_only_by_force() -> None:
    row = DeviceRow(name="kitchen", standing="active", key_sha256="0" * 64)
    fault = ReportedFault(cause="crashed", detail="it died during loading", denied=True)
    failed = _reported(1, 7, state="rolled_back", sha256=NEW, fault=fault)
    view = assignments.view_device(row, info(), failed, BOARDS)
    with pytest.raises(UpdateError, match="it died during loading") as caught:
        plan_step(target(), view)
    assert caught.value.cause == "crashed"
    assert plan_step(target(), view, force=True).force
    passing = fault.model_copy(update={"denied": False})
    tried = _reported(1, 7, state="rejected", sha256=NEW, fault=passing)
    assert not plan_step(target(), assignments.view_device(row, info(), tried, BOARDS)).force


# --- with a fleet -------------------------------------------------------------------------------------------


@dataclass
class World:
    """A fleet with a broker, releases of ``lamp`` and one device that has joined."""

    rig: FleetRig
    repository: ReleaseRepository
    identity: Identity
    directory: Path

    @property
    def keys(self) -> Path:
        return self.rig.fleet.root / "keys"

    def cli(self, *arguments: str) -> Result:
        clean: dict[str, str | None] = {name: None for name in os.environ if name.startswith("EDGESLM_")}
        where = ["--fleet-dir", str(self.rig.fleet.root)]
        return CliRunner(env=clean).invoke(fleet, [*arguments, *where])

    def ok(self, *arguments: str) -> Any:
        result = self.cli(*arguments, "--json")
        assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
        return json.loads(result.stdout)

    def release(self, version: str, **draft: Any) -> str:
        """Release a tiny package; its sha256."""
        made = Rig.__new__(Rig)
        made.directory, made.repository = self.directory, self.repository
        made.release("lamp", version, **draft)
        with prepared(self.repository, self.directory / f"lamp-{version}.slm") as ready:
            return release_prepared(self.repository, ready).sha256

    def key_sha256(self) -> str:
        """As the board itself would say it, from its private key."""
        file = self.identity.broker_config().key_file
        assert file is not None
        public = load_pem_private_key(file.read_bytes(), None).public_key()
        return hashlib.sha256(
            public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ).hexdigest()

    def topic(self, channel: Any) -> str:
        return topics.device_topic("green", "kitchen", channel)

    def device(self, *filters: str) -> Visitor:
        return Visitor(self.identity.broker_config(), "kitchen", [(name, 1) for name in filters])

    def say(self, channel: Any, message: Any) -> None:
        with self.device() as device:
            device.publish(self.topic(channel), codec.encode(message), retain=True)

    def desired(self) -> bytes:
        """What the broker keeps for the device, as the device gets it."""
        with self.device(self.topic("desired")) as device:
            assert wait_for(lambda: bool(device.events.messages))
            return device.events.messages[-1].payload

    def check(self, body: bytes, url: str, *, running: str = "1.0.0", last_seq: int = 0) -> Any:
        """What the device's own trust check says to an assignment."""
        state = self.directory / "state"
        enrol(TrustStorage(state), self.repository.root_bytes())
        request = CheckRequest(
            state_dir=str(state),
            fleet="green",
            device="kitchen",
            device_key_sha256=self.key_sha256(),
            assignment=body.decode(),
            last_seq=last_seq,
            held={"lamp": HeldRelease(version=running, security_floor="0.0.0")},
        )
        return check(request, HttpFetch(url))


def info(agent: str = "0.1.0", **model: str) -> Info:
    models = [{"task": "generate", "context_tokens": 64, "graph": "g.tflite", **model}] if model else []
    return Info.model_validate(
        {
            "device": "kitchen", "agent": agent, "python": "3.11.2", "runtime": "ai-edge-litert 2.3.0",
            "board": "pi-4b", "tasks": ["generate"], "models": models, "meter": "estimated",
            "max_queue": 8, "max_body_bytes": 65536, "started_at": "2026-11-24T20:00:00",
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def made() -> Iterator[World]:
    with fast_directory() as directory, fleet_rig() as rig:
        repository = set_up(
            rig.fleet.releases, rig.fleet.root / "keys", "green", lambda path: b"four words of mine"
        )
        with rig.service():
            world = World(rig, repository, rig.join("kitchen"), directory)
        for version in ("1.0.0", "1.1.0", "2.0.0"):
            world.release(
                version, requires={"ram_mb": 1, "agent": "9.0.0" if version == "2.0.0" else "0.1.0"}
            )
            offline = load_signer(world.keys / "targets.pem", lambda path: b"four words of mine")
            repository.sign_pending([offline])
            repository.publish(online_signers(world.keys))
        yield world


@pytest.fixture
def world(made: World) -> World:
    """The device says that it runs the first release."""
    first = next(one.info for one in made.repository.releases() if one.info.version == "1.0.0")
    made.say("info", info(name="lamp", version="1.0.0", sha256=first.sha256))
    return made


@NEEDS_MOSQUITTO
def test_an_assignment_reaches_the_device_which_follows_it_and_gets_every_byte(world: World) -> None:
    told = world.ok("assign", "kitchen", "lamp@1.1.0", "--yes")
    assert (told["releases"][0]["runs"], told["moves_bytes"] > 0) == ("1.0.0", True)
    with world.rig.store.read() as session:
        assert registry.list_audit(session, subject="kitchen")[0].detail["seq"] == told["seq"]
    directory, keys = world.rig.fleet, world.keys
    served = Distribution(
        world.rig.store, world.repository, "green", directory.operator_config(), "test-releases",
        keys=keys, host="127.0.0.1",
    )  # fmt: skip
    with served as distribution:
        assert distribution.wait_connected(10)
        result = world.check(world.desired(), distribution.url)
        assert (result.refresh_refused, result.assignment_refused) == (None, None)
        assert result.assignment.seq == told["seq"]
        found = result.releases[0].target
        assert (found.info.version, result.releases[0].refused) == ("1.1.0", None)
        package = BlobRef(
            sha256=found.info.sha256, size_bytes=found.info.size_bytes, chunks_sha256=found.info.chunks.sha256
        )
        policy = DeliveryPolicy()
        by_http = Fetcher(world.directory / "http").fetch(package, [HttpSource(distribution.url)], policy)
        check_bytes(found, by_http)
        blocks = f"edgeslm/v1/green/kitchen/blocks/{package.sha256}"
        maps = f"edgeslm/v1/green/kitchen/blocks/{package.chunks_sha256}"
        with world.device(blocks, maps) as device:

            def ask(sha256: str, payload: bytes) -> None:
                device.publish(topics.id_topic("green", "kitchen", "fetch", sha256), payload)

            source = MqttSource(ask)
            device.events.on_message = lambda message: source.offer(  # type: ignore[method-assign]
                message.topic.rsplit("/", 1)[1], message.payload
            )
            by_mqtt = Fetcher(world.directory / "mqtt").fetch(package, [source], policy)
        assert by_mqtt.read_bytes() == by_http.read_bytes()


@NEEDS_MOSQUITTO
def test_a_dry_run_sends_nothing_and_tells_the_same_bytes(world: World) -> None:
    first = world.ok("assign", "kitchen", "lamp@1.1.0", "--yes")
    dry = world.ok("assign", "kitchen", "lamp@1.1.0", "--dry-run")
    assert (dry["moves_bytes"], dry["seq"]) == (first["moves_bytes"], None)
    assert json.loads(world.desired())["signed"]["seq"] == first["seq"]


@NEEDS_MOSQUITTO
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["kitchen", "lamp@2.0.0"], 1),  # its agent is too old
        (["kitchen", "lamp@3.0.0"], 2),
        (["kitchen", "lamp"], 2),
        (["kitchen", "lamp@1.0.0", "lamp@1.1.0"], 2),
        (["kitchen", "lamp@1.1.0", "--expires", "32d"], 2),
        (["kitten", "lamp@1.1.0"], 2),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(
    world: World, arguments: list[str], code: int
) -> None:
    before = world.ok("assign", "kitchen", "lamp@1.1.0", "--yes")
    result = world.cli("assign", *arguments, "--yes")
    assert result.exit_code == code, result.stderr
    assert result.stderr.splitlines()[-1].startswith("edgeslm: ")
    assert json.loads(world.desired())["signed"]["seq"] == before["seq"]


@NEEDS_MOSQUITTO
def test_numbers_rise_and_a_downgrade_has_to_be_forced(world: World) -> None:
    first = world.ok("assign", "kitchen", "lamp@1.1.0", "--yes")
    newer = next(one.info for one in world.repository.releases() if one.info.version == "1.1.0")
    world.say("info", info(name="lamp", version="1.1.0", sha256=newer.sha256))
    assert world.cli("assign", "kitchen", "lamp@1.0.0", "--yes").exit_code != 0
    second = world.ok("assign", "kitchen", "lamp@1.0.0", "--yes", "--downgrade", "--expires", "1d")
    assert second["seq"] > first["seq"]
    signed = json.loads(world.desired())["signed"]
    assert signed["releases"]["lamp"]["allow_downgrade"] is True
    with world.rig.store.read() as session:
        assert registry.list_audit(session, subject="kitchen")[0].detail["downgrade"] is True


@NEEDS_MOSQUITTO
def test_an_assignment_that_the_device_would_refuse_is_neither_kept_nor_sent(
    world: World, tmp_path: Path
) -> None:
    before = world.ok("assign", "kitchen", "lamp@1.1.0", "--yes")
    create_key(tmp_path / "assignments.pem", None)
    stranger = world.cli("assign", "kitchen", "lamp@1.1.0", "--yes", "--keys", str(tmp_path))
    assert stranger.exit_code == AssignmentSignatureError.exit_code
    with world.rig.store.read() as session:
        kept = assignments.last_assignment(session, registry.need_device(session, "kitchen"))
    assert kept is not None
    assert kept.seq == before["seq"] == json.loads(world.desired())["signed"]["seq"]


def _reported(seq: int, assignment: int, **change: Any) -> Reported:
    fields = {"number": seq, "version": "1.1.0", "assignment": assignment, "settled": True, **change}
    model = ReportedModel(name="lamp", version="1.0.0", change=ReportedChange.model_validate(fields))
    return Reported(device="kitchen", epoch="e", seq=seq, assignment=assignment, models=(model,))


@NEEDS_MOSQUITTO
def test_what_a_device_reports_is_shown_and_the_end_of_a_change_is_an_event(world: World) -> None:
    seq = world.ok("assign", "kitchen", "lamp@1.1.0", "--yes")["seq"]
    assert "not taken up yet" in world.cli("assignments").stdout
    fault = ReportedFault(cause="gate_failed", detail="decode is 12 % slower", denied=True)
    world.say("reported", _reported(1, seq, state="rolled_back", fault=fault))
    shown = world.cli("assignments", "kitchen").stdout
    assert "rolled_back: gate_failed, decode is 12 % slower" in shown
    world.ok("assignments")
    with world.rig.store.read() as session:
        events = registry.show_device(session, "kitchen").events
    assert [one.severity for one in events if one.kind == "update"] == ["warning"], "told once"


@NEEDS_MOSQUITTO
def test_a_running_service_collects_reports_and_drops_what_is_none(world: World) -> None:
    def last() -> Reported | None:
        with world.rig.store.read() as session:
            return assignments.last_reported(session, registry.need_device(session, "kitchen"))

    served = Distribution(
        world.rig.store, world.repository, "green", world.rig.fleet.operator_config(), "test-reports",
        host="127.0.0.1",
    )  # fmt: skip
    with served, world.device() as device:
        device.publish(
            world.topic("reported"), codec.encode(_reported(50, 7, state="committed")), retain=True
        )
        assert wait_for(lambda: (found := last()) is not None and found.seq == 50)
        for payload in (b"rubbish", b"{}", codec.encode(_reported(49, 8, state="committed"))):
            device.publish(world.topic("reported"), payload)
        device.publish(world.topic("reported"), codec.encode(_reported(51, 9, state="committed")))
        assert wait_for(lambda: (found := last()) is not None and found.seq == 51)
        with pytest.raises(MetadataMissingError):
            HttpFetch(served.url)("repository.json", 10_000)


def test_other_names_stay_as_they_were_assigned(tmp_path: Path) -> None:
    """Held against the store alone: the last assignment is continued, not replaced."""
    now = FleetRig.now()
    config = FleetConfig(name="green", broker=FleetBroker(host="broker.local"))
    directory = create_fleet(tmp_path / "green", config, passphrase=None, now=now)
    set_up(directory.releases, tmp_path / "keys", "green", lambda path: b"four words of mine")
    authority = RepositoryFiles.open(directory.releases).published().targets["targets"].signed
    lamp = target()
    fan = lamp.model_copy(update={"info": lamp.info.model_copy(update={"name": "fan", "sha256": "f" * 64})})
    store = directory.open_store()
    found = None
    with store.write() as session:
        session.add(DeviceRow(name="kitchen", standing="active", key_sha256="0" * 64, created_at=now))
    for released, known in ((lamp, [lamp, fan]), (fan, [lamp, fan]), (fan, [fan])):
        with store.write() as session:
            found, _ = assignments.assign(
                session, "green", "kitchen", [plan_step(released, DeviceView("kitchen"))],
                [assignment_signer(tmp_path / "keys")], authority, known=known,
                followed=2**40, life=timedelta(days=1), actor="test", now=now,
            )  # fmt: skip
        names = {"lamp"} if released is lamp else {one.info.name for one in known}
        assert set(found.releases) == names, "and what is withdrawn is left out"
    store.close()
    assert found is not None
    assert found.seq == 2**40 + 3
