from __future__ import annotations

import subprocess

import pytest

from edgeslm.errors import FirstBootError, ToolMissingError
from edgeslm.flash.first_boot.credentials import hash_password, wifi_key


@pytest.mark.parametrize(
    ("ssid", "passphrase", "key"),
    [
        # IEEE 802.11-2020, J.4.2.
        ("IEEE", "password", "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"),
        (
            "ThisIsASSID",
            "ThisIsAPassword",
            "0dc0d6eb90555ed6419756b9a15ec3e3209b63df707dd508d14581f8982721af",
        ),
        ("any", "A" * 64, "a" * 64),
    ],
)
def test_a_key_is_what_the_standard_says(ssid: str, passphrase: str, key: str) -> None:
    assert wifi_key(ssid, passphrase) == key


@pytest.mark.parametrize("passphrase", ["", "short77", "x" * 64, "x" * 65, "sch\xf6ner-tag", "tab\tulator"])
def test_refuses_what_is_no_passphrase_and_does_not_show_it(passphrase: str) -> None:
    with pytest.raises(FirstBootError) as caught:
        wifi_key("home", passphrase)
    assert not passphrase or passphrase not in str(caught.value)


@pytest.mark.parametrize("password", ["correct horse", "sch\xf6n'\"$(id)`\\", "-6", "x" * 200])
def test_a_password_is_found_again_in_its_hash(password: str) -> None:
    hashed = hash_password(password)
    salt = hashed.split("$")[2]
    again = subprocess.run(
        ["openssl", "passwd", "-6", "-salt", salt, "-stdin"],
        input=password.encode(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert again.stdout.decode().strip() == hashed
    assert password not in hashed


def test_the_same_password_is_hashed_otherwise_each_time() -> None:
    assert hash_password("secret") != hash_password("secret")


def test_a_hash_stays_as_it_is() -> None:
    hashed = "$y$j9T$abcdefghijklmnop$" + "A" * 43
    assert hash_password(hashed) == hashed


@pytest.mark.parametrize("password", ["", "two\nlines", "nul\0", "x" * 201, "\xe9" * 101])
def test_refuses_what_cannot_be_a_password(password: str) -> None:
    with pytest.raises(FirstBootError) as caught:
        hash_password(password)
    assert not password or password not in str(caught.value)


def test_says_what_to_install_where_openssl_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolMissingError, match="apt install openssl"):
        hash_password("secret")
