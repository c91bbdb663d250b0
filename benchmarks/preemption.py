"""How long an alarm waits while a long answer is computed: ``python -m benchmarks.preemption [--json]``.

A real agent at a real broker on this machine. Each round asks once while the device is idle, and once in the midst of a
long answer of the same model. Measured by the client, from handing the alarm to the link until the first piece of its
streamed answer is there. Rounds in which the long answer was over first are left out.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import click

from edgeslm import topics
from edgeslm.cli.agent_process import AgentProcess
from edgeslm.link.broker import EmbeddedBroker
from edgeslm.link.client import RequestClient
from edgeslm.schema.message import PromptRequest, Result

DEVICE = "alarms"
TOPIC = topics.device_topic("demo", DEVICE, "prompt")
LONG = {"prompt": "turn on the kitchen lights", "regex": "[a-z ]{400}", "max_tokens": 120}
ALARM = {"prompt": "is the front door locked", "priority": "high"}


class Asked:
    """A streamed prompt on a thread of its own.

    Attributes:
        first_ms: from asking to the first piece of the answer.
        ended_s: monotonic.
    """

    def __init__(self, client: RequestClient, name: str, fields: Mapping[str, object]) -> None:
        self._request = PromptRequest.model_validate({"id": name, "stream": True, **fields})
        self._client = client
        self.first_ms: float | None = None
        self.ended_s = 0.0
        self.result: Result | None = None
        self.began = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        asked_s = time.monotonic()

        def note(_: object) -> None:
            if self.first_ms is None:
                self.first_ms = (time.monotonic() - asked_s) * 1e3
                self.began.set()

        self.result = self._client.ask(TOPIC, self._request, note, 60)
        self.ended_s = time.monotonic()

    def join(self) -> None:
        """Wait for its answer."""
        self._thread.join()


def measure(rounds: int) -> dict[str, object]:
    """Figures of `rounds` rounds."""
    idle_ms, busy_ms, queue_ms, texts = [], [], [], set()
    with ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(EmbeddedBroker())
        agent = stack.enter_context(AgentProcess(broker.port, state, device=DEVICE, flags=["--threads", "1"]))
        client = stack.enter_context(RequestClient(broker.client_config()))
        agent.wait_online(client)
        for number in range(rounds):
            idle = Asked(client, f"idle{number}", ALARM)
            idle.join()
            long = Asked(client, f"long{number}", LONG)
            long.began.wait(30)
            busy = Asked(client, f"busy{number}", ALARM)
            busy.join()
            long.join()
            assert long.result is not None
            texts.add(long.result.text)
            if idle.first_ms is not None:
                idle_ms.append(idle.first_ms)
            if busy.first_ms is not None and busy.ended_s < long.ended_s:
                busy_ms.append(busy.first_ms)
                if busy.result is not None and busy.result.receipt is not None:
                    queue_ms.append(busy.result.receipt.queue_ms)
    return {
        "rounds": rounds,
        "interrupted": len(busy_ms),
        "idle_ms": round(statistics.median(idle_ms), 2),
        "preempt_ms": round(statistics.median(busy_ms), 2) if busy_ms else None,
        "preempt_queue_ms": round(statistics.median(queue_ms), 2) if queue_ms else None,
        "long_texts": len(texts),
    }


@click.command()
@click.option("--rounds", default=30, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(rounds: int, *, as_json: bool) -> None:
    """Measure what an alarm waits for."""
    found = measure(rounds)
    print(json.dumps(found) if as_json else "\n".join(f"{key:18} {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
