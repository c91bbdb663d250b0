"""A plain Debian: everything is written into its files, and nothing is left for the first start to do.

What always holds: two boards from one image share neither a machine identity nor a host key: both are taken out, and
made by the board (machine-id(5), "Initialization").

This is also how the other methods do what an image's own way does not do well.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeslm.flash.first_boot import accounts, local
from edgeslm.flash.first_boot.method import FirstBootFiles, Method
from edgeslm.flash.first_boot.network import network_files, regulatory_words
from edgeslm.flash.first_boot.settling import host_key_files, language_files
from edgeslm.flash.first_boot.ssh import ssh_files
from edgeslm.flash.first_boot.system import System
from edgeslm.flash.tree import Entry
from edgeslm.schema.customisation import Customisation

LOOKED_FOR = "a Debian with systemd, whose files can be written directly"


@dataclass(frozen=True)
class Direct:
    """Writes the image's own files."""

    system: System
    name: str = "direct"

    @property
    def title(self) -> str:
        """See :class:`~edgeslm.flash.first_boot.method.Method`."""
        return f"{self.system.os_title} (its own files)"

    def files(self, customisation: Customisation) -> FirstBootFiles:
        """See :meth:`~edgeslm.flash.first_boot.method.Method.files`."""
        if customisation.is_empty:
            return FirstBootFiles()
        return own_identity(self.system) + direct_files(self, self.system, customisation)


def is_direct(system: System) -> bool:
    """Whether `system` is a plain Debian."""
    is_debian = system.os_release.get("ID") == "debian"
    return is_debian and system.has("/etc/passwd") and system.unit_path("multi-user.target") is not None


def direct_files(method: Method, system: System, customisation: Customisation) -> FirstBootFiles:
    """All of `customisation` as files.

    Raises:
        FirstBootError: the image lacks what one of the options needs.
    """
    found = FirstBootFiles()
    if customisation.hostname is not None:
        found += local.hostname_files(system, customisation.hostname)
    found += account_files(system, customisation)
    found += ssh_files(method, system, customisation)
    found += network_files(method, system, customisation)
    if system.kernel_line is not None:
        found += FirstBootFiles(cmdline=regulatory_words(customisation.wifi))
    return found + place_files(method, system, customisation)


def account_files(system: System, customisation: Customisation) -> FirstBootFiles:
    """The user, made or changed, with home, keys and right to become root.

    Raises:
        FirstBootError: the name is one of the system's own.
    """
    account = customisation.account
    if account is None:
        return FirstBootFiles()
    before = accounts.read_accounts(system)
    after = before.with_person(account, accounts.GROUPS)
    person = after.person(account.name)
    if person is None:
        return FirstBootFiles()
    return FirstBootFiles(
        root=(
            *accounts.account_entries(system, before, after),
            *accounts.home_entries(system, person, is_new=before.person(account.name) is None),
            *accounts.key_entries(person, customisation.ssh_keys),
            *accounts.sudo_entries(system, account),
        )
    )


def place_files(method: Method, system: System, customisation: Customisation) -> FirstBootFiles:
    """Time zone, time servers, language and keyboard.

    Raises:
        FirstBootOptionError: the image lacks what one of them needs.
    """
    found = FirstBootFiles()
    if customisation.timezone is not None:
        found += local.timezone_files(method, system, customisation.timezone)
    if customisation.ntp:
        found += local.time_server_files(method, system, customisation.ntp)
    if customisation.locale is not None:
        found += local.locale_files(method, system, customisation.locale)
        if local.needs_generating(customisation.locale):
            found += language_files(customisation.locale)
    if customisation.keyboard is not None:
        found += local.keyboard_files(method, system, customisation.keyboard)
    return found


def own_identity(system: System) -> FirstBootFiles:
    """What takes an image's identity out, so that each board makes its own."""
    gone = ["/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret"]
    # Elsewhere it is a link to the first.
    bus = system.root.stat("/var/lib/dbus/machine-id")
    if bus is not None and bus.kind == "file":
        gone.append("/var/lib/dbus/machine-id")
    if system.has("/etc/ssh"):
        names = system.root.names("/etc/ssh")
        gone += [f"/etc/ssh/{name}" for name in names if name.startswith("ssh_host_")]
    # Empty and not missing: a missing one makes systemd apply presets, which could switch off what was switched on.
    identity = Entry("/etc/machine-id", content=b"", mode=0o444)
    found = FirstBootFiles(root=(identity,), remove_root=tuple(path for path in gone if system.has(path)))
    return found + host_key_files(system) if system.ssh_unit is not None else found
