"""From a scenario to what acts on a board at a moment: sun, air, supply, work, and faults of meters.

What always holds: everything but reading files is pure and follows from the scenario, a seed and the time alone, so
that a simulation may step as it likes, and boards of one scenario differ by their seeds.

Between two times that :func:`next_change_s` names, work, supply and faults stay as they are; sun and air move slowly
and are taken as constant over a step.
"""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Final

import yaml
from pydantic import ValidationError

from edgeslm.codec import describe
from edgeslm.errors import ConfigError
from edgeslm.schema.scenario import (
    Air,
    Bursts,
    Constant,
    Load,
    MeterFault,
    Panel,
    Scenario,
    Square,
)
from edgeslm.sim.board import Inputs
from edgeslm.sim.chance import share

MAX_FILE_BYTES: Final = 1_000_000
_DAY_S = 86_400.0
_CLOUD_S = 600.0
_CLOUDS, _DAYS, _BURST_START, _BURST_LENGTH = range(4)
"""What a number of chance is for; keeps the numbers of one purpose apart from those of another."""


# --- files --------------------------------------------------------------------------------------------------


def shipped_scenarios() -> dict[str, Scenario]:
    """The scenarios that ship with edgeslm, by name.

    Raises:
        ConfigError: one of them is broken.
    """
    entries = resources.files("edgeslm.sim").joinpath("scenarios").iterdir()
    found = [
        _parse(entry.read_text("utf-8"), f"edgeslm/sim/scenarios/{entry.name}")
        for entry in sorted(entries, key=lambda entry: entry.name)
        if entry.name.endswith(".yaml")
    ]
    return {scenario.name: scenario for scenario in found}


def load_scenario(name_or_path: str) -> Scenario:
    """The scenario of that name, or the one in that file.

    Raises:
        ConfigError: there is none, or the file is no scenario.
    """
    shipped = shipped_scenarios()
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path)
    try:
        with path.open("rb") as file:
            body = file.read(MAX_FILE_BYTES + 1)
        if len(body) > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes", path=str(path))
        return _parse(body.decode("utf-8"), str(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"no scenario '{name_or_path}': {reason}",
            path=str(path),
            hint=f"Known: {', '.join(sorted(shipped))}; or name a file",
        ) from error


def _parse(text: str, path: str) -> Scenario:
    try:
        return Scenario.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {str(error)[:200]}", path=path) from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error)}", path=path) from error


# --- what acts on the board ---------------------------------------------------------------------------------


def inputs_at(
    scenario: Scenario,
    seed: int,
    time_s: float,
    mains_w: float,
    *,
    busy_cores: float | None = None,
    cap_mhz: float | None = None,
) -> Inputs:
    """What acts on a board at `time_s`.

    Args:
        mains_w: watts that the board's own supply can give, for scenarios that leave it open.
        busy_cores: cores that compute, where the scenario is not to decide it.
        cap_mhz: highest frequency that the board's software allows.
    """
    air_c = _air_c(scenario.air, _hour(scenario, time_s))
    supply_w = mains_w if scenario.supply_w is None else scenario.supply_w
    cores = _busy_cores(scenario.load, seed, time_s) if busy_cores is None else busy_cores
    solar_w = 0.0
    if scenario.panel is not None:
        solar_w = _solar_w(scenario.panel, _hour(scenario, time_s), seed, time_s)
    for event in scenario.events:
        if event.holds(time_s):
            supply_w = supply_w if event.supply_w is None else event.supply_w
            air_c = air_c if event.air_c is None else event.air_c
            solar_w = solar_w if event.sun is None else solar_w * event.sun
            if busy_cores is None and event.busy_cores is not None:
                cores = event.busy_cores
    return Inputs(
        busy_cores=cores,
        air_c=air_c,
        supply_w=supply_w,
        solar_w=solar_w,
        network_mb_per_s=scenario.network_mb_per_s,
        cap_mhz=cap_mhz,
    )


def faults_at(scenario: Scenario, time_s: float) -> dict[str, tuple[MeterFault, float]]:
    """What is wrong with which meter at `time_s`, and for how many seconds it has been so."""
    return {
        fault.meter: (fault.fault, time_s - fault.at_s) for fault in scenario.faults if fault.holds(time_s)
    }


def next_change_s(scenario: Scenario, seed: int, time_s: float) -> float:
    """The first time after `time_s` at which work, supply or a fault may change; infinite where nothing will."""
    change_s = _next_load_change_s(scenario.load, seed, time_s)
    for spell in (*scenario.events, *scenario.faults):
        if spell.at_s > time_s:
            change_s = min(change_s, spell.at_s)
        elif spell.for_s is not None and spell.at_s + spell.for_s > time_s:
            change_s = min(change_s, spell.at_s + spell.for_s)
    return change_s


def time_of_day(scenario: Scenario, time_s: float) -> str:
    """The simulated clock, such as ``13:05:00``."""
    seconds = int(_hour(scenario, time_s) * 3600.0 + 0.5) % 86_400
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _hour(scenario: Scenario, time_s: float) -> float:
    return (scenario.start_h + time_s / 3600.0) % 24.0


def _air_c(air: Air, hour: float) -> float:
    return air.mean_c + air.swing_c * math.cos(math.tau * (hour - air.hottest_h) / 24.0)


def _solar_w(panel: Panel, hour: float, seed: int, time_s: float) -> float:
    if not panel.sunrise_h < hour < panel.sunset_h:
        return 0.0
    height = math.sin(math.pi * (hour - panel.sunrise_h) / (panel.sunset_h - panel.sunrise_h))
    if panel.clouds == 0.0:
        return panel.peak_w * height
    # Half of the cover is the weather of the day, half are clouds that come and go within minutes.
    cover = 0.5 * (_drifting(seed, _DAYS, time_s / _DAY_S) + _drifting(seed, _CLOUDS, time_s / _CLOUD_S))
    return panel.peak_w * height * (1.0 - panel.clouds * cover)


def _drifting(seed: int, purpose: int, place: float) -> float:
    """A number in [0, 1] that goes straight from one of chance at each whole place to the next."""
    whole = math.floor(place)
    before, after = share(seed, purpose, whole), share(seed, purpose, whole + 1)
    return before + (after - before) * (place - whole)


# --- work ---------------------------------------------------------------------------------------------------


def _busy_cores(load: Load, seed: int, time_s: float) -> float:
    match load:
        case Constant():
            return load.busy_cores
        case Square():
            return load.low_cores if _edge(load, time_s) % 2 else load.high_cores
        case Bursts():
            start_s, end_s = _burst(load, seed, math.floor(time_s / load.every_s))
            return load.busy_cores if start_s <= time_s < end_s else load.low_cores


def _next_load_change_s(load: Load, seed: int, time_s: float) -> float:
    match load:
        case Constant():
            return math.inf
        case Square():
            return _edge_s(load, _edge(load, time_s) + 1)
        case Bursts():
            stretch = math.floor(time_s / load.every_s)
            edges = (*_burst(load, seed, stretch), *_burst(load, seed, stretch + 1))
            return next(edge_s for edge_s in edges if edge_s > time_s)


def _edge(load: Square, time_s: float) -> int:
    """The number of the last edge at or before `time_s`: even ones go up, odd ones down.

    Edges are counted rather than phases taken, since a phase rounded the wrong way at an edge would make a level of
    no length.
    """
    edge = 2 * math.floor(time_s / load.period_s)
    while _edge_s(load, edge) > time_s:
        edge -= 1
    while _edge_s(load, edge + 1) <= time_s:
        edge += 1
    return edge


def _edge_s(load: Square, edge: int) -> float:
    period, is_down = divmod(edge, 2)
    return (period + (load.high_share if is_down else 0.0)) * load.period_s


def _burst(load: Bursts, seed: int, stretch: int) -> tuple[float, float]:
    """When the burst in that stretch begins and ends."""
    length_s = load.length_s * (0.5 + share(seed, _BURST_LENGTH, stretch))
    start_s = stretch * load.every_s + (load.every_s - length_s) * share(seed, _BURST_START, stretch)
    return start_s, start_s + length_s
