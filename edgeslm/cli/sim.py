"""``edgeslm sim``: simulated boards, as files that the agent's meters read like real ones, and simulated fleets."""

from __future__ import annotations

import math
from pathlib import Path

import click

from edgeslm.cli.output import CommandGroup, json_option, print_json, reporting_errors, stopped_by_signals
from edgeslm.power.boards import choose_board
from edgeslm.sim.board import BoardState
from edgeslm.sim.board_driver import ProcessLoad, SimBoard
from edgeslm.sim.board_scenario import load_scenario, shipped_scenarios, time_of_day

_COMMANDS = {
    "boot": ("edgeslm.cli.sim_boot:boot", "Boot an image in QEMU, in the place of a board."),
    "fleet": ("edgeslm.cli.sim_fleet:fleet", "Run simulated devices at a fleet's broker."),
    "fleets": ("edgeslm.cli.sim_fleet:fleets", "List the simulated fleets that ship."),
}


@click.group(cls=CommandGroup, lazy=_COMMANDS)
def sim() -> None:
    """Simulate boards: power, heat, battery, and meters that fail; and whole fleets of devices."""


@sim.command()
@json_option
@reporting_errors
def scenarios(as_json: bool) -> None:
    """List what can happen to a simulated board."""
    known = shipped_scenarios().values()
    if as_json:
        print_json([scenario.model_dump(mode="json", exclude_none=True) for scenario in known])
        return
    width = max(len(scenario.name) for scenario in known)
    for scenario in known:
        click.echo(f"{scenario.name:<{width}}  {scenario.title}")


@sim.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Where its files go; new, empty, or of an earlier run.",
)
@click.option("--board", "board_name", default="pi-4b", show_default=True, help="Board to simulate.")
@click.option(
    "--devices-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Board files of your own.",
)
@click.option(
    "--scenario",
    "scenario_name",
    default="desk",
    show_default=True,
    help="What happens to it: a name that `sim scenarios` lists, or a file.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="In the place of the scenario's own.")
@click.option(
    "--speed",
    type=click.FloatRange(0, 1e5, min_open=True),
    default=1.0,
    show_default=True,
    help="Simulated seconds in a real one.",
)
@click.option(
    "--for",
    "for_s",
    type=click.FloatRange(0, 1e9, min_open=True),
    help="Simulated seconds to run; default is until Ctrl-C.",
)
@click.option("--pid", type=click.IntRange(1), help="Let the work be that of a real process.")
@json_option
@reporting_errors
def board(
    directory: Path,
    board_name: str,
    devices_dir: Path | None,
    scenario_name: str,
    seed: int | None,
    speed: float,
    for_s: float | None,
    pid: int | None,
    as_json: bool,
) -> None:
    """Run a simulated board: its /sys, /proc and vcgencmd appear below a directory and follow it.

    Prints how it is once a second. Someone who reads the files lives in real time: leave the speed at 1 for an
    agent that is to account energy with them.
    """
    chosen, scenario = choose_board(board_name, devices_dir), load_scenario(scenario_name)
    load = ProcessLoad(pid) if pid is not None else None
    end_s = math.inf if for_s is None else for_s
    with SimBoard(chosen, scenario, directory, seed=seed) as simulated, stopped_by_signals() as stop:
        click.echo(f"{chosen.title}: {scenario.title}", err=True)
        click.echo(f"files in {directory}, Ctrl-C ends", err=True)
        while not stop.is_set() and simulated.clock() < end_s:
            _print(simulated, as_json)
            simulated.run(stop, speed=speed, until_s=min(simulated.clock() + speed, end_s), load=load)
        _print(simulated, as_json)


def _print(simulated: SimBoard, as_json: bool) -> None:
    if as_json:
        print_json(_report(simulated, simulated.state))
    else:
        click.echo(_line(simulated, simulated.state))


def _battery_share(simulated: SimBoard, state: BoardState) -> float | None:
    pack = simulated.plant.battery
    return None if pack is None else state.battery_j / 3600.0 / pack.capacity_wh


def _report(simulated: SimBoard, state: BoardState) -> dict[str, object]:
    report: dict[str, object] = {
        "clock": time_of_day(simulated.scenario, state.time_s),
        "time_s": round(state.time_s, 3),
        "power_w": round(state.power_w, 3),
        "energy_j": round(state.energy_j, 3),
        "temperature_c": round(state.temperature_c, 2),
        "frequency_mhz": round(state.frequency_mhz),
        "supply_v": round(state.supply_v, 3),
        "throttled": f"{state.throttled_word:#x}",
        "alive": state.alive,
    }
    if (share := _battery_share(simulated, state)) is not None:
        report |= {"battery_share": round(share, 4), "battery_w": round(state.battery_w, 3)}
    return report


def _line(simulated: SimBoard, state: BoardState) -> str:
    parts = [
        time_of_day(simulated.scenario, state.time_s),
        f"{state.power_w:6.2f} W",
        f"{state.energy_j:10.1f} J",
        f"{state.temperature_c:5.1f} °C",
        f"{state.frequency_mhz:5.0f} MHz",
        f"{state.supply_v:5.2f} V",
    ]
    if (share := _battery_share(simulated, state)) is not None:
        way = "in" if state.battery_w < 0 else "out"
        parts.append(f"battery {share:6.1%}, {abs(state.battery_w):5.2f} W {way}")
    if state.throttled_word:
        parts.append(f"throttled {state.throttled_word:#x}")
    if not state.alive:
        parts.append("off")
    return "  ".join(parts)
