"""What an answer of ``home-command`` means in one home: which entities, told what. Pure.

What always holds:

* An answer is hostile input, whoever computed it. Whatever is wrong with it becomes the resolution's `problem`, never
  an exception, and then nothing is published: a half-understood order is not carried out.
* An unknown slot is refused, since leaving it out would widen what the order means. An order that names neither a
  thing nor a kind of thing is about lights, switches and fans alone.
* What makes a home less safe (unlocking, opening a garage door, a gate, a door or a valve) is done only by name, and
  only where the map says ``unattended: true``: the model always answers with some intent, also to a sentence that
  means none.

Intents and slots are those of Home Assistant, with its ways: to open a cover and to lock a lock is ``HassTurnOn``. The
simulated home of the demo understands the same (:mod:`edgeslm.sim.home_intents`); it has states and answers
questions, which a map has not.

Left to others: how each ecosystem spells it (:mod:`edgeslm.agent.home.speech`), and publishing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

from edgeslm.agent.home.speech import Value, tell
from edgeslm.errors import HomeOrderError
from edgeslm.schema.home_map import ACTS, COLORS, MAX_NAME_CHARS, Act, Area, Entity, EntityDomain, HomeMap

_MAX_SHOWN_CHARS: Final = 60
_MAX_ENTITIES: Final = 64
"""Past as many things at once an order was rather not meant so."""
_PLAIN_ON_OFF: Final[frozenset[EntityDomain]] = frozenset({"light", "switch", "fan"})
_OPENABLE: Final[frozenset[EntityDomain]] = frozenset({"cover", "valve"})
_GUARDED_COVERS: Final = frozenset({"garage", "gate", "door"})
_PERCENT: Final = (0, 100)
_CELSIUS: Final = (5, 35)
_KELVIN: Final = (1500, 6500)


@dataclass(frozen=True)
class Order:
    """A message for one entity."""

    entity: Entity
    topic: str
    payload: str


@dataclass(frozen=True)
class Resolution:
    """What an answer means here.

    Attributes:
        orders: to be published; none where there is a problem.
        said: for a person: what is done, or the answer to a question.
        problem: why it means nothing here.
    """

    orders: tuple[Order, ...] = ()
    said: str = ""
    problem: str | None = None


def resolve(home: HomeMap, answer: Mapping[str, object], now: datetime | None = None) -> Resolution:
    """What `answer` means in `home`.

    Args:
        home: its areas and entities.
        answer: an intent and its slots; anything at all may be in it.
        now: local time, for questions about time and date.
    """
    try:
        intent = answer.get("intent")
        if not isinstance(intent, str):
            raise HomeOrderError("the answer names no intent")
        if intent not in _INTENTS:
            raise HomeOrderError(f"{_shown(intent)} is nothing that is done here")
        act, known = _INTENTS[intent]
        slots = {name: value for name, value in answer.items() if name != "intent" and value is not None}
        if unknown := sorted(str(name) for name in slots.keys() - known):
            raise HomeOrderError(f"{intent} takes no slot {_shown(unknown[0])}")
        return act(_Slots(home, slots, now))
    except HomeOrderError as error:
        return Resolution(problem=error.message)


@dataclass(frozen=True)
class _Slots:
    """The slots of an answer, read with care."""

    home: HomeMap
    slots: Mapping[str, object]
    now: datetime | None

    def text(self, slot: str) -> str | None:
        value = self.slots.get(slot)
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip():
            raise HomeOrderError(f"{slot} is no text")
        if len(value) > MAX_NAME_CHARS or not value.isprintable():
            raise HomeOrderError(f"{slot} is too long, or not printable")
        return value.strip()

    def number(self, slot: str, bounds: tuple[int, int]) -> int | float:
        value = self.slots.get(slot)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise HomeOrderError(f"{slot} is {'missing' if value is None else 'no number'}")
        low, high = bounds
        if not low <= value <= high:
            raise HomeOrderError(f"{slot} has to be from {low} to {high}")
        return value

    def areas(self) -> frozenset[str] | None:
        """Names of the areas that area and floor leave; ``None`` where the order names neither."""
        area, floor = self.text("area"), self.text("floor")
        if area is None and floor is None:
            return None
        found = [place for place in self.home.areas if area is None or _is_called(place, area)]
        if not found:
            known = (place.name for place in self.home.areas)
            raise HomeOrderError(f"there is no area {_shown(area or '')}{_nearest(area or '', known)}")
        if floor is not None:
            floors = {place.floor for place in self.home.areas if place.floor is not None}
            if floor.casefold() not in {known.casefold() for known in floors}:
                raise HomeOrderError(f"there is no floor {_shown(floor)}{_nearest(floor, floors)}")
            found = [place for place in found if (place.floor or "").casefold() == floor.casefold()]
        return frozenset(place.name for place in found)

    def entities(self, domains: Iterable[EntityDomain]) -> list[Entity]:
        """The entities, at least one, that all of name, area, floor, domain and class fit."""
        areas, allowed = self.areas(), frozenset(domains)
        domain, device_class, name = self.text("domain"), self.text("device_class"), self.text("name")
        found = [
            entity
            for entity in self.home.entities
            if entity.domain in allowed
            and (areas is None or entity.area in areas)
            and (domain is None or entity.domain == domain.casefold())
            and (device_class is None or entity.device_class == device_class.casefold())
        ]
        if name is not None:
            named = [entity for entity in found if _is_called(entity, name)]
            if not named:
                raise HomeOrderError(self._why_not_called(name, found))
            found = named
        if not found:
            what = device_class or domain or (next(iter(allowed)) if len(allowed) == 1 else "fitting thing")
            where = " there" if areas is not None else ""
            raise HomeOrderError(f"there is no {_shown(what)[1:-1].replace('_', ' ')}{where}")
        if len(found) > _MAX_ENTITIES:
            raise HomeOrderError(f"that would be {len(found)} things at once")
        return found

    @property
    def is_broad(self) -> bool:
        """It names neither a thing nor a kind of thing."""
        return not self.slots.keys() & {"name", "domain", "device_class"}

    def _why_not_called(self, name: str, fitting: Sequence[Entity]) -> str:
        for entity in self.home.entities:
            if _is_called(entity, name):
                where = f" in the {entity.area}" if entity.area else ""
                return f"{entity.name} is a {entity.domain.replace('_', ' ')}{where}: that does not fit the order"
        return f"there is no {_shown(name)}{_nearest(name, (entity.name for entity in fitting))}"


# --- acts -----------------------------------------------------------------------------------------------------

_Wanted = Sequence[tuple[Act, Value]]


def _told(entities: Sequence[Entity], wanted: _Wanted, *, by_name: bool) -> Resolution:
    orders = []
    for entity in entities:
        for act, value in wanted:
            _check_guard(entity, act, value, by_name=by_name)
            orders += [Order(entity, topic, payload) for topic, payload in tell(entity, act, value)]
    said = "; ".join(
        f"{_label(entity)}: {', '.join(_words(entity, *one) for one in wanted)}" for entity in entities
    )
    return Resolution(tuple(orders), said)


def _check_guard(entity: Entity, act: Act, value: Value, *, by_name: bool) -> None:
    opens = act == "turn_on" or (act == "set_position" and value != 0)
    risky = (entity.domain == "lock" and act == "turn_off") or (
        opens
        and (
            entity.domain == "valve" or (entity.domain == "cover" and entity.device_class in _GUARDED_COVERS)
        )
    )
    if not risky:
        return
    what = "unlocked" if entity.domain == "lock" else "opened"
    if not entity.unattended:
        raise HomeOrderError(f"{_label(entity)} is not {what} by voice here")
    if not by_name:
        raise HomeOrderError(f"{_label(entity)} is {what} only when it is named")


def _turn(on: bool, order: _Slots) -> Resolution:
    if not order.slots:
        raise HomeOrderError("the order does not say what to turn on or off")
    entities = order.entities(_PLAIN_ON_OFF if order.is_broad else ACTS)
    return _told(entities, [("turn_on" if on else "turn_off", None)], by_name="name" in order.slots)


def _set_light(order: _Slots) -> Resolution:
    wanted: list[tuple[Act, Value]] = []
    if "brightness" in order.slots:
        brightness = order.number("brightness", _PERCENT)
        wanted.append(("set_brightness", brightness) if brightness else ("turn_off", None))
    if "color" in order.slots:
        color = (order.text("color") or "").casefold()
        if color not in COLORS:
            raise HomeOrderError(f"no colour {_shown(color)}{_nearest(color, COLORS)}")
        wanted.append(("turn_off", None) if color == "black" else ("set_color", color))
    if "temperature" in order.slots:
        wanted.append(("set_color_temperature", order.number("temperature", _KELVIN)))
    if not wanted:
        raise HomeOrderError("the order does not say what to set")
    return _told(order.entities({"light"}), wanted, by_name="name" in order.slots)


def _set_number(
    act: Act, slot: str, bounds: tuple[int, int], domains: frozenset[EntityDomain], order: _Slots
) -> Resolution:
    value = order.number(slot, bounds)
    return _told(order.entities(domains), [(act, value)], by_name="name" in order.slots)


def _set_fan_mode(order: _Slots) -> Resolution:
    mode = order.text("fan_mode")
    if mode is None:
        raise HomeOrderError("fan_mode is missing")
    wanted: _Wanted = [("set_fan_mode", mode.casefold())]
    return _told(order.entities({"climate"}), wanted, by_name="name" in order.slots)


def _do(act: Act, domain: EntityDomain, order: _Slots) -> Resolution:
    return _told(order.entities({domain}), [(act, None)], by_name="name" in order.slots)


def _tell_time(layout: str, order: _Slots) -> Resolution:
    if order.now is None:
        raise HomeOrderError("the time is not known here")
    return Resolution(said=order.now.strftime(layout))


def _say(text: str, order: _Slots) -> Resolution:
    del order
    return Resolution(said=text)


_WHERE: Final = frozenset({"name", "area", "floor"})
_WHICH: Final = _WHERE | {"domain", "device_class"}
_INTENTS: Final[Mapping[str, tuple[Callable[[_Slots], Resolution], frozenset[str]]]] = {
    "HassTurnOn": (partial(_turn, True), _WHICH),
    "HassTurnOff": (partial(_turn, False), _WHICH),
    "HassLightSet": (_set_light, _WHERE | {"domain", "brightness", "color", "temperature"}),
    "HassSetPosition": (
        partial(_set_number, "set_position", "position", _PERCENT, _OPENABLE),
        _WHICH | {"position"},
    ),
    "HassClimateSetTemperature": (
        partial(_set_number, "set_temperature", "temperature", _CELSIUS, frozenset({"climate"})),
        _WHERE | {"temperature"},
    ),
    "HassClimateSetFanMode": (_set_fan_mode, _WHERE | {"fan_mode"}),
    "HassFanSetSpeed": (
        partial(_set_number, "set_percentage", "percentage", _PERCENT, frozenset({"fan"})),
        _WHERE | {"domain", "percentage"},
    ),
    "HassSetVolume": (
        partial(_set_number, "set_volume", "volume_level", _PERCENT, frozenset({"media_player"})),
        _WHERE | {"volume_level"},
    ),
    "HassMediaPlayerMute": (partial(_do, "mute", "media_player"), _WHERE),
    "HassMediaPlayerUnmute": (partial(_do, "unmute", "media_player"), _WHERE),
    "HassMediaPause": (partial(_do, "pause", "media_player"), _WHERE),
    "HassMediaUnpause": (partial(_do, "play", "media_player"), _WHERE),
    "HassVacuumStart": (partial(_do, "turn_on", "vacuum"), _WHERE),
    "HassVacuumReturnToBase": (partial(_do, "turn_off", "vacuum"), _WHERE),
    "HassLawnMowerStartMowing": (partial(_do, "turn_on", "lawn_mower"), _WHERE),
    "HassLawnMowerDock": (partial(_do, "turn_off", "lawn_mower"), _WHERE),
    "HassGetCurrentTime": (partial(_tell_time, "%H:%M"), frozenset()),
    "HassGetCurrentDate": (partial(_tell_time, "%A, %d %B %Y"), frozenset()),
    "HassNevermind": (partial(_say, "all right"), frozenset()),
}


def known_intents() -> Mapping[str, frozenset[str]]:
    """Every intent that is carried out, with the slots that it takes."""
    return {name: slots for name, (_, slots) in _INTENTS.items()}


# --- words ----------------------------------------------------------------------------------------------------

_STATES: Final[Mapping[str, tuple[str, str]]] = {
    "cover": ("open", "closed"),
    "valve": ("open", "closed"),
    "lock": ("locked", "unlocked"),
    "vacuum": ("cleaning", "back to its base"),
    "lawn_mower": ("mowing", "back to its base"),
}
_UNITS: Final[Mapping[Act, str]] = {
    "set_brightness": "{} %",
    "set_color_temperature": "{} K",
    "set_position": "{} % open",
    "set_temperature": "{} °C",
    "set_fan_mode": "fan {}",
    "set_percentage": "{} %",
    "set_volume": "volume {} %",
}


def _words(entity: Entity, act: Act, value: Value) -> str:
    if act in {"turn_on", "turn_off"}:
        return _STATES.get(entity.domain, ("on", "off"))[act == "turn_off"]
    shown = f"{value:g}" if isinstance(value, int | float) else str(value)
    if value is None:
        return act
    return _UNITS.get(act, "{}").format(shown)


def _label(entity: Entity) -> str:
    return f"{entity.area} {entity.name}" if entity.area else entity.name


def _is_called(named: Area | Entity, name: str) -> bool:
    return name.casefold() in {known.casefold() for known in (named.name, *named.aliases)}


def _shown(text: str) -> str:
    short = "".join(char if char.isprintable() else "?" for char in text[:_MAX_SHOWN_CHARS])
    return f"'{short}{'...' if len(text) > _MAX_SHOWN_CHARS else ''}'"


def _nearest(name: str, known: Iterable[str]) -> str:
    by_folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold()[:MAX_NAME_CHARS], list(by_folded), 3, 0.5)
    return f"; nearest: {', '.join(by_folded[other] for other in close)}" if close else ""
