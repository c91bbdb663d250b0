"""What an answer, such as ``{"intent":"HassTurnOn","area":"Kitchen"}``, does to a simulated home.

What always holds: everything here is immutable and pure. :func:`apply` takes a home and an answer and returns
the home afterwards; the same arguments give the same outcome. An answer is hostile input, whoever computed
it: whatever is wrong with it becomes the outcome's `problem`, never an exception, and text from it is shown
only if it is short and printable. A half-understood order is not carried out: an unknown slot is refused,
since leaving it out would widen what the order means.

Intents and slots are those of Home Assistant (home-assistant-intents 2026.10.27, ``data/en.json``), with its
ways: to open a cover and to lock a lock is ``HassTurnOn``. Where an order names no area, upstream means the
room of the microphone; there is none here, so it means the whole home.

Left to others: what a home can be like (:mod:`edgeslm.sim.home`), and messages
(:mod:`edgeslm.sim.home_devices`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Literal

from pydantic import JsonValue, ValidationError

from edgeslm.sim.home import (
    DOMAIN_FIELDS,
    MAX_TEXT_CHARS,
    ON_OFF,
    Device,
    Home,
    Place,
    Timer,
    is_same_name,
    listed,
    shown_number,
    spaced,
)

_MAX_SHOWN_CHARS = 60
_MAX_SHOWN_NAMES = 3
_VOLUME_STEPS = {"up": 10, "down": -10}
_TURNED: Mapping[str, tuple[Mapping[str, JsonValue], Mapping[str, JsonValue]]] = {
    "light": ({"state": "off"}, {"state": "on"}),
    "switch": ({"state": "off"}, {"state": "on"}),
    "fan": ({"state": "off"}, {"state": "on"}),
    "cover": ({"state": "closed", "position": 0}, {"state": "open", "position": 100}),
    "valve": ({"state": "closed", "position": 0}, {"state": "open", "position": 100}),
    "lock": ({"state": "unlocked"}, {"state": "locked"}),
    "climate": ({"state": "off"}, {"state": "heat"}),
    "media_player": ({"state": "off"}, {"state": "idle"}),
    "vacuum": ({"state": "docked", "cleaning": None}, {"state": "cleaning"}),
    "lawn_mower": ({"state": "docked"}, {"state": "mowing"}),
}
"""What ``HassTurnOff`` and ``HassTurnOn`` mean to each domain that they are for."""
_OPENABLE = frozenset({"cover", "valve"})
_PLAIN_ON_OFF = frozenset({"light", "switch", "fan"})
"""What ``turn everything off in here`` is about: no locks, no heating."""
_UNASKABLE = frozenset({"timer", "todo"})


# --- what an answer does ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One device before and after."""

    before: Device
    after: Device

    @property
    def fields(self) -> dict[str, JsonValue]:
        """The fields that changed: the body of a ``set`` message. A field that was taken away is ``None``."""
        old, new = (device.state.model_dump(mode="json") for device in (self.before, self.after))
        return {name: value for name, value in new.items() if value != old[name]}

    @property
    def text(self) -> str:
        """The change for a person."""
        return f"{self.after.label}: {self.before.text} -> {self.after.text}"


@dataclass(frozen=True)
class Outcome:
    """What an answer led to.

    Attributes:
        home: the home afterwards.
        changes: what is different now.
        reply: what the home would say, to a question or where nothing was to be done.
        problem: why the answer means nothing here; then nothing changed.
    """

    home: Home
    changes: tuple[Change, ...] = ()
    reply: str | None = None
    problem: str | None = None


class _RefusedError(Exception):
    """Why an answer cannot be acted on."""


_Effect = Sequence[Device] | str
_Slots = Mapping[str, object]


def apply(home: Home, answer: Mapping[str, object], now: datetime | None = None) -> Outcome:
    """What `answer` does to `home`.

    Args:
        home: as it is.
        answer: an intent and its slots; anything at all may be in it.
        now: for questions about time and date.
    """
    try:
        effect = _effect(home, answer, now)
        if isinstance(effect, str):
            return Outcome(home, reply=effect)
        changes = tuple(
            Change(before, after) for after in effect if after != (before := home.by_id[after.id])
        )
        after = home.replaced(change.after for change in changes)
    except _RefusedError as error:
        return Outcome(home, problem=str(error))
    except (ValidationError, OverflowError) as error:
        return Outcome(home, problem=_why(error))
    reply = (
        None if changes else "already so: " + listed(f"{device.label} is {device.text}" for device in effect)
    )
    return Outcome(after, changes, reply)


def known_intents() -> Mapping[str, frozenset[str]]:
    """Every intent that the home knows, with the slots that it takes."""
    return {name: slots for name, (_, slots) in _INTENTS.items()}


def _why(error: ValidationError | OverflowError) -> str:
    if not isinstance(error, ValidationError):
        return "a number is too large"
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{spaced(where)}: {fault['msg']}" if where else fault["msg"]


def _effect(home: Home, answer: Mapping[str, object], now: datetime | None) -> _Effect:
    intent = answer.get("intent")
    if not isinstance(intent, str):
        raise _RefusedError("the answer names no intent")
    if intent not in _INTENTS:
        raise _RefusedError(f"unknown intent {_shown(intent)}{_nearest(intent, _INTENTS)}")
    handler, known = _INTENTS[intent]
    slots = {name: value for name, value in answer.items() if name != "intent" and value is not None}
    if unknown := sorted(str(name) for name in slots.keys() - known):
        raise _RefusedError(f"{intent} takes no slot {_shown(unknown[0])}")
    return handler(_Order(home, slots, now))


@dataclass(frozen=True)
class _Order:
    """The slots of an answer, read with care."""

    home: Home
    slots: _Slots
    now: datetime | None

    def text(self, slot: str) -> str | None:
        """A text slot, stripped; ``None`` if it is not there."""
        value = self.slots.get(slot)
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip():
            raise _RefusedError(f"{spaced(slot)} is no text")
        if len(value) > MAX_TEXT_CHARS or not value.isprintable():
            raise _RefusedError(f"{spaced(slot)} is too long, or not printable")
        return value.strip()

    def needed_text(self, slot: str) -> str:
        """A text slot that must be there."""
        value = self.text(slot)
        if value is None:
            raise _RefusedError(f"{spaced(slot)} is missing")
        return value

    def number(self, slot: str) -> int | float:
        """A number slot that must be there; bounds are checked by what it is for."""
        value = self.slots.get(slot)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _RefusedError(f"{spaced(slot)} is {'missing' if value is None else 'no number'}")
        return value

    def place(self, slot: Literal["area", "floor"]) -> Place | None:
        """The area or floor that a slot names."""
        name = self.text(slot)
        if name is None:
            return None
        places = self.home.areas if slot == "area" else self.home.floors
        for place in places:
            if is_same_name(name, place.name, *place.aliases):
                return place
        raise _RefusedError(f"no {slot} {_shown(name)}{_nearest(name, (p.name for p in places))}")

    def seconds(self, prefix: str = "") -> int | None:
        """The sum of the hours, minutes and seconds slots; ``None`` if there are none."""
        total = None
        for unit, factor in (("hours", 3600), ("minutes", 60), ("seconds", 1)):
            if f"{prefix}{unit}" not in self.slots:
                continue
            count = self.number(f"{prefix}{unit}")
            if not isinstance(count, int) or not 0 <= count <= 10_000:
                raise _RefusedError(f"{spaced(prefix)}{unit} is no whole number from 0 to 10,000")
            total = (total or 0) + count * factor
        return total

    def devices(self, *domains: str) -> tuple[Device, ...]:
        """The devices, at least one, that all of name, area, floor, domain and class fit.

        Args:
            domains: those that the order can be for; none is any.
        """
        area, floor = self.place("area"), self.place("floor")
        allowed = frozenset(domains) or frozenset(DOMAIN_FIELDS) - _UNASKABLE
        domain, device_class, name = self.text("domain"), self.text("device_class"), self.text("name")
        on_floor = {place.name for place in self.home.areas if floor and place.floor == floor.name}
        found = [
            device
            for device in self.home.devices
            if device.domain in allowed
            and (area is None or device.area == area.name)
            and (floor is None or device.area in on_floor)
            and (domain is None or is_same_name(domain, device.domain))
            and (device_class is None or is_same_name(device_class, device.device_class or ""))
        ]
        if name is not None:
            fitting, found = found, [device for device in found if device.is_called(name)]
            if not found:
                raise _RefusedError(self._why_not_called(name, fitting))
        if not found:
            what = spaced(device_class or domain or (domains[0] if len(domains) == 1 else "fitting device"))
            where = f" {_in(area or floor)}" if area or floor else ""
            raise _RefusedError(f"there is no {_plain(what)}{where}")
        return tuple(found)

    def _why_not_called(self, name: str, fitting: Sequence[Device]) -> str:
        elsewhere = [device for device in self.home.devices if device.is_called(name)]
        if elsewhere:
            device = elsewhere[0]
            where = f" in the {device.area}" if device.area else ""
            return f"{device.name} is a {spaced(device.domain)}{where}: that does not fit the order"
        return f"no device {_shown(name)}{_nearest(name, (device.name for device in fitting))}"

    def changed(self, devices: Iterable[Device], **fields: JsonValue) -> list[Device]:
        """`devices` with the same fields replaced in each."""
        return [device.changed(fields) for device in devices]

    def sole(self, domain: str) -> Device:
        """The one device that keeps the home's timers, or its weather."""
        for device in self.home.devices:
            if device.domain == domain:
                return device
        raise _RefusedError(f"this home has no {domain}")


# --- on and off, light, covers, climate, fans ---------------------------------------------------------------


def _turn(on: bool, order: _Order) -> _Effect:
    if not order.slots:
        raise _RefusedError("the order does not say what to turn on or off")
    is_broad = not order.slots.keys() & {"name", "domain", "device_class"}
    devices = order.devices(*(_PLAIN_ON_OFF if is_broad else _TURNED))
    return [device.changed(_turned(device, on)) for device in devices]


def _turned(device: Device, on: bool) -> Mapping[str, JsonValue]:
    fields = _TURNED[device.domain][on]
    if on and device.domain == "climate" and device.state.state != "off":
        return {}  # it cools already, for example
    if on and device.domain == "media_player" and device.state.state != "off":
        return {}
    if on and device.domain == "light" and not device.state.brightness:
        return {**fields, "brightness": 100}
    if on and device.domain == "fan" and not device.state.percentage:
        return {**fields, "percentage": 100}
    return fields


def _set_light(order: _Order) -> _Effect:
    lights = order.devices("light")
    fields: dict[str, JsonValue] = {}
    if "brightness" in order.slots:
        fields["brightness"] = order.number("brightness")
    if "color" in order.slots:
        fields |= {"color": order.needed_text("color").casefold(), "color_temperature": None}
    if "temperature" in order.slots:
        fields |= {"color_temperature": order.number("temperature"), "color": None}
    if not fields:
        raise _RefusedError("the order does not say what to set")
    return order.changed(lights, **fields, state="off" if fields.get("brightness") == 0 else "on")


def _set_position(order: _Order) -> _Effect:
    position = order.number("position")
    state = "closed" if position == 0 else "open"
    return order.changed(order.devices(*sorted(_OPENABLE)), position=position, state=state)


def _set_temperature(order: _Order) -> _Effect:
    target = order.number("temperature")
    return [
        device.changed({**_turned(device, True), "target_temperature": target})
        for device in order.devices("climate")
    ]


def _get_temperature(order: _Order) -> _Effect:
    devices = order.devices("climate")
    return listed(f"{device.label}: {shown_number(device.state.temperature)} °C" for device in devices)


def _set_fan_mode(order: _Order) -> _Effect:
    return order.changed(order.devices("climate"), fan_mode=order.needed_text("fan_mode").casefold())


def _set_fan_speed(order: _Order) -> _Effect:
    percentage = order.number("percentage")
    return order.changed(order.devices("fan"), percentage=percentage, state="on" if percentage else "off")


# --- media --------------------------------------------------------------------------------------------------


def _players(order: _Order, *states: str) -> tuple[Device, ...]:
    """The players meant: without a name, those in one of `states` if there are any."""
    players = order.devices("media_player")
    fitting = tuple(player for player in players if player.state.state in states)
    return fitting if fitting and "name" not in order.slots else players


def _set_volume(order: _Order) -> _Effect:
    return order.changed(_players(order, "playing"), volume=order.number("volume_level"))


def _set_volume_relative(order: _Order) -> _Effect:
    step = order.slots.get("volume_step")
    named = _VOLUME_STEPS.get(step) if isinstance(step, str) else None
    change = named if named is not None else order.number("volume_step")
    if not isinstance(change, int) or abs(change) > 100:
        raise _RefusedError("volume step is no whole number from -100 to 100")
    return [
        player.changed({"volume": min(100, max(0, (player.state.volume or 0) + change))})
        for player in _players(order, "playing")
    ]


def _mute(muted: bool, order: _Order) -> _Effect:
    return order.changed(_players(order, "playing"), muted=muted)


def _play(before: str, after: str, order: _Order) -> _Effect:
    players = _players(order, before)
    if not any(player.state.state in {before, after} for player in players):
        raise _RefusedError(f"no player is {before}")
    return order.changed((p for p in players if p.state.state in {before, after}), state=after)


def _skip(step: int, order: _Order) -> _Effect:
    players = [player for player in _players(order, "playing") if player.state.state == "playing"]
    if not players:
        raise _RefusedError("nothing is playing")
    return [player.changed({"track": max(1, (player.state.track or 1) + step)}) for player in players]


def _search_and_play(order: _Order) -> _Effect:
    media_class, query = order.text("media_class"), order.needed_text("search_query")
    media = f"{query} ({spaced(media_class)})" if media_class else query
    player = _players(order, "playing")[0]
    return [player.changed({"state": "playing", "media": media, "track": 1})]


# --- vacuum and mower ---------------------------------------------------------------------------------------


def _start_vacuum(order: _Order) -> _Effect:
    return order.changed(order.devices("vacuum"), state="cleaning", cleaning=None)


def _clean_area(order: _Order) -> _Effect:
    area = order.place("area")
    # The area is where to clean, not where the vacuum stands.
    elsewhere = _Order(order.home, {k: v for k, v in order.slots.items() if k != "area"}, order.now)
    return order.changed(
        elsewhere.devices("vacuum")[:1], state="cleaning", cleaning=area.name if area else None
    )


def _dock(domain: str, order: _Order) -> _Effect:
    return [device.changed(_turned(device, False)) for device in order.devices(domain)]


def _mow(order: _Order) -> _Effect:
    return order.changed(order.devices("lawn_mower"), state="mowing")


# --- timers -------------------------------------------------------------------------------------------------


def _with_timers(order: _Order, timers: Iterable[Timer]) -> list[Device]:
    return [order.sole("timer").changed({"timers": [timer.model_dump() for timer in timers]})]


def _timers(order: _Order) -> tuple[Timer, ...]:
    """The timers that name, area and length fit, at least one."""
    running = order.sole("timer").state.timers or ()
    if not running:
        raise _RefusedError("no timer is set")
    name, area, length_s = order.text("name"), order.place("area"), order.seconds("start_")
    found = tuple(
        timer
        for timer in running
        if (name is None or is_same_name(name, timer.name or ""))
        and (area is None or timer.area == area.name)
        and (length_s is None or timer.duration_s == length_s)
    )
    if not found:
        raise _RefusedError(f"no such timer; set: {listed(timer.text for timer in running)}")
    return found


def _one_timer(order: _Order) -> Timer:
    found = _timers(order)
    if len(found) > 1:
        raise _RefusedError(f"which timer? Set: {listed(timer.text for timer in found)}")
    return found[0]


def _start_timer(order: _Order) -> _Effect:
    length_s, area = order.seconds(), order.place("area")
    if not length_s:
        raise _RefusedError("the timer has no length")
    timer = Timer(
        duration_s=length_s,
        left_s=length_s,
        name=order.text("name"),
        area=area.name if area else None,
        command=order.text("conversation_command"),
    )
    return _with_timers(order, [*(order.sole("timer").state.timers or ()), timer])


def _edit_timer(edit: Callable[[Timer], Timer | None], order: _Order) -> list[Device]:
    chosen = _one_timer(order)
    kept = [edit(timer) if timer is chosen else timer for timer in order.sole("timer").state.timers or ()]
    return _with_timers(order, (timer for timer in kept if timer is not None))


def _cancel_timer(order: _Order) -> _Effect:
    return _edit_timer(lambda _: None, order)


def _cancel_all_timers(order: _Order) -> _Effect:
    gone = _timers(order)
    return _with_timers(order, (t for t in order.sole("timer").state.timers or () if t not in gone))


def _adjust_timer(sign: int, order: _Order) -> _Effect:
    change_s = order.seconds()
    if not change_s:
        raise _RefusedError("the order does not say by how much")
    left_s = _one_timer(order).left_s + sign * change_s
    if left_s <= 0:
        return _cancel_timer(order)
    return _edit_timer(lambda timer: Timer.model_validate({**timer.model_dump(), "left_s": left_s}), order)


def _pause_timer(paused: bool, order: _Order) -> _Effect:
    return _edit_timer(lambda timer: timer.model_copy(update={"paused": paused}), order)


def _timer_status(order: _Order) -> _Effect:
    return listed(timer.text for timer in _timers(order))


# --- lists --------------------------------------------------------------------------------------------------


def _list(order: _Order) -> Device:
    """The list that is named; without a name, the first one, which is for shopping."""
    return order.devices("todo")[0]


def _add_item(order: _Order) -> _Effect:
    kept, item = _list(order), order.needed_text("item")
    items: list[JsonValue] = list(kept.state.items or ())
    return (
        [kept] if is_same_name(item, *(kept.state.items or ())) else [kept.changed({"items": [*items, item]})]
    )


def _finish_item(is_done: bool, order: _Order) -> _Effect:
    kept, item = _list(order), order.needed_text("item")
    items, done = list(kept.state.items or ()), list(kept.state.done or ())
    if not is_same_name(item, *items):
        raise _RefusedError(f"{_shown(item)} is not on {kept.name}{_nearest(item, items)}")
    rest: list[JsonValue] = [other for other in items if not is_same_name(item, other)]
    return [kept.changed({"items": rest, "done": [*done, item] if is_done else list(done)})]


# --- questions and talk -------------------------------------------------------------------------------------


def _get_state(order: _Order) -> _Effect:
    devices, asked = order.devices(), order.text("state")
    if asked is None:
        return listed(f"{device.label} is {device.text}" for device in devices)
    fitting = [device for device in devices if _is_in(device, asked.casefold())]
    if "name" in order.slots:
        told = listed(f"{device.label} is {device.text}" for device in devices)
        return f"{'yes' if fitting else 'no'}: {told}"
    names = f": {listed(device.label for device in fitting)}" if fitting else ""
    return f"{len(fitting)} of {len(devices)}{names}"


def _is_in(device: Device, word: str) -> bool:
    """Whether a device is in the state that was asked for, in the words of questions."""
    own = (device.state.state or "").casefold()
    if word not in ON_OFF or own in ON_OFF:
        return own == word
    return (own not in {"closed", "unlocked", "docked", "idle", "paused"}) == (word == "on")


def _get_weather(order: _Order) -> _Effect:
    name, weather = order.text("name"), order.sole("weather")
    if name is not None and not weather.is_called(name):
        raise _RefusedError(f"the weather in {_shown(name)} is not known here, only that at home")
    return f"{weather.state.state}, {shown_number(weather.state.temperature)} °C"


def _get_time(layout: str, order: _Order) -> _Effect:
    if order.now is None:
        raise _RefusedError("this home has no clock")
    return order.now.strftime(layout)


def _broadcast(order: _Order) -> _Effect:
    return f"said in every room: {_shown(order.needed_text('message'))}"


def _say(text: str, order: _Order) -> _Effect:
    del order
    return text


# --- which intent is which ----------------------------------------------------------------------------------


_Handler = Callable[[_Order], _Effect]
_WHERE = frozenset({"name", "area", "floor"})
_WHICH = _WHERE | {"domain", "device_class"}
_LENGTH = frozenset({"hours", "minutes", "seconds"})
_WHICH_TIMER = frozenset({"name", "area", "start_hours", "start_minutes", "start_seconds"})
_INTENTS: Mapping[str, tuple[_Handler, frozenset[str]]] = {
    "HassTurnOn": (partial(_turn, True), _WHICH),
    "HassTurnOff": (partial(_turn, False), _WHICH),
    "HassGetState": (_get_state, _WHICH | {"state"}),
    "HassLightSet": (_set_light, _WHERE | {"domain", "brightness", "color", "temperature"}),
    "HassSetPosition": (_set_position, _WHICH | {"position"}),
    "HassClimateSetTemperature": (_set_temperature, _WHERE | {"temperature"}),
    "HassClimateGetTemperature": (_get_temperature, _WHERE),
    "HassClimateSetFanMode": (_set_fan_mode, _WHERE | {"fan_mode"}),
    "HassFanSetSpeed": (_set_fan_speed, _WHERE | {"domain", "percentage"}),
    "HassSetVolume": (_set_volume, _WHERE | {"volume_level"}),
    "HassSetVolumeRelative": (_set_volume_relative, _WHERE | {"volume_step"}),
    "HassMediaPlayerMute": (partial(_mute, True), _WHERE),
    "HassMediaPlayerUnmute": (partial(_mute, False), _WHERE),
    "HassMediaPause": (partial(_play, "playing", "paused"), _WHERE),
    "HassMediaUnpause": (partial(_play, "paused", "playing"), _WHERE),
    "HassMediaNext": (partial(_skip, 1), _WHERE),
    "HassMediaPrevious": (partial(_skip, -1), _WHERE),
    "HassMediaSearchAndPlay": (_search_and_play, _WHERE | {"search_query", "media_class"}),
    "HassVacuumStart": (_start_vacuum, _WHERE),
    "HassVacuumReturnToBase": (partial(_dock, "vacuum"), _WHERE),
    "HassVacuumCleanArea": (_clean_area, frozenset({"name", "area"})),
    "HassLawnMowerStartMowing": (_mow, _WHERE),
    "HassLawnMowerDock": (partial(_dock, "lawn_mower"), _WHERE),
    "HassStartTimer": (_start_timer, _LENGTH | {"name", "area", "conversation_command"}),
    "HassCancelTimer": (_cancel_timer, _WHICH_TIMER),
    "HassCancelAllTimers": (_cancel_all_timers, frozenset({"area"})),
    "HassIncreaseTimer": (partial(_adjust_timer, 1), _WHICH_TIMER | _LENGTH),
    "HassDecreaseTimer": (partial(_adjust_timer, -1), _WHICH_TIMER | _LENGTH),
    "HassPauseTimer": (partial(_pause_timer, True), _WHICH_TIMER),
    "HassUnpauseTimer": (partial(_pause_timer, False), _WHICH_TIMER),
    "HassTimerStatus": (_timer_status, _WHICH_TIMER),
    "HassShoppingListAddItem": (_add_item, frozenset({"item"})),
    "HassShoppingListCompleteItem": (partial(_finish_item, True), frozenset({"item"})),
    "HassListAddItem": (_add_item, frozenset({"name", "item"})),
    "HassListCompleteItem": (partial(_finish_item, True), frozenset({"name", "item"})),
    "HassListRemoveItem": (partial(_finish_item, False), frozenset({"name", "item"})),
    "HassGetCurrentTime": (partial(_get_time, "%H:%M"), frozenset()),
    "HassGetCurrentDate": (partial(_get_time, "%A, %d %B %Y"), frozenset()),
    "HassGetWeather": (_get_weather, frozenset({"name"})),
    "HassBroadcast": (_broadcast, frozenset({"message"})),
    "HassNevermind": (partial(_say, "all right"), frozenset()),
    "HassRespond": (
        partial(_say, "a small model on this machine, listening only when spoken to"),
        frozenset(),
    ),
}


# --- text from answers, and about them ----------------------------------------------------------------------


def _shown(text: str) -> str:
    """Text from an answer, safe for a terminal."""
    short = "".join(char if char.isprintable() else "?" for char in text[:_MAX_SHOWN_CHARS])
    return f"'{short}{'...' if len(text) > _MAX_SHOWN_CHARS else ''}'"


def _plain(text: str) -> str:
    return _shown(text)[1:-1]


def _in(place: Place | None) -> str:
    if place is None or place.name.endswith("stairs"):
        return place.name.lower() if place else ""
    return f"in the {place.name}"


def _nearest(name: str, known: Iterable[str]) -> str:
    by_folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(
        name.casefold()[:MAX_TEXT_CHARS], list(by_folded), _MAX_SHOWN_NAMES, 0.5
    )
    return f"; nearest: {', '.join(by_folded[other] for other in close)}" if close else ""
