"""What goes onto an arm64 board, run by an emulated arm64 processor: installed, launched, its settings understood.

The board is a Debian of files alone, entered by chroot(1) in a user namespace that knows how to run programs of another
processor (binfmt_misc, of its own since Linux 6.7). Where something of that is missing this is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeslm.cli.wiring import package_path
from edgeslm.flash.payload import layout

QEMU = "/usr/bin/qemu-aarch64"
CPU = "cortex-a76"
"""That of a Pi 5; all that is known of Arm at once, as the emulator has it by itself, is no board's."""
_MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
# F: the emulator is opened now, so that it need not be in the tree.
_ENTER = f"""
set -eu
mount -t binfmt_misc binfmt_misc "$1"
printf '%s' ':arm64:M::{_MAGIC}:{_MASK}:{QEMU}:F' > "$1/register"
shift
exec "$@"
"""


_CHROOT = 'mount --rbind /proc "$1/proc" && mount --rbind /sys "$1/sys" && exec /usr/sbin/chroot "$@"'


def enter(directory: Path, *command: str, said: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command where programs for arm64 can be run, with `said` as its input."""
    directory.mkdir(exist_ok=True)
    names = ["unshare", "--map-root-user", "--user", "--mount", "sh", "-c", _ENTER, "sh", str(directory)]
    return subprocess.run([*names, *command], input=said, capture_output=True, text=True, check=False)


def _is_possible() -> bool:
    tools = [QEMU, "unshare", "mmdebstrap"]
    return all(shutil.which(tool) for tool in tools) and os.uname().machine == "x86_64"


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not _is_possible(), reason="needs qemu-user, unshare and mmdebstrap, on x86-64"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a Debian for arm64."""
    place = tmp_path_factory.mktemp("arm64") / "root"
    if enter(place.parent / "binfmt", "true").returncode:
        pytest.skip("this kernel has no binfmt_misc for namespaces (Linux 6.7)")
    packages = "python3,systemd,dash,base-files,libstdc++6,zlib1g"
    made = subprocess.run(
        [
            "mmdebstrap",
            "--variant=extract",
            "--architectures=arm64",
            f"--include={packages}",
            "trixie",
            place,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"no Debian for arm64 can be had: {made.stderr[-300:]}")
    return place


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This edgeslm, packed for the board."""
    given = os.environ.get("EDGESLM_TEST_AGENT_ARM64")
    if given:
        return Path(given)
    out = tmp_path_factory.mktemp("agent") / "agent.tar"
    target = ["--machine", "aarch64", "--glibc", "2.41", "--python", "3.13", "--out", str(out)]
    source = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "edgeslm", "agent", "pack", source, *target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the agent cannot be packed here: {done.stderr[-300:]}")
    return out


@pytest.fixture(scope="module")
def board(root: Path, agent: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a command of the agent that is installed there, and tells what it said."""
    place = tmp_path_factory.mktemp("board")
    archive = place / "board.pyz"
    target = ["--board", "generic-arm64", "--python", "3.13", "--glibc", "2.41", "--device", "porch"]
    command = [sys.executable, "-m", "edgeslm", "flash", "archive", *target, "--agent", str(agent)]
    made = subprocess.run([*command, "--out", str(archive)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    # Its program is the same under every Python; this one is quicker than an emulated one.
    installed = subprocess.run(
        [sys.executable, str(archive), "--root", str(root), "--yes", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr

    def on_board(*words: str, said: str = "") -> str:
        program = ["/usr/bin/python3", layout.LAUNCHER, *words]
        variables = [f"EDGESLM_ROOT={layout.AGENT_ROOT}", "HOME=/tmp", "PATH=/usr/bin", f"QEMU_CPU={CPU}"]
        # There is no env(1) in that tree, and its /proc and /sys are empty: LiteRT looks for processors there.
        chroot = ["env", "-i", *variables, "sh", "-c", _CHROOT, "sh", str(root)]
        done = enter(place / "binfmt", *chroot, *program, said=said)
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done.stdout

    return on_board


def test_the_launcher_runs_the_agent_on_arm64(board: Callable[..., str]) -> None:
    config = json.loads(board("agent", "config", "--config", layout.SETTINGS))
    assert (config["device"], config["board"]) == ("porch", "generic-arm64")


def test_a_model_answers_on_arm64_as_it_does_here(board: Callable[..., str], tmp_path: Path) -> None:
    with zipfile.ZipFile(package_path("home-command")) as package:
        golden = [json.loads(line)["prompt"] for line in package.read("golden.jsonl").splitlines()]
    prompts = "\n".join(golden[:: len(golden) // 24])
    words = (
        "model",
        "run",
        "home-command",
        "-",
        "--batch",
        "--json",
        "--runtime",
        "ai-edge-litert",
        "--threads",
        "1",
    )
    here = subprocess.run(
        [sys.executable, "-m", "edgeslm", *words], input=prompts, capture_output=True, text=True, check=True
    ).stdout
    found, wanted = (
        [json.loads(line) for line in said.splitlines()] for said in (board(*words, said=prompts), here)
    )
    assert len(wanted) >= 24
    assert all(one["finish_reason"] == "stop" for one in wanted)
    assert [one["text"] for one in found] == [one["text"] for one in wanted]


def test_an_archive_for_another_processor_is_refused_by_the_boards_own_python(
    root: Path, agent: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "board.pyz"
    target = ["--board", "pi-5", "--python", "3.13", "--glibc", "2.41", "--device", "porch"]
    command = [sys.executable, "-m", "edgeslm", "flash", "archive", *target, "--agent", str(agent)]
    made = subprocess.run([*command, "--out", str(archive)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    other = tmp_path / "other"
    (other / "usr/bin").mkdir(parents=True)
    shutil.copy("/bin/true", other / "usr/bin/python3.13")
    shutil.copy(archive, root / "tmp/board.pyz")
    shutil.move(other, root / "tmp/other")
    program = ["/usr/bin/python3", "/tmp/board.pyz", "--root", "/tmp/other", "--yes"]
    done = enter(tmp_path / "binfmt", "chroot", str(root), *program)
    assert done.returncode == 2, done.stderr
    assert "it is for aarch64, and the programs here are for x86_64" in done.stderr
