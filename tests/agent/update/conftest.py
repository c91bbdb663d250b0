"""Releases made once, devices that use them, and trials that are scripts."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.update_device_rig import NAME, Release, Run, Vouching, make_release
from edgeslm.agent.update.child import Launch
from edgeslm.models.package import parse_golden

SCRIPT = """
import json, os, signal, sys, time
answers, sha256s, wrong, special = json.loads(sys.argv[1])
sha256 = sys.argv[sys.argv.index("--sha256") + 1]
out = sys.stdout
def say(**line):
    out.write(json.dumps(line) + "\\n")
    out.flush()
def answer(prompt):
    right = sha256 not in wrong
    data = answers.get(prompt) if right else {"intent": "Nonsense"}
    say(kind="answer", text="", data=data, ttft_s=0.01, decode_s=0.02, tokens=5, peak_mb=80.0)
own = sha256 in sha256s
if own:
    exec(special.get("load", ""))
say(kind="loaded", load_s=0.1, graph="g", runtime="r")
for line in sys.stdin:
    for prompt in json.loads(line)["prompts"]:
        if own:
            exec(special.get("answer", ""))
        answer(prompt)
"""


def scripted(
    release: Release,
    *,
    load: str = "",
    answer: str = "",
    for_releases: Sequence[Release] = (),
    wrong: Sequence[Release] = (),
) -> Launch:
    """Trials that answer golden prompts without a model; some releases do something special instead."""
    package = release.path.with_suffix("").name
    version = package.rsplit("-", 1)[1]
    golden = (release.path.parent / f".{version}" / "golden.jsonl").read_bytes()
    answers = {case.prompt: case.json_answer for case in parse_golden(golden, release.path, "golden.jsonl")}
    settings = [
        answers,
        [item.target.info.sha256 for item in for_releases],
        [item.target.info.sha256 for item in wrong],
        {"load": textwrap.dedent(load), "answer": textwrap.dedent(answer)},
    ]

    def launch(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", SCRIPT, json.dumps(settings), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )

    return launch


class Fleet:
    """Releases, and devices on fresh state directories."""

    def __init__(self, depot: Path) -> None:
        self.depot = depot
        self.old = make_release(depot, "1.0.1", golden=4)
        self.new = make_release(depot, "1.1.0", golden=4)
        self.newer = make_release(depot, "1.2.0", golden=4)
        self.vouching = Vouching(self.old, self.new, self.newer)

    def launch(self, **special: Any) -> Launch:
        """See :func:`scripted`."""
        return scripted(self.new, **special)


@pytest.fixture(scope="session")
def depot(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet(tmp_path_factory.mktemp("depot"))


@pytest.fixture
def fleet(depot: Fleet) -> Fleet:
    depot.vouching.refuses = None
    depot.vouching.releases = {
        (NAME, item.target.info.version): item for item in (depot.old, depot.new, depot.newer)
    }
    return depot


@pytest.fixture
def device(tmp_path: Path, fleet: Fleet) -> Iterator[Callable[..., Run]]:
    """Makes runs of one device; each begins where the one before ended."""
    runs: list[Run] = []

    def start(**settings: Any) -> Run:
        settings = {"launch": fleet.launch(), **settings}
        factory = settings.pop("factory", [fleet.old.path])
        run = Run(tmp_path / "state", factory, fleet.depot, fleet.vouching, **settings)
        runs.append(run)
        return run

    yield start
    for run in runs:
        run.stop()
