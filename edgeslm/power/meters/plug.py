"""A smart plug, or any meter that tells its watts over MQTT: the cheapest true meter that a board without one can have.

This module reads messages; whoever holds the connection subscribes to :meth:`PlugMeter.filters` and hands over what
comes. Dialects:

- Tasmota, ``tele/<topic>/SENSOR`` with ``{"ENERGY": {"Power": 4.2, "Total": 1.234}}``; ``Power`` is a list on plugs
  with several outlets (tasmota.github.io/docs/JSON-Status-Responses). ``Total`` has steps of 1 Wh, five minutes of a
  small board, so it is no counter to account by.
- Shelly second generation and later, ``<prefix>/status/switch:<id>`` with ``{"apower": 4.2, "aenergy": {"total":
  12.345}}`` (shelly-api-docs.shelly.cloud, Switch; "Generic status update over MQTT" must be on). ``total`` is watt
  hours in steps of 3.6 J: a counter.
- A number as the whole body (Home Assistant's ``mqtt_statestream``, ESPHome), or a number within a JSON body.

A message that the broker had stored may be of any age, so it is never taken for a value.
"""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass

from edgeslm.errors import MeterError
from edgeslm.power.cpu import Clock
from edgeslm.power.port import MeterFacts, Reading
from edgeslm.schema.power import PlugConfig

NAME = "plug"
MAX_BODY_BYTES = 8192
STALE_PERIODS = 3

_KNOWN_SUPPLY_SHARE = 0.03
_UNKNOWN_SUPPLY_SHARE = 0.1
_SOURCE = (
    "plugs with HLW8012, BL0937 or the like: 2 to 3 % once calibrated (tasmota.github.io/docs/"
    "Power-Monitoring-Calibration), half a watt at the few watts of a small board; unless supply_efficiency says "
    "what the board's own supply loses, 10 % for that"
)

_UNIT_W = {"mW": 1e-3, "W": 1.0, "kW": 1e3}
_STEP = re.compile(r"([A-Za-z0-9_:-]+)|\[(\d{1,3})\]")


@dataclass(frozen=True)
class PlugReport:
    """What one message says.

    Attributes:
        total_j: joules that the plug has counted, where it counts finely enough.
    """

    power_w: float
    total_j: float | None = None


def topic_of(config: PlugConfig) -> str:
    """The topic that the plug reports on."""
    match config.dialect:
        case "tasmota":
            return f"tele/{config.topic}/SENSOR"
        case "shelly":
            return f"{config.topic}/status/switch:{config.channel}"
        case _:
            return config.topic


def parse_report(config: PlugConfig, body: bytes) -> PlugReport:
    """What `body` says in the dialect of `config`.

    Raises:
        ValueError: it is not of that form, or says no finite number.
    """
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"{len(body)} bytes, at most {MAX_BODY_BYTES} are taken")
    match config.dialect:
        case "number":
            return PlugReport(power_w=_number(body.decode("utf-8").strip()) * _UNIT_W[config.unit])
        case "json":
            value = find(_json(body), config.power_path or "")
            return PlugReport(power_w=_number(value) * _UNIT_W[config.unit])
        case "tasmota":
            power = find(_json(body), "ENERGY.Power")
            if isinstance(power, list):
                power = find(power, f"[{config.channel}]")
            return PlugReport(power_w=_number(power))
        case "shelly":
            status = _json(body)
            power_w = _number(find(status, "apower"))
            try:
                total_j = _number(find(status, "aenergy.total")) * 3600
            except ValueError:
                total_j = None
            return PlugReport(power_w=power_w, total_j=total_j)


def find(value: object, path: str) -> object:
    """What is at `path` within a JSON value: names with dots between, indexes in brackets.

    Raises:
        ValueError: there is nothing.
    """
    for name, index in _STEP.findall(path):
        if name and isinstance(value, dict) and name in value:
            value = value[name]
        elif index and isinstance(value, list) and int(index) < len(value):
            value = value[int(index)]
        else:
            raise ValueError(f"nothing at {path}")
    return value


def _json(body: bytes) -> object:
    try:
        value: object = json.loads(body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def _number(value: object) -> float:
    # Home Assistant tells "unavailable", JSON knows true and null: neither is a number.
    number = (
        float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    )
    if not math.isfinite(number):
        raise ValueError(f"no number but {str(value)[:40]}")
    return number


class PlugMeter:
    """``Meter`` that is told its values; :meth:`on_message` may be called from another thread than :meth:`read`."""

    def __init__(self, config: PlugConfig, clock: Clock = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._started_s = clock()
        self._counted_j = 0.0
        self._total_j: float | None = None
        self._latest: Reading | MeterError | None = None
        self.facts = MeterFacts(
            name=NAME,
            meter_class="measured",
            period_s=config.period_s,
            error_share=_KNOWN_SUPPLY_SHARE if config.supply_efficiency < 1 else _UNKNOWN_SUPPLY_SHARE,
            error_w=0.5,
            averages=False,
            source=_SOURCE,
        )

    def filters(self) -> tuple[str, ...]:
        """Topics to subscribe to."""
        return (topic_of(self._config),)

    def on_message(self, topic: str, body: bytes, at_s: float, *, retained: bool = False) -> None:
        """Take a message that came at monotonic `at_s`; never raises.

        Args:
            retained: the broker had stored it, so nobody knows how old it is.
        """
        if retained or topic not in self.filters():
            return
        try:
            report = parse_report(self._config, body)
        except ValueError as error:
            self._latest = MeterError(
                f"plug says what cannot be read: {str(error)[:120]}", meter=NAME, fault="rubbish"
            )
            return
        efficiency = self._config.supply_efficiency
        counter_j = None
        if report.total_j is not None:
            if self._total_j is not None:
                # A total that fell was reset; what was drawn since is all that is known.
                grown_j = report.total_j - self._total_j
                self._counted_j += (grown_j if grown_j >= 0 else max(report.total_j, 0.0)) * efficiency
            self._total_j = report.total_j
            counter_j = self._counted_j
        self._latest = Reading(at_s=at_s, power_w=report.power_w * efficiency, counter_j=counter_j)

    def read(self) -> Reading:
        """The latest message's value.

        Raises:
            MeterError: the latest message was rubbish, or three periods went by without one.
        """
        latest = self._latest
        if isinstance(latest, MeterError):
            # Raised again and again, an error would gather a traceback from each time.
            raise latest.with_traceback(None)
        since_s = self._clock() - (self._started_s if latest is None else latest.at_s)
        if latest is None or since_s > STALE_PERIODS * self._config.period_s:
            raise MeterError(
                f"no message on {topic_of(self._config)} for {since_s:.0f} s", meter=NAME, fault="stale"
            )
        return latest

    def close(self) -> None:
        """Nothing to let go of; the connection belongs to others."""
