"""cloud-init with the NoCloud data source: Raspberry Pi OS since late 2025, Ubuntu, Debian's cloud images.

An Armbian that was built with its extension for cloud-init is one of them.

How they behave (cloud-init 25.1, ``sources/DataSourceNoCloud.py``, ``tools/ds-identify``; rpi-imager,
``src/downloadthread.cpp``; pi-gen, ``stage2/04-cloud-init``; armbian/build, ``extensions/cloud-init``):

- The seed is three files, ``user-data``, ``meta-data`` and ``network-config``. Raspberry Pi OS names their place by
  ``seedfrom: file:///boot/firmware``, Ubuntu and Armbian by ``fs_label`` of the boot partition; both in
  ``/etc/cloud/cloud.cfg.d``. Else ``/var/lib/cloud/seed/nocloud`` of the root is looked at, everywhere and first.
- All is done once for each ``instance-id``; with ``ds=nocloud;i=ID`` on the kernel's command line the data source is
  not looked for again at every start.
- ``user:`` is merged over the image's default user, whose groups the account keeps; ``sudo`` has to be said, else the
  default's ``NOPASSWD`` stands.
- ``network-config`` takes the place of the image's own, so that the wired interface has to be in it as well.
- Nothing switches the SSH server on, which Raspberry Pi OS has off: a command does.

What always holds: nothing here is fetched, no package is installed, no interface is waited for. Language and time zone
are checked against the image. The instance follows from the content, so that the same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import posixpath
from dataclasses import dataclass
from functools import cached_property

import yaml

from edgeslm.flash.first_boot import local
from edgeslm.flash.first_boot.method import FirstBootFiles, check_carries
from edgeslm.flash.first_boot.network import netplan_document, regulatory_words, to_yaml
from edgeslm.flash.first_boot.settling import host_key_files, synced_after
from edgeslm.flash.first_boot.system import System
from edgeslm.flash.tree import Entry
from edgeslm.schema.customisation import Account, Customisation

LOOKED_FOR = "cloud-init"
_SETTINGS = "/etc/cloud/cloud.cfg.d"
_SEED = "/var/lib/cloud/seed/nocloud"
_FILE = "file://"
_ENABLED_BY = (
    "/usr/lib/systemd/system/cloud-init-local.service",
    "/lib/systemd/system/cloud-init-local.service",
)


@dataclass(frozen=True)
class CloudInit:
    """Seeds cloud-init."""

    system: System
    name: str = "cloud-init"

    @property
    def title(self) -> str:
        """See :class:`~edgeslm.flash.first_boot.method.Method`."""
        return f"{self.system.os_title} (cloud-init)"

    @cached_property
    def is_seeded_from_boot(self) -> bool:
        """Whether the seed is looked for on the boot partition, and not in the root."""
        return self.system.boot is not None and self._place() is not None

    def files(self, customisation: Customisation) -> FirstBootFiles:
        """See :meth:`~edgeslm.flash.first_boot.method.Method.files`."""
        if customisation.is_empty:
            return FirstBootFiles()
        self._check(customisation)
        seed = {"user-data": "#cloud-config\n" + to_yaml(self._user_data(customisation))}
        if customisation.wifi is not None or customisation.wired is not None:
            seed["network-config"] = to_yaml(self._network(customisation))
        instance = f"edgeslm-{_digest(seed)}"
        meta: dict[str, object] = {"instance-id": instance, "dsmode": "local"}
        if customisation.hostname is not None:
            meta["local-hostname"] = customisation.hostname
        seed["meta-data"] = to_yaml(meta)
        found = self._seed_files(seed, instance) + self._files_of_root(customisation)
        if self.system.kernel_line is not None:
            found += FirstBootFiles(cmdline=regulatory_words(customisation.wifi))
        return found

    # --- pieces -------------------------------------------------------------------------------------------------

    def _check(self, customisation: Customisation) -> None:
        refused = {}
        if customisation.account is not None and customisation.account.is_root:
            refused["account"] = "makes a user and leaves root locked; name another than root"
        if customisation.wants_ssh and self.system.ssh_unit is None:
            refused["ssh_keys" if customisation.ssh_keys else "ssh"] = "has no SSH server"
        if customisation.wifi is not None and not self.system.has_program("netplan"):
            # Every other renderer of cloud-init passes over what is wireless.
            refused["wifi"] = "has no netplan, without which cloud-init joins no wireless network"
        check_carries(self, customisation, refused)
        if customisation.timezone is not None:
            local.check_timezone(self, self.system, customisation.timezone)
        if customisation.locale is not None:
            local.check_locale(self, self.system, customisation.locale)
        if customisation.keyboard is not None:
            local.check_keyboard(self, self.system, customisation.keyboard)

    def _user_data(self, customisation: Customisation) -> dict[str, object]:
        data: dict[str, object] = {}
        if customisation.hostname is not None:
            data |= {"hostname": customisation.hostname, "manage_etc_hosts": True}
        if customisation.account is not None:
            data["user"] = _user(customisation.account, customisation.ssh_keys)
            data["ssh_pwauth"] = customisation.password_over_ssh
        if customisation.timezone is not None:
            data["timezone"] = customisation.timezone
        if customisation.locale is not None:
            data["locale"] = customisation.locale
        if customisation.keyboard is not None:
            data["keyboard"] = {"model": "pc105", "layout": customisation.keyboard}
        commands: list[list[str]] = []
        unit = self.system.ssh_unit
        if unit is not None and customisation.wants_ssh is not None:
            switch = "enable" if customisation.wants_ssh else "disable"
            commands.append(["systemctl", switch, "--now", unit])
            if not customisation.wants_ssh and self.system.unit_path("ssh.socket"):
                commands.append(["systemctl", switch, "--now", "ssh.socket"])
        if customisation.wifi is not None:
            # A command that is missing is no error: cloud-init goes on to the next.
            commands.append(["rfkill", "unblock", "wifi"])
        data["runcmd"] = [*commands, ["sync"]]
        return data

    def _network(self, customisation: Customisation) -> dict[str, object]:
        # The boards that are seeded from their boot partition call their one wired interface eth0; NetworkManager,
        # which some of them manage it with, knows no patterns of names in all its versions.
        matches = None if self.is_seeded_from_boot else "e*"
        return netplan_document(customisation.wifi, customisation.wired or "dhcp", wired_matches=matches)

    def _seed_files(self, seed: dict[str, str], instance: str) -> FirstBootFiles:
        place = self._place()
        if self.system.boot is not None and place is not None:
            # A name that begins with dots is no FAT name; these are plain.
            entries = tuple(
                Entry(posixpath.join(place, name), content=text.encode()) for name, text in seed.items()
            )
            words = (f"ds=nocloud;i={instance}",) if self.system.kernel_line is not None else ()
            return FirstBootFiles(boot=entries, cmdline=words)
        # Without this, clouds would be asked for over the network first, for minutes.
        only = b"datasource_list: [ NoCloud, None ]\n"
        return FirstBootFiles(
            root=(
                Entry(_SEED, "directory", mode=0o700),
                *(Entry(f"{_SEED}/{name}", content=text.encode(), mode=0o600) for name, text in seed.items()),
                Entry(f"{_SETTINGS}/99_zz_edgeslm.cfg", content=only),
            )
        )

    def _files_of_root(self, customisation: Customisation) -> FirstBootFiles:
        found = synced_after("cloud-init.service", "cloud-init-network.service")
        if self.system.ssh_unit is not None and customisation.wants_ssh:
            found += host_key_files(self.system)
        if customisation.ntp:
            found += local.time_server_files(self, self.system, customisation.ntp)
        return found

    def _place(self) -> str | None:
        """The directory of the boot partition that the seed is looked for in; ``None``: it is not looked for there."""
        source = _no_cloud_settings(self.system)
        seed_from = source.get("seedfrom")
        if isinstance(seed_from, str):
            path = posixpath.normpath("/" + seed_from.removeprefix(_FILE).lstrip("/"))
            if path == self.system.boot_path or path.startswith(f"{self.system.boot_path}/"):
                return path.removeprefix(self.system.boot_path) or "/"
            return None
        label = source.get("fs_label")
        return "/" if isinstance(label, str) else None


def is_cloud_init(system: System) -> bool:
    """Whether cloud-init is installed and not switched off."""
    installed = any(system.has(path) for path in _ENABLED_BY)
    return installed and not system.has("/etc/cloud/cloud-init.disabled")


def _no_cloud_settings(system: System) -> dict[object, object]:
    """What the image says of NoCloud; later files stand over earlier ones, as cloud-init merges them."""
    found: dict[object, object] = {}
    if not system.has(_SETTINGS):
        return found
    for name in system.root.names(_SETTINGS):
        if not name.endswith(".cfg"):
            continue
        text = system.text(f"{_SETTINGS}/{name}") or ""
        try:
            data = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError):
            continue  # cloud-init passes over what it cannot read as well
        sources = data.get("datasource") if isinstance(data, dict) else None
        settings = sources.get("NoCloud") if isinstance(sources, dict) else None
        if isinstance(settings, dict):
            found |= settings
    return found


def _user(account: Account, keys: tuple[str, ...]) -> dict[str, object]:
    user: dict[str, object] = {"name": account.name, "shell": "/bin/bash"}
    if account.password_hash is None:
        user |= {"lock_passwd": True, "sudo": "ALL=(ALL) NOPASSWD:ALL"}
    else:
        user |= {"lock_passwd": False, "passwd": account.password_hash, "sudo": None}
    if keys:
        user["ssh_authorized_keys"] = list(keys)
    return user


def _digest(seed: dict[str, str]) -> str:
    whole = hashlib.sha256()
    for name, text in sorted(seed.items()):
        whole.update(f"{name}\0{len(text)}\0{text}".encode())
    return whole.hexdigest()[:16]
