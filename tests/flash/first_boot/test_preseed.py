from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import FirstBootOptionError
from edgeslm.flash.first_boot.preseed import to_toml
from edgeslm.schema.customisation import Customisation

MakeImage = Callable[..., Any]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBcWDzeXLwBzt94Wnnk2wArfcvyp9G6XVpwaaWrJRaKK ops@desk"
HASH = "$6$abcdefgh$" + "x" * 86
words = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=40)


@given(text=words, several=st.lists(words, max_size=3), yes=st.booleans())
def test_every_text_is_read_back_and_lists_stand_on_one_line(
    text: str, several: list[str], yes: bool
) -> None:
    body = to_toml({"a.text": text, "a.yes": yes, "b.several": tuple(several)})
    assert tomllib.loads(body) == {
        "config_version": "1.0",
        "a": {"text": text, "yes": yes},
        "b": {"several": several},
    }
    # The reader on the board takes the first line with a bracket for the end of a list.
    assert len(body.split("\n")) == 9


def test_the_file_says_what_was_asked(make_image: MakeImage) -> None:
    image = make_image("raspios-preseed")
    image.take(
        Customisation.model_validate(
            {
                "hostname": "sensor-07",
                "account": {"name": "ops", "password_hash": HASH},
                "wifi": {"ssid": "home", "psk": "ab" * 32, "country": "DE"},
                "wired": {"address": "192.168.7.20/24", "gateway": "192.168.7.1", "dns": ["192.168.7.1"]},
                "ssh": True,
                "ntp": ["ntp.example.org"],
            }
        )
    )
    said = tomllib.loads(image.boot_text("/rpi-preseed.toml"))
    assert said["system"] == {"hostname": "sensor-07"}
    assert said["user"] == {"name": "ops", "password": HASH, "password_encrypted": True}
    assert said["ssh"] == {"enabled": True, "password_authentication": True}
    assert said["wlan"]["ssid"] == "home"
    assert said["wlan"]["password_encrypted"] is True
    assert said["ethernet"]["address"] == "192.168.7.20/24"
    assert said["time"] == {"ntp": ["ntp.example.org"]}


def test_a_name_that_is_not_plain_is_given_in_digits(make_image: MakeImage) -> None:
    image = make_image("raspios-preseed")
    image.take(Customisation.model_validate({"wifi": {"ssid": "1;2; caf\xe9", "country": "DE"}}))
    wlan = tomllib.loads(image.boot_text("/rpi-preseed.toml"))["wlan"]
    assert bytes.fromhex(wlan["ssid_hex"]).decode() == "1;2; caf\xe9"
    assert "ssid" not in wlan
    assert "password" not in wlan


def test_keys_lie_in_the_home_that_is_renamed(make_image: MakeImage) -> None:
    image = make_image("raspios-preseed")
    image.take(Customisation.model_validate({"account": {"name": "ops"}, "ssh_keys": [KEY]}))
    assert image.text("/home/pi/.ssh/authorized_keys") == f"{KEY}\n"
    assert tomllib.loads(image.boot_text("/rpi-preseed.toml"))["user"]["password"] == "*"


@pytest.mark.parametrize(
    ("missing", "asked", "flag"),
    [
        ("time.ntp", {"ntp": ["a.example"]}, "--ntp"),
        ("ethernet.address", {"wired": {"address": "192.168.7.20/24"}}, "--address"),
        ("wlan.ssid_hex", {"wifi": {"ssid": "a b", "country": "DE"}}, "--wifi"),
        ("locale.keymap", {"keyboard": "de"}, "--keyboard"),
        ("locale.timezone", {"timezone": "Europe/Berlin"}, "--timezone"),
    ],
)
def test_refuses_by_name_what_an_older_one_would_pass_over(
    make_image: MakeImage, missing: str, asked: dict[str, Any], flag: str
) -> None:
    image = make_image("raspios-preseed")
    table = "/usr/share/rpi-preseed/rpi-preseed.schema"
    (image.root.root / table[1:]).write_text(image.text(table).replace(missing, "other.key"))
    with pytest.raises(FirstBootOptionError, match=f"{flag}: .*{missing}"):
        image.method.files(Customisation.model_validate(asked))
