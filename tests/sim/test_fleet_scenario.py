"""Scenarios of simulated fleets: those that ship, those that are refused, and other numbers of devices."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import ConfigError
from edgeslm.schema.sim_fleet import FleetScenario, SimulatedGroup
from edgeslm.sim.board_scenario import MAX_FILE_BYTES
from edgeslm.sim.fleet import make_devices
from edgeslm.sim.fleet_scenario import changed, load_fleet, shipped_fleets

FILES = sorted(entry.name for entry in resources.files("edgeslm.sim").joinpath("fleets").iterdir())
INVALID = sorted((Path(__file__).parents[1] / "golden" / "sim_fleet" / "invalid").glob("*.yaml"))


@pytest.mark.parametrize("file_name", FILES)
def test_every_shipped_fleet_is_named_after_its_file_and_can_be_made(file_name: str) -> None:
    shipped = load_fleet(file_name.removesuffix(".yaml"))
    assert f"{shipped.name}.yaml" == file_name
    devices = make_devices(shipped, "green")
    assert len({device.name for device in devices}) == sum(group.count for group in shipped.groups)


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_refuses_a_file_that_is_no_fleet_and_says_where(path: Path) -> None:
    expected = path.with_suffix(".expected_error").read_text("utf-8").strip()
    with pytest.raises(ConfigError) as caught:
        load_fleet(str(path))
    assert expected in str(caught.value)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"#" * (MAX_FILE_BYTES + 1), b"[" * 100_000, None])
def test_refuses_what_is_no_text_too_large_too_deep_or_not_there(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_fleet(str(path))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="greenhouses"):
        load_fleet("moonbase")


@pytest.mark.parametrize(("field", "value"), [("board", "pi-9"), ("conditions", "lunar-night")])
def test_refuses_a_board_or_conditions_that_there_are_not(field: str, value: str) -> None:
    group = SimulatedGroup.model_validate({"name": "a", "count": 1, "models": {"m": "1.0.0"}, field: value})
    with pytest.raises(ConfigError, match=value):
        make_devices(FleetScenario(name="x", title="x", groups=(group,)), "green")


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.integers(1, 5000))
def test_another_number_of_devices_keeps_the_proportions(counts: list[int], devices: int) -> None:
    groups = tuple(
        SimulatedGroup(name=f"g{place}", count=count, models={"m": "1.0.0"})
        for place, count in enumerate(counts)
    )
    scenario = FleetScenario(name="x", title="x", groups=groups)
    if devices < len(counts):
        with pytest.raises(ConfigError):
            changed(scenario, devices=devices)
        return
    scaled = [group.count for group in changed(scenario, devices=devices).groups]
    assert sum(scaled) == devices
    assert min(scaled) >= 1
    spare, total = devices - len(counts), sum(counts)
    for now, before in zip(scaled, counts, strict=True):
        assert abs(now - 1 - spare * before / total) < 1


def test_seed_and_speed_can_be_others() -> None:
    quiet = shipped_fleets()["quiet"]
    assert (changed(quiet, seed=7).seed, changed(quiet, speed=2.0).speed, changed(quiet)) == (7, 2.0, quiet)
