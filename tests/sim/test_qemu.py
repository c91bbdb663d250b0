"""The emulated board: what QEMU is told, and how it is started, killed and cleared up. No system is booted here."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.flash_rig import MIB, ImageParts, debian, small_image
from edgeslm.cli.main import cli
from edgeslm.errors import EmulationError
from edgeslm.sim.qemu import EmulatedBoard, Emulation, command

needs_qemu = pytest.mark.skipif(
    not all(map(shutil.which, ("qemu-system-aarch64", "qemu-img"))), reason="QEMU is not installed"
)
# A program for -M virt that writes "hello" to the serial port and stops there: ldr x1, =uart; strb ...; b .
HELLO = b"".join(
    word.to_bytes(4, "little")
    for word in (
        0xD2A12001,  # mov  x1, #0x9000000
        *(
            word for letter in b"hello" for word in (0x52800002 | letter << 5, 0x39000022)
        ),  # mov w2, #; strb w2, [x1]
        0x14000000,  # b    .
    )
)
BOOT = {"cmdline.txt": b"console=ttyAMA0 root=LABEL=rootfs\n", "vmlinuz": HELLO, "initrd.img": b"initial"}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    return small_image(tmp_path / "small.img", work, ImageParts(root=debian(), boot=BOOT))


@pytest.fixture
def boot_files(tmp_path: Path) -> Path:
    (tmp_path / "cmdline").write_text("console=ttyAMA0 root=LABEL=rootfs\n")
    return tmp_path


def line(boot_files: Path, emulation: Emulation, disk: str = "/x/disk.img") -> list[str]:
    return command(emulation, Path(disk), "raw", boot_files, Path("/x/log"), Path("/x/control"))


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_the_command_line_is_the_images_and_then_ones_own(boot_files: Path) -> None:
    words = line(boot_files, Emulation(append="quiet panic=1"))
    assert (
        value(words, "-append") == "console=ttyAMA0 root=LABEL=rootfs mitigations=off nokaslr quiet panic=1"
    )


def test_the_boards_cache_is_one_that_loses_what_was_not_flushed_by_its_system(boot_files: Path) -> None:
    words = line(boot_files, Emulation())
    assert "file=/x/disk.img,format=raw,cache=writeback,if=none,id=disk0" in words
    assert "-no-reboot" in words


def test_a_comma_in_a_path_is_no_option_of_its_own(boot_files: Path) -> None:
    assert any(
        "file=/a,,readonly=on/d.img," in word
        for word in line(boot_files, Emulation(), "/a,readonly=on/d.img")
    )


def test_the_clock_can_be_months_off(boot_files: Path) -> None:
    assert (
        value(line(boot_files, Emulation(clock="2020-01-01T00:00:00")), "-rtc") == "base=2020-01-01T00:00:00"
    )


def test_a_raspberry_pi_gets_its_device_tree_and_its_network_by_usb(boot_files: Path) -> None:
    words = line(boot_files, Emulation(machine="raspi3b", clock="2020-01-01T00:00:00"))
    assert value(words, "-M") == "raspi3b"
    assert value(words, "-dtb") == str(boot_files / "dtb")
    assert "usb-net,netdev=net0" in words
    assert "file=/x/disk.img,format=raw,cache=writethrough,if=sd" in words, "a card takes no order to flush"
    assert "-rtc" not in words, "the board has no clock that lasts"
    assert "module_blacklist=bcm2835_wdt" in value(words, "-append").split(), (
        "QEMU's watchdog ends it when armed"
    )


@needs_qemu
def test_it_runs_says_something_and_is_killed(image: Path, tmp_path: Path) -> None:
    with EmulatedBoard(image, tmp_path / "serial.log") as board:
        assert not board.is_running
        board.start()
        assert board.wait_for_text("hello", 30), board.tail()
        with pytest.raises(EmulationError, match="has power already"):
            board.start()
        board.kill()
        assert not board.is_running
        board.kill()
        said = (tmp_path / "serial.log").stat().st_size
        board.start()
        assert board.wait_for_text("hello", 30, since=said), "it is started again"
        assert not board.wait_for_text("never", 0.3)
    assert not board.is_running
    assert not board.control.parent.exists(), "nothing is left"


@needs_qemu
def test_it_runs_from_a_card_that_forgets(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    with EmulatedBoard(image, tmp_path / "serial.log", forgets=1) as board:
        for start in range(2):
            since = 0 if start == 0 else (tmp_path / "serial.log").stat().st_size
            board.start()
            assert board.wait_for_text("hello", 30, since=since), board.tail()
            board.kill()
        assert board.lost_pages == 0, "nothing was written"
    assert image.read_bytes() == before


@needs_qemu
def test_it_waits_until_orders_are_taken_and_power_is_cut_where_the_system_does_not_listen(
    image: Path, tmp_path: Path
) -> None:
    with EmulatedBoard(image, tmp_path / "serial.log") as board:
        board.start()
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(board.control))
            assert "QMP" in json.loads(control.recv(4096).splitlines()[0])
        board._order("send-key", keys=[{"type": "qcode", "data": "power"}])
        with pytest.raises(OSError, match="does not take dance"):
            board._order("dance")
        assert not board.power_off(timeout_s=0.5)
        assert not board.is_running


@needs_qemu
def test_the_image_stays_as_it_is_unless_it_is_to_be_written(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    with EmulatedBoard(image, tmp_path / "serial.log") as board:
        board.start()
        assert board.wait_for_text("hello", 30)
    assert image.read_bytes() == before


@needs_qemu
def test_it_ends_with_the_process_that_started_it(image: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom edgeslm.sim.qemu import EmulatedBoard\n"
        "board = EmulatedBoard(Path(sys.argv[1]), Path(sys.argv[2]))\nboard.start()\n"
        "print(board._process.pid, flush=True)\ntime.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, image, tmp_path / "serial.log"], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    child.kill()
    child.wait()
    child.stdout.close()
    until_s = time.monotonic() + 10
    while _runs(pid):
        assert time.monotonic() < until_s, "QEMU goes on without anybody"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return (
            "qemu-system" in Path(f"/proc/{pid}/cmdline").read_text()
            and ") Z " not in Path(f"/proc/{pid}/stat").read_text()
        )
    except OSError:
        return False


@needs_qemu
def test_an_image_with_nothing_to_boot_from_is_named(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    small_image(tmp_path / "small.img", work)
    with (
        EmulatedBoard(tmp_path / "small.img", tmp_path / "log") as board,
        pytest.raises(EmulationError) as caught,
    ):
        board.start()
    assert "vmlinuz" in caught.value.message
    assert "base-image" in (caught.value.hint or "")


@needs_qemu
def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.img").write_bytes(bytes(MIB))
    with (
        EmulatedBoard(tmp_path / "x.img", tmp_path / "log") as board,
        pytest.raises(EmulationError, match=r"x\.img"),
    ):
        board.start()


@needs_qemu
def test_what_qemu_complains_of_is_passed_on(image: Path, tmp_path: Path) -> None:
    with (
        EmulatedBoard(image, tmp_path / "log", Emulation(cpu="no-such-cpu")) as board,
        pytest.raises(EmulationError, match="no-such-cpu"),
    ):
        board.start()


@needs_qemu
def test_a_card_of_a_raspberry_pi_that_is_written_has_a_size_that_is_a_power_of_two(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    boot = {**BOOT, "bcm2837-rpi-3-b.dtb": b"tree"}
    small_image(tmp_path / "small.img", work, ImageParts(boot=boot))
    wanted = Emulation(machine="raspi3b")
    with (
        EmulatedBoard(tmp_path / "small.img", tmp_path / "log", wanted, keeps_changes=True) as board,
        pytest.raises(EmulationError, match="power of two") as caught,
    ):
        board.start()
    assert "truncate -s" in (caught.value.hint or "")


def test_a_machine_without_qemu_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulationError) as caught:
        EmulatedBoard(tmp_path / "x.img", tmp_path / "log")
    assert caught.value.hint == "Install it: sudo apt install qemu-system-arm"


@needs_qemu
def test_the_command_shows_what_the_board_says_and_ends_in_time(image: Path) -> None:
    done = CliRunner().invoke(cli, ["sim", "boot", str(image), "--for", "4"])
    assert done.exit_code == 0, done.stderr
    assert "hello" in done.stdout
    assert "this machine is 10.0.2.2" in done.stderr


def test_the_command_names_an_image_that_is_not_there(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["sim", "boot", str(tmp_path / "none.img")])
    assert done.exit_code == 2
    assert "none.img" in done.stderr
