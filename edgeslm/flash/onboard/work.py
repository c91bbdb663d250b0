"""Putting an archive on a board, and taking it away again.

What always holds:

* The bytes are checked, and nothing is touched before it is known that they are whole and fit.
* What makes the rest count, such as the link that starts the service, is written when all else lasts. So a power cut
  leaves a board that starts what it started before; running it again goes on where it was cut off.
* What was changed since it was installed stays when the rest is taken away, and is named.

Left to others: asking (:mod:`main`), and what is in an archive.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .disk import Disk, Open, digest
from .manifest import Item, Manifest, OnboardError, is_plain

RESERVE_BYTES = 64 * 2**20
_BLOCK_BYTES = 4096
_MAX_INSTALLED_BYTES = 2 * 2**20
_TRIAL = "trial.json"
_SYSTEMD_RUNS = "/run/systemd/system"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What an installation changes.

    Attributes:
        missing: what is not there, or otherwise.
    """

    missing: tuple[Item, ...]

    @property
    def size_bytes(self) -> int:
        """Of all files that are written."""
        return sum(item.size_bytes for item in self.missing)


def plan_install(manifest: Manifest, disk: Disk) -> Plan:
    """What there is to do.

    Raises:
        OnboardError: there is too little room.
    """
    plan = Plan(tuple(item for item in manifest.items if not disk.has(item)))
    needed: dict[int, int] = {}
    free: dict[int, int] = {}
    for item in plan.missing:
        device, free_bytes = disk.free_bytes(item.path)
        free[device] = free_bytes
        blocks = -(-item.size_bytes // _BLOCK_BYTES) + 1
        needed[device] = needed.get(device, 0) + blocks * _BLOCK_BYTES
    for device, bytes_ in needed.items():
        if bytes_ + RESERVE_BYTES > free[device]:
            raise OnboardError(
                f"no room: {(bytes_ + RESERVE_BYTES) / 2**20:.0f} MiB are needed, "
                f"{free[device] / 2**20:.0f} MiB are free",
                "Free some, or use a larger card",
            )
    return plan


def install(manifest: Manifest, plan: Plan, disk: Disk, open_bytes: Open, tell: Tell) -> None:
    """Write what is missing.

    Raises:
        OnboardError: the bytes are damaged, or the disk refuses; running it again goes on.
    """
    try:
        disk.leftovers(item.path for item in manifest.items)
        first = [item for item in plan.missing if not item.last]
        tell(f"writing {len(first)} files, {plan.size_bytes / 2**20:.0f} MiB")
        for item in first:
            # Those of a version that nothing leads to yet are synced all at once below.
            inside = item.path.startswith(f"{manifest.agent_root}/")
            disk.put(item, open_bytes, _owner(item, manifest, disk), synced=not inside)
        tell("making sure that it lasts")
        os.sync()
        last = [item for item in plan.missing if item.last]
        if any(item.kind == "symlink" and item.path.startswith(manifest.agent_root) for item in last):
            disk.remove(f"{manifest.agent_root}/{_TRIAL}")  # what is put there by hand is not on trial
        for item in last:
            disk.put(item, open_bytes, _owner(item, manifest, disk), synced=True)
        os.sync()
    except OSError as error:
        raise OnboardError(
            f"{error.filename or disk.root}: {error.strerror or error}",
            "Running it again goes on where it stopped",
        ) from error


def _owner(item: Item, manifest: Manifest, disk: Disk) -> tuple[int, int]:
    """Root, but in the service's own directory whoever systemd gave that to: it does so but once."""
    if os.geteuid() != 0:
        return -1, -1
    own = item.path == manifest.state or item.path.startswith(f"{manifest.state}/")
    return (disk.owner_of(manifest.state) if own else None) or (0, 0)


# --- taking it away -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Removal:
    """What taking it away does.

    Attributes:
        edgeslm: version that was installed.
        gone: files and links that go.
        trees: directories that go with all that they hold.
        directories: that go if nothing is in them by then, the deepest first.
        kept: paths that stay, since they were changed.
        state: the service's own directory, where it goes as well.
        cmdline: words that were added to the kernel's command line, and stay there.
    """

    edgeslm: str
    gone: tuple[str, ...]
    trees: tuple[str, ...]
    directories: tuple[str, ...]
    kept: tuple[str, ...]
    state: str | None
    cmdline: tuple[str, ...]


def plan_uninstall(installed: str, state: str, disk: Disk, *, purge: bool) -> Removal:
    """What there is to do.

    Args:
        installed: path of what says on the board what was installed.
        state: the service's own directory.
        purge: state and changed files go as well.

    Raises:
        OnboardError: nothing was installed, or what says so is damaged.
    """
    try:
        place = disk.place(installed)
        if place.stat().st_size > _MAX_INSTALLED_BYTES:
            raise ValueError(installed)
        found = json.loads(place.read_bytes())
        files = [
            (str(one["path"]), str(one["kind"]), one.get("sha256"), one.get("target"))
            for one in found["files"]
        ]
        words = tuple(str(word) for word in found.get("cmdline", ()))
    except FileNotFoundError as error:
        raise OnboardError(
            f"{installed} is not here: edgeslm was not installed in {disk.root} this way"
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise OnboardError(
            f"{installed} is damaged: {error}", "Install it again, then uninstall it"
        ) from error
    gone: list[str] = []
    kept: list[str] = []
    trees: list[str] = []
    directories: list[str] = []
    for path, kind, sha256, target in files:
        if not is_plain(path) or path.count("/") < 2:
            continue  # nothing that was ever installed lies at the top
        if kind == "directory":
            directories.append(path)
        elif kind == "tree":
            trees.append(path)
        elif purge or _is_as_installed(disk, path, kind, sha256, target):
            gone.append(path)
        else:
            kept.append(path)
    return Removal(
        edgeslm=str(found.get("edgeslm", ""))[:80],
        gone=tuple(gone),
        trees=tuple(trees),
        directories=tuple(sorted(directories, key=lambda path: path.count("/"), reverse=True)),
        kept=tuple(kept),
        state=state if purge else None,
        cmdline=words,
    )


def uninstall(removal: Removal, installed: str, disk: Disk) -> None:
    """Take away what goes; what says what was installed goes last.

    Raises:
        OnboardError: the disk refuses; running it again goes on.
    """
    try:
        for path in removal.gone:
            disk.remove_file(path)
        for path in removal.trees:
            disk.remove(path)
        if removal.state is not None:
            owned = disk.place(f"{removal.state}/x").parent
            disk.remove(removal.state)
            if owned.is_dir():  # behind the link of a dynamic user
                shutil.rmtree(owned)
        disk.remove(installed)
        for path in (*removal.directories, installed.rpartition("/")[0]):
            disk.remove_empty(path)
        os.sync()
    except OSError as error:
        raise OnboardError(
            f"{error.filename or disk.root}: {error.strerror or error}",
            "Running it again goes on where it stopped",
        ) from error


def _is_as_installed(disk: Disk, path: str, kind: str, sha256: object, target: object) -> bool:
    place = disk.place(path)
    try:
        if kind == "symlink":
            return os.readlink(place) == target  # noqa: PTH115 - as it is
        if place.is_symlink() or not place.is_file():
            return not place.exists()
        return sha256 is None or digest(place) == sha256
    except OSError:
        return not os.path.lexists(place)


# --- the service ----------------------------------------------------------------------------------------------


def is_live(root: Path) -> bool:
    """Whether `root` is this running machine, with systemd."""
    return root == Path("/") and Path(_SYSTEMD_RUNS).is_dir()


def systemctl(*words: str) -> None:
    """Ask systemd for something.

    Raises:
        OnboardError: it refuses; its own words are shown.
    """
    command = ["systemctl", *words]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise OnboardError(f"systemctl cannot be run: {error.strerror}") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-500:]
        raise OnboardError(
            f"{' '.join(command)} failed: {said or f'exit status {done.returncode}'}",
            f"journalctl -u {words[-1]} says more" if len(words) > 1 else None,
        )


def start_service(service: str, tell: Tell) -> None:
    """Let systemd run the service, now and at each start of the board.

    Raises:
        OnboardError: it does not start.
    """
    systemctl("daemon-reload")
    tell(f"starting {service}")
    systemctl("restart", service)


def stop_service(service: str, tell: Tell) -> None:
    """Stop the service, where it is known.

    Raises:
        OnboardError: systemd refuses.
    """
    tell(f"stopping {service}")
    known: Sequence[str] = ("show", "--property=LoadState", "--value", service)
    done = subprocess.run(["systemctl", *known], capture_output=True, text=True, check=False)
    if done.stdout.strip() == "loaded":
        systemctl("stop", service)
