"""Packages come from a signed archive, whole and as its index says, or not at all: with a real apt and server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeslm.errors import FetchPackagesError
from edgeslm.flash.base.fetch import PackageFile, PackageSource, Source, sources
from edgeslm.flash.base.recipe import Recipe
from tests.flash.base.conftest import Mirror, deb_bytes


def fetch(
    mirror: Mirror, recipe: Recipe, directory: Path, address: str | None = None
) -> tuple[PackageFile, ...]:
    where = [Source(address or mirror.address, ("trixie",))]
    return PackageSource(directory, recipe, where, mirror.keyring).fetch(lambda text: None)


def test_fetches_what_is_wanted_and_what_that_needs_and_nothing_else(
    mirror: Mirror, recipe: Recipe, tmp_path: Path
) -> None:
    found = fetch(mirror, recipe, tmp_path / "apt")
    names = ["base-passwd", "busybox-static", "linux-image-small", "needed", "units"]
    assert [one.name for one in found] == names
    assert all(one.path.read_bytes() == mirror.packages[one.name] for one in found)


def test_what_is_there_is_not_fetched_again(mirror: Mirror, recipe: Recipe, tmp_path: Path) -> None:
    first = fetch(mirror, recipe, tmp_path / "apt")
    mirror.asked.clear()
    assert fetch(mirror, recipe, tmp_path / "apt") == first
    assert not [path for path in mirror.asked if path.endswith(".deb")]


def test_packages_that_nobody_wants_any_more_are_removed(
    mirror: Mirror, recipe: Recipe, tmp_path: Path
) -> None:
    fetch(mirror, recipe, tmp_path / "apt")
    mirror.packages["base-passwd"] = deb_bytes("base-passwd", {}, version="1.0")
    del mirror.packages["needed"]
    mirror.publish()
    fetch(mirror, recipe, tmp_path / "apt")
    assert not list((tmp_path / "apt/archives").glob("needed*"))


def test_a_download_that_breaks_off_is_an_error_and_the_next_run_completes_it(
    mirror: Mirror, recipe: Recipe, tmp_path: Path
) -> None:
    mirror.cut_after_bytes = 100
    with pytest.raises(FetchPackagesError, match="cannot be fetched") as caught:
        fetch(mirror, recipe, tmp_path / "apt")
    assert "--mirror" in (caught.value.hint or "")
    mirror.cut_after_bytes = None
    assert len(fetch(mirror, recipe, tmp_path / "apt")) == 5


@pytest.mark.parametrize("signer", [None, "somebody"])
def test_refuses_an_archive_that_is_not_signed_with_its_key(
    mirror: Mirror, recipe: Recipe, tmp_path: Path, signer: str | None
) -> None:
    mirror.publish(signer)
    with pytest.raises(FetchPackagesError):
        fetch(mirror, recipe, tmp_path / "apt")
    assert not list((tmp_path / "apt/archives").glob("*.deb"))


def test_a_machine_whose_apt_lets_everything_through_changes_nothing(
    mirror: Mirror, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lax = tmp_path / "lax.conf"
    names = (
        "Acquire::AllowInsecureRepositories",
        "Acquire::AllowWeakRepositories",
        "APT::Get::AllowUnauthenticated",
    )
    lax.write_text("".join(f'{name} "true";\n' for name in names))
    monkeypatch.setenv("APT_CONFIG", str(lax))
    mirror.publish(None)
    with pytest.raises(FetchPackagesError, match="not signed"):
        fetch(mirror, recipe, tmp_path / "apt")


def test_proxies_of_the_machine_are_used(
    mirror: Mirror, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.conf"
    own.write_text(f'Acquire::http::Proxy "{mirror.address}";\nAcquire::http::Proxy::127.0.0.1 "DIRECT";\n')
    monkeypatch.setenv("APT_CONFIG", str(own))
    with pytest.raises(FetchPackagesError):
        fetch(mirror, recipe, tmp_path / "apt", "http://nowhere.invalid")
    assert any("nowhere.invalid" in path for path in mirror.asked)


def test_an_index_that_was_changed_after_it_was_signed_is_refused(
    mirror: Mirror, recipe: Recipe, tmp_path: Path
) -> None:
    index = mirror.directory / "dists/trixie/main/binary-arm64/Packages"
    index.write_bytes(index.read_bytes().replace(b"Version: 1.0", b"Version: 1.1"))
    with pytest.raises(FetchPackagesError):
        fetch(mirror, recipe, tmp_path / "apt")


def test_a_package_that_is_not_what_the_index_says_is_refused(
    mirror: Mirror, recipe: Recipe, tmp_path: Path
) -> None:
    data = mirror.packages["needed"]
    mirror.pool("needed").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(FetchPackagesError, match="Hash Sum mismatch"):
        fetch(mirror, recipe, tmp_path / "apt")


def test_a_package_that_went_bad_in_the_cache_is_noticed_and_replaced(
    mirror: Mirror, recipe: Recipe, tmp_path: Path
) -> None:
    found = fetch(mirror, recipe, tmp_path / "apt")
    needed = next(one for one in found if one.name == "needed")
    status = needed.path.stat()
    data = bytearray(needed.path.read_bytes())
    data[-1] ^= 1
    needed.path.write_bytes(data)
    os.utime(needed.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(FetchPackagesError, match="is not what the archive's index says; it was removed"):
        fetch(mirror, recipe, tmp_path / "apt")
    fetch(mirror, recipe, tmp_path / "apt")
    assert needed.path.read_bytes() == mirror.packages["needed"]


def test_a_mirror_that_cannot_be_reached_is_named(mirror: Mirror, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(FetchPackagesError, match=r"127\.0\.0\.1:9") as caught:
        fetch(mirror, recipe, tmp_path / "apt", "http://127.0.0.1:9")
    assert caught.value.hint == "Look at the network, or name another mirror with --mirror"


def test_a_mirror_without_the_suite_is_named(mirror: Mirror, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(FetchPackagesError, match="trixie"):
        fetch(mirror, recipe, tmp_path / "apt", f"{mirror.address}/elsewhere")


def test_a_package_that_the_archive_does_not_have_is_named(
    mirror: Mirror, recipe: Recipe, tmp_path: Path
) -> None:
    del mirror.packages["units"]
    mirror.publish()
    with pytest.raises(FetchPackagesError, match="units"):
        fetch(mirror, recipe, tmp_path / "apt")


@pytest.mark.parametrize(
    "mirror_name", ["", "ftp://x/debian", "http://x y", "http://x [trusted=yes]", "/srv/debian"]
)
def test_refuses_what_is_no_address_of_a_mirror(mirror_name: str) -> None:
    with pytest.raises(FetchPackagesError, match="no address of a mirror"):
        sources("trixie", mirror_name)


def test_missing_keys_are_named_with_the_package_that_has_them(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(FetchPackagesError, match="keys of the archive are missing"):
        PackageSource(tmp_path, recipe, sources("trixie", "http://localhost/debian"), tmp_path / "none.gpg")


def test_the_machines_own_mirror_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeslm.flash.base.fetch._SOURCES", tmp_path)
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(
        "Types: deb\nURIs: http://near.example/debian\nSuites: trixie trixie-updates\nComponents: main\n\n"
        "Types: deb\nURIs: http://near.example/security\nSuites: trixie-security\nComponents: main\n\n"
        "Types: deb\nURIs: file:/srv/own\nSuites: ./\nTrusted: yes\n"
    )
    assert [one.uri for one in sources("trixie", None)] == [
        "http://near.example/debian",
        "http://near.example/security",
    ]
    (tmp_path / "sources.list.d/debian.sources").unlink()
    (tmp_path / "sources.list").write_text("deb [arch=amd64] http://old.example/debian trixie main contrib\n")
    assert sources("trixie", None)[0].uri == "http://old.example/debian"
    (tmp_path / "sources.list").write_text("deb http://old.example/debian bookworm main\n")
    assert sources("trixie", None)[0].uri == "http://deb.debian.org/debian"
