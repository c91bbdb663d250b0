"""Releases of the agent itself: a wheelhouse in one file, and what a signed repository says about it.

Like those of a package, the paths of its files follow from version and digests alone. One version may have several
archives, one for each kind of board: what an archive runs on follows from the names of its wheels.

Source: the names of wheels as the packaging specifications have them (binary distribution format, platform
compatibility tags; PEP 600 for ``manylinux_x_y``).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from edgeslm.schema.base import FileModel, SemanticVersion, Sha256, WireModel

MAX_AGENT_BYTES = 2**30
MAX_INSTALLED_BYTES = 2**32
MAX_WHEELS = 256
MAX_BUILDS = 16

NO_AGENT_FLOOR = "0.0.0"
AGENT_FLOOR_FIELD = "x-edgeslm-agent-floor"
"""Signed field of the top-level targets: lowest version of the agent that is still safe."""

DISTRIBUTION = "edgeslm"
AGENT_MARKER = "agent.json"
"""Name of the file in an installed version that is written last (:class:`InstalledAgent`)."""
SHORT_SHA = 8
ANY_MACHINE = "any"
_PYTHON_MINORS = range(11, 20)
"""Of Python 3, as far as anybody may name them; which ones edgeslm runs on is said by its own wheel."""

PythonVersion = Annotated[str, StringConstraints(pattern=r"^3\.\d{1,2}$")]
Machine = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,32}$")]
GlibcVersion = Annotated[str, StringConstraints(pattern=r"^2\.\d{1,3}$")]
WheelName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]{0,250}\.whl$", max_length=255)
]

_WHEEL = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._]*)-(?P<version>[A-Za-z0-9._+!]+)(-\d[A-Za-z0-9._]*)?"
    r"-(?P<python>[a-z0-9_.]+)-(?P<abi>[a-z0-9_.]+)-(?P<platform>[a-z0-9_.]+)\.whl"
)
_PYTHON_TAG = re.compile(r"(?:cp|py)3(\d{0,2})")
_MANYLINUX = re.compile(r"manylinux_2_(\d{1,3})_([a-z0-9_]+)")
_OLD_MANYLINUX = re.compile(r"manylinux(1|2010|2014)_([a-z0-9_]+)")
_OLD_GLIBC = {"1": 5, "2010": 12, "2014": 17}
_LINUX = re.compile(r"linux_([a-z0-9_]+)")
_PYTHON_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:\.?(dev|a|b|rc)(\d+))?")


class AgentRequirements(WireModel):
    """What an archive runs on.

    Attributes:
        pythons: versions of Python that every wheel is for.
        machine: as ``uname -m`` calls it, or ``any``.
        glibc: least version of the C library, where a wheel needs one.
        agent: least version of the agent that may install it.
    """

    pythons: Annotated[tuple[PythonVersion, ...], Field(min_length=1, max_length=16)]
    machine: Machine = ANY_MACHINE
    glibc: GlibcVersion | None = None
    agent: SemanticVersion = "0.0.0"


class AgentWheel(FileModel):
    """One wheel of an archive; it lies there under its digest."""

    file: WheelName
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=1, le=MAX_AGENT_BYTES)]

    @property
    def member(self) -> str:
        """Its name in the archive."""
        return f"{self.sha256}.whl"


class AgentManifest(FileModel):
    """What an archive says about itself (``manifest.json``).

    Attributes:
        entry: module that is run.
        installed_bytes: what all wheels take once they are unpacked.
        wheels: edgeslm and everything that it needs.
    """

    format: Literal[1] = 1
    version: SemanticVersion
    entry: Literal["edgeslm"] = "edgeslm"
    requires: AgentRequirements
    installed_bytes: Annotated[int, Field(ge=1, le=MAX_INSTALLED_BYTES)]
    wheels: Annotated[tuple[AgentWheel, ...], Field(min_length=1, max_length=MAX_WHEELS)]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [wheel.file for wheel in self.wheels]
        if sorted(set(names)) != names or len({wheel.sha256 for wheel in self.wheels}) != len(names):
            raise ValueError("the wheels are not in order, or one is there twice")
        if wheel_version(names) != self.version:
            raise ValueError(f"the version is not that of the {DISTRIBUTION} wheel")
        return self


class AgentInfo(WireModel):
    """What the signer of a release of the agent says about it (``custom`` of its TUF target).

    Attributes:
        sha256: of the archive.
        size_bytes: of the archive.
        security_floor: lowest version of the agent that is still safe.
        chunks_sha256: of its chunk map.
    """

    v: Literal[1] = 1
    version: SemanticVersion
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=1, le=MAX_AGENT_BYTES)]
    installed_bytes: Annotated[int, Field(ge=1, le=MAX_INSTALLED_BYTES)]
    security_floor: SemanticVersion = NO_AGENT_FLOOR
    requires: AgentRequirements
    chunks_sha256: Sha256 | None = None

    @property
    def file_path(self) -> str:
        """Where the archive lies in the repository."""
        return f"targets/agents/{self.version}/{self.sha256}.edgeslm-agent.tar"

    @property
    def chunks_path(self) -> str | None:
        """Where its chunk map lies, if it has one."""
        sha256 = self.chunks_sha256
        return f"targets/agents/{self.version}/{sha256}.edgeslm-agent.tar.chunks" if sha256 else None

    @property
    def paths(self) -> tuple[str, ...]:
        """Where all its files lie."""
        return tuple(path for path in (self.file_path, self.chunks_path) if path is not None)


class AgentTarget(WireModel):
    """A release of the agent that trusted metadata vouches for.

    Attributes:
        floor: lowest version of the agent that the metadata calls safe.
    """

    info: AgentInfo
    floor: SemanticVersion


class UpdateAgentArgs(WireModel):
    """What comes with the operation ``update-agent``.

    Attributes:
        version: to go to.
        sha256s: of archives of that version; the device takes the first that is for boards like it.
        allow_downgrade: an older version than the running one is meant.
    """

    version: SemanticVersion
    sha256s: Annotated[tuple[Sha256, ...], Field(min_length=1, max_length=MAX_BUILDS, strict=False)]
    allow_downgrade: bool = False


class InstalledAgent(FileModel):
    """Written into an installed version once all of it is there."""

    version: SemanticVersion
    sha256: Sha256


def version_name(version: str, sha256: str) -> str:
    """The name of the directory that a version is installed in."""
    return f"{version}-{sha256[:SHORT_SHA]}"


def agent_target_path(version: str, sha256: str) -> str:
    """The TUF target path of a release of the agent."""
    return f"agents/{version}/{sha256}.tar"


def is_agent_path(path: str) -> bool:
    """Whether a TUF target path is that of a release of the agent."""
    return path.startswith("agents/")


def system_misfit(
    requires: AgentRequirements,
    *,
    python: str,
    machine: str,
    glibc: str | None,
    words: tuple[str, str] = ("this is", "this system has"),
) -> str | None:
    """Why an archive cannot run on a system; ``None`` if it can.

    Args:
        requires: of the archive.
        python: version of Python there, such as ``3.11``.
        machine: as ``uname -m`` calls it there.
        glibc: version of the C library there; ``None`` where it is another one.
        words: how the answer speaks of the system.
    """
    is_, has = words
    if python not in requires.pythons:
        return f"it is for Python {', '.join(requires.pythons)}, and {is_} {python}"
    if requires.machine not in {ANY_MACHINE, machine}:
        return f"it is for {requires.machine}, and {is_} {machine}"
    if requires.glibc is not None:
        if glibc is None:
            return f"it needs glibc {requires.glibc}, and {has} another C library"
        if _numbers(glibc) < _numbers(requires.glibc):
            return f"it needs glibc {requires.glibc}, and {has} {glibc}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


# --- what the names of wheels say ---------------------------------------------------------------------------


def semantic_version(python_version: str) -> str:
    """A version as Python writes it, such as ``1.2.0rc1``, in our form: ``1.2.0-rc1``.

    Raises:
        ValueError: it has no such form.
    """
    match = _PYTHON_VERSION.fullmatch(python_version)
    if match is None:
        raise ValueError(f"'{python_version[:80]}' is no version of the form 1.2.3 or 1.2.3rc1")
    major, minor, patch, kind, number = match.groups()
    return f"{major}.{minor}.{patch}" + (f"-{kind}{number}" if kind else "")


def wheel_version(names: Collection[str]) -> str:
    """The version of edgeslm among wheels.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [match["version"] for match in map(_WHEEL.fullmatch, names) if match and _is_ours(match["name"])]
    if len(found) != 1:
        raise ValueError(f"{len(found)} wheels of {DISTRIBUTION}, and not one")
    return semantic_version(found[0])


def requirements_of(names: Collection[str], *, agent: str = "0.0.0") -> AgentRequirements:
    """What wheels of these names run on, all of them together.

    Args:
        names: of the wheel files.
        agent: least version of the agent that may install them.

    Raises:
        ValueError: one is no wheel for Linux with glibc, or they run nowhere together.
    """
    minors, machine, glibc = set(_PYTHON_MINORS), ANY_MACHINE, 0
    for name in sorted(names):
        match = _WHEEL.fullmatch(name)
        if match is None:
            raise ValueError(f"'{name[:80]}' is not the name of a wheel")
        minors &= _pythons(match["python"], match["abi"])
        if not minors:
            raise ValueError(f"{name[:80]}: no Python runs it and the others")
        own = _platform(name, match["platform"])
        if own is None:
            continue
        if machine not in {ANY_MACHINE, own[0]}:
            raise ValueError(f"{name[:80]} is for {own[0]}, and others are for {machine}")
        machine, glibc = own[0], max(glibc, own[1])
    return AgentRequirements(
        pythons=tuple(f"3.{minor}" for minor in sorted(minors)),
        machine=machine,
        glibc=f"2.{glibc}" if glibc else None,
        agent=agent,
    )


def _is_ours(name: str) -> bool:
    return name.lower().replace("-", "_").replace(".", "_") == DISTRIBUTION


def _pythons(python: str, abi: str) -> set[int]:
    """Minor versions of Python 3 that a wheel is for."""
    found: set[int] = set()
    for tag in python.split("."):
        match = _PYTHON_TAG.fullmatch(tag)
        if match is None:
            continue
        least = int(match[1] or 0)
        stable = tag.startswith("py") or "abi3" in abi.split(".")
        found |= {minor for minor in _PYTHON_MINORS if minor == least or (stable and minor > least)}
    return found


def _platform(name: str, platform: str) -> tuple[str, int] | None:
    """Machine and least minor version of glibc 2 that a wheel needs; ``None`` where it needs none.

    Raises:
        ValueError: it is not for Linux with glibc.
    """
    found: list[tuple[str, int]] = []
    for tag in platform.split("."):
        if tag == "any":
            return None
        if match := _MANYLINUX.fullmatch(tag):
            found.append((match[2], int(match[1])))
        elif match := _OLD_MANYLINUX.fullmatch(tag):
            found.append((match[2], _OLD_GLIBC[match[1]]))
        elif match := _LINUX.fullmatch(tag):
            found.append((match[1], 0))
    machines = {machine for machine, _ in found}
    if len(machines) != 1:
        raise ValueError(f"{name[:80]} is not for one machine with Linux and glibc")
    return machines.pop(), min(glibc for _, glibc in found)
