"""What has to be done to a file system so that entries are in it: pure, one order of steps for the same entries.

The file systems of images are changed by programs that take one command after another and say little about what became
of it. So all is decided before: which directories are missing, what has to go first, and what must be there in the end.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from edgeslm.errors import TreeError
from edgeslm.flash.tree import Entry, Looking, Node, resolve

Verb = Literal["make", "write", "link", "remove", "set"]


@dataclass(frozen=True)
class Step:
    """One change.

    Attributes:
        verb: make a directory, write a file, make a symbolic link, remove a file or link, set mode and owner.
        path: where, with no link on the way.
        entry: what it is for.
    """

    verb: Verb
    path: str
    entry: Entry


@dataclass(frozen=True)
class Plan:
    """All changes.

    Attributes:
        steps: in their order.
        result: what is at each path afterwards.
    """

    steps: tuple[Step, ...]
    result: dict[str, Entry]


def plan_writes(tree: Looking, entries: Sequence[Entry], *, fold: Callable[[str], str] = str) -> Plan:
    """What puts `entries` into `tree`, in their order, each seeing those before it.

    Args:
        fold: the form of a path in which two that mean the same are equal.

    Raises:
        TreeError: a directory is in the place of a file, or the other way round, or `tree` cannot be read.
    """
    planner = _Planner(tree, fold)
    for entry in entries:
        planner.add(entry)
    return Plan(tuple(planner.steps), dict(planner.result.values()))


class _Planner:
    """The tree as it will be, with the steps that lead there."""

    def __init__(self, tree: Looking, fold: Callable[[str], str]) -> None:
        self.steps: list[Step] = []
        self.result: dict[str, tuple[str, Entry]] = {}
        self._tree = tree
        self._fold = fold
        self._coming: dict[str, Node] = {}
        self._parents: dict[str, str] = {}

    def stat(self, path: str) -> Node | None:
        return self._coming.get(self._fold(path)) or self._tree.stat(path)

    def add(self, entry: Entry) -> None:
        path = posixpath.join(self._parent(posixpath.dirname(entry.path)), posixpath.basename(entry.path))
        there = self.stat(path)
        if entry.kind == "directory":
            self._add_directory(path, entry, there)
            return
        if there is not None and there.kind == "directory":
            raise TreeError(
                f"{entry.path} is a directory, and a {entry.kind} is to be there", path=entry.path
            )
        if there is not None:
            self._step("remove", path, entry)
        if entry.kind == "symlink":
            if not entry.target:
                raise TreeError(f"the link {entry.path} leads nowhere", path=entry.path)
            self._step("link", path, entry)
            self._parents.clear()
        else:
            self._step("write", path, entry)
            self._step("set", path, entry)
        self._comes(path, entry)

    def _add_directory(self, path: str, entry: Entry, there: Node | None) -> None:
        if there is None:
            self._step("make", path, entry)
        elif there.kind != "directory":
            raise TreeError(
                f"{entry.path} is a {there.kind}, and a directory is to be there", path=entry.path
            )
        self._step("set", path, entry)
        self._comes(path, entry)

    def _parent(self, directory: str) -> str:
        found = self._parents.get(directory)
        if found is None:
            found = resolve(self, directory)
            self._make(found)
            self._parents[directory] = found
        return found

    def _make(self, directory: str) -> None:
        there = self.stat(directory)
        if there is None:
            self._make(posixpath.dirname(directory))
            self._add_directory(directory, Entry(directory, kind="directory", mode=0o755), None)
        elif there.kind != "directory":
            raise TreeError(f"{directory} is a {there.kind}, and a directory is to be there", path=directory)

    def _step(self, verb: Verb, path: str, entry: Entry) -> None:
        self.steps.append(Step(verb, path, entry))

    def _comes(self, path: str, entry: Entry) -> None:
        self._coming[self._fold(path)] = Node(entry.kind, entry.mode, entry.uid, entry.gid, 0, entry.target)
        self.result[self._fold(path)] = (path, entry)
