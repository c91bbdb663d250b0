"""A fleet and an emulated board that joins it, made with the commands that a person would use.

For tests and benchmarks. The fleet's broker listens on this machine's loopback, which the board reaches as 10.0.2.2;
nothing else reaches it. Every command is a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.agent_rig import MeasurementError
from benchmarks.update_fleet_rig import Visitor, free_ports
from edgeslm import topics
from edgeslm.children import bound_to_parent
from edgeslm.cli.wiring import package_path
from edgeslm.flash.image.image import open_image
from edgeslm.flash.image.sparse import copy_part
from edgeslm.flash.image.tools import find_tool
from edgeslm.fleet.directory import FleetDirectory
from edgeslm.link.broker import find_mosquitto
from edgeslm.sim.qemu import HOST, EmulatedBoard, Emulation

FLEET, DEVICE, MODEL = "green", "porch", "home-command"
NEXT_VERSION = "1.0.1"
PROMPT = "turn on the kitchen light"
PATIENCE_S = float(os.environ.get("EDGESLM_BOOT_PATIENCE_S", "420"))
"""Longest for a boot or an update, on a machine that does other things as well."""
_GOLDEN = 6
_PROFILE = """\
name: emulated
title: A board that is emulated
description: For tests. What is emulated has no speed of its own, so that updates are judged by their answers alone.
extends: default
agent:
  metrics: {interval_s: 10}
  updates:
    policy:
      gate:
        {speed: null, energy: null, memory: 10, required: [answers],
         min_rounds: 4, max_rounds: 4, block_s: 0.1, cool_s: 0}
      load_s: 600
      answer_s: 600
      probation_s: 30
"""
_NEEDED = {
    "qemu-system-aarch64": "qemu-system-arm", "qemu-img": "qemu-utils", "apt-get": "apt", "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs", "mkfs.vfat": "dosfstools", "mcopy": "mtools", "sfdisk": "fdisk", "depmod": "kmod",
}  # fmt: skip


def missing() -> str | None:
    """What this machine lacks for all this, with the line that installs it; ``None`` where it has all."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    lacking = {package for name, package in _NEEDED.items() if shutil.which(name, path=path) is None}
    if find_mosquitto() is None:
        lacking.add("mosquitto")
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists():
        lacking.add("debian-archive-keyring")
    return f"sudo apt-get install {' '.join(sorted(lacking))}" if lacking else None


class BootRig:
    """The fleet, its service, and images of boards for it.

    Attributes:
        directory: where all of it lies.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.profiles = directory / "profiles"
        self.profiles.mkdir()
        (self.profiles / "emulated.yaml").write_text(_PROFILE)
        self._secret = directory / "secret"
        self._secret.write_text("four words of mine")
        self.fleet_dir = directory / "fleet"
        ports = [str(port) for port in free_ports(3)]
        self.cli(
            *(
                "fleet",
                "init",
                FLEET,
                "--broker-host",
                HOST,
                "--bind",
                "127.0.0.1",
                "--broker-port",
                ports[0],
            ),
            *("--claim-port", ports[1], "--operator-port", ports[2], "--json"),
        )
        self.cli("fleet", "release", "init", "--passphrase-file", str(self._secret), "--json")

    def cli(self, *arguments: str, timeout_s: float = 600.0, as_json: bool = True) -> Any:
        """Run a command of edgeslm to its end; what it says, read as JSON.

        Raises:
            MeasurementError: it failed.
        """
        environment = {**os.environ, "EDGESLM_FLEET_DIR": str(self.fleet_dir)}
        done = subprocess.run(
            [sys.executable, "-m", "edgeslm", *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False,
        )  # fmt: skip
        if done.returncode:
            raise MeasurementError(f"edgeslm {' '.join(arguments)}: {done.stderr[-1500:]}")
        return json.loads(done.stdout) if as_json else done.stdout

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The broker runs, and the fleet answers."""
        log = self.directory / "serve.log"
        command = [sys.executable, "-m", "edgeslm", "fleet", "serve", "--broker", "--releases-port", "0"]
        with log.open("ab") as said:
            service = subprocess.Popen(
                bound_to_parent(command),
                stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
                env={**os.environ, "EDGESLM_FLEET_DIR": str(self.fleet_dir)},
            )  # fmt: skip
        try:
            wait_for(lambda: "answering devices" in log.read_text(), 60, lambda: log.read_text()[-1500:])
            yield
        finally:
            service.send_signal(signal.SIGTERM)
            try:
                service.wait(30)
            except subprocess.TimeoutExpired:
                service.kill()
                service.wait()

    def base_image(self, board: str) -> Path:
        """An image of Debian for a board: made, or the one made last where no mirror can be reached."""
        out = self.directory / f"base-{board}.img"
        if not out.exists():
            command = ("flash", "base-image", "--board", board, "--out", str(out), "--json")
            try:
                self.cli(*command)
            except MeasurementError as error:
                try:
                    self.cli(*command, "--offline")
                except MeasurementError:
                    raise error from None
        return out

    def prepare(self, board: str, device: str, *more: str) -> Path:
        """The image of a board that is to join as `device`."""
        claim, out = self.directory / f"{device}.claim.json", self.directory / f"{device}.img"
        self.cli("fleet", "claim", "--device", device, "--out", str(claim), "--json")
        self.cli(
            *(
                "flash",
                "prepare",
                "--board",
                board,
                "--profile",
                "emulated",
                "--profiles-dir",
                str(self.profiles),
            ),
            *(
                "--image",
                str(self.base_image(board)),
                "--claim",
                str(claim),
                "--out",
                str(out),
                "--json",
                *more,
            ),
        )
        return out

    def release_next(self) -> str:
        """Publish another version of the model: the same one with fewer golden prompts."""
        source = self.directory / "next"
        with zipfile.ZipFile(package_path(MODEL)) as package:
            package.extractall(source)
        manifest = json.loads((source / "manifest.json").read_text())
        manifest["version"] = NEXT_VERSION
        manifest.pop("files", None)
        (source / "manifest.json").write_text(json.dumps(manifest))
        golden = source / "golden.jsonl"
        golden.write_text("".join(golden.read_text().splitlines(keepends=True)[:_GOLDEN]))
        out = self.directory / "next.slm"
        self.cli("model", "pack", str(source), "--out", str(out), "--json")
        self.cli(
            *("fleet", "release", "add", str(out), "--key", str(self.fleet_dir / "keys/targets.pem")),
            *("--passphrase-file", str(self._secret), "--yes", "--json"),
        )
        return f"{MODEL}@{NEXT_VERSION}"

    @contextmanager
    def listening(self, device: str) -> Iterator[Ear]:
        """Hear all that a device says."""
        ear = Ear(FleetDirectory(self.fleet_dir), device)
        try:
            yield ear
        finally:
            ear.close()


class Ear:
    """All that is said below a device's topic, from now on."""

    def __init__(self, fleet: FleetDirectory, device: str) -> None:
        self._root = f"{topics.ROOT}/{FLEET}/{device}/"
        filters = [(f"{self._root}#", 1), (f"{topics.ROOT}/{FLEET}/enrol/#", 1)]
        self._visitor = Visitor(fleet.operator_config(), f"operator-{device}-{os.getpid()}", filters)
        self._count = 0

    def since(self, first: int, channel: str) -> list[bytes]:
        """Bodies on one channel, of messages after the first so many."""
        topic = self._root + channel
        return [one.payload for one in self._visitor.events.messages[first:] if one.topic == topic]

    @property
    def count(self) -> int:
        """How many messages there were."""
        return len(self._visitor.events.messages)

    def is_online(self, first: int) -> bool:
        """Whether it said so, after the first so many messages."""
        return any(b'"online"' in body for body in self.since(first, "availability"))

    def hears(self, first: int, part: str) -> bool:
        """Whether there was a message with `part` in its topic, after the first so many."""
        return any(part in one.topic for one in self._visitor.events.messages[first:])

    def ask(self, name: str, text: str = PROMPT) -> None:
        """Publish a prompt."""
        self._visitor.publish(f"{self._root}prompt", json.dumps({"id": name, "prompt": text}).encode())

    def answer(self, name: str) -> dict[str, Any] | None:
        """The result of a prompt, once it is there."""
        for body in self.since(0, f"result/{name}"):
            found: dict[str, Any] = json.loads(body)
            return found
        return None

    def close(self) -> None:
        """Disconnect."""
        self._visitor.close()


@contextmanager
def boot_rig() -> Iterator[BootRig]:
    """A fleet that serves, in a directory that is removed afterwards."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeslm-boot-")))
        rig = BootRig(directory)
        stack.enter_context(rig.serving())
        yield rig


def wait_for(is_met: Callable[[], Any], timeout_s: float, what: Callable[[], str]) -> Any:
    """Wait until something is so, and return it.

    Raises:
        MeasurementError: it is not in time; `what` says what was seen instead.
    """
    until_s = time.monotonic() + timeout_s
    while not (found := is_met()):
        if time.monotonic() > until_s:
            raise MeasurementError(f"in vain for {timeout_s:g} s: {what()}")
        time.sleep(0.05)
    return found


class Card:
    """The root file system of a card as the next start will find it: a copy, with its journal replayed."""

    def __init__(self, image: Path) -> None:
        """Copy and check it.

        Raises:
            MeasurementError: e2fsck cannot mend it without a question.
        """
        self._root = image.with_suffix(".root")
        with open_image(image) as opened, image.open("rb") as source, self._root.open("wb") as target:
            part = opened.root_partition
            copy_part(source.fileno(), target.fileno(), start=part.start_bytes, size=part.size_bytes)
            target.truncate(part.size_bytes)
        checked = _tool("e2fsck", "-fp", self._root)
        if checked.returncode > 1:
            raise MeasurementError(f"the card needs a hand: {checked.stdout.decode(errors='replace')[-800:]}")

    def size(self, path: str) -> int | None:
        """How many bytes a file has; ``None`` where it is not there."""
        found = re.search(rb"Size: (\d+)", _tool("debugfs", "-R", f"stat {path}", self._root).stdout)
        return int(found[1]) if found else None

    def empty(self, directory: str) -> list[str]:
        """Files below a directory that have 0 bytes."""
        found, waiting = [], [directory]
        while waiting:
            at = waiting.pop()
            for line in _tool("debugfs", "-R", f"ls -p {at}", self._root).stdout.decode().splitlines():
                _, _, mode, _, _, name, size, *_ = f"{line}///////".split("/")
                if name in {"", ".", ".."}:
                    continue
                if mode.startswith("04"):
                    waiting.append(f"{at}/{name}")
                elif mode.startswith("10") and size == "0" and name != ".lock":
                    found.append(f"{at}/{name}")
        return found


def _tool(name: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([find_tool(name), *map(str, arguments)], capture_output=True, check=False)


class Board:
    """An emulated board with its card, which keeps what is written and flushed, and at a cut half of all else."""

    def __init__(self, image: Path, ear: Ear, emulation: Emulation | None = None, *, seed: int = 1) -> None:
        self.image = image
        self.ear = ear
        self.log = image.with_suffix(".log")
        self._machine = EmulatedBoard(image, self.log, emulation or Emulation(), forgets=seed)
        self._asked = 0
        self.began_s = 0.0
        self._heard_before = 0
        self._said_before = 0

    def power_on(self) -> None:
        """Start it."""
        self._heard_before = self.ear.count
        self._said_before = self.log.stat().st_size if self.log.exists() else 0
        self.began_s = time.monotonic()
        self._machine.start()

    def cut(self) -> None:
        """Take the power away."""
        self._machine.kill()

    def says(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait for a text on its serial line, since it was started."""
        if not self._machine.wait_for_text(text, timeout_s, since=self._said_before):
            raise MeasurementError(f"in vain for {text!r}; {self._machine.tail(1500)}")

    def wait(self, is_met: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
        """Wait for something as long as it runs."""

        def found() -> Any:
            value = is_met()
            if not value and not self._machine.is_running:
                raise MeasurementError(f"it went off: {what}; {self._machine.tail(2500)}")
            return value

        return wait_for(found, timeout_s, lambda: f"{what}; {self._machine.tail(2500)}")

    def hears(self, part: str) -> bool:
        """Whether the broker passed on a message with `part` in its topic since it was started."""
        return self.ear.hears(self._heard_before, part)

    def comes_online(self) -> float:
        """Wait until it says that it is there; seconds since it was started."""
        self.wait(lambda: self.ear.is_online(self._heard_before), "it comes online")
        return time.monotonic() - self.began_s

    def answers(self) -> float:
        """Ask it until it answers; seconds since it was started.

        Raises:
            MeasurementError: it does not, or says something else.
        """
        self.comes_online()
        self._asked += 1
        name = f"{self.image.stem}-{self._asked}-{time.monotonic_ns()}"
        self.ear.ask(name)
        result = self.wait(lambda: self.ear.answer(name), "it answers")
        if result.get("error") or "light" not in result.get("text", ""):
            raise MeasurementError(f"a wrong answer: {result}")
        return time.monotonic() - self.began_s

    @property
    def lost_pages(self) -> int:
        """Of 4 KiB, that its card forgot at cuts."""
        return self._machine.lost_pages

    def power_off(self) -> bool:
        """Press its power button; whether it went off by itself."""
        return self._machine.power_off()

    def card(self) -> Card:
        """What is on its card while it has no power."""
        return Card(self.image)

    def close(self) -> None:
        """Take the power away, and clear up."""
        self._machine.close()


@dataclass(frozen=True)
class Moment:
    """A moment between power-on and the first answer, at which the power can go.

    Attributes:
        name: for people.
        wait: until it has come.
    """

    name: str
    wait: Callable[[Board], object]


def _said(text: str) -> Callable[[Board], None]:
    return lambda board: board.says(text)


def _heard(board: Board, part: str) -> None:
    board.wait(lambda: board.hears(part), f"{part} is heard")


MOMENTS = (
    Moment("the kernel starts", _said("Booting Linux")),
    Moment("the initial file system looks for the root", _said("Run /init")),
    Moment("systemd starts", _said("Welcome to")),
    Moment("file systems are mounted", _said("local-fs.target")),
    Moment("the system is initialised", _said("sysinit.target")),
    Moment("the agent starts", _said("edgeslm-agent.service")),
    Moment("it asks to join", lambda board: _heard(board, "/enrol/")),
    Moment("it has joined", lambda board: _heard(board, "/identity")),
    Moment("it says that it is there", Board.comes_online),
    Moment("it has answered", Board.answers),
)
"""From power-on to after the first publish."""
