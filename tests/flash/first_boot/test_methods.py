"""What holds for every method, over an image of each kind."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from edgeslm.errors import FirstBootOptionError
from edgeslm.flash.first_boot import FirstBootFiles, Method
from edgeslm.flash.tree import is_plain
from edgeslm.schema.customisation import OPTIONS, Customisation

MakeImage = Callable[..., Any]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBcWDzeXLwBzt94Wnnk2wArfcvyp9G6XVpwaaWrJRaKK ops@desk"
HASH = "$6$abcdefgh$" + "x" * 86
PSK = "0123456789abcdef" * 4
STATIC = {"address": "192.168.7.20/24", "gateway": "192.168.7.1", "dns": ["192.168.7.1", "9.9.9.9"]}
WIFI = {"ssid": 'Kitchen\'s "net"; $(id)', "psk": PSK, "country": "DE"}
SINGLE: dict[str, dict[str, Any]] = {
    "hostname": {"hostname": "sensor-07"},
    "account": {"account": {"name": "ops", "password_hash": HASH}},
    "ssh_keys": {"account": {"name": "ops"}, "ssh_keys": [KEY]},
    "ssh": {"ssh": True},
    "no ssh": {"ssh": False},
    "wifi": {"wifi": WIFI},
    "open wifi": {"wifi": {"ssid": "Cafe", "country": "DE", "hidden": True}},
    "wired": {"wired": STATIC},
    "dhcp": {"wired": "dhcp"},
    "locale": {"locale": "de_DE.UTF-8"},
    "keyboard": {"keyboard": "de"},
    "timezone": {"timezone": "Europe/Berlin"},
    "ntp": {"ntp": ["ntp.example.org", "192.168.7.1"]},
}
CANNOT = {
    ("dietpi", "account"),
    ("dietpi", "ssh_keys"),
    ("preseed", "no ssh"),
}
"""What a method does not carry; all else it does."""


@pytest.mark.parametrize("option", sorted(SINGLE))
def test_an_option_is_carried_or_refused_by_name(image: Any, option: str) -> None:
    customisation = Customisation.model_validate(SINGLE[option])
    if (image.method.name, option) in CANNOT:
        with pytest.raises(FirstBootOptionError) as caught:
            image.method.files(customisation)
        assert caught.value.option in OPTIONS.values()
        assert caught.value.option in str(caught.value)
        assert caught.value.method == image.method.name
        return
    files = image.take(customisation)
    assert files.boot or files.root or files.cmdline or files.remove_root


def test_nothing_asked_is_nothing_done(image: Any) -> None:
    assert image.method.files(Customisation()) == FirstBootFiles()


def everything(kind: str) -> Customisation:
    wired: dict[str, Any] = {} if kind.startswith("dietpi") else {"wired": STATIC}
    name = "dietpi" if kind.startswith("dietpi") else "ops"
    return Customisation.model_validate(
        {
            "hostname": "sensor-07",
            "account": {"name": name, "password_hash": HASH},
            "ssh_keys": [KEY],
            "wifi": WIFI,
            "locale": "de_DE.UTF-8",
            "keyboard": "de",
            "timezone": "Europe/Berlin",
            "ntp": ["ntp.example.org"],
            **wired,
        }
    )


def test_everything_at_once_is_carried_and_the_same_each_time(image: Any) -> None:
    customisation = everything(image.kind)
    first, second = image.method.files(customisation), image.method.files(customisation)
    assert first == second
    paths = [entry.path for entry in first.root]
    assert len(paths) == len(set(paths))
    assert all(is_plain(entry.path) for entry in (*first.root, *first.boot))
    assert not set(first.remove_root) & set(paths)


def test_a_directory_stands_before_what_is_in_it(image: Any) -> None:
    paths = [entry.path for entry in image.method.files(everything(image.kind)).root]
    for place, path in enumerate(paths):
        assert not any(path.startswith(f"{later}/") for later in paths[place + 1 :])


def test_doing_it_twice_gives_the_same_files(image: Any) -> None:
    customisation = everything(image.kind)
    first = image.take(customisation)
    second = image.take(customisation)
    # What was taken away is gone, and users who were made are there: the rest stays as it was.
    assert {entry.path for entry in second.root} <= {entry.path for entry in first.root}
    texts = {entry.path: entry.content for entry in first.root}
    assert all(entry.content == texts[entry.path] for entry in second.root)
    assert second.boot == first.boot
    assert second.cmdline == first.cmdline


def test_files_with_secrets_in_the_root_are_for_root_alone(image: Any) -> None:
    for entry in image.method.files(everything(image.kind)).root:
        if isinstance(entry.content, bytes) and PSK.encode() in entry.content:
            assert entry.mode & 0o077 == 0, entry.path


def test_words_for_the_kernel_hold_one_word_each(image: Any) -> None:
    words = image.method.files(everything(image.kind)).cmdline
    assert all(word and not any(char.isspace() for char in word) for word in words)


@pytest.mark.parametrize(
    ("option", "without"),
    [
        ({"timezone": "Mars/Olympus"}, ()),
        ({"timezone": "Europe/Berlin"}, ("usr/share/zoneinfo/Europe/Berlin",)),
        ({"locale": "fr_FR.UTF-8"}, ()),
        ({"locale": "de_DE.UTF-8"}, ("usr/share/i18n/SUPPORTED",)),
        ({"keyboard": "xx"}, ()),
        ({"keyboard": "de"}, ("usr/bin/setupcon",)),
        (
            {"ssh": True},
            ("usr/lib/systemd/system/ssh.service", "usr/lib/systemd/system/dropbear.service"),
        ),
    ],
)
@pytest.mark.parametrize("kind", ["raspios-trixie", "raspios-bookworm", "armbian", "dietpi", "debian"])
def test_refuses_what_the_image_does_not_have(
    make_image: MakeImage, kind: str, option: dict[str, Any], without: tuple[str, ...]
) -> None:
    image = make_image(kind, without=without)
    with pytest.raises(FirstBootOptionError) as caught:
        image.method.files(Customisation.model_validate(option))
    assert caught.value.option == OPTIONS[next(iter(option))]


def test_a_root_in_which_scripts_could_run_is_only_read(image: Any) -> None:
    before = sorted(str(path) for path in image.root.root.rglob("*"))
    method: Method = image.method
    method.files(everything(image.kind))
    assert sorted(str(path) for path in image.root.root.rglob("*")) == before


def test_every_script_among_the_files_is_one_for_dash(image: Any) -> None:
    files = image.method.files(everything(image.kind))
    for entry in (*files.boot, *files.root):
        assert isinstance(entry.content, bytes)
        if entry.content.startswith(b"#!/bin/sh"):
            subprocess.run(["sh", "-n"], input=entry.content, check=True, timeout=60)
    for word in files.cmdline:
        assert shlex.quote(word) == word or ";" in word
