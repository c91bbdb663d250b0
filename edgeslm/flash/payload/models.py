"""Models and rules that come with a board: checked here, and named in its settings where they will lie.

What always holds: a package is read to its last byte before it goes onto a card, and lies there under its digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import ConfigError, PackageError, PrepareError
from edgeslm.files import read_bounded
from edgeslm.flash.payload import layout
from edgeslm.flash.tree import Entry
from edgeslm.models.package import check_package
from edgeslm.schema.package import Manifest
from edgeslm.schema.profile import BUILTIN, RELEASE

MAX_RULES = 256
MAX_RULES_BYTES = 2**20
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class ModelFile:
    """A package that goes onto the board.

    Attributes:
        reference: how it was asked for.
        path: where it lies here.
        sha256: of the file.
        size_bytes: of the file.
    """

    reference: str
    path: Path
    manifest: Manifest
    sha256: str
    size_bytes: int

    @property
    def place(self) -> str:
        """Where it will lie on the board."""
        return f"{layout.MODELS}/{self.sha256}.slm"


@dataclass(frozen=True)
class Models:
    """Models that a board serves at first.

    Attributes:
        references: as the agent's settings name them, the default first.
        files: packages that have to lie on the board.
        names: name and version of each, for people.
        later: releases that the fleet assigns after the board has joined.
    """

    references: tuple[str, ...]
    files: tuple[ModelFile, ...]
    names: tuple[str, ...]
    later: tuple[str, ...]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Their files, as entries."""
        if not self.files:
            return ()
        return (
            Entry(layout.OPT, "directory", mode=0o755),
            Entry(layout.MODELS, "directory", mode=0o755),
            *(Entry(file.place, content=file.path) for file in self.files),
        )


def choose_models(references: Sequence[str], builtin: Sequence[str], default: str) -> Models:
    """Read what the board is to serve.

    Args:
        references: ``builtin:NAME``, ``release:NAME[@VERSION]``, or paths of packages.
        builtin: names of packages that come with the agent.
        default: what is served until a release arrives, where nothing else is named.

    Raises:
        PackageError: a file is no package.
        PrepareError: there is no such builtin package, or two packages have one name.
    """
    chosen: list[str] = []
    names: list[str] = []
    files: dict[str, ModelFile] = {}
    later: list[str] = []
    for reference in references:
        if reference.startswith(RELEASE):
            later.append(reference.removeprefix(RELEASE))
        elif reference.startswith(BUILTIN):
            name = reference.removeprefix(BUILTIN)
            if name not in builtin:
                raise PrepareError(
                    f"the agent brings no model '{name[:64]}'", what="models",
                    hint=f"It brings: {', '.join(builtin) or 'none'}; others are given as files",
                )  # fmt: skip
            chosen.append(reference)
            names.append(name)
        else:
            file = _read(reference)
            if any(file.manifest.name == other.manifest.name for other in files.values()):
                raise PrepareError(
                    f"{reference} is another package called '{file.manifest.name}'", what="models",
                    hint="A board serves one version of a model",
                )  # fmt: skip
            files[file.place] = file
            chosen.append(file.place)
            names.append(f"{file.manifest.name}@{file.manifest.version}")
    if not chosen:
        chosen, names = [default], [default.removeprefix(BUILTIN)]
    return Models(tuple(chosen), tuple(files.values()), tuple(names), tuple(later))


def _read(reference: str) -> ModelFile:
    path = Path(reference)
    try:
        found = check_package(path)
    except PackageError as error:
        if not path.exists():
            raise PrepareError(
                f"there is no model {reference[:200]}", what="models",
                hint="builtin:NAME, release:NAME, or the path of a .slm file",
            ) from error  # fmt: skip
        raise
    return ModelFile(reference, path.absolute(), found.manifest, found.sha256, found.size_bytes)


def rule_entries(paths: Sequence[Path]) -> tuple[Entry, ...]:
    """Files of rules, and those of directories, below the board's own directory of rules.

    Whether they are rules is for who has the agent's compiler at hand: the command line.

    Raises:
        ConfigError: one cannot be read, or two are called the same.
    """
    files: dict[str, bytes] = {}
    for path in paths:
        found = (
            sorted(item for item in path.iterdir() if item.suffix in _SUFFIXES) if path.is_dir() else [path]
        )
        for file in found:
            if file.name in files:
                raise ConfigError(f"two files of rules are called {file.name}", path=str(file), key="rules")
            try:
                data = read_bounded(file.resolve(), MAX_RULES_BYTES)
            except OSError as error:
                raise ConfigError(
                    f"{file} cannot be read: {error.strerror or error}", path=str(file), key="rules"
                ) from error
            if len(data) > MAX_RULES_BYTES or len(files) >= MAX_RULES:
                raise ConfigError(
                    f"{file}: more than {MAX_RULES_BYTES} bytes, or more than {MAX_RULES} files of rules",
                    path=str(file), key="rules",
                )  # fmt: skip
            files[file.name] = data
    if not files:
        return ()
    return (
        Entry(layout.ETC, "directory", mode=0o755),
        Entry(layout.RULES, "directory", mode=0o755),
        *(Entry(f"{layout.RULES}/{name}", content=data) for name, data in sorted(files.items())),
    )
