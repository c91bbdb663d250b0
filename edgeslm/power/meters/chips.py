"""What is known of power monitor chips: how exact they are, and how often they have a new value.

Errors are limits as the datasheet gives them at 25 degrees; :func:`one_sigma` turns a limit into a standard error as
the GUM does for a limit about whose inside nothing is known (JCGM 100:2008, 4.3.7). A chip that reads the voltage over
an external shunt is no better than that shunt: 1 % is what the usual breakout boards carry.

Conversion times are those that the kernel's drivers set up (drivers/hwmon/ina2xx.c, ina3221.c, ina238.c); where the
driver has ``update_interval`` that file decides instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SHUNT_TOLERANCE = 0.01
DEFAULT_SHUNT_OHM = 0.01
"""What the kernel's drivers assume where nothing is said (``INA2XX_RSHUNT_DEFAULT``)."""


@dataclass(frozen=True)
class Chip:
    """One kind of power monitor.

    Attributes:
        gain_share: limit of the relative error of current and voltage together.
        offset_v: limit of the offset of the voltage over the shunt.
        offset_a: limit of the offset of the current, for chips with the shunt inside.
        period_s: seconds between values as the kernel sets the chip up.
        averages: a value is the mean over the period.
        channels: how many places it measures at.
        source: document of the figures.
    """

    gain_share: float
    offset_v: float
    period_s: float
    averages: bool
    source: str
    offset_a: float = 0.0
    channels: int = 1

    @property
    def has_shunt(self) -> bool:
        """The shunt is part of the chip, so its tolerance is part of the gain."""
        return self.offset_a > 0


_INA219 = Chip(
    gain_share=0.01,
    offset_v=100e-6,
    period_s=0.00106,
    averages=False,
    source="TI INA219 (SBOS448G) 7.5: 0.5 % current and 0.5 % bus voltage, offset 100 uV at PGA /8",
)
_INA226 = Chip(
    gain_share=0.002,
    offset_v=10e-6,
    period_s=0.0352,
    averages=True,
    source="TI INA226 (SBOS547B): 0.1 % shunt and 0.1 % bus voltage gain, offset 10 uV",
)
_INA230 = Chip(
    gain_share=0.01,
    offset_v=50e-6,
    period_s=0.0352,
    averages=True,
    source="TI INA230 and INA231 datasheets: 0.5 % shunt and 0.5 % bus voltage gain, offset 50 uV",
)
_INA238 = Chip(
    gain_share=0.007,
    offset_v=5e-6,
    period_s=0.0505,
    averages=True,
    source="TI INA238 datasheet, 7.5: total power error 0.7 %, offset 5 uV",
)

CHIPS: dict[str, Chip] = {
    "ina219": _INA219,
    "ina220": _INA219,
    "ina226": _INA226,
    "ina230": _INA230,
    "ina231": _INA230,
    "ina228": _INA238,
    "ina237": Chip(
        gain_share=0.016,
        offset_v=50e-6,
        period_s=0.0505,
        averages=True,
        source="TI INA237 datasheet: total power error 1.6 %, offset 50 uV",
    ),
    "ina238": _INA238,
    "ina260": Chip(
        gain_share=0.0025,
        offset_v=0.0,
        offset_a=0.005,
        period_s=0.0352,
        averages=True,
        source="TI INA260 (SBOS656C) 7.5: 0.15 % current with its own shunt, 0.1 % bus voltage, offset 5 mA",
    ),
    "ina3221": Chip(
        gain_share=0.005,
        offset_v=80e-6,
        period_s=0.0066,
        averages=False,
        channels=3,
        source="TI INA3221 (SBOS576B): 0.25 % shunt and 0.25 % bus voltage gain, offset 80 uV",
    ),
}
"""By the hwmon ``name``. INA228 is better than INA238, whose figures stand for both."""

WHOLE_MACHINE: dict[str, Chip] = {
    "power_meter": Chip(
        gain_share=0.05,
        offset_v=0.0,
        period_s=1.0,
        averages=True,
        source="ACPI power meter (Documentation/hwmon/acpi_power_meter.rst); firmware states no error: 5 % allowed",
    ),
}
"""Sensors that are known to measure a whole machine."""

UNKNOWN = Chip(
    gain_share=0.05,
    offset_v=0.0,
    period_s=0.1,
    averages=False,
    source="no datasheet is known to edgeslm: 5 % and a new value every 0.1 s assumed",
)


def one_sigma(limit: float) -> float:
    """Standard error of a quantity that lies within +-`limit`."""
    return limit / math.sqrt(3)


def error_share(chip: Chip) -> float:
    """Relative standard error of a power value of `chip` with its shunt."""
    shunt = 0.0 if chip.has_shunt else SHUNT_TOLERANCE
    return math.hypot(one_sigma(chip.gain_share), one_sigma(shunt))


def error_w(chip: Chip, volts: float, shunt_ohm: float, channels: int) -> float:
    """Absolute standard error in watts at `volts`, over `channels` places that are added up."""
    offset_a = chip.offset_a or chip.offset_v / shunt_ohm
    return one_sigma(offset_a) * volts * math.sqrt(channels)
