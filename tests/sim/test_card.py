"""A card that forgets keeps what was flushed, loses some of the rest at a cut, and speaks NBD as QEMU's tools do."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeslm.errors import EmulationError
from edgeslm.sim.card import ForgetfulCard

PAGE = 4096
PAGES = 256
needs_tools = pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-utils is not installed")


@pytest.fixture
def place() -> Iterator[Path]:
    # The path of a socket has to be short.
    with tempfile.TemporaryDirectory(prefix="card-") as name:
        image = Path(name) / "card.img"
        image.write_bytes(bytes(PAGES * PAGE))
        yield Path(name)


def qemu_io(card: ForgetfulCard, *orders: str) -> str:
    words = [word for order in orders for word in ("-c", order)]
    done = subprocess.run(
        ["qemu-io", "-f", "raw", "-t", "writeback", *words, card.address],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "read failed" not in done.stdout + done.stderr
    return done.stdout + done.stderr


def pages(place: Path) -> list[int]:
    data = (place / "card.img").read_bytes()
    return [data[at * PAGE] for at in range(PAGES)]


@needs_tools
def test_what_is_written_can_be_read_and_is_there_after_the_end(place: Path) -> None:
    with ForgetfulCard(place / "card.img", place) as card:
        said = qemu_io(card, "write -P 0xab 1000 9000", "read -P 0xab 1000 9000", "read -P 0 0 1000")
        assert "Pattern verification failed" not in said
        told = subprocess.check_output(["qemu-img", "info", "--output=json", card.address])
        assert json.loads(told)["virtual-size"] == PAGES * PAGE
    assert (place / "card.img").read_bytes()[:11_000] == bytes(1000) + b"\xab" * 9000 + bytes(1000)


@needs_tools
def test_a_cut_loses_some_of_what_was_not_flushed_and_nothing_else(place: Path) -> None:
    writes = [f"write -P 0x22 {at * PAGE} {PAGE}" for at in range(64, 192)]
    with ForgetfulCard(place / "card.img", place, seed=3) as card:
        qemu_io(
            card,
            f"write -P 0x11 0 {64 * PAGE}",
            "flush",
            *writes,
            f"write -f -P 0x33 {200 * PAGE} {PAGE}",
            "abort",
        )
        lost = card.cut()
        assert card.unflushed == 0
        found = pages(place)
        assert found[:64] == [0x11] * 64
        assert found[200] == 0x33, "written through"
        assert sorted(set(found[64:192])) == [0, 0x22]
        assert found[64:192].count(0) == lost
        assert 32 < lost < 96


@needs_tools
def test_the_same_seed_loses_the_same(place: Path) -> None:
    def run(seed: int) -> list[int]:
        (place / "card.img").write_bytes(bytes(PAGES * PAGE))
        with ForgetfulCard(place / "card.img", place, seed=seed) as card:
            qemu_io(card, f"write -P 0x22 0 {PAGES * PAGE}", "abort")
            card.cut()
        (place / "card").unlink()
        return pages(place)

    assert run(1) == run(1)
    assert run(1) != run(2)


@needs_tools
def test_after_a_cut_it_serves_the_next_start(place: Path) -> None:
    with ForgetfulCard(place / "card.img", place) as card:
        qemu_io(card, f"write -P 0x11 0 {PAGE}", "flush", "abort")
        card.cut()
        assert "Pattern verification failed" not in qemu_io(card, f"read -P 0x11 0 {PAGE}")


def test_what_lies_beyond_the_end_or_is_unknown_is_an_error(place: Path) -> None:
    with ForgetfulCard(place / "card.img", place) as card, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place / "card"))
        client.recv(18)
        client.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, 0))
        assert struct.unpack(">Q", client.recv(10)[:8]) == (PAGES * PAGE,)
        for kind, at, body in ((1, PAGES * PAGE, bytes(512)), (0, PAGES * PAGE - 1, b""), (77, 0, b"")):
            client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 9, at, 512) + body)
            assert struct.unpack(">IIQ", client.recv(16)) == (0x67446698, 22, 9)
        assert card.unflushed == 0


def test_nonsense_ends_the_connection_and_not_the_card(place: Path) -> None:
    with ForgetfulCard(place / "card.img", place) as card:
        for nonsense in (
            b"GET / HTTP/1.1\r\n\r\n",
            bytes(200),
            struct.pack(">I8sII", 1, b"IHAVEOPT", 7, 2**31),
        ):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(place / "card"))
                assert client.recv(18).startswith(b"NBDMAGIC")
                client.sendall(nonsense)
                client.shutdown(socket.SHUT_WR)
                while client.recv(4096):
                    pass
        assert card.unflushed == 0


def test_an_image_that_is_not_there_is_named(place: Path) -> None:
    with pytest.raises(EmulationError, match=r"none\.img"):
        ForgetfulCard(place / "none.img", place)
