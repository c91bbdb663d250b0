"""What preparing an image costs: time and memory of ``edgeslm flash prepare`` with all the programs that it runs.

The image is a Debian for qemu-virt, made 8 GB long and filled with 2 GiB that do not compress; the payload is the
agent with all its wheels for aarch64, and its model. Both are made before the clock runs, and so is the claim.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.agent_rig import MeasurementError, say
from benchmarks.flash_rig import MIB, a_claim, large_image
from edgeslm import codec
from edgeslm.flash.base.build import default_cache, make_base_image
from edgeslm.flash.base.recipe import recipe_of
from edgeslm.flash.image.image import open_image
from edgeslm.flash.payload.agents import cache_directory, packed_agent
from edgeslm.flash.payload.gathering import Target
from edgeslm.power.boards import choose_board

IMAGE_BYTES = 8 * 10**9
DATA_BYTES = 2 * 2**30
_BOARD = "qemu-virt"
_SAMPLE_S = 0.02


def measure(notes: dict[str, str], *, quick: bool = False) -> dict[str, Any]:
    """``prepare_s`` and ``prepare_mb``, and beside them what each phase takes and what ``xz`` adds.

    Args:
        notes: get what a figure does not say by itself.
        quick: an image of 2 GiB with a quarter of it filled, and no xz.
    """
    image_bytes, data_bytes = (2 * 2**30, 512 * MIB) if quick else (IMAGE_BYTES, DATA_BYTES)
    with tempfile.TemporaryDirectory(
        prefix="edgeslm-bench-", dir=os.environ.get("EDGESLM_BENCH_DIR")
    ) as name:
        place = Path(name)
        base, image, out = place / "base.img", place / "stock.img", place / "sd.img"
        make_base_image(recipe_of(choose_board(_BOARD, None)), base, say, cache=default_cache())
        say("filling the image")
        large_image(base, image, image_bytes=image_bytes, data_bytes=data_bytes)
        with open_image(base) as opened:
            facts = opened.facts()
        target = Target(facts.python or "", facts.machine or "", facts.glibc or "")
        agent = packed_agent(target, cache_directory())
        claim = place / "claim.json"
        claim.write_bytes(codec.encode(a_claim()))
        words = ["--agent", str(agent), "--claim", str(claim), "--out", str(out), "--force"]
        count = 1 if quick else 3
        runs = [_run([*words, "--image", str(image)]) for _ in range(count)]
        best = min(runs, key=lambda run: run["seconds"])
        found: dict[str, Any] = {
            "prepare_s": best["seconds"],
            "prepare_mb": max(run["peak_mb"] for run in runs),
            "prepare_detail": {
                "seconds_of_all_runs": [run["seconds"] for run in runs],
                "cpu_s": best["cpu_s"],
                "image_mb": image_bytes / 1e6,
                "payload_mb": best["record"]["payload_bytes"] / 1e6,
                "payload_files": best["record"]["payload_files"],
                "mapped_mb": best["record"]["mapped_bytes"] / 1e6,
            },
        }
        if not quick:
            _forget(image)
            runs.append(_run([*words, "--image", str(image)]))
            found["prepare_detail"]["not_in_memory_s"] = runs[-1]["seconds"]
        same = {run["record"]["sha256"] for run in runs}
        found["prepare_detail"]["same_bytes_each_time"] = len(same) == 1
        notes["prepare_s"] = (
            f"the best of {count} runs, the whole command; raw image, claim and wheels at hand. The image was made"
            " just before, so that it may be in memory; not_in_memory_s is for one that is not"
        )
        notes["prepare_mb"] = "the most that the command and all its children had in memory at once (PSS)"
        if not quick:
            found["prepare_detail"] |= _packed(image, words)
        return found


def _forget(image: Path) -> None:
    """Let the kernel keep nothing of the image in memory."""
    with image.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _packed(image: Path, words: list[str]) -> dict[str, float]:
    """The same from an image that is compressed, and what unpacking it alone takes."""
    packed = image.with_name("stock.img.xz")
    with packed.open("wb") as stream:
        subprocess.run(["xz", "-0", "-T2", "-c", str(image)], stdout=stream, check=True)
    began_s = time.monotonic()
    subprocess.run(["xz", "-t", str(packed)], check=True)
    alone_s = time.monotonic() - began_s
    run = _run([*words, "--image", str(packed)])
    packed.unlink()
    return {"xz_s": run["seconds"], "xz_alone_s": alone_s, "xz_mb": run["peak_mb"]}


def _run(words: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "edgeslm", "flash", "prepare", "--board", _BOARD, "--json", *words]
    began_s, began_cpu_s = time.monotonic(), _cpu_s()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        peak = _Peak(process.pid)
        said, complained = process.communicate()
        seconds = time.monotonic() - began_s
        peak.stop()
    if process.returncode:
        raise MeasurementError(f"flash prepare ended with {process.returncode}: {complained[-500:]}")
    return {
        "seconds": seconds,
        "cpu_s": _cpu_s() - began_cpu_s,
        "peak_mb": peak.most_bytes / 1e6,
        "record": json.loads(said),
    }


def _cpu_s() -> float:
    """Processor time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class _Peak:
    """The most memory that a process and its children have at once."""

    def __init__(self, pid: int) -> None:
        self.most_bytes = 0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self.most_bytes = max(self.most_bytes, sum(map(_pss_bytes, _family(self._pid))))


def _family(pid: int) -> list[int]:
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            waiting += map(int, _read(children).split())
    return found


def _pss_bytes(pid: int) -> int:
    for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:  # it ended meanwhile
        return ""
