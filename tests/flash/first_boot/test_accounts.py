from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import FirstBootError
from edgeslm.flash.first_boot.accounts import GROUPS, Accounts, read_accounts
from edgeslm.flash.first_boot.system import System
from edgeslm.schema.customisation import Account, Customisation

MakeImage = Callable[..., Any]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBcWDzeXLwBzt94Wnnk2wArfcvyp9G6XVpwaaWrJRaKK ops@desk"
HASH = "$6$abcdefgh$" + "x" * 86
names = st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True)
gecos = st.text(st.characters(exclude_characters=":\n", exclude_categories=("Cs",)), max_size=20)


def written(image: Any) -> Accounts:
    return read_accounts(System(image.boot, image.root))


def test_a_new_user_gets_the_next_number_a_home_and_the_groups_that_there_are(make_image: MakeImage) -> None:
    image = make_image("debian")
    files = image.take(Customisation(account=Account(name="ops", password_hash=HASH)))
    accounts = written(image)
    person = accounts.person("ops")
    assert person is not None
    assert (person.uid, person.gid, person.home) == (1000, 1000, "/home/ops")
    assert f"ops:{HASH}::0:99999:7:::" in accounts.shadow.splitlines()
    assert "sudo:x:27:ops" in accounts.group.splitlines()
    assert "adm:x:4:syslog,ops" in accounts.group.splitlines()
    assert "gpio" not in accounts.group
    assert accounts.gshadow is not None
    assert "adm:*::syslog,ops" in accounts.gshadow.splitlines()
    home = {entry.path: entry for entry in files.root if entry.path.startswith("/home/ops")}
    assert (home["/home/ops"].kind, home["/home/ops"].mode, home["/home/ops"].uid) == (
        "directory",
        0o700,
        1000,
    )
    assert home["/home/ops/.bashrc"].content == b"# of everybody\n"


@pytest.mark.skipif(shutil.which("pwck") is None, reason="needs pwck")
def test_the_systems_own_checkers_find_no_fault(make_image: MakeImage, tmp_path: Path) -> None:
    image = make_image("debian")
    image.take(Customisation(account=Account(name="ops", password_hash=HASH)))
    accounts = written(image)
    for name in ("passwd", "shadow", "group", "gshadow"):
        (tmp_path / name).write_text(getattr(accounts, name))
    for tool, files in (("pwck", ("passwd", "shadow")), ("grpck", ("group", "gshadow"))):
        done = subprocess.run(
            [tool, "-r", *(str(tmp_path / name) for name in files)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        # What else they say is that homes and members are not on this machine, which is not the board.
        assert "invalid" not in done.stdout


def test_keys_alone_lock_the_password_and_let_become_root(make_image: MakeImage) -> None:
    image = make_image("debian")
    image.take(Customisation(account=Account(name="ops"), ssh_keys=(KEY,)))
    assert "ops:*::0:99999:7:::" in written(image).shadow
    assert image.text("/home/ops/.ssh/authorized_keys") == f"{KEY}\n"
    assert image.text("/etc/sudoers.d/010_ops-nopasswd") == "ops ALL=(ALL) NOPASSWD: ALL\n"
    assert image.text("/etc/ssh/sshd_config.d/10-edgeslm.conf") == "PasswordAuthentication no\n"


@pytest.mark.parametrize("name", ["daemon", "nobody", "messagebus", "sudo", "adm"])
def test_refuses_the_name_of_an_account_or_group_of_the_system(make_image: MakeImage, name: str) -> None:
    image = make_image("debian")
    with pytest.raises(FirstBootError, match=f"--user: {name} "):
        image.method.files(Customisation(account=Account(name=name, password_hash=HASH)))


def test_root_is_let_in_by_key_and_its_password_locked(make_image: MakeImage) -> None:
    image = make_image("debian")
    image.take(Customisation(account=Account(name="root"), ssh_keys=(KEY,)))
    assert written(image).shadow.startswith("root:*:")
    assert image.text("/root/.ssh/authorized_keys") == f"{KEY}\n"


def test_the_files_keep_their_modes(make_image: MakeImage) -> None:
    image = make_image("debian")
    (image.root.root / "etc/shadow").chmod(0o640)
    image.take(Customisation(account=Account(name="ops", password_hash=HASH)))
    assert image.root.stat("/etc/shadow").mode == 0o640


def test_bytes_that_are_no_utf8_come_out_as_they_went_in(make_image: MakeImage) -> None:
    image = make_image("debian")
    passwd = image.root.root / "etc/passwd"
    passwd.write_bytes(passwd.read_bytes() + b"old:x:1001:1001:J\xf6rg\x0b\x85:/home/old:/bin/sh\n")
    image.take(Customisation(account=Account(name="ops", password_hash=HASH)))
    assert b"J\xf6rg\x0b\x85" in passwd.read_bytes()


@given(name=names, others=st.lists(st.tuples(names, gecos), unique_by=lambda pair: pair[0], max_size=6))
def test_lines_of_others_stay_and_numbers_are_never_given_twice(
    name: str, others: list[tuple[str, str]]
) -> None:
    others = [(other, words) for other, words in others if other != name]
    passwd = "".join(
        f"{other}:x:{1000 + place}:{1000 + place}:{words}:/home/{other}:/bin/sh\n"
        for place, (other, words) in enumerate(others)
    )
    before = Accounts(passwd, "".join(f"{other}:!:::::::\n" for other, _ in others), "sudo:x:27:\n")
    after = before.with_person(Account(name=name, password_hash=HASH), GROUPS)
    assert after.passwd.startswith(passwd)
    numbers = [person.uid for person in after.people()]
    assert len(numbers) == len(set(numbers)) == len(others) + 1
    again = after.with_person(Account(name=name, password_hash=HASH), GROUPS)
    assert again == after
