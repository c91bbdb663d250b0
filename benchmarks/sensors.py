"""Figures of rules on the device: ``python -m benchmarks.sensors [--json] [--quick] [--only KEY,...]``.

A real mosquitto, a real agent process with home-command. ``action_ms`` is from before the publish of a reading to the
read of the action that follows it, without a model and with one. The load is 2,000 readings a second into 100 rules,
each with a window, a range and a condition; ``sensor_cpu_share`` is the agent's part of one core while it lasts, less
what it takes with nothing to do. ``prompt_delay_tokens`` is how much longer a prompt of high priority takes meanwhile
than under the same load on topics that no rule listens to, in tokens of its own decoding. The fuzz goes through a
runner in this process, thread and inbox included.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.agent_client import LeanClient
from benchmarks.agent_rig import AgentProcess, MeasurementError, Rig, ask, rss_mb, say, wait_online
from benchmarks.report import Benchmark, Found, Group, run
from benchmarks.sensors_ha import measure_home_assistant
from benchmarks.sensors_outage import measure_outage
from edgeslm import topics
from edgeslm.agent.rules.runner import MAX_INBOX, RuleRunner
from edgeslm.link.port import Message
from edgeslm.schema.message import PromptRequest, Result

BARS = {
    "action_ms_p50": ("<", 10.0),
    "action_model_ms_p50": ("<", 80.0),
    "sensor_cpu_share": ("<", 0.5),
    "prompt_delay_tokens": ("<=", 1.0),
    "fuzz_rules_running": (">=", 1.0),
    "spool_lost": ("<=", 0.0),
    "spool_unordered": ("<=", 0.0),
    "duplicates_acted": ("<=", 0.0),
    "ha_entities_share": (">=", 1.0),
}
RULES = 100
LOAD_PER_S = 2000
_WAIT_S = 10.0
_BREATH_S = 0.02
_TURN_S = 0.25
_SAID = (
    "turn on the kitchen lights",
    "turn off the bedroom lights",
    "lock the front door",
    "open the garage door",
)
_PROMPT = "set the living room temperature to 21 degrees"


def rules_text() -> str:
    """100 rules with windows that the load never sets off but by a reading of 100, and one that asks the model."""
    inputs = "\n".join(
        f"  s{number}: {{topic: sensors/{number}, path: value, range: [-50, 150], window: 5m, max_age: 1m}}"
        for number in range(RULES)
    )
    rules = "\n".join(
        f"  - name: rule-{number}\n    when: s{number} > 95 and count(s{number}) > 0\n    fire: each\n"
        f"    rate: {{most: 10000, over: 1m}}\n    then: [{{publish: {{topic: out/{number}, payload: 'ON'}}}}]"
        for number in range(RULES)
    )
    said = (
        '  - name: said\n    prompt: "{{ said }}"\n    answer: {type: object, required: [intent]}\n'
        "    rate: {most: 10000, over: 1m}\n"
        "    then: [{publish: {topic: out/said, payload: {intent: '{{ answer.intent }}'}, schema: {type: object}}}]"
    )
    head = "allow: ['out/+']\ninputs:\n  said: {topic: voice/text, decode: text}\n"
    return f"{head}{inputs}\nrules:\n{rules}\n{said}\n"


class _World:
    """A broker, an agent with the rules, and somebody who listens to what they do."""

    def __init__(self, rig: Rig, directory: Path) -> None:
        state = directory / "state"
        (state / "rules").mkdir(parents=True)
        (state / "rules" / "bench.yaml").write_text(rules_text())
        self.rig = rig
        self.agent = AgentProcess(rig.port, state)
        watcher = rig.client([(topics.device_topic("bench", "bench-1", "availability"), 1)])
        self.agent.start()
        wait_online(watcher, self.agent)
        watcher.close()
        self.client = rig.client([("out/#", 0)])


def _with_world(measure: Callable[[_World, bool], Found]) -> Callable[[bool], Found]:
    def measured(quick: bool) -> Found:
        with tempfile.TemporaryDirectory(prefix="edgeslm-rules-") as name, Rig() as rig:
            world = _World(rig, Path(name))
            try:
                return measure(world, quick)
            finally:
                world.agent.stop()

    return measured


def _round_trip_ms(client: LeanClient, topic: str, payload: bytes, out: str) -> float:
    time.sleep(_BREATH_S)
    began_s = time.perf_counter()
    client.publish(topic, payload, qos=0)
    until_s = time.monotonic() + _WAIT_S
    while time.monotonic() < until_s:
        arrival = client.take(0.5)
        if arrival is not None and arrival.topic == out:
            return (arrival.at_s - began_s) * 1e3
    raise MeasurementError(f"nothing came on {out} within {_WAIT_S:g} s")


def measure_actions(world: _World, quick: bool) -> Found:
    """A reading to its action, one at a time."""
    rounds = 50 if quick else 300
    plain = [
        _round_trip_ms(world.client, f"sensors/{n % RULES}", b'{"value": 100}', f"out/{n % RULES}")
        for n in range(rounds)
    ]
    for text in _SAID:
        _round_trip_ms(world.client, "voice/text", text.encode(), "out/said")
    by_model = [
        _round_trip_ms(world.client, "voice/text", _SAID[n % len(_SAID)].encode(), "out/said")
        for n in range(rounds // 3)
    ]
    return {
        "action_ms_p50": statistics.median(plain),
        "action_model_ms_p50": statistics.median(by_model),
        "action_ms": {"p95": _p95(plain), "rounds": len(plain)},
        "action_model_ms": {"p95": _p95(by_model), "rounds": len(by_model)},
        "rss_with_rules_mb": rss_mb(world.agent.pid),
    }


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[int(0.95 * (len(values) - 1))]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_load(world: _World, quick: bool) -> Found:
    """The agent's processor time under the load, and what a prompt of high priority notices of it."""
    seconds = 5.0 if quick else 20.0
    asker = world.rig.client()
    options = {"priority": "high"}
    for _ in range(5):
        ask(asker, _PROMPT, options)
    calm = _asks(asker, 3.0 if quick else 8.0)
    idle_s, began_s = _cpu_s(world.agent.pid), time.monotonic()
    time.sleep(3.0)
    idle = (_cpu_s(world.agent.pid) - idle_s) / (time.monotonic() - began_s)
    share, sent, _ = _loaded(world, "sensors", seconds, lambda: time.sleep(seconds))
    pairs = _in_turns(world, asker, 10.0 if quick else 100.0)
    token_ms = statistics.median(1e3 / tps for _, tps in calm)
    late_ms = statistics.median(under - beside for under, beside in pairs)
    spread_ms = statistics.pstdev(under - beside for under, beside in pairs) / len(pairs) ** 0.5
    return {
        "sensor_cpu_share": max(share - idle, 0.0),
        "prompt_delay_tokens": max(late_ms, 0.0) / token_ms,
        "load": {
            "sent_per_s": round(sent / seconds),
            "idle_share": idle,
            "prompt_ms_calm": statistics.median(ms for ms, _ in calm),
            "prompt_ms_loaded": statistics.median(under for under, _ in pairs),
            "prompt_ms_beside": statistics.median(beside for _, beside in pairs),
            "token_ms": token_ms,
            "pairs": len(pairs),
            "delay_tokens_standard_error": spread_ms / token_ms,
        },
    }


def _asks(client: LeanClient, seconds: float) -> list[tuple[float, float]]:
    """Milliseconds and tokens a second of prompts of high priority, one after the other with a breath between."""
    found = []
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        took_ms, result = ask(client, _PROMPT, {"priority": "high"})
        found.append((took_ms, float(result["receipt"]["decode_tps"])))
        time.sleep(0.02)
    return found


def _in_turns(world: _World, asker: LeanClient, seconds: float) -> list[tuple[float, float]]:
    """Median milliseconds of prompts while the load is meant for rules, each beside those while it is not.

    The load changes every :data:`_TURN_S`, since others use the machine too. Prompts near a change belong to neither.
    """
    asked: list[tuple[float, float]] = []

    def ask_on() -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            took_ms, _ = ask(asker, _PROMPT, {"priority": "high"})
            asked.append((time.monotonic(), took_ms))
            time.sleep(0.01)

    began_s = _loaded(world, "sensors,elsewhere", seconds, ask_on)[2]
    turns: dict[int, list[float]] = {}
    for at_s, took_ms in asked:
        turn, into = divmod((at_s - began_s) / _TURN_S, 1.0)
        if into > 0.2:
            turns.setdefault(int(turn), []).append(took_ms)
    return [
        (statistics.median(turns[turn]), statistics.median(turns[turn + 1]))
        for turn in sorted(turns)
        if turn % 2 == 0 and turn + 1 in turns
    ]


def _loaded(
    world: _World, roots: str, seconds: float, meanwhile: Callable[[], None]
) -> tuple[float, int, float]:
    """The agent's share of a core while a process of its own sends the load, how much it sent, when it began."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.sensors",
        "--load",
        str(world.rig.port),
        roots,
        str(seconds + 1.0),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        sending_s = float(process.stdout.readline())
        time.sleep(0.5)
        before_s, began_s = _cpu_s(world.agent.pid), time.monotonic()
        meanwhile()
        share = (_cpu_s(world.agent.pid) - before_s) / (time.monotonic() - began_s)
        sent = int(process.stdout.readline())
    return share, round(sent * seconds / (seconds + 1.0)), sending_s


def send_load(port: int, roots: Sequence[str], seconds: float) -> None:
    """2,000 readings a second in steps of a hundredth of a second; says when it begins and how many it sent.

    Args:
        roots: begin their topics, in turns of :data:`_TURN_S`.
    """
    client = LeanClient(port, [])
    chance = random.Random(1)
    began_s, sent = time.monotonic(), 0
    print(began_s, flush=True)
    while (elapsed_s := time.monotonic() - began_s) < seconds:
        root = roots[int(elapsed_s / _TURN_S) % len(roots)]
        while sent < elapsed_s * LOAD_PER_S:
            value = chance.uniform(10.0, 90.0)
            client.publish(
                f"{root}/{sent % RULES}", b'{"value": %.2f, "unit": "C", "battery": 97}' % value, qos=0
            )
            sent += 1
        client.poll(0.0)
        time.sleep(0.01)
    print(sent, flush=True)
    client.close()


# --- fuzz ----------------------------------------------------------------------------------------------------


class _Host:
    """Takes what rules do, and answers nothing."""

    def __init__(self) -> None:
        self.sent: set[str] = set()
        self.changed = threading.Condition()

    def publish(self, message: Message) -> int | None:
        """Note the topic."""
        with self.changed:
            self.sent.add(message.topic)
            self.changed.notify_all()
        return 1

    def change_filters(self, added: Sequence[tuple[str, int]], gone: Sequence[str]) -> None:
        """Nothing to do."""

    def ask(self, request: PromptRequest, rule: str, told: Callable[[Result], None]) -> None:
        """Leave it without an answer."""

    def take_back(self, request_ids: Sequence[str]) -> None:
        """Nothing to do."""

    def give_way(self) -> None:
        """Nothing is more urgent here."""


def hostile(chance: random.Random) -> bytes:
    """A body that no sensor should send."""
    kind = chance.randrange(14)
    size = chance.choice((1, 10, 100, 1000, 10_000))
    if kind == 0:
        return chance.randbytes(size)
    if kind == 1:
        return b"[" * size + b"]" * size
    if kind == 2:
        return b'{"value":' * min(size, 1000) + b"1" + b"}" * min(size, 1000)
    if kind == 3:
        return chance.choice(
            (b"NaN", b'{"value": NaN}', b'{"value": Infinity}', b'{"value": -1e999}', b"1e400")
        )
    if kind == 4:
        return b'{"value": ' + b"9" * size + b"}"
    if kind == 5:
        return b'{"value": "' + b"x" * size + b'"}'
    if kind == 6:
        return '{"value": "\udcff"}'.encode("utf-8", "surrogatepass")
    if kind == 7:
        return '{"value": 20}'.encode(chance.choice(("utf-16", "utf-32", "utf-7", "utf-8-sig")))
    if kind == 8:
        return b'{"value": null}' if size < 100 else b'{"value": {"value": {"value": 3}}}'
    if kind == 9:
        return b'{"value": [' + b"1," * size + b"1]}"
    if kind == 10:
        return b'{"value": "{{ ().__class__.__mro__[1].__subclasses__() }}"}'
    if kind == 11:
        return b'{"value": 1e15, "value": -1e15}'
    if kind == 12:
        return b""
    return b"\x00" * size


def hostile_topic(chance: random.Random, number: int) -> str:
    """Mostly the topic of a sensor; at times one that tries the tree."""
    if number % 20:
        return f"sensors/{chance.randrange(RULES)}"
    tries = (
        *("sensors/+", "sensors/#", "#", "+", "", "/", "sensors//1", "$SYS/x", "sensors/1/"),
        *(f"made/up/{number}", "sensors/\x00", "edgeslm/v1/home/pool/x/prompt"),
        *("voice/text" + "/a" * 900, "s" * 60_000),
    )
    return chance.choice(tries)


def measure_fuzz(quick: bool) -> Found:
    """100,000 hostile messages through a runner; afterwards each rule gets a good reading."""
    count = 10_000 if quick else 100_000
    chance = random.Random(7)
    host = _Host()
    with tempfile.TemporaryDirectory(prefix="edgeslm-fuzz-") as name:
        file = Path(name) / "bench.yaml"
        file.write_text(rules_text())
        runner = RuleRunner([file], None, lambda kind, detail, figures: None)
        runner.start(host)
        began_s = time.monotonic()
        for number in range(count):
            while runner.waiting >= MAX_INBOX // 2:
                time.sleep(0.001)
            runner.on_message(Message(hostile_topic(chance, number), hostile(chance)))
        took_s = time.monotonic() - began_s
        host.sent.clear()
        for number in range(RULES):
            runner.on_message(Message(f"sensors/{number}", b'{"value": 100}'))
        expected = {f"out/{number}" for number in range(RULES)}
        with host.changed:
            host.changed.wait_for(lambda: expected <= host.sent, 60.0)
        status = runner.status()
        runner.stop()
    faults = sum(item.faults for item in status.inputs)
    say(f"{faults} of {count} messages were faults, {status.shed} shed")
    return {
        "fuzz_rules_running": len(expected & host.sent) / RULES,
        "fuzz": {"payloads": count, "faults": faults, "shed": status.shed, "per_s": round(count / took_s)},
    }


BENCHMARK = Benchmark(
    name="sensors",
    about=(__doc__ or "").splitlines()[0],
    groups=(
        Group(("action_ms_p50", "action_model_ms_p50", "rss_with_rules_mb"), _with_world(measure_actions)),
        Group(("sensor_cpu_share", "prompt_delay_tokens"), _with_world(measure_load)),
        Group(("fuzz_rules_running",), measure_fuzz),
        Group(("spool_lost", "spool_unordered", "duplicates_acted"), measure_outage),
        Group(("ha_entities_share", "ha_ready_s", "ha_message_bytes"), measure_home_assistant),
    ),
    bars=BARS,
)

if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] == "--load":
        send_load(int(sys.argv[2]), sys.argv[3].split(","), float(sys.argv[4]))
    else:
        run(BENCHMARK)
