"""An image for the next device, made of one that is prepared: another name, another claim, and nothing else.

What always holds: the prepared image stays as it is; what is not the device's own is the same in both, byte by byte;
the new image is whole at its name or not there.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from edgeslm import codec
from edgeslm.codec import describe
from edgeslm.errors import PrepareError
from edgeslm.flash.boot_settings import read_boot_facts
from edgeslm.flash.first_boot import FirstBootFiles, detect
from edgeslm.flash.image.finish import finish
from edgeslm.flash.image.image import Image, open_image
from edgeslm.flash.image.past_cache import copy_sparse
from edgeslm.flash.payload import boot_text, layout
from edgeslm.flash.payload.claims import claim_entries
from edgeslm.flash.payload.manifest import MAX_MANIFEST_BYTES, InstalledPayload, described
from edgeslm.flash.prepare.planning import Personal
from edgeslm.flash.prepare.record import PreparedImage, encode_record, read_record, record_path
from edgeslm.flash.prepare.request import Stage, board_host_name, quiet
from edgeslm.flash.prepare.workplace import publish, refused, workplace
from edgeslm.flash.tree import Entry
from edgeslm.schema.config import AgentConfig
from edgeslm.schema.customisation import Customisation
from edgeslm.schema.enrol import Claim

_SECRET_MODE = 0o600
_MAX_BYTES = 2**20


@dataclass(frozen=True)
class PersonalRequest:
    """Whose the new image is.

    Attributes:
        claim: by which the device joins its fleet; an image that was prepared with a claim, or for many cards, needs
            one.
        device: name of a device without a claim.
        hostname: of the board; ``None``: the device's name, where the image was told a host name at all.
    """

    claim: Claim | None = None
    device: str | None = None
    hostname: str | None = None


def personalise(
    image_path: Path, out_path: Path, request: PersonalRequest, *, stage: Stage = quiet
) -> PreparedImage:
    """Make the image of another device.

    Args:
        image_path: a prepared image; its record lies beside it.
        out_path: the new one; beside it come its block map, digest and record.
        request: whose it is.
        stage: told how far it is.

    Returns:
        The record of the new image.

    Raises:
        PrepareError: the image is none that was prepared, the request does not go with it, or the result cannot be
            written.
        FirstBootError: the image cannot be told the host name.
        ImageError: it cannot be read, or it is damaged.
        TreeError: it cannot be changed.
    """
    record = read_record(image_path)
    with ExitStack() as stack:
        place = stack.enter_context(workplace(out_path))
        raw = place / out_path.name
        try:
            stage("copying", 0, 0)
            copy_sparse(image_path, raw)
            raw.chmod(_SECRET_MODE)
            stage("writing", 0, 0)
            with open_image(raw) as image:
                changes = _change(image, record, request)
                stage("checking the file systems", 0, 0)
                image.check()
                changes["root_free_bytes"] = image.root.free_bytes()
            finished = finish(raw, report=lambda done, total: stage("hashing", done, total))
            blocks = finished.block_map
            changes |= {
                "image": out_path.name,
                "sha256": finished.sha256,
                "mapped_bytes": blocks.mapped_blocks * blocks.block_bytes,
            }
            made = record.model_copy(update=changes)
            said = record_path(raw)
            said.write_bytes(encode_record(made))
            publish((finished.bmap_path, finished.digest_path, said, raw), out_path)
        except OSError as error:
            raise refused(error, out_path) from error
    return made


def _change(image: Image, record: PreparedImage, request: PersonalRequest) -> dict[str, object]:
    """Write what is the device's own; what becomes of the record."""
    manifest = _manifest(image)
    device = request.device if request.claim is None else request.claim.device
    own, changed = _identity(image, record, request, device)
    personal = _personal(image)
    hostname = _hostname(personal.customisation, request, device)
    customisation = personal.customisation.model_copy(update={"hostname": hostname})
    before, after = _first_boot(image, personal, customisation)
    words = _replace_words(image, before, after)
    told = Personal(customisation=customisation, first_boot=personal.first_boot)
    own += (Entry(layout.PERSONAL, content=codec.encode(told) + b"\n", mode=0o600),)
    kept = [word for word in manifest.cmdline if word not in before.cmdline or word in after.cmdline]
    cmdline = (*kept, *(word for word in after.cmdline if word not in kept))
    files = {file.path: file for file in manifest.files} | {
        file.path: file for file in described(tuple(entry for entry in own if entry.kind == "file"), ())
    }
    manifest = manifest.model_copy(
        update={
            "fleet": None if request.claim is None else request.claim.fleet,
            "device": device,
            "cmdline": cmdline,
            "files": tuple(sorted(files.values(), key=lambda file: file.path)),
        }
    )
    image.root.write(
        (
            *_differing(before.root, after.root),
            *words.root,
            *own,
            Entry(layout.MANIFEST, content=codec.encode(manifest) + b"\n"),
        )
    )
    if image.boot is not None:
        image.boot.write((*_differing(before.boot, after.boot), *words.boot))
    return changed | {"hostname": hostname, "cmdline": cmdline}


def _identity(
    image: Image, record: PreparedImage, request: PersonalRequest, device: str | None
) -> tuple[tuple[Entry, ...], dict[str, object]]:
    """Claim or settings, and what the record says of them."""
    settings = image.root.read(layout.SETTINGS, max_bytes=_MAX_BYTES)
    named = yaml.safe_load(settings) or {}
    if request.claim is not None:
        if "device" in named:
            raise PrepareError(
                f"{record.image} was prepared for devices without a claim", what="image",
                hint="Prepare one with --claim or --for-many",
            )  # fmt: skip
        claim = request.claim
        return claim_entries(claim), {"fleet": claim.fleet, "device": claim.device, "claim": claim.claim}
    if device is None:
        raise PrepareError("the device has neither a claim nor a name", what="device")
    if "device" not in named:
        raise PrepareError(
            f"{record.image} was prepared for devices with a claim", what="image",
            hint="Give a claim, or prepare an image with --device",
        )  # fmt: skip
    try:
        AgentConfig.model_validate({**named, "device": device})
    except ValidationError as error:
        raise PrepareError(f"{device[:80]} cannot be a device: {describe(error)}", what="device") from error
    # The lines that people read stay as they are: the name stands on one of its own.
    lines = settings.decode().splitlines(keepends=True)
    text = "".join(f"device: {device}\n" if line.startswith("device:") else line for line in lines)
    return (Entry(layout.SETTINGS, content=text.encode()),), {"device": device, "fleet": None, "claim": None}


def _hostname(before: Customisation, request: PersonalRequest, device: str | None) -> str | None:
    if request.hostname is not None:
        return request.hostname
    if before.hostname is None or device is None:
        return before.hostname
    return board_host_name(device) or before.hostname


def _first_boot(
    image: Image, personal: Personal, customisation: Customisation
) -> tuple[FirstBootFiles, FirstBootFiles]:
    """What tells the image what is its user's, as it was and as it is to be."""
    try:
        customisation = Customisation.model_validate(customisation.model_dump())
    except ValidationError as error:
        raise PrepareError(f"the host name: {describe(error)}", what="hostname") from error
    if customisation == personal.customisation:
        return FirstBootFiles(), FirstBootFiles()
    method = detect(image.boot, image.root)
    if personal.first_boot not in {None, method.name}:
        raise PrepareError(
            f"the image was prepared by way of {personal.first_boot}, and looks like one of {method.name}",
            what="image", hint="Prepare it anew",
        )  # fmt: skip
    return method.files(personal.customisation), method.files(customisation)


def _differing(before: tuple[Entry, ...], after: tuple[Entry, ...]) -> tuple[Entry, ...]:
    old = {entry.path: entry for entry in before}
    return tuple(entry for entry in after if old.get(entry.path) != entry)


def _replace_words(image: Image, before: FirstBootFiles, after: FirstBootFiles) -> FirstBootFiles:
    """The kernel's command line with the words of the new card in place of those of the old one."""
    if before.cmdline == after.cmdline:
        return FirstBootFiles()
    line = read_boot_facts(image.boot, image.root).command_line
    if line is None:
        raise PrepareError("the image has no command line of the kernel that we know", what="image")
    gone = [word for word in before.cmdline if word not in after.cmdline]
    entry = line.entry(boot_text.changed_words(line.line, {}, add=after.cmdline, remove=gone))
    return FirstBootFiles(boot=(entry,)) if line.place == "boot" else FirstBootFiles(root=(entry,))


def _manifest(image: Image) -> InstalledPayload:
    try:
        return InstalledPayload.model_validate_json(
            image.root.read(layout.MANIFEST, max_bytes=MAX_MANIFEST_BYTES)
        )
    except ValidationError as error:
        raise PrepareError(f"{layout.MANIFEST} in the image is damaged", what="image") from error


def _personal(image: Image) -> Personal:
    try:
        return Personal.model_validate_json(image.root.read(layout.PERSONAL, max_bytes=_MAX_BYTES))
    except ValidationError as error:
        raise PrepareError(
            f"{layout.PERSONAL} in the image is damaged", what="image", hint="Prepare it anew"
        ) from error
