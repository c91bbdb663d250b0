"""``edgeslm flash``: from a stock image to a card in a board, one file for each kind of command."""

from __future__ import annotations

import sys
from typing import Any

import click

from edgeslm.cli.output import CommandGroup
from edgeslm.errors import UsageError

_EXTRA = frozenset({"installer", "qrcode", "zstandard"})
"""What only making boards ready needs: the extra `flash`."""

_COMMANDS: dict[str, tuple[str, str]] = {
    "archive": (
        "edgeslm.cli.flash_archive:archive",
        "Make one file that installs the agent on a board that runs.",
    ),
    "batch": ("edgeslm.cli.flash_batch:batch", "Write many cards, each with a name and a claim of its own."),
    "labels": ("edgeslm.cli.flash_batch:labels", "Make the labels of a batch anew."),
    "disks": (
        "edgeslm.cli.flash_disks:disks",
        "List the disks: which can be written, and why others cannot.",
    ),
    "write": ("edgeslm.cli.flash_write:write", "Write an image to a card, and read it back."),
    "prepare": (
        "edgeslm.cli.flash_prepare:prepare",
        "Make an image that joins a fleet by itself out of a stock one.",
    ),
    "base-image": ("edgeslm.cli.flash_base:base_image", "Make an image of Debian from its packages."),
}


class _FlashGroup(CommandGroup):
    """Says what to install where its extra is missing."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was chosen."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _EXTRA:
                raise
            missing = UsageError(
                f"{error.name} is not installed",
                hint="Making boards ready needs: pip install 'edgeslm[flash]'",
            )
            click.echo(f"edgeslm: {missing}", err=True)
            sys.exit(missing.exit_code)


@click.group(cls=_FlashGroup, lazy=_COMMANDS)
def flash() -> None:
    """Make boards ready: prepare an image, write cards, so that a board joins its fleet by itself."""
