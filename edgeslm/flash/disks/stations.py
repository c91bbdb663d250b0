"""One reader of a batch: the image for the next name is made, a card is awaited, written, read back, and so on.

What always holds: a name is done only when its card was read back. A card that fails is tried with another one, a few
times; an image that cannot be made is given up at once, for another card does not help. The work ends when every name
is done or given up, when no card comes for too long, or when it is told to stop.

Left to others: claims and images (whoever brings `make`), and what a person is shown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from edgeslm.errors import DiskError, EdgeslmError
from edgeslm.flash.disks.batch import Batch
from edgeslm.flash.disks.card import List, begins_as, held, write_card
from edgeslm.flash.disks.lsblk import BlockDevice
from edgeslm.flash.disks.progress import Progress
from edgeslm.flash.disks.readers import Reader
from edgeslm.flash.disks.source import RawImage

POLL_S = 1.0

Event = Literal["making", "waiting", "refused", "found", "done", "again", "failed", "idle"]


@dataclass(frozen=True)
class MadeImage:
    """The image of one device.

    Attributes:
        claim: name of its claim.
    """

    image: RawImage
    claim: str


Make = Callable[[str, Callable[[], None]], AbstractContextManager[MadeImage]]
"""Makes the image of the device that is named, for as long as the block lasts. It calls the function that it is given
now and then; what that raises ends the work."""


@dataclass(frozen=True)
class Told:
    """Something happened at a reader.

    Attributes:
        name: the device that it is about, or ``None``.
        text: why, where there is a why.
    """

    reader: str
    event: Event
    name: str | None = None
    text: str = ""


@dataclass(frozen=True)
class Manner:
    """How cards are written.

    Attributes:
        tries: cards for one name, before it is given up.
        patience_s: how long a card is awaited.
        eject: let a card go by software when it is done.
        reuse: take cards that begin as the image does. They are likely to be cards of this batch: some readers show a
            card again that was let go and not taken out.
    """

    tries: int = 3
    patience_s: float = 600.0
    eject: bool = True
    reuse: bool = False


class Station:
    """A reader with its work; one thread for each."""

    def __init__(
        self,
        batch: Batch,
        reader: Reader,
        *,
        make: Make,
        list_devices: List,
        manner: Manner,
        tell: Callable[[Told], None],
        progress: Callable[[str, str, Progress], None],
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Stand ready.

        Args:
            tell: hears what happens.
            progress: hears reader, name and how far the card is.
            stop: set to end the work; a card that is being written is left undone.
            clock: monotonic seconds.
        """
        self._batch = batch
        self._reader = reader
        self._make = make
        self._list_devices = list_devices
        self._manner = manner
        self._tell = tell
        self._progress = progress
        self._stop = stop
        self._clock = clock

    def run(self) -> None:
        """Write cards until there is nothing left to do here.

        Raises:
            EdgeslmError: the state cannot be kept, or the disks of this machine cannot be told.
        """
        while not self._stop.is_set():
            name = self._batch.take(self._reader.path)
            if name is None:
                self._say("idle")
                return
            if not self._serve(name):
                return

    # --- pieces -------------------------------------------------------------------------------------------------

    def _serve(self, name: str) -> bool:
        """Get a card for `name`; ``False`` ends the work at this reader."""
        self._say("making", name)
        try:
            with self._make(name, self._check) as made:
                self._batch.claimed(name, made.claim)
                return self._cards(name, made.image)
        except _StoppedError as stopped:
            self._batch.released(name)
            self._say("idle", name, str(stopped))
            return False
        except EdgeslmError as error:
            self._batch.failed(name, error.message, again=False)
            self._say("failed", name, str(error))
            return True

    def _cards(self, name: str, image: RawImage) -> bool:
        for left in reversed(range(self._manner.tries)):
            self._say("waiting", name)
            device = self._await_card(name, image)
            try:
                self._write(name, image, device)
            except DiskError as error:
                self._say("again" if left else "failed", name, str(error))
                if not left:
                    self._batch.failed(name, error.message, again=False)
            else:
                self._batch.done(name)
                self._say("done", name)
                return True
        return True

    def _await_card(self, name: str, image: RawImage) -> BlockDevice:
        until_s = self._clock() + self._manner.patience_s
        self._reader.wants(image.layout.image_bytes)
        while self._clock() < until_s:
            judged = self._reader.offer(self._list_devices())
            if judged is not None:
                why = "; ".join(one.text for one in judged.refusals) or self._used(judged.device, image)
                if not why:
                    return judged.device
                self._say("refused", name, why)
                until_s = self._clock() + self._manner.patience_s
            if self._stop.wait(POLL_S):
                raise _StoppedError("stopped")
        raise _StoppedError("no card came")

    def _used(self, device: BlockDevice, image: RawImage) -> str:
        """Why a card is not taken though nothing speaks against its disk; empty for no reason."""
        if self._manner.reuse:
            return ""
        try:
            with held(device, writing=False) as card:
                begins = begins_as(image, card)
        except DiskError as error:
            return error.message
        return "it holds an image of this kind already; --reuse takes such cards" if begins else ""

    def _write(self, name: str, image: RawImage, device: BlockDevice) -> None:
        def tell(progress: Progress) -> None:
            self._check()
            self._progress(self._reader.path, name, progress)

        self._say("found", name)
        with held(device) as card:
            write_card(image, card, tell=tell, keep_journal=False)
            if self._manner.eject:
                card.target.eject()

    def _check(self) -> None:
        if self._stop.is_set():
            raise _StoppedError("stopped: a card that is in this reader is not done")

    def _say(self, event: Event, name: str | None = None, text: str = "") -> None:
        self._tell(Told(self._reader.path, event, name, text))


class _StoppedError(Exception):
    """The work at this reader ends."""


def run_stations(stations: list[Station], stop: threading.Event) -> None:
    """Let all work at once, until the last one ends.

    Raises:
        EdgeslmError: the first that ended one of them; the others were told to stop.
    """
    failed: list[BaseException] = []

    def work(station: Station) -> None:
        try:
            station.run()
        except BaseException as error:
            failed.append(error)
            stop.set()

    threads = [
        threading.Thread(target=work, args=(station,), name=f"card-{number}")
        for number, station in enumerate(stations)
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # a signal is heard in between
    except BaseException:
        stop.set()
        raise
    finally:
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]
