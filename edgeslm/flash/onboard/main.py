"""The program in an archive: ``python3 edgeslm-porch.pyz [--dry-run] [--uninstall] ...``. It needs no network."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from . import work
from .disk import Disk, Open
from .manifest import (
    FILES,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    DamagedError,
    Item,
    Manifest,
    MisfitError,
    OnboardError,
    decode,
    misfits,
    read_host,
)

_OLDEST_PYTHON = (3, 11)
_PIECE_BYTES = 2**20


class Archive:
    """What an archive holds.

    Attributes:
        manifest: of it.
    """

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            DamagedError: it is no archive.
        """
        try:
            self._zip = zipfile.ZipFile(path)
            info = self._zip.getinfo(MANIFEST)
            if info.file_size > MAX_MANIFEST_BYTES:
                raise DamagedError(f"{path}: its manifest is too large")
            self.manifest = decode(self._zip.read(info))
        except DamagedError as error:
            raise DamagedError(f"{path}: {error.message}", "Copy the archive anew") from error
        except (OSError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise DamagedError(f"{path} is damaged: {error}", "Copy the archive anew") from error

    @contextlib.contextmanager
    def open_bytes(self, item: Item) -> Iterator[BinaryIO]:
        """The bytes of a file that is to be installed."""
        try:
            with self._zip.open(f"{FILES}/{item.sha256}") as stream:
                yield cast(BinaryIO, stream)
        except (KeyError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise DamagedError(
                f"{item.path} is damaged in the archive: {error}", "Copy the archive anew"
            ) from error
        except Exception as error:
            if type(error).__module__ != "zlib":
                raise
            raise DamagedError(
                f"{item.path} is damaged in the archive: {error}", "Copy the archive anew"
            ) from error

    def check(self) -> None:
        """Read it to its last byte.

        Raises:
            DamagedError: something in it is not what it was.
        """
        seen: dict[str, Item] = {item.sha256: item for item in self.manifest.items if item.kind == "file"}
        for item in seen.values():
            with self.open_bytes(item) as stream:
                check_bytes(stream, item)


def check_bytes(stream: BinaryIO, item: Item) -> None:
    """Make sure that these are the bytes of `item`.

    Raises:
        DamagedError: they are not.
    """
    import hashlib  # noqa: PLC0415 - the others above are needed in any case

    digest, size_bytes = hashlib.sha256(), 0
    while piece := stream.read(_PIECE_BYTES):
        digest.update(piece)
        size_bytes += len(piece)
        if size_bytes > item.size_bytes:
            break
    if size_bytes != item.size_bytes or digest.hexdigest() != item.sha256:
        raise DamagedError(f"{item.path} is damaged in the archive", "Copy the archive anew")


def install_lines(manifest: Manifest, plan: work.Plan, *, starts: bool) -> list[str]:
    """What an installation does, for people."""
    board = f" for {manifest.board}" if manifest.board else ""
    profile = f" with the profile {manifest.profile}" if manifest.profile else ""
    there = len(manifest.items) - len(plan.missing)
    lines = [f"install edgeslm {manifest.edgeslm}{board}{profile}"]
    lines.append(
        f"write {len(plan.missing)} files, {plan.size_bytes / 2**20:.0f} MiB"
        + (f"; {there} are there" if there else "")
    )
    if manifest.fleet:
        lines.append(
            f"join the fleet {manifest.fleet}" + (f" as {manifest.device}" if manifest.device else "")
        )
    if starts:
        lines.append(f"start {manifest.service}, now and whenever the board starts")
    return lines


def removal_lines(removal: work.Removal, *, service: str | None) -> list[str]:
    """What taking it away does, for people."""
    lines = [f"uninstall edgeslm {removal.edgeslm}"]
    if service is not None:
        lines.append(f"stop {service}")
    lines.append(
        f"remove {len(removal.gone)} files, and with all that they hold: {', '.join(removal.trees) or 'no directories'}"
    )
    if removal.state is not None:
        lines.append(f"remove {removal.state}: identity, journal and models of this device")
    lines += [f"keep {path}: it was changed since" for path in removal.kept]
    if removal.cmdline:
        lines.append(f"leave on the kernel's command line: {' '.join(removal.cmdline)}")
    return lines


def check_host(manifest: Manifest, root: Path, *, any_board: bool) -> None:
    """Make sure that it is for this board.

    Raises:
        MisfitError: it is not; everything that does not fit is named.
    """
    found = misfits(manifest, read_host(root, manifest.python), any_board=any_board)
    if found:
        raise MisfitError(
            "this cannot be installed here: " + "; ".join(found), "Make an archive for this board"
        )


def check_privilege(root: Path) -> None:
    """Make sure that the running system may be changed.

    Raises:
        MisfitError: only root may.
    """
    if root == Path("/") and os.geteuid() != 0:
        raise MisfitError("only root can change this system", "Put sudo before the command")


def perform_install(
    manifest: Manifest, plan: work.Plan, disk: Disk, open_bytes: Open, tell: work.Tell, *, starts: bool
) -> None:
    """Write what is missing, and start the service.

    Raises:
        OnboardError: it stopped on the way, and why.
    """
    work.install(manifest, plan, disk, open_bytes, tell)
    if starts:
        work.start_service(manifest.service, tell)


def perform_uninstall(
    removal: work.Removal, installed: str, disk: Disk, tell: work.Tell, *, service: str | None
) -> None:
    """Stop the service, and take away what goes.

    Raises:
        OnboardError: it stopped on the way, and why.
    """
    if service is not None:
        work.stop_service(service, tell)
    tell("removing files")
    work.uninstall(removal, installed, disk)
    if service is not None:
        work.systemctl("daemon-reload")


def main(archive: Path, arguments: Sequence[str]) -> int:
    """Do what the arguments say; returns the exit status."""
    options = _parser(archive.name).parse_args(arguments)
    if sys.version_info < _OLDEST_PYTHON:
        _tell(f"edgeslm: it needs Python {'.'.join(map(str, _OLDEST_PYTHON))} or later")
        return 2
    try:
        return _run(Archive(archive), options)
    except OnboardError as error:
        _tell(f"edgeslm: {error.message}" + (f". {error.hint}" if error.hint else ""))
        return error.exit_code
    except KeyboardInterrupt:
        _tell("edgeslm: stopped; running it again goes on where it stopped")
        return 1


def _run(archive: Archive, options: argparse.Namespace) -> int:
    manifest, root = archive.manifest, Path(options.root)
    live = work.is_live(root) and not options.no_start
    check_privilege(root)
    disk = Disk(root)
    if options.uninstall:
        removal = work.plan_uninstall(manifest.installed, manifest.state, disk, purge=options.purge)
        service = manifest.service if live else None
        if _agreed(removal_lines(removal, service=service), options):
            perform_uninstall(removal, manifest.installed, disk, _tell, service=service)
            print("uninstalled edgeslm")  # noqa: T201 - the result
        return 0
    check_host(manifest, root, any_board=options.any_board)
    _tell("checking the archive")
    archive.check()
    plan = work.plan_install(manifest, disk)
    if _agreed(install_lines(manifest, plan, starts=live), options):
        perform_install(manifest, plan, disk, archive.open_bytes, _tell, starts=live)
        print(f"installed edgeslm {manifest.edgeslm}")  # noqa: T201 - the result
    return 0


def _agreed(lines: Sequence[str], options: argparse.Namespace) -> bool:
    for line in lines:
        _tell(line)
    if options.dry_run:
        _tell("nothing was done (--dry-run)")
        return False
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise MisfitError("nobody is there to be asked", "Say --yes, or --dry-run to see what would be done")
    _tell("go on? [y/N] ", end="")
    if sys.stdin.readline().strip().lower() in {"y", "yes"}:
        return True
    raise OnboardError("nothing was done")


def _tell(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)  # noqa: T201 - there is no logging here


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=name, description="Put edgeslm on this board, or take it away.")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--uninstall", action="store_true", help="take away what was installed")
    parser.add_argument(
        "--purge", action="store_true", help="with --uninstall: identity, journal and changed files as well"
    )
    parser.add_argument("--any-board", action="store_true", help="install it on a board of another name")
    parser.add_argument("--no-start", action="store_true", help="leave the service alone")
    parser.add_argument("--root", default="/", metavar="DIR", help="directory that stands for / (default: /)")
    return parser
