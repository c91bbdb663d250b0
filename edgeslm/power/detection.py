"""Which board this is: what the kernel says of the machine, held against what is known of boards.

What always holds: :func:`detect` is pure. A board is recognised by the device tree's ``model``; where no text of any
board is in it, by ``compatible``, whose first entries are the most specific; else the generic board of the architecture
is taken. The longest text wins: "Raspberry Pi 3 Model B Plus" before "Raspberry Pi 3 Model B".

Sources: devicetree specification 0.4, 2.3.1 (``compatible``) and 2.3.2 (``model``); kernel documentation,
admin-guide/pm/cpufreq.rst.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from edgeslm.procfs import cpu_flags, memory_kib
from edgeslm.schema.board import WATCHED_FEATURES, Board

By = Literal["model", "compatible", "architecture"]

_FALLBACK: Final = {"aarch64": "generic-arm64"}
_LAST_RESORT: Final = "host"
_MAX_TEXT_BYTES: Final = 4096
_FREQUENCY_SLACK_MHZ: Final = 25
"""Kernels round: 1,512 MHz are called 1.5 GHz, and 2,400 may be 2,396."""


@dataclass(frozen=True)
class Machine:
    """What the kernel says of this machine; ``None`` where it does not say.

    Attributes:
        arch: as ``uname -m``.
        model: text of the device tree; PCs have none.
        compatible: of the device tree, the most specific first.
        cpu_features: in the words of ``/proc/cpuinfo``; on boards with unlike cores, what any of them can do.
        ram_mb: MiB that the kernel counts; less than was soldered on, for firmware and graphics take their part.
        max_mhz: highest frequency of any core.
    """

    arch: str
    model: str | None = None
    compatible: tuple[str, ...] = ()
    cores: int | None = None
    cpu_features: frozenset[str] | None = None
    ram_mb: int | None = None
    max_mhz: int | None = None


@dataclass(frozen=True)
class Detection:
    """The board that a machine is taken for, and why.

    Attributes:
        matched: the text of the board's file that decided; ``None`` for a generic board.
        others: names of boards that fitted less well.
        ram_variant_mb: the size of memory that it was sold with; ``None`` where its file names none that fits.
        differences: in what the machine is not as the file says, as sentences.
    """

    board: Board
    by: By
    matched: str | None
    others: tuple[str, ...]
    ram_variant_mb: int | None
    differences: tuple[str, ...]


# --- the machine ---------------------------------------------------------------------------------------------


def read_machine(root: Path = Path("/")) -> Machine:
    """What the kernel says of the machine below `root`, which stands for ``/``."""
    model = read_texts(root / "proc/device-tree/model")
    kib = memory_kib("MemTotal", root / "proc/meminfo")
    return Machine(
        arch=platform.machine(),
        model=model[0] if model else None,
        compatible=read_texts(root / "proc/device-tree/compatible"),
        cores=os.cpu_count(),
        cpu_features=cpu_flags(root / "proc/cpuinfo"),
        ram_mb=None if kib is None else kib // 1024,
        max_mhz=_max_mhz(root / "sys/devices/system/cpu/cpufreq"),
    )


def read_texts(path: Path) -> tuple[str, ...]:
    """The texts of a property of the device tree, each ended by a zero; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_TEXT_BYTES)
    except OSError:
        return ()
    return tuple(part.decode("utf-8", "replace") for part in content.split(b"\0") if part)


def _max_mhz(directory: Path) -> int | None:
    found = []
    for path in directory.glob("policy*/cpuinfo_max_freq"):
        with suppress(OSError, ValueError):
            found.append(int(path.read_text("ascii")) // 1000)
    return max(found, default=None)


# --- deciding ------------------------------------------------------------------------------------------------


def detect(boards: Mapping[str, Board], machine: Machine) -> Detection:
    """The board that `machine` is.

    Args:
        boards: by name; the generic ones that ship have to be among them.
    """
    fitting = _by_model(boards.values(), machine.model or "")
    by: By = "model"
    if not fitting:
        fitting, by = _by_compatible(boards.values(), machine.compatible), "compatible"
    if fitting:
        matched, board = fitting[0]
    else:
        matched, board, by = None, boards[_FALLBACK.get(machine.arch, _LAST_RESORT)], "architecture"
    return Detection(
        board=board,
        by=by,
        matched=matched,
        others=tuple(dict.fromkeys(other.name for _, other in fitting if other is not board)),
        ram_variant_mb=ram_variant_mb(board, machine.ram_mb),
        differences=tuple(_differences(board, machine)),
    )


def ram_variant_mb(board: Board, counted_mb: int | None) -> int | None:
    """The size of memory that a `board` was sold with whose kernel counts `counted_mb`: the next one above."""
    if counted_mb is None:
        return None
    return next((size for size in board.ram_mb if size >= counted_mb), None)


def _by_model(boards: Iterable[Board], model: str) -> list[tuple[str, Board]]:
    matches = [
        (text, board)
        for board in boards
        if not any(_has(model, text) for text in board.other_models)
        for text in board.recognised_by
        if _has(model, text)
    ]
    return sorted(matches, key=lambda match: (-len(match[0]), match[1].name))


def _by_compatible(boards: Iterable[Board], compatible: tuple[str, ...]) -> list[tuple[str, Board]]:
    matches = [
        (compatible.index(text), text, board)
        for board in boards
        for text in board.compatible
        if text in compatible
    ]
    return [(text, board) for _, text, board in sorted(matches, key=lambda match: (match[0], match[2].name))]


def _has(model: str, text: str) -> bool:
    """Whether `text` is in `model` and ends where a word ends: a "Compute Module 4S" is no "Compute Module 4"."""
    start = model.find(text)
    while start >= 0:
        following = model[start + len(text) : start + len(text) + 1]
        if not (following.isalnum() or following == "+"):
            return True
        start = model.find(text, start + 1)
    return False


def _differences(board: Board, machine: Machine) -> Iterable[str]:
    if board.arch not in {"any", machine.arch}:
        yield f"the kernel is for {machine.arch}, the board's for {board.arch}: install a 64-bit system"
    if board.cores is not None and machine.cores is not None and machine.cores != board.cores:
        yield f"{machine.cores} cores are in use, the board has {board.cores}"
    if machine.ram_mb is not None and board.ram_mb and ram_variant_mb(board, machine.ram_mb) is None:
        yield f"{machine.ram_mb} MB of memory are more than any known variant has ({board.ram_mb[-1]} MB)"
    if machine.cpu_features is not None and board.recognised_by:
        expected = frozenset(board.cpu_features)
        missing = sorted(expected - machine.cpu_features)
        if missing:
            yield f"the processor lacks {', '.join(missing)}, which the board's file promises"
        more = sorted((machine.cpu_features & WATCHED_FEATURES) - expected)
        if more:
            yield f"the processor also has {', '.join(more)}, which the board's file does not name"
    if machine.max_mhz is not None and board.power.max_mhz is not None:
        off_mhz = machine.max_mhz - board.power.max_mhz
        if abs(off_mhz) > _FREQUENCY_SLACK_MHZ:
            yield (
                f"it runs at up to {machine.max_mhz} MHz, the power table is for {board.power.max_mhz} MHz: "
                f"estimates are too {'low' if off_mhz > 0 else 'high'} until it is calibrated"
            )
