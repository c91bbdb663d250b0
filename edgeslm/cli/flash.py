"""``edgeslm flash``: from a stock image to a card in a board, one file for each kind of command."""

from __future__ import annotations

import click

from edgeslm.cli.output import CommandGroup

_COMMANDS: dict[str, tuple[str, str]] = {}


@click.group(cls=CommandGroup, lazy=_COMMANDS)
def flash() -> None:
    """Make boards ready: prepare an image, write cards, so that a board joins its fleet by itself."""
