"""What every measurement needs: prompts, a broker, an agent process, and the same model in process."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.agent_client import Arrival, LeanClient
from edgeslm import topics
from edgeslm.cli.wiring import package_path
from edgeslm.link.broker import EmbeddedBroker

FLEET = "bench"
DEVICE = "bench-1"
MODEL = "home-command"
PROMPT_TOPIC = topics.device_topic(FLEET, DEVICE, "prompt")
REPLY_TOPIC = "bench-client/result"
ONLINE = b'"state":"online"'
LONG_OPTIONS: dict[str, Any] = {"temperature": 5.0, "top_k": 200, "max_tokens": 140}
"""A trained model ends an ordinary answer after a dozen tokens; this hot, it mostly goes on to the limit."""
START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 30.0
_LOG_TAIL_CHARS = 1500

ids = itertools.count()


class MeasurementError(Exception):
    """A figure cannot be had; the text is what stands in its place."""


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"[bench] {text}", file=sys.stderr, flush=True)


def new_id(prefix: str) -> str:
    """A request id that this run has not used."""
    return f"{prefix}-{next(ids)}"


def golden_prompts() -> list[str]:
    """The prompts that the model package carries as its golden set."""
    with zipfile.ZipFile(package_path(MODEL)) as package:
        lines = package.read("golden.jsonl").decode().splitlines()
    return [str(json.loads(line)["prompt"]) for line in lines if line.strip()]


def rss_mb(pid: int, field_name: str = "VmRSS") -> float:
    """Memory of a process from /proc, in MB of 1,048,576 bytes, as `free -m` and `top` count them.

    Raises:
        MeasurementError: no such field: not Linux, or the process is gone.
    """
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field_name}:"):
                return int(line.split()[1]) / 1024
    except OSError as error:
        raise MeasurementError(f"/proc/{pid}/status: {error.strerror}") from error
    raise MeasurementError(f"/proc/{pid}/status has no {field_name}")


class AgentProcess:
    """``edgeslm agent run`` as a subprocess; it can be killed and started again on the same state."""

    def __init__(self, port: int, state_dir: Path, *, device: str = DEVICE, threads: int = 1) -> None:
        self._state_dir = state_dir
        self._log = state_dir / "agent.log"
        self._command = [
            sys.executable,
            "-m",
            "edgeslm",
            "agent",
            "run",
            "--fleet",
            FLEET,
            "--device",
            device,
        ]
        self._command += ["--port", str(port), "--state-dir", str(state_dir), "--threads", str(threads)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def journal_path(self) -> Path:
        """The agent's database."""
        return self._state_dir / "agent.db"

    def start(self) -> Self:
        """Start it, without waiting for it."""
        self._state_dir.mkdir(parents=True, exist_ok=True)
        # Settings of whoever runs the benchmark must not reach the agent; which runtime to take may.
        env = {name: value for name, value in os.environ.items() if not name.startswith("EDGESLM_AGENT_")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,
            )
        return self

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        self._end(signal.SIGTERM)

    def log_tail(self) -> str:
        """The end of what it wrote to stdout and stderr."""
        try:
            return self._log.read_text("utf-8", "replace")[-_LOG_TAIL_CHARS:]
        except OSError:
            return ""

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class InProcess:
    """A prompt computed without agent and broker."""

    wall_ms: float
    text: str
    tokens: int
    decode_tps: float | None


class ModelWorker:
    """The same model under ``edgeslm.runtime`` in a process of its own, on one thread, one prompt at a time.

    It is a process so that it wakes from idling for each prompt just as the agent does; the pipe to it is not
    part of what it measures.
    """

    def __init__(self, store_dir: Path) -> None:
        """Start it and wait until the model is loaded."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.agent_inprocess", MODEL, str(store_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.runtime = str(self._read()["runtime"])
        self._known: dict[str, str] = {}

    def run(self, prompt: str, options: dict[str, Any]) -> InProcess:
        """Compute one prompt."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompt": prompt, "options": options}) + "\n")
        self._process.stdin.flush()
        return InProcess(**self._read())

    def expected(self, prompt: str) -> str:
        """The greedy answer to `prompt`, computed once."""
        if prompt not in self._known:
            self._known[prompt] = self.run(prompt, {}).text
        return self._known[prompt]

    def close(self) -> None:
        """End it, at once: LiteRT has much to say on stderr when it ends in order."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise MeasurementError("the in-process worker ended; see stderr")
        found = json.loads(line)
        assert isinstance(found, dict)
        return found


class Rig:
    """A broker and a folder for state, gone with the ``with`` block; agents are started on it."""

    def __init__(self, *, is_persistent: bool = False) -> None:
        """Choose; nothing is started yet.

        Args:
            is_persistent: the broker keeps sessions and messages over a SIGKILL; only mosquitto can.
        """
        self._stack = ExitStack()
        self._directory = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeslm-bench-"))
        )
        persistence_dir = self._directory / "broker"
        persistence_dir.mkdir()
        self.broker = EmbeddedBroker(persistence_dir=persistence_dir if is_persistent else None)

    @property
    def port(self) -> int:
        """The broker's."""
        return self.broker.port

    def __enter__(self) -> Self:
        self._stack.callback(self.broker.stop)
        self.broker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def agent(self, *, device: str = DEVICE, port: int | None = None) -> AgentProcess:
        """An agent, not started; stopped with the rig. `port` is the broker's unless given."""
        agent = AgentProcess(port or self.port, self._directory / "state", device=device)
        self._stack.callback(agent.stop)
        return agent

    def online_agent(self, port: int | None = None) -> AgentProcess:
        """An agent that has said it is online.

        Raises:
            MeasurementError: it does not come up.
        """
        agent = self.agent(port=port)
        client = self.client([(topics.device_topic(FLEET, DEVICE, "availability"), 1)])
        agent.start()
        wait_online(client, agent)
        client.close()
        return agent

    def client(self, filters: list[tuple[str, int]] | None = None) -> LeanClient:
        """A connected client; the default filter is the one that answers come to."""
        return LeanClient(self.port, filters if filters is not None else [(REPLY_TOPIC, 1)])

    def worker(self) -> ModelWorker:
        """The model in process; ended with the rig."""
        worker = ModelWorker(self._directory / "worker-models")
        self._stack.callback(worker.close)
        return worker


def wait_online(client: LeanClient, agent: AgentProcess) -> float:
    """Wait until the agent's availability says online; ``time.perf_counter`` of that moment.

    Raises:
        MeasurementError: it does not, in time; the text holds the agent's last words.
    """
    until_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until_s and agent.is_running:
        arrival = client.take(0.2)
        if arrival is not None and ONLINE in arrival.payload:
            return arrival.at_s
    raise MeasurementError(f"the agent did not come online: {agent.log_tail().strip() or 'it said nothing'}")


def prompt_body(request_id: str, prompt: str, options: dict[str, Any] | None = None) -> bytes:
    """A prompt on the wire."""
    body: dict[str, Any] = {"id": request_id, "prompt": prompt}
    if options:
        body["options"] = options
    return json.dumps(body).encode()


def ask(
    client: LeanClient, prompt: str, options: dict[str, Any] | None = None
) -> tuple[float, dict[str, Any]]:
    """Send a prompt and wait; wall milliseconds from before the publish to the answer read, and the result.

    Raises:
        MeasurementError: no answer, or an error.
    """
    request_id = new_id("q")
    body, correlation = prompt_body(request_id, prompt, options), request_id.encode()
    started_s = time.perf_counter()
    client.publish(PROMPT_TOPIC, body, response_topic=REPLY_TOPIC, correlation=correlation)
    arrival = _take_reply(client, correlation)
    if arrival is None:
        raise MeasurementError(f"no answer to '{prompt[:60]}' within {ANSWER_TIMEOUT_S:g} s")
    result = json.loads(arrival.payload)
    if "error" in result:
        raise MeasurementError(f"'{prompt[:60]}' was answered with an error: {result['error']}")
    return (arrival.at_s - started_s) * 1e3, result


def _take_reply(client: LeanClient, correlation: bytes) -> Arrival | None:
    until_s = time.monotonic() + ANSWER_TIMEOUT_S
    while (left_s := until_s - time.monotonic()) > 0:
        arrival = client.take(left_s)
        if arrival is not None and arrival.correlation == correlation:
            return arrival
    return None
