"""``flash batch`` and ``flash labels``: a fleet of this machine, a prepared image, cards that are plain files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zxingcpp

import edgeslm
from edgeslm import codec
from edgeslm.flash.image.image import open_image
from edgeslm.flash.payload import layout
from edgeslm.flash.payload.manifest import InstalledPayload
from edgeslm.flash.prepare.planning import Personal
from edgeslm.flash.prepare.record import ImageSystem, PreparedImage, SourceImage, encode_record, record_path
from edgeslm.schema.customisation import Customisation

MIB = 2**20
IMAGE_MIB = 20
ENVIRONMENT = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image as `flash prepare --for-many` leaves one: a root with what makes a device of it, no system."""
    place = tmp_path_factory.mktemp("prepared")
    path, root = place / "sd.img", place / "root"
    manifest = InstalledPayload(edgeslm=edgeslm.__version__, archive="a" * 64, files=())
    files = {
        "/etc/os-release": b"ID=debian\nVERSION_ID=13\n",
        layout.SETTINGS: b"profile: default\n",
        layout.MANIFEST: codec.encode(manifest),
        layout.PERSONAL: codec.encode(Personal(customisation=Customisation())),
    }
    for name, content in files.items():
        file = root / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    with path.open("wb") as stream:
        stream.truncate(IMAGE_MIB * MIB)
    run(
        "sfdisk",
        "-q",
        path,
        text=f"label: dos\nlabel-id: 0x1a2b3c4d\nstart=1MiB, size={IMAGE_MIB - 1}MiB, type=83\n",
    )
    run("mke2fs", "-q", "-F", "-t", "ext4", "-E", f"offset={MIB}", "-d", root, path, f"{IMAGE_MIB - 1}M")
    record = PreparedImage(
        edgeslm=edgeslm.__version__,
        image=path.name,
        size_bytes=IMAGE_MIB * MIB,
        mapped_bytes=0,
        sha256="a" * 64,
        source=SourceImage(
            name="stock.img", form="raw", sha256="a" * 64, raw_sha256="a" * 64, size_bytes=IMAGE_MIB * MIB
        ),
        system=ImageSystem(kind="debian", name="Debian", machine="aarch64", python="3.13", glibc="2.41"),
        board="pi-4b",
        profile="default",
        payload_bytes=0,
        payload_files=0,
        root_free_bytes=0,
    )
    record_path(path).write_bytes(encode_record(record))
    return path


@pytest.fixture
def image(prepared: Path, tmp_path: Path) -> Path:
    """The prepared image, in a place of its own."""
    for path in (prepared, record_path(prepared)):
        run("cp", "--sparse=always", path, tmp_path)
    return tmp_path / prepared.name


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet of this machine, whose broker does not run."""
    place = tmp_path_factory.mktemp("fleet") / "garden"
    command("fleet", "init", "garden", "--dir", place, "--broker-host", "127.0.0.1")
    return place


def run(*words: str | Path, text: str = "") -> None:
    subprocess.run(
        [str(word) for word in words],
        input=text.encode(),
        check=True,
        timeout=60,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
    )


def arguments(*words: object) -> list[str]:
    return [sys.executable, "-m", "edgeslm", *map(str, words)]


def command(*words: object, code: int = 0) -> tuple[str, str]:
    done = subprocess.run(
        arguments(*words), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=110, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def new_card(reader: Path, mib: int = 80) -> None:
    """Another file each time: another card."""
    card = reader.with_name(f"new-{reader.name}")
    with card.open("wb") as stream:
        stream.truncate(mib * MIB)
    card.replace(reader)


@contextmanager
def person(state: Path, *readers: Path, before: tuple[str, ...] = ()) -> Iterator[dict[str, Path]]:
    """Puts cards into readers, and keeps those that are done under the names that they are for."""
    kept: dict[str, Path] = {}
    stop = threading.Event()

    def look() -> None:
        for reader in readers:
            new_card(reader)
        while not stop.wait(0.05):
            if not state.exists():
                continue
            for card in json.loads(state.read_text("utf-8"))["cards"]:
                reader = Path(card.get("reader", "-"))
                if card["standing"] == "done" and card["name"] not in {*kept, *before} and reader in readers:
                    kept[card["name"]] = reader.rename(state.with_name(f"card-{card['name']}"))
                    new_card(reader)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield kept
    finally:
        stop.set()
        thread.join()


def claim_on(card: Path) -> dict[str, str]:
    with open_image(card) as found:
        claim: dict[str, str] = json.loads(found.root.read(layout.CLAIM, max_bytes=65_536))
    return claim


def claims_of(fleet: Path) -> dict[str, str]:
    listed = json.loads(command("fleet", "claims", "--all", "--fleet-dir", fleet, "--json")[0])
    return {one["claim"]: one["state"] for one in listed}


def test_each_card_has_its_own_name_and_claim_and_all_get_labels(
    image: Path, fleet: Path, tmp_path: Path
) -> None:
    readers = (tmp_path / "r1", tmp_path / "r2")
    with person(tmp_path / "sd.img.batch.json", *readers) as kept:
        shown, told = command(
            "flash", "batch", image, "--names", "porch-1..porch-2,hall", "--reader", readers[0], "--reader",
            readers[1], "--try", "--fleet-dir", fleet, "--confirm", "r1 r2", "--json",
        )  # fmt: skip
        time.sleep(0.3)
    record = json.loads(shown)
    assert record["done"] == 3
    assert "put in the card for hall" in told
    claims = {name: claim_on(card) for name, card in kept.items()}
    assert {name: claim["device"] for name, claim in claims.items()} == {name: name for name in kept}
    assert set(kept) == {"porch-1", "porch-2", "hall"}
    assert len({claim["secret"] for claim in claims.values()}) == 3
    assert {card["name"]: card["claim"] for card in record["cards"]} == {
        name: claim["claim"] for name, claim in claims.items()
    }
    assert {claims_of(fleet)[claim["claim"]] for claim in claims.values()} == {"open"}
    page = Path(record["labels"]).read_text("utf-8")
    for name, claim in claims.items():
        assert name in page
        assert claim["secret"] not in page
        assert claim["secret"] not in shown + told + (tmp_path / "sd.img.batch.json").read_text("utf-8")
    assert not list(tmp_path.glob(".*"))


def test_a_batch_that_was_killed_goes_on_with_new_claims_for_what_was_not_done(
    image: Path, fleet: Path, tmp_path: Path
) -> None:
    state, reader = tmp_path / "state.json", tmp_path / "r1"
    words = ["flash", "batch", image, "--reader", reader, "--try", "--fleet-dir", fleet, "--confirm", "r1"]
    words += ["--state", state, "--patience", "20s"]
    process = subprocess.Popen(
        arguments(*words, "--names", "a1..a2"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with person(state, reader) as kept:
        for line in process.stderr:
            if "put in the card for a2" in line:
                os.kill(process.pid, signal.SIGKILL)
                break
        process.communicate(timeout=60)
        time.sleep(0.3)
        assert list(kept) == ["a1"]
    assert len(list(state.parent.glob(".state.json.work/a2/*"))) >= 1
    lost = {card["name"]: card["claim"] for card in json.loads(state.read_text("utf-8"))["cards"]}["a2"]
    assert "there already" in command(*words, "--names", "a1..a2", code=2)[1]
    with person(state, reader, before=("a1",)) as later:
        shown, _ = command(*words, "--resume")
        time.sleep(0.3)
    assert "2 of 2 cards are done" in shown
    assert not list(state.parent.glob(".*"))
    assert claims_of(fleet)[lost] == "revoked"
    assert claim_on(later["a2"])["claim"] != lost
    assert claims_of(fleet)[claim_on(later["a2"])["claim"]] == "open"
    assert claims_of(fleet)[claim_on(kept["a1"])["claim"]] == "open"


def test_where_no_card_comes_the_claims_are_taken_back(image: Path, fleet: Path, tmp_path: Path) -> None:
    before = claims_of(fleet)
    _, told = command(
        "flash", "batch", image, "--names", "late-1..late-2", "--reader", tmp_path / "r1", "--try",
        "--fleet-dir", fleet, "--confirm", "r1", "--patience", "1s", code=1,
    )  # fmt: skip
    assert "no card came" in told
    assert "--resume" in told
    made = {claim: state for claim, state in claims_of(fleet).items() if claim not in before}
    assert sorted(made.values()) == ["revoked", "revoked"]


def test_claims_that_were_made_elsewhere_name_the_devices(image: Path, fleet: Path, tmp_path: Path) -> None:
    claims, reader = tmp_path / "claims", tmp_path / "r1"
    for name in ("shed", "barn"):
        command("fleet", "claim", "--device", name, "--out", claims / f"{name}.json", "--fleet-dir", fleet)
    with person(tmp_path / "sd.img.batch.json", reader) as kept:
        command(
            "flash", "batch", image, "--claims", claims, "--reader", reader, "--try", "--confirm", "r1",
            "--patience", "20s",
        )  # fmt: skip
        time.sleep(0.3)
    for name in ("shed", "barn"):
        assert claim_on(kept[name]) == json.loads((claims / f"{name}.json").read_text("utf-8"))
    told = command(
        "flash", "batch", image, "--claims", claims, "--names", "attic", "--reader", reader, "--try",
        "--confirm", "r1", "--state", tmp_path / "other.json", code=2,
    )[1]  # fmt: skip
    assert "there is no claim for attic" in told
    assert not (tmp_path / "other.json").exists()


def test_a_dry_run_shows_the_plan_and_makes_no_claim(image: Path, fleet: Path, tmp_path: Path) -> None:
    before = claims_of(fleet)
    words = [
        "flash",
        "batch",
        image,
        "--names",
        "x1..x9",
        "--reader",
        tmp_path / "r1",
        "--try",
        "--fleet-dir",
        fleet,
    ]
    _, told = command(*words, "--dry-run")
    assert "9 of 9: x1, x2, x3, x4, x5, x6 and 3 more" in told
    assert "--confirm" in command(*words, code=2)[1]
    assert "nothing was written" in command(*words, "--confirm", "r2", code=2)[1]
    assert claims_of(fleet) == before
    assert not (tmp_path / "sd.img.batch.json").exists()


def test_what_is_no_reader_or_no_prepared_image_is_refused(image: Path, fleet: Path, tmp_path: Path) -> None:
    words = ["--names", "x1", "--fleet-dir", fleet, "--confirm", "r1"]
    assert "no reader" in command("flash", "batch", image, *words, "--reader", tmp_path / "r1", code=2)[1]
    record_path(image).unlink()
    told = command("flash", "batch", image, *words, "--reader", tmp_path / "r1", "--try", code=1)[1]
    assert "edgeslm flash prepare" in told


@pytest.fixture
def state(tmp_path: Path) -> Callable[[], Path]:
    """The state of a batch in which two cards are done."""

    def write() -> Path:
        cards = [
            {"name": "porch-1", "standing": "done", "claim": "k7m2qx"},
            {"name": "porch-2", "standing": "failed", "claim": "k7m2qy"},
            {"name": "hall", "standing": "done", "claim": "k7m2qz"},
        ]
        path = tmp_path / "batch.json"
        path.write_text(
            json.dumps({"fleet": "garden", "image": "sd.img", "fingerprint": "a" * 64, "cards": cards}),
            "utf-8",
        )
        return path

    return write


def test_labels_are_made_anew_for_cards_that_are_done(state: Callable[[], Path], tmp_path: Path) -> None:
    path, out = state(), tmp_path / "labels.html"
    listed = json.loads(command("flash", "labels", path, "--json")[0])
    assert [one["link"] for one in listed] == [
        "edgeslm://garden/porch-1?claim=k7m2qx",
        "edgeslm://garden/hall?claim=k7m2qz",
    ]
    assert (
        "2 labels" in command("flash", "labels", path, "--out", out, "--paper", "letter", "--note", "roof")[0]
    )
    page = out.read_text("utf-8")
    assert "hall" in page
    assert "porch-2" not in page
    assert "roof" in page
    assert "porch-2" in command("flash", "labels", path, "--name", "porch-2", code=2)[1]


def test_a_label_on_the_terminal_can_be_read_from_there(state: Callable[[], Path]) -> None:
    text = command("flash", "labels", state(), "--name", "hall")[0]
    dark = {"█": (1, 1), "▀": (1, 0), "▄": (0, 1), "\N{NO-BREAK SPACE}": (0, 0), " ": (0, 0)}
    lines = [line for line in text.splitlines() if line and set(line) <= set(dark)]
    rows = [[dark[char][half] for char in line] for line in lines for half in (0, 1)]
    width = max(map(len, rows))
    light = np.array([row + [1] * (width - len(row)) for row in rows], np.uint8) * 255
    picture = np.kron(np.pad(light, 4, constant_values=255), np.ones((6, 6), np.uint8))
    assert [found.text for found in zxingcpp.read_barcodes(picture)] == ["edgeslm://garden/hall?claim=k7m2qz"]
