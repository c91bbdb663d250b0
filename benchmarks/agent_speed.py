"""Speed and memory of the agent against the same model in process, in alternating pairs within one run."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from benchmarks.agent_client import LeanClient
from benchmarks.agent_rig import (
    DEVICE,
    FLEET,
    LONG_OPTIONS,
    REPLY_TOPIC,
    InProcess,
    MeasurementError,
    ModelWorker,
    Rig,
    ask,
    golden_prompts,
    new_id,
    prompt_body,
    rss_mb,
    say,
    wait_online,
)
from edgeslm import topics

WARM_UP = 20
RSS_AFTER_PROMPTS = 200
LONG_TOKENS = 64
"""What counts as a long answer; both sides draw the same tokens from a seed, which is checked."""

Found = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """One prompt, once through the agent and once in process."""

    wall_ms: float
    receipt: dict[str, Any]
    alone: InProcess

    @property
    def overhead_ms(self) -> float:
        """What agent and broker add."""
        return self.wall_ms - self.alone.wall_ms

    @property
    def tps_ratio(self) -> float | None:
        """Tokens a second in the agent, of those in process; ``None`` for answers of one token."""
        tps = self.receipt.get("decode_tps")
        return tps / self.alone.decode_tps if tps is not None and self.alone.decode_tps else None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def measure_start(runs: int) -> Found:
    """Process start to the `online` that a subscribed client sees."""
    took_s = []
    with Rig() as rig:
        for number in range(runs + 1):
            device = f"start-{number}"
            client = rig.client([(topics.device_topic(FLEET, device, "availability"), 1)])
            agent = rig.agent(device=device)
            began_s = time.perf_counter()
            agent.start()
            took_s.append(wait_online(client, agent) - began_s)
            client.close()
            agent.stop()
            say(f"start {number}: {took_s[-1]:.2f} s{' (unpacks the model)' if number == 0 else ''}")
    return {"start_s": median(took_s[1:]), "start_s_max": max(took_s[1:]), "start_first_s": took_s[0]}


def measure_speed(rounds: int, pairs: int, long_pairs: int) -> Found:
    """Overhead, tokens per second, answer time and memory.

    Args:
        rounds: each with processes of its own: two processes that do the same differ by some percent for as
            long as they live, depending on where their pages lie.
        pairs: of ordinary prompts, in each round.
        long_pairs: of long answers, in each round; as many again are streamed.
    """
    taken = []
    for number in range(rounds):
        taken.append(_round(pairs, long_pairs))
        last = taken[-1]
        say(
            f"round {number + 1} of {rounds}: overhead {last.overhead_ms:.2f} ms, tokens/s lost: "
            f"{last.cost('short'):.1%} short, {last.cost('long'):.1%} long, {last.cost('streamed'):.1%} streamed"
        )
    return _speed_figures(taken)


@dataclass(frozen=True)
class _Round:
    """Pairs taken with one agent process and one process of the model alone."""

    short: list[Pair]
    long: list[Pair]
    streamed: list[Pair]
    memory: Found
    runtime: str

    @property
    def overhead_ms(self) -> float:
        return median(pair.overhead_ms for pair in self.short)

    def cost(self, kind: Literal["short", "long", "streamed"]) -> float:
        """Share of tokens a second that the agent loses."""
        pairs = {"short": self.short, "long": self.long, "streamed": self.streamed}[kind]
        ratios = [pair.tps_ratio for pair in pairs if pair.tps_ratio is not None]
        if not ratios:
            raise MeasurementError("no answer has two tokens or more")
        return 1.0 - median(ratios)


def _round(pairs: int, long_pairs: int) -> _Round:
    prompts = golden_prompts()
    with Rig() as rig:
        worker = rig.worker()
        agent = rig.online_agent()
        client = rig.client()
        for index in range(WARM_UP):
            _pair(client, worker, prompts[index % len(prompts)], {}, index)
        short = [_pair(client, worker, prompts[i % len(prompts)], {}, i) for i in range(pairs)]
        for index in range(WARM_UP + pairs, RSS_AFTER_PROMPTS):
            ask(client, prompts[index % len(prompts)])
        memory = _memory(agent.pid)
        long = _long_pairs(client, worker, prompts, long_pairs, is_streamed=False)
        client.close()
        listener = rig.client([(f"{topics.ROOT}/{FLEET}/+/stream/+", 0), (REPLY_TOPIC, 1)])
        streamed = _long_pairs(listener, worker, prompts, long_pairs, is_streamed=True)
        return _Round(short, long, streamed, memory, worker.runtime)


def _long_pairs(
    client: LeanClient, worker: ModelWorker, prompts: list[str], count: int, *, is_streamed: bool
) -> list[Pair]:
    found: list[Pair] = []
    for index in range(4 * count):
        options = {**LONG_OPTIONS, "seed": index, "stream": is_streamed}
        pair = _pair(client, worker, prompts[index % len(prompts)], options, index)
        client.arrivals.clear()
        if pair.alone.tokens >= LONG_TOKENS:
            found.append(pair)
        if len(found) == count:
            return found
    raise MeasurementError(f"only {len(found)} of {4 * count} hot prompts gave {LONG_TOKENS} tokens or more")


def _pair(client: LeanClient, worker: ModelWorker, prompt: str, options: dict[str, Any], index: int) -> Pair:
    """Both ways, the first one changing from pair to pair."""
    alone = worker.run(prompt, options) if index % 2 else None
    wall_ms, result = ask(client, prompt, options)
    alone = alone or worker.run(prompt, options)
    if result["text"] != alone.text:
        raise MeasurementError(f"the agent answers '{prompt[:60]}' otherwise than the model alone")
    return Pair(wall_ms, result["receipt"], alone)


def _memory(pid: int) -> Found:
    return {
        "rss_mb": rss_mb(pid),
        "rss_peak_mb": rss_mb(pid, "VmHWM"),
        "breakdown": {"private_mb": rss_mb(pid, "RssAnon"), "mapped_files_mb": rss_mb(pid, "RssFile")},
    }


def _speed_figures(rounds: list[_Round]) -> Found:
    short = [pair for taken in rounds for pair in taken.short]
    long = [pair for taken in rounds for pair in taken.long]
    walls = [pair.wall_ms for pair in short]
    by_round = {
        "overhead_ms_p50": [taken.overhead_ms for taken in rounds],
        "answer_ms_p50": [median(pair.wall_ms for pair in taken.short) for taken in rounds],
        "tps_cost": [max(taken.cost("short"), taken.cost("long")) for taken in rounds],
        "tps_cost_short": [taken.cost("short") for taken in rounds],
        "tps_cost_long": [taken.cost("long") for taken in rounds],
        "tps_cost_streaming": [taken.cost("streamed") for taken in rounds],
        "rss_mb": [taken.memory["rss_mb"] for taken in rounds],
    }
    return {
        **{key: median(values) for key, values in by_round.items()},
        "overhead_ms_p95": percentile([pair.overhead_ms for pair in short], 0.95),
        "answer_ms_p95": percentile(walls, 0.95),
        "agent_decode_tps": median(pair.receipt["decode_tps"] for pair in long),
        "rss_peak_mb": max(taken.memory["rss_peak_mb"] for taken in rounds),
        "rss_breakdown": rounds[-1].memory["breakdown"],
        "overhead_breakdown": _breakdown(short),
        "noise": {key: (max(values) - min(values)) / 2 for key, values in by_round.items()},
        "pairs": {
            "rounds": len(rounds),
            "ordinary": len(short),
            "long": len(long),
            "streamed": sum(len(taken.streamed) for taken in rounds),
        },
        "runtime": rounds[0].runtime,
        "peers": {
            "inprocess_ms_p50": median(pair.alone.wall_ms for pair in short),
            "inprocess_decode_tps": median(pair.alone.decode_tps or 0.0 for pair in long),
        },
    }


def _breakdown(pairs: list[Pair]) -> dict[str, float]:
    """Where the overhead is: medians, which need not add up to the median of the whole."""
    total = [float(pair.receipt["total_ms"]) for pair in pairs]
    queue = [float(pair.receipt["queue_ms"]) for pair in pairs]
    return {
        "receipt_total_ms": median(total),
        "queue_ms": median(queue),
        "compute_more_ms": median(
            t - q - pair.alone.wall_ms for t, q, pair in zip(total, queue, pairs, strict=True)
        ),
        "outside_receipt_ms": median(pair.wall_ms - t for t, pair in zip(total, pairs, strict=True)),
    }


def measure_echo(count: int) -> Found:
    """The floor: the same bodies over the same broker to a program that only sends them back."""
    topic = "bench-echo/in"
    with Rig() as rig:
        echo = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.agent_echo", str(rig.port), topic], stdout=subprocess.PIPE
        )
        try:
            assert echo.stdout is not None
            if not echo.stdout.readline():
                raise MeasurementError("the echo program ended")
            client = rig.client()
            took_ms = [_echo(client, topic) for _ in range(WARM_UP + count)][WARM_UP:]
        finally:
            echo.kill()
            echo.wait()
    return {"peers": {"mqtt_echo_ms_p50": median(took_ms), "mqtt_echo_ms_p95": percentile(took_ms, 0.95)}}


def _echo(client: LeanClient, topic: str) -> float:
    request_id = new_id("e")
    body = prompt_body(request_id, "switch the lamp in the living room on")
    began_s = time.perf_counter()
    client.publish(topic, body, response_topic=REPLY_TOPIC, correlation=request_id.encode())
    arrival = client.take(10.0)
    if arrival is None or arrival.payload != body:
        raise MeasurementError("the echo did not come back")
    # As long as a prompt takes, so that both sides wake from idling as they do with the agent.
    time.sleep(0.005)
    return (arrival.at_s - began_s) * 1e3


def conditions(broker_kind: str) -> Found:
    """What the figures were taken on; the load tells whether anybody else was at work."""
    return {
        "cpus": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": sys.version.split()[0],
        "broker": broker_kind,
        "client": "paho, TCP_NODELAY, polled by the asking thread",
        "device": DEVICE,
    }
