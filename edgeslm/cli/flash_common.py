"""What the commands that write cards share: their options, asking for a name, showing how far it is."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeslm.cli.output import printable
from edgeslm.cli.profile import card_size
from edgeslm.errors import UsageError

if TYPE_CHECKING:
    from edgeslm.flash.disks.progress import Progress
    from edgeslm.flash.disks.stations import Told

_REDRAW_S = 0.2
_EXTRA_MODULES = ("zstandard", "qrcode")
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


image_argument = click.argument("image", type=_FILE)
sha256_option = click.option(
    "--sha256", help="SHA-256 that the image must have; default is what a .sha256 file beside it says."
)
no_bmap_option = click.option(
    "--no-bmap", is_flag=True, help="Leave the image's block map aside, and write every block."
)
max_size_option = click.option(
    "--max-size",
    "max_bytes",
    callback=card_size,
    default="512G",
    show_default=True,
    help="Larger disks are refused.",
)
try_option = click.option(
    "--try", "trying", is_flag=True, help="Take a plain file or a loop device for a card, to try things out."
)
work_dir_option = click.option(
    "--work-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where images are unpacked; default is where temporary files go.",
)
confirm_option = click.option(
    "--confirm", "confirmed", metavar="NAME", help="Do not ask: the name that would have been typed."
)


def need_flash_extra() -> None:
    """Make sure that the libraries for this are here, before anything is begun.

    Raises:
        UsageError: one is missing.
    """
    for name in _EXTRA_MODULES:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"{name} is not installed", hint="Writing cards needs: pip install 'edgeslm[flash]'"
            )


def confirm_by_name(plan: Sequence[str], name: str, *, confirmed: str | None, dry_run: bool) -> bool:
    """Show `plan` on stderr, and let the person type `name`; ``False`` for a dry run.

    Args:
        confirmed: what was typed already, as an option.

    Raises:
        UsageError: nobody can be asked, or something else was typed.
    """
    for line in plan:
        click.echo(printable(line), err=True)
    if dry_run:
        click.echo("dry run: nothing was written", err=True)
        return False
    if confirmed is None:
        if not sys.stdin.isatty():
            raise UsageError("nobody can be asked here", hint=f"Confirm with --confirm {printable(name)}")
        confirmed = click.prompt(
            f"All of this is lost. Type {printable(name)} to write", default="", show_default=False, err=True
        )
    if str(confirmed).strip() != name:
        raise UsageError(
            f"'{printable(str(confirmed)[:40])}' is not '{printable(name)}': nothing was written"
        )
    return True


class ProgressLine:
    """How far one card is, on stderr: a line that changes on a terminal, one for each phase elsewhere."""

    def __init__(self) -> None:
        self._phase = ""
        self._shown_s = 0.0
        self._terminal = sys.stderr.isatty()

    def __call__(self, progress: Progress) -> None:
        """Show it, if it is time to."""
        changed = progress.phase != self._phase
        if not self._terminal:
            if changed:
                click.echo(f"{progress.phase} ...", err=True)
            self._phase = progress.phase
            return
        now_s = time.monotonic()
        whole = progress.done_bytes >= progress.total_bytes
        if not (changed or whole or now_s - self._shown_s >= _REDRAW_S):
            return
        if changed and self._phase:
            click.echo(err=True)
        self._phase, self._shown_s = progress.phase, now_s
        click.echo(f"\r\x1b[K{progress_text(progress)}", nl=False, err=True)

    def end(self) -> None:
        """Begin a new line."""
        if self._terminal and self._phase:
            click.echo(err=True)
        self._phase = ""


class StationLines:
    """What happens at several readers, on stderr: a line for each event, on a terminal one below for how far all are.

    Used by a thread for each reader.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._lock = threading.Lock()
        self._now: dict[str, str] = {}
        self._phases: dict[str, str] = {}
        self._shown_s = 0.0

    def tell(self, told: Told) -> None:
        """Show an event."""
        words = {
            "making": "making the image of {}",
            "waiting": "put in the card for {}",
            "refused": "this card is not taken for {}",
            "found": "writing {}; leave the card in",
            "done": "{} is done: take the card out",
            "again": "this card is no good for {}; take another",
            "failed": "{} is given up",
            "idle": "ends",
        }
        text = f"{Path(told.reader).name}: {words[told.event].format(told.name)}"
        with self._lock:
            self._now.pop(told.reader, None)
            self._clear()
            click.echo(printable(text + (f": {told.text}" if told.text else "")), err=True)
            self._draw()

    def progress(self, reader: str, name: str, progress: Progress) -> None:
        """Show how far a card is."""
        with self._lock:
            if not self._terminal:
                if self._phases.get(reader) != progress.phase:
                    self._phases[reader] = progress.phase
                    click.echo(printable(f"{Path(reader).name}: {progress.phase} {name} ..."), err=True)
                return
            left = "" if progress.left_s is None else f", {span_text(progress.left_s)} left"
            share = f" {progress.done_bytes / progress.total_bytes:.0%}" if progress.total_bytes else ""
            self._now[reader] = f"{Path(reader).name} {name} {progress.phase}{share}{left}"
            if time.monotonic() - self._shown_s >= _REDRAW_S:
                self._clear()
                self._draw()

    def end(self) -> None:
        """Leave nothing half drawn."""
        with self._lock:
            self._now.clear()
            self._clear()

    def _clear(self) -> None:
        if self._terminal:
            click.echo("\r\x1b[K", nl=False, err=True)

    def _draw(self) -> None:
        if self._terminal and self._now:
            self._shown_s = time.monotonic()
            columns = shutil.get_terminal_size().columns - 1
            click.echo(printable(" | ".join(self._now.values()))[:columns], nl=False, err=True)


def progress_text(progress: Progress) -> str:
    """As ``writing  43 %  1.2 of 2.9 GB  21.4 MB/s  1 min 20 s left``."""
    words = [f"{progress.phase:<10}"]
    if progress.total_bytes:
        share = min(1.0, progress.done_bytes / progress.total_bytes)
        words.append(f"{share:4.0%}")
        words.append(f"{progress.done_bytes / 1e9:.2f} of {progress.total_bytes / 1e9:.2f} GB")
    if progress.rate_bytes_s is not None:
        words.append(f"{progress.rate_bytes_s / 1e6:.1f} MB/s")
    if progress.left_s is not None and progress.done_bytes < progress.total_bytes:
        words.append(f"{span_text(progress.left_s)} left")
    return "  ".join(words)


def span_text(span_s: float) -> str:
    """As ``1 min 20 s``."""
    minutes, seconds = divmod(round(span_s), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
