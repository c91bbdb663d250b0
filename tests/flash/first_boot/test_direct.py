from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeslm.schema.customisation import Customisation

MakeImage = Callable[..., Any]


def test_two_boards_from_one_image_share_neither_identity_nor_host_keys(make_image: MakeImage) -> None:
    image = make_image("debian")
    image.take(Customisation(hostname="sensor-07"))
    assert image.text("/etc/machine-id") == ""
    assert image.root.names("/etc/ssh") == ("sshd_config",)
    wants = image.root.stat("/etc/systemd/system/multi-user.target.wants/edgeslm-ssh-host-keys.service")
    assert wants.target == "../edgeslm-ssh-host-keys.service"


def test_the_host_name_is_known_within_the_board(make_image: MakeImage) -> None:
    image = make_image("debian", extra={"etc/hosts": "127.0.0.1 localhost\n127.0.1.1  debian old\n"})
    image.take(Customisation(hostname="sensor-07"))
    assert image.text("/etc/hosts") == "127.0.0.1 localhost\n127.0.1.1\tsensor-07\n"


def test_a_language_is_ordered_set_and_made_once(make_image: MakeImage) -> None:
    image = make_image("debian", extra={"etc/locale.conf": "LANG=C\n"})
    image.take(Customisation(locale="de_DE.UTF-8"))
    assert image.text("/etc/locale.conf") == "LANG=de_DE.UTF-8\n"
    assert image.text("/etc/locale.gen") == "# en_GB.UTF-8 UTF-8\nde_DE.UTF-8 UTF-8\n"
    assert "locale-gen" in image.text("/etc/systemd/system/edgeslm-language.service")


def test_the_language_of_every_system_needs_nothing(make_image: MakeImage) -> None:
    image = make_image(
        "debian", without=("usr/share/i18n/SUPPORTED", "usr/sbin/locale-gen", "etc/locale.gen")
    )
    files = image.take(Customisation(locale="C.UTF-8"))
    assert "edgeslm-language" not in "".join(entry.path for entry in files.root)


def test_ssh_off_takes_its_start_away_and_on_brings_it(make_image: MakeImage) -> None:
    image = make_image("debian")
    link = image.root.root / "etc/systemd/system/multi-user.target.wants/ssh.service"
    image.take(Customisation(ssh=True))
    assert link.is_symlink()
    image.take(Customisation(ssh=False))
    assert not link.is_symlink()


def test_a_server_that_reads_no_parts_is_told_first(make_image: MakeImage) -> None:
    image = make_image("debian", extra={"etc/ssh/sshd_config": "PasswordAuthentication yes\n"})
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBcWDzeXLwBzt94Wnnk2wArfcvyp9G6XVpwaaWrJRaKK"
    image.take(Customisation.model_validate({"account": {"name": "ops"}, "ssh_keys": [key]}))
    assert image.text("/etc/ssh/sshd_config").startswith(
        "PasswordAuthentication no\nPasswordAuthentication yes\n"
    )


def test_a_keyboard_leaves_nothing_of_the_one_before(make_image: MakeImage) -> None:
    image = make_image("debian", extra={"etc/console-setup/cached_setup_keyboard.sh": ""})
    image.take(Customisation(keyboard="de"))
    assert 'XKBLAYOUT="de"\n' in image.text("/etc/default/keyboard")
    assert image.root.names("/etc/console-setup") == ()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_takes_the_units(make_image: MakeImage, tmp_path: Path) -> None:
    image = make_image("debian")
    files = image.method.files(Customisation.model_validate({"ssh": True, "locale": "de_DE.UTF-8"}))
    units = [entry for entry in files.root if entry.path.endswith(".service") and entry.kind == "file"]
    assert len(units) == 2
    for unit in units:
        path = tmp_path / unit.path.rsplit("/", 1)[1]
        path.write_bytes(unit.content)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", path],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert path.name not in done.stderr, done.stderr


def test_host_keys_without_bytes_are_made_again_and_others_stay(
    make_image: MakeImage, tmp_path: Path
) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen")
    image = make_image("debian")
    image.take(Customisation(ssh=True))
    unit = image.text("/etc/systemd/system/edgeslm-ssh-host-keys.service")
    line = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    keys = tmp_path / "etc/ssh"
    keys.mkdir(parents=True)
    (keys / "ssh_host_rsa_key").write_text("")
    (keys / "ssh_host_ecdsa_key").write_text("kept")
    command = line.removeprefix('ExecStart=/bin/sh -c "').removesuffix('"')
    command = command.replace("/etc/ssh", str(keys)).replace("ssh-keygen -A", f"ssh-keygen -A -f {tmp_path}")
    subprocess.run(["sh", "-c", command], check=True, timeout=100, capture_output=True)
    assert (keys / "ssh_host_ecdsa_key").read_text() == "kept"
    assert "PRIVATE KEY" in (keys / "ssh_host_rsa_key").read_text()
    assert "PRIVATE KEY" in (keys / "ssh_host_ed25519_key").read_text()
