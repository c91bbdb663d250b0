r"""``rpi-preseed.toml``: Raspberry Pi OS with the package rpi-preseed in place of cloud-init.

How it behaves (raspberrypi/rpi-preseed at 0.1.0: ``src/lib/toml.sh``, ``src/apply``, ``schema/rpi-preseed.schema``):

- A file of that name on the boot partition is enough; it is applied once, before anybody can log in.
- Its reader knows ``\\`` and ``\"`` alone, and takes a list for ended at the first line with a bracket: lists
  stand on one line here. Keys that its table does not have are passed over with a warning, so that each is looked up
  in the table that the image carries.
- The name of a network goes into a profile of NetworkManager unquoted, unless it is given as hexadecimal digits.
- ``ssh.authorized_keys`` goes through a loop in a subshell of which nothing comes out where ``imager_custom`` is
  installed. The keys are put into the home of the first user instead, which renaming takes along.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from edgeslm.flash.first_boot import accounts, local
from edgeslm.flash.first_boot.firstrun import first_user_files
from edgeslm.flash.first_boot.method import FirstBootFiles, check_carries, refuse
from edgeslm.flash.first_boot.network import regulatory_words
from edgeslm.flash.first_boot.settling import synced_after
from edgeslm.flash.first_boot.system import System
from edgeslm.flash.tree import Entry
from edgeslm.schema.customisation import Customisation, StaticAddress, Wifi

LOOKED_FOR = "rpi-preseed"
_PROGRAM = "/usr/lib/rpi-preseed/rpi-preseed"
_TABLE = "/usr/share/rpi-preseed/rpi-preseed.schema"
_PLAIN_SSID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_PARTS = {
    "system": "hostname",
    "user": "account",
    "ssh": "ssh",
    "wlan": "wifi",
    "ethernet": "wired",
    "locale": "locale",
    "time": "ntp",
}
"""Which attribute of the customisation each part of the file carries."""

Value = str | bool | tuple[str, ...]


@dataclass(frozen=True)
class Preseed:
    """Writes one file of settings."""

    system: System
    name: str = "preseed"

    @property
    def title(self) -> str:
        """See :class:`~edgeslm.flash.first_boot.method.Method`."""
        return f"{self.system.os_title} (rpi-preseed)"

    def files(self, customisation: Customisation) -> FirstBootFiles:
        """See :meth:`~edgeslm.flash.first_boot.method.Method.files`."""
        if customisation.is_empty:
            return FirstBootFiles()
        self._check(customisation)
        settings = self._settings(customisation)
        for key in settings:
            if key not in self._known_keys:
                part, _, name = key.partition(".")
                option = name if name in ("timezone", "keymap") else _PARTS[part]
                option = "keyboard" if option == "keymap" else option
                raise refuse(self, option, f"knows no {key}: its rpi-preseed is too old")
        found = FirstBootFiles(
            boot=(Entry("/rpi-preseed.toml", content=to_toml(settings).encode()),),
            cmdline=regulatory_words(customisation.wifi),
        )
        if customisation.account is not None:
            found += first_user_files(self.system, customisation)
        return found + synced_after("rpi-preseed.service")

    # --- pieces -------------------------------------------------------------------------------------------------

    @cached_property
    def _known_keys(self) -> frozenset[str]:
        lines = (self.system.text(_TABLE) or "").splitlines()
        return frozenset(line.split()[0] for line in lines if line.strip() and not line.startswith("#"))

    def _check(self, customisation: Customisation) -> None:
        refused = {}
        if customisation.account is not None and customisation.account.is_root:
            refused["account"] = (
                "gives its first user another name and leaves root locked; name another than root"
            )
        if customisation.ssh is False:
            refused["ssh"] = "does not switch SSH off; it leaves it as the image has it"
        check_carries(self, customisation, refused)
        if customisation.account is not None and accounts.read_accounts(self.system).first_person() is None:
            raise refuse(self, "account", "has no user 1000 to give another name")
        if customisation.timezone is not None:
            local.check_timezone(self, self.system, customisation.timezone)
        if customisation.keyboard is not None:
            local.check_keyboard(self, self.system, customisation.keyboard)
        if customisation.locale is not None:
            local.check_locale(self, self.system, customisation.locale)

    def _settings(self, customisation: Customisation) -> dict[str, Value]:
        settings: dict[str, Value] = {}
        if customisation.hostname is not None:
            settings["system.hostname"] = customisation.hostname
        if customisation.account is not None:
            settings["user.name"] = customisation.account.name
            settings["user.password"] = customisation.account.password_hash or accounts.LOCKED
            settings["user.password_encrypted"] = True
        if customisation.wants_ssh:
            settings["ssh.enabled"] = True
            settings["ssh.password_authentication"] = customisation.password_over_ssh
        if customisation.wifi is not None:
            settings |= _wifi(customisation.wifi)
        if isinstance(customisation.wired, StaticAddress):
            wired = customisation.wired
            settings["ethernet.method"] = "static"
            settings["ethernet.address"] = str(wired.address)
            if wired.gateway is not None:
                settings["ethernet.gateway"] = str(wired.gateway)
            if wired.dns:
                settings["ethernet.dns"] = tuple(str(server) for server in wired.dns)
        elif customisation.wired is not None:
            settings["ethernet.method"] = "dhcp"
        if customisation.keyboard is not None:
            settings["locale.keymap"] = customisation.keyboard
        if customisation.timezone is not None:
            settings["locale.timezone"] = customisation.timezone
        if customisation.locale is not None:
            settings["locale.locales"] = (customisation.locale,)
            settings["locale.lang"] = customisation.locale
        if customisation.ntp:
            settings["time.ntp"] = customisation.ntp
        return settings


def is_preseed(system: System) -> bool:
    """Whether rpi-preseed is installed."""
    return system.has(_PROGRAM) and system.has(_TABLE)


def to_toml(settings: dict[str, Value]) -> str:
    """`settings`, named ``part.key``, as TOML that rpi-preseed's own reader and every other read alike."""
    parts: dict[str, list[str]] = {}
    for key, value in settings.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, []).append(f"{name} = {_value(value)}")
    lines = ['config_version = "1.0"']
    for part, said in parts.items():
        lines += ["", f"[{part}]", *said]
    return "".join(f"{line}\n" for line in lines)


def _value(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(_value(each) for each in value)}]"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _wifi(wifi: Wifi) -> dict[str, Value]:
    found: dict[str, Value] = {}
    if _PLAIN_SSID.fullmatch(wifi.ssid):
        found["wlan.ssid"] = wifi.ssid
    else:
        found["wlan.ssid_hex"] = wifi.ssid.encode().hex()
    if wifi.psk is not None:
        found |= {"wlan.password": wifi.psk, "wlan.password_encrypted": True, "wlan.key_mgmt": "wpa-psk"}
    return found | {"wlan.hidden": wifi.hidden, "wlan.country": wifi.country}
