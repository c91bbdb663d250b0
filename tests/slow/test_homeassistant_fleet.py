"""A real Home Assistant at a fleet's broker, with the certificate that the fleet makes, and in the smart home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.home_assistant_rig import DEVICE, FLEET, VARIABLE, HomeAssistant, home_assistant_python
from benchmarks.update_fleet_rig import fleet_rig, wait_for

ROOT = Path(__file__).parents[2]
PYTHON = home_assistant_python()
UNKNOWN = {None, "unknown", "unavailable"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason=f"no Home Assistant: make test-homeassistant, or {VARIABLE}"),
]


def _edgeslm(*arguments: object) -> None:
    command = [sys.executable, "-m", "edgeslm", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_device_of_a_fleet_is_shown_asked_and_ordered_until_access_is_taken_away(tmp_path):
    assert PYTHON is not None
    files, state = tmp_path / "files", tmp_path / "state"
    with fleet_rig(name=FLEET) as rig, rig.service():
        where = ("--fleet-dir", rig.fleet.root)
        _edgeslm("fleet", "homeassistant", "--out", files, *where)
        _edgeslm("fleet", "claim", "--device", DEVICE, "--out", tmp_path / "claim.json", *where)
        _edgeslm("agent", "enrol", tmp_path / "claim.json", "--state-dir", state)
        settings = {"state_dir": str(state), "threads": 1, "metrics": {"interval_s": 5}}
        settings["homeassistant"] = {"enabled": True}
        (tmp_path / "agent.yaml").write_text(yaml.safe_dump(settings))
        identity = tuple(files / name for name in ("ca.crt", "home-assistant.crt", "home-assistant.key"))
        home = HomeAssistant(PYTHON, tmp_path / "home-assistant", rig.config.broker.port, identity)
        agent = subprocess.Popen(
            [sys.executable, "-m", "edgeslm", "agent", "run", "--config", str(tmp_path / "agent.yaml")],
            stderr=subprocess.DEVNULL,
        )

        def knows(key: str) -> bool:
            return home.states().get(key, {}).get("state") not in UNKNOWN

        try:
            home.start()
            assert wait_for(lambda: knows("power"), 120)
            entities = {key: state["entity_id"] for key, state in home.states().items()}
            home.call("text", "set_value", entities["prompt"], value="turn on the kitchen lights")
            home.call("button", "press", entities["self_test"])
            assert wait_for(lambda: knows("answer") and knows("self_test_result"), 120)
            assert home.warnings() == []
            _edgeslm("fleet", "homeassistant", "--revoke", "--yes", *where)
            assert wait_for(
                lambda: {state["state"] for state in home.states().values()} == {"unavailable"}, 120
            )
        finally:
            home.stop()
            agent.terminate()
            agent.wait(60)


def test_the_smart_home_is_shown_in_home_assistant():
    command = [sys.executable, str(ROOT / "examples" / "smart_home" / "run.py"), "--once"]
    command += ["--homeassistant", str(PYTHON)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "select.kitchen_pi_model: home-command" in done.stdout
