from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeslm.errors import FirstBootUnknownError
from edgeslm.flash.first_boot import detect
from edgeslm.flash.tree import DirectoryTree

MakeImage = Callable[..., Any]


def test_each_kind_of_image_has_its_method(image: Any, methods: dict[str, str]) -> None:
    assert image.method.name == methods[image.kind]
    assert image.method.title


def test_refuses_an_image_of_no_known_way_and_says_what_was_looked_for(make_image: MakeImage) -> None:
    image = make_image("debian", extra={"etc/os-release": 'ID=alpine\nPRETTY_NAME="Alpine Linux v3.22"\n'})
    with pytest.raises(FirstBootUnknownError, match=r"Alpine Linux v3\.22") as caught:
        detect(image.boot, image.root)
    assert caught.value.exit_code == 2
    for sign in ("cloud-init", "rpi-preseed", "Armbian", "DietPi", "imager_custom"):
        assert sign in str(caught.value)


def test_refuses_an_empty_root(tmp_path: Path) -> None:
    with pytest.raises(FirstBootUnknownError):
        detect(None, DirectoryTree(tmp_path))


def test_a_cloud_init_that_is_switched_off_is_not_used(make_image: MakeImage) -> None:
    image = make_image("raspios-trixie", extra={"etc/cloud/cloud-init.disabled": ""})
    assert image.method.name == "firstrun"


def test_an_ubuntu_without_cloud_init_is_not_taken_for_a_plain_debian(make_image: MakeImage) -> None:
    image = make_image("ubuntu-pi", without=("usr/lib/systemd/system/cloud-init-local.service",))
    with pytest.raises(FirstBootUnknownError):
        detect(image.boot, image.root)


@pytest.mark.parametrize("text", ["ID='unclosed\n", "\0\xff\n", "ID=$(touch /tmp/x)\n", "=\n" * 1000])
def test_a_mangled_os_release_is_an_unknown_image(make_image: MakeImage, text: str) -> None:
    image = make_image("debian", extra={"etc/os-release": text})
    with pytest.raises(FirstBootUnknownError):
        detect(image.boot, image.root)
