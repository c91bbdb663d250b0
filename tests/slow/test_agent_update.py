"""A device of a fleet takes other versions of the agent itself: everything is real but the packages that it needs.

Launcher, virtual environments, broker with access list, release repository, trust check, operation and models.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.agent_update_rig import dependencies_wheel, real_wheel
from benchmarks.update_fleet_rig import FleetRig, Visitor, fleet_rig
from edgeslm import topics
from edgeslm.agent.installation import Installation
from edgeslm.fleet.agent_releases import AgentReleases
from edgeslm.fleet.operations import Outcome, Wishes, request
from edgeslm.fleet.release_metadata import RoleKeys
from edgeslm.fleet.releases import ReleaseRepository
from edgeslm.link.broker import find_mosquitto
from edgeslm.schema.agent_release import AgentInfo
from edgeslm.wheelhouse import Wheelhouse, write_archive

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]

FLEET, NAME = "green", "porch"
PATIENCE_S = 180.0


def break_it(text: str) -> str:
    return f'{text}\nraise RuntimeError("this version does not start")\n'


class World:
    """A fleet with one device, and versions of the agent that it may go to."""

    def __init__(
        self, directory: Path, rig: FleetRig, repository: ReleaseRepository, keys: dict[str, CryptoSigner]
    ) -> None:
        self.directory = directory
        self.rig = rig
        self.repository = repository
        self.keys = keys
        self.installation = Installation(directory / "opt")
        self.builds: dict[str, AgentInfo] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.log = directory / "agent.log"
        self.operator: Visitor = rig.operator([(f"{topics.ROOT}/{FLEET}/{NAME}/#", 1)])

    def archive(
        self, version: str, edits: dict[str, Callable[[str], str]] | None = None
    ) -> tuple[Path, Wheelhouse]:
        wheels = [
            real_wheel(self.directory / version, version, edits),
            dependencies_wheel(self.directory / version, Path(sysconfig.get_path("purelib"))),
        ]
        out = self.directory / f"edgeslm-agent-{version}.tar"
        return out, write_archive(wheels, out)

    def release(self, version: str, edits: dict[str, Callable[[str], str]] | None = None) -> None:
        releases = AgentReleases(self.repository.public.parent)
        self.builds[version] = releases.add(self.archive(version, edits)[0])

    def publish(self) -> None:
        self.repository.sign_pending([self.keys["targets"]])
        self.repository.publish([self.keys["snapshot"], self.keys["timestamp"]])

    def start(self) -> None:
        config = self.directory / "agent.yaml"
        state = self.rig.directory / "devices" / NAME
        config.write_text(
            json.dumps(
                {
                    "device": NAME,
                    "state_dir": str(state),
                    "threads": 1,
                    "updates": {"releases": str(self.repository.public)},
                }
            )
        )
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    str(self.installation.root / "launch.py"),
                    "agent",
                    "run",
                    "--config",
                    str(config),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def heard(self, channel: str) -> list[bytes]:
        topic = f"{topics.ROOT}/{FLEET}/{NAME}/{channel}"
        return [item.payload for item in self.operator.events.messages if item.topic == topic]

    def runs(self) -> str | None:
        bodies = self.heard("info")
        return str(json.loads(bodies[-1])["agent"]) if bodies else None

    def wait(self, is_met: Callable[[], object], what: str) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not is_met():
            assert time.monotonic() < until_s, f"in vain: {what}; {self.log.read_text()[-3000:]}"
            time.sleep(0.05)

    def update(self, version: str, **more: object) -> Outcome:
        args = {"version": version, "sha256s": [self.builds[version].sha256], **more}
        wishes = Wishes(timeout_s=PATIENCE_S, life=timedelta(hours=1), keep=True)
        (outcome,) = request(self.rig.fleet.operator_config(), FLEET, "update-agent", {NAME: args}, wishes)
        return outcome

    def ask(self, name: str) -> None:
        body = json.dumps({"id": name, "prompt": "turn on the kitchen light"}).encode()
        self.operator.publish(topics.device_topic(FLEET, NAME, "prompt"), body)

    def close(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.operator.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    keys = {name: CryptoSigner.generate_ed25519() for name in ("root", "targets", "snapshot", "timestamp")}
    repository = ReleaseRepository.create(
        tmp_path / "repository", **{name: RoleKeys((key.public_key,)) for name, key in keys.items()}
    )
    repository.sign_pending([keys["root"]])
    repository.sign_pending([keys["targets"]])
    repository.publish([keys["snapshot"], keys["timestamp"]])
    with fleet_rig(name=FLEET, trust_root=repository.root_bytes()) as rig, rig.service():
        rig.join(NAME)
        made = World(tmp_path, rig, repository, keys)
        try:
            yield made
        finally:
            made.close()


def test_it_goes_to_what_is_good_and_back_from_what_is_not(world: World):
    archive, found = world.archive("0.1.0")
    world.installation.adopt(world.installation.build(archive, "0.1.0", found.sha256))
    world.release("0.1.1")
    world.release("0.1.2", {"edgeslm/agent/service.py": break_it})
    world.publish()
    world.start()
    world.wait(lambda: world.runs() == "0.1.0", "0.1.0 is online")

    world.ask("before")
    done = world.update("0.1.1")
    assert done.state == "done", (done, world.log.read_text()[-3000:])
    world.ask("after")
    world.wait(lambda: world.runs() == "0.1.1", "0.1.1 is online")
    world.wait(lambda: world.heard("result/before") and world.heard("result/after"), "answers")
    assert world.installation.current == f"0.1.1-{world.builds['0.1.1'].sha256[:8]}"

    back = world.update("0.1.2")
    assert back.state == "rolled_back", (back, world.log.read_text()[-3000:])
    assert "not healthy after 3 starts; the last one: exit status 1" in back.text
    world.wait(lambda: world.runs() == "0.1.1", "0.1.1 is online again")
    world.ask("again")
    world.wait(lambda: world.heard("result/again"), "an answer")
    assert world.process is not None
    assert world.process.poll() is None

    older = world.update("0.1.2", allow_downgrade=True)
    assert older.state == "rolled_back", "asking again is a new attempt"
    refused = request(
        world.rig.fleet.operator_config(),
        FLEET,
        "update-agent",
        {NAME: {"version": "0.1.3", "sha256s": ["a" * 64]}},
        Wishes(timeout_s=PATIENCE_S, keep=True),
    )
    assert (refused[0].state, "does not vouch" in refused[0].text) == ("refused", True)


def test_a_device_that_is_killed_half_way_goes_on_where_it_was(world: World):
    archive, found = world.archive("0.1.0")
    world.installation.adopt(world.installation.build(archive, "0.1.0", found.sha256))
    world.release("0.1.1")
    world.publish()
    world.start()
    world.wait(lambda: world.runs() == "0.1.0", "0.1.0 is online")
    outcomes: list[Outcome] = []
    asking = threading.Thread(target=lambda: outcomes.append(world.update("0.1.1")))
    asking.start()

    def told(text: str) -> bool:
        return any(text in body.decode() for body in world.heard("e/operation"))

    def kill_and_start() -> None:
        assert world.process is not None
        world.process.kill()
        world.process.wait()
        world.start()

    world.wait(lambda: told("installing"), "it installs")
    kill_and_start()
    # As the launcher has it: a version that lacks nothing when it first looks tells nobody that it is on trial.
    world.wait(lambda: " is on trial, start 1" in world.log.read_text(), "it is on trial")
    kill_and_start()
    asking.join(PATIENCE_S)
    assert [outcome.state for outcome in outcomes] == ["done"], (outcomes, world.log.read_text()[-3000:])
    world.wait(lambda: world.runs() == "0.1.1", "0.1.1 is online")
    assert world.installation.current == f"0.1.1-{world.builds['0.1.1'].sha256[:8]}"
