"""``edgeslm flash base-image``: an image from Debian's packages."""

from __future__ import annotations

from pathlib import Path

import click

from edgeslm.cli.output import json_option, print_json, reporting_errors
from edgeslm.errors import UsageError
from edgeslm.flash.base.build import default_cache, make_base_image
from edgeslm.flash.base.fetch import KEYRING
from edgeslm.flash.base.recipe import recipe_of
from edgeslm.power.boards import choose_board


@click.command("base-image")
@click.option(
    "--board", "board_name", required=True, help="Board that it is for, such as pi-4b or qemu-virt."
)
@click.option(
    "--devices-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Board files of your own.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The image, a file.",
)
@click.option(
    "--mirror", help="Mirror of Debian, such as http://deb.debian.org/debian; default is the machine's."
)
@click.option(
    "--keyring",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keys that the mirror's index is signed with; default is Debian's.",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="EDGESLM_BASE_CACHE",
    show_envvar=True,
    help="Where packages and images are kept; default is ~/.cache/edgeslm/base.",
)
@click.option("--no-cache", is_flag=True, help="Keep nothing.")
@click.option("--offline", is_flag=True, help="Take the image made last, and ask no mirror.")
@click.option(
    "--free-mb",
    type=click.IntRange(0, 1_000_000),
    default=256,
    show_default=True,
    help="Room in its root file system.",
)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@json_option
@reporting_errors
def base_image(
    board_name: str,
    devices_dir: Path | None,
    out: Path,
    mirror: str | None,
    keyring: Path | None,
    cache_dir: Path | None,
    no_cache: bool,
    offline: bool,
    free_mb: int,
    force: bool,
    as_json: bool,
) -> None:
    """Make an image of Debian 13 for a board, from Debian's packages.

    For people who have no image of the board's maker, and for QEMU. Needs no root. The image has a network by wire,
    Python and systemd; nobody can log in until `flash prepare` names a user.
    """
    if out.exists() and not force:
        raise UsageError(f"{out} is there already", hint="Name another file, or use --force")
    if offline and no_cache:
        raise UsageError("--offline and --no-cache exclude each other", hint="Leave one of them out")
    recipe = recipe_of(choose_board(board_name, devices_dir))
    cache = None if no_cache else cache_dir or default_cache()
    made = make_base_image(
        recipe,
        out,
        lambda text: click.echo(text, err=True),
        cache=cache,
        mirror=mirror,
        free_mib=free_mb,
        keyring=keyring or KEYRING,
        offline=offline,
    )
    if as_json:
        print_json(
            {
                "image": str(made.path),
                "size_bytes": made.size_bytes,
                "packages": made.packages,
                "key": made.key,
                "cached": made.cached,
            }
        )
        return
    click.echo(f"{made.path}: {made.size_bytes / 1e6:.0f} MB from {made.packages} packages of Debian")
