"""``edgeslm doctor``: what this machine can do, and what is missing, each with what to do about it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from edgeslm.cli import wiring
from edgeslm.cli.output import host_option, json_option, port_option, print_json, reporting_errors
from edgeslm.errors import EdgeslmError
from edgeslm.procfs import cpu_flags, memory_kib

Status = Literal["ok", "warning", "failed"]

_MIN_FREE_MEMORY_MB = 128
_MIN_FREE_DISK_MB = 200
_PROBE_TIMEOUT_S = 60

_PROBE = """
import json, sys
from pathlib import Path
from edgeslm.cli import wiring
from edgeslm.errors import EdgeslmError
try:
    loaded = wiring.open_model(sys.argv[1], store_dir=Path(sys.argv[2]))
except EdgeslmError as error:
    sys.exit(str(error))
memory = wiring.memory_of(loaded, Path(sys.argv[2]))
grown_bytes = memory.grown_bytes if memory else None
print(json.dumps([loaded.graph_file, loaded.runtime_name, loaded.load_s, grown_bytes]))
"""
"""Run in a process of its own: a library built for a newer processor dies of an illegal instruction, and that has to
become a sentence instead of the end of `doctor`."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        advice: what to do, where something is to be done.
    """

    name: str
    status: Status
    detail: str
    advice: str | None = None


def check_python() -> Finding:
    """The interpreter's version and word size."""
    version = platform.python_version()
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        return Finding("python", "failed", version, "Use Python 3.11, 3.12 or 3.13")
    if sys.maxsize < 2**32:
        return Finding(
            "python", "failed", f"{version}, 32 bits", "LiteRT has 64-bit wheels only: use a 64-bit system"
        )
    return Finding("python", "ok", f"{version} on {platform.machine()}")


def check_runtime() -> Finding:
    """Which TFLite runtimes are installed."""
    from edgeslm.runtime.backend import installed_runtimes  # noqa: PLC0415

    runtimes = installed_runtimes()
    if not runtimes:
        return Finding("runtime", "failed", "no TFLite runtime", "pip install ai-edge-litert")
    return Finding("runtime", "ok", ", ".join(map(str, runtimes)))


def check_forms() -> Finding:
    """Whether answers can be held to a schema, a regular expression, choices or a grammar."""
    from edgeslm.runtime.constraint import INSTALL_HINT, LIBRARY, forms_here  # noqa: PLC0415

    if not forms_here():
        return Finding("forms", "warning", f"answers cannot be held to a form: no {LIBRARY}", INSTALL_HINT)
    return Finding("forms", "ok", f"answers can be held to {', '.join(forms_here())}")


def check_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    """Processor features that int8 inference profits from."""
    wanted = {"asimd", "asimddp", "i8mm", "avx2", "avx512_vnni", "avx_vnni", "fma"}
    flags = cpu_flags(cpuinfo)
    if flags is None:
        return Finding("cpu", "warning", f"{os.cpu_count()} cores, features unknown")
    found = sorted(wanted & flags)
    fast = {"asimddp", "i8mm", "avx512_vnni", "avx_vnni"} & flags
    detail = f"{os.cpu_count()} cores, {', '.join(found) or 'no vector extensions found'}"
    return Finding("cpu", "ok", detail if fast else f"{detail}: no int8 dot products, so slower")


def check_model(state_dir: Path) -> Finding:
    """A shipped model, loaded and proved in a process of its own."""
    names = wiring.builtin_packages()
    if not names:
        return Finding("model", "warning", "no package ships with this build")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, names[0], str(state_dir)],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding("model", "failed", f"{names[0]} did not load within {_PROBE_TIMEOUT_S} s")
    return judge_probe(names[0], done.returncode, done.stdout, done.stderr)


def judge_probe(name: str, returncode: int, stdout: str, stderr: str) -> Finding:
    """What the end of the probe process says about the model."""
    if returncode == 0:
        graph, runtime, load_s, grown_bytes = json.loads(stdout.splitlines()[-1])
        memory = f", {grown_bytes / 2**20:.0f} MiB of memory" if grown_bytes else ""
        return Finding(
            "model", "ok", f"{name}: {graph} on {runtime}, loaded and proved in {load_s * 1e3:.0f} ms{memory}"
        )
    if returncode == -4:
        return Finding(
            "model",
            "failed",
            "illegal instruction: the installed TFLite runtime was built for a newer processor",
            "Use a 64-bit Arm or x86-64 board of the last ten years, or try tflite-runtime",
        )
    if returncode < 0:
        return Finding(
            "model", "failed", f"loading {name} was ended by signal {-returncode}", "Free some memory"
        )
    last = stderr.strip().splitlines()[-1] if stderr.strip() else "no reason given"
    return Finding("model", "failed", last[:300])


def check_memory(meminfo: Path = Path("/proc/meminfo")) -> Finding:
    """Memory that a model can have."""
    free_kib = memory_kib("MemAvailable", meminfo)
    if free_kib is None:
        return Finding("memory", "warning", "free memory unknown")
    free_mb = free_kib // 1024
    if free_mb < _MIN_FREE_MEMORY_MB:
        return Finding(
            "memory", "failed", f"{free_mb} MB free", f"At least {_MIN_FREE_MEMORY_MB} MB are needed"
        )
    return Finding("memory", "ok", f"{free_mb:,} MB free")


def check_disk(state_dir: Path) -> Finding:
    """Room for models and the journal."""
    place = next(path for path in [state_dir, *state_dir.parents] if path.exists())
    free_mb = shutil.disk_usage(place).free // 2**20
    if free_mb < _MIN_FREE_DISK_MB:
        return Finding(
            "disk", "failed", f"{free_mb} MB free at {place}", f"At least {_MIN_FREE_DISK_MB} MB are needed"
        )
    if not os.access(place, os.W_OK):
        return Finding(
            "disk", "warning", f"{place} is not writable for this user", "Give --state-dir, or run as root"
        )
    return Finding("disk", "ok", f"{free_mb:,} MB free at {place}")


def check_broker(host: str, port: int) -> Finding:
    """Whether something listens where the agent would connect."""
    try:
        with socket.create_connection((host, port), timeout=3):
            return Finding("broker", "ok", f"{host}:{port} accepts connections")
    except OSError as error:
        advice = "Start one (sudo apt-get install mosquitto), or name it with --host and --port"
        return Finding("broker", "warning", f"{host}:{port}: {error.strerror or error}", advice)


def check_meters() -> Finding:
    """What can tell this board's draw."""
    from edgeslm.power.boards import choose_board  # noqa: PLC0415
    from edgeslm.power.meters.discovery import discover  # noqa: PLC0415
    from edgeslm.schema.power import MetersConfig  # noqa: PLC0415

    board = choose_board(None)
    found = discover(board, MetersConfig())
    names = ", ".join(f"{meter.facts.name} ({meter.facts.meter_class})" for meter in found.meters)
    for meter in found.meters:
        meter.close()
    if names:
        return Finding("meters", "ok", names, "What each says: edgeslm power meters")
    detail = f"none; estimated from the table of board '{board.name}' ({board.power.idle_w:g} W idle)"
    is_known = board.family not in {"generic", "virtual"}
    return Finding(
        "meters", "ok" if is_known else "warning", detail, "Meters for your board: docs/power-meters.md"
    )


def _findings(state_dir: Path, host: str, port: int) -> Iterator[Finding]:
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("python", check_python),
        ("cpu", check_cpu),
        ("memory", check_memory),
        ("disk", lambda: check_disk(state_dir)),
        ("runtime", check_runtime),
        ("forms", check_forms),
        ("model", lambda: check_model(wiring.default_store_dir())),
        ("meters", check_meters),
        ("broker", lambda: check_broker(host, port)),
    ]
    for name, check in checks:
        try:
            yield check()
        except EdgeslmError as error:
            yield Finding(name, "failed", error.message, error.hint)


@click.command()
@host_option
@port_option
@click.option("--state-dir", type=click.Path(path_type=Path), default="/var/lib/edgeslm", show_default=True)
@json_option
@reporting_errors
def doctor(host: str, port: int, state_dir: Path, as_json: bool) -> None:
    """Check what this machine can do, and say what is missing. Exit code 1 if something essential is."""
    findings = []
    for finding in _findings(state_dir, host, port):
        findings.append(finding)
        if not as_json:
            mark = {"ok": ("ok", "green"), "warning": ("--", "yellow"), "failed": ("!!", "red")}[
                finding.status
            ]
            click.echo(f"{click.style(mark[0], fg=mark[1])}  {finding.name:8} {finding.detail}")
            if finding.advice and finding.status != "ok":
                click.echo(f"             {finding.advice}")
    failed = any(finding.status == "failed" for finding in findings)
    if as_json:
        print_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    if failed:
        sys.exit(1)
