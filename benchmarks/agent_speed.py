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
from typing import Any

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


def noise_of_median(values: Sequence[float]) -> float:
    """Half the 95 % interval of the median, as box plots notch it (McGill, Tukey and Larsen, 1978)."""
    spread = percentile(values, 0.75) - percentile(values, 0.25)
    return 1.57 * spread / math.sqrt(len(values))


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


def measure_speed(pairs: int, long_pairs: int) -> Found:
    """Overhead, tokens per second, answer time and memory."""
    with Rig() as rig:
        worker = rig.worker()
        agent = rig.online_agent()
        client = rig.client()
        prompts = golden_prompts()
        for index in range(WARM_UP):
            _pair(client, worker, prompts[index % len(prompts)], {}, index)
        answered = WARM_UP
        say(f"{pairs} pairs of ordinary prompts")
        short = [_pair(client, worker, prompts[i % len(prompts)], {}, i) for i in range(pairs)]
        answered += pairs
        while answered < RSS_AFTER_PROMPTS:
            ask(client, prompts[answered % len(prompts)])
            answered += 1
        memory = _memory(agent.pid)
        say(f"{long_pairs} pairs of long answers, then as many streamed")
        long = _long_pairs(client, worker, prompts, long_pairs, is_streamed=False)
        listener = rig.client([(f"{topics.ROOT}/{FLEET}/+/stream/+", 0), (REPLY_TOPIC, 1)])
        streamed = _long_pairs(listener, worker, prompts, long_pairs, is_streamed=True)
        runtime = worker.runtime
    return {**_speed_figures(short, long, streamed), **memory, "runtime": runtime}


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
        "rss_breakdown": {"private_mb": rss_mb(pid, "RssAnon"), "mapped_files_mb": rss_mb(pid, "RssFile")},
    }


def _speed_figures(short: list[Pair], long: list[Pair], streamed: list[Pair]) -> Found:
    overheads = [pair.overhead_ms for pair in short]
    walls = [pair.wall_ms for pair in short]
    cost_short, cost_long = _tps_cost(short), _tps_cost(long)
    return {
        "overhead_ms_p50": median(overheads),
        "overhead_ms_p95": percentile(overheads, 0.95),
        "answer_ms_p50": median(walls),
        "answer_ms_p95": percentile(walls, 0.95),
        "tps_cost": max(cost_short, cost_long),
        "tps_cost_short": cost_short,
        "tps_cost_long": cost_long,
        "tps_cost_streaming": _tps_cost(streamed),
        "agent_decode_tps": median(pair.receipt["decode_tps"] for pair in long),
        "overhead_breakdown": _breakdown(short),
        "noise": {
            "overhead_ms_p50": noise_of_median(overheads),
            "answer_ms_p50": noise_of_median(walls),
            "tps_cost": noise_of_median(_tps_ratios(short if cost_short > cost_long else long)),
            "tps_cost_short": noise_of_median(_tps_ratios(short)),
            "tps_cost_long": noise_of_median(_tps_ratios(long)),
            "tps_cost_streaming": noise_of_median(_tps_ratios(streamed)),
        },
        "pairs": {"ordinary": len(short), "long": len(long), "streamed": len(streamed)},
        "peers": {
            "inprocess_ms_p50": median(pair.alone.wall_ms for pair in short),
            "inprocess_decode_tps": median(pair.alone.decode_tps or 0.0 for pair in long),
        },
    }


def _tps_cost(pairs: list[Pair]) -> float:
    return 1.0 - median(_tps_ratios(pairs))


def _tps_ratios(pairs: list[Pair]) -> list[float]:
    ratios = [pair.tps_ratio for pair in pairs if pair.tps_ratio is not None]
    if not ratios:
        raise MeasurementError("no answer has two tokens or more")
    return ratios


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
