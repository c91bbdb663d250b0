"""How fast cards are written: beside ``dd``, which only writes, and bmaptool, which does what we do.

Pairs, one after the other and in turns, on the same file, which lies there whole before: blocks of 4 MiB past the page
cache, and a sync at the end. Ours counts from the first block to the end of the sync. What ``dd`` does not do counts by
itself: probing the card before (``ready_s``, the same for cards of any size), and reading back.

A file on this machine's disk is much faster than any card, so what our own work costs shows more than on a card; and
where the disk is busy with other things, pairs differ more from each other than we from ``dd`` (``ratios``). Where the
kernel lets us slow the disk down to the speed of a card, for both alike, that is measured as well (``as_card``).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.agent_rig import MeasurementError, say
from edgeslm.flash.disks.card import file_device, held, write_card
from edgeslm.flash.disks.source import open_raw
from edgeslm.flash.disks.writer import Written
from edgeslm.flash.image.bmap import BLOCK_BYTES, BlockMap, BlockRange, write_bmap

MIB = 2**20
CARD_BYTES_S = 60_000_000
_CONTROL = Path("/sys/fs/cgroup/blkio")
_CHUNK_BYTES = 16 * MIB


def measure(notes: dict[str, str], *, quick: bool = False) -> dict[str, Any]:
    """``write_vs_dd``, above 1 where we are faster: the median of pairs; and the same against bmaptool.

    Args:
        notes: get what a figure does not say by itself.
        quick: a smaller image, and fewer pairs.
    """
    size_bytes, pairs = (128 * MIB, 3) if quick else (256 * MIB, 31)
    with tempfile.TemporaryDirectory(
        prefix="edgeslm-bench-", dir=os.environ.get("EDGESLM_BENCH_DIR")
    ) as name:
        place = Path(name)
        image, card = place / "sd.img", place / "card"
        say(f"writing {size_bytes // MIB} MiB, {pairs} pairs against dd")
        _fill(image, size_bytes)
        _fill(card, size_bytes + 64 * MIB)
        whole = _pairs(pairs, lambda: _ours(image, card), lambda: _dd(image, card))
        others = [_written(image, card) for _ in range(3)]
        found: dict[str, Any] = {
            "write_vs_dd": statistics.median(whole.ratios),
            "peers": {"dd_mb_s": size_bytes / statistics.median(whole.peer_s) / 1e6},
            "noise": {"write_vs_dd": _half_quartiles(whole.ratios)},
            "write": {
                "mb_s": size_bytes / statistics.median(whole.ours_s) / 1e6,
                "read_back_mb_s": size_bytes / min(one.verify_s for one in others) / 1e6,
                "ready_s": min(one.ready_s for one in others),
                "best_vs_best": min(whole.peer_s) / min(whole.ours_s),
                "ratios": [round(ratio, 3) for ratio in whole.ratios],
            },
        }
        found["write"]["as_card"] = _as_card(notes, place, quick=quick)
        if shutil.which("bmaptool") is None:
            notes["write_vs_bmaptool"] = "bmaptool is not installed: apt install bmap-tools"
            return found
        say("half of it left out, against bmaptool")
        _map_half(image, size_bytes)
        mapped = _pairs(max(3, pairs // 6), lambda: _ours(image, card), lambda: _bmaptool(image, card))
        found["write"]["mapped_mb_s"] = size_bytes / 2 / statistics.median(mapped.ours_s) / 1e6
        found["peers"]["bmaptool_mb_s"] = size_bytes / 2 / statistics.median(mapped.peer_s) / 1e6
        found["write"]["vs_bmaptool"] = statistics.median(mapped.ratios)
        return found


def _as_card(notes: dict[str, str], place: Path, *, quick: bool) -> dict[str, Any]:
    """Pairs against ``dd`` on a disk that takes no more than a good card."""
    image, card = place / "small.img", place / "small-card"
    size_bytes, pairs = (32 * MIB, 3) if quick else (128 * MIB, 5)
    _fill(image, size_bytes)
    _fill(card, size_bytes + 64 * MIB)
    try:
        with _slow_disk(place):
            say(f"{pairs} pairs at {CARD_BYTES_S / 1e6:.0f} MB/s")
            turns = _pairs(pairs, lambda: _ours(image, card), lambda: _dd(image, card))
    except OSError as error:
        notes["as_card"] = f"the disk cannot be slowed down here (cgroup v1, blkio): {error}"
        return {}
    return {
        "vs_dd": statistics.median(turns.ratios),
        "mb_s": size_bytes / statistics.median(turns.ours_s) / 1e6,
        "dd_mb_s": size_bytes / statistics.median(turns.peer_s) / 1e6,
        "ratios": [round(ratio, 3) for ratio in turns.ratios],
    }


@contextmanager
def _slow_disk(place: Path) -> Iterator[None]:
    """Let this process and what it starts write no more than a card takes; needs root and cgroup v1.

    Raises:
        OSError: the kernel does not let us.
    """
    number = place.stat().st_dev
    lines = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
    own = next((line.split(":", 2)[2] for line in lines if ":blkio:" in line), "/")
    group = _CONTROL / f"edgeslm-bench-{os.getpid()}"
    group.mkdir()
    try:
        limit = group / "blkio.throttle.write_bps_device"
        limit.write_text(f"{os.major(number)}:{os.minor(number)} {CARD_BYTES_S}")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (_CONTROL / own.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


class _Turns:
    """Seconds of each turn."""

    def __init__(self) -> None:
        self.ours_s: list[float] = []
        self.peer_s: list[float] = []

    @property
    def ratios(self) -> list[float]:
        """Of each pair, above 1 where ours was faster."""
        return [peer / ours for ours, peer in zip(self.ours_s, self.peer_s, strict=True)]


def _pairs(pairs: int, ours: Callable[[], float], peer: Callable[[], float]) -> _Turns:
    """Both, so many times, each first as often as the other; a pair before does not count."""
    turns = _Turns()
    ours()
    peer()
    for pair in range(pairs):
        if pair % 2:
            turns.peer_s.append(peer())
        turns.ours_s.append(ours())
        if not pair % 2:
            turns.peer_s.append(peer())
    return turns


def _ours(image: Path, card: Path) -> float:
    return _written(image, card).write_s


def _written(image: Path, card: Path) -> Written:
    os.sync()
    with open_raw(image) as raw, held(file_device(card)) as one:
        return write_card(raw, one, tell=lambda progress: None, keep_journal=False)


def _dd(image: Path, card: Path) -> float:
    words = ["dd", f"if={image}", f"of={card}", "bs=4M", "oflag=direct", "conv=fsync,notrunc", "status=none"]
    return _timed(words)


def _bmaptool(image: Path, card: Path) -> float:
    return _timed(["bmaptool", "--quiet", "copy", str(image), str(card)])


def _timed(words: list[str]) -> float:
    os.sync()
    began_s = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    took_s = time.monotonic() - began_s
    if done.returncode:
        raise MeasurementError(f"{words[0]} failed: {done.stderr.strip()[-200:]}")
    return took_s


def _fill(path: Path, size_bytes: int) -> None:
    """A file of random bytes."""
    with path.open("wb") as stream:
        for start in range(0, size_bytes, _CHUNK_BYTES):
            stream.write(os.urandom(min(_CHUNK_BYTES, size_bytes - start)))
        stream.flush()
        os.fsync(stream.fileno())


def _map_half(image: Path, size_bytes: int) -> None:
    """A block map of every other 16 MiB of the image."""
    ranges = []
    with image.open("rb") as stream:
        for start in range(0, size_bytes, 2 * _CHUNK_BYTES):
            stream.seek(start)
            digest = hashlib.sha256(stream.read(_CHUNK_BYTES)).hexdigest()
            first = start // BLOCK_BYTES
            ranges.append(BlockRange(first, first + _CHUNK_BYTES // BLOCK_BYTES - 1, digest))
    image.with_name(f"{image.name}.bmap").write_bytes(
        write_bmap(BlockMap(size_bytes, BLOCK_BYTES, tuple(ranges)))
    )


def _half_quartiles(values: list[float]) -> float:
    """Half of what lies between the quarters of `values`: how much one of them varies by itself."""
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2


def main() -> None:
    """Measure, and print one JSON object."""
    notes: dict[str, str] = {}
    print(json.dumps({**measure(notes), "notes": notes}, indent=2))


if __name__ == "__main__":
    main()
