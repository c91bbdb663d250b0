"""``edgeslm fleet exec`` over a real fleet: mosquitto with its access list, agents that are killed and begun anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import FleetRig, Visitor, fleet_rig, wait_for
from edgeslm import topics
from edgeslm.cli.agent_process import AgentProcess
from edgeslm.cli.fleet import fleet
from edgeslm.cli.fleet_common import PARTLY
from edgeslm.link.broker import EmbeddedBroker, find_mosquitto
from edgeslm.link.client import RequestClient
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.schema.message import MAX_BODY_BYTES
from edgeslm.schema.operation import FINAL
from edgeslm.trust.identity import KEY

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")

FLEET = "green"
SECRET = "pl4nted-s3cret-xyz"
WAIT_S = 60.0


class Heard:
    """What every device says about operations."""

    def __init__(self, rig: FleetRig) -> None:
        self.visitor = rig.operator([(topics.event_filter(FLEET, topics.OPERATION_EVENT), 1)])

    def events(self, device: str) -> list[dict[str, Any]]:
        topic = topics.id_topic(FLEET, device, "e", topics.OPERATION_EVENT)
        return [json.loads(m.payload) for m in self.visitor.events.messages if m.topic == topic]


class Devices:
    """Agents of one fleet as processes of their own."""

    def __init__(self, rig: FleetRig) -> None:
        self.rig = rig
        self.agents: dict[str, AgentProcess] = {}

    def join(self, name: str, config: str = "") -> AgentProcess:
        """A device of the fleet, not started yet."""
        self.rig.join(name)
        state_dir = self.rig.directory / "devices" / name
        file = state_dir / "agent.yaml"
        file.write_text(config or "{}")
        flags = ["--threads", "1", "--config", str(file)]
        self.agents[name] = AgentProcess(1, state_dir, fleet=FLEET, device=name, flags=flags)
        return self.agents[name]

    def close(self) -> None:
        for agent in self.agents.values():
            agent.terminate()


@pytest.fixture(scope="module")
def rig() -> Iterator[FleetRig]:
    with fleet_rig() as made, made.service():
        yield made


@pytest.fixture(scope="module")
def devices(rig: FleetRig) -> Iterator[Devices]:
    made = Devices(rig)
    made.join(
        "one",
        "broker: {username: someone}\n"
        f"updates: {{releases: none, sources: ['http://user:{SECRET}@cache.local/x?token={SECRET}']}}\n",
    ).start()
    made.join("two").start()
    made.join("off")
    yield made
    made.close()


def arguments(rig: FleetRig, *more: str) -> list[str]:
    return [*more, "--fleet-dir", str(rig.fleet.root)]


def run(rig: FleetRig, *more: str) -> Result:
    clean = {name: "" for name in os.environ if name.startswith("EDGESLM_")}
    return CliRunner(env=clean).invoke(fleet, arguments(rig, "exec", *more))


def read(result: Result, code: int = 0) -> Any:
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return json.loads(result.stdout)


def kept(rig: FleetRig) -> list[str]:
    """Commands that the broker keeps."""
    with rig.operator([(f"{topics.ROOT}/{FLEET}/+/cmd/+/+", 1)]) as visitor:
        wait_for(lambda: False, 0.5)
        return [m.topic for m in visitor.events.messages if m.payload]


def test_devices_test_themselves_and_those_that_are_off_are_a_part_that_failed(
    rig: FleetRig, devices: Devices
) -> None:
    result = run(rig, "self-test", "one", "two", "--timeout", str(WAIT_S), "--json")
    first, second = read(result)
    assert (first["device"], first["ok"], second["device"], second["ok"]) == ("one", True, "two", True)
    states = {check["name"]: check["state"] for check in first["result"]["checks"]}
    assert states["broker"] == states["certificate"] == states["answers home-command"] == "ok"
    assert "one: running" in result.stderr
    result = run(rig, "self-test", "one", "off", "--timeout", "6")
    assert result.exit_code == PARTLY
    assert "never seen at the broker; taken back" in result.stdout
    assert kept(rig) == []


def test_a_bench_runs_beside_the_device_s_work(rig: FleetRig, devices: Devices) -> None:
    (found,) = read(run(rig, "bench", "one", "--rounds", "1", "--timeout", str(WAIT_S), "--json"))
    assert found["result"]["right"] == found["result"]["prompts"] == 32
    text = run(rig, "bench", "one", "--rounds", "1", "--timeout", str(WAIT_S)).stdout
    assert "tokens/s" in text
    assert "32 of 32 golden prompts right" in text
    (found,) = read(run(rig, "bench", "one", "--model", "none-such", "--json"), 1)
    assert (found["state"], found["ok"]) == ("refused", False)
    assert "served: home-command" in found["error"]["message"]


def test_diagnostics_tell_what_is_needed_and_no_secret(
    rig: FleetRig, devices: Devices, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "dir"
    result = run(rig, "diagnostics", "one", "--out", str(out), "--timeout", str(WAIT_S), "--json")
    (found,) = read(result)
    assert "data" not in found["result"]
    (archive,) = out.iterdir()
    assert found["result"]["path"] == str(archive)
    files: dict[str, str] = {}
    with tarfile.open(archive) as opened:
        for member in opened.getmembers():
            content = opened.extractfile(member)
            assert content is not None
            files[member.name] = content.read().decode()
    config = json.loads(files["config.json"])
    assert (config["device"], config["broker"]["username"]) == ("one", None)
    assert config["updates"]["sources"] == ["http://(removed)@cache.local/x?(removed)"]
    assert "connected to the broker" in files["log.txt"]
    assert json.loads(files["info.json"])["device"] == "one"
    assert json.loads(files["versions.json"])["distributions"]["numpy"]
    assert json.loads(files["board.json"])["disk"]["free"] > 0
    assert json.loads(files["operations.json"])[0]["op"] == "diagnostics"
    assert not [name for name, text in files.items() if "this part cannot be had" in text]
    key = (rig.identities("one").current().directory / KEY).read_text()  # type: ignore[union-attr]
    whole = "\n".join(files.values())
    for secret in (SECRET, "PRIVATE KEY", *key.splitlines()[1:-1]):
        assert secret not in whole


def test_a_restart_keeps_the_process_number_and_answers_afterwards(rig: FleetRig, devices: Devices) -> None:
    agent, heard = devices.agents["two"], Heard(rig)
    before = agent.pid
    (found,) = read(run(rig, "restart", "two", "--yes", "--timeout", str(WAIT_S), "--json"))
    assert found["result"]["in_order"] is True
    agent.check()
    assert (agent.is_running, agent.pid) == (True, before)
    assert "beginning anew" in agent.log_tail()
    states = [event["state"] for event in heard.events("two")]
    assert "restarting" in states
    assert states[-1] == "done"
    assert read(run(rig, "self-test", "two", "--timeout", str(WAIT_S), "--json"))[0]["ok"]
    heard.visitor.close()


def test_a_kill_in_the_middle_is_a_failure_told_once_and_nothing_is_begun_twice(
    rig: FleetRig, devices: Devices
) -> None:
    agent, heard = devices.agents["one"], Heard(rig)
    asking = subprocess.Popen(
        [
            *(sys.executable, "-m", "edgeslm", "fleet"),
            *arguments(rig, "exec", "bench", "one", "--rounds", "100", "--timeout", str(WAIT_S), "--json"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert wait_for(lambda: any(event["state"] == "running" for event in heard.events("one")), WAIT_S)
    agent.kill()
    before = len(heard.events("one"))
    agent.start()
    stdout, _ = asking.communicate(timeout=WAIT_S)
    assert asking.returncode == 1
    (found,) = json.loads(stdout)
    assert (found["state"], found["error"]["reason"]) == ("failed", "failed")
    assert "the agent ended while bench ran" in found["error"]["message"]
    after = heard.events("one")[before:]
    assert {event["state"] for event in after if event["state"] in FINAL} == {"failed"}
    assert "result" not in found
    assert kept(rig) == []
    heard.visitor.close()


def test_a_detached_command_finds_a_device_when_it_comes_and_is_collected_later(
    rig: FleetRig, devices: Devices
) -> None:
    result = run(rig, "self-test", "off", "--detach", "--expires", "1h", "--json")
    (found,) = read(result)
    assert (found["state"], found["kept"], found["open"]) == ("pending", True, True)
    assert f"collect self-test {found['id']}" in result.stderr
    heard = Heard(rig)
    devices.agents["off"].start()
    assert wait_for(lambda: any(event["state"] == "done" for event in heard.events("off")), WAIT_S)
    (again,) = read(run(rig, "collect", "self-test", found["id"], "--timeout", str(WAIT_S), "--json"))
    assert (again["state"], again["device"]) == ("done", "off")
    assert kept(rig) == []
    assert run(rig, "collect", "self-test", found["id"]).exit_code == 1
    begun = [event for event in heard.events("off") if event["state"] == "received"]
    assert len(begun) == 1
    heard.visitor.close()


def test_what_cannot_be_asked_is_not_sent(rig: FleetRig, devices: Devices) -> None:
    assert run(rig, "self-test").exit_code == 2
    assert run(rig, "self-test", "unknown").exit_code == 2
    assert run(rig, "restart", "one").exit_code == 2  # nobody can be asked
    assert run(rig, "self-test", "one", "--detach", "--expires", "99d").exit_code == 2
    result = run(rig, "restart", "one", "two", "--dry-run", "--json")
    assert read(result) == []
    assert "one begins its agent anew" in result.stderr
    (found,) = read(run(rig, "abort", "one", "--model", "home-command", "--yes", "--json"), 1)
    assert (found["state"], found["text"]) == ("refused", "this device follows no releases")


def test_who_asked_for_what_and_what_came_of_it_can_be_seen_later(rig: FleetRig, devices: Devices) -> None:
    (found,) = read(run(rig, "self-test", "two", "--timeout", str(WAIT_S), "--json"))
    clean = {name: "" for name in os.environ if name.startswith("EDGESLM_")}
    runner = CliRunner(env=clean)
    audit = runner.invoke(fleet, arguments(rig, "audit", "--json")).stdout
    assert found["id"] in audit
    assert f"self-test {found['id']}: done" in runner.invoke(fleet, arguments(rig, "show", "two")).stdout


def test_a_device_cannot_be_asked_by_another_one(rig: FleetRig, devices: Devices) -> None:
    rig.join("stranger")
    identity = rig.identities("stranger").current()
    assert identity is not None
    heard = Heard(rig)
    with Visitor(identity.broker_config(), f"{FLEET}/stranger") as stranger:
        body = b'{"v":1,"id":"x","op":"restart","issued_at":"2026-12-01T00:00:00Z","expires_at":"2026-12-09T00:00:00Z"}'
        stranger.publish(topics.command_topic(FLEET, "two", "restart", "x"), body)
    read(run(rig, "self-test", "two", "--timeout", str(WAIT_S), "--json"))
    assert "x" not in {event["id"] for event in heard.events("two")}
    heard.visitor.close()


def test_the_longest_answer_passes_the_fleet_s_broker(rig: FleetRig, devices: Devices) -> None:
    rig.join("talker")
    identity = rig.identities("talker").current()
    assert identity is not None
    heard = Heard(rig)
    event = {
        "device": "talker",
        "id": "i",
        "op": "diagnostics",
        "state": "done",
        "at": "x",
        "result": {"data": ""},
    }
    event["result"] = {"data": "x" * (MAX_BODY_BYTES - len(json.dumps(event)))}
    with Visitor(identity.broker_config(), f"{FLEET}/talker") as talker:
        talker.publish(
            topics.id_topic(FLEET, "talker", "e", topics.OPERATION_EVENT), json.dumps(event).encode()
        )
    assert wait_for(lambda: bool(heard.events("talker")), WAIT_S)
    assert heard.events("talker")[0]["result"] == event["result"]
    heard.visitor.close()


def test_a_device_that_could_not_begin_anew_does_not_end(rig: FleetRig, devices: Devices) -> None:
    agent = devices.agents["two"]
    (agent.state_dir / "agent.yaml").write_text("no-such-setting: 1")
    (found,) = read(run(rig, "restart", "two", "--yes", "--timeout", str(WAIT_S), "--json"), 1)
    assert found["state"] == "refused"
    assert "no-such-setting" in found["error"]["message"]
    (agent.state_dir / "agent.yaml").write_text("models: [gone.slm]")
    (found,) = read(run(rig, "restart", "two", "--yes", "--timeout", str(WAIT_S), "--json"), 1)
    assert "gone.slm" in found["error"]["message"]
    (agent.state_dir / "agent.yaml").write_text("{}")
    agent.check()


# --- an agent of its own --------------------------------------------------------------------------------------


def test_an_agent_outside_a_fleet_does_only_what_is_harmless(tmp_path: Path) -> None:
    with (
        EmbeddedBroker(kind="mosquitto") as broker,
        AgentProcess(broker.port, tmp_path, flags=["--threads", "1"]) as agent,
        RequestClient(broker.client_config()) as client,
    ):
        agent.wait_online(client)
        heard: dict[str, dict[str, Any]] = {}
        changed = threading.Condition()

        class Events:
            def on_message(self, message: Message) -> None:
                with changed:
                    event = json.loads(message.payload)
                    heard[event["op"]] = event
                    changed.notify_all()
                message.acknowledge()

            def on_connected(self, *, session_present: bool) -> None:
                ops = ("diagnostics", "restart", "abort", "retry", "self-test")
                for op in ops:
                    life = {"issued_at": "2026-12-01T00:00:00Z", "expires_at": "2026-12-31T00:00:00Z"}
                    body = json.dumps({"id": "a", "op": op, **life}).encode()
                    link.publish(Message(topics.command_topic("demo", "demo", op, "a"), body))

            def on_disconnected(self, reason: str) -> None: ...

            def on_published(self, token: int) -> None: ...

        link = MqttLink(broker.client_config(), "asker")
        link.start(Events(), [(topics.event_filter("demo", topics.OPERATION_EVENT), 1)])
        with changed:
            assert changed.wait_for(
                lambda: len(heard) == 5 and all(event["state"] in FINAL for event in heard.values()), WAIT_S
            )
        link.stop()
        states = {op: event["state"] for op, event in heard.items()}
        assert states.pop("self-test") == "done"
        assert set(states.values()) == {"refused"}
        assert "belongs to no fleet" in heard["restart"]["text"]


def test_an_agent_starts_without_what_only_operations_need() -> None:
    code = (
        "import sys\n"
        "import edgeslm.cli.wiring, edgeslm.cli.wiring_operations, edgeslm.agent.service\n"
        "names = {'rich', 'sqlalchemy', 'alembic', 'tuf', 'cryptography', 'edgeslm.fleet', 'edgeslm.forge'}\n"
        "names |= {f'edgeslm.agent.operations.{n}' for n in ('diagnostics', 'self_test', 'bench', 'redaction')}\n"
        "print(sorted(names & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
