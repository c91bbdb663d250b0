"""``edgeslm sim boot``: an image in QEMU, in the place of a board."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import click

from edgeslm.cli.output import reporting_errors, stopped_by_signals
from edgeslm.errors import EmulationError

if TYPE_CHECKING:
    from edgeslm.cli.output import StopEvent
    from edgeslm.sim.qemu import EmulatedBoard

_WATCH_S = 0.2


@click.command("boot")
@click.argument("image", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option(
    "--machine",
    type=click.Choice(["virt", "raspi3b"]),
    default="virt",
    show_default=True,
    help="virt for images of qemu-virt, raspi3b for those of Raspberry Pi.",
)
@click.option(
    "--memory-mb", type=click.IntRange(256, 65_536), default=1024, show_default=True, help="Of virt."
)
@click.option("--cores", type=click.IntRange(1, 8), default=2, show_default=True, help="Of virt.")
@click.option("--cpu", default="cortex-a72", show_default=True, help="Of virt, as QEMU calls it.")
@click.option("--clock", help="What the board's clock says at power-on, such as 2020-01-01T00:00:00.")
@click.option("--append", default="", help="Words for the kernel's command line.")
@click.option("--write", "keeps_changes", is_flag=True, help="Let the board write into the image.")
@click.option("--for", "for_s", type=click.FloatRange(1, 1e6), help="Cut the power after so many seconds.")
@reporting_errors
def boot(
    image: Path,
    machine: str,
    memory_mb: int,
    cores: int,
    cpu: str,
    clock: str | None,
    append: str,
    keeps_changes: bool,
    for_s: float | None,
) -> None:
    """Boot IMAGE in QEMU and show what the board says on its serial line, until it goes off or Ctrl-C.

    To try a prepared image without a card and a board. The board reaches this machine as 10.0.2.2. What it writes is
    thrown away at the end, unless --write is given.
    """
    from edgeslm.sim.qemu import HOST, EmulatedBoard, Emulation  # noqa: PLC0415

    emulation = Emulation(
        machine=cast("Literal['virt', 'raspi3b']", machine),
        cpu=cpu,
        cores=cores,
        memory_mib=memory_mb,
        append=append,
        clock=clock,
    )
    with (
        tempfile.TemporaryDirectory(prefix="edgeslm-boot-") as directory,
        stopped_by_signals() as stop,
        EmulatedBoard(image, Path(directory) / "serial.log", emulation, keeps_changes=keeps_changes) as board,
    ):
        click.echo(
            f"{image} boots in QEMU ({machine}); this machine is {HOST}; Ctrl-C cuts the power", err=True
        )
        board.start()
        _show(board, stop, for_s)
        if not board.is_running and not stop.is_set():
            click.echo("the board went off", err=True)


def _show(board: EmulatedBoard, stop: StopEvent, for_s: float | None) -> None:
    """Pass on what the board says until it goes off, is stopped, or time is up."""
    left_s = for_s
    out = sys.stdout.buffer
    try:
        with board.log.open("rb") as stream:
            while True:
                is_running = board.is_running
                if said := stream.read():
                    out.write(said)
                    out.flush()
                if not is_running or (left_s is not None and left_s <= 0):
                    return
                if stop.wait(_WATCH_S):
                    return
                left_s = None if left_s is None else left_s - _WATCH_S
    except OSError as error:
        raise EmulationError(f"what the board says cannot be read: {error.strerror or error}") from error
