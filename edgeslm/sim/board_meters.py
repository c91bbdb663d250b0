"""What the meters of a simulated board show: averaged, quantised, with the errors of the real chips, or out of order.

What always holds: everything is pure and follows from the power that was drawn, the seed and the number of the
conversion, so that looking more often shows the same values. Values are the texts that Linux shows for the chip; how
they come into files is left to :mod:`edgeslm.sim.board_tree`.

Sources: Texas Instruments data sheets (steps, gain limits and conversion times of INA219B, INA226, INA260, INA3221),
``drivers/hwmon/ina2xx.c`` and ``ina3221.c`` (units, default averaging, power as a product in whole steps), captures of
``vcgencmd pmic_read_adc`` from a Raspberry Pi 5 for names and typical currents of its rails, the published linear fit
of their sum to the draw at the plug (1.1451 times the sum and 0.5879 W), and ``intel_rapl`` for steps and range of its
counter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgeslm.schema.scenario import MeterFault, MeterKind, SimulatedMeter
from edgeslm.sim.chance import bell, share

Texts = Mapping[str, str]
"""Name of an attribute -> what it says."""

_DRIFT_PER_S = 0.1 / 60.0
_GAIN, _NOISE, _RUBBISH, _START = range(100, 104)
_KINDS: Final[tuple[MeterKind, ...]] = ("ina219", "ina226", "ina260", "ina3221", "pmic", "rapl")


@dataclass(frozen=True, slots=True)
class Chip:
    """What is known about a kind of meter.

    Attributes:
        period_s: time of one conversion, over which a value is the mean.
        gain_limit: share by which a unit may be wrong.
        noise_a: deviation of one current value, averaging included.
        bus_step_v: one step of the voltage; 0 where it shows no voltage. So for the others.
        largest_a: where the current saturates.
        shunt_uohm: shunt on the usual breakout board, where it is not in the chip.
    """

    period_s: float
    gain_limit: float
    noise_a: float
    bus_step_v: float = 0.0
    current_step_a: float = 0.0
    power_step_w: float = 0.0
    largest_a: float = math.inf
    shunt_uohm: int | None = None


CHIPS: Final[Mapping[MeterKind, Chip]] = {
    "ina219": Chip(0.00106, 0.005, 0.0005, 0.004, 0.0001, 0.002, 3.2, 100_000),
    "ina226": Chip(0.035, 0.001, 0.0005, 0.00125, 0.00025, 0.00625, 8.19, 10_000),
    "ina260": Chip(0.035, 0.0015, 0.001, 0.00125, 0.00125, 0.01, 15.0),
    "ina3221": Chip(0.0044, 0.0025, 0.0005, 0.008, 0.0008, 0.0, 3.27, 50_000),
    "pmic": Chip(0.001, 0.02, 0.002),
    "rapl": Chip(0.001, 0.01, 0.0),
}
INA3221_CHANNELS: Final = (("BOARD", 0.75), ("USB", 0.25))
"""Places that the three-channel chip measures at, with their share of the whole draw; the third has nothing on it."""
RAPL_STEP_UJ = 61.035
RAPL_RANGE_UJ = 262_143_328_850


@dataclass(frozen=True, slots=True)
class Conversion:
    """What there was to measure.

    Attributes:
        number: counts the meter's conversions.
        power_w: mean draw over the conversion.
        supply_v: voltage at the board.
        energy_j: joules drawn until its end.
        fault: what the meter does wrong, where it does.
        fault_age_s: for how long.
    """

    number: int
    power_w: float
    supply_v: float
    energy_j: float
    fault: MeterFault | None = None
    fault_age_s: float = 0.0


def period_s(meter: SimulatedMeter) -> float:
    """Seconds of one conversion."""
    if meter.update_interval_ms is not None:
        return meter.update_interval_ms / 1000.0
    return CHIPS[meter.kind].period_s


def gain_error(meter: SimulatedMeter, seed: int) -> float:
    """Share by which this unit shows too much."""
    if meter.gain_error is not None:
        return meter.gain_error
    return CHIPS[meter.kind].gain_limit * (2.0 * share(seed, _GAIN, _KINDS.index(meter.kind)) - 1.0)


def fixed_texts(meter: SimulatedMeter) -> dict[str, str]:
    """Attributes that do not change."""
    chip = CHIPS[meter.kind]
    if meter.kind == "rapl":
        return {"name": "psys", "enabled": "1", "max_energy_range_uj": str(_counter_range_uj(meter))}
    if meter.kind == "pmic":
        return {}
    texts: dict[str, str] = {"name": meter.kind}
    if meter.kind != "ina219":
        texts["update_interval"] = str(round(period_s(meter) * 1000))
    if meter.kind == "ina3221":
        texts |= {
            "in3_enable": "0",
            "in3_input": "0",
            "curr3_input": "0",
            "shunt3_resistor": str(chip.shunt_uohm),
        }
        for number, (label, _) in enumerate(INA3221_CHANNELS, 1):
            texts |= {f"in{number}_label": label, f"in{number}_enable": "1"}
            texts[f"shunt{number}_resistor"] = str(chip.shunt_uohm)
    elif chip.shunt_uohm is not None:
        texts["shunt_resistor"] = str(chip.shunt_uohm)
    return texts


def shown_texts(meter: SimulatedMeter, seed: int, conversion: Conversion) -> dict[str, str]:
    """Attributes that change, after `conversion`. A meter that is stuck, garbled or gone is left to the caller."""
    gain = 1.0 + gain_error(meter, seed)
    if conversion.fault == "drifting":
        gain *= 1.0 + _DRIFT_PER_S * conversion.fault_age_s
    sign = -1.0 if conversion.fault == "negative" else 1.0
    if meter.kind == "rapl":
        steps = math.floor(conversion.energy_j * gain * 1e6 / RAPL_STEP_UJ)
        start_uj = share(seed, _START) * _counter_range_uj(meter)
        counter_uj = math.floor(start_uj + steps * RAPL_STEP_UJ) % _counter_range_uj(meter)
        texts = {"energy_uj": f"{'-' if sign < 0 else ''}{counter_uj}"}
    else:
        chip = CHIPS[meter.kind]
        amperes = conversion.power_w * gain / conversion.supply_v if conversion.supply_v else 0.0
        noise_a = chip.noise_a if meter.noise_a is None else meter.noise_a
        amperes += noise_a * bell(seed, _NOISE, _KINDS.index(meter.kind), conversion.number)
        volts = conversion.supply_v
        if meter.kind == "pmic":
            texts = {"pmic_read_adc": _pmic_text(amperes * volts, volts, sign)}
        elif meter.kind == "ina3221":
            texts = _ina3221_texts(chip, sign * amperes, volts)
        else:
            texts = _ina2xx_texts(chip, sign * amperes, volts)
    return texts


def garbled(texts: Texts, seed: int, number: int) -> dict[str, str]:
    """`texts` of a meter that talks rubbish; another `number`, other rubbish."""
    kinds = ("", "garbage", "\0\0\0", "9" * 20, "1 2 3", "-", "0x1f")
    return dict.fromkeys(texts, kinds[int(share(seed, _RUBBISH, number) * len(kinds))])


def _counter_range_uj(meter: SimulatedMeter) -> int:
    return meter.counter_range_uj or RAPL_RANGE_UJ


def _ina3221_texts(chip: Chip, amperes: float, volts: float) -> dict[str, str]:
    """The driver shows volts and amperes of each channel, and no power."""
    texts = {}
    for number, (_, channel_share) in enumerate(INA3221_CHANNELS, 1):
        seen_a, seen_v = _quantised(chip, channel_share * amperes, volts)
        texts[f"in{number}_input"] = str(round(seen_v * 1000))
        texts[f"curr{number}_input"] = str(round(seen_a * 1000))
    return texts


def _ina2xx_texts(chip: Chip, amperes: float, volts: float) -> dict[str, str]:
    """The chip multiplies its two registers and drops what is left of a step of power."""
    seen_a, seen_v = _quantised(chip, amperes, volts)
    steps = math.trunc(seen_a * seen_v / chip.power_step_w + math.copysign(1e-9, seen_a))
    texts = {
        "in1_input": str(round(seen_v * 1000)),
        "curr1_input": str(round(seen_a * 1000)),
        "power1_input": str(round(steps * chip.power_step_w * 1e6)),
    }
    if chip.shunt_uohm is not None:
        texts["in0_input"] = str(round(seen_a * chip.shunt_uohm / 1000))
    return texts


def _quantised(chip: Chip, amperes: float, volts: float) -> tuple[float, float]:
    amperes = max(-chip.largest_a, min(amperes, chip.largest_a))
    return (
        round(amperes / chip.current_step_a) * chip.current_step_a,
        round(volts / chip.bus_step_v) * chip.bus_step_v,
    )


# --- Raspberry Pi 5 -----------------------------------------------------------------------------------------

PMIC_SLOPE = 1.1451
PMIC_OFFSET_W = 0.5879
_CORE = "VDD_CORE"
_RAILS: Final = (
    # name, number of the current, number of the voltage, volts, amperes when idle
    ("3V7_WL_SW", 0, 8, 3.70, 0.0937),
    ("3V3_SYS", 1, 9, 3.31, 0.0586),
    ("1V8_SYS", 2, 10, 1.80, 0.1669),
    ("DDR_VDD2", 3, 11, 1.10, 0.0263),
    ("DDR_VDDQ", 4, 12, 0.60, 0.0),
    ("1V1_SYS", 5, 13, 1.10, 0.1893),
    ("0V8_SW", 6, 14, 0.80, 0.3494),
    (_CORE, 7, 15, 0.0, 0.0),
    ("3V3_DAC", 17, 20, 3.31, 0.0002),
    ("3V3_ADC", 18, 21, 3.31, 0.0004),
    ("0V8_AON", 16, 19, 0.80, 0.0034),
    ("HDMI", 22, 23, 5.09, 0.0127),
)
_REST_W = sum(volts * amperes for _, _, _, volts, amperes in _RAILS)
_REST_SHARE = 0.8


def _pmic_text(power_w: float, supply_v: float, sign: float) -> str:
    """What ``vcgencmd pmic_read_adc`` prints: the processor's rail takes what the other rails do not."""
    rails_w = max((power_w - PMIC_OFFSET_W) / PMIC_SLOPE, 0.0)
    rest = min(1.0, _REST_SHARE * rails_w / _REST_W)
    core_w = rails_w - rest * _REST_W
    core_v = min(0.72 + 0.03 * core_w, 0.90)
    currents, voltages = [], []
    for name, current_number, voltage_number, volts, idle_a in _RAILS:
        is_core = name == _CORE
        rail_v = core_v if is_core else volts
        rail_a = sign * (core_w / core_v if is_core else rest * idle_a)
        currents.append(f"{name + '_A':>12} current({current_number})={rail_a:.8f}A")
        voltages.append(f"{name + '_V':>12} volt({voltage_number})={rail_v:.8f}V")
    voltages += [f"{'EXT5V_V':>12} volt(24)={supply_v:.8f}V", f"{'BATT_V':>12} volt(25)={0.0:.8f}V"]
    return "\n".join(currents + voltages)
