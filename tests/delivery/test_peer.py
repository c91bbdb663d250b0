"""A device that runs a package lends it to the next one, though it no longer has the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeslm.delivery.chunks import write_map
from edgeslm.delivery.fetcher import Fetcher
from edgeslm.delivery.file_source import FileSource
from edgeslm.delivery.http_server import PackageServer, by_sha256
from edgeslm.delivery.http_source import HttpSource
from edgeslm.models.image import PackageImage
from edgeslm.models.packing import pack
from edgeslm.models.store import ModelStore

PROOF = {"inputs": {"x": [1]}, "outputs": {"y": [2]}, "atol": 0.01}
DRAFT = {
    "format": 1, "name": "lent", "version": "1.0.0", "task": "tensor", "description": "",
    "graphs": [{"file": "a.tflite", "runtimes": ["litert"], "quantization": "", "proof": PROOF}],
    "requires": {"ram_mb": 1, "agent": "0.1.0"},
    "licenses": [{"spdx": "Apache-2.0", "of": "all"}],
}  # fmt: skip


@pytest.fixture
def package(tmp_path) -> Path:
    graph = tmp_path / "a.tflite"
    graph.write_bytes(b"\x1c\0\0\0TFL3" + bytes(range(256)) * 2000)
    pack(DRAFT, {"a.tflite": graph}, tmp_path / "lent.slm")
    return tmp_path / "lent.slm"


def test_an_unpacked_package_is_served_as_the_file_it_came_from(tmp_path, package, policy):
    blob = write_map(package)
    store = ModelStore(tmp_path / "store")
    store.install(package)
    maps = tmp_path / "maps"
    maps.mkdir()
    (tmp_path / "lent.slm.chunks").rename(maps / str(blob.chunks_sha256))
    data = package.read_bytes()
    package.unlink()

    def find(sha256: str) -> PackageImage | None:
        return PackageImage(store.get(sha256)) if store.contains(sha256) else None

    with PackageServer(by_sha256(find)) as server:
        sources = [FileSource(maps), HttpSource(server.url, reach="lan")]
        path = Fetcher(tmp_path / "arriving").fetch(blob, sources, policy)
    assert path.read_bytes() == data
