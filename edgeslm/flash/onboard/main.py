"""The program in an archive: ``python3 edgeslm-porch.pyz [--dry-run] [--uninstall] ...``. It needs no network."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from . import removal, service, work
from .disk import Disk, Open
from .manifest import (
    FILES,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    DamagedError,
    Host,
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

Said = dict[str, Any]
"""What is printed for programs."""


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
            # The last two: a member is packed in a way that zipfile does not know, or encrypted.
            raise DamagedError(
                f"{item.path} is damaged in the archive: {error}", "Copy the archive anew"
            ) from error
        except Exception as error:
            # zipfile lets zlib.error through; a Python that was built without zlib has no such class to name.
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
    there = len(manifest.items) - len(plan.missing) - len(plan.kept)
    lines = [f"install edgeslm {manifest.edgeslm}{board}{profile}"]
    if plan.before and plan.before != manifest.edgeslm:
        lines.append(f"in place of edgeslm {plan.before}")
    lines.append(
        f"write {len(plan.missing)} files, {plan.size_bytes / 2**20:.0f} MiB"
        + (f"; {there} are there" if there else "")
    )
    lines += [f"keep {path}: it was changed (--replace-settings replaces it)" for path in plan.kept]
    lines += [f"replace {path}; what it was stays as {work.saved_name(path)}" for path in plan.saved]
    lines += [f"remove {path}, which this version does not have" for path in plan.obsolete]
    if manifest.fleet:
        lines.append(
            f"join the fleet {manifest.fleet}" + (f" as {manifest.device}" if manifest.device else "")
        )
    if plan.beside:
        name = plan.beside.rpartition("/")[2]
        lines.append(
            f"leave {plan.beside}: two agents would run. End it with: systemctl disable --now {name}"
        )
    if starts:
        lines.append(f"start {manifest.service}, now and whenever the board starts")
    return lines


def removal_lines(found: removal.Removal, *, service: str | None) -> list[str]:
    """What taking it away does, for people."""
    lines = [f"uninstall edgeslm {found.edgeslm}"]
    if service is not None:
        lines.append(f"stop {service}")
    lines.append(f"remove {len(found.gone)} files")
    lines += [f"remove {path} with all that it holds" for path in found.trees]
    if found.state is not None:
        lines.append(f"remove {found.state}: identity, journal and models of this device")
    lines += [f"keep {one.path}: {one.why}" for one in found.kept]
    if found.cmdline:
        lines.append(f"leave on the kernel's command line: {' '.join(found.cmdline)}")
    return lines


def check_host(manifest: Manifest, root: Path, *, any_board: bool) -> None:
    """Make sure that it is for this board.

    Raises:
        MisfitError: it is not; everything that does not fit is named.
    """
    host = read_host(root, manifest.python)
    found = misfits(manifest, host, any_board=any_board)
    if found:
        raise MisfitError("this cannot be installed here: " + "; ".join(found), _advice(manifest, host))


def _advice(manifest: Manifest, host: Host) -> str:
    if not host.systemd or not host.glibc:
        return "edgeslm runs as a service on systems with systemd and glibc; see docs/install.md"
    fit = [version for version in host.pythons if tuple(map(int, version.split("."))) >= _OLDEST_PYTHON]
    if not fit:
        return f"Install Python {_dotted(_OLDEST_PYTHON)} or later there"
    wanted = ["--board", manifest.board or "BOARD", "--python", fit[-1], "--glibc", host.glibc]
    if host.machine:
        wanted += ["--machine", host.machine]
    return f"Make one for it: edgeslm flash archive {shlex.join(wanted)} --out FILE ..."


def check_privilege(root: Path, command: Sequence[str]) -> None:
    """Make sure that the running system may be changed.

    Args:
        command: that was called, for the one to call instead.

    Raises:
        MisfitError: only root may.
    """
    if root == Path("/") and os.geteuid() != 0:
        raise MisfitError("only root can change this system", f"Call: sudo {shlex.join(command)}")


def perform_install(
    manifest: Manifest, plan: work.Plan, disk: Disk, open_bytes: Open, tell: work.Tell, *, starts: bool
) -> None:
    """Write what is missing, and start the service.

    Raises:
        OnboardError: it stopped on the way, and why.
    """
    with disk.alone():
        work.install(manifest, plan, disk, open_bytes, tell)
        if starts:
            service.start_service(manifest.service, tell)


def has_to_start(manifest: Manifest, plan: work.Plan, root: Path) -> bool:
    """Whether the service is to be started: not where it runs already, and nothing changes."""
    return service.is_live(root) and not (plan.is_empty and service.is_active(manifest.service))


def perform_uninstall(
    found: removal.Removal, installed: str, disk: Disk, tell: work.Tell, *, service_name: str | None
) -> None:
    """Stop the service, and take away what goes.

    Raises:
        OnboardError: it stopped on the way, and why.
    """
    with disk.alone():
        if service_name is not None:
            service.stop_service(service_name, tell)
        tell("removing files")
        removal.uninstall(found, installed, disk)
        if service_name is not None:
            service.forget_service(service_name)


def install_record(manifest: Manifest, plan: work.Plan, root: Path, *, done: bool, started: bool) -> Said:
    """What an installation did, for programs."""
    return {
        "root": str(root),
        "edgeslm": manifest.edgeslm,
        "before": plan.before or None,
        "board": manifest.board or None,
        "profile": manifest.profile or None,
        "fleet": manifest.fleet or None,
        "device": manifest.device or None,
        "missing": len(plan.missing),
        "written": len(plan.missing) if done else 0,
        "kept": list(plan.kept),
        "saved": [work.saved_name(path) for path in plan.saved],
        "obsolete": list(plan.obsolete),
        "beside": plan.beside or None,
        "started": started,
    }


def removal_record(found: removal.Removal, root: Path, *, done: bool) -> Said:
    """What taking it away did, for programs."""
    return {
        "root": str(root),
        "edgeslm": found.edgeslm,
        "files": len(found.gone),
        "kept": [{"path": one.path, "why": one.why} for one in found.kept],
        "cmdline": list(found.cmdline),
        "purged": found.state is not None and done,
        "removed": done,
    }


def main(archive: Path, arguments: Sequence[str]) -> int:
    """Do what the arguments say; returns the exit status."""
    options = _parser(archive.name).parse_args(arguments)
    command = ["python3", str(archive), *arguments]
    try:
        return _run(Archive(archive), options, command)
    except OnboardError as error:
        _tell(f"edgeslm: {error.message}" + (f". {error.hint}" if error.hint else ""))
        return error.exit_code
    except KeyboardInterrupt:
        _tell("edgeslm: stopped; running it again goes on where it stopped")
        return 1


def _run(archive: Archive, options: argparse.Namespace, command: Sequence[str]) -> int:
    manifest, root = archive.manifest, Path(options.root)
    if not root.is_dir():
        raise MisfitError(f"{root} is no directory")
    if not options.dry_run:
        check_privilege(root, command)
    disk = Disk(root, manifest.state)
    return (_uninstall if options.uninstall else _install)(archive, options, root, disk)


def _install(archive: Archive, options: argparse.Namespace, root: Path, disk: Disk) -> int:
    manifest = archive.manifest
    check_host(manifest, root, any_board=options.any_board)
    _tell("checking the archive")
    archive.check()
    plan = work.plan_install(manifest, disk, replace_settings=options.replace_settings)
    starts = not options.no_start and has_to_start(manifest, plan, root)
    done = _agreed(install_lines(manifest, plan, starts=starts), options)
    if done:
        perform_install(manifest, plan, disk, archive.open_bytes, _tell, starts=starts)
    record = install_record(manifest, plan, root, done=done, started=starts and done)
    if done or options.as_json:
        _say(record if options.as_json else f"installed edgeslm {manifest.edgeslm}")
    return 0


def _uninstall(archive: Archive, options: argparse.Namespace, root: Path, disk: Disk) -> int:
    manifest = archive.manifest
    found = removal.plan_uninstall(
        manifest.installed, manifest.state, manifest.service, disk, purge=options.purge
    )
    live = service.is_live(root) and not options.no_start
    name = manifest.service if live else None
    done = _agreed(removal_lines(found, service=name), options)
    if done:
        perform_uninstall(found, manifest.installed, disk, _tell, service_name=name)
    if done or options.as_json:
        _say(
            removal_record(found, root, done=done)
            if options.as_json
            else f"uninstalled edgeslm {found.edgeslm}"
        )
    return 0


def _agreed(lines: Sequence[str], options: argparse.Namespace) -> bool:
    for line in lines:
        _tell(line)
    if options.dry_run:
        _tell("dry run: nothing was done")
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


def _say(result: Said | str) -> None:
    print(result if isinstance(result, str) else json.dumps(result, indent=2))  # noqa: T201 - the result


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=name, description="Put edgeslm on this board, or take it away.")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--uninstall", action="store_true", help="take away what was installed")
    parser.add_argument(
        "--purge", action="store_true", help="with --uninstall: identity, journal and changed files as well"
    )
    parser.add_argument(
        "--replace-settings",
        action="store_true",
        help="settings that were changed as well; they stay as *.old",
    )
    parser.add_argument("--any-board", action="store_true", help="install it on a board of another name")
    parser.add_argument("--no-start", action="store_true", help="leave the service alone")
    parser.add_argument("--root", default="/", metavar="DIR", help="directory that stands for / (default: /)")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object")
    return parser
