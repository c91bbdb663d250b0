"""``flash disks`` and ``flash write``, as they are called. What is written is a plain file or a loop device."""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import os
import pty
import random
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

MIB = 2**20
RECORDED = Path(__file__).parents[1] / "golden" / "lsblk"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A raw image of 12 MiB with one partition."""
    return make_image(tmp_path / "sd.img", 12)


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A plain file of 80 MiB."""
    path = tmp_path / "card"
    with path.open("wb") as stream:
        stream.write(b"somebody's".ljust(4096))
        stream.truncate(80 * MIB)
    return path


def make_image(path: Path, mib: int) -> Path:
    start, size = MIB // 512, (mib - 1) * MIB // 512
    entry = bytes([0, 0, 2, 0, 0x83, 0, 0, 0]) + start.to_bytes(4, "little") + size.to_bytes(4, "little")
    path.write_bytes(
        bytes(446) + entry + bytes(48) + b"\x55\xaa" + random.Random(1).randbytes(mib * MIB - 512)
    )
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets lsblk say what it said on another machine; its disks are not there, so that none can be opened."""

    def be(name: str) -> None:
        program = tmp_path / "bin" / "lsblk"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\nexec cat {RECORDED / name}.json\n", "utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return be


def edgeslm(*arguments: object, code: int | None = 0, limit_bytes: int | None = None) -> tuple[str, str]:
    """Run the command; (stdout, stderr)."""

    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    done = subprocess.run(
        [sys.executable, "-m", "edgeslm", "flash", *map(str, arguments)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=100,
        check=False,
        preexec_fn=limit,
    )
    assert code is None or done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


# --- disks ------------------------------------------------------------------------------------------------------


def test_lists_what_can_be_written_and_why_the_rest_cannot(machine: Callable[[str], None]) -> None:
    machine("laptop-with-usb-reader")
    shown, _ = edgeslm("disks")
    assert "* /dev/sda" in shown
    assert "can be written" in shown
    assert "- /dev/nvme0n1" in shown
    assert "refused: " in shown
    assert "zram" not in shown
    assert "zram" in edgeslm("disks", "--all")[0]
    listed = {one["device"]: one for one in json.loads(edgeslm("disks", "--json")[0])}
    assert listed["/dev/sda"]["writable"]
    assert "system" in [one["code"] for one in listed["/dev/nvme0n1"]["refusals"]]


def test_disks_that_are_too_small_for_an_image_are_said_to_be(
    machine: Callable[[str], None], tmp_path: Path
) -> None:
    machine("usb-drives-of-many-sizes")
    with (tmp_path / "large.img").open("wb") as stream:
        stream.truncate(4 * 10**9)
    listed = {
        one["device"]: one
        for one in json.loads(edgeslm("disks", "--image", tmp_path / "large.img", "--json")[0])
    }
    assert [one["code"] for one in listed["/dev/sdc"]["refusals"]] == ["too-small"]


def test_where_nothing_can_be_written_it_says_what_to_do(machine: Callable[[str], None]) -> None:
    machine("server-with-raid")
    assert "put a card into a reader" in edgeslm("disks")[1]


def test_names_from_a_drive_cannot_steer_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = {
        "blockdevices": [{"name": "sdb", "type": "disk", "size": 10**9, "rm": True, "model": "\x1b[2Jevil\n"}]
    }
    (tmp_path / "said.json").write_text(json.dumps(text), "utf-8")
    (tmp_path / "lsblk").write_text(f"#!/bin/sh\nexec cat {tmp_path / 'said.json'}\n", "utf-8")
    (tmp_path / "lsblk").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "\x1b" not in edgeslm("disks", "--all")[0]


def test_a_machine_without_lsblk_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt install util-linux" in edgeslm("disks", code=1)[1]


# --- write ------------------------------------------------------------------------------------------------------


def test_writes_an_image_and_reads_it_back(image: Path, card: Path) -> None:
    shown, told = edgeslm("write", image, card, "--try", "--confirm", "card")
    assert "holds" in shown
    assert "read back and compared" in shown
    assert card.read_bytes()[: 12 * MIB] == image.read_bytes()
    assert "plain file" in told
    assert "verifying" in told
    record = json.loads(edgeslm("write", image, card, "--try", "--check", "--json")[0])
    assert record["verified_bytes"] == 12 * MIB
    assert "were compared" in edgeslm("write", image, card, "--try", "--check")[0]


def test_says_as_json_what_was_done(image: Path, card: Path) -> None:
    record = json.loads(edgeslm("write", image, card, "--try", "--confirm", "card", "--json")[0])
    assert record["written_bytes"] == record["verified_bytes"] == record["image_bytes"] == 12 * MIB
    assert (record["kept_bytes"], record["ejected"], record["mapped"]) == (0, False, False)


def test_a_dry_run_shows_the_plan_and_writes_nothing(image: Path, card: Path) -> None:
    before = card.read_bytes()
    shown, told = edgeslm("write", image, card, "--try", "--dry-run")
    assert shown == ""
    assert str(card) in told
    assert "nothing was written" in told
    assert "to_write_bytes" in json.loads(edgeslm("write", image, card, "--try", "--dry-run", "--json")[0])
    assert card.read_bytes() == before


@pytest.mark.parametrize("typed", [None, "", "Card", "yes", "sdb"])
def test_nothing_is_written_until_the_name_of_the_disk_was_given(
    typed: str | None, image: Path, card: Path
) -> None:
    before = card.read_bytes()
    _, told = edgeslm("write", image, card, "--try", *([] if typed is None else ["--confirm", typed]), code=2)
    assert "--confirm card" in told if typed is None else "nothing was written" in told
    assert card.read_bytes() == before


@pytest.mark.parametrize(("typed", "code"), [("card", 0), ("no", 2)])
def test_the_name_is_typed_at_a_terminal(typed: str, code: int, image: Path, card: Path) -> None:
    before, shown = card.read_bytes(), b""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeslm", "flash", "write", image, card, "--try"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    until_s, answered = time.monotonic() + 100, False
    with contextlib.suppress(OSError):  # the terminal goes when the program does
        while time.monotonic() < until_s:
            if select.select([ours], [], [], 1)[0]:
                shown += os.read(ours, 65_536)
            if b"Type card to write" in shown and not answered:
                answered = True
                os.write(ours, typed.encode() + b"\n")
    os.close(ours)
    assert process.wait(timeout=100) == code, shown
    if code:
        assert card.read_bytes() == before
    else:
        assert card.read_bytes()[: 12 * MIB] == image.read_bytes()
        assert b"verifying   100%" in shown


@pytest.mark.parametrize("device", ["/dev/nvme0n1", "/dev/sdb"])
def test_a_disk_that_may_not_be_written_is_refused_before_anything_else(
    device: str, image: Path, machine: Callable[[str], None]
) -> None:
    """Even where it is confirmed, and where things are only tried out."""
    machine("laptop-with-usb-reader")
    _, told = edgeslm("write", image, device, "--try", "--confirm", Path(device).name, code=2)
    assert "edgeslm flash disks" in told or "is not written" in told


def test_a_plain_file_is_no_card_unless_things_are_tried_out(image: Path, card: Path) -> None:
    before = card.read_bytes()
    assert "is no disk" in edgeslm("write", image, card, "--confirm", "card", code=2)[1]
    assert card.read_bytes() == before


def test_a_card_that_is_too_small_is_left_as_it_is(image: Path, card: Path) -> None:
    os.truncate(card, 11 * MIB)
    before = card.read_bytes()
    assert (
        "is less than the image's" in edgeslm("write", image, card, "--try", "--confirm", "card", code=2)[1]
    )
    assert card.read_bytes() == before


def test_a_card_that_ends_before_it_says_is_never_good(image: Path, card: Path) -> None:
    """The kernel itself refuses to write beyond 30 MiB."""
    _, told = edgeslm("write", image, card, "--try", "--confirm", "card", code=1, limit_bytes=30 * MIB)
    assert "smaller than it says" in told
    assert "do not use it as it is" in told
    assert not any(card.read_bytes()[:4096])


@pytest.mark.parametrize("fault", ["cut", "digest", "map", "text", "xz cut"])
def test_an_image_that_is_wrong_is_named_before_the_card_is_touched(
    fault: str, image: Path, card: Path
) -> None:
    before, options, code = card.read_bytes(), [], 4
    if fault == "cut":
        os.truncate(image, 5 * MIB)
        code = 1
    elif fault == "digest":
        options = ["--sha256", "0" * 64]
    elif fault == "map":
        image.with_name("sd.img.bmap").write_text("<bmap/>", "utf-8")
        code = 1
    elif fault == "text":
        image.write_bytes(b"not an image at all\n".ljust(4096))
        code = 1
    else:
        packed = lzma.compress(image.read_bytes()[:MIB], preset=0)
        image.write_bytes(packed[: len(packed) // 2])
    _, told = edgeslm("write", image, card, "--try", "--confirm", "card", *options, code=code)
    assert str(image) in told
    assert card.read_bytes() == before


def test_a_packed_image_is_written_as_what_is_in_it(tmp_path: Path, card: Path) -> None:
    image = make_image(tmp_path / "sd.img", 3)
    packed = image.with_name("packed.img.xz")
    packed.write_bytes(lzma.compress(image.read_bytes(), preset=0))
    digest = hashlib.sha256(packed.read_bytes()).hexdigest()
    edgeslm("write", packed, card, "--try", "--confirm", "card", "--sha256", digest)
    assert card.read_bytes()[: 3 * MIB] == image.read_bytes()


def test_a_card_with_one_wrong_byte_does_not_pass_the_check(image: Path, card: Path) -> None:
    edgeslm("write", image, card, "--try", "--confirm", "card")
    with card.open("r+b") as stream:
        stream.seek(5 * MIB)
        stream.write(b"!")
    _, told = edgeslm("write", image, card, "--try", "--check", code=4)
    assert "does not hold the image" in told


def test_ctrl_c_stops_and_the_same_command_goes_on(tmp_path: Path, card: Path) -> None:
    image = make_image(tmp_path / "large.img", 64)
    arguments = [sys.executable, "-m", "edgeslm", "flash", "write", image, card, "--try", "--confirm", "card"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(b"writing"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.communicate(timeout=100)[1]
    assert process.returncode != 0
    assert b"Traceback" not in rest
    assert b"is not done" in rest
    assert not any(card.read_bytes()[:4096])
    subprocess.run(arguments, capture_output=True, timeout=100, check=True)
    assert card.read_bytes()[: 64 * MIB] == image.read_bytes()
