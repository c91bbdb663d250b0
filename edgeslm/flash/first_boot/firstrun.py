"""``firstrun.sh``: Raspberry Pi OS up to Bookworm, and Trixie's first images, which have no cloud-init.

How they behave (rpi-imager, ``src/customization_generator.cpp`` and ``src/downloadthread.cpp``; raspberrypi-sys-mods,
``imager_custom``, ``firstboot``, ``imager_fixup``; userconf-pi, ``userconf``):

- ``systemd.run=`` on the kernel's command line makes systemd start the script in place of everything else, once the
  boot partition is mounted, and restart the board after it. Bookworm mounts that partition at ``/boot/firmware``.
- ``userconf NAME HASH`` renames the user 1000, moves the home, sets the password, and ends the questions of the first
  start; an empty hash leaves the password alone.
- ``imager_custom enable_ssh`` switches SSH on; ``set_wlan_country`` also lifts the block of the radio; ``set_keymap``
  goes through ``raspi-config``. Its ``set_wlan`` writes names unquoted, so that it is not used here.

What always holds: the script does only what has to run on the board; what is a file is written as one. It can be cut
short at any moment and begins anew at the next start, each step giving the same again, for it takes itself off the
command line last and after a sync. A step that fails leaves the others alone and the board starting.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from edgeslm.flash.first_boot import accounts, local
from edgeslm.flash.first_boot.direct import place_files
from edgeslm.flash.first_boot.method import FirstBootFiles, check_carries, refuse
from edgeslm.flash.first_boot.network import network_files, regulatory_words
from edgeslm.flash.first_boot.ssh import password_files
from edgeslm.flash.first_boot.system import System
from edgeslm.flash.tree import Entry
from edgeslm.schema.customisation import Account, Customisation

LOOKED_FOR = "Raspberry Pi OS with imager_custom or userconf"
_CUSTOM = "/usr/lib/raspberrypi-sys-mods/imager_custom"
_USERCONF = "/usr/lib/userconf-pi/userconf"
LOG = "/var/log/edgeslm-first-boot.log"


@dataclass(frozen=True)
class FirstRun:
    """Runs a script at the first start."""

    system: System
    name: str = "firstrun"

    @property
    def title(self) -> str:
        """See :class:`~edgeslm.flash.first_boot.method.Method`."""
        return f"{self.system.os_title} (firstrun.sh)"

    def files(self, customisation: Customisation) -> FirstBootFiles:
        """See :meth:`~edgeslm.flash.first_boot.method.Method.files`."""
        if customisation.is_empty:
            return FirstBootFiles()
        self._check(customisation)
        without_keyboard = customisation.model_copy(update={"keyboard": None})
        found = network_files(self, self.system, customisation)
        found += place_files(self, self.system, without_keyboard)
        found += FirstBootFiles(cmdline=regulatory_words(customisation.wifi))
        if customisation.hostname is not None:
            found += local.hostname_files(self.system, customisation.hostname)
        if customisation.account is not None:
            found += first_user_files(self.system, customisation)
            found += password_files(self.system, customisation)
        steps = self._steps(customisation)
        if not steps:
            return found
        path = f"{self.system.boot_path}/firstrun.sh"
        words = (
            f"systemd.run={path}",
            "systemd.run_success_action=reboot",
            "systemd.unit=kernel-command-line.target",
        )
        script = Entry("/firstrun.sh", content=_script(self.system.boot_path, steps).encode(), mode=0o755)
        return found + FirstBootFiles(boot=(script,), cmdline=words)

    # --- pieces -------------------------------------------------------------------------------------------------

    def _check(self, customisation: Customisation) -> None:
        refused = {}
        if customisation.account is not None and customisation.account.is_root:
            refused["account"] = (
                "gives its first user another name and leaves root locked; name another than root"
            )
        if customisation.wants_ssh and self.system.ssh_unit is None:
            refused["ssh_keys" if customisation.ssh_keys else "ssh"] = "has no SSH server"
        check_carries(self, customisation, refused)
        if customisation.keyboard is not None:
            local.check_keyboard(self, self.system, customisation.keyboard)
        if customisation.account is not None and accounts.read_accounts(self.system).first_person() is None:
            raise refuse(self, "account", "has no user 1000 to give another name")

    def _steps(self, customisation: Customisation) -> list[str]:
        steps: list[str] = []
        if customisation.account is not None:
            steps += _user_steps(customisation.account)
        if customisation.wants_ssh:
            steps += [
                f"if [ -x {_CUSTOM} ]; then",
                f"  {_CUSTOM} enable_ssh",
                "else",
                "  systemctl enable ssh",
                "fi",
            ]
        elif customisation.wants_ssh is False:
            steps.append("systemctl disable ssh")
        if customisation.wifi is not None:
            country = shlex.quote(customisation.wifi.country)
            steps += [
                f"if [ -x {_CUSTOM} ]; then {_CUSTOM} set_wlan_country {country}; fi",
                "rfkill unblock wifi",
                "for block in /var/lib/systemd/rfkill/*:wlan; do",
                '  if [ -f "$block" ]; then echo 0 >"$block"; fi',
                "done",
            ]
        if customisation.keyboard is not None:
            layout = shlex.quote(customisation.keyboard)
            steps += [
                f"if [ -x {_CUSTOM} ]; then",
                f"  {_CUSTOM} set_keymap {layout}",
                "else",
                f"  raspi-config nonint do_configure_keyboard {layout}",
                "fi",
            ]
        return steps


def is_firstrun(system: System) -> bool:
    """Whether `system` is a Raspberry Pi OS that starts such a script."""
    has_tools = system.has(_CUSTOM) or system.has(_USERCONF)
    return has_tools and system.kernel_line is not None


def first_user_files(system: System, customisation: Customisation) -> FirstBootFiles:
    """Keys in the home of the user who is there under another name yet: renaming moves them along.

    Raises:
        FirstBootError: the image has no users.
    """
    person = accounts.read_accounts(system).first_person()
    if person is None or customisation.account is None:
        return FirstBootFiles()
    return FirstBootFiles(
        root=(
            *accounts.key_entries(person, customisation.ssh_keys),
            *accounts.sudo_entries(system, customisation.account),
        )
    )


def _user_steps(account: Account) -> list[str]:
    name = shlex.quote(account.name)
    # Where no password lets in, none of the image's may either.
    password = shlex.quote(account.password_hash or accounts.LOCKED)
    return [
        "first=$(getent passwd 1000 | cut -d: -f1)",
        f"if [ -x {_USERCONF} ]; then",
        f"  {_USERCONF} {name} {password}",
        'elif [ -n "$first" ]; then',
        f'  if [ "$first" != {name} ]; then',
        f'    usermod -l {name} "$first"',
        f"    usermod -m -d /home/{name} {name}",
        f'    groupmod -n {name} "$first"',
        "  fi",
        f"  printf '%s:%s\\n' {name} {password} | chpasswd -e",
        "fi",
    ]


def _script(boot_path: str, steps: list[str]) -> str:
    lines = [
        "#!/bin/sh",
        "# Sets up what only the running board can; made by edgeslm flash prepare. Takes itself away when it is done.",
        "set +e",
        "export LC_ALL=C",
        f"exec >>{LOG} 2>&1",
        "",
        *steps,
        "",
        "# What was done lasts before the next start is told not to do it again.",
        "sync",
        f"boot={boot_path}",
        "sed -e 's| systemd\\.run[^ ]*||g' -e 's| systemd\\.unit=kernel-command-line\\.target||g' \\",
        '  "$boot/cmdline.txt" >"$boot/cmdline.new" && sync && mv "$boot/cmdline.new" "$boot/cmdline.txt"',
        "sync",
        'rm -f "$boot/firstrun.sh"',
        "sync",
        "exit 0",
    ]
    return "".join(f"{line}\n" for line in lines)
