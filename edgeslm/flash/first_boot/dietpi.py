"""``dietpi.txt`` and ``dietpi-wifi.txt``: DietPi's automation.

How it behaves (MichaIng/DietPi: ``dietpi-firstboot.bash``, ``fs_partition_resize.sh``, ``func/dietpi-wifidb``,
``func/dietpi-set_software``, ``dietpi.txt``):

- Lines ``NAME=value`` without quotes, the first of each name counting, read before the network is up. The files stand
  in ``/boot`` of the root; copies on the boot partition (a Raspberry Pi's) are taken over them where they are newer.
- ``dietpi-wifi.txt`` is read by a shell; a key of 64 digits is taken as it is.
- The wired and the wireless interface exclude each other: with the latter on the former is off, and a static address
  would be that of the latter. A static address needs a gateway.
- ``AUTO_SETUP_GLOBAL_PASSWORD`` is plain text, for ``root`` and ``dietpi``; an empty one leaves both as they are. There
  is no other user.

What always holds: both places say the same. Passwords are written as hashes into the image's own files.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from edgeslm.errors import FirstBootError
from edgeslm.flash.first_boot import accounts, local
from edgeslm.flash.first_boot.method import FirstBootFiles, check_carries
from edgeslm.flash.first_boot.settling import synced_after
from edgeslm.flash.first_boot.system import System, read_text
from edgeslm.flash.tree import Entry
from edgeslm.schema.customisation import Customisation, StaticAddress, Wifi

LOOKED_FOR = "DietPi"
_SETTINGS, _WIFI = "dietpi.txt", "dietpi-wifi.txt"
_USER = "dietpi"


@dataclass(frozen=True)
class DietPi:
    """Sets lines of two files."""

    system: System
    name: str = "dietpi"

    @property
    def title(self) -> str:
        """See :class:`~edgeslm.flash.first_boot.method.Method`."""
        return f"{self.system.os_title} (dietpi.txt)"

    def files(self, customisation: Customisation) -> FirstBootFiles:
        """See :meth:`~edgeslm.flash.first_boot.method.Method.files`."""
        if customisation.is_empty:
            return FirstBootFiles()
        self._check(customisation)
        root, boot = [], []
        said = _said(customisation)
        text = self.system.text(f"/boot/{_SETTINGS}")
        if text is None and self.system.boot is not None:
            text = read_text(self.system.boot, f"/{_SETTINGS}")
        body = with_settings(text or "", said).encode()
        root.append(Entry(f"/boot/{_SETTINGS}", content=body))
        if self.system.boot_has(f"/{_SETTINGS}"):
            boot.append(Entry(f"/{_SETTINGS}", content=body))
        if customisation.wifi is not None:
            wifi = wifi_text(customisation.wifi).encode()
            root.append(Entry(f"/boot/{_WIFI}", content=wifi, mode=0o600))
            if boot or self.system.boot_has(f"/{_WIFI}"):
                boot.append(Entry(f"/{_WIFI}", content=wifi))
        found = FirstBootFiles(boot=tuple(boot), root=tuple(root)) + synced_after("dietpi-firstboot.service")
        if customisation.ssh is False:
            found += FirstBootFiles(
                remove_root=self.system.disabling("dropbear.service", "ssh.service", "sshd.service")
            )
        return found + self._accounts(customisation)

    # --- pieces -------------------------------------------------------------------------------------------------

    def _check(self, customisation: Customisation) -> None:
        refused = {}
        account, wired = customisation.account, customisation.wired
        if account is not None and account.name not in (_USER, "root"):
            refused["account"] = f"has no users but {_USER} and root"
        if wired is not None and customisation.wifi is not None:
            refused["wired"] = "uses either the wired or the wireless interface"
        if isinstance(wired, StaticAddress):
            if wired.gateway is None:
                refused["wired"] = "needs --gateway with an address"
            elif any(server.version == 6 for server in wired.dns):
                refused["wired"] = "takes name servers with IPv4 addresses only"
        if customisation.wants_ssh and not (
            self.system.unit_path("dropbear.service") or self.system.ssh_unit is not None
        ):
            refused["ssh_keys" if customisation.ssh_keys else "ssh"] = "has no SSH server"
        if not {"default", "gateway"}.isdisjoint(customisation.ntp):
            refused["ntp"] = "means something else by 'default' and 'gateway' than servers of that name"
        check_carries(self, customisation, refused)
        if customisation.keyboard is not None:
            local.check_keyboard(self, self.system, customisation.keyboard)
        if customisation.timezone is not None:
            local.check_timezone(self, self.system, customisation.timezone)
        if customisation.locale is not None:
            local.check_locale(self, self.system, customisation.locale)

    def _accounts(self, customisation: Customisation) -> FirstBootFiles:
        account = customisation.account
        if account is None:
            return FirstBootFiles()
        before = accounts.read_accounts(self.system)
        person = before.person(account.name)
        if person is None:
            raise FirstBootError(f"--user: {account.name} is not in this image, which is no whole DietPi")
        after = before
        # Both had the password that everybody knows.
        for name in (_USER, "root"):
            if before.person(name) is not None:
                after = after.with_password(name, account.password_hash if name == account.name else None)
        return FirstBootFiles(
            root=(
                *accounts.account_entries(self.system, before, after),
                *accounts.key_entries(person, customisation.ssh_keys),
            )
        )


def is_dietpi(system: System) -> bool:
    """Whether `system` is a DietPi."""
    return system.has("/boot/dietpi") and (
        system.has(f"/boot/{_SETTINGS}") or system.boot_has(f"/{_SETTINGS}")
    )


def with_settings(text: str, said: dict[str, str]) -> str:
    """`text` with lines that say `said`; a line that says something else of it goes, comments stay."""
    missing = dict(said)
    lines = []
    for line in text.split("\n"):
        name = re.match(r"[ \t]*([A-Z][A-Z0-9_]*)=", line)
        if name is None or name[1] not in said:
            lines.append(line)
        elif name[1] in missing:
            lines.append(f"{name[1]}={missing.pop(name[1])}")
    body = "\n".join(lines).rstrip("\n")
    added = "".join(f"{name}={value}\n" for name, value in missing.items())
    return f"{body}\n{added}" if body else added


def wifi_text(wifi: Wifi) -> str:
    """``dietpi-wifi.txt`` with one network."""
    lines = [f"aWIFI_SSID[0]={shlex.quote(wifi.ssid)}"]
    if wifi.psk is None:
        lines.append("aWIFI_KEYMGR[0]='NONE'")
    else:
        lines += [f"aWIFI_KEY[0]={shlex.quote(wifi.psk)}", "aWIFI_KEYMGR[0]='WPA-PSK'"]
    return "".join(f"{line}\n" for line in lines)


def _said(customisation: Customisation) -> dict[str, str]:
    said = {}
    if customisation.hostname is not None:
        said["AUTO_SETUP_NET_HOSTNAME"] = customisation.hostname
    if customisation.locale is not None:
        said["AUTO_SETUP_LOCALE"] = customisation.locale
    if customisation.keyboard is not None:
        said["AUTO_SETUP_KEYBOARD_LAYOUT"] = customisation.keyboard
    if customisation.timezone is not None:
        said["AUTO_SETUP_TIMEZONE"] = customisation.timezone
    if customisation.ntp:
        said["CONFIG_NTP_MIRROR"] = " ".join(customisation.ntp)
    if customisation.account is not None:
        said["AUTO_SETUP_GLOBAL_PASSWORD"] = ""
        said["SOFTWARE_DISABLE_SSH_PASSWORD_LOGINS"] = "0" if customisation.password_over_ssh else "1"
    if customisation.ssh is False:
        said["AUTO_SETUP_SSH_SERVER_INDEX"] = "0"
    if customisation.wifi is not None:
        said |= {
            "AUTO_SETUP_NET_WIFI_ENABLED": "1",
            "AUTO_SETUP_NET_ETHERNET_ENABLED": "0",
            "AUTO_SETUP_NET_WIFI_COUNTRY_CODE": customisation.wifi.country,
        }
    elif customisation.wired is not None:
        said["AUTO_SETUP_NET_ETHERNET_ENABLED"] = "1"
    if isinstance(customisation.wired, StaticAddress):
        wired = customisation.wired
        said |= {
            "AUTO_SETUP_NET_USESTATIC": "1",
            "AUTO_SETUP_NET_STATIC_IP": str(wired.address.ip),
            "AUTO_SETUP_NET_STATIC_MASK": str(wired.address.netmask),
            "AUTO_SETUP_NET_STATIC_GATEWAY": str(wired.gateway),
        }
        if wired.dns:
            said["AUTO_SETUP_NET_STATIC_DNS"] = " ".join(str(server) for server in wired.dns)
    return said
