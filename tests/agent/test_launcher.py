"""The launcher: real processes, real links, real signals; what stands for the agent are a few lines per version."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.agent_update_rig import CRASHES, ENDS, HANGS, HEALTHY, SERVES, make_layout
from edgeslm.agent import launcher
from edgeslm.agent.installation import Installation
from edgeslm.agent.launcher import Plan, Trial, plan, read_link, read_trial, write_trial

PATIENCE_S = 60.0
BROKEN = "import nothing_of_that_name"

# Loads the launcher as the service would, but with shorter pauses, and with a power cut or a full disk where asked.
DRIVER = """
import importlib.util, json, os, signal, sys
file, settings, *arguments = sys.argv[1:]
settings = json.loads(settings)
spec = importlib.util.spec_from_file_location("launch", file)
launch = importlib.util.module_from_spec(spec)
sys.modules["launch"] = launch
spec.loader.exec_module(launch)
launch._PAUSE_S, launch._STOP_S, launch._POLL_S = 0.0, 0.5, 0.02
count = 0
def point():
    global count
    count += 1
    if count == settings.get("cut_at"):
        os.kill(os.getpid(), signal.SIGKILL)
def around(name):
    real = getattr(os, name)
    def wrapped(*positional, **named):
        if name in settings.get("refuse", ()):
            raise OSError(28, "No space left on device", str(positional[0]))
        point()
        result = real(*positional, **named)
        point()
        return result
    setattr(os, name, wrapped)
for name in ("replace", "symlink", "fsync"):
    around(name)
from pathlib import Path
code = launch.main(Path(file), arguments)
if settings.get("count"):
    Path(settings["count"]).write_text(str(count))
sys.exit(code)
"""


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"in vain: {what}"
        time.sleep(0.01)


class Device:
    """One layout and the service that runs its launcher."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "root"
        self.driver = directory / "driver.py"
        self.driver.write_text(DRIVER)
        self.started: list[subprocess.Popen[bytes]] = []

    def seen(self) -> list[str]:
        try:
            return (self.root / "seen").read_text().splitlines()
        except FileNotFoundError:
            return []

    def serving(self) -> list[tuple[str, int]]:
        return [(line.split()[1], int(line.split()[2])) for line in self.seen() if line.startswith("serves")]

    def start(self, *arguments: str, **settings: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(self.driver), str(self.root / "launch.py"), json.dumps(settings)]
        process = subprocess.Popen([*command, "agent", "run", *arguments], stderr=subprocess.PIPE)
        self.started.append(process)
        return process

    def ends(self, process: subprocess.Popen[bytes]) -> int:
        return process.wait(PATIENCE_S)

    def serves(self, version: str, count: int = 1) -> int:
        """Wait until `version` serves for the `count`-th time; its process."""

        def found() -> list[int]:
            return [pid for number, pid in self.serving() if number == version]

        wait_for(lambda: len(found()) >= count, f"{version} serves; seen: {self.seen()}")
        return found()[count - 1]

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        process.terminate()
        return self.ends(process)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
    for _, pid in made.serving():
        with contextlib.suppress(OSError):
            if str(tmp_path) in Path(f"/proc/{pid}/environ").read_text("utf-8", "replace"):
                os.kill(pid, signal.SIGKILL)


def on_trial(device: Device, main: str, **limits: object) -> tuple[Installation, str, str]:
    """A layout in which 1.0.0 serves and 2.0.0, which does `main`, is on trial."""
    installation, (old, new) = make_layout(device.directory, ("1.0.0", SERVES), ("2.0.0", main))
    installation.begin_trial("op-1", new, **limits)  # type: ignore[arg-type]
    return installation, old, new


class TestASettledVersion:
    def test_takes_the_place_of_the_launcher(self, device: Device):
        make_layout(device.directory, ("1.0.0", SERVES))
        process = device.start()
        assert device.serves("1.0.0") == process.pid
        assert device.stop(process) == 0

    def test_gets_the_arguments_and_is_told_of_the_launcher(self, device: Device):
        tell = "note(' '.join(sys.argv[1:])); note(os.environ['EDGESLM_LAUNCHER']); note(sys.orig_argv[1])"
        make_layout(device.directory, ("1.0.0", tell))
        assert device.ends(device.start("--config", "a b.yaml")) == 0
        assert device.seen()[1:3] == ["agent run --config a b.yaml", str(device.root / "launch.py")]

    def test_runs_from_its_own_directory_and_not_by_way_of_the_link(self, device: Device):
        _, (name,) = make_layout(device.directory, ("1.0.0", "note(os.environ['PYTHONPATH'])"))
        device.ends(device.start())
        assert device.seen()[1] == str(device.root / "versions" / name / "lib")

    def test_needs_no_other_module_of_edgeslm(self, device: Device):
        make_layout(device.directory, ("1.0.0", ENDS))
        command = [sys.executable, "-I", "-S", str(device.root / "launch.py"), "agent", "run"]
        assert subprocess.run(command, check=False, timeout=PATIENCE_S).returncode == 0
        assert device.seen() == ["starts 1.0.0"]

    def test_that_is_gone_gives_way_to_the_one_before(self, device: Device):
        installation, (_, new) = make_layout(device.directory, ("1.0.0", SERVES), ("2.0.0", SERVES))
        installation.adopt(new)
        shutil.rmtree(device.root / "versions" / new)
        process = device.start()
        assert device.serves("1.0.0") == process.pid

    def test_where_there_is_none_the_service_is_told_so(self, device: Device):
        _, (name,) = make_layout(device.directory, ("1.0.0", SERVES))
        shutil.rmtree(device.root / "versions" / name)
        process = device.start()
        assert device.ends(process) == 1
        assert process.stderr is not None
        assert b"edgeslm agent adopt" in process.stderr.read()


class TestAVersionOnTrial:
    def test_that_is_healthy_stays_and_runs_in_place_from_the_next_start_on(self, device: Device):
        installation, _, new = on_trial(device, HEALTHY)
        process = device.start()
        assert device.serves("2.0.0") != process.pid
        wait_for(lambda: (read_trial(device.root) or Trial("", "", "")).state == "healthy", "healthy")
        assert device.stop(process) == 0
        assert device.seen()[-1] == "ended 2.0.0"
        process = device.start()
        # It marks itself again, which no agent would, but by now nobody asks.
        assert device.serves("2.0.0", 2) == process.pid
        assert installation.current == new

    @pytest.mark.parametrize(
        ("main", "reason"),
        [
            (BROKEN, "not healthy after 3 starts; the last one: exit status 1"),
            (CRASHES, "not healthy after 3 starts; the last one: exit status 7"),
            (ENDS, "not healthy after 3 starts; the last one: exit status 0"),
            ("os.kill(os.getpid(), 9)", "not healthy after 3 starts; the last one: signal 9"),
        ],
    )
    def test_that_ends_too_often_gives_way_to_the_one_before(self, device: Device, main: str, reason: str):
        installation, old, _ = on_trial(device, main)
        process = device.start()
        assert device.serves("1.0.0") == process.pid
        trial = installation.trial
        assert trial is not None
        assert (trial.state, trial.starts) == ("rolled_back", 3)
        assert reason in trial.reason
        assert installation.current == old
        assert device.seen().count("starts 2.0.0") == 3

    def test_that_cannot_even_be_executed_gives_way(self, device: Device):
        installation, old, new = on_trial(device, SERVES)
        (device.root / "versions" / new / "bin" / "python").write_bytes(b"no program")
        process = device.start()
        assert device.serves("1.0.0") == process.pid
        assert installation.current == old

    def test_that_hangs_is_ended_at_its_time_and_gives_way(self, device: Device):
        installation, old, _ = on_trial(device, HANGS, healthy_within_s=1.0)
        process = device.start()
        assert device.serves("1.0.0") == process.pid
        trial = installation.trial
        assert trial is not None
        assert (trial.state, trial.reason) == ("rolled_back", "it was not healthy within 1 s")
        assert installation.current == old

    def test_that_gives_itself_up_gives_way_without_further_starts(self, device: Device):
        on_trial(device, "mark('failed'); sys.exit(0)")
        device.start()
        device.serves("1.0.0")
        assert device.seen().count("starts 2.0.0") == 1

    def test_ends_with_the_service_and_is_tried_again_with_it(self, device: Device):
        installation, _, new = on_trial(device, SERVES)
        process = device.start()
        device.serves("2.0.0")
        assert device.stop(process) == 0
        trial = installation.trial
        assert trial is not None
        assert (trial.state, installation.current) == ("trial", new)
        device.start()
        device.serves("2.0.0", 2)

    def test_ends_when_the_launcher_is_killed(self, device: Device):
        on_trial(device, SERVES)
        process = device.start()
        device.serves("2.0.0")
        process.kill()
        wait_for(lambda: "ended 2.0.0" in device.seen(), "the child ends")

    def test_may_begin_anew_by_way_of_the_launcher_without_leaving_it(self, device: Device):
        again = """
if (root / "again").exists():
    mark("healthy")
    serve()
(root / "again").touch()
launch = os.environ["EDGESLM_LAUNCHER"]
os.execv(os.environ["EDGESLM_LAUNCHER_PYTHON"], ["python", launch, *sys.argv[1:]])
"""
        on_trial(device, again)
        process = device.start()
        device.serves("2.0.0")
        assert process.poll() is None
        assert device.seen().count("starts 2.0.0") == 2

    def test_that_is_not_reached_by_the_link_yet_does_not_run(self, device: Device):
        installation, (old, new) = make_layout(device.directory, ("1.0.0", SERVES), ("2.0.0", SERVES))
        write_trial(device.root, Trial("op-1", new, old))
        device.start()
        device.serves("1.0.0")
        assert installation.current == old

    def test_stays_where_there_is_nothing_to_go_back_to(self, device: Device):
        _, old, _ = on_trial(
            device, "serve() if (root / 'seen').read_text().count('starts 2') > 3 else 1 / 0"
        )
        shutil.rmtree(device.root / "versions" / old)
        device.start()
        device.serves("2.0.0")

    def test_gives_way_where_the_disk_refuses_to_count_its_starts(self, device: Device):
        on_trial(device, SERVES)
        process = device.start(refuse=["fsync"])
        assert device.serves("1.0.0") == process.pid
        assert device.seen()[0] == "starts 1.0.0"


class TestPowerCuts:
    @pytest.mark.slow
    def test_at_every_effect_leave_a_whole_version_to_run(self, device: Device):
        """A version that crashes is tried and left; the power goes at each effect of that, and comes again."""
        installation, old, new = on_trial(device, CRASHES)
        kept = device.directory / "kept"
        shutil.copytree(device.root, kept, symlinks=True)
        cut = 0
        while True:
            cut += 1
            shutil.rmtree(device.root)
            shutil.copytree(kept, device.root, symlinks=True)
            process = device.start(cut_at=cut)
            wait_for(lambda process=process: process.poll() is not None or bool(device.serving()), "its end")
            if process.poll() is None:
                break  # it came to its end without reaching the cut
            assert process.returncode == -signal.SIGKILL
            process = device.start()
            assert device.serves("1.0.0") == process.pid
            trial = read_trial(device.root)
            assert trial is not None
            assert trial.state == "rolled_back"
            assert (read_link(device.root, "current"), installation.installed(old) is not None) == (old, True)
            assert device.seen().count("starts 2.0.0") <= 4, "a cut between a start and its count"
            assert not [path for path in device.root.iterdir() if path.is_symlink() and not path.exists()]
            process.kill()
            process.wait()
        assert cut > 20
        assert new != old


class TestWhatIsWritten:
    texts = st.text("abc0.-", min_size=1, max_size=8).filter(lambda text: text[0] not in ".-")
    trials = st.builds(
        Trial,
        id=st.text(max_size=20),
        version=texts,
        previous=texts,
        starts=st.integers(0, 9),
        max_starts=st.integers(1, 5),
        healthy_within_s=st.floats(1.0, 1e6),
        state=st.sampled_from(["trial", "healthy", "failed", "rolled_back"]),
        reason=st.text(max_size=30),
    )

    @given(trial=trials)
    def test_is_read_as_it_was_written(self, trial: Trial, tmp_path_factory: pytest.TempPathFactory):
        root = tmp_path_factory.getbasetemp()
        write_trial(root, trial)
        assert read_trial(root) == trial

    @given(
        data=st.binary(max_size=200)
        | st.from_regex(r'\{"id": ?("x"|1), ?"version": ?".{0,9}"\}').map(str.encode)
    )
    def test_is_nothing_where_it_is_damaged(self, data: bytes, tmp_path_factory: pytest.TempPathFactory):
        root = tmp_path_factory.getbasetemp()
        (root / "trial.json").write_bytes(data)
        assert read_trial(root) is None

    @pytest.mark.parametrize("name", ["../../etc", "a/b", "", ".hidden", "a" * 300])
    def test_names_no_directory_of_elsewhere(self, tmp_path: Path, name: str):
        write_trial(tmp_path, Trial("x", name, "1.0.0"))
        assert read_trial(tmp_path) is None
        (tmp_path / "current").symlink_to(f"versions/{name}")
        assert read_link(tmp_path, "current") is None

    @given(trial=trials, current=texts | st.none())
    def test_only_the_version_that_the_link_leads_to_is_ever_tried_or_left(
        self, trial: Trial, current: str | None
    ):
        found = plan(trial, current)
        if trial.version != current:
            assert found == Plan("settled")
        elif found.kind == "on trial":
            assert trial.state == "trial"
            assert trial.starts < trial.max_starts
        elif found.kind == "settled":
            assert trial.state == "healthy"
        assert plan(None, current) == Plan("settled")


def test_the_launcher_imports_the_standard_library_alone():
    code = (
        "import importlib.util, sys; before = set(sys.modules);"
        f"spec = importlib.util.spec_from_file_location('launch', {launcher.__file__!r});"
        "module = importlib.util.module_from_spec(spec); sys.modules['launch'] = module;"
        "spec.loader.exec_module(module);"
        "names = {name.partition('.')[0] for name in set(sys.modules) - before} - {'launch'};"
        "print(sorted(names - set(sys.stdlib_module_names)))"
    )
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
