"""Profile files: the ones that ship with edgeslm and those of a folder of the user's own, and what they extend.

A profile goes on from at most one other. What always holds of putting two together:

- mappings are merged key by key, everything else is replaced as a whole, lists among it;
- a budget, a swap, a broker and a wireless network are one thing each: who states one states all of it, so that no
  password of the one is ever sent to the other;
- ``null`` takes back what the other said, and leaves the default; at :data:`SAID` it is a value like another;
- a name, a title and a description are a profile's own.

For every value it is known which file said it, and on which line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from edgeslm.errors import ProfileError, ProfileSecretError
from edgeslm.files import read_bounded
from edgeslm.schema.base import is_identifier
from edgeslm.schema.profile import BUILTIN, RELEASE, Profile
from edgeslm.yaml_lines import Location, YamlSource, nearest_of, read_yaml, value_at

MAX_FILE_BYTES: Final = 65_536
MAX_FILES: Final = 256
MAX_ANCESTORS: Final = 8
MAX_SECRET_BYTES: Final = 4096
SUFFIXES: Final = (".yaml", ".yml")

WHOLE: Final[frozenset[Location]] = frozenset(
    {("budget",), ("swap",), ("broker",), ("network", "wifi"), ("agent", "power", "plug")}
)
"""What is replaced as a whole though it is a mapping."""
SAID: Final[frozenset[Location]] = frozenset(
    ("agent", "updates", "policy", "gate", limit) for limit in ("speed", "energy", "answers", "memory")
)
"""Where ``null`` says something that is not the default: a limit that is not judged."""
_OWN: Final = frozenset({"name", "title", "description", "extends"})
_FILE: Final = "file:"


@dataclass(frozen=True)
class Origin:
    """Where a value was said."""

    path: str
    line: int | None

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path


@dataclass(frozen=True)
class ResolvedProfile:
    """A profile with everything that it extends.

    Attributes:
        profile: the whole; paths in it are absolute.
        path: its own file.
        ancestors: names of the profiles that it goes on from, nearest first.
        settings: what was said, by the profile or an ancestor, by dotted key.
        origins: where, by the same keys.
    """

    profile: Profile
    path: str
    ancestors: tuple[str, ...]
    settings: Mapping[str, Any] = field(repr=False)
    origins: Mapping[str, Origin] = field(repr=False)

    def origin_of(self, key: str) -> str:
        """File and line that said what stands at the dotted `key`; ``default`` where none did."""
        while key:
            if key in self.origins:
                return str(self.origins[key])
            key = key.rpartition(".")[0]
        return "default"

    def values(self) -> dict[str, tuple[Any, str]]:
        """Every value of the whole profile and where it comes from, by dotted key."""
        whole = dict(_leaves(self.profile.model_dump(mode="json"), ()))
        return {
            ".".join(map(str, at)): (value, self.origin_of(".".join(map(str, at))))
            for at, value in whole.items()
        }


def profile_names(profiles_dir: Path | None = None) -> dict[str, Path]:
    """Files of all known profiles by name; one in `profiles_dir` takes precedence over one that ships.

    Raises:
        ProfileError: the folder cannot be read, or holds too many.
    """
    found = {path.stem: path for path in _files(_shipped())}
    if profiles_dir is not None:
        found |= {path.stem: path for path in _files(profiles_dir)}
    return dict(sorted(found.items()))


def load_profile(reference: str, profiles_dir: Path | None = None) -> ResolvedProfile:
    """The profile called `reference`, or in the file of that path.

    Raises:
        ProfileError: there is none; it or what it extends is wrong, with file, line and key; or they go in a circle.
    """
    path = Path(reference).expanduser()
    if os.sep not in reference and path.suffix not in SUFFIXES:
        return _load(_find(reference, None, profiles_dir, None), profiles_dir)
    if not path.is_file():
        raise ProfileError(f"there is no profile file {reference[:200]}", path=reference[:200])
    return _load(path, profiles_dir)


def check_boards(found: ResolvedProfile, boards: Mapping[str, str]) -> None:
    """Make sure that the boards and families that a profile names are known: a typing mistake would fit nothing.

    Args:
        boards: known boards by name, with their families.

    Raises:
        ProfileError: one is not.
    """
    named = [("boards", name, list(boards)) for name in found.profile.boards]
    named += [("needs.family", name, sorted(set(boards.values()))) for name in found.profile.needs.family]
    for key, name, known in named:
        if name not in known:
            what = "board" if key == "boards" else "family of boards"
            nearest = nearest_of(name, known)
            raise ProfileError(
                f"{found.origin_of(key)}, {key}: there is no {what} '{name}'",
                path=found.path,
                key=key,
                nearest=nearest,
                hint=f"Did you mean '{nearest}'?" if nearest else f"Known: {', '.join(known)}",
            )


def rule_paths(profile: Profile) -> tuple[Path, ...]:
    """The files and directories that `profile.rules` stands for.

    Raises:
        ProfileError: one is not there.
    """
    found: list[Path] = []
    for reference in profile.rules:
        path = Path(reference)
        if reference.startswith(BUILTIN):
            name = reference.removeprefix(BUILTIN)
            packs = rule_packs()
            if name not in packs:
                nearest = nearest_of(name, list(packs))
                raise ProfileError(
                    f"profile '{profile.name}' asks for the rules {reference}, and no such rules ship",
                    key="rules",
                    nearest=nearest,
                    hint=f"There are: {', '.join(packs) or 'none'}",
                )
            path = packs[name]
        if not path.exists():
            raise ProfileError(
                f"profile '{profile.name}' names the rules {path}, and there is no such file", key="rules"
            )
        found.append(path)
    return tuple(found)


def rule_packs() -> dict[str, Path]:
    """Files of rules that ship, by name."""
    return {path.stem: path for path in _files(_shipped() / "rules")}


def read_secret(reference: str) -> str:
    """The secret that a :data:`~edgeslm.schema.profile.SecretRef` names.

    Raises:
        ProfileSecretError: it is not there, empty, or too long. The text never holds any of it.
    """
    if not reference.startswith(_FILE):
        name = reference.removeprefix("env:")
        text = os.environ.get(name, "")
        if not text:
            raise ProfileSecretError(
                f"a secret is to come from the environment variable {name}, which is not set",
                hint=f"Set it for this one command: {name}=... edgeslm ...",
            )
        return _one_line(text, reference)
    path = Path(reference.removeprefix(_FILE))
    try:
        body = read_bounded(path.resolve(), MAX_SECRET_BYTES)
    except OSError as error:
        raise ProfileSecretError(
            f"a secret is to come from {path}: {error.strerror or 'it cannot be read'}", path=str(path)
        ) from error
    if len(body) > MAX_SECRET_BYTES:
        raise ProfileSecretError(
            f"{path} is too long for a secret: at most {MAX_SECRET_BYTES} bytes", path=str(path)
        )
    try:
        return _one_line(body.decode("utf-8"), reference)
    except UnicodeDecodeError:
        # Without its cause, which holds the bytes.
        raise ProfileSecretError(f"the secret in {path} is no text in UTF-8", path=str(path)) from None


@dataclass(frozen=True)
class Difference:
    """A key in which two profiles differ; ``None`` where one does not say it."""

    key: str
    before: Any
    after: Any


def difference(one: Profile, other: Profile) -> tuple[Difference, ...]:
    """In what `other` differs from `one`, defaults included, names and texts aside."""
    before, after = _flat(one), _flat(other)
    return tuple(
        Difference(key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key.split(".")[0] not in _OWN
    )


# --- finding and reading ---------------------------------------------------------------------------------------


def _shipped() -> Path:
    return Path(str(resources.files("edgeslm._profiles")))


def _files(directory: Path) -> list[Path]:
    try:
        found = sorted(path for path in directory.iterdir() if path.suffix in SUFFIXES)
    except OSError as error:
        raise ProfileError(f"{directory}: {error.strerror}", path=str(directory)) from error
    if len(found) > MAX_FILES:
        raise ProfileError(f"{directory} holds more than {MAX_FILES} profiles", path=str(directory))
    return found


def _find(name: str, beside: Path | None, profiles_dir: Path | None, said_by: YamlSource | None) -> Path:
    known = profile_names(profiles_dir)
    if beside is not None:
        known |= {path.stem: path for path in _files(beside)}
    if name in known:
        return known[name]
    nearest = nearest_of(name, list(known))
    if said_by is not None:
        raise said_by.error(("extends",), f"there is no profile '{name[:64]}'", nearest)
    raise ProfileError(
        f"there is no profile '{name[:64]}'",
        nearest=nearest,
        hint=f"Did you mean '{nearest}'?" if nearest else f"Known: {', '.join(known)}",
    )


def _read(path: Path) -> YamlSource:
    try:
        body = read_bounded(path.resolve(), MAX_FILE_BYTES)
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}", path=str(path)) from error
    if len(body) > MAX_FILE_BYTES:
        raise ProfileError(f"{path}: more than {MAX_FILE_BYTES} bytes", path=str(path))
    source = read_yaml(_shown(path), body, fault=ProfileError)
    if not isinstance(source.data, dict):
        raise source.error((), "keys with values are expected")
    return YamlSource(source.name, _absolute(source.data, path.resolve().parent), source.lines, ProfileError)


def _shown(path: Path) -> str:
    """How a file is called: one that ships by its name alone, wherever edgeslm is installed."""
    return path.name if path.parent == _shipped() else str(path)


def _load(path: Path, profiles_dir: Path | None) -> ResolvedProfile:
    chain = _chain(path, profiles_dir)
    data: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    profile: Profile | None = None
    for source in reversed(chain):
        assert isinstance(source.data, dict)  # noqa: S101 - _read made sure of it
        data = _merged({key: value for key, value in data.items() if key not in _OWN}, source.data, ())
        # What the ancestors say is valid already: what is wrong with the whole, this file made wrong.
        try:
            profile = Profile.model_validate(data)
        except ValidationError as error:
            raise source.explain(Profile, error) from error
        _note(origins, source)
    assert profile is not None  # noqa: S101 - a chain has its own file at least
    if profile.name != path.stem:
        raise chain[0].error(
            ("name",),
            f"the file is called {path.name}; call it {profile.name}.yaml, or the profile {path.stem}",
        )
    said = {".".join(map(str, at)): value for at, value in _leaves(data, ())}
    ancestors = tuple(str(value_at(source.data, ("name",))) for source in chain[1:])
    kept = {key: origin for key, origin in origins.items() if key in said or _is_whole(key, data)}
    return ResolvedProfile(profile, chain[0].name, ancestors, said, kept)


def _chain(path: Path, profiles_dir: Path | None) -> list[YamlSource]:
    """The file and those that it extends, nearest first."""
    chain = [_read(path)]
    paths = [path]
    while (name := value_at(chain[-1].data, ("extends",))) is not None:
        if not isinstance(name, str) or not is_identifier(name):
            raise chain[-1].error(("extends",), "the name of a profile is expected")
        here = paths[-1].parent
        parent = _find(name, None if here == _shipped() else here, profiles_dir, chain[-1])
        if (
            met := next((at for at, one in enumerate(paths) if one.resolve() == parent.resolve()), None)
        ) is not None:
            circle = " -> ".join(one.stem for one in [*paths[met:], parent])
            raise chain[-1].error(("extends",), f"these profiles extend each other in a circle: {circle}")
        if len(chain) > MAX_ANCESTORS:
            raise chain[-1].error(("extends",), f"more than {MAX_ANCESTORS} profiles one above the other")
        chain.append(_read(parent))
        paths.append(parent)
    return chain


# --- pure ------------------------------------------------------------------------------------------------------


def _merged(base: Mapping[str, Any], said: Mapping[str, Any], at: Location) -> dict[str, Any]:
    out = dict(base)
    for key, value in said.items():
        here = (*at, key)
        if value is None and here not in SAID:
            out.pop(key, None)
        elif isinstance(value, dict):
            before = out.get(key)
            is_kept = isinstance(before, dict) and here not in WHOLE
            out[key] = _merged(dict(before or {}) if is_kept else {}, value, here)
        else:
            out[key] = value
    return out


def _note(origins: dict[str, Origin], source: YamlSource) -> None:
    """Let `origins` tell what `source` says, in place of what was said there before."""
    said = [at for at, _ in _leaves(source.data, ())]
    said += [at for at in WHOLE if value_at(source.data, at) is not None]
    for at in said:
        known = (source.lines[at[:end]] for end in range(len(at), 0, -1) if at[:end] in source.lines)
        origins[".".join(map(str, at))] = Origin(source.name, next(known, None))


def _is_whole(key: str, data: Mapping[str, Any]) -> bool:
    at = tuple(key.split("."))
    return at in WHOLE and value_at(data, at) is not None


def _leaves(data: object, at: Location) -> Iterator[tuple[Location, Any]]:
    """The values in `data`; lists count as one value."""
    if isinstance(data, dict) and data:
        for key, value in data.items():
            yield from _leaves(value, (*at, str(key)))
    elif at:
        yield at, data


def _flat(profile: Profile) -> dict[str, Any]:
    return {".".join(map(str, at)): value for at, value in _leaves(profile.model_dump(mode="json"), ())}


def _absolute(data: dict[Any, Any], base: Path) -> dict[str, Any]:
    """`data` with its paths made absolute; what is no path stays, for the schema to judge."""

    def place(text: str) -> str:
        try:
            return str(base / Path(text).expanduser())
        except RuntimeError:  # ~nobody-of-that-name
            return str(base / text)

    def reference(value: object) -> object:
        if not isinstance(value, str) or not value or value.startswith((BUILTIN, RELEASE)):
            return value
        return place(value)

    def secret(value: object) -> object:
        if not isinstance(value, str) or not value.startswith(_FILE) or value == _FILE:
            return value
        return _FILE + place(value.removeprefix(_FILE))

    out = dict(data)
    for key in ("models", "rules"):
        if isinstance(out.get(key), list):
            out[key] = [reference(value) for value in out[key]]
    if isinstance(broker := out.get("broker"), dict):
        out["broker"] = {
            key: secret(value) if key == "password" else reference(value) if key == "ca_file" else value
            for key, value in broker.items()
        }
    network = out.get("network")
    if isinstance(network, dict) and isinstance(wifi := network.get("wifi"), dict) and "password" in wifi:
        out["network"] = {**network, "wifi": {**wifi, "password": secret(wifi["password"])}}
    return out


def _one_line(text: str, reference: str) -> str:
    secret = text.rstrip("\r\n")
    if not secret or "\n" in secret or "\0" in secret or len(secret.encode()) > MAX_SECRET_BYTES:
        raise ProfileSecretError(f"{reference}: a secret is one line of text, and not an empty one")
    return secret
