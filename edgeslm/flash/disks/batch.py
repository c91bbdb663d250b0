"""Many cards, one after the other in each reader: which are done, and going on where it stopped.

What always holds: the state is on the disk before anybody is told; a name is given to one card at a time, and counts as
done only when its card was read back. No secret is in it: a card that was cut off is made anew, with a new claim.

Left to others: writing (:mod:`edgeslm.flash.disks.writer`), claims, and what makes one card differ from the next.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from edgeslm.errors import BatchError, UsageError
from edgeslm.files import read_bounded, replace_file
from edgeslm.schema.base import FileModel, Identifier, Sha256, is_identifier
from edgeslm.schema.enrol import ClaimId

MAX_CARDS = 1_000
_MAX_STATE_BYTES = 2**20
_RANGE = re.compile(r"^(?P<stem>[a-z0-9-]*?)(?P<first>\d{1,6})\.\.(?P<again>[a-z0-9-]*?)(?P<last>\d{1,6})$")

Standing = Literal["waiting", "writing", "done", "failed"]


class BatchCard(FileModel):
    """One card.

    Attributes:
        name: the device that it is for.
        claim: name of its claim, which is no secret; of the latest where there were several.
        reader: where it was written.
        error: why it failed.
    """

    name: Identifier
    standing: Standing = "waiting"
    claim: ClaimId | None = None
    reader: Annotated[str, Field(max_length=200)] | None = None
    finished_at: AwareDatetime | None = None
    error: Annotated[str, Field(max_length=500)] | None = None


class BatchState(FileModel):
    """The file of a batch.

    Attributes:
        image: what is on the cards, by the path it was named by.
        fingerprint: of that image.
    """

    v: Literal[1] = 1
    fleet: Identifier
    image: Annotated[str, Field(max_length=4_096)]
    fingerprint: Sha256
    cards: Annotated[tuple[BatchCard, ...], Field(min_length=1, max_length=MAX_CARDS)]

    @model_validator(mode="after")
    def _names_differ(self) -> BatchState:
        if len({card.name for card in self.cards}) < len(self.cards):
            raise ValueError("a name is there twice")
        return self


def expand_names(text: str) -> tuple[str, ...]:
    """The names that ``porch-1..porch-20,hall`` means: single ones, and ranges of numbers.

    A number that begins with 0 keeps its width, as in ``room-01..room-12``.

    Raises:
        UsageError: it means none, or too many, or one twice.
    """
    names: list[str] = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        names.extend(_expand(word) if ".." in word else [word])
        if len(names) > MAX_CARDS:
            raise UsageError(f"'{text[:80]}' means more than {MAX_CARDS} cards", hint="Make several batches")
    if not names:
        raise UsageError("no names", hint="Such as --names porch-1..porch-20,hall")
    for name in names:
        if not is_identifier(name):
            raise UsageError(
                f"'{name[:80]}' is no name of a device: small letters, digits and dashes, 64 at most"
            )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"'{twice[0]}' is named twice")
    return tuple(names)


def _expand(word: str) -> list[str]:
    found = _RANGE.match(word)
    if found is None or found["again"] not in {"", found["stem"]}:
        raise UsageError(
            f"'{word[:80]}' is no range of names", hint="Such as porch-1..porch-20, or porch-1..20"
        )
    first, last = int(found["first"]), int(found["last"])
    if last < first:
        raise UsageError(f"'{word[:80]}' ends before it begins")
    if last - first >= MAX_CARDS:
        raise UsageError(f"'{word[:80]}' means more than {MAX_CARDS} cards", hint="Make several batches")
    width = len(found["first"]) if found["first"].startswith("0") else 0
    return [f"{found['stem']}{number:0{width}d}" for number in range(first, last + 1)]


class Batch:
    """The cards of one batch; used by a thread for each reader.

    Attributes:
        path: the file of its state.
    """

    def __init__(self, path: Path, state: BatchState, *, clock: Callable[[], datetime] | None = None) -> None:
        """Take up `state`; see :func:`plan_batch` and :func:`load_batch`."""
        self.path = path
        self._state = state
        self._clock = clock or (lambda: datetime.now(UTC))
        self._lock = threading.Lock()

    @property
    def state(self) -> BatchState:
        """How far it is."""
        with self._lock:
            return self._state

    def keep(self) -> None:
        """Write the state as it is.

        Raises:
            BatchError: that cannot be done.
        """
        with self._lock:
            _save(self.path, self._state)

    def take(self, reader: str) -> str | None:
        """The next name that has no card, for the card in `reader`; ``None`` where all have one or are being written.

        Raises:
            BatchError: the state cannot be kept.
        """
        with self._lock:
            card = next((card for card in self._state.cards if card.standing == "waiting"), None)
            if card is None:
                return None
            self._put(card, standing="writing", reader=reader, error=None)
            return card.name

    def claimed(self, name: str, claim: str) -> None:
        """The card of `name` gets that claim.

        Raises:
            BatchError: the state cannot be kept.
        """
        with self._lock:
            self._put(self._card(name), claim=claim)

    def done(self, name: str) -> None:
        """The card of `name` was written and read back.

        Raises:
            BatchError: the state cannot be kept.
        """
        with self._lock:
            self._put(self._card(name), standing="done", finished_at=self._clock(), error=None)

    def failed(self, name: str, error: str, *, again: bool) -> None:
        """The card of `name` is no good.

        Args:
            again: another card is tried for it in this run.

        Raises:
            BatchError: the state cannot be kept.
        """
        with self._lock:
            self._put(self._card(name), standing="waiting" if again else "failed", error=error[:500])

    def released(self, name: str) -> None:
        """No card came for `name`: it waits again.

        Raises:
            BatchError: the state cannot be kept.
        """
        with self._lock:
            self._put(self._card(name), standing="waiting", reader=None)

    def _card(self, name: str) -> BatchCard:
        return next(card for card in self._state.cards if card.name == name)

    def _put(self, card: BatchCard, **changes: object) -> None:
        changed = BatchCard.model_validate({**card.model_dump(), **changes})
        cards = tuple(changed if one.name == card.name else one for one in self._state.cards)
        state = self._state.model_copy(update={"cards": cards})
        _save(self.path, state)
        self._state = state


def plan_batch(path: Path, *, fleet: str, image: Path, fingerprint: str, names: Sequence[str]) -> BatchState:
    """A batch in which nothing is done yet; nothing is written, see :meth:`Batch.keep`.

    Raises:
        BatchError: there is one at `path`.
    """
    if path.exists():
        raise BatchError(
            f"{path} is there already",
            path=str(path),
            hint="Go on with that batch (--resume), or name another --state",
        )
    cards = tuple(BatchCard(name=name) for name in names)
    return BatchState(fleet=fleet, image=str(image), fingerprint=fingerprint, cards=cards)


def load_state(path: Path) -> BatchState:
    """What the file of a batch says.

    Raises:
        BatchError: there is none, or it is damaged.
    """
    try:
        data = read_bounded(path, _MAX_STATE_BYTES)
    except OSError as error:
        raise BatchError(f"cannot read {path}: {error.strerror or error}", path=str(path)) from error
    if len(data) > _MAX_STATE_BYTES:
        raise BatchError(f"{path} is too large for the state of a batch", path=str(path))
    try:
        return BatchState.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BatchError(
            f"{path} is no state of a batch: {where[:100]}: {first['msg'][:200]}", path=str(path)
        ) from error


def load_batch(path: Path, *, fleet: str, fingerprint: str) -> Batch:
    """Go on with a batch: cards that were being written are made anew, as are those that failed.

    Raises:
        BatchError: there is none, or it is damaged, of another fleet, or of another image.
    """
    state = load_state(path)
    if state.fleet != fleet:
        raise BatchError(f"{path} is of the fleet '{state.fleet}', not '{fleet}'", path=str(path))
    if state.fingerprint != fingerprint:
        raise BatchError(
            f"{state.image} is not what it was when this batch began",
            path=str(path),
            hint="Cards of one batch are alike: begin another one, with another --state, for the names that are left",
        )
    cards = tuple(
        card if card.standing == "done" else card.model_copy(update={"standing": "waiting"})
        for card in state.cards
    )
    return Batch(path, state.model_copy(update={"cards": cards}))


def _save(path: Path, state: BatchState) -> None:
    try:
        replace_file(path, state.model_dump_json(indent=2, exclude_none=True).encode() + b"\n", mode=0o600)
    except OSError as error:
        raise BatchError(
            f"cannot keep the state in {path}: {error.strerror or error}", path=str(path)
        ) from error
