"""What the files of an image tell about its operating system, as far as customising it asks.

What always holds: nothing is assumed of what is not there; a file that is missing, or too large to be what its name
says, is told apart from one that is empty.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cached_property

from edgeslm.errors import TreeError
from edgeslm.flash.tree import Entry, Tree, resolve

_MAX_BYTES = 2**20
_UNITS = ("/usr/lib/systemd/system", "/lib/systemd/system", "/etc/systemd/system")
_WANTS = "/etc/systemd/system/multi-user.target.wants"


def read_text(tree: Tree, path: str, *, max_bytes: int = _MAX_BYTES) -> str | None:
    """The text of a file; ``None`` where there is none.

    Raises:
        TreeError: it cannot be read.
    """
    where = resolve(tree, path)
    node = tree.stat(where)
    if node is None or node.kind != "file":
        return None
    return tree.read(where, max_bytes=max_bytes).decode(errors="replace")


def has(tree: Tree, path: str) -> bool:
    """Whether there is something at `path`, links followed."""
    return tree.stat(resolve(tree, path)) is not None


@dataclass(frozen=True)
class System:
    """The files of an image.

    Attributes:
        boot: the boot partition, if the image has one that can be read.
        root: the root file system.
    """

    boot: Tree | None
    root: Tree

    def has(self, path: str) -> bool:
        """Whether the root has something at `path`."""
        return has(self.root, path)

    def has_program(self, name: str) -> bool:
        """Whether a program is installed."""
        return any(self.has(f"{where}/{name}") for where in ("/usr/bin", "/usr/sbin", "/bin", "/sbin"))

    def text(self, path: str) -> str | None:
        """The text of a file of the root; ``None`` where there is none."""
        return read_text(self.root, path)

    def boot_has(self, path: str) -> bool:
        """Whether the boot partition has something at `path`."""
        return self.boot is not None and has(self.boot, path)

    @cached_property
    def os_release(self) -> dict[str, str]:
        """What ``/etc/os-release`` says (os-release(5))."""
        text = self.text("/etc/os-release") or self.text("/usr/lib/os-release") or ""
        found: dict[str, str] = {}
        for line in text.splitlines()[:200]:
            name, equals, value = line.partition("=")
            if not equals or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
                continue
            try:
                words = shlex.split(value)
            except ValueError:
                continue
            found[name] = words[0] if words else ""
        return found

    @property
    def os_title(self) -> str:
        """What the operating system calls itself."""
        return self.os_release.get("PRETTY_NAME") or self.os_release.get("ID") or "an unnamed system"

    @cached_property
    def boot_path(self) -> str:
        """Where the boot partition is mounted."""
        for line in (self.text("/etc/fstab") or "").splitlines():
            fields = line.split()
            if len(fields) >= 3 and fields[2] == "vfat" and fields[1] in ("/boot/firmware", "/boot"):
                return fields[1]
        return "/boot/firmware" if self.has("/boot/firmware") else "/boot"

    def unit_path(self, unit: str) -> str | None:
        """Where a unit of systemd stands; ``None`` where there is no such unit."""
        return next((f"{where}/{unit}" for where in _UNITS if self.has(f"{where}/{unit}")), None)

    def enabling(self, unit: str, *, instance: str | None = None) -> Entry:
        """The link that starts `unit` at every boot.

        Args:
            unit: such as ``ssh.service``, or a template such as ``wpa_supplicant@.service``.
            instance: of a template.

        Raises:
            TreeError: there is no such unit.
        """
        path = self.unit_path(unit)
        if path is None:
            raise TreeError(f"the image has no unit {unit}", path=unit)
        name = unit if instance is None else unit.replace("@", f"@{instance}")
        return Entry(f"{_WANTS}/{name}", "symlink", target=path)

    def disabling(self, *units: str) -> tuple[str, ...]:
        """The links that start any of `units`, for taking them away."""
        found = []
        for where in (_WANTS, "/etc/systemd/system/sockets.target.wants", "/etc/systemd/system"):
            for unit in units:
                node = self.root.stat(f"{where}/{unit}")
                # A unit that the image keeps as a file of its own there is not ours to take away.
                if node is not None and node.kind == "symlink":
                    found.append(f"{where}/{unit}")
        return tuple(found)

    @property
    def ssh_unit(self) -> str | None:
        """The unit of the SSH server; ``None`` where there is none."""
        return next((unit for unit in ("ssh.service", "sshd.service") if self.unit_path(unit)), None)

    @property
    def kernel_line(self) -> str | None:
        """The command line of the kernel as a file of the boot partition holds it; ``None`` where none does."""
        return read_text(self.boot, "/cmdline.txt") if self.boot is not None else None
