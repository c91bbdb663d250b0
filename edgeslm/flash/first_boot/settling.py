"""What a board has to make for itself, once it runs: keys that tell it from others, a language.

What always holds: each unit can be cut short at any moment and does the rest at the next start; what it made is synced
before it says so. Keys of no bytes, which a power cut leaves behind, are made again.
"""

from __future__ import annotations

from edgeslm.flash.first_boot.method import FirstBootFiles
from edgeslm.flash.first_boot.system import System
from edgeslm.flash.tree import Entry

HOST_KEYS = "edgeslm-ssh-host-keys.service"
LANGUAGE = "edgeslm-language.service"
_UNITS = "/etc/systemd/system"
_MADE = "/var/lib/edgeslm-language"

_HOST_KEYS_TEXT = """\
[Unit]
Description=Make the SSH host keys that are missing
After=local-fs.target cloud-init.service cloud-init-network.service
Before=ssh.service sshd.service
ConditionPathIsReadWrite=/etc/ssh

[Service]
Type=oneshot
ExecStart=/bin/sh -c "find /etc/ssh -name 'ssh_host_*' -size 0 -delete; ssh-keygen -A && sync"

[Install]
WantedBy=multi-user.target
"""
_LANGUAGE_TEXT = """\
[Unit]
Description=Make the language of the system
After=local-fs.target
ConditionPathExists=!{made}

[Service]
Type=oneshot
ExecStart=/bin/sh -c "locale-gen && sync && echo '{locale}' >{made} && sync"

[Install]
WantedBy=multi-user.target
"""


def host_key_files(system: System) -> FirstBootFiles:
    """A unit that makes the host keys of SSH; nothing where there is no program for it."""
    if not system.has_program("ssh-keygen"):
        return FirstBootFiles()
    return _unit(HOST_KEYS, _HOST_KEYS_TEXT)


def language_files(locale: str) -> FirstBootFiles:
    """A unit that makes the language which ``/etc/locale.gen`` orders."""
    return _unit(LANGUAGE, _LANGUAGE_TEXT.format(made=_MADE, locale=locale))


def synced_after(*units: str) -> FirstBootFiles:
    """Additions to `units` of the image, so that what they made lasts before anything that waits for them starts.

    A cut soon after the first start is otherwise survived by names of files that have no bytes.
    """
    body = b"[Service]\nExecStartPost=/usr/bin/sync\n"
    return FirstBootFiles(
        root=tuple(Entry(f"{_UNITS}/{unit}.d/50-edgeslm-sync.conf", content=body) for unit in units)
    )


def _unit(name: str, text: str) -> FirstBootFiles:
    path = f"{_UNITS}/{name}"
    return FirstBootFiles(
        root=(
            Entry(path, content=text.encode()),
            Entry(f"{_UNITS}/multi-user.target.wants/{name}", "symlink", target=f"../{name}"),
        )
    )
