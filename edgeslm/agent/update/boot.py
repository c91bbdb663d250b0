"""What to serve when the agent starts, after whatever end of the last run.

What always holds: every package that is named here is whole. Where the journal and the card disagree, what is on the
card decides.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeslm.agent.update.changes import Changes
from edgeslm.agent.update.journal import UpdateJournal
from edgeslm.errors import EdgeslmError
from edgeslm.models.store import ModelStore
from edgeslm.schema.installed import InstalledPackage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Factory:
    """What a device serves without any update, and falls back to.

    Attributes:
        files: package files by name,
        installed: and what they are in the store.
    """

    files: dict[str, Path]
    installed: dict[str, InstalledPackage]


def boot(
    changes: Changes, journal: UpdateJournal, store: ModelStore, files: Sequence[Path], boot_id: str
) -> tuple[Factory, dict[str, InstalledPackage]]:
    """Take the end of the last run into account; the factory, and what to serve by name.

    Args:
        files: package files of the factory; their names come first, in this order.
        boot_id: see :func:`edgeslm.procfs.boot_id`; empty where the kernel does not say.

    Raises:
        EdgeslmError: there is nothing to serve: why the first factory package is of no use.
    """
    factory, faults = _install(store, files)
    changes.start(boot_id)
    if journal.is_new:
        _adopt_links(changes, store, factory)
    names = [*factory.installed, *(name for name in changes.names if name not in factory.installed)]
    found = {name: changes.package(name, factory.installed) for name in names}
    packages = {name: installed for name, installed in found.items() if installed is not None}
    if not packages and faults:
        raise faults[0]
    _link_factory(changes, store, factory)
    return factory, packages


def _install(store: ModelStore, files: Sequence[Path]) -> tuple[Factory, list[EdgeslmError]]:
    factory, faults = Factory({}, {}), []
    for path in files:
        try:
            installed = store.install(path)
        except EdgeslmError as error:
            log.exception("factory package %s is of no use", path)
            faults.append(error)
        else:
            factory.files[installed.manifest.name] = path
            factory.installed[installed.manifest.name] = installed
    return factory, faults


def _adopt_links(changes: Changes, store: ModelStore, factory: Factory) -> None:
    """Without a journal the links tell what serves: an update must not be undone by losing it."""
    try:
        for name in store.names("current"):
            installed, usual = store.current(name), factory.installed.get(name)
            if installed is not None and (usual is None or usual.sha256 != installed.sha256):
                changes.adopt(installed)
    except EdgeslmError:
        log.exception("what served before the journal was lost cannot be told")


def _link_factory(changes: Changes, store: ModelStore, factory: Factory) -> None:
    """Names that no update ever touched are linked as well: for people, and for the day the journal is lost."""
    for name, installed in factory.installed.items():
        if changes.get(name) is not None:
            continue
        try:
            if store.digest("current", name) != installed.sha256:
                store.set_current(name, installed.sha256)
                store.drop_previous(name)
        except EdgeslmError:
            log.exception("%s cannot be linked", name)
