"""What a base image consists of, by the kind of board: packages, kernel, partitions, boot files.

Pure: nothing is read or fetched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgeslm.errors import BaseImageError
from edgeslm.schema.board import Board

SUITE = "trixie"
ARCHITECTURE = "arm64"
FORMAT = 2
"""Part of what an image is known by: raise it when the same packages are to give another image."""

BOOT_LABEL, ROOT_LABEL = "bootfs", "rootfs"
KERNEL, INITRD = "vmlinuz", "initrd.img"
MOUNTED_AT = "/boot/firmware"

_SYSTEM = (
    *(
        "base-files",
        "base-passwd",
        "bash",
        "coreutils",
        "dash",
        "debianutils",
        "diffutils",
        "findutils",
        "grep",
    ),
    *("gzip", "hostname", "init-system-helpers", "libc-bin", "login", "mawk", "ncurses-base", "ncurses-bin"),
    *("passwd", "perl-base", "sed", "sysvinit-utils", "tar", "util-linux"),
    *("apt", "debian-archive-keyring", "dpkg"),
    *("dbus", "systemd", "systemd-resolved", "systemd-sysv", "systemd-timesyncd", "udev"),
    *("ca-certificates", "dosfstools", "e2fsprogs", "fdisk", "iproute2", "kmod", "netbase", "tzdata"),
    *("libstdc++6", "python3", "python3-venv"),
    "busybox-static",  # all that the initial file system consists of beside modules
)
_VIRT_MODULES = ("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_scsi", "sd_mod", "ext4")
_PI_MODULES = (
    # What stands between a Raspberry Pi's processor and its card, stick or disk. Names that a kernel has built in, or
    # does not know, are passed over.
    *(
        "bcm2835_dma",
        "clk_raspberrypi",
        "gpio_raspberrypi_exp",
        "gpio_regulator",
        "fixed",
        "raspberrypi_power",
    ),
    *("reset_raspberrypi", "phy_generic"),
    *("sdhci_iproc", "bcm2835", "mmc_block"),
    *("pcie_brcmstb", "nvme", "xhci_pci", "xhci_plat_hcd", "dwc2", "usb_storage", "uas", "sd_mod"),
    "ext4",
)
_PI_CONFIG = f"""\
# Settings of the firmware: https://www.raspberrypi.com/documentation/computers/config_txt.html
arm_64bit=1
enable_uart=1
upstream_kernel=1
kernel={KERNEL}
initramfs {INITRD} followkernel
"""
# A board that nobody watches repairs its file system by itself, and does not stand still after a panic.
_ROOT = f"root=LABEL={ROOT_LABEL} rw rootwait fsck.repair=yes panic=10 net.ifnames=0"


@dataclass(frozen=True)
class Recipe:
    """One kind of base image.

    Attributes:
        name: of the kind; boards of one kind share an image.
        kernel: package that brings the kernel in.
        packages: all others that are wanted; what these need comes by itself.
        components: of the archive, in which they are.
        table: kind of the partition table.
        boot_mib: size of the boot partition.
        modules: that the initial file system loads, in this order, with what they need.
        command_line: of the kernel.
        settings: content of the boot partition's text files, by name.
        firmware: directories whose files go into the boot partition, and how these end.
    """

    name: Literal["virt", "pi"]
    kernel: str
    table: Literal["gpt", "mbr"]
    boot_mib: int
    modules: tuple[str, ...]
    command_line: str
    packages: tuple[str, ...] = _SYSTEM
    components: tuple[str, ...] = ("main",)
    settings: dict[str, str] = field(default_factory=dict)
    firmware: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def boot_texts(self) -> dict[str, bytes]:
        """All text files of the boot partition, by name."""
        return {
            name: text.encode()
            for name, text in {**self.settings, "cmdline.txt": f"{self.command_line}\n"}.items()
        }

    def identity(self) -> str:
        """One line that changes with anything that this says."""
        return repr((FORMAT, self))


VIRT = Recipe(
    name="virt",
    kernel="linux-image-cloud-arm64",
    table="gpt",
    boot_mib=96,
    modules=_VIRT_MODULES,
    command_line=f"console=ttyAMA0 {_ROOT}",
)
PI = Recipe(
    name="pi",
    kernel="linux-image-arm64",
    table="mbr",
    boot_mib=256,
    modules=_PI_MODULES,
    command_line=f"console=tty0 console=ttyS1,115200 {_ROOT}",
    packages=(*_SYSTEM, "raspi-firmware", "firmware-brcm80211", "wireless-regdb", "wpasupplicant"),
    components=("main", "non-free-firmware"),
    settings={"config.txt": _PI_CONFIG},
    firmware=(
        ("usr/lib/raspi-firmware/", (".bin", ".dat", ".elf")),
        ("broadcom/", (".dtb",)),
    ),
)
_WITHOUT_DRIVERS = "BCM2712"
_BY_BOOT = {"direct": VIRT, "raspberrypi-firmware": PI}


def recipe_of(board: Board) -> Recipe:
    """The kind of image that a board boots from.

    Raises:
        BaseImageError: there is none.
    """
    if _WITHOUT_DRIVERS in board.soc:
        raise BaseImageError(
            f"the kernel of Debian 13 has no driver for the network and USB of {board.title} (RP1)",
            hint="Take Raspberry Pi OS for it",
        )
    recipe = None if board.boot is None else _BY_BOOT.get(board.boot.kind)
    if recipe is None:
        raise BaseImageError(
            f"there is no base image for {board.title}",
            hint="There is one for qemu-virt and for the boards of Raspberry Pi; else take the image of the maker",
        )
    return recipe
