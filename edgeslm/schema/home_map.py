"""The map of a home: which areas and entities there are, and where each entity takes its orders.

A person writes it (``home.yaml``); what an answer of a model means in this home is decided by it and by nothing else
(:mod:`edgeslm.agent.home.resolve`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, StringConstraints, field_validator, model_validator

from edgeslm.schema.base import FileModel

MAX_MAP_BYTES = 1 << 20
MAX_NAME_CHARS = 100

EntityDomain = Literal[
    "light", "switch", "fan", "cover", "valve", "lock", "climate", "media_player", "vacuum", "lawn_mower"
]
Speech = Literal["zigbee2mqtt", "tasmota", "esphome", "plain"]
"""How an entity is spoken to."""

Act = Literal[
    "turn_on",
    "turn_off",
    "set_brightness",
    "set_color",
    "set_color_temperature",
    "set_position",
    "set_temperature",
    "set_fan_mode",
    "set_percentage",
    "set_volume",
    "mute",
    "unmute",
    "pause",
    "play",
]
"""What can be asked of one entity. Brightness, position, percentage and volume are 0 to 100, a colour is one of
:data:`COLORS`, a colour temperature is in kelvin, a temperature in degrees Celsius."""

ACTS: Mapping[EntityDomain, frozenset[Act]] = {
    "light": frozenset({"turn_on", "turn_off", "set_brightness", "set_color", "set_color_temperature"}),
    "switch": frozenset({"turn_on", "turn_off"}),
    "fan": frozenset({"turn_on", "turn_off", "set_percentage"}),
    "cover": frozenset({"turn_on", "turn_off", "set_position"}),
    "valve": frozenset({"turn_on", "turn_off", "set_position"}),
    "lock": frozenset({"turn_on", "turn_off"}),
    "climate": frozenset({"turn_on", "turn_off", "set_temperature", "set_fan_mode"}),
    "media_player": frozenset({"turn_on", "turn_off", "set_volume", "mute", "unmute", "pause", "play"}),
    "vacuum": frozenset({"turn_on", "turn_off"}),
    "lawn_mower": frozenset({"turn_on", "turn_off"}),
}
"""What can be asked of each kind. On is open for covers and valves, locked for locks,
at work for vacuums and mowers."""

COLORS: Mapping[str, str] = {
    "white": "FFFFFF",
    "black": "000000",
    "red": "FF0000",
    "orange": "FFA500",
    "yellow": "FFFF00",
    "green": "00FF00",
    "blue": "0000FF",
    "purple": "800080",
    "brown": "A52A2A",
    "pink": "FFC0CB",
    "turquoise": "40E0D0",
}
"""The colours that ``home-command`` knows, as RRGGBB."""

Name = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, min_length=1, max_length=MAX_NAME_CHARS, pattern=r"^[^\x00-\x1f]*$"
    ),
]
CommandTopic = Annotated[
    str, StringConstraints(min_length=1, max_length=1000, pattern=r"^[^+#$\x00-\x1f][^+#\x00-\x1f]*$")
]
"""A topic to publish to: no wildcards, none of the broker's own."""


class PlainCommand(FileModel):
    """What is published for one act.

    Attributes:
        topic: ``None`` is the entity's.
        payload: ``{value}`` stands for the value, where the act has one.
    """

    topic: CommandTopic | None = None
    payload: Annotated[str, StringConstraints(max_length=4096)]


class Area(FileModel):
    """A room, or what else people call a place.

    Attributes:
        aliases: what it is called as well.
        floor: that it is on.
    """

    name: Name
    aliases: Annotated[tuple[Name, ...], Field(max_length=16)] = ()
    floor: Name | None = None


class Entity(FileModel):
    """One thing that takes orders.

    Attributes:
        name: as people say it, without the area.
        aliases: what it is called as well.
        area: name of its area.
        device_class: narrower than the domain: ``curtain``, ``garage``, ``outlet``.
        via: how it is spoken to.
        topic: with ``zigbee2mqtt`` and ``tasmota`` its name there, with ``esphome`` the part before ``/command``
            (``kitchen/light/ceiling``), with ``plain`` the whole topic.
        base: first part of the topic, where that was changed: of Zigbee2MQTT (``zigbee2mqtt``), or of Tasmota
            (``cmnd``).
        channel: with ``tasmota``, which relay or shutter; 0 is the only one.
        setpoint: with ``zigbee2mqtt``, the field of a thermostat's temperature.
        commands: with ``plain``, what is published for each act.
        unattended: a lock may be unlocked, a garage door or gate opened, by what a model understood.
    """

    name: Name
    aliases: Annotated[tuple[Name, ...], Field(max_length=16)] = ()
    area: Name | None = None
    domain: EntityDomain
    device_class: Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,40}$")] | None = None
    via: Speech
    topic: CommandTopic
    base: CommandTopic | None = None
    channel: Annotated[int, Field(ge=0, le=32)] = 0
    setpoint: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,64}$")] = "occupied_heating_setpoint"
    commands: Annotated[dict[Act, PlainCommand], Field(max_length=len(get_args(Act)))] = Field(
        default_factory=dict
    )
    unattended: bool = False

    @field_validator("topic", "base")
    @classmethod
    def _no_loose_ends(cls, topic: str | None) -> str | None:
        if topic is not None and (topic.startswith("/") or topic.endswith("/")):
            raise ValueError("a topic neither begins nor ends with a slash here")
        return topic

    @model_validator(mode="after")
    def _is_spoken_to_in_one_way(self) -> Self:
        if (self.via == "plain") != bool(self.commands):
            raise ValueError("commands go together with 'via: plain'")
        if unknown := sorted(self.commands.keys() - ACTS[self.domain]):
            raise ValueError(f"a {self.domain} cannot be told to {unknown[0]}")
        return self


class HomeMap(FileModel):
    """Body of ``home.yaml``."""

    areas: Annotated[tuple[Area, ...], Field(max_length=256)] = ()
    entities: Annotated[tuple[Entity, ...], Field(min_length=1, max_length=2000)]

    @model_validator(mode="after")
    def _names_are_clear(self) -> Self:
        called: dict[str, str] = {}
        for area in self.areas:
            for name in (area.name, *area.aliases):
                if called.setdefault(name.casefold(), area.name) != area.name:
                    raise ValueError(f"two areas are called '{name}'")
        if len({area.name.casefold() for area in self.areas}) != len(self.areas):
            raise ValueError("an area stands there twice")
        known = {area.name for area in self.areas}
        seen: dict[tuple[str | None, str, str], str] = {}
        for entity in self.entities:
            if entity.area is not None and entity.area not in known:
                raise ValueError(f"entity '{entity.name}' is in area '{entity.area}', which is not there")
            for name in {entity.name.casefold(), *(alias.casefold() for alias in entity.aliases)}:
                key = (entity.area, entity.domain, name)
                if key in seen:
                    raise ValueError(f"two entities of kind {entity.domain} are called '{name}' in one area")
                seen[key] = entity.name
        return self
