"""A small home, all of it on this machine: python examples/smart_home/run.py [--once].

A broker, a simulated Zigbee2MQTT (zigbee.py) and an agent, which acts by rules (rules.yaml), understands sentences
(home.yaml) and shows itself in Home Assistant. A scene is played and checked; then lines from standard input are what
somebody says to Assist. With --once it ends after the scene: 0 if everything in the home ended as it should, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from zigbee import Zigbee

from edgeslm.agent.discovery import discovery_topic
from edgeslm.agent.rules.trace import TRACE_NAME, TraceReader
from edgeslm.cli.agent_process import AgentProcess
from edgeslm.cli.output import printable
from edgeslm.errors import EdgeslmError, LinkError
from edgeslm.link.broker import EmbeddedBroker, accepts_mqtt
from edgeslm.link.client import RequestClient
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.schema.config import BrokerConfig

try:
    from wyoming.asr import Transcript
    from wyoming.client import AsyncTcpClient
    from wyoming.handle import Handled
except ModuleNotFoundError:
    raise SystemExit("the package wyoming is missing: pip install 'edgeslm[wyoming]'") from None

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
WAIT_S = 30.0


# --- what happens ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One thing that happens in the home.

    Attributes:
        what: in words.
        do: makes it happen; what comes back is the reply, where somebody spoke.
        then: what has to become true of things in the home, as fields of their states.
        reply: what has to be answered.
        refused: a rule that has to have refused to act, or nothing.
    """

    what: str
    do: Callable[[Stage], str | None]
    then: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    reply: str | None = None
    refused: str | None = None


def sees(sensor: str, **readings: object) -> Callable[[Stage], None]:
    """A sensor sees something."""
    return lambda stage: stage.zigbee.sense(sensor, **readings)


def publishes(topic: str, text: str) -> Callable[[Stage], None]:
    """Somebody publishes."""
    return lambda stage: stage.zigbee.say(topic, text)


def assist(sentence: str, reply: str, then: Mapping[str, Mapping[str, object]] | None = None) -> Step:
    """Somebody speaks to Assist, which hands the sentence to the device."""
    return Step(f'said to Assist: "{sentence}"', lambda stage: stage.say(sentence), then or {}, reply)


SCENE: Sequence[Step] = (
    Step(
        "somebody comes into the dark hall",
        sees("hall_motion", occupancy=True, illuminance=9),
        {"hall_light": {"state": "ON", "brightness": 160}},
    ),
    Step(
        'said on house/said: "turn off the hall light"',
        publishes("house/said", "turn off the hall light"),
        {"hall_light": {"state": "OFF"}},
    ),
    assist("turn on the kitchen lights", "Kitchen Ceiling: on", {"kitchen_ceiling": {"state": "ON"}}),
    assist(
        "dim the living room lamp to 30 percent",
        "Living Room Lamp: 30 %",
        {"living_lamp": {"state": "ON", "brightness": 76}},
    ),
    assist(
        "set the living room temperature to 21 degrees",
        "Living Room Heating: 21 °C",
        {"living_heating": {"occupied_heating_setpoint": 21}},
    ),
    assist(
        "close the blinds in the living room",
        "Living Room Blinds: closed",
        {"living_blinds": {"state": "CLOSE", "position": 0}},
    ),
    assist("unlock the front door", "Hall Front Door is not unlocked by voice here"),
    assist("turn off the garage lights", "there is no area 'Garage'"),
    Step(
        "the window is opened",
        sees("living_window", contact=False),
        {"living_heating": {"occupied_heating_setpoint": 12}},
    ),
    Step("the front door is opened", sees("hall_door", contact=False)),
    Step(
        "everybody leaves, and the door stands open",
        publishes("house/mode", "away"),
        {"kitchen_ceiling": {"state": "OFF"}, "living_lamp": {"state": "OFF"}},
        refused="lock-behind-the-last",
    ),
    Step(
        "the door falls shut",
        sees("hall_door", contact=True),
        {"front_door": {"state": "LOCK", "lock_state": "locked"}},
    ),
)

ENDS_AS: Mapping[str, Mapping[str, object]] = {
    "hall_light": {"state": "OFF", "brightness": 160},
    "kitchen_ceiling": {"state": "OFF", "brightness": 254},
    "living_lamp": {"state": "OFF", "brightness": 76, "color": {"hex": "#FFFFFF"}},
    "living_blinds": {"state": "CLOSE", "position": 0},
    "living_heating": {"occupied_heating_setpoint": 12, "system_mode": "heat"},
    "front_door": {"state": "LOCK", "lock_state": "locked"},
}
"""The home after the scene."""
ORDERS = 11
"""Messages to things in the home during the scene; not one more."""


# --- the stage ------------------------------------------------------------------------------------------------


class Announced:
    """Hears what is announced to Home Assistant."""

    def __init__(self, broker: BrokerConfig, topic: str) -> None:
        self._arrived = threading.Event()
        self._body = b""
        self._link = MqttLink(broker.model_copy(update={"session_expiry_s": 0}), "smart-home-watch")
        self._link.start(self, [(topic, 1)])

    def entities(self) -> list[str]:
        """Names of the entities, as soon as they are there."""
        if not self._arrived.wait(WAIT_S):
            raise LinkError("nothing is announced to Home Assistant")
        return [str(one["name"]) for one in json.loads(self._body)["components"].values()]

    def stop(self) -> None:
        """Leave."""
        self._link.stop()

    def on_message(self, message: Message) -> None:
        """An announcement."""
        message.acknowledge()
        if message.payload:
            self._body = message.payload
            self._arrived.set()

    def on_connected(self, *, session_present: bool) -> None:
        """The broker is there."""

    def on_disconnected(self, reason: str) -> None:
        """The link comes back by itself."""

    def on_published(self, token: int) -> None:
        """Nothing is published here."""


@dataclass(frozen=True)
class Stage:
    """What runs: all of it reachable from here, and gone when the block that made it ends."""

    broker: BrokerConfig
    zigbee: Zigbee
    agent: AgentProcess
    announced: Announced
    wyoming_port: int
    home_assistant: Any = None

    def say(self, sentence: str) -> str:
        """The device's reply to a sentence that Assist hands over."""

        async def exchange() -> str:
            async with AsyncTcpClient("127.0.0.1", self.wyoming_port) as client:
                await client.write_event(Transcript(text=sentence).event())
                event = await asyncio.wait_for(client.read_event(), WAIT_S)
            if event is None:
                raise LinkError("the device closed the connection of Assist without a reply")
            return str(event.data.get("text") or "") or (
                "done" if Handled.is_type(event.type) else "not done"
            )

        try:
            return asyncio.run(exchange())
        except OSError as error:
            raise LinkError(f"the device does not listen to Assist: {error}") from error

    def has_refused(self, rule: str) -> bool:
        """Whether `rule` wanted to act and was not allowed to, as its trace says."""
        reader = TraceReader(self.agent.state_dir / TRACE_NAME)
        try:
            return any(firing.outcome == "refused" for _, firing in reader.latest(100, rule))
        finally:
            reader.close()


@contextmanager
def running(arguments: argparse.Namespace) -> Iterator[Stage]:
    """Everything, started in the order in which each needs the other."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeslm-smart-home-")))
        if arguments.host is None:
            broker = stack.enter_context(EmbeddedBroker(port=arguments.port)).client_config()
        else:
            broker = BrokerConfig(host=arguments.host, port=arguments.port or 1883)
            if not accepts_mqtt(broker.port, host=broker.host):
                raise LinkError(f"no broker answers at {broker.host}:{broker.port}", hint="Start one there")
        zigbee = Zigbee(broker)
        zigbee.start()
        stack.callback(zigbee.stop)
        settings, wyoming_port = write_settings(directory / "agent.yaml", arguments.wyoming_port)
        topic = discovery_topic("homeassistant", settings["fleet"], settings["device"])
        announced = Announced(broker, topic)
        stack.callback(announced.stop)
        home_assistant = None
        if arguments.homeassistant is not None:
            home_assistant = start_home_assistant(arguments.homeassistant, directory / "ha", broker.port)
            stack.callback(home_assistant.stop)
        flags = ["--config", str(directory / "agent.yaml"), "--host", broker.host]
        agent = AgentProcess(
            broker.port, directory / "state", fleet=settings["fleet"], device=settings["device"], flags=flags
        )
        stack.enter_context(agent)
        with RequestClient(broker) as client:
            agent.wait_online(client)
        yield Stage(broker, zigbee, agent, announced, wyoming_port, home_assistant)


def write_settings(path: Path, wyoming_port: int | None) -> tuple[dict[str, Any], int]:
    """The settings in agent.yaml for a device that runs from here, written to `path`, and the port of Assist."""
    settings = yaml.safe_load((HERE / "agent.yaml").read_text("utf-8"))
    port = wyoming_port or free_port()
    settings["rules"] = [str((HERE / name).resolve()) for name in settings["rules"]]
    settings["homeassistant"] |= {"home": str(HERE / "home.yaml"), "wyoming_port": port}
    path.write_text(yaml.safe_dump(settings), "utf-8")
    return settings, port


def start_home_assistant(python: Path, directory: Path, port: int) -> Any:
    """A headless Home Assistant at the broker, by the Python of the environment that has it."""
    sys.path.insert(0, str(CHECKOUT))
    from benchmarks.home_assistant_rig import HomeAssistant  # noqa: PLC0415 - only in a checkout

    home_assistant = HomeAssistant(python, directory, port)
    home_assistant.start()
    return home_assistant


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# --- playing --------------------------------------------------------------------------------------------------


def play(stage: Stage) -> list[str]:
    """Play the scene; what was wrong."""
    wrong = []
    for step in SCENE:
        print(step.what)
        began_s = time.monotonic()
        reply = step.do(stage)
        is_so = stage.zigbee.wait(lambda then=step.then: not differences(stage, then), WAIT_S)
        took_ms = (time.monotonic() - began_s) * 1000
        if reply is not None:
            print(f"    {printable(reply)}  ({took_ms:.0f} ms)")
        for name in step.then:
            print(f"    {name}: {shown(stage.zigbee.state(name))}  ({took_ms:.0f} ms)")
        if not is_so:
            wrong += [f"{step.what}: {text}" for text in differences(stage, step.then)]
        if step.reply is not None and reply != step.reply:
            wrong.append(f"{step.what}: the reply is '{printable(reply or '')}', not '{step.reply}'")
        if step.refused is not None:
            if wait_for(lambda rule=step.refused: stage.has_refused(rule)):
                print(f"    {step.refused}: refused")
            else:
                wrong.append(f"{step.what}: {step.refused} did not refuse")
    wrong += [f"in the end: {text}" for text in differences(stage, ENDS_AS)]
    if len(stage.zigbee.orders) != ORDERS:
        told = "; ".join(f"{topic} {body}" for topic, body in stage.zigbee.orders)
        wrong.append(f"{len(stage.zigbee.orders)} orders instead of {ORDERS}: {printable(told)}")
    return wrong


def differences(stage: Stage, wanted: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Where things are not as `wanted`."""
    found = []
    for name, fields in wanted.items():
        state = stage.zigbee.state(name)
        found += [
            f"{name}.{key} is {printable(repr(state.get(key)))}, not {value!r}"
            for key, value in fields.items()
            if state.get(key) != value
        ]
    return found


def shown(state: Mapping[str, object]) -> str:
    """A state without what says nothing about the thing itself."""
    kept = {key: value for key, value in state.items() if key not in {"linkquality", "battery"}}
    return printable(json.dumps(kept, ensure_ascii=False))


def wait_for(holds: Callable[[], bool]) -> bool:
    """Whether `holds` becomes true in time."""
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


def show_home_assistant(stage: Stage) -> list[str]:
    """Print what Home Assistant shows, or how to let one show it; what is wrong."""
    announced = stage.announced.entities()
    print(f"announced to Home Assistant: {', '.join(announced)}")
    if stage.home_assistant is None:
        print(
            f"To see it, give your Home Assistant the integration MQTT with the broker {stage.broker.host}, port "
            f"{stage.broker.port}, and the integration Wyoming Protocol with 127.0.0.1, port {stage.wyoming_port}."
        )
        return []
    states: dict[str, Any] = {}

    def knows_all() -> bool:
        states.update(stage.home_assistant.states())
        is_whole = len(states) >= len(announced) and states["power"]["state"] != "unknown"
        return is_whole and all(one["state"] not in {None, "unavailable"} for one in states.values())

    if not wait_for(knows_all):
        return [f"Home Assistant shows {sorted(states)} of {announced}"]
    for state in sorted(states.values(), key=lambda one: str(one["entity_id"])):
        print(f"    {state['entity_id']}: {printable(str(state['state']))}")
    return [f"Home Assistant: {printable(text)}" for text in stage.home_assistant.warnings()]


def converse(stage: Stage) -> None:
    """Say to Assist what stands in the lines of standard input."""
    print("Say something, such as: open the blinds in the living room. End with Ctrl-D.")
    for line in sys.stdin:
        if line.strip():
            print(f"    {printable(stage.say(line.strip()))}")


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--once", action="store_true", help="end after the scene: 0 if all was right, else 1")
    parser.add_argument("--host", help="use the broker there instead of starting one")
    parser.add_argument("--port", type=int, help="of the broker; default: a free one, or 1883 with --host")
    parser.add_argument("--wyoming-port", type=int, help="where Assist is heard; default: a free one")
    parser.add_argument(
        "--homeassistant",
        type=Path,
        metavar="PYTHON",
        default=os.environ.get("EDGESLM_HOMEASSISTANT"),
        help="Python that has Home Assistant (make test-homeassistant sets one up): run that as well",
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with running(arguments) as stage:
            wrong = play(stage) + show_home_assistant(stage)
            for text in wrong:
                print(f"wrong: {text}", file=sys.stderr)
            print("everything is as it should be" if not wrong else f"{len(wrong)} things are wrong")
            if not arguments.once:
                converse(stage)
    except EdgeslmError as error:
        print(f"smart_home: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
