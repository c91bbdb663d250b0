from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import pytest

from edgeslm.sim.script import load_script

DEMO = [sys.executable, "-m", "edgeslm", "demo", "--broker", "iotcore"]


def environment(directory: Path) -> dict[str, str]:
    """All files of the demo below `directory`, so that what is left of it can be found."""
    # An agent's own settings must not reach the demo's agent.
    return {**os.environ, "TMPDIR": str(directory), "EDGESLM_AGENT_RUN_DEVICE": "not-this-one"}


def processes_of(directory: Path) -> list[str]:
    """Processes that name a file below `directory`: agent and broker both do."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(directory) in command:
            found.append(command)
    return found


def assert_nothing_left(directory: Path) -> None:
    # An agent whose broker is gone too may spend a connection attempt (13 s at most) before it ends.
    deadline_s = time.monotonic() + 20
    while processes_of(directory) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert processes_of(directory) == []


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    directory = tmp_path_factory.mktemp("demo")
    return (
        subprocess.run(
            [*DEMO, "--once", "--json"],
            env=environment(directory),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        ),
        directory,
    )


def report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stdout.count("\n") == 1, done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def test_reports_every_command_with_its_receipt(once: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    found = report(once[0])
    assert [turn["prompt"] for turn in found["commands"]] == [c.say for c in load_script().commands]
    for turn in found["commands"]:
        assert turn["text"]
        assert turn["receipt"]["completion_tokens"] > 1
        assert turn["receipt"]["energy_j"] > 0
        assert turn["right"] == (turn["got"] == turn["expected"])
    summary = found["summary"]
    assert summary["commands"] == len(found["commands"])
    assert summary["right"] == sum(turn["right"] for turn in found["commands"])
    assert summary["broker"] == "iotcore"
    assert summary["median_total_ms"] > 0
    assert summary["meter"] in {"measured", "calibrated", "estimated"}
    assert summary["model"].startswith("home-command@")


def test_exit_code_says_whether_anything_was_wrong(
    once: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    found = report(once[0])
    assert once[0].returncode == (1 if found["wrong"] else 0)
    assert bool(found["wrong"]) == any(turn["faults"] for turn in found["commands"])


def test_no_colour_codes_where_there_is_no_terminal(
    once: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    assert "\x1b" not in once[0].stderr + once[0].stdout


def test_leaves_no_process_and_no_file(once: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    assert_nothing_left(once[1])
    assert list(once[1].iterdir()) == []


def test_every_answer_is_right_and_every_state_reached(
    once: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    assert report(once[0])["wrong"] == []
    assert once[0].returncode == 0


def test_answers_lines_from_standard_input(tmp_path: Path) -> None:
    done = subprocess.run(
        [*DEMO, "--json"],
        env=environment(tmp_path),
        input="\n turn off all the lights \nquit\nnot asked any more\n",
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    own = report(done)["commands"][len(load_script().commands) :]
    assert [(turn["prompt"], turn["expected"], turn["right"]) for turn in own] == [
        ("turn off all the lights", None, None)
    ]
    assert_nothing_left(tmp_path)
    assert list(tmp_path.iterdir()) == []


def wait_for_line(stream: IO[str], part: str) -> str:
    for line in stream:
        if part in line:
            return line
    raise AssertionError(f"'{part}' never came")


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)],
    ids=str,
)
def test_a_signal_ends_everything(number: signal.Signals, code: int, tmp_path: Path) -> None:
    with subprocess.Popen(
        DEMO,
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        wait_for_line(process.stderr, "agent online")
        assert processes_of(tmp_path) != []
        process.send_signal(number)
        assert process.wait(30) == code
    assert_nothing_left(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_notices_at_once_that_the_agent_died_while_it_was_asked(tmp_path: Path) -> None:
    with subprocess.Popen(
        DEMO,
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        agent = int(wait_for_line(process.stderr, "agent online").rsplit(maxsplit=1)[1])
        # Stopped, it cannot answer; the line is for a demo that was faster with its script.
        os.kill(agent, signal.SIGSTOP)
        process.stdin.write("turn off all the lights\n")
        process.stdin.flush()
        time.sleep(1)
        assert process.poll() is None
        killed_s = time.monotonic()
        os.kill(agent, signal.SIGKILL)
        assert "exit code -9" in wait_for_line(process.stderr, "edgeslm: ")
        assert process.wait(30) == 1
        assert time.monotonic() - killed_s < 10  # far from the time that an answer may take
    assert_nothing_left(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="relies on PR_SET_PDEATHSIG")
def test_a_killed_demo_takes_its_processes_along(tmp_path: Path) -> None:
    with subprocess.Popen(
        DEMO,
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        wait_for_line(process.stderr, "agent online")
        process.kill()
    assert_nothing_left(tmp_path)


STUCK = """
import time
import edgeslm.cli.demo
import edgeslm.link.client
from edgeslm.cli.main import cli
edgeslm.cli.demo.UNWIND_TIMEOUT_S = 1.0
edgeslm.link.client.RequestClient.close = lambda self: time.sleep(60)
cli(["demo", "--broker", "iotcore"])
"""


def test_a_signal_ends_everything_even_if_cleaning_up_gets_stuck(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUCK],
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        wait_for_line(process.stderr, "agent online")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    assert_nothing_left(tmp_path)
    assert list(tmp_path.iterdir()) == []
