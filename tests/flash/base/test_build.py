"""A whole image out of a small archive: its file systems, its bytes, its cache, and what a killed run leaves."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgeslm.errors import BaseImageError, PackageFileError, ToolMissingError
from edgeslm.flash.base.build import BaseImage, default_cache, make_base_image
from edgeslm.flash.base.recipe import Recipe
from edgeslm.flash.image.image import open_image
from edgeslm.flash.image.tools import find_tool
from tests.flash.base.conftest import GROUP_MASTER, KERNEL, Mirror, deb_bytes

Make = Callable[..., BaseImage]


@pytest.fixture
def make(mirror: Mirror, recipe: Recipe, tmp_path: Path) -> Make:
    for tool in ("depmod", "mkfs.vfat", "mcopy", "mke2fs", "e2fsck", "debugfs"):
        try:
            find_tool(tool)
        except ToolMissingError as error:
            pytest.skip(error.message)

    def run(
        name: str = "out.img", *, cache: str | None = "cache", recipe: Recipe = recipe, **more: object
    ) -> BaseImage:
        return make_base_image(
            recipe, tmp_path / name, lambda text: None, cache=None if cache is None else tmp_path / cache,
            mirror=mirror.address, free_mib=4, keyring=mirror.keyring, **more,  # type: ignore[arg-type]
        )  # fmt: skip

    return run


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_both_file_systems_are_sound_and_hold_what_the_packages_brought(make: Make, tmp_path: Path) -> None:
    made = make()
    assert (made.packages, made.cached) == (5, False)
    with open_image(made.path) as image:
        image.check()
        root, boot = image.root, image.boot
        assert boot is not None
        assert boot.read("/vmlinuz", max_bytes=100) == b"the kernel"
        assert b"root=LABEL=rootfs" in boot.read("/cmdline.txt", max_bytes=1000)
        assert boot.read("/initrd.img", max_bytes=2**20).startswith(b"\x1f\x8b")
        assert root.read("/usr/bin/busybox", max_bytes=100) == b"the program"
        assert root.read("/usr/share/naïve name/a\\b", max_bytes=100) == b"odd name\n"
        link = root.stat("/usr/bin/alias")
        assert link is not None
        assert (link.kind, link.target) == ("symlink", "tool")
        unit = root.stat("/etc/systemd/system/multi-user.target.wants/small.service")
        assert unit is not None
        assert unit.target == "/usr/lib/systemd/system/small.service"
        assert root.stat("/usr/share/doc/needed/changelog.gz") is None
        assert root.stat("/usr/share/doc/needed/copyright") is not None


def test_the_system_is_set_up_as_its_packages_want_it(make: Make) -> None:
    with open_image(make().path) as image:
        root = image.root

        def text(path: str) -> str:
            return root.read(path, max_bytes=2**20).decode()

        assert (
            "_small:x:300:300:of a service:/var/lib/small:/usr/sbin/nologin"
            in text("/etc/passwd").splitlines()
        )
        assert "shadow:x:42:nobody" in text("/etc/group").splitlines()
        assert {line.split(":")[1] for line in text("/etc/shadow").splitlines()} == {"!*"}, (
            "nobody can log in"
        )
        shadow = root.stat("/etc/shadow")
        assert shadow is not None
        assert (shadow.mode & 0o777, shadow.uid, shadow.gid) == (0o640, 0, 42)
        assert text("/etc/machine-id") == ""
        assert "LABEL=rootfs / ext4" in text("/etc/fstab")
        status = text("/var/lib/dpkg/status")
        assert status.count("Status: install ok unpacked") == 5
        assert f"/etc/needed.conf {hashlib.md5(b'setting' + bytes([10])).hexdigest()}" in status
        assert "/usr/bin/tool\n" in text("/var/lib/dpkg/info/units.list")
        assert "ext4.ko" in text(f"/usr/lib/modules/{KERNEL}/modules.dep")
    assert "_small" not in GROUP_MASTER


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/usr/bin/dpkg").exists(), reason="dpkg is not installed")
def test_dpkg_understands_its_books(make: Make, tmp_path: Path) -> None:
    admin = tmp_path / "dpkg"
    with open_image(make().path) as image:
        for name in ("status", "available", "arch"):
            (admin / name).parent.mkdir(exist_ok=True)
            (admin / name).write_bytes(image.root.read(f"/var/lib/dpkg/{name}", max_bytes=2**20))
    (admin / "info").mkdir()
    (admin / "updates").mkdir()
    told = subprocess.run(
        ["dpkg-query", f"--admindir={admin}", "-W", "-f", "${Package} ${Status}\n"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "units install ok unpacked" in told
    assert "edgeslm-initrd install ok installed" in told


@pytest.mark.parametrize("table", ["mbr", "gpt"])
def test_the_same_packages_give_the_same_bytes(
    make: Make, recipe: Recipe, tmp_path: Path, table: str
) -> None:
    kind = replace(recipe, table=table)  # type: ignore[arg-type]
    first = digest(make("one.img", cache="one", recipe=kind).path)
    assert digest(make("two.img", cache=None, recipe=kind).path) == first
    assert digest(make("three.img", cache="one", recipe=kind).path) == first


def test_an_image_that_was_made_is_taken_again_and_an_older_one_is_dropped(
    make: Make, mirror: Mirror, tmp_path: Path
) -> None:
    first = make("one.img")
    again = make("two.img")
    assert (again.cached, again.key, digest(again.path)) == (True, first.key, digest(first.path))
    mirror.packages["units"] = deb_bytes("units", {"./usr/bin/tool": b"another\n"})
    mirror.publish()
    third = make("three.img")
    assert (third.cached, third.key == first.key) == (False, False)
    assert len(list((tmp_path / "cache").glob("*.img"))) == 1


def test_without_a_network_the_image_made_last_is_taken(make: Make, mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(BaseImageError, match="no such image lies in") as caught:
        make("none.img", offline=True)
    assert "without --offline" in (caught.value.hint or "")
    first = make("one.img")
    mirror.close()
    taken = make("two.img", offline=True)
    assert (taken.cached, taken.packages, taken.key) == (True, 5, first.key)
    assert digest(taken.path) == digest(first.path)


def test_a_killed_run_leaves_nothing_that_stays(make: Make, tmp_path: Path) -> None:
    left = tmp_path / "cache/edgeslm-base-dead"
    left.mkdir(parents=True)
    (left / "root.tar").write_bytes(b"half")
    make()
    assert not left.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "mirror", "out.img"]


@pytest.mark.parametrize("path", ["../../etc/passwd", "./usr/../../x", "usr/a\nb"])
def test_a_package_with_a_path_that_leads_elsewhere_is_refused(
    make: Make, mirror: Mirror, tmp_path: Path, path: str
) -> None:
    mirror.packages["units"] = deb_bytes("units", {path: b"evil"})
    mirror.publish()
    with pytest.raises(PackageFileError, match="leads elsewhere"):
        make()
    assert not (tmp_path / "out.img").exists()
    assert not list((tmp_path / "cache").glob("*.img"))


def test_a_hard_link_that_leads_elsewhere_is_refused(make: Make, mirror: Mirror, tmp_path: Path) -> None:
    link = tarfile.TarInfo("./usr/bin/link")
    link.type, link.linkname = tarfile.LNKTYPE, "../../../etc/shadow"
    mirror.packages["units"] = deb_bytes("units", {}, odd=(link,))
    mirror.publish()
    with pytest.raises(PackageFileError, match="leads elsewhere"):
        make()
    assert not (tmp_path / "out.img").exists()


@pytest.mark.parametrize(
    ("package", "lost"), [("linux-image-small", "kernel"), ("busybox-static", "busybox")]
)
def test_packages_without_what_a_board_starts_with_are_refused(
    make: Make, mirror: Mirror, tmp_path: Path, package: str, lost: str
) -> None:
    mirror.packages[package] = deb_bytes(package, {"./usr/share/else": b""})
    mirror.publish()
    with pytest.raises(PackageFileError, match=f"no {lost} among the packages"):
        make()


def test_what_was_there_stays_until_the_new_image_is_whole(
    make: Make, mirror: Mirror, tmp_path: Path
) -> None:
    out = tmp_path / "out.img"
    out.write_bytes(b"the old one")
    mirror.packages["units"] = b"!<arch>\n"
    mirror.pool("units").write_bytes(b"!<arch>\n")
    with pytest.raises(BaseImageError):
        make()
    assert out.read_bytes() == b"the old one"


def test_a_directory_that_is_not_there_is_named(make: Make) -> None:
    with pytest.raises(BaseImageError, match="is no directory"):
        make("nowhere/out.img")


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/edgeslm/base")
