"""SIGKILL for agent and broker at random moments under a stream of prompts: is one lost, or answered twice?

The moments come from a seed; what they hit depends on the machine. After each kill the victim is started
again after a short while, as systemd would. Half of the kills wait until answers flow again, so that they hit
work; the others do not, so that they hit a start or a recovery too.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from benchmarks.agent_rig import AgentProcess, MeasurementError, Rig, golden_prompts, say
from benchmarks.agent_stream import OUTSTANDING, Asked, PromptStream
from benchmarks.agent_tap import WireTap

SEED = 20_261_125
RECOVERY_TIMEOUT_S = 30.0
DRAIN_TIMEOUT_S = 60.0
LINGER_S = 2.0
"""Time in which a second answer may still come after the last first one."""
_SHOWN = 10

Victim = Literal["agent", "broker", "both"]


def measure_kills(kills: int, seed: int = SEED) -> dict[str, Any]:
    """Kill `kills` times and count.

    Raises:
        MeasurementError: the broker here keeps nothing over a kill, or the scenario did not get going.
    """
    rng = random.Random(seed)
    with Rig(is_persistent=True) as rig:
        worker = rig.worker()
        prompts = golden_prompts()
        expected = {prompt: worker.expected(prompt) for prompt in prompts}
        tap = WireTap(rig.port)
        agent = rig.online_agent(tap.port)
        stream = PromptStream(rig.port, prompts, expected, seed)
        stream.start()
        if not stream.wait_answers(5, RECOVERY_TIMEOUT_S):
            raise MeasurementError(f"no answers before the first kill: {agent.log_tail()}")
        began_s = time.monotonic()
        recoveries_s: list[float] = []
        hit: list[int] = []
        died = 0
        for number, victim in enumerate(_victims(kills, rng)):
            died += (not agent.is_running) + (not rig.broker.is_running)
            recovery_s = _kill(victim, rig, agent, stream, rng, hit)
            if recovery_s is not None:
                recoveries_s.append(recovery_s)
            if (number + 1) % 10 == 0:
                say(f"{number + 1} kills, {len(stream.asked)} prompts, {stream.answered} answered")
        drained_s = stream.finish(DRAIN_TIMEOUT_S, LINGER_S)
        took_s = time.monotonic() - began_s
        agent.stop()
        tap.close()
        evidence = _Evidence(stream.asked, stream.unanswered, tap, _read_journal(agent.journal_path))
    found: dict[str, Any] = {
        "lost_prompts": len(evidence.lost),
        "double_answers": len(evidence.doubled),
        "kills_s": took_s,
        "kill_detail": {
            "seed": seed,
            "kills": dict(Counter(_victims(kills, random.Random(seed)))),
            "agent_kills_with_prompts_in_work": sum(count > 0 for count in hit),
            "prompts_in_work_at_those": sum(hit),
            "ended_by_themselves": died,
            "kills_with_recovery_awaited": len(recoveries_s),
            "client_connections": stream.connections,
            "drained_s": drained_s,
            "unasked": stream.unasked[:_SHOWN],
            **evidence.detail(),
        },
    }
    if recoveries_s:
        found |= {"recovery_s_p50": median(recoveries_s), "recovery_s_max": max(recoveries_s)}
    return found


def _victims(kills: int, rng: random.Random) -> list[Victim]:
    """Agent and broker as often as each other, and both at once now and then, in random order."""
    one_each = kills * 9 // 20
    victims: list[Victim] = ["both"] * (kills - 2 * one_each)
    for _ in range(one_each):
        victims += ["agent", "broker"]
    rng.shuffle(victims)
    return victims


def _kill(
    victim: Victim, rig: Rig, agent: AgentProcess, stream: PromptStream, rng: random.Random, hit: list[int]
) -> float | None:
    """One kill and the restart; the seconds until answers flowed again, where that was awaited.

    Args:
        victim: whom.
        rig: has the broker.
        agent: the agent.
        stream: the client, whose answers tell that all is well again.
        rng: for the moments.
        hit: gets the number of prompts that an agent had accepted and not answered when it was killed.
    """
    awaits, down_s, pause_s = rng.random() < 0.5, rng.uniform(0, 0.3), rng.uniform(0, 0.5)
    early_s = rng.uniform(0.02, 1.5)
    killed_s = time.monotonic()
    if victim != "broker":
        agent.kill()
        hit.append(_open_prompts(agent.journal_path))
    if victim != "agent":
        rig.broker.kill()
    time.sleep(down_s)
    if victim != "agent":
        rig.broker.start()
    if victim != "broker":
        agent.start()
    if not awaits:
        time.sleep(early_s)
        return None
    # As many may have been on their way when the victim died: one more is an answer to a prompt asked since.
    if not stream.wait_answers(OUTSTANDING + 1, RECOVERY_TIMEOUT_S):
        say(f"no answers {RECOVERY_TIMEOUT_S:g} s after a kill of {victim}: {agent.log_tail()}")
        return None
    recovery_s = time.monotonic() - killed_s
    time.sleep(pause_s)
    return recovery_s


def _open_prompts(path: Path) -> int:
    """Accepted prompts without an answer in a dead agent's journal; read from a copy, the original stays."""
    with tempfile.TemporaryDirectory() as directory:
        for file in path.parent.glob(f"{path.name}*"):
            if not file.name.endswith("-shm"):
                shutil.copy(file, directory)
        return sum(result is None for result in _read_journal(Path(directory) / path.name).values())


def _read_journal(path: Path) -> dict[str, bytes | None]:
    """The agent's own record: the answer of each accepted id, ``None`` while there is none."""
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT id, result FROM prompts").fetchall()
    db.close()
    return {str(row[0]): None if row[1] is None else bytes(row[1]) for row in rows}


@dataclass(frozen=True)
class _Evidence:
    """What the client, the wire and the agent's own record tell, by id."""

    asked: dict[str, Asked]
    unanswered: list[str]
    tap: WireTap
    journal: dict[str, bytes | None]

    def bodies(self, name: str) -> set[bytes]:
        """The different answers to `name`: arrived, published, or journalled."""
        stored = self.journal.get(name)
        return self.asked[name].answers | self.tap.answers[name] | ({stored} if stored is not None else set())

    @property
    def lost(self) -> list[str]:
        """Accepted ids without an answer, or without another one after they were asked again."""
        waiting = set(self.unanswered)
        return [n for n, item in self.asked.items() if item.accepted and (not item.answers or n in waiting)]

    @property
    def doubled(self) -> list[str]:
        """Ids with two different answers."""
        return [name for name in self.asked if len(self.bodies(name)) > 1]

    def detail(self) -> dict[str, Any]:
        """Counts behind the two figures."""
        asked, tap = self.asked, self.tap
        streamed = [name for name, item in asked.items() if item.is_streamed]
        return {
            "prompts": len(asked),
            "accepted": sum(item.accepted for item in asked.values()),
            "answered": sum(bool(item.answers) for item in asked.values()),
            "asked_again_after_the_answer": sum(item.asked_again for item in asked.values()),
            "prompts_sent_more_than_once": sum(item.sends > 1 for item in asked.values()),
            "prompts_sent_again_for_silence": sum(item.silences > 0 for item in asked.values()),
            "prompts_answered_more_than_once_the_same": sum(n > 1 for n in tap.times_published.values()),
            "answers_that_differ_in_text": sum(len(_texts(self.bodies(name))) > 1 for name in asked),
            "wrong_answers": sum(
                item.expected is not None and not _texts(item.answers) <= {item.expected}
                for item in asked.values()
            ),
            "refusals": dict(Counter(text for item in asked.values() for text in item.refusals)),
            "streamed": len(streamed),
            "streams_begun_again": sum(len(tap.streams[name]) > 1 for name in streamed),
            "streams_completed_twice": sum(tap.complete_runs(name) > 1 for name in streamed),
            "journal_without_answer": sum(result is None for result in self.journal.values()),
            "answered_but_not_in_journal": sum(
                bool(item.answers) and self.journal.get(name) is None for name, item in asked.items()
            ),
            "lost_ids": self.lost[:_SHOWN],
            "double_ids": [
                {name: sorted(body.decode() for body in self.bodies(name))} for name in self.doubled[:_SHOWN]
            ],
        }


def _texts(answers: set[bytes]) -> set[str]:
    return {str(json.loads(answer).get("text")) for answer in answers}
