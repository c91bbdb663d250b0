"""Rules from the command line, and an agent that has some, over a real broker."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeslm.cli.agent_process import AgentProcess
from edgeslm.cli.main import cli
from edgeslm.link.broker import EmbeddedBroker, find_mosquitto
from edgeslm.link.client import RequestClient
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.schema.config import BrokerConfig

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "rules"
LIGHT = {"intent": "HassTurnOn", "area": "Hall", "domain": "light"}
SAY = "turn on the kitchen lights"

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + result.stderr
    return result.output if code else result.stdout


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"prompt": "turn on the hall lights", "answer": LIGHT}))
    return path


def test_check_says_what_rules_there_are():
    found = json.loads(run("rules", "check", EXAMPLES, "--json"))
    assert found["valid"]
    assert {rule["name"] for rule in found["rules"]} >= {"fan-on", "command", "movement"}
    assert "voice/text" in found["subscriptions"]
    assert "fan-on: on humidity" in run("rules", "check", EXAMPLES)


def test_check_of_a_wrong_file_is_exit_code_2_with_line_and_nearest_name(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("inputs: {t: {topic: a}}\nrules:\n  - {name: x, wehn: t > 1, then: [{event: e}]}\n")
    assert "line 3" in run("rules", "check", path, code=2)
    found = json.loads(run("rules", "check", path, "--json", code=2))
    assert (found["valid"], found["line"], found["nearest"]) == (False, 3, "when")


def test_the_fan_example_turns_the_fan_on_and_off():
    shown = [
        json.loads(line)
        for line in run(
            *("rules", "test", EXAMPLES / "bathroom-fan.yaml", "--json", "--for", 40),
            *("--message", "sensors/bathroom/window=closed"),
            *("--message", 'sensors/bathroom={"humidity": 70}'),
            *("--message", '@60:sensors/bathroom={"humidity": 72}'),
            *("--message", '@900:sensors/bathroom={"humidity": 40}'),
        ).splitlines()
    ]
    acted = [
        trace for trace in shown if trace["outcome"] == "acted" and trace["actions"][0]["kind"] == "publish"
    ]
    assert [(trace["rule"], trace["actions"][0]["payload"]) for trace in acted] == [
        ("fan-on", "ON"),
        ("fan-off", "OFF"),
    ]
    assert any(trace["rule"] == "sensor-silent" for trace in shown)


def test_the_fan_stays_off_while_the_window_is_open():
    shown = run(
        *("rules", "test", EXAMPLES / "bathroom-fan.yaml", "--json", "--for", 40),
        *("--message", "sensors/bathroom/window=open"),
        *("--message", 'sensors/bathroom={"humidity": 70}'),
        *("--message", '@60:sensors/bathroom={"humidity": 72}'),
    )
    assert [json.loads(line)["outcome"] for line in shown.splitlines()] == ["refused"]


def test_the_evening_example_calls_another_rule_and_stays_dry(answers):
    shown = run(
        *("rules", "test", EXAMPLES / "evening-lights.yaml", "--json", "--at", "2026-11-25T19:00"),
        *("--answers", answers, "--message", "sensors/outside/light=3"),
        *("--message", 'sensors/hall/motion={"occupancy": true}'),
    )
    traces = [json.loads(line) for line in shown.splitlines()]
    assert [(trace["rule"], trace["outcome"]) for trace in traces] == [
        ("movement", "acted"),
        ("light-up", "dry_run"),
    ]
    assert traces[1]["actions"][0]["to"] == "home/light/hall/set"


def test_the_voice_example_reads_sentences_with_the_model():
    shown = run(
        *("rules", "test", EXAMPLES / "voice-command.yaml", "--json"),
        *("--message", f"voice/text={SAY}"),
        *("--message", "voice/text=set the living room temperature to 35 degrees"),
        *("--message", "voice/text=add milk to the shopping list"),
    )
    traces = [json.loads(line) for line in shown.splitlines()]
    assert [trace["outcome"] for trace in traces] == ["acted", "acted", "refused"]
    assert traces[0]["actions"][0] == {
        **traces[0]["actions"][0],
        "to": "home/light/kitchen/set",
        "payload": '{"state":"on"}',
    }
    assert traces[1]["actions"][0]["payload"] == '{"temperature":25}'


def test_test_says_why_nothing_fired():
    result = CliRunner().invoke(
        cli,
        [
            "rules",
            "test",
            str(EXAMPLES / "bathroom-fan.yaml"),
            "--message",
            'sensors/bathroom={"humidity": 700}',
            "--message",
            "x/y=1",
        ],
    )
    assert "700 is out of the range 0 to 100" in result.stderr
    assert "x/y: no input listens to it" in result.stderr


@pytest.mark.parametrize("message", ["nothing", "=x", "@x:a=b"])
def test_refuses_a_message_that_is_none(message):
    run("rules", "test", EXAMPLES / "bathroom-fan.yaml", "--message", message, code=2)


def test_trace_and_status_need_a_state_directory(tmp_path):
    assert "there is no" in run("rules", "trace", "--state-dir", tmp_path, code=1)
    assert "there is no" in run("rules", "status", "--state-dir", tmp_path, code=1)


# --- over a real broker --------------------------------------------------------------------------------------


class Ear:
    """Hears everything at a broker."""

    def __init__(self, config: BrokerConfig) -> None:
        self.heard: list[Message] = []
        self._changed = threading.Condition()
        self.is_connected = threading.Event()
        self.link = MqttLink(config, "test-ear")
        self.link.start(self, [("home/#", 1), ("edgeslm/#", 1)])
        assert self.is_connected.wait(20)

    def on_message(self, message: Message) -> None:
        message.acknowledge()
        with self._changed:
            self.heard.append(message)
            self._changed.notify_all()

    def on_connected(self, *, session_present: bool) -> None:
        self.is_connected.set()

    def on_disconnected(self, reason: str) -> None: ...

    def on_published(self, token: int) -> None: ...

    def wait(self, topic: str, timeout_s: float = 30.0) -> bytes:
        def found() -> list[bytes]:
            return [message.payload for message in self.heard if message.topic == topic]

        with self._changed:
            assert self._changed.wait_for(lambda: bool(found()), timeout_s), [m.topic for m in self.heard]
        return found()[-1]


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(kind="mosquitto") as made:
        yield made


@pytest.fixture
def ear(broker: EmbeddedBroker) -> Iterator[Ear]:
    made = Ear(broker.client_config())
    yield made
    made.link.stop()


@needs_mosquitto
def test_an_agent_turns_a_sentence_into_a_command_and_shows_its_trace(broker, ear, tmp_path):
    state = tmp_path / "state"
    (state / "rules").mkdir(parents=True)
    (state / "rules" / "voice.yaml").write_text((EXAMPLES / "voice-command.yaml").read_text("utf-8"))
    with AgentProcess(broker.port, state, fleet="test", device="voice") as agent:
        with RequestClient(broker.client_config()) as client:
            agent.wait_online(client)
        ear.link.publish(Message("voice/text", SAY.encode(), qos=0))
        assert ear.wait("home/light/kitchen/set") == b'{"state":"on"}'
        broken = (EXAMPLES / "voice-command.yaml").read_text("utf-8").replace("prompt:", "promt:")
        (state / "rules" / "voice.yaml").write_text(broken)
        event = json.loads(ear.wait("edgeslm/v1/test/voice/e/rules"))
        assert event["type"] == "rules"
        assert "Did you mean 'prompt'?" in event["detail"]
        ear.heard.clear()
        ear.link.publish(Message("voice/text", b"turn off the bedroom lights", qos=0))
        assert ear.wait("home/light/bedroom/set") == b'{"state":"off"}'
    traces = [json.loads(line) for line in run("rules", "trace", "--state-dir", state, "--json").splitlines()]
    assert [trace["prompt"] for trace in traces] == [SAY, "turn off the bedroom lights"]
    assert traces[0]["receipt"]["model"].startswith("home-command@")
    status = json.loads(run("rules", "status", "--state-dir", state, "--json"))
    assert status["rules"][0]["acted"] == 2
    assert "promt" in status["error"]
    assert "command" in run("rules", "status", "--state-dir", state)


@needs_mosquitto
def test_what_was_recorded_replays_as_it_happened(broker, ear, tmp_path):
    log = tmp_path / "log.jsonl"
    command = [
        sys.executable,
        "-m",
        "edgeslm",
        "record",
        "voice/#",
        "sensors/+",
        "--out",
        str(log),
        "--count",
        "3",
    ]
    with subprocess.Popen(
        [*command, "--port", str(broker.port)], stderr=subprocess.PIPE, text=True
    ) as recorder:
        assert recorder.stderr is not None
        assert "recording" in recorder.stderr.readline()
        for text in (SAY.encode(), b"\xff\xfe", b"turn off the hall lights"):
            ear.link.publish(Message("voice/text", text, qos=1))
        assert recorder.wait(30) == 0
    rules = EXAMPLES / "voice-command.yaml"
    first = run("rules", "replay", log, rules, "--json")
    assert first == run("rules", "replay", log, rules, "--json")
    assert [json.loads(line)["actions"][0]["to"] for line in first.splitlines()] == [
        "home/light/kitchen/set",
        "home/light/hall/set",
    ]
    run("record", "x", "--out", log, "--port", broker.port, code=2)


@needs_mosquitto
def test_rules_run_alone_against_a_broker(broker, ear, tmp_path, answers):
    command = [sys.executable, "-m", "edgeslm", "rules", "run", str(EXAMPLES / "voice-command.yaml")]
    command += [
        "--answers",
        str(answers),
        "--port",
        str(broker.port),
        "--json",
        "--state-dir",
        str(tmp_path / "s"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        try:
            assert "rules run at" in process.stderr.readline()
            ear.link.publish(Message("voice/text", b"turn on the hall lights", qos=1))
            assert ear.wait("home/light/hall/set") == b'{"state":"on"}'
            assert json.loads(process.stdout.readline())["outcome"] == "acted"
        finally:
            process.terminate()
        assert process.wait(20) == 0
    assert len(run("rules", "trace", "--state-dir", tmp_path / "s", "--json").splitlines()) == 1


def test_an_agent_without_rules_loads_nothing_of_them(tmp_path):
    code = (
        "import sys, edgeslm.cli.main, edgeslm.cli.wiring, edgeslm.agent.service, edgeslm.cli.agent\n"
        "names = ('jinja2', 'simpleeval', 'jsonschema_rs', 'edgeslm.agent.rules')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
