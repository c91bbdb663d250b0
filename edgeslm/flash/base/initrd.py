"""The initial file system of a kernel: busybox, the modules that lead to the root file system, and a script.

It is made here and not by the board's own tools, which would have to run on the board's processor. The same modules
give the same bytes.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst (cpio newc).
"""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Callable, Iterable, Mapping

from edgeslm.errors import BaseImageError

_DIRECTORIES = ("bin", "dev", "proc", "sys", "new", "m")
_SUFFIX = re.compile(r"\.ko(\.(xz|zst|gz))?$")

# A root file system that does not appear is waited for; then the board starts again: nobody may be there to look.
_INIT = """\
#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs dev /dev
for module in @MODULES@; do
    $B insmod /m/$module.ko || echo "initrd: $module cannot be loaded"
done
root=
init=/sbin/init
for word in $($B cat /proc/cmdline); do
    case $word in
        root=*) root=${word#root=} ;;
        init=*) init=${word#init=} ;;
    esac
done
find_root() {
    case $root in
        LABEL=*|UUID=*) $B findfs "$root" 2>/dev/null ;;
        PARTUUID=*)
            for found in $($B grep -il "^$root\\$" /sys/class/block/*/uevent); do
                found=${found%/uevent}
                echo "/dev/${found##*/}"
                break
            done ;;
        *) echo "$root" ;;
    esac
}
tries=0
while [ $tries -lt 600 ]; do
    device=$(find_root)
    [ -b "$device" ] && break
    $B usleep 100000
    tries=$((tries + 1))
done
if ! $B mount -t ext4 -o ro "$device" /new; then
    echo "initrd: no root file system at $root; the board starts again in 10 s"
    $B sleep 10
    $B reboot -f
fi
$B umount /sys
$B umount /proc
$B mount --move /dev /new/dev
exec $B switch_root /new "$init"
"""


def module_name(path: str) -> str:
    """The name of a module, by its file."""
    return _SUFFIX.sub("", path.rpartition("/")[2]).replace("-", "_")


def is_module(path: str) -> bool:
    """Whether a file is a module of the kernel."""
    return bool(_SUFFIX.search(path))


def with_needed(
    wanted: Iterable[str], read: Callable[[str], bytes | None], aliases: Mapping[str, str] | None = None
) -> dict[str, bytes]:
    """Modules and all that they need, in an order in which they can be loaded.

    Args:
        wanted: names; those that the kernel does not have as a module are passed over.
        read: the file of a module by its name, packed as it is; ``None`` where there is none.
        aliases: names of modules by what else they are asked for as, such as ``crypto_crc32c``.
    """
    found: dict[str, bytes] = {}
    entered: set[str] = set()

    def add(name: str) -> None:
        if name in entered:
            return
        entered.add(name)
        packed = read(name)
        if packed is None:
            if aliases is not None and name in aliases:
                add(aliases[name])
            return
        data = _unpacked(name, packed)
        for needed in _needs(data):
            add(needed)
        found[name] = data

    for name in wanted:
        add(name.replace("-", "_"))
    return found


def make_initrd(busybox: bytes, modules: Mapping[str, bytes]) -> bytes:
    """The initial file system.

    Args:
        busybox: its program, linked statically.
        modules: by name, in the order to load them in.
    """
    archive = _Cpio()
    for name in _DIRECTORIES:
        archive.add(name, mode=0o40755)
    archive.add("dev/console", mode=0o20600, device=(5, 1))
    archive.add("bin/busybox", busybox, mode=0o100755)
    archive.add("init", _INIT.replace("@MODULES@", " ".join(modules)).encode(), mode=0o100755)
    for name, data in modules.items():
        archive.add(f"m/{name}.ko", data, mode=0o100644)
    return gzip.compress(archive.finish(), 6, mtime=0)


def _needs(module: bytes) -> list[str]:
    found = []
    for value in re.findall(rb"\0depends=([^\0]*)", module):
        found += value.decode("ascii", "replace").split(",")
    for value in re.findall(rb"\0softdep=([^\0]*)", module):
        before, _, _ = value.decode("ascii", "replace").partition("post:")
        found += before.removeprefix("pre:").split()
    return [name.replace("-", "_") for name in found if name]


def _unpacked(name: str, data: bytes) -> bytes:
    try:
        if data.startswith(b"\xfd7zXZ\0"):
            return lzma.decompress(data)
        if data.startswith(b"\x1f\x8b"):
            return gzip.decompress(data)
    except (lzma.LZMAError, OSError, EOFError) as error:
        raise BaseImageError(f"the module {name} of the kernel is damaged: {error}") from error
    if not data.startswith(b"\x7fELF"):
        raise BaseImageError(f"the module {name} of the kernel is packed in a way that is not known")
    return data


class _Cpio:
    """An archive in the form newc."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(self, name: str, data: bytes = b"", *, mode: int, device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        full = name.encode() + b"\0"
        numbers = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(full), 0)
        head = b"070701" + b"".join(b"%08X" % number for number in numbers) + full
        self._parts += [_padded(head), _padded(data)]

    def finish(self) -> bytes:
        self.add("TRAILER!!!", mode=0)
        return b"".join(self._parts)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
