"""Whether memory and card are large enough, with the arithmetic. Pure.

Megabytes are of 1,048,576 bytes. What a system needs by itself is our allowance, on the careful side; what models need
is what their packages say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edgeslm.flash.fit_types import MB, Check, FitRequest, total

SYSTEM_MB: Final = 180
"""Kernel, what the firmware keeps for itself, and a system without desktop after its start. Our allowance."""
PROCESS_MB: Final = 32
"""Private memory of an agent or of a trial before it has loaded anything."""
_LEAST_SPARE_MB: Final = 48
_SPARE_SHARE: Final = 0.1

ENVIRONMENT_MB: Final = 200
"""The agent's virtual environment, as measured for aarch64 and Python 3.11: 3,190 entries, 196 MB."""
STATE_MB: Final = 96
"""Journal, spool, ledger and outbox at their limits. Our allowance."""
_COPIES: Final = 3
"""Of a package's size: the file, what is unpacked from it, and the runtime's packed weights."""
_SPARE_CARD_MB: Final = 256
"""For the system itself: its journal, its caches, blocks that a file system keeps back. Our allowance."""


def check_room(request: FitRequest) -> Iterator[Check]:
    """Memory, trials of new versions, and the card."""
    yield from _memory(request)
    yield from _limit(request)
    yield _card(request)


# --- memory ----------------------------------------------------------------------------------------------------


def _model_parts(request: FitRequest) -> list[tuple[str, float]]:
    return [(model.name, float(model.manifest.requires.ram_mb)) for model in request.models]


def _used(request: FitRequest) -> list[tuple[str, float]]:
    """What is in memory while the agent serves, without anything spared."""
    return [
        ("system", SYSTEM_MB),
        ("other programs", request.profile.other.ram_mb),
        ("agent", PROCESS_MB),
        *_model_parts(request),
    ]


def _spare_mb(ram_mb: int) -> int:
    return max(_LEAST_SPARE_MB, round(ram_mb * _SPARE_SHARE))


def _memory(request: FitRequest) -> Iterator[Check]:
    sizes = (request.ram_mb,) if request.ram_mb is not None else request.board.ram_mb
    used = _used(request)
    if not sizes:
        _, text = total(used, "MB")
        yield Check(
            name="memory",
            status="unknown",
            detail=f"{text}; the board's memory is not known",
            hint="Give --ram",
        )
        return
    fitting = [size for size in sizes if total([*used, ("spare", _spare_mb(size))], "MB")[0] <= size]
    shown = max(sizes) if not fitting else min(sizes)
    _, text = total([*used, ("spare", _spare_mb(shown))], "MB")
    if not fitting:
        yield Check(
            name="memory",
            status="fail",
            detail=f"{text}, the board has {shown:,} MB",
            hint="Take fewer or smaller models, or a board with more memory",
        )
        return
    if len(fitting) < len(sizes):
        few = ", ".join(f"{size:,}" for size in sizes if size not in fitting)
        yield Check(
            name="memory",
            status="warning",
            detail=f"{text}: not on boards of {few} MB, on those of {min(fitting):,} MB and more",
            hint="Say which board it is with --ram",
        )
    else:
        yield Check(name="memory", status="pass", detail=f"{text} of {shown:,} MB")
    yield from _trial(request, min(fitting))


def _trial(request: FitRequest, ram_mb: int) -> Iterator[Check]:
    """Whether a new version of the largest model can be tried while the old one serves."""
    if not request.models:
        return
    largest = max(request.models, key=lambda model: model.manifest.requires.ram_mb)
    need_mb = largest.manifest.requires.ram_mb
    used_mb, _ = total([*_used(request), ("spare", _spare_mb(ram_mb))], "MB")
    # Candidate and running release each in a process of its own, as the agent's updater has it.
    beside_mb = 2 * (PROCESS_MB + need_mb)
    left_mb = ram_mb - used_mb
    text = f"2 x ({PROCESS_MB} MB process + {need_mb:,} MB {largest.name}) = {beside_mb:,} MB of {left_mb:,.0f} MB left"
    if beside_mb <= left_mb:
        yield Check(
            name="updates", status="pass", detail=f"{text}: a new version is tried beside the old one"
        )
    else:
        yield Check(
            name="updates",
            status="warning",
            detail=f"{text}: a new version is tried in place of the old one, and prompts wait meanwhile",
        )


def _limit(request: FitRequest) -> Iterator[Check]:
    limit_mb = request.profile.service.memory_max_mb
    if limit_mb is None:
        return
    used_mb, text = total([("agent", PROCESS_MB), *_model_parts(request)], "MB")
    if used_mb > limit_mb:
        yield Check(
            name="service",
            status="fail",
            detail=f"{text}, and service.memory_max_mb allows {limit_mb:,} MB",
            hint=f"Allow at least {used_mb:,.0f} MB, better half as much again",
        )
        return
    yield Check(name="service", status="pass", detail=f"{text} of {limit_mb:,} MB")


# --- card ------------------------------------------------------------------------------------------------------


def storage_parts(request: FitRequest) -> list[tuple[str, float]]:
    """What has to fit beside the image's own files, in MB: name and size of each part."""
    swap = request.profile.swap
    log = request.profile.log
    models_mb = sum(model.size_bytes for model in request.models) / MB
    parts: list[tuple[str, float]]
    if request.payload_bytes is not None:
        parts = [("payload", request.payload_bytes / MB), ("unpacked models", (_COPIES - 1) * models_mb)]
    else:
        parts = [("agent", ENVIRONMENT_MB), (f"models, {_COPIES} times", _COPIES * models_mb)]
    return [
        *parts,
        ("the next agent", ENVIRONMENT_MB),
        ("the next models", _COPIES * models_mb),
        ("state", STATE_MB),
        ("swap", float(swap.size_mb or 0) if swap is not None and swap.kind == "file" else 0.0),
        ("log", float(log.max_mb) if log is not None and log.storage == "persistent" else 0.0),
        ("spare", _SPARE_CARD_MB),
    ]


def _card(request: FitRequest) -> Check:
    need_mb, text = total(storage_parts(request), "MB")
    image = request.image
    if image is None:
        return Check(
            name="storage",
            status="unknown",
            detail=f"{text} beside the image's own files",
            hint="What the image leaves is known with --image",
        )
    free_mb = image.root_free_bytes / MB
    grown_mb = 0.0 if request.card_bytes is None else (request.card_bytes - image.image_bytes) / MB
    room_mb, room = total([("free in the image", free_mb), ("more on the card", max(grown_mb, 0.0))], "MB")
    if grown_mb < 0:
        return Check(
            name="storage",
            status="fail",
            detail=f"the image has {image.image_bytes / MB:,.0f} MB, the card {(request.card_bytes or 0) / MB:,.0f} MB",
            hint="Take a larger card",
        )
    if need_mb <= room_mb:
        return Check(name="storage", status="pass", detail=f"{text}, and there are {room}")
    if request.card_bytes is None:
        card_mb = image.image_bytes / MB + need_mb - free_mb
        return Check(
            name="storage",
            status="warning",
            detail=f"{text}, and there are {room}: the root has to grow, onto a card of {card_mb:,.0f} MB or more",
            hint="Say how large the card is with --card",
        )
    return Check(
        name="storage",
        status="fail",
        detail=f"{text}, and there are {room}",
        hint=f"Take a card that is {need_mb - room_mb:,.0f} MB larger, or fewer models",
    )
