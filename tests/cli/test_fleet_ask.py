"""``edgeslm fleet ask``, ``watch``, ``logs`` and ``doctor`` over a real fleet: mosquitto, and real agents."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import FleetRig, fleet_rig, wait_for
from edgeslm import topics
from edgeslm.cli.agent_process import AgentProcess
from edgeslm.cli.fleet import fleet
from edgeslm.cli.fleet_common import PARTLY
from edgeslm.cli.fleet_watch import picture
from edgeslm.fleet import broker_line
from edgeslm.fleet.broker_files import ACCESS
from edgeslm.fleet.registry import revoke_device
from edgeslm.fleet.watching import News, Seen
from edgeslm.link.broker import find_mosquitto

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")

FLEET = "green"
WAIT_S = 60.0
NOW = datetime(2026, 11, 25, tzinfo=UTC)
PROMPT = "turn on the kitchen light"


@pytest.fixture(scope="module")
def rig() -> Iterator[FleetRig]:
    with fleet_rig() as made, made.service():
        yield made


@pytest.fixture(scope="module")
def agents(rig: FleetRig) -> Iterator[dict[str, AgentProcess]]:
    """Two devices that are there, and one that joined and is off."""
    made = {}
    for name in ("one", "two", "off"):
        rig.join(name)
        state_dir = rig.directory / "devices" / name
        made[name] = AgentProcess(1, state_dir, fleet=FLEET, device=name, flags=["--threads", "1"])
    with rig.operator([(topics.fleet_filter(FLEET, "availability"), 1)]) as visitor:
        made["one"].start()
        made["two"].start()
        assert wait_for(
            lambda: len({m.topic for m in visitor.events.messages if b'"online"' in m.payload}) == 2, WAIT_S
        )
    yield made
    for agent in made.values():
        agent.terminate()


def run(rig: FleetRig, *arguments: str, stdin: str | None = None) -> Result:
    clean = {name: "" for name in os.environ if name.startswith("EDGESLM_")}
    return CliRunner(env=clean).invoke(fleet, [*arguments, "--fleet-dir", str(rig.fleet.root)], input=stdin)


def lines(result: Result, code: int = 0) -> list[dict[str, Any]]:
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return [json.loads(line) for line in result.stdout.splitlines()]


# --- ask ------------------------------------------------------------------------------------------------------


def test_all_answer_over_one_connection_and_agree(rig: FleetRig, agents: dict[str, AgentProcess]) -> None:
    result = run(rig, "ask", "one", "two", PROMPT, "--json", "--agreement", "--timeout", str(WAIT_S))
    *answers, last = lines(result)
    assert {answer["device"] for answer in answers} == {"one", "two"}
    for answer in answers:
        assert answer["ok"] is True
        assert answer["json"]["intent"] == "HassTurnOn"
        assert answer["receipt"]["energy_j"] > 0
        assert (answer["number"], answer["prompt"]) == (1, PROMPT)
    assert last["agreement"]["answered"] == last["agreement"]["same"] == 2
    assert last["agreement"]["groups"][0]["devices"] == ["one", "two"]


def test_the_whole_fleet_is_asked_and_who_is_off_is_named_at_once(
    rig: FleetRig, agents: dict[str, AgentProcess]
) -> None:
    result = run(rig, "ask", PROMPT, "--timeout", "600", "--agreement")
    assert result.exit_code == PARTLY, (result.stdout, result.stderr)
    assert "off: never seen at the broker, not asked" in result.stderr
    assert "2 of 3 answered, all the same" in result.stdout
    row = next(line for line in result.stdout.splitlines() if line.startswith("one "))
    assert "HassTurnOn" in row
    assert "ms" in row
    assert run(rig, "ask", "off", PROMPT, "--timeout", "600").exit_code == 1


def test_each_line_of_the_input_is_a_prompt(rig: FleetRig, agents: dict[str, AgentProcess]) -> None:
    given = f"{PROMPT}\n\nlock the front door\n"
    found = lines(run(rig, "ask", "one", "two", "-", "--batch", "--json", stdin=given))
    assert [(row["number"], row["prompt"]) for row in found] == [
        (1, PROMPT),
        (1, PROMPT),
        (2, "lock the front door"),
        (2, "lock the front door"),
    ]
    text = run(rig, "ask", "--where", "name=one", "--batch", stdin=given)
    assert text.exit_code == 0, (text.stdout, text.stderr)
    assert text.stdout.count("1 of 1 answered") == 2
    assert "> lock the front door" in text.stdout


def test_other_tasks_are_asked_as_well(rig: FleetRig, agents: dict[str, AgentProcess]) -> None:
    asked = ["ask", "one", "two", PROMPT, "--task", "classify", "--choices", "on,off"]
    *answers, last = lines(run(rig, *asked, "--json", "--agreement"))
    assert {answer["label"] for answer in answers} <= {"on", "off"}
    assert all(sum(answer["scores"].values()) == pytest.approx(1.0) for answer in answers)
    assert last["agreement"]["same"] == 2
    text = run(rig, *asked)
    assert f"{answers[0]['label']} (0." in text.stdout
    assert "2 of 2 answered, all the same" in text.stdout


def test_arrays_and_messages_reach_the_devices_which_say_what_they_lack(
    rig: FleetRig, agents: dict[str, AgentProcess], tmp_path: Path
) -> None:
    file = tmp_path / "window.json"
    file.write_text('{"x": [[1, 2, 3]]}')
    found = lines(run(rig, "ask", "one", "--tensor", str(file), "--json"), code=1)
    assert "task 'tensor' is not served" in found[0]["error"]["message"]
    assert found[0]["prompt"] == "arrays: x"
    said = json.dumps([{"role": "user", "content": PROMPT}])
    for given, stdin in ((said, None), ("-", said)):
        found = lines(run(rig, "ask", "one", "--messages", given, "--json", stdin=stdin), code=1)
        assert found[0]["error"]["code"] == "bad_request"
        assert "has no form for messages" in found[0]["error"]["message"]
        assert found[0]["prompt"] == PROMPT
    assert lines(run(rig, "ask", "one", PROMPT, "--json"))[0]["ok"]


def test_an_error_of_a_device_is_shown_with_its_reason(
    rig: FleetRig, agents: dict[str, AgentProcess]
) -> None:
    found = lines(run(rig, "ask", "one", PROMPT, "--model", "none-such", "--json"), code=1)
    assert (found[0]["state"], found[0]["error"]["code"]) == ("failed", "unknown_model")
    text = run(rig, "ask", "one", PROMPT, "--model", "none-such")
    assert "one: unknown_model" in text.stderr
    assert "(unknown_model" in text.stdout


def test_what_cannot_be_asked_is_a_usage_error(rig: FleetRig, agents: dict[str, AgentProcess]) -> None:
    forgotten = run(rig, "ask", "one", "two")
    assert forgotten.exit_code == 2
    assert "'two' is a device" in forgotten.stderr
    assert run(rig, "ask", "none-such", PROMPT).exit_code == 2
    assert run(rig, "ask", "one", PROMPT, "--temperature", "99").exit_code == 2
    assert run(rig, "ask", "one", "-", stdin=" \n").exit_code == 2


def test_ctrl_c_ends_the_waiting_for_the_next_line(rig: FleetRig, agents: dict[str, AgentProcess]) -> None:
    arguments = ["-m", "edgeslm", "fleet", "ask", "one", "-", "--batch", "--json"]
    asking = subprocess.Popen(
        [sys.executable, *arguments, "--fleet-dir", str(rig.fleet.root)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert asking.stdin is not None
    assert asking.stdout is not None
    asking.stdin.write(f"{PROMPT}\n".encode())
    asking.stdin.flush()
    assert json.loads(asking.stdout.readline())["ok"] is True
    asking.send_signal(signal.SIGINT)
    assert asking.wait(WAIT_S) == 1
    asking.stdin.close()
    asking.stdout.close()


def test_one_that_stops_in_the_middle_does_not_hold_the_others_up(
    rig: FleetRig, agents: dict[str, AgentProcess]
) -> None:
    """A device that says that it is there and never answers is given up after the time, and its prompt cancelled."""
    rig.join("mute")
    with rig.operator() as operator:
        operator.publish(
            topics.device_topic(FLEET, "mute", "availability"), b'{"v":1,"state":"online"}', retain=True
        )
    with rig.operator([(topics.device_topic(FLEET, "mute", "cancel"), 1)]) as visitor:
        found = lines(run(rig, "ask", "one", "mute", PROMPT, "--timeout", "3", "--json"), code=PARTLY)
        assert [(row["device"], row["state"]) for row in found] == [("one", "answered"), ("mute", "silent")]
        assert wait_for(lambda: len(visitor.events.messages) == 1)
    with rig.operator() as operator:
        operator.publish(topics.device_topic(FLEET, "mute", "availability"), b"", retain=True)


# --- logs -----------------------------------------------------------------------------------------------------


def test_the_log_of_a_device_comes_over_and_does_not_tell_of_being_read(
    rig: FleetRig, agents: dict[str, AgentProcess]
) -> None:
    first = run(rig, "logs", "one")
    assert first.exit_code == 0, (first.stdout, first.stderr)
    assert "connected to the broker" in first.stdout
    assert "logs/" not in run(rig, "logs", "one").stdout
    (told,) = lines(run(rig, "logs", "one", "--lines", "1", "--json"))
    assert (told["device"], len(told["lines"])) == ("one", 1)
    assert told["left_out"] == len(first.stdout.splitlines()) - 1
    assert "no lines" in run(rig, "logs", "one", "--level", "error").stderr
    assert run(rig, "logs", "none-such").exit_code == 2


def test_a_log_is_followed_until_it_is_stopped(rig: FleetRig, agents: dict[str, AgentProcess]) -> None:
    arguments = ["-m", "edgeslm", "fleet", "logs", "two", "--follow", "--every", "1", "--json"]
    following = subprocess.Popen(
        [sys.executable, *arguments, "--fleet-dir", str(rig.fleet.root)], stdout=subprocess.PIPE, text=True
    )
    assert following.stdout is not None
    seen: list[str] = []

    def read_until(words: str) -> None:
        while not seen or words not in seen[-1]:
            line = following.stdout.readline()  # type: ignore[union-attr]
            assert line, seen
            seen.append(json.loads(line)["line"])

    read_until("connected to the broker")
    run(rig, "exec", "self-test", "two", "--timeout", str(WAIT_S))
    read_until("operation self-test")
    following.send_signal(signal.SIGINT)
    assert following.wait(WAIT_S) == 0
    assert len(seen) == len(set(seen))


def test_a_device_that_is_off_tells_no_log(rig: FleetRig, agents: dict[str, AgentProcess]) -> None:
    result = run(rig, "logs", "off", "--timeout", "2")
    assert result.exit_code == 1
    assert "never seen at the broker" in result.stderr


# --- watch ----------------------------------------------------------------------------------------------------


def test_devices_are_seen_as_they_are_without_a_server(
    rig: FleetRig, agents: dict[str, AgentProcess]
) -> None:
    (found,) = lines(run(rig, "watch", "--once", "--json"))
    devices = {one["device"]: one for one in found}
    assert devices["one"]["presence"] == "online"
    assert "home-command" in devices["one"]["running"]
    assert "presence" not in devices["off"]
    text = run(rig, "watch", "one", "off", "--once")
    assert text.exit_code == 0, text.stderr
    assert "1 of 2 online" in text.stderr
    assert "never seen" in text.stdout


def test_what_changes_comes_as_lines_where_there_is_no_terminal(
    rig: FleetRig, agents: dict[str, AgentProcess]
) -> None:
    arguments = ["-m", "edgeslm", "fleet", "watch", "two", "--fleet-dir", str(rig.fleet.root)]
    watching = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    assert watching.stdout is not None
    assert watching.stdout.readline().startswith("DEVICE")
    assert watching.stdout.readline().startswith("two")
    run(rig, "exec", "self-test", "two", "--timeout", str(WAIT_S))
    assert "two  operation  self-test: received" in watching.stdout.readline()
    assert "two  operation  self-test: done" in watching.stdout.readline()
    watching.send_signal(signal.SIGTERM)
    assert watching.wait(WAIT_S) == 0


def test_on_a_terminal_it_is_a_screen_that_ends_with_ctrl_c(
    rig: FleetRig, agents: dict[str, AgentProcess]
) -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    arguments = ["-m", "edgeslm", "fleet", "watch", "--fleet-dir", str(rig.fleet.root)]
    watching = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while b"Ctrl-C ends" not in shown:
        shown += os.read(ours, 65_536)
    watching.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the terminal is gone with the process
        while piece := os.read(ours, 65_536):
            shown += piece
    assert watching.wait(WAIT_S) == 0
    os.close(ours)
    assert b"green: 2 of" in shown
    assert watching.stderr is not None
    assert watching.stderr.read() == b""
    watching.stderr.close()


def test_the_screen_shows_what_fits_the_troubled_first() -> None:
    seen = [
        Seen(device="fine", presence="online", running={"m": "1.0.0"}, power_w=3.0),
        Seen(device="gone", presence="offline"),
        Seen(device="hot", presence="online", troubles=("throttled",), event="\x1b[2J91 C"),
    ]
    news = [News(at=NOW, device="hot", kind="event", severity="warning", text="too hot\x1b[2J")]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(picture("green", seen, news, NOW, 2))
    text = console.export_text()
    assert text.startswith("green: 2 of 3 online, 3.00 W by 1 that report")
    assert "1 more do not fit" in text
    assert text.index("gone") < text.index("hot")
    assert "fine" not in text
    assert "\x1b" not in text
    assert "too hot?[2J" in text


# --- doctor ---------------------------------------------------------------------------------------------------


def check(rig: FleetRig, code: int = 0) -> dict[str, dict[str, Any]]:
    (found,) = lines(run(rig, "doctor", "--json"), code)
    assert found["ok"] is (code == 0)
    return {one["name"]: one for one in found["findings"]}


def test_a_fleet_in_order_is_found_in_order(rig: FleetRig, agents: dict[str, AgentProcess]) -> None:
    found = check(rig)
    essential = ("files", "certificates", "store", "clock", "broker", "service", "identity", "joining")
    assert {name: found[name]["status"] for name in essential} == dict.fromkeys(essential, "ok")
    assert found["presence"]["detail"].startswith("2 of ")
    text = run(rig, "doctor")
    assert text.exit_code == 0, text.stderr
    assert "ok  broker" in text.stdout
    assert "answers, its files are in order" in text.stdout


def test_what_is_not_in_order_is_found(rig: FleetRig, agents: dict[str, AgentProcess]) -> None:
    access = rig.fleet.broker / ACCESS
    before = access.read_bytes()
    access.write_bytes(before + b"topic readwrite #\n")
    rig.fleet.operator_key.chmod(0o644)
    try:
        found = check(rig)
        assert (found["broker"]["status"], found["files"]["status"]) == ("warning", "warning")
        assert "acl" in found["broker"]["detail"]
        rig.fleet.root.chmod(0o755)
        assert "operator.key" in check(rig, 1)["files"]["detail"]
    finally:
        access.write_bytes(before)
        rig.fleet.operator_key.chmod(0o600)
        rig.fleet.root.chmod(0o700)


def test_what_the_fleet_cannot_work_without_is_essential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_line, "CONNECT_TIMEOUT_S", 1.0)
    with fleet_rig() as rig:
        with rig.service():
            rig.join("stolen")
        with rig.store.write() as session:
            revoke_device(session, "stolen", reason="lost", actor="a test", now=rig.now())
        assert "1 revoked certificates are not on its list" in check(rig, 1)["broker"]["detail"]
        rig.broker.sync(rig.store, rig.now())
        assert check(rig)["broker"]["status"] == "ok"

        rig.process.stop()
        found = check(rig, 1)
        assert found["broker"]["status"] == "failed"
        assert "cannot be reached" in found["broker"]["detail"]
        assert "service" not in found

        rig.store.close()
        (rig.fleet.root / "fleet.db").write_bytes(b"no database" * 1000)
        for extra in ("-wal", "-shm"):
            (rig.fleet.root / f"fleet.db{extra}").unlink(missing_ok=True)
        found = check(rig, 1)
        assert found["store"]["status"] == "failed"
        assert "broker" not in found
        (rig.fleet.root / "fleet.db").unlink()
        found = check(rig, 1)
        assert (found["files"]["status"], found["store"]["status"]) == ("failed", "failed")
        assert not (rig.fleet.root / "fleet.db").exists()
        assert not (rig.fleet.root / "metrics.db").exists()
        rig.process.start()
