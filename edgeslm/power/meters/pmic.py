"""The power chip of the Raspberry Pi 5, read with ``vcgencmd pmic_read_adc``.

It tells voltage and current of twelve rails behind the converters; 5 V that goes straight to USB, HATs or NVMe it does
not see. The sum over the rails is therefore less than the draw, and a straight line leads from one to the other: the
published one by default, one's own after ``edgeslm power calibrate``.

Every look starts a program, which costs some milliseconds of processor time, so the chip is asked once a second and no
more often; in between the last value is given again.
"""

from __future__ import annotations

import math
import re
import time

from edgeslm.errors import MeterError
from edgeslm.power.cpu import Clock
from edgeslm.power.meters.faults import failed
from edgeslm.power.meters.linear import Correction
from edgeslm.power.port import MeterFacts, Reading
from edgeslm.power.sysfs import Command, run

NAME = "pmic"
PERIOD_S = 1.0
TIMEOUT_S = 1.0

PUBLISHED = Correction(
    scale=1.1451,
    offset_w=0.5879,
    error_share=0.05,
    error_w=0.3,
    source="github.com/jfikar/RPi5-power: line fitted on one Raspberry Pi 5 against a USB-C meter, residuals not told: "
    "5 % and 0.3 W allowed; USB devices, HATs and NVMe are not seen",
)

_RAIL = re.compile(r"^\s*(\w+)_([AV])\s+(?:current|volt)\(\d+\)=(-?\d+\.\d+)[AV]\s*$")


def rails_w(answer: str) -> float:
    """Watts of all rails in the `answer` of the chip that have both a current and a voltage.

    Raises:
        ValueError: there are none, or a current lacks its voltage.
    """
    values: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for line in answer.splitlines():
        if match := _RAIL.match(line):
            rail, unit, value = match.groups()
            values[unit][rail] = float(value)
    if not values["A"]:
        raise ValueError("no rails in the answer")
    if lonely := values["A"].keys() - values["V"].keys():
        raise ValueError(f"no voltage of rail {min(lonely)}")
    return sum(amperes * values["V"][rail] for rail, amperes in values["A"].items())


class PmicMeter:
    """``Meter`` over the power chip of a Raspberry Pi 5."""

    def __init__(
        self,
        vcgencmd: Command = ("vcgencmd",),
        correction: Correction = PUBLISHED,
        clock: Clock = time.monotonic,
    ) -> None:
        self._command = (*vcgencmd, "pmic_read_adc")
        self._correction = correction
        self._clock = clock
        self._asked_s = -math.inf
        self._outcome: Reading | MeterError | None = None
        self.facts = MeterFacts(
            name=NAME,
            meter_class="calibrated",
            period_s=PERIOD_S,
            error_share=correction.error_share,
            error_w=correction.error_w,
            averages=False,
            source=correction.source,
        )

    def read(self) -> Reading:
        """Corrected watts, at most a second old.

        Raises:
            MeterError: the program fails, takes longer than a second, or its answer has no rails.
        """
        if self._outcome is None or self._clock() - self._asked_s >= PERIOD_S:
            self._asked_s = self._clock()
            self._outcome = self._ask()
        if isinstance(self._outcome, MeterError):
            # Raised again and again, an error would gather a traceback from each time.
            raise self._outcome.with_traceback(None)
        return self._outcome

    def close(self) -> None:
        """Nothing to let go of."""

    def _ask(self) -> Reading | MeterError:
        try:
            said_w = read_rails(self._command)
        except MeterError as error:
            return error
        return Reading(at_s=self._clock(), power_w=self._correction.apply(said_w))


def read_rails(command: Command) -> float:
    """Watts of the rails as the chip says them, uncorrected.

    Raises:
        MeterError: the program fails or its answer has no rails.
    """
    try:
        return rails_w(run(command, TIMEOUT_S))
    except (OSError, ValueError) as error:
        raise failed(NAME, error) from error


def probe(vcgencmd: Command) -> MeterError | None:
    """Why there is no such chip here, or ``None`` where there is one."""
    try:
        read_rails((*vcgencmd, "pmic_read_adc"))
    except MeterError as error:
        return error
    return None
