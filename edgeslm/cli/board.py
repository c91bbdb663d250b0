"""``edgeslm board list|show|detect``: types of boards, what is known of each and from where, and which one this is."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgeslm.cli.output import json_option, print_json, printable, reporting_errors
from edgeslm.cli.power_words import power_text, print_table
from edgeslm.errors import EdgeslmError

if TYPE_CHECKING:
    from edgeslm.power.detection import Detection, Machine
    from edgeslm.schema.board import Board

_WIDTH: Final = 110
_BY: Final = {
    "model": "the model that its device tree tells",
    "compatible": "what its device tree says that it is compatible with, for no board's model fits",
    "architecture": "its architecture alone: no board's model fits",
}

devices_dir_option = click.option(
    "--devices-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    envvar="EDGESLM_DEVICES_DIR",
    show_envvar=True,
    help="Folder with board files of your own; they go before those that ship.",
)


def complete_boards(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of boards, for the tab key."""
    from edgeslm.power.boards import load_boards  # noqa: PLC0415

    del parameter
    with suppress(EdgeslmError):
        names = load_boards(context.params.get("devices_dir"))
        return [name for name in names if name.startswith(incomplete)]
    return []


@click.group()
def board() -> None:
    """Types of boards: what is known of each, and which one this is."""


@board.command(name="list")
@devices_dir_option
@json_option
@reporting_errors
def list_(devices_dir: Path | None, as_json: bool) -> None:
    """List the boards that are known, with what helps to choose one."""
    from edgeslm.power.boards import load_boards  # noqa: PLC0415

    boards = load_boards(devices_dir).values()
    if as_json:
        print_json({"boards": [_as_json(one) for one in boards]})
        return
    print_table(
        ("board", "cores", "dotprod", "memory", ">idle", ">all cores", "boots from", "own meter"),
        [_row(one) for one in boards],
    )


@board.command()
@click.argument("name", metavar="BOARD", shell_complete=complete_boards)
@devices_dir_option
@json_option
@reporting_errors
def show(name: str, devices_dir: Path | None, as_json: bool) -> None:
    """Show all that is known of a type of board, each part with its source."""
    from edgeslm.power.boards import choose_board  # noqa: PLC0415

    chosen = choose_board(name, devices_dir)
    if as_json:
        print_json(_as_json(chosen))
        return
    for line in _described(chosen):
        click.echo(line)


@board.command()
@devices_dir_option
@json_option
@reporting_errors
def detect(devices_dir: Path | None, as_json: bool) -> None:
    """Say which board this is, why, and in what it differs from what is known of its type."""
    from edgeslm.power.boards import load_boards  # noqa: PLC0415
    from edgeslm.power.detection import detect as decide  # noqa: PLC0415
    from edgeslm.power.detection import read_machine  # noqa: PLC0415

    machine = read_machine()
    found = decide(load_boards(devices_dir), machine)
    if as_json:
        print_json(_detection_json(found, machine))
        return
    for line in _told(found, machine):
        click.echo(printable(line))


# --- list ----------------------------------------------------------------------------------------------------


def _as_json(chosen: Board) -> dict[str, Any]:
    return {
        **chosen.model_dump(mode="json", exclude_none=True),
        "all_cores_w": round(_all_cores_w(chosen), 3),
    }


def _all_cores_w(chosen: Board) -> float:
    return chosen.power.idle_w + (chosen.cores or 1) * chosen.power.core_load_w


def _row(chosen: Board) -> tuple[str, ...]:
    known = bool(chosen.clusters)
    return (
        chosen.name,
        _cores_text(chosen),
        ("yes" if "asimddp" in chosen.cpu_features else "no") if known else "-",
        _memory_text(chosen),
        power_text(chosen.power.idle_w),
        power_text(_all_cores_w(chosen)) if chosen.cores else "-",
        ", ".join(chosen.storage) or "-",
        ", ".join(meter.kind for meter in chosen.meters) or "-",
    )


def _cores_text(chosen: Board) -> str:
    if chosen.clusters:
        return " + ".join(
            f"{cluster.count} {cluster.core.removeprefix('Cortex-')} {cluster.max_mhz / 1000:.1f} GHz"
            for cluster in chosen.clusters
        )
    return "-" if chosen.cores is None else str(chosen.cores)


def _memory_text(chosen: Board) -> str:
    sizes = [f"{size / 1024:g}" for size in chosen.ram_mb]
    return f"{'/'.join(sizes)} GB" if sizes else "-"


# --- show ----------------------------------------------------------------------------------------------------


def _described(chosen: Board) -> Iterator[str]:
    yield click.style(f"{chosen.title} ({chosen.name})", bold=True)
    yield from _pairs(_facts(chosen))
    for title, part, source in _parts(chosen):
        yield ""
        yield click.style(title, bold=True)
        yield from _pairs(part)
        yield from _wrapped("from", source)
    yield ""
    yield click.style("sources of the rest", bold=True)
    for source in chosen.sources:
        yield from _wrapped("-", source)


def _facts(chosen: Board) -> list[tuple[str, str]]:
    facts = [("family", chosen.family), ("architecture", chosen.arch), ("processor", chosen.soc)]
    for cluster in chosen.clusters:
        lowest = f"{cluster.min_mhz} to " if cluster.min_mhz else "up to "
        policies = ", ".join(cluster.policies) or "not known where"
        facts.append(
            (
                "cores",
                f"{cluster.count} x {cluster.core}, {lowest}{cluster.max_mhz} MHz, governor in {policies}",
            )
        )
    if not chosen.clusters:
        facts.append(("cores", "-" if chosen.cores is None else str(chosen.cores)))
    return [
        *facts,
        ("features", ", ".join(chosen.cpu_features) or "none promised"),
        ("memory", _memory_text(chosen)),
        ("boots from", ", ".join(chosen.storage) or "not known"),
        ("threads", f"{chosen.threads} recommended for one model"),
        ("context", f"up to {chosen.context_tokens} tokens recommended" if chosen.context_tokens else "-"),
        ("recognised by", ", ".join(f"'{text}'" for text in chosen.recognised_by) or "nothing"),
        ("or compatible", ", ".join(chosen.compatible) or "nothing"),
    ]


def _parts(chosen: Board) -> Iterator[tuple[str, list[tuple[str, str]], str]]:
    boot, ports, supply, thermal = chosen.boot, chosen.ports, chosen.supply, chosen.thermal
    if boot is not None:
        settings = ", ".join(filter(None, (boot.settings_file, boot.command_line_file)))
        yield (
            "boot",
            [
                ("by", boot.kind),
                ("reads", f"{boot.partition} at {boot.mounted_at}" if boot.partition else "-"),
                ("settings", settings or "-"),
                ("kernels", ", ".join(boot.kernel_files) or "-"),
                ("device trees", ", ".join(boot.device_trees) or "-"),
                ("watchdog", f"at most {boot.watchdog_max_s:g} s" if boot.watchdog_max_s else "not known"),
            ],
            boot.source,
        )
    if ports is not None:
        wired = f"{ports.ethernet_mbit} Mbit/s" if ports.ethernet_mbit else "none"
        yield (
            "ports",
            [
                ("Wi-Fi", ports.wifi),
                ("Bluetooth", ports.bluetooth),
                ("Ethernet", wired),
                ("HDMI", str(ports.hdmi)),
            ],
            ports.source,
        )
    if supply is not None:
        yield (
            "supply",
            [("recommended", f"{supply.volts:g} V, {supply.amps:g} A by {supply.connector}")],
            supply.source,
        )
    yield "power", _power(chosen), chosen.power.source
    for meter in chosen.meters:
        yield f"meter: {meter.chip}", [("read by", meter.kind), ("covers", meter.covers)], meter.source
    if thermal is not None:
        critical = f"{thermal.critical_c:g} C" if thermal.critical_c else "not known"
        yield (
            "heat",
            [
                ("throttles", f"from {thermal.throttle_c:g} C"),
                ("switches off", critical),
                (
                    "warms up",
                    f"{thermal.resistance_c_per_w:g} C per watt, 63 % in {thermal.time_constant_s:g} s",
                ),
            ],
            thermal.source,
        )


def _power(chosen: Board) -> list[tuple[str, str]]:
    table = chosen.power
    supply = f"{table.supply_w:g} W" if table.supply_w else "not known"
    return [
        ("idle", power_text(table.idle_w)),
        ("a busy core", f"{power_text(table.core_load_w)} more"),
        ("all cores", power_text(_all_cores_w(chosen)) if chosen.cores else "-"),
        ("supply gives", supply),
        ("may be off by", f"{table.error_share:.0%} (one sigma)"),
    ]


def _pairs(pairs: list[tuple[str, str]]) -> Iterator[str]:
    for name, text in pairs:
        yield from _wrapped(f"{name:14}", text)


def _wrapped(name: str, text: str) -> Iterator[str]:
    first = f"  {name} "
    yield from textwrap.wrap(
        printable(text),
        width=_WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


# --- detect --------------------------------------------------------------------------------------------------


def _detection_json(found: Detection, machine: Machine) -> dict[str, Any]:
    said = {
        "arch": machine.arch,
        "model": machine.model,
        "compatible": list(machine.compatible),
        "cores": machine.cores,
        "cpu_features": None if machine.cpu_features is None else sorted(machine.cpu_features),
        "ram_mb": machine.ram_mb,
        "max_mhz": machine.max_mhz,
    }
    return {
        "board": found.board.name,
        "title": found.board.title,
        "by": found.by,
        "matched": found.matched,
        "others": list(found.others),
        "ram_variant_mb": found.ram_variant_mb,
        "differences": list(found.differences),
        "machine": {name: value for name, value in said.items() if value is not None},
    }


def _told(found: Detection, machine: Machine) -> Iterator[str]:
    from edgeslm.schema.board import WATCHED_FEATURES  # noqa: PLC0415

    yield f"{found.board.name}: {found.board.title}"
    yield from _pairs(
        [
            ("known by", _BY[found.by]),
            ("model", machine.model or "none: this machine has no device tree"),
            ("matched", found.matched or "nothing"),
        ]
    )
    if found.others:
        yield from _pairs([("also fitting", ", ".join(found.others))])
    counted = "not known" if machine.ram_mb is None else f"{machine.ram_mb:,} MB"
    variant = f" of the {found.ram_variant_mb / 1024:g} GB variant" if found.ram_variant_mb else ""
    features = machine.cpu_features
    shown = "not known" if features is None else ", ".join(sorted(features & WATCHED_FEATURES)) or "none"
    yield from _pairs(
        [
            ("cores", str(machine.cores or "not known")),
            ("features", shown),
            ("memory", f"{counted}{variant}"),
        ]
    )
    for difference in found.differences:
        yield from _pairs([("differs", difference)])
    if not found.differences and found.by != "architecture":
        yield from _pairs([("differs", "in nothing that was looked at")])
    if found.by == "architecture":
        yield from _pairs(
            [("to do", "its own board file makes estimates better: see docs/boards.md, A board of your own")]
        )
