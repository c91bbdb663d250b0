"""What an outage of the broker costs: reports lost, prompts computed twice.

A real mosquitto is killed and comes back after ten minutes (a rough look: 15 s), while four clients ask one prompt
after the other and the agent reports each second instead of each minute; the spool goes to the disk after 60 s.
``spool_lost`` are numbers missing from what a subscriber with a kept session got; ``duplicates_acted`` are prompts that
the agent says it answered, less those that were asked.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.agent_rig import (
    DEVICE,
    FLEET,
    PROMPT_TOPIC,
    AgentProcess,
    MeasurementError,
    Rig,
    golden_prompts,
    say,
    wait_online,
)
from benchmarks.report import Found
from edgeslm import topics
from edgeslm.errors import EdgeslmError
from edgeslm.link.client import RequestClient
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.message import PromptRequest

_CHANNELS: tuple[topics.DeviceChannel, ...] = ("m/power", "m/inference", "m/system")
_ASKERS = 4
_WAIT_S = 120.0


class _Agent(AgentProcess):
    """One that reports each second."""

    def __init__(self, port: int, directory: Path) -> None:
        super().__init__(port, directory / "state")
        config = directory / "agent.yaml"
        config.write_text("metrics: {interval_s: 1}\n")
        self._command += ["--config", str(config)]


class _Watcher:
    """Keeps what a device reports, in the order in which it came."""

    def __init__(self, config: BrokerConfig) -> None:
        self._changed = threading.Condition()
        self.reports: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._link = MqttLink(config, "bench-watcher")
        self._link.start(self, [(topics.device_topic(FLEET, DEVICE, channel), 1) for channel in _CHANNELS])

    def on_message(self, message: Message) -> None:
        """Note a report."""
        with self._changed:
            self.reports[message.topic.rsplit("/", 1)[1]].append(json.loads(message.payload))
            self._changed.notify_all()
        message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None:
        """Nothing to do."""

    def on_disconnected(self, reason: str) -> None:
        """Nothing to do."""

    def on_published(self, token: int) -> None:
        """Nothing to do."""

    def wait(self, is_met: Any) -> None:
        """Wait until `is_met`."""
        with self._changed:
            if not self._changed.wait_for(is_met, _WAIT_S):
                raise MeasurementError(f"the reports after the outage are not complete within {_WAIT_S:g} s")

    def answered(self) -> int:
        """Prompts that the device says it answered, each report counted once."""
        reports = {report["seq"]: report for report in self.reports["inference"]}
        return sum(model["answered"] for report in reports.values() for model in report["models"])

    def has_drained(self, least: int) -> bool:
        """Whether `least` reports are here, and the latest says that none waits."""
        reports = self.reports["system"]
        return len(reports) > least and reports[-1].get("spool_waiting", 1) == 0

    def close(self) -> None:
        """Disconnect."""
        self._link.stop()


class _Load:
    """Clients that ask until told to stop."""

    def __init__(self, config: BrokerConfig, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.answered: list[str] = []
        self.faults: list[str] = []
        self._stopped = threading.Event()
        self._client = RequestClient(config).connect()
        self._prompts = golden_prompts()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(_ASKERS)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        number = 0
        while not self._stopped.is_set():
            number += 1
            request = PromptRequest(id=uuid.uuid4().hex, prompt=self._prompts[number % len(self._prompts)])
            try:
                result = self._client.ask(PROMPT_TOPIC, request, timeout_s=self._timeout_s)
            except EdgeslmError as error:
                self.faults.append(str(error))
                return
            if result.error is not None:
                self.faults.append(result.error.message)
            self.answered.append(request.id)

    def stop(self) -> None:
        """Let each finish."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(_WAIT_S)
        self._client.close()


def measure_outage(quick: bool) -> Found:
    """The figures of an outage that goes over to the disk; of a shorter one for a rough look."""
    return measure(15.0 if quick else 600.0)


def measure(outage_s: float) -> Found:
    """Kill the broker under load, bring it back after `outage_s`, and count."""
    with tempfile.TemporaryDirectory(prefix="edgeslm-outage-") as name, Rig(is_persistent=True) as rig:
        config = rig.broker.client_config()
        watcher = _Watcher(config)
        agent = _Agent(rig.port, Path(name))
        try:
            client = rig.client([(topics.device_topic(FLEET, DEVICE, "availability"), 1)])
            agent.start()
            wait_online(client, agent)
            client.close()
            load = _Load(config, outage_s + 2 * _WAIT_S)
            watcher.wait(lambda: watcher.answered() > 10)
            say(f"the broker is away for {outage_s:g} s")
            known = len(watcher.reports["system"])
            rig.broker.kill()
            time.sleep(outage_s)
            rig.broker.start()
            back_s, before = time.monotonic(), len(load.answered)
            watcher.wait(lambda: watcher.has_drained(known + int(outage_s * 0.8)))
            drained_s = time.monotonic() - back_s
            time.sleep(3.0)
            load.stop()
            watcher.wait(lambda: watcher.answered() >= len(load.answered))
            last = watcher.reports["inference"][-1]["seq"]
            watcher.wait(lambda: watcher.reports["inference"][-1]["seq"] >= last + 3)
        finally:
            agent.stop()
            watcher.close()
    if load.faults:
        raise MeasurementError(f"a prompt was not answered: {load.faults[0]}")
    lost, unordered, again = 0, 0, 0
    for reports in watcher.reports.values():
        seqs = [int(report["seq"]) for report in reports]
        firsts = list(dict.fromkeys(seqs))
        lost += max(firsts) + 1 - len(firsts)
        unordered += firsts != sorted(firsts)
        again += len(seqs) - len(firsts)
    dropped = watcher.reports["system"][-1].get("spool_dropped", 0)
    return {
        "spool_lost": lost + dropped,
        "duplicates_acted": watcher.answered() - len(load.answered),
        "spool_unordered": unordered,
        "outage": {
            "seconds": outage_s,
            "reports": sum(len(reports) for reports in watcher.reports.values()),
            "reports_again": again,
            "prompts": len(load.answered),
            "prompts_after": len(load.answered) - before,
            "drained_s": round(drained_s, 1),
        },
    }
