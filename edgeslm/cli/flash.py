"""``edgeslm flash``: from a stock image to a card in a board, one file for each kind of command."""

from __future__ import annotations

import click

from edgeslm.cli.output import CommandGroup

_COMMANDS: dict[str, tuple[str, str]] = {
    "archive": (
        "edgeslm.cli.flash_archive:archive",
        "Make one file that installs the agent on a board that runs.",
    ),
    "base-image": ("edgeslm.cli.flash_base:base_image", "Make an image of Debian from its packages."),
}


@click.group(cls=CommandGroup, lazy=_COMMANDS)
def flash() -> None:
    """Make boards ready: prepare an image, write cards, so that a board joins its fleet by itself."""
