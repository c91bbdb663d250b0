"""Physics of a simulated board: power, heat, what the firmware does to protect it, supply and battery.

What always holds: :func:`step` is pure and costs microseconds, and within a step, where inputs are constant, power
leaks with temperature and temperature follows power exactly: both are solved in closed form, so that the energy is
the integral and not a sum of samples, and one long step equals many short ones. Only the firmware looks at the board
once a step; steps of a second are short beside the minute in which a board warms up.

Left to others: what the inputs are (:mod:`edgeslm.sim.board_scenario`), and who gets to see what
(:mod:`edgeslm.sim.board_meters`).

Sources: the power law of :class:`edgeslm.schema.board.PowerTable`. Raspberry Pi documentation, ``vcgencmd``
(``get_throttled``) and "frequency management and thermal control": processors are slowed from 80 degrees and
increasingly until 85; the supply counts as low below 4.63 V. MaxLinear MXL7704, the power chip of the Raspberry Pi 4:
4.0 V at least. A board in under-voltage answers 0x50005: under-voltage and throttled, now and since boot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from edgeslm.errors import ConfigError
from edgeslm.schema.board import Board
from edgeslm.schema.scenario import BatteryPack

UNDER_VOLTAGE: Final = 1 << 0
FREQUENCY_CAPPED: Final = 1 << 1
THROTTLED: Final = 1 << 2
_SINCE_BOOT_SHIFT = 16
"""Bits of ``get_throttled``; the same shifted by 16 is "since boot"."""

_NOMINAL_V = 5.1
_LOW_V = 4.63
_DEAD_V = 4.0
_LOW_HOLD_S = 3.0
_THROTTLE_BAND_C = 5.0
_IDLE_HOLD_S = 1.0
_REFERENCE_C = 25.0
_FULL_LOAD_C = 58.0


@dataclass(frozen=True, slots=True)
class Plant:
    """What does not change about a board: see :class:`~edgeslm.schema.board.PowerTable` for the power law.

    Attributes:
        supply_w: watts that its own mains supply can give.
        resistance_c_per_w: degrees above the air per watt in the end.
    """

    cores: int
    idle_w: float
    core_load_w: float
    max_mhz: int
    min_mhz: int
    frequency_exponent: float
    temperature_w_per_c: float
    network_j_per_mb: float
    supply_w: float
    throttle_c: float
    resistance_c_per_w: float
    time_constant_s: float
    battery: BatteryPack | None = None


def plant_of(board: Board, battery: BatteryPack | None = None) -> Plant:
    """The plant of `board`.

    What its file leaves open is as on a Raspberry Pi 4 in free air: 600 to 1500 MHz, a supply for twice the full draw
    and at least 15 W, 80 degrees, and with all cores busy 58 degrees above the air after some times 100 seconds
    (thermocouples on one show 27 degrees when idle, which is the same 9 degrees a watt).

    Raises:
        ConfigError: the board would heat up without end: a degree more brings more than a degree.
    """
    power, thermal = board.power, board.thermal
    cores = board.cores or 4
    full_w = power.idle_w + cores * power.core_load_w
    max_mhz = power.max_mhz or 1500
    plant = Plant(
        cores=cores,
        idle_w=power.idle_w,
        core_load_w=power.core_load_w,
        max_mhz=max_mhz,
        min_mhz=power.min_mhz or min(600, max_mhz),
        frequency_exponent=power.frequency_exponent,
        temperature_w_per_c=power.temperature_w_per_c,
        network_j_per_mb=power.network_j_per_mb,
        supply_w=power.supply_w or max(15.0, 2.0 * full_w),
        throttle_c=thermal.throttle_c if thermal else 80.0,
        resistance_c_per_w=thermal.resistance_c_per_w if thermal else _FULL_LOAD_C / max(full_w, 0.1),
        time_constant_s=thermal.time_constant_s if thermal else 100.0,
        battery=battery,
    )
    if plant.resistance_c_per_w * plant.temperature_w_per_c >= 1.0:
        raise ConfigError(
            f"board {board.name} heats up without end: resistance_c_per_w times temperature_w_per_c is 1 or more",
            key="power.temperature_w_per_c",
        )
    return plant


@dataclass(frozen=True, slots=True)
class Inputs:
    """What acts on a board during a step.

    Attributes:
        busy_cores: cores that compute.
        air_c: temperature of the air.
        supply_w: watts that the mains supply can give; 0 is none.
        solar_w: watts that the panel can give.
        network_mb_per_s: megabytes a second over the network.
        cap_mhz: highest frequency that the board's own software allows; ``None`` is no cap.
    """

    busy_cores: float
    air_c: float
    supply_w: float
    solar_w: float = 0.0
    network_mb_per_s: float = 0.0
    cap_mhz: float | None = None


@dataclass(frozen=True, slots=True)
class BoardState:
    """How a board is, and what it has used since the simulation began.

    Attributes:
        time_s: simulated seconds since the start.
        energy_j: joules drawn since then, exact.
        busy_core_s: core seconds computed since then.
        network_mb: megabytes moved over the network since then.
        power_w: mean draw over the last step.
        supply_v: voltage at the board's input.
        frequency_mhz: what the processor runs at.
        battery_j: energy in the battery.
        battery_w: watts that leave the battery; negative while it charges.
        external: whether mains or sun feed the board at all.
        flags: bits of ``get_throttled`` that hold now.
        flags_since_boot: bits that held at any time since the board started.
        alive: whether it runs; it goes out when the supply breaks down and starts when that is back.
        boots: how often it started.
        idle_s: seconds without work.
        low_until_s: until when the firmware keeps the frequency down after the supply was low.
    """

    time_s: float
    energy_j: float
    busy_core_s: float
    network_mb: float
    power_w: float
    supply_v: float
    temperature_c: float
    frequency_mhz: float
    battery_j: float
    battery_w: float
    external: bool
    flags: int
    flags_since_boot: int
    alive: bool
    boots: int
    idle_s: float
    low_until_s: float

    @property
    def throttled_word(self) -> int:
        """The number that ``get_throttled`` prints."""
        return self.flags | self.flags_since_boot << _SINCE_BOOT_SHIFT


def initial(plant: Plant, inputs: Inputs) -> BoardState:
    """A board that has been idle in that air for long, at time 0."""
    leakage = plant.temperature_w_per_c
    unleaked_w = plant.idle_w - leakage * _REFERENCE_C
    resistance = plant.resistance_c_per_w
    temperature_c = (inputs.air_c + resistance * unleaked_w) / (1.0 - resistance * leakage)
    pack = plant.battery
    return BoardState(
        time_s=0.0,
        energy_j=0.0,
        busy_core_s=0.0,
        network_mb=0.0,
        power_w=unleaked_w + leakage * temperature_c,
        supply_v=_NOMINAL_V,
        temperature_c=temperature_c,
        frequency_mhz=plant.min_mhz,
        battery_j=pack.start_share * pack.capacity_wh * 3600.0 if pack else 0.0,
        battery_w=0.0,
        external=inputs.supply_w + inputs.solar_w > 0.0,
        flags=0,
        flags_since_boot=0,
        alive=True,
        boots=1,
        idle_s=_IDLE_HOLD_S,
        low_until_s=0.0,
    )


def step(plant: Plant, state: BoardState, inputs: Inputs, dt_s: float) -> BoardState:
    """`state` after `dt_s` seconds (more than 0) of `inputs`."""
    pack = plant.battery
    external_w = inputs.supply_w + inputs.solar_w
    battery_limit_w = pack.max_discharge_w if pack is not None and state.battery_j > 0.0 else 0.0
    available_w = external_w + battery_limit_w
    leakage = plant.temperature_w_per_c
    idle_w = plant.idle_w + leakage * (state.temperature_c - _REFERENCE_C)

    alive, boots, since_boot = state.alive, state.boots, state.flags_since_boot
    if not alive and _can_start(plant, state, inputs.supply_w, available_w, idle_w):
        alive, boots = True, boots + 1

    flags, low_until_s = 0, state.low_until_s
    busy = min(inputs.busy_cores, plant.cores)
    network_mb_per_s = inputs.network_mb_per_s
    limit_mhz, load_w, supply_v = 0.0, 0.0, 0.0
    if alive:
        limit_mhz, flags = _frequency_limit(plant, state, inputs.cap_mhz)
        other_w = idle_w + plant.network_j_per_mb * network_mb_per_s
        load_w = _load_w(plant, busy, limit_mhz)
        supply_v = _voltage(other_w + load_w, available_w)
        if supply_v < _LOW_V:
            flags |= UNDER_VOLTAGE | THROTTLED
            low_until_s = state.time_s + dt_s + _LOW_HOLD_S
            limit_mhz = float(plant.min_mhz)
            load_w = _load_w(plant, busy, limit_mhz)
            supply_v = _voltage(other_w + load_w, available_w)
            alive = supply_v >= _DEAD_V
    if alive:
        constant_w = other_w + load_w - leakage * state.temperature_c
    else:
        constant_w = leakage = busy = network_mb_per_s = supply_v = limit_mhz = 0.0
        flags = since_boot = 0

    # dT/dt = (air + resistance * (constant_w + leakage * T) - T) / time constant: linear, so solved exactly.
    resistance = plant.resistance_c_per_w
    damping = 1.0 - resistance * leakage
    rate = damping / plant.time_constant_s
    final_c = (inputs.air_c + resistance * constant_w) / damping
    distance_c = state.temperature_c - final_c
    faded = -math.expm1(-rate * dt_s)
    temperature_c = state.temperature_c - distance_c * faded
    used_j = constant_w * dt_s + leakage * (final_c * dt_s + distance_c * faded / rate)

    power_w = used_j / dt_s
    battery_j, battery_w = state.battery_j, 0.0
    if pack is not None:
        battery_j, battery_w = _battery(pack, battery_j, power_w - external_w, dt_s)
    idle_s = 0.0 if busy > 0.0 else state.idle_s + dt_s
    return BoardState(
        time_s=state.time_s + dt_s,
        energy_j=state.energy_j + used_j,
        busy_core_s=state.busy_core_s + busy * dt_s,
        network_mb=state.network_mb + network_mb_per_s * dt_s,
        power_w=power_w,
        supply_v=supply_v,
        temperature_c=temperature_c,
        frequency_mhz=min(limit_mhz, plant.min_mhz) if idle_s >= _IDLE_HOLD_S else limit_mhz,
        battery_j=battery_j,
        battery_w=battery_w,
        external=external_w > 0.0,
        flags=flags,
        flags_since_boot=since_boot | flags,
        alive=alive,
        boots=boots,
        idle_s=idle_s,
        low_until_s=low_until_s,
    )


def _can_start(plant: Plant, state: BoardState, supply_w: float, available_w: float, idle_w: float) -> bool:
    if _voltage(idle_w, available_w) < _LOW_V:
        return False
    pack = plant.battery
    if pack is None or supply_w >= idle_w:
        return True
    # Without this a board on an empty battery would start and go out with every ray of light.
    return state.battery_j >= pack.restart_share * pack.capacity_wh * 3600.0


def _frequency_limit(plant: Plant, state: BoardState, cap_mhz: float | None) -> tuple[float, int]:
    """The frequency of a busy core, and which bits say why it is lower than what software asked for."""
    asked_mhz = float(plant.max_mhz)
    if cap_mhz is not None:
        asked_mhz = min(max(cap_mhz, plant.min_mhz), plant.max_mhz)
    if state.time_s < state.low_until_s:
        return float(plant.min_mhz), THROTTLED
    heat_c = state.temperature_c - plant.throttle_c
    if heat_c < 0.0:
        return asked_mhz, 0
    cooled_share = min(heat_c / _THROTTLE_BAND_C, 1.0)
    limit_mhz = plant.max_mhz - cooled_share * (plant.max_mhz - plant.min_mhz)
    return min(asked_mhz, limit_mhz), FREQUENCY_CAPPED | THROTTLED


def _load_w(plant: Plant, busy: float, mhz: float) -> float:
    return busy * plant.core_load_w * math.pow(mhz / plant.max_mhz, plant.frequency_exponent)


def _voltage(power_w: float, available_w: float) -> float:
    """Volts at the board's input; 0 where the supply breaks down.

    The supply is 5.1 V behind the resistance with which drawing all that it can give brings the voltage down to the
    under-voltage limit, as cables and cheap supplies do.
    """
    if available_w <= 0.0:
        return 0.0
    resistance_ohm = (_NOMINAL_V - _LOW_V) * _LOW_V / available_w
    left = _NOMINAL_V * _NOMINAL_V - 4.0 * resistance_ohm * power_w
    return 0.5 * (_NOMINAL_V + math.sqrt(left)) if left > 0.0 else 0.0


def _battery(pack: BatteryPack, energy_j: float, missing_w: float, dt_s: float) -> tuple[float, float]:
    """Energy in the battery after `dt_s`, and the watts that left it; `missing_w` below 0 is left over."""
    if missing_w >= 0.0:
        taken_w = min(missing_w, energy_j / dt_s)
        return energy_j - taken_w * dt_s, taken_w
    room_j = pack.capacity_wh * 3600.0 - energy_j
    put_w = min(-missing_w, pack.max_charge_w, room_j / (pack.charge_efficiency * dt_s))
    return energy_j + put_w * pack.charge_efficiency * dt_s, -put_w
