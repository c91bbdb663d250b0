"""What the system in an image is."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeslm.flash.first_boot import detect
from edgeslm.flash.image.facts import ImageFacts, read_facts
from edgeslm.flash.tree import DirectoryTree, Entry
from tests.flash.first_boot.conftest import KINDS
from tests.flash.image.conftest import Workshop, elf

OS_RELEASE = 'PRETTY_NAME="Raspberry Pi OS"\nID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n'


def facts_of(root: Path, boot: Path | None = None, **files: str | bytes) -> ImageFacts:
    tree = DirectoryTree(root, keeps_owners=False)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        tree.write([Entry("/" + name.replace("__", "/"), content=data)])
    found = None if boot is None else DirectoryTree(boot, keeps_owners=False)
    return read_facts(tree, found, image_bytes=100, root_bytes=50)


def test_all_facts_of_an_image_are_read_from_its_files(workshop: Workshop) -> None:
    disk = workshop.disk(
        root={
            "usr/lib/os-release": OS_RELEASE, "etc/rpi-issue": "x", "usr/bin/true": elf(183),
            "usr/bin/python3.13": elf(183), "usr/lib/systemd/systemd": elf(183),
            "usr/lib/aarch64-linux-gnu/libc.so.6": elf(183) + b"\0GNU C Library (Debian GLIBC 2.41-12) stable release"
            b" version 2.41.\n",
        }
    )  # fmt: skip
    image = workshop.open(disk)
    image.root.write([
        Entry("/etc/os-release", kind="symlink", target="../usr/lib/os-release"),
        Entry("/usr/bin/python3", kind="symlink", target="python3.13"), Entry("/bin", kind="symlink", target="usr/bin"),
        Entry("/lib", kind="symlink", target="usr/lib"),
    ])  # fmt: skip
    facts = image.facts()
    assert (facts.kind, facts.os_id, facts.os_version, facts.os_codename) == (
        "raspios",
        "debian",
        "13",
        "trixie",
    )
    assert facts.os_name == "Raspberry Pi OS"
    assert (facts.machine, facts.glibc, facts.systemd) == ("aarch64", "2.41", True)
    assert (facts.python, facts.python_path) == ("3.13", "/usr/bin/python3.13")
    assert facts.image_bytes == disk.stat().st_size
    assert 0 < facts.root_free_bytes < facts.root_bytes
    assert facts.boot_free_bytes is not None
    assert 0 < facts.boot_free_bytes < 16 * 2**20


@pytest.mark.parametrize(
    ("files", "boot", "kind"),
    [
        ({"etc__rpi-issue": ""}, {}, "raspios"),
        ({"etc__os-release": "ID=raspbian\n"}, {}, "raspios"),
        ({"etc__os-release": "ID=ubuntu\n"}, {}, "ubuntu"),
        ({"etc__os-release": "ID=debian\n"}, {}, "debian"),
        ({"etc__os-release": "ID=debian\n", "etc__armbian-release": ""}, {}, "armbian"),
        ({"etc__os-release": "ID=ubuntu\n", "etc__armbian-image-release": ""}, {}, "armbian"),
        ({"etc__os-release": "ID=debian\n", "etc__rpi-issue": ""}, {"dietpi.txt": ""}, "dietpi"),
        ({"etc__os-release": "ID=debian\n", "boot__dietpi.txt": ""}, {}, "dietpi"),
        ({"etc__os-release": "ID=alpine\n"}, {}, "unknown"),
        ({}, {}, "unknown"),
    ],
)
def test_the_kind_is_told_by_the_files_that_its_makers_leave(
    tmp_path: Path, files: dict[str, str], boot: dict[str, str], kind: str
) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "boot").mkdir()
    for name, content in boot.items():
        (tmp_path / "boot" / name).write_text(content)
    assert facts_of(tmp_path / "root", tmp_path / "boot", **files).kind == kind


@pytest.mark.parametrize(
    ("head", "machine"),
    [
        (elf(183), "aarch64"), (elf(40), "armv7l"), (elf(62), "x86_64"), (elf(243), "riscv64"), (elf(8), "elf-8"),
        (elf(183)[:19], None), (b"#!/bin/sh\n".ljust(64), None), (b"", None),
        (b"\x7fELF\x02\x02\x01".ljust(64, b"\0"), None),
    ],
)  # fmt: skip
def test_the_machine_is_that_of_a_program_and_none_where_there_is_none(
    tmp_path: Path, head: bytes, machine: str | None
) -> None:
    assert facts_of(tmp_path, usr__bin__true=head).machine == machine


def test_a_script_in_the_place_of_a_program_is_passed_over(tmp_path: Path) -> None:
    assert facts_of(tmp_path, bin__true="#!/bin/sh\n", bin__busybox=elf(183)).machine == "aarch64"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ('PRETTY_NAME="A \\"quoted\\" name"', 'A "quoted" name'), ("PRETTY_NAME='single'", "single"),
        ("PRETTY_NAME=bare", "bare"), ('PRETTY_NAME="half', ""), ("# PRETTY_NAME=x", ""),
        ("PRETTY_NAME=\"a\x1b[31mb\"", "a[31mb"), ("PRETTY_NAME=" + "x" * 500, "x" * 200), ("", ""),
    ],
)  # fmt: skip
def test_os_release_is_read_as_a_shell_would_and_shows_no_control_characters(
    tmp_path: Path, line: str, name: str
) -> None:
    assert facts_of(tmp_path, **{"etc__os-release": f"{line}\nID=debian\n"}).os_name == name


def test_an_older_glibc_is_told_by_the_name_behind_its_link(tmp_path: Path) -> None:
    folder = tmp_path / "lib/aarch64-linux-gnu"
    folder.mkdir(parents=True)
    (folder / "libc-2.31.so").write_bytes(elf(183))
    (folder / "libc.so.6").symlink_to("libc-2.31.so")
    assert facts_of(tmp_path, usr__bin__true=elf(183)).glibc == "2.31"


def test_what_files_do_not_say_is_not_there(tmp_path: Path) -> None:
    facts = facts_of(tmp_path)
    assert (facts.machine, facts.glibc, facts.python, facts.python_path) == (None, None, None, None)
    assert (facts.systemd, facts.os_id, facts.boot_free_bytes) == (False, "", None)


def test_a_python_without_a_version_in_its_name_is_not_guessed(tmp_path: Path) -> None:
    assert facts_of(tmp_path, usr__bin__python3=elf(183)).python is None


def test_a_link_out_of_the_image_does_not_lead_to_this_machine(tmp_path: Path) -> None:
    assert Path("/usr/lib/os-release").exists()
    (tmp_path / "etc").mkdir()
    for target in (
        "../" * 20 + "usr/lib/os-release",
        "/usr/lib/os-release",
        "/proc/self/root/usr/lib/os-release",
    ):
        (tmp_path / "etc/os-release").unlink(missing_ok=True)
        (tmp_path / "etc/os-release").symlink_to(target)
        assert facts_of(tmp_path).os_name == ""


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_boot_method_is_told_from_an_image_that_nobody_mounted(
    workshop: Workshop, kind: str
) -> None:
    method, boot, root = KINDS[kind]
    path = workshop.ext4(root).path if boot is None else workshop.disk(root=root, boot=boot)
    image = workshop.open(path)
    assert detect(image.boot, image.root).name == method
    assert (image.boot is None) == (boot is None)


def test_reading_facts_changes_nothing(workshop: Workshop, disk: Path) -> None:
    before = disk.read_bytes()
    workshop.open(disk).facts()
    assert disk.read_bytes() == before
