"""SSH switched on or off, and who may come in with what, by files of the image.

What always holds: where a key lets in, a password does not.
"""

from __future__ import annotations

from edgeslm.flash.first_boot.method import FirstBootFiles, Method, refuse
from edgeslm.flash.first_boot.settling import host_key_files
from edgeslm.flash.first_boot.system import System
from edgeslm.flash.tree import Entry
from edgeslm.schema.customisation import Customisation

_SETTINGS = "/etc/ssh/sshd_config"
_OWN = "/etc/ssh/sshd_config.d/10-edgeslm.conf"


def ssh_files(method: Method, system: System, customisation: Customisation) -> FirstBootFiles:
    """Links of systemd, settings of the server, and the unit that makes its keys.

    Raises:
        FirstBootOptionError: SSH is asked for and the image has no server.
    """
    wanted = customisation.wants_ssh
    if wanted is None:
        return FirstBootFiles()
    if not wanted:
        return FirstBootFiles(
            remove_root=system.disabling("ssh.service", "sshd.service", "ssh.socket", "sshd.socket")
        )
    if system.ssh_unit is None:
        option = "ssh_keys" if customisation.ssh_keys else "ssh"
        raise refuse(method, option, "has no SSH server", "Make the image with the package openssh-server.")
    start = FirstBootFiles(root=(system.enabling(system.ssh_unit),))
    return start + password_files(system, customisation) + host_key_files(system)


def password_files(system: System, customisation: Customisation) -> FirstBootFiles:
    """The setting that says whether a password lets in over SSH; as the image has it where no user is asked for."""
    if customisation.account is None:
        return FirstBootFiles()
    line = f"PasswordAuthentication {'yes' if customisation.password_over_ssh else 'no'}\n"
    settings = system.text(_SETTINGS) or ""
    if "sshd_config.d" in settings:
        return FirstBootFiles(root=(Entry(_OWN, content=line.encode()),))
    # The first that is said counts (sshd_config(5)).
    return FirstBootFiles(root=(Entry(_SETTINGS, content=(line + settings).encode()),))
