"""Everything that goes onto a board, as entries of one tree: the same for an image and for a board that runs.

What always holds: the service's unit and the link that starts it come after all that it needs, and the manifest last;
the same request gives the same entries. An archive that the board cannot run is refused before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeslm import codec
from edgeslm.errors import PrepareError
from edgeslm.flash.payload import layout
from edgeslm.flash.payload.bytecode import Compiling
from edgeslm.flash.payload.claims import claim_entries
from edgeslm.flash.payload.environment import BoardPython, Environment, make_environment
from edgeslm.flash.payload.manifest import InstalledPayload, described
from edgeslm.flash.payload.models import Models, choose_models, rule_entries
from edgeslm.flash.payload.settings import Settings, make_settings
from edgeslm.flash.tree import Entry
from edgeslm.flash.unit import options_for, unit_text
from edgeslm.schema.agent_release import system_misfit
from edgeslm.schema.board import Board
from edgeslm.schema.enrol import Claim
from edgeslm.schema.profile import BUILTIN, Profile
from edgeslm.wheelhouse import check_archive

DEFAULT_MODEL = f"{BUILTIN}home-command"
_PACKAGES = "/edgeslm/_packages/"

Told = Callable[[str], None]
"""Hears what is being done."""


@dataclass(frozen=True)
class BoardSystem:
    """The operating system that the payload is for.

    Attributes:
        python: of the system.
        machine: as ``uname -m`` calls it there.
        glibc: version of the C library; ``None`` where it is another one.
        groups: names in its ``/etc/group``.
    """

    python: BoardPython
    machine: str
    glibc: str | None
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Settled:
    """What was decided about the system itself, beside the agent; it is written with the payload.

    Attributes:
        entries: files of ours that carry it out, which are taken away with the agent.
        boot: what was set, for people.
        cmdline: words that are added to the kernel's command line.
        first_boot: how the image is told what is its user's.
    """

    entries: tuple[Entry, ...] = ()
    boot: tuple[str, ...] = ()
    cmdline: tuple[str, ...] = ()
    first_boot: str | None = None


@dataclass(frozen=True)
class PayloadRequest:
    """What is to be on a board.

    Attributes:
        archive: of the agent.
        profile: with its parents, paths in it absolute.
        claim: by which the board joins its fleet.
        claim_follows: it gets its claim later, before it starts.
        device: name of a device that has no claim.
        models: instead of the profile's, where there are any.
        rules: files of rules and directories of them.
        settled: about the system itself.
    """

    archive: Path
    system: BoardSystem
    board: Board
    profile: Profile
    claim: Claim | None = None
    claim_follows: bool = False
    device: str | None = None
    models: tuple[str, ...] = ()
    rules: tuple[Path, ...] = ()
    settled: Settled = Settled()


@dataclass(frozen=True)
class Payload:
    """What goes onto a board.

    Attributes:
        entries: all of it, in the order in which it is to be written.
        trees: directories in it that are the agent's own once it has started.
        manifest: what lies at :data:`edgeslm.flash.payload.layout.MANIFEST`.
        size_bytes: of all files.
    """

    entries: tuple[Entry, ...]
    trees: tuple[str, ...]
    environment: Environment
    settings: Settings
    models: Models
    manifest: InstalledPayload
    size_bytes: int


def check_agent(archive: Path, system: BoardSystem) -> str:
    """Make sure that a board can run an archive; its SHA-256.

    Raises:
        AgentArchiveError: it is no archive.
        PrepareError: it cannot, and why.
    """
    found = check_archive(archive)
    requires = found.manifest.requires
    reason = system_misfit(
        requires,
        python=system.python.version,
        machine=system.machine,
        glibc=system.glibc,
        words=("the image's is", "the image has"),
    )
    if reason is not None:
        target = (
            f"--machine {system.machine} --python {system.python.version} --glibc {system.glibc or '2.X'}"
        )
        raise PrepareError(
            f"{archive} cannot run there: {reason}", what="agent",
            hint=f"Pack one that can: edgeslm agent pack {target} --out FILE; or leave --agent out",
        )  # fmt: skip
    return found.sha256


def build_payload(
    request: PayloadRequest,
    directory: Path,
    tell: Told = lambda _: None,
    *,
    laid_out: Environment | None = None,
    compiling: Compiling | None = None,
) -> Payload:
    """Put together what goes onto a board.

    Args:
        request: what is wanted.
        directory: an empty one of ours, which keeps the bytes of the entries as long as they are wanted.
        tell: hears what is being done.
        laid_out: an environment that was laid out before; it is used where it is of that archive, for that Python.
        compiling: compiles the environment's modules; ``None`` leaves that to the board.

    Raises:
        AgentArchiveError: the archive is none, or one of its wheels cannot be installed.
        PrepareError: the board cannot run it, or a model does not go with it.
        PackageError: a model is none.
        ConfigError: the settings or rules are wrong, or a secret cannot be read.
        ToolFailedError: who compiles did not do it.
        OSError: `directory` cannot be written.
    """
    tell("checking the agent")
    sha256 = check_agent(request.archive, request.system)
    tell("laying out its environment")
    if laid_out is not None and (laid_out.sha256, laid_out.python) == (sha256, request.system.python):
        environment = laid_out
    else:
        environment = make_environment(request.archive, request.system.python, directory, compiling)
    tell("checking models and rules")
    models = choose_models(request.models or request.profile.models, _builtin(environment), DEFAULT_MODEL)
    settings = make_settings(
        request.profile,
        request.board.name,
        models.references,
        device=request.device,
        has_claim=request.claim is not None or request.claim_follows,
    )
    entries = (
        Entry(layout.OPT, "directory", mode=0o755),
        Entry(layout.LAUNCHER, content=environment.launcher, mode=0o755),
        *models.entries,
        Entry(layout.STATE, "directory", mode=0o755),
        *environment.entries,
        *settings.entries,
        *rule_entries(request.rules),
        *(claim_entries(request.claim) if request.claim is not None else ()),
        *request.settled.entries,
        *_service(request, settings),
    )
    entries = tuple({entry.path: entry for entry in entries}.values())
    trees = (layout.AGENT_ROOT,)
    claim = request.claim
    manifest = InstalledPayload(
        edgeslm=environment.version,
        archive=environment.sha256,
        board=request.board.name,
        profile=request.profile.name,
        fleet=claim.fleet if claim is not None else None,
        device=claim.device if claim is not None else request.device,
        models=models.names,
        first_boot=request.settled.first_boot,
        boot=request.settled.boot,
        cmdline=request.settled.cmdline,
        files=described(entries, trees),
    )
    entries = (*entries, Entry(layout.MANIFEST, content=codec.encode(manifest) + b"\n"))
    return Payload(
        entries=entries,
        trees=trees,
        environment=environment,
        settings=settings,
        models=models,
        manifest=manifest,
        size_bytes=sum(entry.size_bytes for entry in entries),
    )


def _service(request: PayloadRequest, settings: Settings) -> tuple[Entry, ...]:
    limits = request.profile.service
    options = options_for(
        request.board,
        request.system.groups,
        python=request.system.python.path,
        credentials=settings.credentials,
        memory_max_mb=limits.memory_max_mb,
        cpu_quota_percent=limits.cpu_quota_percent,
        caps_frequency=request.profile.budget.cap_frequency,
    )
    return (
        Entry(layout.UNIT, content=unit_text(options).encode()),
        Entry(layout.UNIT_LINK, "symlink", target=layout.UNIT_LINK_TARGET),
    )


def _builtin(environment: Environment) -> tuple[str, ...]:
    names = (entry.path.partition(_PACKAGES)[2] for entry in environment.entries)
    return tuple(sorted(name.removesuffix(".slm") for name in names if name.endswith(".slm")))
