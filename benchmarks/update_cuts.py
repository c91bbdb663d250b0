"""Power cuts at every write of an update: does the device always serve a whole version, and come to an end by itself?

``measure_cuts`` gives ``power_cut_points`` and ``power_cut_survived`` (the share of them that ended well). They are
enumerated, not sampled: a real update runs in a process in which every commit of the journal, sync, rename, link,
removal and write of a chunk counts, once before it happens and once after, and which kills itself (SIGKILL) at the
k-th; so for every k. Then the same state is started again, and has to serve a package of which every byte is right,
finish the change or reverse it, serve what the journal says, and leave nothing else behind.

Three ways through the machine are cut: a release that is committed, one that the gate fails, and one that is taken back
after its commit. The first is cut twice at once as well: each restart is cut again at its own first steps.

What SIGKILL cannot show is a write that the kernel had not brought to the card yet. So the trace of the uncut run is
checked too: nothing is renamed into place or journalled as done before what it rests on was synced.

Run by itself: ``python -m benchmarks.update_cuts [--json] [--every N]``.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from benchmarks.update_device_rig import GRAPH, NAME, Release, Run, Vouching, make_release
from edgeslm.agent.update import trial
from edgeslm.agent.update.child import Child
from edgeslm.models import package

Scenario = Literal["commits", "fails the gate", "taken back"]
SCENARIOS: tuple[Scenario, ...] = ("commits", "fails the gate", "taken back")
SECOND_CUTS = 12
"""How deep into a restart the second of two cuts reaches."""
_OVERLAP = 20
_WORKERS = 2
_RUN_TIMEOUT_S = 120.0

# --- cutting the power --------------------------------------------------------------------------------------


class Meddler:
    """Counts what reaches the card in this process, and ends the process at one of these points.

    Attributes:
        trace: what happened, in order: kind and path.
    """

    def __init__(self, cut_at: int | None) -> None:
        self._cut_at = cut_at
        self._pid = os.getpid()
        self._open: dict[int, str] = {}
        self.points = 0
        self.trace: list[tuple[str, str]] = []

    def point(self, kind: str, path: object = "") -> None:
        """One point at which the power can go."""
        if os.getpid() != self._pid:
            return  # a trial: it dies with us
        self.points += 1
        self.trace.append((kind, str(path)))
        if self.points == self._cut_at:
            os.kill(self._pid, signal.SIGKILL)

    def around(self, owner: object, name: str, kind: str, describe: Callable[..., object]) -> None:
        """Make `owner.name` a point before and a point after."""
        original = getattr(owner, name)

        def counted(*arguments: Any, **keywords: Any) -> Any:
            what = describe(*arguments)
            self.point(f"before {kind}", what)
            result = original(*arguments, **keywords)
            self.point(kind, what)
            return result

        setattr(owner, name, counted)

    def install(self) -> None:
        """Watch everything that an update writes with."""

        def of_file(descriptor: int, *_: object) -> str:
            return str(Path(f"/proc/self/fd/{descriptor}").readlink())

        def of_target(_: object, target: object, *__: object) -> object:
            return target

        def of_path(path: object, *_: object) -> object:
            return path

        for name in ("fsync", "fdatasync"):
            self.around(os, name, "sync", of_file)
        for name in ("write", "pwrite", "ftruncate"):
            self.around(os, name, "write", of_file)
        for name in ("rename", "replace", "symlink", "link"):
            self.around(os, name, "rename", of_target)
        for name in ("unlink", "rmdir", "mkdir"):
            self.around(os, name, name, of_path)
        self._watch_sqlite()
        self._watch_unpacking()

    def _watch_sqlite(self) -> None:
        meddler = self

        class Watched(sqlite3.Connection):
            def execute(self, query: str, *arguments: Any) -> sqlite3.Cursor:
                if query != "COMMIT":
                    return super().execute(query, *arguments)
                meddler.point("before commit")
                cursor = super().execute(query, *arguments)
                meddler.point("commit")
                return cursor

        sqlite3.connect = functools.partial(sqlite3.connect, factory=Watched)  # type: ignore[assignment]

    def _watch_unpacking(self) -> None:
        # Unpacking writes through buffered streams, which do not call `os.write`.
        name = "read_chunks"
        read_chunks = getattr(package, name)

        def counted(*arguments: Any, **keywords: Any) -> Iterator[bytes]:
            for chunk in read_chunks(*arguments, **keywords):
                yield chunk
                self.point("chunk")

        setattr(package, name, counted)


# --- one run ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Packages, made once."""

    depot: Path
    old: Release
    good: Release
    wrong: Release

    def wanted(self, scenario: Scenario) -> Release:
        """The release that the assignment names."""
        return self.wrong if scenario == "fails the gate" else self.good


@dataclass(frozen=True)
class Plan:
    """What one run does.

    Attributes:
        offers: the assignment arrives in this run, or did so in an earlier one.
        cut_at: the point at which it ends itself; ``None`` runs to the end.
    """

    state_dir: Path
    world: World
    scenario: Scenario
    offers: bool
    cut_at: int | None
    boot: str


def make_world(directory: Path) -> World:
    """A release that serves, one that is as good, and one that answers wrongly."""

    def stop_short(draft: dict[str, Any]) -> None:
        draft["max_answer_tokens"] = 2

    depot = directory / "depot"
    old, good = make_release(depot, "1.0.1", golden=4), make_release(depot, "1.1.0", golden=4)
    return World(depot, old, good, make_release(depot, "1.2.0", golden=4, change=stop_short))


class ForkedTrial:
    """A trial in a fork of this process: the same code in a process of its own, without starting an interpreter."""

    def __init__(self, arguments: Sequence[str]) -> None:
        to_child, from_parent = os.pipe()
        to_parent, from_child = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.setsid()
                os.dup2(to_child, 0)
                os.dup2(from_child, 1)
                os.closerange(3, 256)
                sys.stdin = os.fdopen(0)
                status = trial.main(arguments)
            finally:
                os._exit(status)
        os.close(to_child)
        os.close(from_child)
        self.stdin: IO[bytes] | None = os.fdopen(from_parent, "wb", buffering=0)
        self.stdout: IO[bytes] | None = os.fdopen(to_parent, "rb", buffering=0)
        self._code: int | None = None

    def poll(self) -> int | None:
        """See ``Child``."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """See ``Child``."""
        until_s = time.monotonic() + (timeout or 0.0)
        while (code := self.poll()) is None and time.monotonic() < until_s:
            time.sleep(0.002)
        if code is None:
            raise TimeoutError(self.pid)
        return code


def launch_forked(arguments: Sequence[str]) -> Child:
    """Start a trial as a fork."""
    return ForkedTrial(arguments)


def run_device(plan: Plan, result: Path | None) -> None:
    """One run of the device; at its end what came of it is written to `result`."""
    meddler = Meddler(plan.cut_at)
    if plan.cut_at is not None or result is not None:
        meddler.install()
    world = plan.world
    run = Run(
        plan.state_dir,
        [world.old.path],
        world.depot,
        Vouching(world.old, world.good, world.wrong),
        boot=plan.boot,
        launch=launch_forked,
    )
    booted = run.packages[NAME]
    run.store.verify(booted)
    wanted = world.wanted(plan.scenario)
    if plan.offers:
        run.updater.follow([wanted.wanted(1)], 1)
    committed = False
    for _ in range(400):
        run.device.sleep(run.updater.turn())
        change = next((item.change for item in run.report().models if item.change is not None), None)
        committed = committed or (change is not None and change.state == "committed")
        if plan.scenario == "taken back" and committed:
            run.serving.failed += 5
            run.serving.begun += 5
        if change is not None and change.settled and run.updater.turn() > 0:
            break
        if change is None and not plan.offers:
            break  # the assignment had not been journalled when the power went
    points = meddler.points
    served = run.serving.served(NAME)
    if result is None or served is None:
        return
    run.store.verify(served)
    change = next((item.change for item in run.report().models if item.change is not None), None)
    found = {
        "points": points,
        "booted": booted.manifest.version,
        "served": served.manifest.version,
        "linked": getattr(run.store.current(NAME), "sha256", None) == served.sha256,
        "state": None if change is None else change.state,
        "settled": change is None or change.settled,
        "installed": [item.manifest.version for item in run.store.list()],
        "leftovers": sorted(
            str(path.relative_to(plan.state_dir))
            for path in [
                *(plan.state_dir / "models").glob(".partial*"),
                *(plan.state_dir / "fetched").glob("*"),
                *(plan.state_dir / "cache").glob("*.tmp"),
            ]
            if path.name != ".lock"
        ),
        "trace": meddler.trace if plan.cut_at is None and plan.offers else [],
    }
    run.stop()
    result.write_text(json.dumps(found), "utf-8")


# --- judging what came of it --------------------------------------------------------------------------------


def check_end(found: dict[str, Any], scenario: Scenario) -> str:
    """What is wrong with how a device ended up; empty if nothing is."""
    changed = scenario == "commits" and found["state"] is not None
    expected = {
        "served": "1.1.0" if changed else "1.0.1",
        "state": found["state"] and ("committed" if changed else "rolled_back"),
        "settled": True,
        "linked": True,
        "installed": ["1.0.1", "1.1.0"] if changed else ["1.0.1"],
        "leftovers": [],
    }
    wrong = {key: found[key] for key, value in expected.items() if found[key] != value}
    if found["booted"] not in {"1.0.1", "1.1.0"}:
        wrong["booted"] = found["booted"]
    return f"{wrong}" if wrong else ""


def check_trace(trace: Sequence[tuple[str, str]], state_dir: Path) -> list[str]:
    """What of a whole run was journalled or renamed before what it rests on was synced."""
    models, fetched = str(state_dir / "models"), str(state_dir / "fetched")
    links = (f"{models}/current", f"{models}/previous")
    faults: list[str] = []
    synced: set[str] = set()
    unsynced: set[str] = set()
    for kind, path in trace:
        if kind == "before commit":
            # What is still arriving is relied on only once it is renamed.
            late = [item for item in unsynced if not item.endswith((".part", ".have"))]
            faults += [f"journalled before {item} was synced" for item in sorted(late)]
        if not path.startswith((models, fetched)):
            continue
        if kind == "sync":
            synced.add(path)
            unsynced.discard(path)
        elif kind == "write":
            unsynced.add(path)
        elif kind == "before rename" and Path(path).name.startswith("sha256-"):
            members = {Path(item).name for item in synced if "/.partial-" in item}
            missing = {"manifest.json", GRAPH, "tokenizer.json", "package"} - members
            faults += [f"{path} got its name before {name} was synced" for name in sorted(missing)]
        elif (
            kind == "before rename" and path.endswith(".blob") and path.replace(".blob", ".part") in unsynced
        ):
            faults.append(f"{path} got its name before it was synced")
        elif (kind == "rename" and "/.partial-" not in path) or (kind == "unlink" and path.startswith(links)):
            unsynced.add(str(Path(path).parent))
    return faults


# --- all of them --------------------------------------------------------------------------------------------


class Cutter:
    """Runs devices in processes of their own, each from a copy of the same state."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["benchmarks.update_device_rig", "ai_edge_litert.compiled_model"]
        )
        self.world = make_world(directory)
        self._fresh = directory / "fresh"
        self._process(Plan(self._fresh, self.world, "commits", offers=False, cut_at=None, boot="boot-0"))

    def trace(self, scenario: Scenario) -> tuple[list[tuple[str, str]], list[str]]:
        """What an uncut run does, and what is wrong with it."""
        state_dir = self._copy(f"trace {scenario}")
        plan = Plan(state_dir, self.world, scenario, offers=True, cut_at=None, boot="boot-1")
        found = self._finish(plan)
        shutil.rmtree(state_dir)
        trace = [(kind, path) for kind, path in found["trace"]]
        ended = check_end(found, scenario)
        return trace, [*check_trace(trace, state_dir), *([ended] if ended else [])]

    def cut(self, scenario: Scenario, at: int, *, again_at: int | None = None, rebooted: bool = True) -> str:
        """Cut the power at one point, and once more in the restart; what is wrong afterwards, empty if nothing."""
        state_dir = self._copy(f"{scenario} {at} {again_at} {rebooted}")
        boot = "boot-2" if rebooted else "boot-1"
        try:
            plan = Plan(state_dir, self.world, scenario, offers=True, cut_at=at, boot="boot-1")
            code = self._process(plan)
            if code not in {0, -signal.SIGKILL}:
                return f"the run ended with {code}"
            if again_at is not None:
                plan = Plan(state_dir, self.world, scenario, offers=False, cut_at=again_at, boot=boot)
                code = self._process(plan)
                if code not in {0, -signal.SIGKILL}:
                    return f"the restart ended with {code}"
            plan = Plan(state_dir, self.world, scenario, offers=False, cut_at=None, boot=boot)
            return check_end(self._finish(plan), scenario)
        except (OSError, ValueError) as error:
            return f"the device does not come up: {error}"
        finally:
            shutil.rmtree(state_dir, ignore_errors=True)

    def _finish(self, plan: Plan) -> dict[str, Any]:
        result = plan.state_dir / "result.json"
        code = self._process(plan, result)
        if code != 0:
            raise OSError(f"exit code {code}")
        found: dict[str, Any] = json.loads(result.read_text("utf-8"))
        return found

    def _process(self, plan: Plan, result: Path | None = None) -> int:
        process = self._context.Process(target=run_device, args=(plan, result))
        process.start()
        process.join(_RUN_TIMEOUT_S)
        if process.exitcode is None:
            process.kill()
            process.join()
            return 1
        return process.exitcode

    def _copy(self, name: str) -> Path:
        to = self._directory / name.replace(" ", "-")
        shutil.copytree(self._fresh, to, symlinks=True)
        return to


def measure_cuts(every: int = 1) -> dict[str, Any]:
    """``power_cut_points`` and ``power_cut_survived``; with `every` above 1 only each so-many-th point."""
    began_s = time.monotonic()
    failures: dict[str, str] = {}
    points: dict[str, str] = {}
    cuts = 0
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(_WORKERS) as pool:
        cutter = Cutter(Path(name))
        first: list[str] = []
        for scenario in SCENARIOS:
            trace, faults = cutter.trace(scenario)
            failures |= {f"{scenario}, uncut: {number}": fault for number, fault in enumerate(faults)}
            kinds = [kind for kind, _ in trace]
            # What another scenario did alike was cut there.
            alike = next(
                (at for at, (one, other) in enumerate(zip(first, kinds, strict=False)) if one != other), 0
            )
            begin, last = max(1, alike - _OVERLAP), len(kinds)
            ways = {
                f"{scenario} {at}": functools.partial(cutter.cut, scenario, at, rebooted=at % 2 == 0)
                for at in range(begin, last + 1, every)
            }
            if not first:
                first = kinds
                ways |= {
                    f"{scenario} {at} and {again}": functools.partial(
                        cutter.cut, scenario, at, again_at=again
                    )
                    for at in range(last // 10, last, max(last // 10, every))
                    for again in range(1, SECOND_CUTS + 1, min(every, 4))
                }
            points[scenario] = f"{begin} to {last}"
            cuts += len(ways)
            jobs = {key: pool.submit(way) for key, way in ways.items()}
            failed = [key for key, job in jobs.items() if job.result()]
            # The fork server sometimes loses what became of a process when two start at once. Cut once more, alone:
            # the same write is hit, so what is wrong with the device shows again.
            failures |= {key: fault for key in failed if (fault := ways[key]())}
    return {
        "power_cut_points": cuts,
        "power_cut_survived": 1.0 - len(failures) / cuts,
        "power_cut_detail": {
            "points": points,
            "failures": dict(list(failures.items())[:10]),
            "seconds": round(time.monotonic() - began_s, 1),
        },
    }


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.update_cuts", description=__doc__)
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th point")
    flags = parser.parse_args()
    found = measure_cuts(flags.every)
    print(json.dumps(found, indent=2) if flags.as_json else found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
