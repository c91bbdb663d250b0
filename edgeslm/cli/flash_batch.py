"""``edgeslm flash batch|labels``: many cards, each with a name and a claim of its own, and labels for the boards."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeslm.cli.flash_claims import BatchClaims, FileClaims, FleetClaims, claims_in
from edgeslm.cli.flash_common import (
    StationLines,
    confirm_by_name,
    confirm_option,
    image_argument,
    max_size_option,
    need_flash_extra,
    try_option,
)
from edgeslm.cli.fleet_common import PARTLY, fleet_options, open_fleet, passphrase_option
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors
from edgeslm.cli.times import duration
from edgeslm.errors import BatchError, UsageError
from edgeslm.files import replace_file

if TYPE_CHECKING:
    from edgeslm.flash.disks.batch import BatchState
    from edgeslm.flash.disks.labels import Paper
    from edgeslm.flash.disks.stations import MadeImage, Manner, Told
    from edgeslm.flash.prepare import PreparedImage

_FILE = click.Path(path_type=Path, dir_okay=False)
paper_option = click.option(
    "--paper",
    type=click.Choice(["a4", "letter"]),
    default="a4",
    show_default=True,
    help="Paper of the labels.",
)
note_option = click.option("--note", help="A line more on each label; default is the board.")


@click.command()
@image_argument
@click.option("--names", help="Names of the devices, such as porch-1..porch-20,hall.")
@click.option(
    "--reader",
    "readers",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Reader into which cards are put, such as /dev/sdb; repeat it for several at once.",
)
@click.option(
    "--claims",
    "claims_dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Directory of claims that were made elsewhere; else the fleet of this machine makes them.",
)
@click.option(
    "--expires",
    "life",
    type=duration,
    default="30d",
    show_default=True,
    help="How long boards may take to join.",
)
@click.option("--replace", "replaces", is_flag=True, help="The devices are there already, and get new keys.")
@click.option("--state", "state_file", type=_FILE, help="How far it is; default is IMAGE.batch.json.")
@click.option(
    "--resume", is_flag=True, help="Go on with the batch of that state; also with cards that failed."
)
@click.option("--labels", "labels_file", type=_FILE, help="Page of labels; default is IMAGE.labels.html.")
@paper_option
@note_option
@click.option(
    "--tries",
    type=click.IntRange(1, 20),
    default=3,
    show_default=True,
    help="Cards that are tried for a name.",
)
@click.option(
    "--patience", type=duration, default="10min", show_default=True, help="How long a card is awaited."
)
@click.option("--reuse", is_flag=True, help="Also take cards that hold an image of this kind already.")
@click.option("--no-eject", is_flag=True, help="Leave cards ready for use in this machine.")
@max_size_option
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where the images are made; default is beside the state.",
)
@try_option
@fleet_options
@passphrase_option
@confirm_option
@click.option("--dry-run", is_flag=True, help="Show the plan, and do nothing.")
@json_option
@reporting_errors
def batch(
    image: Path,
    names: str | None,
    readers: tuple[Path, ...],
    claims_dir: Path | None,
    life: timedelta,
    replaces: bool,
    state_file: Path | None,
    resume: bool,
    labels_file: Path | None,
    paper: Paper,
    note: str | None,
    tries: int,
    patience: timedelta,
    reuse: bool,
    no_eject: bool,
    max_bytes: int,
    work_dir: Path | None,
    trying: bool,
    fleet_dir: Path | None,
    fleet_name: str | None,
    passphrase_file: Path | None,
    confirmed: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write many cards of IMAGE, which `flash prepare --for-many` made: each with its own name and claim.

    Put a card into a reader when its name is shown, and take it out when it is done. Ctrl-C stops; --resume goes on.
    Needs the right to write to the disks (sudo).
    """
    need_flash_extra()
    from edgeslm.flash.disks.stations import Manner  # noqa: PLC0415
    from edgeslm.flash.prepare import read_record  # noqa: PLC0415

    record = read_record(image)
    state_path = state_file or image.with_name(f"{image.name}.batch.json")
    page = LabelPage(
        labels_file or image.with_name(f"{image.name}.labels.html"), paper, note or str(record.board)
    )
    claims: BatchClaims
    if claims_dir is not None:
        claims = FileClaims(claims_in(claims_dir))
        names = names or ",".join(sorted(claims.names))
    else:
        claims = FleetClaims(open_fleet(fleet_dir, fleet_name, passphrase_file), life=life, replaces=replaces)
    run = _Run(image, record, claims, _readers(readers, trying=trying), max_bytes, trying, work_dir)
    state = run.state(state_path, names, resume=resume)
    waiting = [card for card in state.cards if card.standing != "done"]
    plan = [
        f"image    {image}: board {record.board}, profile {record.profile}",
        f"fleet    {claims.fleet}",
        f"cards    {len(waiting)} of {len(state.cards)}: {_some([card.name for card in waiting])}",
        f"readers  {', '.join(run.readers)}: whatever cards are put in are written",
        f"state    {state_path}",
        f"labels   {page.path}",
    ]
    word = " ".join(Path(reader).name for reader in run.readers)
    if confirm_by_name(plan, word, confirmed=confirmed, dry_run=dry_run):
        manner = Manner(tries=tries, patience_s=patience.total_seconds(), eject=not no_eject, reuse=reuse)
        state = run.perform(state_path, state, manner, page, resume=resume)
    done = [card.name for card in state.cards if card.standing == "done"]
    if as_json:
        print_json(
            {
                "state": str(state_path),
                "labels": str(page.path) if done else None,
                "done": len(done),
                **state.model_dump(mode="json", exclude_none=True, exclude={"v", "fingerprint"}),
            }
        )
    elif not dry_run:
        click.echo(f"{len(done)} of {len(state.cards)} cards are done")
        if done:
            click.echo(f"print their labels: {printable(str(page.path))}")
        if len(done) < len(state.cards):
            click.echo("go on with: the same command and --resume", err=True)
    if not dry_run and len(done) < len(state.cards):
        sys.exit(PARTLY if done else 1)


@click.command()
@click.argument("state_file", metavar="STATE", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--out", type=_FILE, help="Page to print, HTML; default shows the labels here.")
@click.option("--name", "only", multiple=True, help="Only the label of this device; can be repeated.")
@paper_option
@click.option("--note", help="A line more on each label.")
@json_option
@reporting_errors
def labels(
    state_file: Path, out: Path | None, only: tuple[str, ...], paper: Paper, note: str | None, as_json: bool
) -> None:
    """Make the labels of a batch anew, of the cards that are done.

    The code on a label holds names alone, and no secret.
    """
    need_flash_extra()
    from edgeslm.flash.disks.batch import load_state  # noqa: PLC0415
    from edgeslm.flash.disks.labels import label_text  # noqa: PLC0415

    state = load_state(state_file)
    made = labels_of(state, note or "")
    if unknown := sorted(set(only) - {label.device for label in made}):
        raise UsageError(f"no card of '{unknown[0]}' is done in {state_file}")
    made = [label for label in made if not only or label.device in only]
    if not made:
        raise BatchError(f"no card is done in {state_file}", path=str(state_file))
    if out is not None:
        LabelPage(out, paper, note or "").write(state, only)
    if as_json:
        print_json(
            [{"device": one.device, "fleet": one.fleet, "claim": one.claim, "link": one.link} for one in made]
        )
    elif out is None:
        for label in made:
            click.echo(label_text(label))
    else:
        click.echo(f"{printable(str(out))}: {len(made)} labels; print it at its true size (100 %)")


@dataclass(frozen=True)
class LabelPage:
    """The page of labels of a batch.

    Attributes:
        note: a line more on each.
    """

    path: Path
    paper: Paper
    note: str

    def write(self, state: BatchState, only: Sequence[str] = ()) -> None:
        """Let it hold the labels of all cards that are done.

        Raises:
            BatchError: it cannot be written.
        """
        from edgeslm.flash.disks.labels import Sheet, label_page  # noqa: PLC0415

        made = [label for label in labels_of(state, self.note) if not only or label.device in only]
        try:
            replace_file(self.path, label_page(made, Sheet(self.paper)).encode())
        except OSError as error:
            raise BatchError(
                f"cannot write {self.path}: {error.strerror or error}", path=str(self.path)
            ) from error


def labels_of(state: BatchState, note: str) -> list[Any]:
    """Labels of the cards that are done, in the order of the batch."""
    from edgeslm.flash.disks.labels import Label  # noqa: PLC0415

    return [
        Label(card.name, state.fleet, card.claim, note) for card in state.cards if card.standing == "done"
    ]


@dataclass(frozen=True)
class _Run:
    """A batch at work.

    Attributes:
        readers: their paths.
    """

    image: Path
    record: PreparedImage
    claims: BatchClaims
    readers: tuple[str, ...]
    max_bytes: int
    trying: bool
    work_dir: Path | None

    def state(self, path: Path, names: str | None, *, resume: bool) -> BatchState:
        """How far it is, nothing written yet.

        Raises:
            BatchError: there is one already, or none to go on with, or that is another one's.
            UsageError: the names are none.
        """
        from edgeslm.flash.disks.batch import expand_names, load_batch, plan_batch  # noqa: PLC0415

        if resume:
            return load_batch(path, fleet=self.claims.fleet, fingerprint=self.fingerprint).state
        if names is None:
            raise UsageError("which devices?", hint="Such as --names porch-1..porch-20,hall; or --resume")
        return plan_batch(
            path,
            fleet=self.claims.fleet,
            image=self.image,
            fingerprint=self.fingerprint,
            names=expand_names(names),
        )

    @property
    def fingerprint(self) -> str:
        from edgeslm.flash.disks.source import open_raw  # noqa: PLC0415

        with open_raw(self.image) as raw:
            raw.check_table()
            return raw.fingerprint

    def perform(
        self, path: Path, state: BatchState, manner: Manner, page: LabelPage, *, resume: bool
    ) -> BatchState:
        """Write cards until all are done or given up, and return how far that is.

        Raises:
            EdgeslmError: claims, state or labels cannot be kept.
        """
        from edgeslm.flash.disks.batch import Batch  # noqa: PLC0415
        from edgeslm.flash.disks.readers import Reader  # noqa: PLC0415
        from edgeslm.flash.disks.selection import Need  # noqa: PLC0415
        from edgeslm.flash.disks.stations import Station, run_stations  # noqa: PLC0415
        from edgeslm.flash.disks.workshop import workshop, workshop_path  # noqa: PLC0415

        waiting = [card for card in state.cards if card.standing != "done"]
        earlier = [card.claim for card in waiting if card.claim is not None] if resume else []
        work = Batch(path, state)
        lines, stop = StationLines(), threading.Event()

        def tell(told: Told) -> None:
            if told.event == "done":
                page.write(work.state)
            lines.tell(told)

        with workshop(workshop_path(path, self.work_dir)) as place:
            stations = [
                Station(
                    work,
                    Reader(reader, Need(None, self.max_bytes, loops=self.trying)),
                    make=partial(self._made, place),
                    list_devices=self._lister(),
                    manner=manner,
                    tell=tell,
                    progress=lines.progress,
                    stop=stop,
                )
                for reader in self.readers
            ]
            self.claims.begin([card.name for card in waiting], earlier)
            try:
                work.keep()
                run_stations(stations, stop)
            except KeyboardInterrupt:
                click.echo("stopped: cards that are in readers are not done", err=True)
            finally:
                lines.end()
                self.claims.end([card.name for card in work.state.cards if card.standing == "done"])
        return work.state

    @contextmanager
    def _made(self, place: Path, name: str, check: Callable[[], None]) -> Iterator[MadeImage]:
        """The image for one device; it holds a secret, and is gone when its card is written."""
        from edgeslm.flash.disks.source import open_raw  # noqa: PLC0415
        from edgeslm.flash.disks.stations import MadeImage  # noqa: PLC0415
        from edgeslm.flash.disks.workshop import workshop  # noqa: PLC0415
        from edgeslm.flash.prepare import PersonalRequest, personalise  # noqa: PLC0415

        claim = self.claims.claim(name)
        with workshop(place / name) as directory:
            path = directory / self.image.name
            personalise(self.image, path, PersonalRequest(claim), stage=lambda _what, _done, _total: check())
            with open_raw(path) as raw:
                raw.check_table()
                yield MadeImage(raw, claim.claim)

    def _lister(self) -> Callable[[], Sequence[Any]]:
        from edgeslm.flash.disks.card import file_device  # noqa: PLC0415
        from edgeslm.flash.disks.lsblk import list_devices  # noqa: PLC0415

        if not self.trying:
            return list_devices
        return lambda: [
            *list_devices(),
            *(file_device(Path(reader)) for reader in self.readers if Path(reader).is_file()),
        ]


def _readers(paths: tuple[Path, ...], *, trying: bool) -> tuple[str, ...]:
    """The readers, each once; an empty one has a name in /dev as well."""
    found = tuple(dict.fromkeys(str(path.resolve()) for path in paths))
    for path in found:
        if not trying and not Path(path).is_block_device():
            raise UsageError(f"{path} is no reader", hint="See which there are: edgeslm flash disks --all")
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
