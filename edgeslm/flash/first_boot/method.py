"""The port that every way of customising an image fulfils, and what it gives.

What always holds: what a method returns from is carried whole; an option that it cannot carry is an error that names
it, and nothing is left out in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from edgeslm.errors import FirstBootOptionError
from edgeslm.flash.tree import Entry
from edgeslm.schema.customisation import OPTIONS, Customisation


@dataclass(frozen=True)
class FirstBootFiles:
    """What is to be put into an image.

    Attributes:
        boot: entries of the boot partition, below its own ``/``.
        root: entries of the root file system.
        cmdline: words to add to the one line of ``cmdline.txt``.
        remove_root: files to take away from the root file system; they may be missing.
    """

    boot: tuple[Entry, ...] = ()
    root: tuple[Entry, ...] = ()
    cmdline: tuple[str, ...] = ()
    remove_root: tuple[str, ...] = ()

    def __add__(self, other: FirstBootFiles) -> FirstBootFiles:
        """Both; where both have an entry for one path the later one stands."""
        return FirstBootFiles(
            boot=_later(self.boot + other.boot),
            root=_later(self.root + other.root),
            cmdline=tuple(dict.fromkeys(self.cmdline + other.cmdline)),
            remove_root=tuple(dict.fromkeys(self.remove_root + other.remove_root)),
        )


class Method(Protocol):
    """One way of customising an image.

    Attributes:
        name: of one word, such as ``cloud-init``.
        title: for people.
    """

    @property
    def name(self) -> str:
        """See :class:`Method`."""
        ...

    @property
    def title(self) -> str:
        """See :class:`Method`."""
        ...

    def files(self, customisation: Customisation) -> FirstBootFiles:
        """What carries `customisation` into the image; nothing for an empty one.

        Raises:
            FirstBootOptionError: it cannot carry one of the options.
            TreeError: the image cannot be read.
        """
        ...


def refuse(method: Method, option: str, why: str, hint: str | None = None) -> FirstBootOptionError:
    """The error that `method` cannot carry `option`, an attribute of the customisation."""
    flag = OPTIONS[option]
    return FirstBootOptionError(f"{flag}: {method.title} {why}", method=method.name, option=flag, hint=hint)


def check_carries(method: Method, customisation: Customisation, refused: Mapping[str, str]) -> None:
    """See that nothing is asked for that `method` cannot do.

    Args:
        refused: attributes of the customisation with the reason why not.

    Raises:
        FirstBootOptionError: something is.
    """
    for name in customisation.given:
        if name in refused:
            raise refuse(method, name, refused[name])


def _later(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    by_path: dict[str, Entry] = {}
    for entry in entries:
        by_path.pop(entry.path, None)
        by_path[entry.path] = entry
    # Directories stand before what is in them, whichever part named them.
    return tuple(sorted(by_path.values(), key=lambda entry: entry.path.count("/")))
