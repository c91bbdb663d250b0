"""Making deltas (:mod:`edgeslm.models.delta`), on the machine that publishes packages.

For each stretch of the target the question is only where in the base it comes from: its *shift*. Members of
the same contents, of the same name, or of the same kind are tried first, so that graphs of one layout are
compared tensor by tensor. Where that fits badly, windows of 32 bytes that also occur in the base vote for
other shifts, and each cell of 512 bytes takes the one that fits best, where changing from one to another has
its price. The more windows a changed graph still shares with the old one, the surer the vote: of weights of
which 5 % changed, a fifth of all windows did not.

A delta takes its name only once it has been applied and has given the target. This takes some 100 MB of
memory, whatever the sizes.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeslm.errors import DeltaError
from edgeslm.files import sync_directory
from edgeslm.models.archive import Entry, members_end, open_regular, sha256_file
from edgeslm.models.archive_reader import read_entries
from edgeslm.models.delta import (
    FRAME,
    FRAME_BYTES,
    HEADER,
    MAX_RUNS,
    MAX_SPARSE_VALUES,
    NOWHERE,
    RUN,
    SKIP,
    DeltaHeader,
    Octets,
    index_bits,
    rebuilt,
)
from edgeslm.models.image import FileImage
from edgeslm.models.package import writing

Costs: TypeAlias = NDArray[np.float32]

_CELL_BYTES = 512
_FITS = 0.5
"""A cell fits where its differences cost less than this share of what its bytes cost by themselves."""
_RUN_COST = 16.0
"""What another run costs, in bytes."""
_ZEROS_COST = 0.6
"""What bytes cost by themselves, as a share of what they cost as differences: more of it is repeated."""
_WINDOW_BYTES = 32
_MAX_INDEXED = 2**20
_MAX_VOTED = 24
_FILTER_BITS = 24
_DIFFERENCE_COST = np.array(
    [0.0, *((1 + np.log2(np.minimum(d, 256 - d))) / 8 for d in range(1, 256))], np.float32
)
"""What a difference costs, in bytes: about as many bits as it takes to say it."""
_LEVEL = 6
"""Higher ones take ten times as long among weights, and give a thousandth."""
_DENSE_SHARE = 8
"""With fewer than one difference in so many bytes, places are shorter than a value for every byte."""


@dataclass(frozen=True)
class DeltaReport:
    """What became of a delta.

    Attributes:
        size_bytes: of the delta.
        share: of the size of the target.
    """

    header: DeltaHeader
    size_bytes: int

    @property
    def share(self) -> float:
        """Size of the delta as a share of the target's."""
        return self.size_bytes / self.header.target_bytes


@dataclass(frozen=True)
class _Stretch:
    """A part of the target, and what to add to its offsets to come to what it may be in the base."""

    start: int
    end: int
    shifts: tuple[int, ...]


@dataclass(frozen=True)
class _Run:
    start: int
    end: int
    shift: int | None


def make_delta(base: Path, target: Path, out: Path) -> DeltaReport:
    """Write the delta `out` that leads from the package file `base` to the package file `target`.

    Raises:
        PackageError: `base` or `target` is no package, or cannot be read.
        DeltaError: the delta does not rebuild the target: one of the two changed meanwhile.
        StoreError: `out` cannot be written.
    """
    with FileImage(base) as old, FileImage(target) as new:
        stretches = _stretches(_entries(base, old.size_bytes), _entries(target, new.size_bytes), old, new)
        header = DeltaHeader(sha256_file(base), old.size_bytes, sha256_file(target), new.size_bytes)
        with writing(out):
            descriptor, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
        temporary = Path(name)
        try:
            with writing(out), os.fdopen(descriptor, "wb") as stream:
                os.fchmod(descriptor, 0o644)
                stream.write(header.encode())
                for frame in _frames(stretches, old, new):
                    stream.write(frame)
                stream.flush()
                os.fsync(descriptor)
            _read_back(temporary, old, header, out)
            with writing(out):
                temporary.replace(out)
                sync_directory(out.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return DeltaReport(header, out.stat().st_size)


def _read_back(temporary: Path, old: FileImage, header: DeltaHeader, out: Path) -> None:
    digest = hashlib.sha256()
    with open_regular(temporary, out) as stream:
        stream.seek(HEADER.size)
        for frame in rebuilt(stream, old, header.target_bytes, out):
            digest.update(frame)
    if digest.hexdigest() != header.target_sha256:
        raise DeltaError(f"{out.name}: does not rebuild the target", path=str(out))


# --- where things come from ---------------------------------------------------------------------------------


def _entries(path: Path, size_bytes: int) -> tuple[Entry, ...]:
    with open_regular(path, path) as stream:
        return read_entries(stream, size_bytes, path)


def _stretches(
    old: Sequence[Entry], new: Sequence[Entry], old_image: FileImage, new_image: FileImage
) -> tuple[_Stretch, ...]:
    """The target cut into headers, members and the directory, in order."""
    found = []
    for entry in new:
        twins = _twins(entry, old)
        headers = tuple(dict.fromkeys(twin.offset - entry.offset for twin in twins))
        members = tuple(dict.fromkeys(twin.data_offset - entry.data_offset for twin in twins))
        found.append(_Stretch(entry.offset, entry.data_offset, headers))
        found.append(_Stretch(entry.data_offset, entry.end_offset, members))
    start = members_end(new)
    found.append(_Stretch(start, new_image.size_bytes, (members_end(old) - start,)))
    return tuple(stretch for stretch in found if stretch.end > stretch.start)


def _twins(entry: Entry, old: Sequence[Entry]) -> list[Entry]:
    """Members of the base that `entry` may come from, likeliest first."""
    same = [other for other in old if (other.size_bytes, other.crc32) == (entry.size_bytes, entry.crc32)]
    named = [other for other in old if other.name == entry.name]
    suffix = PurePath(entry.name).suffix
    kin = [other for other in old if PurePath(other.name).suffix == suffix]
    kin.sort(key=lambda other: abs(other.size_bytes - entry.size_bytes))
    return [*same[:1], *named, *kin[:1]]


class _Windows:
    """Where in the base a window of bytes occurs, for a sample of its windows."""

    def __init__(self, base: FileImage) -> None:
        stride = max(16, -(-base.size_bytes // _MAX_INDEXED))
        hashes, places = [], []
        at = 0
        while at < base.size_bytes:
            span = stride * max(1, FRAME_BYTES // stride)
            data = np.frombuffer(base.read(at, span + _WINDOW_BYTES), np.uint8)
            found = _window_hashes(data)[:span:stride]
            hashes.append(found)
            places.append(at + stride * np.arange(len(found), dtype=np.int64))
            at += span
        self._hashes, first = np.unique(np.concatenate(hashes), return_index=True)
        self._places = np.concatenate(places)[first]
        self._filter = np.zeros(1 << _FILTER_BITS, np.bool_)
        self._filter[self._hashes >> np.uint64(64 - _FILTER_BITS)] = True

    def shifts(self, data: Octets, start: int) -> list[int]:
        """The shifts that most windows of `data`, which starts at `start` in the target, speak for."""
        hashes = _window_hashes(data)
        maybe = np.flatnonzero(self._filter[hashes >> np.uint64(64 - _FILTER_BITS)])
        index = np.searchsorted(self._hashes, hashes[maybe])
        index[index == len(self._hashes)] = 0
        hit = self._hashes[index] == hashes[maybe]
        shifts, votes = np.unique(self._places[index[hit]] - (maybe[hit] + start), return_counts=True)
        return [int(shift) for shift in shifts[np.argsort(-votes, kind="stable")[:_MAX_VOTED]]]


def _window_hashes(data: Octets) -> NDArray[np.uint64]:
    """A hash of the 32 bytes from each place on, for every place that has as many."""
    count = len(data) - _WINDOW_BYTES + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    words = np.zeros(len(data) - 7, np.uint64)
    for byte in range(8):
        words |= data[byte : byte + len(words)].astype(np.uint64) << np.uint64(8 * byte)
    hashes = np.zeros(count, np.uint64)
    for word in range(0, _WINDOW_BYTES, 8):
        hashes ^= words[word : word + count]
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return hashes * np.uint64(0xBF58476D1CE4E5B9)


# --- frames -------------------------------------------------------------------------------------------------


def _frames(stretches: Sequence[_Stretch], old: FileImage, new: FileImage) -> Iterator[bytes]:
    windows: _Windows | None = None
    before: tuple[int, ...] = ()
    for start in range(0, new.size_bytes, FRAME_BYTES):
        target = np.frombuffer(new.read(start, FRAME_BYTES), np.uint8)
        end = start + len(target)
        runs: list[_Run] = []
        for stretch in stretches:
            if stretch.start >= end or stretch.end <= start:
                continue
            first, last = max(start, stretch.start), min(end, stretch.end)
            piece = target[first - start : last - start]
            # A member that came before may have moved what follows it, so its shift is worth a try as well.
            found = _runs(piece, first, tuple(dict.fromkeys((*stretch.shifts, *before))), old)
            if found is None:
                windows = windows or _Windows(old)
                voted = windows.shifts(piece, first)
                found = _best_runs(piece, first, (*stretch.shifts, *before, *voted), old)
            runs += found
            before = tuple(run.shift for run in found[-1:] if run.shift is not None)
        yield _frame(target, start, _joined(runs, start, end), old)


def _runs(piece: Octets, start: int, shifts: tuple[int, ...], old: FileImage) -> list[_Run] | None:
    """One run for the whole of `piece`, if there is a shift with which all of it fits well."""
    limits = _FITS * _per_cell(_costs(piece, start, None, old))
    for shift in shifts:
        if (_per_cell(_costs(piece, start, shift, old)) <= limits).all():
            return [_Run(start, start + len(piece), shift)]
    return None


def _per_cell(costs: Costs) -> Costs:
    return np.add.reduceat(costs, np.arange(0, len(costs), _CELL_BYTES))


def _best_runs(piece: Octets, start: int, shifts: Sequence[int], old: FileImage) -> list[_Run]:
    """The runs that explain `piece` most cheaply."""
    candidates: list[int | None] = [None, *dict.fromkeys(shifts)]
    costs = [_costs(piece, start, shift, old) for shift in candidates]
    choice = _cheapest(np.stack([_per_cell(row) for row in costs]))
    # Where one run ends and the next begins was found to a cell; now to a byte.
    runs: list[_Run] = []
    at, changes = 0, np.flatnonzero(np.diff(choice))
    for cell in changes:
        one, two = costs[choice[cell]], costs[choice[cell + 1]]
        low = max(at, int(cell) * _CELL_BYTES)
        high = min(len(piece), int(cell + 2) * _CELL_BYTES)
        total = np.concatenate(([0], np.cumsum(one[low:high] - two[low:high], dtype=np.float64)))
        border = low + int(np.argmin(total))
        if border > at:
            runs.append(_Run(start + at, start + border, candidates[choice[cell]]))
            at = border
    runs.append(_Run(start + at, start + len(piece), candidates[choice[-1]]))
    return runs


def _costs(piece: Octets, start: int, shift: int | None, old: FileImage) -> Costs:
    """What each byte of `piece` costs if it comes from there."""
    if shift is None:
        return _DIFFERENCE_COST[piece] * np.float32(_ZEROS_COST)
    # Outside of the base there is nothing to copy: dearer than everything else.
    low, high = max(0, -(start + shift)), min(len(piece), old.size_bytes - start - shift)
    costs = np.full(len(piece), np.float32(1e6))
    if low < high:
        there = np.frombuffer(old.read(start + shift + low, high - low), np.uint8)
        costs[low:high] = _DIFFERENCE_COST[piece[low:high] - there]
    return costs


def _cheapest(costs: Costs) -> NDArray[np.intp]:
    """Which candidate each cell takes: the cheapest way through, where a change costs as much as a run.

    Args:
        costs: (candidates, cells) float32.

    Returns:
        (cells,) indexes of candidates.
    """
    count, cells = costs.shape
    came_from = np.empty((cells, count), np.intp)
    total = np.zeros(count)
    here = np.arange(count)
    for cell in range(cells):
        best = int(np.argmin(total))
        change = total[best] + _RUN_COST < total
        came_from[cell] = np.where(change, best, here)
        total = np.where(change, total[best] + _RUN_COST, total) + costs[:, cell]
    choice = np.empty(cells, np.intp)
    choice[-1] = np.argmin(total)
    for cell in range(cells - 1, 0, -1):
        choice[cell - 1] = came_from[cell, choice[cell]]
    return choice


def _joined(runs: Sequence[_Run], start: int, end: int) -> list[_Run]:
    joined: list[_Run] = []
    for run in runs:
        begins = joined.pop().start if joined and joined[-1].shift == run.shift else run.start
        joined.append(_Run(begins, run.end, run.shift))
    return joined if len(joined) <= MAX_RUNS else [_Run(start, end, None)]


def _frame(target: Octets, start: int, runs: Sequence[_Run], old: FileImage) -> bytes:
    """One frame, packed: as places and values, or as a value for every byte, whichever is shorter."""
    copied = np.zeros(len(target), np.uint8)
    packed_runs = b""
    for run in runs:
        offset = NOWHERE if run.shift is None else run.start + run.shift
        packed_runs += RUN.pack(run.end - run.start, offset)
        if run.shift is not None:
            data = np.frombuffer(old.read(offset, run.end - run.start), np.uint8)
            copied[run.start - start : run.end - start] = data
    difference = target - copied
    places = np.flatnonzero(difference)
    forms = []
    if len(places) <= MAX_SPARSE_VALUES:
        forms.append((_gaps(places), _packed_values(difference[places]) if len(places) else b""))
    if len(places) > len(target) // _DENSE_SHARE:
        forms.append((b"", _packed_values(difference)))
    parts = [[_deflated(packed_runs), _deflated(gaps), _deflated(values)] for gaps, values in forms]
    best = min(parts, key=lambda form: sum(len(packed) for packed, _ in form))
    sizes = [size for packed, plain_bytes in best for size in (len(packed), plain_bytes)]
    return FRAME.pack(*sizes) + b"".join(packed for packed, _ in best)


def _gaps(places: NDArray[np.intp]) -> bytes:
    gaps = np.diff(places, prepend=-1) - 1
    skips = gaps // SKIP
    steps = np.full(len(gaps) + int(skips.sum()), SKIP, np.uint8)
    steps[np.cumsum(skips + 1) - 1] = gaps % SKIP
    return steps.tobytes()


def _packed_values(values: Octets) -> bytes:
    palette, index = np.unique(values, return_inverse=True)
    if len(palette) > 16:
        return b"\0" + values.tobytes()
    bits = index_bits(len(palette))
    columns = 8 // bits
    padded = np.zeros(-(-len(index) // columns) * columns, np.uint8)
    padded[: len(index)] = index
    packed = np.zeros(len(padded) // columns, np.uint8)
    for column in range(columns):
        packed |= padded[column::columns] << bits * column
    return bytes([len(palette)]) + palette.tobytes() + packed.tobytes()


def _deflated(plain: bytes) -> tuple[bytes, int]:
    """`plain` in its shortest form, and its size. Matches seldom pay among weights, and cost table space."""
    forms = [plain]
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY):
        deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
        forms.append(deflater.compress(plain) + deflater.flush())
    return min(forms, key=len), len(plain)
