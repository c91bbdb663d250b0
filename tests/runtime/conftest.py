"""The package that ships, installed once for all runtime tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeslm.cli import wiring
from edgeslm.runtime.model import LoadedModel, load_model
from edgeslm.schema.installed import InstalledPackage


@pytest.fixture(scope="session")
def store_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def home_command(store_dir: Path) -> InstalledPackage:
    return wiring.install_package("builtin:home-command", store_dir)


@pytest.fixture(scope="session")
def model(home_command: InstalledPackage, store_dir: Path) -> LoadedModel:
    return load_model(home_command, cache_dir=store_dir / "cache")
