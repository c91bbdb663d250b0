"""An image that boots on this machine: QEMU in the place of a board, to try what was prepared without a card.

Kernel, initial file system and command line are those of the image's boot partition, so what was prepared there counts.
The board reaches this machine's loopback as 10.0.2.2, and the network that this machine reaches.

What always holds: QEMU ends with the process that started it. :meth:`EmulatedBoard.kill` is a cut of the power: what
the board's system had not written is lost, and of what it had written and not synced, some is lost as well where the
card forgets (:mod:`edgeslm.sim.card`).

Left to others: how fast a board is. An emulated one is ten to forty times slower than the processor that it names.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from edgeslm.children import bound_to_parent
from edgeslm.errors import EmulationError, FlashError
from edgeslm.flash.image.image import open_image
from edgeslm.sim.card import ForgetfulCard

HOST = "10.0.2.2"
"""This machine's loopback, as the board sees it."""

_PROGRAMS = {"qemu-system-aarch64": "qemu-system-arm", "qemu-img": "qemu-utils"}
_UNGUARDED = ("mitigations=off", "nokaslr")
"""Words for the kernel of ``virt``. With its addresses at random, Linux on a Cortex-A72 gives kernel and programs page
tables of their own (KPTI), and QEMU forgets what it knows of pages at each change between them: nearly half of the time
to start. An emulated processor leaks nothing by its timing."""
_UNWATCHED = ("module_blacklist=bcm2835_wdt",)
"""For ``raspi3b``, whose watchdog does not count in QEMU: it ends the board as soon as the system arms it."""
_MAX_BOOT_BYTES = 256 * 2**20
_POLL_S = 0.1
_QMP_S = 10.0
_TAIL_CHARS = 800


@dataclass(frozen=True)
class Emulation:
    """What is emulated.

    Attributes:
        machine: ``virt`` for images of qemu-virt, ``raspi3b`` for those of Raspberry Pi.
        cpu: of ``virt``.
        cores: of ``virt``.
        memory_mib: of ``virt``; ``raspi3b`` has 1024.
        append: words for the kernel's command line, after the image's own and those that make ``virt`` fast.
        clock: what the board's clock says at power-on, as ``YYYY-MM-DDTHH:MM:SS``; ``None`` is this machine's time.
            ``raspi3b`` has no clock that lasts.
        device_tree: file in the boot partition that describes the board; only for ``raspi3b``.
    """

    machine: Literal["virt", "raspi3b"] = "virt"
    cpu: str = "cortex-a72"
    cores: int = 2
    memory_mib: int = 1024
    append: str = ""
    clock: str | None = None
    device_tree: str = "bcm2837-rpi-3-b.dtb"


def command(
    emulation: Emulation,
    disk: Path | str,
    disk_format: Literal["raw", "qcow2"],
    boot: Path,
    log: Path,
    control: Path,
) -> list[str]:
    """QEMU's command line. Pure.

    Args:
        emulation: the board.
        disk: its card: a file, or an address as QEMU understands it.
        disk_format: of that.
        boot: directory with ``kernel``, ``initrd``, ``cmdline`` and, for a Raspberry Pi, ``dtb``.
        log: takes what the board says on its serial line.
        control: socket by which QEMU is told to power down.
    """
    words = (boot / "cmdline").read_text().split()
    words += [*(_UNGUARDED if emulation.machine == "virt" else _UNWATCHED), *emulation.append.split()]
    # An SD card without a cache of its own knows no order to flush: what it answered has to be there after a cut.
    cache = "writethrough" if emulation.machine == "raspi3b" else "writeback"
    drive = f"file={_escaped(disk)},format={disk_format},cache={cache}"
    shared = [
        *("-kernel", str(boot / "kernel"), "-initrd", str(boot / "initrd")),
        *("-display", "none", "-monitor", "none", "-nodefaults", "-no-reboot"),
        *("-qmp", f"unix:{_escaped(control)},server=on,wait=off"),
        *("-netdev", "user,id=net0"),
    ]
    serial = ["-chardev", f"file,id=serial0,path={_escaped(log)},append=on", "-serial", "chardev:serial0"]
    if emulation.machine == "raspi3b":
        return [
            *("qemu-system-aarch64", "-M", "raspi3b", "-accel", "tcg,thread=multi"),
            *shared,
            *(
                "-dtb",
                str(boot / "dtb"),
                "-append",
                " ".join([*words, "console=ttyAMA0,115200", "console=ttyAMA1,115200"]),
            ),
            *("-drive", f"{drive},if=sd", "-device", "usb-net,netdev=net0"),
            *serial,
            *(
                "-chardev",
                f"file,id=serial1,path={_escaped(log)},append=on",
                "-serial",
                "chardev:serial1",
            ),
        ]
    clock = ["-rtc", f"base={emulation.clock}"] if emulation.clock else []
    return [
        *("qemu-system-aarch64", "-M", "virt", "-cpu", emulation.cpu, "-smp", str(emulation.cores)),
        *("-m", str(emulation.memory_mib), "-accel", "tcg,thread=multi"),
        *shared,
        *("-append", " ".join(words)),
        *("-drive", f"{drive},if=none,id=disk0", "-device", "virtio-blk-pci,drive=disk0"),
        *("-device", "virtio-net-pci,netdev=net0,romfile=", "-device", "virtio-rng-pci"),
        # Its power button: the machine's own is wired in a way that Debian's kernel for clouds has no driver for.
        *("-device", "virtio-keyboard-pci"),
        *serial,
        *clock,
    ]


def _escaped(path: Path | str) -> str:
    # A comma ends the value of an option of QEMU; two stand for one.
    return str(path).replace(",", ",,")


class EmulatedBoard:
    """One board with its card.

    Attributes:
        log: what it said on its serial line, over all its starts.
        lost_pages: of 4 KiB, that its card forgot at cuts of the power.
    """

    def __init__(
        self,
        image: Path,
        log: Path,
        emulation: Emulation | None = None,
        *,
        keeps_changes: bool = True,
        forgets: int | None = None,
    ) -> None:
        """Put the card in; nothing is started yet.

        Args:
            image: the card.
            log: file for its serial line; it is added to.
            emulation: the board; by default one of type ``virt``.
            keeps_changes: the board writes into `image`; else what it writes is gone at the end.
            forgets: a cut loses some of what was not flushed to `image`, chosen by this seed; ``None`` loses nothing.
                Only where changes are kept.

        Raises:
            EmulationError: QEMU is not installed, or the image cannot be opened.
        """
        for program in _PROGRAMS if not keeps_changes else ["qemu-system-aarch64"]:
            if shutil.which(program) is None:
                raise EmulationError(
                    f"{program} is not installed", hint=f"Install it: sudo apt install {_PROGRAMS[program]}"
                )
        self.log = log
        self.lost_pages = 0
        self._image = image.resolve()
        self._emulation = emulation or Emulation()
        self._keeps_changes = keeps_changes
        self._stack = ExitStack()
        self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeslm-qemu-")))
        self._process: subprocess.Popen[bytes] | None = None
        self._card: ForgetfulCard | None = None
        if forgets is not None:
            try:
                card = ForgetfulCard(self._image, self._directory, seed=forgets)
                self._card = self._stack.enter_context(card)
            except EmulationError:
                self._stack.close()
                raise

    @property
    def is_running(self) -> bool:
        """It has power and did not switch itself off."""
        return self._process is not None and self._process.poll() is None

    @property
    def control(self) -> Path:
        """The socket by which QEMU takes orders (QMP)."""
        return self._directory / "control"

    def start(self) -> None:
        """Give it power. The files that it boots from are read anew each time, as a board does it.

        Raises:
            EmulationError: it has power, the image has nothing to boot from, or QEMU ends at once.
        """
        if self.is_running:
            raise EmulationError("the board has power already")
        self._read_boot()
        disk, disk_format = self._disk()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        line = command(self._emulation, disk, disk_format, self._directory, self.log.resolve(), self.control)
        program = shutil.which(line[0]) or line[0]
        self.control.unlink(missing_ok=True)
        with (self._directory / "qemu.log").open("wb") as said:
            self._process = subprocess.Popen(
                bound_to_parent([program, *line[1:]]),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        deadline_s = time.monotonic() + _QMP_S
        while self.is_running and not self._listens() and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        if not self.is_running:
            raise EmulationError(f"QEMU ended at once: {self._said()}")

    def kill(self) -> None:
        """Cut the power. Does nothing where there is none."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            if self._card is not None:
                self.lost_pages += self._card.cut()

    def power_off(self, timeout_s: float = 120.0) -> bool:
        """Press the power button and wait; whether the board went off by itself. Otherwise the power is cut.

        A Raspberry Pi has no such button.
        """
        if self.is_running:
            with contextlib.suppress(OSError):
                self._order("send-key", keys=[{"type": "qcode", "data": "power"}])
                if self.wait_off(timeout_s):
                    return True
        went = not self.is_running
        self.kill()
        return went

    def wait_off(self, timeout_s: float) -> bool:
        """Wait until the board switches itself off or starts again; whether it did in time."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait_for_text(self, text: str, timeout_s: float, *, since: int = 0) -> bool:
        """Wait until the board says something on its serial line; whether it did in time.

        Args:
            text: that is waited for.
            timeout_s: how long.
            since: how many bytes of the log are passed over.
        """
        deadline_s = time.monotonic() + timeout_s
        while text.encode() not in self._log_bytes(since):
            if not self.is_running or time.monotonic() > deadline_s:
                return text.encode() in self._log_bytes(since)
            time.sleep(_POLL_S)
        return True

    def tail(self, chars: int = _TAIL_CHARS) -> str:
        """The end of what it said."""
        return self._log_bytes(0).decode(errors="replace")[-chars:]

    def close(self) -> None:
        """Cut the power and clear up; the image stays."""
        self.kill()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- pieces -------------------------------------------------------------------------------------------------

    def _read_boot(self) -> None:
        wanted = {"kernel": "/vmlinuz", "initrd": "/initrd.img", "cmdline": "/cmdline.txt"}
        if self._emulation.machine == "raspi3b":
            wanted["dtb"] = f"/{self._emulation.device_tree}"
        try:
            with open_image(self._image) as image:
                if image.boot is None:
                    raise EmulationError(f"{self._image} has no boot partition")
                for name, path in wanted.items():
                    (self._directory / name).write_bytes(image.boot.read(path, max_bytes=_MAX_BOOT_BYTES))
        except FlashError as error:
            raise EmulationError(
                f"{self._image} cannot be booted here: {error.message}",
                hint="Images that `edgeslm flash base-image` makes can",
            ) from error

    def _disk(self) -> tuple[Path | str, Literal["raw", "qcow2"]]:
        size_bytes = self._image.stat().st_size
        # An SD card has a size that is a power of two; QEMU takes no other.
        card_bytes = (
            1 << (size_bytes - 1).bit_length() if self._emulation.machine == "raspi3b" else size_bytes
        )
        if self._keeps_changes:
            if card_bytes != size_bytes:
                raise EmulationError(
                    f"the card of a Raspberry Pi has a size that is a power of two, and {self._image} has"
                    f" {size_bytes} bytes",
                    hint=f"Make it longer, with: truncate -s {card_bytes} {self._image}",
                )
            return self._image if self._card is None else self._card.address, "raw"
        disk = self._directory / "disk.qcow2"
        if not disk.exists():
            made = subprocess.run(
                [
                    "qemu-img",
                    "create",
                    "-q",
                    "-f",
                    "qcow2",
                    "-F",
                    "raw",
                    "-b",
                    self._image,
                    disk,
                    str(card_bytes),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            if made.returncode != 0:
                raise EmulationError(f"qemu-img cannot make a card: {made.stderr.strip()}")
        return disk, "qcow2"

    def _log_bytes(self, since: int) -> bytes:
        try:
            with self.log.open("rb") as stream:
                stream.seek(since)
                return stream.read()
        except FileNotFoundError:
            return b""

    def _said(self) -> str:
        try:
            return (self._directory / "qemu.log").read_text(errors="replace").strip()[-_TAIL_CHARS:]
        except OSError:
            return ""

    def _listens(self) -> bool:
        """Whether QEMU came so far that it takes orders: all that it was told made sense then."""
        try:
            with socket.socket(socket.AF_UNIX) as connection, _in_directory_of(self.control) as path:
                connection.settimeout(_POLL_S)
                connection.connect(path)
                return b"QMP" in connection.recv(4096)
        except OSError:
            return False

    def _order(self, name: str, **arguments: object) -> None:
        """Give QEMU one order. It forgets orders of those who do not wait for its answer.

        Raises:
            OSError: it cannot be reached, or does not take the order.
        """
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_QMP_S)
            with _in_directory_of(self.control) as path:
                connection.connect(path)
            with connection.makefile("rwb") as stream:
                for order in ({"execute": "qmp_capabilities"}, {"execute": name, "arguments": arguments}):
                    stream.write(json.dumps(order).encode() + b"\n")
                    stream.flush()
                    answer: dict[str, object] = {}
                    while not answer.keys() & {"return", "error"}:
                        answer = json.loads(stream.readline() or b'{"error": "it hung up"}')
                    if "error" in answer:
                        raise OSError(f"QEMU does not take {order['execute']}: {answer['error']}")


@contextlib.contextmanager
def _in_directory_of(path: Path) -> Iterator[str]:
    """A name for a socket that is short enough: that of an address may have 107 bytes."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)
