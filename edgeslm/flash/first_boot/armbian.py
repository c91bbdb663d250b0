"""Armbian, whose first log-in asks questions.

How it behaves (armbian/build: ``armbian-firstlogin``, ``armbian-check-first-login.sh``, ``armbian-firstrun``,
``lib/functions/rootfs/distro-agnostic.sh``, ``extensions/preset-firstrun.sh``, ``extensions/cloud-init``):

- The file ``/root/.not_logged_in_yet`` makes the first log-in of root a dialogue. What it says in ``PRESET_`` variables
  is not asked. It is read by a shell, and not before somebody logs in: a board that nobody logs in to would never get
  its network from there. A password stands there in plain text.
- Until then root's password is ``1234``, and the consoles log root in without one.
- Taking the file away takes the dialogue away, as Armbian's own extension for cloud-init does.

What always holds: what a board needs without anybody logging in is written into its files. Where a user is asked for,
the dialogue and root's known password go, and the consoles ask who is there. Where none is, the dialogue stays and
asks only what nobody has said yet.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from edgeslm.flash.first_boot import accounts
from edgeslm.flash.first_boot.direct import direct_files
from edgeslm.flash.first_boot.method import FirstBootFiles, check_carries
from edgeslm.flash.first_boot.settling import synced_after
from edgeslm.flash.first_boot.system import System
from edgeslm.flash.tree import Entry
from edgeslm.schema.customisation import Customisation

LOOKED_FOR = "Armbian with its first log-in"
PRESET = "/root/.not_logged_in_yet"
_DIALOGUE = "/usr/lib/armbian/armbian-firstlogin"
_AUTOLOGIN = tuple(
    f"/etc/systemd/system/{unit}.service.d/override.conf"
    for unit in ("getty@", "getty@tty1", "serial-getty@", "serial-getty@ttyGS0")
)


@dataclass(frozen=True)
class Armbian:
    """Writes the image's files, and answers what its first log-in asks."""

    system: System
    name: str = "armbian"

    @property
    def title(self) -> str:
        """See :class:`~edgeslm.flash.first_boot.method.Method`."""
        return f"{self.system.os_title} (first log-in)"

    def files(self, customisation: Customisation) -> FirstBootFiles:
        """See :meth:`~edgeslm.flash.first_boot.method.Method.files`."""
        if customisation.is_empty:
            return FirstBootFiles()
        check_carries(self, customisation, {})
        found = direct_files(self, self.system, customisation) + synced_after("armbian-firstrun.service")
        if customisation.account is None:
            return found + self._answers(customisation)
        if not customisation.account.is_root:
            found = self._without_known_password(found)
        gone = (PRESET, *_AUTOLOGIN)
        return found + FirstBootFiles(remove_root=tuple(path for path in gone if self.system.has(path)))

    # --- pieces -------------------------------------------------------------------------------------------------

    def _without_known_password(self, found: FirstBootFiles) -> FirstBootFiles:
        entries = []
        for entry in found.root:
            if entry.path.endswith("/shadow") and isinstance(entry.content, bytes):
                text = entry.content.decode(errors="surrogateescape")
                locked = accounts.Accounts("", text, "").with_password("root", None).shadow
                body = locked.encode(errors="surrogateescape")
                entries.append(Entry(entry.path, content=body, mode=entry.mode, uid=entry.uid, gid=entry.gid))
            else:
                entries.append(entry)
        return FirstBootFiles(found.boot, tuple(entries), found.cmdline, found.remove_root)

    def _answers(self, customisation: Customisation) -> FirstBootFiles:
        said = {}
        if customisation.locale is not None:
            said["PRESET_LOCALE"] = customisation.locale
        if customisation.timezone is not None:
            said["PRESET_TIMEZONE"] = customisation.timezone
        if said:
            said["SET_LANG_BASED_ON_LOCATION"] = "n"
        if customisation.wifi is not None or customisation.wired is not None:
            said |= {"PRESET_NET_CHANGE_DEFAULTS": "0", "PRESET_CONNECT_WIRELESS": "n"}
        if not said:
            return FirstBootFiles()
        lines = [
            line
            for line in (self.system.text(PRESET) or "").splitlines()
            if line.partition("=")[0].strip() not in said
        ]
        lines += [f"{name}={shlex.quote(value)}" for name, value in said.items()]
        body = "".join(f"{line}\n" for line in lines)
        return FirstBootFiles(root=(Entry(PRESET, content=body.encode(), mode=0o600),))


def is_armbian(system: System) -> bool:
    """Whether `system` is an Armbian with that dialogue."""
    return system.has("/etc/armbian-release") and system.has(_DIALOGUE)
