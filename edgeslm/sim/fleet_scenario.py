"""Scenarios of simulated fleets as files: those that ship, and an operator's own."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml
from pydantic import ValidationError

from edgeslm.codec import describe
from edgeslm.errors import ConfigError
from edgeslm.files import read_bounded
from edgeslm.schema.sim_fleet import MAX_SIMULATED, FleetScenario, SimulatedGroup
from edgeslm.sim.board_scenario import MAX_FILE_BYTES


def shipped_fleets() -> dict[str, FleetScenario]:
    """The simulated fleets that ship with edgeslm, by name.

    Raises:
        ConfigError: one of them is broken.
    """
    entries = resources.files("edgeslm.sim").joinpath("fleets").iterdir()
    found = [
        _parse(entry.read_text("utf-8"), f"edgeslm/sim/fleets/{entry.name}")
        for entry in sorted(entries, key=lambda entry: entry.name)
        if entry.name.endswith(".yaml")
    ]
    return {scenario.name: scenario for scenario in found}


def load_fleet(name_or_path: str) -> FleetScenario:
    """The simulated fleet of that name, or the one in that file.

    Raises:
        ConfigError: there is none, or the file is no scenario of a fleet.
    """
    shipped = shipped_fleets()
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path)
    try:
        body = read_bounded(path, MAX_FILE_BYTES)
        if len(body) > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes", path=str(path))
        return _parse(body.decode("utf-8"), str(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"no simulated fleet '{name_or_path}': {reason}",
            path=str(path),
            hint=f"Known: {', '.join(sorted(shipped))}; or name a file",
        ) from error


def changed(
    scenario: FleetScenario,
    *,
    devices: int | None = None,
    seed: int | None = None,
    speed: float | None = None,
) -> FleetScenario:
    """`scenario` with another number of devices, in the same proportions, another seed or another speed.

    Raises:
        ConfigError: fewer devices than groups, or more than are simulated.
    """
    fields: dict[str, object] = {}
    if devices is not None:
        fields["groups"] = _scaled(scenario.groups, devices)
    if seed is not None:
        fields["seed"] = seed
    if speed is not None:
        fields["speed"] = speed
    return scenario.model_copy(update=fields)


def _scaled(groups: tuple[SimulatedGroup, ...], devices: int) -> tuple[SimulatedGroup, ...]:
    if not len(groups) <= devices <= MAX_SIMULATED:
        raise ConfigError(
            f"{devices} devices in {len(groups)} groups",
            key="devices",
            hint=f"Each group has one device at least, and all together have {MAX_SIMULATED} at most",
        )
    total = sum(group.count for group in groups)
    # Whole numbers by largest remainder, with one for each beforehand.
    spare = devices - len(groups)
    exact = [spare * group.count / total for group in groups]
    counts = [1 + int(share) for share in exact]
    by_remainder = sorted(
        range(len(groups)), key=lambda place: exact[place] - int(exact[place]), reverse=True
    )
    for place in by_remainder[: devices - sum(counts)]:
        counts[place] += 1
    return tuple(
        group.model_copy(update={"count": count}) for group, count in zip(groups, counts, strict=True)
    )


def _parse(text: str, path: str) -> FleetScenario:
    try:
        return FleetScenario.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())[:200]}", path=path) from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error)}", path=path, hint="See docs/sim-fleet.md") from error
