"""Small trees with the files by which each kind of image is known, and those that customising it reads."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeslm.flash.first_boot import FirstBootFiles, Method, detect
from edgeslm.flash.tree import DirectoryTree
from edgeslm.schema.customisation import Customisation

PASSWD = """\
root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
messagebus:x:100:101::/nonexistent:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
SHADOW = """\
root:$6$saltsaltsalt$known:19000:0:99999:7:::
daemon:*:19000:0:99999:7:::
messagebus:!:19000::::::
nobody:*:19000:0:99999:7:::
"""
GROUP = (
    "root:x:0:\ndaemon:x:1:\nadm:x:4:syslog\nsudo:x:27:\nvideo:x:44:\nmessagebus:x:101:\nnogroup:x:65534:\n"
)
GSHADOW = "root:*::\ndaemon:*::\nadm:*::syslog\nsudo:*::\nvideo:*::\nmessagebus:!::\nnogroup:*::\n"

DEBIAN = {
    "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\nVERSION_ID="13"\n',
    "etc/passwd": PASSWD,
    "etc/shadow": SHADOW,
    "etc/group": GROUP,
    "etc/gshadow": GSHADOW,
    "etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n",
    "etc/hostname": "debian\n",
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/skel/.bashrc": "# of everybody\n",
    "etc/locale.gen": "# en_GB.UTF-8 UTF-8\n",
    "etc/ssh/sshd_config": "Include /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\n",
    "etc/ssh/ssh_host_ed25519_key": "of the image\n",
    "etc/ssh/ssh_host_ed25519_key.pub": "of the image\n",
    "etc/sudoers.d/README": "",
    "usr/bin/sync": "",
    "usr/bin/ssh-keygen": "",
    "usr/bin/setupcon": "",
    "usr/sbin/locale-gen": "",
    "usr/share/i18n/SUPPORTED": "de_DE.UTF-8 UTF-8\nen_GB.UTF-8 UTF-8\n",
    "usr/share/zoneinfo/Europe/Berlin": "TZif2",
    "usr/share/X11/xkb/rules/base.lst": (
        "! model\n  pc105  Generic\n\n! layout\n  us  English (US)\n  de  German\n\n! variant\n"
    ),
    "usr/lib/systemd/system/multi-user.target": "",
    "usr/lib/systemd/system/ssh.service": "",
    "usr/lib/systemd/system/systemd-networkd.service": "",
    "usr/lib/systemd/system/systemd-timesyncd.service": "",
    "usr/lib/systemd/system/wpa_supplicant@.service": "",
}
FSTAB = "PARTUUID=1-01 /boot/firmware vfat defaults 0 2\nPARTUUID=1-02 / ext4 defaults,noatime 0 1\n"
RASPBERRY = {
    **DEBIAN,
    "etc/fstab": FSTAB,
    "etc/passwd": PASSWD + "pi:x:1000:1000:,,,:/home/pi:/bin/bash\n",
    "etc/shadow": SHADOW + "pi:!:19000:0:99999:7:::\n",
    "etc/group": GROUP + "pi:x:1000:\n",
    "etc/gshadow": GSHADOW + "pi:!::\n",
    "home/pi/.bashrc": "",
    "usr/lib/systemd/system/NetworkManager.service": "",
    "usr/lib/raspberrypi-sys-mods/imager_custom": "",
    "usr/lib/userconf-pi/userconf": "",
}
PI_BOOT = {
    "cmdline.txt": "console=tty1 root=PARTUUID=1-02 rootfstype=ext4 rootwait\n",
    "config.txt": "arm_64bit=1\n",
}
CLOUD_INIT = {"usr/lib/systemd/system/cloud-init-local.service": "", "usr/sbin/netplan": ""}
PRESEED_KEYS = (
    "config_version string plain required\nsystem.hostname string pii\nuser.name string pii\n"
    "user.password string secret\nuser.password_encrypted bool plain\nssh.enabled bool plain\n"
    "ssh.password_authentication bool plain\nwlan.ssid string pii\nwlan.ssid_hex string pii\n"
    "wlan.password string secret\nwlan.password_encrypted bool plain\nwlan.hidden bool plain\n"
    "wlan.country string plain\nwlan.key_mgmt enum:none,owe,wpa-psk,sae plain\nlocale.keymap string plain\n"
    "locale.timezone string plain\nlocale.locales array plain\nlocale.lang string plain\n"
    "ethernet.method enum:dhcp,static,disabled plain\nethernet.address string plain\n"
    "ethernet.gateway string plain\nethernet.dns array plain\ntime.ntp array plain\n"
)
DIETPI_TXT = (
    "# Locale\nAUTO_SETUP_LOCALE=C.UTF-8\nAUTO_SETUP_NET_ETHERNET_ENABLED=1\nAUTO_SETUP_NET_WIFI_ENABLED=0\n"
    "AUTO_SETUP_NET_HOSTNAME=DietPi\nAUTO_SETUP_GLOBAL_PASSWORD=dietpi\n#AUTO_SETUP_SSH_PUBKEY=ssh-ed25519 AAAA\n"
)
DIETPI = {
    **{name: text for name, text in DEBIAN.items() if name != "usr/lib/systemd/system/ssh.service"},
    "etc/passwd": PASSWD + "dietpi:x:1000:1000::/home/dietpi:/bin/bash\n",
    "etc/shadow": SHADOW + "dietpi:$6$saltsaltsalt$known:19000:0:99999:7:::\n",
    "etc/fstab": FSTAB,
    "boot/dietpi/func/dietpi-globals": "",
    "boot/dietpi.txt": DIETPI_TXT,
    "usr/lib/systemd/system/dropbear.service": "",
}
ARMBIAN = {
    **DEBIAN,
    "etc/os-release": 'PRETTY_NAME="Armbian 25.8.1 bookworm"\nID=debian\n',
    "etc/armbian-release": "BOARD=rock-5b\n",
    "etc/netplan/10-dhcp-all-interfaces.yaml": "network: {}\n",
    "etc/systemd/system/getty@.service.d/override.conf": "[Service]\nExecStart=-/sbin/agetty --autologin root\n",
    "root/.not_logged_in_yet": "",
    "usr/lib/armbian/armbian-firstlogin": "",
    "usr/sbin/netplan": "",
    "usr/sbin/chronyd": "",
}

KINDS: dict[str, tuple[str, dict[str, str] | None, dict[str, str]]] = {
    "raspios-trixie": (
        "cloud-init",
        {**PI_BOOT, "user-data": "#cloud-config\n", "meta-data": "instance_id: rpios-image\n"},
        {
            **RASPBERRY,
            **CLOUD_INIT,
            "etc/cloud/cloud.cfg.d/99_raspberry-pi.cfg": "datasource_list: [ NoCloud, None ]\n"
            "datasource:\n  NoCloud:\n    seedfrom: file:///boot/firmware\n",
        },
    ),
    "ubuntu-pi": (
        "cloud-init",
        {**PI_BOOT, "user-data": "#cloud-config\n"},
        {
            **DEBIAN,
            **CLOUD_INIT,
            "etc/fstab": FSTAB,
            "etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.4 LTS"\nID=ubuntu\nID_LIKE=debian\n',
            "etc/cloud/cloud.cfg.d/99-fake-cloud.cfg": "datasource_list: [ NoCloud, None ]\n"
            "datasource:\n  NoCloud:\n    fs_label: system-boot\n",
        },
    ),
    "debian-cloud": (
        "cloud-init",
        {"EFI/BOOT/BOOTAA64.EFI": ""},
        {
            **DEBIAN,
            **CLOUD_INIT,
            "etc/cloud/cloud.cfg.d/01_debian.cfg": "datasource_list: [ NoCloud, Ec2 ]\n",
        },
    ),
    "raspios-bookworm": ("firstrun", PI_BOOT, RASPBERRY),
    "raspios-preseed": (
        "preseed",
        PI_BOOT,
        {
            **RASPBERRY,
            "usr/lib/rpi-preseed/rpi-preseed": "",
            "usr/share/rpi-preseed/rpi-preseed.schema": PRESEED_KEYS,
        },
    ),
    "armbian": ("armbian", None, ARMBIAN),
    "dietpi-pi": ("dietpi", {**PI_BOOT, "dietpi.txt": DIETPI_TXT}, DIETPI),
    "dietpi": ("dietpi", None, DIETPI),
    "debian": ("direct", None, DEBIAN),
}
"""Each kind with its method and the files of its boot partition and its root."""


@dataclass(frozen=True)
class SmallImage:
    """Both trees of an image, in directories."""

    kind: str
    boot: DirectoryTree | None
    root: DirectoryTree

    @property
    def method(self) -> Method:
        return detect(self.boot, self.root)

    def take(self, customisation: Customisation) -> FirstBootFiles:
        """Customise the image, as a command that prepares it does."""
        files = self.method.files(customisation)
        self.root.remove(files.remove_root)
        self.root.write(files.root)
        if self.boot is not None:
            self.boot.write(files.boot)
        return files

    def text(self, path: str) -> str:
        return self.root.read(path, max_bytes=2**20).decode()

    def boot_text(self, path: str) -> str:
        assert self.boot is not None
        return self.boot.read(path, max_bytes=2**20).decode()


@pytest.fixture
def make_image(tmp_path: Path) -> Callable[..., SmallImage]:
    """Make an image of a kind; `extra` files of the root come to it, `without` go."""

    numbers = itertools.count()

    def make(kind: str, *, extra: dict[str, str] | None = None, without: tuple[str, ...] = ()) -> SmallImage:
        _, boot, root = KINDS[kind]
        kept = {name: text for name, text in {**root, **(extra or {})}.items() if name not in without}
        trees = []
        for name, files in (("boot", boot), ("root", kept)):
            if files is None:
                trees.append(None)
                continue
            directory = tmp_path / f"{next(numbers)}-{kind}-{name}"
            for path, text in files.items():
                file = directory / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
            trees.append(DirectoryTree(directory, keeps_owners=False))
        assert trees[1] is not None
        return SmallImage(kind, trees[0], trees[1])

    return make


@pytest.fixture(params=sorted(KINDS))
def image(request: pytest.FixtureRequest, make_image: Callable[..., SmallImage]) -> SmallImage:
    """An image of every kind, one after the other."""
    return make_image(request.param)


@pytest.fixture
def methods() -> dict[str, str]:
    """The method of each kind."""
    return {kind: method for kind, (method, _, _) in KINDS.items()}
