"""A graph is tried in a process of its own: what kills that process becomes an error with a name, here."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgeslm.errors import (
    GraphCrashError,
    GraphHangError,
    MemoryShortError,
    ModelLoadError,
    OperationMissingError,
    ProcessorError,
    ProofError,
    SystemLibraryError,
)
from edgeslm.runtime import preflight, trial
from edgeslm.runtime.backend import Runtime, choose_runtime
from edgeslm.runtime.executor import has_compiled_model, will_compile
from edgeslm.runtime.graph_facts import read_graph
from edgeslm.runtime.model import load_model
from edgeslm.runtime.preflight import Subject, TrialEnd, TrialSaid
from edgeslm.runtime.trial import GraphTrial, TrialOrder, cgroup_room_bytes, run_trial, trial_command
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.package import GraphSpec
from tests.runtime import graphs

Command = Callable[[], list[str]]
litert_only = pytest.mark.skipif(
    choose_runtime().kind != "litert",
    reason="what the runtime takes by itself was measured with ai-edge-litert",
)
SUBJECT = Subject("m@1.0.0", Path("m.tflite"), "ai-edge-litert 2.3.0")

ILLEGAL = """
import ctypes, mmap, platform
code = b"\\x0f\\x0b" if platform.machine() == "x86_64" else bytes(4)
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(code)
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""
"""Executes an instruction that no processor has."""

CONFINED = """
import os, resource, sys
room = {room_mb} << 20
resource.setrlimit(resource.RLIMIT_AS, (room, room))
os.execv(sys.executable, [sys.executable, "-P", "-m", "edgeslm.runtime.trial_child", sys.argv[1]])
"""
"""The real trial, with too little address space for the model, or even for the libraries."""


def python(code: str) -> Command:
    return lambda: [sys.executable, "-P", "-c", code]


def runtime_and_graph(package: InstalledPackage) -> tuple[Runtime, GraphSpec]:
    runtime = choose_runtime()
    return runtime, next(graph for graph in package.manifest.graphs if runtime.kind in graph.runtimes)


def copy_with_graph(
    package: InstalledPackage, directory: Path, write: Callable[[Path], object]
) -> InstalledPackage:
    """The package in `directory`, with another graph under the name of its own."""
    for member in package.directory.iterdir():
        (directory / member.name).write_bytes(member.read_bytes())
    for graph in package.manifest.graphs:
        write(directory / graph.file)
    return replace(package, directory=directory)


def check(
    package: InstalledPackage, command: Command = trial_command, patience_s: float | None = None
) -> None:
    runtime, graph = runtime_and_graph(package)
    GraphTrial(None, 1, command=command, patience_s=patience_s).check(package, graph, runtime)


@litert_only
def test_memory_is_predicted_within_a_tenth_of_what_it_takes(
    home_command: InstalledPackage, tmp_path: Path
) -> None:
    runtime, graph = runtime_and_graph(home_command)
    tries = GraphTrial(tmp_path, 1)
    tries.check(home_command, graph, runtime)
    proved = tries.recall(home_command, graph, runtime)
    assert proved is not None
    assert proved.needed_bytes == pytest.approx(proved.grown_bytes, rel=0.1)


def test_a_graph_that_proved_right_here_is_not_tried_again(
    home_command: InstalledPackage, tmp_path: Path
) -> None:
    runtime, graph = runtime_and_graph(home_command)
    GraphTrial(tmp_path, 1).check(home_command, graph, runtime)
    started = time.perf_counter()
    GraphTrial(tmp_path, 1, command=python("raise SystemExit(9)")).check(home_command, graph, runtime)
    assert time.perf_counter() - started < 0.1
    with pytest.raises(GraphCrashError):
        GraphTrial(tmp_path / "other", 1, command=python("raise SystemExit(9)")).check(
            home_command, graph, runtime
        )


def test_it_is_tried_again_where_the_record_is_damaged_or_of_another_release(
    home_command: InstalledPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, graph = runtime_and_graph(home_command)
    tries = GraphTrial(tmp_path, 1)
    tries.check(home_command, graph, runtime)
    (record,) = tmp_path.glob("*.proved")
    with monkeypatch.context() as patch:
        patch.setattr(trial.edgeslm, "__version__", "99.0.0")
        assert tries.recall(home_command, graph, runtime) is None
    for content in (b"", b"{", b'{"needed_bytes": -1}', b"x" * 10_000):
        record.write_bytes(content)
        assert tries.recall(home_command, graph, runtime) is None


def test_what_will_not_fit_is_refused_before_anything_is_started(
    home_command: InstalledPackage, tmp_path: Path
) -> None:
    runtime, graph = runtime_and_graph(home_command)
    little = GraphTrial(tmp_path, 1, free_bytes=lambda: 26 << 20, command=python("raise SystemExit(9)"))
    with pytest.raises(MemoryShortError, match=r"will need 4\d MiB of memory, 26 MiB are free") as caught:
        little.check(home_command, graph, runtime)
    assert caught.value.needed_bytes is not None
    assert caught.value.free_bytes == 26 << 20
    # Nor where it was proved while there was room; the libraries count once.
    GraphTrial(tmp_path, 1).check(home_command, graph, runtime)
    load_model(home_command)
    little.check(home_command, graph, runtime)
    less = GraphTrial(tmp_path, 1, free_bytes=lambda: 5 << 20)
    with pytest.raises(MemoryShortError):
        less.check(home_command, graph, runtime)


def test_an_illegal_instruction_is_named(home_command: InstalledPackage) -> None:
    with pytest.raises(ProcessorError, match="illegal instruction") as caught:
        check(home_command, python(ILLEGAL))
    assert "try the other runtime" in str(caught.value)


@pytest.mark.parametrize("room_mb", [60, 90, 120, pytest.param(150, marks=litert_only)])
def test_a_load_that_runs_out_of_memory_is_named(home_command: InstalledPackage, room_mb: int) -> None:
    with pytest.raises(MemoryShortError, match="ran out of memory") as caught:
        check(home_command, python(CONFINED.format(room_mb=room_mb)))
    assert caught.value.needed_bytes is None


def test_a_load_that_the_kernel_ends_was_for_want_of_memory(home_command: InstalledPackage) -> None:
    with pytest.raises(MemoryShortError, match="ran out of memory"):
        check(home_command, python("import os; os.kill(os.getpid(), 9)"))


def test_the_trial_may_take_no_more_private_memory_than_there_was(home_command: InstalledPackage) -> None:
    _, graph = runtime_and_graph(home_command)
    order = TrialOrder(
        directory=home_command.directory,
        sha256=home_command.sha256,
        manifest=home_command.manifest.model_copy(update={"graphs": (graph,)}),
        runtime="auto",
        threads=1,
        cache_dir=None,
        limit_bytes=2 << 20,
    )
    # Native code that lacks memory while it is loaded dies one time in some twenty.
    for _ in range(25):
        end = run_trial(order, trial_command(), 60)
        with pytest.raises(MemoryShortError):
            preflight.judge(SUBJECT, end)


def test_under_a_limit_a_model_loads_without_another_thread(home_command: InstalledPackage) -> None:
    """Python never comes back from starting a thread that finds no memory to begin with."""
    code = f"""
import resource, threading
from edgeslm.runtime.model import load_model
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.package import Manifest
from pathlib import Path
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, resource.RLIM_INFINITY))
def refused(thread):
    raise AssertionError("a thread is started")
threading.Thread.start = refused
manifest = Manifest.model_validate_json({home_command.manifest.model_dump_json()!r})
load_model(InstalledPackage(Path({str(home_command.directory)!r}), manifest, {home_command.sha256!r}))
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "said",
    [
        "RuntimeError: can't start new thread",
        "ERROR: Mmap of '4' at offset '0' failed with error '12'.",
        "SystemError: <built-in function compute> returned NULL without setting an exception",
        "SystemError: <class 'map'> returned a result with an exception set",
        "SystemError: error return without exception set",
    ],
)
def test_what_libraries_say_where_they_found_no_memory_is_want_of_memory(said: str) -> None:
    with pytest.raises(MemoryShortError, match="ran out of memory"):
        preflight.judge(SUBJECT, TrialEnd(0, 1.0, TrialSaid(fault="SystemError", message=said)))
    with pytest.raises(MemoryShortError, match="ran out of memory"):
        preflight.judge(SUBJECT, TrialEnd(1, 1.0, native=f"Traceback\n{said}\n"))


def test_a_load_without_an_end_is_ended(home_command: InstalledPackage, tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    code = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3); open({str(mark)!r}, 'w')"])
while True:
    time.sleep(1)
"""
    started = time.monotonic()
    with pytest.raises(GraphHangError, match="within 1 s") as caught:
        check(home_command, python(code), patience_s=1.0)
    assert time.monotonic() - started < 3
    assert caught.value.waited_s >= 1.0
    time.sleep(3.2)
    assert not mark.exists(), "what it started outlived it"


def test_other_deaths_are_named_by_their_signal(home_command: InstalledPackage) -> None:
    with pytest.raises(GraphCrashError, match="died of SIGSEGV") as caught:
        check(home_command, python("import ctypes; ctypes.string_at(0)"))
    assert caught.value.signal == "SIGSEGV"
    with pytest.raises(GraphCrashError, match="ended with exit code 3: no library"):
        check(home_command, python("import sys; print('no library', file=sys.stderr); sys.exit(3)"))


@pytest.mark.parametrize("name", ["EdgeMagic", "vendor.Op-2"])
def test_an_operation_that_the_runtime_does_not_have_is_named(
    home_command: InstalledPackage, tmp_path: Path, name: str
) -> None:
    odd = copy_with_graph(home_command, tmp_path, lambda path: graphs.custom_operation(path, name))
    _, graph = runtime_and_graph(odd)
    assert read_graph(odd.file(graph.file)).custom_operations == (name,)
    with pytest.raises(OperationMissingError) as caught:
        check(odd)
    assert caught.value.operations == (name,)
    assert name in caught.value.message


def test_a_graph_that_computes_other_values_is_no_crash(home_command: InstalledPackage) -> None:
    runtime, graph = runtime_and_graph(home_command)
    wrong = graph.model_copy(
        update={"proof": graph.proof.model_copy(update={"greedy": (*graph.proof.greedy[:-1], 7)})}
    )
    with pytest.raises(ProofError, match="golden vector"):
        GraphTrial(None, 1).check(home_command, wrong, runtime)


def test_a_graph_that_would_kill_the_process_is_not_opened_in_it(home_command: InstalledPackage) -> None:
    tries = GraphTrial(None, 1, command=python(ILLEGAL))
    with pytest.raises(ProcessorError):
        load_model(home_command, check=tries.check)


def test_a_damaged_graph_leads_nowhere(home_command: InstalledPackage, tmp_path: Path) -> None:
    _, graph = runtime_and_graph(home_command)
    good = home_command.file(graph.file).read_bytes()
    path = tmp_path / "damaged.tflite"
    refused = 0
    for number in range(60):
        cut = 8 + number * 4
        path.write_bytes(good[:cut] if number % 2 else good[:cut] + b"\xff\xff\xff\x7f" + good[cut + 4 :])
        try:
            read_graph(path)
        except ModelLoadError:
            refused += 1
    assert refused >= 30


def test_a_processor_without_what_a_package_asks_for_is_named() -> None:
    with pytest.raises(ProcessorError, match="asimddp, i8mm") as caught:
        preflight.check_processor(SUBJECT, ("i8mm", "asimddp", "fp"), frozenset({"fp"}))
    assert caught.value.missing == ("asimddp", "i8mm")
    preflight.check_processor(SUBJECT, ("i8mm",), None)


@pytest.mark.parametrize(
    ("tags", "glibc", "is_fine"),
    [
        (("cp311-cp311-manylinux_2_27_x86_64",), "2.41", True),
        (("cp311-cp311-manylinux_2_27_x86_64",), "2.27", True),
        (("cp311-cp311-manylinux_2_27_x86_64",), "2.9", False),
        (("cp311-cp311-manylinux_2_34_aarch64", "cp311-cp311-manylinux_2_27_aarch64"), "2.31", True),
        (("cp311-cp311-linux_x86_64",), "2.9", True),
        (("cp311-cp311-manylinux_2_27_x86_64",), None, True),
        ((), "2.9", True),
    ],
)
def test_a_c_library_that_is_too_old_is_named_with_the_one_that_is_needed(
    tags: tuple[str, ...], glibc: str | None, is_fine: bool
) -> None:
    if is_fine:
        preflight.check_system_library(SUBJECT, tags, glibc)
        return
    with pytest.raises(SystemLibraryError, match=r"needs glibc 2\.27, this system has 2\.9"):
        preflight.check_system_library(SUBJECT, tags, glibc)


def test_the_limit_of_the_control_group_counts_and_cached_files_do_not(tmp_path: Path) -> None:
    group = tmp_path / "system.slice" / "edgeslm.service"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("200000000\n")
    (group / "memory.current").write_text("150000000\n")
    (group / "memory.stat").write_text("anon 1\nactive_file 20000000\ninactive_file 30000000\n")
    assert cgroup_room_bytes("0::/system.slice/edgeslm.service\n", tmp_path) == 100_000_000
    (group / "memory.max").write_text("max\n")
    with pytest.raises(ValueError, match="max"):
        cgroup_room_bytes("0::/system.slice/edgeslm.service\n", tmp_path)


def test_a_last_word_does_not_count_where_the_process_died_after_it() -> None:
    with pytest.raises(GraphCrashError):
        preflight.judge(SUBJECT, TrialEnd(-signal.SIGABRT, 1.0, TrialSaid()))


def test_nothing_of_the_runtime_is_imported_before_it_was_tried(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from edgeslm.cli import wiring
from edgeslm.errors import GraphCrashError
from edgeslm.runtime.loading import load_served
from edgeslm.runtime.trial import GraphTrial
installed = wiring.install_package("builtin:home-command", Path({str(tmp_path)!r}))
check = GraphTrial(None, 1, command=lambda: [sys.executable, "-c", "raise SystemExit(9)"]).check
try:
    load_served(installed, check=check)
except GraphCrashError:
    print(sorted(name for name in sys.modules if name.startswith(("ai_edge_litert.", "tflite_runtime."))))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
    assert will_compile(choose_runtime()) == has_compiled_model(choose_runtime())
