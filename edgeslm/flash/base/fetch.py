"""Packages and what they need, chosen and fetched by apt in a directory of ours.

The machine's own system has no part in it but its mirror, its proxies and its keys.

What always holds: every package has the SHA-256 that the signed index of the archive gives it, whatever this machine's
own apt would let through.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import FetchPackagesError, ToolMissingError
from edgeslm.flash.base.recipe import ARCHITECTURE, Recipe

Told = Callable[[str], None]

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""Keys of Debian's archive, of the package debian-archive-keyring."""
_SOURCES = Path("/etc/apt")
_DEBIAN = "http://deb.debian.org/debian"
_SECURITY = "http://deb.debian.org/debian-security"
_TIMEOUT_S = 1800.0
_LINE = re.compile(r"^'([^']+)' (\S+) (\d+) SHA256:([0-9a-f]{64})$")
_HOW_TO_REACH = re.compile(r'^Acquire::(http|https)(::[^\s"]+)? "[^"]*";$')
_MIRROR = re.compile(r"https?://[^\s\[\]#'\"]+|file:/[^\s\[\]#'\"]+|copy:/[^\s\[\]#'\"]+")
_NEVER = (
    "Acquire::AllowInsecureRepositories",
    "Acquire::AllowWeakRepositories",
    "Acquire::AllowDowngradeToInsecureRepositories",
    "APT::Get::AllowUnauthenticated",
)
INITRD_PROVIDER = """\
Package: edgeslm-initrd
Status: install ok installed
Priority: optional
Section: kernel
Maintainer: edgeslm
Architecture: all
Version: 1
Provides: linux-initramfs-tool
Description: initial file system that was made with the image
"""
"""A kernel wants a program that makes its initial file system; ours is made with the image, so none is needed."""


@dataclass(frozen=True)
class Source:
    """One archive with some of its suites."""

    uri: str
    suites: tuple[str, ...]


@dataclass(frozen=True)
class PackageFile:
    """One package, fetched.

    Attributes:
        file_name: ``<name>_<version>_<architecture>.deb``
        sha256: as the index of the archive has it; the file was compared with it.
    """

    file_name: str
    sha256: str
    path: Path

    @property
    def name(self) -> str:
        """Of the package."""
        return self.file_name.partition("_")[0]


def sources(suite: str, mirror: str | None) -> tuple[Source, ...]:
    """Where packages come from: the mirror that is named, alone; else the machine's, if it has any for this suite.

    Raises:
        FetchPackagesError: `mirror` is no address.
    """
    if mirror is not None:
        if not _MIRROR.fullmatch(mirror):
            raise FetchPackagesError(
                f"{mirror[:200]!r} is no address of a mirror", hint=f"Give one such as {_DEBIAN}"
            )
        return (Source(mirror, (suite,)),)
    debian, security = _DEBIAN, _SECURITY
    for uri, suites in _machine_sources():
        if suite in suites:
            debian = uri
        elif f"{suite}-security" in suites:
            security = uri
    return (Source(debian, (suite, f"{suite}-updates")), Source(security, (f"{suite}-security",)))


def _machine_sources() -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for path in sorted((_SOURCES / "sources.list.d").glob("*.sources")):
        for stanza in _text(path).split("\n\n"):
            fields = dict(
                line.split(":", 1) for line in stanza.splitlines() if re.match(r"[A-Za-z-]+:", line)
            )
            uris, suites = fields.get("URIs", "").split(), fields.get("Suites", "").split()
            if "main" in fields.get("Components", "").split():
                found += [(uri, suites) for uri in uris]
    for path in (_SOURCES / "sources.list", *sorted((_SOURCES / "sources.list.d").glob("*.list"))):
        for line in _text(path).splitlines():
            words = re.sub(r"\[[^\]]*\]", "", line).split()
            if len(words) > 3 and words[0] == "deb" and "main" in words[3:]:
                found.append((words[1], [words[2]]))
    return [(uri, suites) for uri, suites in found if _MIRROR.fullmatch(uri)]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


class PackageSource:
    """apt, with a state of its own below a directory."""

    def __init__(
        self, directory: Path, recipe: Recipe, where: Sequence[Source], keyring: Path = KEYRING
    ) -> None:
        """Write down its settings.

        Args:
            directory: may hold what an earlier run fetched.
            recipe: says which components of the archive are wanted.
            where: archives.
            keyring: keys with which their indexes are signed.

        Raises:
            FetchPackagesError: the archive's keys are not here.
        """
        if not keyring.is_file():
            raise FetchPackagesError(
                f"the keys of the archive are missing: {keyring}",
                hint="Install Debian's with: sudo apt-get install debian-archive-keyring"
                if keyring == KEYRING
                else "Name the file that has them",
            )
        if any(mark in str(keyring.resolve()) for mark in " \t\n[]"):
            raise FetchPackagesError(
                f"apt cannot be told of keys at {str(keyring)!r}",
                hint="Use a path without spaces and brackets",
            )
        self._directory = directory.resolve()
        self._recipe = recipe
        for name in ("lists/partial", "archives/partial", "none/partial", "etc"):
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        components = " ".join(recipe.components)
        self._write(
            "sources.list",
            "".join(
                f"deb [signed-by={keyring.resolve()}] {source.uri} {suite} {components}\n"
                for source in where
                for suite in source.suites
            ),
        )
        self._write("status", INITRD_PROVIDER + "\n")
        self._write("apt.conf", self._settings())

    def fetch(self, tell: Told) -> tuple[PackageFile, ...]:
        """All packages of the recipe and what they need, sorted by name.

        Raises:
            FetchPackagesError: the mirror cannot be reached, has not what is wanted, or gave something else.
        """
        tell("asking the mirror what there is")
        self._run("apt-get", "update")
        wanted = (*self._recipe.packages, self._recipe.kernel)
        install = ("apt-get", "install", "--yes", "--no-install-recommends")
        listed = self._run(
            *install, "-o", f"Dir::Cache::archives={self._directory}/none", "--print-uris", *wanted
        )
        rows = [row.groups() for line in listed.splitlines() if (row := _LINE.match(line))]
        if not rows:
            raise FetchPackagesError("apt names no package to fetch", hint="Try another --mirror")
        tell(
            f"fetching {len(rows)} packages, {sum(int(row[2]) for row in rows) / 1e6:.0f} MB where none is there"
        )
        self._run(*install, "--download-only", *wanted)
        found = [
            PackageFile(urllib.parse.unquote(row[1]), row[3], self._directory / "archives" / row[1])
            for row in rows
        ]
        for package in found:
            self._check(package)
        self._forget_others({package.path.name for package in found})
        return tuple(sorted(found, key=lambda package: package.file_name))

    # --- pieces -------------------------------------------------------------------------------------------------

    def _check(self, package: PackageFile) -> None:
        try:
            with package.path.open("rb") as stream:
                actual = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise FetchPackagesError(f"{package.file_name} was not fetched: {error.strerror}") from error
        if actual != package.sha256:
            package.path.unlink(missing_ok=True)
            raise FetchPackagesError(
                f"{package.file_name} is not what the archive's index says; it was removed", hint="Try again"
            )

    def _forget_others(self, wanted: set[str]) -> None:
        """Remove packages that an earlier run wanted, and this one does not."""
        for path in (self._directory / "archives").glob("*.deb"):
            if path.name not in wanted:
                path.unlink(missing_ok=True)

    def _settings(self) -> str:
        at = self._directory
        lines = [
            f'Dir "{at}";',
            f'Dir::State "{at}"; Dir::State::Lists "{at}/lists"; Dir::State::status "{at}/status";',
            f'Dir::State::extended_states "{at}/extended_states";',
            f'Dir::Cache "{at}"; Dir::Cache::archives "{at}/archives"; Dir::Log "{at}/log";',
            f'Dir::Etc "{at}/etc"; Dir::Etc::SourceList "{at}/sources.list"; Dir::Etc::SourceParts "/dev/null";',
            'Dir::Etc::Main "/dev/null"; Dir::Etc::Parts "/dev/null"; Dir::Etc::TrustedParts "/dev/null";',
            'Dir::Etc::Preferences "/dev/null"; Dir::Etc::PreferencesParts "/dev/null";',
            f'APT::Architecture "{ARCHITECTURE}"; APT::Architectures {{ "{ARCHITECTURE}"; }};',
            'APT::Install-Recommends "false"; APT::Install-Suggests "false"; APT::Sandbox::User "";',
            'Acquire::Languages "none"; Acquire::ForceHash "SHA256"; Acquire::Retries "3"; Dpkg::Use-Pty "0";',
        ]
        # How this machine reaches the network stands in its own settings; which archives it believes does not count.
        done = self._start(["apt-config", "dump", "Acquire"], dict(os.environ))
        lines += [line for line in done.stdout.splitlines() if _HOW_TO_REACH.match(line)]
        lines += [f'{name} "false";' for name in _NEVER]
        return "\n".join(lines) + "\n"

    def _write(self, name: str, text: str) -> None:
        (self._directory / name).write_text(text)

    def _run(self, *command: str) -> str:
        environment = {**os.environ, "APT_CONFIG": str(self._directory / "apt.conf"), "LC_ALL": "C"}
        done = self._start(command, environment)
        # apt-get update calls an index that it could not fetch a warning.
        missed = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W: Failed", "Err:"))]
        if done.returncode != 0 or missed:
            said = "; ".join(missed[:3]) or done.stderr.strip()[-300:] or "it says nothing"
            raise FetchPackagesError(
                f"packages cannot be fetched: {said}",
                hint="Look at the network, or name another mirror with --mirror",
            )
        return done.stdout

    @staticmethod
    def _start(command: Iterable[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        words = list(command)
        try:
            return subprocess.run(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError as error:
            raise ToolMissingError(words[0], package="apt") from error
        except subprocess.TimeoutExpired as error:
            raise FetchPackagesError(f"{words[0]} did not end within {_TIMEOUT_S:g} s") from error
