"""Batches: names, their state, readers, and cards that are written one after the other."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import BatchError, DiskError, ImageContentError, UsageError
from edgeslm.flash.disks import stations
from edgeslm.flash.disks.batch import Batch, BatchState, expand_names, load_batch, load_state, plan_batch
from edgeslm.flash.disks.card import file_device
from edgeslm.flash.disks.lsblk import BlockDevice
from edgeslm.flash.disks.readers import Reader
from edgeslm.flash.disks.selection import Need
from edgeslm.flash.disks.source import open_raw
from edgeslm.flash.disks.stations import MadeImage, Manner, Station, Told, run_stations
from edgeslm.flash.disks.workshop import workshop, workshop_path

MIB = 2**20
TRYING = Need(loops=True)
PRINT = "a" * 64


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("hall", ["hall"]),
        ("porch-1..porch-3,hall", ["porch-1", "porch-2", "porch-3", "hall"]),
        ("porch-1..3", ["porch-1", "porch-2", "porch-3"]),
        ("room-08..room-11", ["room-08", "room-09", "room-10", "room-11"]),
        (" a , b ,", ["a", "b"]),
        ("9..11", ["9", "10", "11"]),
        ("x5..5", ["x5"]),
    ],
)
def test_names_are_single_ones_and_ranges(text: str, names: list[str]) -> None:
    assert list(expand_names(text)) == names


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "Porch",
        "a b",
        "a..b",
        "a-1..b-3",
        "a3..a1",
        "a1..a9999",
        "a,a",
        "a1..a3,a2",
        "x" * 65,
        "..",
        "a1..",
        "../x",
    ],
)
def test_what_means_no_names_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        expand_names(text)


@given(
    stem=st.from_regex(r"[a-z][a-z-]{0,8}", fullmatch=True),
    first=st.integers(0, 999),
    more=st.integers(0, 50),
)
def test_a_range_means_as_many_names_as_it_counts(stem: str, first: int, more: int) -> None:
    found = expand_names(f"{stem}{first}..{stem}{first + more}")
    assert found == tuple(f"{stem}{n}" for n in range(first, first + more + 1))


def new(path: Path, *names: str) -> Batch:
    state = plan_batch(path, fleet="garden", image=Path("sd.img"), fingerprint=PRINT, names=names)
    batch = Batch(path, state)
    batch.keep()
    return batch


def test_the_state_is_on_the_disk_before_anybody_is_told(tmp_path: Path) -> None:
    path = tmp_path / "batch.json"
    batch = new(path, "a", "b")
    assert batch.take("/dev/sdb") == "a"
    assert load_state(path).cards[0].standing == "writing"
    batch.claimed("a", "k7m2qx")
    batch.done("a")
    assert batch.take("/dev/sdb") == "b"
    batch.failed("b", "worn out", again=False)
    assert batch.take("/dev/sdb") is None
    cards = load_state(path).cards
    assert [(card.standing, card.claim, card.error) for card in cards] == [
        ("done", "k7m2qx", None),
        ("failed", None, "worn out"),
    ]
    assert cards[0].finished_at is not None
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_batch_goes_on_with_all_that_is_not_done(tmp_path: Path) -> None:
    path = tmp_path / "batch.json"
    batch = new(path, "a", "b", "c", "d")
    for name in "abc":
        assert batch.take("r") == name
    batch.done("a")
    batch.failed("b", "worn out", again=False)
    again = load_batch(path, fleet="garden", fingerprint=PRINT)
    assert [again.take("r") for _ in range(4)] == ["b", "c", "d", None]


def test_a_batch_does_not_go_on_with_another_image_or_fleet(tmp_path: Path) -> None:
    path = tmp_path / "batch.json"
    new(path, "a")
    with pytest.raises(BatchError, match="is not what it was"):
        load_batch(path, fleet="garden", fingerprint="b" * 64)
    with pytest.raises(BatchError, match="fleet"):
        load_batch(path, fleet="house", fingerprint=PRINT)
    with pytest.raises(BatchError, match="there already"):
        new(path, "a")


def test_a_state_that_cannot_be_kept_ends_the_batch(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    batch = new(place / "batch.json", "a")
    place.rename(tmp_path / "gone")
    with pytest.raises(BatchError, match="cannot keep the state"):
        batch.take("r")


@pytest.mark.parametrize(
    "change", [{"v": 2}, {"cards": []}, {"fleet": "NO"}, {"cards": [{"name": "a"}] * 2}, {"x": 1}]
)
def test_a_damaged_state_is_an_error(change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "batch.json"
    new(path, "a")
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(BatchError):
        load_state(path)
    with pytest.raises(BatchError):
        load_state(tmp_path / "nothing")


def test_images_are_made_where_nobody_else_looks_and_nothing_is_left(tmp_path: Path) -> None:
    place = workshop_path(tmp_path / "batch.json", None)
    (place / "a").mkdir(parents=True)
    (place / "a" / "sd.img").write_bytes(b"of a batch that was killed")
    with workshop(place) as directory:
        assert not list(directory.iterdir())
        assert directory.stat().st_mode & 0o077 == 0
        (directory / "b").mkdir()
        (directory / "b" / "sd.img").write_bytes(b"secret")
        with pytest.raises(BatchError, match="another edgeslm"), workshop(place):
            pass
        assert (directory / "b" / "sd.img").exists()
    assert not place.exists()
    with pytest.raises(BatchError, match="--work-dir"), workshop(tmp_path / "no" / "place"):
        pass


# --- readers ----------------------------------------------------------------------------------------------------

CARD = BlockDevice(
    name="sdb", kname="sdb", path="/dev/sdb", kind="disk", removable=True, transport="usb",
    size_bytes=32 * 10**9, medium=5, subsystems="block:scsi:usb:pci",
)  # fmt: skip
EMPTY = CARD.model_copy(update={"size_bytes": 0, "medium": 6})


def test_a_card_is_offered_once_until_it_is_taken_out() -> None:
    reader = Reader("/dev/sdb", Need())
    offered = reader.offer([CARD])
    assert offered is not None
    assert offered.writable
    assert reader.offer([CARD]) is None
    assert reader.offer([EMPTY]) is None
    assert reader.offer([CARD]) is not None
    assert reader.offer([]) is None
    assert reader.offer([CARD]) is not None


def test_another_card_between_two_looks_is_another_one() -> None:
    reader = Reader("/dev/sdb", Need())
    assert reader.offer([CARD])
    assert reader.offer([CARD.model_copy(update={"medium": 7})])


def test_a_mounted_card_is_offered_when_it_was_unmounted() -> None:
    reader = Reader("/dev/sdb", Need())
    mounted = CARD.model_copy(update={"many_points": ("/media/me/card",)})
    offered = reader.offer([mounted])
    assert offered is not None
    assert not offered.writable
    assert reader.offer([mounted]) is None
    offered = reader.offer([CARD])
    assert offered is not None
    assert offered.writable


def test_a_card_that_was_written_is_not_offered_again_when_a_desktop_mounts_and_unmounts_it() -> None:
    reader = Reader("/dev/sdb", Need())
    assert reader.offer([CARD])
    assert reader.offer([CARD.model_copy(update={"many_points": ("/media/me/bootfs",)})]) is None
    assert reader.offer([CARD]) is None


# --- writing ----------------------------------------------------------------------------------------------------


class Bench:
    """Readers that are plain files, and a person who puts cards in: each file that appears is a card."""

    def __init__(self, directory: Path, make_image: Callable[..., Path], *readers: str) -> None:
        self.directory = directory
        self.make_image = make_image
        self.readers = [directory / reader for reader in readers]
        self.told: list[Told] = []
        self.stop = threading.Event()
        self.made: list[str] = []
        self.kept: dict[str, bytes] = {}
        self.lock = threading.Lock()

    def list_devices(self) -> list[BlockDevice]:
        return [file_device(reader) for reader in self.readers if reader.exists()]

    @contextmanager
    def make(self, name: str, check: Callable[[], None]) -> Iterator[MadeImage]:
        check()
        self.made.append(name)
        path = self.make_image(f"{name}.img", mib=4, seed=name)
        with open_raw(path) as raw:
            yield MadeImage(raw, "k7m2qx")
        path.unlink()

    def put_in(self, reader: Path, *, mib: int = 8) -> None:
        """Another file each time, so that it is another card."""
        card = self.directory / f"new-{time.monotonic_ns()}"
        with card.open("wb") as stream:
            stream.truncate(mib * MIB)
        card.replace(reader)

    def person(self, told: Told) -> None:
        """Does what is told: puts in a new card, and takes it out."""
        with self.lock:
            self.told.append(told)
            reader = Path(told.reader)
            if told.event == "waiting":
                self.put_in(reader)
            if told.event == "done" and told.name is not None:
                self.kept[told.name] = reader.read_bytes()
                reader.rename(self.directory / f"taken-out-{told.name}")

    def run(self, batch: Batch, manner: Manner, **changes: object) -> None:
        how = {
            "make": self.make, "list_devices": self.list_devices, "manner": manner, "tell": self.person,
            "progress": lambda reader, name, progress: None, "stop": self.stop,
        } | changes  # fmt: skip
        run_stations(
            [Station(batch, Reader(str(reader), TRYING), **how) for reader in self.readers],  # type: ignore[arg-type]
            self.stop,
        )

    def events(self, name: str) -> list[str]:
        return [told.event for told in self.told if told.name == name]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at readers more often than a person could change cards."""
    monkeypatch.setattr(stations, "POLL_S", 0.02)


def standings(state: BatchState) -> dict[str, str]:
    return {card.name: card.standing for card in state.cards}


def test_two_readers_write_all_cards_each_with_its_own_image(
    tmp_path: Path, make_image: Callable[..., Path]
) -> None:
    bench, batch = Bench(tmp_path, make_image, "r1", "r2"), new(tmp_path / "batch.json", *"abcde")
    bench.run(batch, Manner(patience_s=5))
    assert set(standings(load_state(batch.path)).values()) == {"done"}
    assert sorted(bench.made) == list("abcde")
    for name in "abcde":
        assert bench.kept[name][: 4 * MIB] == make_image(f"{name}.again", mib=4, seed=name).read_bytes()


def test_a_card_that_fails_is_tried_with_another_and_given_up_after_a_few(
    tmp_path: Path, make_image: Callable[..., Path]
) -> None:
    """The reader is too small twice, and then once more for the next name."""
    bench, batch = Bench(tmp_path, make_image, "r1"), new(tmp_path / "batch.json", "a", "b")
    failing = {"a": 2, "b": 9}

    def fail(reader: str, name: str, progress: object) -> None:
        if failing[name] and getattr(progress, "phase", "") == "writing":
            failing[name] -= 1
            raise DiskError("the card was pulled out", device=reader)

    bench.run(batch, Manner(tries=3, patience_s=5), progress=fail)
    assert standings(batch.state) == {"a": "done", "b": "failed"}
    assert bench.events("a").count("again") == 2
    assert bench.events("b").count("again") == 2
    assert bench.events("b")[-1] == "failed"
    assert next(card for card in batch.state.cards if card.name == "b").error == "the card was pulled out"


def test_an_image_that_cannot_be_made_is_given_up_and_the_next_goes_on(
    tmp_path: Path, make_image: Callable[..., Path]
) -> None:
    bench, batch = Bench(tmp_path, make_image, "r1"), new(tmp_path / "batch.json", "a", "b")

    @contextmanager
    def make(name: str, check: Callable[[], None]) -> Iterator[MadeImage]:
        if name == "a":
            raise ImageContentError("the image is damaged", path="sd.img")
        with bench.make(name, check) as made:
            yield made

    bench.run(batch, Manner(patience_s=5), make=make)
    assert standings(batch.state) == {"a": "failed", "b": "done"}


def test_where_no_card_comes_the_name_waits_and_the_work_ends(
    tmp_path: Path, make_image: Callable[..., Path]
) -> None:
    bench, batch = Bench(tmp_path, make_image, "r1"), new(tmp_path / "batch.json", "a", "b")
    bench.run(batch, Manner(patience_s=0.1), tell=bench.told.append)
    assert standings(load_state(batch.path)) == {"a": "waiting", "b": "waiting"}
    assert bench.told[-1].text == "no card came"


def test_a_card_that_is_too_small_is_refused_and_the_next_is_taken(
    tmp_path: Path, make_image: Callable[..., Path]
) -> None:
    bench, batch = Bench(tmp_path, make_image, "r1"), new(tmp_path / "batch.json", "a")

    def person(told: Told) -> None:
        bench.told.append(told)
        if told.event in {"waiting", "refused"}:
            bench.put_in(bench.readers[0], mib=2 if told.event == "waiting" else 8)

    bench.run(batch, Manner(patience_s=5), tell=person)
    assert bench.events("a") == ["making", "waiting", "refused", "found", "done"]
    assert standings(batch.state) == {"a": "done"}


def test_a_card_of_this_kind_is_not_overwritten_by_the_next_name_unless_asked_for(
    tmp_path: Path, make_image: Callable[..., Path]
) -> None:
    """As where a reader shows a card again that was let go and not taken out."""
    bench, batch = Bench(tmp_path, make_image, "r1"), new(tmp_path / "batch.json", "a", "b")

    def forgetful(told: Told) -> None:
        bench.told.append(told)
        reader = bench.readers[0]
        if told.event == "waiting" and told.name == "a":
            bench.put_in(reader)
        if told.event == "done":  # the same content, and the reader says that it is another card
            (tmp_path / "same").write_bytes(reader.read_bytes())
            (tmp_path / "same").replace(reader)

    # Images differ in their files only, and begin alike: so do those of one batch.
    bench.run(batch, Manner(patience_s=0.3), tell=forgetful, make=alike(bench))
    assert standings(batch.state) == {"a": "done", "b": "waiting"}
    assert "refused" in bench.events("b")
    bench.stop.clear()
    bench.run(batch, Manner(patience_s=5, reuse=True), tell=forgetful, make=alike(bench))
    assert standings(batch.state) == {"a": "done", "b": "done"}


def alike(bench: Bench) -> Callable[[str, Callable[[], None]], object]:
    @contextmanager
    def make(name: str, check: Callable[[], None]) -> Iterator[MadeImage]:
        check()
        path = bench.make_image("alike.img", mib=4, seed=1)
        with path.open("r+b") as stream:
            stream.seek(2 * MIB)
            stream.write(name.encode())
        with open_raw(path) as raw:
            yield MadeImage(raw, "k7m2qx")

    return make


def test_stopping_leaves_the_card_undone_and_the_name_waiting(
    tmp_path: Path, make_image: Callable[..., Path]
) -> None:
    bench, batch = Bench(tmp_path, make_image, "r1"), new(tmp_path / "batch.json", "a", "b")

    def stop(reader: str, name: str, progress: object) -> None:
        if getattr(progress, "phase", "") == "verifying":
            bench.stop.set()

    bench.run(batch, Manner(patience_s=5), progress=stop)
    assert standings(load_state(batch.path)) == {"a": "waiting", "b": "waiting"}
    assert not any(bench.readers[0].read_bytes()[:MIB])


def test_a_state_that_cannot_be_kept_stops_all_readers(
    tmp_path: Path, make_image: Callable[..., Path]
) -> None:
    place = tmp_path / "state"
    place.mkdir()
    bench, batch = Bench(tmp_path, make_image, "r1", "r2"), new(place / "batch.json", *"abcd")

    def lose(told: Told) -> None:
        bench.person(told)
        if told.event == "found" and place.exists():
            place.rename(tmp_path / "gone")

    with pytest.raises(BatchError, match="cannot keep the state"):
        bench.run(batch, replace(Manner(), patience_s=5), tell=lose)
    assert bench.stop.is_set()
