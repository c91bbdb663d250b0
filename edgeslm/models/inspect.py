"""What there is to say about a package: the data behind ``edgeslm model info`` and ``edgeslm model verify``.

One frozen model each, so that text and JSON come from the same place. Nothing is installed and nothing
written; rendering is left to the command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgeslm.errors import PackageError
from edgeslm.models.archive import archive_size_bytes, fault, layout
from edgeslm.models.package import MAX_GOLDEN_BYTES, Contents, check_package, parse_golden
from edgeslm.schema.base import FileModel
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.message import Task
from edgeslm.schema.package import (
    MANIFEST_NAME,
    ChatTemplateSpec,
    License,
    Manifest,
    Requirements,
    RuntimeKind,
)

Role = Literal["graph", "tokenizer", "chat template", "golden", "rules", "license", "other"]


class GraphSummary(FileModel):
    """One graph, without its golden vector."""

    file: str
    runtimes: tuple[RuntimeKind, ...]
    quantization: str
    size_bytes: int


class PackageSummary(FileModel):
    """A package for people and scripts.

    Attributes:
        sha256: of the ``.slm`` file, which names the package.
        size_bytes: of the ``.slm`` file.
        labels: of task ``classify``: what there is to choose from.
        chat_template: how conversations are put together, where the model is made for them.
        golden_cases: prompts with known answers that a device runs before it promotes the package.
        rules: files of rules that a device follows while it serves the package.
        measured: figures by board class.
    """

    name: str
    version: str
    task: Task
    description: str
    sha256: str
    size_bytes: int
    graphs: tuple[GraphSummary, ...]
    tokenizer: str | None
    context_tokens: int
    max_prompt_tokens: int
    max_answer_tokens: int
    json_answers: bool
    chat_template: ChatTemplateSpec | None = None
    labels: tuple[str, ...] = ()
    golden_cases: int
    rules: tuple[str, ...]
    requires: Requirements
    licenses: tuple[License, ...]
    security_floor: str
    measured: dict[str, dict[str, float]]


class VerifiedMember(FileModel):
    """One member whose bytes were read and are as the manifest states."""

    name: str
    role: Role
    size_bytes: int
    sha256: str


class VerifyReport(FileModel):
    """A package whose every byte was read and found right; what is wrong with one is an error instead.

    Attributes:
        path: the file.
        members: all of them but the manifest, by name.
    """

    path: str
    name: str
    version: str
    sha256: str
    size_bytes: int
    golden_cases: int
    members: tuple[VerifiedMember, ...]


def summary(package: Path | InstalledPackage) -> PackageSummary:
    """What is in a package file, which is read and checked as a whole, or in an installed package.

    Raises:
        PackageError: what is wrong with it.
    """
    return _summary(check_package(package) if isinstance(package, Path) else _installed_contents(package))


def verify_package(path: Path) -> VerifyReport:
    """Read the package file at `path` and check all that a device checks before it installs.

    Raises:
        PackageError: what is wrong with it.
    """
    contents = check_package(path)
    manifest = contents.manifest
    roles = _roles(manifest)
    return VerifyReport(
        path=str(path),
        name=manifest.name,
        version=manifest.version,
        sha256=contents.sha256,
        size_bytes=contents.size_bytes,
        golden_cases=contents.golden_cases,
        members=tuple(
            VerifiedMember(
                name=name, role=roles.get(name, "other"), size_bytes=member.size_bytes, sha256=member.sha256
            )
            for name, member in sorted(manifest.files.items())
        ),
    )


def _summary(contents: Contents) -> PackageSummary:
    manifest = contents.manifest
    return PackageSummary(
        name=manifest.name,
        version=manifest.version,
        task=manifest.task,
        description=manifest.description,
        sha256=contents.sha256,
        size_bytes=contents.size_bytes,
        graphs=tuple(
            GraphSummary(
                file=graph.file,
                runtimes=graph.runtimes,
                quantization=graph.quantization,
                size_bytes=manifest.files[graph.file].size_bytes,
            )
            for graph in manifest.graphs
        ),
        tokenizer=manifest.tokenizer.kind if manifest.tokenizer is not None else None,
        context_tokens=manifest.context_tokens,
        max_prompt_tokens=manifest.max_prompt_tokens,
        max_answer_tokens=manifest.max_answer_tokens,
        json_answers=manifest.json_answers,
        chat_template=manifest.chat_template,
        labels=manifest.labels,
        golden_cases=contents.golden_cases,
        rules=manifest.rules,
        requires=manifest.requires,
        licenses=manifest.licenses,
        security_floor=manifest.security_floor,
        measured=manifest.measured,
    )


def _roles(manifest: Manifest) -> dict[str, Role]:
    """What each named file is for; its most telling use where it has several."""
    roles: dict[str, Role] = {item.file: "license" for item in manifest.licenses if item.file is not None}
    roles.update(dict.fromkeys(manifest.rules, "rules"))
    if manifest.golden is not None:
        roles[manifest.golden] = "golden"
    if manifest.chat_template is not None:
        roles[manifest.chat_template.file] = "chat template"
    if manifest.tokenizer is not None:
        roles[manifest.tokenizer.file] = "tokenizer"
    roles.update(dict.fromkeys((graph.file for graph in manifest.graphs), "graph"))
    return roles


def _installed_contents(installed: InstalledPackage) -> Contents:
    manifest = installed.manifest
    sizes = {name: member.size_bytes for name, member in manifest.files.items()}
    sizes[MANIFEST_NAME] = len(_read(installed, MANIFEST_NAME))
    cases = 0
    if manifest.golden is not None:
        data = _read(installed, manifest.golden)
        cases = sum(1 for _ in parse_golden(data, installed.directory, manifest.golden))
    archive = archive_size_bytes(layout({name: (size, 0) for name, size in sizes.items()}))
    return Contents(manifest, installed.sha256, archive, cases)


def _read(installed: InstalledPackage, name: str) -> bytes:
    try:
        with installed.file(name).open("rb") as stream:
            return stream.read(MAX_GOLDEN_BYTES)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
        raise fault(PackageError, installed.directory, reason, member=name) from error
