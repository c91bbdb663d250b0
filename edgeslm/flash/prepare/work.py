"""Makes a prepared image: unpacked beside its name, looked at, grown, written, read back and checked as a whole.

What always holds: at its name lies a whole image or none; the same request gives the same bytes, whoever made it and
when (what a password is hashed with is part of the request; the Python of the board's version that this machine has, or
has not, is part of it as well). No secret of the request is in the record.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import EdgeslmError, PartitionError, PrepareError, TreeFullError
from edgeslm.flash.bytecode import compiler_of
from edgeslm.flash.fit import demand, fit
from edgeslm.flash.fit_types import FitReport, FitRequest
from edgeslm.flash.image.adding import add_ext4
from edgeslm.flash.image.ext4 import Ext4Tree
from edgeslm.flash.image.finish import finish
from edgeslm.flash.image.image import Image, open_image
from edgeslm.flash.image.source import MAX_IMAGE_BYTES, Unpacked, form_of, unpack
from edgeslm.flash.image.tools import run_tool
from edgeslm.flash.payload.agents import packed_agent
from edgeslm.flash.payload.bytecode import Compiling
from edgeslm.flash.payload.environment import BoardPython, Environment, make_environment
from edgeslm.flash.payload.gathering import Target
from edgeslm.flash.payload.read_only import STATE_LABEL, apart
from edgeslm.flash.payload.whole import Payload, PayloadRequest, build_payload
from edgeslm.flash.prepare.planning import (
    ROOT_SPARE_BYTES,
    Decided,
    decide,
    fit_request,
    least_free_bytes,
    wanted_free_bytes,
    wanted_state_bytes,
)
from edgeslm.flash.prepare.record import (
    ImageSystem,
    PreparedImage,
    SourceImage,
    encode_record,
    record_path,
)
from edgeslm.flash.prepare.request import PrepareRequest, Stage, quiet
from edgeslm.flash.prepare.workplace import publish, refused, workplace
from edgeslm.flash.tree import Entry

_SECRET_MODE = 0o600
"""Of what holds a claim, and passwords as hashes."""


@dataclass(frozen=True)
class Prepared:
    """What was made, or would be.

    Attributes:
        record: of the image; its digest is that of nothing where nothing was written.
        report: whether all fits, with the arithmetic.
        remarks: what did not go as one may expect.
    """

    record: PreparedImage
    report: FitReport
    remarks: tuple[str, ...] = ()


def prepare(request: PrepareRequest, *, stage: Stage = quiet, dry_run: bool = False) -> Prepared:
    """Prepare an image.

    Args:
        request: what is wanted.
        stage: told how far it is.
        dry_run: decide all of it, and leave nothing.

    Raises:
        ImageError: the image is cut short, damaged, another one than it should be, or of unknown partitions.
        FitError: board, profile, image and models do not go together.
        FirstBootError: the image cannot be told what is asked for.
        BootSettingsError: it cannot carry out a setting of the profile.
        AgentArchiveError: the agent's archive is none, or cannot be packed.
        PackageError: a model is none.
        ConfigError: settings or rules are wrong, or a secret cannot be read.
        TreeError: the image cannot be changed; it is full where it cannot grow.
        ToolMissingError: a program of the system is not installed.
        PrepareError: all else that keeps it from being made.
    """
    with ExitStack() as stack:
        place = stack.enter_context(workplace(request.out))
        try:
            return _Work(request, stage, place).run(dry_run=dry_run)
        except OSError as error:
            raise refused(error, request.out) from error


class _Work:
    """One image on its way."""

    def __init__(self, request: PrepareRequest, stage: Stage, place: Path) -> None:
        self._request = request
        self._stage = stage
        self._raw = place / request.out.name
        self._payload_place = place / "payload"
        self._remarks: list[str] = []

    def run(self, *, dry_run: bool) -> Prepared:
        request = self._request
        with ThreadPoolExecutor(1) as beside:
            early = beside.submit(self._lay_out_early)
            unpacked = unpack(
                request.image, self._raw, sha256=request.sha256,
                max_bytes=request.max_image_bytes or MAX_IMAGE_BYTES,
                report=lambda done, total: self._stage("unpacking", done, total),
            )  # fmt: skip
        self._raw.chmod(_SECRET_MODE)
        self._say("looking at the image")
        with open_image(self._raw) as image:
            if image.root.needs_repair:
                self._say("replaying the journal of a system that was not shut down")
                image.root.make_ready()
            decided = decide(image, request)
            payload = self._payload(decided, early.result())
            known = fit_request(
                request, decided.facts, decided.packages,
                payload_bytes=payload.size_bytes, agent_version=payload.environment.version,
            )  # fmt: skip
            report = fit(known)
            demand(report)
            root = decided.root_entries(payload.entries)
            state: tuple[Entry, ...] = ()
            if request.profile.read_only_root:
                root, state = apart(root)
            if not dry_run:
                self._make_room(image, root, state, known)
        with open_image(self._raw) as image:
            if not dry_run:
                self._write(image, decided, root, state)
            free_bytes, size_bytes = image.root.free_bytes(), image.size_bytes
        record = self._record(unpacked, decided, payload, report).model_copy(
            update={"root_free_bytes": free_bytes, "size_bytes": size_bytes}
        )
        if not dry_run:
            record = self._publish(record)
        return Prepared(record, report, tuple(self._remarks))

    # --- pieces -------------------------------------------------------------------------------------------------

    def _say(self, what: str) -> None:
        self._stage(what, 0, 0)

    def _lay_out_early(self) -> Environment | None:
        """The agent's environment while the image is still being unpacked; ``None`` where it cannot be told yet.

        What is wrong is told later, when the image has been unpacked and its digest compared.
        """
        request = self._request
        with suppress(EdgeslmError, OSError):
            if request.archive is None or form_of(request.image) != "raw":
                return None
            with open_image(request.image) as image:
                facts = image.facts()
            if facts.python is not None and facts.python_path is not None:
                place = self._payload_place.with_name("early")
                place.mkdir()
                python = BoardPython(facts.python, facts.python_path)
                return make_environment(request.archive, python, place, self._compiling(python.version))
        return None

    def _compiling(self, version: str) -> Compiling | None:
        """Who compiles the agent for boards with a Python; ``None`` where this machine has no such one."""
        compiler = compiler_of(version)
        return None if compiler is None else Compiling(compiler, version, self._request.cache / "bytecode")

    def _payload(self, decided: Decided, early: Environment | None) -> Payload:
        request, system = self._request, decided.system
        archive = request.archive
        if archive is None:
            if system.glibc is None:
                raise PrepareError(
                    "the image's C library is not glibc, for which there are no wheels", what="agent",
                    hint="Take an image of Debian, Raspberry Pi OS, Ubuntu, Armbian or DietPi",
                )  # fmt: skip
            self._say("packing the agent")
            target = Target(system.python.version, system.machine, system.glibc)
            archive = packed_agent(target, request.cache, lambda _: self._say("packing the agent"))
        self._payload_place.mkdir()
        wanted = PayloadRequest(
            archive=archive,
            system=system,
            board=request.board,
            profile=request.profile,
            claim=request.claim,
            claim_follows=request.for_many,
            device=request.device,
            models=request.models,
            rules=request.rules,
            settled=decided.settled,
        )
        compiling = self._compiling(system.python.version)
        if compiling is None:
            self._remarks.append(
                f"no Python {system.python.version} is on this machine to compile the agent with: each board does it at"
                " its first start, which takes a small one half a minute longer"
            )
        return build_payload(wanted, self._payload_place, self._say, laid_out=early, compiling=compiling)

    def _make_room(
        self, image: Image, root: tuple[Entry, ...], state: tuple[Entry, ...], known: FitRequest
    ) -> None:
        """Let the root be as large as it was asked to be and as it has to be, and make a partition for state."""
        self._say("making room")
        asked_bytes = self._request.image_bytes
        if state:
            self._grow(image, root, least_free_bytes(root) + ROOT_SPARE_BYTES)
            wanted_bytes = max(wanted_state_bytes(known), least_free_bytes(state))
            add_ext4(image, wanted_bytes, label=STATE_LABEL, image_bytes=asked_bytes)
        else:
            if asked_bytes is not None:
                image.grow(asked_bytes)
            self._grow(image, root, wanted_free_bytes(known))
        size_bytes, card_bytes = image.size_bytes, self._request.card_bytes
        if card_bytes is not None and size_bytes > card_bytes:
            raise PrepareError(
                f"the image grew to {size_bytes / 2**20:,.0f} MB, and the card has {card_bytes / 2**20:,.0f} MB",
                what="room", hint="Take a larger card, or fewer models",
            )  # fmt: skip

    def _grow(self, image: Image, entries: tuple[Entry, ...], wanted_bytes: int) -> None:
        least_bytes = least_free_bytes(entries)
        try:
            image.ensure_free(max(wanted_bytes, least_bytes))
            image.ensure_room(entries)
        except PartitionError as error:
            free_bytes = image.root.free_bytes()
            if free_bytes < least_bytes:
                raise TreeFullError(
                    f"the root of {self._request.image} has {free_bytes} bytes free, {least_bytes} are needed, and it "
                    f"cannot grow: {error.message}",
                    path="/", needed_bytes=least_bytes, free_bytes=free_bytes,
                    hint="Take an image whose root is its last partition, or fewer models",
                ) from error  # fmt: skip
            self._remarks.append(
                f"the root cannot grow ({error.message}): {free_bytes / 2**20:.0f} MB are free, and updates may need "
                f"{wanted_bytes / 2**20:.0f} MB"
            )

    def _write(
        self, image: Image, decided: Decided, root: tuple[Entry, ...], state: tuple[Entry, ...]
    ) -> None:
        self._say(f"writing {len(root) + len(state)} files and links, and reading them back")
        image.root.remove(decided.remove)
        image.root.write(root)
        if state:
            last = max(image.table.partitions, key=lambda each: each.start_bytes)
            apart_tree = Ext4Tree(image.window.part(last.start_bytes, last.size_bytes), time_s=image.time_s)
            apart_tree.write(state)
            run_tool(["e2fsck", "-fn", apart_tree.device], says=True, time_s=image.time_s)
        if image.boot is not None:
            image.boot.write(decided.boot_entries)
        self._say("checking the file systems")
        image.check()

    def _record(
        self, unpacked: Unpacked, decided: Decided, payload: Payload, report: FitReport
    ) -> PreparedImage:
        request, facts, claim = self._request, decided.facts, self._request.claim
        return PreparedImage(
            edgeslm=payload.environment.version,
            image=request.out.name,
            size_bytes=0,
            mapped_bytes=0,
            sha256="0" * 64,
            source=SourceImage(
                name=request.image.name,
                form=unpacked.form,
                sha256=unpacked.source_sha256,
                raw_sha256=unpacked.sha256,
                size_bytes=unpacked.size_bytes,
            ),
            system=ImageSystem(
                kind=facts.kind,
                name=facts.os_name,
                machine=decided.system.machine,
                python=decided.system.python.version,
                glibc=facts.glibc,
            ),
            board=request.board.name,
            profile=request.profile.name,
            fleet=None if claim is None else claim.fleet,
            device=request.device_name,
            claim=None if claim is None else claim.claim,
            hostname=request.customisation.hostname,
            first_boot=decided.first_boot_title,
            boot=decided.settled.boot,
            cmdline=decided.settled.cmdline,
            models=payload.models.names,
            payload_bytes=payload.size_bytes,
            payload_files=sum(entry.kind != "directory" for entry in payload.entries),
            root_free_bytes=0,
            checks=report.checks,
        )

    def _publish(self, record: PreparedImage) -> PreparedImage:
        finished = finish(self._raw, report=lambda done, total: self._stage("hashing", done, total))
        blocks = finished.block_map
        record = record.model_copy(
            update={"sha256": finished.sha256, "mapped_bytes": blocks.mapped_blocks * blocks.block_bytes}
        )
        said = record_path(self._raw)
        said.write_bytes(encode_record(record))
        publish((finished.bmap_path, finished.digest_path, said, self._raw), self._request.out)
        return record
