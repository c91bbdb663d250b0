"""What the system in an image is: what decides which profiles fit it, which wheels, and how its first boot is set up.

What always holds: a fact is read from the files of the image, and is ``None`` or ``""`` where they do not say it.
Nothing of the image is run.
"""

from __future__ import annotations

import re
import shlex
import struct
from dataclasses import dataclass
from typing import Literal

from edgeslm.flash.tree import Tree, resolve

ImageKind = Literal["raspios", "ubuntu", "armbian", "dietpi", "debian", "unknown"]

_MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
"""e_machine of ELF, and what uname calls it."""
_PROGRAMS = ("/usr/bin/true", "/bin/true", "/usr/bin/dpkg", "/bin/busybox", "/usr/bin/busybox", "/bin/sh")
_LIBRARIES = ("/usr/lib/{}-linux-gnu", "/lib/{}-linux-gnu", "/usr/lib64", "/lib64", "/usr/lib", "/lib")
_TRIPLETS = {"armv7l": ("arm-linux-gnueabihf", "arm-linux-gnueabi")}
_GLIBC = re.compile(rb"GNU C Library [^\n\0]{0,100}? version (\d{1,2}\.\d{1,3})")
_GLIBC_NAME = re.compile(r"libc-(\d{1,2}\.\d{1,3})\.so")
_PYTHON = re.compile(r"python(3\.\d{1,2})")
_SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
_TEXT_BYTES = 64 * 1024
_PROGRAM_BYTES = 32 * 2**20
_MAX_VALUE = 200


@dataclass(frozen=True)
class ImageFacts:
    """What the system in an image is.

    Attributes:
        kind: whose image it is.
        os_id: ``ID`` of os-release, such as ``debian``; ``""`` where it does not say.
        os_version: ``VERSION_ID``, such as ``12``.
        os_codename: ``VERSION_CODENAME``, such as ``bookworm``.
        os_name: ``PRETTY_NAME``.
        machine: as uname names it, such as ``aarch64``, from a program in the image.
        python: version of its Python, such as ``3.11``.
        python_path: the program behind ``/usr/bin/python3``, no link on the way.
        glibc: version, such as ``2.36``.
        systemd: it is there.
        image_bytes: size of the image.
        root_bytes: size of the root partition.
        root_free_bytes: what still fits there.
        boot_free_bytes: what still fits into the boot partition, if there is one.
    """

    kind: ImageKind
    os_id: str
    os_version: str
    os_codename: str
    os_name: str
    machine: str | None
    python: str | None
    python_path: str | None
    glibc: str | None
    systemd: bool
    image_bytes: int
    root_bytes: int
    root_free_bytes: int
    boot_free_bytes: int | None


def read_facts(root: Tree, boot: Tree | None, *, image_bytes: int, root_bytes: int) -> ImageFacts:
    """What the system in `root` is.

    Args:
        root: its root file system.
        boot: its boot partition, if it is another one.
        image_bytes: size of the image.
        root_bytes: size of the root partition.

    Raises:
        TreeError: a tree cannot be read.
    """
    release = _release(root)
    machine = _machine(root)
    python_path, python = _python(root)
    return ImageFacts(
        kind=_kind(root, boot, release.get("ID", "")),
        os_id=release.get("ID", ""),
        os_version=release.get("VERSION_ID", ""),
        os_codename=release.get("VERSION_CODENAME", ""),
        os_name=release.get("PRETTY_NAME", ""),
        machine=machine,
        python=python,
        python_path=python_path,
        glibc=_glibc(root, machine),
        systemd=any(is_file(root, path) for path in _SYSTEMD),
        image_bytes=image_bytes,
        root_bytes=root_bytes,
        root_free_bytes=root.free_bytes(),
        boot_free_bytes=None if boot is None else boot.free_bytes(),
    )


def is_file(tree: Tree, path: str) -> bool:
    """Whether there is a file at `path`, links followed.

    Raises:
        TreeError: `tree` cannot be read.
    """
    node = tree.stat(resolve(tree, path))
    return node is not None and node.kind == "file"


def has_system(root: Tree) -> bool:
    """Whether `root` is the root file system of a system, and not another partition of it.

    Raises:
        TreeError: it cannot be read.
    """
    return any(
        is_file(root, path) for path in ("/etc/os-release", "/usr/lib/os-release", *_SYSTEMD, "/sbin/init")
    )


def _release(root: Tree) -> dict[str, str]:
    """The values of os-release(5)."""
    found: dict[str, str] = {}
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        if not is_file(root, path):
            continue
        for line in root.read(path, max_bytes=_TEXT_BYTES).decode("utf-8", errors="replace").splitlines():
            key, equals, value = line.strip().partition("=")
            if not equals or key.startswith("#"):
                continue
            try:
                words = shlex.split(value)
            except ValueError:
                continue
            found[key] = "".join(letter for letter in " ".join(words) if letter.isprintable())[:_MAX_VALUE]
        break
    return found


def _machine(root: Tree) -> str | None:
    for path in _PROGRAMS:
        if not is_file(root, path):
            continue
        head = root.read(path, max_bytes=_PROGRAM_BYTES)[:20]
        if len(head) == 20 and head.startswith(b"\x7fELF") and head[5] == 1:
            (number,) = struct.unpack_from("<H", head, 18)
            return _MACHINES.get(number, f"elf-{number}")
    return None


def _python(root: Tree) -> tuple[str | None, str | None]:
    path = resolve(root, "/usr/bin/python3")
    found = _PYTHON.fullmatch(path.rpartition("/")[2])
    if found is None or not is_file(root, path):
        return None, None
    return path, found[1]


def _glibc(root: Tree, machine: str | None) -> str | None:
    folders = [pattern.format(machine) for pattern in _LIBRARIES]
    folders += [f"/usr/lib/{triplet}" for triplet in _TRIPLETS.get(machine or "", ())]
    for folder in folders:
        path = resolve(root, f"{folder}/libc.so.6")
        node = root.stat(path)
        if node is None or node.kind != "file":
            continue
        named = _GLIBC_NAME.fullmatch(path.rpartition("/")[2])
        if named is not None:
            return named[1]
        written = _GLIBC.search(root.read(path, max_bytes=_PROGRAM_BYTES))
        if written is not None:
            return written[1].decode()
    return None


def _kind(root: Tree, boot: Tree | None, os_id: str) -> ImageKind:
    """Whose image it is: those who build on another's system leave a file of their own."""
    if any(is_file(root, path) for path in ("/etc/armbian-release", "/etc/armbian-image-release")):
        return "armbian"
    if any(tree is not None and is_file(tree, path) for tree, path in (
        (boot, "/dietpi.txt"), (root, "/boot/dietpi.txt"), (root, "/boot/dietpi/.version"),
    )):  # fmt: skip
        return "dietpi"
    if is_file(root, "/etc/rpi-issue") or os_id == "raspbian":
        return "raspios"
    match os_id:
        case "ubuntu":
            return "ubuntu"
        case "debian":
            return "debian"
        case _:
            return "unknown"
