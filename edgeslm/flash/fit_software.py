"""Whether image, agent and models go together, and the device can join. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edgeslm.flash.fit_types import Check, FitRequest
from edgeslm.schema.base import version_key
from edgeslm.schema.profile import CARD, RELEASE

PYTHONS: Final = ("3.11", "3.12", "3.13")
"""Versions of Python that edgeslm runs on."""
LEAST_GLIBC: Final = (2, 34)
"""What the wheels of ai-edge-litert are built against."""
READ_ONLY_KINDS: Final = ("debian", "raspios")
"""Kinds of image whose first start is over when all services run, so that the root can be read-only after it."""
_OLD_RUNTIME: Final = "tflite-runtime"
_OLD_RUNTIME_PYTHON: Final = "3.11"


def check_software(request: FitRequest) -> Iterator[Check]:
    """The image, what is in it, the models, and how the device joins."""
    yield _kind(request)
    yield from _facts(request)
    yield from _packages(request)
    yield from _swap(request)
    yield from _root(request)
    for reference in request.profile.models:
        if reference.startswith(RELEASE):
            yield _assigned(request, reference)
    yield from _models(request)
    yield _joining(request)


def _kind(request: FitRequest) -> Check:
    wanted = request.profile.image
    if not wanted:
        return Check(name="image", status="pass", detail="any kind of image")
    if request.image is None and request.image_kind is None:
        return Check(name="image", status="unknown", detail=f"the profile goes on {', '.join(wanted)}")
    if request.kind in wanted:
        return Check(name="image", status="pass", detail=str(request.kind))
    return Check(
        name="image",
        status="fail",
        detail=f"the image is {request.kind or 'of an unknown kind'}, the profile goes on {', '.join(wanted)}",
        hint="Take an image of one of these kinds, or extend the profile with another 'image'",
    )


def _facts(request: FitRequest) -> Iterator[Check]:
    image, board = request.image, request.board
    if image is None:
        return
    if image.machine is None:
        yield Check(name="machine", status="unknown", detail="no program in the image tells its architecture")
    elif board.arch not in ("any", image.machine):
        yield Check(
            name="machine",
            status="fail",
            detail=f"the image is for {image.machine}, the board is {board.arch}",
            hint=f"Take the {'64-bit ' if board.arch == 'aarch64' else ''}image for {board.arch}",
        )
    else:
        yield Check(name="machine", status="pass", detail=image.machine)
    if image.python is None:
        yield Check(
            name="python",
            status="fail",
            detail="no Python 3 in the image",
            hint="Take an image that has python3",
        )
    elif image.python not in PYTHONS:
        yield Check(
            name="python",
            status="fail",
            detail=f"Python {image.python}; edgeslm runs on {PYTHONS[0]} to {PYTHONS[-1]}",
            hint="Take an image of Debian 12 or 13, or Ubuntu 24.04",
        )
    else:
        yield Check(name="python", status="pass", detail=image.python)
    least = ".".join(map(str, LEAST_GLIBC))
    if image.glibc is None:
        yield Check(
            name="glibc", status="unknown", detail=f"not found in the image; {least} or later is needed"
        )
    elif _numbers(image.glibc) < LEAST_GLIBC:
        yield Check(
            name="glibc",
            status="fail",
            detail=f"{image.glibc}; the model's runtime needs {least}",
            hint="Take an image of Debian 12 or later, or Ubuntu 22.04 or later",
        )
    else:
        yield Check(name="glibc", status="pass", detail=f"{image.glibc}, {least} or later is needed")
    if not image.systemd:
        yield Check(
            name="systemd",
            status="fail",
            detail="the image does not start with systemd, which runs the agent",
            hint="Take an image with systemd",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else 0 for part in version.split(".")[:3])


def _packages(request: FitRequest) -> Iterator[Check]:
    wanted = request.profile.packages
    if not wanted:
        return
    if request.packages is None:
        yield Check(
            name="packages",
            status="unknown",
            detail=f"the image has to have {', '.join(wanted)}",
            hint="What the image has is known with --image",
        )
        return
    missing = [names for names in wanted if not request.packages & set(names.split(" | "))]
    if missing:
        yield Check(
            name="packages",
            status="fail",
            detail=f"the image lacks {', '.join(missing)}",
            hint="Take an image that has them: nothing is installed without a network",
        )
    else:
        yield Check(name="packages", status="pass", detail=f"the image has {', '.join(wanted)}")


def _swap(request: FitRequest) -> Iterator[Check]:
    swap = request.profile.swap
    if swap is not None and swap.kind == "zram":
        size = f"{swap.size_mb:,} MB" if swap.size_mb is not None else f"{swap.share or 0:.0%} of the memory"
        yield Check(
            name="swap",
            status="unknown",
            detail=f"zram of {size}: whether the image's kernel has it shows when the image is prepared",
        )


def _root(request: FitRequest) -> Iterator[Check]:
    if not request.profile.read_only_root:
        return
    if request.profile.state_device == CARD:
        kind = request.kind
        if kind is not None and not kind.startswith(READ_ONLY_KINDS):
            yield Check(
                name="root",
                status="fail",
                detail=f"read-only, which is done on {' and '.join(READ_ONLY_KINDS)}; the image is {kind}",
                hint="Take such an image, or take read_only_root out of the profile",
            )
            return
        yield Check(
            name="root",
            status="pass",
            detail="read-only from the second start on; the agent's state in a partition of its own",
        )
        return
    yield Check(
        name="root",
        status="fail",
        detail=f"read-only, with the agent's state on {request.profile.state_device}, which no image can be prepared "
        "for so far",
        hint="Say state_device: card, for a partition of its own on the card",
    )


def _assigned(request: FitRequest, reference: str) -> Check:
    name = reference.removeprefix(RELEASE)
    if request.has_claim is False:
        return Check(
            name="model",
            status="fail",
            detail=f"{name} is assigned by a fleet, and the device comes without a claim",
            hint="Give --claim, or a model that goes onto the card",
        )
    return Check(
        name="model",
        status="unknown" if request.has_claim is None else "pass",
        detail=f"{name} is assigned after joining: what it needs is checked then",
    )


def _models(request: FitRequest) -> Iterator[Check]:
    board = request.board
    python = request.image.python if request.image is not None else None
    for model in request.models:
        requires = model.manifest.requires
        said = f"{model.name}@{model.manifest.version}"
        if version_key(request.agent_version) < version_key(requires.agent):
            yield Check(
                name="model",
                status="fail",
                detail=f"{said} needs edgeslm {requires.agent}, this is {request.agent_version}",
                hint="Update edgeslm here and prepare with that",
            )
            continue
        lacking = sorted(set(requires.cpu_features) - set(board.cpu_features))
        if lacking:
            yield Check(
                name="model",
                status="fail",
                detail=f"{said} needs a processor with {', '.join(lacking)}, {board.soc} has none",
                hint="Take a package of the model without that, or another board",
            )
            continue
        if model.runtimes == {_OLD_RUNTIME} and python != _OLD_RUNTIME_PYTHON:
            yield Check(
                name="model",
                status="unknown" if python is None else "fail",
                detail=f"{said} runs on {_OLD_RUNTIME} alone, which ends at Python {_OLD_RUNTIME_PYTHON}",
                hint="Take an image with Python 3.11",
            )
            continue
        context = model.manifest.context_tokens
        if board.context_tokens is not None and context > board.context_tokens:
            yield Check(
                name="model",
                status="warning",
                detail=f"{said} has a context of {context:,} tokens; {board.context_tokens:,} are recommended here",
            )
            continue
        yield Check(
            name="model",
            status="pass",
            detail=f"{said}: {model.size_bytes / 2**20:,.1f} MB, edgeslm {requires.agent} or later, "
            f"{' or '.join(sorted(model.runtimes))}",
        )


def _joining(request: FitRequest) -> Check:
    broker = request.profile.broker
    if request.has_claim:
        return Check(name="broker", status="pass", detail="from the claim")
    if broker is not None:
        return Check(name="broker", status="pass", detail=f"{broker.host}:{broker.port}, without a fleet")
    if request.has_claim is None:
        return Check(name="broker", status="unknown", detail="from the claim that the device is given")
    return Check(
        name="broker",
        status="warning",
        detail="neither a claim nor a broker: the device will look for one at 127.0.0.1",
        hint="Give --claim, or a broker in the profile",
    )
