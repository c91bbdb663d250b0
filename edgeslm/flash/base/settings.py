"""What the maintainers' scripts of the packages would have set up, and a few settings for boards that nobody watches.

Pure. The scripts themselves cannot run: they are programs of the board. What they do on a first installation is little,
and stands here. The packages stay *unpacked* in dpkg's books, so ``dpkg --configure -a`` on the board runs the scripts
after all; it finds done what is done here.

Source: the ``postinst`` scripts of base-files, base-passwd, libpam-runtime, ca-certificates, systemd and others in
Debian 13.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgeslm.flash.base.recipe import BOOT_LABEL, MOUNTED_AT, ROOT_LABEL
from edgeslm.flash.base.units import asked_for, enable
from edgeslm.flash.base.users import accounts
from edgeslm.flash.tree import Entry

_UNITS = "usr/lib/systemd/system/"
_SYSUSERS = "usr/lib/sysusers.d/"
_CERTIFICATES = "usr/share/ca-certificates/mozilla/"
_PASSWD, _GROUP = "usr/share/base-passwd/passwd.master", "usr/share/base-passwd/group.master"
_DEFAULTS = "usr/share/base-files/"
_COPIED = {
    "dot.profile": "/root/.profile",
    "dot.bashrc": "/root/.bashrc",
    "profile": "/etc/profile",
    "motd": "/etc/motd",
}
_ALWAYS = (
    *("getty@tty1.service", "remote-fs.target", "systemd-pstore.service"),
    *("systemd-networkd.service", "systemd-resolved.service", "systemd-timesyncd.service"),
)
_LEFT_OUT = frozenset(
    {
        "apt-daily.timer",  # updates by themselves are for whoever runs the board to decide on
        "apt-daily-upgrade.timer",
        "e2scrub_all.timer",  # there is no LVM
        "e2scrub_reap.service",
        "systemd-time-wait-sync.service",  # nothing here waits for the clock
        "systemd-networkd-wait-online.service",  # nor for the network
        "wpa_supplicant.service",  # it is started by whoever sets up a wireless network
    }
)
_PAM = {
    "account": "account\t[success=1 new_authtok_reqd=done default=ignore]\tpam_unix.so",
    "auth": "auth\t[success=1 default=ignore]\tpam_unix.so nullok",
    "password": "password\t[success=1 default=ignore]\tpam_unix.so obscure yescrypt",
    "session": "session\t[default=1]\tpam_permit.so",
}
_PAM_SESSION = "session\trequired\tpam_unix.so\n"
_ALTERNATIVES = {
    "awk": ("/usr/bin/awk", "/usr/bin/mawk"),
    "nawk": ("/usr/bin/nawk", "/usr/bin/mawk"),
    "pager": ("/usr/bin/pager", "/usr/bin/more"),
    "which": ("/usr/bin/which", "/usr/bin/which.debianutils"),
}
EXCLUDED = ("usr/share/man/", "usr/share/locale/", "usr/share/info/", "usr/share/lintian/", "usr/share/doc/")
"""What a board has no use for. Licences are kept."""
_REPLACED = frozenset({"var/run", "var/lock"})
"""Directories of base-files in the place of which there are to be links."""

# systemd mounts it when somebody looks into it: so it is clean when the power goes.
_FSTAB = f"""\
LABEL={ROOT_LABEL} / ext4 defaults,noatime 0 1
LABEL={BOOT_LABEL} {MOUNTED_AT} vfat noauto,x-systemd.automount,x-systemd.idle-timeout=60,umask=0077 0 2
"""
_NETWORK = """\
[Match]
Name=eth* en* usb*

[Network]
DHCP=yes
MulticastDNS=yes
"""
_HOSTS = "127.0.0.1 localhost\n127.0.1.1 board\n::1 localhost ip6-localhost ip6-loopback\n"
_NSSWITCH = """\
passwd: files systemd
group: files systemd
shadow: files systemd
gshadow: files systemd
hosts: files resolve [!UNAVAIL=return] dns
networks: files
protocols: files
services: files
ethers: files
rpc: files
"""


def is_kept(path: str) -> bool:
    """Whether a file of a package goes into the image.

    Args:
        path: without a ``/`` at its beginning.
    """
    return path not in _REPLACED and (not path.startswith(EXCLUDED) or path.endswith("/copyright"))


def is_read(path: str) -> bool:
    """Whether :func:`system_entries` wants to know the content of a file."""
    return path.startswith((_UNITS, _SYSUSERS, _CERTIFICATES, _DEFAULTS)) or path in {_PASSWD, _GROUP}


def system_entries(files: Mapping[str, bytes], scripts: Iterable[str], *, time_s: int) -> list[Entry]:
    """What is to be there beside the files of the packages.

    Args:
        files: content of those for which :func:`is_read` holds, by path.
        scripts: the ``postinst`` scripts of the packages.
        time_s: Unix time of the image.
    """
    return [
        *_account_entries(files, day=time_s // 86_400),
        *_unit_entries(files, scripts),
        *_pam_entries(),
        *(
            _file(path, files[_DEFAULTS + name])
            for name, path in _COPIED.items()
            if _DEFAULTS + name in files
        ),
        _file("/etc/ssl/certs/ca-certificates.crt", _certificates(files)),
        _file("/etc/fstab", _FSTAB.encode()),
        _file("/etc/hostname", b"board\n"),
        _file("/etc/hosts", _HOSTS.encode()),
        _file("/etc/nsswitch.conf", _NSSWITCH.encode()),
        _file("/etc/systemd/network/80-wired.network", _NETWORK.encode()),
        _file("/etc/dpkg/dpkg.cfg.d/10-base-image", _dpkg_settings().encode()),
        _file("/etc/shells", b"/bin/sh\n/usr/bin/sh\n/bin/bash\n/usr/bin/bash\n/bin/dash\n/usr/bin/dash\n"),
        # Empty: every board gets its own at its first start, without counting as one that was never set up.
        Entry("/etc/machine-id", mode=0o444),
        Entry("/etc/localtime", "symlink", target="/usr/share/zoneinfo/Etc/UTC"),
        Entry("/etc/resolv.conf", "symlink", target="../run/systemd/resolve/stub-resolv.conf"),
        Entry("/etc/dpkg/origins/default", "symlink", target="debian"),
        Entry("/var/run", "symlink", target="/run"),
        Entry("/var/lock", "symlink", target="/run/lock"),
        *(
            entry
            for name, (link, target) in _ALTERNATIVES.items()
            for entry in (
                Entry(link, "symlink", target=f"/etc/alternatives/{name}"),
                Entry(f"/etc/alternatives/{name}", "symlink", target=target),
            )
        ),
        *(
            Entry(path, "directory", mode=0o755)
            for path in (MOUNTED_AT, "/media", "/mnt", "/opt", "/srv", "/var/log/journal", "/var/opt")
        ),
        # Done above: otherwise systemd would do it again, and wait for it, at the first start.
        _file("/etc/.updated", b""),
        _file("/var/.updated", b""),
    ]


def _file(path: str, content: bytes, mode: int = 0o644, gid: int = 0) -> Entry:
    return Entry(path, content=content, mode=mode, gid=gid)


def _account_entries(files: Mapping[str, bytes], *, day: int) -> list[Entry]:
    sysusers = [data.decode() for path, data in sorted(files.items()) if path.startswith(_SYSUSERS)]
    made = accounts(files[_PASSWD].decode(), files[_GROUP].decode(), sysusers, day=day)
    shadow = made.groups.get("shadow", 0)
    return [
        _file("/etc/passwd", made.passwd),
        _file("/etc/group", made.group),
        _file("/etc/shadow", made.shadow, 0o640, shadow),
        _file("/etc/gshadow", made.gshadow, 0o640, shadow),
        _file("/etc/subuid", b""),
        _file("/etc/subgid", b""),
        _file("/var/log/wtmp", b"", 0o664, made.groups.get("utmp", 0)),
        _file("/var/log/lastlog", b"", 0o664, made.groups.get("utmp", 0)),
    ]


def _unit_entries(files: Mapping[str, bytes], scripts: Iterable[str]) -> list[Entry]:
    def read(name: str) -> str | None:
        data = files.get(_UNITS + name)
        return None if data is None or name in _LEFT_OUT else data.decode(errors="replace")

    wanted = {*_ALWAYS, *(unit for script in scripts for unit in asked_for(script))}
    links = {
        path: target for name in sorted(wanted - _LEFT_OUT) for path, target in enable(name, read).items()
    }
    return [Entry(path, "symlink", target=target) for path, target in sorted(links.items())]


def _pam_entries() -> list[Entry]:
    entries = []
    for name, kind in {**{kind: kind for kind in _PAM}, "session-noninteractive": "session"}.items():
        text = (
            f"{_PAM[kind]}\n{kind}\trequisite\tpam_deny.so\n{kind}\trequired\tpam_permit.so\n"
            f"{_PAM_SESSION if kind == 'session' else ''}"
        )
        entries.append(_file(f"/etc/pam.d/common-{name}", text.encode()))
    return entries


def _certificates(files: Mapping[str, bytes]) -> bytes:
    found = [data for path, data in sorted(files.items()) if path.startswith(_CERTIFICATES)]
    return b"".join(data if data.endswith(b"\n") else data + b"\n" for data in found)


def _dpkg_settings() -> str:
    lines = [f"path-exclude=/{path}*" for path in EXCLUDED]
    return "\n".join([*lines, "path-include=/usr/share/doc/*/copyright"]) + "\n"
