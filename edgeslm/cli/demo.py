"""``edgeslm demo``: a broker, an agent as a process of its own, and a simulated home, on this machine.

What always holds: whatever ends the demo (its end, Ctrl-C, SIGTERM, SIGHUP, an error), the agent, the broker
and their files are gone afterwards; on Linux the kernel ends both processes even when the demo is killed.
Nothing of the user's own settings or agents is touched: a free port, a temporary state directory, no
``EDGESLM_AGENT_*``.

The command line is the only place that starts processes; what an answer does to the home is decided in
:mod:`edgeslm.sim.home_intents`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import click
from pydantic import ValidationError

from edgeslm import topics
from edgeslm.cli.agent_process import AgentProcess
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors
from edgeslm.cli.requests import format_energy
from edgeslm.codec import describe
from edgeslm.errors import EdgeslmError
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.message import Options, PromptRequest, Result, StreamDelta

if TYPE_CHECKING:
    from edgeslm.link.client import RequestClient
    from edgeslm.sim.home import Home
    from edgeslm.sim.home_devices import HomeController
    from edgeslm.sim.script import Command

FLEET = "demo"
DEVICE = "demo"
ANSWER_TIMEOUT_S = 30.0
UNWIND_TIMEOUT_S = 10.0
DEFAULT_PACE_S = 1.0
_INTERRUPTED = 130


@click.command()
@click.option("--once", is_flag=True, help="Run the script and exit: 0 if all was right, else 1.")
@click.option(
    "--broker", type=click.Choice(["auto", "mosquitto", "iotcore"]), default="auto", show_default=True
)
@click.option(
    "--pace",
    "pace_s",
    type=click.FloatRange(0, 60),
    help="Seconds between commands; 1 on a terminal, else 0.",
)
@json_option
@reporting_errors
def demo(
    once: bool, broker: Literal["auto", "mosquitto", "iotcore"], pace_s: float | None, as_json: bool
) -> None:
    """Run a broker, the agent and a simulated home here, and talk to it.

    A script of spoken-style commands comes first; then lines from standard input are answered until it ends
    or says `quit`.
    """
    if pace_s is None:
        pace_s = DEFAULT_PACE_S if sys.stdout.isatty() and not once else 0.0
    screen = _Screen(to_stderr=as_json)
    try:
        with _signals_unwind() as last_resorts, _running(broker, screen, last_resorts) as stage:
            wrong = _play(stage, screen, pace_s)
            if not once:
                _converse(stage, screen)
            if as_json:
                print_json(stage.report(wrong))
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(_INTERRUPTED)
    if once and wrong:
        sys.exit(1)


# --- the stage: processes and connections -------------------------------------------------------------------


LastResorts = list[Callable[[], object]]
"""What has to happen even if unwinding gets stuck: processes to kill, files to remove."""


@contextmanager
def _signals_unwind() -> Iterator[LastResorts]:
    """Let SIGTERM and SIGHUP end the demo the way Ctrl-C does, so that everything is cleaned up.

    An exception out of a signal handler can strike while a lock is being taken, which then nobody gives back, or where
    nobody hears of it. Whatever does not unwind in time is ended by the last resorts that the block has noted down.
    """
    last_resorts: LastResorts = []

    def give_up(number: int) -> None:
        for act in reversed(last_resorts):
            with suppress(Exception):
                act()
        os._exit(128 + number)

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        # A second one must not break the cleaning up.
        for other in heard:
            signal.signal(other, signal.SIG_IGN)
        timer = threading.Timer(UNWIND_TIMEOUT_S, give_up, [number])
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    heard = [signal.SIGTERM, signal.SIGHUP]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        heard.append(signal.SIGINT)
    before = {number: signal.signal(number, on_signal) for number in heard}
    try:
        yield last_resorts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _noticing_the_end_of(agent: AgentProcess) -> Iterator[None]:
    """Let the agent's death interrupt the block, which may be waiting for an answer that never comes.

    For the main thread: Python runs signal handlers there.

    Raises:
        LinkError: the agent is dead.
    """
    before = signal.getsignal(signal.SIGCHLD)

    def on_child(number: int, frame: FrameType | None) -> None:
        del number, frame
        if agent.is_running:
            return  # it was stopped or continued, or the broker ended
        # Once only: the end of the broker must not break the cleaning up.
        signal.signal(signal.SIGCHLD, before)
        agent.check()

    signal.signal(signal.SIGCHLD, on_child)
    try:
        agent.check()  # it may have died before anyone was told
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def _running(
    kind: Literal["auto", "mosquitto", "iotcore"], screen: _Screen, last_resorts: LastResorts
) -> Iterator[_Stage]:
    """Broker, agent, home and client, all connected."""
    from edgeslm.link.broker import EmbeddedBroker  # noqa: PLC0415
    from edgeslm.link.client import RequestClient  # noqa: PLC0415
    from edgeslm.link.mqtt import MqttLink  # noqa: PLC0415
    from edgeslm.sim.home import load_home  # noqa: PLC0415
    from edgeslm.sim.home_devices import HomeController, SimulatedDevices  # noqa: PLC0415

    home = load_home()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeslm-demo-")))
        last_resorts.append(partial(shutil.rmtree, directory, ignore_errors=True))
        broker = stack.enter_context(EmbeddedBroker(kind=None if kind == "auto" else kind))
        last_resorts.append(broker.stop)
        screen.note(f"broker {broker.kind} on 127.0.0.1:{broker.port}")
        agent = stack.enter_context(
            AgentProcess(
                broker.port, directory / "state", fleet=FLEET, device=DEVICE, log=directory / "agent.log"
            )
        )
        last_resorts.append(agent.kill)
        config = BrokerConfig(port=broker.port, session_expiry_s=0)
        stack.enter_context(SimulatedDevices(MqttLink(config, "home-devices"), home))
        controller = stack.enter_context(HomeController(MqttLink(config, "home-controller"), home))
        client = stack.enter_context(RequestClient(config))
        screen.note(f"a home with {len(home.devices)} devices in {len(home.areas)} areas")
        agent.wait_online(client)
        screen.note(f"agent online, process {agent.pid}")
        screen.note(f"watch it: mosquitto_sub -V mqttv5 -p {broker.port} -v -t 'home/#' -t 'edgeslm/#'")
        yield _Stage(client, controller, agent, broker.kind, home)


# --- asking and judging -------------------------------------------------------------------------------------


@dataclass
class _Turn:
    """One command, its answer, and what came of it."""

    prompt: str
    expected: dict[str, Any] | None = None
    result: Result | None = None
    changes: list[str] = field(default_factory=list)
    reply: str | None = None
    problem: str | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def got(self) -> dict[str, Any] | None:
        """The answer, where it is a JSON object."""
        data = None if self.result is None else self.result.data
        return data if isinstance(data, dict) else None

    @property
    def is_right(self) -> bool:
        """Whether the answer is the expected one."""
        from edgeslm.sim.script import same_json  # noqa: PLC0415

        return self.expected is not None and same_json(self.got, self.expected)

    def report(self) -> dict[str, Any]:
        """This turn as JSON."""
        receipt = self.result.receipt if self.result is not None else None
        return {
            "prompt": self.prompt,
            "expected": self.expected,
            "got": self.got,
            "text": self.result.text if self.result is not None else None,
            "right": self.is_right if self.expected is not None else None,
            "home": {"changes": self.changes, "reply": self.reply, "problem": self.problem},
            "faults": self.faults,
            "receipt": receipt.model_dump(mode="json") if receipt is not None else None,
        }


@dataclass
class _Stage:
    """Everything that runs, and what was said so far."""

    client: RequestClient
    controller: HomeController
    agent: AgentProcess
    broker: str
    first_home: Home
    turns: list[_Turn] = field(default_factory=list)

    def say(self, prompt: str, screen: _Screen, command: Command | None = None) -> _Turn:
        """Ask the agent, show the answer as it grows, and let the home act on it.

        Raises:
            LinkError: the agent is dead. What else goes wrong is part of the turn.
        """
        turn = _Turn(prompt, dict(command.answer) if command is not None else None)
        self.turns.append(turn)
        screen.prompt(prompt, is_typed=command is None and sys.stdin.isatty())
        try:
            with _noticing_the_end_of(self.agent):
                self._ask(turn, screen)
            self._act(turn)
        except ValidationError as error:
            turn.problem = describe(error)
        except EdgeslmError as error:
            self.agent.check()
            turn.problem = str(error)
        if command is not None:
            turn.faults = _faults(turn, command, self.controller.home)
        screen.turn(turn)
        return turn

    def _ask(self, turn: _Turn, screen: _Screen) -> None:
        request = PromptRequest(id=uuid.uuid4().hex, prompt=turn.prompt, options=Options(stream=True))
        topic = topics.device_topic(FLEET, DEVICE, "prompt")
        turn.result = self.client.ask(topic, request, screen.delta, ANSWER_TIMEOUT_S)

    def _act(self, turn: _Turn) -> None:
        if turn.result is not None and turn.result.error is not None:
            turn.problem = f"{turn.result.error.code}: {turn.result.error.message}"
        elif turn.got is None:
            turn.problem = "the answer is no JSON object"
        else:
            outcome = self.controller.act(turn.got, datetime.now().astimezone())
            turn.changes = [change.text for change in outcome.changes]
            turn.reply, turn.problem = outcome.reply, outcome.problem

    def summary(self) -> dict[str, Any]:
        """The figures of all that was said."""
        receipts = [turn.result.receipt for turn in self.turns if turn.result and turn.result.receipt]
        judged = [turn for turn in self.turns if turn.expected is not None]
        first = receipts[0] if receipts else None

        def median(values: list[float]) -> float | None:
            return round(statistics.median(values), 2) if values else None

        return {
            "commands": len(judged),
            "right": sum(turn.is_right for turn in judged),
            "as_expected": sum(not turn.faults for turn in judged),
            "median_ttft_ms": median([r.ttft_ms for r in receipts if r.ttft_ms is not None]),
            "median_total_ms": median([r.total_ms for r in receipts]),
            "median_decode_tps": median([r.decode_tps for r in receipts if r.decode_tps is not None]),
            "mean_energy_mj": round(statistics.fmean(r.energy_j for r in receipts) * 1e3, 2)
            if receipts
            else None,
            "meter": first.meter if first else None,
            "model": first.model if first else None,
            "model_sha256": first.model_sha256 if first else None,
            "runtime": first.runtime if first else None,
            "broker": self.broker,
        }

    def report(self, wrong: list[str]) -> dict[str, Any]:
        """The whole demo as JSON."""
        return {"commands": [turn.report() for turn in self.turns], "wrong": wrong, "summary": self.summary()}


def _faults(turn: _Turn, command: Command, home: Home) -> list[str]:
    if turn.result is not None and not turn.is_right:
        # What the home did then follows from it, and says nothing about the home.
        got = _compact(turn.got) if turn.got is not None else turn.problem
        return [f"expected {_compact(command.answer)}, got {got}"]
    return [*([turn.problem] if turn.problem is not None else []), *command.missed(home)]


def _play(stage: _Stage, screen: _Screen, pace_s: float) -> list[str]:
    """Run the script and sum it up; what was wrong, one line each."""
    from edgeslm.sim.script import load_script  # noqa: PLC0415

    for command in load_script().commands:
        stage.say(command.say, screen, command)
        time.sleep(pace_s)
    wrong = [f"{turn.prompt}: {fault}" for turn in stage.turns for fault in turn.faults]
    screen.table(stage.first_home, stage.controller.home)
    screen.summary(stage.summary(), wrong)
    return wrong


def _converse(stage: _Stage, screen: _Screen) -> None:
    """Answer the user's own lines until they end or say `quit`."""
    if sys.stdin.isatty():
        screen.note("your turn; Ctrl-D or 'quit' ends it")
    for line in _lines():
        text = line.strip()
        if text.casefold() in {"quit", "exit"}:
            return
        if text:
            stage.say(text, screen)


def _lines() -> Iterator[str]:
    if not sys.stdin.isatty():
        for raw in sys.stdin.buffer:
            yield raw.decode("utf-8", "replace")
        return
    import readline  # noqa: F401, PLC0415 - editing and history for input()

    while True:
        try:
            yield input("> ")
        except EOFError:
            click.echo()
            return


# --- what is shown ------------------------------------------------------------------------------------------


class _Screen:
    """The transcript: on stdout, or on stderr where stdout is for JSON. Colours on a terminal only."""

    def __init__(self, *, to_stderr: bool) -> None:
        self._to_stderr = to_stderr
        # click leaves ANSI out by itself where the stream is no terminal.
        self._color = False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None
        self._shown = ""

    def _line(self, text: str = "", *, end: bool = True, **style: Any) -> None:
        shown = click.style(text, **style) if style else text
        click.echo(shown, nl=end, err=self._to_stderr, color=self._color)

    def note(self, text: str) -> None:
        """Progress."""
        click.echo(click.style(text, dim=True), err=True, color=self._color)

    def prompt(self, text: str, *, is_typed: bool) -> None:
        """What is said, unless a terminal shows it already."""
        self._shown = ""
        if not is_typed:
            self._line()
            self._line(f"> {printable(text)}", bold=True)
        self._line("  ", end=False)

    def delta(self, delta: StreamDelta) -> None:
        """A piece of the answer."""
        text = printable(delta.text)
        self._shown += text
        self._line(text, end=False, fg="cyan")

    def turn(self, turn: _Turn) -> None:
        """The rest of the answer, what the home did, and what it cost."""
        whole = printable((turn.result.text if turn.result is not None else None) or "")
        # Deltas are QoS 0: what was lost on the way is shown again as a whole.
        is_prefix = whole.startswith(self._shown)
        self._line(whole[len(self._shown) :] if is_prefix else f"\n  {whole}", fg="cyan")
        for change in turn.changes:
            self._line(f"  {printable(change)}", fg="green")
        if turn.reply is not None:
            self._line(f"  {printable(turn.reply)}", fg="green")
        if turn.problem is not None:
            self._line(f"  {printable(turn.problem)}", fg="yellow")
        for fault in turn.faults:
            if fault != turn.problem:
                self._line(f"  wrong: {printable(fault)}", fg="red")
        if turn.result is not None and turn.result.receipt is not None:
            self._line(f"  {_cost(turn.result)}", dim=True)

    def table(self, before: Home, after: Home) -> None:
        """The devices that are not as they were at first."""
        old = before.by_id
        rows = [(d.label, old[d.id].text, d.text) for d in after.devices if d.text != old[d.id].text]
        if not rows:
            return
        rows = [("device", "before", "after"), *rows]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        self._line()
        for number, (name, was, now) in enumerate(rows):
            style: dict[str, Any] = {"bold": True} if number == 0 else {}
            self._line(f"{name:{widths[0]}}  {was:{widths[1]}}  {printable(now)}", **style)

    def summary(self, figures: dict[str, Any], wrong: list[str]) -> None:
        """The figures, and what was wrong."""
        self._line()
        self._line(f"{figures['right']} of {figures['commands']} commands answered right", bold=True)
        if figures["model"] is not None:
            tps = figures["median_decode_tps"]
            self._line(
                f"median {figures['median_total_ms']:.1f} ms a command, {figures['mean_energy_mj']:.1f} mJ"
                f" ({figures['meter']})" + (f", {tps:,.0f} tokens/s" if tps is not None else "")
            )
            self._line(f"{figures['model']} on {figures['runtime']}, broker {figures['broker']}")
        for fault in wrong:
            self._line(f"wrong: {printable(fault)}", fg="red")


def _cost(result: Result) -> str:
    receipt = result.receipt
    if receipt is None:
        return ""
    first = f"first token {receipt.ttft_ms:.1f} ms, " if receipt.ttft_ms is not None else ""
    speed = f", {receipt.decode_tps:,.0f} tokens/s" if receipt.decode_tps is not None else ""
    return f"{first}all {receipt.total_ms:.1f} ms{speed}, {format_energy(receipt.energy_j)} ({receipt.meter})"


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
