"""What the updater asks of the store: which packages there are, and what links to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeslm.errors import StoreError
from edgeslm.models.store import ModelStore


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def packages(store: ModelStore, slm, tmp_path: Path) -> list[str]:
    found = []
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        path = tmp_path / f"{version}.slm"
        slm.pack(path, version=version)
        found.append(store.install(path).sha256)
    return found


def test_digests_are_of_everything_that_is_installed_sound_or_not(
    store: ModelStore, packages: list[str]
) -> None:
    (store.root / f"sha256-{packages[0]}" / "tiny.tflite").unlink()
    assert store.digests() == tuple(sorted(packages))


def test_links_can_be_asked_for_without_looking_at_what_they_point_to(
    store: ModelStore, packages: list[str]
) -> None:
    assert store.digest("current", "tiny") is None
    store.set_current("tiny", packages[0])
    store.set_current("tiny", packages[1])
    assert (store.digest("current", "tiny"), store.digest("previous", "tiny")) == (packages[1], packages[0])
    assert (store.names("current"), store.names("previous")) == (("tiny",), ("tiny",))
    with pytest.raises(StoreError):
        store.digest("current", "../tiny")


def test_a_name_that_serves_nothing_any_more_holds_no_package(store: ModelStore, packages: list[str]) -> None:
    store.set_current("tiny", packages[0])
    store.set_current("tiny", packages[1])
    store.drop_current("tiny")
    store.drop_current("tiny")
    assert store.current("tiny") is store.previous("tiny") is None
    assert all(store.remove(sha256) for sha256 in packages)
