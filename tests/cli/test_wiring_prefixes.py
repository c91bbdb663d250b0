"""Where an agent keeps what prompts have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeslm.cli import wiring
from edgeslm.runtime.prefix_cache import PrefixPlace
from edgeslm.schema.config import AgentConfig


def place(state_dir: Path, **prefixes: object) -> PrefixPlace:
    return wiring.prefix_place(
        AgentConfig.model_validate({"device": "d", "state_dir": state_dir, "prefixes": prefixes})
    )


def limit_mb(found: PrefixPlace) -> float:
    assert found.states is not None
    return found.states.limit_bytes / 2**20


@pytest.mark.parametrize(("board_mb", "limit"), [(512, 32), (1024, 64), (8192, 64)])
def test_by_default_it_is_a_small_part_of_the_board(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, board_mb: int, limit: int
) -> None:
    monkeypatch.setattr("edgeslm.procfs.memory_kib", lambda _: board_mb * 1024)
    assert limit_mb(place(tmp_path)) == limit


def test_the_settings_say_otherwise(tmp_path: Path) -> None:
    assert limit_mb(place(tmp_path, memory_mb=0)) == 0
    found = place(tmp_path, memory_mb=300, on_disk=True, disk_mb=7)
    assert limit_mb(found) == 300
    assert found.directory == tmp_path / "cache" / "prefixes"
    assert found.disk_limit_bytes == 7 * 2**20


def test_what_is_on_disk_goes_once_it_is_not_wanted_there(tmp_path: Path) -> None:
    directory = place(tmp_path, on_disk=True).directory
    assert directory is not None
    directory.mkdir(parents=True)
    (directory / "x.kv").write_bytes(b"said")
    (tmp_path / "cache" / "weights").write_bytes(b"packed")
    place(tmp_path, on_disk=True)
    assert directory.exists()
    assert place(tmp_path).directory is None
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["weights"]
