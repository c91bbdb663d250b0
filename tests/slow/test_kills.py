"""Agent and broker killed at random moments: no accepted prompt is lost, none is answered in two ways.

The scenario is the benchmark's own (``benchmarks/agent_kills.py``), with fewer kills, run as the command that
people run: what it prints is what is asserted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeslm.link.broker import find_mosquitto

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is missing; no other broker here keeps messages over a kill")
    command = [
        sys.executable,
        "-m",
        "benchmarks.agent",
        "--json",
        "--quick",
        "--only",
        "lost_prompts,double_answers",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert "lost_prompts" in found, found["notes"]
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestKills:
    def test_no_accepted_prompt_is_lost(self, report: dict[str, Any]) -> None:
        assert report["lost_prompts"] == 0, report["kill_detail"]["lost_ids"]

    def test_no_id_is_answered_in_two_ways(self, report: dict[str, Any]) -> None:
        assert report["double_answers"] == 0, report["kill_detail"]["double_ids"]

    def test_every_greedy_answer_is_the_right_one(self, report: dict[str, Any]) -> None:
        assert report["kill_detail"]["wrong_answers"] == 0

    def test_the_journal_knows_what_was_answered(self, report: dict[str, Any]) -> None:
        assert report["kill_detail"]["answered_but_not_in_journal"] == 0
        assert report["kill_detail"]["journal_without_answer"] == 0

    def test_the_kills_hit_a_running_stream(self, report: dict[str, Any]) -> None:
        detail = report["kill_detail"]
        assert sum(detail["kills"].values()) == 8
        assert detail["prompts"] > 50
        assert detail["agent_kills_with_prompts_in_work"] > 0
        assert detail["ended_by_themselves"] == 0
