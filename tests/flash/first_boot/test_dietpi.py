"""Settings are read back as DietPi's own scripts read them: with sed, and with a shell."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslm.errors import FirstBootOptionError
from edgeslm.flash.first_boot.dietpi import wifi_text, with_settings
from edgeslm.schema.customisation import Customisation, Wifi

MakeImage = Callable[..., Any]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBcWDzeXLwBzt94Wnnk2wArfcvyp9G6XVpwaaWrJRaKK o'ps $(id)"
HASH = "$6$abcdefgh$" + "x" * 86
PSK = "ab" * 32
ssids = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="\ufeff"),
    min_size=1,
    max_size=32,
).filter(lambda text: len(text.encode()) <= 32)


def setting(text: str, name: str) -> str:
    script = f"/^[[:blank:]]*{name}=/{{s/^[^=]*=//p;q}}"
    done = subprocess.run(
        ["sed", "-n", script], input=text, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.removesuffix("\n")


def test_both_places_say_what_was_asked(make_image: MakeImage) -> None:
    image = make_image("dietpi-pi")
    image.take(
        Customisation.model_validate(
            {
                "hostname": "sensor-07",
                "locale": "de_DE.UTF-8",
                "keyboard": "de",
                "timezone": "Europe/Berlin",
                "ntp": ["a.example", "b.example"],
                "wifi": {"ssid": "home", "psk": PSK, "country": "DE"},
            }
        )
    )
    text = image.text("/boot/dietpi.txt")
    assert image.boot_text("/dietpi.txt") == text
    assert image.boot_text("/dietpi-wifi.txt") == image.text("/boot/dietpi-wifi.txt")
    for name, value in (
        ("AUTO_SETUP_NET_HOSTNAME", "sensor-07"),
        ("AUTO_SETUP_LOCALE", "de_DE.UTF-8"),
        ("AUTO_SETUP_KEYBOARD_LAYOUT", "de"),
        ("AUTO_SETUP_TIMEZONE", "Europe/Berlin"),
        ("CONFIG_NTP_MIRROR", "a.example b.example"),
        ("AUTO_SETUP_NET_WIFI_ENABLED", "1"),
        ("AUTO_SETUP_NET_ETHERNET_ENABLED", "0"),
        ("AUTO_SETUP_NET_WIFI_COUNTRY_CODE", "DE"),
    ):
        assert setting(text, name) == value
    assert "# Locale\n" in text
    assert "#AUTO_SETUP_SSH_PUBKEY=ssh-ed25519 AAAA\n" in text


def test_an_address_of_ones_own(make_image: MakeImage) -> None:
    image = make_image("dietpi")
    image.take(Customisation.model_validate({"wired": {"address": "10.1.2.3/20", "gateway": "10.1.0.1"}}))
    text = image.text("/boot/dietpi.txt")
    assert setting(text, "AUTO_SETUP_NET_USESTATIC") == "1"
    assert setting(text, "AUTO_SETUP_NET_STATIC_MASK") == "255.255.240.0"
    assert setting(text, "AUTO_SETUP_NET_STATIC_GATEWAY") == "10.1.0.1"


def test_passwords_are_hashes_in_the_images_files_and_the_known_one_goes(make_image: MakeImage) -> None:
    image = make_image("dietpi")
    image.take(
        Customisation.model_validate(
            {"account": {"name": "dietpi", "password_hash": HASH}, "ssh_keys": [KEY]}
        )
    )
    text = image.text("/boot/dietpi.txt")
    assert setting(text, "AUTO_SETUP_GLOBAL_PASSWORD") == ""
    assert setting(text, "SOFTWARE_DISABLE_SSH_PASSWORD_LOGINS") == "1"
    shadow = image.text("/etc/shadow").splitlines()
    assert f"dietpi:{HASH}::0:99999:7:::" in shadow
    assert shadow[0].startswith("root:*:")
    assert image.text("/home/dietpi/.ssh/authorized_keys") == f"{KEY}\n"


@given(ssid=ssids)
@settings(max_examples=25)
def test_a_shell_reads_the_networks_name_whatever_it_is(ssid: str) -> None:
    script = wifi_text(Wifi(ssid=ssid, psk=PSK, country="DE"))
    script += 'printf "%s|%s|%s" "${aWIFI_SSID[0]}" "${aWIFI_KEY[0]}" "${aWIFI_KEYMGR[0]}"\n'
    done = subprocess.run(["bash"], input=script.encode(), capture_output=True, check=True, timeout=60)
    assert done.stdout.decode() == f"{ssid}|{PSK}|WPA-PSK"
    assert done.stderr == b""


@given(
    lines=st.lists(
        st.sampled_from(["A_B=1", " A_B=2", "#A_B=3", "A_BC=4", "C=5", "", "A_B", "text"]), max_size=8
    )
)
def test_each_setting_stands_once_and_the_rest_stays(lines: list[str]) -> None:
    text = with_settings("\n".join(lines), {"A_B": "new"})
    assert [line for line in text.split("\n") if line.lstrip().startswith("A_B=")] == ["A_B=new"]
    kept = [line for line in lines if not line.lstrip().startswith("A_B=") and line]
    assert [line for line in text.split("\n") if line and line != "A_B=new"] == kept
    assert with_settings(text, {"A_B": "new"}) == text


@pytest.mark.parametrize(
    ("asked", "flag"),
    [
        ({"account": {"name": "ops", "password_hash": HASH}}, "--user"),
        ({"wired": {"address": "10.1.2.3/20"}}, "--address: .*--gateway"),
        (
            {"wired": {"address": "10.1.2.3/20", "gateway": "10.1.0.1", "dns": ["2001:db8::1"]}},
            "--address: .*IPv4",
        ),
        ({"wired": "dhcp", "wifi": {"ssid": "home", "country": "DE"}}, "--address: .*either"),
        ({"ntp": ["gateway"]}, "--ntp"),
    ],
)
def test_refuses_by_name_what_it_cannot_carry(
    make_image: MakeImage, asked: dict[str, Any], flag: str
) -> None:
    with pytest.raises(FirstBootOptionError, match=flag):
        make_image("dietpi").method.files(Customisation.model_validate(asked))


def test_ssh_off_takes_the_servers_start_away(make_image: MakeImage) -> None:
    image = make_image("dietpi")
    link = image.root.root / "etc/systemd/system/multi-user.target.wants/dropbear.service"
    link.parent.mkdir(parents=True)
    link.symlink_to("/usr/lib/systemd/system/dropbear.service")
    image.take(Customisation(ssh=False))
    assert not link.is_symlink()
    assert setting(image.text("/boot/dietpi.txt"), "AUTO_SETUP_SSH_SERVER_INDEX") == "0"
