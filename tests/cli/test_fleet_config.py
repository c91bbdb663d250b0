"""Settings from afar, end to end: a real broker with access list, the command line, and a real agent process."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from securesystemslib.signer import CryptoSigner, Signer

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import FleetRig, Visitor, fleet_rig, free_ports
from edgeslm import topics
from edgeslm.agent.remote_config import RemoteConfigFile
from edgeslm.cli.agent_process import AgentProcess
from edgeslm.cli.fleet import fleet
from edgeslm.codec import encode
from edgeslm.fleet.certificates import Issuer
from edgeslm.fleet.operations import Outcome, Wishes, request
from edgeslm.fleet.release_setup import assignment_signer, set_up
from edgeslm.fleet.signing import sign_remote_config
from edgeslm.link.broker import find_mosquitto
from edgeslm.schema.operation import OperationCommand, OperationEvent
from edgeslm.schema.remote_config import RemoteConfig, settings_text
from edgeslm.schema.remote_config_state import RemoteConfigState
from edgeslm.schema.update import Reported
from edgeslm.trust.identity import Identity

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")

FLEET, DEVICE, OTHER = "green", "porch", "yard"


class Site:
    """A fleet with one device, whose agent runs as a process of its own, and one that never comes."""

    def __init__(self, rig: FleetRig) -> None:
        self.rig = rig
        self.root = rig.fleet.root
        self.repository = set_up(
            rig.fleet.releases, self.root / "keys", FLEET, lambda path: b"four words of mine"
        )
        rig.issuer = Issuer(rig.config, rig.authority, self.repository.root_bytes)
        with rig.service():
            self.identity: Identity = rig.join(DEVICE)
            rig.join(OTHER)
        self.state_dir = rig.directory / "devices" / DEVICE
        own = rig.directory / "agent.yaml"
        own.write_text(yaml.safe_dump({"threads": 1, "updates": {"releases": str(self.repository.public)}}))
        self.agent = AgentProcess(
            rig.config.broker.port,
            self.state_dir,
            fleet=FLEET,
            device=DEVICE,
            flags=["--config", str(own)],
        )
        self.operator: Visitor = rig.operator([(f"{topics.ROOT}/{FLEET}/{DEVICE}/#", 1)])
        self.signer: Signer = assignment_signer(self.root / "keys")

    def close(self) -> None:
        self.agent.terminate()
        self.operator.close()

    # --- the operator ---

    def run(self, *arguments: str) -> Result:
        clean: dict[str, str | None] = {name: None for name in os.environ if name.startswith("EDGESLM_")}
        return CliRunner(env=clean).invoke(fleet, ["config", *arguments, "--fleet-dir", str(self.root)])

    def give(self, settings: dict[str, Any], *more: str) -> Result:
        file = self.rig.directory / "new.yaml"
        file.write_text(yaml.safe_dump(settings))
        return self.run("set", DEVICE, "--file", str(file), "--yes", "--json", *more)

    def document(self, version: int, signer: Signer | None = None, **changes: Any) -> str:
        now = datetime.now(UTC)
        fields = {
            "fleet": FLEET,
            "device": DEVICE,
            "device_key_sha256": self.identity.directory.name,
            "version": version,
            "issued_at": now,
            "expires_at": now + timedelta(days=1),
            "settings": settings_text({"threads": 2}),
            **changes,
        }
        return sign_remote_config(RemoteConfig(**fields), [signer or self.signer]).decode()

    def ask(self, document: str) -> Outcome:
        config = self.rig.fleet.operator_config()
        args = {DEVICE: {"document": document}}
        (outcome,) = request(config, FLEET, "set-config", args, Wishes(timeout_s=60))
        return outcome

    # --- the device ---

    def latest(self, channel: str) -> bytes:
        topic = f"{topics.ROOT}/{FLEET}/{DEVICE}/{channel}"
        found = [item.payload for item in self.operator.events.messages if item.topic == topic]
        return found[-1] if found else b""

    def is_online(self) -> bool:
        return b"online" in self.latest("availability")

    def reported(self) -> int | None:
        payload = self.latest("reported")
        return Reported.model_validate_json(payload).config if payload else None

    def wait_off(self) -> None:
        until_s = time.monotonic() + 30
        while self.is_online():
            assert time.monotonic() < until_s
            time.sleep(0.05)

    def wait(self, is_met: Callable[[], object], timeout_s: float = 60.0) -> None:
        until_s = time.monotonic() + timeout_s
        while not is_met():
            self.agent.check()
            assert time.monotonic() < until_s, self.agent.log_tail(6000)
            time.sleep(0.05)

    @property
    def remembered(self) -> RemoteConfigState:
        return RemoteConfigFile(self.state_dir, self.identity.directory.name).read()

    @property
    def last_version(self) -> int:
        return self.remembered.last_version

    def starts(self) -> int:
        trial = self.remembered.trial
        return 0 if trial is None else trial.starts

    def newest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("show", DEVICE, "--json").stdout)["latest"]
        return found


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with fleet_rig(name=FLEET) as rig:
        made = Site(rig)
        try:
            made.agent.start()
            made.wait(made.is_online)
            yield made
        finally:
            made.close()


def sent(result: Result) -> dict[str, Any]:
    (one,) = json.loads(result.stdout)
    found: dict[str, Any] = one["sent"]
    return found


def test_a_good_change_is_in_force_and_a_fatal_one_takes_itself_back(site: Site) -> None:
    pid = site.agent.pid
    result = site.give({"limits": {"max_queue": 33}, "metrics": {"interval_s": 7.5}}, "--confirm", "60")
    assert result.exit_code == 0, (result.output, site.agent.log_tail(6000))
    first = sent(result)
    assert first["state"] == "committed"
    site.wait(lambda: site.reported() == first["version"])
    site.wait(lambda: json.loads(site.latest("info"))["max_queue"] == 33)

    # Nothing listens there: the device is lost to its operator, and has to come back by itself.
    (dead,) = free_ports(1)
    result = site.give({"broker": {"port": dead}}, "--confirm", "10", "--timeout", "90")
    assert result.exit_code == 1, result.output
    second = sent(result)
    assert second["state"] == "rolled_back"
    assert "not reached" in second["detail"]
    site.wait(site.is_online)
    assert site.reported() == first["version"]
    assert json.loads(site.latest("info"))["max_queue"] == 33
    assert site.agent.pid == pid
    assert site.agent.is_running, "it is the same process all the time"

    # One that keeps the agent from starting.
    result = site.give({"metrics": {"prometheus_port": site.rig.config.broker.port}}, "--confirm", "30")
    assert sent(result)["state"] == "rolled_back", result.output
    site.wait(site.is_online)

    history = json.loads(site.run("history", DEVICE, "--json").stdout)
    assert [one["state"] for one in history] == ["rolled_back", "rolled_back", "committed"]
    shown = json.loads(site.run("show", DEVICE, "--json").stdout)
    assert shown["in_force"]["version"] == first["version"]
    assert shown["latest"]["version"] == history[0]["version"]


def test_what_is_not_for_this_device_now_is_refused_and_changes_nothing(site: Site) -> None:
    before = site.last_version
    stranger = CryptoSigner.generate_ed25519()
    past = datetime.now(UTC) - timedelta(days=2)
    fresh = before + 1000
    for document, reason in (
        (site.document(fresh, stranger), "not signed"),
        (site.document(fresh, device="yard"), "not signed|another device"),
        (site.document(fresh, device_key_sha256="ab" * 32), "another device key"),
        (site.document(fresh, issued_at=past, expires_at=past + timedelta(hours=1)), "expired"),
        (site.document(before), "not newer"),
        (site.document(fresh).replace('\\"threads\\":2', '\\"threads\\":3'), "not signed"),
        (site.document(fresh, settings=settings_text({"models": []})), "cannot be set from afar"),
        (site.document(fresh, settings=settings_text({"threads": 0})), "threads"),
        ("{}", "configuration"),
        ("\x00é", "ASCII"),
    ):
        outcome = site.ask(document)
        assert outcome.state == "refused", (document[:80], outcome)
        assert any(word in outcome.text for word in reason.split("|")), (reason, outcome.text)
    assert site.last_version == before
    assert site.is_online()


def test_one_that_ends_the_process_again_and_again_is_given_up_by_whoever_starts_it(site: Site) -> None:
    (dead,) = free_ports(1)
    site.give({"broker": {"port": dead}}, "--confirm", "900", "--detach")
    for start in (1, 2):
        site.wait(lambda start=start: site.starts() == start)
        site.agent.kill()
        site.wait_off()
        site.agent.start()
    site.wait(site.is_online)
    site.wait(lambda: site.newest()["state"] == "rolled_back")
    assert "ended 2 times" in site.newest()["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0])
def test_wherever_the_process_is_killed_the_change_is_made_once_it_can_be(site: Site, after_s: float) -> None:
    size = 60 + int(after_s * 10)
    sent_ = sent(site.give({"limits": {"max_queue": size}}, "--confirm", "120", "--detach"))
    time.sleep(after_s)
    site.agent.kill()
    site.wait_off()
    site.agent.start()
    site.wait(lambda: site.reported() == sent_["version"])
    site.wait(lambda: json.loads(site.latest("info"))["max_queue"] == size)
    site.wait(lambda: site.newest()["state"] == "committed")


def test_a_device_that_is_off_takes_it_up_when_it_comes_and_is_asked_for_it_later(site: Site) -> None:
    site.agent.terminate()
    site.wait_off()
    result = site.give({"limits": {"max_queue": 44}}, "--detach")
    assert result.exit_code == 0, result.output
    assert sent(result)["state"] == "sent"
    newer = site.give({"limits": {"max_queue": 45}}, "--detach")
    site.agent.start()
    site.wait(lambda: site.reported() == sent(newer)["version"])
    history = json.loads(site.run("history", DEVICE, "--json").stdout)
    assert [one["state"] for one in history[:2]] == ["committed", "cancelled"]
    assert "superseded" in history[1]["detail"]


@contextmanager
def refusing(site: Site, device: str) -> Iterator[None]:
    """Something answers for `device` that it refuses whatever it is asked for."""
    ended = threading.Event()
    visitor = site.rig.operator([(f"{topics.ROOT}/{FLEET}/{device}/cmd/+/+", 1)])

    def answer() -> None:
        while not ended.wait(0.05):
            while visitor.events.messages:
                message = visitor.events.messages.pop(0)
                if not message.payload:
                    continue
                command = OperationCommand.model_validate_json(message.payload)
                event = OperationEvent(
                    device=device, id=command.id, op=command.op, state="refused", at="", text="not now"
                )
                visitor.publish(topics.id_topic(FLEET, device, "e", topics.OPERATION_EVENT), encode(event))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        visitor.close()


def test_of_several_devices_some_may_refuse_and_the_others_are_changed(site: Site) -> None:
    file = site.rig.directory / "new.yaml"
    file.write_text("limits: {max_queue: 50}\n")
    with refusing(site, OTHER):
        result = site.run("set", DEVICE, OTHER, "--file", str(file), "--yes", "--json")
    assert result.exit_code == 3, result.output
    states = {one["device"]: one["sent"]["state"] for one in json.loads(result.stdout)}
    assert states == {DEVICE: "committed", OTHER: "refused"}


def test_a_broker_that_is_not_there_is_an_error_and_the_change_counts_as_failed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeslm.fleet.broker_line.CONNECT_TIMEOUT_S", 1.0)
    monkeypatch.setattr("edgeslm.fleet.assignments.CONNECT_TIMEOUT_S", 1.0)
    file = site.rig.directory / "new.yaml"
    file.write_text("limits: {max_queue: 51}\n")
    site.rig.process.stop()
    try:
        result = site.run("set", OTHER, "--file", str(file), "--yes")
        assert result.exit_code == 1, result.output
        assert "broker" in result.stderr
        shown = site.run("history", OTHER, "--json")
        assert json.loads(shown.stdout)[0]["state"] == "failed"
    finally:
        site.rig.process.start()
    site.wait(site.is_online)


def test_clearing_gives_everything_back_to_the_device_s_own_file(site: Site) -> None:
    result = site.run("clear", DEVICE, "--yes", "--json", "--confirm", "60")
    assert sent(result)["state"] == "committed", result.output
    site.wait(lambda: json.loads(site.latest("info"))["max_queue"] == 256)
    again = site.run("clear", DEVICE, "--yes")
    assert again.exit_code == 0
    assert "nothing changes" in again.stderr


def test_a_plan_is_shown_and_a_dry_run_sends_nothing(site: Site) -> None:
    file = site.rig.directory / "new.yaml"
    file.write_text("threads: 2\nupdates: {policy: {gate: {speed: 0.2}}}\n")
    before = site.run("history", DEVICE, "--json").stdout
    result = site.run("set", DEVICE, "--file", str(file), "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"{DEVICE}: threads: 2" in result.stderr
    assert f"{DEVICE}: updates.policy.gate.speed: 0.2" in result.stderr
    shown = site.run("diff", DEVICE, "--file", str(file)).stdout
    assert shown.splitlines() == ["threads: 2", "updates.policy.gate.speed: 0.2"]
    assert site.run("history", DEVICE, "--json").stdout == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: []", "edgeslm fleet assign"),
        ("threads: 0", "threads"),
        ("[1]", "a mapping of settings is expected"),
        ("", "edgeslm fleet config clear"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: [", "no YAML"),
        ("1: 2", "cannot be set from afar"),
        ("threads: 2026-01-01", "cannot be sent"),
    ],
)
def test_a_file_that_no_device_would_take_is_refused_before_anything_is_sent(
    site: Site, text: str, words: str
) -> None:
    file = site.rig.directory / "wrong.yaml"
    file.write_text(text)
    result = site.run("set", DEVICE, "--file", str(file), "--yes")
    assert result.exit_code == 2, result.output
    assert words in result.stderr
