from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

from edgeslm.flash.first_boot.armbian import PRESET
from edgeslm.schema.customisation import Customisation

MakeImage = Callable[..., Any]
HASH = "$6$abcdefgh$" + "x" * 86
AUTOLOGIN = "/etc/systemd/system/getty@.service.d/override.conf"


def sourced(text: str, *names: str) -> list[str]:
    """The values of variables as the shell that reads the file has them."""
    script = text + "".join(f'\nprintf "%s\\n" "${name}"' for name in names)
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


def test_with_a_user_the_dialogue_and_the_password_that_all_know_go(make_image: MakeImage) -> None:
    image = make_image("armbian")
    image.take(Customisation.model_validate({"account": {"name": "ops", "password_hash": HASH}}))
    assert image.root.stat(PRESET) is None
    assert image.root.stat(AUTOLOGIN) is None
    shadow = image.text("/etc/shadow").splitlines()
    assert shadow[0].startswith("root:*:")
    assert f"ops:{HASH}::0:99999:7:::" in shadow


def test_without_a_user_the_dialogue_stays_and_asks_only_what_nobody_said(make_image: MakeImage) -> None:
    image = make_image("armbian", extra={PRESET[1:]: "PRESET_LOCALE=fr_FR.UTF-8\nPRESET_USER_SHELL=bash\n"})
    image.take(
        Customisation.model_validate(
            {"hostname": "a", "locale": "de_DE.UTF-8", "timezone": "Europe/Berlin", "wired": "dhcp"}
        )
    )
    names = ("PRESET_LOCALE", "PRESET_TIMEZONE", "PRESET_USER_SHELL", "PRESET_NET_CHANGE_DEFAULTS")
    assert sourced(image.text(PRESET), *names) == ["de_DE.UTF-8", "Europe/Berlin", "bash", "0"]
    assert image.root.stat(AUTOLOGIN) is not None


def test_a_host_name_alone_leaves_the_dialogue_as_it_is(make_image: MakeImage) -> None:
    image = make_image("armbian")
    files = image.take(Customisation(hostname="sensor-07"))
    assert PRESET not in {entry.path for entry in files.root}
    assert image.text("/etc/hostname") == "sensor-07\n"


def test_what_a_board_needs_with_nobody_there_is_written_into_its_files(make_image: MakeImage) -> None:
    image = make_image("armbian")
    image.take(
        Customisation.model_validate(
            {
                "timezone": "Europe/Berlin",
                "ntp": ["ntp.example.org"],
                "wifi": {"ssid": "home", "country": "DE"},
            }
        )
    )
    assert image.root.stat("/etc/localtime").target == "/usr/share/zoneinfo/Europe/Berlin"
    assert image.text("/etc/chrony/sources.d/edgeslm.sources") == "server ntp.example.org iburst\n"
    assert "home" in image.text("/etc/netplan/60-edgeslm.yaml")


def test_the_host_keys_that_its_first_start_makes_are_synced(make_image: MakeImage) -> None:
    image = make_image("armbian")
    image.take(Customisation(hostname="sensor-07"))
    assert "sync" in image.text("/etc/systemd/system/armbian-firstrun.service.d/50-edgeslm-sync.conf")
