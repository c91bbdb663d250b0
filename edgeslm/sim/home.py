"""A simulated home: its floors, areas and devices, what state each can be in, and how a person is told.

What always holds: everything here is immutable and pure, and a device's state has the fields and words of its
domain, or it cannot be made.

Left to others: what an answer does (:mod:`edgeslm.sim.home_intents`), messages
(:mod:`edgeslm.sim.home_devices`), and time: timers keep what they were set to and do not run down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from importlib import resources
from typing import Annotated, Literal, Self, TypeVar

import yaml
from pydantic import ConfigDict, Field, JsonValue, StringConstraints, ValidationError, model_validator

from edgeslm.codec import describe
from edgeslm.errors import ConfigError
from edgeslm.schema.base import FileModel, Identifier

FileT = TypeVar("FileT", bound=FileModel)

MAX_TEXT_CHARS = 200
_TEMPERATURE_RANGE = (5.0, 35.0)
_KELVIN_RANGE = (1500, 6500)

Domain = Literal[
    "light", "switch", "fan", "cover", "valve", "lock", "climate", "media_player", "vacuum", "lawn_mower",
    "binary_sensor", "sensor", "person", "weather", "timer", "todo",
]  # fmt: skip
Color = Literal[
    "white", "black", "red", "orange", "yellow", "green", "blue", "purple", "brown", "pink", "turquoise"
]
FanMode = Literal["auto", "on", "off", "low", "medium", "high", "top", "middle", "focus", "diffuse"]
Word = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT_CHARS)]
Percent = Annotated[int, Field(ge=0, le=100)]

ON_OFF = frozenset({"on", "off"})
_OPEN_CLOSED = frozenset({"open", "closed"})
_WORDS: Mapping[str, frozenset[str]] = {
    "light": ON_OFF,
    "switch": ON_OFF,
    "fan": ON_OFF,
    "cover": _OPEN_CLOSED,
    "valve": _OPEN_CLOSED,
    "lock": frozenset({"locked", "unlocked"}),
    "climate": frozenset({"off", "heat", "cool", "auto"}),
    "media_player": frozenset({"off", "idle", "playing", "paused"}),
    "vacuum": frozenset({"docked", "cleaning"}),
    "lawn_mower": frozenset({"docked", "mowing"}),
    "binary_sensor": ON_OFF,
}
"""What `state` may be, for the domains where it is one of few words."""
DOMAIN_FIELDS: Mapping[str, frozenset[str]] = {
    "light": frozenset({"state", "brightness", "color", "color_temperature"}),
    "switch": frozenset({"state"}),
    "fan": frozenset({"state", "percentage"}),
    "cover": frozenset({"state", "position"}),
    "valve": frozenset({"state", "position"}),
    "lock": frozenset({"state"}),
    "climate": frozenset({"state", "temperature", "target_temperature", "fan_mode"}),
    "media_player": frozenset({"state", "volume", "muted", "media", "track"}),
    "vacuum": frozenset({"state", "cleaning"}),
    "lawn_mower": frozenset({"state"}),
    "binary_sensor": frozenset({"state"}),
    "sensor": frozenset({"value", "unit"}),
    "person": frozenset({"state"}),
    "weather": frozenset({"state", "temperature"}),
    "timer": frozenset({"timers"}),
    "todo": frozenset({"items", "done"}),
}
"""The fields of `State` that each domain has."""


# --- what a home is -----------------------------------------------------------------------------------------


class Timer(FileModel):
    """A timer as it was set; `left_s` differs from `duration_s` once it was lengthened or shortened."""

    model_config = ConfigDict(strict=True)

    duration_s: Annotated[int, Field(ge=1, le=1_000_000)]
    left_s: Annotated[int, Field(ge=1, le=1_000_000)]
    name: Word | None = None
    area: Word | None = None
    command: Word | None = None
    paused: bool = False

    @property
    def text(self) -> str:
        """The timer for a person."""
        name = f"{self.name} " if self.name else ""
        left = f", {_duration(self.left_s)} left" if self.left_s != self.duration_s else ""
        then = f", then '{self.command}'" if self.command else ""
        where = f" in the {self.area}" if self.area else ""
        return f"{name}{_duration(self.duration_s)}{where}{left}{then}{', paused' if self.paused else ''}"


class State(FileModel):
    """What a device is like: the body of its ``state`` message. Which fields it has is decided by its domain.

    Attributes:
        state: the one word for it: on, closed, locked, playing, or where a person is.
        brightness: percent, kept while a light is off.
        color_temperature: kelvin; a light has this or a `color`.
        position: percent open.
        temperature: measured, degrees Celsius.
        target_temperature: wanted, degrees Celsius.
        cleaning: the area that a vacuum was sent to.
    """

    model_config = ConfigDict(strict=True)

    state: Word | None = None
    brightness: Percent | None = None
    color: Color | None = None
    color_temperature: Annotated[int, Field(ge=_KELVIN_RANGE[0], le=_KELVIN_RANGE[1])] | None = None
    position: Percent | None = None
    temperature: Annotated[float, Field(ge=-60, le=100)] | None = None
    target_temperature: Annotated[float, Field(ge=_TEMPERATURE_RANGE[0], le=_TEMPERATURE_RANGE[1])] | None = (
        None
    )
    fan_mode: FanMode | None = None
    percentage: Percent | None = None
    volume: Percent | None = None
    muted: bool | None = None
    media: Word | None = None
    track: Annotated[int, Field(ge=1, le=100_000)] | None = None
    cleaning: Word | None = None
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    unit: Word | None = None
    timers: Annotated[tuple[Timer, ...], Field(max_length=50, strict=False)] | None = None
    items: Annotated[tuple[Word, ...], Field(max_length=200, strict=False)] | None = None
    done: Annotated[tuple[Word, ...], Field(max_length=1000, strict=False)] | None = None


class Device(FileModel):
    """One simulated device."""

    id: Identifier
    name: Word
    aliases: tuple[Word, ...] = ()
    area: Word | None = None
    domain: Domain
    device_class: Word | None = None
    state: State

    @model_validator(mode="after")
    def _state_of_its_domain(self) -> Self:
        held = {name for name, value in self.state if value is not None}
        if foreign := sorted(held - DOMAIN_FIELDS[self.domain]):
            raise ValueError(f"a {spaced(self.domain)} has no {', '.join(foreign)}")
        words = _WORDS.get(self.domain)
        if words is not None and self.state.state not in words:
            raise ValueError(f"a {spaced(self.domain)} is one of: {', '.join(sorted(words))}")
        return self

    def changed(self, fields: Mapping[str, JsonValue]) -> Self:
        """This device with some fields of its state replaced; ``None`` takes one away.

        Raises:
            ValidationError: a field is unknown, out of its bounds, or not one of this device's domain.
        """
        state = State.model_validate({**self.state.model_dump(), **fields})
        return self.model_validate({**dict(self), "state": state})

    def is_called(self, name: str) -> bool:
        """Whether `name` is one of its names, in any case."""
        return is_same_name(name, self.name, *self.aliases)

    @property
    def label(self) -> str:
        """Its name, with its area where that says more."""
        if self.area is None or self.area.casefold() in self.name.casefold():
            return self.name
        return f"{self.area} {self.name}"

    @property
    def text(self) -> str:
        """Its state for a person."""
        return ", ".join(_TELL.get(self.domain, _tell_word)(self.state))


class Place(FileModel):
    """An area, on a floor or outside; or a floor."""

    name: Word
    aliases: tuple[Word, ...] = ()
    floor: Word | None = None


class Home(FileModel):
    """Areas, floors and devices, each with its state."""

    floors: tuple[Place, ...]
    areas: tuple[Place, ...]
    devices: tuple[Device, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        floors, areas = {floor.name for floor in self.floors}, {area.name for area in self.areas}
        for area in self.areas:
            if area.floor is not None and area.floor not in floors:
                raise ValueError(f"area '{area.name}' is on an unknown floor '{area.floor}'")
        for device in self.devices:
            if device.area is not None and device.area not in areas:
                raise ValueError(f"device '{device.id}' is in an unknown area '{device.area}'")
        if len(self.by_id) != len(self.devices):
            raise ValueError("two devices have the same id")
        return self

    @cached_property
    def by_id(self) -> Mapping[str, Device]:
        """The devices by their id."""
        return {device.id: device for device in self.devices}

    def replaced(self, devices: Iterable[Device]) -> Home:
        """This home with `devices` in the place of those with the same ids."""
        new = {device.id: device for device in devices}
        return Home(
            floors=self.floors,
            areas=self.areas,
            devices=tuple(new.get(device.id, device) for device in self.devices),
        )


def load_home() -> Home:
    """The home that ships with edgeslm."""
    return load_shipped(Home, "home.yaml")


def load_shipped(kind: type[FileT], name: str) -> FileT:
    """A file of this folder.

    Raises:
        ConfigError: it is no YAML, or not what `kind` asks for.
    """
    text = resources.files("edgeslm.sim").joinpath(name).read_text("utf-8")
    try:
        return kind.model_validate(yaml.safe_load(text))
    except (ValidationError, yaml.YAMLError) as error:
        what = describe(error) if isinstance(error, ValidationError) else str(error)
        raise ConfigError(f"edgeslm/sim/{name}: {what}", path=name) from error


# --- words for people ---------------------------------------------------------------------------------------


def is_same_name(name: str, *others: str) -> bool:
    """Whether `name` is one of `others`, in any case."""
    return name.casefold() in {other.casefold() for other in others}


def spaced(text: str) -> str:
    """An identifier as words."""
    return text.replace("_", " ")


def listed(texts: Iterable[str]) -> str:
    """Several facts in one line."""
    return "; ".join(texts)


def shown_number(value: float | None) -> str:
    """A number for a person; a question mark where none is known."""
    return "?" if value is None else f"{value:g}"


def _duration(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    minutes, left = divmod(rest, 60)
    parts = ((hours, "h"), (minutes, "min"), (left, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count)


def _tell_word(state: State) -> list[str]:
    return [state.state or "?"]


def _tell_light(state: State) -> list[str]:
    if state.state == "off":
        return ["off"]
    white = f"{state.color_temperature} K" if state.color_temperature else None
    return [
        "on",
        *([f"{state.brightness} %"] if state.brightness is not None else []),
        *filter(None, (state.color, white)),
    ]


def _tell_cover(state: State) -> list[str]:
    is_partly = state.position is not None and 0 < state.position < 100
    return [f"{state.position} % open" if is_partly else state.state or "?"]


def _tell_fan(state: State) -> list[str]:
    return ["off"] if state.state == "off" else ["on", f"{state.percentage} %"]


def _tell_climate(state: State) -> list[str]:
    told = (
        ["off"] if state.state == "off" else [f"{state.state} to {shown_number(state.target_temperature)} °C"]
    )
    return [*told, f"now {shown_number(state.temperature)} °C", f"fan {state.fan_mode}"]


def _tell_player(state: State) -> list[str]:
    told = [state.state or "?"]
    if state.media is not None and state.state in {"playing", "paused"}:
        told[0] += f" {state.media}, track {state.track}"
    return [*told, f"volume {state.volume} %", *(["muted"] if state.muted else [])]


def _tell_vacuum(state: State) -> list[str]:
    return [f"cleaning the {state.cleaning}" if state.cleaning else state.state or "?"]


def _tell_sensor(state: State) -> list[str]:
    return [f"{shown_number(state.value)} {state.unit or ''}".strip()]


def _tell_weather(state: State) -> list[str]:
    return [state.state or "?", f"{shown_number(state.temperature)} °C"]


def _tell_timers(state: State) -> list[str]:
    return [listed(timer.text for timer in state.timers or ()) or "none"]


def _tell_items(state: State) -> list[str]:
    done = [f"{len(state.done)} done"] if state.done else []
    return [", ".join(state.items or ()) or "empty", *done]


_TELL: Mapping[str, Callable[[State], list[str]]] = {
    "light": _tell_light,
    "cover": _tell_cover,
    "valve": _tell_cover,
    "fan": _tell_fan,
    "climate": _tell_climate,
    "media_player": _tell_player,
    "vacuum": _tell_vacuum,
    "sensor": _tell_sensor,
    "weather": _tell_weather,
    "timer": _tell_timers,
    "todo": _tell_items,
}
