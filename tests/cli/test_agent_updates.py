"""A device of a fleet follows signed assignments: real broker with access list, repository, trials and models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner, Signer

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_device_rig import FAST, NAME, Release, make_release
from benchmarks.update_fleet_rig import AGENT, FleetRig, Visitor, fleet_rig
from edgeslm import topics
from edgeslm.agent.rules.trace import TRACE_NAME, TraceReader
from edgeslm.agent.service import Agent
from edgeslm.cli.wiring import as_member, build_agent, find_identity, parse_agent_config
from edgeslm.delivery.files import FileBlob
from edgeslm.delivery.http_server import PackageServer
from edgeslm.delivery.mqtt_source import BlockService
from edgeslm.fleet.certificates import Issuer
from edgeslm.fleet.distribution import Distribution
from edgeslm.fleet.enrolment import take_request
from edgeslm.fleet.registry import need_device, rename_device
from edgeslm.fleet.release_metadata import RoleKeys
from edgeslm.fleet.releases import ReleaseRepository
from edgeslm.fleet.signing import sign_assignment
from edgeslm.link.broker import find_mosquitto
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.schema.assignment import AssignedRelease, Assignment
from edgeslm.schema.config import BROKER_RELEASES, AgentConfig
from edgeslm.schema.enrol import EnrolRequest, Machine
from edgeslm.schema.update import Reported, ReportedModel, UpdatePolicy
from edgeslm.trust.claim import proof_key, seal
from edgeslm.trust.identity import Identity
from edgeslm.trust.mqtt_fetch import MqttFetch

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")

FLEET = "green"
RULES = f"""
inputs:
  said: {{topic: {topics.ROOT}/{FLEET}/porch/prompt, path: prompt, type: text}}
rules:
  - {{name: overheard, when: said == "turn on the kitchen light", fire: each, then: [{{event: "it was said"}}]}}
"""
QUICK = FAST.model_copy(update={"probation_s": 1.0})


class World:
    """A fleet with two releases, and the devices that join it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.old = make_release(directory / "depot", "1.0.1", golden=4)
        self.new = make_release(directory / "depot", "1.1.0", golden=4)
        self.ruled = make_release(directory / "depot", "1.2.0", golden=4, rules=RULES)
        self.keys: dict[str, Signer] = {
            name: CryptoSigner.generate_ed25519()
            for name in ("root", "targets", "snapshot", "timestamp", "assignments", "stranger")
        }
        granted = {name: RoleKeys((key.public_key,)) for name, key in self.keys.items()}
        self.repository = ReleaseRepository.create(
            directory / "repository",
            **{name: granted[name] for name in ("root", "targets", "snapshot", "timestamp")},
        )
        self.repository.delegate_assignments(FLEET, granted["assignments"])
        for release in (self.old, self.new, self.ruled):
            self.repository.add(release.path)
            chunks = release.path.with_name(f"{release.path.name}.chunks")
            self.repository.attach(NAME, release.target.info.version, chunks=chunks)
        self.repository.sign_pending([self.keys["root"]])
        self.repository.sign_pending([self.keys["targets"]])
        self.repository.publish([self.keys["snapshot"], self.keys["timestamp"]])

    def config(self, rig: FleetRig, name: str, **updates: object) -> AgentConfig:
        return AgentConfig.model_validate(
            {
                "device": "unnamed",
                "state_dir": rig.directory / "devices" / name,
                "models": (str(self.old.path),),
                "threads": 1,
                "updates": {"releases": str(self.repository.public), "policy": QUICK, **updates},
            }
        )


class Device:
    """One device with the operator beside it."""

    def __init__(
        self, world: World, rig: FleetRig, name: str, identity: Identity | None = None, **updates: object
    ) -> None:
        self.world, self.name = world, name
        self.identity = identity or rig.join(name)
        self.config = world.config(rig, name, **updates)
        self.operator: Visitor = rig.operator([(f"{topics.ROOT}/{FLEET}/{name}/#", 1)])
        self.agent: Agent | None = None

    def start(self) -> None:
        self.agent = build_agent(self.config, Path())
        self.agent.start()
        assert self.agent.wait_connected(10)

    def stop(self) -> None:
        if self.agent is not None:
            self.agent.stop()
        self.agent = None

    def assign(self, release: Release, seq: int, signer: str = "assignments", **changes: object) -> None:
        now = datetime.now(UTC)
        info = release.target.info
        assignment = Assignment.model_validate(
            {
                "fleet": FLEET,
                "device": self.name,
                "device_key_sha256": self.identity.directory.name,
                "seq": seq,
                "issued_at": now,
                "expires_at": now + timedelta(days=1),
                "releases": {NAME: AssignedRelease(version=info.version, sha256=info.sha256)},
                **changes,
            }
        )
        body = sign_assignment(assignment, [self.world.keys[signer]])
        self.operator.publish(topics.device_topic(FLEET, self.name, "desired"), body, retain=True)

    def ask(self, name: str) -> None:
        body = json.dumps({"id": name, "prompt": "turn on the kitchen light"}).encode()
        self.operator.publish(topics.device_topic(FLEET, self.name, "prompt"), body)

    def heard(self, channel: str) -> list[Message]:
        topic = f"{topics.ROOT}/{FLEET}/{self.name}/{channel}"
        return [item for item in self.operator.events.messages if item.topic == topic]

    def reported(self) -> ReportedModel | None:
        bodies = self.heard("reported")
        if not bodies:
            return None
        report = Reported.model_validate_json(bodies[-1].payload)
        return next(item for item in report.models if item.name == NAME)

    def serves(self) -> str:
        return json.loads(self.heard("info")[-1].payload)["models"][0]["version"]

    def wait(self, is_met: Callable[[], object], timeout_s: float = 40.0) -> None:
        until_s = time.monotonic() + timeout_s
        while not is_met():
            assert time.monotonic() < until_s, self.reported()
            time.sleep(0.02)

    def is_settled_at(self, version: str) -> bool:
        report = self.reported()
        return (
            report is not None
            and report.version == version
            and report.change is not None
            and report.change.settled
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def rig(world: World) -> Iterator[FleetRig]:
    with fleet_rig(name=FLEET, trust_root=world.repository.root_bytes()) as made, made.service():
        yield made


@contextmanager
def running(
    world: World, rig: FleetRig, name: str, identity: Identity | None = None, **updates: object
) -> Iterator[Device]:
    device = Device(world, rig, name, identity, **updates)
    try:
        device.start()
        yield device
    finally:
        device.stop()
        device.operator.close()


def test_an_assignment_is_followed_over_http_while_prompts_are_answered_and_lasts(
    world: World, rig: FleetRig
) -> None:
    def find(path: str) -> FileBlob | None:
        file = world.repository.public / path.lstrip("/")
        return FileBlob(file) if file.is_file() else None

    with PackageServer(find) as server, running(world, rig, "kitchen", releases=server.url) as device:
        device.wait(device.reported)
        assert device.serves() == "1.0.1"
        device.assign(world.new, 1)
        asked = 0
        until_s = time.monotonic() + 60
        while not device.is_settled_at("1.1.0"):
            assert time.monotonic() < until_s, device.reported()
            device.ask(f"p{asked}")
            asked += 1
            time.sleep(0.1)
        device.wait(lambda: all(device.heard(f"result/p{number}") for number in range(asked)))
        results = [json.loads(item.payload) for n in range(asked) for item in device.heard(f"result/p{n}")]
        assert len(results) == asked, "each is answered once"
        assert not any("error" in result for result in results)
        assert {result["receipt"]["model"] for result in results} == {f"{NAME}@1.0.1", f"{NAME}@1.1.0"}
        report = device.reported()
        assert report is not None
        assert (report.version, report.sha256, report.previous) == ("1.1.0", *sha256s(world.new, world.old))
        assert report.change is not None
        assert (report.change.state, report.change.assignment) == ("committed", 1)
        assert (report.change.swap_s or 0) < 1
        assert device.serves() == "1.1.0"
        device.stop()
        device.operator.events.messages.clear()
        device.start()
        device.wait(lambda: device.heard("info"))
        assert device.serves() == "1.1.0"


def test_rules_of_a_release_take_effect_on_a_device_that_had_none_and_last(
    world: World, rig: FleetRig
) -> None:
    with running(world, rig, "porch") as device:
        device.wait(device.reported)
        device.ask("before")
        device.wait(lambda: device.heard("result/before"))
        device.assign(world.ruled, 1)
        device.wait(lambda: device.is_settled_at("1.2.0"))
        assert not device.heard("e/rule")
        device.wait(lambda: device.ask("after") or device.heard("e/rule"))
        told = json.loads(device.heard("e/rule")[0].payload)
        assert (told["detail"], told["figures"]["rule"]) == ("it was said", "overheard")
        status = TraceReader(device.config.state_dir / TRACE_NAME).ask_status(20)
        assert status is not None
        assert [(rule.name, rule.origin) for rule in status.rules] == [("overheard", f"{NAME}@1.2.0")]
        device.stop()
        device.operator.events.messages.clear()
        device.start()
        device.wait(lambda: device.ask("again") or device.heard("e/rule"))


class BlockEnd:
    """The fleet's end of a pull of blocks over the broker."""

    def __init__(self, world: World, rig: FleetRig) -> None:
        self._files = {file.name.split(".")[0]: file for file in world.repository.public.rglob("*.slm*")}
        self._stopped = threading.Event()
        self.sent_bytes = 0
        self._service = BlockService(self._find, self._answer)
        self._link = MqttLink(rig.fleet.operator_config(), "block-end")
        self._link.start(self, [(topics.fetch_filter(FLEET), 0)])
        self._thread = threading.Thread(target=self._service.run, args=(self._stopped,), daemon=True)
        self._thread.start()

    def _find(self, sha256: str) -> FileBlob | None:
        return FileBlob(self._files[sha256]) if sha256 in self._files else None

    def _answer(self, device: str, sha256: str, payload: bytes) -> None:
        self.sent_bytes += len(payload)
        self._link.publish(Message(topics.id_topic(FLEET, device, "blocks", sha256), payload, qos=0))

    def on_message(self, message: Message) -> None:
        asked = topics.parse(message.topic)
        assert isinstance(asked, topics.DeviceTopic)
        assert asked.request_id is not None
        self._service.offer(asked.device, asked.request_id, message.payload)

    def on_connected(self, *, session_present: bool) -> None: ...

    def on_disconnected(self, reason: str) -> None: ...

    def on_published(self, token: int) -> None: ...

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._link.stop()


def test_blocks_come_over_the_broker_where_nothing_else_has_them(
    world: World, rig: FleetRig, tmp_path: Path
) -> None:
    mirror = tmp_path / "mirror"
    shutil.copytree(world.repository.public / "metadata", mirror / "metadata")
    end = BlockEnd(world, rig)
    try:
        with running(world, rig, "yard", releases=str(mirror)) as device:
            device.assign(world.new, 1)
            device.wait(lambda: device.serves() == "1.1.0")
    finally:
        end.stop()
    assert end.sent_bytes < 1.1 * world.new.path.stat().st_size


@contextmanager
def distribution(world: World, rig: FleetRig) -> Iterator[Distribution]:
    """What a fleet's own service gives out, at the broker of the rig."""
    config = rig.fleet.operator_config()
    with Distribution(rig.store, world.repository, FLEET, config, "releases", host="127.0.0.1") as made:
        assert made.wait_connected(10)
        yield made


def test_a_device_that_reaches_nothing_but_the_broker_gets_all_of_an_update_over_it(
    world: World, rig: FleetRig
) -> None:
    with distribution(world, rig), running(world, rig, "far-barn", releases=None) as device:
        assert not list((device.config.state_dir / "trust").glob("*.targets.json"))
        device.assign(world.new, 1)
        device.wait(lambda: device.is_settled_at("1.1.0"))
        assert device.serves() == "1.1.0"
        assert list((device.config.state_dir / "trust").glob("*.targets.json"))


def _room_bytes(file: Path) -> int:
    """What `file` takes on the disk; 0 where it was renamed since it was listed."""
    try:
        return file.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def test_a_broker_that_goes_in_the_middle_of_an_update_only_delays_it(world: World, rig: FleetRig) -> None:
    slowly = {"max_bytes_per_s": 1_000_000}
    with distribution(world, rig), running(world, rig, "quay", releases=None, delivery=slowly) as device:
        device.assign(world.new, 1)
        fetched = device.config.state_dir / "fetched"
        device.wait(lambda: any(_room_bytes(file) > 500_000 for file in fetched.glob("*")))
        rig.process.stop()
        agent = device.agent
        assert agent is not None
        device.wait(lambda: not agent.wait_connected(0))
        report = device.reported()
        assert report is not None
        assert report.version == "1.0.1"
        rig.process.start()
        device.wait(lambda: device.is_settled_at("1.1.0"), timeout_s=90.0)
        assert device.serves() == "1.1.0"


def test_a_device_waits_for_a_fleet_that_does_not_answer_and_goes_on_when_it_does(
    world: World, rig: FleetRig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "edgeslm.agent.following")
    monkeypatch.setitem(MqttFetch.__init__.__kwdefaults__, "silence_s", 2.0)
    with running(world, rig, "far-cellar", releases=BROKER_RELEASES) as device:
        device.assign(world.new, 1)
        device.wait(lambda: any("an assignment is refused" in text for text in caplog.messages))
        assert device.serves() == "1.0.1"
        with distribution(world, rig):
            device.stop()
            device.start()
            device.wait(lambda: device.serves() == "1.1.0")


def sha256s(*releases: Release) -> tuple[str, ...]:
    return tuple(release.target.info.sha256 for release in releases)


def test_what_is_wrongly_signed_for_another_or_older_changes_nothing(
    world: World, rig: FleetRig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "edgeslm.agent.following")
    with running(world, rig, "belfry") as device:

        def refused() -> int:
            return sum("an assignment is refused" in text for text in caplog.messages)

        device.assign(world.new, 5, "stranger")
        device.wait(lambda: refused() == 1)
        device.assign(world.new, 5, device_key_sha256="ab" * 32)
        device.wait(lambda: refused() == 2)
        device.operator.publish(topics.device_topic(FLEET, "belfry", "desired"), b"{}" * 40_000, retain=True)
        device.operator.publish(topics.device_topic(FLEET, "belfry", "desired"), b"\xff\xfe", retain=True)
        device.wait(lambda: "an assignment that is no text is ignored" in caplog.messages)
        assert "an assignment of 80000 bytes is ignored" in caplog.messages
        report = device.reported()
        assert report is not None
        assert (report.version, report.change) == ("1.0.1", None)
        # The right one is followed after all that, and an older one after it is not.
        device.assign(world.old, 5)
        device.wait(lambda: "assignment 5 is followed" in caplog.messages)
        device.assign(world.new, 4)
        device.wait(lambda: refused() == 3)
        assert device.serves() == "1.0.1"


def test_what_the_repository_cannot_vouch_for_is_tried_again_once_it_can(
    world: World, rig: FleetRig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "edgeslm.agent.following")
    public = world.repository.public
    hidden = public.with_name("away")
    public.rename(hidden)
    try:
        with running(world, rig, "attic") as device:
            device.assign(world.new, 1)
            device.wait(lambda: any("an assignment is refused" in text for text in caplog.messages))
            report = device.reported()
            assert report is not None
            assert report.change is None
            hidden.rename(public)
            device.stop()
            device.start()
            device.wait(lambda: device.serves() == "1.1.0")
    finally:
        if hidden.exists():
            hidden.rename(public)


def test_a_release_that_is_no_good_leaves_the_old_one_in_service_and_says_why(
    world: World, rig: FleetRig
) -> None:
    strict = UpdatePolicy.model_validate(
        {**QUICK.model_dump(), "spare_mb": 65_536, "retry_s": 3600.0, "max_retry_s": 3600.0}
    )
    with running(world, rig, "cellar", policy=strict) as device:
        device.assign(world.new, 1)

        def fault() -> str:
            report = device.reported()
            change = None if report is None else report.change
            return "" if change is None or change.fault is None else change.fault.cause

        device.wait(fault)
        assert fault() == "no_memory"
        assert device.serves() == "1.0.1"


def test_a_device_goes_by_the_name_and_to_the_broker_of_its_fleet(world: World, rig: FleetRig) -> None:
    identity = rig.join("shed")
    state_dir = rig.directory / "devices" / "shed"
    config = parse_agent_config({"state_dir": str(state_dir)}, {}, None)
    assert config.device == "shed"
    member = as_member(world.config(rig, "shed"), find_identity(state_dir))
    assert (member.fleet, member.device) == (FLEET, "shed")
    assert (member.broker.port, member.broker.cert_file) == (
        identity.port,
        identity.directory / "certificate.pem",
    )
    outsider = AgentConfig(device="loner", state_dir=state_dir.with_name("nobody"))
    assert as_member(outsider, find_identity(outsider.state_dir)) == outsider


def joined_days_ago(rig: FleetRig, name: str, days: float) -> Identity:
    """A device with a certificate of that age."""
    applicant = rig.identities(name).apply(rig.claim(name).claim)
    request = EnrolRequest(csr=applicant.request_pem, machine=Machine(boot_id=name, boots=1), agent=AGENT)
    payload = seal(proof_key(applicant.claim.secret), "request", request)
    with rig.store.write() as session:
        then = rig.now() - timedelta(days=days)
        take_request(session, rig.issuer, applicant.claim.claim, payload, then)
        (certificate,) = need_device(session, name).certificates
    broker = rig.config.broker
    return rig.identities(name).adopt(
        applicant, certificate.pem, host=broker.host, port=broker.port, trust_root=None
    )


def test_a_device_renews_its_certificate_by_itself_and_goes_on(world: World, rig: FleetRig) -> None:
    with running(world, rig, "barn", joined_days_ago(rig, "barn", 21), releases=None) as device:

        def current() -> Identity:
            found = rig.identities("barn").current()
            assert found is not None
            return found

        device.wait(lambda: current().facts.serial != device.identity.facts.serial)
        device.wait(lambda: rig.identities("barn").is_settled(current()))
        device.ask("after")
        device.wait(lambda: device.heard("result/after"))


def test_a_signed_budget_is_kept_to_and_told(world: World, rig: FleetRig) -> None:
    budget = json.dumps({"windows": [{"name": "fleet", "limit_w": 500.0, "over_s": 60}]})
    with running(world, rig, "greenhouse") as device:
        device.assign(world.old, 1, budget=budget)
        kept = device.config.state_dir / "budget.json"
        device.wait(kept.is_file)
        assert json.loads(kept.read_text()) == json.loads(budget)
        assert device.agent is not None
        power = device.agent._power
        assert power is not None
        device.wait(
            lambda: power.steward is not None and [use.name for use in power.steward.usage()] == ["fleet"]
        )
        device.assign(world.old, 2)
        device.wait(lambda: not kept.exists())
        assert power.steward is None


@contextmanager
def agent_process(config: AgentConfig, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``edgeslm agent run`` with these settings; it writes into ``log`` beside them."""
    file = directory / "agent.yaml"
    settings = config.model_dump(mode="json", exclude_none=True, exclude={"device"})
    file.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "edgeslm", "agent", "run", "--config", str(file)]
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def test_a_device_takes_a_late_root_and_a_new_name_by_itself_without_being_started_again(
    world: World, tmp_path: Path
) -> None:
    roots: list[bytes | None] = [None]
    with fleet_rig(name=FLEET) as rig:
        rig.issuer = Issuer(rig.config, rig.authority, lambda: roots[0])
        with rig.service():
            identity = rig.join("early")
        assert not identity.trust_root.exists()
        operator = rig.operator([(f"{topics.ROOT}/{FLEET}/#", 1)])
        early = Device(world, rig, "early", identity, releases=None)

        def heard(device: str, channel: str) -> list[bytes]:
            topic = f"{topics.ROOT}/{FLEET}/{device}/{channel}"
            return [item.payload for item in operator.events.messages if item.topic == topic]

        try:
            with agent_process(early.config, tmp_path) as process:
                early.wait(lambda: heard("early", "info"))
                assert not heard("early", "reported"), "it follows nothing yet"
                roots[0] = world.repository.root_bytes()  # `release init`, and the service is started anew
                with rig.service(), distribution(world, rig):
                    early.wait(lambda: len(heard("early", "info")) >= 2)
                    early.assign(world.new, 1)
                    early.wait(lambda: early.heard("info") and early.serves() == "1.1.0")
                    with rig.store.write() as session:
                        rename_device(session, FLEET, "early", "late", actor="anna", now=rig.now())
                    early.wait(
                        lambda: heard("late", "info") and b"online" in heard("late", "availability")[-1]
                    )
                    assert json.loads(heard("late", "info")[-1])["models"][0]["version"] == "1.1.0"
                assert process.poll() is None, "the same process all the time"
        finally:
            operator.close()
            early.operator.close()
    said = (tmp_path / "log").read_text()
    assert said.count("beginning anew") == 2
    assert "Traceback" not in said
