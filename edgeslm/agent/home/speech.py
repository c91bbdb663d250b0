"""How one entity is told one thing: topic and payload, in the words of its ecosystem. Pure.

Sources: zigbee2mqtt.io, "MQTT topics and messages" and "Exposes"; tasmota.github.io, "Commands"; esphome.io, "MQTT
client component" (topics ``<prefix>/<component>/<name>/command``).

Left to others: which entity, and whether it may be asked (:mod:`edgeslm.agent.home.resolve`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Final

from edgeslm.errors import HomeOrderError
from edgeslm.schema.home_map import COLORS, Act, Entity, PlainCommand

Value = int | float | str | None
Told = tuple[str, str]
"""Topic and payload."""

_ON_OFF: Final[Mapping[Act, str]] = {"turn_on": "ON", "turn_off": "OFF"}
_OPEN_CLOSE: Final[Mapping[Act, str]] = {"turn_on": "OPEN", "turn_off": "CLOSE"}
_LOCK_UNLOCK: Final[Mapping[Act, str]] = {"turn_on": "LOCK", "turn_off": "UNLOCK"}
_ZIGBEE_FULL: Final = 254
_FAN_STEPS: Final = 3


def tell(entity: Entity, act: Act, value: Value) -> list[Told]:
    """What has to be published for `entity` to do `act`.

    Args:
        value: as :data:`edgeslm.schema.home_map.Act` says, checked already.

    Raises:
        HomeOrderError: the ecosystem, or this entity's entry, has no word for it.
    """
    return _SPEAKERS[entity.via](entity, act, value)


def _cannot(entity: Entity, act: Act) -> HomeOrderError:
    return HomeOrderError(
        f"{entity.name} cannot be told to {act.replace('_', ' ')} by way of {entity.via}",
        hint="An entry with 'via: plain' names topic and payload of each act itself",
    )


def _mireds(kelvin: Value) -> int:
    return round(1e6 / _number(kelvin))


def _number(value: Value) -> float:
    assert isinstance(value, int | float)  # noqa: S101 - read with care by the resolver
    return value


def _rgb(value: Value) -> str:
    return COLORS[str(value)]


def _shown(value: Value) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


# --- Zigbee2MQTT ----------------------------------------------------------------------------------------------


def _zigbee(entity: Entity, act: Act, value: Value) -> list[Told]:
    fields = _zigbee_fields(entity, act, value)
    if fields is None:
        raise _cannot(entity, act)
    return [(f"{entity.base or 'zigbee2mqtt'}/{entity.topic}/set", json.dumps(fields, separators=(",", ":")))]


def _zigbee_fields(entity: Entity, act: Act, value: Value) -> dict[str, object] | None:
    words: Mapping[str, Mapping[Act, str]] = {
        "light": _ON_OFF,
        "switch": _ON_OFF,
        "valve": _ON_OFF,
        "cover": _OPEN_CLOSE,
        "lock": _LOCK_UNLOCK,
    }
    domain = entity.domain
    if domain in words and act in words[domain]:
        return {"state": words[domain][act]}
    if domain == "fan" and act in _ON_OFF:
        return {"fan_state": _ON_OFF[act]}
    if domain == "climate" and act in _ON_OFF:
        return {"system_mode": "heat" if act == "turn_on" else "off"}
    match act:
        case "set_brightness":
            return {"brightness": round(_number(value) / 100 * _ZIGBEE_FULL)}
        case "set_color":
            return {"color": {"hex": f"#{_rgb(value)}"}}
        case "set_color_temperature":
            return {"color_temp": _mireds(value)}
        case "set_position" if domain == "cover":
            return {"position": value}
        case "set_temperature":
            return {entity.setpoint: value}
        case "set_fan_mode":
            return {"fan_mode": value}
        case _:
            return None


# --- Tasmota --------------------------------------------------------------------------------------------------


def _tasmota(entity: Entity, act: Act, value: Value) -> list[Told]:
    number = str(entity.channel or "")
    shutter = str(entity.channel or 1)
    domain = entity.domain
    order: tuple[str, str] | None = None
    if act in _ON_OFF and domain in {"light", "switch", "valve"}:
        order = (f"POWER{number}", _ON_OFF[act])
    elif act in _OPEN_CLOSE and domain == "cover":
        order = ("ShutterOpen" if act == "turn_on" else "ShutterClose") + shutter, ""
    elif act in _ON_OFF and domain == "fan":
        order = ("FanSpeed", str(_FAN_STEPS) if act == "turn_on" else "0")
    elif act == "set_percentage" and domain == "fan":
        percentage = _number(value)
        order = ("FanSpeed", str(0 if not percentage else max(1, round(percentage / 100 * _FAN_STEPS))))
    elif act == "set_brightness":
        order = (f"Dimmer{number}", _shown(value))
    elif act == "set_color":
        order = ("Color", _rgb(value))
    elif act == "set_color_temperature":
        order = ("CT", str(min(500, max(153, _mireds(value)))))
    elif act == "set_position" and domain == "cover":
        order = (f"ShutterPosition{shutter}", _shown(value))
    if order is None:
        raise _cannot(entity, act)
    return [(f"{entity.base or 'cmnd'}/{entity.topic}/{order[0]}", order[1])]


# --- ESPHome --------------------------------------------------------------------------------------------------


def _esphome(entity: Entity, act: Act, value: Value) -> list[Told]:
    told = _esphome_light(act, value) if entity.domain == "light" else _esphome_other(entity, act, value)
    if told is None:
        raise _cannot(entity, act)
    where, payload = told
    return [(f"{entity.topic}{where}/command", payload)]


def _esphome_light(act: Act, value: Value) -> tuple[str, str] | None:
    fields: dict[str, object] = {"state": "OFF" if act == "turn_off" else "ON"}
    match act:
        case "set_brightness":
            fields["brightness"] = round(_number(value) / 100 * 255)
        case "set_color":
            rgb = bytes.fromhex(_rgb(value))
            fields["color"] = dict(zip("rgb", rgb, strict=True))
        case "set_color_temperature":
            fields["color_temp"] = _mireds(value)
        case _:
            pass
    return "", json.dumps(fields, separators=(",", ":"))


def _esphome_other(entity: Entity, act: Act, value: Value) -> tuple[str, str] | None:
    words: Mapping[str, Mapping[Act, str]] = {
        "switch": _ON_OFF,
        "fan": _ON_OFF,
        "cover": _OPEN_CLOSE,
        "valve": _OPEN_CLOSE,
        "lock": _LOCK_UNLOCK,
    }
    domain = entity.domain
    if domain in words and act in words[domain]:
        return "", words[domain][act]
    match act, domain:
        case "set_position", "cover" | "valve":
            return "/position", _shown(_number(value) / 100)
        case "set_percentage", "fan":
            return "/speed_level", _shown(value)
        case "turn_on" | "turn_off", "climate":
            return "/mode", "heat" if act == "turn_on" else "off"
        case "set_temperature", "climate":
            return "/target_temperature", _shown(value)
        case "set_fan_mode", "climate":
            return "/fan_mode", str(value)
        case _:
            return None


# --- whatever else --------------------------------------------------------------------------------------------


def _plain(entity: Entity, act: Act, value: Value) -> list[Told]:
    command: PlainCommand | None = entity.commands.get(act)
    if command is None:
        raise _cannot(entity, act)
    return [(command.topic or entity.topic, command.payload.replace("{value}", _shown(value)))]


_SPEAKERS: Final[Mapping[str, Callable[[Entity, Act, Value], list[Told]]]] = {
    "zigbee2mqtt": _zigbee,
    "tasmota": _tasmota,
    "esphome": _esphome,
    "plain": _plain,
}
