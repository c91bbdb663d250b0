"""A real Home Assistant, a real mosquitto and a real agent process, each of which can be started and stopped.

Home Assistant lives in an environment of its own (``make test-homeassistant`` sets it up); ``EDGESLM_HOMEASSISTANT``
names its Python.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from paho.mqtt import publish

from benchmarks.agent_client import LeanClient
from benchmarks.agent_rig import MeasurementError
from edgeslm import topics
from edgeslm.agent.discovery import object_id
from edgeslm.link.broker import EmbeddedBroker, find_mosquitto

VARIABLE = "EDGESLM_HOMEASSISTANT"
FLEET, DEVICE = "home", "kitchen-pi"
ID = object_id(FLEET, DEVICE)
START_S = 90.0
ANSWER_S = 60.0
State = dict[str, Any]


def home_assistant_python() -> Path | None:
    """The Python that has ``homeassistant``; ``None`` if there is none."""
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else Path(__file__).parents[1] / ".venv-homeassistant" / "bin" / "python"
    return path if path.exists() and find_mosquitto() is not None else None


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class HomeAssistant:
    """A headless Home Assistant that keeps its directory over restarts."""

    def __init__(
        self, python: Path, directory: Path, mqtt_port: int, identity: tuple[Path, ...] = ()
    ) -> None:
        """Say how to start it.

        Args:
            python: that has ``homeassistant``.
            directory: of its configuration.
            mqtt_port: of the broker on this machine.
            identity: with TLS, files with the authority, its certificate and its key.
        """
        self._command = [str(python), str(Path(__file__).with_name("home_assistant_child.py"))]
        self._command += [str(directory), str(mqtt_port), str(_free_port()), *map(str, identity)]
        self._log = directory.with_suffix(".log")
        directory.mkdir(parents=True)
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()

    def start(self) -> None:
        """Start it, and wait until it is up."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        self._answer(START_S)

    def stop(self) -> None:
        """End it in order."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        try:
            process.stdin.write('{"do": "stop"}\n')
            process.stdin.close()
            process.wait(ANSWER_S)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()

    def states(self) -> dict[str, State]:
        """Entities of the device by their key."""
        found: dict[str, State] = self._do({"do": "states"})
        return {key.removeprefix(f"{ID}_"): state for key, state in found.items() if key.startswith(ID)}

    def warnings(self) -> list[str]:
        """What stands in its log as a warning or worse since it started."""
        found: list[str] = self._do({"do": "warnings"})
        return found

    def devices(self) -> list[dict[str, str]]:
        """The devices that it knows."""
        found: list[dict[str, str]] = self._do({"do": "devices"})
        return found

    def call(self, domain: str, service: str, entity_id: str, **data: str) -> None:
        """Do what a person does in the user interface."""
        order = {"do": "call", "domain": domain, "service": service, "data": {"entity_id": entity_id, **data}}
        self._do(order)

    def add(self, domain: str, **data: Any) -> dict[str, Any]:
        """Add an integration by its form; what came of it."""
        told: dict[str, Any] = self._do({"do": "flow", "domain": domain, "data": data})
        return told

    def agents(self) -> list[str]:
        """Conversation agents, but for its own."""
        found: list[str] = self._do({"do": "agents"})
        return [name for name in found if name != "conversation.home_assistant"]

    def say(self, text: str, agent: str, language: str = "en") -> dict[str, Any]:
        """Say something to a conversation agent; its reply."""
        told: dict[str, Any] = self._do(
            {"do": "converse", "text": text, "agent": agent, "language": language}
        )
        return told

    def _do(self, order: dict[str, Any]) -> Any:
        if self._process is None or self._process.stdin is None:
            raise MeasurementError("Home Assistant does not run")
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._answer(ANSWER_S)
        if isinstance(answer, dict) and answer.keys() == {"fault"}:
            raise MeasurementError(f"Home Assistant: {answer['fault']}")
        return answer

    def _read(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            self._answers.put(line)

    def _answer(self, timeout_s: float) -> Any:
        try:
            return json.loads(self._answers.get(timeout=timeout_s))
        except queue.Empty:
            tail = self._log.read_text("utf-8", "replace")[-2000:]
            raise MeasurementError(f"Home Assistant says nothing for {timeout_s:g} s: {tail}") from None


class Device:
    """An agent process that shows itself in Home Assistant."""

    def __init__(self, directory: Path, port: int) -> None:
        self.state_dir = directory / "state"
        self._path = directory / "agent.yaml"
        self._log = directory / "agent.log"
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, enabled: bool = True, **homeassistant: Any) -> None:
        """Start it; it is online some time later.

        Args:
            enabled: it shows itself.
            homeassistant: more settings of that name.
        """
        settings = {
            "fleet": FLEET,
            "device": DEVICE,
            "broker": {"port": self._port},
            "state_dir": str(self.state_dir),
            "threads": 1,
            "metrics": {"interval_s": 3600},
            "budget": {"windows": [{"name": "day", "limit": "100 MJ", "over": "1d"}]},
            "homeassistant": {"enabled": enabled, **homeassistant},
        }
        self._path.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "edgeslm", "agent", "run", "--config", str(self._path)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self) -> None:
        """End it in order."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            process.wait(ANSWER_S)

    @property
    def log(self) -> str:
        """What it said."""
        return self._log.read_text("utf-8", "replace")


class World:
    """All three. Home Assistant and the device are not started yet."""

    def __init__(self, python: Path) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="edgeslm-home-"))
        self.broker = EmbeddedBroker(kind="mosquitto")
        self.home_assistant = HomeAssistant(python, self._directory / "home-assistant", self.broker.port)
        self.device = Device(self._directory, self.broker.port)

    def __enter__(self) -> Self:
        self.broker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.home_assistant.stop()
        self.device.stop()
        self.broker.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def topic(self, channel: topics.DeviceChannel) -> str:
        """A topic of the device."""
        return topics.device_topic(FLEET, DEVICE, channel)

    def retained(self, topic: str, timeout_s: float = ANSWER_S) -> bytes:
        """What the broker keeps on `topic`; waits for something."""
        with self.hearing(topic) as heard:
            return heard(timeout_s)

    @contextmanager
    def hearing(self, topic: str) -> Iterator[Callable[[float], bytes]]:
        """Listen to `topic`; what is given waits so many seconds for the next body there."""
        client = LeanClient(self.broker.port, [(topic, 1)])

        def heard(timeout_s: float) -> bytes:
            arrival = client.take(timeout_s)
            if arrival is None:
                raise MeasurementError(f"nothing on {topic} in {timeout_s:g} s; the agent: {self.device.log}")
            return arrival.payload

        try:
            yield heard
        finally:
            client.close()

    def publish(self, *messages: tuple[str, bytes], retain: bool = False) -> None:
        """Publish as somebody else."""
        wanted: list[Any] = [(topic, payload, 1, retain) for topic, payload in messages]
        publish.multiple(wanted, "127.0.0.1", self.broker.port)

    def wait(self, holds: Callable[[dict[str, State]], bool], timeout_s: float) -> float:
        """Seconds until the states in Home Assistant are as wanted.

        Raises:
            MeasurementError: they are not within `timeout_s`.
        """
        began_s = time.monotonic()
        while True:
            states = self.home_assistant.states()
            took_s = time.monotonic() - began_s
            if holds(states):
                return took_s
            if took_s > timeout_s:
                told = {key: state["state"] for key, state in states.items()}
                raise MeasurementError(
                    f"after {timeout_s:g} s the states are {told}; the agent: {self.device.log}"
                )
            time.sleep(0.1)


SILENT = frozenset(
    {
        "answer",
        "answered",
        "ask",
        "prompt",
        "self_test",
        "self_test_result",
        "joules_per_prompt",
        "tokens_per_s",
    }
)
"""What is unknown until somebody asks something."""


def is_right(states: dict[str, State]) -> bool:
    """Whether a device that nobody has asked anything since is shown as it is."""
    if not states or any(state["state"] in {None, "unavailable"} for state in states.values()):
        return False
    known = {key: state["state"] for key, state in states.items() if key not in SILENT | {"temperature"}}
    return "unknown" not in known.values() and float(known["power"]) > 0 and known["model"] == "home-command"
