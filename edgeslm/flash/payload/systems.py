"""The operating system that a payload is for, told by its files."""

from __future__ import annotations

from edgeslm.errors import PrepareError
from edgeslm.flash.image.facts import ImageFacts
from edgeslm.flash.payload.environment import BoardPython
from edgeslm.flash.payload.whole import BoardSystem
from edgeslm.flash.tree import Tree, resolve

_GROUPS = "/etc/group"
_MAX_GROUP_BYTES = 2**20


def board_system(facts: ImageFacts, root: Tree) -> BoardSystem:
    """The system of an image.

    Args:
        facts: about it.
        root: its root file system.

    Raises:
        PrepareError: it has no Python, or no program that tells its architecture.
        TreeError: it cannot be read.
    """
    if facts.python is None or facts.python_path is None:
        raise PrepareError("the image has no Python 3", what="image", hint="Take an image that has python3")
    if facts.machine is None:
        raise PrepareError(
            "no program in the image tells its architecture", what="image", hint="Take another image"
        )
    text = b""
    if root.stat(resolve(root, _GROUPS)) is not None:
        text = root.read(_GROUPS, max_bytes=_MAX_GROUP_BYTES)
    groups = frozenset(line.partition(":")[0] for line in text.decode("utf-8", "replace").splitlines())
    python = BoardPython(facts.python, facts.python_path)
    return BoardSystem(python, facts.machine, facts.glibc, groups - {""})
