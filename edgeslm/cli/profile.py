"""``edgeslm profile list|show|check|diff``: what boards can be set up to do, and whether it fits one."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import click
from click.shell_completion import CompletionItem

import edgeslm
from edgeslm.cli import wiring
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors
from edgeslm.cli.power_words import print_table
from edgeslm.errors import EdgeslmError, UsageError
from edgeslm.schema.profile import RELEASE, ImageKind

if TYPE_CHECKING:
    from edgeslm.flash.fit_types import Check, FitReport, ModelNeed
    from edgeslm.flash.image.facts import ImageFacts
    from edgeslm.flash.profiles import ResolvedProfile
    from edgeslm.schema.profile import Profile

_FOLDER: Final = click.Path(path_type=Path, file_okay=False, exists=True)
_COLOURS: Final = {"pass": "green", "warning": "yellow", "unknown": "cyan", "fail": "red"}
_SIZE: Final = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*([MGT])i?B?", re.IGNORECASE)
_FACTORS: Final = {"M": 10**6, "G": 10**9, "T": 10**12}

profiles_dir_option = click.option(
    "--profiles-dir",
    type=_FOLDER,
    envvar="EDGESLM_PROFILES_DIR",
    show_envvar=True,
    help="Folder with profiles of your own; they go before those that ship.",
)
devices_dir_option = click.option(
    "--devices-dir",
    type=_FOLDER,
    envvar="EDGESLM_DEVICES_DIR",
    show_envvar=True,
    help="Folder with boards of your own.",
)


def card_size(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Bytes of a size such as ``32G``, as makers of cards count."""
    del context, parameter
    if text is None:
        return None
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter("a size such as 16G or 512M is expected")
    return int(float(found[1]) * _FACTORS[found[2].upper()])


def model_needs(profile: Profile, more: Sequence[str] = ()) -> tuple[ModelNeed, ...]:
    """What the models of `profile` and `more` ask for; those that the fleet assigns are left out.

    Raises:
        PackageError: one is not there, or is no package.
    """
    from edgeslm.flash.fit_types import ModelNeed  # noqa: PLC0415
    from edgeslm.models.package import read_manifest  # noqa: PLC0415

    references = dict.fromkeys([*profile.models, *more])
    found: dict[Path, ModelNeed] = {}
    for reference in references:
        if not reference.startswith(RELEASE):
            path = wiring.package_path(reference)
            found[path] = ModelNeed(reference, read_manifest(path), path.stat().st_size)
    return tuple(found.values())


def complete_profiles(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Profiles whose names begin with `incomplete`, for the tab key."""
    del parameter
    from edgeslm.flash.profiles import profile_names  # noqa: PLC0415

    try:
        known = profile_names(context.params.get("profiles_dir"))
    except EdgeslmError:  # an error in the middle of the line that somebody writes helps nobody
        return []
    return [CompletionItem(name) for name in known if name.startswith(incomplete)]


def complete_boards(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Boards whose names begin with `incomplete`, for the tab key."""
    del parameter
    from edgeslm.power.boards import load_boards  # noqa: PLC0415

    try:
        known = load_boards(context.params.get("devices_dir"))
    except EdgeslmError:
        return []
    return [CompletionItem(name) for name in known if name.startswith(incomplete)]


@click.group()
def profile() -> None:
    """Show what boards can be set up to do, and whether it fits one.

    A profile is a file that says what a board is for: boot settings, frequency, radios, models, rules, budget. See
    docs/profiles.md.
    """


@profile.command("list")
@profiles_dir_option
@json_option
@reporting_errors
def list_(profiles_dir: Path | None, as_json: bool) -> None:
    """List the profiles."""
    from edgeslm.flash.profiles import load_profile, profile_names  # noqa: PLC0415

    found = [load_profile(name, profiles_dir) for name in profile_names(profiles_dir)]
    if as_json:
        print_json(
            [
                {
                    "name": one.profile.name,
                    "title": one.profile.title,
                    "description": one.profile.description,
                    "extends": list(one.ancestors),
                    "file": one.path,
                }
                for one in found
            ]
        )
        return
    print_table(
        ("PROFILE", "EXTENDS", "WHAT FOR"),
        [(one.profile.name, one.profile.extends or "-", one.profile.title) for one in found],
    )


@profile.command()
@click.argument("name", metavar="PROFILE", shell_complete=complete_profiles)
@click.option(
    "--resolved", is_flag=True, help="Everything, defaults too, and which line of which file said it."
)
@profiles_dir_option
@json_option
@reporting_errors
def show(name: str, resolved: bool, profiles_dir: Path | None, as_json: bool) -> None:
    """Show PROFILE, a name or a file, with everything that it extends."""
    from edgeslm.flash.profiles import load_profile  # noqa: PLC0415

    found = load_profile(name, profiles_dir)
    values = found.values()
    if as_json:
        print_json(
            {
                "profile": found.profile.model_dump(mode="json"),
                "extends": list(found.ancestors),
                "from": {key: origin for key, (_, origin) in values.items()},
            }
        )
        return
    click.echo(printable(f"{found.profile.title} ({found.profile.name})"))
    if found.profile.description:
        click.echo(printable(found.profile.description))
    if found.ancestors:
        click.echo(f"extends {' -> '.join(found.ancestors)}")
    click.echo()
    if resolved:
        rows = [(key, _text(value), origin) for key, (value, origin) in values.items() if key not in _HEAD]
        print_table(("SETTING", "VALUE", "FROM"), rows)
        return
    print_table(("SETTING", "VALUE"), _said(found))


_HEAD: Final = frozenset({"name", "title", "description", "extends"})


def _said(found: ResolvedProfile) -> list[tuple[str, str]]:
    """What the files say, without what nobody said."""
    return [
        (key, _text(value))
        for key, (value, origin) in found.values().items()
        if value is not None and origin != "default" and key not in _HEAD
    ]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "-"
    if isinstance(value, dict):
        inner = ", ".join(f"{key}: {_text(one)}" for key, one in value.items() if one is not None)
        return f"{{{inner}}}" if inner else "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- check -----------------------------------------------------------------------------------------------------


@profile.command()
@click.argument("names", metavar="[PROFILE]...", nargs=-1, shell_complete=complete_profiles)
@click.option(
    "--board",
    "-b",
    "board_name",
    shell_complete=complete_boards,
    help="Board that is meant; without, all known ones.",
)
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    help="Model beside those of the profile: a file, or builtin:NAME.",
)
@click.option(
    "--image", help=f"Image that is meant: a raw image, or one of {', '.join(get_args(ImageKind))}."
)
@click.option("--ram", "ram_mb", type=click.IntRange(64, 1_048_576), help="Memory of your board in MB.")
@click.option("--card", "card_bytes", callback=card_size, help="Size of the card, such as 32G.")
@click.option("--claim/--no-claim", "has_claim", default=None, help="Whether the device comes with a claim.")
@profiles_dir_option
@devices_dir_option
@json_option
@reporting_errors
def check(
    names: Sequence[str],
    board_name: str | None,
    models: Sequence[str],
    image: str | None,
    profiles_dir: Path | None,
    devices_dir: Path | None,
    as_json: bool,
    **known: Any,
) -> None:
    """Check whether PROFILE, a name or a file, fits a board, and show the arithmetic. Without PROFILE: all of them.

    Exit code 1 where a board is named and a profile does not fit it, 2 where a file is wrong.
    """
    from edgeslm.flash.fit import FitRequest, fit  # noqa: PLC0415
    from edgeslm.flash.profiles import check_boards, load_profile, profile_names, rule_paths  # noqa: PLC0415
    from edgeslm.power.boards import choose_board, load_boards  # noqa: PLC0415

    known_boards = load_boards(devices_dir)
    boards = [choose_board(board_name, devices_dir)] if board_name else list(known_boards.values())
    families = {board.name: board.family for board in known_boards.values()}
    view = _look(image)
    reports: list[FitReport] = []
    for name in names or profile_names(profiles_dir):
        found = load_profile(name, profiles_dir)
        check_boards(found, families)
        rule_paths(found.profile)
        needs = model_needs(found.profile, models)
        reports += [
            fit(FitRequest(board, found.profile, needs, edgeslm.__version__, **view, **known))
            for board in boards
        ]
    if as_json:
        print_json([report.model_dump(mode="json", exclude_none=True) for report in reports])
    elif len(reports) == 1:
        _show_report(reports[0])
    else:
        print_table(
            ("BOARD", "PROFILE", "FITS", "WHY NOT"),
            [
                (one.board, one.profile, _verdict(one), "; ".join(map(_reason, one.faults)) or "-")
                for one in reports
            ],
        )
    if board_name is not None and not all(report.fits for report in reports):
        sys.exit(1)


def _look(image: str | None) -> dict[str, Any]:
    """What is known of the image.

    Raises:
        UsageError: neither a kind nor a file.
        ImageError: it cannot be read.
    """
    if image is None:
        return {}
    if image in get_args(ImageKind):
        return {"image_kind": image}
    path = Path(image)
    if not path.is_file():
        raise UsageError(
            f"--image {image[:200]}: there is no such file", hint=f"Kinds: {', '.join(get_args(ImageKind))}"
        )
    facts, packages = image_facts(path)
    return {"image": facts, "packages": packages}


def image_facts(path: Path) -> tuple[ImageFacts, frozenset[str] | None]:
    """What the raw image at `path` is, and which packages it has; ``None`` where it keeps no list.

    Raises:
        ImageError: it cannot be read.
    """
    from edgeslm.errors import TreeError  # noqa: PLC0415
    from edgeslm.flash.image.image import open_image  # noqa: PLC0415
    from edgeslm.flash.packages import MAX_STATUS_BYTES, STATUS_PATH, installed_packages  # noqa: PLC0415

    with open_image(path) as opened:
        try:
            status = opened.root.read(STATUS_PATH, max_bytes=MAX_STATUS_BYTES)
        except TreeError:
            return opened.facts(), None
        return opened.facts(), installed_packages(status)


def _show_report(report: FitReport) -> None:
    from edgeslm.cli.power_words import table  # noqa: PLC0415

    lines = table(("CHECK", "", "DETAIL"), [(one.name, one.status, one.detail) for one in report.checks])
    click.echo(click.style(lines[0], bold=True))
    for line, one in zip(lines[1:], report.checks, strict=True):
        name, status, rest = line.partition(one.status)
        click.echo(name + click.style(status, fg=_COLOURS[one.status]) + rest)
        if one.hint is not None and one.status != "pass":
            click.echo(f"{' ' * (len(line) - len(one.detail))}{printable(one.hint)}")
    click.echo()
    click.echo(f"profile {report.profile} {'fits' if report.fits else 'does not fit'} board {report.board}")


def _verdict(report: FitReport) -> str:
    return "yes" if report.fits else "no"


def _reason(check: Check) -> str:
    return f"{check.name}: {check.detail}"


# --- diff ------------------------------------------------------------------------------------------------------


@profile.command()
@click.argument("one", metavar="PROFILE", shell_complete=complete_profiles)
@click.argument("other", metavar="OTHER", shell_complete=complete_profiles)
@profiles_dir_option
@json_option
@reporting_errors
def diff(one: str, other: str, profiles_dir: Path | None, as_json: bool) -> None:
    """Show in what OTHER differs from PROFILE, with everything that they extend."""
    from edgeslm.flash.profiles import difference, load_profile  # noqa: PLC0415

    changes = difference(load_profile(one, profiles_dir).profile, load_profile(other, profiles_dir).profile)
    if as_json:
        print_json(
            [{"key": change.key, "before": change.before, "after": change.after} for change in changes]
        )
        return
    for change in changes:
        click.echo(printable(f"{change.key}: {_text(change.before)} -> {_text(change.after)}"))
    if not changes:
        click.echo("they do not differ", err=True)
