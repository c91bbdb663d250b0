"""Putting an archive on a board.

What always holds:

* The bytes are checked, and nothing is touched before it is known that they are whole and fit.
* What makes the rest count, such as the link that starts the service, is written when all else lasts. So a power cut
  leaves a board that starts what it started before; running it again goes on where it was cut off.
* A settings file that a person changed stays as it is, or is kept beside where it is to be replaced.
* Identity, journal and models of the device are not touched.

Left to others: asking (:mod:`main`), taking it away (:mod:`removal`), systemd (:mod:`service`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from .disk import SAVED, Disk, Open
from .manifest import Item, Manifest, OnboardError
from .record import Known, is_as_installed, read_record

RESERVE_BYTES = 64 * 2**20
_BLOCK_BYTES = 4096
_CURRENT, _PREVIOUS, _VERSIONS, _TRIAL = "current", "previous", "versions", "trial.json"
_MARK = "agent.json"
"""As the launcher and :mod:`edgeslm.agent.installation` call them."""
_READABLE = 0o044
_BY_HAND = "/etc/systemd/system/edgeslm.service"
"""As docs/agent.md has people call the unit that they write themselves."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What an installation changes.

    Attributes:
        missing: what is not there, or otherwise.
        kept: settings that a person changed; they stay as they are.
        saved: settings that a person changed and that are replaced; they stay under another name.
        obsolete: files of the version before that this one does not have.
        before: version that was installed before; empty where none was.
        beside: a unit for the agent that a person wrote; with both, two agents would run.
    """

    missing: tuple[Item, ...]
    kept: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    obsolete: tuple[str, ...] = ()
    before: str = ""
    beside: str = ""

    @property
    def size_bytes(self) -> int:
        """Of all files that are written."""
        return sum(item.size_bytes for item in self.missing)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.missing and not self.obsolete


def plan_install(manifest: Manifest, disk: Disk, *, replace_settings: bool = False) -> Plan:
    """What there is to do.

    Args:
        replace_settings: settings that a person changed are replaced as well.

    Raises:
        OnboardError: there is too little room, or what says what was installed is damaged.
    """
    record = read_record(manifest.installed, disk)
    known = {} if record is None else record.known()
    missing: list[Item] = []
    changed: list[str] = []
    for item in manifest.items:
        if disk.has(item):
            continue
        if _is_a_persons(item, known.get(item.path), manifest, disk):
            changed.append(item.path)
            if not replace_settings:
                continue
        missing.append(item)
    kept = () if replace_settings else tuple(changed)
    items = {item.path for item in manifest.items}
    obsolete = [
        one.path
        for one in known.values()
        if one.path not in items
        and one.kind in {"file", "symlink"}
        and disk.is_there(one.path)
        and is_as_installed(one, disk)
        # Settings that a person wrote may well name the files beside them.
        and not (kept and one.path.startswith(f"{manifest.settings}/"))
    ]
    plan = Plan(
        tuple(missing),
        kept=kept,
        saved=tuple(changed) if replace_settings else (),
        obsolete=tuple(sorted(obsolete)),
        before="" if record is None else record.edgeslm,
        beside=_BY_HAND if disk.is_there(_BY_HAND) else "",
    )
    _check_room(plan, disk)
    return plan


def _is_a_persons(item: Item, known: Known | None, manifest: Manifest, disk: Disk) -> bool:
    """Whether what is in the place of `item` was written or changed by a person."""
    if item.kind != "file" or not item.path.startswith(f"{manifest.settings}/") or not item.mode & _READABLE:
        return False  # of what only root may read nobody wrote down what it was
    digest = disk.digest(item.path)
    if digest is None or digest == item.sha256:
        return False
    return known is None or not is_as_installed(known, disk)


def _check_room(plan: Plan, disk: Disk) -> None:
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


def install(manifest: Manifest, plan: Plan, disk: Disk, open_bytes: Open, tell: Tell) -> None:
    """Write what is missing, and take away what is obsolete.

    Raises:
        OnboardError: the bytes are damaged, or the disk refuses; running it again goes on.
    """
    try:
        disk.leftovers(item.path for item in manifest.items)
        first = [item for item in plan.missing if not item.last]
        tell(f"writing {len(plan.missing)} files, {plan.size_bytes / 2**20:.0f} MiB")
        for path in plan.saved:
            disk.save(path)
        for item in first:
            # Those of a version that nothing leads to yet are synced all at once below.
            inside = item.path.startswith(f"{manifest.agent_root}/")
            disk.put(item, open_bytes, _owner(item, manifest, disk), synced=not inside)
        tell("making sure that it lasts")
        os.sync()
        last = [item for item in plan.missing if item.last and item.path != manifest.installed]
        switches = [item for item in last if item.path == f"{manifest.agent_root}/{_CURRENT}"]
        if switches:
            _keep_a_way_back(manifest, disk, open_bytes)
        for item in last:
            disk.put(item, open_bytes, _owner(item, manifest, disk), synced=True)
        for path in plan.obsolete:
            disk.remove_file(path)
        os.sync()
        # From here on nobody knows any more what the version before had.
        for item in plan.missing:
            if item.path == manifest.installed:
                disk.put(item, open_bytes, _owner(item, manifest, disk), synced=True)
        if switches:
            links = (disk.target(f"{manifest.agent_root}/{name}") for name in (_CURRENT, _PREVIOUS))
            keep = {link.rpartition("/")[2] for link in links if link}
            disk.prune(f"{manifest.agent_root}/{_VERSIONS}", keep, _MARK)
        os.sync()
    except OSError as error:
        raise OnboardError(
            f"{error.filename or disk.root}: {error.strerror or error}",
            "Running it again goes on where it stopped",
        ) from error


def _keep_a_way_back(manifest: Manifest, disk: Disk, open_bytes: Open) -> None:
    """Let the launcher know the version that ran; what is put there by hand is not on trial."""
    before = disk.target(f"{manifest.agent_root}/{_CURRENT}")
    disk.remove(f"{manifest.agent_root}/{_TRIAL}")
    if before is not None:
        item = Item(f"{manifest.agent_root}/{_PREVIOUS}", "symlink", target=before)
        disk.put(item, open_bytes, _owner(item, manifest, disk), synced=True)


def saved_name(path: str) -> str:
    """Under which name a person's file stays when it is replaced."""
    return f"{path}{SAVED}"


def _owner(item: Item, manifest: Manifest, disk: Disk) -> tuple[int, int]:
    """Root, but in the service's own directory whoever systemd gave that to: it does so but once."""
    if os.geteuid() != 0:
        return -1, -1
    own = item.path == manifest.state or item.path.startswith(f"{manifest.state}/")
    return (disk.owner_of(manifest.state) if own else None) or (0, 0)
