from __future__ import annotations

import configparser
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import FirstBootOptionError
from edgeslm.flash.first_boot.network import netplan_document, network_manager_entries, to_yaml
from edgeslm.schema.customisation import Customisation, StaticAddress, Wifi

MakeImage = Callable[..., Any]
PSK = "0123456789abcdef" * 4
STATIC = StaticAddress.model_validate(
    {"address": "192.168.7.20/24", "gateway": "192.168.7.1", "dns": ["192.168.7.1", "2001:db8::1"]}
)
ssids = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="\ufeff"),
    min_size=1,
    max_size=32,
).filter(lambda text: len(text.encode()) <= 32)


def keyfile(entry: Any) -> configparser.ConfigParser:
    assert entry.mode == 0o600
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.read_string(entry.content.decode())
    return parser


def ssid_of(text: str) -> bytes:
    """A name as NetworkManager reads it: numbers that each end with a semicolon are bytes (nm-settings-keyfile(5))."""
    if text.endswith(";"):
        return bytes(int(number) for number in text[:-1].split(";"))
    return text.encode()


@given(ssid=ssids)
def test_a_profile_of_network_manager_has_the_networks_name_whatever_it_is(ssid: str) -> None:
    (entry,) = network_manager_entries(Wifi(ssid=ssid, psk=PSK, country="DE"), None)
    parser = keyfile(entry)
    assert ssid_of(parser["wifi"]["ssid"]) == ssid.encode()
    assert parser["wifi-security"]["psk"] == PSK
    assert parser.sections() == ["connection", "wifi", "wifi-security", "ipv4", "ipv6"]


@given(ssid=ssids)
def test_yaml_has_the_networks_name_whatever_it_is(ssid: str) -> None:
    text = to_yaml(netplan_document(Wifi(ssid=ssid, psk=PSK, country="NO", hidden=True), "dhcp"))
    assert text.isascii()
    wireless = yaml.safe_load(text)["network"]["wifis"]["wlan0"]
    assert wireless["access-points"] == {ssid: {"password": PSK, "hidden": True}}
    # Norway is the country that YAML takes for a no.
    assert wireless["regulatory-domain"] == "NO"


@given(ssid=ssids)
def test_wpa_supplicant_is_given_the_name_in_digits(ssid: str) -> None:
    assert bytes.fromhex(ssid.encode().hex()) == ssid.encode()


def test_an_address_of_ones_own_in_network_manager() -> None:
    (entry,) = network_manager_entries(None, STATIC)
    parser = keyfile(entry)
    assert parser["ipv4"]["method"] == "manual"
    assert parser["ipv4"]["address1"] == "192.168.7.20/24,192.168.7.1"
    assert parser["ipv4"]["dns"] == "192.168.7.1;"
    assert parser["ipv6"]["dns"] == "2001:db8::1;"


def test_no_interface_is_waited_for() -> None:
    document: Any = netplan_document(Wifi(ssid="home", country="DE"), STATIC)
    assert document["network"]["ethernets"]["eth0"]["optional"] is True
    assert document["network"]["wifis"]["wlan0"]["optional"] is True
    assert document["network"]["wifis"]["wlan0"]["access-points"]["home"]["auth"] == {
        "key-management": "none"
    }


def test_a_plain_debian_gets_files_of_networkd_and_wpa_supplicant(make_image: MakeImage) -> None:
    image = make_image("debian")
    image.take(Customisation(wifi=Wifi(ssid='a"b\\', psk=PSK, country="DE"), wired=STATIC))
    wired = image.text("/etc/systemd/network/10-edgeslm-wired.network")
    assert "Address=192.168.7.20/24\nGateway=192.168.7.1\nDNS=192.168.7.1\n" in wired
    supplicant = image.text("/etc/wpa_supplicant/wpa_supplicant-wlan0.conf")
    assert "\tssid=6122625c\n" in supplicant
    assert f"\tpsk={PSK}\n" in supplicant
    wants = "/etc/systemd/system/multi-user.target.wants"
    for unit, target in (
        ("systemd-networkd.service", "systemd-networkd.service"),
        ("wpa_supplicant@wlan0.service", "wpa_supplicant@.service"),
    ):
        assert image.root.stat(f"{wants}/{unit}").target == f"/usr/lib/systemd/system/{target}"
    # Nobody else would tell the board where names are known.
    assert image.text("/etc/resolv.conf") == "nameserver 192.168.7.1\nnameserver 2001:db8::1\n"


def test_an_armbian_gets_a_file_of_netplan_and_no_second_word_on_its_interface(make_image: MakeImage) -> None:
    image = make_image("armbian")
    files = image.take(Customisation(wired=STATIC))
    assert "/etc/netplan/10-dhcp-all-interfaces.yaml" in files.remove_root
    document = yaml.safe_load(image.text("/etc/netplan/60-edgeslm.yaml"))
    assert document["network"]["ethernets"]["wired"]["match"] == {"name": "e*"}


@pytest.mark.parametrize(
    ("customisation", "without", "flag"),
    [
        ({"wired": "dhcp"}, ("usr/lib/systemd/system/systemd-networkd.service",), "--address"),
        (
            {"wifi": {"ssid": "home", "country": "DE"}},
            ("usr/lib/systemd/system/wpa_supplicant@.service",),
            "--wifi",
        ),
    ],
)
def test_refuses_a_network_that_nothing_in_the_image_manages(
    make_image: MakeImage, customisation: dict[str, Any], without: tuple[str, ...], flag: str
) -> None:
    image = make_image("debian", without=without)
    with pytest.raises(FirstBootOptionError, match=flag):
        image.method.files(Customisation.model_validate(customisation))
