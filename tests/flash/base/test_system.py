"""Accounts, services and settings of a new system are what the packages' own scripts would have made of them."""

from __future__ import annotations

import re

import pytest

from edgeslm.errors import BaseImageError
from edgeslm.flash.base import books
from edgeslm.flash.base.recipe import PI, VIRT, recipe_of
from edgeslm.flash.base.settings import is_kept, system_entries
from edgeslm.flash.base.units import asked_for, enable
from edgeslm.flash.base.users import accounts
from edgeslm.power.boards import load_boards
from tests.flash.base.conftest import GROUP_MASTER, PASSWD_MASTER, UNIT

READ = {"small.service": UNIT, "getty@.service": "[Install]\nWantedBy=getty.target\n"}


def names(text: bytes) -> list[str]:
    return [line.split(":")[0] for line in text.decode().splitlines()]


def test_nobody_can_log_in() -> None:
    made = accounts(PASSWD_MASTER, GROUP_MASTER, [], day=19_000)
    assert {line.split(":")[1] for line in made.shadow.decode().splitlines()} == {"!*"}
    assert names(made.shadow) == names(made.passwd) == ["root", "nobody"]
    assert names(made.gshadow) == names(made.group)


def test_numbers_that_are_asked_for_are_given_first() -> None:
    made = accounts(
        PASSWD_MASTER, GROUP_MASTER, ["g any -\nu other -\n", "g wanted 999\nu asked 998:wanted\n"], day=1
    )
    assert made.groups["wanted"] == 999
    numbers = [int(line.split(":")[2]) for line in made.passwd.decode().splitlines()]
    assert len(numbers) == len(set(numbers))
    assert {made.groups["any"], made.groups["other"]} & {998, 999} == set()


def test_members_join_groups_once() -> None:
    made = accounts(
        PASSWD_MASTER, GROUP_MASTER, ["m nobody shadow\nm nobody shadow\nm nobody fresh\n"], day=1
    )
    rows = {line.split(":")[0]: line.split(":")[3] for line in made.group.decode().splitlines()}
    assert (rows["shadow"], rows["fresh"]) == ("nobody", "nobody")


def test_a_user_that_base_passwd_has_stays_as_it_is() -> None:
    made = accounts(PASSWD_MASTER, GROUP_MASTER, ['u root 17 "another"\n# a remark\n\n'], day=1)
    assert made.passwd.decode().startswith("root:x:0:0:root:/root:/bin/bash\n")


def test_units_are_enabled_by_the_links_that_they_ask_for() -> None:
    assert enable("small.service", READ.get) == {
        "/etc/systemd/system/multi-user.target.wants/small.service": "/usr/lib/systemd/system/small.service",
        "/etc/systemd/system/other.service": "/usr/lib/systemd/system/small.service",
    }
    assert enable("getty@tty1.service", READ.get) == {
        "/etc/systemd/system/getty.target.wants/getty@tty1.service": "/usr/lib/systemd/system/getty@.service"
    }
    assert enable("missing.service", READ.get) == {}
    assert asked_for("x\n  deb-systemd-helper enable 'a.service' >/dev/null || true\n") == ["a.service"]


def test_units_that_enable_each_other_come_to_an_end() -> None:
    both = {
        "a.service": "[Install]\nAlso=b.service\nWantedBy=x.target\n",
        "b.service": "[Install]\nAlso=a.service\n",
    }
    assert list(enable("a.service", both.get)) == ["/etc/systemd/system/x.target.wants/a.service"]


def test_the_books_name_every_file_and_the_hash_of_every_setting() -> None:
    control = "Package: lib\nArchitecture: arm64\nMulti-Arch: same\nVersion: 1\nDescription: x\n"
    assert books.stem(control) == "lib:arm64"
    assert books.stem(control.replace("same", "foreign")) == "lib"
    told = books.stanza(control, {"/etc/lib.conf": "0" * 32})
    assert told.splitlines()[:2] == ["Package: lib", "Status: install ok unpacked"]
    assert told.endswith(f"Conffiles:\n /etc/lib.conf {'0' * 32}\n")
    entries = books.info_entries(
        "lib:arm64", {"control": b"", "postinst": b"#!/bin/sh\n", "../x": b""}, ["/usr/lib/lib.so"]
    )
    assert [entry.path.rpartition("/")[2] for entry in entries] == ["lib:arm64.list", "lib:arm64.postinst"]
    assert entries[1].mode == 0o755


def test_manuals_are_left_out_and_licences_kept() -> None:
    assert not is_kept("usr/share/man/man1/x.1.gz")
    assert not is_kept("usr/share/doc/x/changelog.gz")
    assert is_kept("usr/share/doc/x/copyright")
    assert is_kept("usr/bin/x")


def test_two_runs_settle_the_same() -> None:
    files = {
        "usr/share/base-passwd/passwd.master": PASSWD_MASTER.encode(),
        "usr/share/base-passwd/group.master": GROUP_MASTER.encode(),
        "usr/share/ca-certificates/mozilla/b.crt": b"second",
        "usr/share/ca-certificates/mozilla/a.crt": b"first\n",
    }
    entries = system_entries(files, [], time_s=86_400)
    assert entries == system_entries(dict(reversed(files.items())), [], time_s=86_400)
    by_path = {entry.path: entry for entry in entries}
    assert by_path["/etc/ssl/certs/ca-certificates.crt"].content == b"first\nsecond\n"
    assert by_path["/etc/machine-id"].content == b""
    assert len(by_path) == len(entries), "each path once"


@pytest.mark.parametrize("name", sorted(load_boards()))
def test_every_board_has_a_base_image_or_is_told_what_to_take(name: str) -> None:
    board = load_boards()[name]
    try:
        recipe = recipe_of(board)
    except BaseImageError as error:
        refusal = error
    else:
        refusal = None
    if refusal is not None:
        assert refusal.hint
        assert board.title in refusal.message
        return
    assert recipe in {PI.name: PI, VIRT.name: VIRT}.values()
    assert re.search(r"root=LABEL=rootfs .*panic=10", recipe.command_line)
    assert {"python3", "systemd-sysv", "ca-certificates"} <= set(recipe.packages)


def test_a_change_of_the_recipe_is_another_kind_of_image() -> None:
    assert PI.identity() != VIRT.identity()
    assert b"console=ttyAMA0" in VIRT.boot_texts()["cmdline.txt"]
    assert "config.txt" in PI.boot_texts()
